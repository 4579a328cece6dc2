"""A pulse reports new sockets with their processes between polls: what the core makes of its reports."""

from __future__ import annotations

import errno
import json

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, follow, kinds

from nstat_async._contract import Mode
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, LossCause
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import PulsePurpose, PulseReport, Session, TcpInfo, iterate_messages
from nstat_async.sockdiag._messages import DiagRequest
from nstat_async.sockdiag._program_evidence import PULSE_PATIENCE
from nstat_async.sockdiag._pulse import OWNERS_PATIENCE


def started(**options) -> FakeKernel:
    kernel = FakeKernel(**{"interval": 1.0, **options})
    kernel.has_pulse = True
    kernel.start()
    return kernel


@pytest.fixture
def kernel():
    return started()


def add(kernel: FakeKernel, cookie: int, pid: int | None = 42, **fields) -> FakeSocket:
    sock = kernel.sockets[cookie] = FakeSocket(
        cookie, inode=cookie, info={TcpInfo.BYTES_SENT: 7, TcpInfo.BYTES_ACKED: 8}, **fields
    )
    if pid is not None:
        kernel.owners[cookie] = pid
    return sock


def test_a_pulse_begins_behind_the_first_poll_with_the_requests_of_polls(kernel):
    """It asks for everything that can be new without a listener, as the kernel was found to answer."""
    assert isinstance(kernel.pulse, PulsePurpose)
    assert "a flow that began and ended within 20 ms has no process" in kernel.session.capabilities.notes
    assert (kernel.pulse.namespace, kernel.pulse.pause) == (0, 0.02)
    requests = [DiagRequest.decode(data, next(iterate_messages(data))) for data in kernel.pulse.tcp + kernel.pulse.udp]
    assert [(request.family, request.protocol) for request in requests] == [(0, 6), (2, 17), (10, 17)]
    assert not requests[0].states >> 10 & 1, "listeners are not counted as connections"


def test_no_pulse_where_none_is_wanted():
    assert started(pulse=None).pulse is None


def test_what_came_before_the_first_look_is_found_by_another_poll():
    """Where no other poll would come by itself."""
    kernel = started(interval=None)
    add(kernel, 5)
    assert flow_events(kernel.wait(0.2)) == []
    (added,) = flow_events([*kernel.beat(), *kernel.wait(0.2)])
    assert added.flow.process.pid == 42
    assert kernel.session.next_deadline() is None


def test_a_pulse_asks_only_for_what_is_watched():
    assert started(providers="tcp").pulse.udp == ()


def test_a_new_socket_is_announced_at_once_with_its_process(kernel):
    add(kernel, 5)
    (added,) = flow_events(kernel.beat(5))
    assert isinstance(added, FlowAdded)
    assert (added.flow.process.pid, added.flow.process.name, added.flow.process.uid) == (42, "p42", 1000)
    assert (added.preexisting, added.counts.tx_bytes) == (False, 7)
    assert kinds(flow_events(kernel.poll())) == [], "a poll has nothing new"
    kernel.close(5)
    (removed,) = flow_events(kernel.run())
    assert (removed.flow.process.pid, removed.final) == (42, True)


def test_a_report_of_what_a_poll_has_seen_says_nothing(kernel):
    """Its counters may be older than the poll's: they are no fall."""
    sock = add(kernel, 5)
    kernel.poll()
    sock.info = {TcpInfo.BYTES_SENT: 1, TcpInfo.BYTES_ACKED: 2}
    assert flow_events(kernel.beat(5)) == []


def test_a_socket_that_is_over_waits_for_its_process(kernel):
    """The removal comes first where the loop was busy: the flow has its process and its last counts all the same."""
    sock = add(kernel, 5)
    kernel.close(5)
    assert flow_events(kernel.run()) == []
    added, removed = flow_events(kernel.beat(late=(sock,)))
    assert isinstance(removed, FlowRemoved)
    assert added.flow.process.pid == removed.flow.process.pid == 42
    assert (removed.final, removed.counts.tx_bytes) == (True, 7)
    assert flow_events(kernel.wait(1.0)) == []


def test_a_report_knows_the_ends_of_a_socket_that_the_kernel_cleared_meanwhile(kernel):
    sock = add(kernel, 5)
    kernel.sockets.clear()
    kernel.feed(FakeSocket(5, bytes(4), remote_port=0, unacked=100).message(final=True), 1)
    _, removed = flow_events(kernel.beat(late=(sock,)))
    assert (str(removed.flow.local), str(removed.flow.remote)) == ("127.0.0.1:40000", "198.51.100.9:80")


def test_a_socket_that_is_over_waits_not_for_long(kernel):
    """And a report that comes later makes no flow of it."""
    sock = add(kernel, 5)
    kernel.close(5)
    kernel.run()
    assert kernel.session.next_deadline() == pytest.approx(kernel.now + 1.5 * PULSE_PATIENCE)
    added, removed = flow_events(kernel.wait(PULSE_PATIENCE))
    assert (added.flow.process, removed.final) == (None, True)
    assert flow_events(kernel.beat(late=(sock,))) == []
    assert kernel.session.statistics()["flows"] == 0


def test_a_socket_that_waited_long_enough_is_reported_with_the_next_one_that_waits(kernel):
    """Nobody is woken for it."""
    add(kernel, 5)
    kernel.close(5)
    kernel.run()
    kernel.now += 1.2 * PULSE_PATIENCE
    add(kernel, 6)
    kernel.close(6)
    assert [event.flow.id for event in flow_events(kernel.run())] == ["c5", "c5"]


