"""A network namespace of a test's own: nobody else's connections, and no port that was another's a moment ago."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import socket
import struct
import sys

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def call(name: str, *arguments: bytes | int | None) -> None:
    """Call this function of the C library, which returns 0 unless it fails.

    Raises:
        OSError: It failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def loopback_up() -> None:
    """``ip link set lo up``, without a process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _forget_idle_threads():
    """trio keeps threads for ten seconds, which stay in the namespace where they began: a look-up would be asked there."""
    cache = sys.modules.get("trio._core._thread_cache")
    if cache is not None:
        cache.THREAD_CACHE = cache.ThreadCache()


@contextlib.contextmanager
def own_namespace():
    """This thread, and what it starts, in a network namespace of its own with loopback up."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        call("unshare", _CLONE_NEWNET)
        _forget_idle_threads()
        loopback_up()
        yield
    finally:
        call("setns", before, _CLONE_NEWNET)
        _forget_idle_threads()
        os.close(before)


@functools.cache
def may_be_apart() -> bool:
    """True if this process may make namespaces."""
    try:
        with own_namespace():
            return True
    except OSError:
        return False


def apart_if_allowed():
    """`own_namespace` for whoever may, and the machine's for an ordinary user."""
    return own_namespace() if may_be_apart() else contextlib.nullcontext()
