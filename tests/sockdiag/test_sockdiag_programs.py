"""eBPF records and maps in the book, without a kernel: what comes in which order, and what is missing."""

from __future__ import annotations

import errno
from typing import Any

import attrs
import pytest
from ebpf_records import datagram_record, encode, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs_fakes import GRANTED, MAPS, RING, Programs, attrs_of, flow_row, owner_row
from replaying import assert_same, replayed
from sockdiag_fakes import FakeSocket, flow_events, kinds

from examples import examples
from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    RemovalReason,
    TcpState,
    UnavailableReason,
)
from nstat_async._contract import LookupFailed
from nstat_async._model import Direction, Outcome, Visibility
from nstat_async._options import Ebpf
from nstat_async.ebpf import Flag, Kind, Operation, SocketType, Tier
from nstat_async.sockdiag import (
    AttachAnswer,
    CgroupFacts,
    DiagAttribute,
    FoundNamespace,
    NamespacesAnswer,
    NetworkNamespace,
    TableRow,
    TcpInfo,
    _glimpses,
)
from nstat_async.sockdiag._constants import SocketState
from nstat_async.sockdiag._namespaces import MOST_LOOKS
from nstat_async.sockdiag._sightings import HELD_SECONDS, MOST_HELD

PORTS = {"local_port": 40000, "remote_port": 80 << 8}
REMOTE = b"\x7f\0\0\2"
BORN = Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH
OTHERS = {
    "raw": {"protocol": 1, "type": SocketType.RAW},
    "icmp": {"protocol": 58, "family": 10, "local_port": 77},
    "packet": {"protocol": 0, "type": SocketType.RAW, "family": 17},
}
PROVIDERS = ("tcp", "udp", "raw", "icmp", "packet")
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def started(**options: Any) -> Programs:
    kernel = Programs(**options)
    kernel.start()
    kernel.events.clear()
    return kernel


def connect(kernel: Programs, cookie: int = 9, pid: int = 5) -> list[Any]:
    opened = record(Kind.OPENED, cookie, pid=pid, remote_port=80 << 8)
    return kernel.ring(opened, record(Kind.ESTABLISHED, cookie, pid=pid, **PORTS))


def closed(cookie: int = 9, *, tx: int = 70, rx: int = 8, fin: bool = True) -> Any:
    flags = Flag.FIN_RECEIVED if fin else 0
    return record(Kind.CLOSED, cookie, tx_bytes=tx, rx_bytes=rx, remote_port=80 << 8, flags=flags)


def removal(cookie: int = 9, rx: int = 8) -> FakeSocket:
    info = {TcpInfo.BYTES_SENT: 70, TcpInfo.BYTES_ACKED: 71, TcpInfo.BYTES_RECEIVED: rx, TcpInfo.DATA_SEGS_IN: 1}
    return FakeSocket(cookie, remote=REMOTE, info={**info, TcpInfo.MIN_RTT: 14, TcpInfo.SEGS_OUT: 3})


def end(kernel: Programs, cookie: int = 9, rx: int = 8) -> list[Any]:
    kernel.feed(removal(cookie, rx).message(final=True), 1)
    return kernel.run()


def test_a_connection_is_announced_without_a_poll():
    kernel = started()
    (added,) = flow_events(connect(kernel))[:1]
    assert isinstance(added, FlowAdded)
    assert (added.flow.local.port, added.flow.remote.port) == (40000, 80)
    assert added.flow.direction is Direction.OUTBOUND
    assert (added.flow.process.pid, added.flow.process.name) == (5, "curl")
    assert [e.flow.process.path for e in kernel.events if isinstance(e, FlowUpdated)] == ["/bin/p5"]


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


@pytest.mark.parametrize("first", ["record", "removal"])
def test_the_end_is_reported_once_with_what_both_know(first):
    """The record knows the FIN, the removal the smallest round trip."""
    kernel = started()
    connect(kernel)
    steps = [lambda: kernel.ring(closed()), lambda: end(kernel)]
    for step in steps if first == "record" else reversed(steps):
        step()
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert removed.final
    assert (removed.counts.tx_bytes, removed.counts.rx_bytes, removed.counts.min_rtt_us) == (70, 7, 14)


