"""The event buffer: order, totals and bounds, whatever comes and whenever it is read."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nstat_async import (
    Auxiliary,
    AuxiliaryFailed,
    Counts,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Interface,
    InterfaceUpdated,
    LossCause,
    Overflow,
    PollCompleted,
    Provider,
    ProviderRefused,
    RemovalReason,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
)
from nstat_async._buffer import MERGEABLE_LOSSES, EventBuffer

FLOW = Flow("f", Provider.TCP)


def counts(value: int | None) -> Counts | None:
    return None if value is None else Counts(rx_bytes=value, tx_bytes=2 * value, rx_packets=value, tx_packets=value)


class Stream:
    """A well-formed stream of one kernel's flows, made step by step."""

    def __init__(self) -> None:
        self.time = 0.0
        self.serial = 0
        self.open: dict[str, tuple[Flow, Counts]] = {}
        self.watched = 0
        """Bytes received while the stream watched."""

    def add(self, first: int, *, preexisting: bool) -> FlowAdded:
        self.serial += 1
        flow = Flow(f"f{self.serial}", Provider.TCP)
        self.open[flow.id] = flow, counts(first)
        self.watched += 0 if preexisting else first
        return FlowAdded(self.tick(), flow, counts(first), preexisting)

    def update(self, which: int, more: int) -> FlowUpdated | None:
        if not self.open:
            return None
        flow, before = list(self.open.values())[which % len(self.open)]
        after = counts(before.rx_bytes + more)
        self.open[flow.id] = flow, after
        self.watched += more
        return FlowUpdated(self.tick(), flow, after, before)

    def remove(self, which: int, more: int) -> FlowRemoved | None:
        if not self.open:
            return None
        flow, before = list(self.open.values())[which % len(self.open)]
        del self.open[flow.id]
        self.watched += more
        return FlowRemoved(self.tick(), flow, counts(before.rx_bytes + more), True, RemovalReason.CLOSED)

    def tick(self) -> float:
        self.time += 1.0
        return self.time


