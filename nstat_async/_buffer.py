"""The buffer between the pump and one consumer.

Operations wanted: the pump appends a batch; the consumer takes one event, or all. Both are
synchronous, never wait, and cost O(1) per event.

Coalescing (the default policy) rests on one fact: counters are cumulative. A flow
has at most one pending `FlowUpdated`. A newer one takes its *place* in the queue,
with the newer counters and the older ``previous``, so the deltas that a consumer
sees still add up. `FlowRemoved` replaces the pending update, because it has the
same totals. So the queue has room for all open flows, and grows further only by flows that came
and went while nobody read. Beyond `limit` the oldest of these are given up, and one
`EventsLost` at their place says how many, with the sum of their counters.

An event that is taken out leaves a hole in the queue, which is skipped when it is reached.

Events that are delivered while nothing waits are coalesced only when more come: a consumer
that keeps up pays nothing for coalescing, and gets every event.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from itertools import chain
from operator import attrgetter
from typing import Any, Union

import attrs

from ._events import (
    AnyEvent,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostUpdated,
    InterfaceUpdated,
    LossCause,
    PollCompleted,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
    coalesced,
)
from ._model import COUNTS_FIELDS, Counts
from ._options import Overflow

MERGEABLE_LOSSES = 256
"""Most pending `EventsLost` of one cause: further ones are added to the last."""

_NEWEST_ONLY = (PollCompleted, InterfaceUpdated, RouteUpdated, SystemInfo, AuxiliaryFailed, HostUpdated)
"""Events that replace an earlier one about the same thing."""
_ADDED_UP = COUNTS_FIELDS[:13]
"""The counters of which a sum has a meaning: neither attempts nor times."""
_Slot = list[Union[AnyEvent, None]]
"""A place in the queue, whose event can be replaced or taken out without a search; `None`: a hole."""


@attrs.frozen(kw_only=True)
class BufferStatistics:
    """The state of an `EventBuffer`."""

    pending: int
    """Events that wait."""
    delivered: int
    """Events handed to the consumer."""
    coalesced: int
    """Updates that were merged into another event."""
    given_up: int
    """Flows whose events (one added, one removed) were given up."""
    high_water: int
    """The most events that waited at any time."""


class EventBuffer:
    """A bounded queue of events for one consumer.

    Args:
        limit: Events that may wait before the policy acts.
        overflow: The policy.
    """

    def __init__(self, limit: int, overflow: Overflow) -> None:
        self.limit = limit
        self.overflow = overflow
        self._coalesces = overflow is Overflow.COALESCE
        # Events that are handed out as they came: all of them, or, with coalescing, those delivered while nothing
        # waited. The queue is empty then.
        self._plain: deque[AnyEvent] = deque()
        self._pending = 0
        self._delivered = self._coalesced = self._given_up = self._high_water = 0
        self._empty_queue()

    def _empty_queue(self) -> None:
        self._queue: deque[_Slot] = deque()
        # For each flow the slots of its pending update and of its pending addition.
        self._flows: dict[str, _Slot] = {}
        self._added: dict[str, _Slot] = {}
        self._newest: dict[Hashable, _Slot] = {}
        # Pairs that may be given up, oldest first, by their first slot: under a filter a flow may come and go repeatedly.
        self._pairs: OrderedDict[int, tuple[_Slot, _Slot]] = OrderedDict()
        self._gone_routes: OrderedDict[int, _Slot] = OrderedDict()
        self._loss_count = 0

    def __len__(self) -> int:
        return self._pending

    @property
    def is_full(self) -> bool:
        """True when as many events wait as the limit allows."""
        return self._pending >= self.limit

    def extend(self, events: Iterable[AnyEvent]) -> None:
        """Take a batch."""
        if not self._coalesces or not self._pending:
            self._plain.extend(events)
            self._pending = len(self._plain)
            if self._coalesces and self._pending > self.limit:
                self._enqueue_plain()
        else:
            self._enqueue_plain()
            self._enqueue(events)
        self._high_water = max(self._high_water, self._pending)

    def _enqueue_plain(self) -> None:
        """Move the events that wait as they came into the queue: more have come, so they may be coalesced."""
        if self._plain:
            plain, self._plain, self._pending = self._plain, deque(), 0
            self._enqueue(plain)

    def _enqueue(self, events: Iterable[AnyEvent]) -> None:
        """Coalesce these events with those that wait."""
        flows, append = self._flows, self._queue.append
        for event in events:
            if event.__class__ is FlowUpdated and event.flow.id not in flows:
                slot: _Slot = [event]
                flows[event.flow.id] = slot
                append(slot)
                self._pending += 1
            else:
                self._coalesce(event)
        if self._pending > self.limit:
            self._shrink()
        self._drop_holes()

    def pop_some(self, most: int) -> list[AnyEvent]:
        """The oldest events, at most `most`, oldest first."""
        if most >= self._pending:
            return self.pop_all()
        self._pending -= most
        self._delivered += most
        if self._plain:
            popleft = self._plain.popleft
            return [popleft() for _ in range(most)]
        return self._dequeue(most)

    def _dequeue(self, most: int) -> list[AnyEvent]:
        """Take events from the queue; nothing can be merged into them any more."""
        popleft, flows = self._queue.popleft, self._flows
        events: list[AnyEvent] = []
        while len(events) < most:
            slot = popleft()
            event = slot[0]
            if event is None:
                continue
            events.append(event)
            if event.__class__ is not FlowUpdated:
                self._forget(event, slot)
            else:
                del flows[event.flow.id]
        return events

    def pop_all(self) -> list[AnyEvent]:
        """All events, oldest first."""
        events = [*self._plain, *(slot[0] for slot in self._queue if slot[0] is not None)]
        self._plain.clear()
        if self._queue:
            self._empty_queue()
        self._delivered += len(events)
        self._pending = 0
        return events

    def statistics(self) -> BufferStatistics:
        """Figures of this moment."""
        return BufferStatistics(
            pending=self._pending,
            delivered=self._delivered,
            coalesced=self._coalesced,
            given_up=self._given_up,
            high_water=self._high_water,
        )

    # --- coalescing --------------------------------------------------------

    def _append(self, event: AnyEvent) -> _Slot:
        slot: _Slot = [event]
        self._queue.append(slot)
        self._pending += 1
        return slot

    def _coalesce(self, event: AnyEvent) -> None:
        kind = event.__class__
        if kind is FlowUpdated:
            self._coalesce_update(event)  # type: ignore[arg-type]  # a class that is compared narrows nothing
        elif kind is FlowAdded:
            self._added[event.flow.id] = self._append(event)  # type: ignore[union-attr]  # as above
        elif kind is FlowRemoved:
            self._coalesce_removal(event)  # type: ignore[arg-type]  # as above
        elif isinstance(event, _NEWEST_ONLY):
            self._coalesce_news(event)
        elif isinstance(event, EventsLost):
            self._add_loss(event)
        elif isinstance(event, Unrecognized):
            self._coalesce_unrecognized(event)
        else:
            self._append(event)

    def _take_out(self, slot: _Slot) -> None:
        slot[0] = None
        self._pending -= 1

    def _coalesce_update(self, event: FlowUpdated) -> None:
        """Let an update take the place of a pending one."""
        slot = self._flows[event.flow.id]
        older = slot[0]
        assert isinstance(older, FlowUpdated)
        slot[0] = coalesced(older, event)
        self._coalesced += 1

    def _coalesce_removal(self, event: FlowRemoved) -> None:
        updated = self._flows.pop(event.flow.id, None)
        added = self._added.pop(event.flow.id, None)
        slot = self._append(event)
        if updated is not None:
            self._take_out(updated)
            self._coalesced += 1
        if added is not None:
            self._pairs[id(added)] = (added, slot)

    def _coalesce_news(self, event: AnyEvent) -> None:
        """Let an event replace an earlier one about the same thing."""
        key = _what(event)
        slot = self._newest.get(key)
        self._coalesced += slot is not None
        if slot is not None and isinstance(event, PollCompleted):
            self._take_out(slot)
            slot = None  # the new one has to come after the events of its poll
        if slot is None:
            slot = self._newest[key] = self._append(event)
        slot[0] = event
        if isinstance(event, RouteUpdated) and event.removed:
            del self._newest[key]  # another route may get the same number
            self._gone_routes[id(slot)] = slot

    def _coalesce_unrecognized(self, event: Unrecognized) -> None:
        if self._loss_count < MERGEABLE_LOSSES:
            self._append(event)
            self._loss_count += 1
        else:
            detail = f"unrecognized messages of type {event.number} and maybe others"
            self._add_loss(EventsLost(event.time, LossCause.PROTOCOL, 1, detail=detail, host=event.host))

    def _add_loss(self, loss: EventsLost, place: _Slot | None = None) -> None:
        """Queue a loss; one of too many, or one with a given place, is added to the last loss of its cause."""
        key = _what(loss)
        slot = self._newest.get(key)
        last = None if slot is None else slot[0]
        if (
            slot is not None
            and isinstance(last, EventsLost)
            and (place is not None or self._loss_count >= MERGEABLE_LOSSES)
        ):
            slot[0] = _merge(last, loss)
            self._coalesced += 1
            return
        self._loss_count += 1
        self._newest[key] = self._append(loss) if place is None else place
        if place is not None:
            place[0] = loss
            self._pending += 1

    def _forget(self, event: AnyEvent, slot: _Slot) -> None:
        """Note that an event leaves the queue, so that nothing is merged into it."""
        if isinstance(event, FlowAdded):
            if self._added.get(event.flow.id) is slot:
                del self._added[event.flow.id]
            self._pairs.pop(id(slot), None)
        elif not isinstance(event, FlowRemoved):
            self._loss_count -= isinstance(event, (EventsLost, Unrecognized))
            self._gone_routes.pop(id(slot), None)
            key = _what(event)
            if self._newest.get(key) is slot:
                del self._newest[key]

    def _shrink(self) -> None:
        """Free a tenth of the limit: give up the oldest flows that came and went, then routes that are gone."""
        target = self.limit - self.limit // 10
        observed, place = list[Union[Counts, None]](), None
        while self._pending > target and self._pairs:
            _, (added, removed) = self._pairs.popitem(last=False)
            first, event = added[0], removed[0]
            assert isinstance(first, FlowAdded)
            assert isinstance(event, FlowRemoved)
            observed.append(_observed(first, event))
            time = event.time
            added[0] = removed[0] = None
            self._pending -= 2
            place = removed
        self._given_up += len(observed)
        if place is not None:
            detail = "the consumer was slower than the flows that came and went"
            self._add_loss(EventsLost(time, LossCause.OVERFLOW, len(observed), _sum(observed), detail=detail), place)
        given_up, place = 0, None
        while self._pending > target and self._gone_routes:
            _, place = self._gone_routes.popitem(last=False)
            route = place[0]
            assert route is not None  # it waits
            time = route.time
            self._take_out(place)
            given_up += 1
        if place is not None:
            detail = "the consumer was slower than the routes that went away"
            self._add_loss(EventsLost(time, LossCause.LIMIT, given_up, detail=detail), place)

    def _drop_holes(self) -> None:
        if len(self._queue) > 2 * self._pending + 64:
            self._queue = deque(slot for slot in self._queue if slot[0] is not None)


_ABOUT: dict[type, Callable[[Any], Hashable]] = {
    RouteUpdated: attrgetter("id"),
    InterfaceUpdated: attrgetter("interface.index"),
    AuxiliaryFailed: attrgetter("auxiliary"),
    SystemInfo: lambda event: tuple(key for key, _ in event.values),
    EventsLost: attrgetter("cause"),
}
"""The attribute that says what an event is about, if a machine has several of these things."""


def _what(event: AnyEvent) -> Hashable:
    """What an event is about: a newer one with the same key replaces it."""
    kind = event.__class__
    about = _ABOUT.get(kind)
    return kind, event.host, about and about(event)


def _merge(earlier: EventsLost, later: EventsLost) -> EventsLost:
    count = None if earlier.count is None or later.count is None else earlier.count + later.count
    summed = _sum((earlier.counts, later.counts))
    return EventsLost(later.time, later.cause, count, summed, later.detail, host=later.host)


def _observed(added: FlowAdded, removed: FlowRemoved) -> Counts | None:
    """What a flow counted while it was watched: everything, unless it is older than the monitor."""
    if not added.preexisting or added.counts is None or removed.counts is None:
        return removed.counts
    before = added.counts.as_dict()
    grown = {name: max(0, now - (before[name] or 0)) for name, now in removed.counts.items() if name in _ADDED_UP}
    return Counts(**grown)


def _sum(readings: Iterable[Counts | None]) -> Counts | None:
    """The sum of counts; a field is known if any of them has it."""
    known = [each for each in readings if each is not None]
    if len(known) < 2:
        return known[0] if known else None
    total: dict[str, int] = {}
    for name, value in chain.from_iterable(each.items() for each in known):
        total[name] = total.get(name, 0) + value
    return Counts(**{name: total[name] for name in _ADDED_UP if name in total})
