"""A network namespace of a test's own: nobody else's connections, and no port that was another's a moment ago."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import sys

_CLONE_NEWNET = 0x40000000


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


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
        _call("unshare", _CLONE_NEWNET)
        _forget_idle_threads()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        _call("setns", before, _CLONE_NEWNET)
        _forget_idle_threads()
        os.close(before)


@functools.cache
def may_be_apart() -> bool:
    """True if this process may make namespaces."""
    try:
        with own_namespace():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def apart_if_allowed():
    """`own_namespace` for whoever may, and the machine's for an ordinary user."""
    return own_namespace() if may_be_apart() else contextlib.nullcontext()
