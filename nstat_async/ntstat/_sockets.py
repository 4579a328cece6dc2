"""The control sockets of a session: the current one, the times of its polls, and now and then a second one.

A second one is opened to repair the view: announcements were lost for good, the control went away, or
(an *audit*) it is time to check whether anything is missing. It subscribes with announcements suppressed, and
polls without reporting events. Then the first one polls, so that everything it got earlier is read; then the
second one polls again, and takes over.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from .._contract import CloseChannel, Command, OpenChannel
from .._errors import BackendUnavailableError, NstatError, RequestError, UnavailableReason
from .._events import AnyEvent, EventsLost, LossCause, PollCompleted
from .._options import Discovery, MonitorOptions
from ._constants import NO_ROOM, error_text
from ._coverage import CoverageMeter
from ._states import State
from ._subscription import Subscription
from ._takeover import SecondSocket, Stage, compare, continue_flows
from ._translate import Translator

REOPEN_DELAYS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds to wait before each attempt to open a control that went away."""
RESYNC_PAUSE = 5.0
"""Seconds between two resynchronisations for lost announcements."""
MOST_REJECTED = 11
"""Most second sockets, whose list was cut short, for which the pause grows: up to a minute."""
AUDIT_EVERY = 15.0
"""Seconds between two audits, if a newer client can starve this one."""
AUDIT_SELDOM = 60.0
"""Seconds between two audits, if only a kernel without memory omits a flow, or if there are no polls at intervals."""
AUDIT_POLLS = 10
"""Least number of polls between two audits, each of which costs one or two polls more."""
AWAITED_FOR = 80.0
"""Seconds for which a flow without a report is awaited after the control went away; then it is gone."""
PURPOSE = "ntstat"
_TOO_LONG = "a list of all flows does not fit into the receive buffer: whether one was never announced is not known"


class Host(Protocol):
    """The session, as its control sockets know it."""

    epoch_offset: float
    failure: NstatError | None

    def poll_ended(self, subscription: Subscription, complete: bool, now: float) -> float:
        """A poll of the current socket is over; returns the earliest time of the next one."""

    def taken_over(self, subscription: Subscription) -> None:
        """Another socket took over."""


