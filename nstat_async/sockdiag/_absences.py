"""Evidence of absence: sockets that no dump had, and what an exact look-up finds of them.

Absence is proven, not assumed. Closed while its descriptor is open, a socket is in no
dump, and its removal comes later; only when removals were lost, or the absence
lasts, is it worth a question.
"""

from __future__ import annotations

from collections.abc import Container

from .._events import RemovalReason
from ._book import Book
from ._constants import SocketState
from ._entry import Entry
from ._lookups import NO_ANSWER, LookupSource, lookup_request
from ._output import Output
from ._removals import RemovalSource
from ._rows import RowFormats, is_remains

PATIENCE = 3
"""Polls without a socket after which it is taken for gone where removals are lost and nobody answers."""


class Absences:
    """Looks into what the dumps of one namespace did not have."""

    def __init__(
        self, output: Output, book: Book, lookups: LookupSource, removals: RemovalSource, formats: RowFormats
    ) -> None:
        self.asking = 0
        """Questions without an answer."""
        self._output = output
        self._book = book
        self._lookups = lookups
        self._removals = removals
        self._formats = formats

    def judge(self, kinds: Container[tuple[int, int]]) -> None:
        """All dumps of a poll are in.

        Args:
            kinds: Families and protocols of those that the kernel gave.
        """
        book, poll = self._book, self._output.poll
        # A poll that had as many sockets as are known is taken to have had those: one that was reported twice could
        # hide an absence until the next poll.
        if self._removals.reliable and book.reported == len(book.entries):
            return
        for entry in [entry for entry in book.entries.values() if entry.seen != poll]:
            if (entry.last[1][0], entry.protocol) not in kinds:
                continue
            entry.absences += 1
            if entry.absences == 2 or not self._removals.reliable:
                self._ask(entry)

    def _ask(self, entry: Entry) -> None:
        if entry.report is not None:
            self.asking += 1
            request = lookup_request(entry.report.message, entry.protocol)
            self._lookups.ask(request, lambda found: self._answered(entry, found))

    def _answered(self, entry: Entry, found: bytes | None) -> None:
        self.asking -= 1
        book = self._book
        if entry.over:
            return
        if found and not is_remains(found):
            pieces, form = self._formats.cut(found)
            if pieces[2] == entry.cookie:
                book.apply_row(entry, entry.protocol, pieces, found, form)
                return
        if self._removals.reliable:
            if found != NO_ANSWER:
                book.mark_closed(entry, SocketState.TIME_WAIT if found else SocketState.CLOSE)
        elif found != NO_ANSWER or entry.absences >= PATIENCE:
            self._output.count("gone")
            book.drop(entry)
            book.end(entry, entry.report, final=False, reason=RemovalReason.GONE)
