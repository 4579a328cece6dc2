"""A descriptor that is readable while a flag is set: how threads and event loops are woken."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Signal"]


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets, where the system has no AF_UNIX (Windows)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        while True:
            listener.listen(1)
            near = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            near.connect(listener.getsockname())
            far, peer = listener.accept()
            if peer == near.getsockname():
                break
            # Somebody else was quicker to connect.
            near.close()
            far.close()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Signal:
    """One byte waits on a socket pair while the signal is set."""

    def __init__(self) -> None:
        family = getattr(socket, "AF_UNIX", None)
        pair = _loopback_pair() if family is None else socket.socketpair(family, socket.SOCK_STREAM)
        self._near, self._far = pair
        self._near.setblocking(False)
        self._far.setblocking(False)
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
