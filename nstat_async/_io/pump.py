"""The pump: the only place that awaits a kernel.

It owns the clock and the sockets, the core owns the schedule and the meaning.
One turn: carry out the core's commands; read every channel that may have data until
it would block; feed; deliver. Only then wait, for a readable channel, the core's
deadline, a request from outside, or room at the consumer (policy ``block``).

- *Drain first.* The kernel answers inside ``send``, so after a send the channel is
  read at once, without waiting for readiness.
- *Bounded turns.* After `SLICE` seconds of work other tasks get a turn, so neither a
  busy kernel nor a dump of 50,000 sockets holds the loop. The time in which the kernel writes answers with little news
  counts less (`ANSWERING`). The channels share a slice, so that reports do not delay answers. Work at a deadline is
  divided, too: the core does a part of it in each slice. If a slice is over, due work and its events wait for the
  next one.
- *Data that came before a deadline, or before a request for a poll, is handled first.* So channels are read first,
  also after the loop was held up.
- *Cancellation loses nothing.* Data is fed to the core before the next await, and its events are delivered at the
  latest when the feed is closed.
- A channel with a ``rest`` (seconds; a ring buffer in memory) is read in each turn, before
  the others. After it was found empty, no task waits for it during its rest.
- For each channel a task waits, which only sets an event. Channels with answers only have no such task: they are
  read after a send, and the core knows when an answer is complete. Look-ups that may block run in worker threads.
- *An auxiliary may fail.* The failure of a look-up or its thread ends nothing
  else: the core gets `LookupFailed`, the consumer `AuxiliaryFailed`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from .._contract import Channel, CloseChannel, Command, Core, Lookup, LookupFailed, OpenChannel, Send, Sink, Transport
from .._errnos import MORE_FILES, NO_THREAD, no_thread_text
from .._errors import NstatError
from .._events import AnyEvent, Auxiliary, AuxiliaryFailed
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from .background import STOP_SECONDS, checkpoint_here, set_event
from .pipes import PIPE_SECONDS, TICK

if TYPE_CHECKING:
    from .record import RecordedCore

_log = logging.getLogger("nstat_async.pump")

SLICE = 0.0015
"""Seconds of work after which other tasks get a turn."""
ANSWERING = 0.4
"""A second counts as this much if the kernel takes it to write answers that the core handles twice as fast. Such answers have
little news and cause no further work, and a turn of the loop costs as much as hundreds of unchanged rows."""
SUBSCRIBE_SECONDS = 2.0
"""How long opening waits at most for the kernel's answers; a real kernel answers within milliseconds."""
SUBSCRIBE_TURNS = 15
"""How often that long, while a look-up is under way: attaching eBPF programs is work of our own (0.2 s of CPU, which
an overloaded machine may delay for long), and without its answer it is not known what opening has to report."""
SETTLED_SECONDS = 5.0
"""How long `settled` waits at most: a core holds ends back for a second at most, unless more comes than is read."""
REPORTING_SECONDS = 0.3
"""How long a kernel may take to report an end, where a core holds ends back. Linux leaves it to a worker thread of the kernel
(``sock_diag_broadcast_destroy``): mostly a millisecond, but with four busy processes on two processors up to half a second was seen."""
CAPACITY = 1_048_576
"""Bytes that a channel may hold unread if it does not say how many."""
BATCH = 16
"""Most datagrams that are read at once; the clock is read between two batches."""
BATCH_SECONDS = 0.0005
"""Seconds that a batch should take, counted as in a slice: if datagrams take longer, fewer are read at once. On a busy machine
this clock includes other processes' time; a batch that is halved for that costs less than reading the CPU clock."""
BATCH_BYTES = 262_144
"""Bytes that a batch should have: memory for much more is requested from the system each time, which costs more than a call."""


