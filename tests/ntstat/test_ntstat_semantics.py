"""What the wire's values mean: units, unknowns, traps and oddities of releases."""

from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ntstat_wire import NEWER, NEWEST_OF_LAYOUT, Wire, address

from nstat_async import (
    Direction,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    InterfaceKind,
    InterfaceUpdated,
    LossCause,
    MonitorOptions,
    ProtocolError,
    Provider,
    RemovalReason,
    RouteUpdated,
    SystemInfo,
    TcpState,
    Unrecognized,
)
from nstat_async.ntstat import (
    ExtensionItem,
    Mode,
    RemoveSource,
    Session,
    SourceDetails,
    SourceExtendedDetails,
    SystemInfoCounts,
    UnknownMessage,
)
from nstat_async.ntstat._counters import advance
from nstat_async.ntstat._references import MAX_MISSING
from nstat_async.ntstat._translate import decode_text, interface_kind

LAYOUTS = sorted(NEWEST_OF_LAYOUT)
WITH_UPDATES = [n for n in LAYOUTS if n >= 5]
NATURAL = [n for n in LAYOUTS if n >= 7]


class Play:
    """A passive session that is fed by hand."""

    def __init__(self, wire: Wire, **options) -> None:
        self.wire = wire
        self.session = Session(wire.kernel, mode=Mode.FOLLOWING, **options)
        self.now = 1000.0

    def __call__(self, *datagrams: bytes | list[bytes]) -> list:
        for entry in datagrams:
            for datagram in entry if isinstance(entry, list) else [entry]:
                self.session.receive_datagram(datagram, self.now)
        return self.session.take_events()

    def ask(self, request: bytes) -> None:
        self.session.observe_request(request, self.now)


def one(events: list, kind: type):
    (found,) = [e for e in events if isinstance(e, kind)]
    return found


@pytest.mark.parametrize("number", LAYOUTS)
def test_round_trip_times_are_microseconds_and_unknown_without_a_sample(number):
    wire, play = Wire(number), Play(Wire(number))
    event = one(play(wire.report(1, wire.counts(min_rtt=32, avg_rtt=64, var_rtt=16), wire.descriptor(2))), FlowAdded)
    assert (event.counts.min_rtt_us, event.counts.avg_rtt_us, event.counts.var_rtt_us) == (1000, 2000, 1000)
    # Without a sample the kernel leaves the variance at its initial value, which means nothing.
    event = one(play(wire.report(2, wire.counts(var_rtt=4000), wire.descriptor(2))), FlowAdded)
    assert (event.counts.min_rtt_us, event.counts.avg_rtt_us, event.counts.var_rtt_us) == (None, None, None)


@pytest.mark.parametrize("number", LAYOUTS)
def test_what_a_release_does_not_count_is_unknown_and_not_zero(number):
    wire, play = Wire(number), Play(Wire(number))
    counts = one(play(wire.report(1, wire.counts(5, 7), wire.descriptor(2))), FlowAdded).counts
    assert (counts.rx_bytes, counts.tx_bytes) == (5, 7)
    assert counts.cell_rx_bytes == counts.wifi_tx_bytes == (0 if number >= 3 else None)
    assert counts.wired_rx_bytes == (0 if number >= 4 else None)
    udp = one(play(wire.report(2, wire.counts(5, 7), wire.descriptor(wire.udp), provider=wire.udp)), FlowAdded)
    assert udp.flow.provider is Provider.UDP
    assert udp.counts.tx_retransmitted_bytes is None
    assert udp.counts.connect_attempts is None
    assert udp.counts.avg_rtt_us is None
    assert udp.flow.state is udp.flow.direction is None
    assert (udp.details.congestion_window, udp.details.send_buffer_size) == (None, None)


