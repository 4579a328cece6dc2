"""The event buffer: order, totals and bounds, whatever comes and whenever it is read."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import (
    Auxiliary,
    AuxiliaryFailed,
    Counts,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
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
from nstat_async._buffer import MERGEABLE_LOSSES, BufferStatistics, EventBuffer

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


@settings(deadline=None, max_examples=examples(120))
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
    assert not buffer._gone_routes
    assert not buffer._newest


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


def _waits(buffer: EventBuffer, *batches) -> None:
    """Let these batches come while something waits, so that they are coalesced, and read that."""
    buffer.extend([ProviderRefused(0, Provider.CONNECTION, 1, "filler")])
    for batch in batches:
        buffer.extend(batch)
    buffer.pop_some(1)


_REPEATED = {
    "update": lambda n: FlowUpdated(n, FLOW, counts(n + 1), counts(n)),
    "poll": lambda n: PollCompleted(n, n, True),
    "route": lambda n: RouteUpdated(n, "r", None, None, None, None, n, Counts()),
    "interface": lambda n: InterfaceUpdated(n, Interface(4, "en0"), counts(n), None, None),
    "system": lambda n: SystemInfo(n, ((1, n), (2, 0))),
    "auxiliary": lambda n: AuxiliaryFailed(n, Auxiliary.LOOKUP, str(n)),
    "host": lambda n: HostUpdated(n, HostState.PRESENT, detail=str(n), host="web1"),
}


@pytest.mark.parametrize("make", _REPEATED.values(), ids=_REPEATED)
@pytest.mark.parametrize("read", [lambda buffer: buffer.pop_some(1), EventBuffer.pop_all], ids=["one", "all"])
def test_of_what_is_reported_again_and_again_the_newest_waits_and_nothing_is_added_to_what_was_read(make, read):
    buffer = EventBuffer(10, Overflow.COALESCE)
    for begin in (1, 4, 7):
        _waits(buffer, *([make(begin + n)] for n in range(3)))
        assert len(buffer) == 1
        (event,) = read(buffer)
        assert event.time == begin + 2
        assert len(buffer) == 0
    assert buffer.statistics().coalesced == 6
    assert not buffer._newest
    assert not buffer._flows


def test_what_is_about_different_things_waits_side_by_side():
    buffer = EventBuffer(100, Overflow.COALESCE)
    different = [
        *(PollCompleted(0, 0, True, host=host) for host in (None, "web1", "web2")),
        *(SystemInfo(0, values) for values in (((1, 5),), ((2, 5),), ((1, 5), (2, 5)))),
        *(InterfaceUpdated(0, Interface(n, "en0"), Counts(), None, None) for n in (1, 2)),
        *(AuxiliaryFailed(0, auxiliary, "") for auxiliary in Auxiliary),
        _route(1),
        _route(2),
    ]
    _waits(buffer, different)
    assert buffer.pop_all() == different


def test_an_older_poll_leaves_and_the_newer_one_waits_behind_what_it_completed():
    buffer = EventBuffer(10, Overflow.COALESCE)
    refused = ProviderRefused(2, Provider.CONNECTION, 1, "needs root")
    _waits(buffer, [PollCompleted(1, 0, True)], [refused, PollCompleted(3, 0, True)])
    assert buffer.pop_all() == [refused, PollCompleted(3, 0, True)]


def test_the_number_of_a_route_that_went_may_be_another_one():
    buffer = EventBuffer(10, Overflow.COALESCE)
    gone, new, newer = _route(1, removed=True), _route(1), attrs.evolve(_route(1), time=9.0)
    _waits(buffer, [_route(1)], [gone], [new])
    assert buffer.pop_some(1) == [gone]
    buffer.extend([newer])
    assert buffer.pop_all() == [newer]


@pytest.mark.parametrize("make", [lambda n: EventsLost(n, LossCause.BATCH, 1), lambda n: Unrecognized(n, 77, b"x")])
def test_so_many_losses_wait_apart_and_the_next_one_is_added_to_the_last(make):
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    _waits(buffer, [make(n) for n in range(MERGEABLE_LOSSES)])
    assert len(buffer) == MERGEABLE_LOSSES == 256
    assert buffer.statistics().coalesced == 0
    buffer.extend([EventsLost(900, LossCause.PROTOCOL, 1), make(1_000), EventsLost(1_001, LossCause.PROTOCOL, None)])
    first, *_, last = buffer.pop_some(len(buffer))
    assert first == make(0)
    assert not isinstance(last, Unrecognized)


@pytest.mark.parametrize("make", [lambda n: EventsLost(n, LossCause.BATCH, 1), lambda n: Unrecognized(n, 77, b"x")])
def test_losses_that_are_read_one_by_one_leave_room_for_as_many(make):
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    _waits(buffer, [make(n) for n in range(MERGEABLE_LOSSES)])
    for number in range(2 * MERGEABLE_LOSSES):
        assert buffer.pop_some(1)[0].time == number
        buffer.extend([make(MERGEABLE_LOSSES + number)])
    assert buffer.statistics().coalesced == 0


def test_one_unrecognized_message_more_than_may_wait_is_a_loss():
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    _waits(buffer, [Unrecognized(n, 77, b"x") for n in range(MERGEABLE_LOSSES + 1)])
    *_, last = buffer.pop_all()
    assert (last.time, last.cause, last.count) == (MERGEABLE_LOSSES, LossCause.PROTOCOL, 1)
    assert "77" in last.detail


def test_up_to_the_limit_nothing_is_coalesced_before_more_comes():
    buffer = EventBuffer(2, Overflow.COALESCE)
    updates = [FlowUpdated(n, FLOW, counts(n + 1), counts(n)) for n in range(2)]
    buffer.extend(updates)
    assert buffer.pop_all() == updates


def test_an_update_that_a_removal_takes_away_is_counted():
    buffer = EventBuffer(10, Overflow.COALESCE)
    _waits(buffer, [FlowUpdated(1, FLOW, counts(5), counts(1))])
    buffer.extend([FlowRemoved(2, FLOW, counts(9), True, RemovalReason.CLOSED)])
    assert (len(buffer), buffer.statistics().coalesced) == (1, 1)


def test_no_more_is_given_up_than_needed():
    stream, buffer = Stream(), EventBuffer(10, Overflow.COALESCE)
    buffer.extend([event for _ in range(5) for event in (stream.add(1, preexisting=False), stream.remove(0, 0))])
    buffer.extend([ProviderRefused(99, Provider.CONNECTION, 1, "needs root")])
    assert (len(buffer), buffer.statistics().given_up) == (10, 1)


def test_a_route_that_was_read_is_not_given_up():
    buffer = EventBuffer(12, Overflow.COALESCE)
    _waits(buffer, [_route(number, removed=True) for number in range(10)])
    buffer.pop_some(3)
    buffer.extend([FlowUpdated(20, Flow(f"u{n}", Provider.TCP), counts(1), None) for n in range(7)])
    lost, *rest = buffer.pop_all()
    assert (lost.time, lost.count) == (5.0, 3)
    assert [event.time for event in rest[:-7]] == [6.0, 7.0, 8.0, 9.0]


def test_a_count_that_nobody_knows_is_not_known_in_a_sum_either_way():
    for pair in ((1, None), (None, 1)):
        buffer = EventBuffer(10_000, Overflow.COALESCE)
        _waits(buffer, [EventsLost(0, LossCause.BATCH, 1) for _ in range(MERGEABLE_LOSSES - 1)])
        buffer.extend(EventsLost(0, LossCause.RESYNC, count) for count in pair)
        assert buffer.pop_all()[-1].count is None


def test_as_many_as_the_limit_wait_as_they_came_and_beyond_it_a_tenth_is_made_free():
    stream, buffer = Stream(), EventBuffer(20, Overflow.COALESCE)
    pairs = [event for _ in range(10) for event in (stream.add(3, preexisting=False), stream.remove(0, 4))]
    buffer.extend(pairs)
    assert buffer.statistics() == BufferStatistics(pending=20, delivered=0, coalesced=0, given_up=0, high_water=20)
    assert buffer.is_full
    refused = ProviderRefused(99, Provider.CONNECTION, 1, "needs root")
    buffer.extend([refused])
    state = buffer.statistics()
    assert (state.pending, state.given_up, state.high_water) == (18, 2, 20)
    lost, *rest = buffer.pop_some(18)
    assert rest == [*pairs[4:], refused]
    assert lost == EventsLost(
        pairs[3].time, LossCause.OVERFLOW, 2, counts(14), "the consumer was slower than the flows that came and went"
    )
    assert buffer.statistics() == BufferStatistics(pending=0, delivered=18, coalesced=0, given_up=2, high_water=20)


def test_a_full_buffer_may_be_waiting_and_its_flows_are_given_up_only_beyond_the_limit():
    stream, buffer = Stream(), EventBuffer(4, Overflow.COALESCE)
    _waits(buffer, [stream.add(1, preexisting=False), stream.remove(0, 1)])
    buffer.extend([stream.add(1, preexisting=False), stream.remove(0, 1)])
    assert buffer.statistics().given_up == 0
    assert len(buffer) == 4


def test_given_up_flows_are_one_loss_until_it_is_read_and_their_counters_are_summed_as_far_as_they_are_known():
    buffer = EventBuffer(3, Overflow.COALESCE)
    known = [
        Counts(rx_bytes=1, tx_retransmitted_bytes=5, connect_attempts=1),
        Counts(rx_bytes=2, tx_bytes=7, connect_attempts=1, min_rtt_us=9),
        None,
    ]
    for number, each in enumerate(known):
        flow = Flow(f"g{number}", Provider.TCP)
        buffer.extend([FlowAdded(number, flow, None, False)])
        buffer.extend([FlowRemoved(number, flow, each, True, RemovalReason.CLOSED)])
    buffer.extend([FlowUpdated(n, Flow(f"u{n}", Provider.TCP), counts(1), None) for n in range(4)])
    lost, *rest = buffer.pop_all()
    assert (lost.count, len(rest), buffer.statistics().coalesced) == (3, 4, 2)
    assert lost.counts == Counts(rx_bytes=3, tx_bytes=7, tx_retransmitted_bytes=5)


def test_of_a_flow_that_was_there_before_only_what_was_watched_is_in_a_loss():
    buffer = EventBuffer(1, Overflow.COALESCE)
    before = Counts(rx_bytes=10, tx_bytes=5, connect_attempts=1)
    after = Counts(rx_bytes=14, tx_bytes=3, rx_packets=2, connect_attempts=1)
    buffer.extend([FlowAdded(0, FLOW, before, True), FlowRemoved(1, FLOW, after, True, RemovalReason.CLOSED)])
    (lost,) = buffer.pop_all()
    assert lost.counts == Counts(rx_bytes=4, tx_bytes=0, rx_packets=2)


def test_routes_that_are_gone_are_given_up_after_flows_are_no_flows_and_only_as_many_as_needed():
    buffer = EventBuffer(10, Overflow.COALESCE)
    gone = [_route(number, removed=True) for number in range(10)]
    buffer.extend(gone)
    buffer.extend([FlowUpdated(20, FLOW, counts(1), None)])
    assert len(buffer) == 10
    lost, *rest = buffer.pop_all()
    detail = "the consumer was slower than the routes that went away"
    assert lost == EventsLost(1.0, LossCause.LIMIT, 2, detail=detail)
    assert rest == [*gone[2:], FlowUpdated(20, FLOW, counts(1), None)]
    assert buffer.statistics().given_up == 0


def test_holes_in_the_queue_stay_few_while_somebody_reads_slowly():
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    flows = [Flow(f"f{n}", Provider.TCP) for n in range(400)]
    _waits(buffer, [FlowUpdated(1, flow, counts(1), None) for flow in flows])
    buffer.extend([FlowRemoved(2, flow, counts(2), True, RemovalReason.CLOSED) for flow in flows])
    assert len(buffer._queue) == 800, "not sorted out while half of it waits"
    buffer.pop_some(250)
    buffer.extend([PollCompleted(3, 0, True)])
    assert [event.flow for event in buffer.pop_all()[:-1]] == flows[250:]
