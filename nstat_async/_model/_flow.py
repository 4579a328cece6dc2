"""A flow: its two ends, where it is, and which process owns it."""

from __future__ import annotations

import ipaddress
import socket
from uuid import UUID

import attrs

from .._workload import workload_of
from ._kinds import Attribution, Direction, InterfaceKind, Outcome, Provider, TcpState

_ADDRESS_SIZES = (4, 16)


def _wrong(text: str) -> ValueError:
    from .._errors import UsageError  # noqa: PLC0415  # errors have flows, so that module imports this one

    return UsageError(text)


def _zone_index(address: str, zone: str) -> int:
    """Index of an interface, by number or name (RFC 4007)."""
    if zone.isascii() and zone.isdigit() and len(zone) < 11 and int(zone) < 1 << 32:
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except (OSError, ValueError, AttributeError):
        raise _wrong(f"Endpoint: {zone!r} in {address!r} is not an interface of this machine") from None


def _address_text(packed: bytes) -> str:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed)


_LOOPBACK6 = bytes(15) + b"\1"
IPV4_MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4-mapped IPv6 address begins with: a socket of both families has the peer a.b.c.d as ``::ffff:a.b.c.d``."""


def unmapped(packed: bytes) -> bytes:
    """A packed address, as IPv4 if it is IPv4-mapped."""
    return packed.removeprefix(IPV4_MAPPED)


def is_loopback(packed: bytes) -> bool:
    """True for a packed address in 127.0.0.0/8, and for ``::1``."""
    return packed[0] == 127 if len(packed) == 4 else packed == _LOOPBACK6


@attrs.frozen(repr=False, weakref_slot=False)
class Endpoint:
    """An address and a port.

    Raises:
        UsageError: The address does not have 4 or 16 bytes, or the port is not a port.
    """

    packed: bytes
    """The address in network order: 4 bytes for IPv4, 16 for IPv6."""
    port: int
    """The port; 0 when none is bound, or where the kernel forgot it: Linux, the remote port of an attempt that failed, and
    of a connection that was aborted between two polls."""
    scope_id: int | None = None
    """The interface index of a scoped (link-local) IPv6 address, else `None`."""

    def __attrs_post_init__(self) -> None:
        packed, port = self.packed, self.port
        if type(packed) is not bytes or len(packed) not in _ADDRESS_SIZES:
            raise _wrong(f"Endpoint: {packed!r} is not an address of 4 or 16 bytes; Endpoint.parse takes a text")
        if not isinstance(port, int) or not 0 <= port < 65_536:
            raise _wrong(f"Endpoint: {port!r} is not a port from 0 to 65535")

    @classmethod
    def parse(cls, address: str, port: int = 0) -> Endpoint:
        """Make an endpoint from text, e.g. ``"192.0.2.1"``, ``"fe80::1%4"`` or ``"fe80::1%eth0"``.

        Raises:
            ValueError: `address` is not an IP address, or its zone is not an interface of this machine.
            UsageError: `address` is not a text; also a `ValueError`.
        """
        if not isinstance(address, str):
            raise _wrong(f"Endpoint: {address!r} is not a text such as '192.0.2.1'")
        packed = ipaddress.ip_address(address).packed  # refuses an empty zone, and one of an IPv4 address
        zone = address.partition("%")[2]
        return cls(packed, port, _zone_index(address, zone) if zone else None)

    @property
    def address(self) -> str:
        """The address as text, without scope."""
        return _address_text(self.packed)

    @property
    def ip_address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The address as an object of the standard library."""
        return ipaddress.ip_address(self.packed)

    @property
    def is_unspecified(self) -> bool:
        """True for ``0.0.0.0`` and ``::``."""
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        """True for 127.0.0.0/8 and ``::1``."""
        packed = self.packed  # as the function of this name, without a call: filters ask for every flow
        return packed[0] == 127 if len(packed) == 4 else packed == _LOOPBACK6

    def __str__(self) -> str:
        scope = f"%{self.scope_id}" if self.scope_id else ""
        if len(self.packed) == 4:
            return f"{self.address}:{self.port}"
        return f"[{self.address}{scope}]:{self.port}"

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"


