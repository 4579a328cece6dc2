"""Structures of one kernel release, compiled from the table.

A `Layout` has the structures of one layout number of ``_tables.py`` as `struct.Struct` objects,
which are made on first use and kept. A `StructCodec` decodes and encodes one structure,
knows its exact size, and decodes a *prefix* if there are fewer bytes: fields that do
not fit are left out, and nothing is read past the end.

`compile_format` is the only place that writes a format string: the messages, the
decoder, the descriptors and the emulated kernel all read and write through it.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Union

import attrs

from ._tables import NEWEST, OLDEST, STRUCTS, Since

FieldValue = Union[int, float, bytes, "tuple[int, ...]"]
"""The value of a field: numbers as `int` or `float`; strings, addresses and UUIDs as raw bytes; arrays as tuples."""
Reader = Callable[[bytes, int], "tuple[Any, ...]"]
"""(data, where the structure begins) to the values of some of its fields."""

_FORMATS = {
    "U8": "B",
    "U16": "H",
    "U32": "I",
    "U64": "Q",
    "I32": "i",
    "I64": "q",
    "F64": "d",
    "BOOL": "B",
    "SOCKADDR": "28s",
    "UUID": "16s",
}


def _at(since: Since, number: int) -> Any:
    """The value of a "since" mapping for one layout; `None` if the layout is older than all of it."""
    known = [n for n in since if n <= number]
    return since[max(known)] if known else None


@attrs.frozen
class Field:
    """One field of a structure in one layout."""

    name: str
    """Name in the kernel's header."""
    kind: str
    """``U8`` … ``I64``, ``F64``, ``BOOL``, ``CHAR``, ``UUID``, ``SOCKADDR``, ``COUNTS``, ``DETAILED_COUNTS``."""
    offset: int
    """Bytes from the structure's start."""
    size: int
    """Size in bytes."""
    format: str
    """Format for `struct`, without byte order."""
    count: int
    """Number of elements of an array; 1 otherwise."""

    @property
    def end(self) -> int:
        """Offset of the first byte after the field."""
        return self.offset + self.size


def _field(name: str, kind: str, offset: int, number: int) -> Field:
    base, _, times = kind.partition("*")
    count = int(times or 1)
    if base == "CHAR":
        fmt, count = f"{count}s", 1
    elif base in {"COUNTS", "DETAILED_COUNTS"}:
        size = _at(STRUCTS["nstat_counts" if base == "COUNTS" else "nstat_detailed_counts"][0], number)
        fmt = f"{size}s"
    else:
        fmt = _FORMATS[base] if count == 1 else f"{count}{_FORMATS[base]}"
    return Field(name, base, offset, struct.calcsize(f"<{fmt}"), fmt, count)


def compile_format(fields: Iterable[Field], *, begin: int = 0, size: int | None = None) -> struct.Struct:
    """The format of these fields, which are ordered by offset and do not overlap; gaps are skipped (and packed as zeros).

    Args:
        fields: The fields.
        begin: Offset in the structure where the format begins.
        size: Offset where it ends; `None`: after the last field.
    """
    parts, at = ["<"], begin
    for field in fields:
        parts.append(f"{field.offset - at}x{field.format}")
        at = field.end
    if size is not None:
        parts.append(f"{size - at}x")
    return struct.Struct("".join(parts))