@pytest.mark.parametrize("timebase", [(1, 1), (125, 3)])
@pytest.mark.parametrize("number", NATURAL)
def test_a_flow_s_beginning_is_its_age_before_the_report_whatever_a_tick_is(number, timebase):
    wire = Wire(number)
    play = Play(wire, timebase=timebase)
    ticks = 24_000_000 if timebase == (125, 3) else 1_000_000_000
    descriptor = wire.descriptor(2, start_timestamp=7 * ticks, timestamp=10 * ticks)
    flow = one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow
    assert flow.started_ns == 997_000_000_000
    # A later report of the same socket leaves it where it was, to the nanosecond.
    play.now += 1.23456789
    later = wire.descriptor(2, start_timestamp=7 * ticks, timestamp=11 * ticks, state=4)
    assert one(play(wire.report(1, wire.counts(), later)), FlowUpdated).flow.started_ns == flow.started_ns
    # A clock that runs backwards says nothing.
    odd = wire.descriptor(2, start_timestamp=9 * ticks, timestamp=8 * ticks)
    assert one(play(wire.report(2, wire.counts(), odd)), FlowAdded).flow.started_ns is None


@pytest.mark.parametrize("number", [n for n in LAYOUTS if n < 7])
def test_old_kernels_do_not_tell_a_beginning_unless_they_announced_it(number):
    wire, play = Wire(number), Play(Wire(number))
    assert one(play(wire.report(1, wire.counts(), wire.descriptor(2))), FlowAdded).flow.started_ns is None
    flow = one(play(wire.added(2), wire.report(2, wire.counts(), wire.descriptor(2))), FlowAdded).flow
    assert flow.started_ns == 1_000_000_000_000


def test_addresses_scopes_mapped_and_unspecified_ends():
    wire, play = Wire(11), Play(Wire(11))
    descriptor = wire.descriptor(2, local=address("fe80::1", 5, 4), remote=address("fe80::2", 6, 9))
    flow = one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow
    assert str(flow.local) == "[fe80::1%4]:5"
    assert str(flow.remote) == "[fe80::2%9]:6"
    descriptor = wire.descriptor(2, local=address("::ffff:192.0.2.1", 80), remote=address("::", 0))
    flow = one(play(wire.report(2, wire.counts(), descriptor)), FlowAdded).flow
    assert str(flow.local) == "192.0.2.1:80"
    assert flow.remote is None
    descriptor = wire.descriptor(2, local=address("0.0.0.0", 80), remote=address(None))
    flow = one(play(wire.report(3, wire.counts(), descriptor)), FlowAdded).flow
    assert (flow.local.is_unspecified, flow.local.port, flow.remote) == (True, 80, None)


@pytest.mark.parametrize(
    ("bits", "remote", "expected"),
    [
        (0x2000000, None, Direction.LISTENER),
        (0x4000000, "192.0.2.9", Direction.INBOUND),
        (0x8000000, "192.0.2.9", Direction.OUTBOUND),
        (0, "192.0.2.9", Direction.OUTBOUND),
        (0, None, None),
    ],
)
def test_new_kernels_say_who_began(bits, remote, expected):
    wire, play = Wire(11), Play(Wire(11))
    descriptor = wire.descriptor(2, ifnet_properties=bits, remote=address(remote, 443 if remote else 0))
    assert one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow.direction is expected


def test_on_new_kernels_who_began_a_connection_stays_so_whoever_listens_on_its_port():
    wire, play = Wire(11), Play(Wire(11))
    here = address("192.0.2.1", 80)
    began = wire.descriptor(2, ifnet_properties=0x8000000, local=here, remote=address("192.0.2.9", 999))
    assert one(play(wire.report(1, wire.counts(), began)), FlowAdded).flow.direction is Direction.OUTBOUND
    listener = wire.descriptor(2, ifnet_properties=0x2000000, local=here, remote=address(None, 0), state=1)
    (event,) = play(wire.report(2, wire.counts(), listener))
    assert event.flow.direction is Direction.LISTENER


