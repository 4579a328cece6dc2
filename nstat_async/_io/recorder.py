"""The file of a recording, or its parts, while it is written."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from .._errors import UsageError
from ..recording import JsonLinesWriter, Record, Recording, RecordingInfo, RecordingWriter, is_ours
from .pipes import PipeWriter, is_pipe, open_pipe, standard_output, writable


class Recorder:
    """Writes records to a file, and to the next one when a limit is reached.

    Args:
        recording: The target and the limits.
        info: Returns the facts at the beginning of a part by its number, from 1.

    Raises:
        UsageError: The file cannot be written, or is not a recording.
    """

    def __init__(self, recording: Recording, info: Callable[[int], RecordingInfo]) -> None:
        self._recording = recording
        self._info = info
        self._owned = recording.path is not None
        self._number = self._last_number() if recording.rotates else 0
        self._part = 0
        self._earlier = 0  # bytes of the parts before this one
        self._began_ns = 0
        try:
            self._open()
        except OSError as error:
            name = recording.path or "the file"
            raise UsageError(f"record_to: {name}: {error.strerror or error}") from error

    @property
    def size(self) -> int:
        """Bytes written so far, all parts together."""
        return self._earlier + self._writer.size

    def write(self, records: Sequence[Record], repeat: Callable[[], Iterable[Record]]) -> None:
        """Write records with one write; a new part begins with the records of `repeat`, which describe the open channels."""
        if self._recording.rotates and self._is_full(records[0].time_ns):
            self._next_part(records[0].time_ns, repeat)
        self._writer.write_batch(records)

    def close(self) -> None:
        """Close the file. A pipe's reader may not have all of it yet. Idempotent; raises OSError if the end cannot be written."""
        if self._owned or isinstance(self._file, PipeWriter):
            self._file.close()

    @property
    def is_writing(self) -> bool:
        """True while the reader of a pipe does not have everything."""
        return isinstance(self._file, PipeWriter) and self._file.is_writing

    def check(self) -> None:
        """Call after `close`: give up what was not written; if there was any, raise an OSError."""
        if isinstance(self._file, PipeWriter):
            self._file.check()

    def _is_full(self, time_ns: int) -> bool:
        limits = self._recording
        if limits.max_bytes is not None and self._writer.size >= limits.max_bytes:
            return True
        return limits.max_seconds is not None and time_ns - self._began_ns >= limits.max_seconds * 1e9

    def _next_part(self, time_ns: int, repeat: Callable[[], Iterable[Record]]) -> None:
        size = self.size
        self._file.close()
        self._began_ns = time_ns
        self._open()
        self._earlier = size
        self._writer.write_batch([record._replace(time_ns=time_ns) for record in repeat()])
        self._drop_oldest()

    def _open(self) -> None:
        self._number += 1
        self._part += 1
        self._file = self._open_file()
        kind = JsonLinesWriter if self._recording.json_lines else RecordingWriter
        try:
            self._writer = kind(self._file, self._info(self._part))
        except BaseException:
            self.close()
            raise

    def _open_file(self) -> BinaryIO:
        recording = self._recording
        if recording.target == "-":
            return cast("BinaryIO", standard_output())
        if recording.path is None:
            assert not isinstance(recording.target, (str, os.PathLike))
            return cast("BinaryIO", writable(recording.target))
        path = recording.part(self._number) if recording.rotates else recording.path
        if is_pipe(path):
            return cast("BinaryIO", open_pipe(path))
        if not recording.overwrite:
            _spare(path)
        return path.open("wb", buffering=0)

    def _last_number(self) -> int:
        with contextlib.suppress(OSError):  # opening the file fails if its directory cannot be read
            return max((number for number, _ in self._recording.parts()), default=0)
        return 0

    def _drop_oldest(self) -> None:
        keep = self._recording.keep
        if keep is None:
            return
        for _, path in self._recording.parts()[: -int(keep)]:
            with contextlib.suppress(FileNotFoundError):  # somebody else deleted it
                with path.open("rb") as file:
                    ours = is_ours(file)
                if ours:
                    path.unlink()


def _spare(path: Path) -> None:
    """Check that the file may be replaced: raise FileExistsError if it is not an old recording."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        if not is_ours(file):
            what = "exists and is not a recording of this library; Recording(path, overwrite=True) replaces it"
            raise FileExistsError(errno.EEXIST, what, str(path))
