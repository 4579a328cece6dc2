"""Records of the eBPF channels of a Linux recording as message lines, in the same keys.

``type`` is the kind of a record, or the operation on the maps; ``descriptor`` has a socket by the names of
``ebpf/programs.c``, ``counts`` its counters or the statistics, ``request`` the requested sockets.
"""

from __future__ import annotations

import socket
from typing import Any

from .._errors import ProtocolError
from ..ebpf import (
    Counters,
    FlowRow,
    Kind,
    MapsPurpose,
    OwnerRow,
    PeerRow,
    RingPurpose,
    decode_answer,
    decode_records,
    decode_request,
    text_of,
)
from ..ebpf import Record as ProgramRecord
from ..recording import Record, RecordKind
from ._decode import Line, empty_line

CHANNELS = frozenset({RingPurpose.channel, MapsPurpose.channel})
"""Numbers of the channels whose records these are."""
_COUNTS = frozenset(Counters._fields)
_LEFT_OUT = frozenset({"header", "page"})
_KINDS = {int(kind): kind.name for kind in Kind}


def program_lines(record: Record) -> list[Line]:
    """The lines of one record; one that cannot be decoded has a note."""
    try:
        if record.client == RingPurpose.channel:
            rows, _ = decode_records(record.data)
            return [_row(record, place, _KINDS.get(row.kind, "UNKNOWN"), row) for place, row in enumerate(rows)]
        if record.kind is RecordKind.TO_KERNEL:
            return [_request(record)]
        return _answer(record)
    except ProtocolError as error:
        line = empty_line(record, 0, record.kind.value)
        line.update(note=error.reason, raw=record.data.hex())
        return [line]


def _request(record: Record) -> Line:
    operation, cookies, body = decode_request(record.data)
    line = empty_line(record, 0, record.kind.value)
    line.update(type=operation.name, type_number=int(operation), length=len(record.data))
    line["request"] = {"cookies": list(cookies), "body": body.hex()}
    return line


def _answer(record: Record) -> list[Line]:
    answer = decode_answer(record.data)
    name = answer.operation.name
    lines = [_row(record, place, name, row) for place, row in enumerate(answer.rows)] or [
        empty_line(record, 0, record.kind.value)
    ]
    for line in lines:
        line.update(type=name, type_number=int(answer.operation), error=answer.errno)
    if answer.statistics is not None:
        lines[0]["counts"] = answer.statistics._asdict()
    return lines


def _row(record: Record, place: int, name: str, row: ProgramRecord | FlowRow | OwnerRow | PeerRow) -> Line:
    values = {key: value for key, value in row._asdict().items() if key not in _LEFT_OUT}
    family = values.get("family")
    for key, value in values.items():
        if isinstance(value, bytes):
            values[key] = text_of(value) if key == "comm" else _address(value, family)
    line = empty_line(record, place, record.kind.value)
    line["type"] = name
    line["counts"] = {key: values.pop(key) for key in list(values) if key in _COUNTS} or None
    line["descriptor"] = values
    return line


def _address(packed: bytes, family: Any) -> str | None:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return socket.inet_ntop(socket.AF_INET6, packed) if family == socket.AF_INET6 else None
