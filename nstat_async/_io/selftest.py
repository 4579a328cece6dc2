"""Makes flows with known values on this machine's loopback, as evidence for a layout.

There are four connections: TCP and UDP, over IPv4 and (if the host has it) IPv6, each with
a known number of bytes in both directions. All sockets belong to this process.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from .._model import Endpoint, Provider, TcpState
from ..ntstat import Evidence, KnownFlow
from .darwin import process_identity as identity

TIMEOUT = 2.0
"""Most seconds for each step; loopback needs microseconds."""
_SIZES = {socket.AF_INET: (1_234, 5_678), socket.AF_INET6: (2_345, 6_789)}


class LoopbackEvidence:
    """Opens known flows and holds them open."""

    def __init__(self) -> None:
        self._sockets = ExitStack()

    def open(self) -> Evidence | None:
        """Open the flows; `None` if this host's loopback does not work."""
        flows: list[KnownFlow] = []
        for family, (sent, received) in _SIZES.items():
            try:
                flows += self._tcp(family, sent, received)
                flows += self._udp(family, sent % 1000, received % 1000)
            except OSError:
                if family == socket.AF_INET:
                    self.close()
                    return None
        index = next((i for i, name in _interfaces() if name.startswith("lo")), None)
        uid = os.getuid() if hasattr(os, "getuid") else 0
        unique_pid, uuid = identity(os.getpid())
        return Evidence(
            flows=tuple(flows),
            pid=os.getpid(),
            uid=uid,
            interface_index=index,
            unique_pid=unique_pid,
            uuid=uuid,
        )

    def close(self) -> None:
        """Close the flows. Idempotent."""
        self._sockets.close()

    def _socket(self, family: int, kind: int) -> socket.socket:
        sock = self._sockets.enter_context(socket.socket(family, kind))
        sock.settimeout(TIMEOUT)
        return sock

    def _tcp(self, family: int, sent: int, received: int) -> list[KnownFlow]:
        listener = self._socket(family, socket.SOCK_STREAM)
        listener.bind((_loopback(family), 0))
        listener.listen(1)
        client = self._socket(family, socket.SOCK_STREAM)
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        self._sockets.enter_context(server)
        server.settimeout(TIMEOUT)
        _transfer(client, server, sent)
        _transfer(server, client, received)
        return [
            _known(Provider.TCP, client, TcpState.ESTABLISHED, received, sent),
            _known(Provider.TCP, server, TcpState.ESTABLISHED, sent, received),
        ]

    def _udp(self, family: int, sent: int, received: int) -> list[KnownFlow]:
        one, two = self._socket(family, socket.SOCK_DGRAM), self._socket(family, socket.SOCK_DGRAM)
        for sock in (one, two):
            sock.bind((_loopback(family), 0))
        one.connect(two.getsockname()[:2])
        two.connect(one.getsockname()[:2])
        _transfer(one, two, sent)
        _transfer(two, one, received)
        return [_known(Provider.UDP, one, None, received, sent), _known(Provider.UDP, two, None, sent, received)]


def _loopback(family: int) -> str:
    return "127.0.0.1" if family == socket.AF_INET else "::1"


def _transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    sender.sendall(b"n" * size)
    left = size
    while left > 0:
        left -= len(receiver.recv(65_536)) or left


def _known(provider: Provider, sock: socket.socket, state: TcpState | None, rx: int, tx: int) -> KnownFlow:
    local, remote = (Endpoint.parse(*address[:2]) for address in (sock.getsockname(), sock.getpeername()))
    return KnownFlow(provider=provider, local=local, remote=remote, state=state, rx_bytes=rx, tx_bytes=tx)


def _interfaces() -> list[tuple[int, str]]:
    try:
        return socket.if_nameindex()
    except OSError:
        return []
