"""Sockets of random lives in a kernel made of a dictionary."""

from __future__ import annotations

import errno

from sockdiag_fakes import LOOPBACK, FakeKernel, FakeSocket, traffic

MAPPED = bytes(10) + b"\xff\xff" + LOOPBACK


class World:
    """Carries out a script on a kernel and watches the life of each flow."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(interval=1.0)
        self.kernel.owners = {1: 41, 2: 42}
        self.used = 0
        self.live: dict[int, int] = {}
        self.kernel.start()

    def socket(self, number: int) -> FakeSocket | None:
        return self.kernel.sockets.get(self.live.get(number, 0))

    def open(self, number: int, protocol: int, inode: int) -> None:
        if self.socket(number) is None:
            self.used += 1
            self.live[number] = self.used
            self.kernel.sockets[self.used] = FakeSocket(
                self.used, local_port=4000 + number, protocol=protocol, inode=inode, info=traffic(1, 1)
            )

    def close(self, number: int, tell: bool) -> None:
        if self.socket(number) is not None:
            self.kernel.close(self.live.pop(number), tell=tell)
            if not tell:
                self.overrun()

    def overrun(self) -> None:
        self.kernel.session.channel_failed(1, errno.ENOBUFS, self.kernel.now)
        self.kernel.session.channel_drained(1, self.kernel.now)

    def during(self, number: int) -> None:
        self.kernel.during_dump = lambda: self.close(number, tell=True)

    def wait(self, seconds: float) -> None:
        self.kernel.wait(seconds)

    def do(self, name: str, *arguments: int) -> None:
        if name in {"open", "close", "overrun", "during", "wait"}:
            getattr(self, name)(*arguments)
        elif (sock := self.socket(arguments[0])) is not None:
            self.change(sock, name, *arguments[1:])

    def change(self, sock: FakeSocket, name: str, value: int = 0) -> None:
        if name == "grow":
            sock.info = traffic(value, value)
        elif name == "reconnect":
            sock.remote_port, sock.info = value, traffic(0, 1)
        elif name == "family":
            sock.family, sock.local, sock.remote = (
                (2, LOOPBACK, LOOPBACK) if sock.family == 10 else (10, MAPPED, MAPPED)
            )
        elif sock.protocol == 6 or name == "inode":
            setattr(sock, name, value)
