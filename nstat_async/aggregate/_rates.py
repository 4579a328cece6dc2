"""The sliding window behind rates, on the events' own clock.

Operations wanted: one comparison per event while time passes inside a step;
totals of any row at the window's start, when somebody asks for a rate; memory
bounded by a constant per row, whatever the number of events.

A table *marks* its clock each time an eighth of the window has passed. A mark
stands at the time of the last event *before* it, because polls bring their
reports in bursts: both ends of the window then lie at the end of a burst, and a
steady flow gives its exact rate for any polling interval. A row that grows for
the first time after a mark saves the totals it had at that mark; rows that rest
save nothing.
"""

from __future__ import annotations

import math
from collections import deque

import attrs

_STEPS = 8
_CLOCK_SLACK = 60.0
"""Seconds that an event may be older than its predecessors: a coalescing buffer
delivers the newest report of a flow in the place of its oldest one. Anything
older means that the clock was set back."""


@attrs.define(eq=False)
class RateWindow:
    """The marks of one table's clock."""

    width: float
    """Seconds over which rates are taken; at least one polling interval is used."""
    now: float = -math.inf
    """Time of the latest event."""
    low: float = math.inf
    """Below this time the clock was set back."""
    high: float = -math.inf
    """From this time on a new mark is due."""
    mark: int = 0
    """Number of the latest mark; a row compares it with its own."""
    _marks: deque[tuple[int, float]] = attrs.field(factory=deque)

    def advance(self, time: float) -> None:
        """Set a mark: `time` is outside of ``low <= time < high``."""
        if time < self.low:
            # The first event, or a clock that was set back: rates begin anew.
            self._marks.clear()
            self.now = time
        self.mark += 1
        self._marks.append((self.mark, self.now))
        while len(self._marks) > 1 and self._marks[1][1] <= time - self.width:
            self._marks.popleft()
        self.high = time + self.width / _STEPS
        self.low = time - max(_CLOCK_SLACK, self.width)

    def shift(self, seconds: float) -> None:
        """The clock was set by so many seconds: what was before moves along, so that spans stay what they were."""
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

        The age is 0 before two moments were seen.
        """
        start, since = 0, self.now
        for number, time in self._marks:
            if start and time > self.now - self.width:
                break
            start, since = number, time
        return start, max(0.0, self.now - since) if start else 0.0
