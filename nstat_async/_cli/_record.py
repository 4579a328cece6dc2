"""``record FILE``: the conversation with the kernel, byte by byte."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anyio

from .. import Monitor
from .._errors import NstatError, RecordingError
from .._escape import dump
from .._events import EventsLost
from ..recording import open_recording
from ._output import Output, complain, is_terminal
from ._progress import Progress
from ._run import run_until_stopped
from ._source import backend_of, monitor_options
from ._text import bytes_text

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Record until stopped.

    Raises:
        NstatError: The backend cannot be opened, or failed.
        OSError: The file cannot be written.
    """
    path = Path(arguments.file)
    if not arguments.force:
        _spare(path)
    backend = backend_of(arguments)
    is_new = not path.exists()
    path.open("ab").close()  # what cannot be written is known before anything is asked of the kernel
    options = monitor_options(arguments)
    events = losses = 0

    async def work(scope: anyio.CancelScope) -> int:
        nonlocal events, losses
        async with Monitor(backend=backend, record_to=path, **options) as monitor:
            stream = monitor.subscribe()
            with scope:
                while batch := await stream.receive_many():
                    events += len(batch)
                    losses += sum(isinstance(event, EventsLost) for event in batch)
        return 0

    progress = Progress(lambda: f"{_size(path)}  {events} events") if is_terminal(sys.stderr) else None
    try:
        status = run_until_stopped(work, duration=arguments.duration, progress=progress)
    except BaseException:
        if is_new and path.is_file() and not path.stat().st_size:
            path.unlink()
        raise
    if arguments.json:
        size = path.stat().st_size if path.is_file() else None
        Output().line(dump({"v": 1, "file": str(path), "bytes": size, "events": events, "losses": losses}))
    else:
        complain(f"{path}: {_size(path)}, {events} events" + (f", {losses} gaps" if losses else ""))
    return status


def _size(path: Path) -> str:
    try:
        return bytes_text(path.stat().st_size)
    except OSError:
        return "nothing yet"


def _spare(path: Path) -> None:
    """Replace an old recording, and nothing else, without being told to.

    Raises:
        RecordingError: The file holds something else.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        open_recording(path).close()
    except NstatError as error:
        raise RecordingError(f"{path} exists and is no recording; --force replaces it") from error
