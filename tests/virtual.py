"""A session and an emulated kernel in one thread, and a reader that believes nothing.

`VirtualMonitor` carries out a session's commands as the pump does, on control sockets of
an emulated kernel whose time stands still unless `VirtualMonitor.run` lets it pass: an
hour takes as long as its work. `Picture` folds the events that a user would get and
checks every promise about their order on the way; `Truth` says what the kernel holds.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from nstat_async import (
    Counts,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
)
from nstat_async._contract import CloseChannel, Lookup, OpenChannel, Send
from nstat_async._options import MonitorOptions
from nstat_async.ntstat import Session

READ_AT_ONCE = 64
"""Datagrams that the session gets together, as the pump does it."""
EPOCH = 1_700_000_000.0
TRAFFIC = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")


def traffic(counts: Counts | None) -> tuple[int, ...] | None:
    """The four totals of a flow, as a tuple; `None` when they are not known."""
    return None if counts is None or counts.rx_bytes is None else tuple(getattr(counts, name) for name in TRAFFIC)


class Picture:
    """What a user knows who reads every event.

    Args:
        strict_previous: ``previous`` of each update is what the last event of the flow said
            (holds for a stream that nothing was left out of).
        remember: Keep what was removed, and every id (a soak must not).
    """

    def __init__(self, *, strict_previous: bool = True, remember: bool = True) -> None:
        self.flows: dict[str, tuple[Flow, Counts | None]] = {}
        self.removed: list[FlowRemoved] = []
        self.losses: list[EventsLost] = []
        self.refused: list[ProviderRefused] = []
        self.polls = 0
        self.complete_polls = 0
        self.last_poll: PollCompleted | None = None
        self.events: Counter[str] = Counter()
        self.ids: set[str] = set()
        self.moved = [0, 0, 0, 0]
        """Totals since the beginning, folded from first sights, deltas and removals."""
        self._baseline: dict[str, tuple[int, ...]] = {}
        self._strict_previous = strict_previous
        self._remember = remember

    def feed(self, events: Iterable[Any]) -> None:
        for event in events:
            self.events[type(event).__name__] += 1
            if isinstance(event, FlowUpdated):
                self._updated(event)
            elif isinstance(event, FlowAdded):
                self._added(event)
            elif isinstance(event, FlowRemoved):
                self._removed(event)
            elif isinstance(event, EventsLost):
                self.losses.append(event)
                if event.counts is not None:
                    self._move((0, 0, 0, 0), traffic(event.counts))
            elif isinstance(event, PollCompleted):
                self.polls += 1
                self.complete_polls += event.complete
                self.last_poll = event
            elif isinstance(event, ProviderRefused):
                self.refused.append(event)

    def _added(self, event: FlowAdded) -> None:
        name = event.flow.id
        assert name not in self.flows, f"added twice: {event}"
        if self._remember:
            assert name not in self.ids, f"an id was used again: {event}"
            self.ids.add(name)
        self.flows[name] = (event.flow, event.counts)
        now = traffic(event.counts)
        if event.preexisting:
            self._baseline[name] = now or (0, 0, 0, 0)
        else:
            self._move((0, 0, 0, 0), now)

    def _updated(self, event: FlowUpdated) -> None:
        assert event.flow.id in self.flows, f"updated while unknown: {event}"
        _, before = self.flows[event.flow.id]
        if self._strict_previous:
            assert traffic(event.previous) == traffic(before), f"previous is not the last: {event} after {before}"
        self._grown(event, before)
        delta = event.delta
        assert all((getattr(delta, name) or 0) >= 0 for name in TRAFFIC), f"a negative delta: {event}"
        self.flows[event.flow.id] = (event.flow, event.counts)

    def _removed(self, event: FlowRemoved) -> None:
        assert event.flow.id in self.flows, f"removed while unknown: {event}"
        _, before = self.flows.pop(event.flow.id)
        if event.counts is not None:
            self._grown(event, before)
        else:
            assert traffic(before) is None, f"its counters were forgotten: {event}"
            assert not event.final
        self._baseline.pop(event.flow.id, None)
        if self._remember:
            self.removed.append(event)

    def _grown(self, event: Any, before: Counts | None) -> None:
        old, new = traffic(before) or (0, 0, 0, 0), traffic(event.counts)
        if new is None:
            assert traffic(before) is None, f"its counters were forgotten: {event}"
            return
        assert all(b >= a for a, b in zip(old, new, strict=True)), f"counters fell: {event} after {before}"
        self._move(old, new)

    def _move(self, old: tuple[int, ...], new: tuple[int, ...] | None) -> None:
        for position, value in enumerate(new or ()):
            self.moved[position] += value - old[position]

    def lost(self, *causes: LossCause) -> float:
        """How many are said to be lost for these causes; infinite when one number is unknown."""
        chosen = [loss for loss in self.losses if loss.cause in causes]
        return float("inf") if any(loss.count is None for loss in chosen) else sum(loss.count or 0 for loss in chosen)


class VirtualMonitor:
    """One session on an emulated kernel, with the pump's rules and without its clock.

    Args:
        kernel: The kernel; its time must stand still by itself.
        verify: As for `nstat_async.backends.Kctl`.
        receive_buffer: Of each control socket, bytes; `None`: what the kernel gives.
        picture: Counts the polls, and takes the events in unless there is a `sink`.
        lookup: Answers the session's look-ups; default: the emulated machine.
        ledger: The session may read what the kernel counts as lost.
        coverage: The session may read what interfaces carried.
        believed: The release that the session takes the kernel for; default: what it is.
        sink: Where events go instead.
        wrap: Puts something between the pump's part and the session, such as a recorder.
        options: Of the monitor.
    """

    def __init__(
        self,
        kernel: Any,
        *,
        verify: bool | None = False,
        receive_buffer: int | None = 1 << 20,
        picture: Picture | None = None,
        lookup: Callable[[Any], Any] | None = None,
        believed: Any = None,
        ledger: bool = False,
        coverage: bool = False,
        sink: Callable[[list[Any]], None] | None = None,
        wrap: Callable[[Session, MonitorOptions], Any] | None = None,
        **options: Any,
    ) -> None:
        self.kernel = kernel
        self.picture = Picture() if picture is None else picture
        self.receive_buffer = receive_buffer
        self.control_present = True
        """False: opening a control socket fails with ENOENT."""
        self.offset = EPOCH
        """Wall clock minus the monotonic clock."""
        self._sinks = [self.picture.feed] if sink is None else [sink]
        self._transport = kernel.transport()
        self._lookup = self._transport.lookup if lookup is None else lookup
        self.channels: dict[int, Any] = {}
        """The open control sockets, by the session's number."""
        self._readable: set[int] = set()
        self.session = Session(
            kernel.release if believed is None else believed,
            timebase=kernel.timebase,
            interfaces=kernel.interface_list(),
            options=MonitorOptions(**options),
            backend="emulated",
            verify=verify,
            ledger=ledger,
            coverage=coverage,
        )
        self.core = self.session if wrap is None else wrap(self.session, self.session.options)
        self.core.start(self._now())
        self.turn()

    def add_sink(self, sink: Callable[[list[Any]], None]) -> None:
        """Let a further reader have what comes from now on."""
        self._sinks.append(sink)

    # --- time ---------------------------------------------------------------

    def _now(self) -> float:
        self.core.epoch_offset = self.offset
        return float(self.kernel.now)

    def run(self, seconds: float) -> None:
        """Let time pass; whatever falls due happens at its moment."""
        end = self.kernel.now_ns + round(seconds * 1e9)
        self.turn()
        for _ in range(1_000_000):
            deadline, timer = self.core.next_deadline(), self.kernel.next_timer()
            due = end if timer is None else min(end, self.kernel.now_ns + round(timer * 1e9))
            if deadline is not None:
                due = min(due, max(self.kernel.now_ns, -round(-deadline * 1e9) + 1))
            self.kernel.advance_to(due)
            now = self._now()
            if deadline is not None and deadline <= now:
                self.core.handle_deadline(now)
            self.turn()
            if due >= end:
                return
        raise AssertionError("a million turns without an end")

    def poll(self) -> None:
        """Ask now, and turn until the kernel has answered (as ``Monitor.poll_now``)."""
        wanted = self.picture.polls + (2 if self.session.polling else 1)
        self.core.request_poll(self._now())
        self.turn()
        for _ in range(200):
            if self.picture.polls >= wanted or self.core.failure is not None:
                return
            self.run(0.05)
        raise AssertionError("a poll does not end")

    # --- the pump's part ----------------------------------------------------

    def turn(self) -> None:
        """Carry out commands and read until there is nothing to do."""
        core = self.core
        for _ in range(100_000):
            commands = core.commands() if core.failure is None else []
            for command in commands:
                self._carry_out(command)
            read = self._read()
            events = core.take_events()
            if events:
                for sink in self._sinks:
                    sink(events)
            if not commands and not read:
                return
        raise AssertionError("the session and the kernel never come to rest")

    def _carry_out(self, command: Any) -> None:
        core = self.core
        if isinstance(command, Send):
            client = self.channels.get(command.channel)
            if client is None:
                return
            try:
                client.send(command.data)
            except OSError as error:
                core.channel_failed(command.channel, error.errno, self._now())
            self._readable.add(command.channel)
        elif isinstance(command, OpenChannel):
            self._open(command.channel)
        elif isinstance(command, CloseChannel):
            self._close(command.channel)
        elif isinstance(command, Lookup):
            core.lookup_done(command.token, self._lookup(command.request), self._now())

    def _open(self, channel: int) -> None:
        if not self.control_present:
            self.core.channel_failed(channel, errno.ENOENT, self._now())
            return
        client = self._transport.connect()
        if self.receive_buffer is not None:
            client.set_receive_buffer(self.receive_buffer)
        client.on_readable = lambda: self._readable.add(channel)
        self.channels[channel] = client
        self._readable.add(channel)
        immediate = not self.kernel.faults.reply_delay
        self.core.channel_opened(channel, self._now(), immediate=immediate, receive_buffer=client.receive_buffer)

    def _close(self, channel: int) -> None:
        client = self.channels.pop(channel, None)
        self._readable.discard(channel)
        if client is not None:
            client.close()

    def _read(self) -> bool:
        count = 0
        for channel in sorted(self._readable):
            client = self.channels.get(channel)
            self._readable.discard(channel)
            if client is None:
                continue
            while len(batch := self._read_batch(client)) == READ_AT_ONCE:
                self.core.receive_datagrams(batch, self._now(), channel)
                count += READ_AT_ONCE
            if batch:
                self.core.receive_datagrams(batch, self._now(), channel)
                count += len(batch)
            if client.ended and not client.readable:
                self._close(channel)
                self.core.channel_closed(channel, self._now())
            else:
                self.core.channel_drained(channel, self._now())
        return count > 0

    @staticmethod
    def _read_batch(client: Any) -> list[bytes]:
        batch: list[bytes] = []
        with suppress(BlockingIOError, EOFError):
            while len(batch) < READ_AT_ONCE:
                batch.append(client.receive())
        return batch


