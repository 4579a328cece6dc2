"""Removals that the kernel reports: the last counts, how it ended, and notifications that say too little."""

from __future__ import annotations

import attrs
import pytest
from sockdiag_fakes import PEER, FakeKernel, FakeSocket, flow_events, kinds, traffic

from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, LossCause, RemovalReason
from nstat_async._model import Direction, Outcome, Provider
from nstat_async.sockdiag import DiagAttribute, SocketState, TcpInfo
from nstat_async.sockdiag._finals import least_age


def test_a_removal_has_the_final_counts(kernel):
    """A destroyed socket is removed at once, by cookie, with its very last counts and the process known before."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(5, 10))
    kernel.owners[77] = 42
    kernel.start()
    kernel.sockets[1].info = traffic(5, 3000, fin_sent=1)
    kernel.remains.append(FakeSocket(1, state=SocketState.FIN_WAIT2, timer=3))
    kernel.close(1)
    (removed,) = kernel.run()
    assert isinstance(removed, FlowRemoved)
    assert (removed.final, removed.reason) == (True, RemovalReason.CLOSED)
    assert (removed.counts.rx_bytes, removed.counts.tx_bytes) == (5, 3000)
    assert removed.flow.process.pid == 42
    assert list(kernel.session.flows()) == []


def test_an_end_whose_fin_a_row_had_reported_as_a_byte_is_inexact_and_still_an_end_in_order(kernel):
    """The FIN came between the states and the counters of a row: the count stays, the outcome is of the FIN."""
    just = {TcpInfo.LAST_ACK_RECV: 0}
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(100, fin=1) | just)
    kernel.start()
    kernel.sockets[1].info = traffic(100, fin=1, fin_sent=1) | just
    kernel.sockets[1].unread = 1
    kernel.close(1)
    (removed,) = kernel.run()
    assert (removed.counts.rx_bytes, removed.final, removed.uncertainty) == (101, False, 1)
    assert removed.flow.outcome is Outcome.CLOSED_THERE


def test_a_flow_between_two_polls_is_added_and_removed(kernel):
    """A socket known only by its removal is added, then removed, without a process."""
    kernel.start()
    kernel.feed(FakeSocket(5, info=traffic(0, 1234, fin_sent=1) | {TcpInfo.LAST_ACK_RECV: 0}).message(final=True), 1)
    added, removed = kernel.run()
    assert (added.preexisting, added.flow.process) == (False, None)
    assert removed.flow == attrs.evolve(added.flow, outcome=Outcome.RESET)  # nothing is left: by whom is not known
    assert (removed.counts.tx_bytes, removed.final) == (1234, True)
    assert kernel.session.statistics()["short_lived"] == 1


@pytest.mark.parametrize(
    ("facts", "waited", "older"),
    [
        ({TcpInfo.LAST_DATA_SENT: 21}, 0.0, True),
        ({TcpInfo.LAST_DATA_RECV: 21}, 0.0, True),
        ({TcpInfo.LAST_ACK_RECV: 21}, 0.0, True),
        ({TcpInfo.LAST_DATA_SENT: 20}, 0.0, False),  # the kernel's clock is coarse
        ({TcpInfo.LAST_DATA_SENT: 1020}, 1.0, False),
        ({TcpInfo.LAST_DATA_SENT: 1021}, 1.0, True),
        ({TcpInfo.LAST_DATA_SENT: 99_999, TcpInfo.BYTES_SENT: 0}, 0.0, False),  # never established: since boot
        ({TcpInfo.LAST_DATA_SENT: 99_999, TcpInfo.SEGS_IN: 0, TcpInfo.SEGS_OUT: 0}, 0.0, False),  # forgotten
    ],
)
def test_a_connection_that_was_silent_for_longer_than_the_subscription_was_there_before(kernel, facts, waited, older):
    """One that ends while the first dump is under way, before its row, is not new traffic of all its bytes."""
    kernel.start()
    kernel.wait(waited)
    times = {TcpInfo.LAST_DATA_SENT: 0, TcpInfo.LAST_DATA_RECV: 0, TcpInfo.LAST_ACK_RECV: 0}
    kernel.feed(FakeSocket(5, info=traffic(0, 1234, fin_sent=1) | times | facts).message(final=True), 1)
    (added,) = [event for event in kernel.run() if isinstance(event, FlowAdded)]
    assert added.preexisting is older


def test_a_message_without_these_times_does_not_tell_the_age_of_a_connection():
    assert least_age(b"\xff" * 59, 0, 59) == 0.0


def test_a_socket_never_used_is_no_flow(kernel):
    """Made and closed without port or peer: counted, not reported."""
    kernel.start()
    kernel.feed(FakeSocket(5, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True), 1)
    assert kernel.run() == []
    assert kernel.session.statistics()["unused_sockets"] == 1


def test_a_removal_that_is_read_before_the_dump_that_has_its_socket(kernel):
    """A dump written before a socket's removal, and read after it, does not bring the socket back."""
    kernel.start()
    kernel.sockets[1] = FakeSocket(1, info=traffic(0, 10, fin_sent=1))
    kernel.during_dump = lambda: kernel.close(1)
    events = kernel.wait(1.0)
    assert kinds(events) == ["FlowAdded", "FlowRemoved", "PollCompleted"]
    assert events[-1].flows == 0
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def just_closed(cookie, **facts):
    """A row that was written while its socket was being closed: the local port is given back, the state is still the old one."""
    return FakeSocket(cookie, local_port=0, state=SocketState.LAST_ACK, **facts)


