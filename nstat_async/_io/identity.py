"""Identifies this machine: its id, its present boot, its name."""

from __future__ import annotations

import ctypes
import socket
from pathlib import Path
from uuid import UUID

from .system import DARWIN, LINUX, is_here


def machine_id() -> str | None:
    """Linux ``/etc/machine-id`` (machine-id(5)), macOS ``gethostuuid(2)``; `None` if it is not known."""
    if is_here(LINUX):
        return _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id")
    return _host_uuid() if is_here(DARWIN) else None


def boot_id() -> str | None:
    """Linux ``random/boot_id`` (random(4)), macOS ``kern.bootsessionuuid``; `None` if it is not known."""
    if is_here(LINUX):
        return _read("/proc/sys/kernel/random/boot_id")
    if is_here(DARWIN):
        from .darwin import sysctl_text  # noqa: PLC0415  # for Macs

        return sysctl_text("kern.bootsessionuuid")
    return None


def short_name() -> str:
    """The machine's name up to its first dot."""
    return socket.gethostname().partition(".")[0]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text("ascii").strip() or None
    except (OSError, ValueError):
        return None


def _host_uuid() -> str | None:
    """The host's UUID; ``struct timespec`` of zero: do not wait for it."""
    asked = getattr(ctypes.CDLL(None), "gethostuuid", None)
    found, no_time = (ctypes.c_ubyte * 16)(), (ctypes.c_long * 2)(0, 0)
    if asked is None or asked(found, ctypes.byref(no_time)) != 0:
        return None
    return str(UUID(bytes=bytes(found)))
