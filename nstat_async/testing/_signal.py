"""A descriptor that is readable while a flag is set: how threads and event loops are woken."""

from __future__ import annotations

import contextlib
import socket


class Signal:
    """One byte waits on a socket pair while the signal is set."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        if self._far.family == socket.AF_INET:
            # Windows has no AF_UNIX, and Python makes a pair of TCP sockets: do not wait for an ACK.
            self._far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_set = False

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._near.fileno()

    def set(self) -> None:
        """Make the descriptor readable."""
        if not self._is_set:
            self._is_set = True
            with contextlib.suppress(OSError):
                self._far.send(b"\0")

    def clear(self) -> None:
        """Make it unreadable."""
        if self._is_set:
            self._is_set = False
            with contextlib.suppress(OSError):
                self._near.recv(1)

    def close(self) -> None:
        """Release both ends. Idempotent."""
        self._near.close()
        self._far.close()
