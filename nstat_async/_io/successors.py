"""Finds the next connections by the ports that they must have.

For connections from one local address to one server the kernel takes ports that increase by 2 to 16 each time
(``__inet_hash_connect`` of net/ipv4/inet_hashtables.c), and a Linux machine at the other end does the same. A look-up of
the eight possible next ports takes 50 µs, a dump of all sockets half a millisecond or more. If they are not found there,
a dump is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterator

import attrs

from ..sockdiag._lookups import lookup_request
from ..sockdiag._messages import COOKIE_AT

PORTS_AT = 20
"""Offset of the ports in an ``inet_diag_msg``; in a request, 4 later."""
TCP = 6

STEPS = range(2, 17, 2)
"""Distances from a port to the possible next ones."""
MOST_AT_ONCE = 32
"""Most ports that are asked for at once, if several connections are missing."""
NEAR = 128
"""The next port is searched for only if the last two ports were at most this far apart."""
MOST_TRIED = 4
"""Most servers whose next connections are searched for: those that had the last ones."""
MOST_REMEMBERED = 256
_STATE_AT, _TIME_WAIT = 17, 6
_PORTS = struct.Struct(">HH")
_COOKIE = struct.Struct("=Q")

Key = tuple[int, int, int, bytes]
"""Family, ports (0: the one that varies), addresses."""


@attrs.frozen
class _Last:
    """The last connection between two ends, of which one port varies."""

    port: int
    message: bytes
    lasting: bool = False
    """True if some were seen in TIME_WAIT: the kernel still knows connections that are over."""


class Successors:
    """Remembers the ports of the last connections.

    Args:
        ask: Looks sockets up by these requests, and returns the messages of those that exist.
    """

    def __init__(self, ask: Callable[[list[bytes]], list[bytes]]) -> None:
        self._ask = ask
        self._steady: dict[Key, _Last] = {}
        """Pairs of ends whose last two ports were near, so that more will follow; the newest is the last."""
        self._others: dict[Key, _Last] = {}
        """Pairs of ends that had only one connection, or whose ports jump; a client's end of each connection is among them."""

    def learn(self, message: bytes) -> None:
        """Remember a new connection: either port may be the client's."""
        over = message[_STATE_AT] == _TIME_WAIT
        for key, port in _keys(message):
            before = self._steady.pop(key, None) or self._others.pop(key, _NONE)
            near = abs(port - before.port) <= NEAR
            table = self._steady if near else self._others
            table[key] = _Last(max(port, before.port) if near else port, message, before.lasting or over)
            if len(table) > MOST_REMEMBERED:
                del table[next(iter(table))]

    def forget(self, servers: Container[int]) -> None:
        """Forget the connections of servers with these ports: many were opened that nobody will find by the last one's port."""
        for table in (self._steady, self._others):
            for key in [key for key in table if (key[1] or key[2]) in servers]:
                del table[key]

    def find(self, number: int, known: Container[int]) -> tuple[list[bytes], int]:
        """Find connections that are not `known` by their cookies, until they explain `number` counted ones; and how many they do."""
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
        """The other ends, if earlier ones were on this machine, too; their ports have gaps where connections are over."""
        wanted = [row for row in rows if row[_STATE_AT] != _TIME_WAIT and self._has_other_end(row)]
        requests = [lookup_request(row, TCP, exact=False, mirrored=True).encode() for row in wanted]
        ends = {_keys(row, mirrored=True) for row in wanted}
        for row in self._ask(requests) if requests else ():
            if _keys(row) in ends:  # a listener answers for connections that do not exist
                self.learn(row)
                yield row

    def _has_other_end(self, row: bytes) -> bool:
        return any(key in self._steady or key in self._others for key, _ in _keys(row, mirrored=True))

    def _ends_of(self, row: bytes) -> int:
        """How often a connection was counted: if both ends were here and one is in TIME_WAIT, the other one is gone."""
        return 2 if row[_STATE_AT] == _TIME_WAIT and self._has_other_end(row) else 1

    def _after(self, key: Key, number: int) -> list[bytes]:
        """The connections with the next ports of this pair, if `number` are missing."""
        last = self._steady.get(key)
        if last is None:  # those that were found before replaced it
            return []
        request = lookup_request(last.message, TCP, exact=False).encode()
        head, behind = request[: PORTS_AT + 4], request[PORTS_AT + 8 :]
        _, local, remote, _ = key
        first, most = last.port + STEPS.start, min(max(len(STEPS), 3 * number), MOST_AT_ONCE)
        ports = range(first, min(first + most * STEPS.step, 1 << 16), STEPS.step)
        rows = self._ask([head + _PORTS.pack(local or port, remote or port) + behind for port in ports])
        # A listener answers for connections that do not exist, with its own ports.
        next_ones = [row for row in rows if dict(_keys(row)).get(key, 0) > last.port]
        for row in next_ones:
            self.learn(row)
        return next_ones


_NONE = _Last(-0xFFFF, b"")
"""Stands for "no connection before": no port is near to it."""


def cookie_of(message: bytes) -> int:
    """The cookie of a socket."""
    cookie: int = _COOKIE.unpack_from(message, COOKIE_AT)[0]
    return cookie


def _keys(message: bytes, *, mirrored: bool = False) -> tuple[tuple[Key, int], tuple[Key, int]]:
    """Two keys, each with the port that it leaves out: the local port, then the remote one; of the other end if `mirrored`."""
    local, remote = _PORTS.unpack_from(message, PORTS_AT)
    family, addresses = message[16], message[PORTS_AT + 4 : PORTS_AT + 36]
    if mirrored:
        local, remote, addresses = remote, local, addresses[16:] + addresses[:16]
    return ((family, 0, remote, addresses), local), ((family, local, 0, addresses), remote)
