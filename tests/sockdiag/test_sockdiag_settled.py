"""When all that a session read of is an event: `Monitor.poll_now` waits for that."""

from __future__ import annotations

from endings_fakes import two_ends
from programs_fakes import closed, connect, end, record, started
from sockdiag_fakes import FakeKernel, FakeSocket, kinds, traffic

from nstat_async._options import MonitorOptions
from nstat_async.ebpf import Kind
from nstat_async.sockdiag import Session
from nstat_async.sockdiag._endings import PEER_PATIENCE
from nstat_async.sockdiag._program_evidence import ANNOUNCING_PATIENCE, PULSE_PATIENCE, REMOVAL_PATIENCE

TICK = 0.001
"""More than a recorded core sets its time on, so that no two inputs have the same."""


def until_settled(kernel, step):
    """How often so much time passes until what was read by now is an event; something else ends each time, which is not waited for."""
    read, steps, number = kernel.now, 0, 1000
    while not kernel.session.settled(read):
        steps += 1
        kernel.now += step
        number += 1
        kernel.sockets[number] = FakeSocket(number, local_port=number, info=traffic(1, 1))
        kernel.close(number)
        kernel.session.channel_drained(1, kernel.now)
        kernel.run()
    return steps


def test_nothing_that_is_open_is_waited_for(kernel):
    kernel.open_many(3)
    kernel.start()
    assert kernel.session.settled(kernel.now)


def test_an_end_is_waited_for_until_a_pulse_can_not_report_it_any_more():
    kernel = FakeKernel(interval=1.0)
    kernel.has_pulse = True
    kernel.start()
    kernel.beat()
    kernel.sockets[5] = FakeSocket(5, inode=5, info=traffic(1, 1))
    kernel.close(5)
    before = kernel.now - 0.001
    assert not kernel.session.settled(kernel.now)
    assert kernel.session.settled(before)
    assert until_settled(kernel, PULSE_PATIENCE / 4) in {4, 5, 6, 7}
    assert "FlowRemoved" in kinds(kernel.events)


def test_an_end_is_waited_for_until_the_other_end_can_not_tell_any_more():
    kernel = FakeKernel(interval=None)
    kernel.start()
    server, _ = two_ends()
    kernel.feed(server.message(final=True), 1)
    kernel.session.channel_drained(1, kernel.now)
    kernel.run()
    assert not kernel.session.settled(kernel.now)
    assert until_settled(kernel, PEER_PATIENCE / 5) in {5, 6}


def test_the_end_in_a_record_is_waited_for_until_its_removal_was_read():
    kernel = started()
    connect(kernel)
    assert kernel.session.settled(kernel.now)
    kernel.ring(closed())
    read = kernel.now + TICK
    assert not kernel.session.settled(read)
    kernel.wait(REMOVAL_PATIENCE / 2)
    assert not kernel.session.settled(read)
    assert kinds(end(kernel)) == ["FlowRemoved"]
    assert kernel.session.settled(kernel.now)


def test_an_end_keeps_its_place_when_the_removal_follows_the_record():
    """The removal may wait for something else again; it is the same end."""
    kernel = started()
    session = kernel.session
    connect(kernel)
    kernel.ring(closed())
    book, (entry,) = session._books[0], session._entries()
    read = kernel.now + TICK
    kernel.now += 1.0
    session._output.now = kernel.now
    book.begin_end(entry)
    assert not session.settled(read)


def test_a_flow_in_a_record_is_waited_for_until_it_is_announced():
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, remote_port=80 << 8))
    read = kernel.now + TICK
    assert not kernel.session.settled(read)
    assert kernel.session.settled(read - 2 * TICK)
    kernel.wait(ANNOUNCING_PATIENCE + TICK)
    assert kernel.session.settled(read)


def test_a_session_without_a_namespace_that_is_watched_waits_for_nothing():
    assert Session(MonitorOptions()).settled(1.0)
