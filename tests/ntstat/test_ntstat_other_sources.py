"""Events other than flows: routes, interfaces, system information."""

from __future__ import annotations

import struct

import pytest
from ntstat_play import LAYOUTS, Play, one
from ntstat_wire import Wire, address

from nstat_async import InterfaceUpdated, RouteUpdated, SystemInfo
from nstat_async.ntstat import SystemInfoCounts


@pytest.mark.parametrize("number", LAYOUTS)
def test_routes_are_events_of_their_own(number):
    wire, play = Wire(number), Play(Wire(number))
    descriptor = wire.layout["nstat_route_descriptor"].encode(
        {"dst": address("192.0.2.0"), "mask": address(None), "gateway": address("192.0.2.1"), "ifindex": 4, "flags": 3}
    )
    report = [wire.counted(1, wire.counts(5, 6), context=9), wire.described(1, descriptor, provider=1, context=9)]
    events = play(wire.added(1, provider=1), report, wire.removed(1))
    assert {type(e) for e in events} == {RouteUpdated}
    assert [e.removed for e in events] == [False] * (len(events) - 1) + [True]
    event = events[-1]
    assert (event.destination.address, event.mask, event.gateway.address) == ("192.0.2.0", None, "192.0.2.1")
    assert (event.interface.index, event.flags, event.counts.tx_bytes) == (4, 3, 6)


@pytest.mark.parametrize("number", [n for n in LAYOUTS if n >= 3])
def test_interfaces_are_events_of_their_own(number):
    wire, play = Wire(number), Play(Wire(number))
    codec = wire.layout["nstat_ifnet_descriptor"]
    at = "link_status.u.wifi."
    fields = {"ifindex": 4, "name": b"en0", "description": b"Wi-Fi", "threshold": 1 << 20}
    if number >= 5:
        fields |= {"link_status.link_status_type": 2, at + "valid_bitmask": 0b101, at + "link_quality_metric": 70}
        fields |= {at + "ul_max_bandwidth": 900}
    provider = 4 if number < 6 else 6
    report = [
        wire.added(1, provider=provider, context=5),
        wire.described(1, codec.encode(fields), provider=provider),
        wire.counted(1, wire.counts(5, 6)),
    ]
    event = play(report)[-1]
    assert isinstance(event, InterfaceUpdated)
    assert (event.interface.index, event.interface.name, event.description) == (4, "en0", "Wi-Fi")
    assert (event.threshold, event.counts.rx_bytes) == (1 << 20, 5)
    assert event.link == ((("link_quality_metric", 70), ("ul_max_bandwidth", 900)) if number >= 5 else ())


@pytest.mark.parametrize("number", [n for n in LAYOUTS if n >= 4])
def test_system_information_is_keys_with_values_of_their_kind(number):
    wire, play = Wire(number), Play(Wire(number))
    codec = wire.layout["nstat_sysinfo_keyval"]
    entries = codec.encode({"nstat_sysinfo_key": 1, "nstat_sysinfo_flags": 1, "u.nstat_sysinfo_scalar": -5})
    entries += codec.encode({"nstat_sysinfo_key": 2, "nstat_sysinfo_flags": 2, "u.nstat_sysinfo_distribution": 0.5})
    entries += codec.encode({"nstat_sysinfo_key": 3, "nstat_sysinfo_flags": 2})[:8] + struct.pack("<d", float("inf"))
    entries += bytes(codec.size - 16)
    entries += codec.encode({"nstat_sysinfo_key": 4, "nstat_sysinfo_flags": 8})
    string = {"nstat_sysinfo_key": 5, "nstat_sysinfo_flags": 4}
    if number >= 7:
        string |= {"u.nstat_sysinfo_string": b"sig\0", "nstat_sysinfo_valsize": 4}
    entries += codec.encode(string)
    message = SystemInfoCounts(size=len(entries), entries=entries + b"rest")
    expected = [(1, -5), (2, 0.5)] + ([(5, "sig")] if number >= 7 else [])
    assert one(play(message.encode(wire.layout)), SystemInfo).values == tuple(expected)
