"""Evidence of a network namespace that cannot be entered: the tables of ``/proc/PID/net``, which every user may read.

A row has the ends of a socket, its state, user and inode, and neither bytes nor a cookie. What began and ended between
two readings is in no table. Where eBPF programs report the sockets of such namespaces (`ProgramNamespaces`) no table is read: a
record has a cookie, a table an inode, and nothing says whether both are of the same socket.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from .._model import unmapped
from ._book import Book
from ._constants import IPPROTO_TCP
from ._entry import BY_INODE, Entry
from ._host_requests import SocketTablesAnswer, SocketTablesRequest, TableRow
from ._output import Output
from ._program_evidence import ProgramEvidence
from ._rows import RowFormats, is_remains
from ._tables import ABSENCES, MASK, TABLES, TableSource, message_of

TAKEN_AT_ONCE = 128
"""Rows that one step takes in: about 2 ms if all of them are new."""


class OutsideTables(TableSource):
    """Reads all tables of a namespace at each poll, if it is its turn (`SocketTablesAnswer.pause`); its arguments are those of `TableSource`."""

    def __init__(
        self, output: Output, book: Book, evidence: ProgramEvidence, formats: RowFormats, protocols: frozenset[int]
    ) -> None:
        super().__init__(output, book, evidence, formats, protocols)
        self._names = tuple(name for name, (_, protocol) in TABLES.items() if protocol in protocols)
        self._rows: deque[TableRow] = deque()
        """Rows to take in."""
        self._continued = False
        """True if the next answer has more rows of the same reading."""
        self._met: set[int] = set()
        """Sockets of this reading so far."""
        self._not_before = 0.0
        """When it is its turn."""
        self._cut = False
        self._absent: tuple[str, ...] = ()

    @property
    def busy(self) -> bool:
        return bool(self._rows)

    def begin_poll(self) -> None:
        if self._output.now >= self._not_before:
            self._not_before = self._output.now
            super().begin_poll()

    def take(self, answer: Any) -> None:
        if not isinstance(answer, SocketTablesAnswer) or answer.unread:
            self._answer, self._continued, self.done = None, False, True
            return
        self._not_before += answer.pause
        if not self._continued:
            self._met, self._cut, self._absent = set(), False, ()
        self._cut, self._absent = self._cut or answer.cut, self._absent + answer.missing
        self._answer, self._continued = answer, answer.more
        self._rows.extend(answer.rows)
        self._note(answer)

    def gather(self) -> bool:
        for _ in range(min(TAKEN_AT_ONCE, len(self._rows))):
            self._take_in(self._rows.popleft())
        self._book.enter_new()
        answer = self._answer
        if answer is None or self._rows:
            return self.done and not self._rows
        self._answer = None
        if answer.more:
            self._output.ask(SocketTablesRequest(self._book.number, self._names, rest=True), self.take)
        else:
            self.done = True
            self._settle_all()
        return self.done

    def _take_in(self, row: TableRow) -> None:
        if row.table not in TABLES or not row.inode:
            return
        _, protocol = TABLES[row.table]
        cookie, book = _cookie_of(row, protocol), self._book
        message = message_of(row, cookie)
        if is_remains(message):
            return
        self._met.add(cookie)
        pieces, form = self._formats.cut(message)
        book.take_row(book.entries.get(cookie), protocol, pieces, message, form)
        entry = book.entries[cookie]
        if self.cgroup and not entry.cgroup:
            book.infer_cgroup(entry, self.cgroup)

    def _settle_all(self) -> None:
        """Count the absences of the sockets that a whole reading did not have, and end those that are gone."""
        there = self._there(self._absent)
        gone: list[Entry] = []
        for entry in self._book.entries.values() if not self._cut else ():
            if entry.cookie not in self._met and (entry.identity[0], entry.protocol) in there:
                entry.absences += 1  # a row resets it
                gone += [entry] if entry.absences >= ABSENCES else []
        self._met = set()
        if gone:
            self._output.do(self._end_all(gone))

    def _end_all(self, gone: list[Entry]) -> Iterator[None]:
        for entry in gone:
            yield
            if not entry.over:
                self._book.give_up(entry)  # if it listens again, or is bound again, it is another flow


def _cookie_of(row: TableRow, protocol: int) -> int:
    """A number in place of the socket's cookie: made of its inode and, for TCP, of its ends.

    With its ends a socket that connects again gets another flow, and so does each subflow of Multipath TCP, which all
    have one inode (``mptcp_sock_graft``).
    """
    ends = b""
    if protocol == IPPROTO_TCP:
        addresses = map(unmapped, (row.local, row.remote))
        ends = b"%d %d %s" % (row.port, row.remote_port, b"".join(addresses))
    return BY_INODE | (zlib.crc32(ends) >> 1) << 32 | row.inode & MASK
