"""Reads the kernel's counters of one network namespace, and finds the sockets that are new since the last look.

For a dump of TCP sockets the kernel walks over its whole table, which takes half a millisecond even if it is almost empty.
So the ports that come next are asked for first (`Successors`), and sockets without a process are asked for one by one.
"""

from __future__ import annotations

import functools
import heapq
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from .._compiled import speedups
from ..sockdiag import PulsePurpose, PulseReport
from ..sockdiag._lookups import lookup_request
from .bpfload import NETLINK_SOCK_DIAG
from .budget import SHARE, Budget
from .counters import CONNECTIONS, DATAGRAMS, Counters
from .crowds import CROWD, crowded_ports, without_crowds
from .linux import leave_descriptors
from .successors import PORTS_AT, TCP, Successors, cookie_of, follow

MOST_UNREAD = 16
"""Most reports that may wait to be read; there is no look while there are more."""
ONE_BY_ONE = 32
"""Most look-ups at once. If more connections wait for their process, they are asked for in turn."""
MOST_FOLLOWED = 256
"""Most new connections that are searched for by their ports; for more, a dump is cheaper."""
MOST_TAKEN = 512
"""Most new sockets of one dump; if thousands were opened at once, the next poll finds the others."""
LONGEST_WAIT = 1.0
"""Most seconds between two looks at whether a connection was accepted by a process."""

_RECEIVE_SIZE, _LONGEST_ANSWER = 65_536, 8192
_HEAD = struct.Struct("=IH")
SOCKET = struct.Struct("=Q12xII")
"""Cookie, user and inode, from the place of the cookie in a message."""
COOKIE_AT = 60
_INODE_AT, _STATE_AT, _LEAST = COOKIE_AT + 24, 17, 88
_ERROR, _DONE = 2, 3
"""``NLMSG_ERROR``, ``NLMSG_DONE``."""
_HEADER_SIZE, _ERROR_SIZE = 16, 20
_TO_BE_ACCEPTED = frozenset({1, 8})
"""States of a connection that waits to be accepted: established, or closed by the peer since then."""
_UDP = 17


