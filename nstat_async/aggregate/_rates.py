"""The sliding window behind rates, on the events' own clock.

Operations wanted: one comparison per event within a step; the totals of a row at the
window's start, when a rate is read; memory bounded by a constant per row, whatever
the number of events.

A table *marks* its clock each time an eighth of the window has passed. The time of a
mark is that of the last event *before* it, because polls bring their reports in bursts:
both ends of the window are then at the end of a burst, and a steady flow has its exact
rate for any polling interval. A row that grows for the first time after a mark saves
the totals that it had at the mark; idle rows save nothing.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

_STEPS = 8
CLOCK_SLACK = 60.0
"""Seconds by which an event may be older than those before it, because a coalescing buffer
delivers the newest report of a flow in the place of its oldest one. An older event
means that the clock was set back."""


@attrs.define(eq=False)
class RateWindow:
    """The marks of one table's clock."""

    width: float
    """Seconds over which rates are taken; a rate spans at least one polling interval."""
    now: float = -math.inf
    """Time of the latest event."""
    low: float = math.inf
    """An event before this time means that the clock was set back."""
    high: float = -math.inf
    """An event from this time on makes a new mark."""
    mark: int = 0
    """Number of the latest mark; a row compares it with its own."""
    _marks: deque[tuple[int, float]] = attrs.field(factory=deque)

    def advance(self, time: float) -> None:
        """Set a mark: `time` is outside of ``low <= time < high``."""
        if time < self.low:
            # The first event, or a clock that was set back: rates begin again.
            self._marks.clear()
            self.now = time
        self.mark += 1
        self._marks.append((self.mark, self.now))
        while len(self._marks) > 1 and self._marks[1][1] <= time - self.width:
            self._marks.popleft()
        self.high = time + self.width / _STEPS
        self.low = time - max(CLOCK_SLACK, self.width)

    def shift(self, seconds: float) -> None:
        """The clock was set by this many seconds: move the marks along, so that spans stay the same."""
        self._marks = deque((number, time + seconds) for number, time in self._marks)
        self.now += seconds
        self.low += seconds
        self.high += seconds

    @property
    def oldest(self) -> int:
        """Number of the oldest mark that a rate can need."""
        return self._marks[0][0] if self._marks else 0

    def span(self) -> tuple[int, float]:
        """Number of the mark where the window begins now, and its age in seconds.

        The age is 0 until there are two moments.
        """
        start, since = 0, self.now
        for number, time in self._marks:
            if start and time > self.now - self.width:
                break
            start, since = number, time
        return start, max(0.0, self.now - since) if start else 0.0
