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

from .processes import read_file
from .tables import AT_ONCE, Found, all_pids, inode_at, links, size_of
from .walk import TURN, Walk

NEWEST = 128
"""Numbers of processes, the last ones given away, among which a new socket's is most likely."""
MOST_RECENT = 256
"""Processes that held the last sockets."""
HOT = 8
"""Those of them that are looked at in any case."""
WAITING = 16
"""Those among them that may be given away and not be there yet."""
FIRST = 8
"""Descriptors of a likely process that are looked at before those of others."""
YOUTH = 1.0
"""Seconds for which a process is young: many open a socket when they begin."""
MOST_PLACES = 4
"""Descriptors that are remembered of each: a server has some connections at once."""
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
        self._changed: list[int] = []
        """Young processes with another number of descriptors than before."""
        self._sized = bool(size_of(os.getpid()))
        """The kernel says how many descriptors a process has."""
        self._places: dict[int, dict[int, None]] = {}
        """By which descriptors each of the recent holders had its last sockets, the last one last."""
        self._usual = 0
        """By which descriptor a young process had its last one: the next one runs the same program, most likely."""
        self._sizes: dict[int, tuple[int | None, int | None]] = {}
        """How many descriptors each process had at the last two looks."""

    def add(self, places: Iterable[Found]) -> None:
        """New sockets were found here."""
        for _, pid, thread, descriptor in places:
            if pid == thread:
                remember(self._places.setdefault(pid, {}), descriptor, MOST_PLACES)
                self._usual = descriptor if pid in self._young else self._usual
            remember_holders(self._recent, (pid,))
        for pid in self._places.keys() - self._recent.keys() if len(self._places) > 2 * MOST_RECENT else ():
            del self._places[pid]

    def ends(self) -> Iterator[Found]:
        """Single links, which cost a tenth of a table each: what the likeliest processes opened last, most likely.

        Of the last holders that is what they have at the descriptors of their last sockets, for whoever opens one after another
        has each at the lowest that is free; of young processes what they have where the one before had its socket, or at their
        last descriptor.
        """
        self._begun, self._changed = [], []
        for pid in self._hottest():
            yield from self._at_its_places(pid)
        self._see_newest()
        for pid in list(reversed(self._young)):
            yield 0, pid, pid, 0
            size = self._size_to_look_at(pid)
            if size is not None:
                self._changed.append(pid)
                for descriptor in {self._usual, size - 1} if size else ():
                    yield inode_at(pid, descriptor) or 0, pid, pid, descriptor

    def hot(self) -> Iterator[Found]:
        """The tables of the same, behind `ends`: `FIRST` descriptors of each, its newest mostly."""
        for pid in self._hottest():
            yield from self._first_of(pid, always=True)
        for pid in self._changed:
            yield from self._table_of(pid)

    def _hottest(self) -> list[int]:
        return list(reversed(self._recent))[:HOT]

    def near(self) -> Iterator[Found]:
        """The sockets of likely processes with no more than `TURN` descriptors, behind what `hot` gave.

        Those are the other recent holders, and of the newest processes those that have another number of descriptors than at
        the last look, as far as the kernel says it. Each gives `FIRST` descriptors before any gives more.
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

    def _at_its_places(self, pid: int) -> Iterator[Found]:
        places = self._places.get(pid, {})
        inodes = [inode_at(pid, place) for place in places]
        for inode, place in zip(inodes, places, strict=True):
            yield inode or 0, pid, pid, place
        if inodes and not any(inodes):
            del self._places[pid]
            if size_of(pid) is None:
                self._forget(pid)

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
            yield from Walk((), None, frozenset())

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
            last = int(read_file("/proc/loadavg").split()[-1])
        except (OSError, IndexError, ValueError):
            return
        if last < self._last or len(self._numbers) > MAX_REMEMBERED:  # numbers begin anew
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
        remember(recent, pid, MOST_RECENT)


def remember(recent: dict[int, None], number: int, most: int) -> None:
    """Put a number at the end of those that are remembered, of which there are so many at most."""
    recent.pop(number, None)
    recent[number] = None
    while len(recent) > most:
        recent.pop(next(iter(recent), 0), None)
