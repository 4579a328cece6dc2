"""The interfaces of the emulated machine, and their effect on a flow's properties."""

from __future__ import annotations

from typing import Any

import attrs

from nstat_async._model import InterfaceKind
from nstat_async.ntstat import InterfaceProperty as Bit

from ._values import checked, flag, instance, one_of, text, whole

# Plain numbers, not members: each report of a flow needs several operations on them.
_UNKNOWN, _VPN, _EXPENSIVE = int(Bit.UNKNOWN_TYPE), int(Bit.VPN), int(Bit.EXPENSIVE)
_CONSTRAINED, _ULTRA = int(Bit.CONSTRAINED), int(Bit.ULTRA_CONSTRAINED)
_KIND_BITS = {
    InterfaceKind.LOOPBACK: int(Bit.LOOPBACK),
    InterfaceKind.WIRED: int(Bit.WIRED),
    InterfaceKind.BRIDGE: int(Bit.WIRED),
    InterfaceKind.WIFI: int(Bit.WIFI | Bit.WIFI_INFRA),
    InterfaceKind.AWDL: int(Bit.WIFI | Bit.AWDL),
    InterfaceKind.CELLULAR: int(Bit.CELLULAR),
    InterfaceKind.VPN: _VPN,
    InterfaceKind.COMPANION: int(Bit.COMPANIONLINK),
    InterfaceKind.BLUETOOTH: int(Bit.COMPANIONLINK | Bit.COMPANIONLINK_BT),
}
_MEDIA = {
    InterfaceKind.CELLULAR: "cellular",
    InterfaceKind.WIFI: "wifi_infra",
    InterfaceKind.AWDL: "wifi_non_infra",
    InterfaceKind.WIRED: "wired",
    InterfaceKind.BRIDGE: "wired",
    InterfaceKind.BLUETOOTH: "bluetooth",
}
_IFT = {InterfaceKind.LOOPBACK: 24, InterfaceKind.CELLULAR: 0xFF, InterfaceKind.VPN: 1}


