"""Counters per process name (unit, container, pod) for metric systems: bounded in number, never falling.

A metric system keeps every label value for ever. So the label is a process' *name*, never a pid or an
address, and a limited number of names get a series of their own; all others share one series. A counter may
not fall either, or the system takes it for a restart. So traffic that was counted in "other" stays there: a
name that gets a series starts at zero, and the series of a name that loses it ends.
``sum(rate(...))`` over all series is right at any time, and the totals without a label are exact.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from nstat_async._checks import check_number
from nstat_async._coverage import Coverage
from nstat_async._errors import UsageError
from nstat_async._events import AnyEvent, HostState
from nstat_async._monitor import Monitor
from nstat_async.aggregate import GroupBy, Loss, Row, RowKind, TrafficTable

LABELS = {"process": "process name", "unit": "unit", "container": "container", "pod": "pod"}
"""Labels that series may have, and the groupings that they are made of."""

OTHER, UNKNOWN, LOST = "(other)", "(unknown)", "(lost)"
_RESERVED = {RowKind.OTHER: OTHER, RowKind.UNKNOWN: UNKNOWN, RowKind.LOST: LOST}
_MAX_LABEL = 64
_MAX_CANDIDATES = 10_000
_COUNTERS = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "flows")


def _label(row: Row) -> str:
    if row.kind in _RESERVED:
        return _RESERVED[row.kind]
    # Names are chosen by processes: nothing unprintable goes into a metric, nor a lone surrogate.
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(row.key))
    text = text[:_MAX_LABEL]
    return OTHER if text in _RESERVED.values() or not text else text


@attrs.define(eq=False)
class Series:
    """The counters of one label."""

    label: str
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    flows: int = 0
    open_flows: int = 0
    is_counted: bool = False
    """False while the platform reported no bytes for any of its flows."""
    recent: int = 0
    """Bytes since the last review."""
    debt: dict[str, int] = attrs.field(factory=dict, repr=False)

    @property
    def is_reserved(self) -> bool:
        """True for a series that does not stand for a name."""
        return self.label in _RESERVED.values()

    def add(self, row: Row) -> None:
        """Add a difference. A negative one (an owner became known late) is subtracted from later ones."""
        for name in _COUNTERS:
            amount = getattr(row, name) + self.debt.pop(name, 0)
            if amount < 0:
                self.debt[name] = amount
            else:
                setattr(self, name, getattr(self, name) + amount)
        self.recent += max(0, row.bytes)
        self.is_counted = self.is_counted or row.is_counted


@attrs.frozen
class Observation:
    """Everything that is exported at one moment."""

    time: float | None
    """Time of the last event, seconds since the epoch."""
    series: tuple[Series, ...]
    total: Row
    losses: tuple[Loss, ...]
    polls: tuple[int, int]
    """Completed polls, and those of them that were incomplete."""
    hosts: dict[str, HostState]
    """The machines of a fleet, by name; empty without one."""


class SeriesKeeper:
    """Feeds a table by process name, and chooses the names that have a series.

    `feed_many` and `observe` may be called from different threads.

    Args:
        label: The label of the series: one of `LABELS`.
        limit: How many names have a series of their own. Free places go to the first names that come; every
            `review` seconds names with at least twice the recent traffic replace those with the least.
        review: Seconds between reviews, on the events' clock.
        include_history: Count what flows had carried before they were seen.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self, *, label: str = "process", limit: int = 50, review: float = 300.0, include_history: bool = False
    ) -> None:
        if label not in LABELS:
            raise UsageError(f"by: {label!r} is not one of {', '.join(LABELS)}")
        check_number("limit", limit, whole=True, least=0)
        check_number("review", review)
        self._limit = limit
        self._review = review
        self._table = TrafficTable(GroupBy.named(LABELS[label]), include_history=include_history, max_finished=1000)
        self._lock = threading.Lock()
        self._before = self._table.snapshot()
        self._highest: dict[str, Any] = dict.fromkeys(_COUNTERS, 0)
        """The highest totals so far: the last counts of a flow may take back the byte of a FIN, and no counter may fall."""
        self._series: dict[str, Series] = {}
        self._candidates: dict[str, int] = {}
        self._reviewed: float | None = None
        """Time of the last review."""
        self._observed: Observation | None = None

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        with self._lock:
            self._table.feed_many(events)
            self._observed = None

    def observe(self) -> Observation:
        """The present counters. Two calls without an event between them return the same object."""
        with self._lock:
            if self._observed is None:
                self._observed = self._look()
            return self._observed

    def _look(self) -> Observation:
        now = self._table.snapshot()
        # Before the growth is placed: the bytes of a series must be exported once before it ends.
        last = self._reviewed
        if now.time is not None and (last is None or not last <= now.time < last + self._review):  # or it was set back
            if last is not None:
                self._replace()
            self._reviewed = now.time
        grown = now.since(self._before)
        self._before = now
        for row in sorted(grown, key=lambda row: row.bytes, reverse=True):
            self._place(_label(row)).add(row)
            if row.kind is RowKind.GROUP and _label(row) not in self._series:
                self._note(_label(row), row.bytes)
        for series in self._series.values():
            series.open_flows = 0
        for row in now.rows:
            if row.open_flows:
                self._place(_label(row)).open_flows += row.open_flows
        # Copies: the observation is read in other threads while these go on.
        copies = tuple(attrs.evolve(each, debt={}) for each in self._series.values())
        self._highest = {name: max(known, getattr(now.total, name)) for name, known in self._highest.items()}
        total = attrs.evolve(now.total, **self._highest)
        return Observation(now.time, copies, total, now.losses, self._table.polls, self._table.hosts)

    def _place(self, label: str) -> Series:
        """The series of a label: its own, a new one while there is room, or that of all others."""
        series = self._series.get(label)
        if series is None:
            own = sum(name not in _RESERVED.values() for name in self._series)
            if label not in _RESERVED.values() and own >= self._limit:
                return self._place(OTHER)
            series = self._series[label] = Series(label)
        return series

    def _note(self, label: str, amount: int) -> None:
        if label in self._candidates or len(self._candidates) < _MAX_CANDIDATES:
            self._candidates[label] = self._candidates.get(label, 0) + amount

    def _replace(self) -> None:
        """Replace the quietest names by much busier ones."""
        own = sorted(
            (each for each in self._series.values() if not each.is_reserved),
            key=lambda each: each.recent,
        )
        busiest = sorted(self._candidates.items(), key=lambda item: item[1], reverse=True)
        for (label, amount), quiet in zip(busiest, own, strict=False):
            if amount <= 2 * quiet.recent:
                break
            del self._series[quiet.label]
            self._series[label] = Series(label, is_counted=True)
        for series in self._series.values():
            series.recent = 0
        self._candidates.clear()


def keepers(by: Sequence[str], **options: Any) -> dict[str, SeriesKeeper]:
    """A keeper for each label.

    Raises:
        UsageError: A label does not exist, or an option of `SeriesKeeper` is out of range.
    """
    return {label: SeriesKeeper(label=label, **options) for label in dict.fromkeys(("process", *by))}


class KeeperFeed:
    """Feeds keepers from a monitor: the common base of the exporters.

    Args:
        keepers: The counters, by label.
    """

    def __init__(self, keepers: Mapping[str, SeriesKeeper]) -> None:
        self._keepers = keepers
        self._feeds = 0
        self.coverage: Coverage | None = None
        """How much of the interfaces' traffic the flows explained when events last came."""

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        listed = list(events)
        for keeper in self._keepers.values():
            keeper.feed_many(listed)

    async def run(self, monitor: Monitor) -> None:
        """Feed from a monitor, beside its other consumers, until it ends."""
        async with monitor.subscribe() as subscription:
            self._feeds += 1
            try:
                while events := await subscription.receive_many():
                    self.feed_many(events)
                    self.coverage = monitor.statistics().coverage
            finally:
                self._feeds -= 1
