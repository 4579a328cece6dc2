"""Counters that do not simply grow: narrow ones, those that fall, those of the media."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from ntstat_play import Play, one
from ntstat_wire import Wire, address

from examples import examples
from nstat_async import FlowAdded, FlowRemoved, FlowUpdated
from nstat_async.ntstat import ExtensionItem, SourceDetails, SourceExtendedDetails
from nstat_async.ntstat._counters import advance


def test_narrow_counters_wrap_without_running_backwards():
    wire, play = Wire(11), Play(Wire(11))
    top = 2**32 - 10
    play(wire.report(1, wire.counts(10, 10, txretransmit=top), wire.descriptor(2)))
    event = one(play(wire.report(1, wire.counts(20, 20, txretransmit=5), wire.descriptor(2))), FlowUpdated)
    assert event.counts.tx_retransmitted_bytes == top + 15
    event = one(play(wire.report(1, wire.counts(30, 30, txretransmit=25), wire.descriptor(2))), FlowUpdated)
    assert event.counts.tx_retransmitted_bytes == top + 35
    assert play.session.statistics()["counters_adjusted"] == 2


def test_the_zeros_that_10_7_sends_for_closed_sockets_change_nothing():
    wire, play = Wire(1), Play(Wire(1))
    play(
        wire.added(1), wire.report(1, wire.counts(1000, 2000, rxduplicatebytes=2**31 + 7), wire.descriptor(2, state=4))
    )
    events = play(wire.report(1, wire.counts(0, 0), wire.descriptor(2, state=0)))
    assert one(events, FlowUpdated).counts.rx_bytes == 1000
    assert one(events, FlowUpdated).counts.rx_duplicate_bytes == 2**31 + 7
    removed = one(play(wire.described(1, wire.descriptor(2)), wire.removed(1)), FlowRemoved)
    assert (removed.counts.rx_bytes, removed.counts.tx_bytes) == (1000, 2000)
    assert removed.final is False  # the minute-timer describes and removes, and counts nothing


def test_counters_that_a_process_writes_may_fall_and_are_held():
    wire, play = Wire(11), Play(Wire(11))
    report = [wire.updated(1, wire.counts(rx, 5, wifi_rxbytes=w), wire.descriptor(3), provider=3)
              for rx, w in ((100, 80), (40, 90), (120, 10), (130, 95))]  # fmt: skip
    told = [play(data)[0].counts for data in report]
    assert [c.rx_bytes for c in told] == [100, 100, 120, 130]
    assert [c.wifi_rx_bytes for c in told] == [80, 90, 90, 95]


_READINGS = st.lists(
    st.tuples(*[st.integers(0, 2**64 - 1)] * 10, *[st.integers(0, 2**32 - 1)] * 8), min_size=2, max_size=8
)


@settings(deadline=None, max_examples=examples(120))
@given(_READINGS, st.sampled_from([2, 3, 4, 8]))
def test_no_reading_ever_makes_a_told_counter_fall(readings, provider):
    wire, play = Wire(11), Play(Wire(11))
    told = None
    # A kernel's packets and bytes never fall (and the media with them); a process may write anything.
    watched = (0, 1, 2, 3, 10, 11, 12) if provider in {2, 4} else range(13)
    for values in readings:
        counts = struct.pack("<10Q8I", *values)
        descriptor = wire.descriptor(provider)
        for event in play(wire.updated(1, counts, descriptor, provider=provider)):
            before = told.as_dict() if told is not None else {}
            for name, value in [list(event.counts.as_dict().items())[position] for position in watched]:
                if before.get(name) is not None:
                    assert value >= before[name]
            told = event.counts


@settings(deadline=None, max_examples=examples(120))
@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_growth_across_any_number_of_wraps_adds_up(steps):
    raw = told = (0,) * 18
    total = 0
    for step in steps:
        total += step
        new = (*(v + 1 for v in raw[:10]), *[total & 0xFFFFFFFF] * 3, 0, 0, 0, 0, 0)
        told, raw = advance(told, raw, new), new
    assert told[10] == told[11] == told[12] == total


def test_detailed_counters_of_26_have_every_medium():
    wire, play = Wire(12), Play(Wire(12))
    media = ("total", "cellular", "wifi_infra", "wifi_non_infra", "wired", "bluetooth", "alternate")
    values = {"rxduplicatebytes": 2**40, "min_rtt": 32, "avg_rtt": 64, "var_rtt": 16}
    for index, medium in enumerate(media):
        for offset, name in enumerate(("rxpackets", "rxbytes", "txpackets", "txbytes")):
            values[f"media_stats.{medium}.{name}"] = 100 * index + offset
    detailed = wire.layout["nstat_detailed_counts"].encode(values)
    descriptor = wire.descriptor(2, remote=address("192.0.2.9", 443))
    event = one(play(SourceDetails(srcref=1, detailed_counts=detailed, provider=2, descriptor=descriptor)
                     .encode(wire.layout)), FlowAdded)  # fmt: skip
    counts = event.counts
    assert (counts.rx_packets, counts.rx_bytes, counts.tx_packets, counts.tx_bytes) == (0, 1, 2, 3)
    assert (counts.cell_rx_bytes, counts.wired_tx_bytes) == (101, 403)
    assert (counts.wifi_rx_bytes, counts.wifi_tx_bytes) == (201 + 301, 203 + 303)
    assert (counts.rx_duplicate_bytes, counts.connect_attempts) == (2**40, None)
    assert (counts.min_rtt_us, counts.avg_rtt_us, counts.var_rtt_us) == (1000, 2000, 1000)
    assert [name for name, _ in counts.media] == [*media, "loopback"]
    assert dict(counts.media)["bluetooth"].tx_bytes == 503
    item = ExtensionItem(6, 32, struct.pack("<4Q", 1, 2, 3, 4))
    extended = SourceExtendedDetails(
        srcref=2, detailed_counts=detailed, provider=2, descriptor=descriptor, items=(item,)
    )
    details = one(play(extended.encode(wire.layout)), FlowAdded).details
    assert (details.bluetooth.rx_packets, details.bluetooth.rx_bytes) == (1, 2)
    # An update in between, which has no media, neither loses nor invents bytes.
    event = one(play(wire.updated(1, wire.counts(50, 50), descriptor)), FlowUpdated)
    assert (event.counts.rx_bytes, event.counts.rx_duplicate_bytes) == (50, 2**40)
