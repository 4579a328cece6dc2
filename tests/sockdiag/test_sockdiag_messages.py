"""Codecs of netlink, inet_diag and rtnetlink."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sockdiag_fakes import FakeKernel, FakeSocket, tcp_info

from examples import examples
from nstat_async._contract import Mode
from nstat_async._errors import ProtocolError
from nstat_async.sockdiag import (
    AddressMessage,
    DiagAttribute,
    DiagMessage,
    DiagRequest,
    LinkMessage,
    RouteMessage,
    Session,
    TcpInfo,
    iterate_messages,
)
from nstat_async.sockdiag._messages import (
    decode_attributes,
    encode_attributes,
    encode_done,
    encode_error,
    error_number,
    extension_bits,
    find_attribute,
    socket_id,
)

# What a C program prints for offsetof() of <linux/tcp.h> and <linux/inet_diag.h>.
C_OFFSETS = {
    "STATE": 0, "RETRANSMITS": 2, "PROBES": 3, "RTO": 8, "SND_MSS": 16, "UNACKED": 24, "LOST": 32,
    "LAST_DATA_SENT": 44, "LAST_DATA_RECV": 52, "LAST_ACK_RECV": 56,
    "PMTU": 60, "RTT": 68, "RTTVAR": 72, "SND_CWND": 80, "TOTAL_RETRANS": 100, "PACING_RATE": 104, "BYTES_ACKED": 120, "BYTES_RECEIVED": 128,
    "SEGS_OUT": 136, "SEGS_IN": 140, "NOTSENT_BYTES": 144, "MIN_RTT": 148, "DATA_SEGS_IN": 152,
    "DATA_SEGS_OUT": 156, "DELIVERY_RATE": 160, "DELIVERED": 192, "BYTES_SENT": 200, "BYTES_RETRANS": 208, "SND_WND": 228,
}  # fmt: skip


def test_offsets_are_those_of_the_c_header():
    """Every offset of tcp_info that is read is the compiler's."""
    assert {member.name: int(member) for member in TcpInfo} == C_OFFSETS


def only(data: bytes):
    (frame,) = iterate_messages(data)
    return frame


calm = settings(max_examples=examples(60), deadline=None)
"""A slow machine is no failure."""

words = st.integers(0, 2**32 - 1)
attributes = st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=6)


@calm
@given(st.integers(1, 255), st.integers(0, 255), st.integers(0, 255), words, st.binary(min_size=48, max_size=48), words)
def test_requests_survive_encoding(family, protocol, extensions, states, identity, sequence):
    """Decoding an encoded request gives the request."""
    for dump in (True, False):
        request = DiagRequest(family, protocol, extensions, states, identity, dump, sequence)
        data = request.encode()
        assert len(data) == 72
        assert DiagRequest.decode(data, only(data)) == request
        together = DiagRequest(0, 6, extensions, states, identity, dump, sequence)
        assert DiagRequest.decode(together.encode(), only(together.encode())) == together


@calm
@given(st.integers(0, 255), st.integers(0, 255), st.binary(min_size=48, max_size=48), words, words, attributes)
def test_sockets_survive_encoding(family, state, identity, uid, inode, attached):
    """Decoding an encoded socket gives the socket."""
    message = DiagMessage(family, state, identity, 1, 2, 3, 4, 5, uid, inode, attached, 6, 2)
    data = message.encode()
    assert DiagMessage.decode(data, only(data)) == message


def test_the_cookie_is_two_words():
    """Low word first, whatever the byte order."""
    identity = socket_id(b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 2, cookie=0x1122334455667788)
    assert DiagMessage(2, 1, identity).cookie == 0x1122334455667788
    assert struct.unpack_from("=II", identity, 40) == (0x55667788, 0x11223344)


@pytest.mark.parametrize("link", [LinkMessage(3, 1, "eth0"), LinkMessage(9, 65534, "wg0", "wireguard")])
def test_links_survive_encoding(link):
    """Name and nested kind included."""
    data = link.encode(RouteMessage.NEWLINK)
    assert LinkMessage.decode(data, only(data)) == link


@pytest.mark.parametrize("address", [b"\x7f\0\0\1", bytes(15) + b"\1", None])
def test_addresses_survive_encoding(address):
    """Of either family, or none."""
    message = AddressMessage(2, 1, address)
    data = message.encode(RouteMessage.NEWADDR)
    assert AddressMessage.decode(data, only(data)) == message


def test_the_local_address_of_a_point_to_point_link_is_ours():
    """IFA_ADDRESS is the peer's there."""
    body = struct.pack("=BBBBI", 2, 0, 0, 0, 7) + encode_attributes({1: b"\x0a\0\0\2", 2: b"\x0a\0\0\1"})
    data = struct.pack("=IHHII", 16 + len(body), 20, 0, 0, 0) + body
    assert AddressMessage.decode(data, only(data)).address == b"\x0a\0\0\1"


