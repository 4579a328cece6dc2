"""What a table counts, to whom, and how long it remembers."""

from __future__ import annotations

import pytest
from aggregate_events import CURL, SSHD, Counts, added, counts, fed, flow, lost, polled, removed, updated

from nstat_async._errors import UsageError
from nstat_async._events import EventsLost, HostState, HostUpdated, LossCause, ProviderRefused, RemovalReason
from nstat_async._model import MediumCounts, Process, Provider
from nstat_async.aggregate import GroupBy, ProcessTable, RowKind, TrafficTable, _table
from nstat_async.json import to_dict


def by_wire(rx: int) -> Counts:
    return Counts(rx_bytes=rx, tx_bytes=0, rx_packets=0, tx_packets=0, media={"wired": MediumCounts(rx, 0, 0, 0)})


def test_what_is_no_event_and_no_number_is_wrong_usage():
    with pytest.raises(UsageError, match="feed: 3 is not an event"):
        ProcessTable().feed(3)
    with pytest.raises(UsageError, match="count: '3' is not"):
        ProcessTable().top("3")


def test_a_new_flow_counts_from_zero_and_stays_counted_when_closed():
    a = flow("a")
    table = fed(added(a, 1, counts(100, 10)), updated(a, 2, counts(400, 40)), removed(a, 3, counts(500, 50)))
    (row,) = table.rows()
    assert (row.pid, row.name, row.rx_bytes, row.tx_bytes, row.flows, row.open_flows) == (42, "curl", 500, 50, 1, 0)
    assert (row.first_seen, row.last_seen) == (1, 3)


def test_what_a_preexisting_flow_had_before_is_history():
    """It counts from its first counts on; on request, history counts too, but never as a rate."""
    a, b = flow("a"), flow("b")
    stream = [
        added(a, 0, counts(10_000), preexisting=True),
        added(b, 0, None, preexisting=True),
        updated(b, 0.5, counts(5_000)),
        updated(a, 1, counts(10_300)),
        updated(b, 1, counts(5_200)),
    ]
    assert fed(*stream).total().rx_bytes == 500
    table = fed(*stream, include_history=True)
    assert table.total().rx_bytes == 15_500
    assert table.total().rx_rate == 500


def test_the_history_of_a_flow_that_went_without_an_end_counts_once(monkeypatch):
    """A filter hides a flow and shows it again; a machine of a fleet leaves and comes back."""
    monkeypatch.setattr(_table, "_MOST_LEFT", 1)
    a, b, old, now = flow("a"), flow("b"), by_wire(100), by_wire(200)
    for reason in (RemovalReason.FILTERED, RemovalReason.MONITOR):
        table = fed(added(a, 0, old, preexisting=True), removed(a, 1, old, reason=reason), include_history=True)
        table.feed_many([added(a, 2, now, preexisting=True), updated(a, 3, by_wire(205))])
        total = table.total()
        assert (total.rx_bytes, dict(total.media)["wired"].rx_bytes) == (105, 105)
        table.feed_many([removed(each, 4, counts(205), reason=reason) for each in (a, b)])
        table.feed(added(a, 5, counts(205), preexisting=True))
        assert table.total().rx_bytes == 105 + 205 + 205, "only the latest are remembered"
    table = fed(added(a, 0, old, preexisting=True), removed(a, 1, old), include_history=True)
    table.feed(added(a, 2, now, preexisting=True))
    assert table.total().rx_bytes == 300, "a flow that ended is another one"


def test_a_removed_flow_without_counts_keeps_what_was_known():
    a = flow("a")
    table = fed(added(a, 1), updated(a, 2, counts(70)), removed(a, 3, None))
    assert table.total().rx_bytes == 70
    assert table.open_flows == 0


def test_a_table_that_comes_late_counts_from_its_first_event():
    """An update of an unknown flow counts its own growth; a removal of one counts nothing."""
    a, b = flow("a"), flow("b")
    table = fed(updated(a, 1, counts(900), counts(600)), removed(b, 2, counts(4000)))
    assert table.total().rx_bytes == 300
    assert table.total().flows == 2


def test_counters_that_fall_are_a_new_flow():
    a = flow("a")
    table = fed(added(a, 1, counts(1000)), updated(a, 2, counts(200, 5)), updated(a, 3, counts(250, 5)))
    assert (table.total().rx_bytes, table.total().tx_bytes, table.total().flows) == (1250, 5, 2)


