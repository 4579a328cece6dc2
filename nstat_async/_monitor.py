"""`Monitor`: the object between a kernel and ``async for``.

The feed runs in a task of the event loop, from `Monitor.start` to `Monitor.aclose`,
never in a task group of the caller. If it fails, the next read raises the error, in
the reader's task. ``_subscription`` has what is between the feed and the readers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any

import anyio.lowlevel
import attrs

from . import backends
from ._buffer import BufferStatistics, EventBuffer
from ._contract import Backend, Feed, Finishes, KnowsHosts, OpensOutside, Settles
from ._coverage import Coverage
from ._errors import IncompleteSnapshotError, MonitorClosedError, NstatError, UsageError
from ._events import AnyEvent, EventsLost, FlowAdded, FlowEvent, LossCause, PollCompleted, ProviderRefused
from ._io.background import BackgroundTask
from ._model import Capabilities, Counts, Flow, Provider
from ._options import Discovery, Ebpf, MonitorOptions, Overflow
from ._subscription import Distributor, Subscription
from .backends._registry import checked
from .backends._sock_diag import Namespace
from .filters import FilterLike, FlowGate, as_filter
from .recording import Recording, Target

SNAPSHOT_POLLS = 4
"""Most polls of a snapshot that waits for a complete one."""
SNAPSHOT_SECONDS = 5.0
"""Seconds after which a snapshot begins no further poll, and waits no longer for a kernel that is silent."""
NEVER_REPAIRED = frozenset({LossCause.ANNOUNCEMENT, LossCause.PROTOCOL, LossCause.RECORDING})
"""Gaps that a later complete poll does not close, because it asks for known flows only."""


@attrs.frozen(kw_only=True)
class MonitorStatistics:
    """Figures about a monitor."""

    feed: dict[str, int]
    """Counters of the kernel conversation, by name; they depend on the backend."""
    buffers: tuple[BufferStatistics, ...]
    """One for each subscription."""

    @property
    def coverage(self) -> Coverage | None:
        """How much of the interfaces' traffic the flows explain; `None` if that is not known (yet)."""
        return Coverage.of(self.feed)


