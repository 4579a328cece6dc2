"""Finds the sockets in tables of descriptors, as ``/proc/PID/fd`` shows them (``proc(5)``)."""

# ruff: noqa: PTH115, PTH116, PTH123, PTH208
# Paths of /proc are read thousands at a time: as strings.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from .._compiled import speedups

RING = -1
"""Stands for an inode: the descriptor is an io_uring, which may have sockets of its own."""
AT_ONCE = 64
"""Descriptors that are read at once, in 0.2 ms."""
_PREFIX = "socket:["
_NUMBER_AT = len(_PREFIX)
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
_RING_FILE = re.compile(rb"^\s*\d+: socket:\[(\d+)\]", re.MULTILINE)

Found = tuple[int, int, int, int]
"""Inode, process, thread and descriptor of a held socket. Inode 0: the descriptor is no socket."""
Links = list[tuple[int, int]]
"""Inodes and descriptors."""


def all_pids() -> list[int]:
    """All visible processes, the newest first."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def other_threads(pid: int) -> Iterator[int]:
    """The threads of a process except the first."""
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return iter(())
    return (int(name) for name in names if int(name) != pid)


def parts(thread: int, first: int = AT_ONCE, most: int = AT_ONCE) -> Iterator[Links]:
    """The inodes (see `inode_of`) and descriptors of a table, the highest, usually the newest, first; nothing if it is gone.

    Raises:
        PermissionError: We may not see it.
    """
    waiting: Any = None
    while waiting is None or waiting:
        part = take_links(thread, waiting, first if waiting is None else most)
        if part is None:
            return
        found, waiting = part
        yield found


def links(thread: int, first: int = AT_ONCE) -> Iterator[tuple[int, int]]:
    """As `parts`, one by one."""
    return chain.from_iterable(parts(thread, first))


def _take_links(thread: int, waiting: list[str] | None, most: int) -> tuple[Links, list[str]] | None:
    """Read the last of the waiting descriptors (`None`: of all), and return those that still wait; `None` if the table is gone."""
    try:
        directory = os.open(f"/proc/{thread}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except _GONE:
        return None
    try:
        numbers = _numbers(directory) if waiting is None else waiting
        return _read(directory, numbers[-most:]), numbers[:-most]
    except _GONE:
        return None
    finally:
        os.close(directory)


def _numbers(directory: int) -> list[str]:
    """The descriptors of a table, and some that do not exist: listing a descriptor takes half as long as reading it.

    Since Linux 6.2 the kernel tells how many there are. So all numbers below that count are taken without a listing, and
    only higher ones are listed: the position in a listing is the number plus two (``proc_readfd_common``).
    """
    size = os.fstat(directory).st_size
    os.lseek(directory, size + 2 if size else 0, os.SEEK_SET)
    listed = os.listdir(directory)
    if any(int(number) < size for number in listed):  # the listing did not start there
        return os.listdir(directory)
    return [*map(str, range(size)), *listed]


def _read(directory: int, numbers: list[str]) -> Links:
    """Inodes and numbers of these descriptors, the last one first. Paths relative to the directory save a fifth of the time."""
    found: Links = []
    take, read = found.append, os.readlink
    for number in reversed(numbers):
        try:
            target = read(number, dir_fd=directory)
        except _GONE:  # it was closed since then
            continue
        inode = int(target[_NUMBER_AT:-1]) if target.startswith(_PREFIX) else inode_of(target)
        take((inode, int(number)))
    return found


take_links: Callable[[int, Any, int], tuple[Links, Any] | None] = getattr(speedups, "take_links", _take_links)


def inode_of(target: str) -> int:
    """The inode of a link to a socket; `RING` for an io_uring, 0 for anything else."""
    if target.startswith(_PREFIX):
        return int(target[_NUMBER_AT:-1])
    return RING if target == "anon_inode:[io_uring]" else 0


def _size_of(pid: int) -> int | None:
    """How many descriptors a process has (``proc_fd_getattr``); 0 before Linux 6.2. `None`: the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError:
        return None


size_of: Callable[[int], int | None] = getattr(speedups, "size_of", _size_of)


def sockets_of(pid: int) -> dict[int, int] | None:
    """The sockets of a process with their descriptors; `None` if we may not see them."""
    try:
        return {inode: number for inode, number in links(pid) if inode > 0}
    except PermissionError:
        return None


def holds(inode: int, thread: int, descriptor: int) -> bool:
    """True if a thread's descriptor is still this socket, or an io_uring, for which that is assumed."""
    return is_held(inode, inode_at(thread, descriptor), thread, descriptor)


def _inode_at(thread: int, descriptor: int) -> int | None:
    """The inode (see `inode_of`) of a descriptor; `None` if it does not exist, or we may not see it."""
    try:
        return inode_of(os.readlink(f"/proc/{thread}/fd/{descriptor}"))
    except OSError:
        return None


inode_at: Callable[[int, int], int | None] = getattr(speedups, "inode_at", _inode_at)


def is_held(inode: int, link: int | None, thread: int, descriptor: int) -> bool:
    """True if a thread's descriptor is the socket, or an io_uring that has it."""
    return link == inode or (link == RING and inode in registered(thread, descriptor))


def registered(thread: int, descriptor: int) -> set[int]:
    """Inodes of the sockets that are registered in an io_uring; such sockets need no descriptor of their own."""
    try:
        with open(f"/proc/{thread}/fdinfo/{descriptor}", "rb") as file:
            return {int(inode) for inode in _RING_FILE.findall(file.read())}
    except OSError:
        return set()
