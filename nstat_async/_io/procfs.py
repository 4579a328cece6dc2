"""Who owns a socket, from ``/proc``: see ``proc(5)``, ``/proc/PID/fd`` and ``/proc/PID/stat``.

A search walks the descriptors of processes for links named ``socket:[INODE]``. It is cut into
pieces of bounded time; between two pieces the caller may do what it likes. Nobody starves:
processes that are new come first, then recent owners, then the rest from the newest down, and
each gives `TURN` descriptors before any gives more. What none of them has is looked for where
it is rare: in the tables of threads that have their own, and among the registered files of io_uring.
"""

# ruff: noqa: PTH115, PTH116, PTH119, PTH123, PTH208
# Paths of /proc and /sys are read thousands at a time: as strings.

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import attrs

from ..sockdiag import ANYWHERE, OwnersAnswer, OwnersRequest, ProcessFacts
from .linux import network_of, share_descriptors

BUDGET = 0.02
"""Seconds of CPU for one answer."""
MAX_FOUND = 1000
"""Owners in one answer: what the event loop takes in at once."""
MAX_REMEMBERED = 16384
"""Processes whose facts are kept, so that only changes are reported."""
TURN = 1024
"""Descriptors of a process that are looked at before another one's turn."""
NEWEST = 128
"""Numbers of processes, the last ones given away, among which a new socket's is most likely."""
BEING_BORN = 16
"""The last numbers of these are given away, perhaps, and not there yet."""
MOST_RECENT = 256
"""Processes that held the last sockets."""
GLANCE = 16
"""Descriptors between two looks at the clock."""

_PREFIX = "socket:["
_RING = "anon_inode:[io_uring]"
_RING_FILE = re.compile(rb"^\s*\d+: socket:\[(\d+)\]", re.MULTILINE)
_DELETED = " (deleted)"

Found = tuple[int, int, int, int]
"""Inode, process, thread and descriptor: where a socket is held. Inode 0 is something else."""


