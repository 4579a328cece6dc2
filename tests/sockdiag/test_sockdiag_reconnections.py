"""A socket that connects once more: to which of its connections records, rows and removals belong."""

from __future__ import annotations

import errno

import attrs
import pytest
from ebpf_records import encode, record
from programs_fakes import PORTS, RING, Programs, attrs_of, closed, connect, removal, started
from sockdiag_fakes import PEER, FakeSocket, flow_events, kinds

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause
from nstat_async._model import Direction
from nstat_async.ebpf import Kind
from nstat_async.sockdiag._constants import SocketState, TcpInfo


def test_a_listener_that_was_shut_down_and_connects_ends_as_a_listener():
    """``shutdown`` takes it out of the dumps, and ``connect`` makes a client of the same socket."""
    kernel = started()
    kernel.sockets[9] = FakeSocket(9, local_port=40000, remote=bytes(4), remote_port=0, state=SocketState.LISTEN)
    kernel.poll()
    del kernel.sockets[9]
    removed, added = [e for e in flow_events(connect(kernel)) if not isinstance(e, FlowUpdated)]
    assert (type(removed), removed.flow.direction) == (FlowRemoved, Direction.LISTENER)
    assert (type(added), added.flow.direction, added.flow.remote.port) == (FlowAdded, Direction.OUTBOUND, 80)
    assert removed.flow.id != added.flow.id


def test_a_listener_that_was_shut_down_and_connects_in_vain_ends_twice():
    kernel = started()
    kernel.sockets[9] = FakeSocket(9, local_port=40000, remote=bytes(4), remote_port=0, state=SocketState.LISTEN)
    kernel.poll()
    kernel.ring(record(Kind.OPENED, 9, pid=5, **PORTS), closed())
    kernel.wait(1.0)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c9", "c9.2"]


def test_a_socket_with_another_connection_is_another_flow():
    kernel = started()
    connect(kernel)
    kernel.ring(closed())
    connect(kernel)
    kernel.ring(closed(tx=1))
    kernel.wait(1.0)
    ids = [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)]
    assert ids == ["c9", "c9.2"]


def overtaken(kernel: Programs, *, seen: str, late: bool) -> list[FlowRemoved]:
    """A socket connects, and once more: a row or the removal of the second connection is read before its records.

    The record of the first one's end is `late`, too, or is there. How both ended.
    """
    connect(kernel)
    ends = {"local_port": 40001, "remote_port": 81 << 8}
    begin = record(Kind.OPENED, 9, pid=5, remote_port=81 << 8), record(Kind.ESTABLISHED, 9, pid=5, **ends)
    records = [closed(), *begin, record(Kind.CLOSED, 9, tx_bytes=70, rx_bytes=5, remote_port=81 << 8)]
    if not late:
        kernel.ring(records.pop(0))
    kernel.sockets[9] = attrs.evolve(removal(rx=5), local_port=40001, remote_port=81)
    if seen == "row":
        kernel.poll()
    kernel.close(9)
    kernel.run()
    kernel.ring(*records)
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)).count("FlowAdded") == 2
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.id, e.flow.remote.port) for e in removed] == [("c9", 80), ("c9.2", 81)]
    assert (removed[1].flow.local.port, removed[1].counts.rx_bytes, removed[1].final) == (40001, 5, True)
    return removed


@pytest.mark.parametrize("seen", ["removal", "row"])
def test_a_connection_whose_record_came_ends_by_it_though_the_next_one_is_seen_before_its_records(seen):
    kernel = started()
    first, _ = overtaken(kernel, seen=seen, late=False)
    assert (first.counts.rx_bytes, first.final) == (7, True)
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


@pytest.mark.parametrize("seen", ["removal", "row"])
def test_the_record_of_a_connection_that_was_dissolved_does_not_end_the_next_one(seen):
    """It comes when the next one was seen: the end was reported, without the counts that the kernel cleared."""
    kernel = started()
    first, _ = overtaken(kernel, seen=seen, late=True)
    assert not first.final
    assert [e.cause for e in kernel.events if isinstance(e, EventsLost)] == [LossCause.FINAL_COUNTS]


