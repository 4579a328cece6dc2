"""Facts of a Linux host that are neither sockets nor processes: privileges, namespaces, devices."""

# ruff: noqa: PTH112, PTH110, PTH115, PTH116, PTH121, PTH123
# Paths of /proc and /sys are read thousands at a time: as strings.

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from .._model import InterfaceKind, Visibility
from ..sockdiag._setup import UNNAMED
from .tables import all_pids

SAMPLE = 16
"""Processes of all ages that are tried out; a search for owners tries all (`OwnersAnswer.refused`)."""
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""``PROC_PID_INIT_INO``: a number that every kernel has."""
_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}
"""The number of the system call, by machine."""
_KCMP_FILES = 2
_CLONE_NEWNET = 0x40000000
_DEVICES = "/sys/class/net"
_OWN_NAMESPACE = "/proc/thread-self/ns/net"
THREAD_NET = "/proc/thread-self/net"
"""What a thread sees of its network namespace."""
NAMED = ("/run/netns", "/var/run/netns")
"""Where ``ip netns`` has its names."""

_T = TypeVar("_T")


def process_visibility(networks: frozenset[int | None]) -> tuple[Visibility, str | None, Visibility]:
    """Whose descriptors can be read, why not everybody's, and whose if one refuses later: tried out, because capabilities do not say it.

    Of the same capability bits those of a user namespace reach fewer processes, a pid namespace and a
    mount option of ``/proc`` (``hidepid=``) hide the others, and a process may have more rights than we
    (``ptrace(2)``, PTRACE_MODE_READ_FSCREDS).

    Args:
        networks: The network namespaces that matter, as `network_of_this_thread` has them.
    """
    if not os.path.isdir("/proc/self/fd"):
        return Visibility.NONE, "processes cannot be named: there is no /proc", Visibility.NONE
    root, sample = os.geteuid() == 0, {1}
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
    """False if a process keeps its descriptors to itself; one that is gone does not."""
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
    """A number for its network namespace; `None` without ``/proc``.

    Of a process that may not be looked at ``/proc/PID/ns`` is closed, while a file in ``/proc/PID/net`` has
    the same inode in all processes of a namespace (``proc_create_net``).
    """
    return network_at(THREAD_NET)


def network_at(directory: str) -> int | None:
    """The same by a directory of `/proc` that shows a namespace; `None` where it does not, or not to us."""
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
    """The network namespace of the thread that made it, for worker threads: such a one may have stayed in another, or gone there (``setns(2)``)."""

    number: int | None = attrs.field(factory=network_of_this_thread)
    _directory: str = attrs.field(factory=_net_of_this_thread)

    def files(self) -> str:
        """The directory in ``/proc`` that shows it to all threads.

        Raises:
            OSError: The thread that made this is in another one now, or ended.
        """
        if network_at(self._directory) != self.number:
            raise OSError(errno.ESTALE, "the monitor's thread went to another network namespace, or ended")
        return self._directory


def may_be_in(pid: int, networks: frozenset[int | None]) -> bool:
    """False if a process is gone, or known to be in none of these network namespaces; ``hidepid=1`` hides which it is in."""
    try:
        return os.stat(f"/proc/{pid}/net/dev").st_ino in networks
    except PermissionError:
        return True
    except OSError:
        return None in networks


def share_descriptors(one: int, other: int) -> bool:
    """True if two threads are known to have one table of descriptors (``kcmp(2)``, KCMP_FILES)."""
    number = _KCMP.get(platform.machine())
    return number is not None and libc().syscall(number, one, other, _KCMP_FILES, 0, 0) == 0


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def namespace_path(namespace: str | int) -> str:
    """The file of a network namespace: of a process by its pid, by path, or by the name ``ip netns`` gave it."""
    if isinstance(namespace, int):
        return f"/proc/{namespace}/ns/net"
    if "/" in namespace:
        return namespace
    for directory in NAMED:
        path = f"{directory}/{namespace}"
        if os.path.exists(path):
            return path
    return f"{NAMED[0]}/{namespace}"


def namespaces_equal(path: str) -> bool:
    """True if `path` is the network namespace that this thread is in.

    Raises:
        OSError: There is no such file.
    """
    return os.path.samefile(path, _OWN_NAMESPACE)


def in_namespace(descriptor: int, work: Callable[[], _T]) -> _T:
    """Run `work` in another network namespace.

    A namespace belongs to a thread, and a socket stays where it was made: so a thread
    of its own enters, works and ends, and nobody else notices (``setns(2)``).

    Args:
        descriptor: An open descriptor of the namespace.
        work: What to do there.

    Raises:
        OSError: Entering was refused (it needs CAP_SYS_ADMIN), or `work` raised it.
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
    """What an Ethernet-like interface of the own namespace is, by its device directory.

    Returns:
        Wi-Fi, cellular, Bluetooth, wired; `None` when there is no such device.
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
    # Software devices name themselves to rtnetlink; what has a bus behind it, or nothing to say, is a network card.
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
