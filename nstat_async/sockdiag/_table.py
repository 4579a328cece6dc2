"""The sockets of one family and protocol, and what changes between two dumps.

Wanted: for each of up to 100,000 sockets a dump, the answer "new, changed, or the
same" at a fraction of what the kernel needs to write the message (about 1 µs).
A message therefore is cut into four pieces by one compiled format -- identity,
cookie, rest up to ``tcp_info``, counters -- and the pieces of two dumps are compared
as one tuple. Formats belong to message lengths: sockets of one kind have one
length, so a whole datagram is one `struct.Struct.iter_unpack`. Pieces that move
without traffic (timers, times since the last segment) lie between them.

Removals cost nothing when there are none: the sockets reported are counted, and the
table is searched only when the count falls short, or when it must be certain.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import attrs

from .._model import Counts, DetailsSource, Direction, Flow, Process
from ._constants import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    TCP_DUMP_STATES,
    TIMER_TIME_WAIT,
    DiagAttribute,
    SocketState,
    TcpInfo,
)
from ._messages import ATTRIBUTES_AT, HEADER, align, find_attribute

__all__ = [
    "KINDS",
    "Entry",
    "Kind",
    "Layout",
    "SocketTable",
    "counters_differ",
    "identity_differs",
    "info_of",
    "is_remains",
    "layout_of",
]

_IDENTITY_SIZE = 44
_REST_AT = HEADER.size + 64
"""Offset of uid and inode."""
_COUNTERS_AT = int(TcpInfo.BYTES_ACKED)
_COUNTERS_SIZE = 40
"""From ``tcpi_bytes_acked`` to ``tcpi_data_segs_out``: nothing is sent or received without a change in it."""

_MAX_LAYOUTS = 256
"""Distinct message lengths that are remembered; a kernel has a dozen."""


@attrs.frozen
class Kind:
    """What one dump is about."""

    index: int
    family: int
    protocol: int
    states: int


KINDS = (
    Kind(0, AF_INET, IPPROTO_TCP, TCP_DUMP_STATES),
    Kind(1, AF_INET6, IPPROTO_TCP, TCP_DUMP_STATES),
    Kind(2, AF_INET, IPPROTO_UDP, 0xFFFFFFFF),
    Kind(3, AF_INET6, IPPROTO_UDP, 0xFFFFFFFF),
)
"""The dumps of a poll, in their order; v4-mapped sockets are in those of AF_INET6."""


class Entry:
    """One socket that is known."""

    __slots__ = (
        "absences",
        "cookie",
        "counts",
        "details",
        "direction",
        "flow",
        "inode",
        "kind",
        "last",
        "over",
        "owner",
        "preexisting",
        "seen",
        "state",
        "uid",
    )

    def __init__(self, cookie: int, kind: Kind, last: tuple[Any, ...], seen: int) -> None:
        self.cookie = cookie
        self.kind = kind
        self.last = last
        """The pieces of the last message; see `Layout`."""
        self.seen = seen
        """Number of the last poll that had it."""
        self.state: int = last[1][1]
        self.uid = 0
        self.inode = 0
        self.counts: Counts | None = None
        self.details: DetailsSource | None = None
        self.flow: Flow | None = None
        """As announced; `None` while it was not."""
        self.owner: Process | None = None
        self.direction: Direction | None = None
        self.preexisting = False
        self.absences = 0
        """Successive polls without it: closed, and held by a process that did not close its descriptor."""
        self.over = False
        """Removed from the table."""


@attrs.frozen
class Layout:
    """How to cut a message of one length."""

    length: int
    stride: int
    """Distance to the next message."""
    info: int
    """Offset of ``tcp_info``; 0 when there is none."""
    info_length: int
    format: struct.Struct
    """Head, identity (family to device), cookie, rest (uid to the attribute before the counters), counters."""
    info_header: bytes
    """What the rest ends with when ``tcp_info`` is where it is expected."""


def layout_of(message: bytes) -> Layout:
    """The layout of a socket's message, learned from its attributes.

    Nothing is fixed but the first 88 bytes: which attributes there are depends on
    the kernel, the socket and our privileges.
    """
    length = len(message)
    stride = align(length)
    found = find_attribute(message, ATTRIBUTES_AT, length, DiagAttribute.INFO)
    if found is None or found[1] < _COUNTERS_AT + _COUNTERS_SIZE:
        start, size = found or (0, 0)
        rest = length - _REST_AT
        text = f"=Q8x{_IDENTITY_SIZE}sQ12x{rest}s0s{stride - length}x"
        return Layout(length, stride, start, size, struct.Struct(text), b"")
    start, size = found
    rest = start - _REST_AT
    tail = stride - start - _COUNTERS_AT - _COUNTERS_SIZE
    text = f"=Q8x{_IDENTITY_SIZE}sQ12x{rest}s{_COUNTERS_AT}x{_COUNTERS_SIZE}s{tail}x"
    return Layout(length, stride, start, size, struct.Struct(text), message[start - 4 : start])


Differs = Callable[["SocketTable", "Entry | None", "tuple[Any, ...]", bytes, Layout], None]
"""Called for a socket that is new (no entry) or whose message changed, with the message and how it was cut."""


class SocketTable:
    """The sockets of one kind in one network namespace."""

    def __init__(self, kind: Kind, differs: Differs, *, every: bool = False) -> None:
        self.kind = kind
        self.entries: dict[int, Entry] = {}
        self.generation = 0
        """Number of the poll under way."""
        self.reported = 0
        """Sockets that this poll's dump had; whoever takes a message for something else takes it off."""
        self._differs = differs
        self._every = every
        self._layouts: dict[int, Layout] = {}

    def scan(self, data: bytes, offset: int, length: int) -> int:
        """Take in the message at `offset` and those behind it that have its length.

        Returns:
            Offset behind the last one taken.
        """
        layout = self._layout(data, offset, length)
        stride = layout.stride
        count = (len(data) - offset) // stride
        if count == 0:  # the last message of a datagram may come without its padding
            return self._scan_one(data, offset, length, layout)
        start = offset
        view = memoryview(data)[offset : offset + count * stride]
        head = int.from_bytes(data[offset : offset + 8], sys.byteorder)
        get = self.entries.get
        generation = self.generation
        every = self._every
        for pieces in layout.format.iter_unpack(view):
            if pieces[0] != head:
                break
            entry = get(pieces[2])
            if entry is not None and entry.last == pieces and not every:
                entry.seen = generation
            else:
                self._differs(self, entry, pieces, data[offset : offset + length], layout)
            offset += stride
        self.reported += (offset - start) // stride
        return offset

    def _scan_one(self, data: bytes, offset: int, length: int, layout: Layout) -> int:
        message = data[offset : offset + length]
        pieces = layout.format.unpack(message.ljust(layout.stride, b"\0"))
        self.reported += 1
        self._differs(self, self.entries.get(pieces[2]), pieces, message, layout)
        return offset + length

    def cut(self, message: bytes) -> tuple[tuple[Any, ...], Layout]:
        """The pieces of a single message (of a look-up), comparable with those of dumps."""
        layout = self._layout(message, 0, len(message))
        return layout.format.unpack(message.ljust(layout.stride, b"\0")), layout

    def _layout(self, data: bytes, offset: int, length: int) -> Layout:
        layout = self._layouts.get(length)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[length] = layout_of(data[offset : offset + length])
        return layout

    def begin(self, generation: int) -> None:
        """A poll begins."""
        self.generation = generation
        self.reported = 0

    def unseen(self, *, certain: bool = True) -> list[Entry]:
        """The sockets that the dump just finished did not have.

        Args:
            certain: Search in any case. Else a dump that had as many sockets as are known
                is taken to have had those: one that was told twice could hide an
                absence until the next poll.
        """
        if not certain and self.reported == len(self.entries):
            return []
        generation = self.generation
        return [entry for entry in self.entries.values() if entry.seen != generation]

    def remove(self, entry: Entry) -> None:
        """Forget a socket."""
        entry.over = True
        if self.entries.get(entry.cookie) is entry:
            del self.entries[entry.cookie]


def info_of(message: bytes, layout: Layout, pieces: tuple[Any, ...]) -> tuple[int, int]:
    """Where ``tcp_info`` is in this very message; (0, 0) when it has none.

    Two messages of one length may still be built differently; the header before
    ``tcp_info`` is part of the pieces, so that a glance tells.
    """
    if layout.info_header and pieces[3].endswith(layout.info_header):
        return layout.info, layout.info_length
    return find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO) or (0, 0)


def is_remains(message: bytes) -> bool:
    """True for what is left of a socket in TIME_WAIT or orphaned FIN_WAIT2, and for connection requests."""
    state, timer = message[HEADER.size + 1], message[HEADER.size + 2]
    return timer == TIMER_TIME_WAIT or state in {SocketState.TIME_WAIT, SocketState.SYN_RECV}


def counters_differ(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """True if payload, data segments or the smallest round trip changed: not for keep-alives."""
    before, after = old[4], new[4]
    return bool(before[:16] != after[:16] or before[28:] != after[28:])


def identity_differs(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    """True if state, addresses, device, user or inode changed."""
    before, after = old[1], new[1]
    return bool(before[1] != after[1] or before[4:] != after[4:] or old[3][:8] != new[3][:8])
