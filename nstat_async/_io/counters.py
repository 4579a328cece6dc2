"""The kernel's counters of connections and sockets in a network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from array import array
from collections.abc import Callable, Sequence

from .._compiled import speedups

THOROUGH = 8
"""One of this many readings always reads the counters of connections. The kernel adds up ``snmp`` over all CPUs: with two
CPUs that costs four times as much, with more CPUs more. So the other readings assume that no connection came if the
numbers of sockets did not change."""
CONNECTIONS, DATAGRAMS = 1, 2
"""What changed: connections were opened or accepted; there are more datagram sockets."""
_CONNECTIONS, _DATAGRAMS, _SOCKETS, _READINGS, _MOVED = 3, 4, slice(5, 10), 10, 11
_FOUR, _SIX, _OPENED = (5, 9, 16), (2, 5), (4, 5)
"""Places of numbers: TCP sockets, those in ``TIME_WAIT``, and UDP sockets; both kinds over IPv6; connections opened and accepted."""


class Counters:
    """The counters of the calling thread's network namespace.

    Raises:
        OSError: A file cannot be opened, or has no such counters.
    """

    def __init__(self) -> None:
        self.numbers: array[int] = array("q", [-1, -1, -1, *bytes(9)])
        """The state of `await_counters`: descriptors, and the last values."""
        try:
            self._open(0, "snmp")
            self._open(1, "sockstat")
            with contextlib.suppress(FileNotFoundError):  # without IPv6
                self._open(2, "sockstat6")
            self.read()
            self.take_moved()
        except BaseException:
            self.close()
            raise

    def _open(self, place: int, name: str) -> None:
        self.numbers[place] = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def connections(self) -> int:
        """Connections opened and accepted so far."""
        return self.numbers[_CONNECTIONS]

    @property
    def readings(self) -> int:
        """How often the counters were read."""
        return self.numbers[_READINGS]

    def read(self) -> int:
        """Read the counters now; returns as `connections`.

        Raises:
            OSError: There are no such counters.
        """
        _read(self.numbers, 1)
        return self.connections

    def take_moved(self) -> int:
        """What changed since the last call: `CONNECTIONS`, `DATAGRAMS`, both, or nothing."""
        moved, self.numbers[_MOVED] = self.numbers[_MOVED], 0
        return moved

    def close(self) -> None:
        """Close the files. Idempotent."""
        for place in range(3):
            if self.numbers[place] >= 0:
                os.close(self.numbers[place])
                self.numbers[place] = -1


def _read(numbers: array[int], thorough: int) -> None:
    snmp, four, six = numbers[:3]
    sockets = array("q", [*_words(four, _FOUR), *(_words(six, _SIX) if six >= 0 else (0, 0))])
    datagrams = sockets[2] + sockets[4]
    moved = DATAGRAMS * (datagrams > numbers[_DATAGRAMS])
    if numbers[_READINGS] % thorough == 0 or sockets != numbers[_SOCKETS]:
        connections = sum(_words(snmp, _OPENED, b"\nTcp: "))
        moved |= CONNECTIONS * (connections != numbers[_CONNECTIONS])
        numbers[_CONNECTIONS] = connections
    numbers[_DATAGRAMS], numbers[_SOCKETS] = datagrams, sockets
    numbers[_READINGS] += 1
    numbers[_MOVED] |= moved


def _words(file: int, places: Sequence[int], behind: bytes | None = None) -> list[int]:
    """Numbers at these places among the words of a file, or after the second `behind`: the first precedes the names."""
    text = os.pread(file, 8191, 0)
    try:
        words = (text if behind is None else text.split(behind, 2)[2]).split(None, places[-1] + 1)
        return [int(words[place]) for place in places]
    except (IndexError, ValueError):
        raise OSError(errno.ENODATA, "the kernel does not count connections") from None


def _await_counters(stop: int, watched: tuple[array[int], ...], pause: float, times: int, thorough: int) -> None:
    """Read the `numbers` of counters after each pause, until one changed, until `stop` is readable, or `times` times.

    Raises:
        OSError: There are no such counters.
    """
    waiting = select.poll()
    waiting.register(stop, select.POLLIN)
    while times > 0 and not waiting.poll(pause * 1000):
        times -= 1
        for numbers in watched:
            _read(numbers, thorough)
        if any(numbers[_MOVED] for numbers in watched):
            return


await_counters: Callable[[int, tuple[array[int], ...], float, int, int], None] = getattr(
    speedups, "await_counters", _await_counters
)
