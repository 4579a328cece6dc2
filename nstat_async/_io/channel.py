"""Sockets as channels, and the common base of the transports of Darwin kernels."""

from __future__ import annotations

import abc
import socket
from typing import Any

from .._contract import Channel

RECEIVE_SIZE = 65_536
"""Bytes of each receive: no record is larger, and a shorter receive would cut one."""
RECEIVE_BUFFERS = (4 << 20, 2 << 20, 1 << 20, 512 << 10, 256 << 10, 128 << 10, 64 << 10)
"""Sizes that are tried, the largest first; 256 KiB are enough for any paced poll."""


def set_receive_buffer(sock: socket.socket, wanted: int | None) -> int | None:
    """Ask for the largest receive buffer that the kernel grants; returns its size, `None` if it is unknown."""
    for size in (wanted,) if wanted is not None else RECEIVE_BUFFERS:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            break
        except OSError:
            continue
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    except OSError:
        return None


class SocketChannel:
    """A connected, non-blocking socket that keeps datagram boundaries.

    Args:
        sock: The socket; closed with the channel.
        immediate: True if answers are readable when a send returns.
        receive_buffer: Granted size in bytes.
        ends: True if an empty read is the end (SOCK_SEQPACKET).
        rest: Seconds for which no task waits for data after it was found empty.
        answers_only: True if only answers to requests come, with the send or with a receive: no task needs to wait.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        immediate: bool,
        receive_buffer: int | None,
        ends: bool = False,
        rest: float = 0.0,
        answers_only: bool = False,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.immediate = immediate
        self.receive_buffer = receive_buffer
        self.rest = rest
        self.answers_only = answers_only
        self._ends = ends
        self._receive = sock.recv

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append the datagrams that have come, at most this many; false if there are no more."""
        receive, append = self._receive, batch.append
        try:
            for _ in range(most):
                data = receive(RECEIVE_SIZE)
                if not data and self._ends:
                    raise EOFError  # an empty read is the end of a SOCK_SEQPACKET socket
                append(data)
        except BlockingIOError:
            return False
        return True

    def send(self, data: bytes) -> None:
        """Send one datagram."""
        self._socket.send(data)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class PreparedTransport(abc.ABC):
    """A transport whose channels are all alike; the first one may be opened in advance."""

    _ready: Channel | None = None

    @abc.abstractmethod
    def connect(self) -> Channel:
        """Open one more channel.

        Raises:
            BackendUnavailableError: It cannot be opened; the text says why.
        """

    def prepare(self) -> None:
        """Open the first channel now, so that a failure is raised when the monitor starts."""
        self._ready = self.connect()

    def open(self, purpose: Any) -> Channel:  # noqa: ARG002  # all are alike
        """The prepared channel, or a new one."""
        ready, self._ready = self._ready, None
        return ready if ready is not None else self.connect()

    def lookup(self, request: Any) -> Any:  # noqa: ARG002
        """Do nothing and return `None`: these channels have no look-ups."""
        return None

    def close(self) -> None:
        """Close the prepared channel if it was not used. Idempotent."""
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.close()