def test_older_kernels_direction_follows_from_the_state_and_the_listeners():
    wire, play = Wire(8), Play(Wire(8))

    def flow(ref: int, port: int, state: int, remote: str | None = "192.0.2.9"):
        descriptor = wire.descriptor(
            2, local=address("192.0.2.1", port), remote=address(remote, 999 if remote else 0), state=state
        )
        return play(wire.report(ref, wire.counts(), descriptor))

    assert one(flow(1, 50_000, 2), FlowAdded).flow.direction is Direction.OUTBOUND  # SYN sent
    assert one(flow(2, 50_001, 3), FlowAdded).flow.direction is Direction.INBOUND  # SYN received
    assert one(flow(3, 80, 4), FlowAdded).flow.direction is Direction.OUTBOUND  # as far as is known
    events = flow(4, 80, 1, None)  # polls come newest first: the listener is read after its connection
    assert one(events, FlowAdded).flow.direction is Direction.LISTENER
    corrected = one(events, FlowUpdated).flow
    assert (corrected.id, corrected.direction) == ("1.3", Direction.INBOUND)
    assert one(flow(5, 80, 4), FlowAdded).flow.direction is Direction.INBOUND
    play(wire.removed(4))
    assert one(flow(6, 80, 4), FlowAdded).flow.direction is Direction.OUTBOUND  # nobody listens there now
    assert not play.session._current.table.listening


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"curl\0rubbish", "curl"),
        (b"", None),
        (b"\0", None),
        ("Über".encode()[:1] + b"\0", "\N{REPLACEMENT CHARACTER}"),
        ("naïve".encode()[:3] + b"\0", "na\N{REPLACEMENT CHARACTER}"),
        (b"\x1b[31mred", "\x1b[31mred"),
    ],
)
def test_names_end_at_the_first_nul_and_may_be_cut_inside_a_character(raw, expected):
    assert decode_text(raw) == expected


def test_a_name_that_fills_its_field_is_read_whole():
    wire, play = Wire(11), Play(Wire(11))
    descriptor = wire.descriptor(2, pname=b"x" * 64)
    assert one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow.process.name == "x" * 64


@pytest.mark.parametrize("number", LAYOUTS)
def test_owners_have_what_their_release_tells(number):
    wire, play = Wire(number), Play(Wire(number))
    one_uuid = uuid.UUID(int=5)
    descriptor = wire.descriptor(2, epid=7, eupid=700, uuid=one_uuid.bytes, euuid=one_uuid.bytes, uid=501, persona_id=3)
    process = one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow.process
    assert (process.pid, process.unique_pid, process.name) == (42, 4200, "curl")
    assert process.effective_pid == (7 if number >= 3 else None)
    assert process.effective_unique_pid == (700 if number >= 3 else None)
    assert process.uuid == process.effective_uuid == (one_uuid if number >= 3 else None)
    assert process.uid == (501 if number >= 11 else None)
    assert process.persona_id == (3 if number >= 11 else None)
    nobody = wire.descriptor(2, pid=0, upid=0, pname=b"")
    assert one(play(wire.report(2, wire.counts(), nobody)), FlowAdded).flow.process is None
    root = wire.descriptor(2, uid=0)
    assert one(play(wire.report(3, wire.counts(), root)), FlowAdded).flow.process.uid == (0 if number >= 11 else None)
    assert process.responsible_uuid is None
    # A process that was started from a terminal has that one's executable there, and 0 for the rest.
    started = wire.descriptor(2, epid=0, eupid=0, euuid=one_uuid.bytes)
    process = one(play(wire.report(4, wire.counts(), started)), FlowAdded).flow.process
    assert (process.effective_pid, process.effective_unique_pid, process.effective_uuid) == (None, None, None)
    assert process.responsible_uuid == (one_uuid if number >= 3 else None)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [
        (0x2, InterfaceKind.LOOPBACK),
        (0x80 | 0x8, InterfaceKind.VPN),
        (0x4, InterfaceKind.CELLULAR),
        (0x8 | 0x20, InterfaceKind.AWDL),
        (0x8 | 0x8000, InterfaceKind.AWDL),
        (0x8 | 0x10000, InterfaceKind.WIFI),
        (0x10, InterfaceKind.WIRED),
        (0x200 | 0x40000, InterfaceKind.BLUETOOTH),
        (0x200, InterfaceKind.COMPANION),
        (0x1, None),
        (0x1000, None),
        (None, None),
    ],
)
def test_interface_kinds_follow_the_property_bits(bits, kind):
    assert interface_kind(bits) is kind


