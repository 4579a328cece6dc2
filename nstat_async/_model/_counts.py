"""What a flow counted, and what two readings of it differ by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

import attrs


@attrs.frozen
class MediumCounts:
    """Traffic over one kind of medium (in details of Darwin 26, and for Bluetooth since Darwin 15)."""

    rx_bytes: int
    """Bytes received."""
    tx_bytes: int
    """Bytes sent."""
    rx_packets: int
    """Packets received."""
    tx_packets: int
    """Packets sent."""


def _index(position: int, doc: str) -> Any:
    def read(self: Counts) -> int | None:
        value: int | None = self._values[position]
        return value

    read.__doc__ = doc
    return property(read)


COUNTS_FIELDS = (
    "rx_packets",
    "rx_bytes",
    "tx_packets",
    "tx_bytes",
    "cell_rx_bytes",
    "cell_tx_bytes",
    "wifi_rx_bytes",
    "wifi_tx_bytes",
    "wired_rx_bytes",
    "wired_tx_bytes",
    "rx_duplicate_bytes",
    "rx_out_of_order_bytes",
    "tx_retransmitted_bytes",
    "connect_attempts",
    "connect_successes",
    "min_rtt_us",
    "avg_rtt_us",
    "var_rtt_us",
)
"""Order of the values inside `Counts`: that of ``nstat_counts`` since xnu-4570."""


class Counts:
    """Cumulative totals of a flow since it began.

    Every field is an `int`, or `None` if the platform does not count it.
    The constructor takes keywords; absent ones are `None`. Instances are immutable,
    hashable, and equal if all fields are equal, `media` included.

    A subclass may keep a kernel's raw values and translate them on reading; it
    overrides `_translated` and the properties concerned.

    Args:
        media: Traffic by medium: a mapping, or pairs of name and `MediumCounts`.
        fields: The other fields by name.

    Raises:
        TypeError: There is no field of that name.
    """

    __slots__ = ("_values",)
    _values: tuple[Any, ...]

    def __init__(self, *, media: Any = (), **fields: int | None) -> None:
        unknown = fields.keys() - set(COUNTS_FIELDS)
        if unknown:
            msg = f"Counts has no field {min(unknown)!r}"
            raise TypeError(msg)
        values: tuple[Any, ...] = tuple(fields.get(name) for name in COUNTS_FIELDS)
        split = tuple(dict(media).items())
        object.__setattr__(self, "_values", (*values, split) if split else values)

    rx_packets: int | None = _index(0, "Packets received. Kernel TCP counts only segments with data.")
    rx_bytes: int | None = _index(1, "Payload bytes received, duplicates and out-of-order data included on Darwin.")
    tx_packets: int | None = _index(2, "Packets sent. Kernel TCP counts only segments with data.")
    tx_bytes: int | None = _index(3, "Payload bytes sent; Darwin includes retransmitted ones.")
    cell_rx_bytes: int | None = _index(4, "Bytes received over cellular (Darwin, since 10.9).")
    cell_tx_bytes: int | None = _index(5, "Bytes sent over cellular.")
    wifi_rx_bytes: int | None = _index(6, "Bytes received over Wi-Fi, peer-to-peer included (since 10.9).")
    wifi_tx_bytes: int | None = _index(7, "Bytes sent over Wi-Fi.")
    wired_rx_bytes: int | None = _index(8, "Bytes received over Ethernet and its like (since 10.10).")
    wired_tx_bytes: int | None = _index(9, "Bytes sent over Ethernet and its like.")
    rx_duplicate_bytes: int | None = _index(10, "Bytes received more than once (TCP).")
    rx_out_of_order_bytes: int | None = _index(11, "Bytes received out of order (TCP).")
    tx_retransmitted_bytes: int | None = _index(12, "Bytes sent again (TCP).")
    connect_attempts: int | None = _index(13, "Darwin: 1 once a connection was tried; 0 again after close.")
    connect_successes: int | None = _index(14, "Darwin: 1 once it was established; 0 again after close.")
    min_rtt_us: int | None = _index(15, "Smallest round-trip estimate, microseconds; `None` without a sample.")
    avg_rtt_us: int | None = _index(16, "Smoothed round-trip time, microseconds; `None` without a sample.")
    var_rtt_us: int | None = _index(17, "Round-trip variance, microseconds; `None` without a sample.")

    @property
    def media(self) -> tuple[tuple[str, MediumCounts], ...]:
        """Traffic by medium, with packets, if a Darwin 26 kernel sent details (``extras``); otherwise empty.

        For a kernel socket, ``total`` is the exact sum of ``loopback`` and the six other media. For a flow in user space,
        ``total`` is what its process reports, packets included (other reports have the flow switch's packets); the media
        are what the flow switch saw, with headers, and the share of loopback is unknown. ``wifi_non_infra`` is Wi-Fi
        between devices, and what a tunnel sends over Wi-Fi.
        """
        return self._values[len(COUNTS_FIELDS)] if len(self._values) > len(COUNTS_FIELDS) else ()

    @property
    def loopback_rx_bytes(self) -> int | None:
        """Bytes received over loopback, from `media`; `None` for flows in user space, and without media."""
        loopback = dict(self.media).get("loopback")
        return None if loopback is None else loopback.rx_bytes

    @property
    def loopback_tx_bytes(self) -> int | None:
        """Bytes sent over loopback."""
        loopback = dict(self.media).get("loopback")
        return None if loopback is None else loopback.tx_bytes

    def _translated(self) -> tuple[int | None, ...]:
        """All fields in the order of `COUNTS_FIELDS`, in their public units."""
        return self._values[: len(COUNTS_FIELDS)]

    def as_dict(self) -> dict[str, int | None]:
        """The fields by name."""
        return dict(zip(COUNTS_FIELDS, self._translated(), strict=True))

    def items(self) -> Iterator[tuple[str, int]]:
        """The known fields with their values."""
        return ((name, value) for name, value in self.as_dict().items() if value is not None)

    def since(self, earlier: Counts | None) -> Delta:
        """The traffic since `earlier` (`None`: since the flow began)."""
        return Delta.between(earlier, self)

    @property
    def is_zero(self) -> bool:
        """True if no byte and no packet was counted in either direction."""
        return not (self.rx_bytes or self.tx_bytes or self.rx_packets or self.tx_packets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Counts):
            return NotImplemented
        return self._translated() == other._translated() and self.media == other.media

    def __hash__(self) -> int:
        return hash(self._translated())  # equal counts have equal fields; the media need not be read

    def __setattr__(self, name: str, value: object) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def __reduce__(self) -> tuple[Any, ...]:
        return (counts_of, (self._translated(), self.media))

    def __repr__(self) -> str:
        known = dict(self.items())
        shown = " ".join(f"{name}={value}" for name, value in known.items() if value)
        return f"<Counts {shown or ('zero' if known else 'unknown')}>"


def counts_of(values: tuple[int | None, ...], media: tuple[tuple[str, MediumCounts], ...] = ()) -> Counts:
    """Counts of values in the order of `COUNTS_FIELDS`, made quickly."""
    counts = object.__new__(Counts)
    object.__setattr__(counts, "_values", (*values, media) if media else values)
    return counts


_WRAP = 2**32


def packets_grown(new: int, old: int) -> int:
    """The growth of a packet counter.

    Linux counts segments in 32 bits: a counter below 2**32 that falls by more than 2**31 has wrapped.
    """
    if new < old < _WRAP and old - new > _WRAP // 2:
        return new + _WRAP - old
    return max(0, new - old)


class Place(NamedTuple):
    """Where a counter is in the kernel's own form, as an unsigned little-endian number."""

    offset: int
    size: int
    """Size in bytes: 4 or 8."""
    parts: int = 0
    """For a time: the number of its units in a millisecond; such a time has 4 bytes, and 0 means that there is no sample."""
    sample: int = 0
    """For a time: offset of another time; if that has no sample, this has none either."""


@attrs.frozen(eq=False)
class CountsForm:
    """A kernel's own form of counters, for code that writes many."""

    size: int
    """Size in bytes."""
    places: Mapping[str, Place]
    """Where each of the counted `COUNTS_FIELDS` is."""


Four = tuple[Union[int, None], Union[int, None], Union[int, None], Union[int, None]]
"""Bytes received and sent, packets received and sent; `None`: not counted."""


def began_anew(new: Sequence[int | None], old: Sequence[int | None]) -> bool:
    """True if the counters restarted, because another flow has the id: all that were not zero fell, one by more than half."""
    had = [(after, before) for after, before in zip(new, old, strict=True) if after is not None and before]
    fell = bool(had) and all(after < before for after, before in had)
    return fell and any(new) and any(2 * after < before for after, before in had)


def growth(new: Four, old: Four) -> Four:
    """The traffic between two readings of four counters; each counts by itself, unless all restarted (`began_anew`).

    A packet counter may wrap (`packets_grown`); any other counter that fell is an odd reading, and adds nothing.
    """
    if None not in new and None not in old:
        grown: Any = (new[0] - old[0], new[1] - old[1], new[2] - old[2], new[3] - old[3])  # type: ignore[operator]  # no None
        if min(grown) >= 0:  # nearly always: nothing restarted or wrapped
            return grown  # type: ignore[no-any-return]
    rx_bytes, tx_bytes, rx_packets, tx_packets = (
        None if after is None else max(0, after - (before or 0)) for after, before in zip(new, old, strict=True)
    )
    if 0 in (rx_bytes, tx_bytes, rx_packets, tx_packets):  # else all that is counted grew
        if began_anew(new, old):
            return new
        if any(new):
            rx_packets = None if new[2] is None else packets_grown(new[2], old[2] or 0)
            tx_packets = None if new[3] is None else packets_grown(new[3], old[3] or 0)
    return rx_bytes, tx_bytes, rx_packets, tx_packets


@attrs.frozen
class Delta:
    """The difference of two readings of a flow's counters, never negative.

    A packet counter of 32 bits may wrap. If all counters restarted, the difference is what they counted since then.
    `TrafficTable` adds up the same differences.
    """

    rx_bytes: int | None
    """Bytes received; `None` if they are not counted, like the other fields."""
    tx_bytes: int | None
    """Bytes sent."""
    rx_packets: int | None
    """Packets received."""
    tx_packets: int | None
    """Packets sent."""

    @classmethod
    def between(cls, earlier: Counts | None, later: Counts) -> Delta:
        """The growth from `earlier` (`None`: from zero) to `later`."""
        new = (later.rx_bytes, later.tx_bytes, later.rx_packets, later.tx_packets)
        if earlier is None:
            return cls(*new)
        return cls(*growth(new, (earlier.rx_bytes, earlier.tx_bytes, earlier.rx_packets, earlier.tx_packets)))
