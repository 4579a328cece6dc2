"""Where a flow goes: local or not, over which interface, and who began it where no handshake says so."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address

import pytest
from nursery import NETWORK
from sockdiag_fakes import FakeKernel, FakeSocket, tcp_info

from nstat_async._events import FlowUpdated
from nstat_async._model import Direction, Endpoint, InterfaceKind
from nstat_async.sockdiag import (
    AddressMessage,
    DiagAttribute,
    LinkKindsAnswer,
    LinkMessage,
    RouteMessage,
    SocketState,
    TcpInfo,
    _links,
    iterate_messages,
)
from nstat_async.sockdiag._constants import AF_INET, AF_INET6
from nstat_async.sockdiag._direction import (
    ACCEPTED,
    OPENED,
    ListenerTable,
    direction_by_remains,
    direction_by_state,
    evidence_of,
    extra_sequence_numbers,
    weigh_direction,
)
from nstat_async.sockdiag._entry import Weight
from nstat_async.sockdiag._links import LinkTable, is_link_scoped, kind_of_link
from nstat_async.sockdiag._messages import ATTRIBUTES_AT, HEADER, find_attribute
from nstat_async.sockdiag._rows import RowFormats

NOTHING = 0
"""What sequence numbers prove where they prove nothing."""

LO, ETH, VETH, WG, DUMMY = 1, 2, 3, 4, 5
LINKS = (
    LinkMessage(LO, 772, "lo"),
    LinkMessage(ETH, 1, "eth0", "bond"),
    LinkMessage(VETH, 1, "veth0", "veth"),
    LinkMessage(WG, 65534, "wg0", "wireguard"),
    LinkMessage(DUMMY, 1, "kube-ipvs0", "dummy"),
)
ADDRESSES = (
    (LO, "127.0.0.1/8"),
    (LO, "::1/128"),
    (LO, "198.18.0.53/32"),  # a service address
    (LO, "203.0.113.0/24"),  # all of a network is this machine (AnyIP)
    (ETH, "192.0.2.2/24"),
    (ETH, "192.0.2.130/25"),
    (ETH, "2001:db8::2/64"),
    (ETH, "fe80::2/64"),
    (VETH, "10.7.0.1/16"),
    (VETH, "fe80::3/64"),
    (WG, "10.7.9.1/24"),
    (DUMMY, "10.96.0.1/32"),  # service addresses of a device that carries nothing
    (DUMMY, "10.97.0.1/24"),
    (DUMMY, "2001:db8:96::1/64"),
)


def packed(text: str) -> bytes:
    return ip_address(text).packed


def feed(table: LinkTable, kind: int, data: bytes) -> None:
    (frame,) = iterate_messages(data)
    table.apply(kind, data, frame)


def address(index: int, text: str) -> AddressMessage:
    local, _, prefix = text.partition("/")
    return AddressMessage(10 if ":" in local else 2, index, packed(local), int(prefix))


@pytest.fixture
def table():
    made = LinkTable()
    for link in LINKS:
        feed(made, RouteMessage.NEWLINK, link.encode(RouteMessage.NEWLINK))
    for index, text in ADDRESSES:
        feed(made, RouteMessage.NEWADDR, address(index, text).encode(RouteMessage.NEWADDR))
    return made


def by_row(table, local, remote, device):
    """The interface by the row of a socket: IPv6 with these bytes is another address."""
    own, far = packed(local), packed(remote) if remote else b""
    family = AF_INET if len(own) == 4 else AF_INET6
    return table.interface_by_row(struct.pack("=BB2xHH16s16sI", family, 1, 1, 2, own, far, device))


@pytest.mark.parametrize(
    ("local", "remote", "device", "index"),
    [
        # local: both ends are addresses of this machine, whoever has them
        ("127.0.0.1", "127.0.0.1", 0, LO),
        ("127.0.0.1", "127.9.9.9", 0, LO),
        ("::1", "::1", 0, LO),
        ("192.0.2.2", "192.0.2.2", 0, LO),
        ("192.0.2.2", "10.7.0.1", 0, LO),
        ("192.0.2.2", "198.18.0.53", 0, LO),
        ("203.0.113.77", "192.0.2.2", 0, LO),
        ("2001:db8::2", "2001:db8::2", 0, LO),
        ("192.0.2.2", "192.0.2.2", ETH, LO),
        ("198.51.100.7", "198.51.100.7", 0, LO),  # an address by a route of type local, which no interface has
        ("10.96.0.1", "10.96.0.1", 0, LO),
        ("2001:db8::2", "2001:db8:96::1", 0, LO),
        ("fe80::2", "fe80::2", ETH, LO),
        ("fe80::2", "fe80::2", 0, LO),
        ("fe80::2", "fe80::2", VETH, VETH),  # there it is another machine's
        # not local
        ("192.0.2.2", "192.0.2.3", 0, ETH),
        ("192.0.2.2", "198.51.100.9", 0, ETH),
        ("192.0.2.2", "198.51.100.9", VETH, VETH),
        ("fe80::2", "fe80::3", ETH, ETH),  # of another link of this machine: it goes over the wire
        ("fe80::2", "fe80::9", ETH, ETH),
        # a service address says nothing: the peer's network may
        ("198.18.0.53", "192.0.2.99", 0, ETH),
        ("198.18.0.53", "10.7.9.5", 0, WG),  # the longest prefix
        ("198.18.0.53", "10.7.8.5", 0, VETH),
        ("198.18.0.53", "198.51.100.9", 0, None),
        ("203.0.113.77", "198.51.100.9", 0, None),
        ("198.18.0.53", None, 0, None),
        ("10.96.0.1", "192.0.2.99", 0, ETH),  # nor does one of a dummy device, which carries nothing
        ("10.97.0.1", "10.97.0.9", 0, None),
        ("2001:db8:96::1", "2001:db8::9", 0, ETH),
        ("10.96.0.1", "198.51.100.9", 0, None),
        ("198.18.0.53", "10.97.0.9", 0, None),
        ("10.96.0.1", None, 0, None),
        ("10.96.0.1", "198.51.100.9", DUMMY, DUMMY),
        ("192.0.2.2", None, 0, ETH),
        ("127.0.0.1", None, 0, LO),
        ("0.0.0.0", None, 0, None),
        ("0.0.0.0", None, ETH, ETH),
    ],
)
def test_which_interface_packets_pass(table, local, remote, device, index):
    assert table.interface_of(packed(local), device, remote and packed(remote)) == (
        found := by_row(table, local, remote, device)
    )
    assert (found and found.index) == index
    assert by_row(table, local, remote, device) is found, "remembered"


def test_the_same_bytes_are_another_address_in_another_family(table):
    assert by_row(table, "127.0.0.1", None, 0).index == LO
    assert by_row(table, "7f00:1::", None, 0) is None


def test_without_addresses_only_the_loopback_range_is_known_to_be_local():
    bare = LinkTable()
    assert bare.interface_of(packed("127.0.0.1"), 0, packed("127.0.0.1")) is None
    assert bare.interface_of(packed("192.0.2.2"), 0, packed("192.0.2.2")) is None
    assert bare.interface_of(packed("192.0.2.2"), 7).index == 7


def test_which_prefixes_are_networks(table):
    """Half of all addresses is one, all of them are none; of a loopback interface's networks those of IPv4 are own addresses."""
    send(table, RouteMessage.NEWADDR, address(WG, "128.0.0.1/1"), address(VETH, "9.9.9.9/0"))
    send(table, RouteMessage.NEWADDR, address(LO, "2001:db8:5::1/64"))

    def index(local: str, remote: str):
        found = table.interface_of(packed(local), 0, packed(remote))
        return found and found.index

    assert index("198.18.0.53", "200.1.1.1") == WG
    assert index("198.18.0.53", "100.1.1.1") is None
    assert index("2001:db8::2", "2001:db8:5::1") == LO
    assert index("2001:db8::2", "2001:db8:5::99") == ETH
    assert index("203.0.113.77", "203.0.113.78") == LO
    assert index("2001:db8:5::1", "2001:db8::9") == ETH


