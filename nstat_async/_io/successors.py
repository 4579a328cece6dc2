"""Finds the next connections by the ports that they must have.

For connections from one local address to one server the kernel takes ports that increase by 2 to 16 each time
(``__inet_hash_connect`` of net/ipv4/inet_hashtables.c), and a Linux machine at the other end does the same. A look-up of
the eight possible next ports takes 50 µs, a dump of all sockets half a millisecond or more. If they are not found there,
a dump is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable

import attrs

from ..sockdiag._lookups import lookup_request
from ..sockdiag._messages import COOKIE_AT

PORTS_AT = 20
"""Offset of the ports in an ``inet_diag_msg``."""
_LATER = 4
"""So much later they are in a request."""
TCP = 6

STEPS = range(2, 17, 2)
"""Distances from a port to the possible next ones."""
NEAR = 128
"""The next port is searched for only if the last two ports were at most this far apart."""
MOST_TRIED = 4
"""Most servers whose next connections are searched for: those that had the last ones."""
MOST_REMEMBERED = 256
_STATE_AT, _TIME_WAIT = 17, 6
_EXPIRES_AT = 68
"""Offset of the milliseconds until a connection in TIME_WAIT is forgotten, in an ``inet_diag_msg``."""
TIME_WAIT_SECONDS = 60.0
"""How long TIME_WAIT lasts: ``TCP_TIMEWAIT_LEN``."""
MARGIN = 0.05
"""Seconds by which the age of a connection in TIME_WAIT may be wrong: timers have ticks."""
_PORTS = struct.Struct(">HH")
_COOKIE = struct.Struct("=Q")
_EXPIRES = struct.Struct("=I")

_NOWHERE = -0xFFFF
"""No port is near to it."""

Key = tuple[int, int, int, bytes]
"""Family, ports (0: the one that varies), addresses."""
Ask = Callable[[list[bytes]], list[bytes]]
"""Looks sockets up by these requests, and returns the messages of those that exist."""
Follow = Callable[[bytes, int, int, int, int], list[bytes]]
"""See `follow`."""


@attrs.define
class _Last:
    """The last connection between two ends, one of whose ports varies."""

    port: int
    message: bytes
    """Of any of their connections."""
    lasting: bool = False
    """True if some were seen in TIME_WAIT: the kernel still knows connections that are over."""
    _request: bytes = b""

    def request(self) -> bytes:
        """Looks up any of their connections, once its port is put in."""
        self._request = self._request or lookup_request(self.message, TCP, exact=False).encode()
        return self._request


class Successors:
    """Remembers the ports of the last connections.

    Args:
        ask: Looks sockets up by these requests.
        follow: Looks up what follows a port (`follow`).
    """

    def __init__(self, ask: Ask, follow: Follow) -> None:
        self._ask = ask
        self._follow = follow
        self._steady: dict[Key, _Last] = {}
        """Pairs of ends whose last two ports were near, so that more will follow; the newest is the last."""
        self._others: dict[Key, _Last] = {}
        """Pairs of ends that had only one connection, or whose ports jump."""

    def learn(self, message: bytes) -> None:
        """Remember a new connection: either port may be the client's."""
        for key in _keys(message):
            self._see(key, message)

    def _see(self, key: Key, message: bytes) -> None:
        port = _port_of(key, message)
        last = self._steady.pop(key, None) or self._others.pop(key, None) or _Last(_NOWHERE, message)
        near = abs(port - last.port) <= NEAR
        last.port = max(port, last.port) if near else port
        last.lasting |= message[_STATE_AT] == _TIME_WAIT
        table = self._steady if near else self._others
        table[key] = last
        if len(table) > MOST_REMEMBERED:
            del table[next(iter(table))]

    def forget(self, servers: Container[int]) -> None:
        """Forget the connections of servers with these ports: many were opened that nobody will find by the last one's port."""
        for table in (self._steady, self._others):
            for key in [key for key in table if (key[1] or key[2]) in servers]:
                del table[key]

    def find(self, number: int, known: Container[int], since: float) -> tuple[list[bytes], int]:
        """Find connections whose cookies are not `known`, until they explain as many counted connections as `number`.

        The kernel counts a connection with both ends here twice, also if one end is gone and the other one is in TIME_WAIT.
        Connections that have been in TIME_WAIT for longer than `since` (seconds since the last look) were counted before that
        look, so they are left out. There may be thousands, and the kernel gives their ports to new connections.

        Returns:
            The messages about them, and how many counted connections they explain.
        """
        found: list[bytes] = []
        least = int(1000 * max(0.0, TIME_WAIT_SECONDS - since - MARGIN))
        counted = 0
        steady = list(reversed(self._steady.items()))
        steady.sort(key=lambda pair: not pair[1].lasting)  # the others have gaps
        for key, last in steady[:MOST_TRIED]:
            if counted >= number:
                break
            mirrored = _mirrored(key)
            other = self._steady.get(mirrored) or self._others.get(mirrored)
            ends = 1 if other is None else 2
            rows = self._follow(last.request(), _varying(key), last.port, (number - counted + ends - 1) // ends, least)
            self._see_all(key, rows)
            if other is not None:  # their ports have gaps where connections are over
                ports = [_port_of(key, row) for row in rows if row[_STATE_AT] != _TIME_WAIT]
                others = look_up(self._ask, other.request(), _varying(mirrored), ports, least)
                self._see_all(mirrored, others)
                rows += others
            new = [row for row in rows if cookie_of(row) not in known]
            found += new
            counted += sum(ends if row[_STATE_AT] == _TIME_WAIT else 1 for row in new)
        return found, counted

    def _see_all(self, key: Key, rows: list[bytes]) -> None:
        for row in rows:
            self._see(key, row)


def follow(ask: Ask, request: bytes, at: int, port: int, number: int, least: int) -> list[bytes]:
    """Look up the sockets with the ports that may come next, and so on behind each that exists.

    Args:
        ask: Looks sockets up.
        request: Looks one of them up.
        at: Offset of the port that varies, in the request.
        port: The last one that is known.
        number: How many are wanted; some more may be found.
        least: Milliseconds, see `look_up`.
    """
    found: list[bytes] = []
    while len(found) < number:
        ports = range(port + STEPS.start, min(port + STEPS.stop, 1 << 16), STEPS.step)
        rows = look_up(ask, request, at, ports, least)
        if not rows:
            break
        found += rows
        port = int.from_bytes(rows[-1][at - _LATER : at - _LATER + 2], "big")
    return found


def look_up(ask: Ask, request: bytes, at: int, ports: Iterable[int], least: int) -> list[bytes]:
    """The sockets that exist with these ports at this place. A listener, which answers for those that do not, is none of them.

    A connection in TIME_WAIT is one of them if it stays there for `least` more milliseconds: others were over earlier.
    """
    head, behind = request[:at], request[at + 2 :]
    requests = [head + port.to_bytes(2, "big") + behind for port in ports]
    wanted = {each[PORTS_AT + _LATER : PORTS_AT + _LATER + 4] for each in requests}
    return [row for row in ask(requests) if row[PORTS_AT : PORTS_AT + 4] in wanted and not _is_older(row, least)]


def _is_older(row: bytes, least: int) -> bool:
    """True for a connection in TIME_WAIT that stays there for less than `least` milliseconds."""
    return row[_STATE_AT] == _TIME_WAIT and bool(_EXPIRES.unpack_from(row, _EXPIRES_AT)[0] < least)


def cookie_of(message: bytes) -> int:
    """The cookie of a socket."""
    cookie: int = _COOKIE.unpack_from(message, COOKIE_AT)[0]
    return cookie


def _keys(message: bytes) -> tuple[Key, Key]:
    """Two keys, each without a port: the local one, then the remote one."""
    local, remote = _PORTS.unpack_from(message, PORTS_AT)
    family, addresses = message[16], message[PORTS_AT + 4 : PORTS_AT + 36]
    return (family, 0, remote, addresses), (family, local, 0, addresses)


def _mirrored(key: Key) -> Key:
    """The key of the other ends."""
    family, local, remote, addresses = key
    return family, remote, local, addresses[16:] + addresses[:16]


def _varying(key: Key) -> int:
    """Offset of the port that varies, in a request."""
    _, local, _, _ = key
    return PORTS_AT + _LATER + (2 if local else 0)


def _port_of(key: Key, row: bytes) -> int:
    """The port that varies."""
    at = _varying(key) - _LATER
    return int.from_bytes(row[at : at + 2], "big")
