"""Events: frozen, matched by keyword, with exact deltas."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest

from nstat_async import (
    Counts,
    Delta,
    Details,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    Provider,
    RemovalReason,
    _making,
    json,
)
from nstat_async._events import coalesced, flow_added, flow_updated
from nstat_async.aggregate import ProcessTable

FLOW = Flow("1", Provider.TCP)


class Source:
    """Counts how often details are made."""

    made = 0

    def details(self) -> Details:
        self.made += 1
        return Details(congestion_window=5)


def test_an_update_knows_what_was_added_since_the_consumer_s_last_event():
    update = FlowUpdated(1.0, FLOW, Counts(rx_bytes=10, tx_bytes=5), Counts(rx_bytes=4))
    assert (update.delta.rx_bytes, update.delta.tx_bytes, update.delta.rx_packets) == (6, 5, None)
    assert FlowUpdated(1.0, FLOW, Counts(rx_bytes=10), None).delta.rx_bytes == 10
    assert FlowUpdated(1.0, FLOW, Counts(rx_bytes=3), Counts(rx_bytes=4)).delta.rx_bytes == 0


def test_an_update_whose_counters_all_began_anew_added_what_they_count_now_as_a_table_says():
    """One that falls alone, as by the byte of a FIN, is no new beginning."""
    before = Counts(rx_bytes=5000, tx_bytes=100_000, rx_packets=5, tx_packets=70)
    for after, added in (
        (Counts(rx_bytes=10, tx_bytes=20, rx_packets=1, tx_packets=2), (10, 20, 1, 2)),
        (Counts(rx_bytes=1, tx_bytes=100_000, rx_packets=0, tx_packets=70), (0, 0, 0, 0)),
        (Counts(rx_bytes=4999, tx_bytes=99_999, rx_packets=4, tx_packets=69), (0, 0, 0, 0)),
        (Counts(rx_bytes=0, tx_bytes=0, rx_packets=0, tx_packets=0), (0, 0, 0, 0)),
    ):
        table = ProcessTable()
        table.feed(FlowAdded(1.0, FLOW, before, preexisting=False))
        table.feed(update := FlowUpdated(2.0, FLOW, after, before))
        total = table.total()
        assert attrs.astuple(update.delta) == added
        assert json.loads(json.dumps(update)).delta == update.delta
        sums = (total.rx_bytes, total.tx_bytes, total.rx_packets, total.tx_packets)
        assert sums == tuple(a + b for a, b in zip((5000, 100_000, 5, 70), added, strict=True))


def test_details_are_made_when_somebody_looks_and_do_not_count_in_comparisons():
    source = Source()
    events = [
        FlowAdded(1.0, FLOW, None, False, source),
        FlowUpdated(1.0, FLOW, Counts(), None, source),
        FlowRemoved(1.0, FLOW, None, False, RemovalReason.CLOSED, source),
    ]
    assert source.made == 0
    assert [e.details.congestion_window for e in events] == [5, 5, 5]
    assert source.made == 3
    assert events[0] == FlowAdded(1.0, FLOW, None, False)
    assert FlowAdded(1.0, FLOW, None, False).details is None
    assert "Source" not in repr(events[0])


class Reader:
    """Makes counters and samples of reports; its counters are multiples."""

    def __init__(self, unit: int = 1) -> None:
        self.unit = unit

    def counts(self, raw: int) -> Counts:
        return Counts(rx_bytes=raw * self.unit)

    def details(self, report) -> Details:
        return Details(sampled_at_ns=report[5])

    def report(self, now: int, before: int | None):
        return (self, b"", 0, 0, 0, 7, now, before)


def test_an_event_of_a_core_is_in_every_respect_the_event_that_is_built_of_plain_values():
    reader = Reader()
    pairs = [
        (
            flow_updated(1.0, FLOW, reader.report(9, 4)),
            FlowUpdated(1.0, FLOW, Counts(rx_bytes=9), Counts(rx_bytes=4), Details(sampled_at_ns=7)),
        ),
        (
            flow_updated(1.0, FLOW, reader.report(9, None)),
            FlowUpdated(1.0, FLOW, Counts(rx_bytes=9), None, Details(sampled_at_ns=7)),
        ),
        *(
            (
                make(1.0, FLOW, Counts(rx_bytes=9), True, Details(sampled_at_ns=7)),
                FlowAdded(1.0, FLOW, Counts(rx_bytes=9), True, Details(sampled_at_ns=7)),
            )
            for make in (flow_added, _making.flow_added)
        ),
        (
            FlowAdded(1.0, FLOW, None, True, reader.report(9, None)),
            FlowAdded(1.0, FLOW, Counts(rx_bytes=9), True, Details(sampled_at_ns=7)),
        ),
    ]
    for ours, plain in pairs:
        for each in (ours, copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), attrs.evolve(ours)):
            assert type(each) is type(plain)
            assert (each, hash(each), repr(each), each.details) == (plain, hash(plain), repr(plain), plain.details)
        assert ours.counts is ours.counts
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            ours.counts = None
    match pairs[0][0]:
        case FlowUpdated(1.0, flow, Counts(rx_bytes=9), Counts(rx_bytes=4), Details(sampled_at_ns=7)):
            assert flow is FLOW
        case _:
            raise AssertionError(pairs[0][0])
    assert pairs[0][0].delta == pairs[0][1].delta


def test_updates_that_are_merged_keep_the_counts_that_the_consumer_knows():
    one, other = Reader(), Reader(unit=1000)
    plain = FlowUpdated(1.0, FLOW, Counts(rx_bytes=9), Counts(rx_bytes=4))
    new_reader = coalesced(flow_updated(1.0, FLOW, one.report(9, 4)), flow_updated(2.0, FLOW, other.report(11, 9)))
    for older, newer, now, before in (
        (flow_updated(1.0, FLOW, one.report(9, 4)), flow_updated(2.0, FLOW, one.report(11, 9)), 11, 4),
        (flow_updated(1.0, FLOW, one.report(9, None)), flow_updated(2.0, FLOW, one.report(11, 9)), 11, None),
        (flow_updated(1.0, FLOW, one.report(9, 4)), flow_updated(2.0, FLOW, other.report(11, 9)), 11_000, 4),
        (new_reader, flow_updated(3.0, FLOW, other.report(12, 11)), 12_000, 4),
        (plain, flow_updated(2.0, FLOW, one.report(11, 9)), 11, 4),
        (flow_updated(1.0, FLOW, one.report(9, 4)), plain, 9, 4),
    ):
        merged = coalesced(older, newer)
        assert (merged.time, merged.counts, merged.details) == (newer.time, Counts(rx_bytes=now), newer.details)
        assert merged.previous == (None if before is None else Counts(rx_bytes=before))


def test_events_cannot_be_changed():
    for event in (PollCompleted(1.0, 0, True), EventsLost(1.0, LossCause.BATCH, 1), FlowAdded(1.0, FLOW, None, True)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            event.time = 2.0
        assert attrs.evolve(event, time=2.0).time == 2.0


def test_events_are_matched_by_class_and_keyword():
    match EventsLost(1.0, LossCause.OVERFLOW, 3, Counts(rx_bytes=5)):
        case EventsLost(cause=LossCause.OVERFLOW, count=3, counts=Counts(rx_bytes=5)):
            pass
        case _:
            raise AssertionError


def test_a_packet_counter_that_wraps_has_one_growth_wherever_it_is_read():
    """Linux counts segments in 32 bits: event, JSON and table say the same."""
    before = Counts(rx_bytes=10, tx_bytes=10, rx_packets=2**32 - 500, tx_packets=7)
    after = Counts(rx_bytes=2000, tx_bytes=10, rx_packets=500, tx_packets=7)
    added, updated = FlowAdded(1.0, FLOW, before, preexisting=True), FlowUpdated(2.0, FLOW, after, before)
    table = ProcessTable()
    table.feed(added)
    table.feed(updated)
    assert updated.delta == Delta(1990, 0, 1000, 0)
    assert table.total().rx_packets == 1000
    formatter = json.JsonFormatter()
    formatter(added)
    assert json.loads(formatter(updated)).delta == json.loads(json.dumps(updated)).delta == updated.delta
