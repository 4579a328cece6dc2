"""The Darwin core: a monitor's whole conversation with a kernel, or a recorded one.

A datagram takes this way, top to bottom: `Session.receive_datagrams` here, `Decoder.decode`
(bytes to fields), `SourceTable.update` (fields to events), and, when something about a
flow's identity changed, `DescriptorReader.flow` (a descriptor to a `Flow`).

A session that drives (`Mode.DRIVING`) has one `Subscription` (one control socket). It
opens a second one when only that repairs the view: announcements were lost for good, or
the control went away. The second is subscribed with announcements suppressed and polled
completely in silence; then it takes over: each of its sources that is the same kernel
socket as one of the old subscription continues that flow, the others are reported as
added, and old flows without a counterpart as gone.

A session that follows (`Mode.FOLLOWING`) asks nothing and decides nothing: a `Follower`
understands the requests of the client that was recorded.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from .._contract import CloseChannel, Command, Lookup, LookupFailed, Mode, OpenChannel, Send
from .._errors import BackendUnavailableError, NstatError, RequestError, UnavailableReason
from .._events import AnyEvent, EventsLost, LossCause, PollCompleted, RemovalReason
from .._model import Capabilities, Counts, Flow, Proof, Visibility
from .._options import Discovery, MonitorOptions
from ._client import Client
from ._constants import error_text
from ._evidence import Evidence, FindPaths, Ledger, OpenEvidence, PathsFound, ReadLedger
from ._following import Follower
from ._kernels import Kernel
from ._ledger import METRICS, LossLedger
from ._proof import Proving, codecs_of, proven_structs
from ._setup import Setup
from ._sources import SourceTable
from ._states import State
from ._subscription import Subscription
from ._takeover import Comparison, SecondSocket, Stage, carry_on, compare
from ._translate import Translator

__all__ = ["Session"]

REOPEN_DELAYS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds to wait before each try to open a control that went away."""
RESYNC_PAUSE = 5.0
"""Seconds between two resynchronisations for lost announcements."""
MOST_REJECTED = 11
"""The pause grows with each second socket whose list was cut short, up to a minute."""
AUDIT_EVERY = 15.0
"""Seconds between two looks at a second control socket, where a newer client can starve this one."""
AUDIT_SELDOM = 60.0
"""The same where only a kernel without memory leaves a flow out in silence, or where nobody wants polls at intervals."""
AUDIT_POLLS = 10
"""Polls between two such looks at least: they cost one poll or two more."""
PROOF_PATIENCE = 5.0
"""Seconds for which polls wait for the known flows of a proof: what reported them too early would count them."""
PURPOSE = "ntstat"
_OPEN_EVIDENCE, _CLOSE_EVIDENCE, _FIND_PATHS, _READ_LEDGER = 1, 2, 3, 4
_NO_ROOM = frozenset({12, 55, 105, 10055})
"""ENOMEM, and ENOBUFS as Darwin, Linux and Windows number it: a recording is played anywhere."""