def test_unknown_property_bits_are_kept_and_an_index_of_zero_is_no_interface():
    wire, play = Wire(11), Play(Wire(11), interfaces={4: "en0"})
    descriptor = wire.descriptor(2, ifindex=4, ifnet_properties=0x80000008)
    interface = one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow.interface
    assert (interface.index, interface.name, interface.kind, interface.properties) == (
        4, "en0", InterfaceKind.WIFI, 0x80000008,
    )  # fmt: skip
    assert one(play(wire.report(2, wire.counts(), wire.descriptor(2))), FlowAdded).flow.interface is None
    for number in (5, 8):  # 16 bits wide there, and what lies behind them is padding
        wire, play = Wire(number), Play(Wire(number))
        descriptor = wire.descriptor(2, ifindex=4, ifnet_properties=8)
        assert one(play(wire.report(1, wire.counts(), descriptor)), FlowAdded).flow.interface.properties == 8


def test_an_unknown_tcp_state_is_no_state_and_costs_nothing_else():
    wire, play = Wire(11), Play(Wire(11))
    flow = one(play(wire.report(1, wire.counts(), wire.descriptor(2, state=99))), FlowAdded).flow
    assert flow.state is None
    assert flow.process.pid == 42
    for number, state in enumerate(TcpState):
        flow = one(play(wire.report(number + 2, wire.counts(), wire.descriptor(2, state=number))), FlowAdded).flow
        assert flow.state is state


# --- counters that do not simply grow ---------------------------------------------------


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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_growth_across_any_number_of_wraps_adds_up(steps):
    raw = told = (0,) * 18
    total = 0
    for step in steps:
        total += step
        new = (*(v + 1 for v in raw[:10]), *[total & 0xFFFFFFFF] * 3, 0, 0, 0, 0, 0)
        told, raw = advance(told, raw, new), new
    assert told[10] == told[11] == told[12] == total


# --- lives and goodbyes ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [n for n in LAYOUTS if n >= 2])
def test_a_full_goodbye_is_final_and_a_bare_one_is_a_loss(number):
    wire, play = Wire(number), Play(Wire(number))
    descriptor = wire.descriptor(2, state=4, remote=address("192.0.2.9", 443))
    closed = wire.descriptor(2, state=0, remote=address("192.0.2.9", 443))
    events = play(
        wire.report(1, wire.counts(5, 5), descriptor),
        wire.report(2, wire.counts(7, 7), descriptor),
        wire.goodbye(1, wire.counts(9, 9), closed),
        wire.removed(2),
    )
    first, second = (e for e in events if isinstance(e, FlowRemoved))
    assert (first.final, first.counts.rx_bytes, first.reason) == (True, 9, RemovalReason.CLOSED)
    assert first.flow.state is TcpState.CLOSED
    assert (second.final, second.counts.rx_bytes) == (False, 7)
    loss = one(events, EventsLost)
    assert (loss.cause, loss.count) == (LossCause.FINAL_COUNTS, 1)
    assert events.index(loss) == events.index(second) + 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, RemovalReason.CLOSED), (8, RemovalReason.DROPPED), (16, RemovalReason.FILTERED), (64, RemovalReason.GONE)],
)
def test_the_flags_of_a_removal_are_its_reason(flags, reason):
    wire, play = Wire(11), Play(Wire(11))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    event = one(play(wire.removed(1, flags)), FlowRemoved)
    assert (event.reason, event.final) == (reason, False)


def test_a_source_that_the_client_gave_up_is_no_loss():
    wire, play = Wire(11), Play(Wire(11))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    play.ask(RemoveSource(context=3, srcref=1).encode(wire.layout))
    events = play(wire.removed(1))
    assert one(events, FlowRemoved).reason is RemovalReason.MONITOR
    assert len(events) == 1


@pytest.mark.parametrize("number", WITH_UPDATES)
def test_a_description_that_closes_without_counters_is_not_final(number):
    """COUNTS may have been refused where the DESC behind it was not."""
    wire, play = Wire(number), Play(Wire(number))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    events = play(wire.described(1, wire.descriptor(2, state=0), flags=4), wire.removed(1))
    removed = one(events, FlowRemoved)
    assert (removed.final, removed.flow.state) == (False, TcpState.CLOSED)
    assert one(events, EventsLost).cause is LossCause.FINAL_COUNTS
    assert not [e for e in events if isinstance(e, FlowUpdated)]


