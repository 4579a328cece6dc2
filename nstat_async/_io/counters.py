"""What the kernel counts in a network namespace: connections and sockets."""

from __future__ import annotations

import contextlib
import errno
import os


class Counters:
    """What the kernel counts in the network namespace of the calling thread.

    Raises:
        OSError: A file cannot be opened, or has no such counters.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        self._connections = 0
        self._sockets: list[bytes] = []
        """Numbers of sockets at the last reading."""
        try:
            for name in ("snmp", "sockstat"):
                self._open(name)
            with contextlib.suppress(FileNotFoundError):  # without IPv6
                self._open("sockstat6")
            self.read()
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        self._files.append(os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC))

    def read(self, *, quickly: bool = False) -> tuple[int, int]:
        """Connections opened and accepted so far, and datagram sockets that there are.

        Args:
            quickly: Where the numbers of sockets are as before, take it that no connection came. The kernel adds up what
                it counts in ``snmp`` over all CPUs: that costs four times as much with two of them, and more with more.

        Raises:
            OSError: There are no such counters.
        """
        snmp, *others = self._files
        texts = [os.pread(file, 1024, 0) for file in others]
        try:
            four = texts[0].split(None, 17)  # "sockets: used 9 TCP: inuse 1 orphan 0 tw 2 alloc 4 mem 0 UDP: inuse 3 …"
            sockets = [
                four[5],
                four[9],
                four[16],
                *(number for text in texts[1:] for number in text.split(None, 6)[2:6:3]),
            ]
            if not quickly or sockets != self._sockets:
                fields = (
                    os.pread(snmp, 8192, 0).split(b"\nTcp: ", 2)[2].split(None, 6)
                )  # the first such line has the names
                self._connections = int(fields[4]) + int(fields[5])
            self._sockets = sockets
            return self._connections, sum(map(int, (*sockets[2:3], *sockets[4:])))
        except (IndexError, ValueError):
            raise OSError(errno.ENODATA, "the kernel does not count connections") from None

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._files:
            os.close(self._files.pop())