class Reader:
    """A consumer that keeps the books as an aggregate does."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.ended: set[str] = set()
        self.total = 0

    def take(self, event) -> None:
        if isinstance(event, FlowAdded):
            assert event.flow.id not in self.last
            assert event.flow.id not in self.ended
            self.last[event.flow.id] = event.counts.rx_bytes
            self.total += 0 if event.preexisting else event.counts.rx_bytes
        elif isinstance(event, FlowUpdated):
            assert event.previous.rx_bytes == self.last[event.flow.id], "previous is what this consumer saw last"
            self.total += event.delta.rx_bytes
            self.last[event.flow.id] = event.counts.rx_bytes
        elif isinstance(event, FlowRemoved):
            self.total += event.counts.rx_bytes - self.last.pop(event.flow.id)
            self.ended.add(event.flow.id)
        elif isinstance(event, EventsLost) and event.cause is LossCause.OVERFLOW and event.counts is not None:
            self.total += event.counts.rx_bytes


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 50), st.booleans()),
        st.tuples(st.just("update"), st.integers(0, 9), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.integers(0, 9), st.integers(0, 50)),
        st.tuples(st.just("burst"), st.integers(1, 12), st.integers(0, 50)),
        st.tuples(st.just("pop"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("poll"), st.just(0), st.just(0)),
        st.tuples(st.just("loss"), st.just(0), st.just(0)),
        st.tuples(st.just("all"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(_STEPS, st.integers(1, 12), st.sampled_from(Overflow))
@example([("burst", 5, 1), ("pop", 3, 0), ("burst", 5, 1), ("pop", 1, 0), ("burst", 9, 7)], 4, Overflow.COALESCE)
def test_totals_and_order_survive_every_interleaving_and_what_waits_is_bounded(steps, limit, overflow):
    stream, reader, buffer = Stream(), Reader(), EventBuffer(limit, overflow)
    losses = 0
    for kind, number, more in steps:
        batch = []
        if kind == "add":
            batch = [stream.add(number, preexisting=bool(more))]
        elif kind == "update":
            batch = [stream.update(number, more)]
        elif kind == "remove":
            batch = [stream.remove(number, more)]
        elif kind == "burst":  # flows that come and go
            for _ in range(number):
                batch += [stream.add(more, preexisting=False), stream.remove(-1 % max(1, len(stream.open)), 1)]
        elif kind == "poll":
            batch = [PollCompleted(stream.tick(), len(stream.open), True)]
        elif kind == "loss":
            losses += 1
            batch = [EventsLost(stream.tick(), LossCause.BATCH, 1)]
        elif kind == "pop":
            for _ in range(number):
                for event in buffer.pop_some(1 + more % 3):
                    reader.take(event)
        elif kind == "all":
            for event in buffer.pop_all():
                reader.take(event)
        buffer.extend([event for event in batch if event is not None])
        if overflow is Overflow.COALESCE:
            # Two for each open flow, one for each that ended unread since it was read last, a poll, the losses.
            bound = limit + 2 * len(stream.open) + len(reader.last) + losses + 2
            assert len(buffer) <= bound
            assert len(buffer._queue) <= 2 * len(buffer) + 65
    times = []
    while len(buffer):
        (event,) = buffer.pop_some(1)
        reader.take(event)
        if not isinstance(event, EventsLost):
            times.append(event.time)
    assert buffer.pop_all() == []
    assert len(buffer) == 0
    assert reader.total == stream.watched
    assert reader.last == {flow_id: told.rx_bytes for flow_id, (_, told) in stream.open.items()}
    state = buffer.statistics()
    assert state.pending == 0
    assert not buffer._flows
    assert not buffer._pairs
    if overflow is not Overflow.COALESCE:
        assert times == sorted(times)
        assert state.coalesced == state.given_up == 0


def test_a_newer_update_takes_the_place_of_the_older_one_and_keeps_its_previous():
    buffer = EventBuffer(10, Overflow.COALESCE)
    other = Flow("g", Provider.UDP)
    buffer.extend([FlowUpdated(1, FLOW, counts(5), counts(1)), FlowAdded(2, other, None, False)])
    buffer.extend([FlowUpdated(3, FLOW, counts(9), counts(5))])
    first, second = buffer.pop_all()
    assert first == FlowUpdated(3, FLOW, counts(9), counts(1))
    assert first.delta.rx_bytes == 8
    assert second.flow is other
    assert buffer.statistics().coalesced == 1


def test_a_removal_swallows_the_pending_update_and_only_the_newest_poll_waits():
    buffer = EventBuffer(10, Overflow.COALESCE)
    buffer.extend([PollCompleted(0, 1, True), FlowUpdated(1, FLOW, counts(5), counts(1)), PollCompleted(2, 1, True)])
    buffer.extend([FlowRemoved(3, FLOW, counts(9), True, RemovalReason.CLOSED)])
    assert [type(e) for e in buffer.pop_all()] == [PollCompleted, FlowRemoved]


def test_flows_that_came_and_went_are_given_up_with_their_sum_where_they_were():
    stream, buffer = Stream(), EventBuffer(4, Overflow.COALESCE)
    old = stream.add(100, preexisting=True)
    buffer.extend([old, stream.remove(0, 11)])
    for value in (1, 2, 3):
        buffer.extend([stream.add(value, preexisting=False), stream.remove(0, 0)])
    lost, *rest = buffer.pop_all()
    assert (lost.cause, lost.count) == (LossCause.OVERFLOW, 3)
    assert lost.counts.rx_bytes == 11 + 1 + 2  # of the older flow only what was watched
    assert [type(e) for e in rest] == [FlowAdded, FlowRemoved]
    assert buffer.statistics().given_up == 3


def test_idle_polls_leave_no_trace_while_nobody_reads():
    buffer = EventBuffer(10, Overflow.COALESCE)
    for number in range(10_000):
        buffer.extend([PollCompleted(float(number), 0, True)])
    assert len(buffer) == 1
    assert len(buffer._queue) < 100


def test_a_flow_that_comes_and_goes_under_a_filter_cannot_fill_the_buffer():
    buffer = EventBuffer(10, Overflow.COALESCE)
    for number in range(1_000):
        buffer.extend([FlowAdded(number, FLOW, counts(1), True)])
        buffer.extend([FlowRemoved(number, FLOW, counts(2), False, RemovalReason.FILTERED)])
    assert len(buffer) <= 12
    assert sum(e.counts.rx_bytes for e in buffer.pop_all() if isinstance(e, EventsLost)) >= 990


def _route(number: int, *, removed: bool = False) -> RouteUpdated:
    return RouteUpdated(float(number), f"r{number}", None, None, None, None, 0, Counts(), removed)


def test_routes_interfaces_and_system_information_wait_once_and_routes_that_went_are_given_up():
    buffer = EventBuffer(10, Overflow.COALESCE)
    link = Interface(4, "en0")
    for number in range(500):
        buffer.extend(
            [
                SystemInfo(number, ((1, number), (2, 0))),
                InterfaceUpdated(number, link, Counts(rx_bytes=number), None, None),
                _route(number),
                _route(number, removed=True),
            ]
        )
    assert len(buffer) <= 12
    events = buffer.pop_all()
    assert [e.values[0][1] for e in events if isinstance(e, SystemInfo)] == [499]
    assert [e.counts.rx_bytes for e in events if isinstance(e, InterfaceUpdated)] == [499]
    lost = sum(e.count for e in events if isinstance(e, EventsLost))
    assert lost + sum(1 for e in events if isinstance(e, RouteUpdated)) == 500
    for number in range(500):  # a quick reader keeps nothing
        buffer.extend([_route(number), _route(number, removed=True)])
        assert [event.removed for event in buffer.pop_some(5)] == [False, True]
        assert buffer.pop_some(5) == []
    assert len(buffer._leftovers) == 0
    assert not buffer._tables


def test_a_storm_of_losses_is_merged_and_none_is_forgotten():
    buffer = EventBuffer(10, Overflow.COALESCE)
    for number in range(5_000):
        buffer.extend([EventsLost(number, LossCause.PROTOCOL, 1), Unrecognized(number, 77, b"x")])
    assert len(buffer) <= MERGEABLE_LOSSES + 2
    events = buffer.pop_all()
    assert sum(e.count if isinstance(e, EventsLost) else 1 for e in events) == 10_000
    unknown = EventBuffer(10, Overflow.COALESCE)
    for _ in range(MERGEABLE_LOSSES + 5):
        unknown.extend([EventsLost(0, LossCause.BATCH, None)])
    assert unknown.pop_all()[-1].count is None


@pytest.mark.parametrize("overflow", [Overflow.BLOCK, Overflow.ALL])
def test_other_policies_keep_everything_in_order(overflow):
    buffer = EventBuffer(2, overflow)
    events = [FlowUpdated(n, FLOW, counts(n + 1), counts(n)) for n in range(5)]
    buffer.extend(events)
    assert buffer.is_full
    assert buffer.pop_some(1) == events[:1]
    assert buffer.pop_all() == events[1:]
    assert not buffer.is_full
    assert buffer.statistics().high_water == 5
    assert buffer.statistics().delivered == 5


def test_what_cannot_be_merged_is_kept():
    buffer = EventBuffer(10, Overflow.COALESCE)
    refused = ProviderRefused(1, Provider.CONNECTION, 1, "needs root")
    buffer.extend([refused, refused])
    assert buffer.pop_all() == [refused, refused]


def test_of_what_failed_beside_the_monitor_the_newest_waits_for_each_kind():
    buffer = EventBuffer(10, Overflow.COALESCE)
    for number in range(1_000):
        buffer.extend([AuxiliaryFailed(float(number), auxiliary, str(number)) for auxiliary in Auxiliary])
    assert buffer.pop_all() == [AuxiliaryFailed(999.0, auxiliary, "999") for auxiliary in Auxiliary]


def test_losses_that_were_read_leave_room_to_tell_new_ones_apart():
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    for _ in range(2):
        buffer.extend(EventsLost(1.0, LossCause.BATCH, 1) for _ in range(MERGEABLE_LOSSES))
        assert len(buffer) == MERGEABLE_LOSSES
        while buffer.pop_some(7):
            pass


def test_a_quick_reader_gets_every_event_and_a_slow_one_the_newest():
    buffer = EventBuffer(100, Overflow.COALESCE)
    updates = [FlowUpdated(n, FLOW, counts(n + 1), counts(n)) for n in range(6)]
    buffer.extend(updates[:3])
    assert buffer.pop_some(1) == updates[:1]
    assert buffer.pop_all() == updates[1:3]
    buffer.extend(updates[:3])
    buffer.extend(updates[3:])
    (newest,) = buffer.pop_all()
    assert (newest.counts, newest.previous) == (updates[-1].counts, updates[0].previous)
    assert buffer.statistics().coalesced == 5


def test_too_much_at_once_is_coalesced_at_once():
    buffer = EventBuffer(3, Overflow.COALESCE)
    buffer.extend(FlowUpdated(n, FLOW, counts(n + 1), counts(n)) for n in range(4))
    assert len(buffer) == 1
