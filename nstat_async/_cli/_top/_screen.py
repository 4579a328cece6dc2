"""Screens without Unicode: whether a terminal is one, and what stands there for characters that it does not have."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from .._table import cell_width

_LOOK_ALIKE = str.maketrans("…─▔▁▂▃▄▅▆▇█│▊▎╭╮╰╯", "~---#######|||++++")


def is_ascii_only(stream: TextIO | None) -> bool:
    """True if no marks should be drawn that only Unicode has: by the locale, or by what the stream can write."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or "utf-8"
    return not all("utf" in each.lower() for each in (locale, getattr(stream, "encoding", None) or "utf-8"))


def _as_wide(error: UnicodeError) -> tuple[str, int]:
    """As many columns as the missing characters take, so that everything else stays in its place."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end].translate(_LOOK_ALIKE)
    return "".join(char if char.isascii() else "?" * cell_width(char) for char in missing), error.end


_AS_WIDE = "nstat_async.as_wide"
codecs.register_error(_AS_WIDE, _as_wide)


@contextmanager
def screen_on(stream: TextIO | None) -> Iterator[None]:
    """Let a screen be drawn on a stream, where a character that it cannot write moves nothing."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors=_AS_WIDE)
    try:
        yield
    finally:
        stream.reconfigure(errors=before)
