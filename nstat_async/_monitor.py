"""`Monitor`: the object between a kernel and ``async for``.

Rules for this file:

- The feed runs in one task of the monitor's own task group, from ``__aenter__`` to
  ``__aexit__``. Its failure is kept and raised at the next read, in the reader's
  task, never as an exception group out of the user's block.
- Delivery is synchronous: every subscription has a buffer that takes what comes and
  bounds it by its own policy, so a slow consumer never holds up a quick one (unless
  it chose the policy that does).
- A read that is cancelled took nothing: events leave a buffer only when they are
  returned.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import attrs

from ._buffer import BufferStatistics, EventBuffer
from ._contract import Backend, Feed
from ._errors import ConcurrentReadError, MonitorClosedError, UsageError
from ._events import AnyEvent, FlowAdded, PollCompleted
from ._model import Capabilities, Counts, Flow, Provider
from ._options import Discovery, MonitorOptions, Overflow
from .filters import FilterLike, FlowGate, as_filter

__all__ = ["Monitor", "MonitorStatistics", "Subscription", "snapshot"]

CHECKPOINT_EVERY = 1_000
"""Events handed out without waiting, after which other tasks get a turn."""


@attrs.frozen(kw_only=True)
class MonitorStatistics:
    """Figures about a monitor."""

    feed: dict[str, int]
    """Counters of the kernel conversation, by name; they depend on the backend."""
    buffers: tuple[BufferStatistics, ...]
    """One for each subscription."""


class Subscription:
    """One consumer's view of a monitor: an async iterator of events.

    Made by `Monitor.subscribe`. Leaving its ``async with`` block (or `close`) ends it
    without touching the monitor.
    """

    def __init__(self, monitor: Monitor, buffer: EventBuffer, gate: FlowGate | None) -> None:
        self._monitor = monitor
        self._buffer = buffer
        self._gate = gate
        self._news: anyio.Event | None = None
        self._reading = False
        self._closed = False
        self._since_checkpoint = 0

    # --- the monitor's side ---------------------------------------------------

    def _deliver(self, events: Sequence[AnyEvent]) -> None:
        self._buffer.extend(events if self._gate is None else self._gate(events))
        if self._news is not None and len(self._buffer):
            self._news.set()

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
        # What `_take` does, without its call.
        event = None if self._reading or self._closed else self._buffer.pop()
        if event is not None:
            if self._monitor._waiting_for_room:  # noqa: SLF001
                self._monitor._made_room()  # noqa: SLF001
            self._since_checkpoint += 1
            if self._since_checkpoint >= CHECKPOINT_EVERY:
                self._since_checkpoint = 0
                # The event is already ours: a cancellation here must not lose it.
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
            return event
        self._check_reader()
        self._since_checkpoint = 0
        while True:
            if not await self._wait():
                raise StopAsyncIteration
            event = self._take()
            if event is not None:
                return event

    def receive_nowait(self) -> list[AnyEvent]:
        """All events that wait, oldest first; an empty list when there are none.

        Raises:
            NstatError: Nothing waits and the kernel's side failed.
        """
        self._check_reader()
        events = self._buffer.pop_all()
        if events:
            self._monitor._made_room()  # noqa: SLF001
        else:
            self._monitor._raise_failure()  # noqa: SLF001
        return events

    async def receive_many(self) -> list[AnyEvent]:
        """All events that wait, at least one; an empty list means that the stream is over.

        Raises:
            NstatError: The kernel's side failed.
            ConcurrentReadError: Another task is reading this subscription.
        """
        if not len(self._buffer) and not await self._wait():
            return []
        await anyio.lowlevel.checkpoint()
        return self.receive_nowait()

    def statistics(self) -> BufferStatistics:
        """Figures about the buffer."""
        return self._buffer.statistics()

    def close(self) -> None:
        """End the subscription; a reader that waits sees the end. Idempotent."""
        if not self._closed:
            self._closed = True
            self._monitor._forget(self)  # noqa: SLF001
            self._wake()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_reader(self) -> None:
        if self._reading:
            raise ConcurrentReadError("another task is reading this subscription; give each task one of its own")

    def _take(self) -> AnyEvent | None:
        if self._reading:
            self._check_reader()
        if self._closed:
            return None
        event = self._buffer.pop()
        if event is not None and self._monitor._waiting_for_room:  # noqa: SLF001
            self._monitor._made_room()  # noqa: SLF001
        return event

    async def _wait(self) -> bool:
        """Wait for events; False when none will ever come."""
        self._check_reader()
        self._reading = True
        try:
            while not len(self._buffer):
                if self._closed or self._monitor._over:  # noqa: SLF001
                    self._monitor._raise_failure()  # noqa: SLF001
                    return False
                self._news = anyio.Event()
                await self._news.wait()
            return not self._closed
        finally:
            self._news = None
            self._reading = False


class Monitor:
    """Watches the network flows of a kernel.

        async with Monitor(providers={"tcp"}) as monitor:
            async for event in monitor:
                print(event)

    Works the same on asyncio and trio. Iterate it directly, or give each of several
    consumers a `subscribe`. Opening happens in ``__aenter__``.

    Args:
        backend: Where events come from (`nstat_async.backends`); `None`: this machine's kernel.
        providers: Kinds of flows to watch.
        interval: Seconds between polls; `None`: only what the kernel volunteers.
        discovery: How a Darwin kernel's new flows are found: ``poll`` or ``announce``.
        every_update: An update for each report, changed or not.
        extras: Also ask for what needs privilege or costs more.
        flow_filter: A filter of `nstat_async.filters`, or a predicate on flows.
        max_pending: Events that may wait for the consumer.
        overflow: What happens then: ``coalesce``, ``block`` or ``all``.
        receive_buffer: Kernel receive buffer to ask for, bytes.
        record_to: Also write the conversation to this file.
        strict: Raise `ProtocolError` for undecodable bytes.

    Raises:
        UsageError: An option has a value that cannot work; the text names it.
    """

    def __init__(
        self,
        *,
        backend: Backend | None = None,
        providers: Iterable[Provider | str] | Provider | str | None = None,
        interval: float | None = 1.0,
        discovery: Discovery | str = Discovery.POLL,
        every_update: bool = False,
        extras: bool = False,
        flow_filter: FilterLike | None = None,
        max_pending: int = 10_000,
        overflow: Overflow | str | None = None,
        receive_buffer: int | None = None,
        record_to: str | os.PathLike[str] | None = None,
        strict: bool = False,
    ) -> None:
        chosen: dict[str, Any] = {} if providers is None else {"providers": providers}
        self.options = MonitorOptions(
            interval=interval,
            discovery=discovery,
            every_update=every_update,
            extras=extras,
            flow_filter=None if flow_filter is None else as_filter(flow_filter),
            max_pending=max_pending,
            overflow=overflow,
            receive_buffer=receive_buffer,
            record_to=record_to,
            strict=strict,
            **chosen,
        )
        self._backend = backend
        self._feed: Feed | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._subscriptions: list[Subscription] = []
        self._own: Subscription | None = None
        self._iterated = False
        self._failure: BaseException | None = None
        self._over = False
        self._closed = False
        self._room: anyio.Event | None = None
        self._stream_time: float | None = None
        self._waiting_for_room = False
        self._poll_waiters: list[tuple[anyio.Event, int]] = []

    # --- life -------------------------------------------------------------------

    async def __aenter__(self) -> Monitor:
        """Open the backend and subscribe: every flow that begins after this is seen.

        Raises:
            BackendUnavailableError: It cannot be had here; the error says why.
            UsageError: The monitor was opened before.
        """
        if self._tasks is not None or self._closed:
            raise UsageError("a Monitor can be entered once; make another one")
        backend = self._backend
        if backend is None:
            from .backends import auto  # noqa: PLC0415  # which imports this floor's siblings

            backend = auto()
        self._feed = backend.open(self.options)
        self._own = self._subscribe(self.options.flow_filter, None, None)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        try:
            # What the caller opens and closes next is to be seen, however short it lives.
            await self._feed.subscribed()
        except BaseException as error:
            # The block is not entered, so nobody else leaves it.
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        try:
            await self.aclose()
        finally:
            # Also when a cancellation ends the block: a task group must be left in the order it was entered.
            if tasks is not None:
                tasks.cancel_scope.cancel()
                await tasks.__aexit__(None, None, None)

    async def aclose(self) -> None:
        """Stop watching; readers that wait see the end. Idempotent.

        The ``async with`` block does this by itself.
        """
        if not self._closed:
            self._closed = True
            if self._feed is not None:
                self._feed.close()
            self._end()
        await anyio.lowlevel.checkpoint()

    def __del__(self) -> None:
        if getattr(self, "_tasks", None) is not None and not self._closed:
            warnings.warn(
                f"{self!r} was never closed; use it in an async with block", ResourceWarning, source=self, stacklevel=1
            )
            if self._feed is not None:
                self._feed.close()

    async def _run(self) -> None:
        assert self._feed is not None
        try:
            await self._feed.run(self)
        except Exception as error:  # noqa: BLE001  # raised at the next read
            self._failure = error
        self._end()

    def _end(self) -> None:
        self._over = True
        for subscription in self._subscriptions:
            subscription._wake()  # noqa: SLF001
        for waiter, _ in self._poll_waiters:
            waiter.set()
        self._poll_waiters.clear()
        self._made_room()

    # --- Sink: what the feed calls ------------------------------------------------

    def deliver(self, events: Sequence[AnyEvent]) -> None:
        """Give events to every subscription (called by the feed)."""
        if not events or self._closed:
            return
        self._stream_time = events[-1].time
        for subscription in self._subscriptions:
            subscription._deliver(events)  # noqa: SLF001
        if self._poll_waiters:
            serials = [e.serial for e in events if isinstance(e, PollCompleted) and e.serial is not None]
            if serials:
                self._polls_completed(max(serials))

    def _polls_completed(self, serial: int) -> None:
        for waiter, wanted in self._poll_waiters:
            if wanted <= serial:
                waiter.set()
        self._poll_waiters = [(waiter, wanted) for waiter, wanted in self._poll_waiters if wanted > serial]

    async def room(self) -> None:
        """Wait until every subscription that blocks has room (called by the feed)."""
        while not self._closed and any(s._holds_up for s in self._subscriptions):  # noqa: SLF001
            self._room = anyio.Event()
            self._waiting_for_room = True
            await self._room.wait()

    def _made_room(self) -> None:
        if self._room is not None:
            self._waiting_for_room = False
            self._room.set()

    # --- reading --------------------------------------------------------------------

    def __aiter__(self) -> Monitor:
        return self

    def __anext__(self) -> Awaitable[AnyEvent]:
        # Not a coroutine of its own: one less for each event.
        own = self._own
        if own is None:
            self._opened()
            own = self._own = self.subscribe(self.options.flow_filter)
        self._iterated = True
        return own.__anext__()

    def subscribe(
        self,
        flow_filter: FilterLike | None = None,
        *,
        max_pending: int | None = None,
        overflow: Overflow | str | None = None,
    ) -> Subscription:
        """A further consumer, with a buffer and a policy of its own.

        It first gets a `FlowAdded` (``preexisting=True``) for every open flow, then
        what happens. A monitor that is only subscribed to keeps no events for itself.

        Args:
            flow_filter: Which flows; `None`: all of the monitor's.
            max_pending: Events that may wait; `None`: the monitor's own number.
            overflow: What happens then; `None`: the monitor's own policy.

        Raises:
            MonitorClosedError: The monitor is closed.
            UsageError: It is not open yet, or an argument cannot work.
        """
        feed = self._opened()
        own = self._own
        subscription = self._subscribe(flow_filter, max_pending, overflow)
        if own is not None and not self._iterated:
            # Nobody iterates the monitor itself: its place, with all that waits there, goes over.
            self._own = None
            waiting = own._buffer.pop_all()  # noqa: SLF001
            own.close()
            subscription._deliver(waiting)  # noqa: SLF001
        else:
            subscription._deliver(self._catch_up(feed))  # noqa: SLF001
        return subscription

    def _catch_up(self, feed: Feed) -> list[AnyEvent]:
        # The time of the stream, which in a replay is not that of the wall.
        now = time.time() if self._stream_time is None else self._stream_time
        return [FlowAdded(now, flow, counts, preexisting=True) for flow, counts in feed.flows()]

    def _subscribe(
        self, flow_filter: FilterLike | None, max_pending: int | None, overflow: Overflow | str | None
    ) -> Subscription:
        changes: dict[str, Any] = {}
        if max_pending is not None:
            changes["max_pending"] = max_pending
        if overflow is not None:
            changes["overflow"] = overflow
        options = attrs.evolve(self.options, **changes)
        policy = options.overflow
        if policy is None:
            policy = Overflow.BLOCK if self._feed is not None and self._feed.can_wait else Overflow.COALESCE
        buffer = EventBuffer(options.max_pending, policy)
        chosen = self.options.flow_filter
        if flow_filter is not None:
            chosen = as_filter(flow_filter) if chosen is None or flow_filter is chosen else chosen & flow_filter
        subscription = Subscription(self, buffer, None if chosen is None else FlowGate(chosen))
        self._subscriptions.append(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        self._made_room()

    def _opened(self) -> Feed:
        if self._closed:
            raise MonitorClosedError("the monitor is closed")
        if self._feed is None:
            raise UsageError("the monitor is not open: use it in an async with block")
        return self._feed

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- the rest ----------------------------------------------------------------------

    async def poll_now(self) -> None:
        """Ask the kernel now and wait until it has answered; a recording is not asked.

        Raises:
            MonitorClosedError: The monitor is closed.
            NstatError: The kernel's side failed.
        """
        feed = self._opened()
        if self._over or feed.can_wait:
            self._raise_failure()
            return
        serial = feed.request_poll()
        if serial is not None:
            done = anyio.Event()
            self._poll_waiters.append((done, serial))
            await done.wait()
        self._raise_failure()

    @property
    def flows(self) -> tuple[tuple[Flow, Counts | None], ...]:
        """The open flows of this moment that pass the filter, with their last counts."""
        feed = self._opened()
        chosen = self.options.flow_filter
        return tuple((flow, counts) for flow, counts in feed.flows() if chosen is None or chosen(flow))

    @property
    def capabilities(self) -> Capabilities:
        """What the opened backend can tell."""
        if self._feed is None:
            raise UsageError("the monitor is not open: use it in an async with block")
        return self._feed.capabilities

    def statistics(self) -> MonitorStatistics:
        """Figures about the conversation with the kernel and the buffers."""
        return MonitorStatistics(
            feed={} if self._feed is None else self._feed.statistics(),
            buffers=tuple(subscription.statistics() for subscription in self._subscriptions),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._feed is not None else "not open"
        name = "auto" if self._backend is None else getattr(self._backend, "name", "?")
        return f"<Monitor {name} {state}>"


async def snapshot(
    *,
    backend: Backend | None = None,
    providers: Iterable[Provider | str] | Provider | str | None = None,
    flow_filter: FilterLike | None = None,
) -> tuple[tuple[Flow, Counts | None], ...]:
    """The flows of this moment, once, with their counts.

    Args:
        backend: As for `Monitor`; of a recording, its end is the moment.
        providers: Kinds of flows.
        flow_filter: Which flows.

    Raises:
        BackendUnavailableError: The backend cannot be had here.
        NstatError: The kernel refused.
    """
    monitor = Monitor(backend=backend, providers=providers, interval=None, flow_filter=flow_filter)
    async with monitor:
        waits = monitor._opened().can_wait  # noqa: SLF001
        async for event in monitor:
            if isinstance(event, PollCompleted) and not waits:
                break
        return monitor.flows