class Glance:
    """The counters of a network namespace, a socket for dumps, and the sockets that were seen."""

    def __init__(self, purpose: PulsePurpose, report: Callable[[PulseReport | OSError], None]) -> None:
        self.purpose = purpose
        self.report = report
        self.begun = False
        """True if the sockets of the beginning are known."""
        self.unread = 0
        """Reports that were not read yet."""
        self._requests = {TCP: purpose.tcp, _UDP: purpose.udp}
        self._known: dict[int, set[int]] = {TCP: set(), _UDP: set()}
        """Cookies that the last look found, by protocol."""
        self.crowds: tuple[int, ...] = ()
        """Ports of very many TCP sockets each, so that a look at all of them takes long."""
        self._filters = True
        """True if the kernel can leave out crowds."""
        self._due = {TCP: math.inf, _UDP: math.inf}
        """When to look again, by protocol."""
        self._wait = dict.fromkeys(self._due, purpose.pause)
        """Seconds between looks while a connection waits to be accepted; they grow."""
        self.budget = Budget(SHARE, time.monotonic())
        """This namespace's own part of the CPU time."""
        self.look_at = self.active_until = 0.0
        """The earliest time of the next look; the time at which the burst is assumed to end."""
        self.several = False
        """True if the last look found several new sockets."""
        self._missing = False
        """True if counted connections were not found by their ports: they are over, or the first ones of their kind."""
        self._missing_at, self._missing_wait = 0.0, purpose.pause
        """When a dump may look for those; later each time that a dump did not find any."""
        self._opened = 0
        """How many connections were opened or accepted since the last look."""
        self._looked_at = -math.inf
        """When the last look for connections was."""
        self._ahead = 0
        """How many connections the last look may have seen before they were counted."""
        self.dumped = 0.0
        """Seconds of CPU that the last look spent on a dump of connections."""
        self.whole_takes = 0.0
        """Seconds of CPU that the last dump of all connections took."""
        self._unheld: dict[int, bytes] = {}
        """Connections without a known process, by cookie: not accepted yet, or there was no time for a search."""
        self._successors = Successors(self._ask, self._follow)
        self.counters = Counters()
        self._connections = self.counters.connections
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)
            leave_descriptors(self._socket.fileno())
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Learn the present sockets, which are not new. Not in the loop's thread: a dump of many sockets takes long."""
        for protocol in self._requests:
            self._look(protocol)
        self.begun = True

    def close(self) -> None:
        """Release the descriptors. Idempotent."""
        self.counters.close()
        if hasattr(self, "_socket"):
            self._socket.close()

    def notice(self, now: float) -> bool:
        """Read the counters; true if one changed, so there is something new."""
        moved = self.counters.take_moved()
        if moved & CONNECTIONS:
            connections = self.counters.connections
            self._opened += connections - self._connections
            self._connections = connections
            self._due[TCP], self._wait[TCP] = now, self.purpose.pause
        if moved & DATAGRAMS:
            self._due[_UDP] = now
        return bool(moved)

    def next_look(self) -> float:
        """When a look is due and wanted: not before it is known what was there already."""
        if not self.begun or self.unread >= MOST_UNREAD:
            return math.inf
        return max(self.look_at, min(self._due.values()))

    def look(self, now: float, *, whole: bool = True) -> list[tuple[int, bytes]]:
        """The sockets that did not exist at the last look.

        If the look is not to be a `whole` one, connections that are not found by their ports are not dumped; or, if there
        are `crowds`, the dump leaves those out.
        """
        found, self.dumped = [], 0.0
        for protocol, due in self._due.items():
            if due <= now:
                found += self._look_for_connections(now, whole=whole) if protocol == TCP else self._look(protocol)
                self._due[protocol] = now + self._wait[protocol] if protocol == TCP and self._unheld else math.inf
                self._wait[protocol] = min(LONGEST_WAIT, 2 * self._wait[protocol])
        if self._missing:
            self._due[TCP] = min(self._due[TCP], self._missing_at)
        return found

    def expect(self, at: float) -> None:
        """Schedule a look for connections at this time: more of them have probably come by then."""
        self._due[TCP] = min(self._due[TCP], at)

    def look_again(self, sockets: list[tuple[int, bytes]], missed: set[int], now: float) -> None:
        """Report these as new once more: there was no time to find their processes."""
        for protocol, message in sockets:
            cookie, _, inode = SOCKET.unpack_from(message, COOKIE_AT)
            if inode in missed:
                self._known[protocol].discard(cookie)
                self._due[protocol] = min(self._due[protocol], now + self._wait[protocol])
                if protocol == TCP:
                    self._unheld[cookie] = message

    def still_held(self, sockets: list[tuple[int, bytes]], inodes: set[int]) -> set[int]:
        """The inodes whose sockets still exist: a socket that was closed since then is in no process."""
        asked = [each for each in sockets if SOCKET.unpack_from(each[1], COOKIE_AT)[2] in inodes]
        rows = self._ask([lookup_request(message, protocol).encode() for protocol, message in asked])
        return {SOCKET.unpack_from(row, COOKIE_AT)[2] for row in rows} & inodes

    def _ask(self, requests: list[bytes]) -> list[bytes]:
        """Look sockets up, and return those that exist."""
        answers = []
        for begin in range(0, len(requests), ONE_BY_ONE):  # the socket's buffer has room for an answer to each
            part = requests[begin : begin + ONE_BY_ONE]
            answers += exchange(self._socket.fileno(), b"".join(part), len(part))
        return [answer for answer in answers if len(answer) >= _LEAST and _HEAD.unpack_from(answer)[1] != _ERROR]

    def _follow(self, request: bytes, at: int, port: int, number: int, least: int) -> list[bytes]:
        if follow_compiled is None:
            return follow(self._ask, request, at, port, number, least)
        return follow_compiled(self._socket.fileno(), request, at, port, number, least)

    def _look_for_connections(self, now: float, *, whole: bool) -> list[tuple[int, bytes]]:
        """Find new connections: by their ports if those are known, and by a dump if some are missing."""
        opened, self._opened = self._opened, 0
        since, self._looked_at = now - self._looked_at, now
        if opened > MOST_FOLLOWED:
            if not whole:
                self._successors.forget(self.crowds)
            return self._look(TCP, whole=whole)
        next_ones, counted = self._successors.find(opened, self._known[TCP], since) if opened else ([], 0)
        waiting = [self._unheld.pop(cookie) for cookie in list(self._unheld)[:ONE_BY_ONE]]
        again = self._ask([lookup_request(message, TCP).encode() for message in waiting])
        found = self._take_in(dict.fromkeys([*again, *next_ones]))
        self._missing |= counted + self._ahead < opened
        self._ahead = max(0, counted - opened)
        if self._missing and (now >= self._missing_at or (opened and not next_ones)):
            rest = self._look(TCP, whole=whole) if whole or self.crowds else []
            self._missing_wait = self.purpose.pause if rest else min(LONGEST_WAIT, 2 * self._missing_wait)
            self._missing_at = now + self._missing_wait
            found += rest
        return found

    def _take_in(self, rows: Iterable[bytes]) -> list[tuple[int, bytes]]:
        """The new sockets among these rows that a process has."""
        known, found = self._known[TCP], []
        for row in rows:
            cookie = cookie_of(row)
            if cookie not in known and self._is_held(row, cookie):
                known.add(cookie)
                found.append((TCP, row))
        return found

    def _is_held(self, message: bytes, cookie: int) -> bool:
        """True if a process has this connection; false if it is over, or waits to be accepted."""
        if any(message[_INODE_AT : _INODE_AT + 4]):
            return True
        if message[_STATE_AT] in _TO_BE_ACCEPTED:
            self._unheld[cookie] = message
        return False

    def _look(self, protocol: int, *, whole: bool = True) -> list[tuple[int, bytes]]:
        """Find new sockets by a dump."""
        crowds = () if whole or protocol != TCP else self.crowds
        began, counted = time.thread_time(), self.counters.read() if protocol == TCP else 0
        try:
            new, present, ports = self._dump(protocol, crowds)
        except OSError:
            if not crowds:
                raise
            self._filters, self.crowds = False, ()  # before Linux 5.9
            return self._look(protocol)
        if crowds:
            self._known[protocol] |= present
        else:
            self._known[protocol] = present
        if len(new) > MOST_TAKEN:  # inodes are given in their order, but for each CPU
            new = heapq.nlargest(MOST_TAKEN, new, key=lambda each: SOCKET.unpack_from(each[1], COOKIE_AT)[2])
        if protocol == TCP:
            self._connections, self._ahead = counted, self.counters.read() - counted
            self._opened, self._missing = 0, False
            for _, message in new:
                self._successors.learn(message)
            self.dumped = time.thread_time() - began
            if not crowds:
                self.whole_takes = self.dumped
                self.crowds = crowded_ports(ports) if self._filters and len(ports) >= CROWD else ()
        return new

    def _dump(self, protocol: int, crowds: tuple[int, ...]) -> tuple[list[tuple[int, bytes]], set[int], list[int]]:
        """As `_look`, and with the cookies and ports of all."""
        known, present, ports, new = self._known[protocol], set[int](), list[int](), []
        if protocol == TCP:
            self._unheld = {}
        for request in self._requests[protocol]:
            self._socket.send(without_crowds(request, crowds) if crowds else request)
            for message in self._unknown(known, present, ports):
                cookie = cookie_of(message)
                if protocol == _UDP or self._is_held(message, cookie):
                    new.append((protocol, message))
                elif cookie in self._unheld:
                    present.discard(cookie)
        return new, present, ports

    def _unknown(self, known: set[int], present: set[int], ports: list[int]) -> Iterator[bytes]:
        """The messages of a dump about unknown sockets; the cookies and ports of all are added."""
        while True:
            data = self._socket.recv(_RECEIVE_SIZE)
            at, size = 0, len(data)
            data = data.ljust(size + 3 & ~3, b"\0")  # the last message may lack its padding
            while at + _HEAD.size <= size:
                length, kind = _HEAD.unpack_from(data, at)
                if kind == _ERROR and size - at >= _ERROR_SIZE:
                    number = -int.from_bytes(data[at + _HEADER_SIZE : at + _ERROR_SIZE], sys.byteorder, signed=True)
                    raise OSError(number, os.strerror(number))
                if kind == _DONE or length < _LEAST or at + length > size:
                    return
                row = _row(length + 3 & ~3)
                first, end = data[at : at + _HEAD.size], len(data) - (len(data) - at) % row.size
                for head, pair, cookie in row.iter_unpack(memoryview(data)[at:end]):
                    if head != first:  # most messages have the length of the one before, but not all
                        break
                    present.add(cookie)
                    ports.append(pair)
                    if cookie not in known:
                        yield data[at : at + length]
                    at += row.size


def _exchange(file: int, requests: bytes, count: int) -> list[bytes]:
    """Send requests to a socket and receive `count` answers.

    Raises:
        OSError: The exchange failed, or there were fewer answers.
    """
    os.write(file, requests)
    return [os.read(file, _LONGEST_ANSWER) for _ in range(count)]


exchange: Callable[[int, bytes, int], list[bytes]] = getattr(speedups, "exchange", _exchange)
follow_compiled: Callable[[int, bytes, int, int, int, int], list[bytes]] | None = getattr(speedups, "follow", None)
"""As `follow`, of a socket; in one go, without the interpreter's lock."""


@functools.lru_cache(maxsize=64)
def _row(size: int) -> struct.Struct:
    """A format for messages of this size: length and kind, both ports, and the cookie."""
    between = f"{PORTS_AT - _HEAD.size}xI{COOKIE_AT - PORTS_AT - 4}x"
    return struct.Struct(f"={_HEAD.size}s{between}Q{size - COOKIE_AT - 8}x")