def test_an_address_that_comes_or_goes_changes_what_is_local(table):
    def kind():
        return by_row(table, "192.0.2.2", "192.0.2.9", 0).kind

    assert kind() is InterfaceKind.WIRED
    message = address(WG, "192.0.2.9/32")
    feed(table, RouteMessage.NEWADDR, message.encode(RouteMessage.NEWADDR))
    assert kind() is InterfaceKind.LOOPBACK
    feed(table, RouteMessage.DELADDR, message.encode(RouteMessage.DELADDR))
    assert kind() is InterfaceKind.WIRED


def send(table: LinkTable, kind: int, *messages) -> None:
    for message in messages:
        feed(table, kind, message.encode(kind))


def test_a_list_of_everything_replaces_what_was_known(table):
    """Interfaces and addresses that it lacks are gone, and what was asked of them before is asked anew."""
    asked = [("0.0.0.0", VETH), ("10.7.0.1", 0), ("192.0.2.2", 0)]
    before = [table.interface_of(packed(text), device) for text, device in asked]
    assert [link.index for link in before] == [VETH, VETH, ETH]
    for rounds in range(2):
        table.begin_dump()
        send(table, RouteMessage.NEWLINK, *LINKS[:2])
        send(table, RouteMessage.NEWADDR, address(LO, "127.0.0.1/8"), address(ETH, "192.0.2.2/24"))
        version = table.version
        table.end_dump()
        assert (table.version != version) is (rounds == 0), "the second one has nothing new"
    after = [table.interface_of(packed(text), device) for text, device in asked]
    assert [(link and (link.index, link.name)) for link in after] == [(VETH, None), None, (ETH, "eth0")]
    assert table.carrying() == {"eth0"}
    send(table, RouteMessage.DELADDR, address(LO, "127.0.0.1/8"), address(ETH, "192.0.2.2/24"))
    send(table, RouteMessage.DELLINK, *LINKS[:2])
    assert not table._seen, "nothing is kept of what went"
    assert table.interface_of(packed("192.0.2.2"), ETH).name is None


