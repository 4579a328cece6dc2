"""What eBPF records say of a socket: where it is, whose, since when, with which counts, and how it ended."""

from __future__ import annotations

import attrs
import pytest
from ebpf_records import datagram_record, record
from programs_fakes import (
    BORN,
    GRANTED,
    PORTS,
    PROVIDERS,
    RING,
    Programs,
    closed,
    connect,
    end,
    flow_row,
    removal,
    started,
)
from sockdiag_fakes import FakeSocket, flow_events, kinds, removals, traffic

from nstat_async import Delta, FlowAdded, FlowUpdated, Provider, RemovalReason, TcpState
from nstat_async._model import Direction, Outcome
from nstat_async.ebpf import Flag, Kind, Operation, SocketType, Tier
from nstat_async.sockdiag import CgroupFacts, TcpInfo
from nstat_async.sockdiag._constants import SocketState
from nstat_async.sockdiag._program_evidence import ANNOUNCING_PATIENCE, RECORD_PATIENCE, REMOVAL_PATIENCE

V6 = bytes.fromhex("20010db8") + bytes(11)
MADE = {"pid": 6, "flags": Flag.HAS_PROCESS | Flag.BY_CREATOR}


def udp(kind=Kind.FIRST_IO, cookie=3, **fields):
    return datagram_record(kind, cookie, **{"pid": 5, "local_port": 4000, **fields})


def pids(events):
    return [event.flow.process and event.flow.process.pid for event in flow_events(events)]


# -- beginnings


def test_a_record_has_the_ends_of_a_socket_of_version_6():
    ends = {"local": V6 + b"\1", "remote": V6 + b"\2", "local_port": 40000, "remote_port": 0xBB01}
    (added,) = flow_events(started().ring(udp(family=10, **ends)))[:1]
    assert (str(added.flow.local), str(added.flow.remote)) == ("[2001:db8::1]:40000", "[2001:db8::2]:443")


@pytest.mark.parametrize(
    ("fields", "provider"),
    [
        ({}, Provider.UDP),
        ({"protocol": 17, "type": SocketType.RAW, "local_port": 0}, Provider.RAW),
        ({"protocol": 58, "family": 10, "local_port": 7}, Provider.ICMP),
        ({"protocol": 0, "type": SocketType.RAW, "family": 17, "local_port": 0}, Provider.PACKET),
        ({"local_port": 0}, None),  # not bound: no dump has it either
    ],
)
def test_of_which_protocol_a_socket_is(fields, provider):
    added = [e for e in started(providers=PROVIDERS).ring(udp(**fields)) if isinstance(e, FlowAdded)]
    assert [event.flow.provider for event in added] == [provider] * (provider is not None)


def test_without_a_walk_over_all_descriptors_only_what_is_dumped_is_reported():
    kernel = started(granted=attrs.evolve(GRANTED, owners=False), providers=PROVIDERS)
    assert not flow_events(kernel.ring(udp(protocol=1, type=SocketType.RAW)))
    assert flow_events(connect(kernel))


@pytest.mark.parametrize(("flags", "preexisting"), [(BORN, False), (Flag.HAS_PROCESS, True)])
def test_a_socket_whose_making_was_not_seen_was_there_before(flags, preexisting):
    added = started().ring(udp(flags=flags))[0]
    assert added.preexisting is preexisting


@pytest.mark.parametrize(("local", "remote", "at_once"), [(0x9C00, 80 << 8, True), (0, 0xBB01, False)])
def test_a_connection_is_announced_when_it_has_a_port_and_a_process(local, remote, at_once):
    """With the state that it has; that it is established is an update then."""
    kernel = started()
    ends = {"pid": 5, "remote_port": remote}
    events = flow_events(kernel.ring(record(Kind.OPENED, 9, local_port=local, **ends)))
    assert [event.flow.state for event in events[:1]] == [TcpState.SYN_SENT] * at_once
    first = flow_events(kernel.ring(record(Kind.ESTABLISHED, 9, local_port=local or 40000, **ends)))[0]
    assert (type(first), first.flow.state) == (FlowUpdated if at_once else FlowAdded, TcpState.ESTABLISHED)


