"""Reference numbers: which sources must exist though nothing was said about them.

The kernel gives each source of a control socket the next number, and since xnu-3789 never
gives one twice. A number that was skipped is a source that was not reported: its
announcement did not fit, or a poll has yet to report it.
"""

from __future__ import annotations

__all__ = ["MAX_MISSING", "References"]

MAX_MISSING = 65_536
"""Numbers remembered as skipped; more are only counted."""
_CREDIBLE = 1 << 32
"""More numbers than this are not skipped by a kernel: how many there were is then unknown."""


class References:
    """The numbers of one control socket."""

    def __init__(self) -> None:
        self.top = 0
        """Highest number that a source had."""
        self.highest: int | None = None
        """Highest number that was heard of, while numbers are counted."""
        self.missing: set[int] = set()
        """Numbers below `highest` of which nothing was heard."""
        self.forgotten = 0
        """Further ones, skipped when `missing` was full."""

    def note(self, ref: int) -> None:
        """A message is about this number."""
        highest = self.highest
        if highest is not None and ref <= highest:
            self.missing.discard(ref)
            return
        first = 1 if highest is None else highest + 1
        if len(self.missing) + ref - first <= MAX_MISSING:
            self.missing.update(range(first, ref))
        else:
            self.forgotten += ref - first
        self.highest = ref

    def take_lost(self) -> int | None:
        """How many were skipped so far, no longer to be waited for; `None`: nobody can tell."""
        lost = len(self.missing) + self.forgotten
        self.missing.clear()
        self.forgotten = 0
        return lost if lost < _CREDIBLE else None
