"""Reads facts of a Darwin host that the standard library does not have.

A few guarded calls by `ctypes`, each with a fallback; nothing here is imported on
another system.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import struct
from typing import Any

from ..ntstat._interfaces import INTERFACE_LIST

APPLE_SILICON = (125, 3)
"""Timebase of every Apple silicon Mac so far: 24 MHz."""
_PATH_SIZE = 4096
"""``PROC_PIDPATHINFO_MAXSIZE``."""
_UNIQUE_IDENTIFIER = 17
"""``PROC_PIDUNIQIDENTIFIERINFO``."""


@functools.cache
def _libc() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


def _function(name: str) -> Any:
    """A function of the C library; `None` if there is none of this name."""
    return getattr(_libc(), name, None)


class _Timebase(ctypes.Structure):
    _fields_ = (("numer", ctypes.c_uint32), ("denom", ctypes.c_uint32))


def kernel_text() -> str:
    """The kernel's version string (``uname -v``)."""
    return os.uname().version


def is_translated() -> bool:
    """True if this process runs under Rosetta: it gets a timebase that the kernel's ticks do not follow."""
    return sysctl_integer("sysctl.proc_translated") == 1


def sysctl_integer(name: str) -> int | None:
    """An integer of ``sysctlbyname``; `None` if it does not exist, or may not be read."""
    found = _sysctl(name, 8)
    return None if found is None else int.from_bytes(found, "little")


def sysctl_text(name: str) -> str | None:
    """A text of ``sysctlbyname``; `None` as for `sysctl_integer`."""
    found = _sysctl(name, 256)
    return None if found is None else found.rstrip(b"\0").decode("utf-8", "replace")


def _sysctl(name: str, most: int, request: bytes | None = None) -> bytes | None:
    ask = _function("sysctlbyname")
    buffer, size = (ctypes.c_ubyte * most)(), ctypes.c_size_t(most)
    if ask is None or ask(name.encode(), buffer, ctypes.byref(size), request, len(request or b"")):
        return None
    return bytes(buffer)[: size.value]


def timebase() -> tuple[int, int]:
    """Nanoseconds per tick of the kernel's clock, as a fraction (``mach_timebase_info``).

    Under Rosetta this is the kernel's own timebase; if it cannot be read, the machine's
    architecture decides.
    """
    if is_translated():
        return APPLE_SILICON
    info, ask = _Timebase(), _function("mach_timebase_info")
    if ask is not None and ask(ctypes.byref(info)) == 0 and info.numer and info.denom:
        return info.numer, info.denom
    return APPLE_SILICON if os.uname().machine == "arm64" else (1, 1)


def interface_names() -> dict[int, str]:
    """Interface names by index."""
    try:
        return dict(socket.if_nameindex())
    except OSError:
        return {}


_INTERFACE_TRIES = 3
"""How often the list of interfaces is read if it grows between the query of its size and its reading."""


def interface_messages() -> bytes | None:
    """The messages about all interfaces (``NET_RT_IFLIST2``); `None` if they cannot be read."""
    ask = _function("sysctl")
    if ask is None:
        return None
    name = (ctypes.c_int * len(INTERFACE_LIST))(*INTERFACE_LIST)
    for _ in range(_INTERFACE_TRIES):
        size = ctypes.c_size_t(0)
        if ask(name, len(name), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return None
        buffer = ctypes.create_string_buffer(size.value or 1)
        if not ask(name, len(name), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return buffer.raw[: size.value]
    return None


_METRICS_VERSION = 2
_SCAN, _MOST_CLIENTS = 0xFFFFFFFF, 1024
_CLIENT_INFO = struct.Struct("<Ii")
_CLIENT_INFO_SIZE = 276
_METRICS_AT = 16
_REFUSED = (136, 140, 144)
"""``nstat_src_add_no_buf``, ``_no_src_mem``, ``_send_err`` in ``nstat_metrics``."""
_FAILED_GOODBYES = 164
"""``nstat_src_goodbye_failures``."""


def client_metrics(number: int) -> tuple[int, int, int, int] | None:
    """The kernel's counters of the control socket with this number, or the next lower one (``net.stats.metrics``, macOS 26).

    Returns:
        Its number, its process, sources not made, goodbyes failed; `None` if there is none, or it may not be read.
    """
    info = _sysctl("net.stats.metrics", _CLIENT_INFO_SIZE, struct.pack("<II", _METRICS_VERSION, number))
    if info is None or len(info) < _CLIENT_INFO_SIZE:
        return None
    refused = sum(_number(info, _METRICS_AT + at) for at in _REFUSED)
    return (*_CLIENT_INFO.unpack_from(info), refused, _number(info, _METRICS_AT + _FAILED_GOODBYES))


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def newest_client(pid: int) -> int | None:
    """The number of the control socket that a process opened last; `None` if it has none, or that may not be read."""
    number = _SCAN
    for _ in range(_MOST_CLIENTS):  # downward
        found = client_metrics(number)
        if found is None or found[0] > number or found[1] == pid:
            return None if found is None or found[1] != pid else found[0]
        number = found[0] - 1
    return None


_STATS_SIZE, _ADDED_FAILURES = 64, 24
"""``nstat_stats``: sixteen numbers of 32 bits, the seventh is ``nstat_srcaddedfailures``."""


def refused_announcements() -> int | None:
    """Announcements of sources without room, of all clients (``net.stats.stats``); `None` if there is no such count."""
    found = _sysctl("net.stats.stats", _STATS_SIZE)
    return _number(found, _ADDED_FAILURES) if found is not None and len(found) == _STATS_SIZE else None


class _UniqueIdentifier(ctypes.Structure):
    """``proc_uniqidentifierinfo``."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("unique_pid", ctypes.c_uint64),
        ("parent", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 3),
    )


def process_identity(pid: int) -> tuple[int | None, bytes | None]:
    """A process's unique id and the UUID of its executable (``proc_pidinfo``); `None` for each that cannot be read."""
    ask, info = _function("proc_pidinfo"), _UniqueIdentifier()
    size = ctypes.sizeof(info)
    if ask is None or ask(pid, _UNIQUE_IDENTIFIER, ctypes.c_uint64(0), ctypes.byref(info), size) != size:
        return None, None
    return info.unique_pid, bytes(info.uuid)


def process_path(pid: int) -> str | None:
    """Path of a process' executable (``proc_pidpath``); `None` if it is gone or may not be seen."""
    ask, buffer = _function("proc_pidpath"), ctypes.create_string_buffer(_PATH_SIZE)
    size = 0 if ask is None else ask(pid, buffer, _PATH_SIZE)
    return os.fsdecode(buffer.raw[:size]) if size > 0 else None
