"""What is made of the messages of a fleet: events of all machines in one stream. No I/O, no clock.

Each machine numbers its messages. What was there before is dropped, a hole is reported and set right by the next
complete state. So a message may come twice, late, or not at all, publisher, server and this side may begin anew: what is
lost is said, and nothing counts twice.

Until `begin` nothing is reported: what came before somebody subscribed makes only the state in which the stream begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from .._model import Capabilities, Counts, Flow, Peer
from .._rows import Row
from ._host import HostView, Open
from ._messages import Facts, Header, decode, parse_subject
from ._peers import Ends

__all__ = ["Delivery", "Incoming"]

MOST_HOSTS = 20_000
MOST_FLOWS = 262_144
"""Open flows of one machine."""
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
    _ends: Ends = attrs.field(factory=Ends, init=False)
    _events: list[AnyEvent] = attrs.field(factory=list, init=False)
    _refused_hosts: set[str] = attrs.field(factory=set, init=False)
    _next_look: float | None = attrs.field(default=None, init=False)
    _messages: int = attrs.field(default=0, init=False)
    _duplicates: int = attrs.field(default=0, init=False)
    _lost: int = attrs.field(default=0, init=False)
    _malformed: int = attrs.field(default=0, init=False)
    _stale: int = attrs.field(default=0, init=False)

    # --- in -----------------------------------------------------------------------------

    def receive(self, delivery: Delivery, now: float) -> None:
        """Take in a message.

        Args:
            delivery: The message.
            now: Monotonic seconds.
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
            self._take_in(view, header, lines, delivery, now)

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

    def _take_in(self, view: HostView, header: Header, lines: list[bytes], delivery: Delivery, now: float) -> None:
        if header.seq < view.seq:
            self._duplicates += 1
            return
        if header.seq > view.seq:
            self._gap(view, header.seq - view.seq, delivery.stored)
        view.seq = header.seq + 1
        view.hear(header, delivery.stored, delivery.sent, now)
        if view.state is not HostState.PRESENT and not header.last:
            view.state = HostState.PRESENT
            self._report(view.event(delivery.stored, "it was heard of again"))
        elif view.clock_has_news and view.live:
            self._report(view.event(delivery.stored, "its clock differs from the server's by another time than before"))
        if header.last:
            self._leave(view, delivery.stored, "it said that it stops")
        elif header.part is None:
            self._take_events(view, lines, delivery.stored)
        else:
            self._take_state(view, header, lines, delivery.stored)

    def _gap(self, view: HostView, count: int, time: float) -> None:
        self._lost += count
        view.gathered, view.exact = None, False
        if view.live:
            self._lose(view, LossCause.TRANSPORT, time, count, f"{count} messages did not arrive")

    def _read(self, view: HostView, lines: Iterable[bytes], time: float) -> Iterator[AnyEvent]:
        """The events of lines; what is none, or has numbers that cannot be, is reported."""
        for line in lines:
            try:
                event = view.read(line)
                _check(event)
            except ProtocolError as error:
                self._malformed += 1
                self._lose(view, LossCause.PROTOCOL, time, 1, f"a line is no event: {error.reason:.200}")
            else:
                yield event  # type: ignore[misc]  # _check refuses rows

    def _take_events(self, view: HostView, lines: list[bytes], stored: float) -> None:
        if not view.live:
            return
        for event in self._read(view, lines, stored):
            time = view.right_time(event.time, stored)
            if isinstance(event, FlowEvent):
                self._flow_event(view, event, time)
            else:
                more: Any = {"id": f"{view.host}/{event.id}"} if isinstance(event, RouteUpdated) else {}
                self._report(attrs.evolve(event, time=time, host=view.host, **more))

    def _flow_event(self, view: HostView, event: FlowAdded | FlowUpdated | FlowRemoved, time: float) -> None:
        known = view.flows.get(event.flow.id)
        if isinstance(event, FlowAdded) and known is None:
            self._add(view, event, time)
        elif known is None:
            if view.exact and not view.full:
                self._lose(view, LossCause.PROTOCOL, time, 1, f"flow {event.flow.id!r:.80} was never announced")
        elif isinstance(event, FlowRemoved):
            self._changed(known, event.flow, time)
            self._close(view, known)
            flow, counts = known.flow, event.counts
            self._report(
                FlowRemoved(
                    time, flow, counts, event.final, event.reason, event.raw_details, uncertainty=event.uncertainty
                )
            )
        else:
            self._update(known, event, time)

    def _update(self, known: Open, event: FlowAdded | FlowUpdated, time: float) -> None:
        previous, counts = known.counts, known.counts if event.counts is None else event.counts
        self._changed(known, event.flow, time)
        known.counts, known.time = counts, time
        if counts is not None:
            self._report(FlowUpdated(time, known.flow, counts, previous, event.raw_details))

    def _add(self, view: HostView, event: FlowAdded, time: float, *, preexisting: bool | None = None) -> None:
        if len(view.flows) >= MOST_FLOWS:
            if not view.full:
                view.full = True
                detail = f"it has more than {MOST_FLOWS} open flows: others are left out"
                self._lose(view, LossCause.LIMIT, time, None, detail)
            return
        known = view.flows[event.flow.id] = Open(event.flow, event.flow, event.counts, time)
        self._join(known, time)
        before = event.preexisting if preexisting is None else preexisting
        self._report(FlowAdded(time, known.flow, event.counts, before, event.raw_details))

    # --- a complete state -----------------------------------------------------------------

    def _take_state(self, view: HostView, header: Header, lines: list[bytes], stored: float) -> None:
        """Parts of a state follow each other; one that begins in the middle is no use."""
        if header.part == 0:
            view.facts = header.facts or view.facts
            view.gathered = {}
        if view.gathered is None or (view.live and view.exact):
            return  # nothing of it would be news
        for event in self._read(view, lines, stored):
            if isinstance(event, FlowAdded) and len(view.gathered) <= MOST_FLOWS:
                view.gathered[event.flow.id] = event
        if not header.more:
            gathered, view.gathered = view.gathered, None
            self._set_right(view, gathered, stored)

    def _set_right(self, view: HostView, state: dict[str, FlowAdded], time: float) -> None:
        """What is open, and how far it is, is what the state says."""
        followed, view.live, view.exact = view.live, True, True
        for identity in [identity for identity in view.flows if identity not in state]:
            known = view.flows[identity]
            self._close(view, known)
            self._report(FlowRemoved(time, known.flow, known.counts, final=False, reason=RemovalReason.GONE))
        for identity, event in state.items():
            known_before = view.flows.get(identity)
            if known_before is None:
                # One that began in a hole is new in full; one of before anybody looked is not.
                self._add(view, event, time, preexisting=event.preexisting or not followed)
            elif known_before.counts != event.counts or known_before.raw != event.flow:
                self._update(known_before, event, time)

    # --- flows --------------------------------------------------------------------------

    def _close(self, view: HostView, known: Open) -> None:
        del view.flows[known.raw.id]
        self._ends.remove(known.raw.id)

    def _drop_flows(self, view: HostView, time: float) -> None:
        for known in list(view.flows.values()):
            self._close(view, known)
            self._report(FlowRemoved(time, known.flow, known.counts, final=False, reason=RemovalReason.MONITOR))

    def _leave(self, view: HostView, time: float, detail: str) -> None:
        self._drop_flows(view, time)
        view.live, view.state = False, HostState.LEFT
        self._report(view.event(time, detail))

    # --- both ends ------------------------------------------------------------------------

    def _changed(self, known: Open, raw: Flow, time: float) -> None:
        """A flow may have new facts."""
        if raw is known.raw:
            return
        before, known.raw = known.raw, raw
        if before.local == raw.local and before.remote == raw.remote and before.process == raw.process:
            known.flow = raw if known.flow.peer is None else attrs.evolve(raw, peer=known.flow.peer)
        else:
            self._join(known, time)

    def _join(self, known: Open, time: float) -> None:
        """Find the other end of a flow that is new or changed, and let both know."""
        raw = known.raw
        self._ends.put(raw)
        other = self._open(self._ends.other(raw.id))
        peer = known.flow.peer if other is None else _peer(other.raw)
        known.flow = raw if peer is None else attrs.evolve(raw, peer=peer)
        if other is None or other.flow.peer == _peer(raw):
            return
        other.flow = attrs.evolve(other.raw, peer=_peer(raw))
        if other.counts is not None:
            self._report(FlowUpdated(time, other.flow, other.counts, other.counts))

    def _open(self, identity: str | None) -> Open | None:
        if identity is None:
            return None
        view = self._views.get(identity.partition("/")[0])
        return None if view is None else view.flows.get(identity)

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


def _peer(flow: Flow) -> Peer:
    return Peer(flow.host, flow.process, flow.id)


def _check(event: AnyEvent | Row) -> None:
    """Refuse what no machine says.

    Raises:
        ProtocolError: It is no event, or has counters that are no numbers of 64 bits.
    """
    if isinstance(event, Row):
        raise ProtocolError("it is a row of a table")
    counts = getattr(event, "counts", None)
    if counts is not None and not all(0 <= value < _LARGEST for _, value in counts.items()):
        raise ProtocolError("a counter is no number of 64 bits")
