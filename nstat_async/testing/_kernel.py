"""The emulated kernel: flows on one side, control sockets on the other.

Sans-IO and, unless told otherwise, sans-clock: nothing happens but by a call, and time
stands still until `EmulatedKernel.advance`. ``docs/emulated-kernel.md`` says how it was
compared with the real kernel code and where it differs on purpose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nstat_async._model import Provider
from nstat_async.ntstat._constants import MAX_BATCH, EventFlag
from nstat_async.ntstat._kernels import Kernel
from nstat_async.ntstat._layouts import layout

from ._client import EmulatedClient
from ._faults import Faults
from ._flows import EmulatedFlow
from ._lookup import interface_traffic
from ._scripting import ScriptedMachine
from ._socket import DEFAULT_RECEIVE_SPACE
from ._values import field_value
from ._wire import Packer, Wire, wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from nstat_async._contract import Backend, Transport

    from ._server import UnixServer

__all__ = ["EmulatedKernel"]

_MINUTE = 60.0
_TIME_WAIT_SECONDS = 30.0
_USERLAND_EVENTS = int(EventFlag.ENTER_CELLFALLBACK | EventFlag.EXIT_CELLFALLBACK)
_CONNECTION_EVENTS = int(EventFlag.FLOW_UUID_ASSIGNED | EventFlag.FLOW_UUID_CHANGED)
_ROLE_EVENTS = int(EventFlag.FLOW_STATE_LISTEN | EventFlag.FLOW_STATE_OUTBOUND)
_RTF_UP = 1


class EmulatedKernel(ScriptedMachine):
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
            release = attrs.evolve(release, layout=layout(layout_number), known=False)
        super().__init__(release, clock, uptime, timebase, seed)
        self.absent_providers: set[int] = set()
        """Providers that this build of the release lacks, though its headers have their numbers."""
        self.receive_space = receive_space
        self.privileged = privileged
        self.privilege_check = privilege_check
        self.contended = contended
        self.faults = Faults(random=self.random)
        """What goes wrong on purpose."""
        self.wire: Wire = wire(release.layout)
        self.batch_limit = MAX_BATCH
        self.update_limit = 2048 if release.version >= (8019,) else 512
        self.longest_name = 63 if release.version >= (11215,) else 16
        self.clients: list[EmulatedClient] = []
        """Connected control sockets, newest first."""
        self._units = itertools.count(1)
        self._flows: dict[int, dict[int, EmulatedFlow]] = {number: {} for number in release.providers}
        self._interface_flows: dict[int, EmulatedFlow] = {}
        self._packers: dict[str, Packer] = {}
        self._insertions = {name: sorted(pairs) for name, pairs in (insertions or {}).items()}
        self._merged_events = 0
        self._minute_timer_runs = not minute_timer
        self._header_garbage = header_garbage and release.version < (2782,)
        self._servers: list[UnixServer] = []

    def __repr__(self) -> str:
        return f"<EmulatedKernel {self.name} flows={sum(map(len, self._flows.values()))} clients={len(self.clients)}>"

    # The minute-timer

    def _arm_minute_timer(self) -> None:
        if not self._minute_timer_runs:
            self._minute_timer_runs = True
            self.call_later(_MINUTE, self._minute_timer)

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

    # Flows

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

    def flows(self) -> Iterator[EmulatedFlow]:
        """All open flows, oldest first."""
        with self.lock:
            everything = [flow for flows in self._flows.values() for flow in flows.values() if flow.open]
        return iter(sorted(everything, key=lambda flow: flow.number))

    def warm_up(self) -> None:
        """Encode every flow now, so that the timing of a client's first poll is the client's."""
        with self.lock:
            for flow in self.flows():
                flow.encoded_counts()
                flow.encoded_descriptor()

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

    def open_flow(
        self, provider_id: int, fields: Mapping[str, Any] | None = None, *, inbound: bool = False
    ) -> EmulatedFlow:
        """Make a flow from raw fields and announce it to whoever watches its provider."""
        with self.lock:
            values = {name: field_value(name, value) for name, value in (fields or {}).items()}
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
