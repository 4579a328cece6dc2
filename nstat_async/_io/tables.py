"""Tables of descriptors, as ``/proc/PID/fd`` shows them (``proc(5)``): which of them are sockets."""

# ruff: noqa: PTH115, PTH116, PTH123, PTH208
# Paths of /proc are read thousands at a time: as strings.

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

RING = "anon_inode:[io_uring]"
AT_ONCE = 64
"""Descriptors that are read at once, in 0.2 ms."""
_PREFIX = "socket:["
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
_RING_FILE = re.compile(rb"^\s*\d+: socket:\[(\d+)\]", re.MULTILINE)

Found = tuple[int, int, int, int]
"""Inode, process, thread and descriptor: where a socket is held. Inode 0 is something else."""


def all_pids() -> list[int]:
    """All processes that can be seen, newest first."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def other_threads(pid: int) -> Iterator[int]:
    """The threads of a process but the first."""
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return iter(())
    return (int(name) for name in names if int(name) != pid)


def links(thread: int) -> Iterator[tuple[str, int]]:
    """What a table of descriptors has, the highest number first, which is the newest mostly; nothing when it is gone.

    Raises:
        PermissionError: It is not ours to see.
    """
    numbers: list[str] | None = None
    while numbers is None or numbers:
        try:
            directory = os.open(f"/proc/{thread}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except _GONE:
            return
        try:
            if numbers is None:
                numbers = os.listdir(directory)
            found = _read(directory, numbers)
        except _GONE:
            return
        finally:
            os.close(directory)  # whoever is interrupted here holds nothing
        yield from found


def _read(directory: int, numbers: list[str]) -> list[tuple[str, int]]:
    """What the last of these descriptors lead to; relative to the directory, which saves a fifth."""
    found, last = [], max(0, len(numbers) - AT_ONCE)
    while len(numbers) > last:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that is closed meanwhile is left out
            while len(numbers) > last:
                number = numbers.pop()
                found.append((os.readlink(number, dir_fd=directory), int(number)))
    return found


def inode_of(target: str) -> int:
    """The inode of a link to a socket; 0 for any other."""
    return int(target[len(_PREFIX) : -1]) if target.startswith(_PREFIX) else 0


def size_of(pid: int) -> int | None:
    """How many descriptors a process has, since Linux 6.2; else 0 (``proc_fd_getattr``). `None`: it is gone."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError:
        return None


def sockets_of(pid: int) -> dict[int, int] | None:
    """The sockets of a process with their descriptors; `None` when it may not be looked at."""
    try:
        return {inode: number for target, number in links(pid) if (inode := inode_of(target))}
    except PermissionError:
        return None


def holds(inode: int, thread: int, descriptor: int) -> bool:
    """True if a thread's descriptor is still this socket; one of io_uring is taken for it as long as the ring is there."""
    try:
        target = os.readlink(f"/proc/{thread}/fd/{descriptor}")
    except OSError:
        return False
    return leads_to(target, inode, thread, descriptor)


def leads_to(target: str, inode: int, thread: int, descriptor: int) -> bool:
    """True if this target of a thread's descriptor is the socket, or an io_uring that has it."""
    return inode_of(target) == inode or (target == RING and inode in registered(thread, descriptor))


def registered(thread: int, descriptor: int) -> set[int]:
    """Inodes of the sockets among the registered files of an io_uring, which need no descriptor of their own."""
    try:
        with open(f"/proc/{thread}/fdinfo/{descriptor}", "rb") as file:
            return {int(inode) for inode in _RING_FILE.findall(file.read())}
    except OSError:
        return set()
