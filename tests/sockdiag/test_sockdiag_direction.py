"""Who began a connection, where no handshake was seen: by its state, its sequence numbers, its ports and listeners."""

from __future__ import annotations

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, tcp_info

from nstat_async._model import Direction, Process
from nstat_async.sockdiag import (
    DiagAttribute,
    SocketState,
    TcpInfo,
)
from nstat_async.sockdiag._direction import (
    ACCEPTED,
    LEFT_SECONDS,
    OPENED,
    ListenerTable,
    direction_by_remains,
    direction_by_state,
    evidence_of,
    extra_sequence_numbers,
    weigh_direction,
)
from nstat_async.sockdiag._entry import Weight
from nstat_async.sockdiag._messages import ATTRIBUTES_AT, HEADER, find_attribute
from nstat_async.sockdiag._rows import RowFormats

PROCESS = Process(7, "sshd")
NOTHING = 0
"""What sequence numbers prove where they prove nothing."""


def facts(**fields: int) -> bytes:
    return tcp_info({TcpInfo[name.upper()]: value for name, value in fields.items()})


@pytest.mark.parametrize(
    ("info", "accepted"),
    [
        (facts(delivered=0), False),
        (facts(delivered=1), True),  # accepted, idle
        (facts(delivered=9, data_segs_out=9), False),
        (facts(delivered=7, data_segs_out=9, unacked=2), False),
        (facts(delivered=10, data_segs_out=9), True),
        (facts(delivered=8, data_segs_out=9, unacked=2), True),
        (facts(delivered=9, data_segs_out=9, total_retrans=1), True),  # the numbers do not tell
        (facts(delivered=1)[:192], False),  # an old kernel
    ],
)
def test_a_connection_without_a_handshake_was_not_accepted(info, accepted):
    row = bytes(HEADER.size + 72)
    assert (evidence_of(1, row + b"\1" + info[1:], len(row), len(info)) == ACCEPTED) is accepted


def numbers(extra: int, *, state: int = 1, length: int = 280, waiting: int = 20, **more):
    """A row with so many sequence numbers beside its payload, of which some was sent again, and some waits; and where its ``tcp_info`` is."""
    counts = {"BYTES_SENT": 500, "BYTES_RETRANS": 30, "NOTSENT_BYTES": waiting, "BYTES_ACKED": 400 + waiting + extra}
    info = {TcpInfo[name]: value for name, value in {**counts, "DATA_SEGS_OUT": 9, "DELIVERED": 10, **more}.items()}
    message = FakeSocket(1, state=state, unacked=70, info=info).message(1)
    return message, find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO)[0], length


@pytest.mark.parametrize(
    ("state", "waiting", "evidence"),
    [
        (SocketState.ESTABLISHED, 20, {0: ACCEPTED, 1: OPENED, 2: OPENED}),
        (SocketState.CLOSE_WAIT, 20, {0: ACCEPTED, 1: OPENED, 2: OPENED}),
        (SocketState.FIN_WAIT1, 0, {0: ACCEPTED, 1: ACCEPTED, 2: OPENED}),
        (SocketState.LAST_ACK, 0, {0: ACCEPTED, 1: ACCEPTED, 2: OPENED}),
        (SocketState.FIN_WAIT1, 20, {0: ACCEPTED, 2: OPENED}),  # its FIN waits behind the payload
        (SocketState.SYN_RECV, 0, {0: ACCEPTED, 2: OPENED}),
    ],
)
def test_what_sequence_numbers_prove_of_a_state(state, waiting, evidence):
    found = {extra: evidence_of(state, *numbers(extra, state=state, waiting=waiting)) for extra in range(-1, 4)}
    assert {extra: proof for extra, proof in found.items() if proof is not NOTHING} == evidence
    row = numbers(2, state=state, waiting=waiting)
    assert evidence_of(state ^ 8, *row) is NOTHING, "its state is not that of its counters"
    assert evidence_of(state, *row[:2], int(TcpInfo.BYTES_RETRANS) + 8) == OPENED
    assert evidence_of(state, *row[:2], int(TcpInfo.BYTES_RETRANS) + 7) is NOTHING


def test_what_is_known_to_have_ended_in_order_was_opened_with_a_syn_beside_the_fin():
    found = [direction_by_remains(row, at) for row, *at in (numbers(extra) for extra in range(-1, 4))]
    assert found == [None, None, Direction.INBOUND, Direction.OUTBOUND, None]
    assert [extra_sequence_numbers(*numbers(extra)) for extra in range(-1, 4)] == [None, 0, 1, 2, None]
    whole = int(TcpInfo.BYTES_RETRANS) + 8
    assert [extra_sequence_numbers(*numbers(1, length=length)) for length in (whole, whole - 1)] == [1, None]


def identity(**fields) -> bytes:
    return RowFormats().cut(FakeSocket(1, **fields).message(1))[0][1]


V6 = {"family": 10, "local": bytes(16)}


