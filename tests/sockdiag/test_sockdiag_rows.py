"""What rows of dumps say by themselves, and two of one socket: ends, counters, FINs, reports."""

from __future__ import annotations

import pickle
import sys

import pytest
from sockdiag_fakes import LOOPBACK, PEER, FakeSocket, info_position

from nstat_async._model import COUNTS_FIELDS, Counts
from nstat_async.sockdiag import DiagAttribute, DiagMessage, SocketState, TcpInfo
from nstat_async.sockdiag._entry import Entry
from nstat_async.sockdiag._messages import socket_id
from nstat_async.sockdiag._reports import socket_report
from nstat_async.sockdiag._rows import (
    Change,
    RowFormat,
    RowFormats,
    address_of,
    counters_changed,
    encode_row,
    ends_completed,
    identity_differs,
    info_of,
    is_fin_alone,
    is_remains,
    same_connection,
)

MAPPED = bytes(10) + b"\xff\xff"


def cut(*, formats=None, **fields):
    """The pieces of a socket's row."""
    return (formats or RowFormats()).cut(FakeSocket(1, **fields).message(1))[0]


def connection(**fields):
    return cut(**fields)[1]


V6 = {"family": 10, "local": MAPPED + LOOPBACK, "remote": MAPPED + PEER}


LISTENING = {"state": SocketState.LISTEN, "local": bytes(4), "remote": bytes(4), "remote_port": 0}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({}, {}, True),
        ({}, {"state": SocketState.CLOSE_WAIT}, True),
        ({}, {"remote_port": 81}, False),
        ({}, {"remote_port": 80 + 256}, False),
        ({}, {"local_port": 40001}, False),
        ({}, {"local_port": 40000 + 256}, False),
        ({}, {"remote": PEER[:3] + b"\1"}, False),
        ({}, {"remote": b"\1" + PEER[1:]}, False),
        ({}, {"local": b"\x7f\0\0\2"}, True),  # nobody's evidence: an address of its own may be chosen later
        ({"local_port": 0}, {}, True),  # a record that saw it begin has no local port yet
        ({}, {"local_port": 0}, False),
        ({}, {"remote_port": 0}, True),  # the kernel forgets it when an attempt fails
        ({"remote_port": 0}, {}, True),
        ({}, {"remote_port": 0, "local_port": 40001}, False),
        ({"local_port": 0}, {"remote_port": 0}, True),
        ({}, {"remote_port": 0, "local_port": 0}, True),
        ({"remote_port": 256}, {"remote_port": 512}, False),
        ({}, V6, True),  # IPV6_ADDRFORM
        (V6, {}, True),
        (V6, {**V6, "remote": bytes(15) + b"\1"}, False),
        (V6, {**V6, "remote": b"\x20" + bytes(15)}, False),
        (LISTENING, LISTENING, True),
        (LISTENING, {**LISTENING, "state": SocketState.CLOSE}, True),  # its removal says so
        (LISTENING, {**LISTENING, "state": SocketState.CLOSE, "local": LOOPBACK}, True),
        (LISTENING, {}, False),
        (LISTENING, {"remote_port": 0x5000}, False),
        ({"local_port": 256}, {"local_port": 512}, False),
        ({"local_port": 256}, {"local_port": 512, "remote_port": 0}, False),
        ({"local_port": 0, "remote_port": 0x5050}, {"remote_port": 0}, True),
        ({"remote_port": 0}, {"local_port": 0, "remote_port": 0x5050}, True),
        ({"local_port": 0, "remote_port": 0x5000}, {"remote_port": 0x5000}, True),
        ({}, LISTENING, False),
    ],
)
def test_two_rows_of_a_socket_may_be_of_one_connection_or_not(before, after, same):
    assert same_connection(connection(**before), connection(**after)) is same


@pytest.mark.parametrize(
    ("known", "other", "completed"),
    [
        ({"local_port": 0}, {"remote_port": 0}, {}),  # a record of the beginning, and a removal of what was aborted
        ({"remote_port": 0, "local": bytes(4)}, {"state": SocketState.CLOSE}, {}),
        ({"remote": bytes(4)}, {}, {}),
        ({"local": PEER}, {}, {"local": PEER}),
        ({"local_port": 0}, V6, {"local_port": 0}),
    ],
)
def test_what_is_missing_of_the_ends_is_taken_from_another_message(known, other, completed):
    assert ends_completed(connection(**known), connection(**other)) == connection(**completed)


def test_addresses_are_those_of_their_family():
    """A v4-mapped one is IPv4."""
    for fields, local, remote in (
        ({}, LOOPBACK, PEER),
        (V6, LOOPBACK, PEER),
        ({"family": 10, "local": bytes(15) + b"\1", "remote": b"\xff" * 16}, bytes(15) + b"\1", b"\xff" * 16),
    ):
        identity = connection(**fields)
        assert (address_of(identity, 8), address_of(identity, 24)) == (local, remote)


