"""The values that users hold: flows, their endpoints, owners and counters.

Two rules for this file:

- *Unknown is `None`.* A field that the platform cannot tell is `None`, on every
  platform; ``0`` and ``""`` mean that the kernel said so.
- *Values are immutable and hashable*, and say the unit in the name when it is
  not bytes or packets.

There may be half a million reports a second on a busy replay. An event therefore keeps
what the kernel sent, makes `Counts` of it when they are read, and these translate a field
when it is read; everything else is made once per flow and shared between its events. A machine has as many flows as sockets:
they and their endpoints have no slot for weak references.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Union
from uuid import UUID

import attrs

from ._workload import workload_of

__all__ = [
    "Attribution",
    "Capabilities",
    "Counts",
    "Delta",
    "Details",
    "DetailsSource",
    "Direction",
    "DomainInfo",
    "Endpoint",
    "Flow",
    "Interface",
    "InterfaceKind",
    "MediumCounts",
    "Outcome",
    "Peer",
    "Process",
    "Proof",
    "Provider",
    "TcpState",
    "Visibility",
]


class Provider(enum.Enum):
    """What kind of thing a flow is.

    Kernel and user-land variants share a member; `Flow.userland` distinguishes them.
    """

    TCP = "tcp"
    UDP = "udp"
    QUIC = "quic"
    CONNECTION = "connection"
    """A connection attempt of the network framework (Darwin); it groups flows and carries no bytes."""
    UDP_SUBFLOW = "udp_subflow"
    """One remote of an unconnected UDP socket; its bytes are also in the socket's own flow."""
    RAW = "raw"
    """A raw IP socket (Linux); `Flow.protocol` says of which protocol."""
    ICMP = "icmp"
    """A socket that sends echo requests without privilege (Linux, ``icmp(7)``); its port is the identifier."""
    PACKET = "packet"
    """A socket that sends and receives frames of a device (Linux, ``packet(7)``); it has no address."""
    ROUTE = "route"
    INTERFACE = "interface"
    UNKNOWN = "unknown"
    """A provider that a newer kernel invented."""


class TcpState(enum.Enum):
    """The states of RFC 9293, in the words of both kernels."""

    CLOSED = "closed"
    LISTEN = "listen"
    SYN_SENT = "syn_sent"
    SYN_RECEIVED = "syn_received"
    ESTABLISHED = "established"
    CLOSE_WAIT = "close_wait"
    FIN_WAIT_1 = "fin_wait_1"
    CLOSING = "closing"
    LAST_ACK = "last_ack"
    FIN_WAIT_2 = "fin_wait_2"
    TIME_WAIT = "time_wait"


class Direction(enum.Enum):
    """Who began a flow."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    LISTENER = "listener"


class InterfaceKind(enum.Enum):
    """The kind of the interface that carried the last packet."""

    WIFI = "wifi"
    WIRED = "wired"
    CELLULAR = "cellular"
    LOOPBACK = "loopback"
    AWDL = "awdl"
    """Peer-to-peer Wi-Fi: Apple wireless direct link, or low-latency WLAN."""
    COMPANION = "companion"
    """The link between a watch or headset and its host."""
    BLUETOOTH = "bluetooth"
    VPN = "vpn"
    """A tunnel. On Darwin it may also have a physical medium: see `Interface.properties`."""
    BRIDGE = "bridge"
    """A bridge or virtual Ethernet (Linux; Darwin counts these as wired)."""
    OTHER = "other"
    """The kernel knows the interface and none of the words above fits."""


def _address_text(packed: bytes) -> str:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed)


class Attribution(enum.Enum):
    """How a flow's process is known, or why there is none (Linux)."""

    OBSERVED = "observed"
    """The process was seen to hold the flow, or to use it."""
    INFERRED = "inferred"
    """It is the only process that listened where the flow was accepted, which ended before anyone could look."""
    KERNEL = "kernel"
    """Linux: the kernel made the socket for itself (VXLAN, NFS, WireGuard): all processes were looked at, and none
    has it. `Flow.process` is the one with pid 0."""
    HIDDEN = "hidden"
    """Linux: none of the processes that may be looked at has it."""
    GONE = "gone"
    """Linux: it ended before anyone could look."""


