"""Exact totals and rates of flows, grouped by anything: the pure, synchronous heart.

Operations wanted, and what they cost (``benchmarks/aggregate.py`` measures):
`TrafficTable.feed` of an update, the hot path, in about a microsecond and
without making objects; a row of a process in about a kilobyte; a look at the
ten largest of *n* rows in one pass.

What is counted:

- A flow that begins while the table is fed counts from zero, one that was there
  before (``preexisting``) from its first counts on; ``include_history=True``
  counts all of it.
- A closed flow stays counted. Counters that fall mean a new flow behind an old
  id: what was counted stays, and the new counters count from zero.
- `Provider.UDP_SUBFLOW` is left out, because its bytes are in the flow of its
  socket too; so are connections, routes and interfaces, which are no flows.
- Flows without counts add nothing and are in ``flows`` and ``uncounted_flows``.
- Flows that an overflowing buffer gave up come as one sum; they are the row
  ``LOST``. Such a sum has what the flows had in all, their history included.
"""

from __future__ import annotations

from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from nstat_async._errors import UsageError
from nstat_async._events import AnyEvent, EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted
from nstat_async._model import Counts, Flow, Process, Provider

from ._grouping import GroupBy
from ._rates import RateWindow
from ._rows import Loss, Row, RowKind, TableSnapshot
from ._tally import OpenFlow, Tally, sum_tallies

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["ProcessTable", "TrafficTable"]

UNCOUNTED_PROVIDERS = frozenset({Provider.UDP_SUBFLOW, Provider.CONNECTION, Provider.ROUTE, Provider.INTERFACE})
DEFAULT_MAX_FINISHED = 10_000
_MAX_NAMES = 4096

_NOTHING = (0, 0, 0, 0)
_FlowEvent = FlowAdded | FlowUpdated | FlowRemoved


