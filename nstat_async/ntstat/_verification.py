"""After a poll: what should have come and did not.

Each source that should have been in the poll's answer and was not is asked for by itself.
Data means that a batch was lost (the kernel drops one that does not fit and still says
SUCCESS), ENOENT that the source's removal was.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain, islice

import attrs

from ._requests import Purpose
from ._sources import SourceTable

MAX_WAIT = 64
"""Polls after which a source that cannot be read is asked for again at the latest: its end may have gone unheard."""

MAX_VERIFICATIONS = 65_536
"""Sources asked for by themselves after one poll; the rest waits for the next."""
PROBED_AHEAD = 4
"""References above the highest that the poll reported, asked for by themselves."""

Question = tuple[int, Purpose]
"""(reference, why it is asked for)"""


class Unreadable:
    """Sources that are there and cannot be read (``EIO``): a poll has them as soon as they can, so that they are seldom asked for."""

    def __init__(self) -> None:
        self._waits: dict[int, list[int]] = {}
        """Reference to polls that are let pass between two questions, and those still to pass."""

    def note(self, ref: int) -> None:
        """The kernel answered that it cannot read this source."""
        longest = self._waits.get(ref, [0])[0]
        longest = min(MAX_WAIT, longest * 2 or 1)
        self._waits[ref] = [longest, longest]

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._waits)

    def pass_poll(self, table: SourceTable) -> None:
        """Another poll is over; what it reported, or what is gone, is forgotten."""
        self._waits = {ref: wait for ref, wait in self._waits.items() if table.left_out(ref)}
        for wait in self._waits.values():
            wait[1] -= 1

    @property
    def resting(self) -> int:
        """How many are not to be asked for now."""
        return sum(1 for _, left in self._waits.values() if left >= 0)

    def is_due(self, ref: int) -> bool:
        """False for a source that is not to be asked for now."""
        wait = self._waits.get(ref)
        return wait is None or wait[1] < 0


@attrs.define(eq=False)
class Verification:
    """One poll's: what is to be asked, and what came out of it."""

    recovered: int = 0
    """Sources that were there after all."""
    never_seen: int = 0
    """Sources that came and went between two polls."""
    is_needed: bool = False
    """The poll left out what it should have had."""
    unanswered: int = 0
    """Sources that the kernel could not answer for now, or was not asked about: the poll is incomplete."""
    probed: int = 0
    """Highest reference that was probed."""
    last_reference: int = 0
    """Highest reference that there can be."""

    def questions(self, table: SourceTable, unreadable: Unreadable) -> Iterator[Question]:
        """What to ask for, the most urgent first: what was never seen, then what the poll left out of the known."""
        unreadable.pass_poll(table)
        unseen = table.references.missing if table.terms.suppressed else ()
        absent = table.absent()
        surplus = len(unseen) + len(absent) - MAX_VERIFICATIONS
        if surplus > 0:
            self.unanswered += surplus
            absent.sort(key=operator.attrgetter("seen"))  # what was not heard of for longest
        self.is_needed = len(unseen) + len(absent) > unreadable.resting
        wanted = chain(((ref, Purpose.DISCOVER) for ref in unseen), ((s.ref, Purpose.VERIFY) for s in absent))
        return (each for each in islice(wanted, MAX_VERIFICATIONS) if unreadable.is_due(each[0]))

    def begin_probing(self, table: SourceTable) -> Iterator[Question]:
        """Ask for references above all that was heard of.

        A poll begins with the newest sources. If that batch was lost, no number above the
        others says so: only asking does.
        """
        self.probed = max(table.references.top, table.references.highest or 0)
        self.last_reference = table.kernel.layout.all_sources - 1
        return self.probe_beyond(self.probed)

    def probe_beyond(self, ref: int) -> Iterator[Question]:
        """Ask for the references behind a source that were not asked for yet: goes on as long as sources are found."""
        first, last = self.probed + 1, min(ref + PROBED_AHEAD, self.last_reference)
        self.probed = max(self.probed, last)
        return ((probed, Purpose.PROBE) for probed in range(first, last + 1))