class Session:
    """The core for one Darwin kernel: sans-IO, sans-clock.

    Args:
        kernel: The kernel's version string, or a `Kernel`; or the whole `Setup`.
        options: What to watch and how; a session that follows looks at ``every_update`` and ``strict`` only.
        mode: Drive a subscription, or follow a recorded client.
        client: Following: makes flow ids unlike those of other clients of the recording.
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
        """What it was made of, beside the options."""
        self.kernel = kernel if isinstance(kernel, Kernel) else Kernel.parse(setup.kernel)
        self.options = options if options is not None else MonitorOptions()
        self.mode = mode
        self.epoch_offset = 0.0
        self.failure: NstatError | None = None
        self.translator = Translator(self.kernel, setup.timebase, dict(setup.interfaces), setup.paths and driving)
        verify = not self.kernel.known if setup.verify is None else setup.verify
        self._proving = Proving(self.kernel, wanted=driving and verify)
        self._ledger = LossLedger(self.kernel, is_readable=driving and setup.ledger)
        self._finding_paths = False
        self._events: deque[AnyEvent] = deque()
        self._commands: list[Command] = []
        self._follower = (
            None if driving else Follower(self.translator, self._events.append, self.options, client=client)
        )
        if self._follower is not None:
            self._follower.table.prove(codecs_of(self.kernel, setup.proven))
        self._subscription: Subscription | None = None
        self._second: SecondSocket | None = None
        self._generation = 0
        self._next_poll: float | None = None
        self._poll_started = 0.0
        self._reopen_at: float | None = None
        self._reopen_tries = 0
        self._resync_at: float | None = None
        self._audit_at: float | None = None
        self._last_resync = float("-inf")
        self._rejected = 0
        self._has_polled = False
        self._people = dict.fromkeys(("resynchronisations", "audits"), 0)

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

    def start(self, now: float) -> None:  # noqa: ARG002
        """Begin to subscribe."""
        if self.mode is Mode.DRIVING:
            self._subscription = self._open(self.options.discovery, silent=False)

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
        client = self._follower or self._asking(channel)
        if client is None:
            return
        client.now = now
        client.table.begin(now + self.epoch_offset)
        decoder, at, count = client.decoder, 0, len(datagrams)
        while at < count:
            at = decoder.decode(datagrams, at)
            if decoder.to_settle:
                client.settle()
                if self._follower is None:
                    self._settle(client, now)
        if self.translator.unasked:
            self._find_paths()

    def observe_request(self, data: bytes, now: float, channel: int = 0) -> None:  # noqa: ARG002
        """Following: the recorded client sent this."""
        if self._follower is not None:
            self._follower.table.begin(now + self.epoch_offset)
            self._follower.observe(data)

    def finish(self, now: float) -> None:
        """Nothing follows: what was announced and never described is reported now."""
        current = self._current
        if current is not None:
            current.table.begin(now + self.epoch_offset)
            current.table.finish()

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """An `OpenChannel` was carried out."""
        subscription = self._asking(channel)
        if subscription is not None:
            subscription.table.begin(now + self.epoch_offset)
            subscription.opened(now, immediate=immediate, receive_buffer=receive_buffer)

    def channel_drained(self, channel: int, now: float) -> None:
        """The channel would block."""
        subscription = self._asking(channel)
        if subscription is not None:
            subscription.drained(now)
            self._settle(subscription, now)

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        subscription = self._asking(channel)
        if subscription is None:
            if self._follower is not None and errno in _NO_ROOM:
                self._follower.overloaded(now + self.epoch_offset)
            return
        opening = subscription.state is State.OPENING
        if errno in _NO_ROOM and not opening:
            subscription.overloaded(now)
        elif opening and subscription is self._subscription and not self._reopen_tries:
            detail = f"the control socket cannot be opened: {error_text(errno)}"
            self.failure = BackendUnavailableError(self.setup.backend, UnavailableReason.MISSING, detail)
        else:
            self._lost(subscription, now)

    def channel_closed(self, channel: int, now: float) -> None:
        """End of file: the control went away."""
        subscription = self._asking(channel)
        if subscription is not None:
            self._lost(subscription, now)

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """The answer to a `Lookup`: known flows are open, or executables are found."""
        current = self._current
        if token == _FIND_PATHS:
            self._finding_paths = False
        if isinstance(answer, PathsFound) and current is not None:
            current.table.begin(now + self.epoch_offset)
            changed = self.translator.merge_paths(answer)
            for client in self._sockets() or (current,):
                if changed:
                    client.table.merge_processes(changed)
        elif token == _OPEN_EVIDENCE and self._subscription is not None:
            reason = f" ({answer.reason})" if isinstance(answer, LookupFailed) else ""
            self._proving.flows_opened(answer if isinstance(answer, Evidence) else None, reason)
            self._watch_known_flows(self._subscription)
            if self._proving.probe is not None:
                self.request_poll(now)
        elif token == _READ_LEDGER and isinstance(current, Subscription):
            current.now = now
            current.table.begin(now + self.epoch_offset)
            self._reconcile(current, answer if isinstance(answer, Ledger) else None)
        elif token == _CLOSE_EVIDENCE and self._subscription is not None:
            for each in self._sockets():
                each.table.own = frozenset()
        if self.translator.unasked:
            self._find_paths()

    # --- Core: out -------------------------------------------------------------

    def commands(self) -> list[Command]:
        """What to do now, in this order."""
        for subscription in self._sockets():
            if subscription.outbox:
                self._commands.extend(Send(subscription.channel, data) for data in subscription.outbox)
                subscription.outbox.clear()
        commands, self._commands = self._commands, []
        return commands

    def data_to_send(self) -> list[bytes]:
        """The datagrams of `commands`, for a caller with exactly one socket.

        The first call also reports that socket as opened, so such a caller needs
        no commands at all; it forgoes resynchronisation.
        """
        data = []
        for command in self.commands():
            if isinstance(command, OpenChannel) and command.channel:
                now = 0.0 if self._subscription is None else self._subscription.now
                self.channel_failed(command.channel, errno.EMFILE, now)
            elif isinstance(command, OpenChannel):
                self.channel_opened(command.channel, self._poll_started, immediate=False, receive_buffer=None)
                data.extend(self.data_to_send())
            elif isinstance(command, Send):
                data.append(command.data)
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
        """When `handle_deadline` wants to be called."""
        times = [self._next_poll, self._reopen_at, self._resync_at, self._audit_at]
        times.extend(s.deadline() for s in self._sockets())
        if self._second is not None:
            times.append(self._second.poll_at)
        return min((t for t in times if t is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """The time has come (or passed)."""
        if self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_at = None
            self._open_second(audit=False)
        if self._resync_at is not None and now >= self._resync_at:
            self._resync_at, self._last_resync = None, now
            self._people["resynchronisations"] += 1
            self._open_second(audit=False)
        if self._audit_at is not None and now >= self._audit_at:
            self._audit_at = None
            self._people["audits"] += 1
            self._open_second(audit=True)
        for subscription in self._sockets():
            subscription.tick(now)
            self._settle(subscription, now)
        second = self._second
        if second is not None and second.poll_at is not None and now >= second.poll_at:
            second.poll_at = None
            second.subscription.want_poll(now)
        if self._next_poll is not None and now >= self._next_poll:
            self.request_poll(now)

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        current = self._subscription
        self._next_poll = None
        if current is None:
            return 1
        if current.is_subscribed:
            self._poll_started = now
            current.table.begin(now + self.epoch_offset)
            serial = current.want_poll(now)
            self._settle(current, now)
            return serial
        current.wanted = current.serial + 1  # its first poll, or that of the socket which takes over
        return current.wanted

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows, with their last counts."""
        return self._current.table.flows() if self._current is not None else ()

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription, by name."""
        result = {**self._people, **self._ledger.statistics}
        if self._current is not None:
            result.update(self._current.statistics())
        return result

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
        kernel, current = self.kernel, self._current
        return Capabilities(
            backend=self.setup.backend,
            kernel=kernel.text,
            providers=frozenset(current.providers) if current is not None else frozenset(),
            tcp_counts=True,
            udp_counts=True,
            per_medium_bytes=kernel.splits_by_medium,
            final_counts=kernel.has_counts_at_goodbye,
            short_lived=kernel.has_counts_at_goodbye,
            flows=self._visibility(),
            processes=Visibility.ALL,
            layout=kernel.layout.name,
            layout_proof=self.proof,
            receive_buffer=current.receive_buffer if current is not None else None,
            notes=self._notes(),
        )

    @property
    def proof(self) -> Proof:
        """How sure the layout is."""
        return Proof.PROBED if self.setup.proven and self._follower is not None else self._proving.result.proof

    def _visibility(self) -> Visibility:
        """Whose flows are seen: no public kernel through macOS 26 hides any, later ones show ordinary users their own."""
        if self.mode is Mode.FOLLOWING:
            return Visibility.UNKNOWN
        own = self.setup.own_uid
        uids = {flow.process.uid for flow, _ in self.flows() if flow.process is not None} - {None}
        if own is not None and uids - {own}:
            return Visibility.ALL
        if not self.kernel.is_newer:
            return Visibility.ALL
        # The system's own users always have sockets.
        return Visibility.OWN if own and uids and self._has_polled else Visibility.UNKNOWN

    def _notes(self) -> tuple[str, ...]:
        kernel, current = self.kernel, self._current
        notes = list(self._proving.result.notes)
        if not kernel.known and self.proof is Proof.UNKNOWN:
            notes.append(f"{kernel.name} is newer than the layouts that were compiled; {kernel.layout.name} is assumed")
        if not kernel.has_counts_at_goodbye:
            notes.append("this kernel reports a close up to a minute late and without final counts")
        if isinstance(current, Subscription) and current.has_small_buffer:
            how = "polls are answered in portions" if kernel.resumes_polls else "what overflows is asked for one by one"
            more = ", and every fifth poll alone reads all descriptions anew" if kernel.has_updates else ""
            notes.append(f"the receive buffer is small: {how}{more}")
        if kernel.is_newer:
            notes.append("this kernel may show an ordinary user only that user's flows; root may see more")
        refused = current.refused.items() if current is not None else ()
        notes.extend(f"{p.value}: refused ({error_text(e)})" for p, e in refused if p in self.options.providers)
        return tuple(notes)

    # --- inside: sockets ----------------------------------------------------------

    @property
    def _current(self) -> Client | None:
        """Whose table has the flows."""
        return self._subscription if self._follower is None else self._follower

    def _asking(self, channel: int) -> Subscription | None:
        for subscription in self._sockets():
            if subscription.channel == channel and subscription.state is not State.CLOSED:
                return subscription
        return None

    def _sockets(self) -> list[Subscription]:
        """The control socket that speaks for the session, and the one beside it."""
        second = None if self._second is None else self._second.subscription
        return [subscription for subscription in (self._subscription, second) if subscription is not None]

    def _open(self, discovery: Discovery, *, silent: bool) -> Subscription:
        channel = self._generation
        self._generation += 1
        self._commands.append(OpenChannel(channel, PURPOSE))
        subscription = Subscription(
            channel,
            self.translator,
            self._events.append,
            self.options,
            generation=self._generation,
            discovery=discovery,
            silent=silent,
        )
        if self._subscription is not None:
            subscription.table.prove(self._subscription.table.readers.proven)
            subscription.table.own = self._subscription.table.own
        return subscription

    def _settle(self, client: Client, now: float) -> None:
        """Look what became of a subscription: a poll that is over, a gap, a refusal."""
        if not isinstance(client, Subscription):
            return
        while client.outcome is not None and client.state is not State.CLOSED:
            answered, client.outcome = client.outcome, None
            if client is self._subscription:
                self._polled(client, answered, now)
            elif self._second is not None:
                self._second_polled(self._second, answered, now)
            client.proceed()
        if client is self._subscription:
            if client.needs_resync:
                self._want_resync(now)
            if client.needs_audit and self._second is None:
                self._audit_at = now
            client.needs_resync = client.needs_audit = False
            self._check_refusals(client)

    def _check_refusals(self, subscription: Subscription) -> None:
        """Fail when neither TCP nor UDP of those wanted was granted."""
        refused = subscription.refused
        if subscription.is_subscribed and self.failure is None and refused and not subscription.providers:
            names = ", ".join(sorted(p.value for p in self.options.providers))
            errno = next(iter(refused.values()))
            self.failure = RequestError(
                f"subscription to {names}", errno, f"the kernel refused every provider: {error_text(errno)}"
            )

    @property
    def _audit_pause(self) -> float:
        """Seconds until the next audit: a tenth more polls at most, and where nobody polls one each minute."""
        interval = self.options.interval
        every = AUDIT_EVERY if self.kernel.starves_older_clients and interval is not None else AUDIT_SELDOM
        return max(every, AUDIT_POLLS * (interval or 0.0))

    def _polled(self, subscription: Subscription, complete: bool, now: float) -> None:
        """A poll ended: the next one is due an interval after this one began; missed turns are skipped."""
        self._has_polled |= complete
        self._prove(subscription, now)
        second = self._second
        if complete and second is None and self._ledger.is_due(now):
            self._commands.append(Lookup(_READ_LEDGER, ReadLedger()))
        if second is not None and second.stage is Stage.WAITING and subscription.serial >= second.barrier:
            self._barrier_passed(second, complete, now)
        elif second is None and self._audit_at is None and self._resync_at is None:
            self._audit_at = now + self._audit_pause
        interval = self.options.interval
        if interval is None:
            self._next_poll = None
            return
        due = self._poll_started + interval
        if self._proving.awaits_flows:
            due = max(due, now + PROOF_PATIENCE)
        if due <= now:
            due = now + interval - (now - self._poll_started) % interval
        self._next_poll = due

    # --- inside: the second socket -----------------------------------------------------

    def _want_resync(self, now: float) -> None:
        """Only another control socket can see what this one missed."""
        if self._second is not None:
            self._second.audit = False
        elif self._resync_at is None:
            self._resync_at = max(now, self._last_resync + RESYNC_PAUSE * (1 + self._rejected))

    def _open_second(self, *, audit: bool) -> None:
        if self._second is None and self._subscription is not None:
            self._subscription.table.remember_ends(wanted=True)
            self._second = SecondSocket(self._open(Discovery.POLL, silent=True), audit)
            self._second.subscription.table.remember_ends(wanted=True)
            self._audit_at = self._resync_at = None

    def _close_second(self, second: SecondSocket) -> None:
        self._commands.append(CloseChannel(second.subscription.channel))
        second.subscription.close()
        self._second = None
        if self._subscription is not None:
            self._subscription.table.remember_ends(wanted=False)

    def _second_polled(self, second: SecondSocket, answered: bool, now: float) -> None:
        """The second socket has polled: let the first one catch up, or decide."""
        assert self._subscription is not None
        if not answered:
            # The kernel is short of room: what it could not answer must not count as gone.
            second.poll_at = now + REOPEN_DELAYS[min(second.subscription.serial - 1, len(REOPEN_DELAYS) - 1)]
        elif self._subscription.state is State.CLOSED:
            self._take_over(second, now)
        elif second.stage is Stage.LISTING:
            second.stage, second.top = Stage.WAITING, second.subscription.table.references.top
            second.barrier = self.request_poll(now)
        elif second.stage is Stage.REPEATING:
            self._decide(second, now)

    def _barrier_passed(self, second: SecondSocket, complete: bool, now: float) -> None:
        """All that the first socket was told before its poll is read now: does it miss anything?"""
        assert self._subscription is not None
        if second.audit:
            missed = 0
            if complete:
                missed = compare(self._subscription.table, second.subscription.table).missed_up_to(second.top)
            if not missed:
                self._close_second(second)
                return
            second.audit = False
            detail = (
                f"{missed} flows were never announced on this control socket; what came and went unseen is not known"
            )
            self._events.append(EventsLost(self._subscription.table.time, LossCause.ANNOUNCEMENT, None, detail=detail))
        second.stage = Stage.REPEATING
        second.subscription.want_poll(now)
        self._settle(second.subscription, now)

    def _decide(self, second: SecondSocket, now: float) -> None:
        """Both are complete: take over, unless the second socket's list of flows was cut short without a word."""
        assert self._subscription is not None
        comparison = compare(self._subscription.table, second.subscription.table)
        if comparison.unseen(self._subscription.serial):
            self._close_second(second)
            self._rejected = min(self._rejected + 1, MOST_REJECTED)
            self._want_resync(now)
        else:
            self._take_over(second, now)

    def _lost(self, subscription: Subscription, now: float) -> None:
        """A control socket went away."""
        self._commands.append(CloseChannel(subscription.channel))
        subscription.close()
        current, second = self._subscription, self._second
        assert current is not None
        if subscription is not current and second is not None:
            self._second = None
            current.table.remember_ends(wanted=False)
            if current.state is not State.CLOSED and not second.audit:
                self._want_resync(now + RESYNC_PAUSE)
        elif subscription is current:
            self._next_poll = self._audit_at = None
            detail = "the kernel control went away"
            self._events.append(EventsLost(now + self.epoch_offset, LossCause.RESYNC, None, detail=detail))
        if current.state is State.CLOSED and self._second is None:
            self._reopen(now)
        elif current.state is State.CLOSED and second is not None:
            second.audit, second.stage = False, Stage.REPEATING
            second.subscription.want_poll(now)

    def _reopen(self, now: float) -> None:
        if self._reopen_tries >= len(REOPEN_DELAYS):
            detail = "the kernel control went away and cannot be opened again"
            self.failure = BackendUnavailableError(self.setup.backend, UnavailableReason.MISSING, detail)
            return
        self._reopen_at = now + REOPEN_DELAYS[self._reopen_tries]
        self._reopen_tries += 1

    def _take_over(self, second: SecondSocket, now: float) -> None:
        """The second socket knows everything: let it continue the flows of the first."""
        old, candidate = self._subscription, second.subscription
        assert old is not None
        was_open = old.state is not State.CLOSED
        found = compare(old.table, candidate.table)
        self._subscription, self._second = candidate, None
        self._reopen_tries = self._rejected = 0
        if was_open:
            self._commands.append(CloseChannel(old.channel))
        old.close()
        candidate.take_over(old)
        self._continue_flows(old.table, candidate.table, found)
        if was_open:
            detail = "resynchronised on a second control socket"
            self._events.append(EventsLost(candidate.table.time, LossCause.RESYNC, None, detail=detail))
        self._ledger.begin_again()
        self._proving.begin_again()
        self._watch_known_flows(candidate)
        flows = len(candidate.table.sources) - len(candidate.table.hidden)
        self._events.append(PollCompleted(candidate.table.time, flows, True, candidate.serial))
        self._poll_started = now
        self._polled(candidate, True, now)

    @staticmethod
    def _continue_flows(old: SourceTable, table: SourceTable, found: Comparison) -> None:
        """Report on the new control socket what differs from what was reported of the old one."""
        table.remember_ends(wanted=False)
        old.remember_ends(wanted=False)
        for before, source in found.both:
            if carry_on(before, source) and source.flow is not None:
                table.announce_update(source, before.told)
        for before, source, reason in found.ended:
            carry_on(before, source)
            table.report_end(source, reason)
        for source in found.vanished:
            old.remove(source, RemovalReason.GONE)
        for source in found.told:
            table.hide(source)
        for source in (*found.fresh, *(source for source, _ in found.passed)):
            source.preexisting = False
            if source.reported and source.flow is not None:
                table.announce_added(source)
        for source, reason in found.passed:
            table.report_end(source, reason)

    def _reconcile(self, current: Subscription, found: Ledger | None) -> None:
        """Compare what was reported as lost with what the kernel says that it did not do."""
        for cause, count in self._ledger.unreported(found, current):
            detail = f"counted by the kernel ({METRICS}) and in no other report"
            self._events.append(EventsLost(current.table.time, cause, count, detail=detail))
            if cause is LossCause.ANNOUNCEMENT:
                self._want_resync(current.now)

    # --- inside: look-ups -----------------------------------------------------------

    def _find_paths(self) -> None:
        """Ask for the executables of new processes, one question at a time."""
        if not self._finding_paths:
            self._finding_paths = True
            pids = tuple(self.translator.unasked)
            self.translator.unasked.clear()
            self._commands.append(Lookup(_FIND_PATHS, FindPaths(pids)))

    def _watch_known_flows(self, subscription: Subscription) -> None:
        """Look at what this control socket reports of the known flows, and keep them from the user."""
        probe = self._proving.probe
        if probe is not None:
            subscription.decoder.observer = probe.observe
            for each in self._sockets():
                each.table.own = frozenset((probe.evidence.pid, flow.local) for flow in probe.evidence.flows)

    def _prove(self, subscription: Subscription, now: float) -> None:
        """A poll is over: go on with the proof of the layout."""
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
