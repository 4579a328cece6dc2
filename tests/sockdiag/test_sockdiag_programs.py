"""eBPF records and maps in the book, without a kernel: the life of a flow, whatever comes first."""

from __future__ import annotations

import errno

import attrs
import pytest
from ebpf_records import datagram_record, record
from programs_fakes import (
    BORN,
    GRANTED,
    MAPS,
    PORTS,
    REMOTE,
    Programs,
    closed,
    connect,
    end,
    flow_row,
    owner_row,
    removal,
    started,
)
from sockdiag_fakes import FakeSocket, flow_events, kinds, removals

from nstat_async import FlowAdded, FlowRemoved, FlowUpdated, RemovalReason
from nstat_async._model import Direction, Outcome, TcpState, Visibility
from nstat_async._options import Ebpf
from nstat_async.ebpf import FLOW, OWNER, Flag, FlowRow, Kind, Operation, Tier, encode_answer
from nstat_async.sockdiag import CgroupFacts, DiagAttribute, TcpInfo
from nstat_async.sockdiag._constants import SocketState
from nstat_async.sockdiag._program_evidence import RECORD_PATIENCE, REMOVAL_PATIENCE
from nstat_async.sockdiag._programs import WALK_SECONDS


def test_a_connection_is_announced_without_a_poll():
    kernel = started()
    (added,) = flow_events(connect(kernel))[:1]
    assert isinstance(added, FlowAdded)
    assert (added.flow.local.port, added.flow.remote.port) == (40000, 80)
    assert added.flow.direction is Direction.OUTBOUND
    assert (added.flow.process.pid, added.flow.process.name) == (5, "curl")
    assert [e.flow.process.path for e in kernel.events if isinstance(e, FlowUpdated)] == ["/bin/p5"]


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


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)], ids=str)
def test_an_aborted_connection_keeps_its_counts_and_its_ends_whatever_comes_first(order):
    """``SO_LINGER`` with time 0 clears them in the kernel, after the record: some of its ends, too."""
    kernel = started()
    steps = (
        lambda: connect(kernel),
        lambda: kernel.ring(closed(fin=False)),
        lambda: kernel.feed(FakeSocket(9, bytes(4), remote=REMOTE, remote_port=0, unacked=100).message(final=True), 1),
    )
    for place in order:
        steps[place]()
    kernel.run()
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.final, removed.counts.tx_bytes, removed.counts.rx_bytes) == (True, 70, 8)
    assert (removed.flow.outcome, removed.flow.direction) == (Outcome.RESET_HERE, Direction.OUTBOUND)
    assert (str(removed.flow.local), str(removed.flow.remote)) == ("127.0.0.1:40000", "127.0.0.2:80")
    assert removed.flow.process.pid == 5


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


@pytest.mark.parametrize("removed_first", [False, True])
def test_a_datagram_socket_that_was_bound_and_never_used_has_its_process_and_no_bytes(removed_first):
    """The record of its end does not know where it was bound, its removal does not know whose it is; neither waits for more."""
    kernel = started()
    release = datagram_record(Kind.RELEASED, 3, pid=5, flags=BORN | Flag.BY_CREATOR)
    for step in (removed_first, not removed_first):
        if step:
            kernel.feed(FakeSocket(3, remote_port=0, remote=bytes(4), protocol=17).message(final=True), 1)
            kernel.run()
        else:
            kernel.ring(release)
    added, removed = flow_events(kernel.events)
    assert (removed.flow.process.pid, removed.counts.tx_bytes, removed.counts.rx_bytes, removed.final) == (
        5,
        0,
        0,
        True,
    )
    assert (added.flow.local.port, added.flow.attribution) == (40000, None)
    assert flow_events(kernel.ring(release)) == []


@pytest.mark.parametrize("removed_first", [False, True])
def test_a_listener_between_two_polls_has_the_process_that_began_to_listen(removed_first):
    """It is announced as it begins; who holds it outweighs who began: ``init`` does that for its services."""
    kernel = started()
    flags = Flag.HAS_PROCESS | Flag.BY_CREATOR
    ports = {"local_port": 40000, "remote": bytes(16)}
    listens = record(Kind.FIRST_IO, 3, pid=5, old=7, new=10, flags=flags, **ports)
    there = FakeSocket(3, state=SocketState.LISTEN, remote=bytes(4), remote_port=0, inode=3)
    if not removed_first:
        kernel.session._owners.rounds = 9
        (added, *_) = flow_events(kernel.ring(listens))
        (entry,) = kernel.session._entries()
        assert not kernel.session._owners.is_alone(entry), "no table was searched for it"
        assert (added.flow.process.pid, added.flow.state, added.flow.direction) == (
            5,
            TcpState.LISTEN,
            Direction.LISTENER,
        )
        kernel.sockets[3], kernel.owners[3] = there, 42
        kernel.poll()
        assert [flow.process.pid for flow, _ in kernel.session.flows()] == [42]
    kernel.sockets.clear()
    kernel.feed(attrs.evolve(there, info={TcpInfo.BYTES_SENT: 0}).message(final=True), 1)
    kernel.run()
    if removed_first:
        kernel.ring(listens)
        kernel.wait(1.0)
    removed = flow_events(kernel.events)[-1]
    assert (type(removed), removed.final) == (FlowRemoved, True)
    assert removed.flow.process.pid == (5 if removed_first else 42)


