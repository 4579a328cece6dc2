"""What `top` shows, without a screen.

The model takes thousands of events a second, sorts all rows once a second, and returns any line by its number at once.
A look costs one sort of the rows, plus the flows of the expanded rows; nothing is formatted here.

Two tables are fed: one of the rows, and one of the flows for their rates. The share of a flow in its row comes from the
row's own table (`TrafficTable.shares`), so that the flows of a row, with those that ended, add up to the row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Union

import attrs

from ..._events import AnyEvent, FlowAdded, FlowEvent, FlowRemoved, HostState
from ..._model import Flow, Provider
from ...aggregate import GroupBy, Row, RowKind, Share, TrafficTable, sum_rows
from ...filters import is_of
from .._views import SORT_KEYS, View

HISTORY = 240
"""How many looks the curves and the chart show at most."""


@attrs.frozen(eq=False)
class RowLine:
    """A process, or whatever else the rows are."""

    row: Row
    expanded: bool
    curve: tuple[float, ...]
    """Total rate at the last looks, newest last."""

    @property
    def key(self) -> object:
        """Stays the same while the row is in the table."""
        return self.row.serial


@attrs.frozen(eq=False)
class HeadingLine:
    """Headings of the flows below a row."""

    key: object


@attrs.frozen(eq=False)
class FlowLine:
    """A flow below its row."""

    event: FlowEvent
    """The last event of the flow."""
    share: Share
    """The part of the row's traffic that is the flow's."""
    rx_rate: float | None
    tx_rate: float | None
    seen_since: float
    """When the flow was reported first, seconds since the epoch."""
    was_there: bool
    """True: the flow existed before its first report."""

    @property
    def flow(self) -> Flow:
        """The flow as last reported."""
        return self.share.flow

    @property
    def key(self) -> object:
        """Stays the same while the flow lives."""
        return self.flow.id


@attrs.frozen(eq=False)
class RestLine:
    """The part of a row's traffic that is not of its open flows: of those that ended."""

    key: object
    row: Row
    """Their sum."""


Line = Union[RowLine, HeadingLine, FlowLine, RestLine]


def _make_flow_table() -> TrafficTable:
    return TrafficTable(GroupBy.flow(), max_finished=0)


