"""Connections that came next, found by the ports that they must have.

The kernel gives connections with one server and one local address ports that go up by 2 to 16 from one to the next
(``__inet_hash_connect`` of net/ipv4/inet_hashtables.c), and a Linux at the other end does the same. To look up the eight
ports that can be next costs 50 µs, a dump of all sockets half a millisecond and more. What is not there has to be dumped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container

from ..sockdiag._lookups import lookup_request
from ..sockdiag._messages import COOKIE_AT

PORTS_AT = 20
"""In an ``inet_diag_msg``; in a request, 4 later."""
TCP = 6

STEPS = range(2, 17, 2)
"""From a port to those that may be the next."""
NEAR = 128
"""How far apart the last two ports were, at most, where the next one is looked for."""
MOST_TRIED = 4
"""Servers whose next connections are looked for: those that had the last ones."""
MOST_REMEMBERED = 256
_PORTS = struct.Struct(">HH")
_COOKIE = struct.Struct("=Q")

Key = tuple[int, int, int, bytes]
"""Family, ports (0: the one that is left open), addresses."""


class Successors:
    """The ports of the last connections.

    Args:
        ask: Look sockets up by these requests; the messages of those that are there.
    """

    def __init__(self, ask: Callable[[list[bytes]], list[bytes]]) -> None:
        self._ask = ask
        self._last: dict[Key, tuple[int, bytes, bool]] = {}
        """Of each pair of ends, one port left open: its last value, a message, and whether the one before was near. The last is the newest."""

    def learn(self, message: bytes) -> None:
        """A connection is new: either port may be the client's."""
        for key, port in _keys(message):
            before, _, _ = self._last.pop(key, (0, b"", False))
            near = abs(port - before) <= NEAR
            self._last[key] = max(port, before) if near else port, message, near
        while len(self._last) > MOST_REMEMBERED:
            del self._last[next(iter(self._last))]

    def find(self, number: int, known: Container[int]) -> list[bytes]:
        """So many connections that are not known (by their cookies), or fewer."""
        found: list[bytes] = []
        steady = [key for key, (_, _, near) in reversed(self._last.items()) if near]
        for key in steady[:MOST_TRIED]:
            while len(found) < number and (rows := self._after(key)):
                found += [row for row in rows if cookie_of(row) not in known]
        return found

    def _after(self, key: Key) -> list[bytes]:
        """The connections whose ports are the next of this pair."""
        if key not in self._last:  # those that were found before took its place
            return []
        port, message, _ = self._last[key]
        request = lookup_request(message, TCP, exact=False).encode()
        rows = self._ask([_at_port(key, request, port + step) for step in STEPS if port + step < 1 << 16])
        next_ones = [row for row in rows if key in dict(_keys(row))]  # a listener answers for those that are not there
        for row in next_ones:
            self.learn(row)
        return next_ones


def cookie_of(message: bytes) -> int:
    """The cookie of a socket."""
    cookie: int = _COOKIE.unpack_from(message, COOKIE_AT)[0]
    return cookie


def _keys(message: bytes) -> tuple[tuple[Key, int], tuple[Key, int]]:
    """Both ends but a port, and that port: the local, and the remote one."""
    local, remote = _PORTS.unpack_from(message, PORTS_AT)
    family, addresses = message[16], message[PORTS_AT + 4 : PORTS_AT + 40]
    return ((family, 0, remote, addresses), local), ((family, local, 0, addresses), remote)


def _at_port(key: Key, request: bytes, port: int) -> bytes:
    """A request with the port that the key leaves open."""
    _, local, remote, _ = key
    at = PORTS_AT + 4
    return request[:at] + _PORTS.pack(local or port, remote or port) + request[at + 4 :]
