"""Makes one stream of events of the messages of all machines of a fleet. No I/O, no clock.

Each machine numbers its messages. A message that was here before is dropped; a missing one is reported, and the next
complete state corrects what it would have changed. So a message may come twice, late, or not at all, and the publisher,
the server and this side may start again: each loss is reported, and nothing counts twice.

Nothing is reported before `begin`: earlier messages only make the state that the stream starts with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Any

import attrs

from .._errors import ProtocolError
from .._events import AnyEvent, FlowAdded, HostState, HostUpdated, LossCause, PollCompleted
from .._model import Capabilities, Counts, Flow
from ._flows import FleetFlows
from ._host import HostView
from ._intake import Intake, sliced
from ._messages import Facts, Header, decode, parse_subject
from ._report import Report

MOST_HOSTS = 20_000
_LOOK_SECONDS = 1.0
_FIGURES = ("messages", "duplicate_messages", "lost_messages", "malformed_messages", "stale_messages")


@attrs.frozen
class Delivery:
    """A message as the stream has it."""

    subject: str
    data: bytes
    position: int
    """The message's number in the stream."""
    stored: float
    """When the server got it, on the server's clock, seconds since the epoch."""
    sent: float | None = None
    """When the publisher sent it, on the publisher's clock."""


@attrs.define(eq=False)
class Incoming:
    """Makes events of messages. A message waits until `take_events` works on it.

    Args:
        prefix: First word of the subjects.
        hosts: The machines to report; `None`: all.
        forget: Seconds of silence after which a machine is forgotten.
    """

    prefix: str = "nstat"
    hosts: frozenset[str] | None = None
    forget: float = 3600.0
    begun: bool = attrs.field(default=False, init=False)
    """True once events are to be reported."""
    connection: str | None = attrs.field(default=None, init=False)
    """Why no message can come; `None` while the server is connected."""
    caught_up: bool = attrs.field(default=False, init=False)
    """True while all messages of the stream were taken in: only then silence means something."""
    _views: dict[str, HostView] = attrs.field(factory=dict, init=False)
    _report: Report = attrs.field(factory=Report, init=False)
    _intake: Intake = attrs.field(init=False)
    _work: deque[Iterator[None]] = attrs.field(factory=deque, init=False)
    """The work to do, in order; each item pauses after a slice."""
    _shown: int | None = attrs.field(default=0, init=False)
    """How many machines and flows of the first state were reported so far; `None`: all."""
    _names: dict[str, str] = attrs.field(factory=dict, init=False)
    """The machine that last had a machine id."""
    _refused_hosts: set[str] = attrs.field(factory=set, init=False)
    _next_look: float | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._intake = Intake(FleetFlows(self._views, self._report), self._report)

    # --- in -----------------------------------------------------------------------------

    def receive(self, delivery: Delivery, now: float) -> None:
        """Take in a message.

        Args:
            delivery: The message.
            now: Monotonic seconds when the server got it, as far as that is known.
        """
        self._work.append(self._receive(delivery, now))

    def remember(self, delivery: Delivery, now: float) -> None:
        """Take in the last state of a machine that was silent for long: the machine is known, its flows are not."""
        found = parse_subject(self.prefix, delivery.subject)
        try:
            header, _ = decode(delivery.data)
        except ProtocolError:
            return
        if found is None or header.last or not self._has_room(found[0], delivery):
            return
        view = self._views[found[0]] = HostView(found[0], header.incarnation, header.seq + 1)
        view.facts = header.facts or view.facts
        view.hear(header, delivery.stored, delivery.sent, now)
        view.state = HostState.SILENT
        self._next_look = now + _LOOK_SECONDS

    def begin(self, time: float, now: float | None = None) -> None:
        """Report from now on: first the known machines and flows, then what happens.

        Args:
            time: Wall clock, seconds since the epoch.
            now: Monotonic seconds, if everything was read: a machine may have been silent for long.
        """
        if not self.begun:
            self.begun = True
            self._work.append(self._begin(time, now))

    def _begin(self, time: float, now: float | None) -> Iterator[None]:
        self._report.begun, self._shown = True, 0
        for view in self._views.values():
            if now is not None and view.state is HostState.PRESENT and view.is_silent(now):
                view.state = HostState.SILENT
        for event in sliced(self._known(time)):
            if event is None:
                yield
            else:
                self._report(event)
                self._shown += 1
        self._shown = None
        present = self._present()
        for view in present:
            self._say_what_is_unknown(view, time)
        left_out = self._refused_hosts - self._views.keys()
        if left_out:
            count = len(left_out) if len(self._refused_hosts) < MOST_HOSTS else None
            detail = f"there are {MOST_HOSTS} machines already: others are left out"
            self._report.lost(None, LossCause.LIMIT, time, count, detail)
        known = all(view.exact and view.live and not view.full and view.state is HostState.PRESENT for view in present)
        complete = known and not left_out
        self._report(PollCompleted(time, sum(len(view.flows) for view in present), complete))

    def _say_what_is_unknown(self, view: HostView, time: float) -> None:
        """Report what the first state lacks of a machine: what was lost before it was not reported."""
        view.quarrel = False  # reported when the other publisher sends again
        if not view.live:
            detail = "nothing came from it since a complete state: its flows are unknown"
            self._report.lost(view.host, LossCause.TRANSPORT, time, None, detail)
        elif not view.exact:
            detail = "something of its last messages was lost: some of its flows may be unknown until its next complete state"
            self._report.lost(view.host, LossCause.TRANSPORT, time, None, detail)
        if view.full:
            self._intake.say_full(view, time)

    # --- time ---------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_deadline` is to be called; `None`: not at all."""
        return self._next_look

    def handle_deadline(self, now: float, time: float) -> None:
        """Find the machines that were silent for too long.

        Args:
            now: Monotonic seconds.
            time: Wall clock, seconds since the epoch.
        """
        if self._next_look is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if self.begun and (self.caught_up or self.connection):
            self._work.append(self._look(now, time))

    def _look(self, now: float, time: float) -> Iterator[None]:
        for view in sliced(list(self._views.values())):
            if view is None:
                yield
            elif view.state is HostState.PRESENT and view.is_silent(now):
                view.state = HostState.SILENT
                self._report.host(view, time, self.connection or f"nothing came for {now - view.heard_at:.0f} s")
            elif view.state is HostState.SILENT and now > view.heard_at + self.forget:
                yield from self._intake.leave(view, time, f"nothing came for {self.forget:.0f} s: it is forgotten")
                del self._views[view.host]

    # --- out ----------------------------------------------------------------------------

    def take_events(self) -> Iterator[list[AnyEvent]]:
        """The events, a slice of work at a time: between two slices other tasks may run, or call this, too."""
        while self._work:
            if next(self._work[0], self) is self:
                self._work.popleft()
            yield self._report.take()

    def _present(self) -> list[HostView]:
        return [view for view in self._views.values() if view.state is not HostState.LEFT]

    def _known(self, time: float) -> Iterator[HostUpdated | FlowAdded]:
        """The state that the stream starts with, as events: each machine, and its open flows."""
        for view in self._present():
            yield view.event(time)
            for each in view.flows.values():
                yield FlowAdded(time, each.flow, each.counts, preexisting=True)

    def machines(self, time: float) -> Iterator[HostUpdated]:
        """The machines that were reported.

        Args:
            time: Wall clock, seconds since the epoch.
        """
        if self._shown is None:
            return (view.event(time) for view in self._present())
        return (event for event in islice(self._known(time), self._shown) if isinstance(event, HostUpdated))

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows that were reported, of all machines."""
        if self._shown is None:
            opened = chain.from_iterable(view.flows.values() for view in self._views.values())
            return ((each.flow, each.counts) for each in opened)
        shown = islice(self._known(0.0), self._shown)
        return ((event.flow, event.counts) for event in shown if isinstance(event, FlowAdded))

    @property
    def capabilities(self) -> Capabilities:
        """What the monitors of all machines can tell: a fact holds if it holds for each."""
        known = [view.facts.capabilities for view in self._views.values() if view.facts.capabilities is not None]
        flags = ("tcp_counts", "udp_counts", "per_medium_bytes", "final_counts", "short_lived")
        found: dict[str, Any] = {name: bool(known) and all(getattr(each, name) for each in known) for name in flags}
        providers = frozenset().union(*(each.providers for each in known)) if known else frozenset()
        return Capabilities(backend="fleet", providers=providers, **found)

    def statistics(self) -> dict[str, int]:
        """Counters, by name."""
        return {"hosts": len(self._present()), **{name: self._report.counts[name] for name in _FIGURES}}

    # --- whose message is it ------------------------------------------------------------

    def _receive(self, delivery: Delivery, now: float) -> Iterator[None]:
        self._report.counts["messages"] += 1
        found = parse_subject(self.prefix, delivery.subject)
        if found is None:
            self._refuse(None, delivery, f"subject {delivery.subject!r:.80} is not that of a machine")
            return
        host = found[0]
        if self.hosts is not None and host not in self.hosts:
            return
        try:
            header, lines = decode(delivery.data)
        except ProtocolError as error:
            self._refuse(host, delivery, error.reason)
            return
        view = yield from self._view(host, header, delivery, now)
        if view is not None:
            yield from self._take_in(view, header, lines, delivery, now)

    def _refuse(self, host: str | None, delivery: Delivery, reason: str) -> None:
        self._report.counts["malformed_messages"] += 1
        self._report.lost(host, LossCause.PROTOCOL, delivery.stored, 1, f"a message cannot be read: {reason}")

    def _view(
        self, host: str, header: Header, delivery: Delivery, now: float
    ) -> Generator[None, None, HostView | None]:
        """The machine's view for this run of its publisher; `None` for a message that is not taken in."""
        view = self._views.get(host)
        if view is None:
            return self._meet(host, header, delivery, now) if self._has_room(host, delivery) else None
        due = view.retired.get(header.incarnation)
        if due is not None and (view.state is HostState.PRESENT or header.last or header.seq < due):
            self._late_run(view, delivery)
            return None
        if header.incarnation != view.incarnation:
            yield from self._next_run(view, header, delivery, now)
        return view

    def _meet(self, host: str, header: Header, delivery: Delivery, now: float) -> HostView:
        """Make the view of a machine that was not known."""
        view = self._views[host] = HostView(host, header.incarnation)
        if header.seq:
            view.seq = header.seq
            detail = "it is met in the middle of its run"
            self._report.lost(host, LossCause.TRANSPORT, delivery.stored, None, detail)
        self._introduce(view, header, delivery, now)
        return view

    def _has_room(self, host: str, delivery: Delivery) -> bool:
        if len(self._views) >= MOST_HOSTS:
            for name in [name for name, view in self._views.items() if view.state is HostState.LEFT]:
                del self._views[name]
        if len(self._views) < MOST_HOSTS or host in self._views:
            return True
        if host not in self._refused_hosts and len(self._refused_hosts) < MOST_HOSTS:
            self._refused_hosts.add(host)
            detail = f"there are {MOST_HOSTS} machines already: {host} is left out"
            self._report.lost(host, LossCause.LIMIT, delivery.stored, 1, detail)
        return False

    def _introduce(self, view: HostView, header: Header, delivery: Delivery, now: float) -> None:
        view.hear(header, delivery.stored, delivery.sent, now)
        view.facts = header.facts or Facts()
        view.state = HostState.PRESENT
        self._next_look = self._next_look if self._next_look is not None else now + _LOOK_SECONDS
        self._report.host(view, delivery.stored, self._namesake(view))

    def _namesake(self, view: HostView) -> str | None:
        """A remark if another machine had the machine id before: it was renamed, or one is a copy of the other."""
        identity = view.facts.machine_id
        if identity is None:
            return None
        if len(self._names) >= MOST_HOSTS:
            self._names.clear()
        before, self._names[identity] = self._names.get(identity, view.host), view.host
        known = before != view.host and before in self._views
        return f"its machine id is also that of {before}" if known else None

    def _late_run(self, view: HostView, delivery: Delivery) -> None:
        self._report.counts["stale_messages"] += 1
        if not view.quarrel:
            view.quarrel = True
            detail = "two publishers claim to be this machine: only the one that started last is believed"
            self._report.lost(view.host, LossCause.TRANSPORT, delivery.stored, 1, detail)

    def _next_run(self, view: HostView, header: Header, delivery: Delivery, now: float) -> Iterator[None]:
        """Start with the publisher's next run, or again with an earlier one: what the machine did in between is unknown."""
        left, again = view.state is HostState.LEFT, header.incarnation in view.retired
        yield from self._intake.drop_flows(view, delivery.stored)
        view.begin(header.incarnation)
        self._introduce(view, header, delivery, now)
        if again:
            detail = "the publisher that started last is gone, and an earlier one still publishes: its flows are unknown until its next complete state"
            self._report.lost(view.host, LossCause.TRANSPORT, delivery.stored, None, detail)
            return
        if not left:
            detail = "its publisher started again without having stopped in order: what happened in between is unknown"
            self._report.lost(view.host, LossCause.RESYNC, delivery.stored, None, detail)
        if header.seq:
            detail = "its first messages did not arrive"
            self._report.lost(view.host, LossCause.TRANSPORT, delivery.stored, header.seq, detail)

    # --- one message --------------------------------------------------------------------

    def _take_in(
        self, view: HostView, header: Header, lines: list[bytes], delivery: Delivery, now: float
    ) -> Iterator[None]:
        if header.seq < view.seq:
            self._report.counts["duplicate_messages"] += 1
            return
        if header.seq > view.seq:
            self._gap(view, header.seq - view.seq, delivery.stored)
        view.seq = header.seq + 1
        view.hear(header, delivery.stored, delivery.sent, now)
        self._heard(view, header, delivery.stored)
        if header.last:
            yield from self._intake.leave(view, delivery.stored, "it said that it stops")
        elif header.part is None:
            yield from self._intake.events(view, lines, delivery.stored)
        else:
            yield from self._intake.state(view, header, lines, delivery.stored)

    def _heard(self, view: HostView, header: Header, time: float) -> None:
        """Report the machine if it was silent or had left before this message, or if its clock changed."""
        if view.state is not HostState.PRESENT and not header.last:
            if view.state is HostState.LEFT:
                detail = "it continues after it said that it had stopped: its flows are unknown until its next complete state"
                self._report.lost(view.host, LossCause.TRANSPORT, time, None, detail)
            view.state = HostState.PRESENT
            self._report.host(view, time, "it was heard of again")
        elif view.clock_has_news and view.live:
            self._report.host(view, time, "its clock's difference from the server's has changed")

    def _gap(self, view: HostView, count: int, time: float) -> None:
        self._report.counts["lost_messages"] += count
        view.gathered, view.exact = None, False
        if view.live:
            self._report.lost(view.host, LossCause.TRANSPORT, time, count, f"{count} messages did not arrive")
