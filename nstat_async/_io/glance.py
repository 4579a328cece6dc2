"""One network namespace at a glance: what the kernel counts there, and which of its sockets were not there before."""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from ..sockdiag import PulsePurpose, PulseReport
from ..sockdiag._lookups import lookup_request
from .crowds import CROWD, crowded_ports, without_crowds

__all__ = ["Counters", "Glance"]

TIMEOUT = 1.0
"""Seconds until an answer of the kernel, which is there at once, is given up."""
MOST_UNREAD = 16
"""Reports that wait to be read; there is no look while there are more."""
LONGEST_WAIT = 1.0
"""Seconds between two looks for the process of a connection that is not accepted yet, at last."""
SPARE_DESCRIPTORS = 16
"""Descriptors that others shall still be able to open: a pulse is not the most important thing."""

_RECEIVE_SIZE = 65_536
_HEAD = struct.Struct("=IH")
SOCKET = struct.Struct("=Q12xII")
"""From a message's cookie: it, the user and the inode."""
COOKIE_AT = 60
_INODE_AT, _STATE_AT, _PORTS_AT, _LEAST = COOKIE_AT + 24, 17, 20, 88
_ERROR, _DONE = 2, 3
"""``NLMSG_ERROR``, ``NLMSG_DONE``."""
_HEADER_SIZE, _ERROR_SIZE = 16, 20
_TO_BE_ACCEPTED = frozenset({1, 8})
"""States of a connection without an inode: established, and closed by the peer meanwhile."""
_TCP, _UDP = 6, 17


