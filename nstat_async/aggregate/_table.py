"""Exact totals and rates of flows, grouped by anything, without I/O.

Operations wanted, and their costs (``benchmarks/aggregate.py`` measures them):
`TrafficTable.feed` of an update, the hot path, takes about a microsecond and
makes no objects; the row of a process takes about a kilobyte; reading the
ten largest of *n* rows takes one pass.

There are three parts: `Groups` has the rows, an `OpenFlow` has the counters of one flow, and the tables
here take in events and return rows.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from heapq import nlargest
from operator import attrgetter
from typing import Any, Literal, get_args

import attrs

from nstat_async._checks import LONGEST_SECONDS, check_number
from nstat_async._errors import UsageError
from nstat_async._events import (
    AnyEvent,
    EventsLost,
    FlowAdded,
    FlowEvent,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
)
from nstat_async._model import UNCOUNTED_PROVIDERS, Counts, Flow, Provider
from nstat_async._options import providers_of
from nstat_async._rows import Row, RowKind

from ._grouping import GroupBy
from ._groups import Groups
from ._media import media_of
from ._rates import RateWindow
from ._rows import Loss, TableSnapshot
from ._tally import OpenFlow, Share, Tally, is_counted, known_or, sum_tallies

DEFAULT_MAX_FINISHED = 10_000
_CLOCK_STEP = 5.0
"""If the events' clock and the monotonic one differ by more seconds between two batches, the wall clock was set."""

_MAY_COME_BACK = frozenset({RemovalReason.FILTERED, RemovalReason.MONITOR})
_MOST_LEFT = 10_000

SortKey = Literal[
    "bytes", "rate", "rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_rate", "tx_rate", "flows", "open_flows",
    "first_seen", "last_seen",
]  # fmt: skip
"""The keys that `TrafficTable.top` can sort by."""


