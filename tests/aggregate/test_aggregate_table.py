"""What a table counts, to whom, and how long it remembers."""

from __future__ import annotations

import json

import attrs
import pytest
from aggregate_events import CURL, SSHD, Counts, added, counts, flow, lost, polled, removed, updated
from virtual import VirtualMonitor

from nstat_async._errors import UsageError
from nstat_async._events import EventsLost, HostState, HostUpdated, LossCause
from nstat_async._model import Details, Interface, InterfaceKind, MediumCounts, Process, Provider, TcpState
from nstat_async.aggregate import GroupBy, ProcessTable, RowKind, TrafficTable
from nstat_async.json import dumps, to_dict
from nstat_async.testing import EmulatedKernel


def fed(*events, **options):
    table = ProcessTable(**options)
    table.feed_many(events)
    return table


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


def test_a_successor_with_the_same_pid_has_its_own_row():
    old, new = flow("a", CURL), flow("b", attrs.evolve(CURL, name="wget", unique_pid=4300))
    table = fed(added(old, 1, counts(10)), removed(old, 2, counts(20)), added(new, 3, counts(5)))
    assert [(row.key, row.name, row.rx_bytes) for row in table.rows()] == [
        ((42, 4200), "curl", 20),
        ((42, 4300), "wget", 5),
    ]


def test_an_owner_that_becomes_known_gets_what_the_flow_carried_before():
    """The row of the unknown disappears, the process has all of it, the flow is counted once."""
    nobody, somebody = flow("a", None), flow("a", Process(42, "curl"))
    surely = flow("a", CURL)
    table = fed(added(nobody, 1, counts(100)), updated(nobody, 2, counts(150)))
    assert [row.kind for row in table.rows()] == [RowKind.UNKNOWN]
    table.feed(updated(somebody, 3, counts(170)))
    table.feed(updated(surely, 4, counts(200)))
    (row,) = table.rows()
    assert (row.key, row.rx_bytes, row.flows, row.open_flows) == ((42, 4200), 200, 1, 1)


def test_flows_behind_one_id_go_to_the_late_owner_together():
    nobody = flow("a", None)
    table = fed(added(nobody, 1, counts(100)), updated(nobody, 2, counts(30)), updated(flow("a", CURL), 3, counts(40)))
    (row,) = table.rows()
    assert (row.name, row.rx_bytes, row.flows, row.open_flows) == ("curl", 140, 2, 1)


def test_a_flow_that_changes_hands_leaves_its_past_behind():
    """Bytes belong to the process (or interface) that had the flow when they were reported."""
    table = fed(added(flow("a", CURL), 1, counts(100)), updated(flow("a", SSHD), 2, counts(130)))
    rows = {row.name: row for row in table.rows()}
    assert (rows["curl"].rx_bytes, rows["curl"].flows, rows["curl"].open_flows) == (100, 0, 0)
    assert (rows["sshd"].rx_bytes, rows["sshd"].flows, rows["sshd"].open_flows) == (30, 1, 1)

    kinds = TrafficTable(GroupBy.interface_kind())
    kinds.feed(added(flow("a"), 1, counts(100)))
    kinds.feed(updated(flow("a", interface=Interface(2, "pdp_ip0", InterfaceKind.CELLULAR)), 2, counts(150)))
    assert {row.key: row.rx_bytes for row in kinds.rows()} == {InterfaceKind.WIFI: 100, InterfaceKind.CELLULAR: 50}


def test_flows_can_be_attributed_to_the_process_they_exist_for():
    """The name of the effective process is learnt from flows of its own."""
    helper = Process(9, "helper", unique_pid=900, effective_pid=42, effective_unique_pid=4200)
    stream = [added(flow("a", helper), 1, counts(70)), added(flow("b", CURL), 2, counts(7))]
    stream.append(updated(flow("a", attrs.evolve(helper, uid=5)), 3, counts(80)))
    assert {row.name: row.rx_bytes for row in fed(*stream).rows()} == {"helper": 80, "curl": 7}
    (row,) = fed(*stream, effective=True).rows()
    assert (row.pid, row.unique_pid, row.name) == (42, 4200, "curl")
    assert row.rx_bytes == 87
    (alone,) = fed(stream[0], effective=True).rows()
    assert (alone.pid, alone.name) == (42, None)
    table = fed(effective=True, max_finished=0)
    for time, owner in enumerate([CURL, attrs.evolve(CURL, name=None), attrs.evolve(CURL, name="renamed")]):
        table.feed_many([added(flow("b", owner), time, counts(1)), removed(flow("b", owner), time, counts(1))])
        table.feed_many([added(flow("a", helper), time, counts(1)), removed(flow("a", helper), time, counts(1))])
        table.feed(added(flow("c", helper), time, counts(1)))
        assert [row.name for row in table.rows() if row.pid] == [("curl", "curl", "renamed")[time]], (
            "its own row is folded"
        )
        table.feed(removed(flow("c", helper), time, counts(1)))


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


