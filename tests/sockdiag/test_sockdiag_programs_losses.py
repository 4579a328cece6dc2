"""eBPF programs that are refused, fail, lose records or do not answer; maps that are asked no more than needed."""

from __future__ import annotations

import attrs
import pytest
from ebpf_records import datagram_record
from programs_fakes import GRANTED, PORTS, REMOTE, RING, connect, end, flow_row, started
from sockdiag_fakes import FakeSocket, flow_events, kinds

from nstat_async import EventsLost, UnavailableReason
from nstat_async._contract import LookupFailed
from nstat_async._options import Ebpf
from nstat_async.ebpf import Kind, Operation, Tier
from nstat_async.sockdiag import AttachAnswer


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