def test_who_began_is_what_a_record_says_whatever_sequence_numbers_look_like():
    kernel = started()
    connect(kernel)
    kernel.sockets[9] = FakeSocket(9, remote=b"\x7f\0\0\2", info=traffic(5, 10, active=0))
    kernel.poll()
    assert {event.flow.direction for event in flow_events(kernel.events)} == {Direction.OUTBOUND}


def test_a_flow_that_no_dump_had_is_of_its_cgroup():
    kernel = started()
    kernel.cgroups[7] = CgroupFacts(7, "/system.slice/a.service")
    kernel.ring(record(Kind.OPENED, 9, pid=5, cgroup=7, **PORTS))
    kernel.poll()
    assert flow_events(kernel.events)[-1].flow.cgroup == "/system.slice/a.service"


# -- processes


def test_a_connection_is_announced_with_whoever_is_seen_first():
    """Who made it counts until somebody uses it; whoever uses it is known by its start."""
    kernel = started()
    assert not kernel.ring(record(Kind.ACCEPTED, 9, **PORTS))
    (added,) = flow_events(kernel.ring(record(Kind.FIRST_IO, 9, 1, **MADE)))[:1]
    assert pids([added]) == [6]
    used = flow_events(kernel.ring(record(Kind.FIRST_IO, 9, 2, pid=5)))
    assert {*pids(used)} == {5}
    assert used[0].flow.process.key == (5, 5)
    assert {*pids(kernel.ring(record(Kind.FIRST_IO, 9, 3, pid=7)))} == {7}
    assert not kernel.ring(record(Kind.FIRST_IO, 9, 4, **MADE))


def test_another_process_that_uses_a_socket_is_an_update_though_it_is_gone_by_now():
    kernel = started()
    kernel.processes_are_gone = True
    connect(kernel)
    (updated,) = flow_events(kernel.ring(record(Kind.FIRST_IO, 9, 3, pid=7)))
    assert pids([updated]) == [7]


def test_a_flow_that_a_dump_announced_meanwhile_is_announced_once():
    kernel = started()
    kernel.ring(record(Kind.ACCEPTED, 9, **PORTS))
    kernel.sockets[9] = FakeSocket(9, remote=b"\x7f\0\0\2", inode=9, info=traffic(5, 10, active=0))
    kernel.owners[9] = 42
    kernel.poll()
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)).count("FlowAdded") == 1


def test_a_connection_of_before_is_announced_by_its_first_use():
    assert pids(started().ring(record(Kind.FIRST_IO, 9, pid=5, **PORTS)))[0] == 5


# -- counts


@pytest.mark.parametrize(
    ("flags", "births", "exact"), [(BORN, True, True), (Flag.HAS_PROCESS, True, False), (Flag.HAS_PROCESS, False, True)]
)
def test_the_end_of_a_datagram_socket_is_exact_if_all_of_its_life_was_counted(flags, births, exact):
    """Where makings are not seen, whatever comes after the first poll is taken for new."""
    kernel = started(granted=attrs.evolve(GRANTED, births=births))
    kernel.sockets[3] = FakeSocket(3, protocol=17, local_port=4000, remote=bytes(4), remote_port=0)
    kernel.poll()
    row = udp(flags=flags)
    kernel.flows[3] = flow_row(row, tx_payload=50, rx_payload=40, tx_packets=2, rx_packets=1, tx_bytes=50, rx_bytes=40)
    kernel.lost = kernel.lost._replace(moved=1, map_full=0)
    kernel.wait(61.0)
    kernel.poll()
    grown = [e for e in flow_events(kernel.events) if isinstance(e, FlowUpdated) and e.delta.tx_bytes]
    assert [e.delta for e in grown] == [Delta(rx_bytes=40, tx_bytes=50, rx_packets=1, tx_packets=2)]
    kernel.ring(row._replace(kind=Kind.RELEASED, tx_payload=50, rx_payload=40, tx_packets=2, rx_packets=1))
    (removed,) = removals(kernel.events)
    assert removed.final is exact