def test_every_change_is_one_and_what_is_said_again_is_none(table):
    def changes(kind, message) -> bool:
        before = table.version
        send(table, kind, message)
        return table.version != before

    one = address(WG, "192.0.2.2/32")
    for kind, message, expected in (
        (RouteMessage.NEWLINK, LINKS[1], False),
        (RouteMessage.NEWLINK, LinkMessage(ETH, 1, "lan0", "bond"), True),
        (RouteMessage.NEWADDR, address(ETH, "192.0.2.2/24"), False),
        (RouteMessage.NEWADDR, address(ETH, "192.0.2.2/28"), True),
        (RouteMessage.NEWADDR, one, True),
        (RouteMessage.DELADDR, address(ETH, "192.0.2.2/28"), True),
        (RouteMessage.DELADDR, address(ETH, "192.0.2.2/28"), False),
    ):
        assert changes(kind, message) is expected
    assert table.index_of(packed("192.0.2.2")) == WG, "of two the other one has it"
    assert changes(RouteMessage.DELADDR, one)
    assert table.index_of(packed("192.0.2.2")) is None
    assert table.interface_of(packed("0.0.0.0"), VETH).name == "veth0"
    assert changes(RouteMessage.DELLINK, LINKS[2])
    assert table.interface_of(packed("0.0.0.0"), VETH).name is None
    assert not changes(RouteMessage.DELLINK, LINKS[2])


def test_the_host_is_asked_what_ethernet_devices_are_and_says_nothing_of_others(table):
    send(table, RouteMessage.NEWLINK, LinkMessage(7, 1, "eth7"), LinkMessage(8, 1), LinkMessage(9, 1, "eth9"))
    assert table.unclassified() == ("eth7", "eth9")
    version = table.version
    table.classify(LinkKindsAnswer(0, (("wg0", "wifi"), ("eth9", "odd"), ("eth0", "wifi"))))
    assert (table.version, table.unclassified()) == (version, ("eth7", "eth9"))
    table.classify(LinkKindsAnswer(0, (("eth7", "wifi"),)))
    assert table.version != version
    kinds = {number: table.interface_of(packed("0.0.0.0"), number).kind for number in (WG, ETH, 7, 9)}
    assert kinds == {WG: InterfaceKind.VPN, ETH: InterfaceKind.WIRED, 7: InterfaceKind.WIFI, 9: None}


def test_a_number_that_was_a_dummys_may_be_another_devices(table):
    send(table, RouteMessage.DELLINK, LINKS[DUMMY - 1])
    send(table, RouteMessage.NEWLINK, LinkMessage(DUMMY, 1, "eth5", "bond"))
    send(table, RouteMessage.NEWADDR, address(DUMMY, "10.96.0.1/24"))
    assert table.interface_of(packed("10.96.0.1"), 0, packed("198.51.100.9")).name == "eth5"
    assert "eth5" in table.carrying()


def test_interfaces_that_end_traffic_are_those_with_an_address_and_a_name(table):
    assert table.carrying() == {"eth0", "veth0", "wg0"}
    send(table, RouteMessage.NEWLINK, LinkMessage(8, 1, None, "bond"), LinkMessage(9, 1, "idle0", "bond"))
    send(table, RouteMessage.NEWADDR, address(8, "192.0.2.8/24"), address(77, "192.0.2.9/24"))
    assert table.carrying() == {"eth0", "veth0", "wg0"}


def test_answers_that_are_kept_are_few_and_as_before(table, monkeypatch):
    monkeypatch.setattr(_links, "_MOST_ANSWERS", 2)
    texts = ("192.0.2.2", "10.7.0.1", "127.0.0.1", "10.7.9.1", "198.51.100.1")
    for _ in range(2):
        assert [table.index_of(packed(text)) for text in texts] == [ETH, VETH, LO, WG, None]
        assert [table.interface_of(packed(text)) and table.interface_of(packed(text)).index for text in texts] == [
            ETH, VETH, LO, WG, None,
        ]  # fmt: skip
        assert len(table._indices) <= 2
        assert len(table._passed) <= 2


