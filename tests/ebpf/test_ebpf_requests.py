"""Requests and answers of the maps as datagrams, both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._errors import ProtocolError
from nstat_async.ebpf import (
    FLOW_KEY,
    OWNER,
    PEER,
    PEER_KEY,
    Flag,
    MapsPurpose,
    Operation,
    OwnerRow,
    RingPurpose,
    SocketType,
    Statistics,
    decode_answer,
    decode_flows,
    decode_owners,
    decode_peers,
    decode_request,
    encode_adoption,
    encode_answer,
    encode_request,
    encode_statistics,
)

COOKIES = st.lists(st.integers(0, 2**64 - 1), max_size=9)


@given(st.sampled_from(Operation), COOKIES, st.binary(max_size=20))
def test_requests_come_back(operation, cookies, body):
    assert decode_request(encode_request(operation, cookies, body)) == (operation, tuple(cookies), body)


def test_answers_come_back():
    keys = FLOW_KEY.pack(7) + FLOW_KEY.pack(8)
    values = bytes(range(184)) + bytes(184)
    answer = decode_answer(encode_answer(Operation.FLOWS, keys, values, last=False))
    assert (answer.operation, answer.last, answer.errno) == (Operation.FLOWS, False, 0)
    assert [row.cookie for row in answer.rows] == [7, 8]
    assert answer.rows[0].tx_bytes == int.from_bytes(bytes(range(8)), "little")
    peers = decode_answer(
        encode_answer(Operation.PEERS, PEER_KEY.pack(7, bytes(16), 53, 2, 0), PEER.pack(1, 2, 3, 4, 5, 6, 0), last=True)
    )
    assert peers.rows[0] == (7, bytes(16), 53, 2, 1, 2, 3, 4, 5, 6)
    owners = decode_answer(encode_answer(Operation.OWNERS, b"", bytes(2 * OWNER.size), last=True))
    assert len(owners.rows) == 2
    failed = decode_answer(encode_answer(Operation.PEERS, b"", b"", last=True, errno=12))
    assert (failed.rows, failed.errno) == ((), 12)
    statistics = Statistics(1, 2, 3, 4, 5, 6, 7, 8)
    assert decode_answer(encode_statistics(statistics)).statistics == statistics


def test_adoption_leaves_out_tcp_and_repetitions():
    """A datagram socket that several processes hold is adopted once, with nothing counted and not announced.

    The oldest has it, ``init`` only if it is alone; none of them was seen using it.
    """
    values = dict.fromkeys(OwnerRow._fields, 0) | {
        "comm": bytes(16),
        "local": bytes(16),
        "remote": bytes(16),
        "flags": Flag.HAS_PROCESS,
        "local_port": 99,
    }
    sockets = (
        *((1, SocketType.DGRAM, pid) for pid in (1, 6, 5, 7)),
        (2, SocketType.STREAM, 5),
        (3, SocketType.RAW, 1),
    )
    rows = [
        OwnerRow(**(values | {"cookie": cookie, "type": kind, "pid": pid, "start": pid}))
        for cookie, kind, pid in sockets
    ]
    operation, cookies, body = decode_request(encode_adoption(rows, 77))
    assert (operation, cookies) == (Operation.ADOPT, (1, 3))
    first, other = decode_flows(b"".join(map(FLOW_KEY.pack, cookies)), body)
    assert (first.pid, first.local_port, first.first, first.tx_bytes) == (5, 99, 77, 0)
    assert first.flags == Flag.HAS_PROCESS | Flag.BY_CREATOR
    assert other.pid == 1


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0", encode_request(Operation.TAKE, [1])[:-1], b"\x63\0\0\0\0\0\0\0"])
def test_what_is_no_request(data):
    with pytest.raises(ProtocolError):
        decode_request(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_answer(Operation.FLOWS, b"1234567", b"", last=True),
        encode_answer(Operation.FLOWS, bytes(8), b"", last=True),
        encode_answer(Operation.OWNERS, b"", b"x", last=True),
        encode_answer(Operation.STATISTICS, b"", b"x", last=True),
        encode_answer(Operation.PEERS, bytes(32), bytes(47), last=True),
    ],
)
def test_what_is_no_answer(data):
    with pytest.raises(ProtocolError):
        decode_answer(data)


@given(st.binary(max_size=400))
def test_arbitrary_answers(data):
    """An answer, or a ProtocolError."""
    try:
        decode_answer(data)
    except ProtocolError:
        return


def test_rows_of_nothing():
    assert list(decode_flows(b"", b"")) == list(decode_peers(b"", b"")) == list(decode_owners(b"")) == []


def test_purposes_are_values():
    assert RingPurpose() == RingPurpose()
    assert MapsPurpose() != RingPurpose()
    assert hash(RingPurpose()) == hash(RingPurpose())