def test_a_listener_ends_with_its_removal():
    """No record of its end is waited for."""
    kernel = started()
    kernel.sockets[4] = FakeSocket(4, bytes(4), 80, bytes(4), 0, state=SocketState.LISTEN)
    kernel.poll()
    kernel.close(4)
    (removed,) = kernel.run()
    assert (type(removed), removed.flow.direction) == (FlowRemoved, Direction.LISTENER)


def test_a_record_alone_ends_a_flow_soon_and_its_late_removal_says_nothing():
    """A connection that was reset may keep its descriptor for long."""
    kernel = started()
    connect(kernel)
    assert not [e for e in kernel.ring(closed(fin=False)) if isinstance(e, FlowRemoved)]
    (removed,) = flow_events(kernel.wait(0.1))
    assert (removed.final, removed.counts.tx_bytes, removed.counts.rx_bytes) == (True, 70, 8)
    assert flow_events([*end(kernel), *kernel.wait(1.0), *kernel.wait(1.0)]) == []


def test_a_removal_alone_ends_a_flow_and_its_late_record_says_nothing():
    kernel = started()
    connect(kernel)
    assert flow_events(end(kernel)) == []
    assert flow_events(kernel.wait(1.0)) == []  # no record; the other end is on this machine, and may say more
    (removed,) = flow_events(kernel.wait(1.0))
    assert removed.counts.tx_bytes == 70
    assert flow_events(kernel.ring(closed())) == []


def test_a_listener_that_was_removed_is_no_new_flow_by_what_its_socket_did_before():
    kernel = started()
    kernel.sockets[9] = FakeSocket(9, remote=bytes(4), remote_port=0, state=SocketState.LISTEN)
    kernel.poll()
    kernel.close(9)
    kernel.ring(record(Kind.OPENED, 9, pid=5, **PORTS), closed())
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


def test_a_record_that_comes_behind_two_lists_of_counts_without_its_socket_says_nothing():
    """The lists are newer than the record, and end the flow whose removal waits for it."""
    kernel = started()
    kernel.ring(datagram_record(Kind.FIRST_IO, 3, pid=5, flags=BORN, **PORTS))
    kernel.feed(FakeSocket(3, remote=REMOTE, protocol=17).message(final=True), 1)
    for lost in range(1, 4):
        kernel.lost = kernel.lost._replace(ring_full=lost)
        kernel.poll()
    kernel.ring(datagram_record(Kind.RELEASED, 3, flags=BORN, **PORTS))
    assert [type(e) for e in flow_events(kernel.events) if not isinstance(e, FlowUpdated)] == [FlowAdded, FlowRemoved]


def test_a_record_ends_a_flow_whose_removal_was_lost_and_a_poll_does_not_end_it_again():
    kernel = started()
    connect(kernel)
    kernel.poll()
    kernel.sockets.clear()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    events = [*kernel.ring(closed(fin=False)), *kernel.poll(), *kernel.wait(1.0), *kernel.wait(1.0)]
    (removed,) = [event for event in events if isinstance(event, FlowRemoved)]
    assert (removed.final, removed.reason, removed.counts.tx_bytes) == (True, RemovalReason.CLOSED, 70)


def test_an_aborted_connection_keeps_its_counts():
    """``SO_LINGER`` with time 0 clears them in the kernel, after the record."""
    kernel = started()
    connect(kernel)
    kernel.ring(closed(fin=False))
    sock = FakeSocket(9, remote=REMOTE, remote_port=0, unacked=100)
    kernel.feed(sock.message(final=True), 1)
    (removed,) = [e for e in kernel.run() if isinstance(e, FlowRemoved)]
    assert (removed.final, removed.counts.tx_bytes, removed.counts.rx_bytes) == (True, 70, 8)
    assert (removed.flow.remote.port, removed.flow.outcome) == (80, Outcome.RESET_HERE)


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


