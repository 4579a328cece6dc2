"""The channel of the maps where the kernel refuses: an answer always ends, and says why."""

from __future__ import annotations

import errno
import select
import sys

import pytest
from ebpf_records import PAGE, FakeRing

if not sys.platform.startswith("linux"):
    pytest.skip("eventfd and bpf(2) are Linux'", allow_module_level=True)

from nstat_async._io.bpfmaps import MapsChannel
from nstat_async._io.ring import Ring
from nstat_async.ebpf import Operation, decode_answer, encode_request


class NoCounters:
    """Statistics of programs that did nothing."""

    def read(self):
        return (0,) * 4

    def take_moved(self):
        return 0

    def close(self):
        pass


@pytest.fixture
def channel():
    fake = FakeRing()
    ring = Ring(memoryview(fake.consumer), memoryview(fake.producer), fake.size, PAGE)
    channel = MapsChannel({"flows": 1 << 20, "peers": 1 << 20}, {}, None, NoCounters(), ring)
    yield channel
    channel.close()
    channel.close()


def readable(channel):
    return bool(select.select([channel.fileno()], [], [], 0)[0])


def answers(channel):
    batch = []
    while channel.read_into(batch, 1):
        pass
    return [decode_answer(data) for data in batch]


@pytest.mark.parametrize("operation", [Operation.FLOWS, Operation.PEERS, Operation.OWNERS, Operation.TAKE])
def test_a_refusal_ends_the_answer(channel, operation):
    """Readable while there is something to say; then one piece with the error, and nothing more."""
    assert not readable(channel)
    channel.send(encode_request(operation, [7]))
    assert readable(channel)
    (answer,) = answers(channel)
    assert (answer.operation, answer.last, answer.rows) == (operation, True, ())
    assert answer.errno != 0
    assert not readable(channel)
    assert answers(channel) == []


def test_answers_come_in_the_order_of_the_requests(channel):
    """Also where one of them is refused."""
    for operation in (Operation.FLOWS, Operation.STATISTICS, Operation.PEERS):
        channel.send(encode_request(operation))
    found = answers(channel)
    assert [answer.operation for answer in found] == [Operation.FLOWS, Operation.STATISTICS, Operation.PEERS]
    assert found[1].statistics.moved == 0


def test_what_is_no_request(channel):
    """It is refused at once."""
    with pytest.raises(OSError) as caught:
        channel.send(b"?")
    assert caught.value.errno == errno.EINVAL
    assert not readable(channel)


def test_closing_in_the_middle(channel):
    """Answers that nobody reads are dropped."""
    channel.send(encode_request(Operation.STATISTICS))
    channel.close()
    assert channel.immediate
