"""The kernel's own counts of its failures for a control socket, compared with the losses that were reported.

Since macOS 26 root may read ``net.stats.metrics``: for each control socket, how many sources were not
made for lack of memory or room, and how many goodbyes failed. It does not count batches of polls that did not fit.

Earlier releases, since xnu-3247, have one count for the machine, which anybody may read (``net.stats.stats``): announcements
to any client that found no room. If a younger client starves older ones, each such announcement is at most one flow that
these do not hear of. It does not tell which client is concerned, so it is only a statistic, not a loss.
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
"""Seconds between two readings, which follow a poll."""


class LossLedger:
    """Compares the kernel's counts for one control socket with the losses that were reported.

    Args:
        kernel: The kernel.
        is_readable: The transport can read the counts.
    """

    def __init__(self, kernel: Kernel, *, is_readable: bool) -> None:
        self._counts_of_all = kernel.has_updates and kernel.starves_older_clients
        self._readable = is_readable and (kernel.has_details or self._counts_of_all)
        self._first: int | None = None
        """The machine's refused announcements at the first reading."""
        self._client: int | None = None
        """The kernel's number of this session's control socket."""
        self._due = 0.0
        self._told: Counter[LossCause] = Counter()
        """Losses that were reported because of these counts alone."""
        self.statistics: dict[str, int] = {}
        """The kernel's counts, by name."""

    def begin_again(self) -> None:
        """Another control socket took over."""
        self._client = None

    def is_due(self, now: float) -> bool:
        """True if it is time to read the counts."""
        if not self._readable or now < self._due:
            return False
        self._due = now + READ_EVERY
        return True

    def unreported(self, found: Ledger | None, current: Subscription) -> Iterator[tuple[LossCause, int]]:
        """Causes and numbers of losses that the kernel counted and no event reported."""
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
        """The row of the session's control socket, which is the newest one at the first reading."""
        rows = {row.client: row for row in clients}
        if self._client not in rows:
            self._client = max(rows)
            self._told.clear()
        return rows[self._client]
