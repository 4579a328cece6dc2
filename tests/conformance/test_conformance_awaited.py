"""The control goes away, and the list over the next one lacks flows that live: they are awaited, and go on when they show up."""

from __future__ import annotations

import pytest
from virtual import VirtualMonitor, compare, traffic

from nstat_async import LossCause, RemovalReason
from nstat_async._options import DEFAULT_PROVIDERS
from nstat_async.ntstat._sockets import AWAITED_FOR
from nstat_async.testing import EmulatedKernel

pytestmark = pytest.mark.usefixtures("emulated")
RELEASES = ("xnu-4570.71.2", "xnu-6153.141.1", "xnu-10063.141.1", "xnu-12377.121.6")
REMOTE = ("198.51.100.7", 443)


def watched(name, flows=30, **options):
    kernel = EmulatedKernel(name, seed=2)
    made = []
    for number in range(flows):
        made.append(kernel.open_tcp(501 + number, f"p{number}", remote=REMOTE, rx=number))
        kernel.advance(1e-6)  # no two sockets are made at the same tick
    monitor = VirtualMonitor(kernel, interval=1.0, **options)
    monitor.run(3.5)
    return kernel, made, monitor


def agree(kernel, monitor):
    compare(kernel, monitor.picture.flows.values(), providers=DEFAULT_PROVIDERS)
    compare(kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)
    assert monitor.picture.last_poll.flows == len(monitor.picture.flows)


@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize("failing", [0.1, 1.0])
@pytest.mark.parametrize("name", RELEASES)
def test_flows_go_on_though_the_kernel_had_no_memory_for_them_when_the_control_came_back(name, failing, discovery):
    kernel, made, monitor = watched(name, discovery=discovery)
    before = set(monitor.picture.flows)
    kernel.faults.fail_allocations = failing
    kernel.end_controls()
    monitor.run(0.8)
    kernel.faults.fail_allocations = 0.0
    assert set(monitor.picture.flows) == before
    for flow in made:
        flow.transfer(1000, 10)
    monitor.run(90.0)
    assert set(monitor.picture.flows) == before
    assert not monitor.picture.removed
    agree(kernel, monitor)


@pytest.mark.parametrize("name", RELEASES)
def test_a_flow_that_cannot_be_read_when_the_control_comes_back_goes_on_when_it_can(name):
    kernel, made, monitor = watched(name, flows=3)
    before = set(monitor.picture.flows)
    made[1].unreadable = True
    kernel.end_controls()
    monitor.run(10.0)
    assert set(monitor.picture.flows) == before
    assert monitor.picture.last_poll.flows == 3
    made[1].unreadable = False
    made[1].transfer(500, 5)
    monitor.run(3.0)
    assert set(monitor.picture.flows) == before
    agree(kernel, monitor)


@pytest.mark.parametrize("name", RELEASES)
def test_a_flow_that_cannot_be_read_when_a_second_socket_takes_over_goes_on_when_it_can(name):
    kernel, made, monitor = watched(name, flows=3, discovery="announce")
    before = set(monitor.picture.flows)
    made[1].unreadable = True
    kernel.faults.lose_announcements = 1.0
    kernel.open_tcp(9, "missed", remote=REMOTE)
    kernel.faults.lose_announcements = 0.0
    kernel.open_tcp(9, "announced", remote=REMOTE)
    monitor.run(8.0)
    assert monitor.session.statistics()["resynchronisations"] == 1
    made[1].unreadable = False
    made[1].transfer(500, 5)
    monitor.run(3.0)
    assert before < set(monitor.picture.flows)
    assert not monitor.picture.removed
    agree(kernel, monitor)


def test_a_list_without_flows_ends_none_that_the_first_socket_could_not_hear_of_lately():
    kernel, _, monitor = watched("xnu-12377.121.6", discovery="announce")
    before = set(monitor.picture.flows)
    kernel.faults.lose_announcements = 1.0
    kernel.open_tcp(9, "missed", remote=REMOTE)
    kernel.faults.lose_announcements, kernel.faults.fail_allocations = 0.0, 1.0
    monitor.session._sockets.want_resync(kernel.now)
    kernel.faults.full = True
    monitor.run(1.0)
    kernel.faults.full, kernel.faults.fail_allocations = False, 0.0
    monitor.run(90.0)
    assert before < set(monitor.picture.flows)
    assert not monitor.picture.removed
    agree(kernel, monitor)


def test_a_flow_is_awaited_over_many_takeovers():
    kernel, made, monitor = watched("xnu-12377.121.6", flows=3)
    before = set(monitor.picture.flows)
    made[1].unreadable = True
    for _ in range(12):
        kernel.end_controls()
        monitor.run(3.0)
    made[1].unreadable = False
    monitor.run(3.0)
    assert set(monitor.picture.flows) == before
    agree(kernel, monitor)


@pytest.mark.parametrize("name", RELEASES)
def test_flows_that_ended_while_the_control_was_away_are_gone_once_another_list_lacks_them(name):
    kernel, made, monitor = watched(name, flows=5)
    monitor.control_present = False
    kernel.end_controls()
    monitor.run(0.02)
    for flow in made[:2]:
        flow.transfer(1, 1)
        flow.close()
    monitor.control_present = True
    monitor.run(0.2)
    picture = monitor.picture
    assert {event.flow.process.name for event in picture.removed} == {"p0", "p1"}
    assert {(event.reason, event.final) for event in picture.removed} == {(RemovalReason.GONE, False)}
    assert picture.lost(LossCause.FINAL_COUNTS) == 2
    monitor.poll()
    agree(kernel, monitor)
    assert monitor.session.statistics()["audits"] == 1


def test_what_stays_away_is_given_up_after_a_while_and_said():
    kernel, _, monitor = watched("xnu-12377.121.6", flows=4)
    kernel.faults.fail_allocations = 1.0
    kernel.end_controls()
    monitor.run(AWAITED_FOR - 5.0)
    assert len(monitor.picture.flows) == 4
    monitor.run(10.0)
    assert not monitor.picture.flows
    assert {event.reason for event in monitor.picture.removed} == {RemovalReason.GONE}
    assert monitor.picture.lost(LossCause.FINAL_COUNTS) == 4
    assert monitor.picture.lost(LossCause.RESYNC) == float("inf")


def test_an_awaited_flow_that_ends_before_the_next_look_ends_with_its_own_counts():
    kernel, made, monitor = watched("xnu-12377.121.6", flows=2)
    made[0].unreadable = True
    kernel.end_controls()
    monitor.run(1.0)
    made[0].unreadable = False
    made[0].transfer(700, 7)
    made[0].close()
    monitor.run(1.0)
    (removed,) = monitor.picture.removed
    assert (removed.flow.process.name, removed.final, traffic(removed.counts)[:2]) == ("p0", True, (700, 7))
    agree(kernel, monitor)


def test_flows_are_awaited_over_another_loss_of_the_control():
    kernel, _, monitor = watched("xnu-11417.121.6", flows=4)
    before = set(monitor.picture.flows)
    kernel.faults.fail_allocations = 1.0
    for _ in range(3):
        kernel.end_controls()
        monitor.run(0.5)
    kernel.faults.fail_allocations = 0.0
    monitor.run(90.0)
    assert set(monitor.picture.flows) == before
    agree(kernel, monitor)
