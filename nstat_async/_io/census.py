"""Finds all holders of sockets: it reads all tables of descriptors, a few at a time.

A search for an owner ends with the first process that has the socket. Others may have it, too: forked children, workers
of one listener, a process that got it over a Unix socket. Only a look at all tables finds them. It is done in rounds,
within the CPU time that a caller grants. If a process's number of descriptors did not change, its table is not read
again for some rounds (since Linux 6.2): a round over thousands of idle processes costs little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import attrs

from .processes import start_ticks
from .tables import all_pids, holds, links, size_of

MOST_SOCKETS = 100_000
"""Most descriptors of sockets that are remembered; if there are more, nothing is counted."""
MOST_SHARED = 4096
"""Most sockets with several holders that are reported."""
MOST_HOLDERS = 16
READ_AGAIN = 16
"""Rounds after which a table that seems unchanged is read again."""
GLANCE = 16
"""Descriptors between two readings of the clock."""

Shared = tuple[tuple[int, int, tuple[int, ...]], ...]
"""Inodes, the number of processes that hold each, and the oldest of these."""


@attrs.define(eq=False)
class _Table:
    size: int
    sockets: dict[int, int]
    """Inodes with a descriptor of each."""
    rounds: int = 0
    """Rounds since the table was read."""


class Census:
    """Counts the holders of all sockets; only one thread at a time may use it."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        """By process. The next two are kept in step with them: to add up all tables in each round took most of its time."""
        self._first: dict[int, int] = {}
        """Inodes of all sockets, and one process that holds each."""
        self._several: dict[int, list[int]] = {}
        """Inodes that several processes hold, with all of them."""
        self._round: Iterator[None] = iter(())
        self._shared: Shared | None = None
        self._sizes = bool(size_of(os.getpid()))
        """True if the kernel tells how many descriptors a process has (kernel threads have none)."""

    def go_on(self, until: float) -> Shared | None:
        """Count until this time of the thread's CPU clock; the sockets with several holders if a round is complete."""
        while time.thread_time() < until:
            for _ in self._round:
                if time.thread_time() >= until:
                    return None
            shared, self._shared = self._shared, None
            self._round = self._count()
            if shared is not None:
                return shared
        return None

    def place_of(self, inode: int, pid: int) -> int | None:
        """The descriptor of a process's socket when its table was last read; `None` if it did not have the socket."""
        table = self._tables.get(pid)
        return None if table is None else table.sockets.get(inode)

    def _count(self) -> Iterator[None]:
        """Do a round; each `yield` is a place where it may be interrupted."""
        pids = all_pids()
        for pid in self._tables.keys() - pids:
            self._replace(pid, None)
        for pid in pids:
            yield from self._read(pid)
            if len(self._first) > MOST_SOCKETS:
                self._tables, self._first, self._several = {}, {}, {}
                return
        shared = []
        for inode, holding in list(self._several.items())[:MOST_SHARED]:
            yield
            holders = [pid for pid in tuple(holding) if self._still_holds(inode, pid)]
            if len(holders) > 1:
                shared.append((inode, len(holders), _oldest(holders)))
        self._shared = tuple(shared)

    def _still_holds(self, inode: int, pid: int) -> bool:
        """False if the descriptor is another file now: one was closed and one opened, so the count did not change."""
        table = self._tables.get(pid)
        if table is None or (table.rounds and not holds(inode, pid, table.sockets[inode])):
            self._replace(pid, None)
            return False
        return True

    def _replace(self, pid: int, table: _Table | None) -> None:
        """Take over the present table of a process; `None`: it is gone, or may not be read."""
        known = self._tables.pop(pid, None)
        before, now = (each.sockets.keys() if each else set[int]() for each in (known, table))
        for inode in before - now:
            holders = self._several.get(inode)
            if holders is None:
                del self._first[inode]
            else:
                holders.remove(pid)
                self._first[inode] = holders[0]
                if len(holders) == 1:
                    del self._several[inode]
        for inode in now - before:
            holder = self._first.setdefault(inode, pid)
            if holder != pid:
                self._several.setdefault(inode, [holder]).append(pid)
        if table is not None:
            self._tables[pid] = table

    def _read(self, pid: int) -> Iterator[None]:
        yield
        known, size = self._tables.get(pid), size_of(pid)
        if size is None:
            self._replace(pid, None)
            return
        if known is not None and self._sizes and known.size == size and known.rounds < READ_AGAIN:
            known.rounds += 1
            return
        sockets = {}
        try:
            for number, (inode, descriptor) in enumerate(links(pid), 1):
                if inode > 0:
                    sockets[inode] = descriptor
                if not number % GLANCE:
                    yield
        except PermissionError:
            self._replace(pid, None)
        else:
            self._replace(pid, _Table(size, sockets))


def _oldest(pids: list[int]) -> tuple[int, ...]:
    """Processes in the order of their start, but ``init``, which holds sockets for others, comes last."""
    started = sorted((pid == 1, start_ticks(pid) or 0, pid) for pid in pids)
    return tuple(pid for _, _, pid in started[:MOST_HOLDERS])