@pytest.mark.parametrize("number", WITH_UPDATES)
def test_a_flow_that_lived_between_two_polls_is_told_whole_by_its_goodbye(number):
    wire, play = Wire(number), Play(Wire(number))
    events = play(wire.goodbye(7, wire.counts(9, 9), wire.descriptor(2, state=10)))
    assert [type(e) for e in events] == [FlowAdded, FlowRemoved]
    assert events[1].final
    assert events[1].details is not None


def test_counters_without_a_description_wait_for_it_but_not_for_ever():
    wire, play = Wire(11), Play(Wire(11))
    assert play(wire.counted(1, wire.counts(5, 5))) == []
    added = one(play(wire.counted(1, wire.counts(6, 6))), FlowAdded)
    assert (added.flow.provider, added.counts.rx_bytes) == (Provider.UNKNOWN, 6)
    event = one(play(wire.described(1, wire.descriptor(4), provider=4)), FlowUpdated)
    assert (event.flow.provider, event.flow.id) == (Provider.UDP, added.flow.id)
    assert event.counts.rx_bytes == 6
    assert play(wire.removed(1))[0].counts.connect_attempts is None


def test_counters_that_turn_out_to_be_an_interface_s_are_a_flow_no_longer():
    """In a recording that begins in the middle counters may come long before a description."""
    wire, play = Wire(11), Play(Wire(11))
    added = one(play(wire.counted(1, wire.counts(5)), wire.counted(1, wire.counts(6))), FlowAdded)
    codec = wire.layout["nstat_ifnet_descriptor"]
    events = play(wire.described(1, codec.encode({"ifindex": 4, "name": b"en0"}), provider=6))
    removed = one(events, FlowRemoved)
    assert (removed.flow.id, removed.reason, removed.final) == (added.flow.id, RemovalReason.MONITOR, False)
    assert one(events, InterfaceUpdated).counts.rx_bytes == 6
    assert list(play.session.flows()) == []
    # No kernel does this; found by fuzzing: what becomes a flow again has another id.
    again = one(play(wire.updated(1, wire.counts(7), wire.descriptor(2))), FlowAdded)
    assert again.flow.id != added.flow.id
    assert one(play(wire.removed(1)), FlowRemoved).flow.id == again.flow.id


def test_a_report_behind_its_goodbye_does_not_bring_the_flow_back():
    wire, play = Wire(11), Play(Wire(11))
    report, goodbye = wire.report(1, wire.counts(5), wire.descriptor(2)), wire.removed(1)
    events = play(report, goodbye, report, goodbye)
    assert len({e.flow.id for e in events if isinstance(e, FlowAdded)}) == 2


def test_announced_flows_that_nobody_described_are_told_at_the_end():
    wire, play = Wire(11), Play(Wire(11))
    assert play(wire.added(1), wire.added(2, provider=4)) == []
    play.session.finish(1001.0)
    events = play.session.take_events()
    assert [(type(e), e.flow.provider, e.counts) for e in events] == [
        (FlowAdded, Provider.TCP, None),
        (FlowAdded, Provider.UDP, None),
    ]


def test_identical_reports_are_silent_unless_each_is_wanted():
    wire = Wire(11)
    report = wire.updated(1, wire.counts(5, 5), wire.descriptor(2, txwindow=1))
    other_window = wire.updated(1, wire.counts(5, 5), wire.descriptor(2, txwindow=2))
    play = Play(wire)
    assert len(play(report)) == 1
    assert play(report, other_window) == []
    every = Play(wire, options=MonitorOptions(every_update=True))
    first, *rest = every(report, report, other_window)
    assert [type(e) for e in rest] == [FlowUpdated, FlowUpdated]
    assert rest[1].details.send_window == 2
    assert rest[0].flow is first.flow  # the very same object while nothing changed


