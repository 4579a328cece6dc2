"""Time of an emulated machine: a clock, Mach ticks, and timers.

Without a clock, time passes only by `KernelTime.advance`. With a clock, the server or transport
of the kernel runs its timers (`KernelTime.run_due`).
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from nstat_async._errors import UsageError

from ._values import number, whole

NANOSECOND = 1_000_000_000


class KernelTime:
    """The part of an emulated kernel that knows what time it is; `Machine` has its arguments."""

    def __init__(self, clock: Callable[[], float] | None, uptime: float, timebase: tuple[int, int]) -> None:
        if clock is not None and not callable(clock):
            raise UsageError(f"clock: {clock!r} is neither None nor a function such as time.monotonic")
        if not isinstance(timebase, tuple) or len(timebase) != 2:
            raise UsageError(f"timebase: {timebase!r} is not a pair of whole numbers such as (125, 3)")
        for part in timebase:
            whole("timebase", part, bits=32, least=1)
        number("uptime", uptime)
        self.lock = threading.RLock()
        """Held during every call; hold it to make several changes at once."""
        self.timebase = timebase
        self.timer_added = threading.Event()
        """Set when a timer was added: threads that run timers by the wall clock wait for it."""
        self._clock = clock
        self._offset_ns = 0 if clock is not None else round(uptime * NANOSECOND)
        self._tick_jump_ns = 0
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def now_ns(self) -> int:
        """Nanoseconds since this machine was started."""
        if self._clock is None:
            return self._offset_ns
        return int(self._clock() * NANOSECOND) + self._offset_ns

    @property
    def now(self) -> float:
        """`now_ns` in seconds."""
        return self.now_ns / NANOSECOND

    @property
    def ticks(self) -> int:
        """Mach continuous time."""
        numerator, denominator = self.timebase
        return max(0, self.now_ns + self._tick_jump_ns) * denominator // numerator

    @property
    def runs_by_the_clock(self) -> bool:
        """True if time passes by itself."""
        return self._clock is not None

    def advance(self, seconds: float) -> None:
        """Let time pass; timers that fall due run at their moment, in order."""
        self.advance_to(self.now_ns + round(number("seconds", seconds) * NANOSECOND))

    def advance_to(self, now_ns: int) -> None:
        """Let time pass until this moment (`now_ns`)."""
        with self.lock:
            if self._clock is None:
                while self._timers and self._timers[0][0] <= now_ns:
                    self._offset_ns = max(self._offset_ns, self._timers[0][0])
                    self._fire()
                self._offset_ns = max(self._offset_ns, now_ns)
            else:
                self._offset_ns += max(0, now_ns - self.now_ns)
                self.run_due()

    def jump_clock(self, seconds: float) -> None:
        """Let the tick counter jump (a fault): timestamps move, timers do not."""
        with self.lock:
            self._tick_jump_ns += round(number("seconds", seconds, least=-1e9) * NANOSECOND)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function when that time has passed (see `run_due`)."""
        number("seconds", seconds)
        with self.lock:
            heapq.heappush(self._timers, (self.now_ns + round(seconds * NANOSECOND), next(self._order), function))
        self.timer_added.set()

    def next_timer(self) -> float | None:
        """Seconds until a timer falls due; `None`: there is none."""
        with self.lock:
            return max(0.0, (self._timers[0][0] - self.now_ns) / NANOSECOND) if self._timers else None

    def run_due(self) -> None:
        """Run the timers that are due. Calls of clients do; with a wall clock, servers do too."""
        if not self._timers:
            return
        with self.lock:
            while self._timers and self._timers[0][0] <= self.now_ns:
                self._fire()

    def _fire(self) -> None:
        heapq.heappop(self._timers)[2]()
