"""Evidence of owners: which process holds a socket, looked up by the socket's inode in the background.

The core asks for inodes without a known owner (`OwnersRequest`). The transport searches ``/proc/*/fd`` for a bounded
time, and answers what it found and where the search goes on. An inode that a whole search did not find belongs to a
process that may not be looked at, to the kernel, or to no process any more: it is searched for again at growing intervals.

Owners change: a descriptor is handed over (``SCM_RIGHTS``, ``fork`` and ``close``), a process runs another program
(``execve``) or ends, its pid is used again. So each poll checks some sockets and some processes, in turn: is the
descriptor still this socket, does the process still run the same program?
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from .._contract import LookupFailed
from .._model import Attribution, Process
from ._constants import IPPROTO_UDP, SocketState
from ._entry import NOBODY, Entry, Others
from ._host_requests import ANYWHERE, OwnersAnswer, OwnersRequest
from ._output import Output
from ._processes import Processes

MAX_PAUSE = 64
"""Most polls between two searches for an inode that is never found."""
SOCKETS_PER_SECOND = 512
"""Sockets that are checked per second: about 5 µs each."""
LOOKED_AT = 1024
"""Most sockets among which a poll chooses those to check, about 2 ms."""
TABLES_AT_ONCE = 8
"""Most processes whose descriptors one check lists, for sockets whose descriptor is not known."""
PROCESSES_PER_SECOND = 64
"""Processes that are checked per second: about 30 µs each."""
CHECK_PAUSE = 0.1
"""Least seconds between two checks: polls may follow each other closely, and each look-up needs a thread."""
BEFORE_ALL = -1
"""`Entry.round` of sockets of the first poll; one less after the first round that looked at them."""
_LISTEN = SocketState.LISTEN
_PROVING = 2
"""Rounds that must end to be sure that a whole round began after a given moment: the first may have begun earlier."""
FEW = 8
"""Number of new sockets below which they are taken in one by one."""
LEARNED_IN_A_STEP = 4
"""Owners of new sockets that are taken in as one step: as long as the update of a flow takes."""


class OwnerSource:
    """Searches for the owners of sockets.

    Several sockets may have the same inode (subflows of MPTCP have that of their connection), and so the same owner.

    Args:
        output: Where requests go.
        processes: The known processes, to which it adds.
        sees_all: No process is hidden from a search.
    """

    def __init__(self, output: Output, processes: Processes, *, sees_all: bool) -> None:
        self.searching = False
        """A search is under way."""
        self.failure: str | None = None
        """Why the last search failed."""
        self.refused = 0
        """How many processes the last search was not allowed to look at."""
        self.rounds = 0
        """Rounds so far: a round looks at the descriptors of all processes, and so finds every holder of a socket."""
        self._counting = False
        """The present request is for a round alone."""
        self._proven = 0
        """The number of rounds after which it is known of each listener whether it has one holder."""
        self._shared: Mapping[int, Others] = {}
        """Inodes that several processes hold, with all holders but the oldest."""
        self._users_asked = False
        """True while the present search asks for names of users."""
        self.processes = processes
        """The processes found so far."""
        self._output = output
        self._sees_all = sees_all
        self._held: dict[int, Entry] = {}
        """A socket of each inode."""
        self._sharing: dict[int, dict[Entry, None]] = {}
        """All sockets of an inode that several have."""
        # An inode without an owner is in one of the next four; one that is in none of them has an owner.
        self._due: set[int] = set()
        """Inodes that the next search begins with."""
        self._searched: set[int] = set()
        """Inodes that the present search began with, and has not found yet."""
        self._added: set[int] = set()
        """Inodes that were added to the present search, and are not found yet."""
        self._tries: dict[int, int] = {}
        """How many searches did not find an inode."""
        self._parked: dict[int, set[int]] = {}
        """Inodes that were not found, by the poll that searches again."""
        self._again = False
        """Another search is to follow the present one."""
        self._turn: list[Entry] = []
        """Sockets that are still to be checked in this turn through all of them."""
        self._checking: list[Entry] = []
        """Sockets that the present search checks."""
        self._checked_at = 0.0
        self._asked: frozenset[int] | None = None
        """Following: the inodes of the recorded search; `None` if the recording does not tell."""

    @property
    def unresolved(self) -> int:
        """Number of inodes whose owner no search found, and eBPF programs have not named either."""
        return sum(self._held[inode].process is None for inode in self._tries)

    @property
    def sought(self) -> int:
        """Number of inodes in the present search."""
        return len(self._searched) + len(self._added) if self.searching else 0

    @property
    def undecided(self) -> int:
        """Number of inodes with neither an owner nor a reason why none is known; 0 if searches fail."""
        if self.failure is not None:
            return 0
        return sum(self._held[inode].owner is None for inode in set[int]().union(*self._sought))

    @property
    def naming(self) -> bool:
        """True while names are looked up: of users, or of processes that are known by a record."""
        return self._users_asked or self.processes.naming

    def want(self, entry: Entry) -> None:
        """Have the owner of this socket searched for."""
        uid, inode = entry.user
        self.processes.want_name(uid)
        if not inode:
            return
        first = self._held.setdefault(inode, entry)
        if first is not entry:
            self._sharing.setdefault(inode, {first: None})[entry] = None
        if entry.used_by is not None:
            return
        entry.round = self._round
        self._tries.pop(inode, None)
        self._due.add(inode)

    def want_all(self, entries: Sequence[Entry]) -> None:
        """`want` for sockets that a dump had for the first time; many together take a third of the time."""
        numbers = memoryview(b"".join([entry.last[3][:8] for entry in entries])).cast("I")  # users and inodes in turn
        new = dict(zip(numbers[1::2], entries, strict=True))
        if len(entries) < FEW or len(new) < len(entries) or 0 in new or not self._held.keys().isdisjoint(new.keys()):
            for entry in entries:
                self.want(entry)
            return
        for uid in dict.fromkeys(numbers[::2]):
            self.processes.want_name(uid)
        since = self._round
        for entry in entries:
            entry.round = since
        self._held.update(new)
        self._due.update(new)

    @property
    def _round(self) -> int:
        """The `Entry.round` of a socket that becomes known now."""
        return BEFORE_ALL if self._output.first_poll else self.rounds

    def is_alone(self, entry: Entry) -> bool:
        """True if a socket is known to have one holder.

        ``init`` does not count: it keeps listeners for services, and accepts nothing. A socket that only a record reported
        has no inode yet, so no round can tell.
        """
        if entry.process is None or not entry.user[1] or self.rounds < entry.round + _PROVING:
            return False
        return not entry.others.number or [pid for pid, _ in entry.others.oldest] == [1]

    def forget(self, entry: Entry, inode: int) -> None:
        """The socket is gone, or has another inode now."""
        sharing = self._sharing.get(inode)
        if sharing is not None:
            sharing.pop(entry, None)
            if sharing:
                self._held[inode] = next(iter(sharing))
                return
            del self._sharing[inode]
        elif self._held.get(inode) is not entry:
            return
        self._held.pop(inode, None)
        if self._is_sought(inode):
            self._give_up({inode})

    def _holders(self, inode: int) -> tuple[Entry, ...]:
        """The sockets with this inode."""
        if inode in self._sharing:
            return tuple(self._sharing[inode])
        entry = self._held.get(inode)
        return () if entry is None else (entry,)

    @property
    def _sought(self) -> tuple[set[int] | KeysView[int], ...]:
        """All inodes without an owner, in their four sets."""
        return self._due, self._searched, self._added, self._tries.keys()

    def _is_sought(self, inode: int) -> bool:
        """True if this inode has no owner."""
        return any(inode in places for places in self._sought)

    def _give_up(self, inodes: set[int]) -> None:
        """End the search for these inodes."""
        for places in (self._due, self._searched, self._added):
            places.difference_update(inodes)
        for inode in inodes & self._tries.keys() if self._tries else ():
            del self._tries[inode]

    # -- requests

    def search(self) -> None:
        """Begin a search for the wanted owners, which also checks some known ones; if one is under way, begin it afterwards."""
        if self.searching:
            self._again = True
            return
        poll = self._output.poll
        for number in [number for number in self._parked if number <= poll]:
            self._due.update(self._parked.pop(number) & self._tries.keys())
        pause = min(1.0, max(0.0, self._output.now - self._checked_at))  # a recorded clock may go back
        if pause < CHECK_PAUSE and not self._due and not self.processes.unnamed:
            return
        self._checked_at = self._output.now
        verify = self.processes.next_to_check(int(PROCESSES_PER_SECOND * pause) + 1)
        held = self._next_sockets(int(SOCKETS_PER_SECOND * pause) + 1)
        if self._due or verify or held:
            self._searched, self._due = self._due, set()
            users = self.processes.take_unnamed()
            self._users_asked = bool(users)
            self._ask(OwnersRequest(frozenset(self._searched), self.processes.recent, None, verify, held, users))

    def _next_sockets(self, number: int) -> tuple[tuple[int, int, int], ...]:
        """Inode, thread and descriptor of the next sockets whose owner is known."""
        if not self.processes.known:
            return ()
        if not self._turn:
            self._turn = list(self._held.values())
        self._checking, held = [], []
        tables: set[int] = set()
        for _ in range(min(len(self._turn), LOOKED_AT)):  # many may have ended since the turn began
            if len(self._checking) >= number:
                break
            entry = self._turn.pop()
            inode, process, place = entry.user[1], entry.process, entry.place
            if inode and not self._is_sought(inode) and process is not None and not entry.over:
                if place is None and process.pid not in tables:
                    if len(tables) == TABLES_AT_ONCE:
                        continue
                    tables.add(process.pid)
                self._checking.append(entry)
                thread, descriptor = (0, ANYWHERE) if place is None else (place >> 32, place & 0xFFFFFFFF)
                held.append((inode, thread or process.pid, descriptor))
        return tuple(held)

    def _go_on(self, below: int) -> None:
        """Ask for the next part of a search, with the new sockets, which are searched for once more after it."""
        added: set[int] = set()
        if self._again:
            added, self._due, self._again = self._due, set(), False
            self._added.update(added)
        self._ask(OwnersRequest(frozenset(added), self.processes.recent if added else (), below))

    def _ask(self, request: OwnersRequest) -> None:
        self.searching, self._counting = True, request.count
        self._output.ask(request, self.take)

    def count(self) -> None:
        """Ask for a round, until it is known which listeners have one holder: these own their short connections."""
        if self.rounds < self._proven and not self.searching:
            self._ask(OwnersRequest(frozenset(), count=True))

    # -- answers

    def take(self, answer: Any) -> None:
        """Take in what a part of the search found; if it failed, the search is over."""
        self._output.do(self._take_in(answer))

    def _take_in(self, answer: Any) -> Iterator[None]:
        self._users_asked = False
        self.failure = answer.reason if isinstance(answer, LookupFailed) else None
        if not isinstance(answer, OwnersAnswer):
            self.give_up()
            return
        yield from self._learn(answer)
        yield from self._learn_others(answer)
        yield from self._seek_again(answer)
        if answer.below is not None and self._searched:
            self._go_on(answer.below)
            return
        yield from self._park(answer.refused)
        self.searching = False
        if self._added:
            self._due.update(self._added)
            self._added, self._again = set(), True
        if self._again:
            self._again = False
            self.search()
        elif not (self._output.first_poll or (self._counting and answer.shared is None)):
            self.count()

    def observe(self, request: OwnersRequest) -> None:
        """Following: learn what the recorded client asked for. In a later part it knew most owners, and did not ask."""
        if request.below is None:
            self._asked = request.inodes

    def give_up(self) -> None:
        """End the search: the next one begins with what it did not find."""
        self._due.update(self._searched, self._added)
        self._searched, self._added, self._again = set(), set(), False
        self.searching = self._users_asked = False

    def learn(self, answer: OwnersAnswer) -> None:
        """Take in an answer's owners, all at once."""
        for _ in self._learn(answer):
            pass

    def _learn(self, answer: OwnersAnswer) -> Iterator[None]:
        self.processes.learn_names(answer.users)
        facts = {process.pid: process for process in answer.processes}
        owners: dict[tuple[int, bytes], Process] = {}
        held, sharing, steps = self._held, self._sharing, 0
        answered = {inode for inode, pid in answer.owners if pid in facts}
        found = set[int]().union(*(answered & places for places in self._sought))
        self._give_up(found)
        known: tuple[int, bytes] | None = None
        keeper: Any = None
        for (inode, pid), held_by in zip(answer.owners, chain(answer.places, repeat(None)), strict=False):
            if steps >= LEARNED_IN_A_STEP:
                yield
                steps = 0
            first = held.get(inode)
            if first is None or inode not in found or pid not in facts:
                continue
            found.remove(inode)
            thread, descriptor = held_by or (pid, None)
            place = descriptor if descriptor is None or thread == pid else thread << 32 | descriptor
            for entry in tuple(sharing[inode]) if inode in sharing else (first,):
                key = pid, entry.last[3][:4]
                if key != known:
                    known = key
                    owner = owners.get(key) or owners.setdefault(key, self.processes.of(facts[pid], entry.user[0]))
                steps += 1 if entry.flow is None else LEARNED_IN_A_STEP
                if entry.keeper is not keeper:
                    keeper, learn_owner = entry.keeper, entry.book.learn_owner
                learn_owner(entry, owner, place)
                if entry.state == _LISTEN:
                    self._proven = max(self._proven, entry.round + _PROVING)
        for _, pid in answer.owners:
            facts.pop(pid, None)
        if facts:
            self.processes.renew({(each.pid, each.start_ticks): each for each in facts.values()})

    def _learn_others(self, answer: OwnersAnswer) -> Iterator[None]:
        """Take in the result of a round: of several holders the oldest is the owner."""
        if answer.shared is None:
            return
        self.rounds += 1
        facts = {process.pid: process for process in answer.processes}
        holders = {inode: pids for inode, _, pids in answer.shared if pids and pids[0] in facts}
        shared = {
            inode: Others(number - 1, tuple((pid, facts[pid].name) for pid in pids[1:] if pid in facts))
            for inode, number, pids in answer.shared
            if inode in holders
        }
        before, self._shared = self._shared, shared
        changed = [
            inode
            for inode in before.keys() | shared.keys()  # few inodes, while ten thousand sockets may be new
            if before.get(inode) != shared.get(inode) or any(map(self._came_since, self._holders(inode)))
        ]
        for inode in sorted(changed):
            for entry in self._holders(inode):
                yield
                if entry.round == BEFORE_ALL:
                    entry.round = BEFORE_ALL - 1
                if inode in shared:
                    owner = self.processes.of(facts[holders[inode][0]], entry.user[0])
                    entry.book.learn_others(entry, owner, shared[inode])
                elif entry.process is not None:
                    entry.book.learn_others(entry, entry.process, NOBODY)

    def _came_since(self, entry: Entry) -> bool:
        """True for a socket of the first poll that no round has looked at, and for one that came after the last round but one."""
        return entry.round in {BEFORE_ALL, self.rounds - 1}

    def _seek_again(self, answer: OwnersAnswer) -> Iterator[None]:
        """Search again for the owners of sockets whose process ended, or does not have the descriptor any more."""
        dead, lost, met = set(answer.gone), set(answer.lost), dict(answer.met)
        for entry in self._checking if met else ():
            entry.place = met.get(entry.user[1], entry.place)
        ended = self.processes.end(dead) if dead else []
        owners = {id(process) for process in ended}  # by identity, as in `Processes`
        suspects = [entry for entry in self._held.values() if id(entry.owner) in owners] if owners else []
        suspects += [entry for entry in self._checking if entry.user[1] in lost] if lost else []
        for entry in suspects:
            yield
            if entry.process is not None and not entry.over:
                entry.place = entry.used_by = None
                self.want(entry)
                self._again = True
        self._checking = []

    def _park(self, refused: int | None) -> Iterator[None]:
        """A whole search did not find these inodes: search for them again, at growing intervals.

        If all processes were looked at, the first failure proves nothing: the socket may have ended, or have been on
        its way from one process to another. After the second one it is the kernel's own, provided that the last dump
        had it; otherwise it ended, and its removal is not read yet. For UDP sockets, whose removals come at once, the
        first poll searches a second time, so that a snapshot knows this too.
        """
        self.refused = refused or 0
        complete = self._sees_all and not refused
        for inode in sorted(self._searched):
            yield
            if inode not in self._searched:  # it ended meanwhile
                continue
            if self._asked is not None and inode not in self._asked:
                self._due.add(inode)
                continue
            tries = self._tries.get(inode, 0)
            self._tries[inode] = tries + 1
            if complete and not tries and self._output.first_poll and self._held[inode].protocol == IPPROTO_UDP:
                self._due.add(inode)
                self._again = True
                continue
            if refused is not None and (tries or not complete):
                reason = Attribution.KERNEL if complete else Attribution.HIDDEN
                for entry in self._holders(inode):
                    if not (complete and entry.absences):
                        entry.book.learn_owner(entry, reason, None)
            pause = min(MAX_PAUSE, 1 << min(tries, 10))
            self._parked.setdefault(self._output.poll + pause, set()).add(inode)
        self._searched = set()
