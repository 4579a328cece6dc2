"""Reads BTF, the types of a running kernel, to find the offsets of fields in its structures.

``/sys/kernel/btf/vmlinux`` is a header, a sequence of types numbered from 1, and a table of strings
(``Documentation/bpf/btf.rst``). The number of a type is known only after counting all types before it, so all wanted types
are found in one pass. A kernel has some 130,000 types, and the pass takes about 50 ms.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

from .._errors import ProtocolError

MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_HEAD = struct.Struct("=II")
_MEMBER = struct.Struct("=III")
_ARRAY = struct.Struct("=III")
MAX_DEPTH = 64
"""Most references that are followed, one after the other; a longer chain is a cycle."""


class TypeKind(enum.IntEnum):
    """``BTF_KIND_*``: the kinds that are looked up or followed."""

    POINTER = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNCTION = 12
    TYPE_TAG = 18


_FIXED = {1: 16, 2: 12, 3: 24, 7: 12, 8: 12, 9: 12, 10: 12, 11: 12, 12: 12, 14: 16, 16: 12, 17: 16, 18: 12}
"""Bytes of a type by kind, if all types of the kind have the same size."""
_EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes of each row by kind, after the first twelve bytes of the type."""
_ALIASES = frozenset({8, 9, 10, 11, 18})
_COMPOSITES = frozenset({4, 5})


class Btf:
    """The wanted types.

    Args:
        data: The whole file.
        wanted: Kinds and names of the types to find.

    Raises:
        ProtocolError: These bytes are not BTF in this machine's byte order, or are damaged.
    """

    def __init__(self, data: bytes, wanted: Iterable[tuple[TypeKind, str]]) -> None:
        self._data = data
        try:
            magic, _, _, header, types, length, strings, size = _HEADER.unpack_from(data)
            if magic != MAGIC:
                raise ProtocolError("no BTF of this byte order", raw=data[:2])
            self._strings = data[header + strings : header + strings + size]
            self._begin, self._end = header + types, header + types + length
            self._offsets: list[int] = [0]
            self.ids = self._scan(set(wanted))
        except (struct.error, KeyError) as error:
            raise ProtocolError(f"damaged BTF: {error}", raw=data[:24]) from error

    def _scan(self, wanted: set[tuple[TypeKind, str]]) -> dict[tuple[TypeKind, str], int]:
        sought = {}
        for kind, name in wanted:
            at = self._strings.find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                sought[at + 1, int(kind)] = (kind, name)
        found: dict[tuple[TypeKind, str], int] = {}
        data, at, end, unpack = self._data, self._begin, self._end, _HEAD.unpack_from
        offsets, fixed = self._offsets, _FIXED
        while at < end:
            name, info = unpack(data, at)
            kind = info >> 24 & 31
            offsets.append(at)
            key = sought.get((name, kind))
            # The first with members: a forward declaration of a structure has none.
            if key is not None and key not in found and (kind not in _COMPOSITES or info & 0xFFFF):
                found[key] = len(offsets) - 1
            at += fixed.get(kind) or 12 + (info & 0xFFFF) * _EACH[kind]
        return found

    def field(self, name: str, path: Iterable[str | int]) -> tuple[int, int] | None:
        """Offset and size in bytes of a field of a structure; `None` if this kernel has no such field.

        Raises:
            ProtocolError: The BTF is damaged.
        """
        start = self.ids.get((TypeKind.STRUCT, name))
        if start is None:
            return None
        offset, at = 0, start
        try:
            for step in path:
                found = self._element(at, step) if isinstance(step, int) else self._member(at, step)
                if found is None:
                    return None
                offset, at = offset + found[0], found[1]
            return offset, self._size(at)
        except (struct.error, IndexError) as error:
            raise ProtocolError(f"damaged BTF: {error}", raw=self._data[:24]) from error

    def _type(self, number: int) -> tuple[int, int, int, int]:
        """Place, kind, info and the last word (a size or a type) of a type."""
        at = self._offsets[number]
        _, info, last = _TYPE.unpack_from(self._data, at)
        return at, info >> 24 & 31, info, last

    def _strip(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(MAX_DEPTH):
            _, kind, _, last = self._type(number)
            if kind not in _ALIASES:
                return number
            number = last
        raise ProtocolError("damaged BTF: a type that is an alias of itself")

    def _size(self, number: int, depth: int = 0) -> int:
        at, kind, _, last = self._type(self._strip(number))
        if kind == TypeKind.POINTER:
            return 8
        if kind == TypeKind.ARRAY and depth < MAX_DEPTH:
            element, _, count = _ARRAY.unpack_from(self._data, at + 12)
            return int(count) * self._size(element, depth + 1)
        return last

    def _element(self, number: int, index: int) -> tuple[int, int] | None:
        at, kind, _, _ = self._type(self._strip(number))
        if kind != TypeKind.ARRAY:
            return None
        element, _, _ = _ARRAY.unpack_from(self._data, at + 12)
        return index * self._size(element), element

    def _member(self, number: int, name: str, searched: set[int] | None = None) -> tuple[int, int] | None:
        """Offset and type of a member, also inside structures and unions without a name."""
        searched = set() if searched is None else searched
        at, kind, info, _ = self._type(self._strip(number))
        if kind not in _COMPOSITES or at in searched:
            return None
        searched.add(at)
        wanted = name.encode()
        for row in range(info & 0xFFFF):
            label, member, bits = _MEMBER.unpack_from(self._data, at + 12 + 12 * row)
            if info >> 31:
                bits &= 0xFFFFFF  # the upper byte is the width of a bit field
            if not label:
                inner = self._member(member, name, searched)
                if inner is not None:
                    return bits // 8 + inner[0], inner[1]
            elif self._is(label, wanted):
                return bits // 8, member
        return None

    def _is(self, label: int, name: bytes) -> bool:
        return self._strings.startswith(name + b"\0", label)
