"""The walk over all tables of descriptors, in an order in which each process gets its turn.

New processes come first, then recent owners, then the others from the newest to the oldest, and
each gives at most `TURN` descriptors before any gives more. Processes in network namespaces that are not watched
come after these: they rarely have such a socket. The last places are the rarest:
tables of threads that have their own, and the registered files of io_uring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from .linux import may_be_in, share_descriptors
from .tables import RING, Found, Links, all_pids, other_threads, parts, registered

AT_ONCE = 256
"""Descriptors that are read at once, in 1 ms."""
PARTS = 4
"""Parts of a process's table that are read before the next process has its turn."""
TURN = PARTS * AT_ONCE
"""Descriptors in that many parts."""

Part = tuple[int, int, Links]
"""A process, a thread, and some of the descriptors in its table."""


class Walk:
    """Gives every held socket, in the order of the search."""

    def __init__(self, recent: Iterable[int], before: Walk | None, networks: frozenset[int | None]) -> None:
        pids = all_pids()
        new = set(pids).difference(before.pids if before else ())
        self.pids: list[int] = list(dict.fromkeys([*(pid for pid in pids if pid in new), *recent, *pids]))
        self.refused: set[int] = set()
        """Processes in the watched namespaces whose descriptors we may not see."""
        self.networks = networks
        known = before.near if before and before.networks == networks else {}
        self.near: dict[int, bool] = {pid: known[pid] for pid in self.pids if pid in known}
        """Whether a process was in a watched namespace when it was first met; if its pid is reused, only the order suffers."""
        self._rings: list[tuple[int, int, int]] = []

    def __iter__(self) -> Iterator[Found]:
        """All sockets one by one."""
        for pid, thread, links in self.parts():
            yield 0, pid, thread, 0
            for inode, number in links:
                yield inode, pid, thread, number

    def parts(self) -> Iterator[Part]:
        """All sockets, some at a time, so that a caller can look at its clock; each process gives at least one part."""
        far: list[int] = []
        yield from self._in_turn(self.pids, far)
        yield from self._in_turn(far, None)
        yield from self._of_threads()
        for pid, thread, descriptor in self._rings:
            yield pid, thread, [(inode, descriptor) for inode in registered(thread, descriptor)]

    def _in_turn(self, pids: list[int], far: list[int] | None) -> Iterator[Part]:
        """The tables of processes; those in no watched namespace are put into `far` instead."""
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
        """The tables of processes that started after the walk, and of recent owners: they probably have new sockets."""
        known = set(self.pids)
        new = [pid for pid in all_pids() if pid not in known]
        self.pids = new + self.pids
        for pid in dict.fromkeys([*new, *recent]):
            yield from islice(self._table(pid, pid), PARTS)

    def _table(self, pid: int, thread: int) -> Iterator[Part]:
        """The parts of a table of descriptors; nothing if it is gone or we may not see it."""
        try:
            for links in parts(thread, AT_ONCE, AT_ONCE):
                self._rings += [(pid, thread, number) for inode, number in links if inode == RING]
                yield pid, thread, links
        except PermissionError:
            if may_be_in(pid, self.networks):
                self.refused.add(pid)

    def _of_threads(self) -> Iterator[Part]:
        """Tables of threads that do not share their process's (``unshare(2)``), or whose process has lost its own."""
        for pid in self.pids:
            tables = [pid]
            for thread in other_threads(pid):
                yield pid, thread, []
                if not any(share_descriptors(thread, other) for other in tables):
                    tables.append(thread)
                    yield from self._table(pid, thread)
