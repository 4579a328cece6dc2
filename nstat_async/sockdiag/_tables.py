"""Evidence of raw, ICMP and packet sockets, which sock_diag has nowhere or not everywhere, from ``/proc/net``.

The tables have no cookies. Where eBPF programs report these sockets with their cookies, and walks over all descriptors
with their inodes too, an entry has its cookie, and the tables tell which sockets are still missing and which are gone.
Otherwise the inode identifies an entry.
"""

from __future__ import annotations

from typing import Any

from .._events import ProviderRefused, RemovalReason
from ..ebpf import Ended
from ._book import Book
from ._constants import (
    AF_INET,
    AF_INET6,
    AF_PACKET,
    DUMPED,
    IPPROTO_ICMP,
    IPPROTO_RAW,
    IPPROTO_TCP,
    IPPROTO_UDP,
    PACKET,
    PROVIDERS,
    SocketState,
)
from ._entry import BY_INODE, Entry
from ._host_requests import SocketTablesAnswer, SocketTablesRequest, TableRow
from ._output import Output
from ._program_evidence import ProgramEvidence
from ._rows import RowFormats, encode_row

WALKS = 2
"""Walks over all descriptors without a socket, after which it gets an entry without its cookie."""
ABSENCES = 2
"""Readings without a socket, after which it is gone: a table is read in parts, and a socket may fall between two."""
TABLES = {
    "tcp": (AF_INET, IPPROTO_TCP),
    "tcp6": (AF_INET6, IPPROTO_TCP),
    "udp": (AF_INET, IPPROTO_UDP),
    "udp6": (AF_INET6, IPPROTO_UDP),
    "raw": (AF_INET, IPPROTO_RAW),
    "raw6": (AF_INET6, IPPROTO_RAW),
    "icmp": (AF_INET, IPPROTO_ICMP),
    "icmp6": (AF_INET6, IPPROTO_ICMP),
    "packet": (AF_PACKET, PACKET),
}
MASK = 0xFFFFFFFF
"""The bits of numbers of 32 bits: a recording may have larger ones."""


class TableSource:
    """Reads the tables of one namespace at each poll.

    Args:
        output: Where requests go.
        book: Where sockets go.
        evidence: What eBPF programs know of these sockets.
        formats: How rows are cut.
        protocols: The protocols of the wanted sockets.
    """

    def __init__(
        self, output: Output, book: Book, evidence: ProgramEvidence, formats: RowFormats, protocols: frozenset[int]
    ) -> None:
        self.done = True
        """True when the tables of this poll came, or will not come."""
        self.answered: set[int] = set()
        """Protocols whose tables exist."""
        self.cgroup = 0
        """Number of the cgroup that all visible processes of the namespace are in; 0 if there are several, or it is unknown."""
        self._output = output
        self._book = book
        self._evidence = evidence
        self._formats = formats
        self._names = tuple(name for name, (_, protocol) in TABLES.items() if protocol in protocols - DUMPED)
        self._answer: SocketTablesAnswer | None = None
        self._missing: dict[int, int] = {}
        """Inodes without an entry, with the number of walks before they were first read."""
        self._refused: set[int] = set()

    def begin_poll(self) -> None:
        """Ask for the tables."""
        if self._names:
            self.done = self._output.following  # its recorded client may not have asked
            self._output.ask(SocketTablesRequest(self._book.number, self._names), self.take)

    @property
    def busy(self) -> bool:
        """True while `gather` has rows left to take in."""
        return False

    def gather(self) -> bool:
        """Take in some rows; True when nothing more is expected."""
        return self.done

    def take(self, answer: Any) -> None:
        """Take in the tables; a failed look-up gives none."""
        self.done = True
        if isinstance(answer, SocketTablesAnswer):
            self._answer = answer
            self._note(answer)

    def _note(self, answer: SocketTablesAnswer) -> None:
        if answer.malformed:
            self._output.count("malformed_table_lines", answer.malformed)
        if answer.cut:
            self._output.note("a table of /proc/net is too long to be read whole: sockets in it are missing")

    def settle(self) -> None:
        """Compare the tables with the book, which has everything else that this poll found."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        known = {entry.user[1]: entry for entry in self._book.others.values()}
        missing, self._missing = self._missing, {}
        for row in answer.rows:
            if row.table in self._names:
                since = missing.get(row.inode, self._evidence.walks)
                self._take_row(row, known.get(row.inode & MASK), since)
        self._evidence.missing = self._evidence.missing or bool(self._missing)
        there = self._there(answer.missing)
        if not answer.cut:
            self._judge_absences(there)

    def _there(self, missing: tuple[str, ...]) -> set[tuple[int, int]]:
        """Families and protocols whose tables were read."""
        there = {TABLES[name] for name in self._names if name not in missing}
        self.answered |= {protocol for _, protocol in there}
        self._refuse(missing)
        return there

    def _take_row(self, row: TableRow, entry: Entry | None, since: int) -> None:
        if not row.inode:
            return
        if entry is None and self._evidence.walked and self._evidence.walks - since < WALKS:
            self._missing[row.inode] = since
            return
        message = message_of(row, BY_INODE | (row.inode & MASK) if entry is None else entry.cookie)
        pieces, form = self._formats.cut(message)
        self._book.apply_row(entry, TABLES[row.table][1], pieces, message, form)

    def _judge_absences(self, there: set[tuple[int, int]]) -> None:
        for entry in list(self._book.others.values()):
            if entry.seen == self._output.poll or not entry.user[1]:
                continue
            if (entry.identity[0], entry.protocol) in there:
                entry.absences += 1
                if entry.absences >= ABSENCES:
                    self._end(entry)

    def _end(self, entry: Entry) -> None:
        """End a flow. Without eBPF programs nothing else reports the end of these sockets, and never that of a packet socket."""
        book, evidence = self._book, self._evidence
        book.drop(entry)

        def settle(ended: Ended | None) -> None:
            if ended is None or entry.report is None:
                book.end(entry, entry.report, final=False, reason=RemovalReason.GONE)
            else:
                evidence.finish(book, entry, ended, entry.report.raw)

        evidence.join(book, entry, settle)

    def _refuse(self, names: tuple[str, ...]) -> None:
        """Report once which kinds of sockets this kernel has no table of."""
        for protocol in {TABLES[name][1] for name in names if name in TABLES} - self.answered - self._refused:
            self._refused.add(protocol)
            detail = "the kernel has no table of these sockets in /proc/net"
            self._output.events.append(ProviderRefused(self._output.time, PROVIDERS[protocol], 2, detail))


def message_of(row: TableRow, cookie: int) -> bytes:
    """The message that a dump would have for this socket."""
    family, protocol = TABLES[row.table]
    return encode_row(
        family,
        row.state & 0xFF if protocol in DUMPED else SocketState.CLOSE,
        ((row.port & 0xFFFF).to_bytes(2, "big"), (row.remote_port & 0xFFFF).to_bytes(2, "big")),
        (row.local, row.remote),
        cookie,
        uid=row.uid & MASK,
        inode=row.inode & MASK,
        device=row.device & MASK,
    )