def test_a_row_without_a_local_port_is_no_other_connection(kernel):
    """The kernel wrote it while the connection was being closed; its removal has the port again."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    known = kernel.sockets[1]
    kernel.sockets[1] = just_closed(1, info=traffic(5, 3000, fin=1))
    assert flow_events(kernel.poll()) == []
    del kernel.sockets[1]
    known.info = traffic(5, 3000, fin=1, fin_sent=1)
    kernel.feed(known.message(final=True), 1)
    (removed,) = kernel.run()
    assert (removed.flow.id, removed.flow.local.port, removed.counts.tx_bytes) == ("c1", 40000, 3000)


def test_a_row_without_a_local_port_begins_no_flow(kernel):
    """One that begins and ends between two polls is known by its removal, with its port."""
    kernel.sockets[1] = just_closed(1)
    kernel.start()
    kernel.sockets[2] = just_closed(2)
    kernel.poll()
    assert flow_events(kernel.events) == []
    kernel.sockets.clear()
    kernel.feed(FakeSocket(2, info=traffic(0, 1234, fin_sent=1)).message(final=True), 1)
    added, removed = kernel.run()
    assert (added.flow.id, added.flow.local.port, removed.counts.tx_bytes) == ("c2", 40000, 1234)


def test_an_aborted_socket_keeps_its_last_known_counts(connected):
    """The connected clears the counters of an aborted socket: the loss is told, the last counts stand and are not final."""
    for cookie in (1, 2):
        wiped = FakeSocket(cookie, remote_port=0, unacked=65000)
        connected.feed(wiped.message(final=True), 1)
    lost, removed, *short = connected.run()
    assert (lost.cause, lost.count) == (LossCause.FINAL_COUNTS, 1)
    assert "aborted" in lost.detail
    assert removed.flow.outcome is Outcome.RESET_HERE
    assert (removed.reason, removed.final) == (RemovalReason.DROPPED, False)
    assert (removed.counts.rx_bytes, str(removed.flow.remote)) == (5, "198.51.100.9:80")
    assert kinds(short) == ["FlowAdded", "EventsLost", "FlowRemoved"]
    assert (short[0].counts, short[2].counts) == (None, None)


@pytest.mark.parametrize(
    ("left", "listening", "direction"),
    [(65_000, True, Direction.INBOUND), (65_000, False, None), (3, True, Direction.OUTBOUND)],
    ids=["accepted", "unknown", "failed attempt"],
)
def test_who_began_an_aborted_connection_is_known_by_its_listener_alone(kernel, left, listening, direction):
    """If no poll had it: the kernel forgot the port of its peer, as it does that of an attempt that failed."""
    if listening:
        kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.start()
    kernel.feed(FakeSocket(5, local_port=80, remote_port=0, unacked=left).message(final=True), 1)
    assert kernel.run()[-1].flow.direction is direction


@pytest.mark.parametrize("marked", [1, 5])
def test_a_subflow_of_multipath_tcp_is_not_said_to_be_aborted(kernel, marked):
    """By its own upper layer, or its listener's."""
    extra = {DiagAttribute.ULP_INFO: b"\x0a\0\1\0mptcp\0\0\0"}
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.sockets[5] = FakeSocket(5, local_port=80, remote_port=90, info=traffic(5, 10))
    kernel.sockets[marked].extra = extra
    kernel.start()
    kernel.feed(FakeSocket(5, local_port=80, remote_port=0, unacked=65000).message(final=True), 1)
    lost, removed = kernel.run()
    assert "a subflow of Multipath TCP, whose" in lost.detail
    assert removed.flow.outcome is None


