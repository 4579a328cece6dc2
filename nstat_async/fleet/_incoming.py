"""What is made of the messages of a fleet: events of all machines in one stream. No I/O, no clock.

Each machine numbers its messages. What was there before is dropped, a hole is reported and set right by the next
complete state. So a message may come twice, late, or not at all, publisher, server and this side may begin anew: what is
lost is said, and nothing counts twice.

Until `begin` nothing is reported: what came before somebody subscribed makes only the state in which the stream begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from .._errors import ProtocolError
from .._events import (
    AnyEvent,
    EventsLost,
    FlowAdded,
    FlowEvent,
    FlowRemoved,
    FlowUpdated,
    HostState,
    LossCause,
    PollCompleted,
    RemovalReason,
    RouteUpdated,
)
from .._model import Capabilities, Counts, Flow
from .._rows import Row
from ._flows import MOST_FLOWS, FleetFlows
from ._host import HostView
from ._messages import LONGEST_LINE, Facts, Header, decode, parse_subject

__all__ = ["Delivery", "Incoming"]

MOST_HOSTS = 20_000
SLICE = 100
"""Lines that are read without a pause."""
_LOOK_SECONDS = 1.0
_LARGEST = 1 << 64


@attrs.frozen
class Delivery:
    """A message as the stream has it."""

    subject: str
    data: bytes
    position: int
    """Its number in the stream."""
    stored: float
    """When the server got it, on its clock, seconds since the epoch."""
    sent: float | None = None
    """When it was sent, on the clock of who sent it."""


@attrs.define(eq=False)
class Incoming:
    """Makes events of messages.

    Args:
        prefix: First word of the subjects.
        hosts: The machines to look at; `None`: all.
        forget: Seconds of silence after which a machine is forgotten.
    """

    prefix: str = "nstat"
    hosts: frozenset[str] | None = None
    forget: float = 3600.0
    begun: bool = attrs.field(default=False, init=False)
    """True once events are reported."""
    connection: str | None = attrs.field(default=None, init=False)
    """Why nothing can come; `None` while the server is there."""
    caught_up: bool = attrs.field(default=False, init=False)
    """True while everything that the stream has was taken in: only then silence means something."""
    _views: dict[str, HostView] = attrs.field(factory=dict, init=False)
    _flows: FleetFlows = attrs.field(init=False)
    _events: list[AnyEvent] = attrs.field(factory=list, init=False)
    _refused_hosts: set[str] = attrs.field(factory=set, init=False)
    _next_look: float | None = attrs.field(default=None, init=False)
    _messages: int = attrs.field(default=0, init=False)
    _duplicates: int = attrs.field(default=0, init=False)
    _lost: int = attrs.field(default=0, init=False)
    _malformed: int = attrs.field(default=0, init=False)
    _stale: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._flows = FleetFlows(self._views, self._report)

    # --- in -----------------------------------------------------------------------------

    def receive(self, delivery: Delivery, now: float) -> None:
        """Take in a message.

        Args:
            delivery: The message.
            now: Monotonic seconds.
        """
        for _ in self.slices(delivery, now):
            pass

    def slices(self, delivery: Delivery, now: float) -> Iterator[None]:
        """The same, with a pause after each `SLICE` lines. It has to be finished before the next message.

        Args:
            delivery: See `receive`.
            now: See `receive`.
        """
        self._messages += 1
        found = parse_subject(self.prefix, delivery.subject)
        if found is None:
            self._refuse(None, delivery, f"subject {delivery.subject!r:.80} is none of a machine")
            return
        host = found[0]
        if self.hosts is not None and host not in self.hosts:
            return
        try:
            header, lines = decode(delivery.data)
        except ProtocolError as error:
            self._refuse(host, delivery, error.reason)
            return
        view = self._view(host, header, delivery, now)
        if view is not None:
            yield from self._take_in(view, header, lines, delivery, now)

    def remember(self, delivery: Delivery, now: float) -> None:
        """The last state of a machine that was not heard of for long: it is known, its flows are not."""
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

    def begin(self, time: float) -> None:
        """From now on report: first what is known of each machine, then what happens.

        Args:
            time: Wall clock, seconds since the epoch.
        """
        if self.begun:
            return
        self.begun = True
        known = [view for view in self._views.values() if view.state is not HostState.LEFT]
        for view in known:
            self._events.append(view.event(time))
            for each in view.flows.values():
                self._events.append(FlowAdded(time, each.flow, each.counts, preexisting=True))
            if not view.live:
                detail = "it was not heard of since a complete state: its flows are unknown"
                self._lose(view, LossCause.TRANSPORT, time, None, detail)
        complete = all(view.live and view.state is HostState.PRESENT for view in known)
        self._events.append(PollCompleted(time, sum(len(view.flows) for view in known), complete))

    # --- time ---------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called; `None`: not at all."""
        return self._next_look

    def handle_deadline(self, now: float, time: float) -> None:
        """See which machines were not heard of for too long.

        Args:
            now: Monotonic seconds.
            time: Wall clock, seconds since the epoch.
        """
        if self._next_look is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if not self.begun or not (self.caught_up or self.connection):
            return
        for view in list(self._views.values()):
            if view.state is HostState.PRESENT and view.is_silent(now):
                view.state = HostState.SILENT
                detail = f"nothing came for {now - view.heard_at:.0f} s"
                self._events.append(view.event(time, self.connection or detail))
            elif view.state is HostState.SILENT and now > view.heard_at + self.forget:
                self._leave(view, time, f"nothing came for {self.forget:.0f} s: it is forgotten")
                del self._views[view.host]

    # --- out ----------------------------------------------------------------------------

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows of all machines."""
        return ((each.flow, each.counts) for view in self._views.values() for each in view.flows.values())

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
        return {
            "hosts": sum(view.state is not HostState.LEFT for view in self._views.values()),
            "messages": self._messages,
            "duplicate_messages": self._duplicates,
            "lost_messages": self._lost,
            "malformed_messages": self._malformed,
            "stale_messages": self._stale,
        }

    # --- whose message is it ------------------------------------------------------------

    def _view(self, host: str, header: Header, delivery: Delivery, now: float) -> HostView | None:
        """The machine's view, of this run of its publisher; `None` for a message that is not to be taken in."""
        view = self._views.get(host)
        if view is None:
            if not self._has_room(host, delivery):
                return None
            view = self._views[host] = HostView(host, header.incarnation)
            if header.seq:
                view.seq, view.exact = header.seq, False
                if self.begun:
                    self._lose(view, LossCause.TRANSPORT, delivery.stored, None, "it is met in the middle of its run")
            self._introduce(view, header, delivery, now)
        elif header.incarnation in view.retired:
            self._late_run(view, delivery)
            return None
        elif header.incarnation != view.incarnation:
            self._next_run(view, header, delivery, now)
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
            self._report(EventsLost(delivery.stored, LossCause.LIMIT, 1, detail=detail, host=host))
        return False

    def _introduce(self, view: HostView, header: Header, delivery: Delivery, now: float) -> None:
        view.hear(header, delivery.stored, delivery.sent, now)
        view.facts = header.facts or Facts()
        view.state = HostState.PRESENT
        self._next_look = self._next_look if self._next_look is not None else now + _LOOK_SECONDS
        self._report(view.event(delivery.stored))

    def _late_run(self, view: HostView, delivery: Delivery) -> None:
        self._stale += 1
        if not view.quarrel:
            view.quarrel = True
            detail = "two publishers say that they are this machine: only the one that began last is believed"
            self._lose(view, LossCause.TRANSPORT, delivery.stored, 1, detail)

    def _next_run(self, view: HostView, header: Header, delivery: Delivery, now: float) -> None:
        """The publisher began anew: what the machine did in between is unknown."""
        left = view.state is HostState.LEFT
        self._drop_flows(view, delivery.stored)
        view.begin(header.incarnation)
        self._introduce(view, header, delivery, now)
        if not left:
            detail = "its publisher began anew without having stopped: what happened in between is unknown"
            self._lose(view, LossCause.RESYNC, delivery.stored, None, detail)
        if header.seq:
            view.seq, view.exact = header.seq, False
            self._lose(view, LossCause.TRANSPORT, delivery.stored, header.seq, "its first messages did not arrive")

    # --- one message --------------------------------------------------------------------

    def _take_in(
        self, view: HostView, header: Header, lines: list[bytes], delivery: Delivery, now: float
    ) -> Iterator[None]:
        time = delivery.stored
        if header.seq < view.seq:
            self._duplicates += 1
            return
        if header.seq > view.seq:
            self._gap(view, header.seq - view.seq, time)
        view.seq = header.seq + 1
        view.hear(header, time, delivery.sent, now)
        if view.state is not HostState.PRESENT and not header.last:
            if view.state is HostState.LEFT:
                detail = "it goes on after it said that it stops: its flows are unknown until its next complete state"
                self._lose(view, LossCause.TRANSPORT, time, None, detail)
            view.state = HostState.PRESENT
            self._report(view.event(time, "it was heard of again"))
        elif view.clock_has_news and view.live:
            self._report(view.event(time, "its clock differs from the server's by another time than before"))
        if header.last:
            self._leave(view, time, "it said that it stops")
        elif header.part is None:
            yield from self._take_events(view, lines, time)
        else:
            yield from self._take_state(view, header, lines, time)

    def _gap(self, view: HostView, count: int, time: float) -> None:
        self._lost += count
        view.gathered, view.exact = None, False
        if view.live:
            self._lose(view, LossCause.TRANSPORT, time, count, f"{count} messages did not arrive")

    def _read(self, view: HostView, line: bytes, time: float) -> AnyEvent | None:
        """The event of a line; what is none, or has numbers that cannot be, is reported."""
        try:
            if len(line) > LONGEST_LINE:
                raise ProtocolError(f"it has more than {LONGEST_LINE} bytes")  # noqa: TRY301  # said in one place
            event = view.read(line)
            _check(event)
        except ProtocolError as error:
            self._malformed += 1
            self._lose(view, LossCause.PROTOCOL, time, 1, f"a line is no event: {error.reason:.200}")
            return None
        return event  # type: ignore[return-value]  # _check refuses rows

    def _take_events(self, view: HostView, lines: list[bytes], stored: float) -> Iterator[None]:
        if not view.live:
            return
        for number, line in enumerate(lines, 1):
            event = self._read(view, line, stored)
            if event is not None:
                time = view.right_time(event.time, stored)
                if isinstance(event, FlowEvent):
                    self._flow_event(view, event, time)
                else:
                    more: Any = {"id": f"{view.host}/{event.id}"} if isinstance(event, RouteUpdated) else {}
                    self._report(attrs.evolve(event, time=time, host=view.host, **more))
            if not number % SLICE:
                yield

    def _flow_event(self, view: HostView, event: FlowAdded | FlowUpdated | FlowRemoved, time: float) -> None:
        known = view.flows.get(event.flow.id)
        if known is not None:
            if isinstance(event, FlowRemoved):
                self._flows.remove(view, known, event, time)
            else:
                self._flows.update(known, event, time)
        elif isinstance(event, FlowAdded):
            self._add(view, event, time, preexisting=event.preexisting)
        elif view.exact and not view.full:
            self._lose(view, LossCause.PROTOCOL, time, 1, f"flow {event.flow.id!r:.80} was never announced")

    def _add(self, view: HostView, event: FlowAdded, time: float, *, preexisting: bool) -> None:
        if not self._flows.add(view, event, time, preexisting=preexisting) and not view.full:
            view.full = True
            detail = f"it has more than {MOST_FLOWS} open flows: others are left out"
            self._lose(view, LossCause.LIMIT, time, None, detail)

    # --- a complete state -----------------------------------------------------------------

    def _take_state(self, view: HostView, header: Header, lines: list[bytes], stored: float) -> Iterator[None]:
        """Parts of a state follow each other; one that begins in the middle is no use."""
        if header.part == 0:
            view.gathered = {}
            if header.facts not in {None, view.facts}:
                view.facts = header.facts or view.facts
                self._report(view.event(stored, "it says something new of itself"))
        if view.gathered is None or (view.live and view.exact):
            return  # nothing of it would be news
        for number, line in enumerate(lines, 1):
            event = self._read(view, line, stored)
            if isinstance(event, FlowAdded) and len(view.gathered) <= MOST_FLOWS:
                view.gathered[event.flow.id] = event
            if not number % SLICE:
                yield
        if not header.more:
            gathered, view.gathered = view.gathered, None
            yield from self._set_right(view, gathered, stored)

    def _set_right(self, view: HostView, state: dict[str, FlowAdded], time: float) -> Iterator[None]:
        """What is open, and how far it is, is what the state says."""
        followed, view.live, view.exact = view.live, True, True
        for identity in [identity for identity in view.flows if identity not in state]:
            self._flows.give_up(view, view.flows[identity], time, RemovalReason.GONE)
        for number, (identity, event) in enumerate(state.items(), 1):
            known = view.flows.get(identity)
            if known is None:
                # One that began in a hole is new in full; one of before anybody looked is not.
                self._add(view, event, time, preexisting=event.preexisting or not followed)
            elif known.counts != event.counts or known.raw != event.flow:
                self._flows.update(known, event, time)
            if not number % SLICE:
                yield

    def _drop_flows(self, view: HostView, time: float) -> None:
        for known in list(view.flows.values()):
            self._flows.give_up(view, known, time, RemovalReason.MONITOR)

    def _leave(self, view: HostView, time: float, detail: str) -> None:
        self._drop_flows(view, time)
        view.live, view.state = False, HostState.LEFT
        self._report(view.event(time, detail))

    # --- reporting ------------------------------------------------------------------------

    def _report(self, event: AnyEvent) -> None:
        if self.begun:
            self._events.append(event)

    def _lose(self, view: HostView, cause: LossCause, time: float, count: int | None, detail: str) -> None:
        self._report(EventsLost(time, cause, count, detail=detail, host=view.host))

    def _refuse(self, host: str | None, delivery: Delivery, reason: str) -> None:
        self._malformed += 1
        self._report(
            EventsLost(delivery.stored, LossCause.PROTOCOL, 1, detail=f"a message is none: {reason}", host=host)
        )


def _check(event: AnyEvent | Row) -> None:
    """Refuse what no machine says.

    Raises:
        ProtocolError: It is no event, or has counters that are no numbers of 64 bits.
    """
    if isinstance(event, Row):
        raise ProtocolError("it is a row of a table")
    counts = getattr(event, "counts", None)
    values = () if counts is None else [value for value in counts.as_dict().values() if value is not None]
    if values and not 0 <= min(values) <= max(values) < _LARGEST:
        raise ProtocolError("a counter is no number of 64 bits")