class TrafficTable:
    """Totals and rates of flows, grouped by a key.

    Feed it every event of a monitor, a subscription or a recording, in order. It
    keeps no clock, opens nothing, and never raises because of what a kernel did.

    - A new flow counts from zero, an older one (``preexisting``) from its first report on. Closed flows stay
      counted. Each counter counts by itself: an odd reading adds nothing, a wrapped counter adds what passed. If all
      counters restart, the id belongs to a new flow.
    - Traffic belongs to the group that the flow had when it was reported. When a flow with an unknown group gets one,
      its earlier traffic moves along. The sum over the rows of any table is the sum over all flows.
    - Flows without counts add nothing, and count in ``flows`` and ``uncounted_flows``. Flows that an overflowing buffer
      gave up, with all their traffic, are one sum: the row ``LOST``.

    Args:
        group_by: What the rows stand for.
        include_history: Count the traffic of flows before the table saw them.
        exclude: Providers that are not counted; by default those without traffic of their
            own, and UDP subflows, whose bytes the flow of their socket also has.
        rate_window: Seconds over which rates are taken; a rate spans at least one
            polling interval.
        max_finished: Most rows without open flows. If there are more, those
            with the fewest bytes are folded into the row ``OTHER``.
        max_age: Seconds after which a row without open flows is folded; `None`: never.
        source: Name of the machine or recording, shown in the rows. In a fleet, rows whose key is valid on one machine
            only, such as processes, have the name of the flow's machine (`GroupBy.per_host`).

    Rows with open flows are never folded, so the open flows and `max_finished` bound the
    memory. A folded group that comes back begins a new row.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        group_by: GroupBy,
        *,
        include_history: bool = False,
        exclude: Iterable[Provider] = UNCOUNTED_PROVIDERS,
        rate_window: float = 5.0,
        max_finished: int = DEFAULT_MAX_FINISHED,
        max_age: float | None = None,
        source: str | None = None,
    ) -> None:
        if not isinstance(group_by, GroupBy):
            raise UsageError(f"group_by: {group_by!r} is not a GroupBy")
        check_number("max_finished", max_finished, whole=True, least=0)
        check_number("max_age", max_age, optional=True)
        check_number("rate_window", rate_window, most=LONGEST_SECONDS)
        self.group_by = group_by
        self.source = source
        self._include_history = include_history
        self._exclude = providers_of("exclude", exclude)
        self._max_age = max_age
        self._window = RateWindow(rate_window)
        self._groups = Groups(group_by, max_finished)
        self._open: dict[str, OpenFlow] = {}
        self._left: OrderedDict[str, None] = OrderedDict()
        """The latest flows that went without an end: if they come back, their history is counted already."""
        self._losses: dict[LossCause, Loss] = {}
        self._polls = self._incomplete_polls = 0
        self._hosts: dict[str, HostState] = {}
        self._refused: dict[Provider, str] = {}
        self._clocks: tuple[float, float] | None = None
        """The events' clock and the monotonic one, at the last batch."""

    # -- feeding ----------------------------------------------------------------------------

    def feed(self, event: AnyEvent) -> None:
        """Take in one event.

        Raises:
            UsageError: It is not an event.
        """
        window = self._window
        try:
            time = event.time
        except AttributeError:
            raise UsageError(f"feed: {event!r} is not an event") from None
        if not window.low <= time < window.high:
            self._tick(time)
        if time > window.now:  # noqa: PLR1730  # max() would cost a tenth of the whole feed
            window.now = time
        if event.__class__ is FlowUpdated:
            flow = event.flow
            entry = self._open.get(flow.id)
            if entry is None or entry.seen is not flow:
                entry = self._find(event, entry)
                if entry is None:
                    return
            tally = entry.tally
            tally.last_seen = time
            if tally.mark != window.mark:
                tally.save(window)
            counts = event.counts
            # Without calls, because this runs for every report of every flow.
            try:
                rx_bytes = counts.rx_bytes
                tx_bytes = counts.tx_bytes
                rx_packets = counts.rx_packets
                tx_packets = counts.tx_packets
                more_rx_bytes = rx_bytes - entry.rx_bytes  # type: ignore[operator]  # None: see below
                more_tx_bytes = tx_bytes - entry.tx_bytes  # type: ignore[operator]
                more_rx_packets = rx_packets - entry.rx_packets  # type: ignore[operator]
                more_tx_packets = tx_packets - entry.tx_packets  # type: ignore[operator]
            except TypeError:
                self._account(entry, counts)
                return
            if (
                not entry.counted
                or more_rx_bytes < 0
                or more_tx_bytes < 0
                or more_rx_packets < 0
                or more_tx_packets < 0
            ):
                self._account(entry, counts)
                return
            entry.rx_bytes = rx_bytes  # type: ignore[assignment]
            entry.tx_bytes = tx_bytes  # type: ignore[assignment]
            entry.rx_packets = rx_packets  # type: ignore[assignment]
            entry.tx_packets = tx_packets  # type: ignore[assignment]
            tally.rx_bytes += more_rx_bytes
            tally.tx_bytes += more_tx_bytes
            tally.rx_packets += more_rx_packets
            tally.tx_packets += more_tx_packets
            if entry.media is not None:
                entry.count_media(counts, from_begin=True)
        elif isinstance(event, FlowEvent):
            self._feed_edge(event)
        elif isinstance(event, EventsLost):
            self._feed_loss(event)
        elif isinstance(event, PollCompleted):
            self._polls += 1
            self._incomplete_polls += not event.complete
        elif isinstance(event, HostUpdated) and event.host is not None:
            if event.state is HostState.LEFT:
                self._hosts.pop(event.host, None)
            else:
                self._hosts[event.host] = event.state
        elif isinstance(event, ProviderRefused) and event.provider not in self._exclude:
            self._refused[event.provider] = event.detail

    def feed_many(self, events: Iterable[AnyEvent], *, now: float | None = None) -> None:
        """Take in events, in order.

        Args:
            events: The events.
            now: Monotonic seconds at which they were received, if they come from a running kernel: setting the wall
                clock, which events have, then does not change rates. `None`: rates go by the events' clock.
        """
        feed = self.feed
        if now is not None:
            events = list(events)
            found = self._clock_step(events, now) if events else None
            if found is not None:
                at, step = found
                self.feed_many(events[:at])
                self._window.shift(step)
                events = events[at:]
        for event in events:
            feed(event)

    def _clock_step(self, events: Sequence[AnyEvent], now: float) -> tuple[int, float] | None:
        """The index of the first event after the wall clock was set, and by how many seconds; `None` if it was not set."""
        last, newest = self._clocks, events[-1].time
        if last is not None and newest < last[0] - _CLOCK_STEP:
            newest = max(event.time for event in events)  # it may be late: the others are not
        self._clocks = newest, now
        if last is None:
            return None
        step = (newest - last[0]) - (now - last[1])
        if abs(step) <= _CLOCK_STEP:
            return None
        times = [last[0], *(event.time for event in events)]
        jumps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return (jumps.index(max(jumps)) if step > 0 else jumps.index(min(jumps))), step

    def advance(self, time: float) -> None:
        """Move the clock on without an event, so that the rates of a silent stream fall.

        Args:
            time: Seconds since the epoch, on the events' clock; an earlier one is ignored.
        """
        if time > self._window.now and self._window.mark:
            if time >= self._window.high:
                self._tick(time)
            self._window.now = time

    def _tick(self, time: float) -> None:
        # Where others of a live batch are newer, such an event is only late: the backlog of a fleet's machine, for example.
        if self._clocks is not None and time < self._window.low <= self._clocks[0]:
            return
        self._window.advance(time)
        if self._max_age is not None:
            self._groups.fold_older(time - self._max_age)

    def _feed_edge(self, event: FlowEvent) -> None:
        """Take in the beginning or end of a flow, or an update that the hot path does not take."""
        entry = self._find(event, self._open.get(event.flow.id))
        if entry is None:
            return
        tally = entry.tally
        tally.touch(event.time, self._window)
        if event.counts is not None:
            self._account(entry, event.counts)
        if isinstance(event, FlowRemoved):
            if event.final and event.counts is not None:
                entry.end_with(event.counts)
            del self._open[event.flow.id]
            if self._include_history and event.reason in _MAY_COME_BACK:
                self._left[event.flow.id] = None
                if len(self._left) > _MOST_LEFT:
                    self._left.popitem(last=False)
            tally.open_flows -= 1
            self._groups.settle(tally)

    def _feed_loss(self, event: EventsLost) -> None:
        self._add_loss(Loss(event.cause, 1, event.count or 0))
        # Other gaps may concern flows that are open, or that will be removed with the same counts.
        if event.cause is not LossCause.OVERFLOW:
            return
        tally = self._groups.of_kind(RowKind.LOST, event.time)
        tally.touch(event.time, self._window)
        tally.flows += event.count or 0
        if is_counted(event.counts):
            tally.add(*known_or(event.counts))
        else:
            tally.uncounted_flows += event.count or 0

    def _add_loss(self, loss: Loss) -> None:
        old = self._losses.get(loss.cause) or Loss(loss.cause, 0, 0)
        self._losses[loss.cause] = Loss(loss.cause, old.events + loss.events, old.count + loss.count)

    # -- flows ------------------------------------------------------------------------------

    def _find(self, event: FlowEvent, entry: OpenFlow | None) -> OpenFlow | None:
        """The entry of the event's flow, in the right row; `None` if the flow is not counted."""
        flow = event.flow
        if entry is not None:
            if entry.seen is flow:
                return entry
            if entry.seen == flow:
                entry.flow = entry.seen = flow
                return entry
            return self._follow(event, entry)
        if flow.provider in self._exclude:
            return None
        key = self._key(event)
        source = flow.host if self.group_by.per_host and flow.host is not None else self.source
        tally = self._groups.of_key(source, key, flow, event.time)
        # A flow that ends without having begun is older than the table.
        preexisting = event.preexisting if isinstance(event, FlowAdded) else isinstance(event, FlowRemoved)
        entry = OpenFlow(flow, tally, preexisting, seen=None if key is None and self.group_by.needs_details else flow)
        entry.has_history = self._include_history and flow.id not in self._left
        if isinstance(event, FlowUpdated) and is_counted(event.previous):
            # The table saw only a part of the stream: of this flow it counts the event's own growth.
            entry.counted = True
            entry.current = known_or(event.previous)
            entry.media = media_of(event.previous) or None
            entry.rebase()
        self._open[flow.id] = entry
        tally.count_flow(1, entry)
        return entry

    def _key(self, event: FlowEvent) -> Hashable:
        return self.group_by.key(event.flow, event.details if self.group_by.needs_details else None)

    def _follow(self, event: FlowEvent, entry: OpenFlow) -> OpenFlow:
        """A flow changed: move it to another row if its key changed."""
        flow, old = event.flow, entry.tally
        key, before = self._key(event), entry.flow
        if key is None and self.group_by.needs_details:
            key = old.key  # a report without details says nothing
        entry.flow = flow
        entry.seen = None if key is None and self.group_by.needs_details else flow
        if key == old.key:
            self._groups.describe(old, flow)
            return entry
        new = self._groups.of_key(old.source, key, flow, event.time)
        if old.key is None or self.group_by.refines(old.key, key) or self.group_by.learns(before, flow):
            # The new key is more exact: the new row gets all earlier traffic.
            old.move(entry.contribution(), new)
            entry.move_media(new)
        else:
            entry.rebase()
            entry.parts = 1  # earlier flows with the same id stay in the old row
        old.count_flow(-1, entry)
        new.count_flow(1, entry)
        entry.tally = new
        self._groups.settle(old)
        return entry

    def _account(self, entry: OpenFlow, counts: Counts) -> None:
        """Count a report that is special: the first one, one with unknown counters, or one with a counter that fell."""
        if not is_counted(counts):
            return
        entry.count_media(counts, from_begin=entry.has_history or not entry.preexisting)
        tally = entry.tally
        if entry.counted:
            tally.add(*entry.grow(counts))
            return
        entry.counted = True
        tally.uncounted_flows -= 1
        entry.current = known_or(counts)
        if not entry.preexisting:
            tally.add(*entry.current)
        elif entry.has_history:
            tally.shift(*entry.current)
        else:
            entry.rebase()

    # -- looking ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of rows, without the sums of what was folded or lost."""
        return len(self._groups.tallies)

    @property
    def time(self) -> float | None:
        """Time of the latest event, seconds since the epoch; `None` before the first."""
        return self._window.now if self._window.mark else None

    @property
    def open_flows(self) -> int:
        """Flows that are open now."""
        return len(self._open)

    @property
    def polls(self) -> tuple[int, int]:
        """Polls completed, and how many of them were known to be incomplete."""
        return self._polls, self._incomplete_polls

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses that the stream reported, by cause."""
        return tuple(self._losses.values())

    @property
    def hosts(self) -> dict[str, HostState]:
        """The machines of a fleet that did not leave, by name; empty without a fleet. The flows of one that is silent are as
        last known, and their rates fall to zero.
        """  # noqa: D205  # one sentence of two lines
        return dict(self._hosts)

    @property
    def refused(self) -> dict[Provider, str]:
        """The kinds of flows that a kernel refused to report, and why: none of them is counted."""
        return dict(self._refused)

    def rows(self) -> list[Row]:
        """All rows, in the order in which the groups appeared; folded and lost traffic comes last."""
        span = self._window.span()
        return [tally.row(span) for tally in self._groups]

    def row(self, key: Hashable, source: str | None = None) -> Row | None:
        """The row of one key; `None` if there is none."""
        tally = self._groups.tallies.get((source or self.source, key))
        return None if tally is None else tally.row(self._window.span())

    def total(self) -> Row:
        """The sum of all rows."""
        return sum_tallies(self._groups, RowKind.TOTAL, self._window.span())

    def top(self, count: int = 10, by: SortKey = "bytes", *, other: bool = True) -> list[Row]:
        """The largest rows, largest first.

        Args:
            count: How many.
            by: The value to sort by: bytes or rates, in one direction or both, packets, flows, times.
            other: Add a row ``OTHER`` with the sum of all rows that are not listed, and a row ``LOST``, unless they
                are empty, so that the sum of the list is the total.

        Raises:
            UsageError: `by` is not one of these, or `count` is not a number.
        """
        check_number("count", count, whole=True, least=0)
        span = self._window.span()
        chosen = nlargest(count, self._groups.tallies.values(), key=_order(by, span[0]))
        rows = [tally.row(span) for tally in chosen]
        if other:
            listed = {tally.serial for tally in chosen}
            rest = [each for each in self._groups if each.serial not in listed and each.kind is not RowKind.LOST]
            if rest:
                rows.append(sum_tallies(rest, RowKind.OTHER, span))
            rows += [each.row(span) for each in self._groups.sums() if each.kind is RowKind.LOST]
        return rows

    def flows(self, key: Hashable, source: str | None = None) -> list[Flow]:
        """The open flows of one row."""
        tally = self._groups.tallies.get((source or self.source, key))
        return [] if tally is None else [entry.flow for entry in self._open.values() if entry.tally is tally]

    def shares(self, rows: Iterable[Row]) -> dict[int, list[Share]]:
        """The shares of open flows in rows of this table. With the flows that ended, they add up to the row.

        Args:
            rows: Rows that `rows` or `top` returned.

        Returns:
            A list of shares for each row, by `Row.serial`. It takes one pass over the open flows.
        """
        found: dict[int, list[Share]] = {row.serial: [] for row in rows}
        if found:
            for entry in self._open.values():
                shares = found.get(entry.tally.serial)
                if shares is not None:
                    shares.append(entry.share())
        return found

    def snapshot(self) -> TableSnapshot:
        """The table of this moment, for `TableSnapshot.since`."""
        return TableSnapshot(self.time, tuple(self.rows()), self.losses)

    # -- the whole table ----------------------------------------------------------------------

    def reset(self) -> None:
        """Set all totals and rates to zero; open flows stay known, and count from now on."""
        self._groups.clear()
        self._losses.clear()
        self._polls = self._incomplete_polls = 0
        for entry in self._open.values():
            old = entry.tally
            entry.parts = 1
            entry.rebase()
            entry.tally = tally = self._groups.of_key(old.source, old.key, None, self._window.now)
            tally.describe_like(old)
            tally.count_flow(1, entry)

    def merge(self, other: TrafficTable, source: str | None = None) -> None:
        """Add another table, e.g. of another machine or recording.

        Rates include only what is fed to this table. Open flows of `other` are open here too,
        with the id ``f"{source}/{id}"`` if there is a source.

        Args:
            other: A table with the same grouping; it is not changed.
            source: Name that keeps its rows apart from those of this table; `None`:
                that of the other table. Without any name equal keys are added up.

        Raises:
            UsageError: The groupings differ, or an open flow has the same id in both.
        """
        if other.group_by.name != self.group_by.name:
            raise UsageError(
                f"merge: a table by {other.group_by.name} cannot be merged into one by {self.group_by.name}"
            )
        renamed: dict[str, OpenFlow] = {}
        for identity, entry in other._open.items():
            label = source or entry.tally.source
            renamed[identity if label is None else f"{label}/{identity}"] = entry
        if clash := self._open.keys() & renamed.keys():
            raise UsageError(f"merge: flow {min(clash)} is open in both tables; name a source")
        targets = self._groups.merge(other._groups, source)
        for identity, entry in renamed.items():
            self._open[identity] = attrs.evolve(entry, tally=targets[entry.tally.serial])
        for target in targets.values():
            self._groups.settle(target)
        for loss in other._losses.values():
            self._add_loss(loss)
        self._hosts |= other._hosts
        self._refused |= other._refused
        self._polls += other._polls
        self._incomplete_polls += other._incomplete_polls


def _order(by: SortKey, start: int) -> Callable[[Tally], Any]:
    if by not in get_args(SortKey):
        raise UsageError(f"by: {by!r} is not one of {', '.join(get_args(SortKey))}")
    special: dict[str, Callable[[Tally], Any]] = {
        "bytes": lambda tally: tally.rx_bytes + tally.tx_bytes,
        "rate": lambda tally: sum(tally.grown(start)),
        "rx_rate": lambda tally: tally.grown(start)[0],
        "tx_rate": lambda tally: tally.grown(start)[1],
    }
    return special.get(by) or attrgetter(by)


class ProcessTable(TrafficTable):
    """Totals and rates per process; the key of a row is ``(pid, unique_pid)``.

    A process that ends keeps its row. A later process with the same pid has another
    `Process.unique_pid`, and so another row.

    Args:
        effective: Attribute flows to the process on whose behalf they exist.
        options: Those of `TrafficTable`.
    """

    def __init__(self, *, effective: bool = False, **options: Any) -> None:
        super().__init__(GroupBy.processes(effective=effective), **options)