def test_bytes_of_udp_subflows_are_not_counted_twice():
    socket, peer = flow("a", provider=Provider.UDP), flow("b", provider=Provider.UDP_SUBFLOW)
    stream = [added(socket, 1, counts(100)), added(peer, 1, counts(100)), updated(peer, 2, counts(200))]
    assert (fed(*stream).total().rx_bytes, fed(*stream).total().flows) == (100, 1)
    assert fed(*stream, exclude=[Provider.UDP]).total().rx_bytes == 200


def test_flows_without_counts_are_flows_and_nothing_else():
    """They show as uncounted, and a row that never had counts says null rather than zero."""
    a, b = flow("a", provider=Provider.UDP), flow("b")
    table = fed(added(a, 1), updated(a, 2, Counts()))
    (row,) = table.rows()
    assert (row.flows, row.open_flows, row.uncounted_flows, row.rx_bytes) == (1, 1, 1, 0)
    assert to_dict(row, time=2)["rx_bytes"] is None
    table.feed(added(b, 3, counts(0)))
    assert to_dict(table.rows()[0], time=3)["rx_bytes"] == 0


def test_losses_carry_their_counts_and_are_listed_by_cause():
    table = fed(
        added(flow("a"), 1, counts(1)),
        lost(2, 3, counts(500, 50)),
        lost(3, None, None, LossCause.GOODBYE),
        lost(4, 2, counts(9), LossCause.FINAL_COUNTS),
    )
    assert [(row.kind, row.rx_bytes, row.flows) for row in table.rows()] == [
        (RowKind.GROUP, 1, 1),
        (RowKind.LOST, 500, 3),
    ]
    assert {(loss.cause, loss.events, loss.count) for loss in table.losses} == {
        (LossCause.OVERFLOW, 1, 3),
        (LossCause.GOODBYE, 1, 0),
        (LossCause.FINAL_COUNTS, 1, 2),
    }


def test_polls_are_counted():
    assert fed(polled(1), polled(2, complete=False), polled(3)).polls == (3, 1)


def test_old_rows_are_folded_by_age_and_number():
    """Rows with open flows stay; of the others the largest and youngest stay; nothing is lost."""
    table = ProcessTable(max_finished=2, max_age=100)
    living = flow("living", Process(1, "living"))
    table.feed(added(living, 0, counts(1)))
    for number in range(50):
        short = flow(f"f{number}", Process(100 + number, f"p{number}"))
        table.feed(added(short, number / 10))
        table.feed(removed(short, number / 10, counts(1000 + number)))
    assert len(table) <= 4
    names = {row.name for row in table.rows()}
    assert {"living", "p49"} <= names
    assert table.total().rx_bytes == 1 + sum(range(1000, 1050))
    table.feed(polled(1000))
    assert [row.kind for row in table.rows()] == [RowKind.GROUP, RowKind.OTHER]
    assert table.total().rx_bytes == 1 + sum(range(1000, 1050))


def test_memory_does_not_grow_with_the_processes_that_came_and_went():
    """Names, rows and finished rows all stay below their limits."""
    table = ProcessTable(max_finished=100, effective=True)
    for number in range(5_000):
        short = flow(f"f{number}", Process(number, f"p{number}", unique_pid=number))
        table.feed(added(short, number / 100, counts(number)))
        table.feed(removed(short, number / 100, counts(number)))
    assert len(table) <= 125
    assert len(table._groups._names) <= 4096
    assert table.total().rx_bytes == sum(range(5_000))
    assert table.total().flows == 5_000


def test_the_largest_rows_come_first_and_the_rest_is_summed_up():
    stream = [added(flow(str(n), Process(n, f"p{n}")), 1, counts(n * 10, 1)) for n in range(1, 8)]
    table = fed(*stream, lost(2, 1, counts(5)))
    rows = table.top(2, by="rx_bytes")
    assert [(row.kind, row.name, row.rx_bytes) for row in rows] == [
        (RowKind.GROUP, "p7", 70),
        (RowKind.GROUP, "p6", 60),
        (RowKind.OTHER, None, 150),
        (RowKind.LOST, None, 5),
    ]
    assert [row.name for row in table.top(1, other=False)] == ["p7"]
    with pytest.raises(UsageError, match="by: 'size' is not one of"):
        table.top(by="size")


