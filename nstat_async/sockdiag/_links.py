"""Interfaces and their addresses, as rtnetlink reports them.

A flow between two addresses of this machine passes the loopback interface, whichever interfaces have these addresses
(``ip_route_output_key_hash_rcu``, ``ip6_rt_get_dev_rcu``). Any other flow has the interface of its local address: a
socket names its device only when it is bound to one. A service address on the loopback interface or a dummy device (LVS,
anycast, kube-proxy) does not tell which way packets go: then the network of the peer may.

Rtnetlink does not tell wireless from wired Ethernet; the host's device directory does (`LinkKindsRequest`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import attrs

from .._model import Interface, InterfaceKind, is_loopback
from ._constants import HardwareType, RouteMessage
from ._host_requests import LinkKindsAnswer
from ._messages import AddressMessage, Frame, LinkMessage
from ._rows import address_of, device_of

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
_IPV4_SIZE, _IPV4_BITS = 4, 32
"""Bytes and bits of an IPv4 address."""
_LINK_SCOPES = frozenset({1, 2})
_WORDS = frozenset(kind.value for kind in InterfaceKind)
_MOST_ANSWERS = 4096
"""Most answers that are kept: the same addresses are asked for again and again."""


def kind_of_link(link: LinkMessage) -> InterfaceKind | None:
    """The kind of an interface; `None` for Ethernet hardware, wireless or wired."""
    if link.kind == "tun" and link.hardware == HardwareType.ETHER:
        return InterfaceKind.BRIDGE  # a tap: virtual Ethernet, of virtual machines mostly
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
    """The interfaces of one namespace and their addresses.

    A dump replaces the whole table, so changes that were missed do no lasting harm.
    """

    def __init__(self) -> None:
        self.version = 0
        """Grows with each change: an interface that was looked up at another version may be outdated."""
        self._generation = 0
        self._interfaces: dict[int, Interface] = {}
        self._dummies: set[int] = set()
        """Devices that carry nothing (``dummy_xmit`` drops it), and only hold addresses."""
        self._addresses: dict[bytes, dict[int, int]] = {}
        """Address to the indices of its interfaces, oldest first, with the length of its prefix."""
        self._seen: dict[int | tuple[bytes, int], int] = {}
        """The last dump that had an interface, or an address on an interface."""
        self._networks = _Networks()
        """The prefixes of the addresses, as of version `_networks_at`."""
        self._networks_at = 0
        self._indices: dict[bytes, int | None] = {}
        """What `index_of` answered, as of version `_answers_at`."""
        self._passed: dict[tuple[int, bytes], Interface | None] = {}
        """What `interface_by_row` answered."""
        self._answers_at = 0

    def begin_dump(self) -> None:
        """A dump begins."""
        self._generation += 1

    def end_dump(self) -> None:
        """The dump is complete: remove what it did not have."""
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
            kind = old.kind  # a new name does not change what the host said
        new = Interface(link.index, link.name, kind)
        if link.kind == "dummy":
            self._dummies.add(link.index)
        if new != old:
            self._interfaces[link.index] = new
            self.version += 1

    def _drop_link(self, index: int) -> None:
        self._seen.pop(index, None)
        self._dummies.discard(index)
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
        """Take over the kinds that the host knows."""
        kinds = dict(answer.kinds)
        for index, link in self._interfaces.items():
            word = kinds.get(link.name or "")
            if link.kind is None and word in _WORDS:
                self._interfaces[index] = Interface(index, link.name, InterfaceKind(word))
                self.version += 1

    def _prefixes(self) -> _Networks:
        if self._networks_at != self.version:
            self._networks_at = self.version
            self._networks = _Networks.of(self._interfaces, self._addresses, self._dummies)
        return self._networks

    def carrying(self) -> frozenset[str]:
        """Names of the interfaces that carry traffic with other machines: those with an address, except loopback and dummies."""
        indices = {index for holders in self._addresses.values() for index in holders} - self._dummies
        links = (self._interfaces.get(index) for index in indices)
        return frozenset(
            link.name for link in links if link is not None and link.name and link.kind is not InterfaceKind.LOOPBACK
        )

    def index_of(self, address: bytes) -> int | None:
        """Index of the first interface that has this address; `None` when none has.

        A loopback interface has every address of its IPv4 prefixes (``fib_add_ifaddr``).
        """
        answers = self._indices if self._answers_at == self.version else self._forget_answers()
        if address not in answers:
            if len(answers) >= _MOST_ANSWERS:
                answers.clear()
            answers[address] = self._find_index(address)
        return answers[address]

    def _forget_answers(self) -> dict[bytes, int | None]:
        self._answers_at = self.version
        self._passed, self._indices = {}, {}
        return self._indices

    def _find_index(self, address: bytes) -> int | None:
        holders = self._addresses.get(address)
        if holders:
            return next(iter(holders))
        prefixes = self._prefixes()
        return prefixes.first if is_loopback(address) else _longest(prefixes.loopback, address)

    def _is_own(self, address: bytes, device: int) -> bool:
        """True for an address of this machine; a link-local one has to be on this device."""
        holders = self._addresses.get(address)
        if holders:
            return not is_link_scoped(address) or (device or next(iter(holders))) in holders
        return is_loopback(address) or _longest(self._prefixes().loopback, address) is not None

    def interface_by_row(self, identity: bytes) -> Interface | None:
        """`interface_of` a socket by the identity in its row; the answer is remembered by these bytes without the ports."""
        passed, key = self.remembered(), (identity[0], identity[8:])
        if key not in passed:
            if len(passed) >= _MOST_ANSWERS:
                passed.clear()
            local, remote = address_of(identity, 8), address_of(identity, 24)
            passed[key] = self.interface_of(local, device_of(identity), remote if any(remote) else None)
        return passed[key]

    def remembered(self) -> dict[tuple[int, bytes], Interface | None]:
        """What `interface_by_row` remembers: interfaces by family, and by the identity from the addresses on."""
        if self._answers_at != self.version:
            self._forget_answers()
        return self._passed

    def interface_of(self, local: bytes, device: int = 0, remote: bytes | None = None) -> Interface | None:
        """The interface that a socket's packets pass; `None` when that is not known.

        Args:
            local: Its address.
            device: Index of the device it is bound to, or 0.
            remote: The peer's address; `None` where there is no peer.
        """
        prefixes = self._prefixes()
        index: int | None = device
        if remote is not None and prefixes.first is not None and self._are_own(local, remote, device):
            index = prefixes.first
        elif not device:
            index = self.index_of(local)
            if index in prefixes.holders and not is_loopback(local):
                index = None if remote is None else _longest(prefixes.links, remote)
        if index is None:
            return None
        return self._interfaces.get(index) or Interface(index)

    def _are_own(self, local: bytes, remote: bytes, device: int) -> bool:
        if local == remote and not device:
            return True  # nobody else has it, even if rtnetlink does not tell it (a route of type ``local``)
        return self._is_own(remote, device or self.index_of(local) or 0) and self._is_own(local, device)


_Prefixes = list[tuple[int, int, dict[int, int]]]
"""For each length of a prefix, the longest first: bits of an address, bits after the prefix, interfaces by prefix."""


@attrs.frozen
class _Networks:
    """The prefixes of all addresses."""

    holders: frozenset[int] = frozenset()
    """Indices of interfaces whose addresses do not tell the way: loopback interfaces and dummies."""
    first: int | None = None
    """The loopback interface that packets to this machine's own addresses pass."""
    loopback: _Prefixes = attrs.field(factory=list)
    """Networks on loopback interfaces: all their addresses are this machine's. 127.0.0.0/8 is not among them."""
    links: _Prefixes = attrs.field(factory=list)
    """Networks that are reached without a router."""

    @classmethod
    def of(
        cls,
        interfaces: Mapping[int, Interface],
        addresses: Mapping[bytes, Mapping[int, int]],
        dummies: AbstractSet[int],
    ) -> _Networks:
        """Sort addresses into these tables."""
        loopbacks = frozenset(i for i, link in interfaces.items() if link.kind is InterfaceKind.LOOPBACK)
        tables: tuple[dict[tuple[int, int], dict[int, int]], ...] = ({}, {})
        for address, holders in addresses.items():
            bits = 8 * len(address)
            for index, prefix in holders.items():
                if index in dummies:
                    continue
                on_loopback = index in loopbacks
                if 0 < prefix < bits and not (on_loopback and (bits > _IPV4_BITS or is_loopback(address))):
                    table = tables[on_loopback].setdefault((bits - prefix, bits), {})
                    table.setdefault(int.from_bytes(address, "big") >> bits - prefix, index)
        links, loopback = ([(bits, shift, table[shift, bits]) for shift, bits in sorted(table)] for table in tables)
        return cls(loopbacks | dummies, min(loopbacks, default=None), loopback, links)


def _longest(prefixes: _Prefixes, address: bytes) -> int | None:
    """The interface with the longest prefix that this address has."""
    number, size = int.from_bytes(address, "big"), 8 * len(address)
    for bits, shift, table in prefixes:
        if bits == size and number >> shift in table:
            return table[number >> shift]
    return None


def is_link_scoped(address: bytes) -> bool:
    """True for an address that is valid on one link only: fe80::/10, and multicast of an interface or link."""
    if len(address) == _IPV4_SIZE:
        return False
    first, second = address[0], address[1]
    return (first == 0xFE and second & 0xC0 == 0x80) or (first == 0xFF and second & 0x0F in _LINK_SCOPES)
