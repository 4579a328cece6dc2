"""A search for new sockets, in few milliseconds: it begins where they are, most likely."""

# ruff: noqa: PTH123
# Files of /proc are opened as they are.

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from .tables import AT_ONCE, Found, all_pids, inode_at, links, size_of
from .walk import TURN, Walk

NEWEST = 128
"""Numbers of processes, the last ones given away, among which a new socket's is most likely."""
MOST_RECENT = 256
"""Processes that held the last sockets."""
HOT = 8
"""Those of them that are looked at in any case."""
FIRST = 8
"""Descriptors of a likely process that are looked at before those of others."""
YOUTH = 1.0
"""Seconds for which a process is young: many open a socket when they begin."""
MAX_REMEMBERED = 16384
"""Processes of which is known how many descriptors they had."""


class LikelyHolders:
    """A search that begins where new sockets are, most likely: in the newest processes, and in those that had the last ones.

    The newest ones are known without a list of all: the last number that was given away is in ``/proc/loadavg``. One
    thread at a time.

    Args:
        recent: Processes that held the last sockets, the last one last; shared with others, who add to it as well.
    """

    def __init__(self, recent: dict[int, None]) -> None:
        self._recent = recent
        self._last = 0
        self._numbers: dict[int, bool | None] = {}
        """Whether a number is that of a process; false for those of its other threads, and for those that are gone. `None`: nobody had it."""
        self._young: dict[int, float] = {}
        """Processes with the time at which they were seen first, the newest last."""
        self._begun: list[Iterator[Found]] = []
        """Tables of which the first descriptors were given."""
        self._sized = bool(size_of(os.getpid()))
        """The kernel says how many descriptors a process has."""
        self._places: dict[int, int] = {}
        """By which descriptor each of the recent holders had its last socket."""
        self._sizes: dict[int, tuple[int | None, int | None]] = {}
        """How many descriptors each process had at the last two looks."""

    def add(self, places: Iterable[Found]) -> None:
        """New sockets were found here."""
        for _, pid, thread, descriptor in places:
            if pid == thread:
                self._places[pid] = descriptor
            remember_holders(self._recent, (pid,))
        for pid in self._places.keys() - self._recent.keys() if len(self._places) > 2 * MOST_RECENT else ():
            del self._places[pid]

    def hot(self) -> Iterator[Found]:
        """The sockets of those that have new ones most likely; cheap enough for each look.

        First come single links, which cost a tenth of a table each: what the last holders have at the descriptor of their last
        socket, for whoever opens one after another has each at the lowest that is free, and what young processes have at
        their last descriptor, which is their newest mostly. Then come the tables of the last holders, and of young processes:
        `FIRST` descriptors of each.
        """
        recent = list(reversed(self._recent))[:HOT]
        self._begun = []
        for pid in recent:
            yield from self._at_its_place(pid)
        self._see_newest()
        young = []
        for pid in list(reversed(self._young)):
            yield 0, pid, pid, 0
            size = self._size_to_look_at(pid)
            if size is not None:
                young.append(pid)
                if size:
                    yield inode_at(pid, size - 1) or 0, pid, pid, size - 1
        for pid in recent:
            yield from self._first_of(pid, always=True)
        for pid in young:
            yield from self._table_of(pid)

    def near(self) -> Iterator[Found]:
        """The sockets of likely processes with no more than `TURN` descriptors, behind what `hot` gave.

        Those are the other recent holders, and of the newest processes those that have another number of descriptors than at
        the last look, as far as the kernel says it. Each gives `FIRST` descriptors before any gives more.
        """
        recent = list(reversed(self._recent))[HOT:]
        for pid in recent:
            yield from self._at_its_place(pid)
        numbers = range(self._last, max(0, self._last - NEWEST), -1)
        newest = [number for number in numbers if self._numbers.get(number) and number not in self._young]
        for pid in dict.fromkeys([*recent, *newest]):
            yield from self._first_of(pid, always=False)
        for table in self._begun:
            yield from table

    def _first_of(self, pid: int, *, always: bool) -> Iterator[Found]:
        yield 0, pid, pid, 0
        if self._size_to_look_at(pid, always=always) is not None:
            yield from self._table_of(pid)

    def _size_to_look_at(self, pid: int, *, always: bool = False) -> int | None:
        """How many descriptors a process has; `None` if they are too many, or, unless it is `always` looked at, as many as before."""
        size = size_of(pid)
        if size is None or (self._sized and not size):  # gone, or a zombie
            self._forget(pid)
            return None
        return size if size <= TURN and (self._has_changed(pid, size) or always or not size) else None

    def _table_of(self, pid: int) -> Iterator[Found]:
        table = _first_sockets(pid, FIRST)
        yield from islice(table, FIRST)
        self._begun.append(table)

    def _at_its_place(self, pid: int) -> Iterator[Found]:
        place = self._places.get(pid)
        if place is None:
            return
        inode = inode_at(pid, place)
        if inode is None:
            del self._places[pid]
            if size_of(pid) is None:
                self._forget(pid)
        else:
            yield inode, pid, pid, place

    def _forget(self, pid: int) -> None:
        self._numbers[pid] = False
        self._young.pop(pid, None)
        self._recent.pop(pid, None)
        self._places.pop(pid, None)

    def far(self) -> Iterator[Found]:
        """The sockets of all that have another number of descriptors than at the last look; of all where the kernel does not say it.

        No process gives more than `TURN` descriptors before all others had their turn.
        """
        for pid in all_pids():
            yield 0, pid, pid, 0
            size = size_of(pid)
            if size and self._has_changed(pid, size):
                yield from _first_sockets(pid)
        if not self._sized:
            yield from Walk((), (), frozenset())

    def _has_changed(self, pid: int, size: int) -> bool:
        """True if a process has more or fewer descriptors than at one of the last two looks (since Linux 6.2).

        What it opened behind a dump and before the look at it is in the next dump only.
        """
        before, last = self._sizes.get(pid, (None, None))
        if len(self._sizes) > MAX_REMEMBERED:
            self._sizes.clear()
        self._sizes[pid] = last, size
        return not before == last == size

    def _see_newest(self) -> None:
        """Learn which of the last numbers that were given away are processes; those that are new wait to be looked at."""
        try:
            with open("/proc/loadavg", "rb") as file:
                last = int(file.read().split()[-1])
        except (OSError, IndexError, ValueError):
            return
        if last < self._last or len(self._numbers) > MAX_REMEMBERED:  # numbers begin anew
            self._numbers.clear()
        self._last, now = last, time.monotonic()
        for number in [number for number, since in self._young.items() if since < now - YOUTH]:
            del self._young[number]
        for number in range(max(0, last - NEWEST) + 1, last + 1):
            if self._numbers.get(number) is None:
                is_process = _is_process(number)
                # One that nobody has may be given away and not be there yet: it is asked for once more.
                self._numbers[number] = is_process or (False if number in self._numbers else is_process)
                if is_process:
                    self._young[number] = now