# --- the truth -----------------------------------------------------------------


def slot(raw: bytes) -> tuple[bytes, int] | None:
    """Address and port of a BSD socket address; `None` when it names nobody."""
    family, port = raw[1:2], int.from_bytes(raw[2:4], "big")
    packed = raw[4:8] if family == b"\x02" else raw[8:24] if family == b"\x1e" else b""
    return (packed, port) if any(packed) or port else None


def true_flow(flow: Any) -> tuple[Any, ...]:
    """An emulated flow as the user should see it."""
    fields = flow.fields
    return (
        flow.provider.value,
        flow.userland,
        slot(fields.get("local", bytes(28))),
        slot(fields.get("remote", bytes(28))),
        fields.get("pid"),
        fields["pname"].decode(),
        flow.state if flow.provider.value in {"tcp", "quic"} else None,
        tuple(flow.counts.get(f"nstat_{name}", 0) for name in ("rxbytes", "txbytes", "rxpackets", "txpackets")),
    )


def seen_flow(flow: Flow, counts: Counts | None) -> tuple[Any, ...]:
    """A flow of the library in the words of `true_flow`."""
    process = flow.process
    return (
        flow.provider.value,
        flow.userland,
        None if flow.local is None else (flow.local.packed, flow.local.port),
        None if flow.remote is None else (flow.remote.packed, flow.remote.port),
        None if process is None else process.pid,
        None if process is None else process.name,
        None if flow.state is None else flow.state.value,
        traffic(counts),
    )


def compare(kernel: Any, seen: Iterable[tuple[Flow, Counts | None]], *, providers: frozenset[Any]) -> None:
    """The library's flows are the kernel's open flows, each once, in every value.

    Raises:
        AssertionError: They differ; the text says in what.
    """
    true = Counter(true_flow(flow) for flow in kernel.flows() if flow.provider in providers)
    told = Counter(seen_flow(flow, counts) for flow, counts in seen)
    missing, surplus = true - told, told - true
    assert not missing, f"not known: {sorted(missing.elements(), key=repr)}; known instead: {list(surplus.elements())}"
    assert not surplus, f"known, and not there: {sorted(surplus.elements(), key=repr)}"
