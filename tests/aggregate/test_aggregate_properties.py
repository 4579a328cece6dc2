"""Whatever the stream, the sums over any grouping are the sums over flows."""

from __future__ import annotations

import pytest
from aggregate_events import FIELDS, Counts, added, flow, lost, model_totals, polled, removed, updated
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async._events import LossCause
from nstat_async._model import Interface, InterfaceKind, Process, Provider
from nstat_async.aggregate import GroupBy, ProcessTable, TrafficTable

GROUPINGS = [
    GroupBy.processes(),
    GroupBy.processes(effective=True),
    GroupBy.process_name(),
    GroupBy.user(),
    GroupBy.remote_address(),
    GroupBy.remote_network(16, 32),
    GroupBy.remote_port(),
    GroupBy.local_port(),
    GroupBy.interface_kind(),
    GroupBy.interface(),
    GroupBy.provider(),
    GroupBy.cgroup(),
    GroupBy.flow(),
    GroupBy.function(lambda a_flow: len(a_flow.id), "length of the id"),
]

amounts = st.integers(0, 5000)
maybe_amounts = st.none() | amounts
counts_values = st.builds(
    lambda rx, tx, rxp, txp: Counts(rx_bytes=rx, tx_bytes=tx, rx_packets=rxp, tx_packets=txp),
    *(maybe_amounts,) * 4,
) | st.builds(lambda rx, tx: Counts(rx_bytes=rx, tx_bytes=tx, rx_packets=rx, tx_packets=tx), amounts, amounts)
processes = st.none() | st.builds(
    Process,
    st.integers(1, 3),
    st.sampled_from([None, "a", "b"]),
    unique_pid=st.sampled_from([None, 1, 2]),
    effective_pid=st.sampled_from([None, 1, 2]),
    effective_unique_pid=st.sampled_from([None, 1]),
    uid=st.sampled_from([None, 0, 501]),
)
interfaces = st.none() | st.sampled_from(
    [Interface(1, "lo0", InterfaceKind.LOOPBACK), Interface(4, None, InterfaceKind.WIFI), Interface(5, "en1", None)]
)
flows = st.builds(
    flow,
    st.integers(1, 5),
    processes,
    st.sampled_from([Provider.TCP, Provider.UDP, Provider.QUIC]),
    st.sampled_from([None, "198.51.100.7", "198.51.100.9", "2001:db8::1", "::ffff:198.51.100.7", "0.0.0.0"]),
    st.sampled_from([0, 53, 443]),
    interface=interfaces,
)
subflows = st.builds(flow, st.integers(6, 7), processes, st.just(Provider.UDP_SUBFLOW))
times = st.floats(0, 100) | st.floats(0, 1e6)
events = (
    st.builds(added, flows | subflows, times, st.none() | counts_values, st.booleans())
    | st.builds(updated, flows | subflows, times, counts_values, st.none() | counts_values)
    | st.builds(updated, flows, times, counts_values)
    | st.builds(removed, flows | subflows, times, st.none() | counts_values)
    | st.builds(polled, times)
    | st.builds(lost, times, st.none() | st.integers(0, 9), st.none() | counts_values, st.sampled_from(LossCause))
)
streams = st.lists(events, max_size=40)
tables = st.fixed_dictionaries(
    {},
    optional={
        "max_finished": st.integers(0, 3),
        "max_age": st.floats(0.5, 50),
        "include_history": st.booleans(),
        "rate_window": st.floats(0.1, 60),
    },
)


def totals(rows):
    return {name: sum(getattr(row, name) for row in rows) for name in (*FIELDS, "flows", "open_flows")}


@given(stream=streams, grouping=st.sampled_from(GROUPINGS), options=tables)
@settings(max_examples=examples(200), deadline=None)
def test_sums_over_any_grouping_are_the_sums_over_flows(stream, grouping, options):
    """Flows are counted once each, whatever the rows are, and folding rows loses nothing."""
    table = TrafficTable(grouping, **options)
    table.feed_many(stream)
    expected = model_totals(stream, options.get("include_history", False))
    rows = table.rows()
    assert totals(rows) == expected
    assert totals([table.total()]) == expected
    assert totals(table.top(2)) == expected
    assert totals(table.top(0, "rate")) == expected
    for row in rows:
        assert min(getattr(row, name) for name in (*FIELDS, "flows", "open_flows", "uncounted_flows")) >= 0
        assert row.rx_rate is None or row.rx_rate >= 0
        assert row.tx_rate is None or row.tx_rate >= 0
        assert row.uncounted_flows <= row.flows


@given(stream=streams, grouping=st.sampled_from(GROUPINGS), options=tables, cut=st.integers(0, 40))
@settings(max_examples=examples(60), deadline=None)
def test_differences_of_two_looks_add_up_to_the_difference_of_the_totals(stream, grouping, options, cut):
    """What changed between two snapshots, row by row, is what changed in all."""
    table = TrafficTable(grouping, **options)
    table.feed_many(stream[:cut])
    before = table.snapshot()
    table.feed_many(stream[cut:])
    after = table.snapshot()
    changed = totals(after.since(before))
    for name in (*FIELDS, "flows"):
        assert changed[name] == getattr(after.total, name) - getattr(before.total, name)


@given(stream=streams, options=tables, cut=st.integers(0, 40))
@settings(max_examples=examples(60), deadline=None)
def test_a_reset_splits_the_totals_and_loses_nothing(stream, options, cut):
    """Bytes before a reset and after it are the bytes of a table that was not reset."""
    options = {**options, "include_history": False}
    whole, parted = ProcessTable(**options), ProcessTable(**options)
    whole.feed_many(stream)
    parted.feed_many(stream[:cut])
    before = totals(parted.rows())
    parted.reset()
    assert parted.total().bytes == 0
    parted.feed_many(stream[cut:])
    after = totals(parted.rows())
    for name in FIELDS:
        assert before[name] + after[name] == totals(whole.rows())[name]


@given(one=streams, two=streams, rest=streams, grouping=st.sampled_from(GROUPINGS))
@settings(max_examples=examples(60), deadline=None)
def test_merging_tables_equals_counting_both_streams(one, two, rest, grouping):
    """A merged table has the sum of both, and goes on counting its own stream."""
    table, other = TrafficTable(grouping), TrafficTable(grouping)
    table.feed_many(one)
    other.feed_many(two)
    untouched = other.rows()
    table.merge(other, source="elsewhere")
    table.feed_many(rest)
    expected, added_up = model_totals([*one, *rest]), model_totals(two)
    assert totals(table.rows()) == {name: expected[name] + added_up[name] for name in expected}
    assert other.rows() == untouched


@pytest.mark.parametrize("size", [1, 7])
@given(stream=streams, options=tables)
@settings(max_examples=examples(25), deadline=None)
def test_the_same_events_give_the_same_table_however_they_are_cut(stream, options, size):
    """Feeding in batches, or one by one, makes no difference."""
    one, other = ProcessTable(**options), ProcessTable(**options)
    for event in stream:
        one.feed(event)
    for begin in range(0, len(stream), size):
        other.feed_many(stream[begin : begin + size])
    assert one.rows() == other.rows()