def test_the_end_of_a_datagram_socket_that_nothing_was_counted_for_before_is_not_exact():
    kernel = started()
    kernel.ring(udp(flags=Flag.HAS_PROCESS), udp(Kind.RELEASED, flags=Flag.HAS_PROCESS, tx_payload=50, tx_packets=2))
    (removed,) = removals(kernel.events)
    assert (removed.counts.tx_bytes, removed.final) == (50, False)


@pytest.mark.parametrize(("tier", "packets"), [(Tier.ALL, 0), (Tier.CALLS, None)])
def test_a_datagram_socket_that_was_seen_made_begins_with_nothing(tier, packets):
    counts = started(granted=attrs.evolve(GRANTED, tier=tier)).ring(udp(flags=BORN))[0].counts
    assert (counts.rx_bytes, counts.tx_bytes, counts.rx_packets, counts.tx_packets) == (0, 0, packets, packets)


def test_the_map_may_count_for_sockets_that_are_not_bound():
    kernel = started()
    kernel.flows[3] = flow_row(udp(local_port=0), tx_payload=50, tx_packets=1)
    kernel.wait(61.0)
    assert not flow_events(kernel.poll())


def test_a_connection_that_was_begun_before_the_programs_is_announced_with_those_of_the_first_poll():
    kernel = Programs()
    kernel.silent.add(2)  # polls wait for addresses
    kernel.start()
    assert not flow_events(kernel.ring(record(Kind.ESTABLISHED, 3, **PORTS)))
    (added,) = [event for event in flow_events(kernel.wait(1.1)) if isinstance(event, FlowAdded)]
    assert (added.flow.id, added.preexisting) == ("c3", True)


@pytest.mark.parametrize("seen", [True, False])
def test_a_connection_that_ends_before_its_first_row_is_new_only_if_the_programs_recorded_its_beginning(seen):
    kernel = Programs()
    kernel.silent.add(2)  # polls wait for addresses
    kernel.start()
    if seen:
        kernel.ring(record(Kind.ACCEPTED, 3, **PORTS))
    kernel.ring(closed(3))
    kernel.feed(removal(3).message(final=True), 1)
    kernel.wait(1.1)
    added, removed = flow_events(kernel.events)
    assert (added.preexisting, removed.final) == (not seen, True)


def test_a_connection_that_ends_later_without_a_beginning_is_new_because_the_first_dump_has_the_older_ones():
    kernel = started()
    kernel.ring(closed(3))
    kernel.feed(removal(3).message(final=True), 1)
    assert [event.preexisting for event in flow_events(kernel.run()) if isinstance(event, FlowAdded)] == [False]


def test_a_connection_whose_beginning_was_lost_is_new_because_the_first_dump_has_the_older_ones():
    """Tables would leave out its first bytes."""
    kernel = started()
    kernel.ring(record(Kind.ESTABLISHED, 3, **PORTS))
    (added,) = [event for event in flow_events(kernel.wait(1.1)) if isinstance(event, FlowAdded)]
    assert not added.preexisting


# -- ends


def test_a_flow_that_waits_for_its_end_is_announced_with_it():
    """Not alone meanwhile."""
    kernel = started()
    assert not flow_events(kernel.ring(record(Kind.ACCEPTED, 9, **PORTS)))
    assert not flow_events(end(kernel))
    assert not flow_events(kernel.wait(ANNOUNCING_PATIENCE + 0.05))
    kernel.ring(
        record(Kind.CLOSED, 9, pid=6, tx_bytes=70, rx_bytes=8, flags=Flag.FIN_RECEIVED | Flag.HAS_PROCESS, **PORTS)
    )
    events = flow_events([*kernel.events, *kernel.wait(1.0)])
    assert kinds(events) == ["FlowAdded", "FlowRemoved"]


def test_a_socket_whose_record_never_came_is_looked_for_no_more():
    kernel = started()
    kernel.ring(udp(), udp(cookie=4))
    kernel.feed(FakeSocket(3, remote=bytes(4), remote_port=0, local_port=4000, protocol=17).message(final=True), 1)
    kernel.run()
    kernel.wait(RECORD_PATIENCE + 0.1)
    kernel.poll()
    assert kernel.requests[-1][:2] == (Operation.LOOK, (4,))


