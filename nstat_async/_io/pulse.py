"""Finds new sockets within milliseconds: the kernel's counters, read every few milliseconds, tell when to look.

``/proc/net/snmp`` counts the connections that a network namespace opened and accepted, ``/proc/net/sockstat`` its
datagram sockets. When a number changes, a thread of its own finds all new sockets (`Glance`), looks for their
processes in the likeliest places (`LikelyHolders`), and reports both. It does not need the event loop, so owners are
found while the loop is busy, too.

All its work is paid from a `Budget` of CPU time, which is measured and not estimated. After each look it rests, in
proportion to the cost of the look, and longer if little is saved. If many connections are opened, one look finds the
new sockets of a whole rest, and each socket that lives longer than a rest is seen. Saved time pays for bursts: during
a burst the counters are read more often.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..sockdiag import OwnersAnswer, ProcessFacts, PulsePurpose, PulseReport
from .budget import SHARE, Budget
from .counters import THOROUGH, await_counters
from .glance import COOKIE_AT, SOCKET, Glance
from .likely import LikelyHolders
from .processes import ProcessReader, RecentFacts, eldest, user_names
from .reach import Reach
from .tables import Found

_log = logging.getLogger("nstat_async.pulse")

WIDE_SHARE = 0.3
"""The part of the budget for searches through all processes and looks at crowds, which would take all of it otherwise."""
LONGEST_DEBT = 2.0
"""Most seconds without a dump after one that cost more than was left, as it does if thousands of sockets come at once."""
LONGEST_SILENCE = 1.0
"""Most seconds without any look after such a dump: what it cost beyond that is paid by instalments (`Budget.defer`)."""
MOST_CHARGED, MOST_CHARGED_EACH = 0.0005, 0.0001
"""Most seconds of CPU that are charged for the reading of a report, and for each socket in it: what exceeds them was other work."""
USUAL_PAUSE = 0.02
"""Seconds between two looks for which `SHARE` is meant; shorter pauses get a larger share."""
MOST_SHARE = 0.2
EAGER = 16
"""During a burst the counters are read up to this many times as often: with a full budget; less often with less."""
LONGEST_WAIT = 1.0
"""Seconds until the thread computes again how often to read."""
EAGER_SECONDS = 0.5
"""A burst is assumed to last this long after the last change of a counter."""
SHORTEST_PAUSE = 0.001
SHORTEST_REST = 0.012
"""Seconds between two looks when several connections come at once: the look itself costs as much as handling its finds."""
MOST_NEW = 128
"""Most sockets that one look reports: some 20 ms of work."""
LONGEST_SEARCH = 0.005
"""Seconds of CPU for the processes of one look."""
AVERAGED = 8
"""Readings of the counters for an average: a single one may take three times as long as usual."""
GLANCE = 16
"""Places that are examined between two readings of the clock."""
MOST_FAILURES = 10
"""The pulse gives up after this many failed looks in a row."""


class Pulse:
    """A thread that looks for new sockets in all network namespaces of a monitor.

    Args:
        recent: Processes that held the last sockets, the last one last; those that are found here are added.
        reader: Reads the facts of processes.
    """

    def __init__(self, recent: dict[int, None], reader: ProcessReader) -> None:
        self._processes = RecentFacts(reader)
        self._likely = LikelyHolders(recent)
        self._reach = Reach()
        self._glances: list[Glance] = []
        self._budget = Budget(SHARE, time.monotonic())
        self._wide = Budget(SHARE * WIDE_SHARE, self._budget.at)
        """For searches through all processes and looks at crowds; their cost is taken from the whole budget, too."""
        self._thread: threading.Thread | None = None
        self._bell = -1
        """An event descriptor that interrupts the reading of counters: there is other work."""
        self._ended = False
        self._left: list[Glance] = []
        """Those that are given up. The thread closes them itself, because it may be using one."""
        self._charged: deque[tuple[Glance, float]] = deque()
        """CPU seconds that the readers spent on reports."""
        self._reading = 0.0
        """CPU seconds that one reading of a namespace's counters takes, on average of the last ones."""
        self._all_at = 0.0
        """When to read the counters of all namespaces again, those of quiet ones included."""

    def open(self, purpose: PulsePurpose) -> PulseChannel:
        """Make the channel of the calling thread's network namespace.

        Raises:
            OSError: There are no counters, too few descriptors, or no thread could be started.
        """
        channel = PulseChannel(purpose, self._leave, self._charged.append)
        self._glances = [*self._glances, channel.glance]
        self._divide()
        try:
            self._start()
            self._ring()
        except BaseException:
            channel.close()
            self._close_left()
            raise
        return channel

    def _divide(self) -> None:
        """Set how much may be spent, and each namespace's own part of it."""
        pause = min((each.purpose.pause for each in self._glances), default=USUAL_PAUSE)
        several = 2 if len(self._glances) > 1 else 1  # they may talk with each other: then each connection has two ends
        self._budget.share = min(MOST_SHARE, several * SHARE * max(1.0, USUAL_PAUSE / pause))
        self._wide.share = self._budget.share * WIDE_SHARE
        for glance in self._glances:
            glance.budget.share = self._budget.share / len(self._glances)

    def _start(self) -> None:
        if self._thread is not None:
            if not self._thread.is_alive():
                raise OSError(errno.EIO, "looks failed before")
            return
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        thread = threading.Thread(target=self._run, name="nstat-async-pulse", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._close_bell()
            raise OSError(errno.EAGAIN, str(error)) from error
        self._thread = thread

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    def _close_bell(self) -> None:
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)

    def _leave(self, glance: Glance) -> None:
        self._glances = [each for each in self._glances if each is not glance]
        self._divide()
        self._left.append(glance)
        self._ring()

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._ended = True
        self._ring()
        if self._thread is not None:
            self._thread.join(1.0)
            if not self._thread.is_alive():
                self._close_bell()

    # -- the thread

    def _run(self) -> None:
        try:
            self._look_and_rest()
        finally:
            self._left += self._glances
            self._close_left()

    def _look_and_rest(self) -> None:
        failures = 0
        while not self._ended:
            for glance in self._glances:
                if not glance.begun:
                    self._begin(glance)
            began = time.thread_time()
            try:
                self._close_left()
                self._wait()
                self._look_where_due()
                failures = 0
            except Exception as error:  # noqa: BLE001  # whatever it is, the monitor goes on without
                failures += 1
                _log.debug("a look failed", exc_info=True)
                if failures == MOST_FAILURES:
                    self._fail(error)
                    return
                await_counters(self._bell, (), USUAL_PAUSE, 1, THOROUGH)
            self._pay(time.thread_time() - began)

    def _begin(self, glance: Glance) -> None:
        """Send an empty report: all new sockets are found from now on. This costs once, and is paid from no budget."""
        try:
            glance.begin()
            glance.report(PulseReport((), OwnersAnswer()))
        except Exception as error:  # noqa: BLE001  # as for a look, and the next one would take all for new
            self._glances = [each for each in self._glances if each is not glance]
            glance.report(error if isinstance(error, OSError) else OSError(errno.EIO, str(error)))

    def _pay(self, spent: float) -> None:
        now = time.monotonic()
        while self._charged:
            glance, seconds = self._charged.popleft()
            glance.budget.spend(seconds, now)
            spent += seconds
        self._budget.spend(spent, now)
        self._budget.defer(LONGEST_SILENCE)
        self._wide.spend(0.0, now)  # lets its clock go on, too

    def _wait(self) -> None:
        """Wait until a counter changed or a look is due, and longer if the budget is empty. Resting namespaces are not read."""
        now, pause = time.monotonic(), self._pause()
        awake = [each for each in self._glances if each.look_at <= now + pause]
        next_look = min((each.next_look() for each in awake), default=math.inf)
        eager = [each for each in awake if now < each.active_until]
        quick = pause / max(1.0, EAGER * self._budget.surplus)
        watched, times = awake, 1
        if not awake:
            watched, pause = self._glances, min((each.look_at - now for each in self._glances), default=LONGEST_WAIT)
        elif next_look < math.inf:
            pause = min(pause, next_look - now)  # the look sees what came until then
        elif not eager:
            times = int(LONGEST_WAIT / pause)
        elif len(eager) < len(awake) and now >= self._all_at:
            self._all_at, pause = now + pause, quick
        else:
            until = self._all_at if len(eager) < len(awake) else min(each.active_until for each in eager)
            watched, pause, times = eager, quick, int((until - now) / quick)
        self._read(watched, max(SHORTEST_PAUSE, pause, self._budget.rest()), max(1, times))

    def _read(self, watched: list[Glance], pause: float, times: int) -> None:
        """Read their counters after each pause, until one changed."""
        read = sum(each.counters.readings for each in watched)
        began = time.thread_time()
        await_counters(self._bell, tuple(each.counters.numbers for each in watched), pause, times, THOROUGH)
        spent, read = time.thread_time() - began, sum(each.counters.readings for each in watched) - read
        if read:
            self._reading += (spent / read - self._reading) * min(1.0, read / AVERAGED)
        else:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
        now = time.monotonic()
        for glance in watched:
            if glance.notice(now):
                glance.active_until = now + EAGER_SECONDS

    def _pause(self) -> float:
        """Seconds between two readings of all counters: longer than wanted if they took over a quarter of the budget."""
        wanted = min((each.purpose.pause for each in self._glances), default=USUAL_PAUSE)
        return max(wanted, 4 * self._reading * len(self._glances) / self._budget.share)

    def _look_where_due(self) -> None:
        for glance in self._glances:
            now, began = time.monotonic(), time.thread_time()
            if glance.next_look() <= now:
                new = self._look(glance, now)
                if new:
                    report, missed = self._report_of(glance, new)
                    glance.report(report)
                    glance.look_again(new, missed, now)
                self._rest_after(glance, time.thread_time() - began, len(new))

    def _rest_after(self, glance: Glance, spent: float, new: int = 0) -> None:
        """Delay the namespace's next look by the cost of this one, longer if little is left.

        Dumps are granted separately, so looks without a dump go on. If this look or the one before found several new sockets,
        more will come: the next look is made after the rest, which is then not too short, without waiting for a count.
        """
        now, several = time.monotonic(), new > 1
        glance.budget.spend(spent, now)
        fullness = max(glance.budget.fullness, self._budget.fullness, self._budget.share)
        rest = min((spent - glance.dumped) / fullness, LONGEST_SILENCE)
        several_lately, glance.several = several or glance.several, several
        glance.look_at = now + (max(rest, SHORTEST_REST) if several_lately else rest)
        if several_lately:
            glance.expect(glance.look_at)

    def _look(self, glance: Glance, now: float) -> list[tuple[int, bytes]]:
        """The new sockets. A dump of all sockets is as rare as a search of all processes, unless more is saved than looks need.

        With thousands of sockets it takes as long as such a search. So it waits until the budget has as much as the last dump
        took, and nothing is owed for that one any more.
        """
        granted = self._wide.left > min(glance.whole_takes, self._wide.most / 2)
        new = glance.look(now, whole=not self._budget.owed and (granted or self._budget.surplus > 0))
        if granted:
            self._wide.spend(glance.dumped, time.monotonic())
            self._wide.left = max(self._wide.left, -LONGEST_DEBT * self._wide.share)
        return new

    def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        for glance in self._glances:
            glance.report(failure)

    def _report_of(self, glance: Glance, sockets: list[tuple[int, bytes]]) -> tuple[PulseReport, set[int]]:
        """A report of new sockets with the processes that a short search finds; and the inodes for which there was no time."""
        rows = [SOCKET.unpack_from(message, COOKIE_AT) for _, message in sockets]
        now, users = time.monotonic(), {uid for _, uid, _ in rows}
        reached = {uid for uid in users if self._reach.covers(uid, now)}
        wanted = {inode for _, uid, inode in rows if uid in reached}
        places: list[Found] = []
        cut = _take(wanted, self._likely.ends(), places)
        if len(sockets) > MOST_NEW:
            sockets, cut = _most_urgent(sockets, {place[0] for place in places}), False
        searches: tuple[Callable[[], bool], ...] = (
            lambda: _take(wanted, self._likely.hot(), places),
            lambda: _take(wanted, self._likely.near(), places),
            lambda: self._search_far(wanted, places),
        )
        for search in searches:
            if wanted and not cut:
                wanted.intersection_update(glance.still_held(sockets, wanted))
                cut = search()
        found = {place[0] for place in places}
        for uid in {uid for _, uid, inode in rows if inode in found}:
            self._reach.found(uid, now)
        return PulseReport(tuple(sockets), self._answer(places, users)), wanted if cut else set()

    def _answer(self, places: list[Found], users: set[int]) -> OwnersAnswer:
        facts, now = dict[int, ProcessFacts](), time.monotonic()

        def facts_of(pid: int) -> ProcessFacts:
            return facts.get(pid) or facts.setdefault(pid, self._processes.facts(pid, now))

        found = eldest(places, lambda pid: facts_of(pid).parent_pid or 0)
        self._likely.add(places)
        holders = dict.fromkeys(place[1] for place in found)
        return OwnersAnswer(
            tuple((inode, pid) for inode, pid, _, _ in found),
            tuple(facts_of(pid) for pid in holders),
            places=tuple((thread, descriptor) for _, _, thread, descriptor in found),
            users=user_names(users),
        )

    def _search_far(self, wanted: set[int], places: list[Found]) -> bool:
        """Search all processes within the budget for that; returns as `_take`."""
        if not wanted or self._wide.left <= 0:
            return bool(wanted)
        began = time.thread_time()
        cut = _take(wanted, self._likely.far(), places, min(LONGEST_SEARCH, self._wide.left))
        if not cut:
            self._likely.start_over()
        self._wide.spend(time.thread_time() - began, time.monotonic())
        return cut


