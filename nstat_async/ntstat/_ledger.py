"""The kernel's own count of what it did not do for a control socket, and what of it was reported.

Since macOS 26 root may read ``net.stats.metrics``: for each control socket how many sources were not
made for want of memory or room, and how many goodbyes failed. What is not in it are batches of polls that did not fit.

Before, there is one count of the machine (``net.stats.stats``, since xnu-3247, for everybody): announcements that found no
room, of whatever client. Where a younger client starves the older ones, each of them is at most one flow that these
never hear of. It says nothing of whom it concerns, so it is a statistic and no loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .._events import LossCause
from ._evidence import Ledger, LedgerRow

if TYPE_CHECKING:
    from ._kernels import Kernel
    from ._subscription import Subscription

METRICS = "net.stats.metrics"
READ_EVERY = 10.0
"""Seconds between two readings, at the end of a poll."""


class LossLedger:
    """Compares the count of one control socket at a time.

    Args:
        kernel: The kernel.
        is_readable: The transport can read it.
    """

    def __init__(self, kernel: Kernel, *, is_readable: bool) -> None:
        self._counts_of_all = kernel.has_updates and kernel.starves_older_clients
        self._readable = is_readable and (kernel.has_details or self._counts_of_all)
        self._first: int | None = None
        """Refused announcements of the machine when they were first looked at."""
        self._client: int | None = None
        """The kernel's number of this session's control socket."""
        self._due = 0.0
        self._told: Counter[LossCause] = Counter()
        """What was reported for this count alone."""
        self.statistics: dict[str, int] = {}
        """What the kernel says, by name."""

    def begin_again(self) -> None:
        """Another control socket speaks for the session."""
        self._client = None

    def is_due(self, now: float) -> bool:
        """True if it is to be read now."""
        if not self._readable or now < self._due:
            return False
        self._due = now + READ_EVERY
        return True

    def unreported(self, found: Ledger | None, current: Subscription) -> Iterator[tuple[LossCause, int]]:
        """What the kernel counts as lost and no event reported: causes and numbers."""
        self._readable = found is not None and bool(found.clients or self._counts_of_all)
        if found is None:
            return
        if self._counts_of_all and found.announcements is not None:
            self._first = found.announcements if self._first is None else self._first
            self.statistics["kernel_refused_announcements"] = found.announcements - self._first
        if not found.clients:
            return
        row = self._own_row(found.clients)
        self.statistics |= {"kernel_refused_sources": row.refused, "kernel_failed_goodbyes": row.failed_goodbyes}
        for cause, counted, reported in (
            (LossCause.ANNOUNCEMENT, row.refused, current.announcements_lost),
            (LossCause.GOODBYE, row.failed_goodbyes, current.table.lost_ends),
        ):
            more = counted - reported - self._told[cause]
            if more > 0:
                self._told[cause] += int(more)
                yield cause, int(more)

    def _own_row(self, clients: Iterable[LedgerRow]) -> LedgerRow:
        """The row of the control socket that speaks: the newest, when first looked at."""
        rows = {row.client: row for row in clients}
        if self._client not in rows:
            self._client = max(rows)
            self._told.clear()
        return rows[self._client]
