"""The latest events of a monitor, for any number of readers: each is formatted once, for all of them.

To take in a batch costs the same for any number of readers that do not read; a reader gets the
text of a batch by reference, and a new reader gets the machines of a fleet and the open flows first.

A reader has a place in the log. A reader that falls behind moves events that are about to be dropped into a
coalescing buffer of its own, so that it gets fewer updates and the same totals. At most `MAX_BEHIND` readers may do
so; of more, the one that has not read for longest is ended. A reader that waits for its client costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import anyio
import anyio.lowlevel
import attrs

from nstat_async._buffer import EventBuffer
from nstat_async._escape import dump
from nstat_async._events import AnyEvent, EventsLost, FlowAdded, FlowEvent, FlowRemoved, HostState, HostUpdated
from nstat_async._options import Overflow
from nstat_async.filters import Filter, FlowGate
from nstat_async.json import JsonFormatter

MAX_BEHIND = 16
"""How many readers may have a buffer of their own; each costs as much per event as the log itself."""
_LISTING_SECONDS = 1.0
EVENTS_AT_ONCE = 500
"""Events that are taken in at once: a poll may have 10,000, and between the parts the loop serves others."""


def message(name: str, line: str) -> bytes:
    """A server-sent event."""
    return f"event: {name}\r\ndata: {line}\r\n\r\n".encode()


@attrs.define(eq=False)
class _Batch:
    """Some consecutive events, and their text once a reader asked for it."""

    number: int
    start: int
    """How many events came before it."""
    events: Sequence[AnyEvent]
    lines: list[str | None] = attrs.field(init=False)
    text: bytes | None = None

    def __attrs_post_init__(self) -> None:
        self.lines = [None] * len(self.events)


class EventLog:
    """The latest events; the module's docstring says how it works.

    Args:
        capacity: How many events are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.count = 0
        """How many events came so far."""
        self.open_flows: dict[str, FlowEvent] = {}
        """The newest event of each open flow."""
        self._machines: dict[str | None, HostUpdated] = {}
        self.readers: set[Reader] = set()
        self._capacity = capacity
        self._batches: deque[_Batch] = deque()
        self._next_number = 0
        self._time = 0.0
        self._format = JsonFormatter()
        self._listing_time = 0.0
        self._listing: tuple[int, list[_Batch]] | None = None
        self._end_message: bytes | None = None

    # -- writing ----------------------------------------------------------------------------

    def feed(self, events: Sequence[AnyEvent]) -> None:
        """Take in events, in order, and wake the readers that wait."""
        for event in events:
            if isinstance(event, FlowRemoved):
                self.open_flows.pop(event.flow.id, None)
            elif isinstance(event, FlowEvent):
                self.open_flows[event.flow.id] = event
            elif isinstance(event, HostUpdated):
                self._machines.pop(event.host, None)
                if event.state is not HostState.LEFT:
                    self._machines[event.host] = event
        for part in _parts(events):
            self._batches.append(_Batch(self._next_number, self.count, part))
            self._next_number += 1
            self.count += len(part)
        self._time = events[-1].time
        while self.count - self._batches[0].start > self._capacity and len(self._batches) > 1:
            self._drop(self._batches.popleft())
        self._wake()

    def _drop(self, batch: _Batch) -> None:
        for reader in tuple(self.readers):
            if reader.number <= batch.number:
                reader.fall_behind(batch)
        if self._listing is not None and self._listing[0] <= batch.number:
            self._listing = None

    def end(self, detail: str | None = None) -> None:
        """End the log: readers get the events that are left, then the end or the reason of the failure."""
        if self._end_message is None:
            self._end_message = end_message(detail)
            self._wake()

    def _wake(self) -> None:
        for reader in self.readers:
            reader.wake()

    @property
    def end_message(self) -> bytes | None:
        """The message that ends a stream; `None` while the log goes on."""
        return self._end_message

    @property
    def next_number(self) -> int:
        """The number that the next batch will have."""
        return self._next_number

    # -- reading ----------------------------------------------------------------------------

    def batch(self, number: int) -> _Batch:
        """A batch that was not dropped yet."""
        return self._batches[number - self._next_number]

    def make_place(self, reader: Reader) -> None:
        """Let one more reader coalesce; of too many, end the one that has not read for longest."""
        behind = [each for each in self.readers if each.coalesces and each is not reader]
        if len(behind) >= MAX_BEHIND:
            min([*behind, reader], key=lambda each: each.served).end("too many clients read too slowly")

    def text_of(self, batch: _Batch) -> bytes:
        """A batch as server-sent events."""
        if batch.text is None:
            batch.text = b"".join(self.encode(batch, at) for at in range(len(batch.events)))
        return batch.text

    def encode(self, batch: _Batch, at: int) -> bytes:
        """One event of a batch as a server-sent event."""
        return as_message(self._line(batch, at))

    def _line(self, batch: _Batch, at: int) -> str:
        line = batch.lines[at]
        if line is None:
            line = batch.lines[at] = self._format(batch.events[at])
        return line

    def format(self, event: AnyEvent) -> bytes:
        """An event outside of the batches as a server-sent event."""
        return as_message(self._format(event))

    def listing(self) -> tuple[int, list[_Batch]]:
        """The machines, all open flows as `FlowAdded`, and the number of the batch that comes after them.

        Readers that start shortly after each other get the same listing.
        """
        if self._listing is None or abs(self._time - self._listing_time) >= _LISTING_SECONDS:
            self._listing_time = self._time
            self._listing = self._next_number, [_Batch(-1, self.count, part) for part in _parts(self.opened())]
        return self._listing

    def opened(self) -> list[AnyEvent]:
        """The machines of a fleet and all open flows, as a new reader gets them."""
        newest, time = self.open_flows.values(), self._time
        machines = [attrs.evolve(event, time=time) for event in self._machines.values()]
        return [*machines, *(FlowAdded(time, event.flow, event.counts, preexisting=True) for event in newest)]

    def latest(self, since: int, most: int, chosen: Filter | None) -> list[str]:
        """The newest events about flows and losses, as lines of JSON, oldest first.

        Args:
            since: `count` at the last look.
            most: The greatest number of lines.
            chosen: Selects flows; `None`: all.
        """
        found: list[str] = []
        for batch in reversed(self._batches):
            if batch.start + len(batch.events) <= since or len(found) == most:
                break
            for at in range(len(batch.events) - 1, max(0, since - batch.start) - 1, -1):
                event = batch.events[at]
                if len(found) < most and (
                    isinstance(event, EventsLost)
                    or (isinstance(event, FlowEvent) and (chosen is None or chosen(event.flow)))
                ):
                    found.append(self._line(batch, at))
        found.reverse()
        return found


