"""Interfaces of the emulated machine, and what they make of a flow's properties."""

from __future__ import annotations

import attrs

from nstat_async._model import InterfaceKind
from nstat_async.ntstat._constants import InterfaceProperty as Bit
from nstat_async.ntstat._kernels import Version

__all__ = ["DEFAULT_INTERFACES", "EmulatedInterface", "interface_properties", "known_property_bits"]

_KIND_BITS = {
    InterfaceKind.LOOPBACK: Bit.LOOPBACK,
    InterfaceKind.WIRED: Bit.WIRED,
    InterfaceKind.BRIDGE: Bit.WIRED,
    InterfaceKind.WIFI: Bit.WIFI | Bit.WIFI_INFRA,
    InterfaceKind.AWDL: Bit.WIFI | Bit.AWDL,
    InterfaceKind.CELLULAR: Bit.CELLULAR,
    InterfaceKind.COMPANION: Bit.COMPANIONLINK,
    InterfaceKind.BLUETOOTH: Bit.COMPANIONLINK_BT,
}
_IFT = {InterfaceKind.LOOPBACK: 24, InterfaceKind.CELLULAR: 0xFF, InterfaceKind.VPN: 1}


@attrs.define(eq=False)
class EmulatedInterface:
    """A network interface of the emulated machine."""

    name: str
    index: int
    kind: InterfaceKind
    expensive: bool = False
    constrained: bool = False
    delegate: EmulatedInterface | None = None
    """The interface that carries a tunnel's packets, where one is set."""
    description: str = ""
    counts: dict[str, int] = attrs.Factory(dict)
    """``nstat_rxpackets``, ``nstat_rxbytes``, ``nstat_txpackets``, ``nstat_txbytes``."""
    threshold: int = 0
    """``if_data_threshold``: bytes after which watchers are told; 0: nobody asked."""

    @property
    def media(self) -> InterfaceKind:
        """The kind whose counters its bytes go to: the delegate's for a tunnel."""
        return self.delegate.media if self.delegate is not None else self.kind

    @property
    def bits(self) -> int:
        """``NSTAT_IFNET_*`` of a flow whose last packet went out here."""
        flags = _KIND_BITS.get(self.kind, Bit(0))
        if self.kind is InterfaceKind.VPN:
            flags |= Bit.VPN
            flags |= Bit(self.delegate.bits) & ~(Bit.EXPENSIVE | Bit.CONSTRAINED) if self.delegate else Bit.UNKNOWN_TYPE
        if not flags:
            flags = Bit.UNKNOWN_TYPE
        if self.expensive:
            flags |= Bit.EXPENSIVE
        if self.constrained:
            flags |= Bit.CONSTRAINED
        return int(flags)

    @property
    def type_number(self) -> int:
        """``ifi_type``."""
        return _IFT.get(self.kind, 6)


def known_property_bits(version: Version) -> int:
    """Interface bits that the filter of a release looks at (``NSTAT_FILTER_IFNET_FLAGS``)."""
    for first, mask in (
        ((11215,), 0x7FFFF),
        ((8019,), 0x1FFFF),
        ((7195,), 0xFFFF),
        ((6153,), 0x1FFF),
        ((3789,), 0xFFF),
        ((3247,), 0xFF),
    ):
        if version >= first:
            return mask
    return 0


def interface_properties(version: Version, interface: EmulatedInterface | None) -> int:
    """What a release knows of an interface's kind; "unknown" while no packet went out."""
    if version < (3247,):
        return 0
    bits = int(Bit.UNKNOWN_TYPE) if interface is None else interface.bits
    if version < (3789,):
        bits &= 0xFF
    elif version < (7195,):
        bits &= 0xFFF
    elif version < (8019,):
        bits &= 0xFFFF
    return bits


def _defaults() -> list[EmulatedInterface]:
    wifi = EmulatedInterface("en0", 4, InterfaceKind.WIFI, description="Wi-Fi")
    return [
        EmulatedInterface("lo0", 1, InterfaceKind.LOOPBACK),
        wifi,
        EmulatedInterface("en1", 5, InterfaceKind.WIRED, description="Ethernet"),
        EmulatedInterface("pdp_ip0", 6, InterfaceKind.CELLULAR, expensive=True),
        EmulatedInterface("utun0", 7, InterfaceKind.VPN, delegate=wifi),
        EmulatedInterface("awdl0", 8, InterfaceKind.AWDL),
    ]


DEFAULT_INTERFACES = _defaults
"""Makes the interfaces of a new kernel."""