@pytest.mark.parametrize("state", [SocketState.ESTABLISHED, SocketState.LAST_ACK, SocketState.CLOSE])
def test_a_row_that_was_written_while_its_connection_was_closed_makes_no_second_one(state):
    """It has no local port any more, and is read after the record of the end."""
    kernel = started()
    connect(kernel)
    kernel.ring(record(Kind.ESTABLISHED, 9, pid=5, local_port=40000, remote_port=80 << 8))
    kernel.sockets[9] = attrs.evolve(removal(rx=7), state=state, local_port=0)
    kernel.during_dump = lambda: kernel.ring(closed())
    kernel.poll()
    kernel.during_dump = None
    del kernel.sockets[9]
    kernel.feed(removal(rx=7).message(final=True), 1)
    kernel.run()
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)).count("FlowAdded") == 1
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.flow.id, removed.flow.local.port, removed.counts.rx_bytes, removed.final) == ("c9", 40000, 7, True)
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


@pytest.mark.parametrize("established", [True, False], ids=["established", "its local port is not known"])
def test_a_row_of_a_connection_that_ended_is_older_than_the_records_of_the_next_one(established):
    """The kernel wrote it before, in the same poll: it neither ends that one nor makes a third of it."""
    kernel = started()
    connect(kernel)
    ends = {"local_port": 40001, "remote_port": 80 << 8}
    begin = [record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), record(Kind.ESTABLISHED, 9, pid=5, **ends)]
    first, second = removal(rx=7), attrs.evolve(removal(rx=5), local_port=40001)
    kernel.sockets[9] = first
    kernel.poll()
    kernel.during_dump = lambda: kernel.ring(closed(), *begin[: 1 + established])
    kernel.poll()
    kernel.during_dump = None
    kernel.ring(*begin[1 + established :])
    del kernel.sockets[9]
    kernel.ring(record(Kind.CLOSED, 9, tx_bytes=70, rx_bytes=5, remote_port=80 << 8))
    kernel.feed(second.message(final=True), 1)
    kernel.run()
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.id, e.flow.local.port, e.counts.rx_bytes, e.final) for e in removed] == [
        ("c9", 40000, 7, True),
        ("c9.2", 40001, 5, True),
    ]
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def reconnected():
    """A kernel whose socket 9 was closed, as a record says, and has another connection, as a dump does."""
    kernel = started()
    connect(kernel)
    kernel.feed(encode(attrs_of(closed())), RING)
    kernel.sockets[9] = FakeSocket(9, remote=bytes((127, 0, 0, 3)), local_port=40001)
    kernel.poll()
    return kernel


def test_a_record_of_an_end_is_not_that_of_a_connection_that_a_dump_found_meanwhile():
    kernel = reconnected()
    kernel.wait(1.0)
    last = [e for e in flow_events(kernel.events) if e.flow.id == "c9.2"]
    assert [type(e) for e in last] == [FlowAdded]
    assert [e.flow.id for e in flow_events(kernel.events) if isinstance(e, FlowRemoved)] == ["c9"]


def test_a_removal_is_not_joined_with_the_record_of_the_connection_before():
    kernel = reconnected()
    kernel.close(9)
    kernel.ring(closed()._replace(time=1_000_000_000))
    kernel.wait(1.0)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c9", "c9.2"]


@pytest.mark.parametrize(
    ("known", "ids", "lost"),
    [(True, ["c9", "c9.2"], [(LossCause.FINAL_COUNTS, 1)]), (False, ["c9", "c9.2"], [])],
)
def test_records_of_two_connections_that_come_after_the_removal_of_their_socket(known, ids, lost):
    """The removal is that of the second one; the first one's record is not taken for its: it ends the first, unless that was given up."""
    kernel = started()
    ports = {"local_port": 40001, "remote_port": 80 << 8}
    first = [record(Kind.OPENED, 9, remote_port=81 << 8), record(Kind.CLOSED, 9, remote_port=81 << 8, tx_bytes=1)]
    second = [record(kind, 9, 1_000_000_000, tx_bytes=70, rx_bytes=8, **ports) for kind in (Kind.OPENED, Kind.CLOSED)]
    kernel.ring(*first[:known])
    kernel.feed(attrs.evolve(removal(), local_port=40001).message(final=True), 1)
    kernel.ring(*first[known:], *second)
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [e.flow.id for e in removed] == ids
    assert (removed[-1].flow.remote.port, removed[-1].counts.rx_bytes, removed[-1].final) == (80, 8, True)
    assert [(e.cause, e.count) for e in kernel.events if isinstance(e, EventsLost)] == lost
    if not known:
        assert (removed[0].flow.remote.port, removed[0].counts.tx_bytes, removed[0].final) == (81, 1, True)


