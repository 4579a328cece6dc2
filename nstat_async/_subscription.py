"""Between the feed and the readers: one `Distributor` for each monitor, one `Subscription` for each consumer.

- Delivery is synchronous: every subscription has a buffer with a policy of its own.
  So a slow consumer never delays another one, unless it has the policy ``block``.
- If a consumer's filter raises, only that consumer fails.
- A cancelled read took nothing: events leave a buffer, some at a time, only when
  the first of them is returned, without a wait in between.
- Nothing here refers to the `Monitor`, so a forgotten monitor is collected, and can warn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import NoReturn

import anyio
import anyio.lowlevel
import attrs

from ._buffer import BufferStatistics, EventBuffer
from ._errors import ConcurrentReadError, MonitorClosedError, StreamEndedError
from ._events import AnyEvent, PollCompleted
from ._options import Overflow
from .filters import FlowGate

CHECKPOINT_EVERY = 1_000
"""Events handed out without a wait before other tasks get a turn."""
TAKEN_AT_ONCE = 64
"""Most events that leave the buffer together; they are not coalesced any more."""


class Failure:
    """An error that each read raises, as if for the first time."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._traceback = error.__traceback__

    def throw(self) -> NoReturn:
        """Raise the error, without the frames of earlier reads, which would pile up."""
        raise self.error.with_traceback(self._traceback)


@attrs.define(eq=False)
class _PollWaiter:
    """A task that waits for a poll."""

    serial: float = math.inf
    done: anyio.Event = attrs.field(factory=lambda: anyio.Event())  # noqa: PLW0108  # not looked up before: it takes 3 ms