def _take(wanted: set[int], places: Iterable[Found], found: list[Found], seconds: float | None = None) -> bool:
    """Move wanted places to `found`; true if the time (seconds of CPU) ended before the places did."""
    until = time.thread_time() + (LONGEST_SEARCH if seconds is None else seconds)
    for number, place in enumerate(places if wanted else ()):
        if place[0] in wanted:
            wanted.discard(place[0])
            found.append(place)
            if not wanted or len(found) >= MOST_NEW:
                return False
        if not number % GLANCE and time.thread_time() >= until:
            return True
    return False


def _most_urgent(sockets: list[tuple[int, bytes]], found: set[int]) -> list[tuple[int, bytes]]:
    """The sockets of the likeliest processes, if there are too many for one report; the next poll finds the others."""
    return sorted(sockets, key=lambda each: SOCKET.unpack_from(each[1], COOKIE_AT)[2] not in found)[:MOST_NEW]


class PulseChannel:
    """The reports about one network namespace; its event descriptor (``eventfd(2)``) is readable while reports wait."""

    immediate = False
    receive_buffer: int | None = None

    def __init__(
        self, purpose: PulsePurpose, leave: Callable[[Glance], None], charge: Callable[[tuple[Glance, float]], object]
    ) -> None:
        self._leave = leave
        self._charge = charge
        self._handed: float | None = None
        """CPU time of the reader's thread when it got the last reports; `None`: nothing is to be charged."""
        self._most_charged = 0.0
        self._reports: deque[PulseReport | OSError] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.glance = Glance(purpose, self._put)
        except BaseException:
            os.close(self._event)
            raise

    def _put(self, report: PulseReport | OSError) -> None:
        """Put a report for the reader; called by the pulse's thread."""
        with self._lock:
            if not self._closed:
                self._reports.append(report)
                self.glance.unread = len(self._reports)
                os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._event

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append reports; see `Channel`. The reader's CPU time until its next call is charged to the budget."""
        if self._handed is not None:
            self._charge((self.glance, min(time.thread_time() - self._handed, self._most_charged)))
            self._handed = None
        sockets = 0
        with self._lock:
            for _ in range(most):
                if not self._reports:
                    break
                report = self._reports.popleft()
                if isinstance(report, OSError):
                    raise report
                batch.append(report.encode())
                sockets += len(report.sockets)
            self.glance.unread = len(self._reports)
            if batch:
                self._handed = time.thread_time()
                self._most_charged = MOST_CHARGED * len(batch) + MOST_CHARGED_EACH * sockets
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
        self._leave(self.glance)
