from __future__ import annotations

import pytest
from virtual import VirtualMonitor

from nstat_async import InterfaceKind, InterfaceUpdated, Provider, RouteUpdated
from nstat_async.ntstat import InterfaceProperty, Kernel
from nstat_async.ntstat._translate import Translator
from nstat_async.testing import EmulatedKernel

TRANSLATOR = Translator(Kernel.parse("xnu-11417.121.6"), interfaces={4: "en0"})


def test_where_only_the_kind_is_known_the_index_is_not_made_up():
    interface = TRANSLATOR.interface(None, int(InterfaceProperty.WIFI))
    assert (interface.index, interface.name, interface.kind) == (None, None, InterfaceKind.WIFI)


def test_before_the_first_packet_there_is_no_interface():
    assert TRANSLATOR.interface(0, int(InterfaceProperty.UNKNOWN_TYPE)) is None


def test_an_index_brings_its_name():
    assert TRANSLATOR.interface(4, int(InterfaceProperty.WIFI)).name == "en0"


@pytest.mark.parametrize("release", ["xnu-11417.121.6", "xnu-12377.121.6"])
def test_with_extras_routes_and_interfaces_keep_their_counters_though_they_have_no_details(release):
    kernel = EmulatedKernel(release, privileged=True)
    kernel.add_route("203.0.113.9").set(nstat_rxbytes=1000)
    kernel.interface_transfer("en0", rx=3_000_000)
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10)
    told = []
    monitor = VirtualMonitor(kernel, extras=True, providers={Provider.TCP, Provider.ROUTE, Provider.INTERFACE})
    monitor.add_sink(told.extend)
    for _ in range(4):
        flow.transfer(rx=10)
        monitor.run(1.0)
    assert {event.counts.rx_bytes for event in told if isinstance(event, RouteUpdated)} == {1000}
    interfaces = {e.interface.name: e.counts.rx_bytes for e in told if isinstance(e, InterfaceUpdated)}
    assert interfaces["en0"] == 3_000_000
    ((_, counts),) = monitor.session.flows()
    assert counts.rx_bytes == 50
    assert bool(counts.media) is release.startswith("xnu-12377")
    assert monitor.picture.complete_polls == monitor.picture.polls
