"""The kernel's counters, kept as sent and translated when read.

``nstat_counts`` is the same for all providers; counters that a provider does not have are
`None` for the user. Round-trip times are scaled integers: 1/32 ms for average and
minimum, 1/16 ms for the variance; 0 means "no sample" (``nstat_tcp_counts``, ``tcp_timer.h``).

A session keeps the structure as bytes: they take a third of the memory of the numbers, and one
comparison finds unchanged counters. Since xnu-4570 the structure has one form, whose fields are read
in place; counters of older releases become numbers in the same order. The details of
macOS 26 (``nstat_detailed_counts``) begin with the same four totals, and are kept the same way.

In these details, each byte and packet of a kernel socket is in the total and in one of six
media, or went over loopback, which has no counter: loopback is exactly the total minus the
six media (``INP_ADD_STAT``). For a flow in user space, the process reports the total, and the
media are what the flow switch saw, headers included. So these need not agree, and the share of loopback is
unknown. Its packets are the flow switch's in updates, and the process' own in details.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Union

import attrs

from .._model import COUNTS_FIELDS, Counts, CountsForm, MediumCounts, Place, Provider
from ._layouts import Field, Layout, Reader, compile_format, layout
from ._tables import MEDIA, NEWEST, STRUCTS

Values = tuple[Any, ...]
"""Raw counters in the order of `COUNTS_FIELDS`; `None` if the release lacks the field."""
Raw = Union[bytes, Values]
"""Counters as a session keeps them: the bytes as sent, or numbers if they had to be corrected."""

_OUR_NAMES = {row[0]: name for row, name in zip(STRUCTS["nstat_counts"][1], COUNTS_FIELDS, strict=True)}
"""Names in the kernel's header to names in `COUNTS_FIELDS`, which has the same order."""
_CODEC = layout(NEWEST)["nstat_counts"]
_unpack = compile_format(_CODEC.fields).unpack
_raw_values: Callable[[Counts], Any] = Counts.__dict__["_values"].__get__
_set_values: Callable[[Counts, Any], None] = Counts.__dict__["_values"].__set__


COUNTED = {Provider.UDP: 10, Provider.UDP_SUBFLOW: 4, Provider.CONNECTION: 0}
"""How many of `COUNTS_FIELDS`, from the first on, the kernel counts for a provider; for TCP all eighteen."""
_SCALES = {15: 32, 16: 32, 17: 16}
"""Position of a round-trip time to the number of its units in a millisecond."""
Get = Callable[[Counts], Any]


def _reader_of(position: int, counted: int, numbers: Get, at_once: int) -> Get:
    """A function that reads one field: from the kernel's bytes (one of the first), from the numbers, or always `None`."""
    if position >= counted:
        return lambda _: None
    if position < at_once:
        unpack = _CODEC.reader(_CODEC.fields[position].name)
        return lambda counts: unpack(_raw_values(counts), 0)[0]
    if position not in _SCALES:
        return lambda counts: numbers(counts)[position]
    return lambda counts: _scaled(numbers(counts), position)


def _scaled(values: Values, position: int) -> int | None:
    """A round-trip time in microseconds; `None` if there is no sample (then the average is 0)."""
    raw = values[position]
    return raw * 1000 // _SCALES[position] if raw and values[16] else None