class Counters:
    """What the kernel counts in the network namespace of the calling thread.

    Raises:
        OSError: A file cannot be opened, or has no such counters.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
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

    def read(self) -> tuple[int, int]:
        """Connections opened and accepted so far, and datagram sockets that there are.

        Raises:
            OSError: There are no such counters.
        """
        snmp, *sockets = (os.pread(file, 8192, 0) for file in self._files)
        try:
            fields = snmp.split(b"\nTcp: ", 2)[2].split(None, 6)  # the first such line has the names
            udp = (text.split(b"\nUDP", 1)[1].split(None, 3)[2] for text in sockets)
            return int(fields[4]) + int(fields[5]), sum(map(int, udp))
        except (IndexError, ValueError):
            raise OSError(errno.ENODATA, "the kernel does not count connections") from None

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._files:
            os.close(self._files.pop())


class Glance:
    """The counters of a network namespace, a socket for dumps, and what was seen."""

    def __init__(self, purpose: PulsePurpose, report: Callable[[PulseReport | OSError], None]) -> None:
        self.purpose = purpose
        self.report = report
        self.unread = 0
        """Reports that nobody took in yet."""
        self._requests = {_TCP: purpose.tcp, _UDP: purpose.udp}
        self._known: dict[int, set[int]] = {_TCP: set(), _UDP: set()}
        """Cookies of the last look, by protocol."""
        self.crowds: tuple[int, ...] = ()
        """Ports that so many TCP sockets have that a look at all of them takes long."""
        self._filters = True
        """The kernel can leave out crowds."""
        self._due = {_TCP: math.inf, _UDP: math.inf}
        """When to look again, by protocol."""
        self._wait = dict.fromkeys(self._due, purpose.pause)
        """Seconds between looks while a connection is not accepted by its process yet; they grow."""
        self._counters = Counters()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4)
            self._socket.settimeout(TIMEOUT)
            _spare_descriptors(self._socket.fileno())
            self._counted = self._counters.read()
            for protocol in self._requests:
                self._look(protocol)  # what is there now is not new
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the descriptors. Idempotent."""
        self._counters.close()
        if hasattr(self, "_socket"):
            self._socket.close()

    def moved(self, now: float) -> bool:
        """True if a counter says that there is something new."""
        (connections, datagrams), self._counted = self._counted, self._counters.read()
        new = self._counted[0] != connections, self._counted[1] > datagrams
        if new[0]:
            self._due[_TCP], self._wait[_TCP] = now, self.purpose.pause
        if new[1]:
            self._due[_UDP] = now
        return any(new)

    def is_due(self, now: float) -> bool:
        """True if a look is due, and wanted."""
        return min(self._due.values()) <= now and self.unread < MOST_UNREAD

    def look(self, now: float, *, whole: bool = True) -> list[tuple[int, bytes]]:
        """The sockets that were not there at the last look; if it is not to be a `whole` one, without those of `crowds`."""
        found = []
        for protocol, due in self._due.items():
            if due <= now:
                new, unheld = self._look(protocol, whole=whole)
                found += new
                self._due[protocol] = now + self._wait[protocol] if unheld else math.inf
                self._wait[protocol] = min(LONGEST_WAIT, 2 * self._wait[protocol])
        return found

    def look_again(self, sockets: list[tuple[int, bytes]], missed: set[int], now: float) -> None:
        """Take these for new once more: there was no time to find their processes."""
        for protocol, message in sockets:
            cookie, _, inode = SOCKET.unpack_from(message, COOKIE_AT)
            if inode in missed:
                self._known[protocol].discard(cookie)
                self._due[protocol] = min(self._due[protocol], now + self._wait[protocol])

    def still_held(self, sockets: list[tuple[int, bytes]], inodes: set[int]) -> set[int]:
        """Those of the inodes whose sockets are there yet: one that is closed meanwhile is in no process any more."""
        held = set()
        for protocol, message in sockets:
            inode = SOCKET.unpack_from(message, COOKIE_AT)[2]
            if inode in inodes:
                self._socket.send(lookup_request(message, protocol).encode())
                answer = self._socket.recv(_RECEIVE_SIZE)
                if len(answer) >= _LEAST and SOCKET.unpack_from(answer, COOKIE_AT)[2] == inode:
                    held.add(inode)
        return held

    def _look(self, protocol: int, *, whole: bool = True) -> tuple[list[tuple[int, bytes]], bool]:
        """New sockets, and whether there are some that no process has accepted yet."""
        crowds = () if whole or protocol != _TCP else self.crowds
        try:
            new, unheld, present, ports = self._dump(protocol, crowds)
        except OSError:
            if not crowds:
                raise
            self._filters, self.crowds = False, ()  # before Linux 5.9
            return [], False
        if crowds:
            self._known[protocol] |= present
        else:
            self._known[protocol] = present
            if protocol == _TCP and self._filters:
                self.crowds = crowded_ports(ports) if len(ports) >= CROWD else ()
        return new, unheld

    def _dump(
        self, protocol: int, crowds: tuple[int, ...]
    ) -> tuple[list[tuple[int, bytes]], bool, set[int], list[int]]:
        """As `_look`, and the cookies and ports of all."""
        known, present, ports = self._known[protocol], set[int](), list[int]()
        new, unheld = [], False
        for request in self._requests[protocol]:
            self._socket.send(without_crowds(request, crowds) if crowds else request)
            for message in self._strangers(known, present, ports):
                if any(message[_INODE_AT : _INODE_AT + 4]):
                    new.append((protocol, message))
                elif protocol == _TCP and message[_STATE_AT] in _TO_BE_ACCEPTED:
                    unheld = True
                    present.discard(SOCKET.unpack_from(message, COOKIE_AT)[0])
        return new, unheld, present, ports

    def _strangers(self, known: set[int], present: set[int], ports: list[int]) -> Iterator[bytes]:
        """The messages of a dump that are of no known socket; the cookies and ports of all are added."""
        while True:
            data = self._socket.recv(_RECEIVE_SIZE)
            at, size = 0, len(data)
            data = data.ljust(size + 3 & ~3, b"\0")  # the last message may come without its padding
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
                    if head != first:  # most have the length of those before them, not all
                        break
                    present.add(cookie)
                    ports.append(pair)
                    if cookie not in known:
                        yield data[at : at + length]
                    at += row.size


@functools.lru_cache(maxsize=64)
def _row(size: int) -> struct.Struct:
    """Cuts messages of this size: length and kind, both ports, and the cookie."""
    between = f"{_PORTS_AT - _HEAD.size}xI{COOKIE_AT - _PORTS_AT - 4}x"
    return struct.Struct(f"={_HEAD.size}s{between}Q{size - COOKIE_AT - 8}x")


def _spare_descriptors(newest: int) -> None:
    """See that others can still open descriptors.

    Raises:
        OSError: There are few left.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and newest + SPARE_DESCRIPTORS > limit:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
