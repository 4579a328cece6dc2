"""A budget of CPU time: it limits what a helper may cost."""

from __future__ import annotations

import attrs

SHARE = 0.014
"""Share of a CPU for a pulse at the usual pause, and for the core's work on its reports; 2 % with the loop and the events."""
SAVED = 12.0
"""Seconds for which an unused share is saved; half of that is there at the start."""
RESERVED = 0.2
"""The part of the greatest savings that is kept in reserve."""

INSTALMENT = 0.3
"""The part of what is earned that pays back what is owed."""
MOST_OWED = 10.0
"""Most seconds of a budget that may be owed."""


@attrs.define(eq=False)
class Budget:
    """CPU time that may be spent: a share of the time that passes, saved for a while."""

    share: float
    """Seconds of CPU per second."""
    at: float
    """The time, seconds, up to which the share was added."""
    left: float = attrs.field(init=False)
    """Seconds of CPU that may be spent now; below 0: they were spent in advance."""
    owed: float = 0.0
    """Seconds of CPU that were spent and are paid by instalments."""

    def __attrs_post_init__(self) -> None:
        self.left = self.most / 2

    @property
    def most(self) -> float:
        """The most that can be saved, seconds of CPU."""
        return self.share * SAVED

    @property
    def fullness(self) -> float:
        """How full the budget is, from 0 to 1."""
        return max(0.0, self.left / self.most)

    @property
    def surplus(self) -> float:
        """How much there is beyond the reserve, from 0 to 1."""
        return max(0.0, (self.fullness - RESERVED) / (1 - RESERVED))

    def spend(self, seconds: float, now: float) -> None:
        """Take these seconds of CPU from the budget, and add the share of the time until `now`."""
        earned = (now - self.at) * self.share
        back = min(self.owed, earned * INSTALMENT)
        self.owed -= back
        self.left = min(self.left + earned - back, self.most) - seconds
        self.at = now

    def defer(self, seconds: float) -> None:
        """Let what was spent in advance be paid by instalments, so that something may be spent again after these seconds."""
        later = min(-self.left - seconds * self.share, MOST_OWED * self.share - self.owed)
        if later > 0:
            self.left += later
            self.owed += later

    def rest(self) -> float:
        """Seconds until something may be spent."""
        return max(0.0, -self.left / self.share)
