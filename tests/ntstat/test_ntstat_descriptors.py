"""Descriptors: which are believed, what makes a flow of them, and what of them is a sample."""

from __future__ import annotations

import pytest
from ntstat_wire import NEWER, Wire, address

from nstat_async import Direction, FlowAdded, FlowUpdated, InterfaceKind, Provider, TcpState
from nstat_async.ntstat import Mode, Session
from nstat_async.ntstat._constants import TCP_STATES, InterfaceProperty

HERE, THERE = address("192.0.2.1", 4000), address("192.0.2.2", 443)
WIFI = int(InterfaceProperty.WIFI)
LONGER = bytes(8)
"""Behind a descriptor: it is longer than any that is known."""


class Play:
    """A session that follows a kernel, fed by hand with one flow after the other."""

    def __init__(self, kernel: int | str = 11, now: float = 1000.0) -> None:
        self.wire, self.now = Wire(kernel), now
        self.session = Session(self.wire.kernel, mode=Mode.FOLLOWING)

    def __call__(self, ref: int, provider: int = 2, *, rx: int = 10, more: bytes = b"", **fields) -> list:
        descriptor = self.wire.descriptor(provider, **fields) + more
        for datagram in self.wire.report(ref, self.wire.counts(rx), descriptor, provider=provider):
            self.session.receive_datagram(datagram, self.now)
        return self.session.take_events()

    def flow(self, *arguments, **fields):
        """The flow of the last event."""
        return self(*arguments, **fields)[-1].flow


@pytest.mark.parametrize(
    ("fields", "believed"),
    [
        ({}, True),
        ({"state": len(TCP_STATES) - 1}, True),
        ({"state": len(TCP_STATES)}, False),
        ({"local": HERE, "remote": address("2001:db8::1", 5)}, True),
        ({"local": b"\x10\x1e" + bytes(26)}, False),
        ({"remote": b"\x1c\x02" + bytes(26)}, False),
        ({"remote": b"\x10\x03" + bytes(26)}, False),
        ({"remote": b"\x10\x00" + bytes(26)}, True),
        ({"pname": b"a b\0\x01"}, True),
        ({"pname": b"a\x1fb"}, False),
    ],
)
def test_of_a_newer_kernel_s_longer_descriptor_only_what_looks_like_one_is_believed(fields, believed):
    flow = Play(NEWER).flow(1, more=LONGER, **{"local": HERE, "remote": THERE, "state": 4, **fields})
    assert (flow.process is not None) is believed
    assert (flow.local is not None) is believed


def test_what_is_believed_of_a_longer_descriptor_makes_a_flow_anew_when_it_changes():
    play = Play(NEWER)
    assert play.flow(1, more=LONGER, pname=b"before").process.name == "before"
    (event,) = play(1, more=LONGER, pname=b"behind")
    assert (type(event), event.flow.process.name) == (FlowUpdated, "behind")
    assert play(1, more=b"\1" * 8, pname=b"behind") == []  # what follows is not believed


@pytest.mark.parametrize("number", [len(TCP_STATES), len(TCP_STATES) + 1, 255])
def test_a_state_that_is_none_is_unknown(number):
    assert Play().flow(1, state=number).state is None
    assert Play().flow(1, state=len(TCP_STATES) - 1).state is TcpState.TIME_WAIT


def test_the_direction_of_a_connection_stays_known_when_its_remote_end_is_gone():
    play = Play(7)
    assert play.flow(1, state=2, local=HERE, remote=THERE).direction is Direction.OUTBOUND
    assert play.flow(1, state=0, local=HERE).direction is Direction.OUTBOUND
    assert play.flow(2, state=0, local=HERE).direction is None
    assert play.flow(3, state=4, local=HERE, remote=address("192.0.2.2", 1)).direction is Direction.OUTBOUND
    assert play.flow(4, state=4, local=HERE, remote=address("192.0.2.2", 0)).direction is None


def test_only_a_kernel_s_tcp_has_a_direction():
    play = Play()
    providers = play.wire.kernel.providers
    for ref, (number, (provider, userland)) in enumerate(providers.items(), 1):
        if provider in {Provider.TCP, Provider.UDP, Provider.QUIC}:
            flow = play.flow(ref, number, local=HERE, remote=THERE)
            assert (flow.direction is not None) is (provider is Provider.TCP and userland is False)