@pytest.mark.parametrize(
    ("address", "scoped"),
    [
        ("fe80::1", True), ("febf::1", True), ("ff02::fb", True), ("ff01::1", True), ("ff12::1", True),
        ("ff05::2", False), ("ff0e::1", False), ("2001:db8::1", False), ("fec0::1", False), ("224.0.0.251", False),
        ("254.128.0.1", False), ("255.1.0.1", False),
    ],
)  # fmt: skip
def test_which_addresses_have_a_scope(address, scoped):
    assert is_link_scoped(packed(address)) is scoped


@pytest.mark.parametrize(
    ("kind", "hardware", "is_a"),
    [
        ("tun", 1, InterfaceKind.BRIDGE),  # a tap
        ("tun", 65534, InterfaceKind.VPN),
        *((kind, 1, InterfaceKind.BRIDGE) for kind in ("veth", "bridge", "macvlan", "macvtap", "ipvlan", "netkit")),
        *((kind, 1, InterfaceKind.VPN) for kind in ("vxlan", "geneve", "gretap", "l2tp", "bareudp", "ovpn")),
        *((kind, 65534, InterfaceKind.VPN) for kind in ("wireguard", "xfrm", "vti", "vti6", "gtp", "amt")),
        ("gre", 778, InterfaceKind.VPN),
        ("ip6gre", 823, InterfaceKind.VPN),
        ("ipip", 768, InterfaceKind.VPN),
        ("ip6tnl", 769, InterfaceKind.VPN),
        ("sit", 776, InterfaceKind.VPN),
        *((kind, 1, InterfaceKind.WIRED) for kind in ("vlan", "bond", "team", "hsr", "macsec", "dsa")),
        ("vrf", 65534, InterfaceKind.OTHER),
        *((kind, 1, InterfaceKind.OTHER) for kind in ("dummy", "ifb", "vcan")),
        ("wwan", 519, InterfaceKind.CELLULAR),
        (None, 1, None),
        (None, 519, InterfaceKind.CELLULAR),  # raw IP: a modem without a driver that says more
        (None, 772, InterfaceKind.LOOPBACK),
        (None, 801, InterfaceKind.WIFI),
        (None, 768, InterfaceKind.VPN),  # tunl0, sit0, gre0: there by themselves
        (None, 776, InterfaceKind.VPN),
        (None, 778, InterfaceKind.VPN),
        (None, 65534, InterfaceKind.OTHER),
    ],
)
def test_what_a_device_is(kind, hardware, is_a):
    assert kind_of_link(LinkMessage(5, hardware, "x0", kind)) is is_a


# -- flows of the core


def test_a_flow_becomes_local_when_the_machine_gets_its_peers_address():
    kernel = FakeKernel(interval=None)
    peer = packed("192.0.2.9")
    kernel.sockets[1] = FakeSocket(1, packed("192.0.2.2"), remote=peer)
    kernel.start()
    (before,) = (flow for flow, _ in kernel.session.flows())
    assert not before.is_loopback
    kernel.feed(AddressMessage(2, 3, peer, 32).encode(RouteMessage.NEWADDR), 2)
    (update,) = (event for event in kernel.poll() if isinstance(event, FlowUpdated))
    assert update.flow.is_loopback
    assert update.flow.interface.name == "lo"


def test_scopes_of_link_scoped_peers_are_those_of_the_own_address():
    kernel = FakeKernel(interval=None)
    own, group = packed("fe80::2"), packed("ff02::fb")
    kernel.addresses.append(AddressMessage(10, 2, own, 64))
    kernel.sockets[1] = FakeSocket(1, own, remote=group, family=10, protocol=17)
    kernel.start()
    (flow,) = (flow for flow, _ in kernel.session.flows())
    assert (str(flow.local), flow.remote.scope_id) == ("[fe80::2%2]:40000", 2)


def test_a_zone_is_a_number_or_the_name_of_an_interface(monkeypatch):
    monkeypatch.setattr(socket, "if_nametoindex", {"eth0": 7}.__getitem__, raising=False)
    assert Endpoint.parse("fe80::1%eth0", 1) == Endpoint(packed("fe80::1"), 1, 7)
    assert Endpoint.parse("fe80::1%12").scope_id == 12


@pytest.mark.parametrize("zone", ["no-such-if", "x" * 300, "\0", "²"])
def test_a_zone_that_is_no_interface_is_refused_by_name(zone):
    with pytest.raises(ValueError, match="is not an interface of this machine"):
        Endpoint.parse(f"fe80::1%{zone}")


# -- who began


def facts(**fields: int) -> bytes:
    return tcp_info({TcpInfo[name.upper()]: value for name, value in fields.items()})


