"""The walk over all tables of descriptors, in an order that lets nobody starve.

Processes that are new come first, then recent owners, then the rest from the newest down, and
each gives `TURN` descriptors at most before any gives more. Processes in other network namespaces than those
watched come behind all these: a socket that was handed to one is rare. What none of them has is looked for where
it is rarer still: in the tables of threads that have their own, and among the registered files of io_uring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from .linux import may_be_in, share_descriptors
from .tables import RING, Found, Links, all_pids, other_threads, parts, registered

AT_ONCE = 256
"""Descriptors that are read at once, in 1 ms."""
PARTS = 4
"""Parts of a process's table that are looked at before another one's turn."""
TURN = PARTS * AT_ONCE
"""Descriptors in as many parts."""

Part = tuple[int, int, Links]
"""A process, a thread, and some of the descriptors in its table."""


class Walk:
    """Every socket that a process holds, in the order of the search."""

    def __init__(self, recent: Iterable[int], before: Walk | None, networks: frozenset[int | None]) -> None:
        pids = all_pids()
        new = set(pids).difference(before.pids if before else ())
        self.pids: list[int] = list(dict.fromkeys([*(pid for pid in pids if pid in new), *recent, *pids]))
        self.refused: set[int] = set()
        """Processes in the watched namespaces whose descriptors may not be looked at."""
        self.networks = networks
        known = before.near if before and before.networks == networks else {}
        self.near: dict[int, bool] = {pid: known[pid] for pid in self.pids if pid in known}
        """Which processes are in the watched namespaces, as they were first met; a pid that is used again changes the order alone."""
        self._rings: list[tuple[int, int, int]] = []

    def __iter__(self) -> Iterator[Found]:
        """All of them one by one."""
        for pid, thread, links in self.parts():
            yield 0, pid, thread, 0
            for inode, number in links:
                yield inode, pid, thread, number

    def parts(self) -> Iterator[Part]:
        """All of them, a few at a time, so that a caller's clock is looked at; each process gives something."""
        far: list[int] = []
        yield from self._in_turn(self.pids, far)
        yield from self._in_turn(far, None)
        yield from self._of_threads()
        for pid, thread, descriptor in self._rings:
            yield pid, thread, [(inode, descriptor) for inode in registered(thread, descriptor)]

    def _in_turn(self, pids: list[int], far: list[int] | None) -> Iterator[Part]:
        """The tables of processes; those that are in no watched namespace are put into `far` instead."""
        rest = []
        for pid in pids:
            yield pid, pid, []
            if far is not None and not self._is_near(pid):
                far.append(pid)
                continue
            table = self._table(pid, pid)
            yield from islice(table, PARTS)
            rest.append(table)
        while rest:
            waiting, rest = rest, []
            for table in waiting:
                first = next(table, None)
                if first is not None:
                    yield first
                    yield from islice(table, PARTS - 1)
                    rest.append(table)

    def _is_near(self, pid: int) -> bool:
        if pid not in self.near:
            self.near[pid] = may_be_in(pid, self.networks)
        return self.near[pid]

    def arrivals(self, recent: Iterable[int]) -> Iterator[Part]:
        """Processes that began since the walk did, and recent owners: where new sockets are, most likely."""
        known = set(self.pids)
        new = [pid for pid in all_pids() if pid not in known]
        self.pids = new + self.pids
        for pid in dict.fromkeys([*new, *recent]):
            yield from islice(self._table(pid, pid), PARTS)

    def _table(self, pid: int, thread: int) -> Iterator[Part]:
        """What a table of descriptors has; nothing when it is gone or not ours to see."""
        try:
            for links in parts(thread, AT_ONCE, AT_ONCE):
                self._rings += [(pid, thread, number) for inode, number in links if inode == RING]
                yield pid, thread, links
        except PermissionError:
            if may_be_in(pid, self.networks):
                self.refused.add(pid)

    def _of_threads(self) -> Iterator[Part]:
        """Tables of threads that share none with their process (``unshare(2)``), or whose process has none any more."""
        for pid in self.pids:
            tables = [pid]
            for thread in other_threads(pid):
                yield pid, thread, []
                if not any(share_descriptors(thread, other) for other in tables):
                    tables.append(thread)
                    yield from self._table(pid, thread)
