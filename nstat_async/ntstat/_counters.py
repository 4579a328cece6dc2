"""The kernel's counters, kept as sent and translated when read.

``nstat_counts`` is the same for all providers; what a provider does not count is
`None` for the user. Round-trip times are scaled integers: 1/32 ms for average and
minimum, 1/16 ms for the variance; 0 is "no sample" (``nstat_tcp_counts``, ``tcp_timer.h``).

A session keeps the structure as bytes: a third of the memory of the numbers, and unchanged
counters are found by one comparison. Since xnu-4570 it has one form, whose fields are read
where they are; those of older releases are brought into the same order as numbers. The
details of macOS 26 (``nstat_detailed_counts``) begin with the same four totals and are kept alike.

What a medium's counters mean there: of a kernel socket, each byte and packet is in the total
and in one of six media, or went over loopback, which has no counter: loopback is the total
without the six, exactly (``INP_ADD_STAT``). Of a flow in user space the total is what the process
says, and the media are what the flow switch saw, headers included: they need not agree, and nothing
says how much was loopback. Its packets are the flow switch's in updates, and the process' own in details.
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
    "DETAILED_CLASSES",
    "DETAILS_SIZE",
    "PACKED_CLASSES",
    "QUIET",
    "ConnectionCounts",
    "Raw",
    "SubflowCounts",
    "TcpCounts",
    "UdpCounts",
    "Values",
    "advance",
    "counts_unpacker",
    "detailed_values",
    "growing_details",
    "growing_reader",
    "has_grown",
    "has_grown_whole",
    "make_counts",
]

Values = tuple[Any, ...]
"""Raw counters in the order of `COUNTS_FIELDS`; `None` where the release has no field."""
Raw = Union[bytes, Values]
"""Counters as a session keeps them: as sent; numbers where they had to be corrected."""

_OUR_NAMES = {row[0]: name for row, name in zip(STRUCTS["nstat_counts"][1], COUNTS_FIELDS, strict=True)}
"""Names in the kernel's header to ours: its rows are in the order of `COUNTS_FIELDS`."""
_CODEC = layout(NEWEST)["nstat_counts"]
_unpack = compile_format(_CODEC.fields).unpack
_raw_values: Callable[[Counts], Any] = Counts.__dict__["_values"].__get__
_set_values: Callable[[Counts, Any], None] = Counts.__dict__["_values"].__set__


def _numbers(counts: Counts) -> Values:
    raw: Raw = _raw_values(counts)
    if not isinstance(raw, bytes):
        return raw
    return _unpack(raw) if len(raw) < DETAILS_SIZE else detailed_values(raw, is_socket=False)


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


_DETAILS = layout(NEWEST)["nstat_detailed_counts"]
DETAILS_SIZE = _DETAILS.size
"""Bytes of the counters in details; longer than those of any update."""
_details = compile_format(
    field for field in _DETAILS.plain if not field.name.endswith((".start", ".bitmap", "_flags", "_uuid"))
).unpack_from
_SIX = MEDIA[1:]


def detailed_values(raw: bytes, *, is_socket: bool) -> Values:
    """``nstat_detailed_counts`` as `Values`, with the media behind them; of a kernel socket with loopback, too."""
    values = _details(raw)
    blocks = {name: values[4 * place : 4 * place + 4] for place, name in enumerate(MEDIA)}
    if is_socket:
        apart = zip(blocks["total"], *(blocks[name] for name in _SIX), strict=True)
        blocks["loopback"] = tuple(max(0, total - sum(media)) for total, *media in apart)
    media = tuple((name, MediumCounts(rx, tx, rxp, txp)) for name, (rxp, rx, txp, tx) in blocks.items())
    total, cell, wired = blocks["total"], blocks["cellular"], blocks["wired"]
    infra, other = blocks["wifi_infra"], blocks["wifi_non_infra"]
    rest = values[4 * len(MEDIA) :]
    wifi = (infra[1] + other[1], infra[3] + other[3])
    return (*total, cell[1], cell[3], *wifi, wired[1], wired[3], *rest[:3], None, None, *rest[3:], media)


def _detailed(cls: type[Counts], known: int, *, is_socket: bool) -> type[Counts]:
    """The same counters around the bytes of ``nstat_detailed_counts``: totals are read there, all else when it is wanted."""

    def value(position: int) -> Any:
        def read(self: Counts) -> int | None:
            found: int | None = _numbers(self)[position]
            return found

        read.__doc__ = getattr(Counts, COUNTS_FIELDS[position]).__doc__
        return property(read)

    members: dict[str, Any] = {"__slots__": (), "__doc__": cls.__doc__, "__module__": cls.__module__}
    members["media"] = property(
        lambda self: detailed_values(_raw_values(self), is_socket=is_socket)[18], doc=Counts.media.__doc__
    )
    for position, name in enumerate(COUNTS_FIELDS[: min(known, 15)]):
        members[name] = _packed_field(position, getattr(Counts, name).__doc__) if position < 4 else value(position)
    return type("Detailed" + cls.__name__, (cls,), members)


DETAILED_CLASSES: dict[tuple[type[Counts], bool], type[Counts]] = {
    (cls, is_socket): _detailed(cls, getattr(cls, "_counted", 15), is_socket=is_socket)
    for cls in PACKED_CLASSES
    for is_socket in (False, True)
}
"""Class of counters, and whether they are a kernel socket's, to the class for what came in details."""


def growing_details() -> Reader:
    """As `growing_reader`, for details."""
    fields = _DETAILS.by_name
    totals = [fields[f"media_stats.total.{name}"] for name in ("rxpackets", "rxbytes", "txpackets", "txbytes")]
    wrapping = attrs.evolve(fields["rxduplicatebytes"], size=24, format="24s")
    return compile_format([*totals, wrapping]).unpack_from


QUIET = _DETAILS.by_name["rxduplicatebytes"].offset
"""Details that are equal before and after the media differ in nothing but bits of activity, for a kernel socket."""


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
