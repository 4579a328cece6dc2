"""Counters by medium of macOS 26: as the kernel's own structures held them, loopback included."""

from __future__ import annotations

import copy
import pickle

import conversations
import pytest
from conversation_play import play, reference
from virtual import VirtualMonitor

from nstat_async import Counts, FlowAdded, FlowRemoved, MediumCounts, MonitorOptions, Provider
from nstat_async.json import dumps, loads, to_dict
from nstat_async.ntstat import Kernel
from nstat_async.testing import EmulatedKernel

SIX = ("cellular", "wifi_infra", "wifi_non_infra", "wired", "bluetooth", "alternate")


def four(block):
    return tuple(block.get(f"ts_{name}", 0) for name in ("rxbytes", "txbytes", "rxpackets", "txpackets"))


def of(counts: MediumCounts):
    return (counts.rx_bytes, counts.tx_bytes, counts.rx_packets, counts.tx_packets)


def truth_at(history, time_ns):
    """The newest entry that had been set by then."""
    return [entry for entry in history["history"] if entry["t"] <= time_ns][-1:]


@pytest.mark.parametrize("name", conversations.names("control/xnu-12377*/*", with_truth=True))
def test_media_and_loopback_are_what_the_kernel_held(name):
    truth = conversations.truth(name)["sources"]
    providers = Kernel.parse(conversations.kernel(name)).providers
    _, steps = play(name, options=MonitorOptions(every_update=True))
    compared = 0
    for step in steps:
        for event in step.events:
            counts = getattr(event, "counts", None)
            lost = isinstance(event, FlowRemoved) and not event.final
            if not hasattr(event, "flow") or lost or counts is None or not counts.media:
                continue
            history = truth[str(step.client)].get(str(reference(event)))
            (entry,) = truth_at(history, step.line["t"]) if history else (None,)
            if entry is None or "media" not in entry:
                continue
            media = {medium: of(each) for medium, each in counts.media}
            assert {medium: media[medium] for medium in (*SIX, "total")} == {
                medium: four(entry["media"][medium]) for medium in (*SIX, "total")
            }
            provider, userland = providers[history["provider"]]
            if userland or provider not in {Provider.TCP, Provider.UDP}:
                assert "loopback" not in media
            else:
                assert media["loopback"] == four(entry["loopback"])
                for position in range(4):
                    assert media["total"][position] == sum(media[m][position] for m in (*SIX, "loopback"))
            compared += 1
    if name.endswith(("tcp_kernel_details", "media_loopback", "userland_packets", "udp_userland_details")):
        assert compared


def test_details_as_a_user_reads_them_are_equal_to_the_same_numbers():
    """Whether the kernel's bytes or numbers stand behind them, and after a trip through pickle."""
    kernel = EmulatedKernel("xnu-12377.121.6")
    flow = kernel.open_tcp(501, "curl", remote=("127.0.0.1", 80), interface="lo0", rx=100, tx=50)
    flow.transfer(1000, 500, interface="en0")
    monitor = VirtualMonitor(kernel, interval=None, extras=True)
    monitor.run(0.5)
    ((_, counts),) = monitor.session.flows()
    media = dict(counts.media)
    assert (media["loopback"].rx_bytes, media["wifi_infra"].rx_bytes, counts.wifi_rx_bytes) == (100, 1000, 1000)
    for twin in (copy.copy(counts), pickle.loads(pickle.dumps(counts)), Counts(media=counts.media, **counts.as_dict())):
        assert twin == counts
        assert hash(twin) == hash(counts)
        assert twin.media == counts.media
    assert counts != Counts(**counts.as_dict())


def test_a_monitor_that_proves_the_layout_keeps_to_details():
    kernel = EmulatedKernel("xnu-12377.121.6")
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=100, tx=50)
    monitor = VirtualMonitor(kernel, interval=0.5, extras=True, verify=True)
    had = []
    monitor.add_sink(lambda events: had.extend(bool(e.counts.media) for e in events if hasattr(e, "flow")))
    for _ in range(10):
        flow.transfer(1, 1)
        monitor.run(0.5)
    assert monitor.session.proof.value == "verified", monitor.session.capabilities.notes
    assert set(had) == {True}


def test_loopback_is_in_the_line_of_a_kernel_socket_and_unknown_elsewhere():
    kernel = EmulatedKernel("xnu-12377.121.6")
    kernel.open_tcp(501, "curl", remote=("127.0.0.1", 80), interface="lo0", rx=100, tx=50)
    kernel.open_tcp(501, "curl", remote=("192.0.2.1", 80), userland=True, rx=100, tx=50)
    said = {}
    for extras in (True, False):
        monitor = VirtualMonitor(kernel, interval=None, extras=extras)
        monitor.run(0.5)
        for flow, counts in monitor.session.flows():
            line = to_dict(FlowAdded(0.0, flow, counts, preexisting=True))
            assert loads(dumps(FlowAdded(0.0, flow, counts, preexisting=True))).counts == counts
            said[extras, flow.userland] = tuple(line["counts"].get(f"loopback_{way}_bytes") for way in ("rx", "tx"))
    assert said.pop((True, False)) == (100, 50)
    assert said == dict.fromkeys([(True, True), (False, False), (False, True)], (None, None))
