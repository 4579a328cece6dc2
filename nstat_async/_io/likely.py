"""Searches for the processes of new sockets within a few milliseconds: the likeliest ones first."""

# ruff: noqa: PTH123
# Files of /proc are opened as they are.

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from .processes import read_file
from .tables import AT_ONCE, Found, all_pids, inode_at, links, size_of
from .walk import TURN, Walk

NEWEST = 128
"""How many of the last pids that the kernel gave are examined: a new socket's process is probably among them."""
MOST_RECENT = 256
"""Most processes that are remembered because they held the last sockets."""
HOT = 8
"""How many of those are always examined."""
WAITING = 16
"""How many of the newest pids may be given but not visible yet."""
FIRST = 8
"""How many descriptors of a likely process are examined before those of others."""
YOUTH = 1.0
"""Seconds for which a process is young: many open a socket when they start."""
MOST_PLACES = 8
"""Most descriptors that are remembered of each process: a server has some connections at once."""
MAX_REMEMBERED = 16384
"""Most processes whose number of descriptors is remembered."""


class LikelyHolders:
    """Searches for new sockets first in the newest processes, and in those that had the last sockets.

    The newest processes are known without a list of all: the last pid that the kernel gave is in ``/proc/loadavg``. Only
    one thread at a time may use it.

    Args:
        recent: Processes that held the last sockets, the last one last; others share it and add to it as well.
    """

    def __init__(self, recent: dict[int, None]) -> None:
        self._recent = recent
        self._last = 0
        self._numbers: dict[int, bool | None] = {}
        """Whether a pid is that of a process; false for a thread's, and for one that is gone. `None`: none had it yet."""
        self._young: dict[int, float] = {}
        """Young processes with the time at which they were first seen, the newest last."""
        self._begun: list[Iterator[Found]] = []
        """Iterators over tables; they gave the first descriptors."""
        self._changed: list[int] = []
        """Young processes whose number of descriptors changed."""
        self._unchanged: list[int] = []
        """Young processes that have as many as before, or very many."""
        self._sized = bool(size_of(os.getpid()))
        """True if the kernel tells how many descriptors a process has."""
        self._places: dict[int, dict[int, None]] = {}
        """The descriptors of the last sockets of each recent holder, the last one last."""
        self._usual = 0
        """The descriptor of a socket in the last young process: the next young process probably runs the same program."""
        self._far = sys.maxsize
        """The process that `far` examined last."""
        self._sizes: dict[int, tuple[int | None, int | None]] = {}
        """The number of descriptors of each process at the last two looks."""

    def add(self, places: Iterable[Found]) -> None:
        """Remember that new sockets were found here."""
        for _, pid, thread, descriptor in places:
            if pid == thread:
                remember(self._places.setdefault(pid, {}), descriptor, MOST_PLACES)
                self._usual = descriptor if pid in self._young else self._usual
            remember_holders(self._recent, (pid,))
        for pid in self._places.keys() - self._recent.keys() if len(self._places) > 2 * MOST_RECENT else ():
            del self._places[pid]

    def ends(self) -> Iterator[Found]:
        """Single links, each a tenth of the cost of a table: probably what the likeliest processes opened last.

        For the last holders these are the descriptors of their last sockets: a process that opens one socket after another
        gets the lowest free descriptor each time. For young processes it is the descriptor that the young process before had
        for its socket, or the last descriptor.
        """
        self._begun, self._changed, self._unchanged = [], [], []
        for pid in self._hottest():
            yield from self._at_its_places(pid)
        self._see_newest()
        for pid in list(reversed(self._young)):
            yield 0, pid, pid, 0
            size = self._size_to_look_at(pid)
            if size is None:
                self._unchanged.append(pid)
                continue
            self._changed.append(pid)
            for descriptor in {self._usual, size - 1} if size else ():
                yield inode_at(pid, descriptor) or 0, pid, pid, descriptor

    def hot(self) -> Iterator[Found]:
        """The tables of the same processes, after `ends`: `FIRST` descriptors of each, usually its newest.

        A young process that closed a socket and opened the next one has as many descriptors as before.
        """
        for pid in self._unchanged if self._usual else ():
            if pid not in self._places:
                yield inode_at(pid, self._usual) or 0, pid, pid, self._usual
        for pid in self._hottest():
            yield from self._first_of(pid, always=True)
        for pid in self._changed:
            yield from self._table_of(pid)

    def _hottest(self) -> list[int]:
        return list(reversed(self._recent))[:HOT]

    def near(self) -> Iterator[Found]:
        """The sockets of likely processes with at most `TURN` descriptors, after those of `hot`.

        These are the other recent holders, and the newest processes whose number of descriptors changed since the last look
        (if the kernel tells it). Each gives `FIRST` descriptors before any gives more.
        """
        recent = list(reversed(self._recent))[HOT:]
        for pid in recent:
            yield from self._at_its_places(pid)
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
        """How many descriptors a process has; `None` if too many, or, unless it is `always` examined, if as many as before."""
        size = size_of(pid)
        if size is None or (self._sized and not size):  # gone, or a zombie
            self._forget(pid)
            return None
        return size if size <= TURN and (self._has_changed(pid, size) or always or not size) else None

    def _table_of(self, pid: int) -> Iterator[Found]:
        table = _first_sockets(pid, FIRST)
        yield from islice(table, FIRST)
        self._begun.append(table)

    def _at_its_places(self, pid: int) -> Iterator[Found]:
        places = self._places.get(pid, {})
        inodes = [inode_at(pid, place) for place in places]
        for inode, place in zip(inodes, places, strict=True):
            yield inode or 0, pid, pid, place
        if inodes and not any(inodes):
            self._places[pid] = dict.fromkeys(list(places)[-1:])  # the next socket gets it, if all are closed
            if size_of(pid) is None:
                self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._numbers[pid] = False
        self._young.pop(pid, None)
        self._recent.pop(pid, None)
        self._places.pop(pid, None)

    def far(self) -> Iterator[Found]:
        """The sockets of all processes whose number of descriptors changed; of all processes if the kernel does not tell it.

        It goes on where the last one was cut off: those of thousands of processes that come last would never have a turn.
        No process gives more than `TURN` descriptors before all others had a turn.
        """
        for pid in sorted(all_pids(), key=lambda pid: pid > self._far):  # the order stays the same otherwise
            self._far = pid
            yield 0, pid, pid, 0
            size = size_of(pid)
            if size and self._has_changed(pid, size):
                yield from _first_sockets(pid)
        if not self._sized:
            yield from Walk((), None, frozenset())

    def start_over(self) -> None:
        """Let `far` begin with the newest process again: nothing is left to search for."""
        self._far = sys.maxsize

    def _has_changed(self, pid: int, size: int) -> bool:
        """True if a process's number of descriptors differs from one of the last two looks (since Linux 6.2).

        A socket that it opened after a dump, but before it was examined, is only in the next dump.
        """
        before, last = self._sizes.get(pid, (None, None))
        if len(self._sizes) > MAX_REMEMBERED:
            self._sizes.clear()
        self._sizes[pid] = last, size
        return not before == last == size

    def _see_newest(self) -> None:
        """Learn which of the last pids are processes; new ones wait to be examined."""
        try:
            last = int(read_file("/proc/loadavg").split()[-1])
        except (OSError, IndexError, ValueError):
            return
        if last < self._last or len(self._numbers) > MAX_REMEMBERED:  # pids started over
            self._numbers.clear()
            self._last = 0
        first = max(0, last - NEWEST) + 1
        waiting = [
            number for number in range(max(first, self._last - WAITING), last + 1) if self._numbers.get(number) is None
        ]
        self._last, now = last, time.monotonic()
        for number in [number for number, since in self._young.items() if since < now - YOUTH]:
            del self._young[number]
        for number in waiting:
            is_process = _is_process(number)
            # A pid without a process may be given but not visible yet: ask once more.
            self._numbers[number] = is_process or (False if number in self._numbers else is_process)
            if is_process:
                self._young[number] = now


def _is_process(number: int) -> bool | None:
    """False for the number of a thread that is not the first of its process; `None` if there is no such thread."""
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
    """Put these processes at the end of the recent ones, of which `MOST_RECENT` are kept."""
    for pid in reversed(dict.fromkeys(reversed(list(pids)))):
        remember(recent, pid, MOST_RECENT)


def remember(recent: dict[int, None], number: int, most: int) -> None:
    """Put a number at the end of the remembered ones, and forget the oldest if there are more than `most`."""
    recent.pop(number, None)
    recent[number] = None
    while len(recent) > most:
        recent.pop(next(iter(recent), 0), None)
