"""eBPF programs that are refused, fail, lose records or do not answer; maps that are asked no more than needed."""

from __future__ import annotations

import errno

import attrs
import pytest
from ebpf_records import datagram_record, record
from programs_fakes import (
    GRANTED,
    MAPS,
    PORTS,
    REMOTE,
    RING,
    Programs,
    closed,
    connect,
    end,
    flow_row,
    removal,
    started,
)
from sockdiag_fakes import FakeSocket, flow_events, kinds, removals

from nstat_async import EventsLost, LossCause, UnavailableReason
from nstat_async._contract import LookupFailed
from nstat_async._options import Ebpf
from nstat_async.ebpf import FLOW, FLOW_KEY, Kind, MapsPurpose, Operation, RingPurpose, SocketType, Tier, encode_answer
from nstat_async.sockdiag import AttachAnswer
from nstat_async.sockdiag._program_evidence import RECORD_PATIENCE
from nstat_async.sockdiag._programs import MOST_LOOKED_AT, PATIENCE
from nstat_async.sockdiag._waiting import MOST_BEHIND


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


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "not asked for yet"])
@pytest.mark.parametrize("answer", ["late", "never", "failure"])
def test_the_last_counts_are_waited_for_while_the_maps_have_not_answered(asked, answer):
    """A machine that stood still for longer than a removal waits did not read the answer meanwhile.

    Without an answer the known counts stand, and it is said that they are not the last ones.
    """
    kernel = started(granted=attrs.evolve(GRANTED, tier=Tier.CALLS, births=False))
    sock = datagram_record(Kind.FIRST_IO, 3, pid=5, **PORTS)
    kernel.ring(sock)
    kernel.flows[3] = flow_row(sock, tx_bytes=40, tx_calls=1)
    kernel.sockets[3] = FakeSocket(3, remote=REMOTE, protocol=17)
    kernel.poll()
    kernel.session.channel_drained(RING, kernel.now)
    kernel.maps_are_silent = True
    kernel.feed(FakeSocket(3, remote=REMOTE, protocol=17).message(final=True), 1)
    if asked:
        kernel.run()
    kernel.now += 2 * RECORD_PATIENCE
    kernel.session.handle_deadline(kernel.now)
    assert not removals(kernel.run())
    if answer == "late":
        row = flow_row(sock, tx_bytes=41, tx_calls=2)
        kernel.feed(encode_answer(Operation.TAKE, FLOW_KEY.pack(3), FLOW.pack(*row[1:]), last=True), MAPS)
    elif answer == "failure":
        kernel.recorded.channel_failed(MAPS, 5, kernel.now)
    (removed,) = removals(kernel.wait(MOST_BEHIND if answer == "never" else 0.0))
    lost = [event.cause for event in kernel.events if isinstance(event, EventsLost)]
    if answer == "late":
        assert (removed.counts.tx_bytes, removed.final, lost) == (41, True, [])
    else:
        assert (removed.counts.tx_bytes, removed.final, lost) == (40, False, [LossCause.FINAL_COUNTS])
    if answer != "never":
        end(kernel)
        assert removals([*kernel.wait(1.1 * RECORD_PATIENCE), *kernel.wait(1.0)]), "nobody is held up any more"


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


def test_a_ring_that_was_full_is_asked_about_when_it_is_read_empty():
    """Where no poll comes by itself, too, and once."""
    kernel = started(interval=None)
    kernel.session.channel_failed(RING, errno.ENOBUFS, kernel.now)
    kernel.lost = kernel.lost._replace(ring_full=3)
    assert not kernel.ring(datagram_record(Kind.RELEASED, 8))
    assert kernel.session.next_deadline() is None
    kernel.session.channel_drained(RING, kernel.now)
    events = [*kernel.wait(0.3), *kernel.wait(0.3), *kernel.wait(0.3)]
    assert [(e.count, e.detail) for e in events if isinstance(e, EventsLost)] == [(3, "eBPF: ring full")]
    assert kinds(events).count("PollCompleted") == 2, "the other one repairs"
    assert kernel.session.capabilities.ebpf == "all"


