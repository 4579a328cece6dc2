"""Connections that came next, found by the ports that they must have.

The kernel gives connections with one server and one local address ports that go up by 2 to 16 from one to the next
(``__inet_hash_connect`` of net/ipv4/inet_hashtables.c), and a Linux at the other end does the same. To look up the eight
ports that can be next costs 50 µs, a dump of all sockets half a millisecond and more. What is not there has to be dumped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator

import attrs

from ..sockdiag._lookups import lookup_request
from ..sockdiag._messages import COOKIE_AT

PORTS_AT = 20
"""In an ``inet_diag_msg``; in a request, 4 later."""
TCP = 6

STEPS = range(2, 17, 2)
"""From a port to those that may be the next."""
MOST_AT_ONCE = 32
"""Ports that are asked for at once, where several connections are missing."""
NEAR = 128
"""How far apart the last two ports were, at most, where the next one is looked for."""
MOST_TRIED = 4
"""Servers whose next connections are looked for: those that had the last ones."""
MOST_REMEMBERED = 256
_STATE_AT, _TIME_WAIT = 17, 6
_PORTS = struct.Struct(">HH")
_COOKIE = struct.Struct("=Q")

Key = tuple[int, int, int, bytes]
"""Family, ports (0: the one that is left open), addresses."""


@attrs.frozen
class _Last:
    """Of connections with one pair of ends, one port left open."""

    port: int
    message: bytes
    lasting: bool = False
    """Some of them were seen in TIME_WAIT: the kernel knows those that are over."""


class Successors:
    """The ports of the last connections.

    Args:
        ask: Look sockets up by these requests; the messages of those that are there.
    """

    def __init__(self, ask: Callable[[list[bytes]], list[bytes]]) -> None:
        self._ask = ask
        self._steady: dict[Key, _Last] = {}
        """Those whose last two ports were near, which others follow; the newest is the last."""
        self._others: dict[Key, _Last] = {}
        """The same of which there was one only, or whose ports jump; a client's end of each connection is among them."""

    def learn(self, message: bytes) -> None:
        """A connection is new: either port may be the client's."""
        over = message[_STATE_AT] == _TIME_WAIT
        for key, port in _keys(message):
            before = self._steady.pop(key, None) or self._others.pop(key, _NONE)
            near = abs(port - before.port) <= NEAR
            table = self._steady if near else self._others
            table[key] = _Last(max(port, before.port) if near else port, message, before.lasting or over)
            if len(table) > MOST_REMEMBERED:
                del table[next(iter(table))]

    def find(self, number: int, known: Container[int]) -> tuple[list[bytes], int]:
        """Connections that are not known (by their cookies), until the kernel has counted so many for them; and how many it has."""
        found: list[bytes] = []
        counted = 0
        steady = list(reversed(self._steady))
        steady.sort(key=lambda key: not self._steady[key].lasting)  # the others have gaps
        for key in steady[:MOST_TRIED]:
            while counted < number and (rows := self._after(key, number - counted)):
                new = [row for row in (*rows, *self._other_ends(rows)) if cookie_of(row) not in known]
                found += new
                counted += sum(map(self._ends_of, new))
        return found, counted

    def _other_ends(self, rows: list[bytes]) -> Iterator[bytes]:
        """Those that are here, too, as the ones before were: their ports have gaps where connections are over."""
        wanted = [row for row in rows if row[_STATE_AT] != _TIME_WAIT and self._has_other_end(row)]
        requests = [lookup_request(row, TCP, exact=False, mirrored=True).encode() for row in wanted]
        ends = {_keys(row, mirrored=True) for row in wanted}
        for row in self._ask(requests) if requests else ():
            if _keys(row) in ends:  # a listener answers for those that are not there
                self.learn(row)
                yield row

    def _has_other_end(self, row: bytes) -> bool:
        return any(key in self._steady or key in self._others for key, _ in _keys(row, mirrored=True))

    def _ends_of(self, row: bytes) -> int:
        """How often a connection was counted: where both ends were here and one of them is in TIME_WAIT, the other one is gone."""
        return 2 if row[_STATE_AT] == _TIME_WAIT and self._has_other_end(row) else 1

    def _after(self, key: Key, number: int) -> list[bytes]:
        """The connections whose ports are the next of this pair, where so many are missing."""
        last = self._steady.get(key)
        if last is None:  # those that were found before took its place
            return []
        request = lookup_request(last.message, TCP, exact=False).encode()
        head, behind = request[: PORTS_AT + 4], request[PORTS_AT + 8 :]
        _, local, remote, _ = key
        first, most = last.port + STEPS.start, min(max(len(STEPS), 3 * number), MOST_AT_ONCE)
        ports = range(first, min(first + most * STEPS.step, 1 << 16), STEPS.step)
        rows = self._ask([head + _PORTS.pack(local or port, remote or port) + behind for port in ports])
        # A listener answers for those that are not there, with its own ports.
        next_ones = [row for row in rows if dict(_keys(row)).get(key, 0) > last.port]
        for row in next_ones:
            self.learn(row)
        return next_ones


_NONE = _Last(-0xFFFF, b"")
"""Before the first one: no port is near to it."""


def cookie_of(message: bytes) -> int:
    """The cookie of a socket."""
    cookie: int = _COOKIE.unpack_from(message, COOKIE_AT)[0]
    return cookie


def _keys(message: bytes, *, mirrored: bool = False) -> tuple[tuple[Key, int], tuple[Key, int]]:
    """Both ends but a port, and that port: the local, and the remote one; of the other end if `mirrored`."""
    local, remote = _PORTS.unpack_from(message, PORTS_AT)
    family, addresses = message[16], message[PORTS_AT + 4 : PORTS_AT + 36]
    if mirrored:
        local, remote, addresses = remote, local, addresses[16:] + addresses[:16]
    return ((family, 0, remote, addresses), local), ((family, local, 0, addresses), remote)
