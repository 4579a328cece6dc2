"""The network namespaces that only eBPF programs report, because they are not entered.

Some may not be entered, some are held by a descriptor alone and are not found, some are gone before anyone could look.
Records and the walk over all descriptors name the namespace of each socket, which gets a book without dumps. Such a book
knows no interfaces, and the counters of a TCP connection only at its end. It does not see a socket that no record
reported and no process has open. The walks show an end whose record was lost.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ebpf import Answer
from ._book import Book
from ._namespace import Namespace
from ._program_evidence import ProgramEvidence
from ._setup import MAX_NAMESPACES, NetworkNamespace

FIRST = 1 << 20
"""Number of the first of them; namespaces that are entered have lower numbers."""
ABSENCES = 2
"""Walks in a row that do not have a socket, after which it is taken for gone."""


class ProgramNamespaces:
    """Watches the namespaces that only eBPF programs report, by their cookie.

    Args:
        add: Makes the namespace with a number and an identity.
        drop: Stops watching the namespace with a number.
        evidence: Weighs the evidence of the programs into the books.
    """

    def __init__(
        self,
        add: Callable[[int, NetworkNamespace], Namespace],
        drop: Callable[[int], None],
        evidence: ProgramEvidence,
    ) -> None:
        self._add = add
        self._drop = drop
        self._evidence = evidence
        self._known: dict[int, Namespace] = {}
        self._empty: set[int] = set()
        """Cookies of namespaces that had no socket at the last poll."""
        self._next = FIRST
        self._open: set[int] = set()
        """Sockets that the present walk has met."""

    def meet(self, cookie: int, label: str) -> bool:
        """Watch a namespace from outside; False if there are too many."""
        if len(self._known) >= MAX_NAMESPACES:
            return False
        namespace = self._known[cookie] = self._add(self._next, NetworkNamespace(label))
        self._next += 1
        self._evidence.know(cookie, namespace.book)
        return True

    def entered(self, cookie: int) -> None:
        """A namespace was entered: stop watching it from outside."""
        if cookie in self._known:
            self._drop(self._known.pop(cookie).number)

    def sweep(self) -> None:
        """Stop watching namespaces without a socket in two polls."""
        empty = {cookie for cookie, namespace in self._known.items() if not namespace.book.entries}
        for cookie in empty & self._empty:
            self._drop(self._known.pop(cookie).number)
        self._empty = empty

    def walked(self, answer: Answer) -> None:
        """Take in a part of a walk over all descriptors: a socket that two walks do not have ended unseen."""
        if not self._known:
            return
        self._open.update(row.cookie for row in answer.rows)
        if answer.last:
            held, self._open = self._open, set()
            for namespace in list(self._known.values()) if not answer.errno else ():
                self._judge(namespace.book, held)

    def _judge(self, book: Book, held: set[int]) -> None:
        for entry in list(book.entries.values()):
            entry.absences = 0 if entry.cookie in held else entry.absences + 1
            if entry.absences >= ABSENCES and not self._evidence.end_recorded(entry.cookie):
                self._evidence.gone(entry.cookie)
                self._evidence.end_unseen(book, entry)