def _make_class(counted: int, numbers: Get, media: Get, at_once: int) -> type[Counts]:
    """A class of counts that keeps the raw counters, and translates a field when it is read."""
    members: dict[str, Any] = {"__slots__": (), "__doc__": Counts.__doc__, "__module__": __name__}
    members["media"] = property(media, doc=Counts.media.__doc__)
    unknown = (None,) * (len(COUNTS_FIELDS) - counted)

    def translated(self: Counts) -> Values:
        values = numbers(self)
        if unknown:
            return (*values[:counted], *unknown)
        least, mean, spread = values[15:18]
        if not mean:
            return (*values[:15], None, None, None)
        return (*values[:15], least * 1000 // 32 or None, mean * 1000 // 32, spread * 1000 // 16 or None)

    members["_translated"] = translated
    for position, name in enumerate(COUNTS_FIELDS):
        doc = getattr(Counts, name).__doc__
        members[name] = property(_reader_of(position, counted, numbers, at_once), doc=doc)
    return type("KernelCounts", (Counts,), members)


@functools.cache
def counts_classes(counted: int, *, is_socket: bool) -> dict[int, type[Counts]]:
    """The classes of a provider's counts, by the length of the raw bytes; 0 for numbers.

    Args:
        counted: Number of fields that the kernel counts.
        is_socket: True for kernel sockets: traffic in no medium went over loopback.
    """

    def details(counts: Counts) -> Values:
        return detailed_values(_raw_values(counts), is_socket=is_socket)

    return {
        0: _make_class(counted, _raw_values, lambda counts: (*_raw_values(counts), ())[18], 0),
        _CODEC.size: _make_class(counted, lambda counts: _unpack(_raw_values(counts)), lambda _: (), 15),
        DETAILS_SIZE: _make_class(counted, details, lambda counts: details(counts)[18], 4),
    }


@functools.cache
def counts_form(counted: int) -> CountsForm:
    """Where the first `counted` counters are in ``nstat_counts`` since xnu-4570."""
    average = _CODEC.fields[16].offset
    places = {
        name: Place(field.offset, field.size, *((_SCALES[place], average) if place in _SCALES else ()))
        for place, (name, field) in enumerate(zip(COUNTS_FIELDS[:counted], _CODEC.fields, strict=False))
    }
    return CountsForm(_CODEC.size, places)


_new = object.__new__


def make_counts(cls: type[Counts], raw: Raw) -> Counts:
    """Counts of this class with these raw counters, made without the keyword constructor of `Counts`."""
    counts = _new(cls)
    _set_values(counts, raw)
    return counts


@functools.cache
def counts_unpacker(layout: Layout) -> tuple[Callable[[bytes], Values], bool]:
    """A function that makes `Values` of ``nstat_counts`` in a layout, and True if that has the form since xnu-4570."""
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


_TOTALS = ("rxpackets", "rxbytes", "txpackets", "txbytes")


@functools.cache
def growing_fields(layout: Layout) -> tuple[Field, ...]:
    """The fields that tell whether counters have simply grown: packets, bytes, and the three that wrap, as one piece."""
    fields = layout["nstat_counts"].by_name
    wrapping = attrs.evolve(fields["nstat_rxduplicatebytes"], size=12, format="12s")
    return (*(fields[f"nstat_{name}"] for name in _TOTALS), wrapping)


@functools.cache
def growing_reader(layout: Layout) -> Reader:
    """A reader of `growing_fields`."""
    return compile_format(growing_fields(layout)).unpack_from


_DETAILS = layout(NEWEST)["nstat_detailed_counts"]
DETAILS_SIZE = _DETAILS.size
"""Size of the counters in details, in bytes; those of updates are shorter."""
_details = compile_format(
    field for field in _DETAILS.plain if not field.name.endswith((".start", ".bitmap", "_flags", "_uuid"))
).unpack_from
_SIX = MEDIA[1:]


def detailed_values(raw: bytes, *, is_socket: bool) -> Values:
    """``nstat_detailed_counts`` as `Values`, followed by the media, and for a kernel socket by loopback."""
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


@functools.cache
def growing_details() -> Reader:
    """`growing_reader` for details."""
    fields = _DETAILS.by_name
    totals = [fields[f"media_stats.total.{name}"] for name in _TOTALS]
    wrapping = attrs.evolve(fields["rxduplicatebytes"], size=24, format="24s")
    return compile_format([*totals, wrapping]).unpack_from


QUIET = _DETAILS.by_name["rxduplicatebytes"].offset
"""If details of a kernel socket agree up to this offset, and after the media, only bits of activity differ."""


def has_grown(new: Values, old: Values) -> bool:
    """True when no counter of a kernel's source is less than before."""
    return all(new[p] >= old[p] for p in (0, 1, 2, 3, 10, 11, 12))


def has_grown_whole(new: Values, old: Values) -> bool:
    """`has_grown` for counters that a process wrote: all of them are compared, because they need not agree."""
    return new[10:13] == old[10:13] and all(
        a is not None and b is not None and a >= b for a, b in zip(new[:10], old[:10], strict=True)
    )


def advance(reported: Values, old: Values, new: Values) -> Values:
    """The counters to report if the raw ones do not simply grow.

    - The u32 byte counters of TCP (positions 10 to 12) wrap at 4 GiB: their growth is
      taken modulo 2^32. If it is very large, or the bytes fell too, the counter must
      have fallen, and keeps its value.
    - All others keep their highest value: xnu-1699 reports zero while a socket is
      being closed (``nstat_tcp_counts``), and user-land processes may write anything.
    """
    values = list(new)
    fell = new[1] < old[1] or new[3] < old[3]
    for position in range(10):
        if new[position] is not None and reported[position] is not None:
            values[position] = max(new[position], reported[position])
    for position in (10, 11, 12):
        growth = new[position] - old[position]
        if old[position] < 1 << 32:
            growth &= 0xFFFFFFFF
        values[position] = reported[position] + (growth if 0 <= growth < 1 << 31 and not fell else 0)
    return tuple(values)