class Distributor:
    """Gives the events of a feed to every subscription: the feed's `Sink`."""

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self.over = False
        """True when no further event will come."""
        self.failure: Failure | None = None
        """The feed's error, if it failed."""
        self.stream_time: float | None = None
        """Time of the last event, which in a replay is not the wall clock's."""
        self.closed = False
        """True once the monitor is closed."""
        self._room: anyio.Event | None = None
        self._at_end: Callable[[], object] | None = None
        self._newest_poll = -1
        self._poll_waiters: list[_PollWaiter] = []

    # --- Sink: what the feed calls ------------------------------------------------

    def deliver(self, events: Sequence[AnyEvent]) -> None:
        """Give events to every subscription."""
        if not events:
            return
        self.stream_time = events[-1].time
        for subscription in self.subscriptions:
            subscription._take(events)  # noqa: SLF001  # of this module
        if self._poll_waiters:
            serials = [e.serial for e in events if isinstance(e, PollCompleted) and e.serial is not None]
            if serials:
                self._newest_poll = max(serials)
                for waiter in self._poll_waiters:
                    if waiter.serial <= self._newest_poll:
                        waiter.done.set()

    @property
    def held_up(self) -> bool:
        """True while a subscription that blocks has no room."""
        return any(each._holds_up for each in self.subscriptions)  # noqa: SLF001

    async def room(self) -> None:
        """Wait until every subscription that blocks has room. Several tasks may wait."""
        while not self.over and self.held_up:
            if self._room is None or self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()

    # --- the monitor's side -------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """Add a consumer."""
        self.subscriptions = (*self.subscriptions, subscription)

    def remove(self, subscription: Subscription) -> None:
        """Remove a consumer, if it is there."""
        self.subscriptions = tuple(each for each in self.subscriptions if each is not subscription)
        self.made_room()

    def made_room(self) -> None:
        """A buffer has room again."""
        if self._room is not None:
            self._room.set()

    def close(self) -> None:
        """End; a subscription can still be read, also for events that come after this."""
        self.closed = True
        self.end(None)

    def end(self, failure: BaseException | None) -> None:
        """No further event will come: readers see the end, or this failure, after the events that wait."""
        if not self.over:
            self.over = True
            self.failure = None if failure is None else Failure(failure)
        if self._at_end is not None:
            self._at_end()
        for subscription in self.subscriptions:
            subscription._wake()  # noqa: SLF001
        for waiter in self._poll_waiters:
            waiter.done.set()
        self.made_room()

    async def unless_over(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait for something of the feed, which never comes if the feed ends before."""
        with anyio.CancelScope() as scope:
            self._at_end = scope.cancel
            try:
                await wait()
            finally:
                self._at_end = None

    async def polled(self, ask: Callable[[], int | None]) -> None:
        """Ask for a poll and wait until it, or a later one, is complete; call `raise_end` if none will be.

        Args:
            ask: Returns the serial of the poll, which may already be complete; `None`: there are no polls.
        """
        waiter = _PollWaiter()
        self._poll_waiters.append(waiter)
        try:
            serial = ask()
            if serial is not None and self._newest_poll < serial and not self.over:
                waiter.serial = serial
                await waiter.done.wait()
        finally:
            self._poll_waiters.remove(waiter)
        if serial is not None and self._newest_poll < serial:
            self.raise_end()

    def raise_end(self) -> NoReturn:
        """Raise why no event comes any more: the feed failed, the monitor is closed, or the kernel's side ended."""
        if self.failure is not None:
            self.failure.throw()
        if self.closed:
            raise MonitorClosedError("the monitor is closed")
        raise StreamEndedError("the stream is over")


class Subscription:
    """One consumer's view of a monitor: an async iterator of events.

    `Monitor.subscribe` makes it. The end of its ``async with`` block, or `close`, ends it
    and leaves the monitor alone.

    If its filter raises, reads return the events before that, and then raise the filter's
    error; the monitor and its other consumers go on.
    """

    def __init__(self, distributor: Distributor, buffer: EventBuffer, gate: FlowGate | None) -> None:
        self._distributor = distributor
        self._buffer = buffer
        self._gate = gate
        self._news: anyio.Event | None = None
        self._failure: Failure | None = None
        self._reading = False
        self._closed = False
        # Events taken from the buffer: taking some together costs less than one by one.
        self._batch: deque[AnyEvent] = deque()
        # Events that may be returned without a wait; 0: closed, being read, or other tasks get a turn first.
        self._credit = CHECKPOINT_EVERY
        distributor.add(self)

    # --- the side of the distributor and the monitor ------------------------------

    def _take(self, events: Sequence[AnyEvent]) -> None:
        if self._gate is not None:
            events = self._sift(self._gate, events)
        self._buffer.extend(events)
        if self._news is not None and len(self._buffer):
            self._news.set()

    def _take_over(self, other: Subscription) -> None:
        """Take the place of a subscription that nobody reads, with the events that wait there; its filter is a part of this one's."""
        self._take(other._buffer.pop_all())
        if self._gate is not None and other._gate is not None:
            self._gate._continue_from(other._gate)  # noqa: SLF001  # for subscriptions alone
        other.close()

    def _sift(self, gate: FlowGate, events: Sequence[AnyEvent]) -> Sequence[AnyEvent]:
        passed: list[AnyEvent] = []
        try:
            gate.sift(events, passed)
        except Exception as error:  # noqa: BLE001  # a consumer's own code; raised at its next read
            self._failure = Failure(error)
            self._distributor.remove(self)
            self._wake()
        return passed

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    @property
    def _holds_up(self) -> bool:
        return self._buffer.overflow is Overflow.BLOCK and self._buffer.is_full

    # --- the consumer's side ----------------------------------------------------

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> AnyEvent:
        if self._batch:
            return self._batch.popleft()
        if (not self._credit or not len(self._buffer)) and not await self._wait(turn=bool(len(self._buffer))):
            raise StopAsyncIteration
        self._batch.extend(self._buffer.pop_some(min(TAKEN_AT_ONCE, self._credit)))
        self._credit -= len(self._batch)
        self._distributor.made_room()
        return self._batch.popleft()

    def _take_all(self) -> list[AnyEvent]:
        """The events that wait, oldest first."""
        events = [*self._batch, *self._buffer.pop_all()]
        self._batch.clear()
        return events

    def receive_nowait(self) -> list[AnyEvent]:
        """All events that wait, oldest first; an empty list if there are none now.

        Raises:
            StreamEndedError: Nothing waits, and nothing will come: a recording is over.
            MonitorClosedError: The subscription is closed; or nothing waits, and the monitor is closed.
            NstatError: Nothing waits, and the kernel's side failed.
            ConcurrentReadError: Another task is reading this subscription.
        """
        self._check_reader()
        if self._closed:
            raise MonitorClosedError("the subscription is closed")
        events = self._take_all()
        if events:
            self._distributor.made_room()
        elif self._ended:
            self._raise_failure()
            self._distributor.raise_end()
        return events

    async def receive_many(self) -> list[AnyEvent]:
        """All events that wait, at least one; an empty list means that the stream is over.

        Raises:
            NstatError: The kernel's side failed.
            ConcurrentReadError: Another task is reading this subscription.
        """
        if not await self._wait(turn=True):
            return []
        events = self._take_all()
        self._distributor.made_room()
        return events

    def statistics(self) -> BufferStatistics:
        """Figures about the buffer."""
        figures, waiting = self._buffer.statistics(), len(self._batch)
        return attrs.evolve(figures, pending=figures.pending + waiting, delivered=figures.delivered - waiting)

    def close(self) -> None:
        """End the subscription; a reader that waits sees the end. Idempotent."""
        if not self._closed:
            self._closed = True
            self._batch.clear()
            self._credit = 0
            self._distributor.remove(self)
            self._wake()

    async def aclose(self) -> None:
        """`close`, for ``contextlib.aclosing`` and code that closes monitors and subscriptions alike."""
        self.close()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _ended(self) -> bool:
        return self._closed or self._failure is not None or self._distributor.over

    def _check_reader(self) -> None:
        if self._reading:
            raise ConcurrentReadError("another task is reading this subscription; give each task one of its own")

    def _raise_failure(self) -> None:
        failure = self._failure or self._distributor.failure
        if failure is not None and not self._closed:
            failure.throw()

    async def _wait(self, *, turn: bool) -> bool:
        """Wait until an event is there; False when none will ever come.

        Args:
            turn: Give other tasks a turn in any case. Nothing is taken before it, so a cancellation loses nothing.
        """
        self._check_reader()
        self._reading, self._credit = True, 0
        batch, self._batch = self._batch, deque()
        try:
            while not batch and not len(self._buffer):
                if self._ended:
                    self._raise_failure()
                    return False
                self._news = anyio.Event()
                await self._news.wait()
            if turn:
                await anyio.lowlevel.checkpoint()
            return not self._closed
        finally:
            self._news = None
            self._reading = False
            if not self._closed:
                self._batch, self._credit = batch, CHECKPOINT_EVERY