@pytest.mark.parametrize("why", ["ring full", "states skipped", "ring failed"])
def test_a_beginning_that_is_read_when_the_loss_of_its_removal_is_repaired_ends_though_its_end_was_lost(why):
    """The record of it waited in the ring, which may have been full when the other one was to be written: a poll has said so."""
    kernel = started()
    if why == "ring full":
        kernel.session.channel_failed(RING, errno.ENOBUFS, kernel.now)
        kernel.lost = kernel.lost._replace(ring_full=1)
        kernel.poll()
    kernel.lose_removals()
    kernel.wait(0.3)
    connect(kernel)
    if why == "ring full":
        kernel.session.channel_drained(RING, kernel.now)
    elif why == "ring failed":
        kernel.session.channel_closed(RING, kernel.now)
    else:
        kernel.lost = kernel.lost._replace(states_missed=1)
        kernel.poll()
    for _ in range(3):
        kernel.wait(0.3)
    assert kinds(flow_events(kernel.events))[-1] == "FlowRemoved"
    assert not list(kernel.session.flows())


def given_up(kernel):
    """A look-up proved that a connection is gone."""
    sock = kernel.sockets[9] = removal()
    kernel.poll()
    kernel.close(9, tell=False)
    kernel.lose_removals()
    kernel.wait(0.3)
    return sock


@pytest.mark.parametrize("removed", ["before", "after", "never"])
@pytest.mark.parametrize("local_port", [PORTS["local_port"], 0])
def test_records_that_are_read_after_their_connection_was_given_up_begin_no_flow(removed, local_port):
    """The ring may have had them already while the look-up was answered."""
    kernel = started()
    given_up(kernel)
    if removed == "before":
        end(kernel)
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.ring(record(Kind.ESTABLISHED, 9, pid=5, **PORTS), record(Kind.FIRST_IO, 9, pid=5, **PORTS))
    kernel.ring(record(Kind.CLOSED, 9, tx_bytes=70, rx_bytes=8, remote_port=80 << 8, local_port=local_port))
    if removed == "after":
        end(kernel)
    kernel.wait(0.3)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


def test_the_end_of_an_attempt_that_was_given_up_begins_no_flow():
    """Only its end tells the local port."""
    kernel = started()
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=80 << 8))
    kernel.wait(0.3)
    kernel.lose_removals()
    kernel.poll()
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"], "it is given up"
    kernel.ring(record(Kind.CLOSED, 9, 10**9, old=2, **PORTS))
    kernel.wait(1.0)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


def test_a_datagram_that_is_read_after_its_socket_was_given_up_begins_no_flow():
    kernel = started(granted=attrs.evolve(GRANTED, tier=Tier.CALLS, births=False))
    sock = kernel.sockets[3] = FakeSocket(3, remote=REMOTE, protocol=17)
    kernel.poll()
    kernel.close(3, tell=False)
    kernel.lose_removals()
    kernel.wait(0.3)
    kernel.ring(datagram_record(Kind.FIRST_IO, 3, pid=5, **(PORTS | {"remote_port": 81 << 8})))
    kernel.feed(sock.message(final=True), 1)
    kernel.wait(2.0)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


@pytest.mark.parametrize("later", [True, False])
def test_a_socket_that_was_given_up_may_connect_again(later):
    """To the same server once the ring was read empty, to another one at once."""
    kernel = started()
    given_up(kernel)
    ports = PORTS if later else PORTS | {"remote_port": 81 << 8}
    if later:
        kernel.session.channel_drained(RING, kernel.now)
    kernel.ring(record(Kind.OPENED, 9, pid=5, remote_port=ports["remote_port"]))
    kernel.ring(record(Kind.ESTABLISHED, 9, pid=5, **ports))
    kernel.ring(record(Kind.CLOSED, 9, tx_bytes=70, rx_bytes=8, **ports))
    kernel.wait(0.3)
    assert [event.flow.id for event in removals(kernel.events)] == ["c9", "c9.2"]


def test_the_end_of_a_connection_that_was_given_up_is_not_taken_for_that_of_the_next():
    """Its FIN is not among the bytes of the next one."""
    kernel = started()
    given_up(kernel)
    kernel.ring(closed())
    kernel.feed(attrs.evolve(removal(), remote_port=81).message(final=True), 1)
    kernel.ring(record(Kind.CLOSED, 9, tx_bytes=70, rx_bytes=8, local_port=40000, remote_port=81 << 8))
    kernel.wait(2 * RECORD_PATIENCE)
    assert [(event.flow.id, event.counts.rx_bytes) for event in removals(kernel.events)] == [("c9", 8), ("c9.2", 8)]


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
    kernel.ring(*(datagram_record(Kind.FIRST_IO, number, pid=5, **PORTS) for number in range(8, 7 + MOST_LOOKED_AT)))
    kernel.poll()
    assert kernel.asked[3:] == [Operation.STATISTICS, Operation.LOOK]
    kernel.ring(datagram_record(Kind.FIRST_IO, 6, pid=5, **PORTS))
    kernel.poll()
    assert kernel.asked[5:] == [Operation.STATISTICS, Operation.FLOWS]
    kernel.lost = kernel.lost._replace(moved=0)
    kernel.wait(61)
    kernel.asked.clear()
    kernel.poll()
    assert kernel.asked == [Operation.STATISTICS, Operation.OWNERS, Operation.FLOWS]
    assert not [e for e in kernel.poll() if isinstance(e, EventsLost)]


