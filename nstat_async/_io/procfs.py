"""Who owns a socket, from ``/proc``: see ``proc(5)``, ``/proc/PID/fd`` and ``/proc/PID/stat``.

A search walks the descriptors of processes for links named ``socket:[INODE]``. It is
cut into pieces of bounded time; between two pieces the caller may do what it
likes, and the next one goes on at lower pids.
"""

# ruff: noqa: PTH115, PTH119, PTH123, PTH208
# Paths of /proc and /sys are read thousands at a time: as strings.

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

from ..sockdiag import OwnersAnswer, OwnersRequest, ProcessFacts

BUDGET = 0.02
"""Seconds of searching in one answer."""
MAX_FOUND = 1000
"""Owners in one answer: what the event loop takes in at once."""
MAX_REMEMBERED = 4096
"""Processes whose facts are kept between searches."""
_PREFIX = "socket:["
_DELETED = " (deleted)"


def start_ticks(pid: int) -> int | None:
    """When a process started, clock ticks since boot (field 22 of ``stat``); `None` when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None
    # The name in parentheses may hold anything, parentheses included: count from the last one.
    fields = data[data.rfind(b")") + 2 :].split()
    try:
        return int(fields[19])
    except (IndexError, ValueError):
        return None


def process_facts(pid: int) -> ProcessFacts:
    """Name, path and start of a process; what cannot be read is `None`.

    The name is the executable's base name, because ``comm`` ends after 15 characters.
    """
    path = None
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    return ProcessFacts(pid, start_ticks(pid), os.path.basename(path) if path else _comm(pid), path)


def _comm(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "replace") or None
    except OSError:
        return None


def _sockets_of(pid: int) -> Iterator[int]:
    """Inodes of the sockets a process has open, 0 for other descriptors; nothing when it is gone or not ours to see."""
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")
        except OSError:
            continue
        yield int(target[len(_PREFIX) : -1]) if target.startswith(_PREFIX) else 0


def _all_sockets(recent: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Every socket inode with its pid: recent owners first, then from the newest pid down.

    New sockets belong to processes that had some already, or to new ones. Each process
    gives one pair with inode 0 at least, so that a caller's clock is looked at.
    """
    first = dict.fromkeys(recent)
    for pid in first:
        for inode in _sockets_of(pid):
            yield inode, pid
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True):
        if pid not in first:
            yield 0, pid
            for inode in _sockets_of(pid):
                yield inode, pid


class ProcessScanner:
    """Answers `OwnersRequest`; one thread at a time."""

    def __init__(self, budget: float = BUDGET) -> None:
        self._budget = budget
        self._missing: set[int] = set()
        self._walk: Iterator[tuple[int, int]] = iter(())
        self._facts: dict[int, ProcessFacts] = {}

    def answer(self, request: OwnersRequest) -> OwnersAnswer:
        """Search for at most the budget; a request with ``below`` goes on where the last answer stopped."""
        until = time.monotonic() + self._budget
        gone = tuple(key for key in request.verify if start_ticks(key[0]) != key[1])
        for pid, _ in gone:
            self._facts.pop(pid, None)
        if request.below is None:
            self._missing = set(request.inodes)
            self._walk = _all_sockets(request.recent)
        found, below = self._search(until)
        processes = tuple(self._known(pid) for pid in dict.fromkeys(pid for _, pid in found))
        return OwnersAnswer(tuple(found), processes, below, gone)

    def _search(self, until: float) -> tuple[list[tuple[int, int]], int | None]:
        """The owners found, and the pid where time or room ended; `None` when the search is complete."""
        found: list[tuple[int, int]] = []
        missing = self._missing
        if not missing:
            return found, None
        for inode, pid in self._walk:
            if inode in missing:
                missing.discard(inode)
                found.append((inode, pid))
                if not missing:
                    break
            if len(found) >= MAX_FOUND or time.monotonic() >= until:
                return found, pid
        return found, None

    def _known(self, pid: int) -> ProcessFacts:
        """Facts of a process, remembered while its start time is the same (a pid may be reused)."""
        known = self._facts.get(pid)
        if known is None or known.start_ticks is None or known.start_ticks != start_ticks(pid):
            known = process_facts(pid)
            if len(self._facts) >= MAX_REMEMBERED:
                self._facts.clear()
            self._facts[pid] = known
        return known
