"""Tables of totals: traffic by medium, and the shares of open flows."""

from __future__ import annotations

import json

import attrs
from aggregate_events import Counts, added, counts, fed, flow, polled, removed, updated
from virtual import VirtualMonitor

from nstat_async._model import MediumCounts, Process
from nstat_async.aggregate import ProcessTable, RowKind
from nstat_async.json import dumps
from nstat_async.testing import EmulatedKernel

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