@attrs.frozen
class CgroupDetails:
    cgroup_id: int | None

    def details(self):
        return Details(cgroup_id=self.cgroup_id)


def test_cgroups_come_from_the_details_of_any_event():
    """A report without details changes nothing; the first one that has them decides."""
    a = flow("a")
    table = TrafficTable(GroupBy.cgroup())
    table.feed(added(a, 1, counts(10)))
    table.feed(attrs.evolve(updated(a, 2, counts(20)), details=CgroupDetails(77)))
    table.feed(updated(flow("a", SSHD), 3, counts(30)))
    assert [(row.key, row.rx_bytes) for row in table.rows()] == [(77, 30)]


@pytest.mark.parametrize(
    ("grouping", "key"),
    [
        (GroupBy.process_name(), "curl"),
        (GroupBy.user(), 501),
        (GroupBy.remote_port(), 443),
        (GroupBy.local_port(), 50000),
        (GroupBy.interface(), "en0"),
        (GroupBy.interface_kind(), InterfaceKind.WIFI),
        (GroupBy.provider(), Provider.TCP),
        (GroupBy.flow(), "a"),
        (GroupBy.function(lambda a_flow: a_flow.remote.port // 100), 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_flow_can_be_grouped_by(grouping, key):
    table = TrafficTable(grouping)
    table.feed(added(flow("a"), 1, counts(1)))
    assert [row.key for row in table.rows()] == [key]


def test_a_link_local_address_is_another_remote_on_each_link():
    table = TrafficTable(GroupBy.remote_address())
    for name, remote in enumerate(["fe80::1%2", "fe80::1%3", "fe80::1%2", "fe80::1"]):
        table.feed(added(flow(name, remote=remote), 1, counts(1)))
    assert {row.name: row.flows for row in table.rows()} == {"fe80::1%2": 2, "fe80::1%3": 1, "fe80::1": 1}


def test_networks_join_addresses_and_know_mapped_ones():
    table = TrafficTable(GroupBy.remote_network(24, 48))
    for name, remote in enumerate(["198.51.100.7", "198.51.100.250", "::ffff:198.51.100.9", "2001:db8::1", None]):
        table.feed(added(flow(name, remote=remote), 1, counts(1)))
    assert {row.name: row.flows for row in table.rows()} == {"198.51.100.0/24": 3, "2001:db8::/48": 1, None: 1}
    with pytest.raises(UsageError, match="ipv4_prefix: 33"):
        GroupBy.remote_network(33)


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


def test_a_row_of_a_user_has_the_name_once_a_flow_says_it():
    table = TrafficTable(GroupBy.user())
    table.feed(added(flow("a"), 1, counts(5)))
    assert [(row.key, row.name) for row in table.rows()] == [(501, "501")]
    table.feed(added(flow("b", attrs.evolve(CURL, user="mona")), 2, counts(5)))
    table.feed(added(flow("c", None), 2, counts(5)))
    assert [(row.key, row.name, row.flows) for row in table.rows()] == [(501, "mona", 2), (None, None, 1)]
    line = to_dict(table.rows()[0])
    assert (line["name"], line["key"]) == ("mona", 501)


def test_a_reset_and_a_merge_keep_what_the_rows_are_called_and_where_they_run():
    owner = attrs.evolve(CURL, user="mona")
    for by, facts in (
        (GroupBy.user(), {"name": "mona"}),
        (GroupBy.processes(), {"name": "curl", "unit": "web.service"}),
    ):
        table, both = TrafficTable(by), TrafficTable(by)
        table.feed(added(flow("a", owner, cgroup="/system.slice/web.service"), 1, counts(5)))
        both.merge(table)
        table.reset()
        for row in (*table.rows(), *both.rows()):
            assert {name: getattr(row, name) for name in facts} == facts


def test_a_table_of_a_fleet_knows_its_machines_until_they_leave():
    table, both = TrafficTable(GroupBy.host()), TrafficTable(GroupBy.host())
    states = {"web1": HostState.PRESENT, "db1": HostState.SILENT, "db2": HostState.PRESENT}
    table.feed_many(HostUpdated(1.0, state, host=host) for host, state in states.items())
    table.feed(HostUpdated(2.0, HostState.LEFT, host="db2"))
    table.feed(HostUpdated(2.0, HostState.LEFT, host="unknown"))
    table.reset()
    both.merge(table)
    assert table.hosts == both.hosts == {"web1": HostState.PRESENT, "db1": HostState.SILENT}


def test_a_table_groups_by_any_field_that_the_table_of_fields_names():
    table = TrafficTable(GroupBy.field("state"))
    table.feed(added(flow("a"), 1, counts(5)))
    assert [row.label for row in table.rows()]
    with pytest.raises(UsageError, match="process name"):
        GroupBy.field("colour")


def test_a_row_always_has_a_label():
    table = fed(added(flow("a", Process(7)), 1, counts(5)), added(flow("b", None), 1, counts(5)), lost(1, 2))
    assert [row.label for row in table.rows()] == ["?", "(owner unknown)", "(closed flows, owner lost)"]
    assert table.total().label == "(all)"


# --- media ---------------------------------------------------------------------------------


def by_medium(row):
    return {name: (each.rx_bytes, each.tx_bytes) for name, each in row.media}


def test_rows_have_traffic_by_medium_where_reports_do():
    """With loopback, the media of kernel sockets are the row's total; what was there before the table is in neither."""
    kernel = EmulatedKernel("xnu-12377.121.6")
    old = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10_000, tx=1)
    kernel.advance(1.0)
    table = ProcessTable()
    monitor = VirtualMonitor(kernel, interval=0.5, extras=True, sink=table.feed_many)
    monitor.run(1.0)
    old.transfer(100, 10)
    local = kernel.open_tcp(501, "curl", remote=("127.0.0.1", 80), interface="lo0", rx=7, tx=3)
    monitor.run(1.0)
    local.transfer(20, 0)
    old.transfer(5, 5, interface="en1")
    before = table.snapshot()
    monitor.run(1.0)
    (row,) = [row for row in table.rows() if row.pid == 501]
    assert by_medium(row) == {"wifi_infra": (100, 10), "wired": (5, 5), "loopback": (27, 3)}
    assert tuple(map(sum, zip(*by_medium(row).values(), strict=True))) == (row.rx_bytes, row.tx_bytes)
    (since,) = table.snapshot().since(before)
    assert by_medium(since) == {"wired": (5, 5), "loopback": (20, 0)}
    local.close()
    old.rename_process(502, "heir")
    old.transfer(1, 1)
    monitor.run(1.0)
    found = {row.pid: by_medium(row) for row in table.rows()}
    assert found == {501: by_medium(row), 502: {"wifi_infra": (1, 1)}}
    assert by_medium(table.total())["wifi_infra"] == (101, 11)
    assert json.loads(dumps(row))["media"]["wired"]["rx_bytes"] == 5


def test_rows_of_other_kernels_have_no_media():
    kernel = EmulatedKernel("xnu-11417.121.6")
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10, tx=1)
    table = ProcessTable(include_history=True)
    VirtualMonitor(kernel, interval=0.5, extras=True, sink=table.feed_many).run(1.0)
    assert [row.media for row in table.rows()] == [()]


def test_what_is_folded_or_merged_keeps_its_flows_times_media_and_what_was_not_counted():
    media = {"wifi_infra": MediumCounts(5, 6, 7, 8)}
    table = ProcessTable(max_finished=0)
    for number, total in ((3, Counts(rx_bytes=5, tx_bytes=6, rx_packets=7, tx_packets=8, media=media)), (1, None)):
        each = flow(f"f{number}", Process(number, "p"))
        table.feed_many([added(each, number), removed(each, number + 1, total)])
    (row,) = table.rows()
    assert row.kind is RowKind.OTHER
    assert (row.flows, row.open_flows, row.uncounted_flows, row.first_seen, row.last_seen) == (2, 0, 1, 1, 4)
    assert dict(row.media) == media

    machine = ProcessTable()
    still = flow("open", Process(3, "p"))
    machine.feed_many([added(still, 0.5, None), polled(9)])
    machine.merge(table)
    machine.feed(updated(still, 10, counts(70)))
    total = machine.total()
    assert (total.flows, total.open_flows, total.uncounted_flows, total.first_seen) == (3, 1, 1, 0.5)
    assert (total.rx_bytes, total.last_seen, dict(total.media)) == (75, 10, media)

    both = ProcessTable()
    both.merge(machine, "laptop")
    both.feed(updated(attrs.evolve(still, id="laptop/open"), 11, counts(90)))
    assert (both.total().rx_bytes, both.total().open_flows, both.total().uncounted_flows) == (95, 1, 1)


def test_shares_of_open_flows_and_what_ended_add_up_to_the_row_and_its_media_go_to_a_late_owner():
    def split(number):
        return Counts(
            rx_bytes=number, tx_bytes=0, rx_packets=0, tx_packets=0, media={"wifi_infra": MediumCounts(number, 0, 0, 0)}
        )

    table = ProcessTable()
    ended, early, late = flow("a"), flow("b", None), flow("b")
    table.feed_many([added(ended, 1, counts(100)), removed(ended, 2, counts(130)), added(early, 3, split(10))])
    table.feed(updated(early, 4, split(30)))
    table.feed(updated(late, 5, split(60)))
    (row,) = table.rows()
    (share,) = table.shares([row])[row.serial]
    assert (share.flow, share.is_counted, share.parts) == (late, True, 1)
    assert (share.rx_bytes, row.rx_bytes) == (60, 190)
    assert dict(row.media) == {"wifi_infra": MediumCounts(60, 0, 0, 0)}
    table.reset()
    table.feed(updated(late, 6, split(100)))
    (row,) = table.rows()
    assert (row.rx_bytes, dict(row.media)) == (40, {"wifi_infra": MediumCounts(40, 0, 0, 0)})
    assert table.shares([row])[row.serial][0].rx_bytes == 40


def test_after_a_reset_a_late_owner_gets_what_came_since_and_other_flows_keep_theirs():
    def split(number):
        return Counts(
            rx_bytes=number, tx_bytes=0, rx_packets=0, tx_packets=0, media={"wired": MediumCounts(number, 0, 0, 0)}
        )

    table = fed(added(flow("a", None), 1, split(10)), added(flow("b", None), 1, split(1)))
    table.reset()
    table.feed_many([updated(flow("a", None), 2, split(15)), updated(flow("b", None), 2, split(3))])
    table.feed(updated(flow("a"), 3, split(16)))
    rows = {row.name: (row.rx_bytes, by_medium(row)) for row in table.rows()}
    assert rows == {None: (2, {"wired": (2, 0)}), "curl": (6, {"wired": (6, 0)})}


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


def test_a_flow_that_changes_hands_after_it_began_anew_is_one_flow_there():
    table = fed(added(flow("a"), 1, counts(1000)), updated(flow("a"), 2, counts(200, 5)))
    table.feed(updated(flow("a", SSHD), 3, counts(300, 6)))
    assert {row.name: (row.flows, row.rx_bytes) for row in table.rows()} == {"curl": (1, 1200), "sshd": (1, 100)}


def test_a_row_learns_what_its_flows_say_of_the_process_later():
    unnamed = attrs.evolve(CURL, name=None)
    table = fed(added(flow("a", unnamed), 1, counts(1)))
    assert [row.name for row in table.rows()] == [None]
    table.feed(updated(flow("a", CURL), 2, counts(2)))
    assert [row.name for row in table.rows()] == ["curl"]


def test_a_title_moves_no_traffic_to_another_name_and_another_program_takes_what_comes_from_then_on():
    table = TrafficTable(GroupBy.process_name())
    titled = attrs.evolve(CURL, title="worker 1")
    table.feed_many([added(flow("a"), 1, counts(1)), updated(flow("a", titled), 2, counts(10))])
    assert [(row.key, row.rx_bytes) for row in table.rows()] == [("curl", 10)]
    table.feed(updated(flow("a", attrs.evolve(titled, name="wget")), 3, counts(15)))
    assert {row.key: row.rx_bytes for row in table.rows()} == {"curl": 10, "wget": 5}


def test_what_was_counted_under_a_title_is_the_programs_once_that_is_known():
    """An eBPF record has the title alone; the executable is looked up."""
    table = TrafficTable(GroupBy.named("process-name"))
    titled = attrs.evolve(CURL, name="job", title="job", path=None)
    table.feed_many([added(flow("a", titled), 1, counts(0)), updated(flow("a", titled), 2, counts(10))])
    table.feed(updated(flow("a", attrs.evolve(titled, name="python3.11", path="/usr/bin/python3.11")), 3, counts(15)))
    assert [(row.key, row.rx_bytes, row.flows) for row in table.rows()] == [("python3.11", 15, 1)]
    another = Process(7, "wget", 99, path="/usr/bin/wget")
    table.feed_many([added(flow("b", titled), 4, counts(0)), updated(flow("b", titled), 5, counts(2))])
    table.feed(updated(flow("b", another), 6, counts(3)))
    assert {row.key: row.rx_bytes for row in table.rows()} == {"python3.11": 15, "job": 2, "wget": 1}


def test_only_groupings_of_one_machine_keep_the_machines_of_a_fleet_apart():
    here, there = flow("a", host="web1"), flow("b", host="web2")
    names = TrafficTable(GroupBy.process_name(), source="fleet")
    names.feed_many([added(here, 1, counts(1)), added(there, 1, counts(2))])
    assert [(row.source, row.key, row.rx_bytes) for row in names.rows()] == [("fleet", "curl", 3)]
    processes = fed(
        added(here, 1, counts(1)), added(there, 1, counts(2)), added(flow("c"), 1, counts(4)), source="fleet"
    )
    assert [(row.source, row.rx_bytes) for row in processes.rows()] == [("web1", 1), ("web2", 2), ("fleet", 4)]


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


def test_a_row_names_the_cgroup_of_its_first_flow_that_has_one():
    flows = [flow("a"), flow("b", cgroup="/first"), flow("c"), flow("d", cgroup="/second")]
    (row,) = fed(*(added(each, 1, counts(1)) for each in flows)).rows()
    assert row.cgroup == "/first"


def test_flows_that_were_given_up_are_lately_seen_and_lately_counted():
    table = fed(lost(1, 2, counts(1_000)), polled(5), lost(6, 3, counts(500)), rate_window=5)
    (row,) = table.rows()
    assert (row.kind, row.flows, row.first_seen, row.last_seen) == (RowKind.LOST, 5, 1, 6)
    assert row.rx_rate == 500 / 5


def test_of_a_flow_that_a_table_meets_late_only_the_growth_is_its_share_also_by_medium():
    def split(number):
        return Counts(
            rx_bytes=number, tx_bytes=0, rx_packets=0, tx_packets=0, media={"wifi_infra": MediumCounts(number, 0, 0, 0)}
        )

    table = fed(updated(flow("a"), 1, split(130), split(100)), updated(flow("a"), 2, split(150), split(130)))
    (row,) = table.rows()
    (share,) = table.shares([row])[row.serial]
    assert (row.rx_bytes, share.rx_bytes) == (50, 50)
    assert dict(row.media) == {"wifi_infra": MediumCounts(50, 0, 0, 0)}


def test_a_flow_whose_facts_change_waits_on_for_the_details_that_name_its_row():
    """The key comes with details alone; new facts without any do not end the waiting."""
    table = TrafficTable(GroupBy.cgroup())
    a, b = flow("a"), flow("a", state=TcpState.ESTABLISHED)
    table.feed_many([added(a, 1, counts(10)), updated(b, 2, counts(20))])
    table.feed(attrs.evolve(updated(b, 3, counts(30)), details=CgroupDetails(77)))
    assert [(row.key, row.rx_bytes) for row in table.rows()] == [(77, 30)]


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