@attrs.define(eq=False)
class TopModel:
    """Everything behind the screen."""

    view: View = attrs.field(factory=View)
    include_history: bool = False
    """True: the traffic of open flows before the start counts, too."""
    sort: str = "rate"
    reverse: bool = False
    wanted: str = ""
    """Only rows with this in their name, or of this pid."""
    lines: Sequence[Line] = attrs.field(default=(), init=False)
    """What is shown, top to bottom."""
    total: Row = attrs.field(factory=lambda: Row(kind=RowKind.TOTAL), init=False)
    """The sum of the rows that pass the filter."""
    shown: int = attrs.field(default=0, init=False)
    """Rows that pass the filter."""
    hidden: int = attrs.field(default=0, init=False)
    """Rows that do not pass the filter."""
    known: frozenset[str] = attrs.field(default=frozenset(), init=False)
    """The fields that at least one row has: ``"user"``, ``"unit"``, ``"command"``, ``"media"``."""
    history: deque[tuple[float, float]] = attrs.field(factory=lambda: deque(maxlen=HISTORY), init=False)
    """Rates of the total at the last looks: received, sent."""
    expanded: set[int] = attrs.field(factory=set, init=False)
    """Serials of the rows whose flows are shown."""
    table: TrafficTable = attrs.field(init=False)
    _flows: TrafficTable = attrs.field(factory=_make_flow_table, init=False)
    _events: dict[str, FlowEvent] = attrs.field(factory=dict, init=False)
    """The last event of each open flow."""
    _first: dict[str, tuple[float, bool]] = attrs.field(factory=dict, init=False)
    """When each open flow was reported first, and whether it was there before."""
    _curves: dict[int, deque[float]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.table = TrafficTable(self.view.group_by, include_history=self.include_history)

    def feed(self, events: Iterable[AnyEvent], now: float | None = None) -> None:
        """Take in events; `now` as in `TrafficTable.feed_many`."""
        batch = list(events)
        self.table.feed_many(batch, now=now)
        self._flows.feed_many(batch, now=now)
        for event in batch:
            if isinstance(event, FlowRemoved):
                self._events.pop(event.flow.id, None)
                self._first.pop(event.flow.id, None)
            elif isinstance(event, FlowEvent):
                self._events[event.flow.id] = event
                if event.flow.id not in self._first:
                    began = isinstance(event, FlowAdded) and not event.preexisting
                    self._first[event.flow.id] = (event.time, not began)

    def look(self) -> None:
        """Take a new look at the table: order, curves, sums."""
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
        self._arrange(rows)
        self.history.append((self.total.rx_rate or 0.0, self.total.tx_rate or 0.0))

    def rearrange(self) -> None:
        """Arrange the last look again, in another order or with other rows expanded."""
        self._arrange(self.table.rows())

    def _arrange(self, rows: list[Row]) -> None:
        chosen = self._passing(rows)
        self.shown, self.hidden = len(chosen), len(rows) - len(chosen)
        self.total = sum_rows(chosen)
        processes = [row.process for row in chosen if row.process is not None]
        facts = {
            "user": any(process.uid is not None for process in processes),
            "unit": any(self.view.unit(row) for row in chosen),
            "command": any(process.command_line or process.path for process in processes),
            "media": bool(self.total.media),
        }
        self.known = frozenset(name for name, known in facts.items() if known)
        ordered = self.view.sorted(chosen, self.sort)
        if self.reverse:
            ordered.reverse()
        shares = self.table.shares(row for row in ordered if row.serial in self.expanded)
        lines: list[Line] = []
        for row in ordered:
            below = shares.get(row.serial)
            lines.append(RowLine(row, below is not None, tuple(self._curves.get(row.serial, ()))))
            if below is not None:
                lines += self._below(row, below)
        self.lines = lines

    def _passing(self, rows: list[Row]) -> list[Row]:
        wanted = self.wanted.lower()
        if not wanted:
            return rows
        pids = {int(wanted)} if wanted.isascii() and wanted.isdigit() else set()
        return [row for row in rows if wanted in self.view.label(row).lower() or is_of(row.process, pids)]

    def _below(self, row: Row, shares: list[Share]) -> list[Line]:
        """The lines below a row: headings, its flows, and the rest."""
        flows = [self._flow_line(share) for share in shares if share.flow.id in self._events]
        flows.sort(key=self._flow_order, reverse=self.reverse)
        lines: list[Line] = [HeadingLine(("heading", row.serial)), *flows]
        ended = _rest(row, flows)
        if ended.flows or ended.bytes:
            lines.append(RestLine(("rest", row.serial), ended))
        return lines

    def _flow_line(self, share: Share) -> FlowLine:
        row = self._flows.row(share.flow.id)
        rates = (None, None) if row is None or not share.is_counted else (row.rx_rate, row.tx_rate)
        return FlowLine(self._events[share.flow.id], share, *rates, *self._first[share.flow.id])

    def _flow_order(self, line: FlowLine) -> tuple[object, ...]:
        share, flow = line.share, line.flow
        by_bytes = (-(share.rx_bytes + share.tx_bytes), flow.id)
        first: object
        if self.sort in {"rate", "rx-rate", "tx-rate"}:
            rx, tx = line.rx_rate or 0.0, line.tx_rate or 0.0
            first = -{"rate": rx + tx, "rx-rate": rx, "tx-rate": tx}[self.sort]
        elif self.sort == "name":
            first = str(flow.remote or flow.local or "")
        else:
            first = -{"rx": share.rx_bytes, "tx": share.tx_bytes}.get(self.sort, 0)
        return (first, *by_bytes)

    def toggle(self, serial: int) -> None:
        """Show or hide the flows of a row."""
        self.expanded ^= {serial}
        self.rearrange()

    def sort_by(self, key: str) -> None:
        """Sort by a column; a second call with the same column reverses the order."""
        self.reverse = not self.reverse if key == self.sort else False
        self.sort = key
        self.rearrange()

    def sort_next(self, by: int) -> None:
        """Sort by the column `by` places further: 1 is the next one, -1 the one before."""
        keys = list(SORT_KEYS)
        self.sort = keys[(keys.index(self.sort) + by) % len(keys)]
        self.rearrange()

    def choose(self, wanted: str) -> None:
        """Show only rows with this in their name, or of this pid."""
        if wanted != self.wanted:
            self.wanted = wanted
            self.history.clear()
        self.rearrange()

    def change_view(self, view: View) -> None:
        """Show rows of another kind; they count from now on."""
        time = self.table.time or 0.0  # not that of the flow's last event: rates are taken from here on
        self.view = view
        self.table = TrafficTable(view.group_by, include_history=self.include_history)
        self.table.feed_many(
            FlowAdded(time, event.flow, event.counts, preexisting=True) for event in self._events.values()
        )
        self._curves.clear()
        self.expanded.clear()
        self.look()

    def reset(self) -> None:
        """Set all totals to zero."""
        self.table.reset()
        self._flows.reset()
        self._curves.clear()
        self.expanded.clear()
        self.history.clear()
        self.look()

    @property
    def gaps(self) -> int:
        """Reports of lost events so far."""
        return sum(loss.events for loss in self.table.losses)

    @property
    def hosts(self) -> dict[str, HostState]:
        """The machines of a fleet; another view has those that were known before, too."""
        return self._flows.hosts

    @property
    def refused(self) -> dict[Provider, str]:
        """The kinds of flows that were refused, and why."""
        return self._flows.refused

    @property
    def polls(self) -> int:
        """Polls that were answered so far."""
        return self.table.polls[0]


def _rest(row: Row, flows: Sequence[FlowLine]) -> Row:
    """A row without these flows."""
    shares = [line.share for line in flows]
    rx_rate = None if row.rx_rate is None else max(0.0, row.rx_rate - sum(line.rx_rate or 0.0 for line in flows))
    tx_rate = None if row.tx_rate is None else max(0.0, row.tx_rate - sum(line.tx_rate or 0.0 for line in flows))
    return Row(
        kind=RowKind.OTHER,
        flows=row.flows - sum(share.parts for share in shares),
        uncounted_flows=row.uncounted_flows - sum(not share.is_counted for share in shares),
        rx_bytes=row.rx_bytes - sum(share.rx_bytes for share in shares),
        tx_bytes=row.tx_bytes - sum(share.tx_bytes for share in shares),
        rx_rate=rx_rate,
        tx_rate=tx_rate,
    )