def as_message(line: str) -> bytes:
    """A line of JSON as a server-sent event."""
    # Every line starts with {"v":1,"event":"NAME": the server-sent event gets this name.
    return message(line.split('"', 6)[5], line)


def end_message(detail: str | None) -> bytes:
    """The last event of a stream, which says that it ended or failed."""
    if detail is None:
        return message("ended", '{"v":1,"event":"ended"}')
    return message("failed", dump({"v": 1, "event": "failed", "detail": detail}))


def _parts(events: Sequence[AnyEvent]) -> list[Sequence[AnyEvent]]:
    return [events[at : at + EVENTS_AT_ONCE] for at in range(0, len(events), EVENTS_AT_ONCE)]


class Reader:
    """One client's place in the log: an async iterator of bytes.

    Args:
        log: The log.
        first: The bytes that it gets first.
        chosen: Selects flows; `None`: all.
        max_pending: How many events it may be behind before it coalesces.
    """

    def __init__(self, log: EventLog, first: bytes, chosen: Filter | None, max_pending: int) -> None:
        self._log = log
        self._gate = None if chosen is None else FlowGate(chosen)
        self._max_pending = max_pending
        self.served = log.count
        """`EventLog.count` when the reader last asked for something."""
        self._own: EventBuffer | None = None
        self._news: anyio.Event | None = None
        self._end: bytes | None = None
        self._ended = False
        self._ready: deque[bytes] = deque([first])
        self.number, opened = log.listing()
        self._waiting = deque(
            opened if self._gate is None else [_Batch(-1, 0, self._gate(each.events)) for each in opened]
        )
        log.readers.add(self)

    def close(self) -> None:
        """Leave the log."""
        self._log.readers.discard(self)

    @property
    def coalesces(self) -> bool:
        """True while it has a buffer of its own."""
        return self._own is not None

    def wake(self) -> None:
        """Say that there is something new."""
        if self._news is not None:
            self._news.set()

    def end(self, detail: str | None = None) -> None:
        """Give the reader no further events."""
        self._end = self._end or end_message(detail)
        self._own = None if detail else self._own
        self.close()
        self.wake()

    set = end  # what sse-starlette calls when the server shall stop

    def fall_behind(self, batch: _Batch) -> None:
        """Take over a batch that is about to leave the log."""
        if self._own is None:
            self._log.make_place(self)
            if self._end is not None:
                return
            self._own = EventBuffer(self._max_pending, Overflow.COALESCE)
        self._own.extend(batch.events if self._gate is None else self._gate(batch.events))
        self.number = batch.number + 1

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        self.served = self._log.count
        while not self._ready:
            if self._step():
                if not self._ready:
                    await (
                        anyio.lowlevel.checkpoint()
                    )  # other tasks do not wait for a reader that has much to catch up on
            elif end := self._end or self._log.end_message:
                self._ended = True
                self.close()
                return end
            else:
                self._news = anyio.Event()
                await self._news.wait()
                self._news = None
        return self._ready.popleft()

    def _step(self) -> bool:
        """Do one step of preparing the next bytes; False when the reader has everything."""
        if self._waiting:
            self._ready_text(self._log.text_of(self._waiting.popleft()))
        elif self._end is None and self.number < self._log.next_number:
            batch = self._log.batch(self.number)
            if self._own is not None or self._log.count - batch.start > self._max_pending + len(batch.events):
                self.fall_behind(batch)
            else:
                self.number += 1
                self._ready_text(self._text_of(batch))
        elif self._own is not None:
            waiting, self._own = self._own.pop_all(), None
            self._waiting.extend(_Batch(-1, 0, part) for part in _parts(waiting))
        else:
            return False
        return True

    def _ready_text(self, text: bytes) -> None:
        if text:
            self._ready.append(text)

    def _text_of(self, batch: _Batch) -> bytes:
        if self._gate is None:
            return self._log.text_of(batch)
        passed = self._gate(batch.events)
        places = {id(event): at for at, event in enumerate(batch.events)}
        return b"".join(
            self._log.encode(batch, places[id(event)]) if id(event) in places else self._log.format(event)
            for event in passed
        )
