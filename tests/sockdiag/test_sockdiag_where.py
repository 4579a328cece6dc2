"""Where a flow goes: local or not, and over which interface."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket

from nstat_async._events import FlowUpdated
from nstat_async._model import Endpoint, InterfaceKind
from nstat_async.sockdiag import (
    AddressMessage,
    LinkKindsAnswer,
    LinkMessage,
    RouteMessage,
    _links,
    iterate_messages,
)
from nstat_async.sockdiag._constants import AF_INET, AF_INET6
from nstat_async.sockdiag._links import LinkTable, is_link_scoped, kind_of_link

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
