"""What is known of one machine of a fleet: the number of its next message, its clock, its open flows."""

from __future__ import annotations

from collections import deque

import attrs

from .._events import FlowAdded, HostState, HostUpdated
from .._model import Counts, Flow
from ..json import JsonReader
from ._messages import Facts, Header

_RETIRED = 8
"""How many earlier runs of a publisher are remembered, to recognize messages of theirs."""
_SAMPLES = 10
_CLOCK_SLACK = 2.0
"""Seconds that a clock may differ, or that a message may take, before times are corrected."""
_CLOCK_NEWS = 1.0
"""The change of a clock's offset that is reported, in seconds."""
_OLDEST = 7 * 86_400.0
"""Seconds that an event may be older than its message."""
_PATIENCE, _GRACE = 3.0, 2.0


@attrs.define(eq=False)
class Open:
    """An open flow."""

    raw: Flow
    """The flow as its machine reports it."""
    flow: Flow
    """The flow as it is reported here: with its peer, if that is known."""
    counts: Counts | None


@attrs.define(eq=False)
class HostView:
    """One machine. This only keeps the facts; `Incoming` decides what to do with them."""

    host: str
    incarnation: str
    seq: int = 0
    """Number of the next message."""
    live: bool = False
    """True once its flows are known, which a complete state tells."""
    exact: bool = True
    """False after messages or lines were lost, until the next complete state."""
    state: HostState = HostState.PRESENT
    facts: Facts = attrs.field(factory=Facts)
    heard_at: float = 0.0
    """Monotonic time at which its last message came here."""
    last_heard: float | None = None
    """Time at which the server stored that message, on the server's clock."""
    promise: float = 10.0
    flows: dict[str, Open] = attrs.field(factory=dict)
    gathered: dict[str, FlowAdded] | None = None
    """The flows of a complete state so far; `None`: no state is being received."""
    whole: bool = True
    """False while a state is received of which a flow is missing."""
    full: bool = False
    """True once the machine reported more flows than are kept."""
    retired: dict[str, int] = attrs.field(factory=dict)
    """Earlier runs of its publisher, and the number of the next message of each."""
    quarrel: bool = False
    """True once an earlier run published beside this one."""
    read: JsonReader = attrs.field(init=False)
    _offsets: deque[float] = attrs.field(factory=lambda: deque(maxlen=_SAMPLES))
    reported_offset: float | None = None
    """The clock's offset as it was last reported."""

    def __attrs_post_init__(self) -> None:
        self.read = JsonReader(self._own, deltas=False)

    def begin(self, incarnation: str) -> None:
        """Start with another run of the publisher, or again with an earlier one: nothing of the run before is valid."""
        self.retired[self.incarnation] = self.seq
        self.incarnation, self.seq = incarnation, self.retired.pop(incarnation, 0)
        if len(self.retired) > _RETIRED:
            del self.retired[next(iter(self.retired))]
        self.live, self.exact, self.quarrel = False, True, False
        self.gathered, self.full = None, False
        self.read = JsonReader(self._own, deltas=False)

    def _own(self, flow: Flow) -> Flow:
        """A flow of this machine with an id that is unique among all machines and runs."""
        prefix = f"{self.host}/{self.incarnation}/"
        parent = None if flow.parent is None else prefix + flow.parent
        return attrs.evolve(flow, id=prefix + flow.id, host=self.host, peer=None, parent=parent)

    def hear(self, header: Header, stored: float, sent: float | None, now: float) -> None:
        """Note that a message came."""
        self.promise, self.heard_at, self.last_heard = header.next, now, stored
        if sent is not None:
            self._offsets.append(sent - stored)

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which the machine's clock is ahead; a delayed message makes it look behind, never ahead."""
        return max(self._offsets, default=None)

    @property
    def clock_has_news(self) -> bool:
        """True if the offset differs noticeably from the reported one."""
        offset = self.clock_offset
        return offset is not None and abs(offset - (self.reported_offset or 0.0)) > _CLOCK_NEWS

    def right_time(self, time: float, stored: float) -> float:
        """Convert a time of the machine's clock to the server's clock; it is never much later than its message."""
        offset = self.clock_offset or 0.0
        time -= offset if abs(offset) > _CLOCK_SLACK else 0.0
        return min(max(time, stored - _OLDEST), stored + _CLOCK_SLACK)

    def is_silent(self, now: float) -> bool:
        """True if a message that the machine promised is late."""
        return now > self.heard_at + max(_PATIENCE * self.promise, self.promise + _GRACE)

    def event(self, time: float, detail: str | None = None) -> HostUpdated:
        """The event that reports the machine."""
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
