"""What the flows of a Darwin machine explain of its interfaces' traffic."""

from __future__ import annotations

import struct

import anyio
import attrs
import pytest
from virtual import VirtualMonitor

from nstat_async import Coverage, Monitor, ProtocolError, backends
from nstat_async._rows import unattributed_row
from nstat_async.ntstat import InterfacesRead, Kernel, _coverage
from nstat_async.ntstat._interfaces import parse_interfaces
from nstat_async.testing import EmulatedKernel

KERNEL = "xnu-11417.121.6"
SERVER = ("198.51.100.7", 443)


def message(index: int, rx: int, tx: int, *, flags: int = 0x8863, kind: int = 0x12, length: int = 180) -> bytes:
    """``struct if_msghdr2``, field by field as in the header, and a socket address behind it."""
    head = struct.pack("<HBBiiH2xiiii", length, 5, kind, 0x10, flags, index, 0, 128, 0, 0)
    data = struct.pack("<8BIIQ", 6, 0, 0, 6, 14, 0, 0, 0, 1500, 0, 10**9)
    data += struct.pack("<11Q", 10, 1, 20, 2, 3, rx, tx, 4, 5, 6, 7) + struct.pack("<IIii", 8, 9, 10, 11)
    assert (len(head), len(data)) == (32, 128)
    return (head + data + bytes(20))[:length]


def watched(kernel: EmulatedKernel, **options) -> VirtualMonitor:
    return VirtualMonitor(kernel, coverage=True, interval=1.0, **options)


def seen(monitor: VirtualMonitor) -> Coverage | None:
    return Coverage.of(monitor.session.statistics())


def test_the_list_of_interfaces_is_read_by_its_layout():
    """Loopback and messages about addresses are left out, of whatever length they are."""
    address = message(9, 1, 1, kind=0x0C, length=60)
    data = message(1, 7, 7, flags=0x8049) + message(4, 5_000_000_000, 2) + address + message(7, 3, 4, length=160)
    assert parse_interfaces(data) == ((4, 5_000_000_000, 2), (7, 3, 4))
    assert parse_interfaces(b"") == ()


@pytest.mark.parametrize(
    "broken", [bytes(8), message(4, 1, 1)[:-1], message(4, 1, 1, length=159), b"\xb4", message(4, 1, 1) + b"\1"]
)
def test_a_broken_list_of_interfaces_is_an_error(broken):
    with pytest.raises(ProtocolError, match="in the list of interfaces"):
        parse_interfaces(broken)


@pytest.mark.parametrize("kernel", ["xnu-2422.115.4", "xnu-3789.70.16", KERNEL, "xnu-12377.1.9"])
def test_what_flows_moved_is_compared_with_what_interfaces_carried(kernel):
    """Old counts, loopback and what was moved before the first look are no part of it; growing, new and ended flows are."""
    kernel = EmulatedKernel(kernel)
    old = kernel.open_tcp(501, "old", remote=SERVER, rx=10**6, interface="en0")
    local = kernel.open_tcp(502, "local", remote=("127.0.0.1", 80), interface="lo0")
    monitor = watched(kernel)
    assert seen(monitor) is None
    monitor.run(2.5)
    assert seen(monitor) == Coverage(0, 0, 0, 0)
    old.transfer(rx=144_800, tx=1448)
    local.transfer(rx=10**6)
    fresh = kernel.open_tcp(503, "fresh", remote=SERVER, rx=1448, interface="en1")
    monitor.run(1.0)
    fresh.transfer(rx=1448)
    fresh.close()
    monitor.run(4.5)
    found = seen(monitor)
    assert (found.flow_rx_bytes, found.flow_tx_bytes) == (144_800 + 2 * 1448, 1448)
    assert (found.rx_bytes, found.tx_bytes) == (102 * 1502, 1502)
    assert found.rx_share == pytest.approx(1448 / 1502)
    assert found.rx_datagrams is None
    kernel.interface_transfer("en0", rx=10**6)
    monitor.run(4.0)
    assert unattributed_row(seen(monitor)).rx_bytes == 10**6 + 102 * 54


def test_what_an_old_flow_had_moved_is_no_part_of_it_though_its_counts_come_late():
    kernel = EmulatedKernel(KERNEL)
    kernel.open_tcp(501, "old", remote=SERVER, rx=10**6, interface="en0")
    kernel.advance_to(kernel.now_ns + 10**9)
    sources = VirtualMonitor(kernel, interval=None).session._current.table.sources.values()
    meter = _coverage.CoverageMeter(Kernel.parse(KERNEL), is_readable=True)
    for now, known in ((0.0, ()), (9.0, sources)):
        meter.begin(known, now)
        assert meter.go_on()
        meter.take(InterfacesRead(()))
    assert meter.statistics["coverage_flow_rx_bytes"] == 0


def test_flows_are_looked_at_in_slices(monkeypatch):
    """Each slice is a turn of its own, and only behind the last one are the interfaces asked for."""
    monkeypatch.setattr(_coverage, "SLICE", 2)
    kernel = EmulatedKernel(KERNEL)
    monitor = watched(kernel)
    flows = [kernel.open_tcp(501, "x", remote=SERVER, interface="en0") for _ in range(5)]
    monitor.run(3.5)
    for flow in flows:
        flow.transfer(rx=100)
    monitor.run(4.0)
    assert seen(monitor).flow_rx_bytes == 500


