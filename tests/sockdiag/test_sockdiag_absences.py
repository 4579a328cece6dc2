"""Sockets that a dump lacks: held without a state, gone without a removal, or of a removal that was lost."""

from __future__ import annotations

import errno

import attrs
import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, kinds, polls, removals, traffic

from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted, RemovalReason
from nstat_async._model import TcpState
from nstat_async.sockdiag import SocketState, iterate_messages
from nstat_async.sockdiag._removals import LONGEST_READING, MOST_REPAIRS


def test_closed_and_held_is_not_removed(kernel):
    """A socket in no dump while its descriptor stays open becomes CLOSED, and ends by its removal with final counts."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.sockets.pop(1)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    updated, _ = kernel.wait(1.0)
    assert updated.flow.state is TcpState.CLOSED
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    sock.info = traffic(5, 20)
    kernel.feed(sock.message(final=True), 1)
    (removed,) = kernel.run()
    assert (removed.counts.tx_bytes, removed.final) == (20, True)


def test_absence_is_confirmed_before_it_counts(kernel):
    """A socket that a dump missed and a look-up finds stays, and is not asked for again."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    sock.state = SocketState.CLOSE  # not among the dumped states
    kernel.wait(1.0)
    events = kernel.wait(1.0)
    assert [type(e) for e in events] == [FlowUpdated, PollCompleted]
    assert events[0].flow.state is TcpState.CLOSED
    assert len(list(kernel.session.flows())) == 1


def test_what_a_dump_missed_is_not_gone_even_where_removals_were_lost(connected):
    """The look-up that finds it says what became of it."""
    connected.sockets[1].state, connected.sockets[1].info = SocketState.CLOSE, traffic(5, 20)
    connected.lose_removals()
    (updated,) = flow_events(connected.wait(0.3))
    assert (type(updated), updated.counts.tx_bytes) == (FlowUpdated, 20)


def test_a_thousand_lost_removals_are_looked_into_in_steps(kernel):
    """None of them is forgotten, and the poll is over when the last one was."""
    kernel.open_many(1000)
    kernel.start()
    kernel.sockets.clear()
    kernel.lose_removals()
    events = kernel.wait(0.3)
    assert kinds(events[-1001:]) == ["FlowRemoved"] * 1000 + ["PollCompleted"]
    assert kernel.session.statistics()["gone"] == 1000


def test_absences_of_many_that_nobody_is_asked_about_are_looked_into_in_steps(kernel):
    kernel.open_many(600)
    kernel.start()
    kernel.sockets.clear()
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_an_overrun_is_told_and_repaired(kernel):
    """After a lost removal a loss is in the stream, a poll comes at once, and vanished flows go, confirmed, not final."""
    kernel.open_many(3)
    kernel.start()
    kernel.now += 0.5
    kernel.close(2, tell=False)
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    (lost,) = kernel.run()
    kernel.session.channel_drained(1, kernel.now)
    removed, done = kernel.run()
    assert isinstance(lost, EventsLost)
    assert (lost.cause, lost.count) == (LossCause.KERNEL_BUFFER, None)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)
    assert removed.counts.tx_bytes == 0
    assert (done.flows, done.complete) == (2, True)
    kernel.sockets.pop(3)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"], "repaired: absence is explained by removals again"


@pytest.mark.parametrize(("peer", "ids"), [(80, ["c1"]), (443, ["c1", "c1.2"])], ids=["known", "another"])
def test_a_removal_that_comes_when_its_socket_was_given_up_is_of_a_connection_that_nobody_reported(kernel, peer, ids):
    """After an overrun a look-up may find a socket gone before its removal is read: no flow ends twice."""
    sock = kernel.sockets[1] = FakeSocket(1, remote_port=80, info=traffic(5, 10))
    kernel.start()
    kernel.close(1, tell=False)
    kernel.lose_removals()
    kernel.wait(0.3)
    sock.remote_port = peer
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    for kind in (FlowAdded, FlowRemoved):
        assert [event.flow.id for event in kernel.events if isinstance(event, kind)] == ids


@pytest.mark.parametrize("why", ["overrun", "doubt"])
def test_while_notifications_are_unread_no_socket_is_given_up(kernel, why):
    """Its removal, which has its last counts, may be one of them; when all are read, those that had none are given up."""
    kernel.open_many(3)
    kernel.start()
    unread, _lost = kernel.sockets.pop(1), kernel.sockets.pop(2)
    kernel.close(3)
    if why == "overrun":
        kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    else:
        kernel.session._doubt_removals()
    kernel.poll()
    kernel.poll()
    assert [event.flow.id for event in removals(kernel.events)] == ["c3"]
    kernel.feed(attrs.evolve(unread, info=traffic(0, 20)).message(final=True), 1)
    kernel.session.channel_drained(1, kernel.now)
    kernel.wait(0.3)
    ended = [(event.flow.id, event.counts.tx_bytes, event.final) for event in removals(kernel.events)]
    assert sorted(ended) == [("c1", 20, True), ("c2", 0, False), ("c3", 0, True)]


