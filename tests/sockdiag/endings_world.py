"""Connections of random lives that end in random ways, with the truth about them: what each end received, and how it ended."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest
from sockdiag_fakes import LiveDriver

from nstat_async._options import MonitorOptions

RESET = struct.pack("ii", 1, 0)
_CLONE_NEWNET = 0x40000000


class Namespace:
    """A network namespace of its own: a thread that lives in it, and runs what is to happen there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.tid = self.run(self._enter)

    def _enter(self) -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return threading.get_native_id()

    @property
    def path(self) -> str:
        return f"/proc/self/task/{self.tid}/ns/net"

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._thread.submit(function, *arguments).result()

    def ip(self, *lines: str) -> None:
        for line in lines:
            self.run(lambda text=line: subprocess.run(["ip", *text.split()], check=True))

    def close(self) -> None:
        self._thread.shutdown()


@contextlib.contextmanager
def one_namespace() -> Iterator[tuple[Namespace, Namespace, str]]:
    """Both ends in one namespace, on loopback: the namespace of each end and the address to connect to."""
    here = Namespace()
    here.ip("link set lo up")
    try:
        yield here, here, "127.0.0.1"
    finally:
        here.close()


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace, str]]:
    """The ends in two namespaces, joined by a pair of interfaces."""
    here, there = Namespace(), Namespace()
    here.ip("link set lo up", f"link add here type veth peer name there netns {there.tid}")
    for namespace, name, address in ((here, "here", "10.77.0.1"), (there, "there", "10.77.0.2")):
        namespace.ip(f"addr add {address}/24 dev {name}", f"link set {name} up")
    try:
        yield here, there, "10.77.0.2"
    finally:
        here.close()
        there.close()


def waiting(sock: socket.socket, request: int) -> int:
    """Bytes in a socket's receive (FIONREAD) or send queue (TIOCOUTQ)."""
    number = array.array("i", [0])
    fcntl.ioctl(sock, request, number)
    return number[0]


@attrs.define(eq=False)
class End:
    """One end of a connection, with what is true of it."""

    sock: socket.socket
    port: int
    sent: int = 0
    received: int | None = None
    """What the other end had sent when this end was over; `None` while it is not."""
    aborted: bool = False

    def send(self, size: int, flags: int = 0) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sent += self.sock.send(bytes(size), flags | socket.MSG_NOSIGNAL)

    def settle(self) -> None:
        """Wait until the other end has all of it: what a reset throws away was received, or not, for sure."""
        deadline = time.monotonic() + 120
        while waiting(self.sock, termios.TIOCOUTQ) > 0 and time.monotonic() < deadline:
            if self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in {4, 5, 7, 9, 11}:
                return  # a FIN is no data; or all is over
            time.sleep(0.0001)

    def over(self, other: End) -> None:
        if self.received is None:
            self.received = other.sent


@attrs.define(eq=False)
class Connection:
    """A connection; `steps` says what happened to it, for a person."""

    client: End
    server: End
    steps: list[str]


def make(random_: random.Random, here: Namespace, listener: socket.socket, to: tuple) -> Connection:
    """Open a connection, sometimes with data in its first segment."""
    client_sock = here.run(socket.socket)
    steps, early = [], 0
    client_sock.bind((to[2], to[3]))
    if random_.random() < 0.1:
        early = random_.choice((1, 100))
        steps.append(f"fast open {early}")
        client_sock.sendto(bytes(early), socket.MSG_FASTOPEN, to[:2])
    else:
        client_sock.connect(to[:2])
    server_sock, _ = listener.accept()
    client, server = End(client_sock, client_sock.getsockname()[1]), End(server_sock, server_sock.getsockname()[1])
    client.sent = early
    return Connection(client, server, steps)


def live(random_: random.Random, connection: Connection, poll: Callable[[], None]) -> None:
    """Do things at random, and close both ends in the end."""
    ends = {"client": connection.client, "server": connection.server}
    for _ in range(random_.randrange(8)):
        name = random_.choice(list(ends))
        _act(random_, connection, name, poll)
    order = list(ends)
    random_.shuffle(order)
    for name in order:
        _act(random_, connection, random_.choice(list(ends)), poll)
        _close(random_, connection, name)
        _pause(random_, connection)


def _other(connection: Connection, name: str) -> End:
    return connection.server if name == "client" else connection.client


def _act(random_: random.Random, connection: Connection, name: str, poll: Callable[[], None]) -> None:
    end = getattr(connection, name)
    if end.sock.fileno() < 0:
        return
    kind = random_.choice(
        ("send", "send", "send", "read", "read", "drain", "write end", "both ends", "urgent", "poll", "pause")
    )
    connection.steps.append(f"{name} {kind}")
    if kind == "send":
        end.send(random_.choice((1, 2, 10, 777, 5000)))
        end.settle()
    elif kind == "urgent":
        end.send(random_.choice((1, 5)), socket.MSG_OOB)
        end.settle()
    elif kind in {"read", "drain"}:
        _read(end, 100_000 if kind == "drain" else random_.choice((1, 50)))
    elif kind == "write end":
        with contextlib.suppress(OSError):
            end.sock.shutdown(socket.SHUT_WR)
    elif kind == "both ends":
        if random_.random() < 0.3:
            with contextlib.suppress(OSError):
                end.sock.shutdown(socket.SHUT_RDWR)
                end.over(_other(connection, name))  # what comes now is answered with a reset
    elif kind == "poll":
        poll()
    else:
        _pause(random_, connection)


def _read(end: End, size: int) -> None:
    with contextlib.suppress(OSError):  # nothing is there, or it was reset
        while end.sock.recv(size, socket.MSG_DONTWAIT) and size > 100:
            pass


def _pause(random_: random.Random, connection: Connection) -> None:
    if random_.random() < 0.3:
        connection.steps.append("pause")
        time.sleep(random_.choice((0.0005, 0.003, 0.012)))


def _close(random_: random.Random, connection: Connection, name: str) -> None:
    end, other = getattr(connection, name), _other(connection, name)
    if other.sock.fileno() >= 0:
        other.settle()
        end.settle()
    end.over(other)
    if random_.random() < 0.1:
        connection.steps.append(f"{name} abort")
        end.aborted = True
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        other.over(end)
    else:
        connection.steps.append(f"{name} close ({waiting(end.sock, termios.FIONREAD)} unread)")
    end.sock.close()


def truth_at(connection: Connection) -> list[tuple[str, End, int | None]]:
    """For each end its name, itself, and what it received."""
    return [(name, end, end.received) for name, end in (("client", connection.client), ("server", connection.server))]


living = pytest.mark.skipif(
    not sys.platform.startswith("linux") or (hasattr(os, "geteuid") and os.geteuid() != 0),
    reason="network namespaces need Linux and root",
)


def drive(namespace: Namespace, ebpf: str = "off") -> LiveDriver:
    from nstat_async.backends import SockDiag

    return LiveDriver(*SockDiag(namespace.path).parts(MonitorOptions(interval=None, ebpf=ebpf, providers="tcp")))