@pytest.mark.parametrize(
    ("info", "accepted"),
    [
        (facts(delivered=0), False),
        (facts(delivered=1), True),  # accepted, idle
        (facts(delivered=9, data_segs_out=9), False),
        (facts(delivered=7, data_segs_out=9, unacked=2), False),
        (facts(delivered=10, data_segs_out=9), True),
        (facts(delivered=8, data_segs_out=9, unacked=2), True),
        (facts(delivered=9, data_segs_out=9, total_retrans=1), True),  # the numbers do not tell
        (facts(delivered=1)[:192], False),  # an old kernel
    ],
)
def test_a_connection_without_a_handshake_was_not_accepted(info, accepted):
    row = bytes(HEADER.size + 72)
    assert (evidence_of(1, row + b"\1" + info[1:], len(row), len(info)) == ACCEPTED) is accepted


def numbers(extra: int, *, state: int = 1, length: int = 280, waiting: int = 20, **more):
    """A row with so many sequence numbers beside its payload, of which some was sent again, and some waits; and where its ``tcp_info`` is."""
    counts = {"BYTES_SENT": 500, "BYTES_RETRANS": 30, "NOTSENT_BYTES": waiting, "BYTES_ACKED": 400 + waiting + extra}
    info = {TcpInfo[name]: value for name, value in {**counts, "DATA_SEGS_OUT": 9, "DELIVERED": 10, **more}.items()}
    message = FakeSocket(1, state=state, unacked=70, info=info).message(1)
    return message, find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO)[0], length


@pytest.mark.parametrize(
    ("state", "waiting", "evidence"),
    [
        (SocketState.ESTABLISHED, 20, {0: ACCEPTED, 1: OPENED, 2: OPENED}),
        (SocketState.CLOSE_WAIT, 20, {0: ACCEPTED, 1: OPENED, 2: OPENED}),
        (SocketState.FIN_WAIT1, 0, {0: ACCEPTED, 1: ACCEPTED, 2: OPENED}),
        (SocketState.LAST_ACK, 0, {0: ACCEPTED, 1: ACCEPTED, 2: OPENED}),
        (SocketState.FIN_WAIT1, 20, {0: ACCEPTED, 2: OPENED}),  # its FIN waits behind the payload
        (SocketState.SYN_RECV, 0, {0: ACCEPTED, 2: OPENED}),
    ],
)
def test_what_sequence_numbers_prove_of_a_state(state, waiting, evidence):
    found = {extra: evidence_of(state, *numbers(extra, state=state, waiting=waiting)) for extra in range(-1, 4)}
    assert {extra: proof for extra, proof in found.items() if proof is not NOTHING} == evidence
    row = numbers(2, state=state, waiting=waiting)
    assert evidence_of(state ^ 8, *row) is NOTHING, "its state is not that of its counters"
    assert evidence_of(state, *row[:2], int(TcpInfo.BYTES_RETRANS) + 8) == OPENED
    assert evidence_of(state, *row[:2], int(TcpInfo.BYTES_RETRANS) + 7) is NOTHING


def test_what_is_known_to_have_ended_in_order_was_opened_with_a_syn_beside_the_fin():
    found = [direction_by_remains(row, at) for row, *at in (numbers(extra) for extra in range(-1, 4))]
    assert found == [None, None, Direction.INBOUND, Direction.OUTBOUND, None]
    assert [extra_sequence_numbers(*numbers(extra)) for extra in range(-1, 4)] == [None, 0, 1, 2, None]
    whole = int(TcpInfo.BYTES_RETRANS) + 8
    assert [extra_sequence_numbers(*numbers(1, length=length)) for length in (whole, whole - 1)] == [1, None]


def identity(**fields) -> bytes:
    return RowFormats().cut(FakeSocket(1, **fields).message(1))[0][1]


V6 = {"family": 10, "local": bytes(16)}


@pytest.mark.parametrize(
    ("fields", "direction"),
    [
        ({"state": SocketState.LISTEN, "remote": bytes(4), "remote_port": 0}, Direction.LISTENER),
        ({"state": SocketState.SYN_SENT}, Direction.OUTBOUND),
        ({}, None),
        ({"remote_port": 1}, None),
        ({"remote_port": 256}, None),
        ({"remote_port": 0}, Direction.OUTBOUND),  # refused
        ({"remote_port": 0, "remote": bytes(4)}, None),
        ({"remote_port": 0, **V6, "remote": bytes(15) + b"\1"}, Direction.OUTBOUND),
        ({"remote_port": 0, **V6, "remote": b"\1" + bytes(15)}, Direction.OUTBOUND),
        ({"remote_port": 0, **V6, "remote": bytes(16)}, None),
    ],
)
def test_what_state_and_ports_prove(fields, direction):
    assert direction_by_state(identity(**fields)) is direction
    if fields.get("remote") in {bytes(4), bytes(16)}:
        bound = identity(**fields)[:40] + b"\1\0\0\0"
        assert direction_by_state(bound) is direction, "the device that it is bound to is no peer"


def test_each_kind_of_evidence_outweighs_the_one_before_and_none_is_nothing():
    assert [kind.name for kind in sorted(Weight)] == ["NONE", "LISTENER", "DOUBTED", "SEQUENCE", "STATE", "WITNESSED"]
    assert not Weight.NONE