def test_notifications_that_say_too_little_are_losses_or_nobodys():
    """One without attributes does not even say of which protocol it is."""
    kernel = FakeKernel(providers=("tcp", "icmp"))
    kernel.start()
    assert kernel.session.capabilities.receive_buffer == 1 << 20
    whole = FakeSocket(5, info=traffic(0, 10, fin_sent=1)).message(final=True)
    bare = (88).to_bytes(4, "little") + whole[4:88]
    kernel.feed(bare + bare + whole, 1)
    assert kinds(kernel.run()) == ["FlowAdded", "FlowRemoved"]
    assert kernel.session.statistics()["goodbyes"] == 3
    short = (84).to_bytes(4, "little") + whole[4:84]
    kernel.feed(short + FakeSocket(6, local_port=6).message(final=True), 1)
    (lost, *rest) = kernel.run()
    assert (type(lost), lost.detail) == (EventsLost, "notification of a destroyed socket is too short")
    assert [event.flow.id for event in flow_events(rest)] == ["c6", "c6"]


def test_a_notification_that_ends_within_its_protocol_is_nobodys(kernel):
    """One that ends behind it is of a socket without counts."""
    kernel.start()
    whole = FakeSocket(5, protocol=17).message(final=True)
    for size in (92, 93):
        kernel.feed(size.to_bytes(4, "little") + whole[4:size], 1)
    added, removed = kernel.run()
    assert (added.flow.id, added.flow.provider) == ("c5", Provider.UDP)
    assert added.counts == removed.counts is not None


@pytest.mark.parametrize(
    ("known", "repeated", "after", "remote", "outcome"),
    [
        (True, 0, 0.5, PEER, Outcome.REFUSED),
        (True, 0, 0.5, b"\x0a\0\0\0", Outcome.REFUSED),
        (True, 0, 1.0, PEER, Outcome.FAILED),  # it may have timed out meanwhile
        (True, 2, 0.5, PEER, Outcome.TIMED_OUT),
        (False, 0, 0.5, PEER, Outcome.REFUSED),
        (False, 0, 1.0, PEER, Outcome.FAILED),
        (False, 0, 0.5, b"\0" * 4, None),  # it never tried
    ],
)
def test_how_an_attempt_ended_that_the_kernel_forgot(known, repeated, after, remote, outcome):
    """Who closes early refuses; whoever was asked again did not answer; that is what was known before."""
    kernel = FakeKernel(interval=None)
    sock = FakeSocket(5, remote=remote, state=SocketState.SYN_SENT, info={TcpInfo.TOTAL_RETRANS: repeated})
    if known:
        kernel.sockets[5] = sock
    kernel.start()
    kernel.now += after
    end = bytearray(attrs.evolve(sock, remote_port=0, unacked=3, info={}).message(final=True))
    end[56] = 2  # bound to an interface
    kernel.feed(bytes(end), 1)
    kernel.run()
    removed = kernel.events[-1]
    assert (removed.flow.outcome, removed.final) == (outcome, True)


def test_where_a_kernel_counts_no_segments_an_end_is_not_taken_for_an_aborted_one(kernel):
    """Its port is there: so are its counts, with a FIN or without."""
    kernel.start()
    sock = FakeSocket(5, remote_port=0x5000, info_length=136, info=traffic(100, 5, fin_sent=1))
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    removed = kernel.events[-1]
    assert (removed.final, removed.uncertainty) == (False, 1)
