"""Exact totals and rates of flows, grouped by anything: the pure, synchronous heart.

Operations wanted, and what they cost (``benchmarks/aggregate.py`` measures):
`TrafficTable.feed` of an update, the hot path, in about a microsecond and
without making objects; a row of a process in about a kilobyte; a look at the
ten largest of *n* rows in one pass.

What is counted and how it is shown are two modules: `Ledger` here, `TrafficTable` beside.

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

from typing import TYPE_CHECKING

import attrs

from nstat_async._errors import UsageError
from nstat_async._events import AnyEvent, EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted
from nstat_async._model import Counts, Flow, Process, Provider

from ._rates import RateWindow
from ._rows import Loss, RowKind
from ._tally import OpenFlow, Tally

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from ._grouping import GroupBy

__all__ = ["Ledger"]

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


class Ledger:
    """The counting half of `TrafficTable`, which has the documentation of its arguments."""

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
        if time > self._window.now and self._window.mark:
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