@attrs.frozen(repr=False)
class Process:
    """The process that owns a flow, as far as the kernel reports it."""

    pid: int
    """Process id; 0 is the kernel itself."""
    name: str | None = None
    """Name, which the process or its maker chose: escape it before printing. Darwin: as the kernel has it. Linux: base name
    of the executable; where that may not be read, or the process ended too early, the `title`."""
    unique_pid: int | None = None
    """An id that is never reused while the machine is up: on Darwin the kernel's
    unique process id, on Linux the process' start time in clock ticks since boot."""
    effective_pid: int | None = None
    """The process on whose behalf the flow exists, if that differs or is reported."""
    effective_unique_pid: int | None = None
    """`unique_pid` of the effective process."""
    uuid: UUID | None = None
    """UUID of the executable (Darwin: LC_UUID), the same for all runs of one build."""
    effective_uuid: UUID | None = None
    """UUID of the effective process' executable."""
    uid: int | None = None
    """User id of the socket's credential."""
    persona_id: int | None = None
    """Darwin persona; `None` if there is none, for which the kernel has -1."""
    path: str | None = None
    """Path of the executable."""
    responsible_uuid: UUID | None = None
    """Darwin, since macOS 14.4: UUID of the executable of the process that is responsible for this one, such as the
    terminal or editor that started it. `None` if it is responsible for itself, or acts for an effective process."""
    title: str | None = None
    """Linux: the name that the program gave itself (``comm``, at most 15 characters). A script has its own name here, and
    that of the interpreter in `name`."""
    user: str | None = None
    """Linux: name of the user `uid`; `None` if the system does not know it."""
    parent_pid: int | None = None
    """Linux: process id of the parent; 0 if that is in another pid namespace."""
    started_ns: int | None = None
    """Linux: start of the process, wall clock, nanoseconds since the epoch."""
    command_line: str | None = None
    """Linux, with ``extras``: the command line as a shell would take it (at most 4,096 bytes), or the title that the
    program wrote over it. It may contain secrets."""
    attribution: Attribution | None = None
    """Linux: how it is known that the process owns the flow: ``OBSERVED`` or ``INFERRED``."""

    @property
    def started(self) -> float | None:
        """`started_ns` in seconds since the epoch, as the times of events are."""
        return None if self.started_ns is None else self.started_ns / 1e9

    @property
    def key(self) -> tuple[int, int | None]:
        """Tells this process from a later one with the same pid."""
        return (self.pid, self.unique_pid)

    def __str__(self) -> str:
        return f"pid:{self.pid} ({self.name})" if self.name else f"pid:{self.pid}"

    def __repr__(self) -> str:
        extra = f" for {self.effective_pid}" if self.effective_pid not in (None, self.pid) else ""
        return f"<Process {self.pid} {self.name!r}{extra}>"


@attrs.frozen
class Interface:
    """A network interface, as a flow names it."""

    index: int | None
    """Interface index; `None` where only the kind is known (Darwin's connection objects)."""
    name: str | None = None
    """Name, e.g. ``"en0"``; `None` where only the index is known."""
    kind: InterfaceKind | None = None
    """Kind of the interface; `None` if the kernel did not say."""
    properties: int | None = None
    """Darwin's raw property bits (``NSTAT_IFNET_*``), unknown bits included."""


@attrs.frozen
class Peer:
    """The other end of a connection, as its machine reports it; known inside a fleet only."""

    host: str | None
    """The machine of the other end, as `Flow.host`."""
    process: Process | None = None
    """The process at the other end; `None` while it is not known."""
    flow: str | None = None
    """`Flow.id` of the flow at the other end."""


