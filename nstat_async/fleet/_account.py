"""What one message of a machine makes of what is known of it: its number, its events, its complete states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    RemovalReason,
    RouteUpdated,
)
from .._rows import Row
from ._flows import MOST_FLOWS, FleetFlows
from ._host import HostView
from ._messages import LONGEST_LINE, Delivery, Header

__all__ = ["SLICE", "Account"]

SLICE = 100
"""Lines that are read without a pause."""
_LARGEST = 1 << 64


@attrs.define(eq=False)
class Account:
    """Takes messages into the views of their machines.

    Args:
        flows: The open flows of all machines.
        report: Gets the events.
    """

    flows: FleetFlows
    report: Callable[[AnyEvent], None]
    duplicates: int = attrs.field(default=0, init=False)
    """Messages that came before."""
    lost: int = attrs.field(default=0, init=False)
    """Messages that did not come."""
    malformed: int = attrs.field(default=0, init=False)
    """Messages and lines that are none."""

    def take_in(
        self, view: HostView, header: Header, lines: list[bytes], delivery: Delivery, now: float
    ) -> Iterator[None]:
        """Take in a message of the view's run, with a pause after each `SLICE` lines."""
        time = delivery.stored
        if header.seq < view.seq:
            self.duplicates += 1
            return
        if header.seq > view.seq:
            self._gap(view, header.seq - view.seq, time)
        view.seq = header.seq + 1
        view.hear(header, time, delivery.sent, now)
        if view.state is not HostState.PRESENT and not header.last:
            if view.state is HostState.LEFT:
                detail = "it goes on after it said that it stops: its flows are unknown until its next complete state"
                self.lose(view, LossCause.TRANSPORT, time, None, detail)
            view.state = HostState.PRESENT
            self.report(view.event(time, "it was heard of again"))
        elif view.clock_has_news and view.live:
            self.report(view.event(time, "its clock differs from the server's by another time than before"))
        if header.last:
            self.leave(view, time, "it said that it stops")
        elif header.part is None:
            yield from self._take_events(view, lines, time)
        else:
            yield from self._take_state(view, header, lines, time)

    def _gap(self, view: HostView, count: int, time: float) -> None:
        self.lost += count
        view.gathered, view.exact = None, False
        if view.live:
            self.lose(view, LossCause.TRANSPORT, time, count, f"{count} messages did not arrive")

    def _read(self, view: HostView, line: bytes, time: float) -> AnyEvent | None:
        """The event of a line; what is none, or has numbers that cannot be, is reported."""
        try:
            if len(line) > LONGEST_LINE:
                raise ProtocolError(f"it has more than {LONGEST_LINE} bytes")  # noqa: TRY301  # said in one place
            event = view.read(line)
            _check(event)
        except ProtocolError as error:
            self.malformed += 1
            self.lose(view, LossCause.PROTOCOL, time, 1, f"a line is no event: {error.reason:.200}")
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
                    self.report(attrs.evolve(event, time=time, host=view.host, **more))
            if not number % SLICE:
                yield

    def _flow_event(self, view: HostView, event: FlowAdded | FlowUpdated | FlowRemoved, time: float) -> None:
        known = view.flows.get(event.flow.id)
        if known is not None:
            if isinstance(event, FlowRemoved):
                self.flows.remove(view, known, event, time)
            else:
                self.flows.update(known, event, time)
        elif isinstance(event, FlowAdded):
            self._add(view, event, time, preexisting=event.preexisting)
        elif view.exact and not view.full:
            self.lose(view, LossCause.PROTOCOL, time, 1, f"flow {event.flow.id!r:.80} was never announced")

    def _add(self, view: HostView, event: FlowAdded, time: float, *, preexisting: bool) -> None:
        if not self.flows.add(view, event, time, preexisting=preexisting) and not view.full:
            view.full = True
            detail = f"it has more than {MOST_FLOWS} open flows: others are left out"
            self.lose(view, LossCause.LIMIT, time, None, detail)

    # --- a complete state -----------------------------------------------------------------

    def _take_state(self, view: HostView, header: Header, lines: list[bytes], stored: float) -> Iterator[None]:
        """Parts of a state follow each other; one that begins in the middle is no use."""
        if header.part == 0:
            view.gathered = {}
            if header.facts not in {None, view.facts}:
                view.facts = header.facts or view.facts
                self.report(view.event(stored, "it says something new of itself"))
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
            self.flows.give_up(view, view.flows[identity], time, RemovalReason.GONE)
        for number, (identity, event) in enumerate(state.items(), 1):
            known = view.flows.get(identity)
            if known is None:
                # One that began in a hole is new in full; one of before anybody looked is not.
                self._add(view, event, time, preexisting=event.preexisting or not followed)
            elif known.counts != event.counts or known.raw != event.flow:
                self.flows.update(known, event, time)
            if not number % SLICE:
                yield

    def drop_flows(self, view: HostView, time: float) -> None:
        """Nothing is known of its flows any more."""
        for known in list(view.flows.values()):
            self.flows.give_up(view, known, time, RemovalReason.MONITOR)

    def leave(self, view: HostView, time: float, detail: str) -> None:
        """A machine is not there any more."""
        self.drop_flows(view, time)
        view.live, view.state = False, HostState.LEFT
        self.report(view.event(time, detail))

    def lose(self, view: HostView, cause: LossCause, time: float, count: int | None, detail: str) -> None:
        """Something of a machine is missing."""
        self.report(EventsLost(time, cause, count, detail=detail, host=view.host))


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
