"""Counters of one emulated flow: totals, traffic by medium, activity."""

from __future__ import annotations

from typing import Any

from nstat_async.ntstat import Layout

_ALIGNMENT = 8
"""Seconds that one bit of an activity map stands for; every map begins at a multiple of them."""
_LAST_BIT = 127
_WORD = (1 << 64) - 1
_TOTALS = ("nstat_rxpackets", "nstat_rxbytes", "nstat_txpackets", "nstat_txbytes")
_NAMES = ("rxpackets", "rxbytes", "txpackets", "txbytes")
_EARLIER_MEDIA = (("cellular", "cell"), ("wifi", "wifi"), ("wired", "wired"))
"""The media of ``nstat_counts``: how their names begin in ``media_stats``, and their own names."""
Traffic = tuple[int, int, int, int]


def mark_active(start: int, bitmap: tuple[int, int], uptime: int) -> tuple[int, tuple[int, int]]:
    """Start and 128 bits of an activity map with this moment's bit set (``in_stat_set_activity_bitmap``).

    `start` and `uptime` are seconds since the machine was started; a map that is new begins at 0.
    """
    start = start or uptime - uptime % _ALIGNMENT
    bits, position = bitmap[0] | bitmap[1] << 64, max(0, (uptime - start) // _ALIGNMENT)
    if position > _LAST_BIT:
        bits, start = bits >> position - _LAST_BIT, start + (position - _LAST_BIT) * _ALIGNMENT
        position = _LAST_BIT
    bits |= 1 << position
    return start, (bits & _WORD, bits >> 64 & _WORD)


class FlowCounters:
    """The traffic of a flow, by the names of the kernel's header; absent means 0.

    With `by_medium` packets and activity are counted by medium, too (macOS 26).
    """

    def __init__(self, *, by_medium: bool) -> None:
        self._by_medium = by_medium
        self.values: dict[str, int] = {}
        """``nstat_counts`` of all releases."""
        self.details: dict[str, Any] = {}
        """Fields of ``nstat_detailed_counts`` that differ from `values` (macOS 26)."""
        self._encoded: bytes | None = None

    def set(self, name: str, value: Any) -> None:
        """Write one counter; ``media_stats.…`` are those of macOS 26."""
        if name.startswith("media_stats."):
            self.details[name] = value
        else:
            self.values[name] = value
        self._encoded = None

    def add(self, said: Traffic, seen: Traffic, medium: str | None, uptime: int) -> None:
        """Count traffic: the total, the medium that carried it, and that the flow was active.

        Args:
            said: Packets and bytes received, packets and bytes sent, as the socket or the process counts them.
            seen: The same as the interface counts it. Only flows in user space differ: the
                kernel takes their packets, and all counts by medium, from the flow switch.
            medium: Name in ``media_stats``; `None`: no medium (loopback, or no interface yet).
            uptime: Seconds since the machine was started.
        """
        values = self.values
        for name, amount in zip(_TOTALS, (seen[0], said[1], seen[2], said[3]), strict=True):
            values[name] = values.get(name, 0) + amount & _WORD
        if self._by_medium:
            self._add_details("total", said, uptime)
            if medium is not None:
                self._add_details(medium, seen, uptime)
        if medium is not None:
            for prefix, name in _EARLIER_MEDIA:
                if medium.startswith(prefix):
                    for key, amount in ((f"nstat_{name}_rxbytes", seen[1]), (f"nstat_{name}_txbytes", seen[3])):
                        values[key] = values.get(key, 0) + amount & _WORD
        self._encoded = None

    def _add_details(self, medium: str, traffic: Traffic, uptime: int) -> None:
        details, prefix = self.details, f"media_stats.{medium}."
        for name, amount in zip(_NAMES, traffic, strict=True):
            details[prefix + name] = details.get(prefix + name, 0) + amount & _WORD
        start, bitmap = prefix + "activity_bitmap.start", prefix + "activity_bitmap.bitmap"
        details[start], details[bitmap] = mark_active(details.get(start, 0), details.get(bitmap, (0, 0)), uptime)

    def encode(self, layout: Layout) -> bytes:
        """``nstat_counts``."""
        if self._encoded is None:
            self._encoded = layout["nstat_counts"].pack(self.values)
        return self._encoded

    def encode_details(self, layout: Layout) -> bytes:
        """``nstat_detailed_counts`` (macOS 26): its own fields if they were set, otherwise those of ``nstat_counts``."""
        codec = layout["nstat_detailed_counts"]
        values: dict[str, Any] = {f"media_stats.total.{name}": self.values.get("nstat_" + name, 0) for name in _NAMES}
        values.update((name[6:], value) for name, value in self.values.items() if name[6:] in codec)
        return codec.pack({**values, **self.details})