@pytest.mark.parametrize(
    ("fields", "direction"),
    [
        ({"state": SocketState.LISTEN, "remote": bytes(4), "remote_port": 0}, Direction.LISTENER),
        ({"state": SocketState.SYN_SENT}, Direction.OUTBOUND),
        ({}, None),
        ({"remote_port": 1}, None),
        ({"remote_port": 256}, None),
        ({"remote_port": 0}, Direction.OUTBOUND),  # refused
        ({"remote_port": 0, "remote": bytes(4)}, None),
        ({"remote_port": 0, **V6, "remote": bytes(15) + b"\1"}, Direction.OUTBOUND),
        ({"remote_port": 0, **V6, "remote": b"\1" + bytes(15)}, Direction.OUTBOUND),
        ({"remote_port": 0, **V6, "remote": bytes(16)}, None),
    ],
)
def test_what_state_and_ports_prove(fields, direction):
    assert direction_by_state(identity(**fields)) is direction
    if fields.get("remote") in {bytes(4), bytes(16)}:
        bound = identity(**fields)[:40] + b"\1\0\0\0"
        assert direction_by_state(bound) is direction, "the device that it is bound to is no peer"


def test_each_kind_of_evidence_outweighs_the_one_before_and_none_is_nothing():
    assert [kind.name for kind in sorted(Weight)] == ["NONE", "LISTENER", "DOUBTED", "SEQUENCE", "STATE", "WITNESSED"]
    assert not Weight.NONE


def _row_and_place(extra: int):
    row, *at = numbers(extra)
    return row, tuple(at)


def test_the_strongest_evidence_of_who_began_and_how_sure_it_is():
    """A listener of another address accepted nothing, nor one that is gone."""
    listeners, here = ListenerTable(), identity()
    for cookie, local in ((7, bytes(4)), (8, b"\x7f\0\0\2"), (9, b"\x7f\0\0\1")):
        listeners.add(cookie, identity(local=local))

    def weighed(extra: int, port: bytes = b"\0\x50", **more):
        row, *at = numbers(extra, **more)
        return weigh_direction(here[:6] + port + here[8:], row, tuple(at), listeners)

    assert listeners.of(here) == [9]
    assert weighed(0) == (Direction.INBOUND, Weight.SEQUENCE)
    assert weighed(1) == (Direction.INBOUND, Weight.LISTENER), "a byte on its way looks like a SYN"
    row, *at = numbers(1 - 70)
    for listening, expected in ((True, Weight.DOUBTED), (False, Weight.SEQUENCE)):
        still = bytearray(numbers(71, waiting=20)[0])
        still[HEADER.size + 60 : HEADER.size + 64] = bytes(4)
        known = listeners if listening else ListenerTable()
        assert weigh_direction(here, bytes(still), tuple(at), known) == (Direction.OUTBOUND, expected)
    assert weighed(3) == (Direction.INBOUND, Weight.LISTENER)
    for port in (b"\1\0", b"\0\1"):
        assert weighed(0, port) == (Direction.INBOUND, Weight.SEQUENCE)
    loopback = identity(**V6 | {"local": bytes(15) + b"\1"}, remote=bytes(15) + b"\1")
    assert weigh_direction(loopback, *_row_and_place(0), listeners) == (Direction.INBOUND, Weight.SEQUENCE)
    assert weigh_direction(here[:6] + bytes(2) + bytes(16) * 2 + here[40:], row, tuple(at), listeners) == (
        None,
        Weight.NONE,
    )
    listeners.discard(9, identity())
    assert listeners.of(here) == [7]
    listeners.discard(7, identity())
    assert (listeners.of(here), listeners.covers(here)) == ([], False)
    assert weighed(3) == (None, Weight.NONE)
    listeners.discard(8, identity())
    listeners.discard(8, identity())
    assert not listeners.by_port


@pytest.mark.parametrize(
    ("local", "found"),
    [(b"\x7f\0\0\1", {PROCESS}), (bytes(4), {PROCESS}), (b"\x7f\0\0\2", set()), (b"\x7f\1\0\1", set())],
)
def test_a_listener_that_went_away_lately_accepted_at_its_own_address_or_at_any(local, found):
    listeners = ListenerTable()
    listeners.add(7, identity(local=local))
    listeners.leave(7, identity(local=local), PROCESS, 100.0)
    assert not listeners.by_port
    assert listeners.owners_before(identity(), 100.0 + LEFT_SECONDS / 2) == found
    assert listeners.owners_before(identity(local_port=40_001), 100.0) == set()
    assert listeners.owners_before(identity(), 100.1 + LEFT_SECONDS) == set()


def test_a_restored_connection_has_no_direction_to_its_end():
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, info={TcpInfo.DELIVERED: 0})
    kernel.start()
    kernel.sockets[1].info |= {TcpInfo.DATA_SEGS_OUT: 3, TcpInfo.BYTES_SENT: 90, TcpInfo.BYTES_ACKED: 90}
    kernel.sockets[1].info |= {TcpInfo.DELIVERED: 3, TcpInfo.TOTAL_RETRANS: 1}
    kernel.poll()
    kernel.close(1)
    assert {event.flow.direction for event in kernel.events if hasattr(event, "flow")} == {None}


def test_a_restored_connection_to_a_listeners_port_was_accepted():
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, local_port=80, remote_port=0, remote=bytes(4), state=10)
    kernel.sockets[2] = FakeSocket(2, local_port=80, remote_port=999, info={TcpInfo.DELIVERED: 0})
    kernel.start()
    assert {flow.direction for flow, _ in kernel.session.flows()} == {Direction.LISTENER, Direction.INBOUND}
