"""Facts of a Linux host that are neither sockets nor processes: privileges, namespaces, devices."""

# ruff: noqa: PTH112, PTH110, PTH121, PTH123
# Paths of /proc and /sys are read thousands at a time: as strings.

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .._model import InterfaceKind, Visibility

CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
_CLONE_NEWNET = 0x40000000
_DEVICES = "/sys/class/net"
_OWN_NAMESPACE = "/proc/self/ns/net"
_NAMED = ("/run/netns", "/var/run/netns")

_T = TypeVar("_T")


def capability(number: int) -> bool:
    """True if this process has a capability in effect (``/proc/self/status``, CapEff)."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> number & 1)
    except (OSError, ValueError):
        pass
    return False


def process_visibility() -> Visibility:
    """Whose processes' descriptors can be read: see ``ptrace(2)``, PTRACE_MODE_READ_FSCREDS."""
    if not os.path.isdir("/proc/self/fd"):
        return Visibility.NONE
    if capability(CAP_SYS_PTRACE) and (capability(CAP_DAC_READ_SEARCH) or os.geteuid() == 0):
        return Visibility.ALL
    return Visibility.OWN


def namespace_path(namespace: str | int) -> str:
    """The file of a network namespace: of a process by its pid, by path, or by the name ``ip netns`` gave it."""
    if isinstance(namespace, int):
        return f"/proc/{namespace}/ns/net"
    if "/" in namespace:
        return namespace
    for directory in _NAMED:
        path = f"{directory}/{namespace}"
        if os.path.exists(path):
            return path
    return f"{_NAMED[0]}/{namespace}"


def namespaces_equal(path: str) -> bool:
    """True if `path` is the network namespace that this process is in.

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
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET):
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
