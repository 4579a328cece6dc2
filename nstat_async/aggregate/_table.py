"""How a table is looked at: rows, the largest ones, snapshots, resets and merges."""

from __future__ import annotations

from heapq import nlargest
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

from nstat_async._errors import UsageError

from ._grouping import GroupBy
from ._ledger import Ledger
from ._rows import Loss, Row, RowKind, TableSnapshot
from ._tally import OpenFlow, Tally, sum_tallies

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from nstat_async._model import Flow

__all__ = ["ProcessTable", "TrafficTable"]


class TrafficTable(Ledger):
    """Totals and rates of flows, grouped by a key.

    Feed it every event of a monitor, a subscription or a recording, in order; it
    keeps no clock, opens nothing and raises for nothing that a kernel did.

    A flow that begins meanwhile counts from zero, one that was there before from its first
    report on. Closed flows stay counted. Traffic belongs to the group that had the flow when it
    was reported; a flow whose group was unknown takes its past along. The sums over
    the rows of any table are the sums over all flows.

    Args:
        group_by: What the rows stand for.
        include_history: Count what flows had carried before the table saw them.
        exclude: Providers that are not counted; by default those that carry no traffic of their
            own, and UDP subflows, whose bytes are in the flow of their socket too.
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
