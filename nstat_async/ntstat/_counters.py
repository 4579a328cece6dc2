"""The kernel's counters, kept as sent and translated when read.

``nstat_counts`` is the same for all providers; what a provider does not count is
`None` for the user. Round-trip times are scaled integers: 1/32 ms for average and
minimum, 1/16 ms for the variance; 0 is "no sample" (``nstat_tcp_counts``, ``tcp_timer.h``).

A session keeps the structure as bytes: a third of the memory of the numbers, and unchanged
counters are found by one comparison. Since xnu-4570 it has one form, whose fields are read
where they are; those of older releases are brought into the same order as numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Union

import attrs

from .._model import COUNTS_FIELDS, Counts, MediumCounts, Provider
from ._layouts import Layout, Reader, compile_format, layout
from ._tables import MEDIA, NEWEST, STRUCTS

__all__ = [
    "COUNTS_CLASSES",
    "PACKED_CLASSES",
    "ConnectionCounts",
    "Raw",
    "SubflowCounts",
    "TcpCounts",
    "UdpCounts",
    "Values",
    "advance",
    "counts_unpacker",
    "detailed_values",
    "growing_reader",
    "has_grown",
    "has_grown_whole",
    "make_counts",
]

Values = tuple[Any, ...]
"""Raw counters in the order of `COUNTS_FIELDS`; `None` where the release has no field."""
Raw = Union[bytes, Values]
"""Counters as a session keeps them: ``nstat_counts`` as sent; numbers where they come from details, or had to be corrected."""

_OUR_NAMES = {row[0]: name for row, name in zip(STRUCTS["nstat_counts"][1], COUNTS_FIELDS, strict=True)}
"""Names in the kernel's header to ours: its rows are in the order of `COUNTS_FIELDS`."""
_CODEC = layout(NEWEST)["nstat_counts"]
_unpack = compile_format(_CODEC.fields).unpack
_raw_values: Callable[[Counts], Any] = Counts.__dict__["_values"].__get__
_set_values: Callable[[Counts, Any], None] = Counts.__dict__["_values"].__set__


def _numbers(counts: Counts) -> Values:
    raw: Raw = _raw_values(counts)
    return _unpack(raw) if isinstance(raw, bytes) else raw


def _scaled(position: int, divisor: int, doc: str | None) -> Any:
    def read(self: Counts) -> int | None:
        # Without a sample the average is 0; the variance then has its initial value, which means nothing.
        values = _numbers(self)
        raw = values[position]
        return raw * 1000 // divisor if raw and values[16] else None

    read.__doc__ = doc
    return property(read)


class TcpCounts(Counts):
    """Counters of a kernel or user-land TCP or QUIC source, kept as sent."""

    __slots__ = ()

    min_rtt_us = _scaled(15, 32, Counts.min_rtt_us.__doc__)
    avg_rtt_us = _scaled(16, 32, Counts.avg_rtt_us.__doc__)
    var_rtt_us = _scaled(17, 16, Counts.var_rtt_us.__doc__)

    def _translated(self) -> tuple[int | None, ...]:
        return (*_numbers(self)[:15], self.min_rtt_us, self.avg_rtt_us, self.var_rtt_us)


class _PartlyCounted(Counts):
    """Counters of a source of which the kernel counts the first few: the rest is `None`."""

    __slots__ = ()
    _counted: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        for name in COUNTS_FIELDS[cls._counted :]:
            setattr(cls, name, property(lambda self: None, doc=getattr(Counts, name).__doc__))  # noqa: ARG005

    def _translated(self) -> tuple[int | None, ...]:
        return (*_numbers(self)[: self._counted], *(None,) * (len(COUNTS_FIELDS) - self._counted))


class UdpCounts(_PartlyCounted):
    """Counters of a UDP source: no duplicates, no retransmissions, no round trips."""

    __slots__ = ()
    _counted = 10


class SubflowCounts(_PartlyCounted):
    """Counters of a UDP subflow: the kernel does not split them by medium."""

    __slots__ = ()
    _counted = 4


class ConnectionCounts(_PartlyCounted):
    """A connection of the network framework carries nothing itself: all is `None`."""

    __slots__ = ()


COUNTS_CLASSES: dict[Provider, type[Counts]] = {
    Provider.UDP: UdpCounts,
    Provider.UDP_SUBFLOW: SubflowCounts,
    Provider.CONNECTION: ConnectionCounts,
}


def _packed_field(position: int, doc: str | None) -> Any:
    unpack = _CODEC.reader(_CODEC.fields[position].name)

    def read(self: Counts) -> int | None:
        value: int | None = unpack(self._values, 0)[0]  # type: ignore[arg-type]  # bytes, in these classes
        return value

    read.__doc__ = doc
    return property(read)


