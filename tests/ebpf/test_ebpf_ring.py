"""The reader of the ring buffer, over a ring in plain memory."""

from __future__ import annotations

import errno

import pytest
from ebpf_records import PAGE, FakeRing, encode, record
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._errors import ProtocolError
from nstat_async._io.bpfload import ring_size
from nstat_async._io.ring import Ring, RingChannel
from nstat_async.ebpf import RING_STEP, Kind, decode_records


def reader(fake):
    return Ring(memoryview(fake.consumer), memoryview(fake.producer), fake.size, PAGE)


def cookies(data):
    return [r.cookie for r in decode_records(data)[0]]


def test_records_are_read_in_order_and_once():
    """What was read is free for the kernel again."""
    fake = FakeRing()
    ring = reader(fake)
    assert ring.read() == b""
    for number in range(5):
        fake.submit(record(Kind.OPENED, number))
    assert cookies(ring.read(2)) == [0, 1]
    assert cookies(ring.read()) == [2, 3, 4]
    assert ring.read() == b""
    assert fake.consumed == fake.produced


def test_it_stops_before_a_busy_record():
    """What is still being written is left, with everything behind it, until it is finished."""
    fake = FakeRing()
    ring = reader(fake)
    fake.submit(record(Kind.OPENED, 1))
    busy = fake.reserve(record(Kind.OPENED, 2))
    fake.submit(record(Kind.OPENED, 3))
    assert cookies(ring.read()) == [1]
    assert ring.read() == b""
    fake.finish(busy)
    assert cookies(ring.read()) == [2, 3]


def test_that_records_may_have_found_no_room_is_said_once_until_it_was_read_empty():
    fake = FakeRing()
    channel = RingChannel(7, reader(fake))

    def read():
        batch = []
        return channel.read_into(batch, 1), sum(len(cookies(data)) for data in batch)

    while fake.submit(record(Kind.OPENED, 1)):
        assert fake.full == 0
    for _ in range(2):
        with pytest.raises(OSError, match="full") as error:
            read()
        assert error.value.errno == errno.ENOBUFS
        held = fake.size // RING_STEP
        assert read() == (True, held)
        while fake.submit(record(Kind.OPENED, 1)):
            pass
        assert read() == (True, held), "it is said already"
        assert read() == (False, 0)
        fake.submit(record(Kind.OPENED, 1))
        assert read() == (True, 1)
        assert read() == (False, 0)
        while fake.submit(record(Kind.OPENED, 1)):
            pass


def test_discarded_records_are_stepped_over():
    """They are read, counted, and give nothing."""
    fake = FakeRing()
    ring = reader(fake)
    fake.submit(record(Kind.OPENED, 1))
    fake.finish(fake.reserve(record(Kind.OPENED, 2)), discard=True)
    fake.submit(record(Kind.OPENED, 3))
    data = ring.read()
    records, discarded = decode_records(data)
    assert ([r.cookie for r in records], discarded) == ([1, 3], 1)
    assert ring.read() == b""


def test_records_that_are_kept_are_read_again():
    """The records stay, for whoever reads next."""
    fake = FakeRing()
    ring = reader(fake)
    fake.submit(record(Kind.OPENED, 1))
    assert cookies(ring.read(keep=True)) == [1]
    assert cookies(ring.read()) == [1]


def test_what_is_none_of_ours():
    """Records of another size: what is before them is read, they are skipped, and said."""
    fake = FakeRing()
    ring = reader(fake)
    fake.submit(record(Kind.OPENED, 1))
    fake.finish(fake.reserve(record(Kind.OPENED, 2), length=40), length=40)
    fake.submit(record(Kind.OPENED, 3))
    assert cookies(ring.read()) == [1]
    assert ring.read() == b""
    assert ring.foreign == 48 + RING_STEP
    fake.submit(record(Kind.OPENED, 4))
    assert cookies(ring.read()) == [4]


def test_the_end_of_the_memory_is_no_end():
    """A record that wraps around is read whole, thousands of times."""
    fake = FakeRing()
    ring = reader(fake)
    for number in range(3 * PAGE // RING_STEP):
        assert fake.submit(record(Kind.OPENED, number))
        assert cookies(ring.read()) == [number]
    assert fake.produced > 2 * fake.size


@given(st.lists(st.sampled_from(["submit", "reserve", "finish", "discard", "read", "peek"]), max_size=120))
def test_whatever_the_order_nothing_is_lost_or_repeated(steps):
    """Every record that found room comes out once and in order, unless discarded; the rest is counted by the kernel."""
    fake = FakeRing()
    ring = reader(fake)
    busy, fates, got, number = [], [], [], 0
    for step in steps:
        if step in {"submit", "reserve"}:
            number += 1
            at = fake.reserve(record(Kind.OPENED, number))
            if at is None:
                continue
            fates.append([number, True])
            if step == "submit":
                fake.finish(at)
            else:
                busy.append((at, fates[-1]))
        elif step in {"finish", "discard"} and busy:
            at, fate = busy.pop(0)
            fate[1] = step == "finish"
            fake.finish(at, discard=step == "discard")
        elif step == "peek":
            ring.read(3, keep=True)
        elif step == "read":
            got += cookies(ring.read(3))
    for at, _ in busy:
        fake.finish(at)
    while data := ring.read(3):
        got += cookies(data)
    assert got == [cookie for cookie, kept in fates if kept]
    assert len(fates) + fake.full == number


def test_a_datagram_that_was_cut():
    """Half a record is a ProtocolError that says where."""
    with pytest.raises(ProtocolError) as caught:
        decode_records(encode(record(Kind.OPENED))[:-1] + b"")
    assert caught.value.offset == 0


def test_a_ring_has_a_thousandth_of_the_memory():
    """Within limits, and always a power of two."""
    sizes = [ring_size(1 << 30), ring_size(24 << 30), ring_size(1 << 40)]
    assert sizes == [4 << 20, 16 << 20, 32 << 20]
    assert ring_size() in {4 << 20, 8 << 20, 16 << 20, 32 << 20}
