"""Evidence of owners: which process holds a socket, by its inode, looked up in the background.

The core asks for the inodes it does not know (`OwnersRequest`); the transport
searches ``/proc/*/fd`` for a bounded time and answers what it found and where to
go on. An inode that a whole search did not find belongs to a process that may not
be seen, or to none any more: it is asked for again ever more rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .._contract import LookupFailed
from .._model import Process
from ._entry import Entry
from ._output import Output
from ._setup import OwnersAnswer, OwnersRequest, ProcessesAnswer, ProcessesRequest, ProcessFacts

RECENT_PIDS = 64
"""Processes that owned the last sockets found: searched first."""
MAX_PAUSE = 64
"""Polls between two searches for an inode that is never found."""
MAX_PROCESSES = 100_000
"""Processes that are remembered."""
VERIFY_EVERY = 5
"""Polls between two checks that the known owners still live."""


class OwnerSource:
    """Evidence of owners: the sockets whose owner is wanted, and the processes found so far.

    Several sockets may have one inode (MPTCP's subflows have their connection's): each gets its owner.

    Args:
        output: Where questions go.
        found: Called with a socket and its process.
        entries: All sockets, to look at when processes ended.
    """

    def __init__(
        self,
        output: Output,
        found: Callable[[Entry, Process], None],
        entries: Callable[[], Iterable[Entry]],
    ) -> None:
        self.searching = False
        """A search is under way."""
        self.failure: str | None = None
        """Why the last search failed."""
        self._output = output
        self._found = found
        self._entries = entries
        self._sought: dict[int, Entry] = {}
        """Inodes without an owner, with a socket that has it."""
        self._sharing: dict[int, dict[Entry, None]] = {}
        """All sockets of an inode, where there are several."""
        self._due: dict[int, None] = {}
        """What the next search is about; dictionaries take less than sets."""
        self._searched: dict[int, None] = {}
        """What the search under way has not found."""
        self._tries: dict[int, int] = {}
        self._parked: dict[int, set[int]] = {}
        """Inodes that were not found, by the poll that looks again."""
        self._inodes: frozenset[int] = frozenset()
        self._again = False
        self._processes: dict[tuple[int, int | None, int], Process] = {}
        self._recent: dict[int, None] = {}
        self._nameless: dict[tuple[int, int | None], list[Entry]] = {}
        """Processes that were seen by a record, which has no path of them, with their sockets."""
        self._naming: dict[tuple[int, int | None], list[Entry]] = {}
        """The same, of the question that is under way."""

    @property
    def unresolved(self) -> int:
        """Inodes whose owner was searched for and not found."""
        return len(self._tries)

    def want(self, entry: Entry) -> None:
        """Find this socket's owner."""
        inode = entry.user[1]
        if not inode or entry.used_by is not None:
            return
        first = self._sought.setdefault(inode, entry)
        if first is not entry:
            self._sharing.setdefault(inode, {first: None})[entry] = None
        self._tries.pop(inode, None)
        self._due[inode] = None

    def forget(self, entry: Entry, inode: int) -> None:
        """The socket is gone, or has this inode no more."""
        sharing = self._sharing.get(inode)
        if sharing is not None:
            sharing.pop(entry, None)
            if sharing:
                self._sought[inode] = next(iter(sharing))
                return
        elif self._sought.get(inode) is not entry:
            return
        self._pop(inode)
        self._searched.pop(inode, None)

    def _pop(self, inode: int) -> Iterable[Entry]:
        """Seek this inode no longer; the sockets that have it."""
        self._tries.pop(inode, None)
        self._due.pop(inode, None)
        entry = self._sought.pop(inode, None)
        return self._sharing.pop(inode, () if entry is None else (entry,))

    def search(self) -> None:
        """Search for who is wanted, and check now and then that known owners live; once more if a search is under way."""
        if self.searching:
            self._again = True
            return
        poll = self._output.poll
        for number in [number for number in self._parked if number <= poll]:
            self._due.update(dict.fromkeys(self._parked.pop(number) & self._tries.keys()))
        verify: tuple[tuple[int, int | None], ...] = ()
        if poll % VERIFY_EVERY == 0:
            verify = tuple({(pid, start): None for pid, start, _ in self._processes})
        if self._due or verify:
            self._inodes = frozenset(self._due)
            self._searched, self._due = self._due, {}
            self._ask(OwnersRequest(self._inodes, tuple(reversed(self._recent)), None, verify))

    def _ask(self, request: OwnersRequest) -> None:
        self.searching = True
        self._output.ask(request, self.take)

    def take(self, answer: Any) -> None:
        """Take in what a piece of the search found; without an answer the search is over."""
        self.searching = False
        self.failure = answer.reason if isinstance(answer, LookupFailed) else None
        if not isinstance(answer, OwnersAnswer):
            self._due.update(self._searched)
            self._searched, self._again = {}, False
            return
        self._settle(answer)
        self._bury(answer.gone)
        if answer.below is not None and self._searched:
            self._ask(OwnersRequest(self._inodes, (), answer.below))
            return
        self._park()
        if self._again:
            self._again = False
            self.search()

    def give_up(self) -> None:
        """Following: no more answers will come to this search."""
        self.searching = False

    def _settle(self, answer: OwnersAnswer) -> None:
        facts = {process.pid: process for process in answer.processes}
        for inode, pid in answer.owners:
            known = facts.get(pid)
            if known is not None:
                self._searched.pop(inode, None)
                for entry in self._pop(inode):
                    self._found(entry, self._process(known, entry.user[0]))

    def _process(self, facts: ProcessFacts, uid: int) -> Process:
        key = (facts.pid, facts.start_ticks, uid)
        process = self._processes.get(key)
        if process is None or (process.name, process.path) != (facts.name, facts.path):
            process = Process(facts.pid, facts.name, facts.start_ticks, uid=uid, path=facts.path)
            self._processes[key] = process
            if len(self._processes) > MAX_PROCESSES:
                del self._processes[next(iter(self._processes))]
        self._recent.pop(facts.pid, None)
        self._recent[facts.pid] = None
        if len(self._recent) > RECENT_PIDS:
            del self._recent[next(iter(self._recent))]
        return process

    def _park(self) -> None:
        """A whole search did not find these: they are asked for again ever more rarely."""
        for inode in self._searched:
            tries = self._tries.get(inode, 0)
            self._tries[inode] = tries + 1
            pause = min(MAX_PAUSE, 1 << min(tries, 10))
            self._parked.setdefault(self._output.poll + pause, set()).add(inode)
        self._searched = {}

    def _bury(self, gone: Iterable[tuple[int, int | None]]) -> None:
        """Processes ended: sockets of theirs that live on have another owner now, if any."""
        dead = set(gone)
        if not dead:
            return
        for key in [key for key in self._processes if key[:2] in dead]:
            del self._processes[key]
        for entry in self._entries():
            if entry.owner is not None and entry.owner.key in dead:
                entry.used_by = None
                self.want(entry)

    # -- processes that are known by their records

    def seen(self, entry: Entry, facts: ProcessFacts, uid: int) -> Process:
        """The process that a record has beside this socket, with all that is known of it by now."""
        process = self._processes.get((facts.pid, facts.start_ticks, uid)) or self._process(facts, uid)
        if process.path is None:
            self._nameless.setdefault(process.key, []).append(entry)
        return process

    def ask_names(self) -> None:
        """Ask for what records do not tell of processes."""
        if self._nameless and not self._naming:
            self._naming, self._nameless = self._nameless, {}
            self._output.ask(ProcessesRequest(tuple(self._naming)), self.take_names)

    def take_names(self, answer: Any) -> None:
        """Take in the facts of processes that are still there."""
        naming, self._naming = self._naming, {}
        for facts in answer.processes if isinstance(answer, ProcessesAnswer) else ():
            key = (facts.pid, facts.start_ticks)
            for entry in naming.get(key, ()):
                if entry.owner is not None and entry.owner.key == key:
                    self._found(entry, self._process(facts, entry.user[0]))
