"""Connects to a kernel behind an AF_UNIX socket: the emulated one, or a bridge to another machine's.

The socket is SOCK_SEQPACKET. One packet is one datagram of the control socket, in both
directions; end of file means that the control is gone. Answers may come a moment after a request.
"""

from __future__ import annotations

import socket

from .._contract import Channel
from .._errors import BackendUnavailableError, UnavailableReason
from .._options import MonitorOptions
from .channel import PreparedTransport, SocketChannel, set_receive_buffer


class UnixTransport(PreparedTransport):
    """Connects to a server on a path, once per channel."""

    def __init__(self, path: str, options: MonitorOptions) -> None:
        self._path = path
        self._options = options

    def connect(self) -> Channel:
        family = getattr(socket, "AF_UNIX", None)
        kind = getattr(socket, "SOCK_SEQPACKET", None)
        if family is None or kind is None:
            raise BackendUnavailableError(
                "unix", UnavailableReason.PLATFORM, "this host has no AF_UNIX SOCK_SEQPACKET sockets"
            )
        sock = socket.socket(family, kind)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            detail = f"cannot connect to {self._path}: {error.strerror or error}"
            denied = isinstance(error, PermissionError)
            reason = UnavailableReason.PERMISSION if denied else UnavailableReason.MISSING
            raise BackendUnavailableError("unix", reason, detail) from error
        # This is the size of this socket's own buffer; that of the kernel behind it is not known here.
        set_receive_buffer(sock, self._options.receive_buffer)
        return SocketChannel(sock, immediate=False, receive_buffer=None, ends=True)