def test_a_look_sees_what_changed_since_the_last_one():
    a, b, c = flow("a"), flow("b", SSHD), flow("c", Process(3, "gone"))
    table = ProcessTable(max_age=10)
    table.feed_many(
        [added(a, 1, counts(100)), added(b, 1, counts(50)), added(c, 1, counts(7)), removed(c, 1, counts(7))]
    )
    first = table.snapshot()
    table.feed_many([updated(a, 20, counts(130)), updated(b, 20, counts(50))])
    second = table.snapshot()
    assert [(row.name, row.rx_bytes, row.flows) for row in second.since(first)] == [("curl", 30, 0)]
    assert second.since(second) == ()
    assert second.total.rx_bytes == 187


def test_rows_know_their_open_flows():
    a, b = flow("a"), flow("b", SSHD)
    table = fed(added(a, 1), added(b, 1))
    assert table.flows(CURL.key) == [a]
    assert table.flows((1, None)) == []
    assert table.row(SSHD.key).name == "sshd"
    assert table.row((1, None)) is None


def test_a_reset_begins_at_zero_and_keeps_the_open_flows():
    a, b = flow("a"), flow("b", SSHD)
    table = fed(added(a, 1, counts(100)), added(b, 1, counts(9)), removed(b, 2, counts(9)), lost(2, 1, counts(1)))
    table.reset()
    (row,) = table.rows()
    assert (row.name, row.rx_bytes, row.flows, row.open_flows) == ("curl", 0, 1, 1)
    assert table.losses == ()
    table.feed(updated(a, 3, counts(150)))
    assert table.total().rx_bytes == 50


def test_a_merge_keeps_machines_apart_by_their_names():
    here, there = fed(added(flow("a"), 1, counts(5))), fed(added(flow("a"), 1, counts(7)))
    with pytest.raises(UsageError, match="flow a is open in both"):
        here.merge(there)
    here.merge(there, source="there")
    assert [(row.source, row.name, row.rx_bytes) for row in here.rows()] == [(None, "curl", 5), ("there", "curl", 7)]
    here.feed(updated(flow("there/a"), 2, counts(17)))
    assert here.row(CURL.key, "there").rx_bytes == 17
    with pytest.raises(UsageError, match="a table by provider cannot be merged into one by process"):
        here.merge(TrafficTable(GroupBy.provider()))


def test_merging_recordings_of_one_machine_adds_equal_processes_up():
    one, two = flow("1"), flow("2")
    day = fed(added(one, 1, counts(5)), removed(one, 2, counts(5)), lost(2, 1, counts(3)))
    next_day = fed(added(two, 1, counts(7)), removed(two, 2, counts(7)), lost(2, 1, counts(4)), max_finished=0)
    day.merge(next_day)
    assert [(row.kind, row.name, row.rx_bytes, row.flows) for row in day.rows()] == [
        (RowKind.GROUP, "curl", 5, 1),
        (RowKind.OTHER, None, 7, 1),
        (RowKind.LOST, None, 7, 2),
    ]


def test_the_json_object_of_a_process_has_its_documented_keys_in_order():
    table = fed(added(flow("a"), 10, counts(0)), updated(flow("a"), 11, counts(300, 100)))
    (row,) = table.rows()
    line = to_dict(row, time=table.time)
    assert list(line)[:12] == [
        "v", "time", "pid", "name", "flows", "open_flows", "rx_bytes", "tx_bytes",
        "rx_packets", "tx_packets", "rx_rate", "tx_rate",
    ]  # fmt: skip
    assert (line["v"], line["time"], line["pid"], line["rx_rate"], line["kind"]) == (1, 11, 42, 300, "process")


@pytest.mark.parametrize("options", [{"max_finished": -1}, {"max_age": 0}, {"rate_window": 0}, {"rate_window": -1.0}])
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        ProcessTable(**options)


TERABYTES = 6_200_000_000_000


def four(rx_bytes, tx_bytes, rx_packets, tx_packets):
    return Counts(rx_bytes=rx_bytes, tx_bytes=tx_bytes, rx_packets=rx_packets, tx_packets=tx_packets)


def test_a_packet_counter_of_32_bits_that_wraps_adds_what_it_wrapped_by():
    a = flow("a")
    table = fed(
        added(a, 1, four(TERABYTES, 9, 2**32 - 500, 7), preexisting=True),
        updated(a, 2, four(TERABYTES + 1_448_000, 9, 500, 7)),
        updated(a, 3, four(TERABYTES + 2_896_000, 9, 1500, 7)),
    )
    total = table.total()
    assert (total.rx_bytes, total.rx_packets, total.tx_packets, total.flows) == (2_896_000, 2000, 0, 1)