def test_a_listener_that_no_dump_had_listens_no_more_when_it_was_removed():
    kernel = started()
    flags = Flag.HAS_PROCESS | Flag.BY_CREATOR
    kernel.ring(record(Kind.FIRST_IO, 3, pid=5, old=7, new=10, flags=flags, local_port=40000, remote=bytes(16)))
    (book,) = (namespace.book for namespace in kernel.session._namespaces)
    assert [*book.listeners.by_port.values()] != []
    kernel.feed(FakeSocket(3, remote=bytes(4), remote_port=0, info={TcpInfo.BYTES_SENT: 0}).message(final=True), 1)
    kernel.run()
    assert kinds(flow_events(kernel.events))[-1] == "FlowRemoved"
    assert [*book.listeners.by_port.values()] == []


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
    datagrams = "UDP sockets that are older than the monitor are counted from its start on"
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


def test_a_record_waits_for_its_removal_while_removals_are_unread():
    """Its own may be among them: nothing else says where the connection began whose record of that was lost."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), closed())
    kernel.feed(removal(8).message(final=True), 1)
    kernel.now += 2 * REMOVAL_PATIENCE
    kernel.session.handle_deadline(kernel.now)
    assert not removals(kernel.run())
    kernel.feed(removal(9).message(final=True), 1)
    (removed,) = removals(kernel.wait(0.0))
    assert (str(removed.flow.local), removed.counts.rx_bytes) == ("127.0.0.1:40000", 7)


@pytest.mark.parametrize("then", ["drained", "refused"])
def test_a_record_waits_no_longer_than_that_for_a_removal_when_all_are_read(then):
    kernel = started()
    kernel.feed(removal(8).message(final=True), 1)
    if then == "refused":
        kernel.session.channel_failed(1, errno.EPERM, kernel.now)
    else:
        kernel.session.channel_drained(1, kernel.now)
    connect(kernel)
    kernel.ring(closed())
    kernel.now += 2 * REMOVAL_PATIENCE
    kernel.session.handle_deadline(kernel.now)
    assert [e.flow.id for e in removals(kernel.run())] == ["c9"]


@pytest.mark.parametrize(("known", "walks"), [(True, 1), (False, 2)])
def test_what_proc_does_not_show_is_named_by_a_walk_of_the_second_poll(known, walks):
    """The first walk is over before a dump knows the sockets that it has; a note says of how many even this finds nobody."""
    kernel = Programs()
    kernel.sockets[1] = FakeSocket(1, inode=1)
    if known:
        kernel.owners[1] = 42
    kernel.start()
    kernel.poll()
    assert kernel.asked.count(Operation.OWNERS) == walks
    notes = [note for note in kernel.session.capabilities.notes if "whose process cannot be found: 1 " in note]
    assert len(notes) == (not known)
    kernel.held_sockets = [owner_row(record(Kind.OPENED, 1, pid=7, **PORTS), inode=1)]
    kernel.wait(2 * WALK_SECONDS)
    kernel.poll()
    assert all(flow.process is not None for flow, _ in kernel.session.flows())
    assert not any("no process" in note for note in kernel.session.capabilities.notes), "a walk named it"


def walk_over(kernel: Programs, *pids: int) -> int:
    """A walk finds these processes, in this order, with the socket; the owner afterwards. The lower a pid, the older."""
    kernel.held_sockets = [owner_row(record(Kind.OPENED, 1, pid=pid, **PORTS), inode=1) for pid in pids]
    kernel.wait(2 * WALK_SECONDS)
    kernel.poll()
    ((flow, _),) = kernel.session.flows()
    return flow.process.pid


def test_the_holder_that_a_search_found_stays_whoever_else_has_the_socket():
    """A worker that inherited a listener does not own it; whether the owner still has it is checked in its descriptors."""
    kernel = Programs()
    kernel.sockets[1] = FakeSocket(1, inode=1)
    kernel.owners[1] = 42
    kernel.start()
    assert walk_over(kernel, 42, 43, 44) == 42
    assert walk_over(kernel, 1, 41) == 42
    assert {event.flow.process.pid for event in flow_events(kernel.events)} == {42}


def test_the_process_that_was_seen_using_a_socket_outweighs_an_older_holder():
    kernel = Programs()
    kernel.sockets[1] = FakeSocket(1, inode=1)
    kernel.start()
    kernel.ring(record(Kind.FIRST_IO, 1, pid=9, **PORTS))
    assert walk_over(kernel, 7, 8) == 9


@pytest.mark.parametrize(
    ("pids", "owner"), [((7, 8, 9), 7), ((9, 7, 8), 7), ((1, 8, 9), 8), ((9, 1), 9), ((1,), 1)], ids=str
)
def test_of_the_holders_that_only_a_walk_finds_the_oldest_is_the_owner(pids, owner):
    """``init`` keeps listeners for its services. The next walk may find others, because a descriptor was handed on."""
    kernel = Programs()
    kernel.sockets[1] = FakeSocket(1, inode=1)
    kernel.start()
    assert walk_over(kernel, *pids) == owner
    assert walk_over(kernel, 20, 21) == 20


def test_datagram_sockets_that_are_older_than_the_programs_are_counted_from_the_walk_on():
    """Of the namespaces that are watched; a connection counts itself."""
    kernel = Programs(granted=attrs.evolve(GRANTED, boot_offset=1e6))
    old = datagram_record(Kind.FIRST_IO, 3, pid=5, **PORTS)
    foreign = owner_row(old._replace(cookie=4), 4)._replace(net_cookie=99)
    connection = owner_row(record(Kind.OPENED, 6, **PORTS), 6)
    kernel.held_sockets = [owner_row(old, 3), foreign, connection]
    kernel.flows[3] = flow_row(old)  # the list that comes next has it
    kernel.start()
    ((_, cookies, body),) = [each for each in kernel.requests if each[0] is Operation.ADOPT]
    adopted = FlowRow(3, *FLOW.unpack(body))
    assert (cookies, adopted.local_port) == ((3,), 40000)
    assert 0 <= adopted.first - (kernel.now + 1e6) * 1e9 < 1000, "a recording's clock is some nanoseconds ahead"
    kernel.requests.clear()
    for held in ([owner_row(old, 3)], [foreign, connection], []):
        kernel.held_sockets = held
        kernel.wait(2 * WALK_SECONDS)
        kernel.poll()
    assert Operation.OWNERS in [each[0] for each in kernel.requests]
    assert Operation.ADOPT not in [each[0] for each in kernel.requests], "it is counted, and the others need not be"


@pytest.mark.parametrize(("offset", "seconds"), [(1e308, 1 << 33), (-1e308, 0)])
def test_a_recording_may_claim_any_time_since_boot(offset, seconds):
    kernel = Programs(granted=attrs.evolve(GRANTED, boot_offset=offset))
    kernel.held_sockets = [owner_row(datagram_record(Kind.FIRST_IO, 3, pid=5, **PORTS), 3)]
    kernel.start()
    ((_, _, body),) = [each for each in kernel.requests if each[0] is Operation.ADOPT]
    assert FlowRow(3, *FLOW.unpack(body)).first == seconds * 10**9


def test_a_datagram_socket_that_only_receives_is_counted_from_the_second_poll_on():
    """Nothing reads from it, so no record tells of it; and the list of the first poll may be read before its entry is made."""
    kernel = Programs()
    old = datagram_record(Kind.FIRST_IO, 3, pid=5, **PORTS)
    kernel.sockets[3] = FakeSocket(3, remote=REMOTE, protocol=17, inode=2)
    kernel.held_sockets = [owner_row(old, 2)]
    kernel.owners[2] = 5  # so no second walk looks for the process
    kernel.start()
    kernel.flows[3] = flow_row(old, rx_payload=40, rx_packets=1)
    kernel.poll()
    ((_, counts),) = kernel.session.flows()
    assert (counts.rx_bytes, counts.rx_packets) == (40, 1)
    kernel.asked.clear()
    kernel.poll()
    assert Operation.FLOWS not in kernel.asked, "it is known now"


def test_a_walk_that_comes_in_parts_has_its_sockets_counted_when_all_are_there():
    kernel = started()
    kernel.maps_are_silent = True
    kernel.wait(2 * WALK_SECONDS)
    kernel.poll()
    for cookie, last in ((3, False), (4, True)):
        row = owner_row(datagram_record(Kind.FIRST_IO, cookie, pid=5, **PORTS), cookie)
        kernel.feed(encode_answer(Operation.OWNERS, b"", OWNER.pack(*row), last=last), MAPS)
        kernel.run()
    assert [each[1] for each in kernel.requests if each[0] is Operation.ADOPT] == [(3, 4)]


def test_a_removal_waits_for_its_record_while_records_are_unread():
    """Its own may be among them: who made a connection that no dump had is in that alone."""
    kernel = started()
    connect(kernel, 8)
    kernel.feed(removal(9).message(final=True), 1)
    kernel.session.channel_drained(1, kernel.now)
    kernel.run()
    kernel.now += 2 * RECORD_PATIENCE
    kernel.session.handle_deadline(kernel.now)
    assert not flow_events(kernel.run())[1:]
    (removed,) = removals(kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8), closed()))
    assert (removed.flow.id, removed.flow.process.pid, removed.counts.rx_bytes) == ("c9", 5, 7)
