"""Reference numbers: which sources must exist although nothing was reported about them.

The kernel gives each source of a control socket the next number, and since xnu-3789 never
uses one twice. So a skipped number is a source that was not reported: its announcement
did not fit, or a poll has yet to report it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

MAX_MISSING = 65_536
"""Most skipped numbers that are remembered; further ones are only counted."""
_MAX_GAPS = 4096
"""Most ranges in which they are kept; adding a range and finding a number take few steps."""
_CREDIBLE = 1 << 32
"""A kernel does not skip more numbers than this: the true number is then unknown."""


class Gaps:
    """A set of numbers, kept as ranges; ascending when iterated."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for begin, end in list(zip(self._begins, self._ends, strict=True)):
            yield from range(begin, end)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._find(number) is not None

    def _find(self, number: int) -> int | None:
        place = bisect_right(self._begins, number) - 1
        return place if place >= 0 and number < self._ends[place] else None

    def add_above(self, begin: int, end: int) -> None:
        """Add a range that is above all others."""
        if begin < end:
            self._begins.append(begin)
            self._ends.append(end)
            self._size += end - begin

    def discard(self, number: int) -> None:
        """Take out a number, if it is in the set."""
        place = self._find(number)
        if place is None:
            return
        self._size -= 1
        begin, end = self._begins[place], self._ends[place]
        if number == begin:
            self._begins[place] += 1
        elif number == end - 1:
            self._ends[place] -= 1
        else:
            self._ends[place] = number
            self._begins.insert(place + 1, number + 1)
            self._ends.insert(place + 1, end)
        if self._begins[place] == self._ends[place]:
            del self._begins[place], self._ends[place]

    def shrink(self, most: int) -> int:
        """Forget the lowest ranges, so that `most` are left; returns how many numbers they had."""
        surplus = len(self._begins) - most
        if surplus <= 0:
            return 0
        lost = sum(self._ends[:surplus]) - sum(self._begins[:surplus])
        del self._begins[:surplus], self._ends[:surplus]
        self._size -= lost
        return lost


class References:
    """The numbers of one control socket."""

    def __init__(self) -> None:
        self.top = 0
        """The highest number of a source."""
        self.highest: int | None = None
        """The highest number in any message; `None` while numbers are not counted."""
        self.missing = Gaps()
        """Numbers below `highest` that no message had."""
        self.forgotten = 0
        """How many further ones there are, for which `missing` has no room."""

    def note(self, ref: int) -> None:
        """Note that a message is about this number."""
        highest = self.highest
        if highest is not None and ref <= highest:
            self.missing.discard(ref)
        else:
            first = 1 if highest is None else highest + 1
            if len(self.missing) + ref - first <= MAX_MISSING:
                self.missing.add_above(first, ref)
            else:
                self.forgotten += ref - first
            self.highest = ref
        self.forgotten += self.missing.shrink(_MAX_GAPS)

    def take_lost(self) -> int | None:
        """How many numbers were skipped so far, which are then forgotten; `None` if the number is unknown."""
        lost = len(self.missing) + self.forgotten
        self.missing = Gaps()
        self.forgotten = 0
        return lost if lost < _CREDIBLE else None