@pytest.mark.parametrize(
    "odd",
    [
        (990, 50, 5, 5),
        (1000, 49, 5, 5),
        (0, 50, 5, 5),
        (0, 0, 0, 0),
        (990, 49, 4, 5),
        (990, 55, 7, 5),
        (990, 55, 5, 6),
        (1100, 49, 7, 6),
    ],
)
def test_an_odd_reading_adds_nothing_and_takes_nothing(odd):
    """A counter that falls by itself, or by little, or to nothing, is no new flow: what was counted once counts once."""
    a = flow("a")
    table = fed(added(a, 1, four(1000, 50, 5, 4)), updated(a, 2, four(*odd)), updated(a, 3, four(1200, 60, 8, 9)))
    total = table.total()
    assert (total.rx_bytes, total.tx_bytes, total.rx_packets, total.tx_packets) == (1200, 60, 8, 9)
    assert total.flows == 1


@pytest.mark.parametrize(
    ("first", "last", "final", "rx_bytes"),
    [
        (1, 0, True, 0),
        (101, 100, True, 100),
        (101, 100, False, 101),  # what is not the last word takes nothing back
        (102, 100, True, 102),  # nor is more than a FIN given back
    ],
)
def test_the_byte_of_a_fin_is_taken_back_by_final_counts(first, last, final, rx_bytes):
    """It is no new flow, and no rate falls below zero by it."""
    a = flow("a")
    table = fed(added(a, 1, four(first, 50, 0, 4)), polled(5), removed(a, 6, four(last, 50, 0, 4), final=final))
    total = table.total()
    assert (total.rx_bytes, total.tx_bytes, total.flows) == (rx_bytes, 50, 1)
    assert total.rx_rate >= 0


def test_a_byte_that_a_table_did_not_count_is_not_taken_back():
    a = flow("a")
    table = fed(added(a, 1, four(1, 50, 0, 4), preexisting=True), removed(a, 2, four(0, 50, 0, 4)))
    assert table.total().rx_bytes == 0
    table = fed(
        added(a, 1, four(9, 50, 0, 4), preexisting=True),
        updated(a, 2, four(10, 50, 0, 4)),
        removed(a, 3, four(9, 50, 0, 4)),
    )
    assert table.total().rx_bytes == 0, "the one byte that it counted was that of the FIN"


def test_the_sum_of_growths_is_taken_along_after_a_wrap():
    """A flow whose owner becomes known after its counter wrapped brings all of it."""
    table = fed(
        added(flow("a", None), 1, four(10, 4, 2**32 - 5, 2**32 - 2)),
        updated(flow("a", None), 2, four(20, 6, 5, 3)),
        updated(flow("a", CURL), 3, four(30, 9, 6, 4)),
    )
    (row,) = table.rows()
    assert (row.name, row.rx_bytes, row.tx_bytes) == ("curl", 30, 9)
    assert (row.rx_packets, row.tx_packets) == (2**32 + 6, 2**32 + 4)
    (share,) = table.shares([row])[row.serial]
    assert (share.rx_bytes, share.tx_bytes, share.rx_packets, share.tx_packets) == (30, 9, 2**32 + 6, 2**32 + 4)


def test_a_table_knows_the_machines_of_a_fleet_until_they_leave_and_what_was_refused():
    table, both = TrafficTable(GroupBy.host()), TrafficTable(GroupBy.host())
    states = {"web1": HostState.PRESENT, "db1": HostState.SILENT, "db2": HostState.PRESENT}
    table.feed_many(HostUpdated(1.0, state, host=host) for host, state in states.items())
    table.feed(HostUpdated(2.0, HostState.LEFT, host="db2"))
    table.feed(HostUpdated(2.0, HostState.LEFT, host="unknown"))
    table.feed(ProviderRefused(2.0, Provider.UDP, 2, "no"))
    table.reset()
    both.merge(table)
    assert table.refused == both.refused == {Provider.UDP: "no"}
    assert table.hosts == both.hosts == {"web1": HostState.PRESENT, "db1": HostState.SILENT}


def test_a_row_always_has_a_label():
    table = fed(added(flow("a", Process(7)), 1, counts(5)), added(flow("b", None), 1, counts(5)), lost(1, 2))
    assert [row.label for row in table.rows()] == ["?", "(owner unknown)", "(closed flows, owner lost)"]
    assert table.total().label == "(all)"


@pytest.mark.parametrize(
    "wrong", [{"group_by": "process"}, {"exclude": 7}, {"exclude": ["smoke"]}, {"max_finished": 1.5}]
)
def test_an_argument_of_a_wrong_type_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrafficTable(**{"group_by": GroupBy.processes(), **wrong})