COUNTED = {
    TcpInfo.BYTES_ACKED: 1000, TcpInfo.BYTES_RECEIVED: 2000, TcpInfo.SEGS_OUT: 30, TcpInfo.SEGS_IN: 40, TcpInfo.MIN_RTT: 5,
    TcpInfo.DATA_SEGS_IN: 6, TcpInfo.DATA_SEGS_OUT: 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, Change.NONE),
        (
            {TcpInfo.SEGS_OUT: 31, TcpInfo.SEGS_IN: 41, TcpInfo.NOTSENT_BYTES: 9, TcpInfo.RTT: 8},
            Change.NONE,
        ),  # a keep-alive
        ({TcpInfo.BYTES_ACKED: 1001}, Change.GROWN),
        ({TcpInfo.BYTES_ACKED: 1000 + (1 << 56)}, Change.GROWN),
        ({TcpInfo.BYTES_RECEIVED: 2001}, Change.GROWN),
        ({TcpInfo.BYTES_RECEIVED: 2000 + (1 << 56)}, Change.GROWN),
        ({TcpInfo.MIN_RTT: 4}, Change.GROWN),
        ({TcpInfo.DATA_SEGS_IN: 7}, Change.GROWN),
        ({TcpInfo.DATA_SEGS_OUT: 7 + (1 << 24)}, Change.GROWN),
        ({TcpInfo.BYTES_ACKED: 999}, Change.RESTARTED),
        ({TcpInfo.BYTES_RECEIVED: 1999}, Change.RESTARTED),
        ({TcpInfo.BYTES_ACKED: 2000, TcpInfo.BYTES_RECEIVED: 1999}, Change.RESTARTED),
    ],
)
def test_what_became_of_counters_between_two_rows(change, kind):
    assert counters_changed(cut(info=COUNTED), cut(info=COUNTED | change)) is kind
    assert counters_changed(cut(info_length=100), cut(info=COUNTED)) is Change.GROWN, "they came with a dump"
    assert counters_changed(cut(info_length=100), cut(info_length=100)) is Change.NONE


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({TcpInfo.BYTES_RECEIVED: 2001}, True),
        (
            {TcpInfo.BYTES_RECEIVED: 2001, TcpInfo.BYTES_ACKED: 3000, TcpInfo.SEGS_IN: 99, TcpInfo.DATA_SEGS_OUT: 9},
            True,
        ),
        ({TcpInfo.BYTES_RECEIVED: 2001, TcpInfo.DATA_SEGS_IN: 7}, False),
        ({TcpInfo.BYTES_RECEIVED: 2002}, False),
        ({}, False),
    ],
)
def test_a_byte_without_a_segment_is_a_fin(change, alone):
    before = cut(info=COUNTED)[4]
    assert is_fin_alone(before, cut(info=COUNTED | change)[4]) is alone
    assert not is_fin_alone(b"", before)
    assert not is_fin_alone(before, b"")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False),
        ({"timer": 2, "expires": 5, "unread": 9, "unacked": 9}, False),
        ({"extra": {DiagAttribute.MARK: b"\1\0\0\0"}}, False),
        ({"state": SocketState.CLOSE_WAIT}, True),
        ({"local_port": 40256}, True),
        ({"local": b"\x7e\0\0\1"}, True),
        ({"remote": PEER[:3] + b"\1"}, True),
        ({"uid": 1001}, True),
        ({"inode": 1 << 24}, True),
        (V6, True),
    ],
)
def test_what_makes_another_flow_of_a_row(change, differs):
    assert identity_differs(cut(), cut(**change)) is differs
    bound = bytearray(FakeSocket(1).message(1))
    bound[16 + 40] = 2
    assert identity_differs(cut(), RowFormats().cut(bytes(bound))[0]), "it was bound to an interface"


@pytest.mark.parametrize(("family", "local", "remote"), [(2, LOOPBACK, PEER), (10, b"\1" * 16, b"\2" * 16)])
def test_what_another_source_tells_is_as_a_dump_would_have_it(family, local, remote):
    given = {"uid": 1000, "inode": 7, "device": 0}
    row = encode_row(family, 1, (b"\0\1", b"\0\2"), (local, remote), 99, **given)
    message = DiagMessage(family, 1, socket_id(local, 1, remote, 2, cookie=99), uid=1000, inode=7)
    assert row == message.encode()
    less = encode_row(family, 1, (b"\0\1", b"\0\2"), (local, remote), 99, uid=1000)
    assert less == row[:-4] + bytes(4), "nothing else is known of it"


def test_remains_and_connection_requests_are_no_sockets():
    for fields in ({"timer": 3}, {"state": SocketState.TIME_WAIT}, {"state": SocketState.SYN_RECV}):
        assert is_remains(FakeSocket(1, **fields).message(1))
    assert not is_remains(FakeSocket(1, timer=2).message(1))