def test_records_that_wait_for_removals_end_their_flows_when_the_ring_fails():
    kernel = started()
    connect(kernel)
    kernel.ring(closed(fin=False))
    kernel.recorded.channel_failed(RING, 5, kernel.now)
    (removed,) = removals(kernel.run())
    assert (removed.final, removed.counts.tx_bytes, removed.counts.rx_bytes) == (True, 70, 8)


@pytest.mark.parametrize(
    ("state", "flags", "outcome"),
    [
        (SocketState.ESTABLISHED, Flag.ERROR_KNOWN, Outcome.RESET_HERE),
        (SocketState.ESTABLISHED, Flag.ERROR_KNOWN | 104 << 16, Outcome.RESET_THERE),
        (SocketState.ESTABLISHED, Flag.ERROR_KNOWN | 110 << 16, Outcome.TIMED_OUT),
        (SocketState.LAST_ACK, Flag.FIN_RECEIVED, Outcome.CLOSED_THERE),
        (SocketState.CLOSE_WAIT, Flag.FIN_RECEIVED, None),
        (SocketState.FIN_WAIT2, Flag.FIN_RECEIVED, Outcome.CLOSED_HERE),
    ],
)
@pytest.mark.parametrize("removed_too", [True, False])
def test_a_record_says_how_a_connection_ended(state, flags, outcome, removed_too):
    """Who was to close, and of whose FIN the removal knows nothing, was reset; the state alone does not say it."""
    kernel = started()
    connect(kernel)
    kernel.ring(closed()._replace(old=state, flags=flags))
    if removed_too:
        end(kernel)
        outcome = outcome or Outcome.RESET_THERE
    kernel.wait(1.0)
    (removed,) = removals(kernel.events)
    assert removed.flow.outcome is outcome


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(SocketState.FIN_WAIT1, Outcome.CLOSED_HERE), (SocketState.ESTABLISHED, Outcome.CLOSED_THERE)],
)
def test_the_last_state_says_who_closed_first_where_the_record_has_no_error(state, outcome):
    """The removal says that both closed."""
    kernel = started()
    connect(kernel)
    kernel.ring(closed()._replace(old=state))
    info = {**removal(rx=9).info, TcpInfo.BYTES_ACKED: 72}
    kernel.feed(attrs.evolve(removal(), info=info).message(final=True), 1)
    (removed,) = removals(kernel.run())
    assert (removed.counts.rx_bytes, removed.flow.outcome) == (8, outcome)


def test_a_fin_is_no_byte_where_nothing_else_was_received():
    kernel = started()
    connect(kernel)
    kernel.ring(closed(rx=1))
    end(kernel, rx=1)
    (removed,) = removals(kernel.events)
    assert (removed.counts.rx_bytes, removed.final) == (0, True)


def test_what_ended_by_its_record_is_not_ended_by_its_removal_once_more():
    """Neither if the kernel forgot in it where the connection was."""
    kernel = started()
    connect(kernel)
    kernel.ring(closed())
    kernel.wait(1.0)
    kernel.feed(FakeSocket(9, remote_port=0, unacked=65000).message(final=True), 1)
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)).count("FlowAdded") == len(removals(kernel.events)) == 1


def test_another_connection_of_the_same_ends_whose_records_come_after_its_removal_is_another_flow():
    kernel = started()
    connect(kernel)
    kernel.ring(closed())
    kernel.wait(1.0)
    assert len(removals(kernel.events)) == 1
    end(kernel)
    again = {"pid": 5, "local_port": 40000, "remote_port": 80 << 8}
    kernel.ring(record(Kind.OPENED, 9, 10**9, **again), record(Kind.CLOSED, 9, 2 * 10**9, tx_bytes=5, **again))
    kernel.wait(1.0)
    assert [(e.flow.id, e.counts.tx_bytes) for e in removals(kernel.events)] == [("c9", 70), ("c9.2", 5)]