@attrs.define(eq=False)
class EmulatedInterface:
    """A network interface of the emulated machine."""

    name: str = attrs.field(validator=checked(text))
    """Its name, e.g. ``"en0"``."""
    index: int = attrs.field(validator=checked(whole, bits=16, least=1))
    """Its number, from 1."""
    kind: InterfaceKind = attrs.field(validator=checked(one_of, tuple(InterfaceKind)))
    """What it is; its properties follow from that."""
    expensive: bool = attrs.field(default=False, validator=checked(flag))
    """Its traffic costs money (``IFNET_IS_EXPENSIVE`` in its properties)."""
    constrained: bool = attrs.field(default=False, validator=checked(flag))
    """Traffic is to be saved (``IFNET_IS_CONSTRAINED`` in its properties)."""
    delegate: EmulatedInterface | None = attrs.field(default=None)
    """The interface that carries a tunnel's packets, if one is set."""
    description: str = attrs.field(default="", validator=checked(text))
    """Its long name."""
    counts: dict[str, int] = attrs.field(factory=dict, validator=checked(instance, dict))
    """``nstat_rxpackets``, ``nstat_rxbytes``, ``nstat_txpackets``, ``nstat_txbytes``."""
    threshold: int = attrs.field(default=0, validator=checked(whole))
    """``if_data_threshold``: bytes after which watchers get a report; 0: none was requested."""
    ultra_constrained: bool = attrs.field(default=False, validator=checked(flag))
    """Constrained even more (since macOS 26; implies `constrained`)."""

    wire_rx: int = attrs.field(default=0, validator=checked(whole))
    """Bytes that it received of flows' packets, headers included."""
    wire_tx: int = attrs.field(default=0, validator=checked(whole))
    """Bytes that it sent of them."""

    @delegate.validator
    def _check_delegate(self, _attribute: Any, value: Any) -> None:
        if value is not None:
            instance("delegate", value, EmulatedInterface)

    def carry(self, rx: int, tx: int) -> None:
        """Count packets of flows; what goes through a tunnel goes through its delegate, too."""
        self.wire_rx, self.wire_tx = self.wire_rx + rx, self.wire_tx + tx
        if self.delegate is not None:
            self.delegate.carry(rx, tx)

    @property
    def carried(self) -> tuple[int, int, int] | None:
        """Index, and all bytes received and sent, by flows and else (``if_data64``); `None` for loopback."""
        if self.kind is InterfaceKind.LOOPBACK:
            return None
        count = self.counts.get
        return self.index, self.wire_rx + count("nstat_rxbytes", 0), self.wire_tx + count("nstat_txbytes", 0)

    @property
    def medium(self) -> str | None:
        """Where ``media_stats`` counts its bytes; `None` for loopback, which is in no medium.

        A tunnel counts where its delegate does, but never as Wi-Fi infrastructure: that test
        looks at the tunnel itself (``IFNET_COUNT_TYPE``).
        """
        if self.kind is InterfaceKind.LOOPBACK:
            return None
        medium = self.delegate.medium if self.delegate is not None else _MEDIA.get(self.kind, "alternate")
        return "wifi_non_infra" if medium == "wifi_infra" and self.kind is not InterfaceKind.WIFI else medium

    @property
    def bits(self) -> int:
        """``NSTAT_IFNET_*`` of a flow whose last packet went out here, as the newest release knows them."""
        flags = _KIND_BITS.get(self.kind, 0)
        if self.kind is InterfaceKind.VPN and self.delegate is not None:
            flags |= self.delegate.bits & ~(_EXPENSIVE | _CONSTRAINED)
        elif not flags & ~_VPN:
            flags |= _UNKNOWN
        constrained = self.constrained or self.ultra_constrained
        return flags | _EXPENSIVE * self.expensive | _CONSTRAINED * constrained | _ULTRA * self.ultra_constrained

    @property
    def type_number(self) -> int:
        """``ifi_type``."""
        return _IFT.get(self.kind, 6)


# attrs makes the constructor before the class has its name, which is needed to evaluate the annotations.
EmulatedInterface.__init__.__annotations__["delegate"] = EmulatedInterface | None

_RELEASES = (
    ((12377,), 0x7FFFF, 0xFFFFF),
    ((11215,), 0x7FFFF, 0x7FFFF),
    ((8019,), 0x1FFFF, 0x3FFFF),
    ((7195,), 0xFFFF, 0xFFFF),
    ((6153,), 0x1FFF, 0xFFF),
    ((3789,), 0xFFF, 0xFFF),
    ((3247,), 0xFF, 0xFF),
)
"""Since which release: interface bits that a filter looks at (``NSTAT_FILTER_IFNET_FLAGS``), and bits that are known."""


def filter_mask(version: tuple[int, ...]) -> int:
    """Interface bits that the filter of a release looks at."""
    return next((mask for first, mask, _ in _RELEASES if version >= first), 0)


def property_bits(version: tuple[int, ...], interface: EmulatedInterface | None) -> int:
    """What a release knows of an interface's kind; "unknown" while no packet went out."""
    known = next((bits for first, _, bits in _RELEASES if version >= first), 0)
    return known & (_UNKNOWN if interface is None else interface.bits)


def default_interfaces() -> list[EmulatedInterface]:
    """The interfaces of a new machine."""
    wifi = EmulatedInterface("en0", 4, InterfaceKind.WIFI, description="Wi-Fi")
    return [
        EmulatedInterface("lo0", 1, InterfaceKind.LOOPBACK),
        wifi,
        EmulatedInterface("en1", 5, InterfaceKind.WIRED, description="Ethernet"),
        EmulatedInterface("pdp_ip0", 6, InterfaceKind.CELLULAR, expensive=True),
        EmulatedInterface("utun0", 7, InterfaceKind.VPN, delegate=wifi),
        EmulatedInterface("awdl0", 8, InterfaceKind.AWDL),
    ]
