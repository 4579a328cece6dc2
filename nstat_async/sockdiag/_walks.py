"""Polls of many TCP sockets of which few have traffic: these few are looked up, instead of dumping all.

An eBPF program walks over the TCP sockets of this network namespace, and tells which of them sent, received or
acknowledged something since the last walk began. A look-up of each gives what a dump would have. Listeners and datagram
sockets are dumped as usual. The rest is checked regularly:

- Beginnings and ends are known by records and removals. So there are walks only while records come and nothing was lost.
- Every tenth poll dumps everything, and so finds what leaves no trace in the kernel's times: an inode that changed hands,
  a FIN that came with an old acknowledgement.
- If a walk is refused, is incomplete, or reports many sockets, a dump follows in the same poll.
"""

from __future__ import annotations

import sys
from typing import Any

from .._errnos import error_text
from .._errors import ProtocolError
from ..ebpf import CHANGED, ChangedRow, decode_changed
from ._book import Book
from ._constants import AF_INET, IPPROTO_TCP
from ._dumps import DumpSource
from ._host_requests import ChangedAnswer, ChangedRequest
from ._lookups import NO_ANSWER, LookupSource, exact_request
from ._output import Output
from ._program_evidence import ProgramEvidence
from ._removals import RemovalSource
from ._rows import RowFormats, is_remains

LEAST = 5_000
"""Least number of sockets for a walk: with fewer, a dump is less work."""
PROOF = 10
"""One poll in this many dumps everything."""
SHARE = 16
"""If more than one socket in this many had traffic, a dump is less work than the look-ups."""

AT_ONCE = 256
"""Most look-ups without an answer: some milliseconds."""
_FRAME = 2
"""The number of rows of a walk that are not sockets: the first and the last."""


class Walks:
    """The walks of one namespace.

    Args:
        output: Where requests go.
        book: Where rows go.
        dumps: The dumps that walks replace.
        lookups: Looks up the sockets with traffic.
        removals: Says whether removals were lost.
        evidence: Says whether records come.
        formats: How rows are cut.
        allowed: False if every poll is to dump everything.
    """

    def __init__(
        self,
        output: Output,
        book: Book,
        dumps: DumpSource,
        lookups: LookupSource,
        removals: RemovalSource,
        evidence: ProgramEvidence,
        formats: RowFormats,
        *,
        allowed: bool,
    ) -> None:
        self._output = output
        self._book = book
        self._dumps = dumps
        self._lookups = lookups
        self._removals = removals
        self._evidence = evidence
        self._formats = formats
        self._allowed = allowed
        self._waiting = False
        """This poll waits for a walk."""
        self._asking = 0
        """Number of look-ups without an answer."""
        self._moved: list[ChangedRow] = []
        """Sockets with traffic that are still to be looked up."""
        self._marking = False
        """The first walk is under way."""
        self._marked: int | None = None
        """Serial of the poll in which the first walk ended: later walks tell what changed since then."""
        self._polls = PROOF
        """Number of polls since everything was dumped."""
        self._gaps = 0
        """`Output.gaps` at that dump."""

    @property
    def done(self) -> bool:
        """True when everything that moved is in the book."""
        return not self._waiting and not self._asking and not self._moved

    @property
    def _suits(self) -> bool:
        evidence = self._evidence
        known = self._allowed and evidence.live and evidence.attached.changes and self._removals.reliable
        return known and len(self._book.entries) >= LEAST and not self._output.following

    def begin_poll(self) -> bool:
        """Ask for a walk if that is less work than a dump; True if this poll needs no dump of TCP sockets."""
        if not self._suits:
            return False
        if self._marked is None:
            self._mark()
            return False
        self._waiting = self._polls < PROOF - 1 and self._gaps == self._output.gaps
        if self._waiting:
            self._output.ask(ChangedRequest(), self.take)
        return self._waiting

    def end_poll(self) -> None:
        """A poll is over."""
        if self._dumps.partial:
            self._polls = self._polls + 1 if self._dumps.complete else PROOF
        elif self._dumps.complete and self._marked is not None and self._marked < self._output.poll:
            self._polls, self._gaps = 0, self._output.gaps

    def _mark(self) -> None:
        """Ask for the first walk, once: another one would hide what changed in between."""
        if not self._marking:
            self._marking = True
            self._output.ask(ChangedRequest(mark=True), self._take_mark)

    def _take_mark(self, answer: Any) -> None:
        self._marking = False
        if self._rows_of(answer, 0):
            self._marked = self._output.poll

    def take(self, answer: Any) -> None:
        """Take in a walk; if it failed, or reports many sockets, everything is dumped."""
        self._waiting = False
        rows = self._rows_of(answer, len(self._book.entries) // SHARE)
        if len(rows) < _FRAME or rows[-1].cookie:
            self._dumps.dump_all()
            return
        self._output.count("walks")
        self._moved = rows[1:-1]
        self._ask()

    def _ask(self) -> None:
        while self._moved and self._asking < AT_ONCE:
            row = self._moved.pop()
            self._asking += 1
            self._lookups.ask(exact_request(row.family, _identity(row), row.cookie), self._answered)

    def give_up(self) -> None:
        """Following: no answer will come."""
        self._waiting, self._moved = False, []

    def _rows_of(self, answer: Any, most: int) -> list[ChangedRow]:
        """The rows of a walk; none if it failed, is of another namespace, or reports more than `most` sockets.

        No walk follows one that was refused.
        """
        if not isinstance(answer, ChangedAnswer):
            return []
        if answer.errno:
            self._allowed = False
            self._output.note(
                f"the kernel does not tell which sockets had traffic ({error_text(answer.errno)}): each poll asks for all"
            )
        if not CHANGED.size <= len(answer.rows) <= (most + _FRAME) * CHANGED.size:
            return []
        try:
            rows = decode_changed(answer.rows)
        except ProtocolError as error:
            self._output.reject(error.reason)
            return []
        return [] if rows[0].cookie or self._evidence.books.get(rows[0].net_cookie) is not self._book else rows

    def _answered(self, found: bytes | None) -> None:
        self._asking -= 1
        if found == NO_ANSWER:  # the next poll dumps everything
            self._dumps.complete, self._moved = False, []
        elif found is not None and not is_remains(found):
            pieces, form = self._formats.cut(found)
            self._book.apply_row(self._book.entries.get(pieces[2]), IPPROTO_TCP, pieces, found, form)
        self._ask()


def _identity(row: ChangedRow) -> bytes:
    """``struct inet_diag_sockid`` up to the cookie."""
    size = 4 if row.family == AF_INET else 16
    ports = row.local_port.to_bytes(2, "big") + row.remote_port
    addresses = row.local[:size].ljust(16, b"\0") + row.remote[:size].ljust(16, b"\0")
    return ports + addresses + row.ifindex.to_bytes(4, sys.byteorder)
