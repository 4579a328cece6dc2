"""Recordings as JSON Lines, for people and for other programs (``docs/recording-format.md``).

The first line has the facts about the recording, each further line is one record. A broken line becomes a `DAMAGE`
record, and the next line begins after the next line feed.
"""

from __future__ import annotations

import json
from typing import Any

from nstat_async._errors import RecordingError

from ._records import (
    DRAINED,
    MAX_DATAGRAM,
    MAX_LINE,
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
    kernel_name,
    learn,
    stamp_fits,
)

_HEADER_KEYS = ("xnu", "kernel", "protocol")
"""An object with one of these keys is a header."""
_DATAGRAMS = {"from_kernel": RecordKind.FROM_KERNEL, "to_kernel": RecordKind.TO_KERNEL}
_SHOWN = 64
_BOM = b"\xef\xbb\xbf"


class JsonLinesParser:
    """Bytes in, records out; see `RecordingReader`."""

    FORMAT = "jsonl"

    def __init__(self, kernel: str | None) -> None:
        self.info: RecordingInfo | None = None
        self._kernel = kernel
        self._partial = bytearray()
        self._discarding = 0  # bytes of a line that is too long, which are dropped
        self._offset = 0  # of the next line
        self._line = 0  # number of the last line, from 1
        self._count = 0  # records so far
        self._time = 0

    def feed(self, data: bytes) -> list[Record]:
        """Take in bytes; raises RecordingError if neither the first line nor the caller names the kernel."""
        lines = data.split(b"\n")
        last = lines.pop()
        records: list[Record] = []
        if lines:
            lines[0] = bytes(self._partial) + lines[0]
            self._partial.clear()
            for line in lines:
                record = self._one(line)
                if record is not None:
                    records.append(record)
        self._partial += last
        if len(self._partial) > MAX_LINE:
            self._discarding += len(self._partial) - _SHOWN
            del self._partial[_SHOWN:]
        return records

    def close(self) -> list[Record]:
        """End of the file: the last line needs no line feed.

        Raises:
            RecordingError: There was no line at all.
        """
        line = bytes(self._partial)
        self._partial.clear()
        record = self._one(line) if line else None
        if self.info is None:
            raise RecordingError("the recording ends before its first line", raw=line[:_SHOWN])
        return [] if record is None else [record]

    def _one(self, line: bytes) -> Record | None:
        """Parse a line: a record, or `None` for the header and for an empty line."""
        offset, length = self._offset, len(line) + self._discarding
        self._line += 1
        self._offset += length + 1
        if length > MAX_LINE:
            self._discarding = 0
            return self._damaged(f"longer than {MAX_LINE} bytes", line, offset, length)
        if self._line == 1:
            line = line.removeprefix(_BOM)
        if not line or line.isspace():
            return None
        try:
            fields = json.loads(line.decode("utf-8"))
            if not isinstance(fields, dict):
                raise ValueError("no JSON object")  # noqa: TRY004, TRY301  # it is the file's mistake
            if self.info is None and self._header(fields):
                return None
            return self._record(fields, line)
        except (ValueError, RecursionError) as error:
            return self._damaged(str(error), line, offset, length)

    def _header(self, fields: dict[str, Any]) -> bool:
        """Read the first line as the header, if it is one."""
        is_header = any(key in fields for key in _HEADER_KEYS)
        if not is_header and self._kernel is None:
            raise RecordingError(
                'the first line names no kernel (an object with "xnu", "kernel" or "protocol"), and none was given'
            )
        self.info = learn(fields if is_header else {}, None, self._kernel)
        return is_header or "dir" not in fields

    def _damaged(self, reason: str, line: bytes, offset: int, length: int) -> Record:
        if self.info is None:
            if self._kernel is None:
                raise RecordingError(f"not a recording: line {self._line}: {reason}", raw=line[:_SHOWN])
            self.info = learn({}, None, self._kernel)
        self._count += 1
        reason = f"line {self._line}: {reason}"
        return damage_record(self._count - 1, self._time, reason, offset, length, line[:_SHOWN], line=self._line)

    def _record(self, fields: Any, line: bytes) -> Record:
        direction = fields.pop("dir", None)
        stamp = fields.pop("t", None)
        time_ns = self._time if stamp is None else _nanoseconds(stamp)
        client = fields.pop("c", 0)
        if time_ns is None or not stamp_fits(time_ns, client):
            raise ValueError("a time or a client number that is out of range")
        text = fields.pop("text") if isinstance(fields.get("text"), str) else None
        data, value = b"", None
        kind = _DATAGRAMS.get(direction) if isinstance(direction, str) else None
        if kind is not None:
            data = _datagram(fields.pop("hex", None))
        elif direction == "note":
            kind, text = RecordKind.NOTE, text or ""
        elif direction == "answer" or direction == "step":  # noqa: PLR1714  # it may be anything, also unhashable
            kind, value = RecordKind(direction), fields.pop("value", None)
        elif direction == "meta" or (direction is None and "xnu" in fields):
            return self._meta(fields if direction is None else fields.get("info"), line, time_ns, client)
        else:
            raise ValueError(f'an unknown "dir": {direction!r:.60}')
        index = fields.pop("i") if type(fields.get("i")) is int else self._count
        self._count += 1
        self._time = time_ns
        return Record(
            index, kind, time_ns, client, data, text, DRAINED if fields == DRAINED else fields or NO_EXTRA, value
        )

    def _meta(self, facts: Any, line: bytes, time_ns: int, client: int) -> Record:
        self._time = time_ns
        self.info = learn(facts, self.info, self._kernel)
        return Record(self._count, RecordKind.META, time_ns, client, line, value=self.info)


def _nanoseconds(stamp: Any) -> int | None:
    """A time: an integer is nanoseconds, a float seconds; `None` if it is neither."""
    if isinstance(stamp, float):
        try:
            return round(stamp * 1e9)
        except (OverflowError, ValueError):
            return None
    return stamp if type(stamp) is int else None


def _datagram(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError('no "hex"')  # noqa: TRY004  # it is the file's mistake
    data = bytes.fromhex(text)
    if len(data) > MAX_DATAGRAM:
        raise ValueError(f"a datagram of {len(data)} bytes; the limit is {MAX_DATAGRAM}")
    return data


def encode_beginning(info: RecordingInfo) -> bytes:
    """The first line."""
    facts = info_to_mapping(info)
    header: dict[str, Any] = {}
    if info.protocol == "ntstat" and info.kernel is not None:
        header["xnu"] = facts.pop("xnu", info.kernel)
        if isinstance(header["xnu"], str) and kernel_name(header["xnu"]) == info.kernel:
            del facts["kernel"]
    header["protocol"] = info.protocol
    return dump_json({**header, **facts}, "info", MAX_LINE) + b"\n"


def encode_record(place: int, record: Record) -> bytes:
    """One line, with its line feed; `place` is its number in the file."""
    index, kind, time_ns, client, data, text, extra, value = record
    check_stamp(time_ns, client)
    fields: dict[str, Any] = {} if kind is RecordKind.META else {"i": place if index == NEXT else index}
    fields |= {"dir": kind.value, "t": time_ns}
    if client:
        fields["c"] = client
    if kind.value in _DATAGRAMS:
        check_length(data, kind.value, MAX_DATAGRAM)
        fields["hex"] = data.hex()
    if text is not None:
        fields["text"] = text
    if kind is RecordKind.ANSWER or kind is RecordKind.STEP:
        fields["value"] = value
    elif kind is RecordKind.META:
        fields["info"] = info_to_mapping(value)
    return dump_json({**extra, **fields}, kind.value, MAX_LINE) + b"\n"