def test_records_of_three_connections_that_come_after_the_removal_of_their_socket():
    """Each is a flow that is added and removed, with the process and the counts of its record."""
    kernel = started()
    ends = [{"local_port": 40001, "remote_port": port << 8} for port in (81, 82, 80)]
    kernel.feed(attrs.evolve(removal(), local_port=40001).message(final=True), 1)
    for number, each in enumerate(ends):
        sent = 70 if number == 2 else number + 1
        kinds_of = (Kind.OPENED, Kind.ESTABLISHED, Kind.CLOSED)
        kernel.ring(
            *[record(kind, 9, number * 1_000_000_000, pid=5, tx_bytes=sent, rx_bytes=8, **each) for kind in kinds_of]
        )
        if number == 1:
            kernel.ring(record(Kind.CLOSED, 9, 5 * 10**9, pid=5, tx_bytes=1, **ends[0]))  # that is known
    kernel.wait(1.0)
    events = [e for e in flow_events(kernel.events) if not isinstance(e, FlowUpdated)]
    assert [(type(e), e.flow.id) for e in events] == [
        (kind, name) for name in ("c9", "c9.2", "c9.3") for kind in (FlowAdded, FlowRemoved)
    ]
    removed = [e for e in events if isinstance(e, FlowRemoved)]
    assert [(e.flow.remote.port, e.counts.tx_bytes, e.final) for e in removed] == [
        (81, 1, True),
        (82, 2, True),
        (80, 70, True),
    ]
    assert {e.flow.process.pid for e in removed} == {5}
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def test_an_earlier_connection_whose_end_alone_is_recorded_has_the_process_of_that_record():
    kernel = started()
    kernel.feed(attrs.evolve(removal(), local_port=40001).message(final=True), 1)
    kernel.ring(record(Kind.CLOSED, 9, pid=6, tx_bytes=1, local_port=40001, remote_port=81 << 8))
    ports = {"local_port": 40001, "remote_port": 80 << 8}
    kernel.ring(
        *(record(kind, 9, 10**9, pid=5, tx_bytes=70, rx_bytes=8, **ports) for kind in (Kind.OPENED, Kind.CLOSED))
    )
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.remote.port, e.flow.process.pid) for e in removed] == [(81, 6), (80, 5)]
    assert kernel.session.statistics()["short_lived"] == 2


@pytest.mark.parametrize("port", [40000, 40001], ids=["one port", "two ports"])
def test_connections_whose_records_come_after_the_cleared_removal_of_the_last_have_numbers_of_their_own(port):
    """The removal of an aborted connection has no remote port, and maybe no other local port than an earlier one."""
    kernel = started()
    kernel.feed(FakeSocket(9, bytes(4), port, remote_port=0, unacked=100).message(final=True), 1)
    kernel.run()
    for each, rx in ((40000, 1), (port, 2)):
        ends = {"local_port": each, "remote_port": 80 << 8}
        begin = record(Kind.OPENED, 9, pid=5, **ends), record(Kind.ESTABLISHED, 9, pid=5, **ends)
        kernel.ring(*begin, record(Kind.CLOSED, 9, rx_bytes=rx, **ends))
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.id, e.flow.local.port, e.counts.rx_bytes) for e in removed] == [("c9", 40000, 1), ("c9.2", port, 2)]
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def test_a_connection_between_two_that_were_reported_is_said_to_be_lost():
    kernel = started()
    for port in (40000, 40002):
        kernel.sockets[9] = FakeSocket(9, local_port=port)
        kernel.poll()
    kernel.events.clear()
    for port in (40000, 40001):
        ends = {"local_port": port, "remote_port": 80 << 8, "remote": PEER.ljust(16, b"\0")}
        kernel.ring(record(Kind.CLOSED, 9, port * 10**9, **ends))
    assert [(e.cause, e.count) for e in kernel.events if isinstance(e, EventsLost)] == [(LossCause.GOODBYE, 1)]


def test_an_earlier_connection_of_a_socket_that_was_reported_already_is_said_to_be_lost():
    """Its later one has the socket's first number."""
    kernel = started()
    kernel.sockets[9] = FakeSocket(9, local_port=40001)
    kernel.poll()
    kernel.ring(record(Kind.CLOSED, 9, local_port=40000, remote_port=81 << 8, tx_bytes=1))
    assert [e.flow.id for e in flow_events(kernel.events)] == ["c9"]
    assert [(e.cause, e.count) for e in kernel.events if isinstance(e, EventsLost)] == [(LossCause.GOODBYE, 1)]