def _packed(cls: type[Counts], known: int) -> type[Counts]:
    """The same counters around the bytes of ``nstat_counts``: their first `known` fields are read from there."""
    members: dict[str, Any] = {"__slots__": (), "__doc__": cls.__doc__, "__module__": cls.__module__}
    members["media"] = property(lambda self: (), doc=Counts.media.__doc__)  # noqa: ARG005
    packed = type("Packed" + cls.__name__, (cls,), members)
    for position, name in enumerate(COUNTS_FIELDS[:known]):
        setattr(packed, name, _packed_field(position, getattr(Counts, name).__doc__))
    return packed


PACKED_CLASSES: dict[type[Counts], type[Counts]] = {TcpCounts: _packed(TcpCounts, 15)}
for _cls in (UdpCounts, SubflowCounts, ConnectionCounts):
    PACKED_CLASSES[_cls] = _packed(_cls, _cls._counted)  # noqa: SLF001  # of this module

_new = object.__new__


def make_counts(cls: type[Counts], raw: Raw) -> Counts:
    """Counters of this class around their raw form, without the keyword constructor of `Counts`."""
    counts = _new(cls)
    _set_values(counts, raw)
    return counts


@functools.cache
def counts_unpacker(layout: Layout) -> tuple[Callable[[bytes], Values], bool]:
    """What makes `Values` of the bytes of ``nstat_counts`` in a layout; True if they have the form since xnu-4570."""
    codec = layout["nstat_counts"]
    order = [COUNTS_FIELDS.index(_OUR_NAMES[field.name]) for field in codec.fields]
    if order == list(range(18)):
        return _unpack, True
    unpack = compile_format(codec.fields).unpack_from

    def arrange(raw: bytes) -> Values:
        values: list[Any] = [None] * 18
        for position, value in zip(order, unpack(raw), strict=True):
            values[position] = value
        return tuple(values)

    return arrange, False


def growing_reader(layout: Layout) -> Reader:
    """Reads what tells that counters have simply grown: packets and bytes, and the three that wrap as one piece."""
    fields = layout["nstat_counts"].by_name
    wrapping = fields["nstat_rxduplicatebytes"]
    totals = [fields[f"nstat_{name}"] for name in ("rxpackets", "rxbytes", "txpackets", "txbytes")]
    return compile_format([*totals, attrs.evolve(wrapping, size=12, format="12s")]).unpack_from


def detailed_values(fields: dict[str, Any]) -> Values:
    """``nstat_detailed_counts`` as `Values`, with the media behind them."""

    def medium(name: str) -> MediumCounts:
        at = f"media_stats.{name}."
        return MediumCounts(
            fields[at + "rxbytes"], fields[at + "txbytes"], fields[at + "rxpackets"], fields[at + "txpackets"]
        )

    media = {name: medium(name) for name in MEDIA}
    total, cell, wired = media["total"], media["cellular"], media["wired"]
    infra, other = media["wifi_infra"], media["wifi_non_infra"]
    return (
        total.rx_packets,
        total.rx_bytes,
        total.tx_packets,
        total.tx_bytes,
        cell.rx_bytes,
        cell.tx_bytes,
        infra.rx_bytes + other.rx_bytes,
        infra.tx_bytes + other.tx_bytes,
        wired.rx_bytes,
        wired.tx_bytes,
        fields["rxduplicatebytes"],
        fields["rxoutoforderbytes"],
        fields["txretransmit"],
        None,
        None,
        fields["min_rtt"],
        fields["avg_rtt"],
        fields["var_rtt"],
        tuple(media.items()),
    )


def has_grown(new: Values, old: Values) -> bool:
    """True when no counter of a kernel's source is less than before."""
    return all(new[p] >= old[p] for p in (0, 1, 2, 3, 10, 11, 12))


def has_grown_whole(new: Values, old: Values) -> bool:
    """The same for numbers that a process wrote, which need not agree with each other."""
    return new[10:13] == old[10:13] and all(
        a is not None and b is not None and a >= b for a, b in zip(new[:10], old[:10], strict=True)
    )


def advance(told: Values, old: Values, new: Values) -> Values:
    """The counters to tell when the raw ones do not simply grow.

    - u32 byte counters of TCP (positions 10 to 12) wrap at 4 GiB: their growth is
      taken modulo 2^32, unless it is so large, or the bytes fell with it, that the
      counter must have fallen.
    - All others keep their highest value: xnu-1699 reports zero while a socket is
      closed (``nstat_tcp_counts``), and user-land processes write what they like.
    """
    values = list(new)
    fell = new[1] < old[1] or new[3] < old[3]
    for position in range(10):
        if new[position] is not None and told[position] is not None:
            values[position] = max(new[position], told[position])
    for position in (10, 11, 12):
        if new[position] is not None and told[position] is not None:
            growth = (
                (new[position] - old[position]) & 0xFFFFFFFF
                if old[position] < 1 << 32
                else new[position] - old[position]
            )
            values[position] = told[position] + (growth if 0 <= growth < 1 << 31 and not fell else 0)
    return tuple(values)