def _row_and_place(extra: int):
    row, *at = numbers(extra)
    return row, tuple(at)


def test_the_strongest_evidence_of_who_began_and_how_sure_it_is():
    """A listener of another address accepted nothing, nor one that is gone."""
    listeners, here = ListenerTable(), identity()
    for cookie, local in ((7, bytes(4)), (8, b"\x7f\0\0\2"), (9, b"\x7f\0\0\1")):
        listeners.add(cookie, identity(local=local))

    def weighed(extra: int, port: bytes = b"\0\x50", **more):
        row, *at = numbers(extra, **more)
        return weigh_direction(here[:6] + port + here[8:], row, tuple(at), listeners)

    assert listeners.of(here) == [9]
    assert weighed(0) == (Direction.INBOUND, Weight.SEQUENCE)
    assert weighed(1) == (Direction.INBOUND, Weight.LISTENER), "a byte on its way looks like a SYN"
    row, *at = numbers(1 - 70)
    for listening, expected in ((True, Weight.DOUBTED), (False, Weight.SEQUENCE)):
        still = bytearray(numbers(71, waiting=20)[0])
        still[HEADER.size + 60 : HEADER.size + 64] = bytes(4)
        known = listeners if listening else ListenerTable()
        assert weigh_direction(here, bytes(still), tuple(at), known) == (Direction.OUTBOUND, expected)
    assert weighed(3) == (Direction.INBOUND, Weight.LISTENER)
    for port in (b"\1\0", b"\0\1"):
        assert weighed(0, port) == (Direction.INBOUND, Weight.SEQUENCE)
    loopback = identity(**V6 | {"local": bytes(15) + b"\1"}, remote=bytes(15) + b"\1")
    assert weigh_direction(loopback, *_row_and_place(0), listeners) == (Direction.INBOUND, Weight.SEQUENCE)
    assert weigh_direction(here[:6] + bytes(2) + bytes(16) * 2 + here[40:], row, tuple(at), listeners) == (
        None,
        Weight.NONE,
    )
    listeners.discard(9, identity())
    assert listeners.of(here) == [7]
    listeners.discard(7, identity())
    assert (listeners.of(here), listeners.covers(here)) == ([], False)
    assert weighed(3) == (None, Weight.NONE)
    listeners.discard(8, identity())
    listeners.discard(8, identity())
    assert not listeners.by_port


def test_a_restored_connection_has_no_direction_to_its_end():
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, info={TcpInfo.DELIVERED: 0})
    kernel.start()
    kernel.sockets[1].info |= {TcpInfo.DATA_SEGS_OUT: 3, TcpInfo.BYTES_SENT: 90, TcpInfo.BYTES_ACKED: 90}
    kernel.sockets[1].info |= {TcpInfo.DELIVERED: 3, TcpInfo.TOTAL_RETRANS: 1}
    kernel.poll()
    kernel.close(1)
    assert {event.flow.direction for event in kernel.events if hasattr(event, "flow")} == {None}


def test_a_restored_connection_to_a_listeners_port_was_accepted():
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, local_port=80, remote_port=0, remote=bytes(4), state=10)
    kernel.sockets[2] = FakeSocket(2, local_port=80, remote_port=999, info={TcpInfo.DELIVERED: 0})
    kernel.start()
    assert {flow.direction for flow, _ in kernel.session.flows()} == {Direction.LISTENER, Direction.INBOUND}


# -- the living kernel


def can_unshare() -> bool:
    try:
        done = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


living = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not can_unshare(), reason="needs root and network namespaces"
)
BEGIN = """
import asyncio, json, os, socket, subprocess, sys
from nstat_async import Monitor, snapshot
from nstat_async.backends import SockDiag
def sh(*commands):
    for command in commands:
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        if done.returncode:
            print(json.dumps({"skip": done.stderr})); sys.exit()
def look():
    return [flow for flow, _ in asyncio.run(snapshot(providers=("tcp", "udp")))]
def tell(flows):
    print(json.dumps([[str(f.local), str(f.remote), f.interface and f.interface.name,
        f.interface and f.interface.kind and f.interface.kind.value, f.is_loopback,
        f.direction and f.direction.value] for f in flows]))
"""


@pytest.fixture
def inside(nursery):
    """What a program in a network namespace of its own tells."""

    def run(script: str):
        status, out, err = nursery.run(BEGIN + script, NETWORK)
        assert status == 0, err
        told = json.loads(out)
        if isinstance(told, dict) and "skip" in told:
            pytest.skip(f"this kernel cannot: {told['skip']}")
        return told

    return run