class Outcome(enum.Enum):
    """How a connection ended, as far as the kernel's last words tell."""

    CLOSED_HERE = "closed_here"
    """In order; this end closed first."""
    CLOSED_THERE = "closed_there"
    """In order; the other end closed first."""
    RESET_HERE = "reset_here"
    """This end reset it: it was aborted, or closed with something unread."""
    RESET_THERE = "reset_there"
    """The other end reset it, or something on the way in its name."""
    RESET = "reset"
    """It was reset; by whom is not known."""
    TIMED_OUT = "timed_out"
    """Nobody answered any more, or ever: what was sent was repeated in vain until it was given up."""
    REFUSED = "refused"
    """The attempt was answered with a refusal, and never established."""
    FAILED = "failed"
    """It was never established; why is not known, or the program gave it up."""


_ADDRESS_SIZES = (4, 16)


def _wrong(text: str) -> ValueError:
    from ._errors import UsageError  # noqa: PLC0415  # errors carry flows, so they import this module

    return UsageError(text)


def _zone_index(address: str, zone: str) -> int:
    """Index of an interface, by number or name (RFC 4007)."""
    if zone.isascii() and zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except (OSError, ValueError, AttributeError):
        raise _wrong(f"Endpoint: {zone!r} in {address!r} is no interface of this machine") from None


@attrs.frozen(repr=False, weakref_slot=False)
class Endpoint:
    """An address and a port.

    Raises:
        UsageError: It is no address of 4 or 16 bytes, or no port.
    """

    packed: bytes
    """The address in network order: 4 bytes for IPv4, 16 for IPv6."""
    port: int
    """The port; 0 when none is bound."""
    scope_id: int | None = None
    """The interface index of a scoped (link-local) IPv6 address, else `None`."""

    def __attrs_post_init__(self) -> None:
        packed, port = self.packed, self.port
        if type(packed) is not bytes or len(packed) not in _ADDRESS_SIZES:
            raise _wrong(f"Endpoint: {packed!r} is no address of 4 or 16 bytes; Endpoint.parse takes a text")
        if not isinstance(port, int) or not 0 <= port < 65_536:
            raise _wrong(f"Endpoint: {port!r} is no port from 0 to 65535")

    @classmethod
    def parse(cls, address: str, port: int = 0) -> Endpoint:
        """Make an endpoint from text, e.g. ``"192.0.2.1"``, ``"fe80::1%4"`` or ``"fe80::1%eth0"``.

        Raises:
            ValueError: `address` is not an IP address, or its zone is no interface of this machine.
        """
        text, _, zone = address.partition("%")
        packed = ipaddress.ip_address(text).packed
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
        if len(self.packed) == 4:
            return self.packed[0] == 127
        return self.packed == b"\0" * 15 + b"\1"

    def __str__(self) -> str:
        scope = f"%{self.scope_id}" if self.scope_id else ""
        if len(self.packed) == 4:
            return f"{self.address}:{self.port}"
        return f"[{self.address}{scope}]:{self.port}"

    def __repr__(self) -> str:
        return f"<Endpoint {self}>"


@attrs.frozen(repr=False)
class Process:
    """The owner of a flow, as far as the kernel reports it."""

    pid: int
    """Process id; 0 is the kernel itself."""
    name: str | None = None
    """Name as the kernel has it (chosen by the process: escape before printing)."""
    unique_pid: int | None = None
    """An id that is never reused while the machine is up: on Darwin the kernel's
    unique process id, on Linux the process' start time in clock ticks since boot."""
    effective_pid: int | None = None
    """The process on whose behalf the flow exists, when that differs or is reported."""
    effective_unique_pid: int | None = None
    """`unique_pid` of the effective process."""
    uuid: UUID | None = None
    """UUID of the executable (Darwin: LC_UUID); equal for all runs of one build."""
    effective_uuid: UUID | None = None
    """UUID of the effective process' executable."""
    uid: int | None = None
    """User id of the socket's credential."""
    persona_id: int | None = None
    """Darwin persona; `None` where there is none, which the kernel calls -1."""
    path: str | None = None
    """Path of the executable."""
    responsible_uuid: UUID | None = None
    """UUID of the executable of the process that is responsible for this one (Darwin, since macOS 14.4): of the
    terminal or editor that it was started from. `None` when it answers for itself, or acts for an effective process."""
    title: str | None = None
    """Linux: the name that the program gave itself (``comm``, 15 characters at most); of a script its own, where
    `name` is that of the interpreter."""
    user: str | None = None
    """Linux: what the system calls the user `uid`; `None` if it does not know it."""
    parent_pid: int | None = None
    """Linux: process id of the parent; 0 when that is of another pid namespace."""
    started_ns: int | None = None
    """Linux: its start, wall clock, nanoseconds since the epoch."""
    command_line: str | None = None
    """Linux, with ``extras``: the command line as a shell would take it (4,096 bytes at most), or the title that the
    program wrote over it. It may hold secrets."""
    attribution: Attribution | None = None
    """Linux: ``OBSERVED`` or ``INFERRED``: how it is known that the flow is this process's."""

    @property
    def started(self) -> float | None:
        """`started_ns` in seconds since the epoch, as the times of events are."""
        return None if self.started_ns is None else self.started_ns / 1e9

    @property
    def key(self) -> tuple[int, int | None]:
        """Distinguishes this process from a later one with the same pid."""
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
    """What it is; `None` when the kernel did not say."""
    properties: int | None = None
    """Darwin's raw property bits (``NSTAT_IFNET_*``), unknown bits included."""


