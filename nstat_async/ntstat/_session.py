"""The Darwin core: a monitor's whole conversation with a kernel, live or recorded.

A datagram passes `Session.receive_datagrams` here, `Decoder.decode` (bytes to fields),
`SourceTable.update` (fields to events), and, if a flow's identity changed,
`DescriptorReader.flow` (a descriptor to a `Flow`).

A session that drives (`Mode.DRIVING`) has control sockets (`Sockets`), mostly one. One that
follows (`Mode.FOLLOWING`) sends nothing and decides nothing: a `Follower` reads the
requests of the recorded client.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .._contract import Command, Lookup, LookupFailed, Mode, OpenChannel, Send
from .._errors import NstatError
from .._events import AnyEvent, EventsLost, LossCause
from .._model import Capabilities, Counts, Flow, Proof
from .._options import MonitorOptions
from ._abilities import capabilities_of
from ._constants import NO_ROOM
from ._coverage import CoverageMeter
from ._evidence import Evidence, FindPaths, InterfacesRead, Ledger, OpenEvidence, PathsFound, ReadInterfaces, ReadLedger
from ._following import Follower
from ._kernels import Kernel
from ._ledger import METRICS, LossLedger
from ._proof import Proving, codecs_of, proven_structs
from ._setup import Setup
from ._sockets import Sockets
from ._subscription import Subscription
from ._translate import Translator

PROOF_PATIENCE = 5.0
"""Most seconds for which polls wait until the known flows of a proof are open: an earlier report would count them."""
_OPEN_EVIDENCE, _CLOSE_EVIDENCE, _FIND_PATHS, _READ_LEDGER, _READ_INTERFACES = range(1, 6)


class Session:
    """The core for one Darwin kernel, without I/O and without a clock.

    Args:
        kernel: The kernel's version string, or a `Kernel`; or the whole `Setup`.
        options: What to watch and how; a session that follows uses ``every_update`` and ``strict`` only.
        mode: Drive a subscription, or follow a recorded client.
        client: Following: number that makes flow ids differ from those of other clients of the recording.
        facts: The other fields of a `Setup`, e.g. ``timebase`` and ``interfaces``.

    Raises:
        UsageError: The kernel's version is not understood or too old.
    """

    def __init__(
        self,
        kernel: str | Kernel | Setup,
        *,
        options: MonitorOptions | None = None,
        mode: Mode = Mode.DRIVING,
        client: int = 0,
        **facts: Any,
    ) -> None:
        if not isinstance(kernel, Setup):
            facts["kernel"] = kernel if isinstance(kernel, str) else kernel.text
        setup = kernel if isinstance(kernel, Setup) else Setup(**facts)
        driving = mode is Mode.DRIVING
        self.setup = attrs.evolve(setup, proven=()) if driving else setup
        """What the session was made of, besides the options."""
        self.kernel = kernel if isinstance(kernel, Kernel) else Kernel.parse(setup.kernel)
        self.options = options if options is not None else MonitorOptions()
        self.mode = mode
        self.epoch_offset = 0.0
        self.failure: NstatError | None = None
        self.translator = Translator(self.kernel, setup.timebase, dict(setup.interfaces), setup.paths and driving)
        verify = not self.kernel.known if setup.verify is None else setup.verify
        self._proving = Proving(self.kernel, wanted=driving and verify)
        self._ledger = LossLedger(self.kernel, is_readable=driving and setup.ledger)
        self._coverage = CoverageMeter(self.kernel, is_readable=driving and setup.coverage)
        self._finding_paths = False
        self._has_polled = False
        self._events: deque[AnyEvent] = deque()
        self._commands: list[Command] = []
        self._sockets = Sockets(self, setup.backend, self.translator, self.options, self._events, self._commands)
        self._follower = (
            None if driving else Follower(self.translator, self._events.append, self.options, client=client)
        )
        if self._follower is not None:
            self._follower.table.prove(codecs_of(self.kernel, setup.proven))

    @classmethod
    def from_setup(
        cls, setup: Setup, options: MonitorOptions, *, mode: Mode = Mode.DRIVING, client: int = 0
    ) -> Session:
        """The session that has this `setup`.

        Raises:
            UsageError: The kernel's version is not understood or too old.
        """
        return cls(setup, options=options, mode=mode, client=client)

    # --- Core: in -------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin to subscribe."""
        if self.mode is Mode.DRIVING:
            self._sockets.open_first(self._coverage if self._coverage.is_readable else None, now)

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        self.receive_datagrams((data,), now, channel)

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in order.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        asking = None if self._follower is not None else self._sockets.find(channel)
        client = self._follower or asking
        if client is None:
            return
        client.begin(now, now + self.epoch_offset)
        decoder, at, count = client.decoder, 0, len(datagrams)
        while at < count:
            at = decoder.decode(datagrams, at)
            if decoder.to_settle:
                client.settle()
                if asking is not None:
                    self._sockets.settle(asking, now)
        if self.translator.unasked:
            self._find_paths()

    def observe_request(self, data: bytes, now: float, channel: int = 0) -> None:  # noqa: ARG002
        """Following: the recorded client sent this."""
        if self._follower is not None:
            self._follower.begin(now, now + self.epoch_offset)
            self._follower.observe(data)

    def finish(self, now: float) -> None:
        """The recording is at its end: report the flows that were announced and never described."""
        current = self._current
        if current is not None:
            current.begin(now, now + self.epoch_offset)
            current.table.finish()

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """An `OpenChannel` was carried out."""
        subscription = self._sockets.find(channel)
        if subscription is not None:
            subscription.begin(now, now + self.epoch_offset)
            subscription.opened(immediate=immediate, receive_buffer=receive_buffer)

    def channel_drained(self, channel: int, now: float) -> None:
        """The channel was read until it would block."""
        subscription = self._sockets.find(channel)
        if subscription is not None:
            subscription.begin(now, now + self.epoch_offset)
            subscription.drained()
            self._sockets.settle(subscription, now)

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        subscription = self._sockets.find(channel)
        if subscription is not None:
            self._sockets.failed(subscription, errno, now)
        elif self._follower is not None and errno in NO_ROOM:
            self._follower.overloaded(now + self.epoch_offset)

    def channel_closed(self, channel: int, now: float) -> None:
        """End of file: the control went away."""
        subscription = self._sockets.find(channel)
        if subscription is not None:
            self._sockets.lost(subscription, now)

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """Take in the answer to a `Lookup`."""
        current = self._current
        if token == _FIND_PATHS:
            self._finding_paths = False
        if isinstance(answer, PathsFound):
            self._merge(self.translator.merge_paths(answer), now)
        elif token == _OPEN_EVIDENCE and isinstance(current, Subscription):
            reason = f" ({answer.reason})" if isinstance(answer, LookupFailed) else ""
            self._proving.flows_opened(answer if isinstance(answer, Evidence) else None, reason)
            self._watch_known_flows(current)
            if self._proving.probe is not None:
                self.request_poll(now)
        elif token == _READ_LEDGER and isinstance(current, Subscription):
            current.begin(now, now + self.epoch_offset)
            self._reconcile(current, answer if isinstance(answer, Ledger) else None)
        elif token == _READ_INTERFACES and self._follower is None:
            self._coverage.take(answer)
            if isinstance(answer, InterfacesRead) and answer.names:
                self._merge(self.translator.merge_names(dict(answer.names)), now)
                self.setup = attrs.evolve(self.setup, interfaces=self.translator.interfaces)
        elif token == _CLOSE_EVIDENCE:
            for each in self._sockets.all():
                each.table.own = frozenset()
        if self.translator.unasked:
            self._find_paths()

    # --- Core: out -------------------------------------------------------------

    def commands(self) -> list[Command]:
        """What to do now, in this order."""
        for subscription in self._sockets.all():
            if subscription.outbox:
                self._commands.extend(Send(subscription.channel, data) for data in subscription.outbox)
                subscription.outbox.clear()
        commands = self._commands[:]
        self._commands.clear()
        return commands

    def data_to_send(self) -> list[bytes]:
        """The datagrams of `commands`, for a caller with exactly one socket.

        The first call also reports that socket as opened, so such a caller needs
        no commands at all, but has no resynchronisation.
        """
        data = []
        for command in self.commands():
            if isinstance(command, Send):
                data.append(command.data)
            elif isinstance(command, OpenChannel) and self._current is not None:
                if command.channel:
                    self.channel_failed(command.channel, errno.EMFILE, self._current.now)
                else:
                    self.channel_opened(0, self._current.now, immediate=False, receive_buffer=None)
                    data.extend(self.data_to_send())
        return data

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def next_event(self) -> AnyEvent | None:
        """The next event, or `None`."""
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When to call `handle_deadline`; `None`: never."""
        times = (self._sockets.deadline(), self._coverage.deadline)
        return min((time for time in times if time is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """The deadline has come or passed."""
        self._sockets.tick(now)
        self._measure()

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        return self._sockets.request_poll(now)

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows, with their last counts."""
        return self._current.table.flows() if self._current is not None else ()

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription, by name."""
        current = {} if self._current is None else self._current.statistics()
        return {**self._sockets.statistics, **self._ledger.statistics, **self._coverage.statistics, **current}

    @property
    def polling(self) -> bool:
        """True while a poll is under way."""
        return self._current is not None and self._current.is_polling

    @property
    def subscribed(self) -> bool:
        """True once the kernel has answered every subscription."""
        return self._current is not None and self._current.is_subscribed

    @property
    def capabilities(self) -> Capabilities:
        """What this subscription can tell."""
        found = attrs.evolve(self._proving.result, proof=self.proof)
        return capabilities_of(self.setup, self.kernel, self._current, found, has_polled=self._has_polled)

    @property
    def proof(self) -> Proof:
        """How sure the layout is."""
        return Proof.PROBED if self.setup.proven and self._follower is not None else self._proving.result.proof

    @property
    def _current(self) -> Subscription | Follower | None:
        """The client whose table has the flows."""
        return self._sockets.current if self._follower is None else self._follower

    # --- its sockets: see `Host` ---------------------------------------------------

    def poll_ended(self, subscription: Subscription, complete: bool, now: float) -> float:
        """A poll is over: continue the proof of the layout, and read counters that are read now and then."""
        self._has_polled |= complete
        self._prove(subscription, now)
        if complete and self._sockets.second is None and self._ledger.is_due(now):
            self._commands.append(Lookup(_READ_LEDGER, ReadLedger()))
        self._coverage.begin(subscription.table.sources.values(), now)
        return now + PROOF_PATIENCE if self._proving.awaits_flows else now

    def taken_over(self, subscription: Subscription) -> None:
        """Another control socket took over."""
        self._ledger.begin_again()
        self._coverage.begin_again()
        self._proving.begin_again()
        self._watch_known_flows(subscription)

    # --- look-ups ------------------------------------------------------------------

    def _reconcile(self, current: Subscription, found: Ledger | None) -> None:
        """Compare the reported losses with the kernel's counts of its failures."""
        for cause, count in self._ledger.unreported(found, current):
            detail = f"counted by the kernel ({METRICS}) and in no other report"
            self._events.append(EventsLost(current.table.time, cause, count, detail=detail))
            if cause is LossCause.ANNOUNCEMENT:
                current.has_gap = True
                self._sockets.want_resync(current.now)

    def _measure(self) -> None:
        """Read the counters of some flows, and, after all flows, ask for the interfaces'."""
        if self._coverage.go_on():
            self._commands.append(Lookup(_READ_INTERFACES, ReadInterfaces()))

    def _merge(self, changed: Mapping[Any, Any], now: float) -> None:
        """Update the flows whose processes or interfaces are known better now: old value to new value."""
        for client in (self._sockets.all() or (self._current,)) if changed else ():
            if client is not None:
                client.begin(now, now + self.epoch_offset)
                client.table.merge(changed)

    def _find_paths(self) -> None:
        """Ask for the executables of new processes, one request at a time."""
        if not self._finding_paths:
            self._finding_paths = True
            pids = tuple(self.translator.unasked)
            self.translator.unasked.clear()
            self._commands.append(Lookup(_FIND_PATHS, FindPaths(pids)))

    def _watch_known_flows(self, subscription: Subscription) -> None:
        """Collect this control socket's reports about the known flows, and hide them from the user."""
        probe = self._proving.probe
        if probe is not None:
            subscription.decoder.observer = probe.observe
            for each in self._sockets.all():
                each.table.own = frozenset((probe.evidence.pid, flow.local) for flow in probe.evidence.flows)

    def _prove(self, subscription: Subscription, now: float) -> None:
        """A poll is over: continue the proof of the layout."""
        request = self._proving.poll_ended()
        if isinstance(request, OpenEvidence):
            self._commands.append(Lookup(_OPEN_EVIDENCE, request))
        elif request is not None:
            found = self._proving.result
            subscription.decoder.observer = None
            subscription.table.prove(found.codecs)
            self.setup = attrs.evolve(self.setup, proven=proven_structs(found.codecs))
            self._commands.append(Lookup(_CLOSE_EVIDENCE, request))
        elif self._proving.probe is not None:
            subscription.want_poll(now)
