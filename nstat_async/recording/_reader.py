"""Recognises the format of a recording, and reads it piece by piece, without I/O."""

from __future__ import annotations

import re
from typing import Union

from nstat_async._errors import RecordingError, UsageError

from ._bin import BinParser
from ._jsonlines import JsonLinesParser
from ._native import MAGIC, NativeParser
from ._records import Record, RecordingInfo

GZIP_MAGIC = b"\x1f\x8b\x08"
"""With the only compression method: a headerless file may begin with any seconds."""
_Parser = Union[NativeParser, JsonLinesParser, BinParser]
_BOM = b"\xef\xbb\xbf"
_BLANK_MAX = 4096
"""Most white space before JSON."""
_JSON_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*[\"}]")
_JSON_MAY_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{?\s*")


class RecordingReader:
    """Makes records of the bytes of any of the three formats, which it recognises by the first bytes.

    It takes pieces of any size, and more when the file has grown; it keeps at most one
    unfinished record. `open_recording` does the same for files, and also opens ``gzip``.

    Args:
        kernel: The kernel's name, e.g. ``"xnu-11417.121.6"``: needed for the headerless
            ``.bin``; in other formats it replaces the name in the file.
    """

    def __init__(self, *, kernel: str | None = None) -> None:
        if kernel is not None and not (isinstance(kernel, str) and kernel.strip()):
            raise UsageError(f"kernel: {kernel!r} is not a kernel's name")
        self._kernel = kernel
        self._parser: _Parser | None = None
        self._first = b""
        self._closed = False

    @property
    def info(self) -> RecordingInfo | None:
        """The facts about the whole recording that are known by now; `None` before its beginning was fed."""
        return self._parser.info if self._parser is not None else None

    @property
    def format(self) -> str | None:
        """``"nstat"`` (the project's own), ``"jsonl"`` or ``"bin"``; `None` until it is recognised."""
        return None if self._parser is None else self._parser.FORMAT

    def feed(self, data: bytes) -> list[Record]:
        """Take in the next bytes of the file and return the records that they complete.

        Damage within the file is a `RecordKind.DAMAGE` record.

        Raises:
            RecordingError: These are no recording, or one of an unknown version, or the kernel must be given.
            UsageError: `close` was called.
        """
        if self._closed:
            raise UsageError("the reader was closed")
        if self._parser is not None:
            return self._parser.feed(bytes(data))
        self._first += data
        self._parser = self._recognise(self._first, final=False)
        if self._parser is None:
            return []
        first, self._first = self._first, b""
        return self._parser.feed(first)

    def close(self) -> list[Record]:
        """End the input, and return the rest: a last line, or a `DAMAGE` record for a cut one.

        Raises:
            RecordingError: The file ended before its format was recognised.
        """
        if self._closed:
            return []
        self._closed = True
        if self._parser is not None:
            return self._parser.close()
        if not self._first:
            raise RecordingError("the recording is empty")
        self._parser = self._recognise(self._first, final=True)
        assert self._parser is not None  # with `final` it is recognised, or an error is raised
        return [*self._parser.feed(self._first), *self._parser.close()]

    def _recognise(self, first: bytes, *, final: bool) -> _Parser | None:
        """The parser for a file with this beginning; `None` if more bytes are needed."""
        if first[: len(MAGIC)] == MAGIC:
            return NativeParser(self._kernel)
        if not final and (MAGIC.startswith(first) or first == _BOM[: len(first)]):
            return None
        if _JSON_BEGINS.match(first):
            return JsonLinesParser(self._kernel)
        if not final and len(first) < _BLANK_MAX and _JSON_MAY_BEGIN.fullmatch(first):
            return None
        if first.startswith(GZIP_MAGIC):
            raise RecordingError("compressed with gzip within gzip, or fed without decompression", raw=first[:64])
        if self._kernel is None:
            raise RecordingError(
                "neither a recording of this library nor JSON Lines; if it is a headerless .bin (u32 seconds, u32 length, datagram), "
                "its kernel must be given, e.g. xnu-11417.121.6 (command line: --kernel)",
                raw=first[:64],
            )
        return BinParser(self._kernel)