class KernelFeed:
    """A core, its transport, and the loop between them.

    Args:
        core: The protocol's logic.
        transport: Opens its channels.
        options: The monitor's options.

    Raises:
        UsageError: ``record_to`` cannot be written.
    """

    can_wait = False

    def __init__(self, core: Core, transport: Transport, *, options: MonitorOptions) -> None:
        self._recording: RecordedCore | None = None
        if options.record_to is not None:
            from .record import recorded  # noqa: PLC0415

            self._recording, transport = recorded(core, transport, options)
            core = cast("Core", self._recording)
        self.core = core
        self._transport = transport
        self._channels: dict[int, _Waiter] = {}
        self._wake = anyio.Event()
        self._subscribed = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._unbegun: dict[int, Coroutine[Any, Any, None]] = {}
        """Look-ups, by token, whose tasks have not started: if the loop ends now, they never start."""
        self._looking_up = 0
        """How many look-ups are under way."""
        self._closed = False
        self._sink: Sink | None = None
        self._deadline: float | None = None
        """The core's deadline when it was last read."""
        self._slices = 0
        self._longest_slice = 0.0
        self._slice_began = 0.0
        self._waived = 0.0
        """Seconds of the slice that are not counted."""
        self._wakes = 0
        self._open_error: NstatError | None = None
        self._failures: Counter[Auxiliary] = Counter()
        self._failing: set[Hashable] = set()
        self._reports: list[AnyEvent] = []
        self._settling: list[_Settling] = []
        self._held: Callable[[float], bool] | None = getattr(core, "settled", None)  # `HoldsBack.settled`

    # --- Feed ----------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities, as far as the core knows them by now."""
        return self.core.capabilities

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows that are open now."""
        return self.core.flows()

    async def subscribed(self) -> None:
        """Wait for the kernel's answers to the subscription, at most `SUBSCRIBE_SECONDS`, and longer for look-ups."""
        for _ in range(SUBSCRIBE_TURNS):
            with anyio.move_on_after(SUBSCRIBE_SECONDS):
                await self._subscribed.wait()
            if self._subscribed.is_set() or not self._looking_up:
                return

    def request_poll(self) -> int:
        """Ask the kernel for a poll; returns its serial."""
        serial = self.core.request_poll(self._now())
        for waiter in self._channels.values():
            waiter.maybe_readable = True  # earlier data is handled first, also after the loop was held up
        self.wake()
        return serial

    async def settled(self, *, ends: bool) -> None:
        """Wait until all that the kernel had reported when this was called was read and delivered, at most `SETTLED_SECONDS`.

        Each channel is read until it is empty, or until as much came as it can hold: so this ends also if there is always more.

        Args:
            ends: Also wait until what was read is an event.
        """
        held = self._held if ends else None
        if held is not None:
            await anyio.sleep(REPORTING_SECONDS)
        waiters = [waiter for waiter in self._channels.values() if not waiter.answers_only]
        if self._closed or (held is None and not any(waiter.maybe_readable for waiter in waiters)):
            return
        marks = {waiter: (waiter.emptied, waiter.taken + waiter.capacity) for waiter in waiters}
        settling = _Settling(marks, held)
        self._settling.append(settling)
        for waiter in waiters:
            waiter.maybe_readable = True
        self.wake()
        try:
            with anyio.move_on_after(SETTLED_SECONDS):
                await settling.done.wait()
        finally:
            self._settling.remove(settling)

    def close(self) -> None:
        """Release the sockets, and deliver the events of the data that was read; `run` ends soon."""
        self._closed = True
        for waiter in list(self._channels.values()):
            waiter.close()
        self._transport.close()
        for event in (self._subscribed, self._wake, *(each.done for each in self._settling)):
            set_event(event)
        if self._sink is not None:  # a turn may be interrupted between feeding data and delivering its events
            with contextlib.suppress(RuntimeError):  # as `set_event`
                self._sink.deliver(self._take_events())

    async def finish(self) -> None:
        """After `close`, wait until a pipe's reader has the recording; what it does not read is given up, and reported."""
        recording = self._recording
        if recording is None:
            return
        try:
            with anyio.CancelScope(shield=True):  # cancellation loses nothing that the reader takes at once
                await _until_written(recording, STOP_SECONDS)
            await _until_written(recording, PIPE_SECONDS - STOP_SECONDS)
        finally:
            recording.check()
            if self._sink is not None:
                self._sink.deliver(self._take_events())

    def statistics(self) -> dict[str, int]:
        """Counters of the core and the pump."""
        return {
            **{f"failed_{auxiliary.value}": self._failures[auxiliary] for auxiliary in Auxiliary},
            **self.core.statistics(),
            "wakes": self._wakes,
            "slices": self._slices,
            "longest_slice_us": int(self._longest_slice * 1e6),
        }

    async def run(self, sink: Sink) -> None:
        """Pump until closed.

        Raises:
            NstatError: The subscription failed for good.
        """
        core, self._checkpoint = self.core, checkpoint_here()
        self._sink = sink
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as self._tasks:
                # Errors are carried out of the group by hand, so that none arrives
                # wrapped in an exception group.
                try:
                    core.start(self._now())
                    while not self._closed and core.failure is None:
                        await self._turn(sink)
                        if not self._closed and core.failure is None:
                            await self._wait(sink)
                    failure = core.failure
                except Exception as error:  # noqa: BLE001
                    failure = error
                self._tasks.cancel_scope.cancel()
        finally:
            for work in self._unbegun.values():
                work.close()  # else Python warns that nobody waited for it
            self.close()
        if failure is not None:
            if failure is core.failure and self._open_error is not None:
                raise self._open_error
            raise failure

    # --- a turn ----------------------------------------------------------------

    def _now(self) -> float:
        """The monotonic time; tells the core its difference to the wall clock."""
        now = time.monotonic()
        self.core.epoch_offset = time.time() - now
        return now

    async def _turn(self, sink: Sink) -> None:
        core = self.core
        work = True
        commands = deque(core.commands())
        self._begin_slice()
        due = self._is_due()
        while work and not self._closed:
            while commands and self._spent() < SLICE:
                self._carry_out(commands.popleft())
            read = not commands and self._read(everything=due)
            if due and not commands:
                await self._rest()
                core.handle_deadline(self._now())
                await self._rest()
            events = self._take_events()
            if events:
                sink.deliver(events)
            if self._settling:
                self._note_settled()
            if not self._subscribed.is_set() and core.subscribed:
                self._subscribed.set()
            commands += core.commands()  # reading may have caused more
            if core.failure is not None:
                return
            if commands and not (events or due or self._spent() >= SLICE):
                continue  # the next of many requests: due work waits until it is answered
            was_due, due = due, self._is_due()
            work = bool(commands) or read or due
            if work and (events or was_due or self._spent() >= SLICE):  # otherwise the slice has time for more
                self._end_slice()
                await self._checkpoint()
                await sink.room()
                self._begin_slice()
        self._end_slice()

    def _take_events(self) -> list[AnyEvent]:
        """The core's events since the last call, and the reports about auxiliaries."""
        events = self.core.take_events()
        if self._reports:
            events, self._reports = [*events, *self._reports], []
        return events

    def _note_settled(self) -> None:
        """Wake the tasks for which everything that they wait for was read and delivered."""
        for each in self._settling:
            if each.read is None and all(waiter.has_passed(mark) for waiter, mark in each.marks.items()):
                each.read = time.monotonic()
            if each.read is not None and (each.held is None or each.held(each.read)):
                each.done.set()

    async def _rest(self) -> None:
        """Give other tasks a turn if the slice is over."""
        if self._spent() >= SLICE:
            self._end_slice()
            await self._checkpoint()
            self._begin_slice()

    def _begin_slice(self) -> None:
        self._slice_began, self._waived = time.perf_counter(), 0.0

    def _spent(self) -> float:
        """The counted seconds of the slice so far."""
        return time.perf_counter() - self._slice_began - self._waived

    def _end_slice(self) -> None:
        self._longest_slice = max(self._longest_slice, time.perf_counter() - self._slice_began)
        self._slices += 1

    def _is_due(self) -> bool:
        self._deadline = deadline = self.core.next_deadline()
        return deadline is not None and deadline <= time.monotonic()

    def _read(self, *, everything: bool) -> bool:
        """Read channels that may have data, or all of them; True if one of them has more."""
        # Channels with a rest are read in every turn, before the others. The first may take all of the time, because it is
        # a ring with little memory. Each channel is read at least once, also if no time is left.
        resting = [w for w in self._channels.values() if w.rest]
        others = [w for w in self._channels.values() if (w.maybe_readable or everything) and not w.rest]
        parts = [1 if waiter is resting[0] else 2 for waiter in resting]
        parts += range(len(others), 0, -1)
        more = False
        self._now()  # for all batches
        for waiter, part in zip((*resting, *others), parts, strict=True):
            if not waiter.channel_closed:
                spent = self._spent()
                more |= self._drain(waiter, spent + (SLICE - spent) / part)
        return more

    def _drain(self, waiter: _Waiter, until: float) -> bool:
        """Read one channel until it would block or its part of the slice is over; True in the latter case."""
        core, number = self.core, waiter.number
        begin = time.perf_counter()
        while True:
            batch: list[bytes] = []
            failure: OSError | EOFError | None = None
            try:
                more = waiter.channel.read_into(batch, waiter.batch)
            except (OSError, EOFError) as error:
                failure = error
            read = time.perf_counter()
            size = sum(map(len, batch))
            waiter.taken += size
            if batch or failure is not None:
                waiter.maybe_readable = True  # a core that got either also gets that the channel is empty
            if batch:
                core.receive_datagrams(batch, time.monotonic(), number)
            if failure is not None:
                return self._read_failed(waiter, failure)
            if not more:
                waiter.emptied += 1
                if not waiter.maybe_readable:
                    return False
                waiter.maybe_readable = False
                if not waiter.answers_only:
                    core.channel_drained(number, time.monotonic())
                    waiter.rearm()
                return False
            end = time.perf_counter()
            spent = end - begin
            if waiter.answers_only and 2 * (end - read) < read - begin:
                waived = (1 - ANSWERING) * (read - begin)
                self._waived += waived
                spent -= waived
            waiter.adapt(spent, size)
            begin = end
            if end - self._slice_began - self._waived >= until:
                return True

    def _read_failed(self, waiter: _Waiter, error: OSError | EOFError) -> bool:
        """Handle the end or failure of a channel; true if it may have more data."""
        core, number = self.core, waiter.number
        if isinstance(error, EOFError):
            waiter.close()
            self._channels.pop(number, None)
            core.channel_closed(number, self._now())
            return False
        if not self._closed:
            core.channel_failed(number, error.errno or 0, self._now())
        return True  # reading the error removed it from the socket; the other data is still there

    # --- commands ----------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Send):
            self._send(command)
        elif isinstance(command, OpenChannel):
            self._open(command)
        elif isinstance(command, CloseChannel):
            waiter = self._channels.pop(command.channel, None)
            if waiter is not None:
                waiter.close()
        else:
            assert self._tasks is not None
            self._looking_up += 1
            self._unbegun[command.token] = work = self._look_up(command)
            self._tasks.start_soon(lambda: work)

    def _send(self, command: Send) -> None:
        waiter = self._channels.get(command.channel)
        if waiter is None:
            return
        try:
            waiter.channel.send(command.data)
        except OSError as error:
            self.core.channel_failed(command.channel, error.errno or 0, self._now())
        waiter.maybe_readable = True

    def _open(self, command: OpenChannel) -> None:
        try:
            channel = self._transport.open(command.purpose)
        except (NstatError, OSError) as error:
            if isinstance(error, NstatError):
                self._open_error = error
            cause = error.__cause__ if isinstance(error, NstatError) else error
            number = cause.errno if isinstance(cause, OSError) and cause.errno else 0
            self.core.channel_failed(command.channel, number, self._now())
            return
        assert self._tasks is not None
        waiter = _Waiter(command.channel, channel, self)
        self._channels[command.channel] = waiter
        if not waiter.answers_only:
            self._tasks.start_soon(waiter.watch)
        self.core.channel_opened(
            command.channel, self._now(), immediate=channel.immediate, receive_buffer=channel.receive_buffer
        )

    async def _look_up(self, command: Lookup) -> None:
        self._unbegun.pop(command.token, None)
        request = command.request
        try:
            answer = await anyio.to_thread.run_sync(self._ask, request, abandon_on_cancel=True)
            self._failing.discard(Auxiliary.THREAD)
        except Exception as error:  # noqa: BLE001  # no thread could be started
            answer = LookupFailed(f"no worker thread: {_reason(error)}")
            self._auxiliary_failed(Auxiliary.THREAD, Auxiliary.THREAD, _reason(error))
        else:
            if isinstance(answer, LookupFailed):
                self._auxiliary_failed(Auxiliary.LOOKUP, type(request).__name__, answer.reason)
            else:
                self._failing.discard(type(request).__name__)
        self._looking_up -= 1
        if self._closed:
            return
        self.core.lookup_done(command.token, answer, self._now())
        self.wake()

    def _ask(self, request: Any) -> Any:
        """The answer to a look-up, or its failure; called in a worker thread."""
        try:
            return self._transport.lookup(request)
        except Exception as error:  # noqa: BLE001  # whatever it is, the kernel's conversation goes on
            _log.debug("look-up failed", exc_info=True)
            return LookupFailed(_reason(error))

    # --- auxiliaries ---------------------------------------------------------------

    def _auxiliary_failed(self, auxiliary: Auxiliary, kind: Hashable, detail: str) -> None:
        """Count a failure, and report it unless its kind has failed before and not worked since."""
        self._failures[auxiliary] += 1
        if kind not in self._failing:
            self._failing.add(kind)
            _log.info("%s failed: %s", auxiliary.value, detail)
            self._reports.append(AuxiliaryFailed(self._now() + self.core.epoch_offset, auxiliary, detail))

    # --- waiting -------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the loop: something happened."""
        self._wake.set()

    async def _wait(self, sink: Sink) -> None:
        await sink.room()
        # If the deadline changed since the end of the turn, the event is set, too.
        if self._deadline is None:
            await self._wake.wait()
        else:
            with anyio.move_on_after(self._deadline - time.monotonic()):
                await self._wake.wait()
        self._wakes += 1
        self._wake = anyio.Event()


