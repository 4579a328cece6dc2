"""Tables of totals by something else than the process: users, cgroups, remotes, networks, fields."""

from __future__ import annotations

import attrs
import pytest
from aggregate_events import SSHD, added, counts, fed, flow, updated

from nstat_async._errors import UsageError
from nstat_async._model import Details, InterfaceKind, Provider, TcpState
from nstat_async.aggregate import GroupBy, TrafficTable


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


def test_a_table_groups_by_any_field_that_the_table_of_fields_names():
    table = TrafficTable(GroupBy.field("state"))
    table.feed(added(flow("a"), 1, counts(5)))
    assert [row.label for row in table.rows()]
    with pytest.raises(UsageError, match="process name"):
        GroupBy.field("colour")


def test_only_groupings_of_one_machine_keep_the_machines_of_a_fleet_apart():
    here, there = flow("a", host="web1"), flow("b", host="web2")
    names = TrafficTable(GroupBy.process_name(), source="fleet")
    names.feed_many([added(here, 1, counts(1)), added(there, 1, counts(2))])
    assert [(row.source, row.key, row.rx_bytes) for row in names.rows()] == [("fleet", "curl", 3)]
    processes = fed(
        added(here, 1, counts(1)), added(there, 1, counts(2)), added(flow("c"), 1, counts(4)), source="fleet"
    )
    assert [(row.source, row.rx_bytes) for row in processes.rows()] == [("web1", 1), ("web2", 2), ("fleet", 4)]
    child = attrs.evolve(SSHD, parent_pid=1)
    parents = TrafficTable(GroupBy.field("parent process"))
    parents.feed_many(added(attrs.evolve(each, process=child), 1, counts(1)) for each in (here, there))
    assert [(row.source, row.key) for row in parents.rows()] == [("web1", 1), ("web2", 1)]


def test_a_row_names_the_cgroup_of_its_first_flow_that_has_one():
    flows = [flow("a"), flow("b", cgroup="/first"), flow("c"), flow("d", cgroup="/second")]
    (row,) = fed(*(added(each, 1, counts(1)) for each in flows)).rows()
    assert row.cgroup == "/first"


def test_a_flow_whose_facts_change_waits_on_for_the_details_that_name_its_row():
    """The key comes with details alone; new facts without any do not end the waiting."""
    table = TrafficTable(GroupBy.cgroup())
    a, b = flow("a"), flow("a", state=TcpState.ESTABLISHED)
    table.feed_many([added(a, 1, counts(10)), updated(b, 2, counts(20))])
    table.feed(attrs.evolve(updated(b, 3, counts(30)), details=CgroupDetails(77)))
    assert [(row.key, row.rx_bytes) for row in table.rows()] == [(77, 30)]