def _values(counts: Counts, default: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    rx_bytes, tx_bytes, rx_packets, tx_packets = default
    return (
        rx_bytes if counts.rx_bytes is None else counts.rx_bytes,
        tx_bytes if counts.tx_bytes is None else counts.tx_bytes,
        rx_packets if counts.rx_packets is None else counts.rx_packets,
        tx_packets if counts.tx_packets is None else counts.tx_packets,
    )


def _is_known(counts: Counts | None) -> bool:
    return counts is not None and not (
        counts.rx_bytes is None and counts.tx_bytes is None and counts.rx_packets is None and counts.tx_packets is None
    )


class TrafficTable:
    """Totals and rates of flows, grouped by a key.

    Feed it every event of a monitor, a subscription or a recording, in order; it
    keeps no clock, opens nothing and raises for nothing that a kernel did.

    Args:
        group_by: What the rows stand for.
        include_history: Count what flows had carried before the table saw them.
        exclude: Providers that are not counted.
        rate_window: Seconds over which rates are taken; a rate spans at least one
            polling interval.
        max_finished: Rows without open flows that are kept. When there are more, those
            with the fewest bytes are folded into the row ``OTHER``.
        max_age: Seconds after which a row without open flows is folded; `None`: never.
        source: Name of the machine or recording, shown in the rows.

    Rows with open flows are never folded, so the memory is bounded by the open flows and
    `max_finished`. A group that comes back after it was folded begins a new row.

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
        if max_finished < 0:
            raise UsageError(f"max_finished: {max_finished!r} is negative")
        if max_age is not None and not max_age > 0:
            raise UsageError(f"max_age: {max_age!r} is not a positive number of seconds")
        self.group_by = group_by
        self.source = source
        self._include_history = include_history
        self._exclude = frozenset(exclude)
        self._max_finished = max_finished
        self._max_age = max_age
        self._window = RateWindow(rate_window)
        self._open: dict[str, OpenFlow] = {}
        self._tallies: dict[tuple[str | None, Hashable], Tally] = {}
        # In the order in which they finished, so that ageing looks at the first only.
        self._finished: dict[tuple[str | None, Hashable], Tally] = {}
        self._names: dict[Hashable, str] = {}
        self._serial = 0
        self._other: Tally | None = None
        self._lost: Tally | None = None
        self._losses: dict[LossCause, Loss] = {}
        self._polls = self._incomplete_polls = 0

    # -- feeding ----------------------------------------------------------------------------

    def feed(self, event: AnyEvent) -> None:
        """Take in one event."""
        window = self._window
        time = event.time
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
            # Written out, because this runs for every report of every flow.
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
        elif isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
            self._feed_edge(event)
        elif isinstance(event, EventsLost):
            self._feed_loss(event)
        elif isinstance(event, PollCompleted):
            self._polls += 1
            self._incomplete_polls += not event.complete

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        feed = self.feed
        for event in events:
            feed(event)

    def advance(self, time: float) -> None:
        """Let the clock go on without an event, so that the rates of a silent stream fall.

        Args:
            time: Seconds since the epoch, on the events' clock; an earlier one is ignored.
        """
        if time > self._window.now and self.time is not None:
            if time >= self._window.high:
                self._tick(time)
            self._window.now = time

    def _tick(self, time: float) -> None:
        self._window.advance(time)
        if self._max_age is not None:
            oldest = time - self._max_age
            while self._finished:
                tally = next(iter(self._finished.values()))
                if tally.last_seen >= oldest:
                    break
                self._fold(tally)

    def _feed_edge(self, event: _FlowEvent) -> None:
        """A flow comes or goes (or an update of a subclass of the event, off the hot path)."""
        entry = self._find(event, self._open.get(event.flow.id))
        if entry is None:
            return
        tally = entry.tally
        tally.last_seen = event.time
        if tally.mark != self._window.mark:
            tally.save(self._window)
        if event.counts is not None:
            self._account(entry, event.counts)
        if isinstance(event, FlowRemoved):
            del self._open[event.flow.id]
            tally.open_flows -= 1
            self._settle(tally)

    def _feed_loss(self, event: EventsLost) -> None:
        old = self._losses.get(event.cause) or Loss(event.cause, 0, 0)
        self._losses[event.cause] = Loss(event.cause, old.events + 1, old.count + (event.count or 0))
        # Other gaps may concern flows that are open, or will be removed with the same counts.
        if event.cause is not LossCause.OVERFLOW:
            return
        if self._lost is None:
            self._lost = self._new_tally(RowKind.LOST, None, None, None, event.time)
        tally = self._lost
        tally.last_seen = event.time
        if tally.mark != self._window.mark:
            tally.save(self._window)
        tally.flows += event.count or 0
        if event.counts is not None and _is_known(event.counts):
            tally.add(*_values(event.counts, _NOTHING))
        else:
            tally.uncounted += event.count or 0

    # -- flows ------------------------------------------------------------------------------

    def _find(self, event: _FlowEvent, entry: OpenFlow | None) -> OpenFlow | None:
        """The entry of the event's flow, its row brought up to date; `None` when it is not counted."""
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
        details = event.details if self.group_by.needs_details else None
        key = self.group_by.key(flow, details)
        tally = self._tally(self.source, key, flow, event.time)
        # One that goes before it came was there before the table was.
        preexisting = event.preexisting if isinstance(event, FlowAdded) else isinstance(event, FlowRemoved)
        entry = OpenFlow(flow, tally, preexisting, seen=None if self._is_waiting(key) else flow)
        if isinstance(event, FlowUpdated) and event.previous is not None and _is_known(event.previous):
            # The table came in the middle of the stream: this event's own growth is its share.
            entry.counted = True
            entry.current = _values(event.previous, _NOTHING)
            entry.rebase()
        self._open[flow.id] = entry
        tally.flows += 1
        tally.open_flows += 1
        tally.uncounted += not entry.counted
        return entry

    def _is_waiting(self, key: Hashable) -> bool:
        return key is None and self.group_by.needs_details

    def _follow(self, event: _FlowEvent, entry: OpenFlow) -> OpenFlow:
        """A flow has new facts: it may belong to another row now."""
        flow = event.flow
        details = event.details if self.group_by.needs_details else None
        key = self.group_by.key(flow, details)
        old = entry.tally
        if self.group_by.needs_details and key is None:
            key = old.key  # a report without details says nothing
        entry.flow = flow
        entry.seen = None if self._is_waiting(key) else flow
        if key == old.key:
            self._describe(old, flow)
            return entry
        new = self._tally(old.source, key, flow, event.time)
        if new.mark != self._window.mark:
            new.save(self._window)
        parts = 1
        if old.key is None or self.group_by.refines(old.key, key):
            # Known better now: everything so far was the new row's.
            rx_bytes, tx_bytes, rx_packets, tx_packets = moved = entry.contribution()
            old.shift(-rx_bytes, -tx_bytes, -rx_packets, -tx_packets)
            new.add(*moved)
            parts = entry.parts
        else:
            entry.rebase()
            entry.parts = 1
        old.flows -= parts
        new.flows += parts
        old.open_flows -= 1
        new.open_flows += 1
        old.uncounted -= not entry.counted
        new.uncounted += not entry.counted
        entry.tally = new
        self._settle(old)
        return entry

    def _account(self, entry: OpenFlow, counts: Counts) -> None:
        """Count a report, whatever is special about it: the first, a partial one, one that begins anew."""
        if not _is_known(counts):
            return
        tally = entry.tally
        if not entry.counted:
            entry.counted = True
            tally.uncounted -= 1
            if entry.preexisting:
                entry.current = _values(counts, _NOTHING)
                if self._include_history:
                    tally.shift(*entry.current)
                else:
                    entry.rebase()
                return
        last = entry.current
        values = _values(counts, last)
        if any(new < old for new, old in zip(values, last, strict=True)):
            tally.flows += 1
            entry.parts += 1
            rx_bytes, tx_bytes, rx_packets, tx_packets = entry.contribution()
            entry.base = (-rx_bytes, -tx_bytes, -rx_packets, -tx_packets)
            values = _values(counts, _NOTHING)
            last = _NOTHING
        entry.current = values
        tally.add(values[0] - last[0], values[1] - last[1], values[2] - last[2], values[3] - last[3])

    # -- rows -------------------------------------------------------------------------------

    def _new_tally(
        self, kind: RowKind, source: str | None, key: Hashable, process: Process | None, time: float
    ) -> Tally:
        self._serial += 1
        return Tally(self._serial, kind, key, source, process, time, time)

    def _tally(self, source: str | None, key: Hashable, flow: Flow | None, time: float) -> Tally:
        place = (source, key)
        tally = self._tallies.get(place)
        if tally is None:
            kind = RowKind.UNKNOWN if key is None else RowKind.GROUP
            tally = self._tallies[place] = self._new_tally(kind, source, key, None, time)
        else:
            self._finished.pop(place, None)
        if flow is not None:
            self._describe(tally, flow)
        return tally

    def _describe(self, tally: Tally, flow: Flow) -> None:
        """Learn what there is to learn about the process of a row."""
        find, owner = self.group_by.process, flow.process
        if find is None or owner is None or tally.key is None:
            return
        process = find(flow)
        if process is not None and process is not owner:
            # The effective process: its name is known only from flows of its own.
            process = attrs.evolve(process, name=self._names.get(process.key))
        elif owner.name is not None and self._names.get(owner.key) != owner.name:
            self._names.pop(owner.key, None)
            while len(self._names) >= _MAX_NAMES:
                del self._names[next(iter(self._names))]
            self._names[owner.key] = owner.name
        if process is not None and (tally.process is None or process.name is not None or tally.process.name is None):
            tally.process = process

    def _settle(self, tally: Tally) -> None:
        """A row may have lost its last open flow."""
        if tally.open_flows:
            return
        place = (tally.source, tally.key)
        if tally.is_empty:
            del self._tallies[place]
            return
        self._finished[place] = tally
        # Folding a quarter at a time makes it cheap on average.
        if len(self._finished) > self._max_finished + self._max_finished // 4:
            surplus = len(self._finished) - self._max_finished
            smallest = sorted(self._finished.values(), key=lambda each: each.rx_bytes + each.tx_bytes)
            for each in smallest[:surplus]:
                self._fold(each)

    def _fold(self, tally: Tally) -> None:
        place = (tally.source, tally.key)
        del self._finished[place]
        del self._tallies[place]
        if self._other is None:
            self._other = self._new_tally(RowKind.OTHER, None, None, None, tally.first_seen)
        self._other.absorb(tally)

    def _all(self) -> list[Tally]:
        tallies = list(self._tallies.values())
        tallies.extend(each for each in (self._other, self._lost) if each is not None)
        return tallies

    # -- looking ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows, without those of what was folded or lost."""
        return len(self._tallies)

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
        """What the stream reported as lost, by cause."""
        return tuple(self._losses.values())

    def rows(self) -> list[Row]:
        """Every row, in the order in which the groups appeared; folded and lost traffic at the end."""
        span = self._window.span()
        return [tally.row(span) for tally in self._all()]

    def row(self, key: Hashable, source: str | None = None) -> Row | None:
        """The row of one key; `None` when there is none."""
        tally = self._tallies.get((source or self.source, key))
        return None if tally is None else tally.row(self._window.span())

    def total(self) -> Row:
        """The sum of all rows."""
        return sum_tallies(self._all(), RowKind.TOTAL, self._window.span())

    def top(self, count: int = 10, by: str = "bytes", *, other: bool = True) -> list[Row]:
        """The largest rows, largest first.

        Args:
            count: How many.
            by: ``"bytes"``, ``"rate"``, ``"rx_bytes"``, ``"tx_bytes"``, ``"rx_packets"``, ``"tx_packets"``,
                ``"rx_rate"``, ``"tx_rate"``, ``"flows"``, ``"open_flows"``, ``"first_seen"`` or ``"last_seen"``.
            other: Add, if there is anything in them, a row ``OTHER`` with the sum of all
                rows not listed and a row ``LOST``, so that the list sums up to the total.

        Raises:
            UsageError: `by` is none of these.
        """
        order = self._order(by)
        chosen = nlargest(count, self._tallies.values(), key=order)
        span = self._window.span()
        rows = [tally.row(span) for tally in chosen]
        if other:
            listed = {tally.serial for tally in chosen}
            rest = [tally for tally in self._tallies.values() if tally.serial not in listed]
            if self._other is not None:
                rest.append(self._other)
            if rest:
                rows.append(sum_tallies(rest, RowKind.OTHER, span))
            if self._lost is not None:
                rows.append(self._lost.row(span))
        return rows

    def _order(self, by: str) -> Callable[[Tally], Any]:
        start = self._window.span()[0]
        orders: dict[str, Callable[[Tally], Any]] = {
            "bytes": lambda tally: tally.rx_bytes + tally.tx_bytes,
            "rate": lambda tally: sum(tally.grown(start)),
            "rx_rate": lambda tally: tally.grown(start)[0],
            "tx_rate": lambda tally: tally.grown(start)[1],
        }
        for name in (
            "rx_bytes",
            "tx_bytes",
            "rx_packets",
            "tx_packets",
            "flows",
            "open_flows",
            "first_seen",
            "last_seen",
        ):
            orders[name] = attrgetter(name)
        try:
            return orders[by]
        except KeyError:
            raise UsageError(f"by: {by!r} is none of {', '.join(sorted(orders))}") from None

    def flows(self, key: Hashable, source: str | None = None) -> list[Flow]:
        """The open flows of one row."""
        tally = self._tallies.get((source or self.source, key))
        return [] if tally is None else [entry.flow for entry in self._open.values() if entry.tally is tally]

    def snapshot(self) -> TableSnapshot:
        """The table of this moment, for `TableSnapshot.since`."""
        return TableSnapshot(self.time, tuple(self.rows()), self.losses)

    # -- the whole table ----------------------------------------------------------------------

    def reset(self) -> None:
        """Begin all totals and rates at zero; open flows stay known and count from here on."""
        self._tallies.clear()
        self._finished.clear()
        self._losses.clear()
        self._other = self._lost = None
        self._polls = self._incomplete_polls = 0
        now = self._window.now
        for entry in self._open.values():
            old = entry.tally
            entry.parts = 1
            entry.rebase()
            entry.tally = tally = self._tally(old.source, old.key, None, now)
            tally.process = old.process
            tally.flows += 1
            tally.open_flows += 1
            tally.uncounted += not entry.counted

    def merge(self, other: TrafficTable, source: str | None = None) -> None:
        """Add everything of another table, e.g. of another machine or recording.

        Rates see only what is fed to this table. Open flows of `other` stay open here;
        they are known by ``f"{source}/{id}"`` when there is a source.

        Args:
            other: A table with the same grouping; it is not changed.
            source: Name that keeps its rows apart from those of this table; `None`:
                that of the other table. Without any name equal keys are added up.

        Raises:
            UsageError: The groupings differ, or an open flow has the same id in both.
        """
        if other.group_by.name != self.group_by.name:
            raise UsageError(f"merge: a table by {other.group_by.name} into one by {self.group_by.name}")
        renamed: dict[str, OpenFlow] = {}
        for identity, entry in other._open.items():
            label = source or entry.tally.source
            renamed[identity if label is None else f"{label}/{identity}"] = entry
        if clash := self._open.keys() & renamed.keys():
            raise UsageError(f"merge: flow {min(clash)} is open in both tables; name a source")
        targets: dict[int, Tally] = {}
        for tally in other._tallies.values():
            target = self._tally(source or tally.source, tally.key, None, tally.first_seen)
            target.process = target.process or tally.process
            target.absorb(tally)
            targets[tally.serial] = target
        for identity, entry in renamed.items():
            self._open[identity] = attrs.evolve(entry, tally=targets[entry.tally.serial])
        for target in targets.values():
            self._settle(target)
        self._merge_rest(other)

    def _merge_rest(self, other: TrafficTable) -> None:
        if other._other is not None:
            if self._other is None:
                self._other = self._new_tally(RowKind.OTHER, None, None, None, other._other.first_seen)
            self._other.absorb(other._other)
        if other._lost is not None:
            if self._lost is None:
                self._lost = self._new_tally(RowKind.LOST, None, None, None, other._lost.first_seen)
            self._lost.absorb(other._lost)
        for loss in other._losses.values():
            old = self._losses.get(loss.cause) or Loss(loss.cause, 0, 0)
            self._losses[loss.cause] = Loss(loss.cause, old.events + loss.events, old.count + loss.count)
        self._polls += other._polls
        self._incomplete_polls += other._incomplete_polls


class ProcessTable(TrafficTable):
    """Totals and rates per process; the key of a row is ``(pid, unique_pid)``.

    A process keeps its row when it exits; a successor with the same pid has another
    `Process.unique_pid` and so a row of its own.

    Args:
        effective: Attribute flows to the process on whose behalf they exist.
        options: Those of `TrafficTable`.
    """

    def __init__(self, *, effective: bool = False, **options: Any) -> None:
        super().__init__(GroupBy.processes(effective=effective), **options)
