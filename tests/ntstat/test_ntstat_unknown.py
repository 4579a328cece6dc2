"""What a kernel sends that is longer, shorter, unknown or broken."""

from __future__ import annotations

import struct

import pytest
from ntstat_play import Play, one
from ntstat_wire import NEWER, Wire, address

from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    InterfaceKind,
    LossCause,
    MonitorOptions,
    ProtocolError,
    Provider,
    TcpState,
    Unrecognized,
)
from nstat_async.ntstat import ExtensionItem, Mode, RemoveSource, Session, UnknownMessage
from nstat_async.ntstat._decoder import _LONGEST_GROWTH
from nstat_async.ntstat._references import MAX_MISSING


def test_a_longer_descriptor_of_a_known_kernel_is_read_and_its_rest_kept():
    wire, play = Wire(11), Play(Wire(11))
    data = wire.descriptor(2, uid=501, remote=address("192.0.2.9", 443)) + b"newer than known"
    event = one(play(wire.updated(1, wire.counts(5, 5), data)), FlowAdded)
    assert (event.flow.process.uid, str(event.flow.remote)) == (501, "192.0.2.9:443")
    assert event.details.undecoded == b"newer than known"
    assert play.session.statistics()["unknown_lengths"] == 1


def test_a_shorter_descriptor_is_not_read_and_its_counters_are():
    wire, play = Wire(11), Play(Wire(11))
    events = play(wire.updated(1, wire.counts(5, 5), wire.descriptor(2)[:100]))
    added, loss = one(events, FlowAdded), one(events, EventsLost)
    assert (added.counts.rx_bytes, added.flow.process, added.flow.provider) == (5, None, Provider.TCP)
    assert loss.cause is LossCause.PROTOCOL
    assert "100 bytes, expected 344" in loss.detail
    assert one(play(wire.updated(1, wire.counts(6, 5), wire.descriptor(2)[:100])), FlowUpdated)  # and is told once


def test_a_descriptor_of_another_release_s_length_is_read_as_that_release_s():
    wire, play, other = Wire(11), Play(Wire(11)), Wire(10)
    data = other.descriptor(2, ifnet_properties=8, ifindex=4)
    flow = one(play(wire.updated(1, wire.counts(5, 5), data)), FlowAdded).flow
    assert flow.interface.kind is InterfaceKind.WIFI
    assert flow.process.uid is None


def test_of_darwin_27_s_longer_tcp_descriptor_the_part_through_the_name_is_believed():
    wire, play = Wire(NEWER), Play(Wire(NEWER))
    known = wire.descriptor(2, remote=address("192.0.2.9", 443), state=4, uid=501, uuid=b"u" * 16, ifnet_properties=8)
    data = known[:260] + b"\xff" * 16 + known[260:]
    event = one(play(wire.updated(1, wire.counts(5, 5), data)), FlowAdded)
    flow = event.flow
    assert (str(flow.remote), flow.state, flow.process.name) == ("192.0.2.9:443", TcpState.ESTABLISHED, "curl")
    assert (flow.process.uid, flow.process.uuid, flow.vpn_uuid, flow.uuid) == (None, None, None, None)
    assert (flow.interface, flow.fallback_mode, event.details.connection_status) == (None, None, None)
    assert event.details.undecoded == data[260:]
    # Exactly as long as the newest known: nothing speaks against it.
    flow = one(play(wire.updated(2, wire.counts(5, 5), known)), FlowAdded).flow
    assert flow.process.uid == 501