def test_an_accepted_connection_waits_for_who_uses_it():
    kernel = started()
    assert flow_events(kernel.ring(record(Kind.ACCEPTED, 8, **PORTS))) == []
    (added, *_) = flow_events(kernel.ring(record(Kind.FIRST_IO, 8, pid=6, **PORTS)))
    assert (added.flow.direction, added.flow.process.pid) == (Direction.INBOUND, 6)
    kernel.ring(record(Kind.ACCEPTED, 7, **PORTS))
    (alone,) = flow_events(kernel.wait(0.3))
    assert alone.flow.process is None


def test_who_uses_a_socket_outweighs_who_holds_it():
    kernel = started()
    connect(kernel)
    kernel.owners.update({4: 99, 1: 5})
    kernel.shared.add((4, 5))
    kernel.sockets[9] = attrs.evolve(removal(), inode=4)
    kernel.poll()
    assert {e.flow.process.pid for e in flow_events(kernel.events)} == {5}
    kernel.shared.clear()
    kernel.now += 1.0
    kernel.poll()
    assert flow_events(kernel.events)[-1].flow.process.pid == 99, "who does not hold it any more uses it no more"


def test_datagrams_are_counted_at_polls_and_to_the_end():
    kernel = started()
    sock = datagram_record(Kind.FIRST_IO, 3, pid=5, flags=BORN, **PORTS)
    (added, *_) = flow_events(kernel.ring(sock))
    assert (added.counts.tx_bytes, added.counts.tx_packets) == (0, 0)
    kernel.sockets[3] = FakeSocket(3, remote=REMOTE, protocol=17, inode=2)
    for total in (500, 700):
        kernel.flows[3] = flow_row(sock, tx_bytes=total, tx_calls=1, tx_payload=total, tx_packets=total // 100)
        kernel.poll()
    kernel.sockets.clear()
    released = datagram_record(
        Kind.RELEASED, 3, flags=BORN, tx_bytes=710, tx_calls=2, tx_payload=710, tx_packets=8, **PORTS
    )
    kernel.ring(released)
    kernel.feed(FakeSocket(3, remote=REMOTE, protocol=17).message(final=True), 1)
    kernel.run()
    assert [e.delta.tx_bytes for e in kernel.events if isinstance(e, FlowUpdated) and e.delta.tx_bytes] == [500, 200]
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.final, removed.counts.tx_bytes, removed.counts.tx_packets) == (True, 710, 8)


@pytest.mark.parametrize("extra", [{}, {DiagAttribute.MARK: b"\7\0\0\0"}])
def test_a_dump_that_adds_an_inode_to_what_a_record_said_is_no_update(extra):
    """What else it has is: another remote, and whatever comes later."""
    kernel = started()
    for cookie in (3, 4, 5):
        kernel.ring(datagram_record(Kind.FIRST_IO, cookie, pid=5, flags=BORN, uid=1000, **PORTS))
        kernel.sockets[cookie] = FakeSocket(cookie, remote=REMOTE, protocol=17, inode=0 if extra else 77, extra=extra)
    kernel.sockets[4].remote_port = 81
    kernel.sockets[5].state = SocketState.CLOSE
    assert {event.flow.id for event in flow_events(kernel.poll())} == {"c4", "c5"}
    if extra:
        for sock in kernel.sockets.values():
            sock.inode = sock.cookie
        assert flow_events(kernel.poll()) == []
    kernel.sockets[3].inode = 9
    (updated,) = flow_events(kernel.poll())
    assert (updated.flow.id, updated.details.inode) == ("c3", 9)


def test_a_dump_tells_the_cgroup_and_the_details_that_a_record_does_not_have():
    kernel = started()
    kernel.cgroups[55] = CgroupFacts(55, "/system.slice/a.service")
    sock = datagram_record(Kind.FIRST_IO, 3, pid=5, flags=BORN, **PORTS)
    kernel.ring(sock)
    kernel.flows[3] = flow_row(sock, tx_bytes=500, tx_calls=1)
    kernel.poll()
    kernel.sockets[3] = FakeSocket(3, remote=REMOTE, remote_port=81, protocol=17, inode=2, cgroup=55)
    events = flow_events([*kernel.poll(), *kernel.poll()])
    assert {event.details.inode for event in events} == {2}
    assert (events[-1].flow.cgroup, events[-1].counts.tx_bytes) == ("/system.slice/a.service", 500)


