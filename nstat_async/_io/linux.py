"""Facts of a Linux host that are neither sockets nor processes: privileges, namespaces, devices."""

# ruff: noqa: PTH112, PTH110, PTH115, PTH116, PTH121, PTH123
# Paths of /proc and /sys are read thousands at a time: as strings.

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import attrs

from .._errors import BackendUnavailableError, UnavailableReason
from .._model import InterfaceKind, Visibility
from ..sockdiag._setup import UNNAMED
from .tables import all_pids

SPARE_DESCRIPTORS = 16
"""Programs and pulse, which a monitor can do without, are not used unless this many descriptors remain for the rest of the process."""
SAMPLE = 16
"""How many processes of all ages are tried; a search for owners tries all (`OwnersAnswer.refused`)."""
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""``PROC_PID_INIT_INO``: the same in every kernel."""
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}
"""The number of the system call, by machine."""
_KCMP_FILES = 2
_CLONE_NEWNET = 0x40000000
MOUNTS = "/proc/self/mountinfo"
_ESCAPED = re.compile(rb"\\([0-7]{3})")
_DEVICES = "/sys/class/net"
OWN_NAMESPACE = "/proc/thread-self/ns/net"
"""The file of the network namespace that a thread is in."""
THREAD_NET = "/proc/thread-self/net"
"""The directory that shows a thread its network namespace."""
NAMED = ("/run/netns", "/var/run/netns")
"""Directories in which ``ip netns`` has its names."""

_T = TypeVar("_T")


def leave_descriptors(newest: int) -> None:
    """Check that the rest of the process can still open descriptors.

    Raises:
        OSError: Too few are left.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and newest + SPARE_DESCRIPTORS > limit:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def process_visibility(networks: frozenset[int | None]) -> tuple[Visibility, str | None, Visibility]:
    """Find out whose descriptors we may read, why not everybody's, and whose if a process refuses later.

    This is tried, because capabilities do not tell it: in a user namespace they reach fewer processes, a pid namespace and a
    mount option of ``/proc`` (``hidepid=``) hide others, and a security module may forbid to look at a process
    (``ptrace(2)``, PTRACE_MODE_READ_FSCREDS).

    Args:
        networks: The watched network namespaces, as `network_of_this_thread` numbers them.
    """
    if not os.path.isdir("/proc/self/fd"):
        return Visibility.NONE, "processes cannot be named: there is no /proc", Visibility.NONE
    root, sample = os.geteuid() == 0 and may_look_at(1), {1}  # root of a user namespace may not
    if not root:
        pids = all_pids()
        sample.update(pids[:: len(pids) // SAMPLE + 1])
    closed = {pid for pid in sample if not may_look_at(pid)}
    others = root or any(user_of(pid) not in {None, os.geteuid()} for pid in sample - closed)
    some = Visibility.SOME if others else Visibility.OWN
    if any(may_be_in(pid, networks) for pid in closed):
        return some, f"some {UNNAMED}", some
    if not os.path.isdir("/proc/1"):
        return Visibility.OWN, "processes of others cannot be named: /proc hides them (hidepid=)", some
    if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
        return Visibility.SOME, "processes of other pid namespaces cannot be named", some
    return Visibility.ALL, None, some


def may_look_at(pid: int) -> bool:
    """False if we may not see a process's descriptors; true if the process is gone."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                os.readlink(descriptor.path)
                break
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def user_of(pid: int) -> int | None:
    """The user of a process; `None` if it is gone, or hidden."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def network_of_this_thread() -> int | None:
    """A number for the thread's network namespace; `None` without ``/proc``.

    We may not see ``/proc/PID/ns`` of every process, but a file in ``/proc/PID/net`` has
    the same inode for all processes of a namespace (``proc_create_net``).
    """
    return network_at(THREAD_NET)


def network_at(directory: str) -> int | None:
    """As `network_of_this_thread`, for a directory of `/proc` that shows a namespace; `None` if it does not show one to us."""
    try:
        return os.stat(f"{directory}/dev").st_ino
    except OSError:
        return None


def _net_of_this_thread() -> str:
    try:
        return f"/proc/{os.readlink('/proc/thread-self')}/net"
    except OSError:
        return THREAD_NET


@attrs.frozen
class OwnNetwork:
    """The network namespace of the thread that made this object.

    A worker thread may be in another one: it stays where it is when another thread of its process goes elsewhere (``setns(2)``).
    """

    number: int | None = attrs.field(factory=network_of_this_thread)
    _directory: str = attrs.field(factory=_net_of_this_thread)

    def check_thread(self) -> None:
        """Check that the calling thread is in this namespace: what it opens is of its own.

        Raises:
            BackendUnavailableError: It is in another one.
        """
        if network_of_this_thread() != self.number:
            detail = "the monitor needs this thread, which is in another network namespace"
            raise BackendUnavailableError("sock_diag", UnavailableReason.MISSING, detail)

    def files(self) -> str:
        """The directory in ``/proc`` that shows the namespace to all threads.

        Raises:
            OSError: The thread that made this object is in another namespace now, or has ended.
        """
        if network_at(self._directory) != self.number:
            raise OSError(errno.ESTALE, "the monitor's thread went to another network namespace, or ended")
        return self._directory


def may_be_in(pid: int, networks: frozenset[int | None]) -> bool:
    """False if a process is gone, or known to be in none of these network namespaces, which ``hidepid=1`` hides."""
    try:
        return os.stat(f"/proc/{pid}/net/dev").st_ino in networks
    except PermissionError:
        return True
    except OSError:
        return None in networks


def share_descriptors(one: int, other: int) -> bool:
    """True if two threads are known to share a table of descriptors (``kcmp(2)``, KCMP_FILES)."""
    number = _KCMP.get(platform.machine())
    return number is not None and libc().syscall(number, one, other, _KCMP_FILES, 0, 0) == 0


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def namespace_path(namespace: str | int) -> str:
    """The file of a network namespace, which is given by a pid, a path, or its name in ``ip netns``."""
    if isinstance(namespace, int):
        return f"/proc/{namespace}/ns/net"
    if "/" in namespace:
        return namespace
    for directory in NAMED:
        path = f"{directory}/{namespace}"
        if os.path.exists(path):
            return path
    return f"{NAMED[0]}/{namespace}"


def mounts_of(kind: bytes, lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The mounts of this kind of file system in lines of ``mountinfo``: the mounted directory, and where it is mounted."""
    for line in lines:
        fields, _, source = line.partition(b" - ")
        parts = fields.split(b" ")
        if source.startswith(kind + b" ") and len(parts) > 4:  # the 4th and the 5th
            yield _unescaped(parts[3]), _unescaped(parts[4])


def _unescaped(field: bytes) -> str:
    """A path of ``mountinfo``, in which blanks, line breaks and backslashes are octal numbers."""
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 255]), field))


def namespaces_equal(path: str) -> bool:
    """True if `path` is the network namespace of this thread.

    Raises:
        OSError: There is no such file.
    """
    return os.path.samefile(path, OWN_NAMESPACE)


def in_namespace(descriptor: int, work: Callable[[], _T]) -> _T:
    """Run `work` in another network namespace.

    A namespace belongs to a thread, and a socket stays in the namespace in which it was made. So a new
    thread enters, works and ends, and no other thread is affected (``setns(2)``).

    Args:
        descriptor: An open descriptor of the namespace.
        work: The work to do there.

    Raises:
        OSError: Entering was refused (it needs CAP_SYS_ADMIN), or `work` raised this.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            if libc().setns(descriptor, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "setns")  # noqa: TRY301 - carried to the caller's thread
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=enter, name="nstat-async-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    result: _T = outcome[0]
    return result


def device_kind(name: str) -> InterfaceKind | None:
    """The kind of an Ethernet-like interface of our own namespace, by its device directory.

    Returns:
        Wi-Fi, cellular, Bluetooth or wired; `None` if there is no such device.
    """
    directory = f"{_DEVICES}/{name}"
    if "/" in name or not os.path.isdir(directory):
        return None
    if os.path.isdir(f"{directory}/wireless") or os.path.lexists(f"{directory}/phy80211"):
        return InterfaceKind.WIFI
    kind = _device_type(directory)
    known = {"wlan": InterfaceKind.WIFI, "wwan": InterfaceKind.CELLULAR, "bluetooth": InterfaceKind.BLUETOOTH}
    if kind in known:
        return known[kind]
    # Software devices tell rtnetlink their kind; a device on a bus, or without a kind, is a network card.
    return InterfaceKind.WIRED


def _device_type(directory: str) -> str | None:
    try:
        with open(f"{directory}/uevent", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("DEVTYPE="):
                    return line.strip().partition("=")[2]
    except OSError:
        pass
    return None
