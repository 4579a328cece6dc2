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

from .._public import only
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
from ._target import Recording, Target, is_ours
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
