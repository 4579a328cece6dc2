"""The last message of a socket: whether its counters have a FIN in them, and who was disconnected."""

from __future__ import annotations

import pytest
from sockdiag_fakes import LOOPBACK, FakeSocket, info_position

from nstat_async import Direction
from nstat_async.sockdiag import SocketState, TcpInfo
from nstat_async.sockdiag._entry import Entry, Weight
from nstat_async.sockdiag._finals import (
    Remains,
    fin_by_dump,
    fin_by_peer,
    fin_by_remains,
    is_behind_fin,
    is_unused,
    last_words,
    remains_of,
    sent_fin,
    was_disconnected,
)
from nstat_async.sockdiag._messages import HEADER
from nstat_async.sockdiag._reports import socket_report


def ended(
    entry_state=SocketState.ESTABLISHED,
    *,
    before=None,
    repeated=False,
    reading=0.0,
    unread=0,
    rx=100,
    segments=1,
    tx=50,
    **info,
):
    """A socket's last message, as the entry of what was known before, and the words."""
    fields = {
        TcpInfo.BYTES_RECEIVED: rx,
        TcpInfo.DATA_SEGS_IN: segments,
        TcpInfo.BYTES_SENT: tx,
        TcpInfo.BYTES_ACKED: tx + 2,
        TcpInfo.SEGS_IN: 5,
        **{TcpInfo[name]: value for name, value in info.items()},
    }
    message = FakeSocket(1, unread=unread, info=fields).message(final=True)
    entry = Entry(None, 6, (0, bytes([2, entry_state]) + bytes(42), 1, b"", b""), 7, 6 if repeated else 7, entry_state)
    entry.reading = reading
    if before is not None:
        row = FakeSocket(1, info={**fields, **before}).message()
        entry.report = socket_report(row, *info_position(row), int(is_behind_fin(row, *info_position(row))))
    return entry, last_words(message, *info_position(message))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"segments": 0, "rx": 1}, (1, True)),
        ({"segments": 0, "rx": 2}, (1, True)),  # there is one FIN
        ({"rx": 0}, (0, True)),
        ({"entry_state": SocketState.CLOSE_WAIT}, (1, True)),
        ({"entry_state": SocketState.LAST_ACK}, (1, True)),
        ({"entry_state": SocketState.TIME_WAIT}, (1, True)),
        ({"entry_state": SocketState.FIN_WAIT2}, None),
        ({}, None),
        ({"before": {TcpInfo.BYTES_RECEIVED: 99}}, (1, True)),
        ({"before": {}}, None),  # that row may have been written while the FIN came
        ({"before": {}, "repeated": True}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.47}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.4799}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.48}, None),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.6}, None),  # it may have come while that row was written
        (
            {"before": {TcpInfo.STATE: SocketState.CLOSE_WAIT}},
            (1, True),
        ),  # came between its first state and its counters
        ({"before": {TcpInfo.BYTES_RECEIVED: 98}}, None),
        ({"before": {TcpInfo.BYTES_RECEIVED: 99, TcpInfo.DATA_SEGS_IN: 2}}, None),
    ],
)
def test_what_dumps_prove_of_a_fin(facts, expected):
    """The table of evidence, one case a row; None asks for more."""
    assert fin_by_dump(*ended(**facts)) == expected


@pytest.mark.parametrize(
    ("sent", "expected"), [(99, (1, True)), (100, (0, True)), (5000, (0, True)), (98, None)], ids=str
)
def test_the_other_end_proves_a_fin(sent, expected):
    """100 bytes came: one more than the other end sent is its FIN; two more, and it is another end."""
    _, words = ended()
    peer = ended(tx=sent)[1]._replace(received=51)
    assert fin_by_peer(words, peer) == expected
    assert fin_by_peer(words, peer._replace(received=52)) is None, "it has more than was sent: it is another end"
    assert fin_by_peer(words, peer._replace(segments_in=0, segments_out=0)) is None


@pytest.mark.parametrize(
    ("facts", "remains", "age", "expected"),
    [
        ({}, Remains.FIN_WAIT2, 0, (0, True)),
        ({"unread": 1}, Remains.TIME_WAIT, 10, (1, True)),
        ({"unread": 7}, Remains.TIME_WAIT, 10, (1, True)),
        ({"LAST_ACK_RECV": 0}, Remains.TIME_WAIT, 30, (1, False)),  # half-closed for a millisecond
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 210, (1, False)),
        ({"LAST_ACK_RECV": 0}, Remains.TIME_WAIT, 9, (0, False)),  # the FIN came behind the last segment
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 10, (0, False)),
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 500, (1, False)),  # read late
        ({"LAST_ACK_RECV": 20}, Remains.TIME_WAIT, 500, (0, False)),
        ({}, Remains.NOTHING, 0, (1, False)),
        ({"here": True}, Remains.NOTHING, 0, (0, False)),
        ({"LAST_ACK_RECV": 20}, Remains.NOTHING, 0, (1, False)),
        ({"LAST_ACK_RECV": 21}, Remains.NOTHING, 0, (0, False)),
        ({"unread": 1}, Remains.NOTHING, 0, (1, False)),
        ({"unread": 2}, Remains.NOTHING, 0, (0, False)),
        ({}, Remains.UNKNOWN, 0, (1, False)),
    ],
)
def test_the_remains_prove_a_fin_or_make_it_likely(facts, remains, age, expected):
    """The last words came 30 ms ago: remains are as old as the last segment, younger, or so old that they were read late."""
    here = facts.pop("here", False)
    found = FakeSocket(1, state=SocketState.TIME_WAIT, timer=3, expires=60_000 - age).message()
    assert fin_by_remains(ended(**facts)[1], remains, found, since_ms=30.0, here=here) == expected