@attrs.frozen
class _Stat:
    """What is wanted of ``/proc/PID/stat``."""

    name: str
    ended: bool
    """A zombie: nothing of it runs any more."""
    leaderless: bool
    """Its first thread ended, others run."""
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
        # The name in parentheses may hold anything, parentheses included: count from the last one.
        end = data.rindex(b")")
        fields = data[end + 2 :].split()
        dead = fields[0] in {b"Z", b"X"}
        alone = int(fields[17]) <= 1
        name = data[data.index(b"(") + 1 : end].decode("utf-8", "replace")
        return _Stat(name, dead and alone, dead and not alone, int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, clock ticks since boot (field 22 of ``stat``); `None` when it is gone, or a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.ended else stat.start_ticks


def process_facts(pid: int) -> ProcessFacts:
    """Name, path, title and start of a process; what cannot be read is `None`.

    The name is the executable's base name, because ``comm``, the title, ends after 15 characters.
    """
    stat = _stat(pid)
    if stat is None or stat.ended:
        return ProcessFacts(pid, None, None, None)
    path = None
    running = pid if not stat.leaderless else next(_other_threads(pid), pid)
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/{running}/exe").removesuffix(_DELETED)
    name = os.path.basename(path) if path else stat.name or None
    return ProcessFacts(pid, stat.start_ticks, name, path, stat.name or None)


def holds(inode: int, thread: int, descriptor: int) -> bool:
    """True if a thread's descriptor is still this socket; one of io_uring is taken for it as long as the ring is there."""
    try:
        target = os.readlink(f"/proc/{thread}/fd/{descriptor}")
    except OSError:
        return False
    return _inode_of(target) == inode or (target == _RING and inode in _registered(thread, descriptor))


def _check(held: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Inodes of the sockets that are not where they were; and where those are of which the process alone was known."""
    lost, met = [], []
    tables: dict[int, dict[int, int] | None] = {}
    for inode, thread, descriptor in held:
        if descriptor == ANYWHERE:
            if thread not in tables:
                tables[thread] = _sockets_of(thread)
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


def _sockets_of(pid: int) -> dict[int, int] | None:
    """The sockets of a process with their descriptors; `None` when it may not be looked at."""
    try:
        return {inode: number for target, number in _links(pid) if (inode := _inode_of(target))}
    except PermissionError:
        return None


def _links(thread: int) -> Iterator[tuple[str, int]]:
    """What a table of descriptors has, the highest number first, which is the newest mostly; nothing when it is gone.

    Raises:
        PermissionError: It is not ours to see.
    """
    directory = f"/proc/{thread}/fd"
    try:
        numbers = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return
    for number in reversed(numbers):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield os.readlink(f"{directory}/{number}"), int(number)


def _inode_of(target: str) -> int:
    """The inode of a link to a socket; 0 for any other."""
    return int(target[len(_PREFIX) : -1]) if target.startswith(_PREFIX) else 0


# --- the walk ------------------------------------------------------------------------


def _pids() -> list[int]:
    """All processes that can be seen, newest first."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _other_threads(pid: int) -> Iterator[int]:
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return iter(())
    return (int(name) for name in names if int(name) != pid)


def _registered(thread: int, descriptor: int) -> set[int]:
    """Inodes of the sockets among the registered files of an io_uring, which need no descriptor of their own."""
    try:
        with open(f"/proc/{thread}/fdinfo/{descriptor}", "rb") as file:
            return {int(inode) for inode in _RING_FILE.findall(file.read())}
    except OSError:
        return set()


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
        yield from _Walk((), (), frozenset())

    def _has_changed(self, pid: int) -> bool | None:
        """True if a process has more or fewer descriptors than at the last look; `None` where the kernel does not say."""
        before, size = self._sizes.get(pid), _table_size(pid)
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


def _table_size(pid: int) -> int | None:
    """How many descriptors a process has, since Linux 6.2; else 0 (``proc_fd_getattr``). `None`: it is gone."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError:
        return None


def _and_others(likely: dict[int, None]) -> Iterator[int]:
    """These processes, and then, if there is a then, the rest: it takes a while to list them."""
    yield from likely
    yield from (pid for pid in _pids() if pid not in likely)


def _first_sockets(pid: int) -> Iterator[Found]:
    with contextlib.suppress(PermissionError):
        for target, number in islice(_links(pid), TURN):
            yield _inode_of(target), pid, pid, number


def remember_holders(recent: dict[int, None], pids: Iterable[int]) -> None:
    """Put these processes at the end of the recent ones, of which there are `MOST_RECENT`."""
    for pid in pids:
        recent.pop(pid, None)
        recent[pid] = None
    while len(recent) > MOST_RECENT:
        recent.pop(next(iter(recent), 0), None)


class _Walk:
    """Every socket that a process holds, in the order of the search."""

    def __init__(self, recent: Iterable[int], known: Iterable[int], networks: frozenset[int | None]) -> None:
        pids = _pids()
        new = set(pids).difference(known)
        self.pids = list(dict.fromkeys([*(pid for pid in pids if pid in new), *recent, *pids]))
        self.refused: set[int] = set()
        """Processes in the watched namespaces whose descriptors may not be looked at."""
        self._networks = networks
        self._rings: list[tuple[int, int, int]] = []

    def __iter__(self) -> Iterator[Found]:
        """Each process gives something at least, so that a caller's clock is looked at."""
        rest = []
        for pid in self.pids:
            yield 0, pid, pid, 0
            table = self._table(pid, pid)
            yield from islice(table, TURN)
            rest.append(table)
        while rest:
            waiting, rest = rest, []
            for table in waiting:
                taken = list(islice(table, TURN))
                yield from taken
                if taken:
                    rest.append(table)
        yield from self._of_threads()
        for pid, thread, descriptor in self._rings:
            for inode in _registered(thread, descriptor):
                yield inode, pid, thread, descriptor

    def arrivals(self, recent: Iterable[int]) -> Iterator[Found]:
        """Processes that began since the walk did, and recent owners: where new sockets are, most likely."""
        known = set(self.pids)
        new = [pid for pid in _pids() if pid not in known]
        self.pids = new + self.pids
        for pid in dict.fromkeys([*new, *recent]):
            yield from islice(self._table(pid, pid), TURN)

    def _table(self, pid: int, thread: int) -> Iterator[Found]:
        """What a table of descriptors has; nothing when it is gone or not ours to see."""
        try:
            for target, number in _links(thread):
                if target == _RING:
                    self._rings.append((pid, thread, number))
                yield _inode_of(target), pid, thread, number
        except PermissionError:
            if network_of(pid) in self._networks:
                self.refused.add(pid)

    def _of_threads(self) -> Iterator[Found]:
        """Tables of threads that share none with their process (``unshare(2)``), or whose process has none any more."""
        for pid in self.pids:
            tables = [pid]
            for thread in _other_threads(pid):
                yield 0, pid, thread, 0
                if not any(share_descriptors(thread, other) for other in tables):
                    tables.append(thread)
                    yield from self._table(pid, thread)


class ProcessScanner:
    """Answers `OwnersRequest`; one thread at a time.

    Args:
        budget: Seconds of CPU for one answer.
        networks: The network namespaces that are watched, as `network_of` has them.
    """

    def __init__(self, budget: float = BUDGET, networks: frozenset[int | None] = frozenset()) -> None:
        self.recent: dict[int, None] = {}
        """Processes that held the last sockets, the last one last."""
        self._budget = budget
        self._networks = networks
        self._missing: set[int] = set()
        self._walk: _Walk | None = None
        self._places: Iterator[Found] = iter(())
        self._facts: dict[int, ProcessFacts] = {}

    def answer(self, request: OwnersRequest) -> OwnersAnswer:
        """Search for at most the budget; a request with ``below`` goes on where the last answer stopped.

        What it has in addition is looked for at once where it is likely, and then with the rest.
        """
        until = time.thread_time() + self._budget  # on a busy machine the clock on the wall runs without us
        lost, met = _check(request.held)
        gone, changed = self._verify(request.verify)
        if request.below is None:
            self._missing = set(request.inodes)
        else:
            self._missing |= request.inodes
        if request.inodes and (request.below is None or self._walk is None):
            self._walk = _Walk(request.recent, self._walk.pids if self._walk else (), self._networks)
            self._places = iter(self._walk)
        elif request.inodes and self._walk is not None:
            self._places = chain(self._walk.arrivals(request.recent), self._places)
        found, below = self._search(until)
        facts = {pid: self._look(pid) for pid in dict.fromkeys(place[1] for place in found)}
        remember_holders(self.recent, facts)
        return OwnersAnswer(
            owners=tuple((inode, pid) for inode, pid, _, _ in found),
            processes=(*facts.values(), *(each for each in changed if each.pid not in facts)),
            below=below,
            gone=gone,
            places=tuple((thread, descriptor) for _, _, thread, descriptor in found),
            lost=lost,
            met=met,
            refused=len(self._walk.refused) if self._walk and below is None else None,
        )

    def _search(self, until: float) -> tuple[list[Found], int | None]:
        """What was found, and the pid where time or room ended; `None` when the search is complete."""
        found: list[Found] = []
        missing = self._missing
        if not missing:
            return found, None
        for number, place in enumerate(self._places, 1):
            inode = place[0]
            if inode in missing:
                missing.discard(inode)
                found.append(place)
                if not missing:
                    break
            if len(found) >= MAX_FOUND or (not number % GLANCE and time.thread_time() >= until):
                return found, place[1]
        return found, None

    def _verify(
        self, processes: Iterable[tuple[int, int | None]]
    ) -> tuple[tuple[tuple[int, int | None], ...], list[ProcessFacts]]:
        """Those that are no more, and the facts of those that are not what they were."""
        gone, changed = [], []
        for pid, started in processes:
            known, now = self._facts.get(pid), self._look(pid)
            if now.start_ticks is None or now.start_ticks != started:
                gone.append((pid, started))
            elif now != known:
                changed.append(now)
        return tuple(gone), changed

    def _look(self, pid: int) -> ProcessFacts:
        """The facts of a process as they are: a pid is reused, a program replaced (``execve(2)``)."""
        facts = process_facts(pid)
        self._facts.pop(pid, None)
        if facts.start_ticks is not None:
            if len(self._facts) >= MAX_REMEMBERED:
                del self._facts[next(iter(self._facts))]
            self._facts[pid] = facts
        return facts
