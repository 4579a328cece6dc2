"""Records of a Darwin recording as message lines.

The keys, in this order, are those of the public format: ``i m c dir type type_number
context length flags srcref provider event_flags counts descriptor extensions error
request note``; then, if they have a value, ``sysinfo``, ``tail`` and ``raw``. A datagram that
breaks the rules becomes one line with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .._errors import ProtocolError
from ..ntstat._constants import HEADER_SIZE, MESSAGE_NAMES
from ..ntstat._framer import HEADER, Frame, split
from ..ntstat._kernels import Kernel
from ..ntstat._messages import (
    AddAllSources,
    AddSource,
    Error,
    GetSourceDescription,
    Message,
    QuerySource,
    RemoveSource,
    SetFilter,
    SourceCounts,
    SourceDescription,
    SourceDetails,
    SourceExtendedDetails,
    SourceExtendedUpdate,
    SourceUpdate,
    SubscribeSystemInfo,
    SystemInfoCounts,
    UnknownMessage,
    decode_message,
)
from ..ntstat._setup import ProvenStruct
from ..recording import Record, RecordKind
from ._wire import WireReader, kernel_name

_REQUESTS = (
    AddSource,
    AddAllSources,
    RemoveSource,
    QuerySource,
    GetSourceDescription,
    SetFilter,
    SubscribeSystemInfo,
)
Line = dict[str, Any]


_HEADER = ("type", "type_number", "context", "length", "flags")
_KEYS = (
    *("i", "m", "c", "dir"), *_HEADER, *("srcref", "provider", "event_flags"),
    *("counts", "descriptor", "extensions", "error", "request", "note"),
)  # fmt: skip


def empty_line(record: Record, place: int, direction: str | None) -> Line:
    """A line with all its keys, in order, and without values."""
    line = dict.fromkeys(_KEYS)
    return line | {
        "i": record.index, "m": place, "c": record.client, "dir": direction, "type": "MALFORMED", "extensions": [],
    }  # fmt: skip


def _remark(line: Line, text: str | None) -> None:
    if text:
        line["note"] = text if line["note"] is None else f"{line['note']}; {text}"


def _add_tail(line: Line, tail: bytes) -> None:
    if tail:
        line["tail"] = line.get("tail", "") + tail.hex()


class MessageDecoder:
    """Decodes the records of one kernel's conversation."""

    def __init__(self, kernel: Kernel, proven: Iterable[ProvenStruct] = ()) -> None:
        self._kernel = kernel
        self._layout = kernel.layout
        self._reader = WireReader(kernel, proven)
        self._shape: dict[type[Message], frozenset[str]] = {}
        self._fillers: dict[type, Callable[[Line, Any], None]] = {
            Error: self._fill_error,
            SourceCounts: self._fill_counts,
            SourceDescription: self._fill_descriptor,
            SourceUpdate: self._fill_update,
            SourceExtendedUpdate: self._fill_items,
            SourceDetails: self._fill_details,
            SourceExtendedDetails: self._fill_items,
            SystemInfoCounts: self._fill_sysinfo,
        }

    def lines(self, record: Record) -> list[Line]:
        """The lines of one record; none for notes, answers of look-ups and facts about the recording."""
        if record.kind is RecordKind.FROM_KERNEL:
            return self._replies(record)
        if record.kind is RecordKind.TO_KERNEL:
            return [self._request(record)]
        if record.kind is RecordKind.DAMAGE:
            line = empty_line(record, 0, None)
            line["note"] = record.text
            line["raw"] = record.data.hex()
            return [line]
        return []

    def _replies(self, record: Record) -> list[Line]:
        data = record.data
        frames, defect = split(data, has_lengths=self._layout.has_lengths)
        result = [self._message(record, place, "from_kernel", frame) for place, frame in enumerate(frames)]
        if defect is None:
            return result
        if defect.harmless and result:
            _remark(result[-1], f"{defect.end - defect.begin} bytes behind the last message")
            _add_tail(result[-1], data[defect.begin : defect.end])
            return result
        line = empty_line(record, len(frames), "from_kernel")
        self._put_header(line, data, defect.begin)
        line["note"] = defect.reason
        line["raw"] = data[defect.begin : defect.end].hex()
        result.append(line)
        return result

    def _request(self, record: Record) -> Line:
        """A request: the kernel takes one per datagram, whatever the header says (``nstat_client_send``)."""
        data = record.data
        if len(data) < HEADER_SIZE:
            line = empty_line(record, 0, "to_kernel")
            line["note"] = "datagram shorter than a header"
            line["raw"] = data.hex()
            return line
        context, kind, length, flags = HEADER.unpack_from(data, 0)
        if not self._layout.has_lengths:
            length, flags = len(data), 0
        line = self._message(record, 0, "to_kernel", (kind, context, flags, 0, len(data)))
        line["length"] = length
        if length != len(data):
            _remark(line, f"the header's length is {length}, the datagram has {len(data)} bytes: its flags are ignored")
        return line

    def _put_header(self, line: Line, data: bytes, at: int) -> None:
        if len(data) - at < HEADER_SIZE:
            return
        context, kind, length, flags = HEADER.unpack_from(data, at)
        line["type_number"] = kind
        line["context"] = context
        if self._layout.has_lengths:
            line["length"], line["flags"] = length, flags
        else:
            line["length"], line["flags"] = len(data) - at, 0

    def _message(self, record: Record, place: int, direction: str, frame: Frame) -> Line:
        kind, context, flags, begin, end = frame
        line = empty_line(record, place, direction)
        line["type_number"] = kind
        line["context"] = context
        line["length"] = end - begin
        line["flags"] = flags
        try:
            message = decode_message(self._kernel, record.data, frame)
            line["type"] = message.name
            self._fill(line, message)
        except ProtocolError as error:
            malformed = empty_line(record, place, direction)
            for key in ("type_number", "context", "length", "flags"):
                malformed[key] = line[key]
            malformed["note"] = error.reason
            malformed["raw"] = record.data[begin:end].hex()
            return malformed
        if isinstance(message, UnknownMessage):
            line["raw"] = record.data[begin:end].hex()
        elif message.tail:
            _remark(line, f"{len(message.tail)} bytes behind the message")
            _add_tail(line, message.tail)
        return line

    def _present(self, message: Message) -> frozenset[str]:
        """The fields that this kernel's structure has; all others stay unknown."""
        cls = type(message)
        known = self._shape.get(cls)
        if known is None:
            codec = self._layout[cls.STRUCT]
            known = self._shape[cls] = frozenset(name for name in cls.FIELDS if name in codec)
        return known

    def _fill(self, line: Line, message: Message) -> None:
        if isinstance(message, UnknownMessage):
            return
        present = self._present(message)
        for key in ("srcref", "provider", "event_flags", "error"):
            if key in present:
                line[key] = getattr(message, key)
        if isinstance(message, _REQUESTS):
            line["request"] = self._request_fields(message)
            return
        for cls in type(message).__mro__:
            filler = self._fillers.get(cls)
            if filler is not None:
                filler(line, message)

    def _request_fields(self, message: Message) -> dict[str, Any]:
        codec = self._layout[message.STRUCT]
        fields = self._reader.fields(codec, message.encode(self._layout))
        fields = {kernel_name(name): fields[kernel_name(name)] for name in message.FIELDS if name in codec}
        if isinstance(message, AddSource):
            fields.update(self._reader.add_parameter(message.provider, message.param))
        return fields

    def _echo(self, data: bytes) -> dict[str, Any]:
        """The request inside an error."""
        if len(data) < HEADER_SIZE:
            return {**dict.fromkeys(_HEADER), "raw": data.hex()}
        context, kind, length, flags = HEADER.unpack_from(data, 0)
        header = (MESSAGE_NAMES.get(kind, "UNKNOWN"), kind, context, length, flags)
        shown: dict[str, Any] = dict(zip(_HEADER, header, strict=True))
        try:
            message = decode_message(self._kernel, data, (kind, context, flags, 0, len(data)))
        except ProtocolError as error:
            shown["note"] = error.reason
            shown["raw"] = data.hex()
            return shown
        if not isinstance(message, _REQUESTS):
            shown["raw"] = data.hex()
            return shown
        shown.update(self._request_fields(message))
        if message.tail:
            shown["tail"] = message.tail.hex()
        return shown

    def _fill_error(self, line: Line, message: Error) -> None:
        if message.request:
            line["request"] = self._echo(message.request)

    def _fill_counts(self, line: Line, message: SourceCounts | SourceUpdate) -> None:
        line["counts"] = self._reader.structure("nstat_counts", message.counts)

    def _fill_descriptor(self, line: Line, message: SourceDescription | SourceUpdate | SourceDetails) -> None:
        fields, tail, note = self._reader.descriptor(message.provider, message.descriptor)
        line["descriptor"] = fields
        _remark(line, note)
        _add_tail(line, tail)

    def _fill_items(self, line: Line, message: SourceExtendedUpdate | SourceExtendedDetails) -> None:
        line["extensions"] = [self._reader.extension(item) for item in message.items]
        for item in message.items:
            if len(item.data) < item.length:
                _remark(line, f"extension {item.type} has {len(item.data)} of its {item.length} bytes")

    def _fill_sysinfo(self, line: Line, message: SystemInfoCounts) -> None:
        line["counts"] = {"sysinfo_len": message.size}
        line["sysinfo"], tail = self._reader.system_information(message.entries)
        if tail:
            _remark(line, f"{len(tail)} bytes behind the last key and value")
        _add_tail(line, tail)

    def _fill_update(self, line: Line, message: SourceUpdate) -> None:
        self._fill_counts(line, message)
        self._fill_descriptor(line, message)

    def _fill_details(self, line: Line, message: SourceDetails) -> None:
        line["counts"] = self._reader.structure("nstat_detailed_counts", message.detailed_counts)
        self._fill_descriptor(line, message)