def test_a_row_of_a_flow_that_waits_for_its_user_announces_nothing():
    kernel = started()
    kernel.ring(record(Kind.ACCEPTED, 8, **PORTS))
    kernel.sockets[8] = FakeSocket(8, remote=REMOTE, info={TcpInfo.SEGS_IN: 1})
    assert flow_events(kernel.poll()) == []
    (added, *_) = flow_events(kernel.ring(record(Kind.FIRST_IO, 8, pid=6, **PORTS)))
    assert (type(added), added.flow.process.pid) == (FlowAdded, 6)


@pytest.mark.parametrize(("again", "outcome"), [(2, Outcome.TIMED_OUT), (0, Outcome.REFUSED)])
def test_a_record_says_how_often_an_attempt_was_sent_again_that_the_kernel_forgot(again, outcome):
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.ring(record(Kind.CLOSED, 9, remote_port=80 << 8, tx_payload=again, old=2))
    kernel.feed(attrs.evolve(removal(), remote_port=0, unacked=3, info={}).message(final=True), 1)
    (removed,) = [e for e in kernel.run() if isinstance(e, FlowRemoved)]
    assert removed.flow.outcome is outcome


def test_what_programs_can_tell_is_said():
    """The kernel itself counts no datagrams, and does not tell whose a short flow was."""
    datagrams = "UDP sockets that were there before the monitor are counted from its start on"
    uncounted, short = (
        "the kernel keeps no byte counters of UDP sockets",
        "a flow that began and ended between two polls has no process",
    )
    for options, counts, seen, notes in (
        ({}, True, Visibility.ALL, (datagrams,)),
        ({"providers": "tcp"}, False, Visibility.ALL, ()),
        ({"granted": attrs.evolve(GRANTED, processes_trusted=False)}, True, Visibility.UNKNOWN, (datagrams, short)),
        ({"granted": attrs.evolve(GRANTED, owners=False)}, True, Visibility.UNKNOWN, (datagrams,)),
        ({"granted": attrs.evolve(GRANTED, tier=Tier.TCP)}, False, Visibility.ALL, (uncounted, short)),
        ({"mode": Ebpf.OFF}, False, Visibility.UNKNOWN, (uncounted, short)),
    ):
        able = started(**options).session.capabilities
        told = tuple(note for note in able.notes if "looks for short flows" not in note)
        assert (able.udp_counts, able.processes, told) == (counts, seen, notes), options


