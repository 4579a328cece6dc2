"""The project's own format (``docs/recording-format.md``): both directions.

Version 2 is written. The same code reads version 1, which only lacks some kinds of records.

::

    file    magic 8 bytes, u16 version, u16 length of this header, u32 zero
    record  u16 marker, u8 kind, u8 flags, u32 length, u32 client, i64 time, then `length` bytes

Numbers are little endian. Each record begins with the marker, so that a reader finds the
next one after damage. Each kind has a greatest length, so that damage never costs memory.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from nstat_async._errors import RecordingError

from ._pieces import SHOWN, PiecewiseParser
from ._records import (
    DRAINED,
    MAX_DATAGRAM,
    MAX_DOCUMENT,
    MAX_EXTRA,
    MAX_NOTE,
    NEXT,
    NO_EXTRA,
    Record,
    RecordingInfo,
    RecordKind,
    check_length,
    check_stamp,
    damage_record,
    dump_json,
    info_to_mapping,
    learn,
)

MAGIC = b"\x89NSTAT\r\n"
"""The first bytes of each file. The first one is not text; a transfer that changes line ends destroys the last two."""
_VERSION = 2
_READ = (1, 2)

_FILE = struct.Struct("<8sHHI")
_RECORD = struct.Struct("<HBBIIq")
_HEAD = _RECORD.size
_MARKER = 0xA9D3
_MARKER_BYTES = _MARKER.to_bytes(2, "little")
_EXTRA_LENGTH = struct.Struct("<I")

FLAG_EXTRA = 1
"""The payload begins with a u32 length and that many bytes of a JSON object with further keys of the record."""

_KINDS = {
    1: RecordKind.TO_KERNEL,
    2: RecordKind.FROM_KERNEL,
    3: RecordKind.NOTE,
    4: RecordKind.ANSWER,
    5: RecordKind.META,
    6: RecordKind.STEP,
}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_DRAINED = 7
"""The kind of a received datagram after which its channel was empty."""
_KINDS[_DRAINED] = RecordKind.FROM_KERNEL
_DATAGRAMS = {1: NO_EXTRA, 2: NO_EXTRA, _DRAINED: DRAINED}
_BARE = {8: b'{"type":"ChannelDrained"}', 9: b'{"type":"DeadlineReached"}'}
"""Steps without fields that are so frequent that they have kinds of their own."""
_BARE_NUMBERS = {text: number for number, text in _BARE.items()}
_LIMITS = dict.fromkeys(_KINDS, MAX_DOCUMENT) | dict.fromkeys(_DATAGRAMS, MAX_DATAGRAM)
_LIMITS |= {3: MAX_NOTE} | dict.fromkeys(_BARE, 0)
# By kind and flags in one look-up; a record of an unknown, newer kind is skipped as a whole and shown as damage.
# There is no kind 0, because a crash leaves zeros in a file.
_LONGEST = [-1, -1] + [
    _LIMITS.get(kind, MAX_DOCUMENT) + (_EXTRA_LENGTH.size + MAX_EXTRA if flags & FLAG_EXTRA else 0)
    for kind in range(1, 256)
    for flags in range(2)
]
_DOCUMENTS = {RecordKind.ANSWER, RecordKind.STEP, RecordKind.META}
_FILE_HEADER_MAX = 4096
"""Longest file header, which may be longer in a newer version."""


def encode_beginning(info: RecordingInfo) -> bytes:
    """The beginning of a file: its header, and the facts."""
    return _FILE.pack(MAGIC, _VERSION, _FILE.size, 0) + encode_record(0, Record(0, RecordKind.META, 0, value=info))


def encode_record(place: int, record: Record) -> bytes:
    """One whole record; `place` is its number in the file."""
    index, kind, time_ns, client, payload, text, extra, value = record
    number, flags = _NUMBERS[kind], 0
    if kind is RecordKind.NOTE:
        payload, text = (text or "").encode("utf-8", "backslashreplace"), None
    elif kind in _DOCUMENTS:
        payload = dump_json(info_to_mapping(value) if kind is RecordKind.META else value, kind.value, MAX_DOCUMENT)
    if index != NEXT and index != place and kind is not RecordKind.META:  # noqa: PLR1714  # the hot path
        extra = {**extra, "i": index}
    if text is not None:
        extra = {**extra, "text": text}
    if len(payload) > _LIMITS[number]:
        check_length(payload, kind.value, _LIMITS[number])
    if extra is DRAINED and kind is RecordKind.FROM_KERNEL:
        number = _DRAINED
    elif extra:
        beside = dump_json(dict(extra), "extra", MAX_EXTRA)
        payload = _EXTRA_LENGTH.pack(len(beside)) + beside + payload
        flags = FLAG_EXTRA
    elif payload in _BARE_NUMBERS and kind is RecordKind.STEP:
        number, payload = _BARE_NUMBERS[payload], b""
    try:
        return _RECORD.pack(_MARKER, number, flags, len(payload), client, time_ns) + payload
    except struct.error:
        check_stamp(time_ns, client)
        raise


class NativeParser(PiecewiseParser):
    """Bytes in, records out; see `RecordingReader`."""

    FORMAT = "nstat"

    def __init__(self, kernel: str | None) -> None:
        super().__init__(_FILE.size)
        self.info: RecordingInfo | None = None
        self._kernel = kernel
        self._started = False

    def close(self) -> list[Record]:
        """End of the file: the rest is damage, which may hide records behind a wrong length.

        Raises:
            RecordingError: It ended within the file's header.
        """
        if not self._started:
            raise RecordingError("the recording ends within its header", raw=bytes(self._buffer))
        rest = bytes(self._buffer)
        self._buffer.clear()
        records = self._records(rest, final=True)
        self._assume_facts()
        return records

    def _assume_facts(self) -> None:
        if self.info is None:
            self.info = learn({}, None, self._kernel)

    def _records(self, data: bytes, *, final: bool = False) -> list[Record]:
        """The loop: each turn consumes a record, skips at least a byte, or ends. RecordingError if it is another kind of file."""
        at = 0
        if not self._started:
            at = _file_header(data)
            if at > len(data):
                self._keep(data, 0, at)
                return []
            self._started = True
        records: list[Record] = []
        end, need, index = len(data), _HEAD, self._index
        unpack, longest, datagrams, new = _RECORD.unpack_from, _LONGEST, _DATAGRAMS, tuple.__new__
        while end - at >= _HEAD:
            marker, number, flags, length, client, time_ns = unpack(data, at)
            if marker != _MARKER or flags > FLAG_EXTRA or length > longest[number * 2 + flags]:
                at = self._pass(
                    data, at, "bytes that do not begin a record" if marker != _MARKER else "an impossible record"
                )
                continue
            stop = at + _HEAD + length
            if stop > end:
                if final:
                    at = self._pass(data, at, "the file ends within a record")
                    continue
                need = _HEAD + length
                break
            if self._damage is not None:
                self._index = index
                records += self._end_damage()
                index = self._index
            payload = data[at + _HEAD : stop]
            if number in datagrams and not flags:
                fields = (index, _KINDS[number], time_ns, client, payload, None, datagrams[number], None)
                records.append(new(Record, fields))
                index += 1
            else:
                record = self._uncommon(payload, number, flags, time_ns, client, index, self._offset + at)
                if record is not None:
                    records.append(record)
                    index += record.kind is not RecordKind.META
            self._time = time_ns
            at = stop
        self._index = index
        if final:
            if at < end:
                self._skip(data, at, end, "the file ends within a record")
                at = end
            records += self._end_damage()
        if records:
            self._assume_facts()
        self._keep(data, at, need)
        return records

    def _pass(self, data: bytes, at: int, reason: str) -> int:
        """Skip bytes that are no record; returns where the next one may begin."""
        to = data.find(_MARKER_BYTES, at + 1)
        if to < 0:  # the last byte may be the first of a marker
            to = max(at + 1, len(data) - (data[-1] == _MARKER_BYTES[0]))
        self._skip(data, at, to, reason)
        return to

    def _uncommon(
        self, payload: bytes, number: int, flags: int, time_ns: int, client: int, index: int, offset: int
    ) -> Record | None:
        """A record that is not a plain datagram; `None` for the facts that begin a file."""
        if number in _BARE:
            number, payload = _NUMBERS[RecordKind.STEP], _BARE[number]
        kind = _KINDS.get(number)
        if kind is None:
            return _unreadable(index, time_ns, f"a record of unknown kind {number}", offset, payload)
        extra: dict[str, Any] = {}
        value: Any = None
        body = payload
        try:
            if flags & FLAG_EXTRA:
                extra, body = _split_extra(payload)
            if kind in _DOCUMENTS:
                value = json.loads(body.decode("utf-8"))
            if kind is RecordKind.META:
                return self._meta(value, body, time_ns, client, index)
        except (ValueError, RecursionError) as error:
            return _unreadable(index, time_ns, f"a broken record of kind {kind.value}: {error}", offset, payload)
        text = extra.pop("text") if isinstance(extra.get("text"), str) else None
        if type(extra.get("i")) is int:
            index = extra.pop("i")
        if kind is RecordKind.NOTE:
            text, body = body.decode("utf-8", "backslashreplace"), b""
        return Record(index, kind, time_ns, client, body, text, extra or NO_EXTRA, value)

    def _meta(self, facts: Any, body: bytes, time_ns: int, client: int, index: int) -> Record | None:
        first = self.info is None and index == 0
        self.info = learn(facts, self.info, self._kernel)
        return None if first else Record(index, RecordKind.META, time_ns, client, body, value=self.info)


def _unreadable(index: int, time_ns: int, reason: str, offset: int, payload: bytes) -> Record:
    return damage_record(index, time_ns, reason, offset, _HEAD + len(payload), payload[:SHOWN])


def _file_header(data: bytes) -> int:
    magic, version, length, _ = _FILE.unpack_from(data)
    if magic != MAGIC:
        raise RecordingError("not a recording: it does not begin with the format's magic bytes", raw=data[:SHOWN])
    if version not in _READ:
        known = " and ".join(map(str, _READ))
        raise RecordingError(f"recording format version {version}; this library reads {known}", raw=data[:SHOWN])
    if not _FILE.size <= length <= _FILE_HEADER_MAX:
        raise RecordingError(f"the recording's header claims {length} bytes", raw=data[:SHOWN])
    return int(length)


def _split_extra(payload: bytes) -> tuple[dict[str, Any], bytes]:
    if len(payload) < _EXTRA_LENGTH.size:
        raise ValueError("too short for its further keys")
    stop = _EXTRA_LENGTH.size + _EXTRA_LENGTH.unpack_from(payload)[0]
    if stop > len(payload):
        raise ValueError("too short for its further keys")
    extra = json.loads(payload[_EXTRA_LENGTH.size : stop].decode("utf-8"))
    if not isinstance(extra, dict):
        raise ValueError("further keys that are not a JSON object")  # noqa: TRY004  # it is the file's mistake
    return extra, payload[stop:]
