"""Finds cgroups by their numbers: the paths of directories in the cgroup v2 hierarchy, and the names of containers.

The kernel's number of a cgroup is the inode of its directory. With CAP_DAC_READ_SEARCH the kernel opens
a directory by its number (``open_by_handle_at(2)``). Without it the tree is walked, in pieces of bounded time.
"""

# ruff: noqa: PTH115, PTH116, PTH123
# Paths of a hierarchy are read by the thousand: as strings.

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterator

import attrs

from .._workload import workload_of
from ..sockdiag import CgroupFacts, CgroupsAnswer, CgroupsRequest
from .containers import names_of
from .linux import MOUNTS, libc, mounts_of

BUDGET = 0.02
"""Seconds of CPU for one answer."""
MOST = 65_536
"""Most cgroups that one walk remembers."""

_LEAF_LINKS = 2
"""Links of a directory without subdirectories (``kernfs_refresh_inode``): its forty files need not be listed."""
_KERNFS_HANDLE = 0xFE
"""``FILEID_KERNFS``: a handle that has only the number."""
_GONE = frozenset({errno.ESTALE, errno.ENOENT})


class _Handle(ctypes.Structure):
    """``struct file_handle`` with a number."""

    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("number", ctypes.c_uint64))


@attrs.frozen
class Hierarchy:
    """Where cgroup v2 is mounted."""

    directory: str
    root: str
    """Path of the mounted directory's cgroup, as this process's cgroup namespace shows it."""

    def path_of(self, below: str) -> str:
        """The path of a cgroup, by its directory below the mount."""
        return f"{self.root.rstrip('/')}{below}" or "/"


def find_hierarchy(mounts: bytes) -> Hierarchy | None:
    """The mount of cgroup v2 in the text of ``/proc/self/mountinfo``; `None` if it is not mounted."""
    found = (Hierarchy(directory, root) for root, directory in mounts_of(b"cgroup2", mounts.splitlines()))
    return min(found, key=lambda each: len(each.root), default=None)


def hierarchy_here() -> Hierarchy | None:
    """The mount of cgroup v2 that this process sees; `None` if it is not mounted."""
    try:
        with open(MOUNTS, "rb") as file:
            return find_hierarchy(file.read())
    except OSError:
        return None


def mounted_at() -> str | None:
    """The directory where cgroup v2 is mounted; `None` if it is not."""
    hierarchy = hierarchy_here()
    return None if hierarchy is None else hierarchy.directory


def cgroup_of_process(pid: int, hierarchy: Hierarchy | None) -> int | None:
    """Number of a process's cgroup (v2), which every user may read; `None` if the process is gone.

    0 if it is unknown, and for the root, which has the processes that were not put into a cgroup; with cgroup v1 all.
    """
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            path = next((os.fsdecode(line[3:-1]) for line in file if line.startswith(b"0::")), "")
    except OSError:
        return None
    root = "" if hierarchy is None else hierarchy.root.rstrip("/")
    if hierarchy is None or path == "/" or not path.startswith(f"{root}/"):
        return 0
    try:
        return os.stat(hierarchy.directory + path.removeprefix(root)).st_ino
    except OSError:
        return 0


class CgroupFinder:
    """Answers `CgroupsRequest`; only one thread at a time may use it.

    Args:
        budget: Seconds of CPU for one answer.
    """

    def __init__(self, budget: float = BUDGET) -> None:
        self._budget = budget
        self._by_handle = True
        self._ahead: list[str] = []
        """Directories that the present walk has not read yet."""
        self._walked: dict[int, str] = {}
        self._sought: frozenset[int] = frozenset()
        """The cgroups that were wanted when the walk began: only for these it can tell that they do not exist."""

    def answer(self, request: CgroupsRequest) -> CgroupsAnswer:
        """Find as many cgroups as the budget allows."""
        hierarchy = hierarchy_here()
        if hierarchy is None:
            return CgroupsAnswer(gone=request.numbers)
        until = time.thread_time() + self._budget
        wanted = set(request.numbers)
        found = dict(self._opened(hierarchy, wanted, until)) if self._by_handle else {}
        gone: set[int] = set()
        if self._by_handle:
            gone = {number for number, below in found.items() if below is None}
            left = wanted - found.keys()
        else:
            left, gone = self._walk(hierarchy, wanted, until)
            found = {number: self._walked[number] for number in wanted - left - gone}
        facts = [_facts(number, hierarchy.path_of(below)) for number, below in found.items() if below is not None]
        return CgroupsAnswer(tuple(facts), tuple(sorted(gone)), not left)

    # -- by handle

    def _opened(self, hierarchy: Hierarchy, wanted: set[int], until: float) -> Iterator[tuple[int, str | None]]:
        """Each cgroup with its directory below the mount, or `None`; nothing if opening by number is not allowed."""
        try:
            mount = os.open(hierarchy.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._by_handle = False
            return
        try:
            for number in wanted:
                if time.thread_time() >= until:
                    return
                yield number, _directory_of(mount, number, hierarchy.directory)
        except (OSError, AttributeError):  # not allowed, or not known to the C library
            self._by_handle = False
        finally:
            os.close(mount)

    # -- by walking

    def _walk(self, hierarchy: Hierarchy, wanted: set[int], until: float) -> tuple[set[int], set[int]]:
        """Continue the walk; returns the numbers that are not known yet, and those of the others that do not exist."""
        if not self._ahead:
            self._ahead, self._walked, self._sought = [""], {}, frozenset(wanted)
            with contextlib.suppress(OSError):
                self._walked[os.stat(hierarchy.directory).st_ino] = ""
        left = wanted - self._walked.keys()
        while left and self._ahead and time.thread_time() < until:
            below = self._ahead.pop()
            left -= self._look_into(hierarchy.directory, below)
        if left and not self._ahead:
            return left - self._sought, left & self._sought
        if not left:
            self._ahead = []
        return left, set()

    def _look_into(self, directory: str, below: str) -> set[int]:
        """The numbers of the cgroups directly below one."""
        found = set()
        with contextlib.suppress(OSError), os.scandir(directory + below) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and len(self._walked) < MOST:
                    path = f"{below}/{entry.name}"
                    self._walked[entry.inode()] = path
                    found.add(entry.inode())
                    if entry.stat(follow_symlinks=False).st_nlink > _LEAF_LINKS:
                        self._ahead.append(path)
        return found


def _facts(number: int, path: str) -> CgroupFacts:
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    workload = workload_of(text)
    container, pod = names_of(workload.container) if workload.container else (None, None)
    return CgroupFacts(number, text, container, pod if workload.pod else None)


def _directory_of(mount: int, number: int, directory: str) -> str | None:
    """The directory of a cgroup below the mount; `None` if it is gone, or not below the mount.

    Raises:
        OSError: Opening by number is not allowed, or not supported.
    """
    handle = _Handle(8, _KERNFS_HANDLE, number)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = libc().open_by_handle_at(mount, ctypes.byref(handle), flags)
    if descriptor < 0:
        error = ctypes.get_errno()
        if error in _GONE:
            return None
        raise OSError(error, os.strerror(error), "open_by_handle_at")
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if path == directory:
        return ""
    return path.removeprefix(directory) if path.startswith(directory.rstrip("/") + "/") else None