class StructCodec:
    """Decodes and encodes one structure of one layout."""

    def __init__(self, name: str, size: int, fields: tuple[Field, ...]) -> None:
        self.name = name
        """Name in the kernel's header."""
        self.size = size
        """Exact size in bytes."""
        self.fields = fields
        """The fields, ordered by offset; members of unions overlap."""
        self.by_name = {field.name: field for field in fields}
        """The fields by name."""
        self._structs = {field.name: compile_format([field], begin=field.offset) for field in fields}
        self._readers: dict[tuple[str, ...], Reader] = {}
        plain: list[Field] = []
        for field in fields:
            if not plain or field.offset >= plain[-1].end:
                plain.append(field)
        self.plain = tuple(plain)
        """The fields that share no bytes with an earlier one."""
        self._overlay = [field for field in fields if field not in plain]
        self._whole = compile_format(plain, size=size)
        self._names = tuple(field.name for field in plain for _ in range(field.count))
        """One name for each value of the structure."""
        self._arrays = [
            (field.name, self._names.index(field.name), self._names.index(field.name) + field.count)
            for field in plain
            if field.count > 1
        ]
        """Name of each array, and begin and end of its values."""

    def reader(self, *names: str) -> Reader:
        """A compiled reader of these fields, in this order; they have single values, and do not overlap."""
        reader = self._readers.get(names)
        if reader is None:
            fields = sorted((self.by_name[name] for name in names), key=operator.attrgetter("offset"))
            reader = unpack = compile_format(fields).unpack_from
            order = [[field.name for field in fields].index(name) for name in names]
            if order != sorted(order):
                pick = operator.itemgetter(*order)

                def reader(data: bytes, at: int) -> tuple[Any, ...]:
                    return pick(unpack(data, at))  # type: ignore[no-any-return]  # two names or more: a tuple

            self._readers[names] = reader
        return reader

    def decode(self, data: bytes, at: int = 0, end: int | None = None) -> dict[str, FieldValue]:
        """The fields of the structure at `at`, by name, in the order of their offsets.

        Args:
            data: The bytes.
            at: Offset where the structure begins.
            end: Offset where it ends; fields beyond are left out.
        """
        limit = len(data) if end is None else end
        if limit - at < self.size:
            return {f.name: self.read(f.name, data, at) for f in self.fields if at + f.end <= limit}
        values = self._whole.unpack_from(data, at)
        result: dict[str, FieldValue] = dict(zip(self._names, values, strict=True))
        for name, begin, stop in self._arrays:
            result[name] = values[begin:stop]
        for field in self._overlay:
            result[field.name] = self.read(field.name, data, at)
        return result

    def read(self, name: str, data: bytes, at: int = 0) -> Any:
        """Read one field. The caller has checked that it is there."""
        field = self.by_name[name]
        values = self._structs[name].unpack_from(data, at + field.offset)
        return values[0] if field.count == 1 else values

    def write(self, buffer: bytearray, name: str, value: Any, at: int = 0) -> None:
        """Write one field into `buffer`. Strings and blobs are padded with NULs, or cut."""
        field = self.by_name[name]
        values = value if field.count > 1 else (value,)
        self._structs[name].pack_into(buffer, at + field.offset, *values)

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """The structure with these fields; absent ones are zero.

        Raises:
            KeyError: The layout has no such field.
        """
        for name in values:
            if name not in self.by_name:
                raise KeyError(name)
        return self.pack(values)

    @functools.cached_property
    def _zeros(self) -> list[tuple[str, Any]]:
        """Name and zero value of each field that overlaps no earlier one."""
        zeros: list[Any] = [b"" if field.format.endswith("s") else 0 for field in self.plain]
        return [(f.name, z if f.count == 1 else (z,) * f.count) for f, z in zip(self.plain, zeros, strict=True)]

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """`encode` for values of any release: fields that this layout lacks are left out."""
        get = values.get
        flat = [get(name, zero) for name, zero in self._zeros]
        if self._arrays:
            for index in range(len(flat) - 1, -1, -1):
                if type(flat[index]) is tuple:
                    flat[index : index + 1] = flat[index]
        packed = self._whole.pack(*flat)
        overlaps = [field.name for field in self._overlay if field.name in values] if self._overlay else ()
        if not overlaps:
            return packed
        buffer = bytearray(packed)
        for name in overlaps:
            self.write(buffer, name, values[name])
        return bytes(buffer)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def __repr__(self) -> str:
        return f"<StructCodec {self.name} {self.size} bytes>"


class Layout:
    """All structures of one wire layout.

    Args:
        number: Its number.
        grown: Bytes that a release inserted and ``_tables.py`` has no row for: structure name to
            (offset of the insertion, its size). Everything else is as in the newest layout
            of the table.
    """

    def __init__(self, number: int, grown: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.number = number
        """1 to `NEWEST`, or higher for a layout with `grown` structures."""
        self.name = f"W{number:02d}"
        """Short name, e.g. ``"W11"``."""
        self._grown = dict(grown or {})
        self._codecs: dict[str, StructCodec | None] = {}

    def find(self, name: str) -> StructCodec | None:
        """The structure with this name; `None` if this layout has none."""
        try:
            return self._codecs[name]
        except KeyError:
            codec = self._codecs[name] = self._compile(name)
            return codec

    def __getitem__(self, name: str) -> StructCodec:
        codec = self.find(name)
        if codec is None:
            raise KeyError(f"layout {self.name} has no {name}")
        return codec

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def _compile(self, name: str) -> StructCodec | None:
        sizes, rows = STRUCTS[name]
        size = _at(sizes, self.number)
        if size is None:
            return None
        fields = []
        for field_name, kind, offsets in rows:
            offset = _at(offsets, self.number)
            if offset is not None:
                kind_here = kind if isinstance(kind, str) else _at(kind, self.number)
                fields.append(_field(field_name, kind_here, offset, self.number))
        if name in self._grown:
            place, growth = self._grown[name]
            fields = [attrs.evolve(f, offset=f.offset + growth) if f.offset >= place else f for f in fields]
            size += growth
        fields.sort(key=operator.attrgetter("offset"))
        return StructCodec(name, size, tuple(fields))

    @property
    def has_lengths(self) -> bool:
        """True if the header carries length and flags (since xnu-3247)."""
        return self.number >= 5

    @property
    def reference_size(self) -> int:
        """Bytes of a source reference: 4, or 8 since xnu-3789."""
        return 8 if self.number >= 6 else 4

    @property
    def all_sources(self) -> int:
        """The reference that means "all sources"."""
        return (1 << 8 * self.reference_size) - 1

    def __repr__(self) -> str:
        return f"<Layout {self.name}>"


@functools.cache
def layout(number: int) -> Layout:
    """The layout with this number, which is compiled once, and immutable.

    Raises:
        KeyError: There is none.
    """
    if not OLDEST <= number <= NEWEST:
        raise KeyError(f"no layout {number}")
    return Layout(number)
