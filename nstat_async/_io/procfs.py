"""Finds the owners of sockets in ``/proc``.

A search (`Walk`) is cut into pieces of bounded time, so that the caller can do other work in between. If several
processes hold a socket, the oldest is its owner: a parent of the found one, if it holds the socket, too, or one that
the `Census` finds.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

from ..sockdiag import ANYWHERE, OwnersAnswer, OwnersRequest, ProcessFacts
from .budget import Budget
from .census import Census, Shared
from .likely import remember_holders
from .processes import Elders, ProcessReader, user_names
from .tables import holds, sockets_of
from .walk import Part, Walk

BUDGET = 0.02
"""Seconds of CPU for one answer."""
COUNT, COUNT_ALONE = 0.002, 0.1
"""Seconds of CPU for the census in one answer: beside other work, and in an answer of its own."""
SHARE = 0.02
"""Share of the time that the census may take."""
ROUND_PAUSE = 0.9
"""Seconds between two of its rounds, unless one is asked for: polls may follow each other quickly."""
MAX_FOUND = 2048
"""Owners in one answer, and a few more: the event loop takes them in by four steps."""
MAX_REMEMBERED = 16384
"""Most processes whose facts are kept, so that only changes are reported."""

_Held = tuple[int, int, dict[int, int]]
"""A process, one of its threads, and the wanted inodes in its table with their descriptors: no object for each socket."""


class ProcessScanner:
    """Answers `OwnersRequest`; only one thread at a time may use it.

    Args:
        reader: Reads the facts of processes.
        budget: Seconds of CPU for one answer.
        networks: The watched network namespaces, as `network_of_this_thread` numbers them.
    """

    def __init__(
        self,
        reader: ProcessReader | None = None,
        *,
        budget: float = BUDGET,
        networks: frozenset[int | None] = frozenset(),
    ) -> None:
        self.recent: dict[int, None] = {}
        """Processes that held the last sockets, the last one last."""
        self._reader = reader or ProcessReader()
        self._budget = budget
        self.networks = networks
        """The watched network namespaces, as `network_of_this_thread` numbers them."""
        self._missing: set[int] = set()
        self._walk: Walk | None = None
        self._parts: Iterator[Part] = iter(())
        self._facts: dict[int, ProcessFacts] = {}
        self._census = Census()
        self._census_budget = Budget(SHARE, time.monotonic())
        self._counted = -ROUND_PAUSE
        """When the last round of the census ended."""

    def answer(self, request: OwnersRequest) -> OwnersAnswer:
        """Search within the budget; a request with ``below`` continues where the last answer stopped.

        Its additional sockets are searched for at once in likely places, and then with the rest.

        Raises:
            OSError: ``/proc`` is not mounted, or no longer; this proves nothing about any process.
        """
        if not os.path.lexists("/proc/self"):
            raise FileNotFoundError(errno.ENOENT, "there is no /proc")
        until = time.thread_time() + self._budget  # on a busy machine wall time passes while we do not run
        lost, met = self._check(request.held, until)
        gone, changed = self._verify(request.verify)
        if request.below is None:
            self._missing = set(request.inodes)
        else:
            self._missing |= request.inodes
        if request.inodes and (request.below is None or self._walk is None):
            self._walk = Walk(request.recent, self._walk, self.networks)
            self._parts = self._walk.parts()
        elif request.inodes and self._walk is not None:
            self._parts = chain(self._walk.arrivals(request.recent), self._parts)
        found, below = self._search(until)
        owners, places = _owners_of(found)
        went_on = below is not None or request.below is not None  # a long search leaves no time for more
        shared = None if went_on else self._count(alone=request.count)
        holders = (pid for _, _, pids in shared or () for pid in pids)
        pids = [pid for _, pid in owners]
        facts = {pid: self._look(pid) for pid in dict.fromkeys([*pids, *holders])}
        remember_holders(self.recent, pids)
        return OwnersAnswer(
            owners=tuple(owners),
            processes=(*facts.values(), *(each for each in changed if each.pid not in facts)),
            below=below,
            gone=gone,
            places=tuple(places),
            lost=lost,
            met=met,
            refused=len(self._walk.refused) if self._walk and below is None else None,
            users=user_names(request.users),
            shared=shared,
        )

    def _check(
        self, held: Iterable[tuple[int, int, int]], until: float
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Inodes of the sockets that are not where they were; and the places of those whose process alone was known."""
        lost, met = [], []
        tables: dict[int, dict[int, int] | None] = {}
        for inode, thread, descriptor in held:
            if descriptor == ANYWHERE:
                counted = self._census.place_of(inode, thread)
                if counted is not None and holds(inode, thread, counted):
                    met.append((inode, counted))
                    continue
                if thread not in tables:  # a table of many descriptors takes a while, and a later poll may ask again
                    tables[thread] = sockets_of(thread) if time.thread_time() < until else None
                table = tables[thread]
                if table is None:
                    continue
                if inode in table:
                    met.append((inode, table[inode]))
                    continue
            elif holds(inode, thread, descriptor):
                continue
            lost.append(inode)
        return tuple(lost), tuple(met)

    def _count(self, *, alone: bool) -> Shared | None:
        budget, began, now = self._census_budget, time.thread_time(), time.monotonic()
        if not alone and now < self._counted + ROUND_PAUSE:
            return None
        budget.spend(0.0, now)
        shared = self._census.go_on(began + min(COUNT_ALONE if alone else COUNT, budget.left))
        budget.spend(time.thread_time() - began, time.monotonic())
        if shared is not None:
            self._counted = now
        return shared

    def _search(self, until: float) -> tuple[list[_Held], int | None]:
        """The found sockets, and the pid where time or room ended; `None` if the search is complete."""
        found: list[_Held] = []
        missing, left = self._missing, MAX_FOUND
        for pid, thread, links in self._parts if missing else ():
            hits = {inode: descriptor for inode, descriptor in reversed(links) if inode in missing}
            if hits:
                missing.difference_update(hits)
                found.append((pid, thread, hits))
                left -= len(hits)
            if not missing:
                break
            if left <= 0 or time.thread_time() >= until:
                return found, pid
        return found, None

    def _verify(
        self, processes: Iterable[tuple[int, int | None]]
    ) -> tuple[tuple[tuple[int, int | None], ...], list[ProcessFacts]]:
        """The processes that are gone, and the facts of those that changed."""
        gone, changed = [], []
        for pid, started in processes:
            known, now = self._facts.get(pid), self._look(pid)
            if now.start_ticks is None or now.start_ticks != started:
                gone.append((pid, started))
            elif now != known:
                changed.append(now)
        return tuple(gone), changed

    def _look(self, pid: int) -> ProcessFacts:
        """Read the present facts of a process: its pid may be reused, its program replaced (``execve(2)``)."""
        facts = self._reader.facts(pid)
        self._facts.pop(pid, None)
        if facts.start_ticks is not None:
            if len(self._facts) >= MAX_REMEMBERED:
                del self._facts[next(iter(self._facts))]
            self._facts[pid] = facts
        return facts


def _owners_of(found: Iterable[_Held]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Inodes with their eldest holders, and thread and descriptor of each."""
    elders, owners, places = Elders(), list[tuple[int, int]](), list[tuple[int, int]]()
    for pid, thread, hits in found:
        if elders.has_none(pid, hits.values()):
            owners += zip(hits, repeat(pid))
            places += zip(repeat(thread), hits.values())
            continue
        for hit, number in hits.items():
            inode, owner, its_thread, descriptor = elders.eldest((hit, pid, thread, number))
            owners.append((inode, owner))
            places.append((its_thread, descriptor))
    return owners, places
