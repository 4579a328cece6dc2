"""Evidence of sockets that sock_diag does not have, or not everywhere: raw, ICMP and packet sockets, from ``/proc/net``.

A table has no cookies. Where eBPF programs tell these sockets by theirs, and a walk over all descriptors tells the
inode beside it, an entry is known by its cookie, and the table says which are missing yet and which are no more.
Otherwise it is known by its inode.
"""

from __future__ import annotations

from typing import Any

from .._events import ProviderRefused, RemovalReason
from ..ebpf import Ended
from ._book import Book
from ._constants import AF_INET, AF_INET6, AF_PACKET, IPPROTO_ICMP, IPPROTO_RAW, PACKET, PROVIDERS, SocketState
from ._entry import Entry
from ._output import Output
from ._rows import RowFormats, encode_row
from ._setup import SocketTablesAnswer, SocketTablesRequest, TableRow
from ._sightings import Sightings

BY_INODE = 1 << 63
"""An entry's number is this and the inode where its cookie is not known: the kernel counts cookies upward from 1."""
WALKS = 2
"""Walks over all descriptors that did not find a socket until it gets its entry without."""
ABSENCES = 2
"""Readings without a socket until it is gone: a table is read in pieces, and one may be left out between two."""
_TABLES = {
    "raw": (AF_INET, IPPROTO_RAW),
    "raw6": (AF_INET6, IPPROTO_RAW),
    "icmp": (AF_INET, IPPROTO_ICMP),
    "icmp6": (AF_INET6, IPPROTO_ICMP),
    "packet": (AF_PACKET, PACKET),
}
_MASK = 0xFFFFFFFF


class TableSource:
    """Reads the tables of one namespace at each poll.

    Args:
        output: Where questions go.
        book: What the sockets are written in.
        sightings: What eBPF programs say of them.
        formats: How rows are cut.
        protocols: What is wanted.
    """

    def __init__(
        self, output: Output, book: Book, sightings: Sightings, formats: RowFormats, protocols: frozenset[int]
    ) -> None:
        self.done = True
        """True when the tables of this poll are here, or will not come."""
        self.answered: set[int] = set()
        """Protocols whose tables were there, ever."""
        self._output = output
        self._book = book
        self._sightings = sightings
        self._formats = formats
        self._names = tuple(name for name, (_, protocol) in _TABLES.items() if protocol in protocols)
        self._answer: SocketTablesAnswer | None = None
        self._missing: dict[int, int] = {}
        """Inodes without an entry, and how many walks there had been when they were met."""
        self._refused: set[int] = set()

    def begin_poll(self) -> None:
        """Ask for the tables."""
        if self._names:
            self.done = self._output.following  # its recorded client may not have asked
            self._output.ask(SocketTablesRequest(self._book.number, self._names), self.take)

    def take(self, answer: Any) -> None:
        """They are here, or there are none."""
        self.done = True
        if isinstance(answer, SocketTablesAnswer):
            self._answer = answer

    def settle(self) -> None:
        """Everything else that this poll found is in the book: compare it with the tables."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        known = {entry.user[1]: entry for entry in self._book.others.values()}
        missing, self._missing = self._missing, {}
        for row in answer.rows:
            if row.table in _TABLES:
                since = missing.get(row.inode, self._sightings.walks)
                self._take_row(row, known.get(row.inode & _MASK), since)
        self._sightings.missing = self._sightings.missing or bool(self._missing)
        there = {_TABLES[name] for name in self._names if name not in answer.missing}
        self.answered |= {protocol for _, protocol in there}
        self._judge_absences(there)
        self._refuse(answer.missing)

    def _take_row(self, row: TableRow, entry: Entry | None, since: int) -> None:
        if not row.inode:
            return
        if entry is None and self._sightings.walked and self._sightings.walks - since < WALKS:
            self._missing[row.inode] = since
            return
        family, protocol = _TABLES[row.table]
        message = encode_row(
            family,
            SocketState.CLOSE,
            ((row.port & 0xFFFF).to_bytes(2, "big"), (row.remote_port & 0xFFFF).to_bytes(2, "big")),
            (row.local, row.remote),
            BY_INODE | (row.inode & _MASK) if entry is None else entry.cookie,
            uid=row.uid & _MASK,
            inode=row.inode & _MASK,
            device=row.device & _MASK,
        )
        pieces, form = self._formats.cut(message)
        self._book.apply_row(entry, protocol, pieces, message, form)

    def _judge_absences(self, there: set[tuple[int, int]]) -> None:
        for entry in list(self._book.others.values()):
            if entry.seen == self._output.poll or not entry.user[1]:
                continue
            if (entry.identity[0], entry.protocol) in there:
                entry.absences += 1
                if entry.absences >= ABSENCES:
                    self._end(entry)

    def _end(self, entry: Entry) -> None:
        """Nothing else reports the end of a packet socket, or of any of these without eBPF programs."""
        book, sightings = self._book, self._sightings
        book.drop(entry)

        def settle(ended: Ended | None) -> None:
            if ended is None or entry.report is None:
                book.end(entry, entry.report, final=False, reason=RemovalReason.GONE)
            else:
                sightings.finish(book, entry, ended, entry.report.raw)

        sightings.join(book, entry, settle)

    def _refuse(self, names: tuple[str, ...]) -> None:
        """Say once which kind of sockets this kernel has no table of."""
        for protocol in {_TABLES[name][1] for name in names if name in _TABLES} - self.answered - self._refused:
            self._refused.add(protocol)
            detail = "the kernel has no table of these sockets in /proc/net"
            self._output.events.append(ProviderRefused(self._output.time, PROVIDERS[protocol], 2, detail))
