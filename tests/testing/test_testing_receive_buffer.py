"""The receive buffer of a control socket refuses what the kernel's refuses."""

import errno

import pytest
from talk import SUPPRESS, Talk, names

from nstat_async import Provider
from nstat_async.ntstat._messages import QuerySource, Success
from nstat_async.testing import EmulatedKernel
from nstat_async.testing._receive_buffer import ReceiveBuffer


def buffer(size=8192, *, critical_quarter=True, count_mbufs=False):
    return ReceiveBuffer(size, critical_quarter=critical_quarter, count_mbufs=count_mbufs)


def fill(made, size, *, critical=False):
    count = 0
    while made.admits(size, critical=critical):
        made.append(bytes(size))
        count += 1
    return count


def test_ordinary_records_leave_a_quarter_and_critical_ones_take_it_and_a_quarter_more():
    made = buffer()
    assert fill(made, 32) == 193
    assert made.queued_bytes == 6176
    fill(made, 24, critical=True)
    assert 10240 - 24 < made.queued_bytes <= 10240
    assert made.size <= 10240


def test_reading_gives_the_extra_room_back():
    made = buffer()
    fill(made, 1000)
    fill(made, 1000, critical=True)
    assert made.size > 8192
    while made:
        made.pop()
    assert made.size == 8192


def test_before_yosemite_everything_competes_and_small_records_cost_an_mbuf():
    assert fill(buffer(critical_quarter=False, count_mbufs=True), 24) == 256
    assert fill(buffer(critical_quarter=False, count_mbufs=False), 24) == 341


def test_growth_ends_at_a_quarter_of_a_megabyte():
    made = buffer(1 << 20)
    fill(made, 4096, critical=True)
    assert made.size == 1 << 20


def test_a_size_is_clamped_to_eight_megabytes():
    assert buffer().resize(1 << 30) == 8 << 20


def test_250_sockets_overflow_the_default_buffer_and_success_follows():
    kernel = EmulatedKernel()
    for _ in range(250):
        kernel.open_tcp()
    talk = Talk(kernel, receive_buffer=None)
    assert names(talk.watch(Provider.TCP)) == ["SRC_ADDED"] * 193 + ["SUCCESS"]
    assert len(talk.client.sources) == 193
    later = kernel.open_tcp()
    (announcement,) = talk.read()
    assert announcement.srcref == 195, "the refused announcement has used up a number"
    assert talk.client.sources_of(later)


@pytest.mark.parametrize(("opener", "delivered"), [("open_udp", 18), ("open_tcp", 16)])
def test_an_unpaced_poll_of_many_loses_batches_and_says_success(opener, delivered):
    kernel = EmulatedKernel()
    for _ in range(100 if opener == "open_tcp" else 30):
        getattr(kernel, opener)()
    talk = Talk(kernel, receive_buffer=None)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    talk.watch(Provider.UDP, filter=SUPPRESS, userland=False)
    assert names(talk.update(flags=0)) == ["SRC_UPDATE"] * delivered + ["SUCCESS"]
    assert talk.client.refused > 0


def test_a_short_read_loses_the_rest_of_the_record():
    kernel = EmulatedKernel()
    kernel.open_tcp()
    client = kernel.connect()
    request = QuerySource(srcref=kernel.release.layout.all_sources, context=1, flags=3).encode(kernel.release.layout)
    client.send(request)
    assert client.receive(10) == Success(context=1).encode(client.kernel.layout)[:10]
    with pytest.raises(BlockingIOError):
        client.receive()


@pytest.mark.parametrize(("size", "number"), [(2049, errno.EMSGSIZE), (15, errno.EINVAL), (0, errno.EINVAL)])
def test_a_request_too_long_or_too_short_is_refused_by_send(size, number):
    client = EmulatedKernel().connect()
    with pytest.raises(OSError) as caught:
        client.send(bytes(size))
    assert caught.value.errno == number
    assert not client.readable


def test_send_fails_with_the_hosts_number_when_not_even_the_error_fits():
    kernel = EmulatedKernel()
    client = kernel.connect()
    bad = (7).to_bytes(8, "little") + (999).to_bytes(4, "little") + (16).to_bytes(2, "little") + bytes(2)

    def fill_and_send():
        for _ in range(1000):
            client.send(bad)

    with pytest.raises(OSError) as caught:
        fill_and_send()
    assert caught.value.errno == errno.ENOBUFS