def test_an_end_has_the_counts_of_its_own_record():
    kernel = started()
    connect(kernel)
    kernel.ring(closed(), closed(tx=5))
    kernel.wait(1.0)
    assert [(e.flow.id, e.counts.tx_bytes) for e in removals(kernel.events)] == [("c9", 70), ("c9.2", 5)]


def test_what_waits_is_due_after_its_patience_the_first_first():
    kernel = started()
    kernel.ring(record(Kind.ACCEPTED, 8, local_port=99, remote_port=80 << 8))
    begin = kernel.now
    assert kernel.session.next_deadline() == pytest.approx(begin + ANNOUNCING_PATIENCE)
    connect(kernel)
    kernel.ring(closed())
    assert kernel.session.next_deadline() == pytest.approx(begin + REMOVAL_PATIENCE)
    kernel.wait(REMOVAL_PATIENCE + 0.01)
    assert [event.flow.id for event in removals(kernel.events)] == ["c9"]
    assert kernel.session.next_deadline() == pytest.approx(begin + ANNOUNCING_PATIENCE)


def test_a_connection_whose_socket_begins_another_ended_unseen():
    """And its removal says nothing new."""
    kernel = started()
    connect(kernel)
    again = {"pid": 5, "local_port": 40001, "remote_port": 80 << 8}
    kernel.ring(record(Kind.OPENED, 9, time=10**9, **again))
    (removed,) = removals(kernel.events)
    assert (removed.flow.id, removed.reason, removed.final) == ("c9", RemovalReason.GONE, False)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowAdded)] == ["c9", "c9.2"]
    kernel.ring(record(Kind.CLOSED, 9, time=2 * 10**9, **again))
    kernel.wait(1.0)
    assert [e.flow.id for e in removals(kernel.events)] == ["c9", "c9.2"]


def test_the_late_records_of_a_removed_socket_begin_no_flow_however_many_connections_it_had():
    """The record of the first one's end is not its last: those of the next connection come behind it."""
    kernel = started()
    connect(kernel)
    again = {"pid": 5, "local_port": 40001, "remote_port": 80 << 8}
    kernel.feed(attrs.evolve(removal(), local_port=40001).message(final=True), 1)
    kernel.run()
    kernel.wait(6.0)  # no record comes, nor does an answer about the socket
    kernel.wait(6.0)
    ended = [event.flow.id for event in removals(kernel.events)]
    assert ended == ["c9", "c9.2"]
    kernel.ring(closed())
    kernel.ring(record(Kind.OPENED, 9, time=10**9, **again))
    kernel.wait(1.0)
    kernel.ring(record(Kind.CLOSED, 9, time=2 * 10**9, **again))
    kernel.wait(1.0)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowAdded)] == ended
    assert [event.flow.id for event in removals(kernel.events)] == ended


def test_a_datagram_socket_that_dumps_have_is_there_whatever_the_map_lost():
    kernel = started()
    kernel.sockets[3] = FakeSocket(3, protocol=17, local_port=4000, remote=bytes(4), remote_port=0)
    kernel.ring(udp(flags=BORN))
    for _ in range(4):
        kernel.wait(61.0)
        kernel.poll()
    assert not removals(kernel.events)


def test_a_connection_that_ended_before_it_had_a_process_is_announced_with_its_end_and_once():
    kernel = started()
    kernel.ring(record(Kind.ACCEPTED, 9, **PORTS), closed())
    kernel.wait(0.1)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


def test_a_removal_that_waits_for_its_record_ends_the_flow_when_no_record_can_come():
    kernel = started()
    connect(kernel)
    assert not removals(end(kernel))
    kernel.session.channel_closed(RING, kernel.now)
    kernel.run()
    kernel.wait(RECORD_PATIENCE - 0.1)
    assert [event.flow.id for event in removals(kernel.events)] == ["c9"]


def test_flows_between_two_polls_are_counted():
    kernel = started()
    kernel.ring(closed()._replace(local_port=40000, pid=5, flags=Flag.HAS_PROCESS))
    end(kernel)
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events))[0] == "FlowAdded"
    assert {*pids(kernel.events)} == {5}
    assert kernel.session.statistics()["short_lived"] == 1
