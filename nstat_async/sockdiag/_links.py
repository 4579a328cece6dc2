"""Interfaces and their addresses, as rtnetlink reports them.

A socket names its device only when it is bound to one, so the interface of a flow
is that of its local address. Wireless and wired Ethernet are the same to
rtnetlink; the host's device directory distinguishes them (`LinkKindsRequest`).
"""

from __future__ import annotations

from .._model import Interface, InterfaceKind
from ._constants import HardwareType, RouteMessage
from ._messages import AddressMessage, Frame, LinkMessage
from ._setup import LinkKindsAnswer

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
_WORDS = frozenset(kind.value for kind in InterfaceKind)


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
    """The interfaces and addresses of one namespace: what has which address, since which dump.

    A dump replaces the table whole: what it does not have is gone, whatever changes were missed.
    """

    def __init__(self) -> None:
        self.version = 0
        """Counts changes: flows whose interface was looked up at another version may have another one."""
        self._generation = 0
        self._interfaces: dict[int, Interface] = {}
        self._addresses: dict[bytes, dict[int, int]] = {}
        """Address to the indices of its interfaces, oldest first, with the length of its prefix."""
        self._seen: dict[int | tuple[bytes, int], int] = {}
        """The last dump that had an interface, or an address of one."""
        self._loopbacks: list[tuple[int, int, int]] = []
        self._loopbacks_at = 0

    def begin_dump(self) -> None:
        """Everything is being listed anew."""
        self._generation += 1

    def end_dump(self) -> None:
        """Everything was listed: the rest is gone."""
        for key in [key for key, seen in self._seen.items() if seen != self._generation]:
            if isinstance(key, int):
                self._drop_link(key)
            else:
                self._drop_address(*key)

    def apply(self, message_type: int, data: bytes, frame: Frame) -> None:
        """Take in a link or address message, of a dump or of a change.

        Raises:
            ProtocolError: It cannot be decoded.
        """
        if message_type == RouteMessage.NEWLINK:
            self._apply_link(LinkMessage.decode(data, frame))
        elif message_type == RouteMessage.DELLINK:
            self._drop_link(LinkMessage.decode(data, frame).index)
        elif message_type in {RouteMessage.NEWADDR, RouteMessage.DELADDR}:
            address = AddressMessage.decode(data, frame)
            if address.address is None:
                return
            if message_type == RouteMessage.NEWADDR:
                self._apply_address(address.address, address.index, address.prefix)
            else:
                self._drop_address(address.address, address.index)

    def _apply_link(self, link: LinkMessage) -> None:
        self._seen[link.index] = self._generation
        kind = kind_of_link(link)
        old = self._interfaces.get(link.index)
        if kind is None and old is not None:
            kind = old.kind  # what the host said about it stays true under another name
        new = Interface(link.index, link.name, kind)
        if new != old:
            self._interfaces[link.index] = new
            self.version += 1

    def _drop_link(self, index: int) -> None:
        self._seen.pop(index, None)
        if self._interfaces.pop(index, None) is not None:
            self.version += 1

    def _apply_address(self, address: bytes, index: int, prefix: int) -> None:
        self._seen[address, index] = self._generation
        holders = self._addresses.setdefault(address, {})
        if holders.get(index) != prefix:
            holders[index] = prefix
            self.version += 1

    def _drop_address(self, address: bytes, index: int) -> None:
        self._seen.pop((address, index), None)
        holders = self._addresses.get(address, {})
        if holders.pop(index, None) is not None:
            self.version += 1
            if not holders:
                del self._addresses[address]

    def unclassified(self) -> tuple[str, ...]:
        """Names of the interfaces whose kind only the host can tell."""
        return tuple(link.name for link in self._interfaces.values() if link.kind is None and link.name)

    def classify(self, answer: LinkKindsAnswer) -> None:
        """Take in what the host said."""
        kinds = dict(answer.kinds)
        for index, link in self._interfaces.items():
            word = kinds.get(link.name or "")
            if link.kind is None and word in _WORDS:
                self._interfaces[index] = Interface(index, link.name, InterfaceKind(word))
                self.version += 1

    def index_of(self, address: bytes) -> int | None:
        """Index of the interface that has this address, of several the first; `None` when none has."""
        holders = self._addresses.get(address)
        return next(iter(holders)) if holders else self._loopback_of(address)

    def _loopback_of(self, address: bytes) -> int | None:
        """The loopback interface that serves this address: it has its whole IPv4 prefixes (``fib_add_ifaddr``)."""
        if len(address) != 4:
            return None
        if self._loopbacks_at != self.version:
            self._loopbacks = self._loopback_networks()
            self._loopbacks_at = self.version
        number = int.from_bytes(address, "big")
        return next((index for network, shift, index in self._loopbacks if number >> shift == network), None)

    def _loopback_networks(self) -> list[tuple[int, int, int]]:
        """IPv4 networks of loopback interfaces: the leading bits, how many bits follow, and the interface's index."""
        loopbacks = {index for index, link in self._interfaces.items() if link.kind is InterfaceKind.LOOPBACK}
        return [
            (int.from_bytes(address, "big") >> 32 - prefix, 32 - prefix, index)
            for address, holders in self._addresses.items()
            for index, prefix in holders.items()
            if len(address) == 4 and 0 < prefix < 32 and index in loopbacks
        ]

    def interface_of(self, address: bytes, device: int = 0) -> Interface | None:
        """The interface of a socket.

        Args:
            address: Its local address.
            device: Index of the device it is bound to, or 0.
        """
        index = device or self.index_of(address)
        if index is None:
            return None
        return self._interfaces.get(index) or Interface(index)
