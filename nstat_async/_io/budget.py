"""A budget of processor time: what helps beside the main thing may not cost more than it was granted."""

from __future__ import annotations

import attrs

SHARE = 0.014
"""Share of a CPU that a pulse may use at the usual pause, with what the core does with its reports; 2 % with what the loop and the events then cost."""
SAVED = 12.0
"""Seconds for which a share that was not used is kept; a half of that is there at the beginning."""
RESERVED = 0.3
"""The part of what can be saved that is kept."""


@attrs.define(eq=False)
class Budget:
    """CPU time that may be spent: a share of the time that passes, saved for a while."""

    share: float
    """Seconds of CPU a second."""
    at: float
    """The time, seconds, up to which the share is reckoned."""
    left: float = attrs.field(init=False)
    """What may be spent now, seconds; below 0 it was spent in advance."""

    def __attrs_post_init__(self) -> None:
        self.left = self.most / 2

    @property
    def most(self) -> float:
        """What can be saved."""
        return self.share * SAVED

    @property
    def eagerness(self) -> float:
        """From 0 to 1: how much of what can be saved is there."""
        return max(0.0, self.left / self.most)

    @property
    def surplus(self) -> float:
        """From 0 to 1: how much there is beyond what is kept for what matters more."""
        return max(0.0, (self.eagerness - RESERVED) / (1 - RESERVED))

    def spend(self, seconds: float, now: float) -> None:
        """So much was spent until `now`."""
        self.left = min(self.left + (now - self.at) * self.share, self.most) - seconds
        self.at = now

    def rest(self) -> float:
        """Seconds until something is left."""
        return max(0.0, -self.left / self.share)