def test_maps_that_do_not_answer_hold_up_no_poll_for_long():
    """They have as long for each part of an answer."""
    kernel = started()
    kernel.wait(10.0)
    kernel.maps_are_silent = True
    assert "PollCompleted" not in kinds(kernel.poll())
    assert "PollCompleted" not in kinds(kernel.wait(0.75 * PATIENCE))
    kernel.feed(encode_answer(Operation.FLOWS, b"", b"", last=False), MAPS)
    assert "PollCompleted" not in kinds([*kernel.run(), *kernel.wait(0.75 * PATIENCE)])
    assert "PollCompleted" in kinds(kernel.wait(0.26 * PATIENCE))
    assert "ebpf_failures" not in kernel.session.statistics()


def test_maps_that_fail_hold_up_no_poll_and_that_is_said():
    kernel = started()
    kernel.maps_are_silent = True
    assert "PollCompleted" not in kinds(kernel.poll())
    kernel.recorded.channel_failed(MAPS, 5, kernel.now)
    assert "PollCompleted" in kinds(kernel.run())
    assert any("counts of UDP may be missing" in note for note in kernel.session.capabilities.notes)
    assert kernel.session.statistics()["ebpf_failures"] == 1


def test_its_two_channels_are_opened_when_it_is_known_that_there_are_programs():
    for granted, channels in ((GRANTED, [RING, MAPS]), (AttachAnswer(), [])):
        kernel, opened = Programs(granted=granted), []
        carry_out = kernel._carry_out
        kernel._carry_out = lambda command, carry_out=carry_out, opened=opened: (
            opened.append(getattr(command, "purpose", None)),
            carry_out(command),
        )
        kernel.start()
        kernel.poll()
        assert [each.channel for each in opened if isinstance(each, (RingPurpose, MapsPurpose))] == channels


def test_ends_of_its_own_sockets_are_no_flows():
    kernel = started(granted=attrs.evolve(GRANTED, own_cookies=(50,)))
    for cookie in (50, 51):
        kernel.feed(FakeSocket(cookie, remote=REMOTE, local_port=cookie, protocol=17).message(final=True), 1)
    events = [*kernel.run(), *kernel.wait(1.0)]
    assert {event.flow.id for event in flow_events(events)} == {"c33"}


def test_what_no_process_has_is_dropped_from_the_map_after_two_walks():
    """The end of a packet socket is not seen."""
    kernel = started(providers=("tcp", "packet"))
    kernel.flows[41] = flow_row(datagram_record(Kind.FIRST_IO, 41, family=17, protocol=0, type=SocketType.RAW))
    for _ in range(3):
        assert Operation.DROP not in kernel.asked
        kernel.wait(61.0)
        kernel.poll()
    assert kernel.requests[-1][:2] == (Operation.DROP, (41,))


def test_an_answer_with_an_error_is_counted():
    kernel = started()
    kernel.feed(encode_answer(Operation.FLOWS, b"", b"", last=True, errno=12), MAPS)
    kernel.run()
    assert kernel.session.statistics()["ebpf_failures"] == 1


def test_a_ring_that_fails_leaves_sock_diag_and_a_poll_repairs_what_was_lost():
    kernel = started()
    connect(kernel)
    kernel.recorded.channel_failed(RING, 5, kernel.now)
    (lost,) = [event for event in kernel.run() if isinstance(event, EventsLost)]
    assert (lost.cause, lost.detail) == (LossCause.KERNEL_BUFFER, kernel.session.capabilities.ebpf_reason)
    assert "the ring of eBPF records failed" in lost.detail
    assert kernel.session.capabilities.ebpf == "none"
    assert any("not used any more" in note for note in kernel.session.capabilities.notes)
    (removed,) = flow_events(end(kernel, rx=0))
    assert removed.counts.tx_bytes == 70
    assert "PollCompleted" in kinds(kernel.wait(1.0)), "though nobody asks for polls"
    kernel.recorded.channel_failed(RING, 5, kernel.now)
    assert kernel.run() == [], "said once"


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
    expected = answer.reason if isinstance(answer, AttachAnswer) else UnavailableReason.RESOURCE
    assert required.session.failure.reason is expected
