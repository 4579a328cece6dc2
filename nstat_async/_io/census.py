"""Who else holds a socket: all tables of descriptors, counted a few at a time.

A search for an owner ends with the first process that has the socket. Others may have it, too: forked children, workers
of one listener, whoever got it over a Unix socket. Only a look at all tables finds them, so it is taken in rounds, within
the CPU time that a caller grants. A process whose number of descriptors did not change is not read again (since Linux
6.2), unless a while has passed: a round over thousands of idle processes costs little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import attrs

from .processes import start_ticks
from .tables import all_pids, holds, links, size_of

MOST_SOCKETS = 100_000
"""Descriptors of sockets that are remembered; where there are more nothing is counted."""
MOST_SHARED = 4096
"""Sockets with several holders that were reported, and of each:"""
MOST_HOLDERS = 16
READ_AGAIN = 16
"""Rounds after which a table is read again that seems not to have changed."""
GLANCE = 16
"""Descriptors between two looks at the clock."""

Shared = tuple[tuple[int, int, tuple[int, ...]], ...]
"""Inodes, how many processes hold each, and the oldest of them."""


@attrs.define(eq=False)
class _Table:
    size: int
    sockets: dict[int, int]
    """Inodes, and a descriptor of each."""
    rounds: int = 0
    """Since it was read."""


class Census:
    """Counts the holders of all sockets; one thread at a time."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._round: Iterator[None] = iter(())
        self._shared: Shared | None = None
        self._sizes = bool(size_of(os.getpid()))
        """The kernel says how many descriptors a process has: threads of its own have none."""

    def go_on(self, until: float) -> Shared | None:
        """Count until this time of the thread's own clock; the sockets with several holders when a round is complete."""
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
        """By which descriptor a process had a socket, in the last complete round; `None` when it had it not."""
        table = self._tables.get(pid)
        return None if table is None else table.sockets.get(inode)

    def _count(self) -> Iterator[None]:
        """A round; it yields where it may be interrupted."""
        first: dict[int, int] = {}
        several: dict[int, list[int]] = {}
        tables: dict[int, _Table] = {}
        for pid in all_pids():
            yield from self._read(pid, tables)
            for inode in tables[pid].sockets if pid in tables else ():
                if first.setdefault(inode, pid) != pid:
                    several.setdefault(inode, [first[inode]]).append(pid)
            if len(first) > MOST_SOCKETS:
                self._tables = {}
                return
        self._tables = tables
        shared = []
        for inode, pids in list(several.items())[:MOST_SHARED]:
            yield
            holders = [pid for pid in pids if self._still_holds(inode, pid)]
            if len(holders) > 1:
                shared.append((inode, len(holders), _oldest(holders)))
        self._shared = tuple(shared)

    def _still_holds(self, inode: int, pid: int) -> bool:
        """False if another descriptor came as this one went: the number was the same."""
        table = self._tables.get(pid)
        if table is None or (table.rounds and not holds(inode, pid, table.sockets[inode])):
            self._tables.pop(pid, None)
            return False
        return True

    def _read(self, pid: int, tables: dict[int, _Table]) -> Iterator[None]:
        yield
        known, size = self._tables.get(pid), size_of(pid)
        if size is None:
            return
        if known is not None and self._sizes and known.size == size and known.rounds < READ_AGAIN:
            known.rounds += 1
            tables[pid] = known
            return
        sockets = {}
        try:
            for number, (inode, descriptor) in enumerate(links(pid), 1):
                if inode > 0:
                    sockets[inode] = descriptor
                if not number % GLANCE:
                    yield
        except PermissionError:
            return
        tables[pid] = _Table(size, sockets)


def _oldest(pids: list[int]) -> tuple[int, ...]:
    """Processes in the order of their start; the first one of all (``init``), which holds sockets for others, is the last."""
    started = sorted((pid == 1, start_ticks(pid) or 0, pid) for pid in pids)
    return tuple(pid for _, _, pid in started[:MOST_HOLDERS])
