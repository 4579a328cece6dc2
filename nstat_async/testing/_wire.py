"""Bytes of the emulated kernel's messages, for one release.

The shape of every message comes from the layout table; what is compiled here is
compiled once per layout. A flow's counters and descriptor are encoded when they
change and kept, so that a report of an unchanged flow costs one `bytes.join`.
``tests/testing/test_wire.py`` compares each message with the message classes of
`nstat_async.ntstat`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Any

from nstat_async.ntstat._constants import HEADER_SIZE, MessageType
from nstat_async.ntstat._layouts import Layout, StructCodec

__all__ = ["Packer", "Wire", "wire"]

_HEADER = struct.Struct("<QIHH")
_ITEM = struct.Struct("<II")
_EMPTY: Mapping[str, Any] = {}


class Packer:
    """Encodes a whole structure from a mapping of its fields, quickly."""

    def __init__(self, codec: StructCodec, start: int = 0) -> None:
        self.codec = codec
        self.size = codec.size
        parts, at, names, overlay = ["<"], start, [], []
        for field in codec.fields:
            if field.offset < at:
                overlay.append(field.name)
                continue
            if field.offset > at:
                parts.append(f"{field.offset - at}x")
            parts.append(field.format)
            zero: Any = b"" if field.format.endswith("s") else 0
            names.append((field.name, field.count, zero))
            at = field.end
        if codec.size > at:
            parts.append(f"{codec.size - at}x")
        self._struct = struct.Struct("".join(parts))
        self._single = all(count == 1 for _, count, _ in names)
        self._names = names
        self._overlay = overlay
        self.pack = self._struct.pack
        """Packs the fields by offset, given as positional arguments (overlaps left out)."""

    def __call__(self, values: Mapping[str, Any]) -> bytes:
        """The structure; absent fields are zero, unknown names are ignored."""
        get = values.get
        if self._single:
            packed = self.pack(*[get(name, zero) for name, _, zero in self._names])
        else:
            flat: list[Any] = []
            for name, count, zero in self._names:
                if count == 1:
                    flat.append(get(name, zero))
                else:
                    flat.extend(get(name, (0,) * count))
            packed = self.pack(*flat)
        extra = [name for name in self._overlay if name in values]
        if not extra:
            return packed
        buffer = bytearray(packed)
        for name in extra:
            self.codec.write(buffer, name, values[name])
        return bytes(buffer)


class Wire:
    """The messages of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.has_lengths = layout.has_lengths
        self.error_size = layout["nstat_msg_error"].size
        self.counts = Packer(layout["nstat_counts"])
        """Encodes ``nstat_counts``."""
        # Reference (and event flags) are the same bytes in reports of every kind; the provider of a
        # description and of an update stands right before the descriptor, with padding since xnu-4570.
        wide = "nstat_msg_src_counts"
        self._has_event_flags = "event_flags" in layout[wide]
        self._report = struct.Struct("<QIHHQQ" if self._has_event_flags else "<QIHHI")
        description = layout["nstat_msg_src_description"]
        end = description.by_name["provider"].end
        self._provider = struct.Struct(f"<I{description.size - end}x")
        self.counts_size = self._report.size + self.counts.size
        self.description_size = description.size
        update = layout.find("nstat_msg_src_update")
        self.update_size = update.size if update is not None else 0
        self._added = Packer(layout["nstat_msg_src_added"], HEADER_SIZE)
        self._removed = Packer(layout["nstat_msg_src_removed"], HEADER_SIZE)

    def header(self, kind: int, length: int, context: int = 0, flags: int = 0) -> bytes:
        """A message header; length and flags are left out where the layout has none."""
        if not self.has_lengths:
            return _HEADER.pack(context, kind, 0, 0)
        return _HEADER.pack(context, kind, length & 0xFFFF, flags)

    def success(self, context: int, flags: int) -> bytes:
        """``SUCCESS``."""
        return self.header(MessageType.SUCCESS, HEADER_SIZE, context, flags)

    def error(self, context: int, errno: int, request: bytes = b"") -> bytes:
        """``ERROR``, with a copy of the request behind it."""
        head = self.header(MessageType.ERROR, self.error_size + len(request), context)
        return head + errno.to_bytes(4, "little") + b"\0" * (self.error_size - HEADER_SIZE - 4) + request

    def added(self, srcref: int, provider: int, context: int) -> bytes:
        """``SRC_ADDED``."""
        body = self._added({"srcref": srcref, "provider": provider})
        return self.header(MessageType.SRC_ADDED, self._added.size, context) + body

    def removed(self, srcref: int, flags: int) -> bytes:
        """``SRC_REMOVED``."""
        body = self._removed({"srcref": srcref})
        return self.header(MessageType.SRC_REMOVED, self._removed.size, 0, flags) + body

    def _head(self, kind: int, size: int, context: int, flags: int, srcref: int, events: int) -> bytes:
        if not self.has_lengths:
            size = flags = 0
        if self._has_event_flags:
            return self._report.pack(context, kind, size & 0xFFFF, flags, srcref, events)
        return self._report.pack(context, kind, size & 0xFFFF, flags, srcref)

    def source_counts(self, srcref: int, counts: bytes, context: int, flags: int) -> bytes:
        """``SRC_COUNTS``."""
        return self._head(MessageType.SRC_COUNTS, self.counts_size, context, flags, srcref, 0) + counts

    def source_description(self, srcref: int, provider: int, descriptor: bytes, context: int, flags: int) -> bytes:
        """``SRC_DESC``."""
        size = self.description_size + len(descriptor)
        head = self._head(MessageType.SRC_DESC, size, context, flags, srcref, 0)
        return b"".join((head, self._provider.pack(provider), descriptor))

    def source_update(
        self,
        srcref: int,
        provider: int,
        counts: bytes,
        descriptor: bytes,
        context: int = 0,
        flags: int = 0,
        events: int = 0,
        *,
        kind: int = MessageType.SRC_UPDATE,
        items: bytes = b"",
    ) -> bytes:
        """``SRC_UPDATE`` and its relatives: extended, and (with detailed counts) details."""
        size = self._report.size + len(counts) + self._provider.size + len(descriptor) + len(items)
        head = self._head(kind, size, context, flags, srcref, events)
        return b"".join((head, counts, self._provider.pack(provider), descriptor, items))

    def system_information(self, entries: bytes) -> bytes:
        """``SYSINFO_COUNTS``; `entries` is a list of ``nstat_sysinfo_keyval``."""
        codec = self.layout["nstat_msg_sysinfo_counts"]
        body = bytearray(codec.size)
        own = codec.size - codec.by_name["counts.nstat_sysinfo_len"].offset
        codec.write(body, "counts.nstat_sysinfo_len", own + len(entries))
        size = codec.size + len(entries)
        body[:HEADER_SIZE] = self.header(MessageType.SYSINFO_COUNTS, size)
        return bytes(body) + entries

    @functools.cached_property
    def detailed_counts(self) -> Packer:
        """Encodes ``nstat_detailed_counts`` (macOS 26)."""
        return Packer(self.layout["nstat_detailed_counts"])


def pack_items(items: list[tuple[int, bytes | None, int]], *, padded: bool) -> bytes:
    """Extension items as they stand behind a descriptor.

    Args:
        items: Type, content (`None`: the provider failed although it had told a size), told size.
        padded: True in answers about all sources, where ``length`` is rounded up to 8.
    """
    total = sum(_ITEM.size + (size + 7 & ~7) for _, _, size in items)
    buffer, at = bytearray(total), 0
    for kind, content, size in items:
        if content is None:
            # What was reserved is turned into one filler item, and the rest is left out.
            _ITEM.pack_into(buffer, at, 0, total - at - _ITEM.size)
            break
        room = size + 7 & ~7
        _ITEM.pack_into(buffer, at, kind, room if padded else size)
        at += _ITEM.size
        buffer[at : at + len(content)] = content
        at += room
    return bytes(buffer)


@functools.cache
def wire(layout: Layout) -> Wire:
    """The messages of `layout`, compiled once."""
    return Wire(layout)
