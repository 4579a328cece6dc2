"""Facts of processes from ``/proc``: name, path, parent, start, command line; and the names of users."""

# ruff: noqa: PTH115, PTH119
# Paths of /proc are read thousands at a time: as strings.

from __future__ import annotations

import functools
import math
import os
import pwd
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable

import attrs

from ..sockdiag import ProcessFacts
from .tables import Found, holds, is_held, links, other_threads

LONGEST_COMMAND_LINE = 4096
"""Most bytes of a command line that are read."""
KEPT = 0.25
"""Seconds for which facts stay true: in so short a time no pid is given to another process."""
MOST_KEPT = 256
"""Most processes whose facts are kept."""
MOST_GENERATIONS = 8
"""Most generations of parents that are examined for a socket of a child."""
ASKED_ONE_BY_ONE = 16
"""Most descriptors of a parent that are examined one by one."""
_DELETED = " (deleted)"
_NANOSECONDS = 1_000_000_000


@attrs.frozen
class _Stat:
    """The wanted fields of ``/proc/PID/stat``."""

    name: str
    ended: bool
    """True for a zombie: none of its threads runs."""
    leaderless: bool
    """True if its first thread ended and others run."""
    parent: int
    start_ticks: int


def read_file(path: str, most: int = 1024) -> bytes:
    """Read the beginning of a file, in half of the time that a file object takes."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, most)
    finally:
        os.close(file)


def _stat(pid: int) -> _Stat | None:
    try:
        data = read_file(f"/proc/{pid}/stat")
        # The name in parentheses may contain anything, even parentheses: count from the last one.
        end = data.rindex(b")")
        fields = data[end + 2 :].split()
        dead = fields[0] in {b"Z", b"X"}
        alone = int(fields[17]) <= 1
        name = data[data.index(b"(") + 1 : end].decode("utf-8", "replace")
        return _Stat(name, dead and alone, dead and not alone, int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def start_ticks(pid: int) -> int | None:
    """The start of a process, clock ticks since boot (field 22 of ``stat``); `None` if it is gone, or a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.ended else stat.start_ticks


class Elders:
    """Finds parents that hold the sockets of their children, which a child inherits at ``fork``. Used for one answer.

    Args:
        parent_of: Returns the parent of a process, 0 if there is none; `None`: read it from ``/proc``.
    """

    def __init__(self, parent_of: Callable[[int], int] | None = None) -> None:
        self._parent_of = parent_of or functools.cache(_parent)
        self._asked: Counter[int] = Counter()
        self._tables: dict[int, dict[int, int]] = {}

    def eldest(self, place: Found) -> Found:
        """The same place in the eldest ancestor that holds it, without a gap between them."""
        inode, pid, thread, descriptor = place
        if pid != thread:
            return place
        for _ in range(MOST_GENERATIONS):
            parent = self._parent_of(pid)
            if parent <= 1 or not self._holds(inode, parent, descriptor):
                break
            pid = parent
        return place if pid == thread else (inode, pid, pid, descriptor)

    def has_none(self, pid: int, descriptors: Collection[int]) -> bool:
        """True if no parent has any of these, which is the usual case: the parent's table tells it for all at once."""
        parent = self._parent_of(pid)
        if parent <= 1:
            return True
        if len(descriptors) <= ASKED_ONE_BY_ONE:
            return False
        if parent not in self._tables:
            self._tables[parent] = _table(parent)
        return self._tables[parent].keys().isdisjoint(descriptors)

    def _holds(self, inode: int, parent: int, descriptor: int) -> bool:
        """Read the whole table of a parent that is asked for often: it usually has few descriptors, and its child many."""
        table = self._tables.get(parent)
        if table is None:
            self._asked[parent] += 1
            if self._asked[parent] <= ASKED_ONE_BY_ONE:
                return holds(inode, parent, descriptor)
            table = self._tables[parent] = _table(parent)
        return descriptor in table and is_held(inode, table[descriptor], parent, descriptor)


def eldest(places: Iterable[Found], parent_of: Callable[[int], int] | None = None) -> list[Found]:
    """The places of the eldest holders of these sockets, among the found processes and their parents (as for `Elders`)."""
    elders = Elders(parent_of)
    return [elders.eldest(place) for place in places]


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return 0 if stat is None else stat.parent


def _table(pid: int) -> dict[int, int]:
    """The inodes by the descriptors of a process; nothing if we may not see them."""
    try:
        return {number: inode for inode, number in links(pid)}
    except PermissionError:
        return {}


class ProcessReader:
    """Reads the facts of processes.

    Args:
        command_lines: Read the command line as well, which may contain secrets.
    """

    def __init__(self, *, command_lines: bool = False) -> None:
        self._command_lines = command_lines
        # Read once: the wall clock may be set, and a process with another start would be another process.
        self._boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._tick_ns = _NANOSECONDS // os.sysconf("SC_CLK_TCK")

    def facts(self, pid: int) -> ProcessFacts:
        """Read name, path, title, parent and start of a process; a fact that cannot be read is `None`.

        The name is the executable's base name, because ``comm``, the title, ends after 15 characters.
        """
        stat = _stat(pid)
        if stat is None or stat.ended:
            return ProcessFacts(pid, None, None, None)
        running = pid if not stat.leaderless else next(other_threads(pid), pid)
        path = _path(running)
        name = os.path.basename(path) if path else stat.name or None
        return ProcessFacts(
            pid,
            stat.start_ticks,
            name,
            path,
            stat.name or None,
            parent_pid=stat.parent,
            started_ns=self._boot_ns + stat.start_ticks * self._tick_ns,
            command_line=_command_line(running) if self._command_lines else None,
        )


class RecentFacts:
    """Keeps facts for `KEPT` seconds, for a caller that asks for the same processes again and again.

    Facts stay while the process runs the same file. It may have changed its title since then: polls look at that.
    """

    def __init__(self, reader: ProcessReader) -> None:
        self._reader = reader
        self._kept: dict[int, tuple[float, ProcessFacts]] = {}

    def facts(self, pid: int, now: float) -> ProcessFacts:
        """As `ProcessReader.facts`."""
        read_at, known = self._kept.get(pid, (-math.inf, None))
        if known is not None and now - read_at < KEPT and _path(pid) == known.path:
            return known
        known = self._reader.facts(pid)
        if known.path is not None:
            self._kept.pop(pid, None)
            self._kept[pid] = now, known
            if len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        return known


def _path(pid: int) -> str | None:
    """The file that a process runs; `None` if it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    except OSError:
        return None


def _command_line(pid: int) -> str | None:
    """The command line as a shell would take it; the title, if the program wrote one over it."""
    try:
        data = read_file(f"/proc/{pid}/cmdline", LONGEST_COMMAND_LINE)
    except OSError:
        return None
    arguments = data.rstrip(b"\0").decode("utf-8", "replace").split("\0")
    return (arguments[0] if len(arguments) == 1 else shlex.join(arguments)) or None


@functools.lru_cache(maxsize=1024)
def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def user_names(uids: Iterable[int]) -> tuple[tuple[int, str], ...]:
    """Users with their names, as far as the system knows them; this may ask a server for a new one."""
    return tuple((uid, name) for uid in uids if (name := _user_name(uid)) is not None)