def test_remains_are_a_sockets_own():
    """A dumped socket's have its cookie; what no dump had may have another one."""
    message = FakeSocket(1).message(final=True)
    own, other = (FakeSocket(n, state=SocketState.TIME_WAIT, timer=3).message() for n in (1, 2))
    waiting = FakeSocket(1, state=SocketState.FIN_WAIT2, timer=3).message()
    assert remains_of(message, own, known=True) is remains_of(message, other, known=False) is Remains.TIME_WAIT
    assert remains_of(message, waiting, known=True) is Remains.FIN_WAIT2
    for found in (other, None, FakeSocket(1, state=SocketState.LISTEN).message()):
        assert remains_of(message, found, known=True) is Remains.NOTHING


def test_a_socket_that_was_never_used_and_one_that_was_aborted_are_recognized():
    """A socket without port and peer was never used; without port and counters, yet with a peer's window, aborted."""
    assert is_unused(FakeSocket(1, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True))
    assert not is_unused(FakeSocket(1, LOOPBACK, 5, b"\0" * 4, 0).message(final=True))
    aborted = FakeSocket(1, remote_port=0, unacked=65000).message(final=True)
    refused = FakeSocket(1, remote_port=0, unacked=3).message(final=True)
    assert was_disconnected(aborted, *info_position(aborted))
    assert not was_disconnected(refused, *info_position(refused))


@pytest.mark.parametrize("at", [*range(4, 8), *range(24, 40)])
def test_one_byte_of_a_port_or_of_the_peer_s_address_is_enough_for_a_socket_that_was_used(at):
    message = bytearray(FakeSocket(1, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True))
    assert is_unused(message)
    message[HEADER.size + at] = 1
    assert not is_unused(message)


@pytest.mark.parametrize("at", [8, 23, 40, 43])
def test_an_address_or_a_device_of_its_own_is_no_use_of_a_socket(at):
    message = bytearray(FakeSocket(1, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True))
    message[HEADER.size + at] = 1
    assert is_unused(message)


def test_a_row_is_behind_the_fin_by_either_of_its_two_states():
    first, second = SocketState.CLOSE_WAIT, SocketState.ESTABLISHED
    for state, state_of_counters, behind in ((first, second, True), (second, first, True), (second, second, False)):
        row = FakeSocket(1, state=state, info={TcpInfo.STATE: state_of_counters}).message()
        assert is_behind_fin(row, *info_position(row)) is behind
    assert is_behind_fin(bytes([first]) + row[1:], 0, 0) is False, "without counters there is one state"


def test_what_was_sent_again_and_what_nobody_answered_are_counted():
    _, words = ended(tx=50, BYTES_RETRANS=20, RETRANSMITS=2, PROBES=1)
    assert (words.payload_sent, words.unanswered) == (30, 3)


@pytest.mark.parametrize(
    ("direction", "weight", "sent"),
    [
        (Direction.INBOUND, Weight.SEQUENCE, True),
        (Direction.OUTBOUND, Weight.SEQUENCE, False),
        (Direction.INBOUND, Weight.DOUBTED, False),
        (None, Weight.SEQUENCE, False),
    ],
)
def test_one_sequence_number_beyond_the_bytes_is_a_syn_or_a_fin_as_the_direction_says(direction, weight, sent):
    """Where it does not say, the one segment that was acknowledged is the SYN."""
    entry, words = ended(tx=50, BYTES_ACKED=51)
    entry.direction, entry.weight = direction, weight
    assert words.extra == 1
    assert sent_fin(entry, words) is sent


@pytest.mark.parametrize(("left", "disconnected"), [(3, False), (4, True)])
def test_a_failed_attempt_leaves_its_syn_and_two_and_a_connection_more(left, disconnected):
    message = FakeSocket(1, remote_port=0, unacked=left).message(final=True)
    assert was_disconnected(message, *info_position(message)) is disconnected


def test_what_a_kernel_does_not_tell_is_unknown_and_not_cleared():
    """Older ones have shorter counters."""
    for length, segments, disconnected in (
        (TcpInfo.SEGS_IN, None, False),
        (TcpInfo.SEGS_IN + 4, None, True),
        (TcpInfo.DATA_SEGS_IN, None, True),
        (TcpInfo.DATA_SEGS_IN + 4, 7, True),
    ):
        info = {TcpInfo.DATA_SEGS_IN: 7} if segments else {}
        message = FakeSocket(1, remote_port=0, unacked=4, info=info, info_length=length).message(final=True)
        assert last_words(message, *info_position(message)).data_segments == segments
        assert was_disconnected(message, *info_position(message)) is disconnected
