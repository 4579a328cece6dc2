"""Loopback connections of a test, on the real kernel or on an emulated one.

Both worlds speak the same words: `tcp`, `udp` and `listener` open, `Link.send` moves bytes
from the near end to the far end, `close` ends. What the real one does with sockets, the
emulated one writes into its kernel.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any

import anyio

from nstat_async import Endpoint
from nstat_async.testing import EmulatedKernel

LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
TIMEOUT = 120.0


class RealLink:
    """Two connected sockets of this process."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near, self._far = near, far
        self.near = Endpoint.parse(*near.getsockname()[:2])
        self.far = Endpoint.parse(*near.getpeername()[:2])

    def send(self, size: int) -> None:
        """Bytes from the near end to the far end, and wait until they are there."""
        self._move(self._near, self._far, size)

    def answer(self, size: int) -> None:
        """Bytes the other way."""
        self._move(self._far, self._near, size)

    @staticmethod
    def _move(source: socket.socket, target: socket.socket, size: int) -> None:
        datagrams = source.type == socket.SOCK_DGRAM
        while size > 0:
            part = min(size, 1000 if datagrams else 16_384)
            source.sendall(b"n" * part)
            left = part
            while left > 0:
                left -= len(target.recv(65_536)) or left
            size -= part

    def close(self) -> None:
        self._near.close()
        self._far.close()


class RealWorld:
    """This Mac."""

    emulated = False

    def __init__(self) -> None:
        self._sockets = ExitStack()
        self.pid = os.getpid()

    def __enter__(self) -> RealWorld:
        return self

    def __exit__(self, *_error: object) -> None:
        self._sockets.close()

    def backend(self, *, verify: bool | None = False) -> Any:
        from nstat_async.backends import Kctl

        return Kctl(verify=verify)

    def _socket(self, family: int, kind: int) -> socket.socket:
        made = self._sockets.enter_context(socket.socket(family, kind))
        made.settimeout(TIMEOUT)
        return made

    async def wait(self) -> None:
        """Let a moment pass."""
        await anyio.sleep(0.005)

    def listener(self, family: str = "IPv4") -> Endpoint:
        made = self._socket(socket.AF_INET if family == "IPv4" else socket.AF_INET6, socket.SOCK_STREAM)
        made.bind((LOOPBACK[family], 0))
        made.listen(1)
        return Endpoint.parse(*made.getsockname()[:2])

    def tcp(self, family: str = "IPv4") -> RealLink:
        number = socket.AF_INET if family == "IPv4" else socket.AF_INET6
        with socket.socket(number, socket.SOCK_STREAM) as listener:
            listener.bind((LOOPBACK[family], 0))
            listener.listen(1)
            near = self._socket(number, socket.SOCK_STREAM)
            near.connect(listener.getsockname()[:2])
            far = self._sockets.enter_context(listener.accept()[0])
            far.settimeout(TIMEOUT)
        return RealLink(near, far)

    def udp(self, family: str = "IPv4") -> RealLink:
        number = socket.AF_INET if family == "IPv4" else socket.AF_INET6
        near, far = self._socket(number, socket.SOCK_DGRAM), self._socket(number, socket.SOCK_DGRAM)
        for made in (near, far):
            made.bind((LOOPBACK[family], 0))
        near.connect(far.getsockname()[:2])
        far.connect(near.getsockname()[:2])
        return RealLink(near, far)


class EmulatedLink:
    """Two flows of an emulated kernel with each other's addresses."""

    def __init__(self, near: Any, far: Any, ends: tuple[Endpoint, Endpoint]) -> None:
        self._near, self._far = near, far
        self.near, self.far = ends

    def send(self, size: int) -> None:
        self._near.transfer(tx=size)
        self._far.transfer(rx=size)

    def answer(self, size: int) -> None:
        self._far.transfer(tx=size)
        self._near.transfer(rx=size)

    def close(self) -> None:
        self._near.close()
        self._far.close()


class EmulatedWorld:
    """An emulated Mac."""

    emulated = True

    def __init__(self, kernel: str = "xnu-11417.121.6", **options: Any) -> None:
        self.kernel = EmulatedKernel(kernel, **options)
        self.pid = 4711

    def __enter__(self) -> EmulatedWorld:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kernel.close()

    def backend(self, *, verify: bool | None = False) -> Any:
        self.kernel.advance(1.0)  # what was opened before is older than the subscription
        return self.kernel.backend(verify=verify)

    async def wait(self) -> None:
        """Let a minute pass there, and a moment here."""
        self.kernel.advance(60.0)
        await anyio.sleep(0.005)

    def listener(self, family: str = "IPv4") -> Endpoint:
        mine, _ = self.kernel.loopback_pair(LOOPBACK[family])
        self.kernel.open_tcp(self.pid, "python").listen(mine)
        return mine

    def tcp(self, family: str = "IPv4") -> EmulatedLink:
        near, far = ends = self.kernel.loopback_pair(LOOPBACK[family])
        listener = self.kernel.open_tcp(self.pid, "python").listen(far)
        client = self.kernel.open_tcp(self.pid, "python")
        client.connect(far, local=near, interface="lo0")
        server = listener.accept(near, interface="lo0")
        listener.close()
        return EmulatedLink(client, server, ends)

    def udp(self, family: str = "IPv4") -> EmulatedLink:
        near, far = ends = self.kernel.loopback_pair(LOOPBACK[family])
        flows = [
            self.kernel.open_udp(self.pid, "python", local=one, remote=two, interface="lo0")
            for one, two in (ends, (far, near))
        ]
        return EmulatedLink(*flows, ends)
