"""Recordings of kernel conversations: read, write, convert.

A recording keeps the datagrams themselves, with direction, client and time, so it
replays through the whole library and serves as a bug report. Three formats are read:
the project's own (``docs/recording-format.md``), JSON Lines, and headerless ``.bin``;
the first two are written.

    with open_recording("web-session.jsonl") as recording:
        print(recording.info.kernel)
        for record in recording:
            print(record.index, record.kind, record.time_ns, len(record.data))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._public import explain, on_demand, only
from ._target import Recording, Target, is_ours

if TYPE_CHECKING:
    from . import steps
    from ._file import RecordingFile, open_recording
    from ._reader import RecordingReader
    from ._records import (
        DRAINED,
        MAX_DATAGRAM,
        MAX_DOCUMENT,
        MAX_EXTRA,
        MAX_LINE,
        MAX_NOTE,
        NEXT,
        NO_EXTRA,
        Record,
        RecordingInfo,
        RecordKind,
    )
    from ._writer import JsonLinesWriter, RecordingWriter, copy

__all__ = [
    "DRAINED",
    "MAX_DATAGRAM",
    "MAX_DOCUMENT",
    "MAX_EXTRA",
    "MAX_LINE",
    "MAX_NOTE",
    "NEXT",
    "NO_EXTRA",
    "JsonLinesWriter",
    "Record",
    "RecordKind",
    "Recording",
    "RecordingFile",
    "RecordingInfo",
    "RecordingReader",
    "RecordingWriter",
    "Target",
    "copy",
    "is_ours",
    "open_recording",
    "steps",
]
__dir__ = only(__all__)
explain(__all__, globals())
_RECORDS = ("DRAINED", "MAX_DATAGRAM", "MAX_DOCUMENT", "MAX_EXTRA", "MAX_LINE", "MAX_NOTE", "NEXT", "NO_EXTRA")
__getattr__ = on_demand(  # a program that only watches needs only `Recording`
    __name__,
    {
        ".steps": (),
        "._file": ("RecordingFile", "open_recording"),
        "._reader": ("RecordingReader",),
        "._records": (*_RECORDS, "Record", "RecordingInfo", "RecordKind"),
        "._writer": ("JsonLinesWriter", "RecordingWriter", "copy"),
    },
)