def test_notifications_that_are_never_all_read_hold_up_the_repair_for_a_limited_time(kernel):
    kernel.open_many(2)
    kernel.start()
    kernel.close(2)
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.sockets.clear()
    kernel.poll()
    kernel.now += LONGEST_READING / 2
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.now += LONGEST_READING / 2
    kernel.poll()
    assert [(event.flow.id, event.reason) for event in removals(kernel.events)] == [
        ("c2", RemovalReason.CLOSED),
        ("c1", RemovalReason.GONE),
    ]


def test_an_overrun_during_a_poll_is_repaired_by_the_next(connected):
    """A dump that began before the loss cannot repair it."""
    connected.close(1, tell=False)
    connected.sockets[9] = FakeSocket(9, local_port=9, info=traffic())
    connected.during_dump = connected.lose_removals
    connected.wait(1.0)
    connected.wait(0.3)
    assert len(polls(connected.events)) == 3
    assert [e.flow.id for e in removals(connected.events)] == ["c1"]


def test_a_poll_that_is_not_complete_repairs_nothing(connected):
    """What its dumps lack is looked into by the next one, still as if removals were missing."""
    connected.lose_removals()
    connected.during_dump = lambda: connected.session.channel_failed(0, errno.ENOBUFS, connected.now)
    done = connected.wait(0.3)[-1]
    assert (type(done), done.complete) == (PollCompleted, False)
    connected.close(1, tell=False)
    connected.wait(1.0)
    assert [e.flow.id for e in removals(connected.events)] == ["c1"]


def lossy(*, closed=True):
    """A kernel whose removals were lost, maybe that of its only connection, and where no poll comes by itself."""
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    if closed:
        kernel.close(1, tell=False)
    kernel.lose_removals()
    return kernel


def end_of_repairs(kernel):
    """Let the polls come that are to repair the loss, until none comes any more; how many came."""
    before = len(polls(kernel.events))
    while (due := kernel.session.next_deadline()) is not None:
        kernel.wait(due - kernel.now)
    return len(polls(kernel.events)) - before


def test_a_poll_that_repaired_nothing_is_followed_by_another_where_no_other_comes():
    """A dump that failed once does not keep a flow in the book that is gone."""
    kernel = lossy()
    kernel.during_dump = lambda: kernel.session.channel_failed(0, errno.ENOBUFS, kernel.now)
    assert end_of_repairs(kernel) == 2
    assert [e.flow.id for e in removals(kernel.events)] == ["c1"]


def test_a_poll_whose_look_up_had_no_answer_repaired_nothing():
    kernel = lossy()
    kernel.silent.add(3)
    kernel.wait(0.2)
    kernel.silent.clear()
    assert end_of_repairs(kernel) == 2
    assert [e.flow.id for e in removals(kernel.events)] == ["c1"]


def test_polls_that_repair_nothing_come_to_an_end():
    kernel = lossy(closed=False)
    kernel.refused[0, 6] = errno.EBUSY
    assert end_of_repairs(kernel) == 1 + MOST_REPAIRS
    kernel.lose_removals()
    assert end_of_repairs(kernel) == 1 + MOST_REPAIRS
    kernel.refused.clear()
    kernel.close(1, tell=False)
    kernel.poll()
    assert [e.flow.id for e in removals(kernel.events)] == ["c1"], "nor is it taken for repaired"


def test_no_repair_before_the_queue_is_empty(connected):
    """A full queue drops silently until it was read empty: a dump before that repairs nothing."""
    connected.session.channel_failed(1, errno.ENOBUFS, connected.now)
    connected.wait(1.0)
    connected.close(1, tell=False)
    connected.session.channel_drained(1, connected.now)
    connected.wait(0.3)
    assert [e.flow.id for e in removals(connected.events)] == ["c1"]


def test_where_no_removals_are_reported_absence_removes(kernel):
    """Where the kernel does not report destroyed sockets, a flow goes when its absence is confirmed."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.missing_channels.add(1)
    kernel.start()
    assert not kernel.session.capabilities.final_counts
    kernel.sockets.clear()
    removed, _ = kernel.wait(1.0)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)


def test_another_socket_under_the_same_addresses_does_not_stand_for_one_that_went(connected):
    """What a look-up finds is compared by its cookie."""
    connected.sockets.clear()
    connected.lose_removals()

    def answer(data, channel):
        for frame in iterate_messages(data):
            connected.feed(FakeSocket(2, info=traffic(5, 10)).message(frame.sequence), channel)

    connected._lookups = answer
    (removed,) = removals([*connected.run(), *connected.wait(1.0)])
    assert (removed.flow.id, removed.reason) == ("c1", RemovalReason.GONE)


def test_after_a_loss_there_is_one_poll_as_soon_as_may_be(kernel):
    """Not sooner than a while after the last one began, nor later than the next begins anyway; and no more than one."""
    for interval, later, due in (
        (None, 0.0, 0.2),
        (None, 5.0, 5.0),
        (1.0, 0.0, 0.2),
        (1.0, 0.9, 0.9),
        (0.1, 0.05, 0.1),
    ):
        kernel = FakeKernel(interval=interval)
        kernel.start()
        began = kernel.now
        kernel.now += later
        kernel.lose_removals()
        if due > later:
            assert kernel.session.next_deadline() == began + due
        assert len(polls(kernel.run())) == (due <= later)
        kernel.wait(0.3)
        if interval is None:
            assert polls(kernel.wait(9.0)) == []
