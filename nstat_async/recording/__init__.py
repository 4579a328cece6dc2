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

from ._file import RecordingFile, open_recording
from ._reader import RecordingReader
from ._records import (
    MAX_DATAGRAM,
    MAX_DOCUMENT,
    MAX_EXTRA,
    MAX_LINE,
    MAX_NOTE,
    Record,
    RecordingInfo,
    RecordKind,
)
from ._writer import JsonLinesWriter, RecordingWriter, copy

__all__ = [
    "MAX_DATAGRAM",
    "MAX_DOCUMENT",
    "MAX_EXTRA",
    "MAX_LINE",
    "MAX_NOTE",
    "JsonLinesWriter",
    "Record",
    "RecordKind",
    "RecordingFile",
    "RecordingInfo",
    "RecordingReader",
    "RecordingWriter",
    "copy",
    "open_recording",
]
