"""When polls begin: by the interval, when somebody asks, and when a loss wants to be repaired."""

from __future__ import annotations

REPAIR_PAUSE = 0.2
"""Smallest time in seconds between the begin of two polls that nobody's interval asked for."""


class Schedule:
    """Knows when the next poll is due.

    Args:
        interval: Seconds between the begin of two polls; `None`: only when wanted.
    """

    def __init__(self, interval: float | None) -> None:
        self.due: float | None = None
        """When the next poll begins, unless one is under way then."""
        self._interval = interval
        self._began = 0.0
        self._wanted = False

    def begin(self, now: float) -> None:
        """A poll begins."""
        self._began = now
        self._wanted = False
        self.due = None if self._interval is None else now + self._interval

    def want(self) -> None:
        """Another poll is wanted as soon as the one under way is over."""
        self._wanted = True

    def repair(self, now: float) -> None:
        """A poll is wanted soon."""
        earliest = max(now, self._began + REPAIR_PAUSE)
        self.due = earliest if self.due is None else min(self.due, earliest)

    def end(self, now: float) -> None:
        """The poll is over; begins that were missed meanwhile are skipped."""
        if self._wanted:
            self._wanted = False
            self.due = max(now, self._began + REPAIR_PAUSE)
        elif self.due is not None and self.due <= now and self._interval is not None:
            self.due += ((now - self.due) // self._interval + 1) * self._interval
