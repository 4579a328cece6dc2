"""Interfaces: their kinds, and the table of their addresses."""

from __future__ import annotations

import pytest
from sockdiag_fakes import LOOPBACK

from nstat_async._model import InterfaceKind
from nstat_async.sockdiag import AddressMessage, LinkKindsAnswer, LinkMessage, RouteMessage, iterate_messages
from nstat_async.sockdiag._links import LinkTable, kind_of_link


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        (LinkMessage(1, 772, "lo"), InterfaceKind.LOOPBACK),
        (LinkMessage(2, 1, "eth0"), None),
        (LinkMessage(3, 65534, "wg0", "wireguard"), InterfaceKind.VPN),
        (LinkMessage(3, 65534, "tun0", "tun"), InterfaceKind.VPN),
        (LinkMessage(4, 1, "docker0", "bridge"), InterfaceKind.BRIDGE),
        (LinkMessage(4, 1, "veth1", "veth"), InterfaceKind.BRIDGE),
        (LinkMessage(5, 1, "bond0", "bond"), InterfaceKind.WIRED),
        (LinkMessage(6, 519, "wwan0"), InterfaceKind.CELLULAR),
        (LinkMessage(7, 776, "sit0"), InterfaceKind.VPN),
        (LinkMessage(8, 1, "dummy0", "dummy"), InterfaceKind.OTHER),
        (LinkMessage(9, 4242, "odd0"), InterfaceKind.OTHER),
    ],
)
def test_kinds_of_links(link, kind):
    """Loopback, tunnels, bridges and cellular are told by rtnetlink; Ethernet hardware by the host."""
    assert kind_of_link(link) is kind


def test_the_link_table_follows_changes():
    """Addresses come and go, names and kinds follow, unknown indices are still indices."""
    table = LinkTable()

    def apply(kind, message):
        data = message.encode(kind)
        (frame,) = iterate_messages(data)
        table.apply(kind, data, frame)

    address = bytes([192, 0, 2, 1])
    apply(RouteMessage.NEWLINK, LinkMessage(2, 1, "eth0"))
    apply(RouteMessage.NEWADDR, AddressMessage(2, 2, address))
    assert table.unclassified() == ("eth0",)
    table.classify(LinkKindsAnswer(0, (("eth0", "wired"),)))
    apply(RouteMessage.NEWLINK, LinkMessage(2, 1, "eth0"))
    assert table.interface_of(address).kind is InterfaceKind.WIRED
    assert table.interface_of(address) is table.interface_of(b"\0" * 4, 2)
    assert table.interface_of(b"\0" * 4) is None
    assert table.interface_of(b"\0" * 4, 99).index == 99
    apply(RouteMessage.NEWLINK, LinkMessage(1, 772, "lo"))
    apply(RouteMessage.NEWADDR, AddressMessage(2, 1, LOOPBACK, 8))
    assert table.index_of(b"\x7f\1\2\3") == 1
    apply(RouteMessage.DELADDR, AddressMessage(2, 2, address))
    assert table.interface_of(address) is None
    apply(RouteMessage.DELLINK, LinkMessage(2, 1, "eth0"))
    assert table.interface_of(b"\0" * 4, 2).name is None