class Monitor:
    """Watches the network flows of a kernel.

        async with Monitor(providers={"tcp"}) as monitor:
            async for event in monitor:
                print(event)

    It works the same on asyncio and trio. Iterate it, or, for several consumers, call `subscribe` for each.
    ``async with`` opens and closes it; so do `start` and `aclose`, from any task.

    If a `flow_filter` raises, the subscriptions that it applies to raise that error at the next read;
    `poll_now`, `flows` and the kernel's side go on.

    Args:
        backend: Where events come from: a value of `nstat_async.backends`, or a name as the command
            line takes it (``"sock_diag"``, ``"emulated"``, ``"replay:FILE"``); `None`: this machine's kernel.
        netns: Linux: network namespaces to watch, as `SockDiag.netns`, e.g. ``"all"``; with a backend by name only.
        providers: Kinds of flows to watch.
        interval: Seconds between polls; `None`: only what the kernel reports by itself.
        discovery: How a Darwin kernel's new flows are found: ``poll`` or ``announce``.
        ebpf: Linux: whether eBPF programs are used, for UDP bytes and the process of every flow: ``auto`` (where kernel and
            privileges allow it), ``require`` or ``off``. What they can tell is `Capabilities.ebpf`.
        pulse: Linux: seconds (at least 0.001) between two looks at the kernel's counters of opened connections. They lead to
            the processes of short flows where eBPF programs do not; `None`: no such looks.
        every_update: An update for each report, changed or not.
        extras: Also ask for what needs privilege or costs more. Linux: buffers of TCP, command lines, all holders of a socket;
            every poll then dumps all sockets, also idle ones. macOS: domain names, Bluetooth and system information, which
            few processes may read.
        flow_filter: A filter of `nstat_async.filters`, or a predicate on flows.
        max_pending: Events that may wait for the consumer; beyond that, `overflow` decides.
        overflow: ``coalesce`` (the default for a kernel), ``block`` (for a recording) or ``all``.
        receive_buffer: Kernel receive buffer to ask for, bytes.
        record_to: Also write the conversation, with all flows whatever `flow_filter` passes, to this file;
            `nstat_async.recording.Recording` has limits and parts.
        strict: Raise `ProtocolError` for undecodable bytes.

    Raises:
        UsageError: An option has a value that cannot work; the text names it.
    """

    def __init__(
        self,
        *,
        backend: Backend | str | None = None,
        netns: Namespace | Sequence[Namespace] = None,
        providers: Iterable[Provider | str] | Provider | str | None = None,
        interval: float | None = 1.0,
        discovery: Discovery | str = Discovery.POLL,
        ebpf: Ebpf | str = Ebpf.AUTO,
        pulse: float | None = 0.02,
        every_update: bool = False,
        extras: bool = False,
        flow_filter: FilterLike | None = None,
        max_pending: int = 10_000,
        overflow: Overflow | str | None = None,
        receive_buffer: int | None = None,
        record_to: Target | Recording | None = None,
        strict: bool = False,
    ) -> None:
        chosen: dict[str, Any] = {} if providers is None else {"providers": providers}
        self.options = MonitorOptions(
            interval=interval,
            discovery=discovery,
            ebpf=ebpf,
            pulse=pulse,
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
        # `None`: this machine's backend, which is chosen when the monitor starts.
        this = netns is None and (backend is None or backend == "auto")
        self._backend = None if this else checked(backend, netns)
        self._feed: Feed | None = None
        self._task: BackgroundTask | None = None
        self._distributor = Distributor()
        self._own: Subscription | None = None
        self._iterated = False
        self._started = False
        self._closed = False

    # --- life -------------------------------------------------------------------

    async def start(self) -> Monitor:
        """Open the backend and subscribe: every flow that begins after this is seen.

        The feed runs in a task of the event loop, so one task may start a monitor and another close it, and
        several monitors may be closed in any order. ``async with`` calls this and `aclose`.

        Returns:
            The monitor itself.

        Raises:
            BackendUnavailableError: The backend cannot be opened here; the error says why.
            UsageError: The monitor was started before.
            MonitorClosedError: It was closed meanwhile.
        """
        if self._started or self._closed:
            raise UsageError("a Monitor can be started only once; make a new one")
        self._started = True
        feed, distributor = await self._open(), self._distributor
        self._feed = feed
        try:
            self._own = self._subscribe(self.options.flow_filter, None, None)
            # Neither the work nor what ends it refers to this object: see __del__.
            self._task = BackgroundTask(
                lambda: feed.run(distributor), lambda error: _feed_ended(feed, distributor, error), "nstat_async feed"
            )
            # What the caller opens next has to be seen, however short it lives.
            await distributor.unless_over(feed.subscribed)
        except BaseException:
            await self.aclose()
            raise
        if self._closed:
            raise MonitorClosedError("the monitor was closed while it was started")
        return self

    async def _open(self) -> Feed:
        backend = backends.auto() if self._backend is None else self._backend
        if not isinstance(backend, OpensOutside):
            return backend.open(self.options)
        feed = await backend.open_outside(self.options)
        if self._closed:
            feed.close()
            raise MonitorClosedError("the monitor was closed while it was started")
        return feed

    async def aclose(self) -> None:
        """Stop watching; readers that wait see the end. May be called from any task; idempotent.

        The end of an ``async with`` block calls this. A pipe that is recorded to is read to its end first, for at most 10 s;
        after a cancellation for at most 2 s. What its reader did not take by then is reported as an `AuxiliaryFailed`, and
        counted in the statistics (``failed_recorder``).
        """
        if not self._closed:
            self._closed = True
            if self._feed is not None:
                self._feed.close()  # it may deliver its last events
            self._distributor.close()
        if self._task is not None:
            await self._task.stop()
        if self._feed is not None and isinstance(self._feed, Finishes):
            await self._feed.finish()
        await anyio.lowlevel.checkpoint()

    async def __aenter__(self) -> Monitor:
        """`start`."""
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        task, feed = getattr(self, "_task", None), getattr(self, "_feed", None)
        if task is None or feed is None or self._closed or self._distributor.closed:
            return
        task.stop_soon(feed.close)  # first: a warning may be made an error (-W error)
        warnings.warn(
            f"{self!r} was never closed; use it in an async with block, or call aclose",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )

    # --- reading --------------------------------------------------------------------

    def __aiter__(self) -> Monitor:
        return self

    def __anext__(self) -> Awaitable[AnyEvent]:
        # Not a coroutine of its own: one less for each event.
        own = self._own
        if own is None:
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
        """Make a further consumer, with a buffer and a policy of its own.

        It first gets a `FlowAdded` (``preexisting=True``) for every open flow, then everything that happens. In a fleet a
        `HostUpdated` for every machine comes first. A monitor that nobody iterates keeps no events for itself.

        Args:
            flow_filter: Which flows; `None`: all flows of the monitor.
            max_pending: Events that may wait; `None`: as for the monitor.
            overflow: What happens beyond that; `None`: as for the monitor.

        Raises:
            MonitorClosedError: The monitor is closed.
            UsageError: It is not open yet, or an argument cannot work.
        """
        feed = self._opened()
        own = self._own
        subscription = self._subscribe(flow_filter, max_pending, overflow)
        if own is not None and not self._iterated and not own._failure:  # noqa: SLF001
            # Nobody iterates the monitor itself: the first subscription takes over its place, and the events there.
            self._own = None
            subscription._take_over(own)  # noqa: SLF001
        else:
            subscription._take(self._catch_up(feed))  # noqa: SLF001
        return subscription

    def _catch_up(self, feed: Feed) -> list[AnyEvent]:
        # The time of the stream, which in a replay is not the wall clock's.
        now = self._distributor.stream_time
        now = time.time() if now is None else now
        hosts = feed.hosts(now) if isinstance(feed, KnowsHosts) else ()
        return [*hosts, *(FlowAdded(now, flow, counts, preexisting=True) for flow, counts in feed.flows())]

    def _subscribe(
        self, flow_filter: FilterLike | None, max_pending: int | None, overflow: Overflow | str | None
    ) -> Subscription:
        changes: dict[str, Any] = {"max_pending": max_pending, "overflow": overflow}
        options = attrs.evolve(self.options, **{name: value for name, value in changes.items() if value is not None})
        policy = options.overflow
        if policy is None:
            policy = Overflow.BLOCK if self._feed is not None and self._feed.can_wait else Overflow.COALESCE
        buffer = EventBuffer(options.max_pending, policy)
        chosen = self.options.flow_filter
        if flow_filter is not None:
            chosen = as_filter(flow_filter) if chosen is None or flow_filter is chosen else chosen & flow_filter
        return Subscription(self._distributor, buffer, None if chosen is None else FlowGate(chosen))

    def _opened(self) -> Feed:
        if self._closed:
            raise MonitorClosedError("the monitor is closed")
        if self._feed is None:
            raise UsageError("the monitor is not open: use it in an async with block")
        return self._feed

    # --- the rest ----------------------------------------------------------------------

    async def poll_now(self, *, ends: bool = False) -> None:
        """Ask the kernel now, and wait until a poll that began after this call is over. A recording is not asked.

        The `PollCompleted` of that poll says whether it was complete. A poll says what is open, with its counts. What the kernel had
        reported before is read, too, when this returns, unless a consumer with the policy ``block`` has no room.

        Args:
            ends: Also wait until what ended just before the call is an event. On Linux this takes 0.4 s: the kernel may report an end
                late (after 0.3 s it is not waited for), and an end waits for its process, and up to 0.3 s for what the other end of
                the connection tells. Where there are many it may take longer, but not more than 6 s. On macOS no end is late.

        Raises:
            MonitorClosedError: The monitor is closed, or was closed before the kernel answered.
            NstatError: The kernel's side failed, or ended (`StreamEndedError`).
        """
        feed, distributor = self._opened(), self._distributor
        if distributor.failure is not None:
            distributor.failure.throw()
        if not feed.can_wait:
            await distributor.polled(feed.request_poll)
            if isinstance(feed, Settles) and not distributor.held_up:
                await feed.settled(ends=ends)

    @property
    def flows(self) -> tuple[tuple[Flow, Counts | None], ...]:
        """The open flows of this moment that pass the filter, with their last counts (`None` while there is no report).

        Raises:
            MonitorClosedError: The monitor is closed.
            UsageError: It is not open yet.
        """
        feed = self._opened()
        chosen = self.options.flow_filter
        flows = feed.flows()
        return tuple(flows if chosen is None else [found for found in flows if chosen(found[0])])

    @property
    def capabilities(self) -> Capabilities:
        """What the opened backend can tell.

        Raises:
            UsageError: The monitor is not open yet.
        """
        if self._feed is None:
            raise UsageError("the monitor is not open: use it in an async with block")
        return self._feed.capabilities

    def statistics(self) -> MonitorStatistics:
        """Figures about the conversation with the kernel and the buffers."""
        return MonitorStatistics(
            feed={} if self._feed is None else self._feed.statistics(),
            buffers=tuple(subscription.statistics() for subscription in self._distributor.subscriptions),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._feed is not None else "not open"
        return f"<Monitor {'auto' if self._backend is None else self._backend.name} {state}>"


def _feed_ended(feed: Feed, distributor: Distributor, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, Exception):
        # The loop ends, or all its tasks were cancelled: nothing else would close the feed.
        feed.close()
        distributor.closed = True
        error = MonitorClosedError("the event loop cancelled the monitor's task")
    distributor.end(error)


async def snapshot(
    *,
    backend: Backend | str | None = None,
    providers: Iterable[Provider | str] | Provider | str | None = None,
    flow_filter: FilterLike | None = None,
) -> tuple[tuple[Flow, Counts | None], ...]:
    """The flows of this moment with their counts.

    Args:
        backend: As for `Monitor`; for a recording, the moment is its end.
        providers: Kinds of flows.
        flow_filter: Which flows.

    Raises:
        BackendUnavailableError: The backend cannot be opened here.
        IncompleteSnapshotError: Something is known to be missing, even after further polls.
            The error has the flows that were seen.
        NstatError: The kernel refused.
    """
    look = await look_once(backend=backend, providers=providers, flow_filter=flow_filter)
    if look.missing is not None:
        raise IncompleteSnapshotError(look.flows, look.missing)
    return look.flows


@attrs.frozen
class Look:
    """What `snapshot` saw."""

    flows: tuple[tuple[Flow, Counts | None], ...]
    missing: str | None
    """What is known to be missing, although it could be seen; `None` if nothing is."""
    capabilities: Capabilities
    moment: float | None
    """When the last event was observed, seconds since the epoch: of a recording, its end. `None` if there was no event."""


async def look_once(
    *,
    backend: Backend | str | None,
    providers: Iterable[Provider | str] | Provider | str | None,
    flow_filter: FilterLike | None,
    extras: bool = False,
) -> Look:
    """The flows of this moment, and what the backend can tell; see `snapshot`."""
    named = frozenset[Provider]() if providers is None else MonitorOptions(providers=providers).providers
    monitor = Monitor(
        backend=backend,
        providers=providers,
        interval=None,
        ebpf=Ebpf.OFF,
        pulse=None,
        extras=extras,
        flow_filter=flow_filter,
    )  # eBPF programs and pulses see what happens later: they add nothing to one moment
    gate = _NoFlows()
    async with monitor:
        try:
            missing = await _complete_poll(monitor, named, gate)
        except NstatError as error:
            if not error.recorded:  # the flows at the end of a recording are wanted, however its run ended
                raise
            missing = f"the recorded run failed: {error}"
        return Look(monitor.flows, missing, monitor.capabilities, gate.moment)


class _NoFlows(FlowGate):
    """Passes only events that are not about a flow: a snapshot takes its flows from the feed, not from events."""

    def __init__(self) -> None:
        super().__init__(bool)
        self.moment: float | None = None
        """Time of the last event."""

    def sift(self, events: Iterable[AnyEvent], passed: list[AnyEvent]) -> None:
        for event in events:
            self.moment = event.time
            if not isinstance(event, FlowEvent):
                passed.append(event)


async def _complete_poll(monitor: Monitor, named: frozenset[Provider], gate: _NoFlows) -> str | None:
    """Read until a poll is complete, or a recording over; returns what is missing then, or `None`."""
    feed, reader = monitor._opened(), monitor._own  # noqa: SLF001  # of this module
    assert reader is not None
    reader._gate = gate  # noqa: SLF001  # only a snapshot changes what its reader passes
    refused: dict[Provider, str] = {}
    lost: dict[LossCause, str] = {}
    polls, until = 0, time.monotonic() + SNAPSHOT_SECONDS
    with anyio.CancelScope() as patience:
        async for event in monitor:
            if isinstance(event, ProviderRefused) and event.provider in named:
                refused[event.provider] = f"provider {event.provider.value} was refused: {event.detail}"
            elif isinstance(event, EventsLost):
                lost[event.cause] = f"{event.cause.value}: {event.detail}" if event.detail else event.cause.value
                if event.cause is LossCause.SILENCE:
                    patience.deadline = anyio.current_time() + max(0.0, until - time.monotonic())
            elif isinstance(event, PollCompleted) and not feed.can_wait:
                polls, patience.deadline = polls + 1, math.inf
                again = not event.complete or (polls == 1 and feed.statistics().get("undecided_owners"))
                if again and polls < SNAPSHOT_POLLS and time.monotonic() < until and feed.request_poll() is not None:
                    continue
                if not event.complete:
                    return "; ".join([f"no poll was answered in full, of {polls}", *lost.values(), *refused.values()])
                break
        else:
            if not feed.can_wait:
                return "the kernel's side ended before a poll was complete"
    if patience.cancelled_caught:
        return "; ".join([f"no poll was answered within {SNAPSHOT_SECONDS:g} s", *lost.values(), *refused.values()])
    missing = [text for cause, text in lost.items() if cause in NEVER_REPAIRED]
    if sought := feed.statistics().get("sought_owners"):
        missing.append(f"the processes of {sought} sockets were not found in time")
    return "; ".join([*missing, *refused.values()]) or None
