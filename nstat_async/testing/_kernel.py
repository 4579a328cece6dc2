"""The kernel's side of flows and control sockets, without real sockets.

It does no I/O and, without the argument ``clock``, reads no clock: everything happens in a call, and time
passes only by `SansIoKernel.advance`. ``docs/emulated-kernel.md`` says how it was
compared with the real kernel code, and what it leaves out.
"""

from __future__ import annotations

from nstat_async._model import Provider
from nstat_async.ntstat import EventFlag, SystemInfoCounts

from ._client import EmulatedClient
from ._flows import EmulatedFlow
from ._lookup import report_traffic
from ._scripting import ScriptedMachine
from ._values import octets, whole, wholes

_MINUTE = 60.0
_TIME_WAIT_SECONDS = 30.0
_USERLAND_EVENTS = int(EventFlag.ENTER_CELLFALLBACK | EventFlag.EXIT_CELLFALLBACK)
_ROLE_EVENTS = int(EventFlag.FLOW_STATE_LISTEN | EventFlag.FLOW_STATE_OUTBOUND)
_RTF_UP = 1
_SYSINFO_HEADER = 8
"""Bytes of ``nstat_sysinfo_counts`` before its list."""


class SansIoKernel(ScriptedMachine):
    """The ntstat side of one XNU release; `EmulatedKernel` puts it behind real descriptors."""

    clients: list[EmulatedClient]
    """Connected control sockets, newest first."""

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
            if self.release.has_details:
                self._end_dead_sockets()
            for client in list(self.clients):
                client.find_gone()
            self._forget_gone()

    def _end_dead_sockets(self) -> None:
        """Say goodbye for dead sockets. On macOS 26 the timer goes through the lists of sockets, TCP before UDP, and then the clients."""
        for provider in (Provider.TCP, Provider.UDP):
            for flow in reversed(list(self._flows[self.provider_number(provider, userland=False)].values())):
                for client in list(self.clients) if flow.gone else ():
                    for source in client.sources_of(flow):
                        client.say_goodbye(source)

    def _forget_gone(self) -> None:
        """Free flows that ended unnoticed and that no client watches any more."""
        for flows in self._flows.values():
            for flow in [f for f in flows.values() if f.gone and not f.open and not self._is_watched(f)]:
                del flows[flow.number]

    def _is_watched(self, flow: EmulatedFlow) -> bool:
        return any(client.sources_of(flow) for client in self.clients)

    # Control sockets

    def connect(self) -> EmulatedClient:
        """Open a control socket, which needs no privilege."""
        with self.lock:
            client = EmulatedClient(self, next(self._units))
            client.on_closed = self._merge_event_masks
            self.clients.insert(0, client)
            self._merge_event_masks()
            self._arm_minute_timer()
            return client

    def _merge_event_masks(self) -> None:
        self._merged_events = 0
        for client in self.clients:
            self._merged_events |= client.event_mask

    def end_controls(self) -> None:
        """Let every control socket reach end of file (a fault)."""
        for client in list(self.clients):
            client.end()

    def inject(self, datagram: bytes) -> None:
        """Send every client bytes that no kernel would send (a fault)."""
        data = octets("datagram", datagram)
        for client in list(self.clients):
            client.inject(data)

    def close(self) -> None:
        """End every control socket and stop the servers of this kernel. Idempotent."""
        while self.on_close:
            self.on_close.pop()()
        self.end_controls()

    # Flows

    def interface_transfer(self, name: str, rx: int = 0, tx: int = 0) -> None:
        """Count an interface's own traffic; its watchers get a report when it passes their threshold."""
        wholes(rx=rx, tx=tx)
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
                report_traffic(self, flow)

    def announce(self, flow: EmulatedFlow) -> None:
        """Make it a source of every client that watches its provider, the newest client first.

        Up to xnu-10063 the first refused announcement of a new kernel socket ends the round: older
        clients never get that source, and no reference number of theirs is used.
        """
        version, announced_as = self.release.version, flow.provider_id
        if flow.userland and flow.provider is Provider.UDP and (3789,) <= version < (4570,):
            announced_as = 3  # a defect of that release: new user-land UDP flows come as user-land TCP
        ends_early = flow.is_kernel_socket and version < (11215,)
        for client in list(self.clients):
            if flow.provider_id in client.watching and client.add_source(flow, announced_as) and ends_early:
                break

    # The end of flows, and events

    def flow_closed(self, flow: EmulatedFlow) -> None:
        """A flow ended: say goodbye as this release does, or leave it to be found."""
        if flow.provider is Provider.ROUTE:
            flow.set(flags=flow.fields.get("flags", 0) & ~_RTF_UP)
            flow.gone = True
            return
        if flow.is_kernel_socket and self.release.version < (2050,):
            flow.gone = True
            if not self._is_watched(flow):
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
            for client in list(self.clients):
                # One source of each client says goodbye. If the client has further sources of this socket, it finds them gone later.
                for source in client.sources_of(flow)[-1:]:
                    client.say_goodbye(source)
            flow.gone = self._is_watched(flow)

    def userland_time_wait(self, flow: EmulatedFlow) -> None:
        """User-land TCP in TIME_WAIT: its sources say goodbye early."""
        version = self.release.version
        keeps = 0x80000 if version >= (7195,) else 0x8000 if version >= (4570,) else 0
        for client in list(self.clients):
            for source in client.sources_of(flow):
                if not client.filter_of(source.announced_as).bits & keeps:
                    client.say_goodbye(source)

    def end_process(self, pid: int) -> None:
        """Close every flow of a process, newest first."""
        whole("pid", pid, bits=31)
        with self.lock:
            for flow in sorted(self.flows(), key=lambda flow: -flow.number):
                if flow.fields.get("pid") == pid:
                    flow.close()

    def raise_event(self, flow: EmulatedFlow, event: int) -> None:
        """Send an update to the clients in update mode whose mask has this event."""
        version = self.release.version
        if version < (3789,) or (event & _ROLE_EVENTS and version < (10002,)):
            return
        if flow.is_kernel_socket:
            # Kernel sockets use the merged mask of all clients, which is computed only when a client
            # connects or disconnects.
            if version >= (10002,) and not self._merged_events & event:
                return
        elif flow.provider is not Provider.CONNECTION:
            event &= _USERLAND_EVENTS
        for client in list(self.clients) if event else ():
            for source in client.sources_of(flow):
                client.event(source, event)

    def send_system_information(self, entries: bytes) -> None:
        """Report system-wide statistics to the clients that subscribed to them.

        Args:
            entries: A list of ``nstat_sysinfo_keyval``, encoded.
        """
        data = octets("entries", entries)
        message = SystemInfoCounts(size=_SYSINFO_HEADER + len(data), entries=data)
        with self.lock:
            for client in self.clients:
                if client.subscribed_to_sysinfo:
                    client.enqueue(message.encode(self.layout))
