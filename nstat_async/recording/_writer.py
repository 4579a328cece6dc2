"""Writes recordings. If the file allows it, a record is written completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from nstat_async._errors import UsageError

from . import _jsonlines, _native
from ._records import NO_EXTRA, Record, RecordingInfo, RecordKind

_W = TypeVar("_W", bound="_Writer")


class _Writer:
    """The common base of both writers: it counts, flushes, and makes records of calls."""

    _encode_beginning: Callable[[RecordingInfo], bytes]
    _encode_record: Callable[[int, Record], bytes]

    def __init__(self, file: BinaryIO, info: RecordingInfo, *, flush: bool = True) -> None:
        self._file = file
        self._flush = flush
        self._info = info
        self._count = 0
        self.size = 0
        """Bytes written so far."""
        self._put([self._encode_beginning(info)])

    @property
    def info(self) -> RecordingInfo:
        """The facts that were written last."""
        return self._info

    @property
    def count(self) -> int:
        """Records written so far, without facts: the index of the next one."""
        return self._count

    def to_kernel(self, data: bytes, time_ns: int, client: int = 0, *, extra: Mapping[str, Any] = NO_EXTRA) -> None:
        """Write a datagram that was sent.

        Args:
            data: The datagram.
            time_ns: The time, nanoseconds since the recording's zero.
            client: The client or channel.
            extra: Further keys of the record (JSON).

        Raises:
            UsageError: It is longer than a recording takes, or a number is out of range.
            OSError: The file cannot be written.
        """
        self.write_batch((Record(self._count, RecordKind.TO_KERNEL, time_ns, client, data, None, extra),))

    def from_kernel(self, data: bytes, time_ns: int, client: int = 0, *, extra: Mapping[str, Any] = NO_EXTRA) -> None:
        """Write a datagram that was received; see `to_kernel`."""
        self.write_batch((Record(self._count, RecordKind.FROM_KERNEL, time_ns, client, data, None, extra),))

    def note(self, text: str, time_ns: int, client: int = 0, *, extra: Mapping[str, Any] = NO_EXTRA) -> None:
        """Write a text for readers of the recording; see `to_kernel`."""
        self.write_batch((Record(self._count, RecordKind.NOTE, time_ns, client, b"", text, extra),))

    def answer(self, value: Any, time_ns: int, client: int = 0, *, extra: Mapping[str, Any] = NO_EXTRA) -> None:
        """Write the host's answer to a look-up (any JSON value); see `to_kernel`."""
        self.write_batch((Record(self._count, RecordKind.ANSWER, time_ns, client, b"", None, extra, value),))

    def update_info(self, info: RecordingInfo, time_ns: int = 0) -> None:
        """Write new facts, which hold from now on. A fact can be replaced, but not removed."""
        self.write_batch((Record(self._count, RecordKind.META, time_ns, 0, b"", None, NO_EXTRA, info),))

    def write_batch(self, records: Iterable[Record]) -> None:
        """Write many records with one write and one flush. A `Record.index` that differs from the place is kept.

        Raises:
            UsageError: One of them does not fit; those before it are written.
            OSError: The file cannot be written.
        """
        pieces: list[bytes] = []
        try:
            for record in records:
                if record.kind is RecordKind.DAMAGE:
                    raise UsageError("damage is found in a file, never written to one; `copy` writes it as a note")
                pieces.append(self._encode_record(self._count, record))
                if record.kind is RecordKind.META:
                    self._info = record.value
                else:
                    self._count += 1
        finally:
            self._put(pieces)

    def flush(self) -> None:
        """Give all data to the operating system."""
        self._file.flush()

    def _put(self, pieces: list[bytes]) -> None:
        data = b"".join(pieces)
        while data:
            written = self._file.write(data)  # an unbuffered file may take a part
            if written is None:
                raise BlockingIOError("the recording's file is non-blocking, and full")
            self.size += written
            data = data[written:]
        if self._flush and pieces:
            self._file.flush()

    def __enter__(self: _W) -> _W:  # noqa: PYI019  # Self is 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()


class RecordingWriter(_Writer):
    """Writes the project's own format.

    Args:
        file: An open binary file, at its beginning; the caller closes it.
        info: The facts known by now; `update_info` adds later ones.
        flush: Give each record (or batch) to the operating system at once, so that a reader sees it
            and a crash of this program loses nothing. False leaves it in the file's buffer at first.
    """

    _encode_beginning = staticmethod(_native.encode_beginning)
    _encode_record = staticmethod(_native.encode_record)


class JsonLinesWriter(_Writer):
    """Writes JSON Lines; the arguments are those of `RecordingWriter`."""

    _encode_beginning = staticmethod(_jsonlines.encode_beginning)
    _encode_record = staticmethod(_jsonlines.encode_record)


def copy(source: Iterable[Record], writer: RecordingWriter | JsonLinesWriter) -> int:
    """Write all records of one recording into another, e.g. to change its format.

    Damage, and a record that the other format cannot have, becomes a note about it.

    Args:
        source: A `RecordingFile`, or any records.
        writer: The writer, made with the source's `RecordingInfo`.

    Returns:
        How many records were written.

    Raises:
        OSError: The file cannot be written.
    """
    copied = 0
    for record in source:
        if record.kind is RecordKind.DAMAGE:
            record = _as_note(record, f"damage: {record.text}")  # noqa: PLW2901  # the note stands for it
        try:
            writer.write_batch((record,))
        except UsageError as error:
            writer.write_batch((_as_note(record, f"a record of kind {record.kind.value} left out: {error}"),))
        copied += 1
    return copied


def _as_note(record: Record, text: str) -> Record:
    return record._replace(kind=RecordKind.NOTE, data=b"", text=text, extra=NO_EXTRA, value=None)
