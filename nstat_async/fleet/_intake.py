"""Takes in the messages of a machine: its events, its complete states, its end.

Work that may take long is done in slices: a generator pauses after each `SLICE` lines or flows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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
    HostUpdated,
    LossCause,
    RemovalReason,
    RouteUpdated,
)
from .._rows import Row
from ._flows import MOST_FLOWS, FleetFlows
from ._host import HostView
from ._messages import LONGEST_LINE, Header
from ._report import Report

SLICE = 32
"""How many lines or flows are worked on without a pause."""
_LARGEST = 1 << 64
_LONG = re.compile(rb"[0-9]{20}")
"""A number that may have more than 64 bits."""
_T = TypeVar("_T")


def sliced(items: Iterable[_T]) -> Iterator[_T | None]:
    """The items, and a `None` after each `SLICE` of them, which means that a pause is due."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % SLICE:
            yield None


@attrs.frozen(eq=False)
class Intake:
    """Takes in the messages of machines, one at a time.

    Args:
        flows: The open flows of all machines.
        report: Gets the events.
    """

    flows: FleetFlows
    report: Report

    def events(self, view: HostView, lines: list[bytes], stored: float) -> Iterator[None]:
        """Take in a message whose lines are events; they mean something once the machine's flows are known."""
        for line in sliced(lines if view.live else ()):
            event = None if line is None else self._read(view, line, stored)
            if line is None:
                yield
            elif event is None:
                view.exact = False
            elif isinstance(event, FlowEvent):
                self._flow_event(view, event, view.right_time(event.time, stored))
            else:
                more: Any = {"id": f"{view.host}/{event.id}"} if isinstance(event, RouteUpdated) else {}
                self.report(attrs.evolve(event, time=view.right_time(event.time, stored), host=view.host, **more))

    def state(self, view: HostView, header: Header, lines: list[bytes], stored: float) -> Iterator[None]:
        """Take in a part of a complete state. Parts follow each other; a state without its first part is useless."""
        if header.part == 0:
            view.gathered, view.whole = {}, True
            self._facts(view, header, stored)
        if view.gathered is None or (view.live and view.exact):
            return  # nothing in it would be new
        for line in sliced(lines):
            event = None if line is None else self._read(view, line, stored)
            if line is None:
                yield
            elif isinstance(event, FlowAdded):
                if len(view.gathered) <= MOST_FLOWS:
                    view.gathered[event.flow.id] = event
            elif event is None or isinstance(event, EventsLost):
                view.whole = False
                if event is not None:
                    self.report(attrs.evolve(event, time=stored, host=view.host))
        if not header.more:
            gathered, view.gathered = view.gathered, None
            yield from self._set_right(view, gathered, stored)

    def leave(self, view: HostView, time: float, detail: str) -> Iterator[None]:
        """The machine has left: drop its flows, and report it."""
        yield from self.drop_flows(view, time)
        view.live, view.state = False, HostState.LEFT
        self.report.host(view, time, detail)

    def drop_flows(self, view: HostView, time: float) -> Iterator[None]:
        """Remove all flows of the machine: nothing is known of them any more."""
        yield from self._give_up(view, list(view.flows), time, RemovalReason.MONITOR)

    def _give_up(self, view: HostView, identities: Iterable[str], time: float, reason: RemovalReason) -> Iterator[None]:
        for identity in sliced(identities):
            if identity is None:
                yield
            else:
                self.flows.give_up(view, view.flows[identity], time, reason)

    # --- lines ------------------------------------------------------------------------------

    def _read(self, view: HostView, line: bytes, time: float) -> AnyEvent | None:
        """The event of a line; a line that is not an event, or has impossible numbers, is reported as lost."""
        try:
            if len(line) > LONGEST_LINE:
                raise ProtocolError(f"it has more than {LONGEST_LINE} bytes")  # noqa: TRY301  # said in one place
            if _LONG.search(line):
                _check_numbers(json.loads(line))
            return _checked(view.read(line))
        except (ProtocolError, ValueError, RecursionError) as error:
            self.report.counts["malformed_messages"] += 1
            reason = error.reason if isinstance(error, ProtocolError) else str(error)
            self.report.lost(view.host, LossCause.PROTOCOL, time, 1, f"a line is not an event: {reason:.200}")
            return None

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
            detail = f"flow {event.flow.id!r:.80} was never announced"
            self.report.lost(view.host, LossCause.PROTOCOL, time, 1, detail)

    def _add(self, view: HostView, event: FlowAdded, time: float, *, preexisting: bool) -> None:
        if not self.flows.add(view, event, time, preexisting=preexisting) and not view.full:
            view.full = True
            self.say_full(view, time)

    def say_full(self, view: HostView, time: float) -> None:
        """Report that the machine has flows that are left out."""
        detail = f"it has more than {MOST_FLOWS} open flows: others are left out"
        self.report.lost(view.host, LossCause.LIMIT, time, None, detail)

    # --- a complete state -------------------------------------------------------------------

    def _facts(self, view: HostView, header: Header, stored: float) -> None:
        if header.facts is not None and header.facts != view.facts:
            view.facts = header.facts
            self.report.host(view, stored, "it says something new of itself")

    def _set_right(self, view: HostView, state: dict[str, FlowAdded], time: float) -> Iterator[None]:
        """Make the open flows and their counts those of a complete state."""
        followed, view.live, view.exact = view.live, True, view.whole
        gone = [identity for identity in view.flows if identity not in state]
        yield from self._give_up(view, gone, time, RemovalReason.GONE)
        for event in sliced(state.values()):
            known = None if event is None else view.flows.get(event.flow.id)
            if event is None:
                yield
            elif known is None:
                # A flow that started while messages were lost is new; one from before the first state is not.
                self._add(view, event, time, preexisting=event.preexisting or not followed)
            elif known.counts != event.counts or known.raw != event.flow:
                self.flows.update(known, event, time)


def _check_numbers(value: Any) -> None:
    """Refuse numbers that no kernel has and no database takes.

    Raises:
        ProtocolError: A number has more than 64 bits.
    """
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        raise ProtocolError("a number has more than 64 bits")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(each)


def _checked(event: AnyEvent | Row) -> AnyEvent:
    """The event of a line that a machine may have sent.

    Raises:
        ProtocolError: It is not an event of a machine, or its counters are not numbers of 64 bits.
    """
    if isinstance(event, Row):
        raise ProtocolError("it is a row of a table, not an event")
    if isinstance(event, HostUpdated):
        raise ProtocolError("host_updated is an event that readers make; no machine sends it")
    counts = getattr(event, "counts", None)
    values = [] if counts is None else [value for _, value in counts.items()]
    values += [] if counts is None else [value for _, split in counts.media for value in attrs.astuple(split)]
    if isinstance(event, EventsLost) and event.count is not None:
        values.append(event.count)
    if values and not 0 <= min(values) <= max(values) < _LARGEST:
        raise ProtocolError("a counter is not a number of at most 64 bits")
    return event