@pytest.mark.parametrize("aborted", [False, True])
def test_a_removal_that_seemed_to_be_of_an_earlier_connection_waits_for_the_record_of_its_own(
    aborted,
):
    """The record of a beginning has no local port. The next records tell it, and so that the removal is of a later connection."""
    kernel = started()
    remote = 81 if aborted else 80
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    last = FakeSocket(9, bytes(4), 40001, remote_port=0, unacked=100) if aborted else removal(rx=5)
    kernel.feed(attrs.evolve(last, local_port=40001).message(final=True), 1)
    first = {"local_port": 40000, "remote_port": 80 << 8}
    second = {"local_port": 40001, "remote_port": remote << 8}
    kernel.ring(record(Kind.ESTABLISHED, 9, pid=5, **first), closed())
    kernel.ring(record(Kind.OPENED, 9, 10**9, pid=5, remote_port=remote << 8))
    kernel.ring(
        record(Kind.ESTABLISHED, 9, 10**9, pid=5, **second), record(Kind.CLOSED, 9, 10**9, rx_bytes=5, **second)
    )
    kernel.wait(1.0)
    ends = [
        (e.flow.id, e.flow.local.port, e.flow.remote.port, e.counts.rx_bytes, e.final)
        for e in kernel.events
        if isinstance(e, FlowRemoved)
    ]
    assert ends == [("c9", 40000, 80, 7, True), ("c9.2", 40001, remote, 5, True)]
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


@pytest.mark.parametrize(
    ("late", "state"),
    [(False, SocketState.SYN_SENT), (True, SocketState.SYN_SENT), (False, SocketState.ESTABLISHED)],
    ids=["attempt", "attempt whose beginning is late", "connection whose port was lost"],
)
def test_a_record_without_a_port_does_not_end_the_connection_that_a_dump_found_meanwhile(late, state):
    """It could be of either, but an attempt is not established, and the beginning of the found connection was not recorded."""
    kernel = started()
    opened = record(Kind.OPENED, 9, pid=5, remote_port=80 << 8)
    ended = record(Kind.CLOSED, 9, pid=5, remote_port=80 << 8, old=state)
    kernel.ring(*[opened][late:])
    kernel.sockets[9] = attrs.evolve(removal(), state=SocketState.SYN_SENT, info={})
    kernel.poll()
    kernel.sockets[9] = attrs.evolve(removal(), local_port=40001)
    kernel.poll()
    kernel.ring(*[opened][: int(late)], ended)
    kernel.wait(1.0)
    kernel.poll()
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c9"]
    assert [(flow.id, flow.local.port) for flow, _ in kernel.session.flows()] == [("c9.2", 40001)]
    assert [e.cause for e in kernel.events if isinstance(e, EventsLost)] == [LossCause.FINAL_COUNTS]


