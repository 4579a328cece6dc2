"""Which process owns a socket: by its inode, looked up in the background.

The core asks for the inodes it does not know (`OwnersRequest`); the transport
searches ``/proc/*/fd`` for a bounded time and answers what it found and where to
go on. An inode that a whole search did not find belongs to a process that may not
be seen, or to none any more: it is asked for again ever more rarely.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from .._model import Process
from ._table import Entry

__all__ = [
    "OwnerBook",
    "OwnersAnswer",
    "OwnersRequest",
    "ProcessFacts",
]

RECENT_PIDS = 64
"""Processes that owned the last sockets found: searched first."""
MAX_PAUSE = 64
"""Polls between two searches for an inode that is never found."""
VERIFY_EVERY = 5
"""Polls between two checks that the known owners still live."""


@attrs.frozen
class ProcessFacts:
    """What the host tells of a process."""

    pid: int
    start_ticks: int | None
    """Start, clock ticks since boot: with the pid it names the process for good."""
    name: str | None
    """Base name of the executable, else ``comm``."""
    path: str | None
    """Path of the executable; `None` where it may not be read."""


@attrs.frozen
class OwnersRequest:
    """Search for the owners of sockets."""

    inodes: frozenset[int]
    recent: tuple[int, ...] = ()
    """Pids to look at first."""
    below: int | None = None
    """Where the last answer stopped: only pids below this one; `None` begins a search."""
    verify: tuple[tuple[int, int | None], ...] = ()
    """Processes (pid, start) to check for life."""


@attrs.frozen
class OwnersAnswer:
    """What a search found."""

    owners: tuple[tuple[int, int], ...] = ()
    """Inode and pid."""
    processes: tuple[ProcessFacts, ...] = ()
    """Facts of the pids in `owners`."""
    below: int | None = None
    """The search is not complete: go on below this pid."""
    gone: tuple[tuple[int, int | None], ...] = ()
    """Those of the request's `verify` that are no more."""


class OwnerBook:
    """The sockets whose owner is wanted, and the processes found so far."""

    def __init__(self) -> None:
        self.wanted: dict[int, Entry] = {}
        """Sockets by inode that the search under way, or the next one, is about."""
        self._searched: dict[int, Entry] = {}
        self._inodes: frozenset[int] = frozenset()
        self._parked: dict[int, list[Entry]] = {}
        self._tries: dict[int, int] = {}
        self._processes: dict[tuple[int, int | None, int], Process] = {}
        self._recent: dict[int, None] = {}
        self._poll = 0

    @property
    def unresolved(self) -> int:
        """Sockets whose owner was searched for and not found."""
        return len(self._tries)

    def want(self, entry: Entry) -> None:
        """Find this socket's owner."""
        if entry.inode:
            self._tries.pop(entry.inode, None)
            self.wanted[entry.inode] = entry

    def forget(self, entry: Entry) -> None:
        """The socket is gone."""
        if entry.inode:
            self.wanted.pop(entry.inode, None)
            self._searched.pop(entry.inode, None)
            self._tries.pop(entry.inode, None)

    def begin(self, poll: int) -> OwnersRequest | None:
        """The request of a new search; `None` when nobody is wanted and no check is due."""
        self._poll = poll
        for due in [number for number in self._parked if number <= poll]:
            for entry in self._parked.pop(due):
                if not entry.over and entry.inode in self._tries:
                    self.wanted[entry.inode] = entry
        verify: tuple[tuple[int, int | None], ...] = ()
        if poll % VERIFY_EVERY == 0:
            verify = tuple({(pid, start): None for pid, start, _ in self._processes})
        if not self.wanted and not verify:
            return None
        self._searched = dict(self.wanted)
        self._inodes = frozenset(self._searched)
        return OwnersRequest(self._inodes, tuple(reversed(self._recent)), None, verify)

    def resume(self, answer: OwnersAnswer) -> OwnersRequest | None:
        """The request that goes on where `answer` stopped; `None` when the search is complete."""
        if answer.below is not None and self._searched:
            return OwnersRequest(self._inodes, (), answer.below)
        self._park()
        return None

    def _park(self) -> None:
        for inode, entry in self._searched.items():
            self.wanted.pop(inode, None)
            tries = self._tries.get(inode, 0)
            self._tries[inode] = tries + 1
            pause = min(MAX_PAUSE, 1 << min(tries, 10))
            self._parked.setdefault(self._poll + pause, []).append(entry)
        self._searched = {}

    def settle(self, answer: OwnersAnswer) -> list[tuple[Entry, Process]]:
        """The sockets whose owner an answer tells, with it."""
        facts = {process.pid: process for process in answer.processes}
        found = []
        for inode, pid in answer.owners:
            self._searched.pop(inode, None)
            self._tries.pop(inode, None)
            entry = self.wanted.pop(inode, None)
            known = facts.get(pid)
            if entry is not None and known is not None and not entry.over:
                found.append((entry, self._process(known, entry.uid)))
        return found

    def _process(self, facts: ProcessFacts, uid: int) -> Process:
        key = (facts.pid, facts.start_ticks, uid)
        process = self._processes.get(key)
        if process is None or (process.name, process.path) != (facts.name, facts.path):
            process = Process(facts.pid, facts.name, facts.start_ticks, uid=uid, path=facts.path)
            self._processes[key] = process
        self._recent.pop(facts.pid, None)
        self._recent[facts.pid] = None
        if len(self._recent) > RECENT_PIDS:
            del self._recent[next(iter(self._recent))]
        return process

    def bury(self, gone: Iterable[tuple[int, int | None]], entries: Iterable[Entry]) -> None:
        """Processes ended: sockets of theirs that live on have another owner now, if any."""
        dead = set(gone)
        if not dead:
            return
        for key in [key for key in self._processes if key[:2] in dead]:
            del self._processes[key]
        for entry in entries:
            if entry.owner is not None and entry.owner.key in dead:
                self.want(entry)
