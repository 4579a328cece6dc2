"""A pulse: the kernel's counters, read every few milliseconds, say when to look for new sockets.

``/proc/net/snmp`` counts the connections that a network namespace opened and accepted, ``/proc/net/sockstat`` its
datagram sockets; an open file of them costs some 10 µs to read. When a number moved, a thread of our own dumps the
sockets, looks for the processes of the new ones, newest process first, and reports both. It needs no event loop, so
that one which is busy costs no owner.

Whatever it does is paid from a `Budget` of CPU time, which is measured and not estimated: where a look costs much,
because there are many sockets or many new connections, looks are rare.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import resource
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import attrs

from ..sockdiag import OwnersAnswer, PulsePurpose, PulseReport
from .likely import LikelyHolders
from .processes import ProcessReader, eldest, user_names

__all__ = ["Budget", "Counters", "Pulse", "PulseChannel"]

_log = logging.getLogger("nstat_async.pulse")

SHARE = 0.018
"""Share of a CPU that may be used at the usual pause, with what the core does with reports; 2 % with what follows from events."""
USUAL_PAUSE = 0.02
"""Seconds between two looks for which that share is meant: who wants shorter ones grants more."""
MOST_SHARE = 0.2
SAVED = 6.0
"""Seconds for which a share that was not used is kept."""
MOST_UNREAD = 16
"""Reports that wait to be read; there is no look while there are more."""
LONGEST_WAIT = 1.0
"""Seconds between two looks for the process of a connection that is not accepted yet, at last."""
LONGEST_SEARCH = 0.005
"""Seconds of CPU for the processes of one look: what is held by nobody any more would take the whole budget."""
MOST_FAILURES = 10
"""Looks in a row that may fail."""
SPARE_DESCRIPTORS = 16
"""Descriptors that others shall still be able to open: a pulse is not the most important thing."""

_TIMEOUT = 1.0
"""Seconds until an answer of the kernel, which is there at once, is given up."""
_RECEIVE_SIZE = 65_536
_HEAD = struct.Struct("=IH")
_SOCKET = struct.Struct("=Q12xII")
"""From a message's cookie: it, the user and the inode."""
_COOKIE_AT, _STATE_AT, _LEAST = 60, 17, 88
_ENDS = frozenset({2, 3})
"""``NLMSG_ERROR``, ``NLMSG_DONE``."""
_TO_BE_ACCEPTED = frozenset({1, 8})
"""States of a connection without an inode: established, and closed by the peer meanwhile."""
_TCP, _UDP = 6, 17


@attrs.define(eq=False)
class Budget:
    """CPU time that may be spent: a share of the time that passes, saved for a while."""

    share: float
    """Seconds of CPU a second."""
    at: float
    """The time, seconds, up to which the share is reckoned."""
    left: float = attrs.field(init=False)
    """What may be spent now, seconds; below 0 it was spent in advance."""

    def __attrs_post_init__(self) -> None:
        self.left = self.share * SAVED

    def spend(self, seconds: float, now: float) -> None:
        """So much was spent until `now`."""
        self.left = min(self.left + (now - self.at) * self.share, self.share * SAVED) - seconds
        self.at = now

    def rest(self) -> float:
        """Seconds until something is left."""
        return max(0.0, -self.left / self.share)


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


