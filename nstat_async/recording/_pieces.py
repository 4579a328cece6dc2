"""The common base of parsers of binary records: a file comes in pieces of any size, and may have bytes that are no record."""

from __future__ import annotations

import attrs

from ._records import Record, damage_record

SHOWN = 64
"""Most bytes of damage that are kept for the report."""


@attrs.define(eq=False)
class _Damage:
    """A run of bytes that are no record, while it lasts."""

    reason: str
    offset: int
    length: int = 0
    shown: bytes = b""


class PiecewiseParser:
    """Bytes in, records out; see `RecordingReader`.

    Goals: only the datagrams are copied; bytes that are fed one at a time cost at most
    linear time (`_need`); the longest record bounds the memory.
    """

    def __init__(self, need: int) -> None:
        self._need = need  # the buffer must have this many bytes before anything can be parsed
        self._buffer = bytearray()
        self._offset = 0  # where the buffer begins in the file
        self._index = 0
        self._time = 0
        self._damage: _Damage | None = None

    def feed(self, data: bytes) -> list[Record]:
        """Take in bytes."""
        buffer = self._buffer
        if buffer or len(data) < self._need:
            buffer += data
            if len(buffer) < self._need:
                return []
            data = bytes(buffer)
            buffer.clear()
        return self._records(data)

    def _records(self, data: bytes) -> list[Record]:
        """The records in some bytes; `_keep` the rest."""
        raise NotImplementedError

    def _keep(self, data: bytes, at: int, need: int) -> None:
        """Keep the bytes after `at`, until there are `need` of them."""
        self._offset += at
        self._buffer += data[at:]
        self._need = need

    def _skip(self, data: bytes, at: int, to: int, reason: str) -> None:
        """Note that these bytes are no record: damage begins, or continues."""
        if self._damage is None:
            self._damage = _Damage(reason, self._offset + at)
        self._damage.length += to - at
        self._damage.shown += data[at : min(to, at + SHOWN - len(self._damage.shown))]

    def _end_damage(self) -> list[Record]:
        """End the damage; returns its record, if there was some."""
        damage, self._damage = self._damage, None
        if damage is None:
            return []
        self._index += 1
        place = self._index - 1
        return [damage_record(place, self._time, damage.reason, damage.offset, damage.length, damage.shown)]