@pytest.mark.parametrize("waited", [0.3, 0.0])
@pytest.mark.parametrize("port", [80, 0], ids=["known", "forgotten"])
def test_a_removal_says_where_an_end_is_that_no_dump_had(port, waited):
    """An attempt has no local port when its record is written; of one that failed the kernel forgets the remote one."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.wait(waited)
    kernel.feed(attrs.evolve(removal(), remote_port=port).message(final=True), 1)
    events = flow_events([*kernel.run(), *kernel.wait(1.0), *kernel.wait(1.0)])
    assert isinstance(kernel.events[0], FlowAdded)
    assert str(kernel.events[0].flow.local) == f"127.0.0.1:{0 if waited else 40000}"
    assert (str(events[-1].flow.local), str(events[-1].flow.remote)) == ("127.0.0.1:40000", "127.0.0.2:80")


def test_without_the_end_its_counts_are_taken():
    """In the tier ``calls`` the removal is the end."""
    kernel = started(granted=attrs.evolve(GRANTED, tier=Tier.CALLS, births=False))
    sock = datagram_record(Kind.FIRST_IO, 3, pid=5, **PORTS)
    kernel.ring(sock)
    kernel.flows[3] = flow_row(sock, tx_bytes=40, tx_calls=1)
    kernel.feed(FakeSocket(3, remote=REMOTE, protocol=17).message(final=True), 1)
    (removed,) = flow_events(kernel.run())
    assert (removed.final, removed.counts.tx_bytes, removed.counts.tx_packets) == (True, 40, None)
    kernel.feed(FakeSocket(4, local_port=7, protocol=17).message(final=True), 1)
    assert kinds(flow_events(kernel.run())) == ["FlowAdded", "FlowRemoved"]  # nothing was counted: it does not wait


@pytest.mark.parametrize(("known", "walks"), [(True, 1), (False, 2)])
def test_what_proc_does_not_show_is_named_by_a_walk_of_the_second_poll(known, walks):
    """The first walk is over before a dump knows the sockets that it has."""
    kernel = Programs()
    kernel.sockets[1] = FakeSocket(1, inode=1)
    if known:
        kernel.owners[1] = 42
    kernel.start()
    kernel.poll()
    assert kernel.asked.count(Operation.OWNERS) == walks


def test_losses_are_said_and_repaired():
    kernel = started()
    kernel.lost = kernel.lost._replace(ring_full=3)
    kernel.asked.clear()
    polled = kernel.poll()
    assert [(e.count, e.detail) for e in polled if isinstance(e, EventsLost)] == [(3, "eBPF: ring full")]
    assert kernel.asked.count(Operation.OWNERS) == 1
    assert "PollCompleted" in kinds(kernel.wait(0.3))  # the dump that tells of connections
    kernel.poll()
    assert kernel.asked.count(Operation.FLOWS) == 2  # two whole lists tell which ends were lost


def test_where_nothing_moved_the_maps_rest():
    """Only what may have changed is asked for: single sockets where they are few, all of them now and then."""
    kernel = started()
    kernel.ring(datagram_record(Kind.FIRST_IO, 7, pid=5, **PORTS))
    kernel.lost = kernel.lost._replace(moved=0)
    kernel.asked.clear()
    kernel.poll()
    assert kernel.asked == [Operation.STATISTICS]
    kernel.lost = kernel.lost._replace(moved=1)
    kernel.poll()
    assert kernel.asked[1:] == [Operation.STATISTICS, Operation.LOOK]
    kernel.ring(*(datagram_record(Kind.FIRST_IO, number, pid=5, **PORTS) for number in range(8, 8 + 64)))
    kernel.poll()
    assert kernel.asked[3:] == [Operation.STATISTICS, Operation.FLOWS]
    kernel.lost = kernel.lost._replace(moved=0)
    kernel.wait(61)
    kernel.asked.clear()
    kernel.poll()
    assert kernel.asked == [Operation.STATISTICS, Operation.OWNERS, Operation.FLOWS]
    assert not [e for e in kernel.poll() if isinstance(e, EventsLost)]


def test_maps_that_do_not_answer_hold_up_no_poll():
    kernel = started()
    kernel.maps_are_silent = True
    assert "PollCompleted" not in kinds(kernel.poll())
    assert "PollCompleted" in kinds(kernel.wait(1.1))


def test_a_ring_that_fails_leaves_sock_diag():
    kernel = started()
    connect(kernel)
    kernel.recorded.channel_failed(RING, 5, kernel.now)
    kernel.run()
    assert kernel.session.capabilities.ebpf == "none"
    assert any("not used any more" in note for note in kernel.session.capabilities.notes)
    (removed,) = flow_events(end(kernel, rx=0))
    assert removed.counts.tx_bytes == 70


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (AttachAnswer(reason=UnavailableReason.PERMISSION, detail="needs CAP_BPF"), "needs CAP_BPF"),
        (LookupFailed("no thread"), "no thread"),
    ],
)
def test_what_is_refused_is_said_and_required_or_not(answer, text):
    kernel = started(granted=answer)
    assert text in kernel.session.capabilities.ebpf_reason
    assert not kernel.session.capabilities.udp_counts
    kernel.poll()
    assert kernel.asked == []
    required = started(granted=answer, mode=Ebpf.REQUIRE)
    assert text in str(required.session.failure)


action = st.one_of(
    st.tuples(
        st.just("record"),
        st.sampled_from(list(Kind)),
        st.integers(1, 4),
        st.booleans(),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.tuples(st.just("other"), st.integers(1, 4), st.sampled_from(("raw", "icmp", "packet")), st.booleans()),
    st.tuples(st.just("table"), st.integers(1, 4), st.sampled_from(("raw", "icmp6", "packet"))),
    st.tuples(st.just("no table"), st.integers(1, 4)),
    st.tuples(st.just("removal"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("row"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("counts"), st.integers(1, 4), st.integers(0, 1000)),
    st.tuples(st.just("lost"), st.integers(0, 2)),
    st.tuples(st.just("garbage"), st.sampled_from((RING, MAPS)), st.binary(max_size=300)),
    st.tuples(st.just("failed"), st.sampled_from((RING, MAPS))),
    st.tuples(st.just("silent"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.06, 0.3, 1.1))),
    st.tuples(st.just("poll")),
)


def act(kernel: Programs, name: str, *rest: Any) -> None:
    if name == "record":
        kind, cookie, tcp, pid, ported = rest
        make = record if tcp else datagram_record
        kernel.ring(make(kind, cookie, time=round(kernel.now * 1e9), pid=pid, **(PORTS if ported else {})))
    elif name == "other":
        sock = datagram_record(Kind.FIRST_IO, rest[0], pid=5, **OTHERS[rest[1]])
        kernel.ring(sock)
        if rest[2]:
            kernel.held_sockets.append(owner_row(sock, rest[0]))
    elif name == "table":
        kernel.tables.append(TableRow(rest[1], rest[0], 0, local=bytes(4), port=1))
    elif name == "no table":
        kernel.tables = [row for row in kernel.tables if row.inode != rest[0]]
    elif name == "removal":
        kernel.feed(FakeSocket(rest[0], remote=REMOTE, protocol=6 if rest[1] else 17).message(final=True), 1)
        kernel.sockets.pop(rest[0], None)
    elif name == "row":
        kernel.sockets[rest[0]] = FakeSocket(rest[0], remote=REMOTE, protocol=6 if rest[1] else 17, inode=rest[0])
    elif name == "counts":
        kernel.flows[rest[0]] = flow_row(datagram_record(Kind.FIRST_IO, rest[0], **PORTS), tx_bytes=rest[1])
    elif name == "lost":
        kernel.lost = kernel.lost._replace(ring_full=kernel.lost.ring_full + rest[0])
    elif name == "garbage":
        kernel.feed(rest[1], rest[0])
    elif name == "failed":
        kernel.recorded.channel_failed(rest[0], 5, kernel.now)
    elif name == "silent":
        kernel.maps_are_silent = rest[0]
    elif name == "wait":
        kernel.wait(rest[0])
    else:
        kernel.poll()
    kernel.run()


@settings(common, max_examples=examples(80))
@given(
    granted=st.sampled_from((GRANTED, attrs.evolve(GRANTED, tier=Tier.CALLS, births=False, owners=False))),
    script=st.lists(action, max_size=30),
)
def test_whatever_comes_flows_begin_and_end_once_and_the_replay_is_the_run(granted, script):
    kernel = Programs(granted=granted, providers=PROVIDERS)
    kernel.start()
    for step in script:
        act(kernel, *step)
    open_flows: set[str] = set()
    for event in flow_events(kernel.events):
        if isinstance(event, FlowAdded):
            assert event.flow.id not in open_flows
            open_flows.add(event.flow.id)
        else:
            assert event.flow.id in open_flows
        if isinstance(event, FlowRemoved):
            open_flows.discard(event.flow.id)
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


# -- namespaces that are not known yet

BLUE = FoundNamespace(1, NetworkNamespace("blue", device=4, inode=11), 99)


def record_of_blue(kernel: Programs, *records: Any) -> list[Any]:
    kernel.feed(encode(*(attrs_of(each)._replace(net_cookie=99) for each in records)), RING)
    return kernel.run()


def beginning(cookie: int = 9) -> tuple[Any, Any]:
    opened = record(Kind.OPENED, cookie, pid=5, remote_port=80 << 8)
    return opened, record(Kind.ESTABLISHED, cookie, pid=5, **PORTS)


def test_what_was_seen_in_a_namespace_before_it_was_found_counts():
    kernel = Programs(everywhere=True)
    kernel.start()
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    event = flow_events(record_of_blue(kernel, *beginning()))[0]
    assert isinstance(event, FlowAdded)
    assert (event.flow.namespace, event.flow.process.pid, event.flow.direction) == ("blue", 5, Direction.OUTBOUND)
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


def test_a_flow_that_ended_before_its_namespace_was_found_is_told():
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning(), closed())
    kernel.wait(1.0)
    events = [e for e in flow_events(kernel.events) if not isinstance(e, FlowUpdated)]
    assert kinds(events) == ["FlowAdded", "FlowRemoved"]
    assert events[-1].flow.process.pid == 5
    assert (events[-1].counts.tx_bytes, events[-1].final) == (70, True)


def test_what_is_old_or_of_another_namespace_is_not_taken():
    kernel = started(everywhere=True)
    kernel.came_and_went = [*[NamespacesAnswer()] * MOST_LOOKS, NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning())
    kernel.wait(HELD_SECONDS + 0.5)
    kernel.feed(encode(attrs_of(record(Kind.OPENED, 10, pid=6, remote_port=80 << 8))._replace(net_cookie=98)), RING)
    kernel.run()
    assert not flow_events(kernel.events)
    assert BLUE.cookie in kernel.session._sightings.books


# -- namespaces that are watched without being entered


def strange(kernel: Programs, *answers: NamespacesAnswer) -> None:
    kernel.came_and_went = [*answers, NamespacesAnswer(whole=True), NamespacesAnswer(whole=True)]


def test_a_namespace_that_two_whole_rounds_do_not_find_is_watched_from_outside():
    kernel = Programs(everywhere=True)
    kernel.start()
    strange(kernel, NamespacesAnswer())
    record_of_blue(kernel, *beginning())
    added = flow_events(kernel.events)[0]
    assert (added.flow.namespace, added.flow.process.pid, added.counts.tx_bytes) == ("net:99", 5, None)
    record_of_blue(kernel, closed())
    kernel.wait(1.0)
    removed = flow_events(kernel.events)[-1]
    assert (removed.flow.id, removed.counts.tx_bytes, removed.final) == (added.flow.id, 70, True)
    assert not [e for e in kernel.events if isinstance(e, PollCompleted) and not e.complete]
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


def test_one_that_may_not_be_entered_is_watched_at_once_under_its_name_and_told():
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer(closed=1, names=((4026, "blue"),))]
    opened, established = beginning()
    record_of_blue(kernel, opened._replace(netns=4026), established._replace(netns=4026))
    assert flow_events(kernel.events)[0].flow.namespace == "blue"
    assert any("1 network namespaces cannot be entered" in note for note in kernel.session.capabilities.notes)


@pytest.mark.parametrize("gone", [False, True])
def test_a_walk_tells_of_what_was_there_and_two_of_what_is_there_no_more(gone):
    """Whether or not their processes are there by now."""
    kernel = started(everywhere=True)
    kernel.processes_are_gone = gone
    strange(kernel)
    sockets = (
        record(Kind.OPENED, 1, pid=7, local_port=9, remote_port=80 << 8),
        record(Kind.OPENED, 2, pid=7, local_port=9, remote=bytes(16)),
    )
    states = (SocketState.ESTABLISHED, SocketState.LISTEN)
    held = [owner_row(each, 71)._replace(net_cookie=99, new=state) for each, state in zip(sockets, states, strict=True)]
    kernel.held_sockets = held
    kernel.wait(61.0)
    kernel.poll()
    kernel.wait(1.0)
    added = [e for e in flow_events(kernel.events) if isinstance(e, FlowAdded)]
    assert [(e.flow.state, e.preexisting, e.flow.process.pid) for e in added] == [
        (TcpState.ESTABLISHED, True, 7),
        (TcpState.LISTEN, True, 7),
    ]
    kernel.held_sockets = held[1:]
    for _ in range(2):
        assert not [e for e in kernel.events if isinstance(e, FlowRemoved)]
        kernel.wait(61.0)
        kernel.poll()
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.flow.id, removed.reason, removed.final) == (added[0].flow.id, RemovalReason.GONE, False)
    for kernel.held_sockets in ([], held[1:], []):
        kernel.wait(61.0)
        kernel.poll()
    assert [e for e in kernel.events if isinstance(e, FlowRemoved)] == [removed], "not twice in a row"


def test_a_namespace_that_is_found_after_all_is_entered_and_its_flows_begin_anew():
    kernel = started(everywhere=True)
    strange(kernel)
    record_of_blue(kernel, *beginning())
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.poll()
    removed = flow_events(kernel.events)[-1]
    assert isinstance(removed, FlowRemoved)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)
    assert kernel.session._sightings.books[BLUE.cookie].dumped


def test_an_end_that_waits_while_its_namespace_is_let_go_is_reported_once_and_exactly():
    kernel = started(everywhere=True)
    strange(kernel)
    record_of_blue(kernel, *beginning(), closed())
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.poll()
    kernel.wait(1.0)
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.counts.tx_bytes, removed.final) == (70, True)


def test_a_removal_that_waits_while_its_namespace_is_let_go_ends_the_flow():
    """Nobody answers what would be asked in it."""
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning())
    kernel.feed(removal().message(final=True), 4 + 1)
    kernel.run()
    kernel.came_and_went = [NamespacesAnswer(gone=(1,))]
    kernel.poll()
    kernel.wait(5.0)
    assert [type(e) for e in flow_events(kernel.events)].count(FlowRemoved) == 1


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
    kernel.ring(record(Kind.CLOSED, 9, pid=5, tx_bytes=1, **ends[0]))
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


def test_an_earlier_connection_of_a_socket_that_was_reported_already_is_said_to_be_lost():
    """Its later one has the socket's first number."""
    kernel = started()
    kernel.sockets[9] = FakeSocket(9, local_port=40001)
    kernel.poll()
    kernel.ring(record(Kind.CLOSED, 9, local_port=40000, remote_port=81 << 8, tx_bytes=1))
    assert [e.flow.id for e in flow_events(kernel.events)] == ["c9"]
    assert [(e.cause, e.count) for e in kernel.events if isinstance(e, EventsLost)] == [(LossCause.GOODBYE, 1)]


