"""After a poll: checks the sources that should have been reported and were not.

There is a request for each of them. If it is answered with data, a batch was lost (the kernel drops
a batch that does not fit, and still says SUCCESS); if with ENOENT, the source's removal was lost.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain, islice

import attrs

from ._requests import Purpose
from ._sources import SourceTable

MAX_WAIT = 64
"""Most polls between two requests for a source that cannot be read: its removal may have been lost."""

MAX_VERIFICATIONS = 65_536
"""Most sources that are verified after one poll; the others wait for the next one."""
PROBED_AHEAD = 4
"""Number of references above the highest reported one that are probed."""

Question = tuple[int, Purpose]
"""(reference, purpose of the request)"""


class Unreadable:
    """Sources that exist and cannot be read (``EIO``). They are rarely requested, because polls report them as soon as they can."""

    def __init__(self) -> None:
        self._waits: dict[int, list[int]] = {}
        """By reference, the number of polls between two requests, and how many of these are still to pass."""

    def note(self, ref: int) -> None:
        """Note that the kernel cannot read this source."""
        longest = self._waits.get(ref, [0])[0]
        longest = min(MAX_WAIT, longest * 2 or 1)
        self._waits[ref] = [longest, longest]

    @property
    def number(self) -> int:
        """Number of these sources."""
        return len(self._waits)

    def pass_poll(self, table: SourceTable) -> None:
        """Another poll is over: forget the sources that it reported, and those that are gone."""
        self._waits = {ref: wait for ref, wait in self._waits.items() if table.left_out(ref)}
        for wait in self._waits.values():
            wait[1] -= 1

    @property
    def resting(self) -> int:
        """Number of sources that are not due for a request now."""
        return sum(1 for _, left in self._waits.values() if left >= 0)

    def is_due(self, ref: int) -> bool:
        """False for a source that is not due for a request now."""
        wait = self._waits.get(ref)
        return wait is None or wait[1] < 0


@attrs.define(eq=False)
class Verification:
    """The verification of one poll: its requests and results."""

    recovered: int = 0
    """Number of sources that exist after all."""
    never_seen: int = 0
    """Number of sources that came and went between two polls."""
    is_needed: bool = False
    """The poll omitted sources."""
    unanswered: int = 0
    """Number of sources without an answer, because the kernel had none now, or was not asked: the poll is incomplete."""
    probed: int = 0
    """The highest probed reference."""
    last_reference: int = 0
    """The highest possible reference."""

    def questions(self, table: SourceTable, unreadable: Unreadable) -> Iterator[Question]:
        """The sources to ask about, the most urgent first: those that were never seen, then known ones that the poll omitted."""
        unreadable.pass_poll(table)
        unseen = table.references.missing if table.terms.suppressed else ()
        absent = table.absent()
        surplus = len(unseen) + len(absent) - MAX_VERIFICATIONS
        if surplus > 0:
            self.unanswered += surplus
            absent.sort(key=operator.attrgetter("seen"))  # the longest without a report first
        self.is_needed = len(unseen) + len(absent) > unreadable.resting
        wanted = chain(((ref, Purpose.DISCOVER) for ref in unseen), ((s.ref, Purpose.VERIFY) for s in absent))
        return (each for each in islice(wanted, MAX_VERIFICATIONS) if unreadable.is_due(each[0]))

    def begin_probing(self, table: SourceTable) -> Iterator[Question]:
        """Ask about references above all known ones.

        A poll begins with the newest sources. If that batch is lost, no higher number shows
        the loss: only requests do.
        """
        self.probed = max(table.references.top, table.references.highest or 0)
        self.last_reference = table.kernel.layout.all_sources - 1
        return self.probe_beyond(self.probed)

    def probe_beyond(self, ref: int) -> Iterator[Question]:
        """Ask about the next references after a source that was found, and so on as long as sources are found."""
        first, last = self.probed + 1, min(ref + PROBED_AHEAD, self.last_reference)
        self.probed = max(self.probed, last)
        return ((probed, Purpose.PROBE) for probed in range(first, last + 1))