@pytest.mark.parametrize("number", [5, 11])
def test_narrow_references_come_back_as_new_flows_and_wide_ones_as_a_new_socket(number):
    wire, play = Wire(number), Play(Wire(number))
    first = one(play(wire.added(1), wire.report(1, wire.counts(5, 5), wire.descriptor(2))), FlowAdded)
    events = play(wire.added(1), wire.report(1, wire.counts(1, 1), wire.descriptor(2)))
    removed, added = one(events, FlowRemoved), one(events, FlowAdded)
    assert removed.flow.id == first.flow.id != added.flow.id
    assert removed.reason is (RemovalReason.GONE if number == 5 else RemovalReason.MONITOR)
    assert added.counts.rx_bytes == 1


def test_a_provider_that_is_granted_twice_means_a_new_control_socket():
    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1, filter=0x100000))
    play(wire.success(1), wire.report(3, wire.counts(5, 5), wire.descriptor(2)))
    play.ask(wire.add_all(2, filter=0x100000))
    assert play(wire.error(2, 37)) == []  # the same socket: already watching
    play.ask(wire.add_all(2, filter=0x100000))
    assert one(play(wire.success(2)), FlowRemoved).reason is RemovalReason.MONITOR
    added = one(play(wire.report(3, wire.counts(5, 5), wire.descriptor(2))), FlowAdded)
    assert added.flow.id != "1.3"


# --- losses -------------------------------------------------------------------------------


def test_a_gap_between_announcements_is_counted_exactly():
    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1))
    assert play(wire.added(1), wire.added(2), wire.success(1)) == []
    loss = one(play(wire.added(7)), EventsLost)
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, 4)
    loss = one(play(wire.added(8 + 3 * MAX_MISSING)), EventsLost)
    assert loss.count == 3 * MAX_MISSING


def test_a_poll_that_leaves_out_known_sources_is_incomplete_once_told():
    from nstat_async import PollCompleted
    from nstat_async.ntstat import GetUpdate

    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1, filter=0x100000))
    play(wire.success(1))
    reports = {ref: wire.updated(ref, wire.counts(ref), wire.descriptor(2)) for ref in (1, 2, 3)}
    everything = (1 << 64) - 1
    outcomes = []
    for context, refs in ((2, (3, 2, 1)), (3, (3, 1)), (4, (3, 1)), (5, (3, 2, 1))):
        play.ask(GetUpdate(context=context, srcref=everything, flags=3).encode(wire.layout))
        events = play(*[reports[r] for r in refs], wire.success(context))
        losses = [e.count for e in events if isinstance(e, EventsLost)]
        outcomes.append((one(events, PollCompleted).complete, losses))
    assert outcomes == [(True, []), (False, [1]), (False, []), (True, [])]


def test_a_source_that_is_announced_during_a_poll_is_not_missed_by_it():
    from nstat_async import PollCompleted
    from nstat_async.ntstat import GetUpdate

    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1))
    play(wire.added(1), wire.success(1))
    play.ask(GetUpdate(context=2, srcref=(1 << 64) - 1, flags=3).encode(wire.layout))
    events = play(wire.updated(1, wire.counts(1), wire.descriptor(2)), wire.added(2), wire.success(2))
    assert one(events, PollCompleted).complete
    assert not [e for e in events if isinstance(e, EventsLost)]


# --- other than flows ------------------------------------------------------------------------


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


@pytest.mark.parametrize("extra", [0, 16, 24])
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


@pytest.mark.parametrize("number", LAYOUTS)
def test_messages_in_one_datagram_or_in_many_give_the_same_events(number):
    wire = Wire(number)
    if not wire.layout.has_lengths:
        pytest.skip("one message a datagram there")
    messages = [wire.added(1), wire.added(2, provider=wire.udp)]
    for rx in (1, 2, 2, 5):
        messages += wire.report(1, wire.counts(rx), wire.descriptor(2, state=4))
        messages += [wire.counted(2, wire.counts(rx)), wire.described(2, wire.descriptor(wire.udp), provider=wire.udp)]
    messages += [*wire.goodbye(1, wire.counts(9), wire.descriptor(2, state=0)), wire.removed(2)]
    apart, together = Play(wire), Play(wire)
    expected = apart(messages)
    assert together(b"".join(messages)) == expected
    assert Play(wire)(b"".join(messages[:3]), b"".join(messages[3:10]), messages[10:]) == expected
    assert len(expected) >= 6


