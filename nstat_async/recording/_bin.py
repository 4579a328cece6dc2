"""Headerless recordings of one client: u32 seconds, u32 length, the datagram, repeated, little endian.

The file tells neither the kernel nor the direction: the caller names the kernel, and each datagram was
received. It has no marks either, so after an impossible length no further record can be found.
"""

from __future__ import annotations

import struct

from ._pieces import PiecewiseParser
from ._records import MAX_DATAGRAM, NO_EXTRA, Record, RecordingInfo, RecordKind, kernel_name

_RECORD = struct.Struct("<II")
_HEAD = _RECORD.size
_MANY_ALIKE = 8
"""After this many records of one length more of them are expected, and cut out together."""


class BinParser(PiecewiseParser):
    """Bytes in, records out; see `RecordingReader`."""

    FORMAT = "bin"

    def __init__(self, kernel: str) -> None:
        super().__init__(_HEAD)
        self.info = RecordingInfo(kernel=kernel_name(kernel))

    def _records(self, data: bytes) -> list[Record]:
        records: list[Record] = []
        at, end, need = 0, len(data), _HEAD
        last = end - _HEAD if self._damage is None else -1
        kind, index, extra = RecordKind.FROM_KERNEL, self._index, NO_EXTRA
        unpack, keep, new = _RECORD.unpack_from, records.append, tuple.__new__
        alike, before = 0, -1
        while at <= last:
            seconds, length = unpack(data, at)
            alike, before = alike + 1 if length == before else 0, length
            if alike == _MANY_ALIKE:
                form, alike = struct.Struct(f"<II{min(length, MAX_DATAGRAM)}s"), 0
                stop = end - (end - at) % form.size
                for seconds, length, datagram in form.iter_unpack(memoryview(data)[at:stop]):
                    if length != before:
                        break
                    keep(new(Record, (index, kind, seconds * 1_000_000_000, 0, datagram, None, extra, None)))
                    index += 1
                    at += form.size
                continue
            begin = at + _HEAD
            stop = begin + length
            if length > MAX_DATAGRAM:
                self._skip(data, at, at, f"a datagram of {length} bytes; nothing after it can be read")
                break
            if stop > end:
                need = stop - at
                break
            keep(new(Record, (index, kind, seconds * 1_000_000_000, 0, data[begin:stop], None, extra, None)))
            index += 1
            at = stop
        if records:
            self._index, self._time = index, records[-1].time_ns
        if self._damage is not None:
            self._skip(data, at, end, "")
            at, need = end, 1
        self._keep(data, at, need)
        return records

    def close(self) -> list[Record]:
        """End of the file: report the bytes that are left."""
        if self._buffer:
            self._skip(bytes(self._buffer), 0, len(self._buffer), "the file ends within a record")
            self._buffer.clear()
        return self._end_damage()