def test_a_flow_that_is_as_old_as_its_report_began_now_and_one_of_ages_ago_never():
    play, century = Play(), 100 * 365 * 86_400 * 10**9
    for ref, age, started in (
        (1, 0, 1000 * 10**9),
        (2, century - 1, 1000 * 10**9 - century + 1),
        (3, century, None),
    ):
        assert play.flow(ref, start_timestamp=10, timestamp=10 + age).started_ns == started


def test_samples_at_the_beginning_of_time_are_samples():
    (event,) = Play(now=0.0)(1, txcwindow=5)
    assert (event.details.congestion_window, event.details.sampled_at_ns) == (5, 0)


def test_sizes_of_transfers_are_a_process_s_word():
    play = Play()
    for provider, expected in ((3, (7, 9)), (2, (None, None))):
        details = play(provider, provider, rx_transfer_size=7, tx_transfer_size=9)[0].details
        assert (details.rx_transfer_size, details.tx_transfer_size) == expected
    assert play(9, 3)[0].details.rx_transfer_size is None


@pytest.mark.parametrize(
    ("local", "remote", "kind"),
    [
        ("127.0.0.1", None, InterfaceKind.LOOPBACK),
        (None, "127.255.0.9", InterfaceKind.LOOPBACK),
        ("192.0.2.1", "127.0.0.1", InterfaceKind.LOOPBACK),
        ("::1", None, InterfaceKind.LOOPBACK),
        (None, "::1", InterfaceKind.LOOPBACK),
        ("192.0.2.1", "192.0.2.1", InterfaceKind.LOOPBACK),
        ("128.0.0.1", "126.0.0.1", InterfaceKind.WIFI),
        ("::2", "::3", InterfaceKind.WIFI),
        ("7f00::1", "2001:db8::1", InterfaceKind.WIFI),
        ("192.0.2.1", None, InterfaceKind.WIFI),
        ("0.0.0.0", "192.0.2.1", InterfaceKind.WIFI),
    ],
)
def test_what_stays_within_the_machine_says_the_address_against_the_interface(local, remote, kind):
    flow = Play().flow(1, 4, local=address(local, 53), remote=address(remote, 5353), ifindex=4, ifnet_properties=WIFI)
    assert flow.interface.kind is kind


def test_without_addresses_the_bits_of_loopback_are_believed_and_with_others_they_are_not():
    bits = WIFI | int(InterfaceProperty.LOOPBACK)
    play = Play()
    assert (
        play.flow(1, 4, local=address(None), ifindex=1, ifnet_properties=bits).interface.kind is InterfaceKind.LOOPBACK
    )
    flow = play.flow(2, 4, local=HERE, remote=THERE, ifindex=1, ifnet_properties=bits)
    assert flow.interface.kind is InterfaceKind.WIFI


def test_a_provider_that_nobody_knows_may_write_what_it_likes_and_has_no_interface():
    play = Play()
    events = [*play(1, 77, rx=100), *play(1, 77, rx=40), *play(1, 77, rx=120)]
    assert [event.counts.rx_bytes for event in events] == [100, 120]
    assert [type(event) for event in events] == [FlowAdded, FlowUpdated]
    wire = play.wire
    for rx, wifi, expected in ((130, 80, 80), (140, 10, 80)):
        play.session.receive_datagram(wire.updated(1, wire.counts(rx, wifi_rxbytes=wifi), b"", provider=77), 1000.0)
        assert play.session.take_events()[-1].counts.wifi_rx_bytes == expected
    assert (events[0].flow.interface, events[0].flow.provider, events[0].flow.provider_id) == (
        None,
        Provider.UNKNOWN,
        77,
    )


@pytest.mark.parametrize("provider", [2, 3, 4, 5, 8, 9])
def test_an_interface_is_told_by_its_index_or_its_kind(provider):
    play = Play()
    assert play.flow(1, provider, ifindex=4, ifnet_properties=WIFI).interface.kind is InterfaceKind.WIFI
    assert play.flow(2, provider, ifnet_properties=0).interface is None


def test_samples_differ_and_the_flow_stays_the_same_object():
    play = Play()
    first = play.flow(1, state=4, rx=1)
    second = play(1, state=4, rx=2, txcwindow=7, sndbufused=8, timestamp=9)[0]
    assert second.flow is first
    for change in ({"uid": 5}, {"state": 5}, {"upid": 77}, {"ifindex": 3}, {"traffic_class": 9}, {"fuuid": b"\5" * 16}):
        (event,) = play(1, rx=2, **{"state": 4, **change})
        assert event.flow != first
        play(1, rx=2, state=4)
