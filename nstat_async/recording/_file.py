"""Reads recordings from files and pipes. No other module of these floors opens a path."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import TracebackType
from typing import Any, BinaryIO, Union

from nstat_async._errors import RecordingError, UsageError

from ._reader import GZIP_MAGIC, RecordingReader
from ._records import Record, RecordingInfo, damage_record

_CHUNK = 64 * 1024
"""Most bytes that are read at once, and that are decompressed at once. With more, the records that wait would be too many
for the garbage collector's young generation and for the CPU caches."""


class RecordingFile:
    """An open recording: iterate it for its records. `open_recording` makes it.

    Reading blocks as the file does. It is read once, from the beginning to the end, without seeking.
    """

    def __init__(self, file: BinaryIO, *, kernel: str | None, growing: bool, owned: bool) -> None:
        self._file = file
        self._owned = owned
        self._growing = growing
        self._reader = RecordingReader(kernel=kernel)
        self._gzip: _Gunzip | None = None
        self._sniffed = b""
        self._pending: list[Record] = []
        self._at = 0
        """Index of the next record in `_pending`."""
        self._ended = False
        self._last: Record | None = None
        while self._reader.info is None:
            more = self._more()
            if more is None:
                if not self._ended:
                    raise RecordingError("the beginning of the recording is not there yet")
                break
            self._pending += more

    @property
    def info(self) -> RecordingInfo:
        """The facts about the whole, as far as the file was read (a `META` record says when they change)."""
        info = self._reader.info
        assert info is not None  # the constructor has read it
        return info

    @property
    def format(self) -> str:
        """``"nstat"``, ``"jsonl"`` or ``"bin"``."""
        return self._reader.format or ""

    def __iter__(self) -> Iterator[Record]:
        """The records that were not read yet; in a growing file, those that it has by now."""
        # A record is counted before it is given, so that a caller that stops in the middle can continue later.
        while self._fill():
            self._at += 1
            yield self._pending[self._at - 1]

    def records_batch(self, limit: int = 1024) -> Iterator[list[Record]]:
        """The records in lists of at most `limit`, as they come: a list is never held back to fill it.

        Raises:
            UsageError: `limit` is not positive.
            OSError: The file cannot be read.
        """
        if limit < 1:
            raise UsageError(f"limit: {limit!r} is not a positive number")
        return self._batches(limit)

    def _batches(self, limit: int) -> Iterator[list[Record]]:
        while self._fill():
            batch = self._pending[self._at : self._at + limit]
            self._at += len(batch)
            yield batch

    def _fill(self) -> bool:
        """Make sure that a record waits; false if there is none (by now)."""
        while self._at == len(self._pending):
            more = self._more()
            if more is None:
                return False
            self._pending, self._at = more, 0
        return True

    def _more(self) -> list[Record] | None:
        """Read more; `None` at the end (by now)."""
        if self._ended:
            return None
        data = self._read()
        damage = None if self._gzip is None else self._gzip.damage
        if data:
            records = self._reader.feed(data)
        elif damage is None and self._growing:
            return None
        else:
            self._ended = True
            if damage is not None and self._reader.info is None:
                raise RecordingError(f"not a recording: {damage[0]}", raw=damage[3])
            records = self._reader.close()
        self._last = records[-1] if records else self._last
        if self._ended and damage is not None:
            index, time_ns = (self._last.index + 1, self._last.time_ns) if self._last else (0, 0)
            records.append(damage_record(index, time_ns, *damage))
        return records

    def _read(self) -> bytes:
        """The next bytes, decompressed; none at the end."""
        if self._gzip is not None:
            return self._gzip.read()
        data, self._sniffed = self._sniffed + _read_some(self._file), b""
        if self._reader.format is not None:
            return data
        # Three bytes tell whether the file is compressed; a pipe may give fewer at once.
        while data and len(data) < len(GZIP_MAGIC) and GZIP_MAGIC.startswith(data):
            more = _read_some(self._file)
            if not more and self._growing:
                self._sniffed = data
                return b""
            if not more:
                break
            data += more
        if data.startswith(GZIP_MAGIC):
            self._gzip = _Gunzip(self._file, data, growing=self._growing)
            return self._gzip.read()
        return data

    def close(self) -> None:
        """Close the file if `open_recording` opened it. Idempotent."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Gunzip:
    """Reads a gzip file of one or more members in pieces of bounded size."""

    def __init__(self, file: BinaryIO, first: bytes, *, growing: bool) -> None:
        self.damage: tuple[str, int, int, bytes] | None = None
        """The damage: its reason, offset and number of bytes, and the first of these."""
        self._file = file
        self._growing = growing
        self._input = first
        self._offset = 0  # where the input begins in the compressed file
        self._member: Any = zlib.decompressobj(wbits=31)

    def read(self) -> bytes:
        """Decompressed bytes; none at the end (by now), or at damage."""
        while self.damage is None and (not self._member.eof or self._next_member()):
            self._input = self._input or _read_some(self._file)
            ended = not self._input
            try:  # also without input: the decompressor may hold output back
                data: bytes = self._member.decompress(self._input, _CHUNK)
            except zlib.error as error:
                self._fail(f"broken compression: {error}")
                break
            rest = self._member.unconsumed_tail or self._member.unused_data
            self._offset += len(self._input) - len(rest)
            self._input = rest
            if data:
                return data
            if ended and not self._growing:
                self._fail("the compressed file ends too early")
            elif ended:
                break
        return b""

    def _next_member(self) -> bool:
        """Begin the next member; false if there is none (by now)."""
        data = self._input or _read_some(self._file)
        while data and not data.strip(b"\0"):  # padding, e.g. of a tape or a block device
            self._offset += len(data)
            data = _read_some(self._file)
        self._input = data
        if data and not data.startswith(GZIP_MAGIC[:1]):
            self._fail("bytes after the compressed data")
            return False
        self._member = zlib.decompressobj(wbits=31) if data else self._member
        return bool(data)

    def _fail(self, reason: str) -> None:
        self.damage = (reason, self._offset, len(self._input), self._input[:64])


def _read_some(file: BinaryIO) -> bytes:
    """The bytes that are available, waiting only if there are none; an error names the file."""
    read: Any = getattr(file, "read1", None) or file.read
    try:
        data = read(_CHUNK)
    except OSError as error:
        error.filename = error.filename or _name_of(file)
        raise
    except ValueError as error:
        raise RecordingError(f"it cannot be read: {error}") from error  # it is closed
    if data is None:
        raise BlockingIOError("the recording's file is non-blocking; give one that blocks")
    if not isinstance(data, bytes):
        raise UsageError("a recording is read from a file opened in binary mode")
    return data


def open_recording(
    source: Union[str, PurePath, BinaryIO], *, kernel: str | None = None, growing: bool = False
) -> RecordingFile:
    """Open a recording of any format; the format is recognised by its content, ``gzip`` is decompressed.

    Args:
        source: A path, ``"-"`` for standard input, or an open binary file (which stays the caller's to close).
            It is read forward only, so a pipe will do.
        kernel: The kernel's name, e.g. ``"xnu-11417.121.6"``, for files that do not say it; goes before what they say.
        growing: True: the file is still being written. Iterating stops where it ends by now and goes on there
            when iterated again. False: an unfinished record at the end is a `DAMAGE` record.

    Returns:
        The open recording, a context manager.

    Raises:
        RecordingError: It is no recording, one of an unknown version, or the kernel must be given.
        UsageError: An argument is wrong.
        OSError: The file cannot be opened or read.
    """
    if source == "-":
        source = sys.stdin.buffer
    with naming(source):
        if not isinstance(source, (str, PurePath)):
            if not hasattr(source, "read"):
                raise UsageError(f"source: {source!r} is neither a path nor an open file")
            return RecordingFile(source, kernel=kernel, growing=growing, owned=False)
        file = open(source, "rb")  # noqa: SIM115, PTH123  # closed by the recording
        try:
            return RecordingFile(file, kernel=kernel, growing=growing, owned=True)
        except BaseException:
            file.close()
            raise


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Add the file's name to a `RecordingError` in the block."""
    try:
        yield
    except RecordingError as error:
        if error.path is None:
            error.path = _name_of(source)
        raise


def _name_of(source: object) -> str | None:
    name = str(source) if isinstance(source, (str, PurePath)) else getattr(source, "name", None)
    if name in {"-", "<stdin>"}:
        return "standard input"
    return name if isinstance(name, str) else None
