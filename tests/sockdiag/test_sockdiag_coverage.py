"""What the flows of a namespace explain of its traffic."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ebpf_records import datagram_record
from programs_fakes import BORN, PORTS, Programs, flow_row
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket

from nstat_async import Coverage
from nstat_async._rows import RowKind, unattributed_row
from nstat_async.ebpf import Kind
from nstat_async.sockdiag import TcpInfo


def counters(acked: int, received: int) -> dict[int, int]:
    return {TcpInfo.BYTES_ACKED: acked, TcpInfo.BYTES_RECEIVED: received, TcpInfo.SEGS_IN: 1, TcpInfo.DATA_SEGS_IN: 1}


def counted(eth0: tuple[int, int], lo: tuple[int, int] = (0, 0), datagrams: tuple[int, int] = (0, 0)) -> tuple:
    return (("eth0", *eth0), ("lo", *lo), ("eth9", 10**9, 10**9)), datagrams


def coverage(kernel: FakeKernel) -> Coverage | None:
    return Coverage.of(kernel.session.statistics())


def test_what_flows_moved_is_compared_with_what_interfaces_carried():
    """Old counts, loopback, local connections and interfaces without an address are no part of it; new, growing and ended ones are."""
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, info=counters(10**6, 10**6))
    kernel.traffic = counted((5000, 6000))
    kernel.start()
    assert coverage(kernel) is None
    kernel.sockets[1].info = counters(10**6 + 400, 10**6 + 300)
    kernel.sockets[2] = FakeSocket(2, local_port=2, info=counters(50, 40))
    kernel.sockets[3] = FakeSocket(3, local_port=3, remote=LOOPBACK, info=counters(10**5, 10**5))
    kernel.wait(1.0)
    kernel.sockets[2].info = counters(60, 40)
    kernel.close(2)
    kernel.feed(FakeSocket(4, local_port=4, info=counters(7, 9)).message(final=True), 1)
    kernel.traffic = counted((6000, 8000), lo=(10**7, 10**7), datagrams=(3, 4))
    kernel.wait(4.5)
    found = coverage(kernel)
    assert found == Coverage(1000, 2000, 349, 467, 3, 4, 0, 0)
    assert (found.rx_share, found.tx_share) == (0.349, 0.2335)
    assert (found.unattributed_rx_bytes, found.unattributed_tx_bytes) == (651, 1533)


def test_datagrams_count_at_polls_and_at_the_end_of_their_socket():
    kernel = Programs(interval=1.0)
    kernel.traffic = counted((0, 0))
    kernel.start()
    ports = {"local": bytes([192, 0, 2, 2]).ljust(16, b"\0"), "remote": PEER.ljust(16, b"\0"), **PORTS}
    first, second = (datagram_record(Kind.FIRST_IO, cookie, pid=5, flags=BORN, **ports) for cookie in (3, 4))
    kernel.ring(first)
    moved = {"tx_bytes": 100, "tx_payload": 100, "tx_calls": 1, "tx_packets": 1}
    kernel.flows[3] = flow_row(first, **moved)
    kernel.poll()
    kernel.flows.clear()
    more = {"rx_bytes": 30, "rx_payload": 30, "rx_calls": 1, "rx_packets": 1}
    kernel.ring(*(each._replace(kind=Kind.RELEASED, **moved, **more) for each in (first, second)))
    kernel.traffic = counted((1000, 1000), datagrams=(2, 2))
    kernel.wait(5.5)
    assert coverage(kernel) == Coverage(1000, 1000, 60, 200, 2, 2, 2, 2)


def test_a_connection_that_is_known_by_its_end_alone_counts_though_its_socket_is_known():
    """The connection before it had more."""
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, info=counters(10**6, 10**6))
    kernel.traffic = counted((0, 0))
    kernel.start()
    del kernel.sockets[1]
    kernel.feed(FakeSocket(1, remote_port=81, info=counters(60, 40)).message(final=True), 1)
    kernel.traffic = counted((1000, 1000))
    kernel.wait(5.5)
    found = coverage(kernel)
    assert (found.flow_rx_bytes, found.flow_tx_bytes) == (40, 60)


def test_both_sides_are_of_one_moment():
    """What flows moved since the last look at the interfaces waits for the next one: a share is never too large."""
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, info=counters(100, 100))
    for step, numbers in enumerate(((0, 0), (1000, 1000))):
        kernel.traffic = counted(numbers)
        kernel.start() if not step else kernel.wait(5.5)
    kernel.sockets[1].info = counters(5100, 5100)
    kernel.wait(1.0)
    assert (coverage(kernel).flow_rx_bytes, coverage(kernel).rx_bytes) == (0, 1000)
    kernel.traffic = counted((7000, 7000))
    kernel.wait(5.5)
    assert (coverage(kernel).flow_rx_bytes, coverage(kernel).rx_bytes) == (5000, 7000)


def test_a_host_that_cannot_say_leaves_it_unknown():
    kernel = FakeKernel(interval=1.0)
    kernel.start()
    kernel.wait(6.0)
    assert coverage(kernel) is None


def test_a_counter_that_begins_anew_takes_nothing_away():
    """An interface that was made anew counts from what it had when it was first seen."""
    kernel = FakeKernel(interval=1.0)
    for numbers in ((5000, 5000), (100, 100), (300, 400)):
        kernel.traffic = counted(numbers)
        kernel.start() if not kernel.events else kernel.wait(6.0)
    assert (coverage(kernel).rx_bytes, coverage(kernel).tx_bytes) == (200, 300)


def test_shares_are_shares():
    nothing = Coverage(0, 0, 0, 0, 0, 0, 0, 0)
    assert (nothing.rx_share, nothing.tx_share) == (None, None)
    more = Coverage(10, 10, 30, 5, 0, 0, 0, 0)
    assert (more.rx_share, more.tx_share) == (1.0, 0.5)
    row = unattributed_row(more)
    assert (row.kind, row.rx_bytes, row.tx_bytes) == (RowKind.UNATTRIBUTED, 0, 5)
    assert unattributed_row(None) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/net is Linux'")
def test_the_living_counters_are_those_of_the_kernel():
    from nstat_async._io.traffic import read_traffic

    interfaces, (received, sent) = read_traffic()
    shown = subprocess.run(["cat", "/proc/net/dev"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert {name for name, _, _ in interfaces} == {line.split(":")[0].strip() for line in shown.splitlines()[2:]}
    assert all(rx >= 0 and tx >= 0 for _, rx, tx in interfaces)
    assert received >= 0
    assert sent >= 0