def test_providers_that_are_left_out_may_be_named():
    table = ProcessTable(exclude=["udp", Provider.QUIC])
    for number, provider in enumerate((Provider.UDP, Provider.QUIC, Provider.TCP, Provider.UDP_SUBFLOW)):
        table.feed(added(flow(number, provider=provider), 1, counts(10)))
    assert table.total().rx_bytes == 20


def test_lost_flows_without_counters_are_flows_that_were_not_counted():
    table = ProcessTable()
    table.feed(EventsLost(1.0, LossCause.OVERFLOW, 3))
    table.feed(EventsLost(2.0, LossCause.OVERFLOW, None))
    (row,) = table.rows()
    assert (row.kind, row.flows, row.uncounted_flows, row.is_counted) == (RowKind.LOST, 3, 3, False)


def test_a_reset_and_a_merge_count_polls_and_flows_behind_one_id_anew_and_together():
    def began_anew(table):
        table.feed_many([added(flow("a"), 1, counts(1000)), updated(flow("a"), 2, counts(200, 5))])
        table.feed_many([polled(2), polled(3, complete=False)])
        return table

    table = began_anew(ProcessTable())
    assert (table.polls, table.total().flows) == ((2, 1), 2)
    both = ProcessTable(source="here")
    both.merge(table, "there")
    both.merge(began_anew(ProcessTable()), "elsewhere")
    assert both.polls == (4, 2)
    table.reset()
    assert (table.polls, table.total().flows) == ((0, 0), 1)


def test_a_report_whose_counters_do_not_grow_is_no_odd_one():
    a = flow("a")
    table = fed(added(a, 1, counts(100, 10)), updated(a, 2, counts(100, 10)), updated(a, 3, counts(100, 20)))
    assert (table.total().rx_bytes, table.total().tx_bytes, table.total().flows) == (100, 20, 1)


def test_rows_are_sorted_by_what_is_asked_for():
    table = fed(
        added(flow("a", Process(1, "down")), 0, counts(0, 0)),
        added(flow("b", Process(2, "up")), 0, counts(0, 0)),
        polled(1),
        updated(flow("a", Process(1, "down")), 2, counts(900, 0)),
        updated(flow("b", Process(2, "up")), 2, counts(0, 500)),
    )
    for by, first in (("rx_rate", "down"), ("tx_rate", "up"), ("rate", "down"), ("bytes", "down"), ("tx_bytes", "up")):
        assert table.top(1, by=by, other=False)[0].name == first


def test_rows_are_sorted_by_what_they_sent_too_and_by_what_grew_lately():
    table = ProcessTable(rate_window=5)
    for second in range(40):
        table.feed(updated(flow("a", Process(1, "early")), second, counts(0, min(second, 9) * 1_000), counts()))
        table.feed(updated(flow("b", Process(2, "late")), second, counts(10 * second), counts()))
    by = ("bytes", "tx_bytes", "rate", "rx_rate")
    assert [table.top(1, by=each, other=False)[0].name for each in by] == ["early", "early", "late", "late"]


def test_flows_that_were_given_up_are_lately_seen_and_lately_counted():
    table = fed(lost(1, 2, counts(1_000)), polled(5), lost(6, 3, counts(500)), rate_window=5)
    (row,) = table.rows()
    assert (row.kind, row.flows, row.first_seen, row.last_seen) == (RowKind.LOST, 5, 1, 6)
    assert row.rx_rate == 500 / 5


def test_open_flows_of_a_row_are_found_on_the_machine_that_a_table_is_of():
    a, b = flow("a"), flow("b", host="web1")
    table = TrafficTable(GroupBy.processes(), source="here")
    table.feed_many([added(a, 1), added(b, 1)])
    key = table.rows()[0].key
    assert (table.flows(key), table.flows(key, "web1"), table.flows(key, "web2")) == ([a], [b], [])


def test_what_a_merge_brings_is_folded_like_its_own_and_its_losses_are_added_up():
    def of(pid):
        return fed(added(flow("a", Process(pid)), 1, counts(pid)), removed(flow("a", Process(pid)), 2, counts(pid)))

    table = fed(lost(1, 2, cause=LossCause.GOODBYE), max_finished=4)
    for pid in range(1, 10):
        other = of(pid)
        other.feed(lost(2, 3, cause=LossCause.GOODBYE))
        table.merge(other)
    assert len(table) <= 5
    assert table.total().rx_bytes == sum(range(1, 10))
    assert [(loss.events, loss.count) for loss in table.losses] == [(10, 2 + 9 * 3)]