SERVICE_ADDRESS = """
sh("ip link add va0 type veth peer name vb0", "ip addr add 10.77.0.1/24 dev va0", "ip addr add 198.18.0.53/32 dev lo")
other = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; read x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
enter = f"nsenter -n -t {other.pid} "
sh(f"ip link set vb0 netns {other.pid}", "ip link set va0 up", enter + "ip addr add 10.77.0.2/24 dev vb0",
   enter + "ip link set vb0 up", enter + "ip route add 198.18.0.53 via 10.77.0.1")
listener = socket.create_server(("198.18.0.53", 7881))
client = subprocess.Popen([*enter.split(), sys.executable, "-c",
    "import socket, sys; c = socket.create_connection(('198.18.0.53', 7881)); c.send(b'x'); sys.stdin.read()"],
    stdin=subprocess.PIPE)
server, _ = listener.accept(); server.recv(1)
found = look()
client.stdin.close(); client.wait(); other.stdin.close(); other.wait()
tell(found)
"""
OWN_ADDRESS = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0",
   "ip addr add 10.78.0.1/24 dev vb0")
listener = socket.create_server(("10.77.0.1", 0))
pairs = [(socket.create_connection(listener.getsockname(), source_address=(own, 0)), listener.accept()) for own in ("10.77.0.1", "10.78.0.1")]
wide = socket.socket(socket.AF_INET6); wide.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); wide.bind(("::ffff:10.77.0.1", 0)); wide.listen()
mapped = socket.create_connection(("10.77.0.1", wide.getsockname()[1])), wide.accept()
udp = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]
for each in udp: each.connect(("10.78.0.1", 9))
tell(look())
"""
AWAY = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0")
udp = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
for each, peer in zip(udp, ("10.77.0.9", "10.77.0.255", "224.0.0.251")):
    each.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); each.setsockopt(0, 32, socket.inet_aton("10.77.0.1")); each.connect((peer, 9))
tell(look())
"""
MOVED = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up", "ip link set vb0 up", "ip addr add 10.77.0.1/24 dev va0")
udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.77.0.1", 7))
async def main():
    told = []
    async with Monitor(backend=SockDiag(), interval=None, ebpf="off", pulse=None, providers="udp") as monitor:
        events = monitor.subscribe()
        for commands in ([], ["ip link set va0 down", "ip link set va0 name lan7", "ip link set lan7 up"],
                ["ip addr add 10.77.0.1/32 dev vb0", "ip addr del 10.77.0.1/32 dev vb0"],
                ["ip addr add 10.77.0.1/32 dev vb0", "ip addr del 10.77.0.1/24 dev lan7"]):
            sh(*commands)
            await monitor.poll_now()
            told.append([[type(e).__name__, e.flow.id, e.flow.interface.name] for e in events.receive_nowait() if hasattr(e, "flow")])
    print(json.dumps(told))
asyncio.run(main())
"""
SCOPES = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 addrgenmode none", "ip link set va0 up", "ip link set vb0 up",
   "ip addr add fe80::7/64 dev va0 nodad")
index = socket.if_nametoindex("va0")
udp = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(3)]
udp[0].connect(("ff02::fb", 5353, 0, index)); udp[1].connect(("fe80::9", 9, 0, index)); udp[2].bind(("ff02::1:3", 5355, 0, index))
print(json.dumps([index, [[f.local.scope_id, f.remote and str(f.remote), f.interface.name] for f in look()]]))
"""
RESTORED = """
def restored(local, remote, sequence, acknowledged):
    made = socket.socket(); made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); made.setsockopt(6, 19, 1)
    for queue, number in ((2, sequence), (1, acknowledged)):
        made.setsockopt(6, 20, queue); made.setsockopt(6, 21, number)
    made.bind(local); made.connect(remote); return made
try:
    a, b = ("127.0.0.1", 7912), ("127.0.0.1", 7913)
    one, two = restored(a, b, 1000, 5000), restored(b, a, 5000, 1000)
except OSError as error:
    print(json.dumps({"skip": str(error)})); sys.exit()
for each in (one, two): each.setsockopt(6, 19, 0)
flows = look(); one.send(b"m" * 40); two.recv(99); tell([*flows, *look()])
"""


@pytest.mark.linux
@living
def test_what_comes_to_a_service_address_on_the_loopback_interface_is_not_local(inside):
    told = {remote: (name, local) for _, remote, name, _, local, _ in inside(SERVICE_ADDRESS)}
    assert told.pop("None") == (None, False)
    assert list(told.values()) == [("va0", False)]


@pytest.mark.linux
@living
def test_a_connection_to_an_own_address_is_local_over_whichever_interface_has_it(inside):
    """TCP, also of a socket that is of IPv6, and UDP."""
    told = inside(OWN_ADDRESS)
    assert len(told) == 10
    for _, remote, name, kind, local, _ in told:
        assert (name, kind, local) == (("va0", "bridge", False) if remote == "None" else ("lo", "loopback", True))