def test_a_socket_that_waited_long_enough_is_reported_with_any_removal(kernel):
    """Also with one that waits for nothing, because its process is known."""
    add(kernel, 6)
    kernel.beat(6)
    add(kernel, 5)
    kernel.close(5)
    assert flow_events(kernel.run()) == []
    kernel.now += 1.2 * PULSE_PATIENCE
    kernel.close(6)
    assert [event.flow.id for event in flow_events(kernel.run())] == ["c5", "c5", "c6"]


def test_what_was_removed_before_its_report_came_is_no_flow(kernel):
    """Also when a poll knew it: a report of later is about the past."""
    sock = add(kernel, 5)
    kernel.poll()
    kernel.close(5)
    assert kinds(flow_events(kernel.run())) == ["FlowRemoved"]
    assert flow_events(kernel.beat(late=(sock,))) == []
    assert kernel.session.statistics()["flows"] == 0


@pytest.mark.parametrize("protocol", [6, 17])
def test_an_accepted_connection_gets_its_process_by_a_pulse(kernel, protocol):
    """Before it was accepted it has no inode, and no process."""
    sock = add(kernel, 5)
    sock.inode, sock.protocol = 0, protocol
    kernel.poll()
    sock.inode = 5
    (updated,) = flow_events(kernel.beat(5))
    assert updated.flow.process.pid == 42


def test_a_flow_whose_process_is_not_found_waits_a_little(kernel):
    add(kernel, 5, pid=None)
    assert flow_events(kernel.beat(5)) == []
    (added,) = flow_events(kernel.wait(OWNERS_PATIENCE))
    assert added.flow.process is None
    kernel.owners[5] = 42
    (updated,) = flow_events(kernel.wait(1.0))
    assert (updated.flow.id, updated.flow.process.pid) == (added.flow.id, 42)


def test_datagram_sockets_are_reported_too(kernel):
    add(kernel, 5, protocol=17, remote_port=0, remote=bytes(4), state=7)
    (added,) = flow_events(kernel.beat(5))
    assert (added.flow.provider.value, added.flow.process.pid) == ("udp", 42)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        json.dumps({"sockets": [[6, "00"]]}).encode(),
        json.dumps({"sockets": 5}).encode(),
        json.dumps({"owners": {"owners": [[1]]}}).encode(),
    ],
)
def test_what_is_no_report_is_said(kernel, data):
    kernel.feed(data, kernel.pulse.channel)
    (lost,) = kernel.run()
    assert isinstance(lost, EventsLost)
    assert lost.cause is LossCause.PROTOCOL
    add(kernel, 5)
    assert len(flow_events(kernel.beat(5))) == 1, "the next one is taken in"


def test_reports_survive_encoding(kernel):
    report = PulseReport(((6, add(kernel, 5).message(1)), (17, add(kernel, 6, protocol=17).message(2))))
    assert PulseReport.decode(bytes(report.encode())) == report
    assert PulseReport.decode(report.encode()) is report, "what was encoded here is not decoded for nothing"


def test_a_pulse_that_cannot_be_had_is_a_note_and_no_failure():
    kernel = FakeKernel(interval=1.0)
    kernel.start()
    assert "nothing looks for short flows between polls: No such file or directory" in kernel.session.capabilities.notes
    add(kernel, 5)
    kernel.close(5)
    assert kinds(flow_events(kernel.run())) == ["FlowAdded", "FlowRemoved"], "and nothing waits for it"


def test_a_pulse_for_which_there_are_too_few_descriptors_names_the_limit():
    kernel = FakeKernel(interval=1.0)
    kernel.refusal = errno.EMFILE
    kernel.start()
    assert any("Too many open files; raise the limit (ulimit -n" in note for note in kernel.session.capabilities.notes)


def test_the_note_says_how_short_a_flow_may_be(kernel):
    assert "a flow that began and ended within 20 ms has no process" in kernel.session.capabilities.notes


def test_a_pulse_that_ends_lets_nobody_wait_for_it(kernel):
    add(kernel, 5)
    kernel.beat(5)
    assert kernel.session.statistics()["pulses"] == 1
    kernel.session.channel_failed(kernel.pulse.channel, errno.EIO, kernel.now)
    add(kernel, 6)
    kernel.close(6)
    assert kinds(flow_events(kernel.run())) == ["FlowAdded", "FlowRemoved"]


def test_reports_that_go_on_keep_no_flow_waiting(kernel):
    """It waits for its process as long as where no other comes."""
    add(kernel, 5, pid=None)
    kernel.beat(5)
    kernel.wait(0.8 * OWNERS_PATIENCE)
    add(kernel, 6, pid=None)
    kernel.beat(6)
    assert "c5" in [event.flow.id for event in flow_events(kernel.wait(0.3 * OWNERS_PATIENCE))]


def test_who_is_in_a_report_holds_what_it_is_said_to_hold(kernel):
    """The first process of all does not get what nobody was found to hold."""
    late = add(kernel, 5, pid=None)
    kernel.close(5)
    kernel.run()
    add(kernel, 6, pid=1, local_port=6)
    (added,) = flow_events(kernel.beat(6, late=(late,)))
    assert added.flow.process.pid == 1
    added, _ = flow_events(kernel.wait(PULSE_PATIENCE))
    assert (added.flow.id, added.flow.process) == ("c5", None)


def test_who_follows_a_recording_waits_for_its_reports_too(kernel):
    kernel.beat()
    sock = add(kernel, 5)
    kernel.close(5)
    kernel.run()
    kernel.beat(late=(sock,))
    followed = follow(kernel.record, Session(MonitorOptions(), kernel="6.18.0", mode=Mode.FOLLOWING), kernel.now)
    assert [event.flow.process.pid for event in flow_events(followed)] == [42, 42]
