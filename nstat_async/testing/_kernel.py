"""The emulated kernel: flows on one side, control sockets on the other.

Sans-IO and, unless told otherwise, sans-clock: nothing happens but by a call, and time
stands still until `EmulatedKernel.advance`. ``docs/emulated-kernel.md`` says how it was
compared with the real kernel code and where it differs on purpose.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat._constants import MAX_BATCH, EventFlag
from nstat_async.ntstat._kernels import Kernel
from nstat_async.ntstat._layouts import layout

from ._client import EmulatedClient
from ._faults import Faults
from ._flows import EmulatedFlow, _field_value, endpoint, executable_uuid
from ._interfaces import DEFAULT_INTERFACES, EmulatedInterface
from ._lookup import interface_traffic
from ._socket import DEFAULT_RECEIVE_SPACE
from ._wire import Packer, Wire, wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from nstat_async._feed import Backend, Transport

    from ._server import UnixServer

__all__ = ["EmulatedKernel"]

_NANOSECOND = 1_000_000_000
_MINUTE = 60 * _NANOSECOND
_TIME_WAIT_SECONDS = 30.0
_FIRST_PORT = 49152
_ESTABLISHED = 4
_USERLAND_EVENTS = int(EventFlag.ENTER_CELLFALLBACK | EventFlag.EXIT_CELLFALLBACK)
_CONNECTION_EVENTS = int(EventFlag.FLOW_UUID_ASSIGNED | EventFlag.FLOW_UUID_CHANGED)
_ROLE_EVENTS = int(EventFlag.FLOW_STATE_LISTEN | EventFlag.FLOW_STATE_OUTBOUND)
_OWNER = ("pid", "upid", "pname", "uuid", "epid", "eupid", "euuid", "uid", "persona_id")
_RTF_UP = 1
_LONGEST_PROCESS_NAME = 32


class EmulatedKernel:
    """The ntstat side of one XNU release.

    Args:
        kernel: The release, in any form that `nstat_async.ntstat.Kernel.parse` takes.
        receive_space: Receive buffer that ``connect`` gives, bytes.
        privileged: True: clients are root, or hold the entitlement.
        privilege_check: ``net.statistics_privcheck``: on macOS it is off.
        clock: Seconds, as `time.monotonic` tells them; `None`: time stands still but for `advance`.
        timebase: ``mach_timebase_info``: ticks times the first over the second are nanoseconds.
            Apple silicon has (125, 3).
        seed: Of everything random: faults, garbage, workloads.
        layout_number: Another wire layout than the release's own (1 to 12).
        insertions: Bytes that a newer kernel has put into its structures: name of the structure
            to pairs of (offset, bytes). See `DARWIN_27_INSERTION`.
        contended: True: since xnu-11215 a chunk of a paced poll ends after five sources, as when
            another thread waits for the lock.
        uptime: Seconds since the machine was started, where time does not pass by itself.
        minute_timer: False: what it does is only done by `idle_check`.
        header_garbage: Up to xnu-2422 the word of the header that is not used holds anything; False: zero.
    """

    def __init__(
        self,
        kernel: str = "xnu-11417.121.6",
        *,
        receive_space: int = DEFAULT_RECEIVE_SPACE,
        privileged: bool = False,
        privilege_check: bool = False,
        clock: Callable[[], float] | None = None,
        timebase: tuple[int, int] = (1, 1),
        seed: int = 0,
        layout_number: int | None = None,
        insertions: Mapping[str, Iterable[tuple[int, int]]] | None = None,
        contended: bool = False,
        uptime: float = 1000.0,
        minute_timer: bool = True,
        header_garbage: bool = True,
    ) -> None:
        release = Kernel.parse(kernel)
        if layout_number is not None:
            release = Kernel(release.text, release.version, layout(layout_number), known=False)
        self.release: Kernel = release
        """The release as the library understands it."""
        self.lock = threading.RLock()
        """Held during every call; hold it to make several changes at once."""
        self.absent_providers: set[int] = set()
        """Providers that this build of the release lacks, though its headers have their numbers."""
        self.receive_space = receive_space
        self.privileged = privileged
        self.privilege_check = privilege_check
        self.timebase = timebase
        self.contended = contended
        self.random = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        self.faults = Faults(random=self.random)
        self.wire: Wire = wire(release.layout)
        self.batch_limit = MAX_BATCH
        self.update_limit = 2048 if release.version >= (8019,) else 512
        self.longest_name = 63 if release.version >= (11215,) else 16
        self.clients: list[EmulatedClient] = []
        """Connected control sockets, newest first."""
        self.interfaces: dict[str, EmulatedInterface] = {}
        self._clock = clock
        self._offset_ns = 0 if clock is not None else round(uptime * _NANOSECOND)
        self._tick_jump_ns = 0
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._units = itertools.count(1)
        self._ports = itertools.cycle(range(_FIRST_PORT, 65536))
        self._upids = itertools.count(100_001)
        self._processes: dict[int, tuple[int, str]] = {}
        self._flows: dict[int, dict[int, EmulatedFlow]] = {number: {} for number in release.providers}
        self._interface_flows: dict[int, EmulatedFlow] = {}
        self._packers: dict[str, Packer] = {}
        self._insertions = {name: sorted(pairs) for name, pairs in (insertions or {}).items()}
        self._merged_events = 0
        self._minute_timer_runs = not minute_timer
        self._header_garbage = header_garbage and release.version < (2782,)
        self.timer_added = threading.Event()
        """Set when a timer was added: threads that run timers by the wall clock wait for it."""
        self._servers: list[UnixServer] = []
        for interface in DEFAULT_INTERFACES():
            self.interfaces[interface.name] = interface

    @property
    def name(self) -> str:
        """``xnu-…``."""
        return self.release.name

    def __repr__(self) -> str:
        return f"<EmulatedKernel {self.name} flows={sum(map(len, self._flows.values()))} clients={len(self.clients)}>"

    # Time

    @property
    def now_ns(self) -> int:
        """Nanoseconds since this machine was started."""
        if self._clock is None:
            return self._offset_ns
        return int(self._clock() * _NANOSECOND) + self._offset_ns

    @property
    def now(self) -> float:
        """`now_ns` in seconds."""
        return self.now_ns / _NANOSECOND

    @property
    def ticks(self) -> int:
        """Mach continuous time."""
        numerator, denominator = self.timebase
        return max(0, self.now_ns + self._tick_jump_ns) * denominator // numerator

    @property
    def runs_by_the_clock(self) -> bool:
        """True if time passes by itself."""
        return self._clock is not None

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that fall due run at their moment, in order."""
        self.advance_to(self.now_ns + round(seconds * _NANOSECOND))

    def advance_to(self, now_ns: int) -> None:
        """Let time pass until this moment (`now_ns`)."""
        with self.lock:
            if self._clock is None:
                while self._timers and self._timers[0][0] <= now_ns:
                    self._offset_ns = max(self._offset_ns, self._timers[0][0])
                    self._fire()
                self._offset_ns = max(self._offset_ns, now_ns)
            else:
                self._offset_ns += max(0, now_ns - self.now_ns)
                self.run_due()

    def jump_clock(self, seconds: float) -> None:
        """Let the tick counter jump (a fault): timestamps move, timers do not."""
        with self.lock:
            self._tick_jump_ns += round(seconds * _NANOSECOND)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function when that time has passed (see `run_due`)."""
        with self.lock:
            heapq.heappush(self._timers, (self.now_ns + round(seconds * _NANOSECOND), next(self._order), function))
        self.timer_added.set()

    def next_timer(self) -> float | None:
        """Seconds until a timer falls due; `None`: there is none."""
        with self.lock:
            return max(0.0, (self._timers[0][0] - self.now_ns) / _NANOSECOND) if self._timers else None

    def run_due(self) -> None:
        """Run the timers that are due. Calls of clients do; with a wall clock, servers do too."""
        if not self._timers:
            return
        with self.lock:
            while self._timers and self._timers[0][0] <= self.now_ns:
                self._fire()

    def _fire(self) -> None:
        heapq.heappop(self._timers)[2]()

    def _arm_minute_timer(self) -> None:
        if not self._minute_timer_runs:
            self._minute_timer_runs = True
            self.call_later(_MINUTE / _NANOSECOND, self._minute_timer)

    def _minute_timer(self) -> None:
        self._minute_timer_runs = False
        if self.clients:
            self.idle_check()
            self._arm_minute_timer()

    def idle_check(self) -> None:
        """What the minute-timer does: goodbyes for sources that ended unnoticed."""
        with self.lock:
            for client in list(self.clients):
                client.find_gone()
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Flows that ended unnoticed and that nobody watches any more are freed."""
        for flows in self._flows.values():
            for flow in [flow for flow in flows.values() if flow.gone and not flow.open and not flow.sources]:
                del flows[flow.number]

    # Control sockets

    def connect(self) -> EmulatedClient:
        """Open a control socket. Nobody needs a privilege for it."""
        with self.lock:
            client = EmulatedClient(self, next(self._units))
            self.clients.insert(0, client)
            self._merge_event_masks()
            self._arm_minute_timer()
            return client

    def client_closed(self, client: EmulatedClient) -> None:
        """A control socket was closed."""
        if client in self.clients:
            self.clients.remove(client)
        self._merge_event_masks()

    def _merge_event_masks(self) -> None:
        mask = 0
        for client in self.clients:
            mask |= client.event_mask
        self._merged_events = mask

    def end_controls(self) -> None:
        """Let every control socket reach end of file (a fault)."""
        for client in list(self.clients):
            client.end()

    def inject(self, datagram: bytes) -> None:
        """Put bytes before every client that no kernel would send (a fault)."""
        for client in list(self.clients):
            client.inject(datagram)

    def close(self) -> None:
        """End every control socket and stop the servers of this kernel. Idempotent."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self.end_controls()

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

    def interface_flow(self, index: int) -> EmulatedFlow | None:
        """The interface of this index as a flow; `None` if there is none."""
        flow = self._interface_flows.get(index)
        found = next((i for i in self.interfaces.values() if i.index == index), None)
        if flow is None and found is not None:
            numbers = self.release.provider_numbers(Provider.INTERFACE)
            fields = {"name": found.name.encode(), "ifindex": index, "type": found.type_number}
            fields["description"] = found.description.encode()
            flow = self._interface_flows[index] = EmulatedFlow(self, numbers[0], fields)
            flow.interface = found
            flow.set(found.counts)
        return flow

    def interface_transfer(self, name: str, rx: int = 0, tx: int = 0) -> None:
        """Count an interface's own traffic; its watchers hear of it when their threshold is passed."""
        with self.lock:
            interface = self.interface(name)
            before = sum(interface.counts.get(key, 0) for key in ("nstat_rxbytes", "nstat_txbytes"))
            for key, amount in (("nstat_rxbytes", rx), ("nstat_txbytes", tx)):
                interface.counts[key] = interface.counts.get(key, 0) + amount
            flow = self.interface_flow(interface.index) if self.release.provider_numbers(Provider.INTERFACE) else None
            if flow is None:
                return
            flow.set(interface.counts)
            if interface.threshold and (before + rx + tx) // interface.threshold > before // interface.threshold:
                interface_traffic(self, flow)

    # Flows

    def packer(self, structure: str) -> Packer:
        """Encodes a descriptor of this release."""
        if structure not in self._packers:
            self._packers[structure] = Packer(self.release.layout[structure])
        return self._packers[structure]

    def shift(self, structure: str, data: bytes) -> bytes:
        """Insert what a newer kernel has put into a structure."""
        for offset, size in reversed(self._insertions.get(structure, [])):
            filling = bytes(0xA5 ^ position & 0xFF for position in range(size))
            data = data[:offset] + filling + data[offset:]
        return data

    def shifted(self, structure: str, offset: int) -> int:
        """Where a field of a structure lies after the insertions."""
        return offset + sum(size for at, size in self._insertions.get(structure, []) if at <= offset)

    def finish(self, record: bytes) -> bytes:
        """The bytes as they leave: up to xnu-2422 the unused header word is kernel stack."""
        if self._header_garbage:
            return record[:12] + self.random.randbytes(4) + record[16:]
        return record

    def next_number(self) -> int:
        """A number for a flow."""
        return next(self._numbers)

    def flows(self) -> Iterator[EmulatedFlow]:
        """All open flows, oldest first."""
        with self.lock:
            everything = [flow for flows in self._flows.values() for flow in flows.values() if flow.open]
        return iter(sorted(everything, key=lambda flow: flow.number))

    def existing(self, provider_id: int) -> list[EmulatedFlow]:
        """What a scan of a provider finds: newest first, without what is being torn down."""
        if self.release.providers[provider_id][0] is Provider.ROUTE:
            return self.existing_routes()
        return [flow for flow in reversed(self._flows[provider_id].values()) if flow.open and not flow.gone]

    def existing_routes(self) -> list[EmulatedFlow]:
        """The routes in the order of their destinations, as the tree is walked."""
        numbers = self.release.provider_numbers(Provider.ROUTE)
        routes = [flow for number in numbers for flow in self._flows[number].values() if not flow.gone]
        return sorted(routes, key=lambda flow: bytes(flow.fields.get("dst", b"")))

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

    def open_flow(
        self, provider_id: int, fields: Mapping[str, Any] | None = None, *, inbound: bool = False
    ) -> EmulatedFlow:
        """Make a flow from raw fields and announce it to whoever watches its provider."""
        with self.lock:
            values = {name: _field_value(name, value) for name, value in (fields or {}).items()}
            flow = EmulatedFlow(self, provider_id, values)
            flow.inbound = inbound
            self._flows[provider_id][flow.number] = flow
            if "state" in values:
                flow.set_state(values["state"])
            self.announce(flow)
            return flow

    def announce(self, flow: EmulatedFlow) -> None:
        """Make it a source of every client that watches its provider."""
        announced_as = flow.provider_id
        if flow.userland and flow.provider is Provider.UDP and (3789,) <= self.release.version < (4570,):
            announced_as = 3  # a defect of that release: new user-land UDP flows come as user-land TCP
        for client in list(self.clients):
            if client.watches(flow.provider_id):
                client.add_source(flow, announced_as)

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

    # The end of flows, and events

    def flow_closed(self, flow: EmulatedFlow) -> None:
        """A flow ended: say goodbye as this release does, or leave it to be found."""
        if flow.provider is Provider.ROUTE:
            flow.set(flags=flow.fields.get("flags", 0) & ~_RTF_UP)
            flow.gone = True
            return
        if flow.is_kernel_socket and self.release.version < (2050,):
            flow.gone = True
            if not flow.sources:
                self._flows[flow.provider_id].pop(flow.number, None)
            return
        delay = self.faults.delay_goodbyes
        if (2782,) <= self.release.version < (3247,) and flow.state == "time_wait":
            delay += _TIME_WAIT_SECONDS
        if delay > 0:
            self.call_later(delay, lambda: self._detach(flow))
        else:
            self._detach(flow)

    def _detach(self, flow: EmulatedFlow) -> None:
        with self.lock:
            if (2782,) <= self.release.version < (3247,) and flow.state == "time_wait":
                flow.set_state(0)
            self._flows[flow.provider_id].pop(flow.number, None)
            told: set[int] = set()
            for source in reversed(list(flow.sources.values())):
                # One source of each client says goodbye; another one that names the same socket is found gone.
                if source.client.unit not in told:
                    told.add(source.client.unit)
                    source.client.say_goodbye(source)
            flow.gone = bool(flow.sources)

    def userland_time_wait(self, flow: EmulatedFlow) -> None:
        """User-land TCP in TIME_WAIT: its sources say goodbye early."""
        version = self.release.version
        keeps = 0x80000 if version >= (7195,) else 0x8000 if version >= (4570,) else 0
        for source in reversed(list(flow.sources.values())):
            if not source.client.filter_of(source.announced_as).bits & keeps:
                source.client.say_goodbye(source)

    def end_process(self, pid: int) -> None:
        """Close every flow of a process, newest first."""
        with self.lock:
            for flow in sorted(self.flows(), key=lambda flow: -flow.number):
                if flow.fields.get("pid") == pid:
                    flow.close()

    def raise_event(self, flow: EmulatedFlow, event: int) -> None:
        """Tell the clients whose mask has this event, in update mode, by an update."""
        version = self.release.version
        if version < (3789,) or (event & _ROLE_EVENTS and version < (10002,)):
            return
        if flow.is_kernel_socket:
            # Kernel sockets consult the masks of all clients merged, and that is made anew only
            # when a client connects or disconnects.
            if version >= (10002,) and not self._merged_events & event:
                return
        else:
            event &= _CONNECTION_EVENTS if flow.provider is Provider.CONNECTION else _USERLAND_EVENTS
        if event:
            for source in list(flow.sources.values()):
                source.client.event(source, event)

    def send_system_information(self, entries: bytes) -> None:
        """Report system-wide statistics to the clients that subscribed to them.

        Args:
            entries: A list of ``nstat_sysinfo_keyval``, encoded.
        """
        with self.lock:
            for client in self.clients:
                if client.subscribed_to_sysinfo:
                    client.enqueue(self.wire.system_information(entries))

    # What reaches upward

    def interface_list(self) -> dict[int, str]:
        """Interface names by index."""
        return {interface.index: interface.name for interface in self.interfaces.values()}

    def transport(self) -> Transport:
        """Channels to this kernel within the process, behind real descriptors."""
        from ._transport import EmulatedTransport  # noqa: PLC0415  (this module stays free of sockets)

        return EmulatedTransport(self)

    def backend(self, *, verify: bool | None = None) -> Backend:
        """This kernel as the ``backend`` of a `nstat_async.Monitor`.

        Args:
            verify: Prove the layout with flows of known values; `None`: when the kernel is newer than known.
        """
        from ._transport import EmulatedBackend  # noqa: PLC0415  (the only road upward)

        return EmulatedBackend(self, verify)

    def serve_socketpair(self) -> socket.socket:
        """A client socket that a thread of this kernel serves; closing it ends the control socket."""
        from ._server import UnixServer  # noqa: PLC0415

        server = UnixServer(self)
        self._servers.append(server)
        return server.open_pair()

    def serve_unix(self, path: str) -> UnixServer:
        """Serve control sockets on an AF_UNIX path from a thread; see `nstat_async.testing.serve_unix`."""
        from ._server import UnixServer  # noqa: PLC0415

        server = UnixServer(self, path)
        self._servers.append(server)
        server.start()
        return server


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
