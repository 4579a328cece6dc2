"""A search for new sockets, in few milliseconds: it begins where they are, most likely."""

# ruff: noqa: PTH123
# Files of /proc are opened as they are.

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice

from .tables import Found, all_pids, inode_of, links, size_of
from .walk import TURN, Walk

NEWEST = 128
"""Numbers of processes, the last ones given away, among which a new socket's is most likely."""
BEING_BORN = 16
"""The last numbers of these are given away, perhaps, and not there yet."""
MOST_RECENT = 256
"""Processes that held the last sockets."""
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
        self._numbers: dict[int, bool] = {}
        """Whether a number is that of a process; false for those of its other threads, and for those that are gone."""
        self._sizes: dict[int, int] = {}
        """How many descriptors each process had at the last look."""

    def add(self, pids: Iterable[int]) -> None:
        """These held new sockets."""
        remember_holders(self._recent, pids)

    def places(self) -> Iterator[Found]:
        """Every socket, up to `TURN` descriptors of a process before all others had their turn.

        First of likely processes, then of any that have another number of descriptors than at the last look (since
        Linux 6.2), then of the likely ones that have not, then of all.
        """
        likely = dict.fromkeys([*self._newest(), *reversed(list(self._recent))])
        unchanged = []
        for pid in _and_others(likely):
            yield 0, pid, pid, 0
            changed = self._has_changed(pid)
            if changed or (changed is None and pid in likely):
                yield from _first_sockets(pid)
            elif pid in likely:
                unchanged.append(pid)
        for pid in unchanged:
            yield from _first_sockets(pid)
        yield from Walk((), (), frozenset())

    def _has_changed(self, pid: int) -> bool | None:
        """True if a process has more or fewer descriptors than at the last look; `None` where the kernel does not say."""
        before, size = self._sizes.get(pid), size_of(pid)
        if size is None:
            self._numbers[pid] = False
            self._recent.pop(pid, None)
            return False
        if len(self._sizes) > MAX_REMEMBERED:
            self._sizes.clear()
        self._sizes[pid] = size
        return before != size if size else None

    def _newest(self) -> Iterator[int]:
        try:
            with open("/proc/loadavg", "rb") as file:
                last = int(file.read().split()[-1])
        except (OSError, IndexError, ValueError):
            return
        if last < self._last or len(self._numbers) > MAX_REMEMBERED:  # numbers begin anew
            self._numbers.clear()
        self._last = last
        for number in range(last, max(0, last - NEWEST), -1):
            known = self._numbers.get(number)
            if known is None:
                known = _is_process(number)
                if known is not None or number <= last - BEING_BORN:
                    self._numbers[number] = bool(known)
            if known:
                yield number


def _is_process(number: int) -> bool | None:
    """False for the number of a thread that is not the first of its process; `None` for one that nobody has."""
    try:
        with open(f"/proc/{number}/status", "rb") as file:
            return b"\nTgid:\t%d\n" % number in file.read(512)
    except OSError:
        return None


def _and_others(likely: dict[int, None]) -> Iterator[int]:
    """These processes, and then, if there is a then, the rest: it takes a while to list them."""
    yield from likely
    yield from (pid for pid in all_pids() if pid not in likely)


def _first_sockets(pid: int) -> Iterator[Found]:
    with contextlib.suppress(PermissionError):
        for target, number in islice(links(pid), TURN):
            yield inode_of(target), pid, pid, number


def remember_holders(recent: dict[int, None], pids: Iterable[int]) -> None:
    """Put these processes at the end of the recent ones, of which there are `MOST_RECENT`."""
    for pid in pids:
        recent.pop(pid, None)
        recent[pid] = None
    while len(recent) > MOST_RECENT:
        recent.pop(next(iter(recent), 0), None)