class Sockets:
    """Opens, polls, compares and replaces control sockets.

    Args:
        host: The session.
        backend: Name of the backend, for errors.
        translator: The session's.
        options: The monitor's.
        events: Where events go.
        commands: Where commands to open and close channels go.
    """

    def __init__(
        self,
        host: Host,
        backend: str,
        translator: Translator,
        options: MonitorOptions,
        events: deque[AnyEvent],
        commands: list[Command],
    ) -> None:
        self._host = host
        self._backend = backend
        self._translator = translator
        self._kernel = translator.kernel
        self._options = options
        self._events = events
        self._commands = commands
        self.current: Subscription | None = None
        """The control socket whose flows are reported."""
        self.second: SecondSocket | None = None
        """The second control socket, if there is one now."""
        self.poll_started = 0.0
        self._generation = 0
        self._next_poll: float | None = None
        self._reopen_at: float | None = None
        self._reopen_tries = 0
        self._resync_at: float | None = None
        self._audit_at: float | None = None
        self._last_resync = float("-inf")
        self._rejected = 0
        self._is_blind = False
        """It was reported that a list of all flows does not fit."""
        self._awaiting_since: float | None = None
        self.statistics = dict.fromkeys(("resynchronisations", "audits"), 0)
        """Counters for people, by name."""

    # --- what there is -----------------------------------------------------------

    def all(self) -> list[Subscription]:
        """The current and the second control socket, if they exist."""
        second = None if self.second is None else self.second.subscription
        return [subscription for subscription in (self.current, second) if subscription is not None]

    def find(self, channel: int) -> Subscription | None:
        """The control socket of this channel, while it is open."""
        found = (each for each in self.all() if each.channel == channel and each.state is not State.CLOSED)
        return next(found, None)

    def deadline(self) -> float | None:
        """When to call `tick`; `None`: never."""
        times = [self._next_poll, self._reopen_at, self._resync_at, self._audit_at]
        times.extend(each.deadline() for each in self.all())
        if self.second is not None:
            times.append(self.second.poll_at)
        return min((time for time in times if time is not None), default=None)

    # --- what happens to them ----------------------------------------------------

    def open_first(self, meter: CoverageMeter | None, now: float) -> None:
        """Begin to subscribe; `meter` adds up the traffic of flows."""
        self.current = self._open(self._options.discovery, silent=False)
        self.poll_started = self.current.now = now
        self.current.table.meter = meter

    def tick(self, now: float) -> None:
        """A deadline passed."""
        if self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_at = None
            self._open_second(audit=False)
        if self._resync_at is not None and now >= self._resync_at:
            self._last_resync = now
            self.statistics["resynchronisations"] += 1
            self._open_second(audit=False)
        if self._audit_at is not None and now >= self._audit_at:
            self.statistics["audits"] += 1
            self._open_second(audit=True)
        for subscription in self.all():
            subscription.begin(now, now + self._host.epoch_offset)
            subscription.tick()
            self.settle(subscription, now)
        second = self.second
        if second is not None and second.poll_at is not None and now >= second.poll_at:
            second.poll_at = None
            second.subscription.want_poll(now)
        if self._next_poll is not None and now >= self._next_poll:
            self.request_poll(now)

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        current = self.current
        self._next_poll = None
        if current is None:
            return 1
        if current.is_subscribed:
            self.poll_started = now
            current.begin(now, now + self._host.epoch_offset)
            return current.want_poll(now)
        current.wanted = current.serial + 1  # its first poll, or that of the socket which takes over
        return current.wanted

    def settle(self, subscription: Subscription, now: float) -> None:
        """See what became of a control socket: a poll that is over, a gap, a refusal."""
        while subscription.outcome is not None and subscription.state is not State.CLOSED:
            answered, subscription.outcome = subscription.outcome, None
            if subscription is self.current:
                self._polled(subscription, answered, now)
            elif self.second is not None:
                self._second_polled(self.second, answered, now)
            subscription.proceed()
        if subscription is self.current:
            if subscription.needs_resync:
                self.want_resync(now)
            if subscription.needs_audit and self.second is None:
                self._audit_at = now
            subscription.needs_resync = subscription.needs_audit = False
            self._check_refusals(subscription)

    def failed(self, subscription: Subscription, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        opening = subscription.state is State.OPENING
        if errno in NO_ROOM and not opening:
            subscription.begin(now, now + self._host.epoch_offset)
            subscription.overloaded()
        elif opening and subscription is self.current and not self._reopen_tries:
            self._fail(f"the control socket cannot be opened: {error_text(errno)}")
        else:
            self.lost(subscription, now)

    def lost(self, subscription: Subscription, now: float) -> None:
        """A control socket went away."""
        self._commands.append(CloseChannel(subscription.channel))
        subscription.close()
        current, second = self.current, self.second
        assert current is not None
        if subscription is not current and second is not None:
            self.second = None
            current.table.remember_ends(wanted=False)
            if current.state is not State.CLOSED and not second.audit:
                self.want_resync(now + RESYNC_PAUSE)
        elif subscription is current:
            self._next_poll = self._audit_at = None
            detail = "the kernel control went away"
            time = now + self._host.epoch_offset
            self._events.append(EventsLost(time, LossCause.RESYNC, None, detail=detail))
        if current.state is State.CLOSED:
            if self.second is None:
                self._reopen(now)
            else:
                self.second.audit, self.second.stage = False, Stage.REPEATING
                self.second.subscription.want_poll(now)

    def want_resync(self, now: float) -> None:
        """Open a second control socket as soon as possible: only that can see what this one missed."""
        if self.second is not None:
            self.second.audit = False
        elif self._resync_at is None:
            self._resync_at = max(now, self._last_resync + RESYNC_PAUSE * (1 + self._rejected))

    # --- inside: opening -----------------------------------------------------------

    def _open(self, discovery: Discovery, *, silent: bool) -> Subscription:
        channel = self._generation
        self._generation += 1
        self._commands.append(OpenChannel(channel, PURPOSE))
        subscription = Subscription(
            channel,
            self._translator,
            self._events.append,
            self._options,
            generation=self._generation,
            discovery=discovery,
            silent=silent,
        )
        if self.current is not None:
            subscription.table.prove(self.current.table.readers.proven)
            subscription.table.own = self.current.table.own
        return subscription

    def _reopen(self, now: float) -> None:
        if self._reopen_tries >= len(REOPEN_DELAYS):
            self._fail("the kernel control went away and cannot be opened again")
            return
        self._reopen_at = now + REOPEN_DELAYS[self._reopen_tries]
        self._reopen_tries += 1

    def _fail(self, detail: str) -> None:
        self._host.failure = BackendUnavailableError(self._backend, UnavailableReason.MISSING, detail)

    def _check_refusals(self, subscription: Subscription) -> None:
        """Fail when neither TCP nor UDP of those wanted was granted."""
        refused = subscription.refused
        if refused and not subscription.providers and subscription.is_subscribed and self._host.failure is None:
            names = ", ".join(sorted(provider.value for provider in self._options.providers))
            errno = next(iter(refused.values()))
            detail = f"the kernel refused every provider: {error_text(errno)}"
            self._host.failure = RequestError(f"subscription to {names}", errno, detail)

    # --- inside: the current socket ---------------------------------------------------

    def _polled(self, subscription: Subscription, complete: bool, now: float) -> None:
        """A poll ended: the next one is due an interval after its start; missed ones are skipped."""
        earliest = self._host.poll_ended(subscription, complete, now)
        second, interval = self.second, self._options.interval
        if second is not None and second.stage is Stage.WAITING and subscription.serial >= second.barrier:
            self._barrier_passed(second, complete, now)
        if self.second is None and self._audit_at is None and self._resync_at is None:
            self._audit_at = now + self._audit_pause
        if interval is not None:
            self._next_poll = max(now + interval - (now - self.poll_started) % interval, earliest)

    @property
    def _audit_pause(self) -> float:
        """Seconds until the next audit: at most a tenth more polls, or one a minute without polls at intervals."""
        interval = self._options.interval
        every = AUDIT_EVERY if self._kernel.starves_older_clients and interval is not None else AUDIT_SELDOM
        return max(every, AUDIT_POLLS * (interval or 0.0))

    # --- inside: the second socket -----------------------------------------------------

    def _open_second(self, *, audit: bool) -> None:
        if self.second is None and self.current is not None:
            self.current.table.remember_ends(wanted=True)
            self.second = SecondSocket(self._open(Discovery.POLL, silent=True), audit)
            self.second.subscription.table.remember_ends(wanted=True)
            self._audit_at = self._resync_at = None

    def _close_second(self, second: SecondSocket) -> None:
        self._commands.append(CloseChannel(second.subscription.channel))
        self.second = None
        assert self.current is not None
        self.current.table.remember_ends(wanted=False)

    def _second_polled(self, second: SecondSocket, answered: bool, now: float) -> None:
        """The second socket has polled: let the first one catch up, or decide."""
        assert self.current is not None
        if not answered:
            # The kernel is short of room: flows that it could not report must not count as gone.
            second.poll_at = now + REOPEN_DELAYS[min(second.subscription.serial - 1, len(REOPEN_DELAYS) - 1)]
        elif self.current.state is State.CLOSED:
            self._take_over(second, now)
        elif second.stage is Stage.LISTING:
            second.stage, second.top = Stage.WAITING, second.subscription.table.references.top
            second.barrier = self.request_poll(now)
        elif second.stage is Stage.REPEATING:
            self._decide(second, now)

    def _barrier_passed(self, second: SecondSocket, complete: bool, now: float) -> None:
        """Everything that the first socket got before its poll is read now: see whether it misses anything."""
        assert self.current is not None
        if second.audit:
            found = compare(self.current.table, second.subscription.table)
            missed = found.missed_up_to(second.top) if complete else 0
            if not missed:
                self._close_second(second)
                cut_short = found.is_cut_short(self.current.table.poll_serial) or second.subscription.has_gap
                whole = complete and second.subscription.sees_all and not cut_short
                self._looked(second.subscription, whole=whole)
                self._judge_awaited(now, proven=whole)
                return
            second.audit = False
            self.current.report_gap(
                None,
                f"{missed} flows were never announced on this control socket; what came and went unseen is not known",
            )
        second.stage = Stage.REPEATING
        second.subscription.want_poll(now)

    def _looked(self, second: Subscription, *, whole: bool) -> None:
        """An audit found nothing, because nothing is missing, or because its own list did not fit."""
        current = self.current
        assert current is not None
        if whole:
            current.has_gap = self._is_blind = False
        elif second.has_gap and not self._is_blind:
            self._is_blind = True
            if not current.has_gap:
                self._events.append(EventsLost(current.table.time, LossCause.ANNOUNCEMENT, None, detail=_TOO_LONG))

    def _decide(self, second: SecondSocket, now: float) -> None:
        """Both sockets have polled: let the second one take over, unless its list of flows was cut short."""
        assert self.current is not None
        comparison = compare(self.current.table, second.subscription.table)
        if comparison.is_cut_short(self.current.table.poll_serial):
            self._close_second(second)
            self._rejected = min(self._rejected + 1, MOST_REJECTED)
            self.want_resync(now)
            self._judge_awaited(now, proven=False)
        else:
            self._take_over(second, now)

    def _take_over(self, second: SecondSocket, now: float) -> None:
        """Let the second socket, which knows everything, continue the flows of the first one."""
        old, candidate = self.current, second.subscription
        assert old is not None
        was_open = old.state is not State.CLOSED
        found = compare(old.table, candidate.table)
        self.current, self.second = candidate, None
        self._reopen_tries = self._rejected = 0
        if was_open:
            self._commands.append(CloseChannel(old.channel))
        candidate.take_over(old)
        unsure = [s for s in found.vanished if not was_open or s.seen != old.table.poll_serial]  # not in its last poll
        continue_flows(old.table, candidate.table, found, unsure)
        if was_open:
            detail = "resynchronised on a second control socket"
            self._events.append(EventsLost(candidate.table.time, LossCause.RESYNC, None, detail=detail))
        if candidate.has_gap:
            self._events.append(EventsLost(candidate.table.time, LossCause.ANNOUNCEMENT, None, detail=_TOO_LONG))
        self._host.taken_over(candidate)
        complete = not candidate.has_gap
        self._events.append(PollCompleted(candidate.table.time, candidate.count_flows(), complete, candidate.serial))
        self.poll_started = now
        self._judge_awaited(now, proven=False)
        self._polled(candidate, True, now)

    def _judge_awaited(self, now: float, *, proven: bool) -> None:
        """Give up awaited flows after a time, or at once if they are `proven` to be gone: a complete list lacks them."""
        assert self.current is not None
        table, since = self.current.table, self._awaiting_since
        waited = 0.0 if since is None else now - since
        if proven or waited >= AWAITED_FOR:
            table.give_up_awaited()
        if not table.awaited:
            self._awaiting_since = None
        elif since is None:
            self._awaiting_since = self._audit_at = now
        else:
            self._audit_at = now + min(max(1.0, waited), AWAITED_FOR - waited)