@pytest.mark.parametrize(
    "state", [SocketState.ESTABLISHED, SocketState.FIN_WAIT2, SocketState.LAST_ACK, SocketState.CLOSE]
)
def test_a_connection_without_a_local_port_was_closed_while_its_row_was_written(state):
    assert is_remains(FakeSocket(1, state=state, local_port=0).message(1))
    assert not is_remains(FakeSocket(1, state=state, local_port=0, remote_port=0).message(1)), (
        "a socket without any port"
    )
    assert not is_remains(FakeSocket(1, state=state, local_port=256, remote_port=80).message(1))
    assert not is_remains(FakeSocket(1, state=state, local_port=1, remote_port=0).message(1))


def test_the_place_of_counters_is_that_of_this_very_message():
    """Another one of its length may have them elsewhere, or something else there."""
    formats = RowFormats()
    marked = FakeSocket(1, info=COUNTED, extra={DiagAttribute.MARK: b"\1\0\0\0"})
    message = marked.message(1)
    pieces, form = formats.cut(message)
    assert info_of(message, form, pieces) == (form.info, form.info_length) == (*info_position(message),)
    at, size = info_position(message)
    moved = message[: at - 12] + message[at - 4 : at + size] + message[at - 12 : at - 4] + message[at + size :]
    pieces, same = formats.cut(moved)
    assert same is form
    assert info_of(moved, form, pieces) == info_position(moved) == (at - 8, size)
    bare = FakeSocket(1, protocol=17).message(1)
    pieces, form = formats.cut(bare)
    assert (form.info, form.cgroup, info_of(bare, form, pieces)) == (0, 0, (0, 0))


def test_formats_are_learned_once_and_their_number_is_bounded(monkeypatch):
    learned = []
    learn = RowFormat.learn
    monkeypatch.setattr(RowFormat, "learn", lambda message: learned.append(len(message)) or learn(message))
    formats = RowFormats()

    def meet(number):
        message = FakeSocket(1, protocol=17, extra={DiagAttribute.MARK: bytes(4 * number)}).message(1)
        assert formats.of(b"before" + message, 6, len(message)).length == len(message)

    for number in [*range(256), *range(256)]:
        meet(number)
    assert len(learned) == 256
    meet(256)
    meet(0)
    assert len(learned) == 258


@pytest.mark.parametrize("length", [159, 160, 161, 280])
def test_counters_are_cut_out_where_they_are_whole(length):
    """A kernel before 4.6 has too few of them: the row has none."""
    pieces = cut(info=COUNTED, info_length=length, inode=7)
    assert Entry.user_of(pieces) == (1000, 7)
    assert len(pieces[4]) == (40 if length >= 160 else 0)
    assert pieces[4][:8] == ((1000).to_bytes(8, sys.byteorder) if length >= 160 else b"")


def report(fin: int = 0, length: int = 280, **fields: int):
    info = {TcpInfo[name]: value for name, value in fields.items()}
    message = FakeSocket(1, info=info, info_length=length).message(1)
    return socket_report(message, *info_position(message), fin)


def test_counts_are_translated_when_read():
    """Payload without retransmissions and FIN, microseconds, None without a sample."""
    counts = report(1, BYTES_SENT=1500, BYTES_RETRANS=500, BYTES_RECEIVED=11, RTT=300, RTTVAR=20, MIN_RTT=100)
    assert (counts.rx_bytes, counts.tx_bytes, counts.tx_retransmitted_bytes) == (10, 1000, 500)
    assert (counts.min_rtt_us, counts.avg_rtt_us, counts.var_rtt_us) == (100, 300, 20)
    fresh = report(RTTVAR=250000)
    assert (fresh.min_rtt_us, fresh.avg_rtt_us, fresh.var_rtt_us) == (None, None, None)
    assert fresh.rx_bytes == 0
    assert fresh.cell_rx_bytes is None
    assert set(counts.as_dict()) == set(COUNTS_FIELDS)


def test_counts_behave_like_counts():
    """Equal to plain ones of the same values, hashable, immutable, picklable."""
    counts = report(BYTES_SENT=5, RTT=3)
    plain = Counts(**dict(counts.items()))
    assert counts == plain
    assert hash(counts) == hash(plain)
    assert pickle.loads(pickle.dumps(counts)) == counts
    assert plain.since(counts).tx_bytes == 0
    with pytest.raises(AttributeError):
        counts.tx_bytes = 1


def test_details_say_none_for_what_is_not_there():
    """No sample, no limit, no attribute: None."""
    details = report(PACING_RATE=2**64 - 1, SND_MSS=1000, SND_CWND=10, DELIVERY_RATE=0).details()
    assert (details.pacing_rate, details.delivery_rate, details.mark, details.cgroup_id) == (None, None, None, None)
    assert details.congestion_window == 10_000
    assert details.congestion_control == "cubic"
    extra = {DiagAttribute.MARK: b"\7\0\0\0", DiagAttribute.CGROUP_ID: b"\1" + bytes(7)}
    message = FakeSocket(1, extra=extra, unacked=100, info={TcpInfo.NOTSENT_BYTES: 40}).message(1)
    details = socket_report(message, *info_position(message), 0).details()
    assert (details.mark, details.cgroup_id, details.unacked_bytes) == (7, 1, 60)
