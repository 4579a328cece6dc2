"""What the wire's values mean: units, unknowns, owners, directions, and items of any release."""

from __future__ import annotations

import struct
import uuid

import pytest
from ntstat_play import LAYOUTS, Play, one
from ntstat_wire import Wire, address

from nstat_async import Direction, FlowAdded, FlowUpdated, InterfaceKind, Provider, TcpState
from nstat_async.ntstat import ExtensionItem
from nstat_async.ntstat._translate import decode_text, interface_kind

NATURAL = [n for n in LAYOUTS if n >= 7]


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


def test_on_older_kernels_who_began_a_connection_stays_so_when_its_listener_goes_or_another_one_comes():
    wire, play = Wire(8), Play(Wire(8))

    def flow(ref: int, port: int, state: int, remote: str | None = "192.0.2.9", rx: int = 0):
        ends = {"local": address("192.0.2.1", port), "remote": address(remote, 999 if remote else 0)}
        return play(wire.report(ref, wire.counts(rx), wire.descriptor(2, **ends, state=state)))[0].flow.direction

    assert flow(1, 80, 1, None) is Direction.LISTENER
    assert (flow(2, 80, 4), flow(3, 80, 3), flow(4, 80, 2)) == (*[Direction.INBOUND] * 2, Direction.OUTBOUND)
    assert flow(4, 80, 4) is Direction.OUTBOUND, "it sent its SYN from the listener's port"
    play(wire.removed(1))
    assert flow(2, 80, 5) is flow(3, 80, 4) is Direction.INBOUND
    assert flow(5, 81, 2) is flow(5, 81, 3) is Direction.OUTBOUND, "both ends began at once"


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