@pytest.mark.parametrize("waits", ["record", "removal"])
def test_the_record_of_an_attempt_is_not_joined_with_the_removal_of_an_established_connection(waits):
    """Something of it was acknowledged; the record of its own end comes later."""
    kernel = started()
    attempt = record(Kind.CLOSED, 9, remote_port=80 << 8, old=SocketState.SYN_SENT)
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), *[attempt][waits == "removal" :])
    kernel.feed(attrs.evolve(removal(rx=8), local_port=40001).message(final=True), 1)
    ends = {"local_port": 40001, "remote_port": 80 << 8}
    begin = record(Kind.OPENED, 9, 10**9, pid=5, remote_port=80 << 8), record(Kind.ESTABLISHED, 9, 10**9, pid=5, **ends)
    kernel.ring(*[attempt][waits == "record" :], *begin, record(Kind.CLOSED, 9, 10**9, rx_bytes=8, **ends))
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.id, e.counts.rx_bytes, e.final) for e in removed] == [("c9", 0, True), ("c9.2", 8, True)]
    assert removed[0].flow.outcome is not removed[1].flow.outcome
    assert removed[1].flow.local.port == 40001
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def test_a_failed_attempt_after_a_connection_with_the_same_peer_is_not_taken_for_that_one():
    """Its record has no port; it came after the removal of a third connection."""
    kernel = started()
    kernel.feed(attrs.evolve(removal(), local_port=40002).message(final=True), 1)
    opened = [record(Kind.OPENED, 9, number * 10**9, pid=5, remote_port=80 << 8) for number in range(3)]
    ports = [{"local_port": 40000 + number, "remote_port": 80 << 8} for number in range(3)]
    established = [record(Kind.ESTABLISHED, 9, number * 10**9, pid=5, **ports[number]) for number in range(3)]
    kernel.ring(opened[0], established[0], closed())
    kernel.ring(opened[1], record(Kind.CLOSED, 9, 10**9, remote_port=80 << 8, old=SocketState.SYN_SENT))
    kernel.ring(opened[2], established[2], closed()._replace(time=2 * 10**9))
    kernel.wait(1.0)
    removed = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert [(e.flow.id, e.flow.local.port) for e in removed] == [("c9", 40000), ("c9.2", 0), ("c9.3", 40002)]
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def test_late_records_of_a_removed_socket_begin_nothing_though_the_removal_was_joined_with_another_record():
    """The record that tells the first connection's port was lost, so its end is taken for the removed one's."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), closed())
    kernel.feed(attrs.evolve(removal(), local_port=40001).message(final=True), 1)
    kernel.run()
    ends = {"local_port": 40001, "remote_port": 80 << 8}
    kinds_of = (Kind.OPENED, Kind.ESTABLISHED, Kind.CLOSED)
    kernel.ring(*[record(kind, 9, 10**9, pid=5, tx_bytes=70, rx_bytes=8, **ends) for kind in kinds_of])
    kernel.wait(1.0)
    events = [(type(e), e.flow.id) for e in flow_events(kernel.events) if not isinstance(e, FlowUpdated)]
    assert events == [(FlowAdded, "c9"), (FlowRemoved, "c9")]


@pytest.mark.parametrize("remote_port", [80, 0], ids=["closed", "the kernel forgot the peer"])
def test_a_removed_socket_whose_attempt_failed_is_not_remembered(remote_port):
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.ring(record(Kind.CLOSED, 9, pid=5, remote_port=80 << 8, old=SocketState.SYN_SENT))
    unacked, info = (1, {TcpInfo.SEGS_OUT: 1}) if remote_port else (3, {})
    last = attrs.evolve(removal(), remote_port=remote_port, unacked=unacked, info=info)
    kernel.feed(last.message(final=True), 1)
    assert kinds(flow_events(kernel.run())) == ["FlowAdded", "FlowRemoved"]
    assert not kernel.session._evidence.is_past(9)


def test_a_connection_of_which_everything_was_lost_ends_though_the_record_of_the_one_before_still_waits():
    kernel = reconnected()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    del kernel.sockets[9]
    kernel.session.channel_drained(1, kernel.now)
    kernel.poll()
    assert [e.flow.id for e in flow_events(kernel.events) if isinstance(e, FlowRemoved)] == ["c9", "c9.2"]


def attempted(port: int, tick: int = 0):
    """The record of an attempt's end, which tells from where it was made."""
    local = {"local_port": port, "local": b"\x7f\0\0\1".ljust(16, b"\0")}
    return record(Kind.CLOSED, 9, tick, remote_port=80 << 8, old=SocketState.SYN_SENT, **local)


def test_an_attempt_whose_end_tells_its_port_is_not_the_next_one():
    """A dump has the next one before the removal of the first one could come."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), attempted(40000))
    kernel.sockets[9] = attrs.evolve(removal(), local_port=40001, state=SocketState.SYN_SENT, info={})
    kernel.poll()
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.flow.id, str(removed.flow.local), removed.final) == ("c9", "127.0.0.1:40000", True)
    kernel.poll()
    assert [(flow.id, flow.local.port) for flow, _ in kernel.session.flows()] == [("c9.2", 40001)]


def test_nothing_follows_the_end_of_an_attempt_that_was_read_when_the_next_one_was_known():
    """What is looked up about its process comes later."""
    kernel = started()
    kernel.hold_lookups = True
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.sockets[9] = attrs.evolve(removal(), local_port=40001, inode=2)
    kernel.during_dump = lambda: setattr(kernel, "during_dump", lambda: kernel.ring(attempted(40000)))
    kernel.poll()
    kernel.hold_lookups = False
    for command in kernel.held:
        kernel.answer(command)
    kernel.wait(1.0)
    kernel.poll()
    events = [e for e in flow_events(kernel.events) if e.flow.id == "c9"]
    assert (kinds(events)[-1], str(events[-1].flow.local)) == ("FlowRemoved", "127.0.0.1:40000")


def test_two_earlier_connections_with_one_peer_are_told_apart_by_the_port():
    """The end of the first one was reported when only its beginning was known, without its port."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.wait(1.0)
    kernel.sockets[9] = attrs.evolve(removal(), local_port=40003, remote_port=81)
    kernel.poll()
    for tick, port in enumerate((40000, 40001)):
        kernel.ring(record(Kind.CLOSED, 9, tick, local_port=port, remote_port=80 << 8))
    causes = [(e.cause, e.count) for e in kernel.events if isinstance(e, EventsLost)]
    assert causes == [(LossCause.FINAL_COUNTS, 1), (LossCause.GOODBYE, 1)]