@pytest.mark.parametrize("extra", [0, 16, 24, _LONGEST_GROWTH])
def test_items_behind_a_longer_descriptor_of_a_newer_kernel_are_found(extra):
    wire, play = Wire(NEWER), Play(Wire(NEWER))
    known = wire.descriptor(2, remote=address("192.0.2.9", 443), uid=0, connstatus=0, ifnet_properties=2)
    data = known[:260] + b"\xff" * extra + known[260:]
    items = (
        ExtensionItem(5, 16, b"f" * 16),
        ExtensionItem(6, 32, struct.pack("<4Q", 1, 2, 3, 4)),
        ExtensionItem(1, 1056, wire.layout["nstat_domain_info"].encode({"domain_name": b"example.org"})),
    )
    event = one(play(wire.updated(1, wire.counts(5, 5), data, items=items)), FlowAdded)
    assert (event.details.domain.name, event.details.bluetooth.tx_bytes) == ("example.org", 4)
    assert str(event.flow.remote) == "192.0.2.9:443"
    assert event.flow.process.uid == (None if extra else 0)
    # Where nothing looks like items, the known length stands.
    strange = (ExtensionItem(99, 8, b"whatever"),)
    event = one(play(wire.updated(2, wire.counts(5, 5), known, items=strange)), FlowAdded)
    assert event.flow.process.uid == 0


def test_an_unknown_provider_keeps_its_counters_and_its_number():
    wire, play = Wire(11), Play(Wire(11))
    flow = one(play(wire.updated(1, wire.counts(5, 6), b"opaque", provider=77)), FlowAdded)
    assert (flow.flow.provider, flow.flow.provider_id, flow.counts.tx_bytes) == (Provider.UNKNOWN, 77, 6)
    assert flow.details.undecoded == b"opaque"
    items = (ExtensionItem(5, 16, b"f" * 16),)
    extended = wire.updated(2, wire.counts(5, 6), b"opaque", provider=77, items=items)
    assert one(play(extended + wire.success(3)), FlowAdded).details.undecoded == b"opaque" + extended[-24:]
    assert one(play(wire.removed(1)), FlowRemoved).flow.id == "1.1"


def test_unknown_types_are_handed_on_whole_and_unknown_flags_ignored():
    wire, play = Wire(11), Play(Wire(11))
    strange = UnknownMessage(number=31_337, context=5, body=b"hello").encode(wire.layout)
    known = wire.updated(1, wire.counts(5, 5), wire.descriptor(2), flags=0x7F00)
    events = play(strange + known)
    assert one(events, Unrecognized) == Unrecognized(1000.0, 31_337, strange)
    assert one(events, FlowAdded)


def test_broken_bytes_cost_themselves_and_are_told_or_raised():
    wire = Wire(11)
    good = wire.updated(1, wire.counts(5, 5), wire.descriptor(2))
    short = struct.pack("<QIHH", 0, 10004, 40, 0) + bytes(24)
    overlong = struct.pack("<QIHH", 0, 10006, 400, 0) + bytes(50)
    events = Play(wire)(short + good + overlong)
    assert [type(e) for e in events] == [EventsLost, FlowAdded, EventsLost] or [type(e) for e in events] == [
        FlowAdded,
        EventsLost,
        EventsLost,
    ]
    assert all(e.cause is LossCause.PROTOCOL for e in events if isinstance(e, EventsLost))
    strict = Session(wire.kernel, options=MonitorOptions(strict=True), mode=Mode.FOLLOWING)
    with pytest.raises(ProtocolError) as caught:
        strict.receive_datagram(short, 0.0)
    assert caught.value.raw == short
    assert Play(wire)(good + b"tail") == Play(wire)(good)  # too short for a header: nothing was lost


def test_the_state_of_a_session_stays_small_whatever_numbers_arrive():
    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1, filter=0x100000))
    play(wire.success(1))
    table = play.session._current.table
    for number in range(1, 3000):
        play(wire.counted(number * 50_000, wire.counts()), wire.removed(number * 50_000))
        play(wire.added(number * 50_000 + 1, provider=number + 1000), wire.removed(number * 50_000 + 1))
        play(wire.updated(number * 50_000 + 2, wire.counts(), b"x" * (number % 1500), provider=number))
        play(wire.removed(number * 50_000 + 2))
        play.ask(RemoveSource(context=number, srcref=number).encode(wire.layout))
    assert len(table.references.missing) <= MAX_MISSING
    assert len(table.readers._bare) <= 20
    assert len(table.readers._readers) <= 1025
    assert len(table.readers._surprises) <= 257
    assert len(play.session._current._asked) <= 4096
    assert not table.sources
    assert not table.given_up