def test_namespaces_that_are_watched_from_outside_are_bounded_and_let_go_when_they_are_empty(monkeypatch):
    """Then there is room for others."""
    monkeypatch.setattr(_glimpses, "MOST", most := 3)
    kernel = started(everywhere=True)
    for cookie in range(most + 2):
        strange(kernel)
        kernel.feed(
            encode(*(attrs_of(each)._replace(net_cookie=1000 + cookie) for each in beginning(cookie + 1))), RING
        )
        kernel.run()
    assert kernel.session.statistics()["namespaces"] == 1 + most
    assert {flow.namespace for flow, _ in kernel.session.flows()} == {f"net:{1000 + cookie}" for cookie in range(most)}
    for cookie in range(most):
        kernel.feed(encode(attrs_of(closed(cookie + 1))._replace(net_cookie=1000 + cookie)), RING)
    kernel.wait(1.0)
    watched = []
    for _ in range(2):
        kernel.came_and_went = []
        kernel.poll()
        watched.append(kernel.session.statistics()["namespaces"])
    assert watched == [1, 1 + 2]
    assert {flow.namespace for flow, _ in kernel.session.flows()} == {f"net:{1000 + most}", f"net:{1001 + most}"}


def test_of_namespaces_that_are_watched_from_outside_one_that_is_empty_takes_no_other_along():
    kernel = started(everywhere=True)
    for cookie in (1, 2):
        strange(kernel)
        kernel.feed(encode(*(attrs_of(each)._replace(net_cookie=1000 + cookie) for each in beginning(cookie))), RING)
        kernel.run()
    kernel.feed(encode(attrs_of(closed(1))._replace(net_cookie=1001)), RING)
    kernel.wait(1.0)
    for _ in range(3):
        kernel.came_and_went = []
        kernel.poll()
    assert [flow.namespace for flow, _ in kernel.session.flows()] == ["net:1002"]


def test_what_is_held_of_unknown_namespaces_is_bounded():
    kernel = started(everywhere=True)
    for cookie in range(MOST_HELD):
        record_of_blue(kernel, *beginning(cookie + 1))
    assert len(kernel.session._sightings._held) == MOST_HELD


def test_nothing_is_held_where_other_namespaces_are_not_wanted():
    kernel = started()
    record_of_blue(kernel, *beginning())
    assert not kernel.session._sightings._held