@attrs.frozen(repr=False, weakref_slot=False)
class Flow:
    """One source of traffic, without its counters: which two ends, which process.

    The value of a flow changes when the kernel knows more (an address is bound, a
    connection is established); `id` stays the same. As long as nothing changes, all
    events have the same object.
    """

    id: str
    """Unique while the monitor lives, never reused."""
    provider: Provider
    """Kind of the flow."""
    userland: bool | None = None
    """True if the transport runs in the process (Darwin user-land flows)."""
    local: Endpoint | None = None
    """Local address; `None` while unknown."""
    remote: Endpoint | None = None
    """Remote address; `None` while there is no peer, or it is unknown."""
    process: Process | None = None
    """The process that owns it; `None` if it may not be seen, or is not known yet."""
    interface: Interface | None = None
    """The interface of the last packet; `None` if there was no packet."""
    state: TcpState | None = None
    """TCP state at the last report; `None` for other flows."""
    direction: Direction | None = None
    """Which end began it; `None` for UDP, and while that is not known."""
    started_ns: int | None = None
    """Creation of the socket, wall clock, nanoseconds since the epoch."""
    uuid: UUID | None = None
    """The flow's own id in the network framework (Darwin)."""
    parent_uuid: UUID | None = None
    """Id of the connection that this one belongs to (Darwin, connections)."""
    provider_id: int | None = None
    """The kernel's own provider number."""
    traffic_class: int | None = None
    """Darwin: ``SO_TRAFFIC_CLASS`` of the socket (``SO_TC_*``)."""
    fallback_mode: int | None = None
    """Darwin: how a cellular fallback came about (``SO_FALLBACK_MODE_*``)."""
    vpn_uuid: UUID | None = None
    """Darwin: policy (VPN) id of the socket."""
    namespace: str | None = None
    """Linux: the network namespace, if it is not the monitor's own."""
    attribution: Attribution | None = None
    """How `process` is known, or why there is none; `None` if it was seen to hold the flow, or the search goes on."""
    protocol: int | None = None
    """Linux: the IP protocol of a raw socket (255: it writes whole packets), or the EtherType of a packet socket (3: all);
    `None` for other flows, and while it is not known."""
    other_holders: int | None = None
    """Linux: how many other processes hold the socket too; `None` if none is known."""
    holders: tuple[tuple[int, str | None], ...] = ()
    """Linux, with ``extras``: process id and name of the oldest other holders, at most 15."""
    parent: str | None = None
    """Linux, for a ``udp_subflow``: id of the socket's flow. A subflow without a remote has all traffic that is in no other."""
    host: str | None = None
    """The machine that the flow is on, in a fleet; `None` for this machine."""
    peer: Peer | None = None
    """In a fleet: machine and process at the other end, if that machine is in the fleet and both ends have the same addresses
    and ports; otherwise `None`."""
    cgroup: str | None = None
    """Linux: path of the cgroup (v2) in which the socket was made, seen from the monitor's own cgroup namespace; it may be
    known where the process is not. `None` without cgroup v2, if the cgroup was removed before the look-up, and
    for a flow that is known only by its end. In a network namespace that is watched by ``/proc/PID/net``: the cgroup of
    all visible processes of the namespace, if they are in the same one."""
    container: str | None = None
    """Linux: name of the container in which the socket was made, or its id if the name is not known."""
    pod: str | None = None
    """Linux: Kubernetes pod of that container as ``namespace/name``, or its uid if that is not known; for Podman, the pod's id."""
    outcome: Outcome | None = None
    """How the connection ended; `None` while it is open, for flows without a connection, and if it is not known."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.provider, Provider):
            raise _wrong(
                f"Flow: {self.id!r}, {self.provider!r} are not an id and a Provider, such as '1', Provider.TCP"
            )

    @property
    def started(self) -> float | None:
        """`started_ns` in seconds since the epoch, as the times of events are."""
        return None if self.started_ns is None else self.started_ns / 1e9

    @property
    def unit(self) -> str | None:
        """Linux: unit of systemd in which the socket was made, by `cgroup`: a service, a scope, a socket; `None` outside of units."""
        return None if self.cgroup is None else workload_of(self.cgroup).unit

    @property
    def container_id(self) -> str | None:
        """Linux: id of the container, by `cgroup`; for LXC and systemd-nspawn, its name. `None` outside of containers."""
        return None if self.cgroup is None else workload_of(self.cgroup).container

    @property
    def pod_uid(self) -> str | None:
        """Linux: uid of the Kubernetes pod, by `cgroup`; for Podman, the pod's id. `None` outside of pods."""
        return None if self.cgroup is None else workload_of(self.cgroup).pod

    @property
    def is_loopback(self) -> bool:
        """True if its addresses or interface tell that the flow stays on this machine."""
        if self.interface is not None and self.interface.kind is InterfaceKind.LOOPBACK:
            return True
        return any(e is not None and e.is_loopback for e in (self.remote, self.local))

    def __str__(self) -> str:
        parts = [self.provider.value, str(self.local or "*"), "->", str(self.remote or "*")]
        if self.state is not None:
            parts.append(self.state.value)
        if self.process is not None:
            parts.append(str(self.process))
        return " ".join(parts)

    def __repr__(self) -> str:
        return f"<Flow {self.id} {self}>"
