from __future__ import annotations

import pytest
from kernels import KERNELS
from virtual import VirtualMonitor

from nstat_async import FlowAdded, FlowUpdated
from nstat_async.ntstat import _subscription, _verification
from nstat_async.testing import EmulatedKernel


def test_a_buffer_that_loses_most_of_every_poll_still_lets_every_flow_be_found_and_kept_up(monkeypatch):
    monkeypatch.setattr(_verification, "MAX_VERIFICATIONS", 60)
    kernel = EmulatedKernel("xnu-11417.121.6")
    flows = [
        kernel.open_tcp(pid=700 + n % 9, name=f"app{n % 9}", remote=("198.51.100.1", 443), rx=n + 1) for n in range(210)
    ]
    monitor = VirtualMonitor(kernel, receive_buffer=None, interval=1.0)
    monitor.run(5)
    assert len(monitor.picture.flows) == len(flows)
    for flow in flows:
        flow.transfer(rx=10_000)
    monitor.run(6)
    told = sorted(counts.rx_bytes for _, counts in monitor.picture.flows.values())
    assert told == [n + 10_001 for n in range(210)]


@pytest.mark.parametrize("size", [8192, 20_480])
def test_a_poll_is_complete_when_what_its_answer_left_out_was_asked_for_by_itself(size):
    kernel = EmulatedKernel("xnu-11417.121.6")
    for n in range(500):
        kernel.open_tcp(pid=700, name="app", remote=("198.51.100.1", 443), rx=n)
    monitor = VirtualMonitor(kernel, receive_buffer=size, interval=1.0)
    monitor.run(3)
    assert monitor.picture.polls >= 3
    assert monitor.picture.complete_polls == monitor.picture.polls
    assert len(monitor.picture.flows) == monitor.picture.last_poll.flows == 500


def test_new_flows_are_found_when_a_whole_batch_of_them_never_fits():
    kernel = EmulatedKernel("xnu-7195.141.2")
    kernel.open_udp(pid=7, name="old", remote=("198.51.100.1", 53))
    monitor = VirtualMonitor(kernel, receive_buffer=2048, interval=1.0)
    for n in range(8):
        kernel.open_tcp(pid=8 + n, name="new", remote=("198.51.100.1", 443))
    monitor.run(3)
    assert len(monitor.picture.flows) == 9


def test_flows_that_come_while_others_are_asked_for_one_by_one_are_no_error():
    """Where descriptions are asked for singly a poll takes a while, and its questions are about what was there when it began."""
    kernel = EmulatedKernel("xnu-1699.32.7")
    kernel.faults.reply_delay = 0.02
    monitor = VirtualMonitor(kernel)
    monitor.run(2.0)
    for number in range(35):
        kernel.open_tcp(pid=1000 + number, name="a", remote=("198.51.100.7", 443))
    monitor.core.request_poll(kernel.now)
    monitor.turn()
    kernel.open_udp(pid=7, name="late", remote=("198.51.100.7", 443))
    monitor.run(6.0)
    assert len(monitor.picture.flows) == 36


@pytest.mark.parametrize("name", ["xnu-2422.115.4", "xnu-2782.40.9"])
def test_descriptions_that_never_fit_are_asked_for_one_by_one_and_do_not_grow_old(name):
    kernel = EmulatedKernel(name)
    flows = [kernel.open_tcp(pid=700, name="before", remote=("198.51.100.1", 443)) for _ in range(130)]
    monitor = VirtualMonitor(kernel, receive_buffer=8192, interval=1.0)
    monitor.run(2.0)
    for flow in flows:
        flow.rename_process(701, "after")
    for _ in range(_subscription.REDESCRIBE_EVERY):
        monitor.poll()
    assert {flow.process.name for flow, _ in monitor.picture.flows.values()} == {"after"}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [8192, 1 << 20])
def test_what_a_flow_moved_before_the_subscription_is_in_no_update(kernel, size):
    machine = EmulatedKernel(kernel)
    flows = [machine.open_tcp(remote=("198.51.100.1", 443), rx=1000), machine.open_udp(rx=1000)]
    machine.advance(1.0)
    events = []
    monitor = VirtualMonitor(machine, receive_buffer=size, interval=1.0, sink=events.extend)
    monitor.run(1.5)
    for flow in flows:
        flow.transfer(rx=5)
    monitor.run(2.0)
    assert [event.counts.rx_bytes for event in events if isinstance(event, FlowAdded)] == [1000, 1000]
    assert [event.delta.rx_bytes for event in events if isinstance(event, FlowUpdated)] == [5, 5]
