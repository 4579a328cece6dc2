"""What a test scripts: processes, interfaces and flows of the emulated machine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat._kernels import Kernel

from ._interfaces import DEFAULT_INTERFACES, EmulatedInterface
from ._time import KernelTime
from ._values import endpoint, executable_uuid

if TYPE_CHECKING:
    from ._flows import EmulatedFlow

__all__ = ["ScriptedMachine"]

_FIRST_PORT = 49152
_ESTABLISHED = 4
_OWNER = ("pid", "upid", "pname", "uuid", "epid", "eupid", "euuid", "uid", "persona_id")
_LONGEST_PROCESS_NAME = 32


class ScriptedMachine(KernelTime):
    """The part of an emulated kernel by which flows come into being.

    Args:
        release: The kernel release.
        clock: See `KernelTime`, like the next two.
        uptime: …
        timebase: …
        seed: Of everything random.
    """

    def __init__(
        self,
        release: Kernel,
        clock: Callable[[], float] | None,
        uptime: float,
        timebase: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(clock, uptime, timebase)
        self.release: Kernel = release
        """The release as the library understands it."""
        self.random = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        self.interfaces: dict[str, EmulatedInterface] = {made.name: made for made in DEFAULT_INTERFACES()}
        self._numbers = itertools.count()
        self._ports = itertools.cycle(range(_FIRST_PORT, 65536))
        self._upids = itertools.count(100_001)
        self._processes: dict[int, tuple[int, str]] = {}

    @property
    def name(self) -> str:
        """``xnu-…``."""
        return self.release.name

    def next_number(self) -> int:
        """A number for a flow."""
        return next(self._numbers)

    def open_flow(
        self, provider_id: int, fields: Mapping[str, Any] | None = None, *, inbound: bool = False
    ) -> EmulatedFlow:
        """Make a flow from raw fields and announce it to whoever watches its provider."""
        raise NotImplementedError

    def provider_number(self, provider: Provider, *, userland: bool | None = None) -> int:
        """The number of a provider in this release.

        Raises:
            UsageError: This release has no such provider.
        """
        for number, known in self.release.providers.items():
            if known[0] is provider and (userland is None or known[1] in {None, userland}):
                return number
        where = " in user-land" if userland else ""
        raise UsageError(f"provider: {self.name} has no {provider.value}{where}")

    # Interfaces

    def add_interface(
        self, name: str, index: int, kind: InterfaceKind, *, delegate: str | None = None, **more: Any
    ) -> EmulatedInterface:
        """Add a network interface, or replace the one of that name."""
        over = self.interface(delegate) if delegate is not None else None
        made = self.interfaces[name] = EmulatedInterface(name, index, kind, delegate=over, **more)
        return made

    def interface(self, name: str) -> EmulatedInterface:
        """The interface of this name.

        Raises:
            UsageError: There is none.
        """
        try:
            return self.interfaces[name]
        except KeyError:
            known = ", ".join(self.interfaces)
            raise UsageError(f"interface: {name!r} is none of {known}") from None

    # Processes and flows

    def process(self, pid: int, name: str) -> int:
        """The unique id of a process; made when the pid, or its name, is new."""
        known = self._processes.get(pid)
        if known is None or known[1] != name:
            known = self._processes[pid] = (next(self._upids), name)
        return known[0]

    owner_names = _OWNER

    def owner_fields(self, pid: int, name: str, *, upid: int | None = None, uid: int = 501) -> dict[str, Any]:
        """Descriptor fields for an owner that acts for itself."""
        unique = self.process(pid, name) if upid is None else upid
        image = executable_uuid(name)
        told = name.encode("utf-8", "surrogateescape")[:_LONGEST_PROCESS_NAME]
        owner = {"pid": pid, "upid": unique, "pname": told, "uuid": image, "uid": uid}
        return {**owner, "epid": pid, "eupid": unique, "euuid": image}

    def ephemeral(self, peer: Endpoint | None) -> Endpoint:
        """A local endpoint for a connection to `peer`."""
        port = next(self._ports)
        if peer is not None and peer.is_loopback:
            return Endpoint(peer.packed, port)
        if peer is not None and len(peer.packed) == 16:
            return Endpoint.parse("2001:db8:1::10", port)
        return Endpoint.parse("192.168.1.10", port)

    def loopback_pair(self, address: str) -> tuple[Endpoint, Endpoint]:
        """Two endpoints with fresh ports on a loopback address."""
        return Endpoint.parse(address, next(self._ports)), Endpoint.parse(address, next(self._ports))

    def _open(
        self,
        provider: Provider,
        pid: int,
        name: str,
        local: Endpoint | str | tuple[str, int] | None,
        remote: Endpoint | str | tuple[str, int] | None,
        *,
        userland: bool | None,
        interface: str | None,
        rx: int,
        tx: int,
        inbound: bool,
        fields: Mapping[str, Any],
    ) -> EmulatedFlow:
        peer = endpoint(remote)
        mine = endpoint(local) if local is not None else (self.ephemeral(peer) if peer is not None else None)
        owner = self.owner_fields(pid, name)
        if mine is not None and peer is None:
            peer = Endpoint(bytes(len(mine.packed)), 0)
        values = {**_DEFAULTS.get(provider, {}), **owner, "local": mine, "remote": peer, **fields}
        if remote is not None and provider in {Provider.TCP, Provider.QUIC}:
            values.setdefault("state", _ESTABLISHED)
        with self.lock:
            number = self.provider_number(provider, userland=userland)
            counters = {key: values.pop(key) for key in list(values) if key.startswith("nstat_")}
            flow = self.open_flow(number, values, inbound=inbound)
            flow.set(counters)
            if remote is not None and interface is not None:
                flow.use_interface(interface)
            if rx or tx:
                flow.transfer(rx, tx)
        return flow

    def open_tcp(
        self,
        pid: int = 501,
        name: str = "app",
        *,
        local: Endpoint | str | tuple[str, int] | None = None,
        remote: Endpoint | str | tuple[str, int] | None = None,
        userland: bool = False,
        interface: str | None = "en0",
        rx: int = 0,
        tx: int = 0,
        inbound: bool = False,
        **fields: Any,
    ) -> EmulatedFlow:
        """A TCP socket (or user-land flow): established if it has a remote address, else just created."""
        return self._open(
            Provider.TCP, pid, name, local, remote,
            userland=userland, interface=interface, rx=rx, tx=tx, inbound=inbound, fields=fields,
        )  # fmt: skip

    def open_udp(
        self,
        pid: int = 501,
        name: str = "app",
        *,
        local: Endpoint | str | tuple[str, int] | None = None,
        remote: Endpoint | str | tuple[str, int] | None = None,
        userland: bool = False,
        interface: str | None = "en0",
        rx: int = 0,
        tx: int = 0,
        **fields: Any,
    ) -> EmulatedFlow:
        """A UDP socket (or user-land flow)."""
        return self._open(
            Provider.UDP, pid, name, local, remote,
            userland=userland, interface=interface, rx=rx, tx=tx, inbound=False, fields=fields,
        )  # fmt: skip

    def open_quic(
        self,
        pid: int = 501,
        name: str = "app",
        *,
        local: Endpoint | str | tuple[str, int] | None = None,
        remote: Endpoint | str | tuple[str, int] | None = ("198.51.100.7", 443),
        interface: str | None = "en0",
        rx: int = 0,
        tx: int = 0,
        **fields: Any,
    ) -> EmulatedFlow:
        """A user-land QUIC flow (since xnu-6153)."""
        return self._open(
            Provider.QUIC, pid, name, local, remote,
            userland=None, interface=interface, rx=rx, tx=tx, inbound=False, fields=fields,
        )  # fmt: skip

    def open_connection(self, pid: int = 501, name: str = "app", **fields: Any) -> EmulatedFlow:
        """A connection attempt of the network framework (since xnu-8019.61): no traffic, no addresses."""
        number = self.provider_number(Provider.CONNECTION)
        attempt = self.random.randbytes(16)
        return self.open_flow(number, {**self.owner_fields(pid, name), "cuuid": attempt, **fields})

    def open_subflow(
        self, parent: EmulatedFlow, remote: Endpoint | str | tuple[str, int], *, rx: int = 0, tx: int = 0
    ) -> EmulatedFlow:
        """One peer of an unconnected UDP socket (since xnu-8019.61); its bytes are the parent's too."""
        with self.lock:
            number = self.provider_number(Provider.UDP_SUBFLOW)
            inherited = {key: parent.fields[key] for key in (*_OWNER, "local") if key in parent.fields}
            flow = self.open_flow(number, {**inherited, "remote": remote})
            flow.use_interface(parent.interface or "en0")
            for holder in (flow, parent) if rx or tx else ():
                holder.transfer(rx, tx)
        return flow

    def add_route(
        self,
        destination: str,
        *,
        mask: str | None = None,
        gateway: str | None = None,
        interface: str = "en0",
        flags: int = 0x803,
        **fields: Any,
    ) -> EmulatedFlow:
        """A route; `EmulatedFlow.close` lets it go down, which polls and the minute-timer find."""
        number = self.provider_number(Provider.ROUTE)
        values: dict[str, Any] = {"dst": Endpoint.parse(destination), "flags": flags, **fields}
        values["ifindex"] = self.interface(interface).index
        values.setdefault("id", self.random.getrandbits(48))
        for key, address in (("mask", mask), ("gateway", gateway)):
            if address is not None:
                values[key] = Endpoint.parse(address)
        return self.open_flow(number, values)


_DEFAULTS: dict[Provider, dict[str, Any]] = {
    Provider.TCP: {
        "sndbufsize": 131072,
        "rcvbufsize": 131072,
        "txwindow": 131072,
        "txcwindow": 14480,
        "cc_algo": b"cubic",
        "nstat_min_rtt": 640,
        "nstat_avg_rtt": 800,
        "nstat_var_rtt": 160,
    },
    Provider.QUIC: {"sndbufsize": 131072, "rcvbufsize": 131072, "txcwindow": 14480, "cc_algo": b"cubic"},
    Provider.UDP: {"rcvbufsize": 786896},
}
