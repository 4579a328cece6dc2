"""Headerless recordings of one client: u32 seconds, u32 length, the datagram, repeated, little endian.

The file says neither the kernel nor the direction, so the caller names the kernel and every datagram
came from it. It has no marks either: after a length that cannot be true nothing can be found again.
"""

from __future__ import annotations

import struct

from ._records import MAX_DATAGRAM, NO_EXTRA, Record, RecordingInfo, RecordKind, damage_record, kernel_name

__all__ = ["BinParser"]

_RECORD = struct.Struct("<II")
_HEAD = _RECORD.size
_SHOWN = 64


class BinParser:
    """Bytes in, records out; see `RecordingReader`."""

    FORMAT = "bin"

    def __init__(self, kernel: str) -> None:
        self.info = RecordingInfo(kernel=kernel_name(kernel))
        self._buffer = bytearray()
        self._need = _HEAD
        self._offset = 0
        self._index = 0
        self._time = 0
        self._lost = 0  # bytes after the length that could not be true
        self._lost_offset = 0
        self._lost_beginning = b""
        self._lost_reason = ""

    def feed(self, data: bytes) -> list[Record]:
        """Take in bytes; never raises."""
        if self._lost_reason:
            self._lost += len(data)
            return []
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._need:
            return []
        data = bytes(buffer)
        buffer.clear()
        records: list[Record] = []
        at, end, need = 0, len(data), _HEAD
        kind, index, new = RecordKind.FROM_KERNEL, self._index, tuple.__new__
        while end - at >= _HEAD:
            seconds, length = _RECORD.unpack_from(data, at)
            stop = at + _HEAD + length
            if length > MAX_DATAGRAM:
                self._lose(data, at, f"a datagram of {length} bytes; nothing after it can be read")
                at = end
                break
            if stop > end:
                need = _HEAD + length
                break
            time_ns = seconds * 1_000_000_000
            records.append(new(Record, (index, kind, time_ns, 0, data[at + _HEAD : stop], None, NO_EXTRA, None)))
            index += 1
            at = stop
        if records:
            self._index, self._time = index, records[-1].time_ns
        self._offset += at
        self._need = need
        buffer += data[at:]
        return records

    def close(self) -> list[Record]:
        """The file ends here: report what is left over."""
        if self._buffer:
            self._lose(bytes(self._buffer), 0, "the file ends within a record")
            self._buffer.clear()
        if not self._lost_reason:
            return []
        record = damage_record(
            self._index, self._time, self._lost_reason, self._lost_offset, self._lost, self._lost_beginning
        )
        self._index += 1
        self._lost_reason = ""
        return [record]

    def _lose(self, data: bytes, at: int, reason: str) -> None:
        self._lost_reason = reason
        self._lost_offset = self._offset + at
        self._lost = len(data) - at
        self._lost_beginning = data[at : at + _SHOWN]
