"""Interfaces and their addresses, as rtnetlink tells them.

A socket names its device only when it is bound to one, so the interface of a flow
is that of its local address. Wireless and wired Ethernet are the same to
rtnetlink; the host's device directory tells them apart (`LinkKindsRequest`).
"""

from __future__ import annotations

import attrs

from .._model import Interface, InterfaceKind
from ._constants import HardwareType, RouteMessage
from ._messages import AddressMessage, Frame, LinkMessage

__all__ = ["LinkKindsAnswer", "LinkKindsRequest", "LinkTable", "kind_of_link"]

_TUNNELS = frozenset(
    {"wireguard", "tun", "ipip", "sit", "gre", "gretap", "ip6gre", "ip6gretap", "ip6tnl", "vti", "vti6", "xfrm"}
    | {"vxlan", "geneve", "l2tp", "ovpn", "ovpn-dco", "amt", "bareudp", "gtp", "erspan", "ip6erspan"}
)
_BRIDGES = frozenset({"bridge", "veth", "openvswitch", "macvlan", "macvtap", "ipvlan", "ipvtap", "netkit"})
_WIRED = frozenset({"vlan", "bond", "team", "hsr", "macsec", "dsa"})
_BY_HARDWARE: dict[int, InterfaceKind] = {
    HardwareType.LOOPBACK: InterfaceKind.LOOPBACK,
    HardwareType.RAWIP: InterfaceKind.CELLULAR,
    HardwareType.TUNNEL: InterfaceKind.VPN,
    HardwareType.TUNNEL6: InterfaceKind.VPN,
    HardwareType.SIT: InterfaceKind.VPN,
    HardwareType.IPGRE: InterfaceKind.VPN,
    HardwareType.IP6GRE: InterfaceKind.VPN,
    HardwareType.IEEE80211: InterfaceKind.WIFI,
    HardwareType.IEEE80211_PRISM: InterfaceKind.WIFI,
    HardwareType.IEEE80211_RADIOTAP: InterfaceKind.WIFI,
}


@attrs.frozen
class LinkKindsRequest:
    """Ask the host what kind of device these interfaces are."""

    namespace: int
    """Number of the namespace they are in."""
    names: tuple[str, ...]


@attrs.frozen
class LinkKindsAnswer:
    """What the host knows."""

    namespace: int
    kinds: tuple[tuple[str, str], ...] = ()
    """Interface names with a word of `InterfaceKind`; unknown ones are absent."""


def kind_of_link(link: LinkMessage) -> InterfaceKind | None:
    """What an interface is; `None` for Ethernet hardware, of which rtnetlink does not know more."""
    if link.kind is not None:
        if link.kind in _TUNNELS:
            return InterfaceKind.VPN
        if link.kind in _BRIDGES:
            return InterfaceKind.BRIDGE
        if link.kind in _WIRED:
            return InterfaceKind.WIRED
        if link.kind == "wwan":
            return InterfaceKind.CELLULAR
        return InterfaceKind.OTHER
    if link.hardware == HardwareType.ETHER:
        return None
    return _BY_HARDWARE.get(link.hardware, InterfaceKind.OTHER)


class LinkTable:
    """The interfaces of one namespace."""

    def __init__(self) -> None:
        self._interfaces: dict[int, Interface] = {}
        self._addresses: dict[bytes, int] = {}
        self._unnamed: dict[int, Interface] = {}

    def apply(self, message_type: int, data: bytes, frame: Frame) -> None:
        """Take in a link or address message, of a dump or of a change.

        Raises:
            ProtocolError: It cannot be decoded.
        """
        if message_type in {RouteMessage.NEWLINK, RouteMessage.DELLINK}:
            self._apply_link(LinkMessage.decode(data, frame), gone=message_type == RouteMessage.DELLINK)
        elif message_type in {RouteMessage.NEWADDR, RouteMessage.DELADDR}:
            self._apply_address(AddressMessage.decode(data, frame), gone=message_type == RouteMessage.DELADDR)

    def _apply_link(self, link: LinkMessage, *, gone: bool) -> None:
        if gone:
            self._interfaces.pop(link.index, None)
            return
        kind = kind_of_link(link)
        old = self._interfaces.get(link.index)
        if kind is None and old is not None and old.name == link.name:
            kind = old.kind  # what the host said about it stays true
        new = Interface(link.index, link.name, kind)
        if new != old:
            self._interfaces[link.index] = new

    def _apply_address(self, address: AddressMessage, *, gone: bool) -> None:
        if address.address is None:
            return
        if not gone:
            self._addresses[address.address] = address.index
        elif self._addresses.get(address.address) == address.index:
            del self._addresses[address.address]

    def unclassified(self) -> tuple[str, ...]:
        """Names of the interfaces whose kind only the host can tell."""
        return tuple(link.name for link in self._interfaces.values() if link.kind is None and link.name)

    def classify(self, answer: LinkKindsAnswer) -> None:
        """Take in what the host said."""
        kinds = dict(answer.kinds)
        for index, link in self._interfaces.items():
            word = kinds.get(link.name or "")
            if link.kind is None and word is not None:
                self._interfaces[index] = Interface(index, link.name, InterfaceKind(word))

    def index_of(self, address: bytes) -> int | None:
        """Index of the interface that has this address; `None` when none has."""
        index = self._addresses.get(address)
        if index is None and len(address) == 4 and address[0] == 127:
            # Every address of 127.0.0.0/8 is the loopback interface's, configured or not.
            return self._addresses.get(b"\x7f\0\0\1")
        return index

    def interface_of(self, address: bytes, device: int = 0) -> Interface | None:
        """The interface of a socket.

        Args:
            address: Its local address.
            device: Index of the device it is bound to, or 0.
        """
        index = device or self.index_of(address)
        if index is None:
            return None
        known = self._interfaces.get(index)
        if known is not None:
            return known
        return self._unnamed.setdefault(index, Interface(index))
