"""Finds the messages of a datagram: where each begins and ends.

The rules for what the kernel sends:

- Since xnu-3247 every header has the message's length; a datagram is one message, or
  several back to back (``nstat_accumulate_msg``).
- Before that, a datagram is one message. The four bytes that later hold length and flags
  are kernel stack (up to xnu-2422) or zero (xnu-2782), and are not read.
- Up to 15 bytes may follow the last message, too few for a header. They are reported, but
  are no error.
- A length below a header's size, or beyond the datagram, ends *this* datagram; the messages
  before it are valid.

Every turn of the loop consumes at least a header.

A request to the kernel is one datagram, whatever its header says (`request_frame`).
"""

from __future__ import annotations

import struct

import attrs

from ._constants import HEADER_SIZE

Frame = tuple[int, int, int, int, int]
"""(type, context, flags, begin, end): a message is ``data[begin:end]``."""

HEADER = struct.Struct("<QIHH")
"""``nstat_msg_hdr``: context, type, length, flags. The only definition: every writer and reader of headers uses it."""


@attrs.frozen
class Defect:
    """Bytes of a datagram that are not a message."""

    reason: str
    """What is wrong, for a person."""
    begin: int
    """Offset of the first byte concerned."""
    end: int
    """Offset behind the last byte concerned."""
    harmless: bool = False
    """True for a tail that is shorter than a header."""


def split(data: bytes, *, has_lengths: bool, begin: int = 0) -> tuple[list[Frame], Defect | None]:
    """Find the messages of one datagram.

    Args:
        data: The datagram.
        has_lengths: `Layout.has_lengths` of the kernel that sent it.
        begin: Offset to begin at, after messages that the caller has found by the same rules.

    Returns:
        The messages, and what is wrong with the rest (`None`: nothing).
    """
    size = len(data)
    frames: list[Frame] = []
    if not has_lengths:
        if size < HEADER_SIZE:
            return frames, Defect("datagram shorter than a header", 0, size)
        context, kind, _, _ = HEADER.unpack_from(data, 0)
        return [(kind, context, 0, 0, size)], None
    at = begin
    unpack = HEADER.unpack_from
    append = frames.append
    last = size - HEADER_SIZE
    while at <= last:
        context, kind, length, flags = unpack(data, at)
        end = at + length
        if length < HEADER_SIZE or end > size:
            if length == 0 and at == 0:
                # A client's copy of an old kernel's datagram: its header has no length.
                return [(kind, context, flags, 0, size)], None
            reason = f"message length {length}" + (" is less than a header" if length < HEADER_SIZE else "")
            if end > size:
                reason += f" with {size - at} bytes left"
            return frames, Defect(reason, at, size)
        append((kind, context, flags, at, end))
        at = end
    if at == size and at:
        return frames, None
    return frames, Defect("tail shorter than a header" if at else "datagram shorter than a header", at, size, at > 0)


def request_frame(data: bytes, *, has_lengths: bool) -> Frame | None:
    """A request datagram as the kernel takes it: one whole message; `None` if it is too short for a header.

    The kernel ignores a wrong length, and then clears the flags (``nstat_client_send``).
    """
    if len(data) < HEADER_SIZE:
        return None
    context, kind, length, flags = HEADER.unpack_from(data)
    if not has_lengths or length != len(data):
        flags = 0
    return kind, context, flags, 0, len(data)