async def _until_written(recording: RecordedCore, seconds: float) -> None:
    pause = 0.001
    with anyio.move_on_after(seconds):
        while recording.is_writing:
            await anyio.sleep(pause)
            pause = min(pause * 2, TICK)


def _reason(error: Exception) -> str:
    """An error in words, for a person."""
    if isinstance(error, OSError) and error.strerror:
        if error.errno == errno.EMFILE:
            return f"{error.strerror}; {MORE_FILES}"  # it does not matter which file was one too many
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if str(error) == NO_THREAD:
        return no_thread_text(error)
    return str(error) or type(error).__name__


@attrs.define(eq=False)
class _Settling:
    """A task that waits until all that the channels had is delivered."""

    marks: dict[_Waiter, tuple[int, int]]
    """For `_Waiter.has_passed`."""
    held: Callable[[float], bool] | None
    """`HoldsBack.settled`, if it also waits for what the core holds back."""
    read: float | None = None
    """When all of it had been read."""
    done: anyio.Event = attrs.field(factory=lambda: anyio.Event())  # noqa: PLW0108  # as in `_subscription`


class _Waiter:
    """Waits until one channel is readable, each time that it is rearmed."""

    def __init__(self, number: int, channel: Channel, feed: KernelFeed) -> None:
        self.number = number
        self.channel = channel
        self.maybe_readable = True
        self.channel_closed = False
        self.rest: float = getattr(channel, "rest", 0.0)
        self.answers_only: bool = getattr(channel, "answers_only", False)
        self.batch = 1
        """Datagrams to read at once."""
        self.emptied = 0
        """How often the channel was found empty."""
        self.taken = 0
        """Bytes that were read."""
        self.capacity = channel.receive_buffer or CAPACITY
        """Bytes that the channel holds at most."""
        self._feed = feed
        self._armed = anyio.Event()

    def adapt(self, spent: float, size: int) -> None:
        """Read more, or fewer, datagrams at once: a full batch took `spent` seconds and had `size` bytes."""
        if spent > BATCH_SECONDS or size > BATCH_BYTES:
            self.batch = max(1, self.batch // 2)
        elif spent < BATCH_SECONDS / 2 and size <= BATCH_BYTES / 2:
            self.batch = min(BATCH, self.batch * 2)

    def has_passed(self, mark: tuple[int, int]) -> bool:
        """True if the channel was found empty more often than this, was read up to so many bytes, or is closed."""
        return self.channel_closed or self.emptied > mark[0] or self.taken >= mark[1]

    def rearm(self) -> None:
        """Wait for data again: the channel is empty."""
        self._armed.set()

    def close(self) -> None:
        """Close the channel; the task that waits for it is woken first."""
        if self.channel_closed:
            return
        self.channel_closed = True
        set_event(self._armed)
        try:
            anyio.notify_closing(self.channel)
        except (OSError, RuntimeError, NotImplementedError):
            _log.debug("nobody waits for channel %d", self.number)
        self.channel.close()

    async def watch(self) -> None:
        """Task: set `maybe_readable` and wake the pump whenever data arrives."""
        while True:
            await self._armed.wait()
            self._armed = anyio.Event()
            if self.rest:
                await anyio.sleep(self.rest)
            if self.channel_closed:
                return
            try:
                await anyio.wait_readable(self.channel)
            except anyio.ClosedResourceError:
                return
            self.maybe_readable = True
            self._feed.wake()