def test_a_flow_that_goes_on_over_another_control_socket_is_counted_once():
    kernel = EmulatedKernel(KERNEL)
    flow = kernel.open_tcp(501, "x", remote=SERVER, interface="en0", rx=10**6)
    monitor = watched(kernel)
    monitor.run(3.5)
    flow.transfer(rx=1000)
    monitor.session._sockets.want_resync(kernel.now)
    monitor.run(1.0)
    assert monitor.session.statistics()["resynchronisations"] == 1
    flow.transfer(rx=500)
    monitor.run(5.0)
    assert seen(monitor).flow_rx_bytes == 1500


@pytest.mark.parametrize(
    ("counters", "growth"),
    [
        ((4294966272, 1024), 2048),
        ((3_000_000_000, 705_032_704), 2_000_000_000),
        ((3000, 1000), 0),
        ((2**31 + 100, 100), 0),
        ((5_000_000_000, 10), 0),
        ((2**32, 10), 0),
        ((100, 5_000_000_000), 4_999_999_900),
    ],
    ids=["wraps", "wraps far", "began anew", "half way", "is wide and began anew", "just wide", "grows"],
)
def test_a_counter_that_the_kernel_cut_to_32_bits_goes_on(counters, growth):
    answers = [InterfacesRead(((4, value, 0),)) for value in counters]
    monitor = watched(EmulatedKernel(KERNEL), lookup=lambda _: answers.pop(0) if len(answers) > 1 else answers[0])
    monitor.run(6.0)
    assert seen(monitor).rx_bytes == growth


def test_interfaces_are_asked_for_when_all_flows_were_looked_at_and_again_when_the_answer_came(monkeypatch):
    monkeypatch.setattr(_coverage, "SLICE", 2)
    kernel = EmulatedKernel(KERNEL)
    for _ in range(3):
        kernel.open_tcp(501, "x", remote=SERVER, interface="en0")
    sources = [*VirtualMonitor(kernel, interval=None).session._current.table.sources.values()]
    sources += [attrs.evolve(sources[0], flow=None), attrs.evolve(sources[0], raw=None)]
    meter = _coverage.CoverageMeter(Kernel.parse(KERNEL), is_readable=True)
    for now, asked in ((0.0, [False, False, True, False]), (9.0, [False] * 4)):
        meter.begin(sources, now)
        assert [meter.go_on() for _ in range(4)] == asked
    meter.take(InterfacesRead(()))
    meter.begin(sources, 9.0)
    assert [meter.go_on() for _ in range(4)] == [False, False, True, False]


def test_what_each_direction_grew_by_since_the_first_look_is_added_up():
    kernel = EmulatedKernel(KERNEL)
    monitor = VirtualMonitor(kernel, interval=1.0)
    kernel.advance(1.0)
    flow = kernel.open_tcp(501, "x", remote=SERVER, interface="en0", rx=10, tx=20)
    meter = _coverage.CoverageMeter(Kernel.parse(KERNEL), is_readable=True)

    def look(rx: int = 0, tx: int = 0) -> None:
        flow.transfer(rx=rx, tx=tx)
        monitor.run(5.0)
        meter.begin(monitor.session._current.table.sources.values(), kernel.now)
        assert meter.go_on()
        meter.take(InterfacesRead(()))

    look(), look(tx=7), look(rx=5)
    kernel.open_tcp(502, "y", remote=SERVER, interface="en0", tx=4)
    source = next(iter(monitor.session._current.table.sources.values()))
    meter.measure(attrs.evolve(source, corrected=(0, 115, 0, 227)))  # its counters fell, and are reported as they were
    look(tx=3)
    found = Coverage.of(meter.statistics)
    assert (found.flow_rx_bytes, found.flow_tx_bytes) == (105, 214)


def test_interfaces_are_looked_at_every_other_second():
    asked = []
    monitor = watched(EmulatedKernel(KERNEL), lookup=lambda request: asked.append(request) or InterfacesRead(()))
    monitor.run(7.5)
    assert len(asked) == 4


def test_where_nobody_can_answer_it_stays_unknown_and_is_not_asked_again():
    asked = []
    monitor = watched(EmulatedKernel(KERNEL), lookup=asked.append)
    monitor.run(10.0)
    assert (seen(monitor), len(asked)) == (None, 1)


def test_a_monitor_of_the_emulated_kernel_says_how_much_it_sees_and_so_does_its_replay(tmp_path):
    tape = tmp_path / "tape"

    async def main():
        kernel = EmulatedKernel(KERNEL)
        flow = kernel.open_tcp(501, "x", remote=SERVER, interface="en0")
        async with Monitor(backend=kernel.backend(), interval=0.5, record_to=tape) as monitor:
            with anyio.fail_after(120):
                while not (found := monitor.statistics().coverage) or not found.flow_rx_bytes:
                    flow.transfer(rx=1448)
                    await anyio.sleep(0.2)
        found = monitor.statistics().coverage
        assert found.rx_share > 0
        async with Monitor(backend=backends.Replay(tape)) as replayed:
            async for _ in replayed:
                pass
            assert replayed.statistics().coverage == found

    anyio.run(main)