def test_the_kernel_of_10_12_names_late_user_land_udp_flows_tcp():
    wire, play = Wire(6), Play(Wire(6))
    udp = wire.descriptor(5, local=address("192.0.2.1", 68), remote=address("192.0.2.9", 53))
    # UDP has no state where TCP's is: there lie the buffer sizes, far above any state.
    udp = udp[:60] + struct.pack("<II", 196_724, 196_724) + udp[68:]
    padded = udp.ljust(wire.layout["nstat_tcp_descriptor"].size, b"\0")
    events = play(wire.added(1, provider=3), wire.updated(1, wire.counts(5, 5), padded, provider=3))
    flow = one(events, FlowAdded).flow
    assert (flow.provider, flow.userland, flow.provider_id) == (Provider.UDP, True, 5)
    assert str(flow.remote) == "192.0.2.9:53"
    assert flow.process.name == "curl"
    real = wire.descriptor(3, state=4, local=address("192.0.2.1", 68))
    flow = one(play(wire.updated(2, wire.counts(5, 5), real, provider=3)), FlowAdded).flow
    assert (flow.provider, flow.state) == (Provider.TCP, TcpState.ESTABLISHED)


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


@pytest.mark.parametrize(("number", "length"), [(9, 1032), (10, 1056), (11, 1056), (12, 1056), (11, 1032)])
def test_domain_items_are_told_apart_by_their_length(number, length):
    wire, play = Wire(number), Play(Wire(number))
    source = Wire(9 if length == 1032 else 11).layout["nstat_domain_info"]
    fields = {"domain_name": b"example.org", "domain_owner": b"Example", "is_tracker": 1, "is_silent": 1}
    if length == 1056:
        fields["remote"] = address("192.0.2.9", 443)
    data = source.encode(fields)
    assert len(data) == length
    items = (ExtensionItem(1, length, data), ExtensionItem(5, 16, b"f" * 16), ExtensionItem(0, 8, bytes(8)))
    event = one(play(wire.updated(1, wire.counts(5, 5), wire.descriptor(2), items=items)), FlowAdded)
    domain = event.details.domain
    assert (domain.name, domain.owner, domain.attributed_bundle_id) == ("example.org", "Example", None)
    assert (domain.is_tracker, domain.is_non_app_initiated, domain.is_silent) == (True, False, True)
    assert (str(domain.remote) if domain.remote else None) == ("192.0.2.9:443" if length == 1056 else None)


def test_items_of_any_length_and_kind_are_read_or_left():
    wire, play = Wire(11), Play(Wire(11))
    items = (
        ExtensionItem(1, 5, b"short"),
        ExtensionItem(6, 8, bytes(8)),
        ExtensionItem(2, 3, b"\1\2\3"),
        ExtensionItem(3, 2, b"\4\5"),
        ExtensionItem(99, 4, b"what"),
    )
    details = one(play(wire.updated(1, wire.counts(), wire.descriptor(2), items=items)), FlowAdded).details
    assert (details.domain, details.bluetooth) == (None, None)
    assert (details.necp_parameters, details.original_necp_parameters) == (b"\1\2\3", b"\4\5")


def test_details_are_samples_with_unknowns():
    wire, play = Wire(11), Play(Wire(11))
    descriptor = wire.descriptor(
        2, cc_algo=b"cubic", txcwindow=10_240, sndbufsize=7, rx_transfer_size=9,
        **{"activity_bitmap.start": 88, "activity_bitmap.bitmap": (1, 2)},
    )  # fmt: skip
    details = one(play(wire.updated(1, wire.counts(), descriptor)), FlowAdded).details
    assert (details.congestion_control, details.congestion_window, details.send_buffer_size) == ("cubic", 10_240, 7)
    assert (details.activity_started_s, details.activity) == (88, 1 | 2 << 64)
    assert details.rx_transfer_size is None  # only a user-land flow has one
    assert details.sampled_at_ns == 1_000_000_000_000
    details = one(play(wire.updated(2, wire.counts(), wire.descriptor(3), provider=3)), FlowAdded).details
    assert (details.congestion_control, details.activity, details.activity_started_s) == (None, None, None)


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