@attrs.frozen
class Peer:
    """The other end of a connection, as the machine that it is on reports it: known inside a fleet only."""

    host: str | None
    """The machine, as `Flow.host`."""
    process: Process | None = None
    """The process there; `None` while it is not known."""
    flow: str | None = None
    """`Flow.id` of the flow there."""


@attrs.frozen(repr=False, weakref_slot=False)
class Flow:
    """Who talks to whom: one source of traffic, without its counters.

    A flow's value changes when the kernel learns more (an address is bound, a
    connection is established); `id` stays. While nothing changed, successive
    events carry the very same object.
    """

    id: str
    """Unique while the monitor lives, never reused."""
    provider: Provider
    """What kind of flow it is."""
    userland: bool | None = None
    """True if the transport runs in the process (Darwin user-land flows)."""
    local: Endpoint | None = None
    """Local address; `None` while unknown."""
    remote: Endpoint | None = None
    """Remote address; `None` while there is no peer, or it is unknown."""
    process: Process | None = None
    """The owner; `None` when it may not be seen or is not known yet."""
    interface: Interface | None = None
    """The interface of the last packet; `None` when there was none."""
    state: TcpState | None = None
    """TCP state at the last report; `None` for what has no state."""
    direction: Direction | None = None
    """Who began it; `None` for UDP and while it is open."""
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
    """Linux: the network namespace, when it is not the monitor's own."""
    attribution: Attribution | None = None
    """What else is known of the owner; `None` where `process` was seen to hold the flow, or is still looked for."""
    protocol: int | None = None
    """Linux: the IP protocol of a raw socket (255: it writes whole packets), the EtherType of a packet socket (3: all);
    `None` for other flows, and while it is not known."""
    other_holders: int | None = None
    """Linux: how many other processes hold it as well; `None` where none is known."""
    holders: tuple[tuple[int, str | None], ...] = ()
    """Linux, with ``extras``: process id and name of the oldest of them, 15 at most."""
    parent: str | None = None
    """Linux: id of the socket's flow, of a ``udp_subflow``; one without a remote is what is left: all others together."""
    host: str | None = None
    """The machine that the flow is on, in a fleet; `None` for this machine."""
    peer: Peer | None = None
    """In a fleet: process and machine at the other end, where that is one of the fleet's and both agree on addresses
    and ports; inferred from these. `None` where it is not."""
    cgroup: str | None = None
    """Linux: path of the cgroup (v2) in which the socket was made, seen from the monitor's own cgroup namespace; known
    also where the process is not. `None` without cgroup v2, for a cgroup that was removed before anyone looked, and
    for a flow that only its end reported."""
    container: str | None = None
    """Linux: name of the container that the socket was made in, else its id."""
    pod: str | None = None
    """Linux: Kubernetes pod of that container as ``namespace/name``, else its uid (of Podman, its id)."""
    outcome: Outcome | None = None
    """How it ended; `None` while it is open, for what has no connection, and where it is not known."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.provider, Provider):
            raise _wrong(f"Flow: {self.id!r}, {self.provider!r} are no id and Provider, such as '1', Provider.TCP")

    @property
    def started(self) -> float | None:
        """`started_ns` in seconds since the epoch, as the times of events are."""
        return None if self.started_ns is None else self.started_ns / 1e9

    @property
    def unit(self) -> str | None:
        """Linux: unit of systemd that the socket was made in, by `cgroup`: a service, a scope, a socket. `None` for none."""
        return None if self.cgroup is None else workload_of(self.cgroup).unit

    @property
    def container_id(self) -> str | None:
        """Linux: id of the container, by `cgroup`; of LXC and systemd-nspawn its name. `None` outside of containers."""
        return None if self.cgroup is None else workload_of(self.cgroup).container

    @property
    def pod_uid(self) -> str | None:
        """Linux: uid of the Kubernetes pod (of Podman, its id), by `cgroup`; `None` outside of pods."""
        return None if self.cgroup is None else workload_of(self.cgroup).pod

    @property
    def is_loopback(self) -> bool:
        """True when the flow stays on this machine, as far as its addresses or interface tell."""
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


@attrs.frozen
class MediumCounts:
    """Traffic over one kind of medium (Darwin 26 details; Bluetooth item of 15)."""

    rx_bytes: int
    """Bytes received."""
    tx_bytes: int
    """Bytes sent."""
    rx_packets: int
    """Packets received."""
    tx_packets: int
    """Packets sent."""


def _index(position: int, doc: str) -> Any:
    def read(self: Counts) -> int | None:
        value: int | None = self._values[position]
        return value

    read.__doc__ = doc
    return property(read)


COUNTS_FIELDS = (
    "rx_packets",
    "rx_bytes",
    "tx_packets",
    "tx_bytes",
    "cell_rx_bytes",
    "cell_tx_bytes",
    "wifi_rx_bytes",
    "wifi_tx_bytes",
    "wired_rx_bytes",
    "wired_tx_bytes",
    "rx_duplicate_bytes",
    "rx_out_of_order_bytes",
    "tx_retransmitted_bytes",
    "connect_attempts",
    "connect_successes",
    "min_rtt_us",
    "avg_rtt_us",
    "var_rtt_us",
)
"""Order of the values inside `Counts`: that of ``nstat_counts`` since xnu-4570."""


class Counts:
    """Cumulative totals of a flow since it began.

    Every field is an `int` or, where the platform does not count it, `None`.
    Construct it with keywords; absent ones are `None`. Instances are immutable,
    hashable, and equal when all fields are, `media` included.

    A subclass may keep a kernel's raw values and translate on reading; it
    overrides `_translated` and the properties concerned.

    Args:
        media: Traffic by medium: a mapping, or pairs of name and `MediumCounts`.
        fields: The other fields by name.

    Raises:
        TypeError: There is no field of that name.
    """

    __slots__ = ("_values",)
    _values: tuple[Any, ...]

    def __init__(self, *, media: Any = (), **fields: int | None) -> None:
        unknown = fields.keys() - set(COUNTS_FIELDS)
        if unknown:
            msg = f"Counts has no field {min(unknown)!r}"
            raise TypeError(msg)
        values: tuple[Any, ...] = tuple(fields.get(name) for name in COUNTS_FIELDS)
        split = tuple(dict(media).items())
        object.__setattr__(self, "_values", (*values, split) if split else values)

    rx_packets: int | None = _index(0, "Packets received. Kernel TCP counts only segments with data.")
    rx_bytes: int | None = _index(1, "Payload bytes received, duplicates and out-of-order data included on Darwin.")
    tx_packets: int | None = _index(2, "Packets sent. Kernel TCP counts only segments with data.")
    tx_bytes: int | None = _index(3, "Payload bytes sent; Darwin includes retransmitted ones.")
    cell_rx_bytes: int | None = _index(4, "Bytes received over cellular (Darwin, since 10.9).")
    cell_tx_bytes: int | None = _index(5, "Bytes sent over cellular.")
    wifi_rx_bytes: int | None = _index(6, "Bytes received over Wi-Fi, peer-to-peer included (since 10.9).")
    wifi_tx_bytes: int | None = _index(7, "Bytes sent over Wi-Fi.")
    wired_rx_bytes: int | None = _index(8, "Bytes received over Ethernet and its like (since 10.10).")
    wired_tx_bytes: int | None = _index(9, "Bytes sent over Ethernet and its like.")
    rx_duplicate_bytes: int | None = _index(10, "Bytes received more than once (TCP).")
    rx_out_of_order_bytes: int | None = _index(11, "Bytes received out of order (TCP).")
    tx_retransmitted_bytes: int | None = _index(12, "Bytes sent again (TCP).")
    connect_attempts: int | None = _index(13, "Darwin: 1 once a connection was tried; 0 again after close.")
    connect_successes: int | None = _index(14, "Darwin: 1 once it was established; 0 again after close.")
    min_rtt_us: int | None = _index(15, "Smallest round-trip estimate, microseconds; `None` without a sample.")
    avg_rtt_us: int | None = _index(16, "Smoothed round-trip time, microseconds; `None` without a sample.")
    var_rtt_us: int | None = _index(17, "Round-trip variance, microseconds; `None` without a sample.")

    @property
    def media(self) -> tuple[tuple[str, MediumCounts], ...]:
        """Traffic by medium, with packets: only when a Darwin 26 kernel sent details (``extras``); else empty.

        Of a kernel socket ``total`` is ``loopback`` and the six others together, to the byte. Of a flow in user space
        ``total`` is what its process says, packets included (in other reports packets are the flow switch's), the others
        are what the flow switch saw, with headers, and nobody says how much went over loopback. ``wifi_non_infra`` is
        Wi-Fi between devices, and what a tunnel sends over Wi-Fi.
        """
        return self._values[len(COUNTS_FIELDS)] if len(self._values) > len(COUNTS_FIELDS) else ()

    def _translated(self) -> tuple[int | None, ...]:
        """All fields in the order of `COUNTS_FIELDS`, in their public units."""
        return self._values[: len(COUNTS_FIELDS)]

    def as_dict(self) -> dict[str, int | None]:
        """The fields by name."""
        return dict(zip(COUNTS_FIELDS, self._translated(), strict=True))

    def items(self) -> Iterator[tuple[str, int]]:
        """The known fields with their values."""
        return ((name, value) for name, value in self.as_dict().items() if value is not None)

    def since(self, earlier: Counts | None) -> Delta:
        """What was added since `earlier` (`None`: since the flow began)."""
        return Delta.between(earlier, self)

    @property
    def is_zero(self) -> bool:
        """True when no byte and no packet was counted in either direction."""
        return not (self.rx_bytes or self.tx_bytes or self.rx_packets or self.tx_packets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Counts):
            return NotImplemented
        return self._translated() == other._translated() and self.media == other.media

    def __hash__(self) -> int:
        return hash(self._translated())  # equal counts have equal fields; the media need not be read

    def __setattr__(self, name: str, value: object) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __reduce__(self) -> tuple[Any, ...]:
        return (counts_of, (self._translated(), self.media))

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={value}" for name, value in self.items() if value)
        return f"<Counts {shown or 'zero'}>"


def counts_of(values: tuple[int | None, ...], media: tuple[tuple[str, MediumCounts], ...] = ()) -> Counts:
    """Counts of values in the order of `COUNTS_FIELDS`, for whoever makes many."""
    counts = object.__new__(Counts)
    object.__setattr__(counts, "_values", (*values, media) if media else values)
    return counts


_WRAP = 2**32


def packets_grown(new: int, old: int) -> int:
    """The growth of a packet counter.

    One below 2**32 that falls by more than 2**31 wrapped: Linux counts segments in 32 bits.
    """
    if new < old < _WRAP and old - new > _WRAP // 2:
        return new + _WRAP - old
    return max(0, new - old)


Four = tuple[Union[int, None], Union[int, None], Union[int, None], Union[int, None]]
"""Bytes received and sent, packets received and sent; `None`: not counted."""


def began_anew(new: Sequence[int | None], old: Sequence[int | None]) -> bool:
    """True if these are counters of another flow behind an old id: all that had counted are lower, one by more than half."""
    had = [(after, before) for after, before in zip(new, old, strict=True) if after is not None and before]
    fell = bool(had) and all(after < before for after, before in had)
    return fell and any(new) and any(2 * after < before for after, before in had)


def growth(new: Four, old: Four) -> Four:
    """What was added between two readings of four counters; each is judged by itself, unless they began anew.

    A packet counter may wrap (`packets_grown`); any other that fell is an odd reading, and added nothing.
    """
    rx_bytes, tx_bytes, rx_packets, tx_packets = (
        None if after is None else max(0, after - (before or 0)) for after, before in zip(new, old, strict=True)
    )
    if None in (rx_bytes, tx_bytes, rx_packets, tx_packets) or 0 in (rx_bytes, tx_bytes, rx_packets, tx_packets):
        if began_anew(new, old):
            return new
        if any(new):
            rx_packets = None if new[2] is None else packets_grown(new[2], old[2] or 0)
            tx_packets = None if new[3] is None else packets_grown(new[3], old[3] or 0)
    return rx_bytes, tx_bytes, rx_packets, tx_packets


@attrs.frozen
class Delta:
    """What two readings of a flow's counters differ by: never negative; a packet counter of 32 bits may wrap.

    Where all counters began anew it is what they counted since: as `TrafficTable` adds it up.
    """

    rx_bytes: int | None
    """Bytes received; `None` where they are not counted, as all the others."""
    tx_bytes: int | None
    """Bytes sent."""
    rx_packets: int | None
    """Packets received."""
    tx_packets: int | None
    """Packets sent."""

    @classmethod
    def between(cls, earlier: Counts | None, later: Counts) -> Delta:
        """The growth from `earlier` (`None`: from zero) to `later`."""
        new = (later.rx_bytes, later.tx_bytes, later.rx_packets, later.tx_packets)
        if earlier is None:
            return cls(*new)
        return cls(*growth(new, (earlier.rx_bytes, earlier.tx_bytes, earlier.rx_packets, earlier.tx_packets)))


@attrs.frozen(kw_only=True)
class DomainInfo:
    """The domain behind a flow (Darwin 12 and later; privileged since 13.1)."""

    name: str | None = None
    """Domain name."""
    owner: str | None = None
    """Owner of the domain, if it is a known tracker's."""
    tracker_context: str | None = None
    """What the tracker is about, by the system's list."""
    attributed_bundle_id: str | None = None
    """Bundle that the flow is attributed to."""
    remote: Endpoint | None = None
    """Address at the time of the look-up."""
    is_tracker: bool = False
    """True for a domain on the system's list of trackers."""
    is_non_app_initiated: bool = False
    """True when something inside the app began it, such as a web page."""
    is_silent: bool = False
    """True for a flow that the system does not report to the user."""


@attrs.frozen(kw_only=True)
class Details:
    """Samples that come with a report: windows, buffers, platform facts.

    Unlike `Counts` nothing here is cumulative, and all of it is optional.
    """

    congestion_control: str | None = None
    """Name of the congestion control algorithm."""
    congestion_window: int | None = None
    """Congestion window in bytes."""
    send_window: int | None = None
    """The peer's receive window in bytes."""
    unacked_bytes: int | None = None
    """Bytes sent and not acknowledged."""
    send_buffer_size: int | None = None
    """Limit of the send buffer in bytes."""
    send_buffer_used: int | None = None
    """Bytes in it."""
    receive_buffer_size: int | None = None
    """Limit of the receive buffer in bytes."""
    receive_buffer_used: int | None = None
    """Bytes in it that the program has not read."""

    traffic_mgt_flags: int | None = None
    """Darwin: 1 background socket, 2 background receive."""
    connection_status: int | None = None
    """Darwin: probe bits of ``tcp_conn_status``."""
    rx_transfer_size: int | None = None
    """Darwin user-land flows: announced size of the transfer in bytes."""
    tx_transfer_size: int | None = None
    """The same for what is sent."""
    activity_started_s: int | None = None
    """Darwin: begin of `activity`, seconds of uptime; `None` when there was none."""
    activity: int | None = None
    """Darwin: 128 bits, bit *i* set when there was traffic in the *i*-th 8 seconds."""
    sampled_at_ns: int | None = None
    """When the kernel filled in this report, wall clock, nanoseconds since the epoch."""
    domain: DomainInfo | None = None
    """Darwin: the domain behind the flow."""
    original_domain: DomainInfo | None = None
    """Darwin: the domain that was asked for, before a proxy or relay."""
    necp_parameters: bytes | None = None
    """Darwin: NECP client parameters, TLV as sent."""
    original_necp_parameters: bytes | None = None
    """Darwin: those of the flow before a proxy or relay."""
    bluetooth: MediumCounts | None = None
    """Traffic over Bluetooth: Darwin 15 and later, privileged."""
    undecoded: bytes = b""
    """Descriptor bytes beyond the known layout (a newer kernel)."""

    cgroup_id: int | None = None
    """Linux: cgroup v2 id of the socket."""
    mark: int | None = None
    """Linux: ``SO_MARK``; needs CAP_NET_ADMIN."""
    delivery_rate: int | None = None
    """Linux: recent delivery rate, bytes per second."""
    pacing_rate: int | None = None
    """Linux: pacing rate, bytes per second; `None` when unlimited."""
    min_rtt_us: int | None = None
    """Linux: smallest round trip seen in the kernel's window, microseconds."""
    retransmits: int | None = None
    """Linux: segments sent again since the flow began."""
    lost: int | None = None
    """Linux: segments presumed lost at this moment."""
    mss: int | None = None
    """Linux: sending segment size, bytes."""
    path_mtu: int | None = None
    """Linux: path MTU, bytes."""
    rto_us: int | None = None
    """Linux: retransmission time-out, microseconds."""
    inode: int | None = None
    """Linux: inode of the socket."""


class DetailsSource(Protocol):
    """Something that can be decoded into `Details` when somebody asks."""

    def details(self) -> Details:
        """Decode."""


class Proof(enum.Enum):
    """How sure a backend is of the layout it decodes with."""

    VERIFIED = "verified"
    """Checked on this machine against flows of known values."""
    PROBED = "probed"
    """Found on this machine: offsets had to be moved, evidence was unambiguous."""
    ASSUMED = "assumed"
    """Taken from the kernel's version; lengths agree."""
    UNKNOWN = "unknown"
    """A kernel newer than known, unchecked: parts may be missing."""


class Visibility(enum.Enum):
    """Whose flows or processes can be seen."""

    ALL = "all"
    OWN = "own"
    """Only those of this user."""
    SOME = "some"
    """Of several users, and not all: some may not be looked at, or are of another pid namespace."""
    NONE = "none"
    UNKNOWN = "unknown"

    @property
    def whose(self) -> str:
        """Whose they are, in words: ``"all users"``."""
        return _WHOSE[self.value]


_WHOSE = {
    "all": "all users",
    "own": "this user",
    "some": "some users",
    "none": "nobody",
    "unknown": "unknown users",
}


@attrs.frozen(kw_only=True)
class Capabilities:
    """What an open backend can tell, so that programs test a fact, not a platform."""

    backend: str
    """Name of the backend: ``kctl``, ``sock_diag``, ``emulated``, ``unix``, ``replay``, ``fleet``."""
    kernel: str | None = None
    """Kernel version as reported."""
    providers: frozenset[Provider] = frozenset()
    """Providers that answered the subscription."""
    tcp_counts: bool = True
    """Byte counts for TCP."""
    udp_counts: bool = False
    """Byte counts for UDP."""
    per_medium_bytes: bool = False
    """Byte counts split by Wi-Fi, wired, cellular."""
    final_counts: bool = False
    """A closing flow reports its last counts."""
    short_lived: bool = False
    """Flows that live between two polls are reported."""
    flows: Visibility = Visibility.UNKNOWN
    """Whose flows are visible."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""
    processes_limit: str | None = None
    """Why not everybody's, and what would change that, for a person; it is one of the `notes`, too."""
    layout: str | None = None
    """Wire layout in use, e.g. ``W11``."""
    layout_proof: Proof | None = None
    """How sure the layout is; `None` where the question does not arise."""
    receive_buffer: int | None = None
    """Size of the kernel's receive buffer that was granted, bytes."""
    ebpf: str | None = None
    """Linux: how much eBPF programs tell: ``all``, ``calls``, ``packets``, ``tcp`` or ``none`` (docs/linux.md);
    `None` where they are not asked for."""
    ebpf_reason: str | None = None
    """Linux: why eBPF programs do not tell everything, and what would help; `None` where they do, or are not asked for."""
    notes: tuple[str, ...] = ()
    """Remarks for a person: what is missing here, and what would give it."""