def test_the_number_of_an_error_is_positive_and_that_of_a_good_end_is_0():
    """An error's number is positive; an acknowledgement's and a good end's is 0."""
    data = encode_error(13, b"x" * 16, sequence=5)
    assert error_number(data, only(data)) == 13
    for good in (encode_error(0), encode_done(5)):
        assert error_number(good, only(good)) == 0
    short = struct.pack("=IHHII", 16, 2, 0, 0, 0)
    assert error_number(short, only(short)) == 0


@pytest.mark.parametrize(
    "data",
    [b"\0" * 8, struct.pack("=IHHII", 8, 3, 0, 0, 0), struct.pack("=IHHII", 99, 3, 0, 0, 0)],
    ids=["no header", "too short", "too long"],
)
def test_a_length_that_cannot_be_is_an_error_with_its_place_after_the_messages_before_it(data):
    """A length that cannot be is an error with its place, after the messages before it."""
    good = encode_done(1)
    frames = iterate_messages(good + data)
    assert next(frames).length == len(good)
    with pytest.raises(ProtocolError) as caught:
        next(frames)
    assert caught.value.offset == len(good)


def test_an_attribute_beyond_its_message_is_an_error_and_not_found():
    """An attribute beyond its message is an error, and not found."""
    broken = struct.pack("=HH", 40, 2)
    with pytest.raises(ProtocolError):
        decode_attributes(broken, 0, 4)
    assert find_attribute(broken, 0, 4, 2) is None
    assert find_attribute(struct.pack("=HH", 0, 2), 0, 4, 2) is None


def test_short_bodies_are_errors():
    """Each decoder refuses what is shorter than its fixed part."""
    data = struct.pack("=IHHII", 16, 20, 0, 0, 0)
    for kind in (DiagRequest, DiagMessage, LinkMessage, AddressMessage):
        with pytest.raises(ProtocolError, match="short"):
            kind.decode(data, only(data))


def test_an_attribute_is_asked_for_by_the_bit_before_its_number():
    """Attribute n is asked for by bit n - 1."""
    assert extension_bits(DiagAttribute.INFO, DiagAttribute.CONG, DiagAttribute.SKMEMINFO) == 0b1001010


@calm
@given(st.binary(max_size=300), st.integers(0, 3))
def test_arbitrary_bytes_never_raise(data, channel):
    """Whatever comes from the kernel becomes events; and requests of a recording are no better trusted."""
    kernel = FakeKernel()
    kernel.start()
    kernel.feed(data, channel)
    kernel.run()
    passive = Session(mode=Mode.FOLLOWING)
    passive.start(0.0)
    passive.observe_request(data, 0.0, channel)
    passive.receive_datagram(data, 0.0, channel)


@calm
@given(st.data())
def test_a_damaged_dump_never_raises(data):
    """Any byte of a dump or goodbye may be wrong: no exception, and the details of what is reported can be read."""
    kernel = FakeKernel()
    kernel.sockets[1] = FakeSocket(1)
    kernel.start()
    sequence = kernel.session._namespaces[0].dumps._sequence
    final = data.draw(st.booleans())
    message = bytearray(FakeSocket(2, info={TcpInfo.BYTES_SENT: 9}).message(sequence, final=final))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(0, len(message)))])
    kernel.feed(cut, 1 if final else 0)
    kernel.session.request_poll(kernel.now)
    kernel.during_dump = lambda: kernel.session.receive_datagram(cut, kernel.now, 0)
    for event in [*kernel.run(), *kernel.wait(3.0)]:
        if getattr(event, "raw_details", None) is not None:
            assert event.details is not None
        if getattr(event, "counts", None) is not None:
            event.counts.as_dict()


def test_a_dump_that_is_cut_anywhere_is_a_loss_at_most():
    """A dump datagram cut anywhere is a loss at most."""
    message = FakeSocket(2).message(8)
    for end in range(len(message)):
        kernel = FakeKernel()
        kernel.start()
        kernel.during_dump = lambda cut=message[:end], k=kernel: k.session.receive_datagram(cut, k.now, 0)
        kernel.poll()
        assert kernel.session.failure is None


def test_a_shorter_tcp_info_gives_what_it_has_and_none_for_the_rest():
    """An older kernel's shorter tcp_info gives what it has, and None for the rest."""
    for length in range(0, 281, 4):
        kernel = FakeKernel()
        kernel.sockets[1] = FakeSocket(1, info_length=length, info={TcpInfo.BYTES_RECEIVED: 5, TcpInfo.BYTES_SENT: 7})
        added = kernel.start()[0]
        assert added.counts.rx_bytes == (5 if length >= 136 else None)
        assert added.counts.tx_bytes == (7 if length >= 216 else None)
        assert (added.details.send_window is not None) == (length >= 232)
        kernel.sockets[1].info = {TcpInfo.BYTES_RECEIVED: 6, TcpInfo.DATA_SEGS_IN: 1, TcpInfo.SEGS_IN: 1}
        kernel.poll()
        kernel.close(1)
        kernel.wait(2.0)
        assert type(kernel.events[-1]).__name__ in {"FlowRemoved", "PollCompleted"}
    assert len(tcp_info()) == 280