class _Watch:
    """One network namespace: its counters, a socket for dumps, and what was seen."""

    def __init__(self, purpose: PulsePurpose, report: Callable[[PulseReport | OSError], None]) -> None:
        self.purpose = purpose
        self.report = report
        self.unread = 0
        """Reports that nobody took in yet."""
        self._requests = {_TCP: purpose.tcp, _UDP: purpose.udp}
        self._known: dict[int, set[int]] = {_TCP: set(), _UDP: set()}
        """Cookies of the last look, by protocol."""
        self._due = {_TCP: math.inf, _UDP: math.inf}
        """When to look again, by protocol."""
        self._wait = dict.fromkeys(self._due, purpose.pause)
        """Seconds between looks while a connection is not accepted by its process yet; they grow."""
        self._counters = Counters()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4)
            self._socket.settimeout(_TIMEOUT)
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
        """True if a look is due."""
        (connections, datagrams), self._counted = self._counted, self._counters.read()
        if self._counted[0] != connections:
            self._due[_TCP], self._wait[_TCP] = now, self.purpose.pause
        if self._counted[1] > datagrams:
            self._due[_UDP] = now
        return min(self._due.values()) <= now and self.unread < MOST_UNREAD

    def look(self, now: float) -> list[tuple[int, bytes]]:
        """The sockets that were not there at the last look."""
        found = []
        for protocol, due in self._due.items():
            if due <= now:
                new, unheld = self._look(protocol)
                found += new
                self._due[protocol] = now + self._wait[protocol] if unheld else math.inf
                self._wait[protocol] = min(LONGEST_WAIT, 2 * self._wait[protocol])
        return found

    def look_again(self, sockets: list[tuple[int, bytes]], missed: set[int], now: float) -> None:
        """Take these for new once more: there was no time to find their processes."""
        for protocol, message in sockets:
            cookie, _, inode = _SOCKET.unpack_from(message, _COOKIE_AT)
            if inode in missed:
                self._known[protocol].discard(cookie)
                self._due[protocol] = min(self._due[protocol], now + self._wait[protocol])

    def _look(self, protocol: int) -> tuple[list[tuple[int, bytes]], bool]:
        """New sockets, and whether there are some that no process has accepted yet."""
        known, present = self._known[protocol], set()
        new, unheld = [], False
        for request in self._requests[protocol]:
            self._socket.send(request)
            for data, at, length in self._answers():
                cookie, _, inode = _SOCKET.unpack_from(data, at + _COOKIE_AT)
                if cookie not in known and inode:
                    new.append((protocol, data[at : at + length]))
                elif cookie not in known and protocol == _TCP and data[at + _STATE_AT] in _TO_BE_ACCEPTED:
                    unheld = True
                    continue
                present.add(cookie)
        self._known[protocol] = present
        return new, unheld

    def _answers(self) -> Iterator[tuple[bytes, int, int]]:
        """Each message of a dump: its datagram, where it is there, and how long."""
        while True:
            data = self._socket.recv(_RECEIVE_SIZE)
            at = 0
            while at + _HEAD.size <= len(data):
                length, kind = _HEAD.unpack_from(data, at)
                if kind in _ENDS or length < _LEAST or at + length > len(data):
                    return
                yield data, at, length
                at += (length + 3) & ~3


