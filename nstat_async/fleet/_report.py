"""What is reported of a fleet: the events that wait to be taken, and what was counted."""

from __future__ import annotations

from collections import Counter

import attrs

from .._events import AnyEvent, EventsLost, LossCause
from ._host import HostView


@attrs.define(eq=False)
class Report:
    """Keeps events until they are taken."""

    begun: bool = False
    """False while what comes makes only the state in which the stream of events begins: nothing is reported."""
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
        """Report a loss of a machine."""
        self(EventsLost(time, cause, count, detail=detail, host=host))

    def take(self) -> list[AnyEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events
