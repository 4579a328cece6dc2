"""The events of a fleet that wait to be taken, and the counters of `Incoming.statistics`."""

from __future__ import annotations

from collections import Counter

import attrs

from .._events import AnyEvent, EventsLost, LossCause
from ._host import HostView


@attrs.define(eq=False)
class Report:
    """Keeps events until they are taken."""

    begun: bool = False
    """False while messages only make the state that the stream of events starts with: nothing is reported."""
    counts: Counter[str] = attrs.field(factory=Counter)
    """Figures of `Incoming.statistics`."""
    _events: list[AnyEvent] = attrs.field(factory=list)

    def __call__(self, event: AnyEvent) -> None:
        """Report an event."""
        if self.begun:
            self._events.append(event)

    def host(self, view: HostView, time: float, detail: str | None = None) -> None:
        """Report what is known of a machine."""
        view.reported_offset = view.clock_offset
        self(view.event(time, detail))

    def lost(self, host: str | None, cause: LossCause, time: float, count: int | None, detail: str) -> None:
        """Report a loss of a machine's events."""
        self(EventsLost(time, cause, count, detail=detail, host=host))

    def take(self) -> list[AnyEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events
