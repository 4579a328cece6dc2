"""What the tests with a real kernel share: connections, a session that is driven by hand, another namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys

import pytest
from sockdiag_fakes import LiveDriver

from nstat_async._options import MonitorOptions

if not sys.platform.startswith("linux"):
    pytest.skip("the living kernel is Linux'", allow_module_level=True)

from nstat_async.backends import SockDiag

RESET = struct.pack("ii", 1, 0)


def drive(netns=None, **options) -> LiveDriver:
    return LiveDriver(
        *SockDiag(netns).parts(MonitorOptions(**{"interval": None, "ebpf": "off", "pulse": None, **options}))
    )


def listen(family: int = socket.AF_INET, address: str = "127.0.0.1") -> socket.socket:
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(128)
    return listener


def pair(listener: socket.socket, target: tuple | None = None) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(target or listener.getsockname()[:2])
    server, _ = listener.accept()
    return client, server


def port(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def exchange(client: socket.socket, server: socket.socket, up: int, down: int) -> None:
    """Send `up` bytes one way and `down` the other, and read all of them."""
    for sender, receiver, size in ((client, server, up), (server, client, down)):
        sender.sendall(bytes(size))
        left = size
        while left:
            left -= len(receiver.recv(left))


def totals(event) -> tuple[int | None, int | None]:
    return event.counts.rx_bytes, event.counts.tx_bytes


def dissolve(sock: socket.socket) -> None:
    """``connect(AF_UNSPEC)``: the connection ends, the socket stays."""
    assert ctypes.CDLL(None).connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) == 0


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


privileged = pytest.mark.skipif(os.geteuid() != 0 or not can_unshare(), reason="needs root and network namespaces")

INSIDE = """
import socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
c.sendall(b"x" * 12345)
n = 0
while n < 12345: n += len(a.recv(65536))
print(c.getsockname()[1], flush=True)
sys.stdin.readline()
c.close(); a.close(); l.close()
"""


def inside() -> subprocess.Popen[str]:
    """A process with a connection in a network namespace of its own."""
    script = 'ip link set lo up && exec "$0" -c "$1"'
    return subprocess.Popen(
        ["unshare", "-n", "sh", "-c", script, sys.executable, INSIDE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
