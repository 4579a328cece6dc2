from __future__ import annotations

import pytest
from conversation_play import play
from virtual import VirtualMonitor

from nstat_async import FlowEvent, InterfaceKind, InterfaceUpdated, MonitorOptions, Provider, RouteUpdated, filters
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


def test_an_interface_that_comes_later_gets_its_name_and_kind_and_keeps_them_until_another_has_its_number():
    kernel = EmulatedKernel("xnu-11417.121.6")
    told = []
    monitor = VirtualMonitor(kernel, coverage=True, sink=told.extend)
    monitor.run(4.0)
    kernel.add_interface("utun7", 33, InterfaceKind.WIFI)  # a VPN with the bits of what carries it
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), interface="utun7", rx=10)

    def news() -> list[tuple[str | None, InterfaceKind | None, int]]:
        flows = [(event.flow, event.counts.rx_bytes) for event in told if isinstance(event, FlowEvent)]
        told.clear()
        return [(flow.interface.name, flow.interface.kind, rx) for flow, rx in flows]

    monitor.run(4.0)
    assert news() == [(None, InterfaceKind.WIFI, 10), ("utun7", InterfaceKind.VPN, 10)]
    assert dict(monitor.session.setup.interfaces)[33] == "utun7", "a recording's next part begins with it"
    del kernel.interfaces["utun7"]
    monitor.run(4.0)
    flow.transfer(rx=5)
    monitor.run(4.0)
    assert news() == [("utun7", InterfaceKind.VPN, 15)]
    kernel.add_interface("en9", 33, InterfaceKind.WIFI)
    monitor.run(4.0)
    assert news() == [("en9", InterfaceKind.WIFI, 15)]
    monitor.run(10.0)
    assert news() == []


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


def kinds(release, act):
    """Kind of the interface of one flow after each act."""
    kernel = EmulatedKernel(release)
    flow, found = None, []
    for step in act:
        flow = step(kernel) if flow is None else step(flow) or flow
        monitor = VirtualMonitor(kernel, interval=None)
        monitor.run(0.5)
        ((seen, _),) = monitor.session.flows()
        found.append(seen.interface.kind)
    return found


def test_a_udp_socket_that_was_on_loopback_before_is_told_by_its_addresses():
    """The kernel keeps the bits of loopback beside those of Wi-Fi for ever (xnu-12377)."""

    def again(flow):
        flow.disconnect()
        flow.connect(("198.51.100.7", 53), local=("192.168.1.10", 5353), interface="en0")

    def back(flow):
        flow.disconnect()
        flow.connect(("127.0.0.1", 53), local=("127.0.0.1", 5353), interface="lo0")

    def first(kernel):
        return kernel.open_udp(remote=("127.0.0.1", 53), local=("127.0.0.1", 5353), interface="lo0", rx=1)

    assert kinds("xnu-12377.121.6", [first, again, back]) == [
        InterfaceKind.LOOPBACK, InterfaceKind.WIFI, InterfaceKind.LOOPBACK,
    ]  # fmt: skip


def test_one_end_of_a_loopback_connection_without_the_bit_is_loopback():
    bits = InterfaceProperty.WIFI | InterfaceProperty.WIFI_INFRA
    opened = lambda kernel: kernel.open_tcp(remote=("127.0.0.1", 80), ifnet_properties=int(bits), interface="lo0")  # noqa: E731
    assert kinds("xnu-11417.121.6", [opened]) == [InterfaceKind.LOOPBACK]


def test_a_connection_of_the_machine_to_an_address_of_its_own_is_loopback():
    ends = {"local": ("192.168.1.10", 5000), "remote": ("192.168.1.10", 80)}
    assert kinds("xnu-11417.121.6", [lambda kernel: kernel.open_tcp(**ends, interface="lo0")]) == [
        InterfaceKind.LOOPBACK
    ]
    other = {"local": ("192.168.1.10", 5000), "remote": ("10.0.0.1", 80)}  # another address of its own
    assert kinds("xnu-11417.121.6", [lambda kernel: kernel.open_tcp(**other, interface="lo0")]) == [
        InterfaceKind.LOOPBACK
    ]


def test_a_tunnels_flow_with_the_bits_of_what_carries_it_is_a_tunnels():
    bits = int(InterfaceProperty.WIFI | InterfaceProperty.WIFI_INFRA)
    opened = lambda kernel: kernel.open_tcp(remote=("198.51.100.7", 80), ifnet_properties=bits, interface="utun0")  # noqa: E731
    assert kinds("xnu-11417.121.6", [opened]) == [InterfaceKind.VPN]


def test_the_recorded_socket_that_moved_from_loopback_to_wifi_is_on_wifi():
    name = "control/xnu-12377.121.6/udp_reconnect_loopback_wifi"
    _, steps = play(name, options=MonitorOptions(every_update=True))
    flows = [event.flow for step in steps for event in step.events if hasattr(event, "flow")]
    seen = {(flow.interface.kind, flow.remote.is_loopback) for flow in flows if flow.interface and flow.remote}
    assert seen == {(InterfaceKind.LOOPBACK, True), (InterfaceKind.WIFI, False)}
    last = flows[-1]
    assert not filters.loopback()(last)
