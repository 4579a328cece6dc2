"""Explains why an SQLite file cannot be opened: the system tells more than SQLite."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_LEAST_SPACE = 64 << 10
"""Bytes that SQLite needs to start: a page of the file, and 32 KiB for the index of the log."""
_DESCRIPTORS = 4
"""Descriptors that SQLite needs: for the file, its log, the index of the log, and the folder."""


def may_make_files(folder: Path) -> bool:
    """True if SQLite can make its other files beside a file."""
    return os.access(folder, os.W_OK | os.X_OK)


def why_not_opened(path: str | os.PathLike[str], error: Exception, *, write: bool) -> str:
    """The system's reason, or else SQLite's message.

    Args:
        path: The file.
        error: SQLite's error.
        write: The file was to be written, and made if it did not exist.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        return os.strerror(errno.EISDIR)
    opened: list[int] = []
    try:
        for _ in range(_DESCRIPTORS):
            opened.append(os.open(path, os.O_RDWR if write else os.O_RDONLY))  # noqa: PERF401  # what was opened is closed
    except FileNotFoundError as reason:
        return _why_none_is_made(folder) if write and folder.exists() else str(reason.strerror)
    except (OSError, ValueError) as reason:
        return str(getattr(reason, "strerror", None) or reason)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    if write and _space(folder) < _LEAST_SPACE:  # SQLite would say "disk I/O error"
        return os.strerror(errno.ENOSPC)
    return str(error) if not write or may_make_files(folder) else _why_none_is_made(folder)


def _space(folder: Path) -> int:
    """Bytes that may still be written there; very many if the system does not tell."""
    if not hasattr(os, "statvfs"):
        return sys.maxsize
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _why_none_is_made(folder: Path) -> str:
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    return f"no file may be created in {folder} ({os.strerror(errno.EROFS if read_only else errno.EACCES)})"
