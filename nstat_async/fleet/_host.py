"""What is known of one machine of a fleet: where its messages stand, and its open flows."""

from __future__ import annotations

from collections import deque

import attrs

from .._events import FlowAdded, HostState, HostUpdated
from .._model import Counts, Flow
from ..json import JsonReader
from ._messages import Facts, Header

_RETIRED = 8
"""Earlier runs of a publisher that are remembered, so that a late message of theirs is known as one."""
_SAMPLES = 10
_CLOCK_SLACK = 2.0
"""Seconds that a clock may differ, or a message take, before times are set right."""
_CLOCK_NEWS = 1.0
"""Change of a clock's offset that is reported."""
_OLDEST = 7 * 86_400.0
"""Seconds that an event may be older than its message."""
_PATIENCE, _GRACE = 3.0, 2.0


@attrs.define(eq=False)
class Open:
    """An open flow."""

    raw: Flow
    """As its machine reports it."""
    flow: Flow
    """As it is shown: with its peer, where that is known."""
    counts: Counts | None


@attrs.define(eq=False)
class HostView:
    """One machine. It keeps account; `Incoming` says what becomes of it."""

    host: str
    incarnation: str
    seq: int = 0
    """Number of the next message."""
    live: bool = False
    """True once its flows are known: from a complete state on."""
    exact: bool = True
    """False after messages were lost, until a complete state."""
    state: HostState = HostState.PRESENT
    facts: Facts = attrs.field(factory=Facts)
    heard_at: float = 0.0
    """When its last message came here, monotonic seconds."""
    last_heard: float | None = None
    """When it was stored, on the server's clock."""
    promise: float = 10.0
    flows: dict[str, Open] = attrs.field(factory=dict)
    gathered: dict[str, FlowAdded] | None = None
    """The parts so far of a complete state; `None`: none is coming."""
    full: bool = False
    """True once it reported more flows than are kept."""
    retired: deque[str] = attrs.field(factory=lambda: deque(maxlen=_RETIRED))
    quarrel: bool = False
    """True once two runs were seen to publish at a time."""
    read: JsonReader = attrs.field(init=False)
    _offsets: deque[float] = attrs.field(factory=lambda: deque(maxlen=_SAMPLES))
    reported_offset: float | None = None
    """The clock's offset as it was last reported."""

    def __attrs_post_init__(self) -> None:
        self.begin(self.incarnation)

    def begin(self, incarnation: str) -> None:
        """Another run of its publisher: nothing of the one before is valid."""
        if incarnation != self.incarnation:
            self.retired.append(self.incarnation)
        self.incarnation, self.seq, self.live, self.exact = incarnation, 0, False, True
        self.gathered, self.full = None, False
        self.read = JsonReader(self._own, deltas=False)

    def _own(self, flow: Flow) -> Flow:
        """A flow of this machine, under an id that no other run of any machine has."""
        prefix = f"{self.host}/{self.incarnation}/"
        parent = None if flow.parent is None else prefix + flow.parent
        return attrs.evolve(flow, id=prefix + flow.id, host=self.host, peer=None, parent=parent)

    def hear(self, header: Header, stored: float, sent: float | None, now: float) -> None:
        """A message came."""
        self.promise, self.heard_at, self.last_heard = header.next, now, stored
        if sent is not None:
            self._offsets.append(sent - stored)

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which its clock is ahead: a message that was delayed makes it look behind, never ahead."""
        return max(self._offsets, default=None)

    @property
    def clock_has_news(self) -> bool:
        """True if the offset is not what was last reported."""
        offset = self.clock_offset
        return offset is not None and abs(offset - (self.reported_offset or 0.0)) > _CLOCK_NEWS

    def right_time(self, time: float, stored: float) -> float:
        """A time of its clock on the server's clock, and never much later than the message that has it."""
        offset = self.clock_offset or 0.0
        time -= offset if abs(offset) > _CLOCK_SLACK else 0.0
        return min(max(time, stored - _OLDEST), stored + _CLOCK_SLACK)

    def is_silent(self, now: float) -> bool:
        """True if it promised a message that should be here by now."""
        return now > self.heard_at + max(_PATIENCE * self.promise, self.promise + _GRACE)

    def event(self, time: float, detail: str | None = None) -> HostUpdated:
        """What to report of it."""
        return HostUpdated(
            time,
            self.state,
            self.facts.machine_id,
            self.facts.boot_id,
            self.facts.labels,
            self.clock_offset,
            self.last_heard,
            detail,
            host=self.host,
        )
