"""Makes a machine's numbered messages of its events. No I/O, no clock.

Messages go out one after the other: the next one is made when the server has the one before. Until then events wait in
the subscription's buffer, which coalesces and is bounded; only the events of `feed` wait here. From time to time
messages have a *complete state*: every open flow with its counters, as of this place in the stream. A reader that
joins late starts there, and one that missed messages is correct again after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import attrs

from .._events import AnyEvent, EventsLost, FlowAdded, FlowEvent, FlowRemoved, LossCause, PollCompleted
from .._model import Counts, Flow
from ..json import JsonFormatter
from ._messages import EVENTS, LONGEST_LINE, STATE, Facts, Header, Message, encode, host_name, subject_of

MOST_BYTES = 1 << 18
"""Most bytes of a message before it is compressed."""
STATE_SECONDS = 60.0
"""Seconds after which a state is due, if as many events were published meanwhile as there are flows."""
IDLE_STATE_SECONDS = 600.0
"""Seconds after which it is due in any case."""

_Known = tuple[Flow, "Counts | None", bool]


@attrs.define(eq=False)
class Outgoing:
    """Makes the messages of one machine.

    Args:
        host: Its name in the fleet; see `host_name`.
        incarnation: 8 to 32 hexadecimal digits that no other run of a publisher has.
        facts: Facts about the machine.
        prefix: First word of the subjects.
        heartbeat: Longest time without a message, seconds.
        most_bytes: Largest message, before it is compressed.
        compress: Compress messages if that saves space.
        details: Also publish the samples that come with reports, and the counters before each update.

    Raises:
        UsageError: The name is not valid.
    """

    host: str = attrs.field(converter=host_name)
    incarnation: str
    facts: Facts = attrs.field(factory=Facts)
    prefix: str = attrs.field(default="nstat", kw_only=True)
    heartbeat: float = attrs.field(default=10.0, kw_only=True)
    most_bytes: int = attrs.field(default=MOST_BYTES, kw_only=True)
    compress: bool = attrs.field(default=True, kw_only=True)
    details: bool = attrs.field(default=False, kw_only=True)
    _lines: deque[str] = attrs.field(factory=deque, init=False)
    _poll: PollCompleted | None = attrs.field(default=None, init=False)
    """The newest complete poll: it is not published by itself, but after the events that it completed."""
    _flows: dict[str, _Known] = attrs.field(factory=dict, init=False)
    """The open flows as of the last line."""
    _state: Iterator[str] | None = attrs.field(default=None, init=False)
    """The lines left of the state that is being published."""
    _part: int = attrs.field(default=0, init=False)
    _held: str | None = attrs.field(default=None, init=False)
    """A line of the state that did not fit into the message before."""
    _seq: int = attrs.field(default=0, init=False)
    _sent_at: float | None = attrs.field(default=None, init=False)
    _state_at: float | None = attrs.field(default=None, init=False)
    _since_state: int = attrs.field(default=0, init=False)
    _write: JsonFormatter = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._write = JsonFormatter(full=self.details)
        self._state = iter(())  # the first message: a new run, which knows no flow yet

    # --- in -----------------------------------------------------------------------------

    def feed(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        for event in events:
            if isinstance(event, PollCompleted) and event.complete:
                self._poll = event
                continue
            if isinstance(event, FlowEvent):
                self._note(event)
            self._lines.append(self._line(event))

    def _note(self, event: FlowEvent) -> None:
        flow = event.flow
        if isinstance(event, FlowRemoved):
            self._flows.pop(flow.id, None)
        elif isinstance(event, FlowAdded):
            self._flows[flow.id] = flow, event.counts, event.preexisting
        else:
            known = self._flows.get(flow.id)
            self._flows[flow.id] = flow, event.counts, known is None or known[2]

    def _line(self, event: AnyEvent) -> str:
        line = self._write(event)
        if len(line) <= min(LONGEST_LINE, self.most_bytes // 2):
            return line
        detail = f"an event of {len(line)} bytes does not fit into a message"
        return self._write(EventsLost(event.time, LossCause.LIMIT, 1, detail=detail))

    # --- out ----------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """True while there are lines that are in no message yet."""
        return bool(self._lines) or self._state is not None

    def next_deadline(self) -> float | None:
        """When `next_message` has a message even without new events; `None`: now."""
        if self._sent_at is None or self._state_at is None or self.waiting:
            return None
        return min(self._sent_at + self.heartbeat, self._state_due(self._state_at))

    def next_message(self, now: float) -> Message | None:
        """The next message to publish, when the server has the one before; `None`: nothing is due.

        Args:
            now: Monotonic seconds.
        """
        deadline = self.next_deadline()
        if deadline is not None and now < deadline:
            return None
        if self._lines and self._state is None:
            return self._message(now, self._taken())
        if self._state is None and self._state_at is not None and now >= self._state_due(self._state_at):
            self._begin_state()
        if self._state is not None:
            return self._state_part(now)
        return self._message(now, [])

    def last_message(self, now: float) -> Message:
        """The last message, which says that the publisher stops. Call it when nothing is `waiting`."""
        return self._message(now, [], part=0, last=True)

    def _taken(self) -> list[str]:
        """Lines for one message, at least one: a line that was made for a larger message must not wait for ever."""
        size, taken = 0, list[str]()
        while self._lines and (not taken or size + len(self._lines[0]) < self.most_bytes):
            line = self._lines.popleft()
            size += len(line) + 1
            taken.append(line)
        self._since_state += len(taken)
        return taken

    def _state_due(self, last: float) -> float:
        """When the next state is due: it costs as much as there are flows."""
        enough = 0 < self._since_state >= len(self._flows)
        return last + (STATE_SECONDS if enough else IDLE_STATE_SECONDS)

    def _begin_state(self) -> None:
        line, known = self._line, list(self._flows.values())
        self._state = (line(FlowAdded(0.0, flow, counts, preexisting)) for flow, counts, preexisting in known)
        self._part, self._since_state = 0, 0

    def _state_part(self, now: float) -> Message:
        assert self._state is not None
        lines = [] if self._held is None else [self._held]
        size = sum(map(len, lines))
        self._held = None
        for line in self._state:
            if size + len(line) >= self.most_bytes:
                self._held = line
                break
            size += len(line) + 1
            lines.append(line)
        else:
            self._state = None
        part, self._part = self._part, self._part + 1
        if part == 0:
            self._state_at = now
        facts = self.facts if part == 0 else None
        return self._message(now, lines, part=part, more=self._state is not None, facts=facts)

    def _message(
        self,
        now: float,
        lines: list[str],
        *,
        part: int | None = None,
        more: bool = False,
        last: bool = False,
        facts: Facts | None = None,
    ) -> Message:
        if self._poll is not None and part is None and not self._lines:
            lines.append(self._write(self._poll))
            self._poll = None
        header = Header(
            incarnation=self.incarnation,
            seq=self._seq,
            next=self.heartbeat,
            part=part,
            more=more,
            last=last,
            facts=facts,
        )
        self._sent_at = now
        self._seq += 1
        return Message(
            subject_of(self.prefix, self.host, STATE if part == 0 else EVENTS),
            f"{self.host}/{self.incarnation}/{header.seq}",
            encode(header, lines, compress=self.compress),
            len(lines),
        )
