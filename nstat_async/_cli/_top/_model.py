"""What `top` shows, without a screen.

Operations wanted: feed thousands of events a second; once a second put all processes
in order; hand out any line by its number at once. A look costs one sort of the
processes, plus the flows of those that are expanded; nothing is formatted here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Union

import attrs

from ..._events import AnyEvent, FlowEvent, FlowRemoved, FlowUpdated
from ..._model import Counts, Flow
from ...aggregate import Row, RowKind, TrafficTable
from ...filters import is_of
from .._views import View

__all__ = ["HISTORY", "SORTS", "FlowLine", "Line", "ProcessLine", "TopModel"]

SORTS = ("rate", "traffic", "rx", "tx", "flows", "name", "pid")
"""The keys to sort by, in the order in which a key press goes through them."""
HISTORY = 60
"""Looks that the little curves remember."""
_STALE_LOOKS = 2.5
"""A flow that was not updated for so many looks moves nothing now."""


@attrs.define(eq=False)
class FlowLine:
    """A flow under its process."""

    flow: Flow
    counts: Counts | None
    time: float
    """When it was last reported."""
    previous: Counts | None = None
    """Totals at the report before."""
    before: float | None = None
    """When that was."""

    @property
    def key(self) -> str:
        """Stays the same while the flow lives."""
        return self.flow.id

    @property
    def bytes(self) -> int:
        """Both directions; 0 when unknown."""
        return 0 if self.counts is None else (self.counts.rx_bytes or 0) + (self.counts.tx_bytes or 0)

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Bytes per second, in and out, between the last two reports; `None` when unknown."""
        if self.counts is None or self.before is None or self.time <= self.before:
            return None, None
        delta, elapsed = self.counts.since(self.previous), self.time - self.before
        return (
            None if delta.rx_bytes is None else delta.rx_bytes / elapsed,
            None if delta.tx_bytes is None else delta.tx_bytes / elapsed,
        )

    def update(self, event: FlowUpdated) -> None:
        """Take over a report."""
        self.before, self.previous = self.time, event.previous
        self.flow, self.counts, self.time = event.flow, event.counts, event.time


@attrs.frozen(eq=False)
class ProcessLine:
    """A process."""

    row: Row
    expanded: bool
    curve: tuple[float, ...]
    """Total rate at the last looks, newest last."""

    @property
    def key(self) -> int:
        """Stays the same while the row is in the table."""
        return self.row.serial


Line = Union[ProcessLine, FlowLine]


@attrs.define(eq=False)
class TopModel:
    """Everything behind the screen."""

    table: TrafficTable
    view: View = attrs.field(factory=View)
    sort: str = "rate"
    reverse: bool = False
    wanted: str = ""
    """Only processes with this in their name or pid."""
    lines: list[Line] = attrs.field(factory=list, init=False)
    """What is shown, top to bottom."""
    total: Row = attrs.field(factory=lambda: Row(kind=RowKind.TOTAL), init=False)
    processes: int = attrs.field(default=0, init=False)
    """Rows before the filter."""
    expanded: set[int] = attrs.field(factory=set, init=False)
    """Keys of the processes whose flows are shown."""
    _flows: dict[str, FlowLine] = attrs.field(factory=dict, init=False)
    _curves: dict[int, deque[float]] = attrs.field(factory=dict, init=False)
    _look_every: float = attrs.field(default=1.0, init=False)

    def feed(self, events: Iterable[AnyEvent], now: float | None = None) -> None:
        """Take in events; `now` as in `TrafficTable.feed_many`."""
        flows, events = self._flows, list(events)
        self.table.feed_many(events, now=now)
        for event in events:
            if isinstance(event, FlowRemoved):
                flows.pop(event.flow.id, None)
            elif isinstance(event, FlowUpdated) and event.flow.id in flows:
                flows[event.flow.id].update(event)
            elif isinstance(event, FlowEvent):
                flows[event.flow.id] = FlowLine(event.flow, event.counts, event.time)

    def look(self, every: float = 1.0) -> None:
        """A new look at the table: order, curves, sums.

        Args:
            every: Seconds since the last look.
        """
        self._look_every = every
        rows = self.table.rows()
        curves = {}
        for row in rows:
            curve = self._curves.get(row.serial)
            if curve is None:
                curve = deque(maxlen=HISTORY)
            curve.append(row.rate or 0.0)
            curves[row.serial] = curve
        self._curves = curves  # those of folded rows are forgotten here
        self.expanded &= curves.keys()
        self.total = self.table.total()
        self.processes = len(rows)
        self._arrange(rows)

    def rearrange(self) -> None:
        """The same moment in another order or with other processes expanded."""
        self._arrange(self.table.rows())

    def _arrange(self, rows: list[Row]) -> None:
        if self.wanted:
            wanted = self.wanted.lower()
            pids = {int(wanted)} if wanted.isascii() and wanted.isdigit() else set()
            rows = [row for row in rows if wanted in self.view.label(row).lower() or is_of(row.process, pids)]
        ordered = self.view.sorted(rows, self.sort)
        if self.reverse:
            ordered.reverse()
        flows = self._flows_of(ordered)
        lines: list[Line] = []
        for row in ordered:
            expanded = row.serial in self.expanded
            lines.append(ProcessLine(row, expanded, tuple(self._curves.get(row.serial, ()))))
            if expanded:
                below: list[FlowLine] = sorted(flows.get(row.serial, ()), key=self._flow_order)
                lines.extend(below)
        self.lines = lines

    def _flows_of(self, rows: list[Row]) -> dict[int, list[FlowLine]]:
        """The flows of the expanded rows, found in one pass over all flows."""
        shown = {RowKind.GROUP, RowKind.UNKNOWN}
        wanted = {
            (row.source, row.key): row.serial for row in rows if row.serial in self.expanded and row.kind in shown
        }
        result: dict[int, list[FlowLine]] = {}
        if wanted:
            key_of = self.table.group_by.key
            for line in self._flows.values():
                serial = wanted.get((line.flow.host, key_of(line.flow, None)))
                if serial is not None:
                    result.setdefault(serial, []).append(line)
        return result

    def _flow_order(self, line: FlowLine) -> tuple[float, int, str]:
        rx, tx = self.flow_rates(line)
        rate = (rx or 0.0) + (tx or 0.0) if self.sort == "rate" else 0.0
        return (-rate, -line.bytes, line.flow.id)

    def flow_rates(self, line: FlowLine) -> tuple[float | None, float | None]:
        """Rates of a flow now: zero when its last report is old."""
        now = self.table.time
        rates = line.rates
        if now is not None and now - line.time > _STALE_LOOKS * self._look_every:
            return None if rates[0] is None else 0.0, None if rates[1] is None else 0.0
        return rates

    def toggle(self, key: int) -> None:
        """Expand or collapse a process."""
        self.expanded ^= {key}
        self.rearrange()

    def reset(self) -> None:
        """Begin all totals at zero."""
        self.table.reset()
        self._curves.clear()
        self.expanded.clear()

    @property
    def gaps(self) -> int:
        """Reports of lost events so far."""
        return sum(loss.events for loss in self.table.losses)