def _is_process(number: int) -> bool | None:
    """False for the number of a thread that is not the first of its process; `None` for one that nobody has."""
    try:
        os.close(os.pidfd_open(number))  # a quarter of the price of reading its status
    except ProcessLookupError:
        return None
    except OSError as error:
        # A thread: EINVAL, and ENOENT since Linux 6.15 (``pidfd_prepare`` of kernel/fork.c).
        return False if error.errno in {errno.EINVAL, errno.ENOENT} else _leads_its_threads(number)
    except AttributeError:
        return _leads_its_threads(number)
    return True


def _leads_its_threads(number: int) -> bool | None:
    try:
        with open(f"/proc/{number}/status", "rb") as file:
            return b"\nTgid:\t%d\n" % number in file.read(512)
    except OSError:
        return None


def _first_sockets(pid: int, first: int = AT_ONCE) -> Iterator[Found]:
    with contextlib.suppress(PermissionError):
        for inode, number in islice(links(pid, first), TURN):
            yield inode, pid, pid, number


def remember_holders(recent: dict[int, None], pids: Iterable[int]) -> None:
    """Put these processes at the end of the recent ones, of which there are `MOST_RECENT`."""
    for pid in reversed(dict.fromkeys(reversed(list(pids)))):
        recent.pop(pid, None)
        recent[pid] = None
    while len(recent) > MOST_RECENT:
        recent.pop(next(iter(recent), 0), None)