@pytest.mark.linux
@living
def test_a_neighbour_a_broadcast_and_a_group_are_not_local(inside):
    told = {remote: (name, local) for _, remote, name, _, local, _ in inside(AWAY)}
    assert told == dict.fromkeys(("10.77.0.9:9", "10.77.0.255:9", "224.0.0.251:9"), ("va0", False))


@pytest.mark.linux
@living
def test_a_name_that_changed_and_an_address_that_moved_are_updates(inside):
    """Another holder of the address that comes and goes is none."""
    first, renamed, visited, moved = inside(MOVED)
    ((kind, flow, name),) = first
    assert (kind, name) == ("FlowAdded", "va0")
    assert (renamed, visited, moved) == ([["FlowUpdated", flow, "lan7"]], [], [["FlowUpdated", flow, "vb0"]])


@pytest.mark.linux
@living
def test_ends_of_a_link_and_its_groups_have_its_scope(inside):
    index, told = inside(SCOPES)
    assert sorted(told, key=str) == sorted(
        ([index, f"[ff02::fb%{index}]:5353", "va0"], [index, f"[fe80::9%{index}]:9", "va0"], [index, None, "va0"]),
        key=str,
    )


@pytest.mark.linux
@living
def test_both_ends_of_a_restored_connection_have_no_direction(inside):
    told = inside(RESTORED)
    assert [direction for *_, direction in told] == [None] * 4


DEVICES = {
    "ip link add x0 type bridge": "bridge",
    "ip link add x0 type dummy": "other",
    "ip link add x0 type veth peer name y0": "bridge",
    "ip link add x0 type ifb": "other",
    "ip link add x0 type bond": "wired",
    "ip tuntap add x0 mode tap": "bridge",
    "ip tuntap add x0 mode tun": "vpn",
    "ip link add x0 type vxlan id 7 dstport 4789": "vpn",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type macvlan": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type macvtap": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type ipvlan": "bridge",
    "ip link add y0 type veth peer name z0 && ip link add x0 link y0 type vlan id 5": "wired",
    "ip link add x0 type wireguard": "vpn",
    "ip link add x0 type vrf table 10": "other",
    "ip link add x0 type geneve id 7 remote 192.0.2.2": "vpn",
    "ip link add x0 type sit local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type gre local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type gretap local 192.0.2.1 remote 192.0.2.2": "vpn",
    "ip link add x0 type ip6tnl local 2001:db8::1 remote 2001:db8::2": "vpn",
    "ip link add x0 type vti local 192.0.2.1 remote 192.0.2.2 key 1": "vpn",
    "ip link add x0 type xfrm dev lo if_id 5": "vpn",
    "ip link add x0 type ipip local 192.0.2.1 remote 192.0.2.2": "vpn",
}
EACH_DEVICE = f"""
found = {{}}
for make in {list(DEVICES)!r}:
    if subprocess.run(make, shell=True, capture_output=True).returncode:
        continue  # this kernel cannot
    sh("ip addr add 10.55.0.1/24 dev x0", "ip link set x0 up")
    udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.55.0.1", 7))
    ((flow,),) = [[flow for flow in look() if flow.local.port == 7]]
    found[make] = [flow.interface.name, flow.interface.kind.value, flow.is_loopback, flow.direction]
    udp.close()
    sh("ip link del x0"); subprocess.run("ip link del y0", shell=True, capture_output=True)
print(json.dumps(list(found.items())))
"""


@pytest.mark.linux
@living
def test_what_the_devices_of_this_kernel_look_like(inside):
    found = dict(inside(EACH_DEVICE))
    assert len(found) >= 3, "of devices that every kernel has"
    assert found == {make: ["x0", DEVICES[make], False, None] for make in found}


MANY_CHANGES = """
sh("ip link add va0 type veth peer name vb0", "ip link set va0 up")
async def main():
    async with Monitor(backend=SockDiag(), interval=None, ebpf="off") as monitor:
        await monitor.poll_now()
        lines = [f"addr {'add' if n % 3 else 'replace'} 10.{n >> 8 & 255}.{n & 255}.1/32 dev va0" for n in range(1500)]
        lines += [f"addr del 10.{n >> 8 & 255}.{n & 255}.1/32 dev va0" for n in range(1500) if n != 77]
        subprocess.run(["ip", "-batch", "-"], input="\\n".join(lines), text=True, check=True)  # the loop is held
        udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("10.0.77.1", 7))
        await monitor.poll_now()
        tell([flow for flow, _ in monitor.flows if flow.local.port == 7])
asyncio.run(main())
"""


@pytest.mark.linux
@living
def test_three_thousand_changes_while_the_loop_is_held_leave_the_table_true(inside):
    told = inside(MANY_CHANGES)
    assert told == [["10.0.77.1:7", "None", "va0", "bridge", False, None]]
