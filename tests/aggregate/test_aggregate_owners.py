"""Tables of totals: whose a flow is, also when its process becomes known late, changes, or is called otherwise."""

from __future__ import annotations

import attrs
from aggregate_events import CURL, SSHD, added, counts, fed, flow, removed, updated

from nstat_async._model import Interface, InterfaceKind, Process
from nstat_async.aggregate import GroupBy, RowKind, TrafficTable
from nstat_async.json import to_dict


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


def test_the_name_of_an_effective_process_is_that_on_its_own_machine():
    """Every machine has its processes 42."""
    helper = Process(9, "helper", unique_pid=900, effective_pid=42, effective_unique_pid=4200)
    stream = [added(flow("a", CURL, host="web1"), 1, counts(1)), added(flow("b", helper, host="web2"), 2, counts(2))]
    rows = fed(*stream, effective=True).rows()
    assert [(row.source, row.pid, row.name) for row in rows] == [("web1", 42, "curl"), ("web2", 42, None)]


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
