"""The walk over all tables of descriptors, in an order that lets nobody starve.

Processes that are new come first, then recent owners, then the rest from the newest down, and
each gives `TURN` descriptors before any gives more. What none of them has is looked for where
it is rare: in the tables of threads that have their own, and among the registered files of io_uring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from .linux import network_of, share_descriptors
from .tables import RING, Found, all_pids, links, other_threads, registered

TURN = 1024
"""Descriptors of a process that are looked at before another one's turn."""


class Walk:
    """Every socket that a process holds, in the order of the search."""

    def __init__(self, recent: Iterable[int], known: Iterable[int], networks: frozenset[int | None]) -> None:
        pids = all_pids()
        new = set(pids).difference(known)
        self.pids = list(dict.fromkeys([*(pid for pid in pids if pid in new), *recent, *pids]))
        self.refused: set[int] = set()
        """Processes in the watched namespaces whose descriptors may not be looked at."""
        self._networks = networks
        self._rings: list[tuple[int, int, int]] = []

    def __iter__(self) -> Iterator[Found]:
        """Each process gives something at least, so that a caller's clock is looked at."""
        rest = []
        for pid in self.pids:
            yield 0, pid, pid, 0
            table = self._table(pid, pid)
            yield from islice(table, TURN)
            rest.append(table)
        while rest:
            waiting, rest = rest, []
            for table in waiting:
                taken = list(islice(table, TURN))
                yield from taken
                if taken:
                    rest.append(table)
        yield from self._of_threads()
        for pid, thread, descriptor in self._rings:
            for inode in registered(thread, descriptor):
                yield inode, pid, thread, descriptor

    def arrivals(self, recent: Iterable[int]) -> Iterator[Found]:
        """Processes that began since the walk did, and recent owners: where new sockets are, most likely."""
        known = set(self.pids)
        new = [pid for pid in all_pids() if pid not in known]
        self.pids = new + self.pids
        for pid in dict.fromkeys([*new, *recent]):
            yield from islice(self._table(pid, pid), TURN)

    def _table(self, pid: int, thread: int) -> Iterator[Found]:
        """What a table of descriptors has; nothing when it is gone or not ours to see."""
        try:
            for inode, number in links(thread):
                if inode == RING:
                    self._rings.append((pid, thread, number))
                yield inode, pid, thread, number
        except PermissionError:
            if network_of(pid) in self._networks:
                self.refused.add(pid)

    def _of_threads(self) -> Iterator[Found]:
        """Tables of threads that share none with their process (``unshare(2)``), or whose process has none any more."""
        for pid in self.pids:
            tables = [pid]
            for thread in other_threads(pid):
                yield 0, pid, thread, 0
                if not any(share_descriptors(thread, other) for other in tables):
                    tables.append(thread)
                    yield from self._table(pid, thread)