def _spare_descriptors(newest: int) -> None:
    """See that others can still open descriptors.

    Raises:
        OSError: There are few left.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and newest + SPARE_DESCRIPTORS > limit:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Pulse:
    """A thread that looks, for all network namespaces of a monitor.

    Args:
        recent: Processes that held the last sockets, the last one last; what is found here is added.
        reader: Reads the facts of processes.
    """

    def __init__(self, recent: dict[int, None], reader: ProcessReader) -> None:
        self._reader = reader
        self._likely = LikelyHolders(recent)
        self._watches: list[_Watch] = []
        self._budget = Budget(SHARE, time.monotonic())
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._left: list[_Watch] = []
        """Those that nobody wants any more: the thread closes them, which may be using one."""
        self._charged: deque[float] = deque()
        """CPU seconds that others spent on reports."""
        self._cut = False
        """The last search had not time enough."""
        self._reading = 0.0
        """CPU seconds that reading the counters took at last."""

    def open(self, purpose: PulsePurpose) -> PulseChannel:
        """The channel of the network namespace of the calling thread.

        Raises:
            OSError: There are no counters, no descriptors or no thread.
        """
        channel = PulseChannel(purpose, self._leave, self._charged.append)
        self._watches = [*self._watches, channel.watch]
        pause = min(each.purpose.pause for each in self._watches)
        self._budget.share = min(MOST_SHARE, SHARE * max(1.0, USUAL_PAUSE / pause))
        try:
            self._start()
        except BaseException:
            channel.close()
            self._close_left()
            raise
        return channel

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="nstat-async-pulse", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        self._thread = thread

    def _leave(self, watch: _Watch) -> None:
        self._watches = [each for each in self._watches if each is not watch]
        self._left.append(watch)

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT)

    # -- the thread

    def _run(self) -> None:
        try:
            self._look_and_rest()
        finally:
            self._left += self._watches
            self._close_left()

    def _look_and_rest(self) -> None:
        failures = 0
        while not self._stopped.wait(self._pause()):
            began = time.thread_time()
            try:
                self._beat()
                failures = 0
            except Exception as error:  # noqa: BLE001  # whatever it is, the monitor goes on without
                failures += 1
                _log.debug("a look failed", exc_info=True)
                if failures == MOST_FAILURES or not isinstance(error, OSError):
                    self._fail(error)
                    return
            spent = time.thread_time() - began
            while self._charged:
                spent += self._charged.popleft()
            self._budget.spend(spent, time.monotonic())

    def _pause(self) -> float:
        """As it is wanted; longer where reading the counters alone costs half of what may be spent, or nothing is left."""
        wanted = min((each.purpose.pause for each in self._watches), default=USUAL_PAUSE)
        return max(wanted, 2 * self._reading / self._budget.share, self._budget.rest())

    def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        for watch in self._watches:
            watch.report(failure)

    def _beat(self) -> None:
        self._close_left()
        began, now = time.thread_time(), time.monotonic()
        moved = [watch for watch in self._watches if watch.moved(now)]
        self._reading = time.thread_time() - began
        for watch in moved:
            new = watch.look(now)
            if new:
                owners, missed = self._owners_of(new)
                watch.report(PulseReport(tuple(new), owners))
                watch.look_again(new, missed, now)

    def _owners_of(self, sockets: list[tuple[int, bytes]]) -> tuple[OwnersAnswer, set[int]]:
        """Who holds these sockets, as far as a short search finds out; and the inodes that it had no time for."""
        rows = [_SOCKET.unpack_from(message, _COOKIE_AT) for _, message in sockets]
        ours = os.geteuid()  # others do not let us look
        wanted = {inode for _, uid, inode in rows if not ours or uid == ours}
        found = eldest(self._search(wanted)) if wanted else []
        facts = {pid: self._reader.facts(pid) for pid in dict.fromkeys(place[1] for place in found)}
        self._likely.add(facts)
        answer = OwnersAnswer(
            tuple((inode, pid) for inode, pid, _, _ in found),
            tuple(facts.values()),
            places=tuple((thread, descriptor) for _, _, thread, descriptor in found),
            users=user_names({uid for _, uid, _ in rows}),
        )
        return answer, wanted if self._cut else set()

    def _search(self, wanted: set[int]) -> list[tuple[int, int, int, int]]:
        """The newest processes and the recent owners, and a part of all, as far as the budget goes."""
        self._cut = False
        until = time.thread_time() + min(LONGEST_SEARCH, self._budget.left / 4)
        found = []
        for number, place in enumerate(self._likely.places()):
            if place[0] in wanted:
                wanted.discard(place[0])
                found.append(place)
                if not wanted:
                    break
            if not number % 16 and time.thread_time() >= until:
                self._cut = True
                break
        return found


class PulseChannel:
    """The reports about one network namespace; an event descriptor (``eventfd(2)``) is readable while there are some."""

    immediate = False
    receive_buffer: int | None = None

    def __init__(
        self, purpose: PulsePurpose, leave: Callable[[_Watch], None], charge: Callable[[float], object]
    ) -> None:
        self._leave = leave
        self._charge = charge
        self._handed: float | None = None
        """Processor time of the reader's thread when it got reports."""
        self._reports: deque[PulseReport | OSError] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.watch = _Watch(purpose, self._put)
        except BaseException:
            os.close(self._event)
            raise

    def _put(self, report: PulseReport | OSError) -> None:
        """The pulse's thread: have this read."""
        with self._lock:
            if not self._closed:
                self._reports.append(report)
                self.watch.unread = len(self._reports)
                os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._event

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append reports; see `Channel`. What is done with them until the next call is charged to the budget."""
        if self._handed is not None:
            self._charge(time.thread_time() - self._handed)
            self._handed = None
        with self._lock:
            for _ in range(most):
                if not self._reports:
                    break
                report = self._reports.popleft()
                if isinstance(report, OSError):
                    raise report
                batch.append(report.encode())
            self.watch.unread = len(self._reports)
            if batch:
                self._handed = time.thread_time()
                return True
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            return False

    def send(self, data: bytes) -> None:
        """Nothing can be sent.

        Raises:
            OSError: Always.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), len(data))

    def close(self) -> None:
        """Release the descriptors. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._event)
        self._leave(self.watch)
