"""Network namespaces that are watched without being entered: what eBPF programs see of them is all there is.

Some may not be entered, some are held by a descriptor alone and are not found, some are gone before anyone could look.
Records and the walk over all descriptors tell of each socket which namespace it is in; it gets a book of its own, which no
dump speaks to. In it nothing is known of interfaces, nothing of the counters of a TCP connection until its end, and what
no process has open and no record reported is not seen. An end whose record was lost shows in the walks.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ebpf import Answer
from ._book import Book
from ._namespace import Namespace
from ._setup import NetworkNamespace
from ._sightings import Sightings

MOST = 256
"""Namespaces of this kind that are known at once."""
FIRST = 1 << 20
"""Number of the first one: those that are entered have lower ones."""
ABSENCES = 2
"""Walks in a row without a socket until it is taken for gone."""


class Glimpses:
    """The namespaces that nobody entered, by the cookie that records have.

    Args:
        add: Makes a namespace of a number and an identity.
        drop: Lets it go by its number.
        sightings: What takes in the evidence.
    """

    def __init__(
        self,
        add: Callable[[int, NetworkNamespace], Namespace],
        drop: Callable[[int], None],
        sightings: Sightings,
    ) -> None:
        self._add = add
        self._drop = drop
        self._sightings = sightings
        self._known: dict[int, Namespace] = {}
        self._empty: set[int] = set()
        """Cookies of those without a socket."""
        self._next = FIRST
        self._open: set[int] = set()
        """What the walk under way has met."""

    def meet(self, cookie: int, label: str) -> bool:
        """Watch a namespace from outside; False where there are too many."""
        if len(self._known) >= MOST:
            return False
        namespace = self._known[cookie] = self._add(self._next, NetworkNamespace(label))
        self._next += 1
        self._sightings.know(cookie, namespace.book)
        return True

    def entered(self, cookie: int) -> None:
        """A namespace is watched from inside now."""
        if cookie in self._known:
            self._drop(self._known.pop(cookie).number)

    def sweep(self) -> None:
        """Let go of those that had no socket for two polls."""
        empty = {cookie for cookie, namespace in self._known.items() if not namespace.book.entries}
        for cookie in empty & self._empty:
            self._drop(self._known.pop(cookie).number)
        self._empty = empty

    def walked(self, answer: Answer) -> None:
        """Take in a piece of a walk over all descriptors: what nobody has open in two walks ended unseen."""
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
            if entry.absences >= ABSENCES and not self._sightings.end_recorded(entry.cookie):
                self._sightings.gone(entry.cookie)
                self._sightings.end_unseen(book, entry)
