"""A table that is fed from a monitor, next to the monitor's other consumers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import time as wall_time
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import anyio

from nstat_async._checks import LONGEST_SECONDS, check_number
from nstat_async._errors import MonitorClosedError, StreamEndedError, UsageError
from nstat_async._events import AnyEvent
from nstat_async._monitor import Monitor
from nstat_async._subscription import Subscription

from ._rates import CLOCK_SLACK
from ._table import ProcessTable, TrafficTable

_Table = TypeVar("_Table", bound=TrafficTable)
_LATE = 5.0
"""Seconds by which events of a fleet may be late and are still those of this moment."""


class Arrivals:
    """Says when the events of a monitor were received, as `TrafficTable.feed_many` wants to know it.

    A fleet that is read from an earlier time on begins with its past, as fast as it can be read. By the reader's clock
    its rates would be wrong, so they go by the events' clock until those of this moment come.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._is_present = False

    def of(self, events: Sequence[AnyEvent]) -> float | None:
        """Monotonic seconds for these events, which came just now; `None` if they are of the past."""
        if not self._is_present and events:
            is_late = events[-1].time < wall_time() - _LATE
            self._is_present = not (is_late and self._monitor.capabilities.backend == "fleet")
        return anyio.current_time() if self._is_present else None


class TableStream(Generic[_Table]):
    """A table that is fed from a monitor, and returned at intervals.

    Iterate it with ``async for``: it returns the same table at each interval, and once
    more when the monitor ends. It has a subscription of its own, so other consumers neither miss
    events nor delay it. Use it as a context manager to end the subscription before the monitor ends.

    Args:
        monitor: Where the events come from.
        table: The table to feed.
        every: Seconds between two returns.
        clock: ``"wall"``: seconds of this machine; setting its date does not change rates. ``"events"``: seconds
            of the events' own clock, for recordings that are replayed faster than they happened. (What is read of the
            past of a fleet, with ``since``, has rates by its own clock in any case.)

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self, monitor: Monitor, table: _Table, *, every: float = 2.0, clock: Literal["wall", "events"] = "wall"
    ) -> None:
        check_number("every", every, most=LONGEST_SECONDS)
        if clock not in {"wall", "events"}:
            raise UsageError(f"clock: {clock!r} is neither 'wall' nor 'events'")
        self.table = table
        self._monitor = monitor
        self._every = every
        self._by_events = clock == "events"
        self._arrivals = Arrivals(monitor)
        self._subscription: Subscription | None = None
        self._waiting: list[AnyEvent] = []  # received and not fed yet, next one last
        self._next: float | None = None
        self._looked = False
        self._fresh = False
        self._ended = False

    def __aiter__(self) -> TableStream[_Table]:
        return self

    async def __anext__(self) -> _Table:
        if self._ended:
            raise StopAsyncIteration
        subscription = await self._subscribed()
        try:
            more = await (self._until_event_time if self._by_events else self._until_wall_time)(subscription)
        except Exception:
            await self.aclose()
            raise
        if not more:
            await self.aclose()
            if not self._fresh:
                raise StopAsyncIteration
        self._fresh = False
        return self.table

    async def _subscribed(self) -> Subscription:
        if self._subscription is None:
            subscription = self._monitor.subscribe()
            await subscription.__aenter__()
            self._subscription = subscription
        return self._subscription

    async def _until_wall_time(self, subscription: Subscription) -> bool:
        """Feed until the next look is due; False when the stream ended."""
        if self._next is None:
            self._next = anyio.current_time() + self._every
        while (left := self._next - anyio.current_time()) > 0:
            with anyio.move_on_after(left):
                events = await subscription.receive_many()
                if not events:
                    return False
                self.table.feed_many(events, now=self._arrivals.of(events))
                self._fresh = True
        self.catch_up()
        # Missed looks are skipped, not made up for.
        self._next = max(self._next + self._every, anyio.current_time())
        return True

    async def _until_event_time(self, subscription: Subscription) -> bool:
        """Feed until the events' clock reaches the next look; False when the stream ended."""
        while True:
            while self._waiting:
                time = self._waiting[-1].time
                if not self._looked:  # one look at most before an event: adding to a very large time may not change it
                    if self._next is None or not time >= self._next - self._every - CLOCK_SLACK:
                        self._next = time + self._every  # the first event, or the clock was set back
                    if time >= self._next:
                        self._next += self._every * (1 + (time - self._next) // self._every)
                        self._looked = True
                        return True
                self._looked = False
                self.table.feed(self._waiting.pop())
                self._fresh = True
            events = await subscription.receive_many()
            if not events:
                return False
            self._waiting = list(reversed(events))

    def catch_up(self) -> None:
        """Feed the events that wait now, e.g. after `Monitor.poll_now`, without waiting for the next interval."""
        self.table.feed_many(reversed(self._waiting))
        self._waiting.clear()
        if self._subscription is not None:
            with contextlib.suppress(StreamEndedError, MonitorClosedError):  # the next wait will see the end
                events = self._subscription.receive_nowait()
                self.table.feed_many(events, now=None if self._by_events else self._arrivals.of(events))

    async def aclose(self) -> None:
        """End the subscription. Idempotent."""
        self._ended = True
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.__aexit__(None, None, None)

    async def __aenter__(self) -> TableStream[_Table]:
        await self._subscribed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def by_process(
    monitor: Monitor, *, every: float = 2.0, clock: Literal["wall", "events"] = "wall", **options: Any
) -> TableStream[ProcessTable]:
    """Totals and rates per process, each `every` seconds.

    ``async for table in by_process(monitor, every=2.0): print(table.top(10, by="rate"))``

    Args:
        monitor: A `Monitor`.
        every: Seconds between two returns.
        clock: See `TableStream`.
        options: Those of `ProcessTable`.
    """
    return TableStream(monitor, ProcessTable(**options), every=every, clock=clock)
