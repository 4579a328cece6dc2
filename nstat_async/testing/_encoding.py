"""Encodes the reports of the emulated kernel quickly.

The layout of the release defines each structure, and rare messages are
encoded by their classes (`nstat_async.ntstat.Message.encode`). The three reports are frequent, so
their bytes are joined from parts, which are encoded again only when a flow changes.
``tests/testing/test_testing_encoding.py`` compares them with what the classes make.
"""

from __future__ import annotations

import struct

from nstat_async.ntstat import Layout, MessageType

_ITEM = struct.Struct("<II")


class ReportEncoder:
    """Counters, descriptions and updates of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._has_lengths = layout.has_lengths
        # Reference and event flags are at the same place in every report; the provider stands
        # right before the descriptor, with padding since xnu-4570.
        self._has_event_flags = "event_flags" in layout["nstat_msg_src_counts"]
        self._head = struct.Struct("<QIHHQQ" if self._has_event_flags else "<QIHHI")
        description = layout["nstat_msg_src_description"]
        self._provider = struct.Struct(f"<I{description.size - description.by_name['provider'].end}x")

    def _begin(self, kind: int, context: int, flags: int, srcref: int, events: int, body: int) -> bytes:
        length = self._head.size + body & 0xFFFF if self._has_lengths else 0
        if self._has_event_flags:
            return self._head.pack(context, kind, length, flags, srcref, events)
        return self._head.pack(context, kind, length, flags if self._has_lengths else 0, srcref)

    def counts(self, srcref: int, counts: bytes, context: int, flags: int) -> bytes:
        """``SRC_COUNTS``."""
        return self._begin(MessageType.SRC_COUNTS, context, flags, srcref, 0, len(counts)) + counts

    def description(self, srcref: int, provider: int, descriptor: bytes, context: int, flags: int) -> bytes:
        """``SRC_DESC``."""
        body = self._provider.pack(provider) + descriptor
        return self._begin(MessageType.SRC_DESC, context, flags, srcref, 0, len(body)) + body

    def update(
        self,
        srcref: int,
        provider: int,
        counts: bytes,
        descriptor: bytes,
        *,
        kind: int = MessageType.SRC_UPDATE,
        context: int = 0,
        flags: int = 0,
        events: int = 0,
        items: bytes = b"",
    ) -> bytes:
        """``SRC_UPDATE`` and its relatives: extended, and (with detailed counters) details."""
        body = b"".join((counts, self._provider.pack(provider), descriptor, items))
        return self._begin(kind, context, flags, srcref, events, len(body)) + body


def pack_items(items: list[tuple[int, bytes | None, int]], *, padded: bool) -> bytes:
    """Encode extension items as they stand behind a descriptor.

    Args:
        items: Type, content and announced size of each. The content is `None` if the provider announced a size and then failed.
        padded: True in answers about all sources, in which ``length`` is rounded up to a multiple of 8.
    """
    total = sum(_ITEM.size + (size + 7 & ~7) for _, _, size in items)
    buffer, at = bytearray(total), 0
    for kind, content, size in items:
        if content is None:
            # The reserved space becomes one filler item, and the other items are left out.
            _ITEM.pack_into(buffer, at, 0, total - at - _ITEM.size)
            break
        room = size + 7 & ~7
        _ITEM.pack_into(buffer, at, kind, room if padded else size)
        at += _ITEM.size
        buffer[at : at + len(content)] = content
        at += room
    return bytes(buffer)
