"""``record FILE``: the conversation with the kernel, byte by byte."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from pathlib import Path
from typing import Any

from .. import Monitor
from .._errors import NstatError, UsageError
from .._escape import dump
from .._events import Auxiliary, AuxiliaryFailed, EventsLost
from .._io.pipes import standard_output
from ..recording import Recording
from ._cells import bytes_text
from ._output import Output, can_draw, complain, events_text
from ._progress import Progress
from ._run import Scope, poll_to_the_end, run_until_stopped
from ._source import backend_of, is_recorded, monitor_options


def run(arguments: argparse.Namespace) -> int:
    """Record until stopped.

    Raises:
        NstatError: The backend cannot be opened, or failed, or the file cannot be written.
        OSError: There is no standard output.
    """
    if is_recorded(arguments):
        raise UsageError("backend: a recording cannot be recorded again; copy the file")
    tape = _Tape(arguments)
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)
    if "flow_filter" in options:  # whoever wants to share the flows of one process must know
        complain(f"{tape.name}: all flows are recorded, also those that do not pass; give the filter to `replay`")

    async def work(scope: Scope) -> int:
        monitor = Monitor(backend=backend, record_to=tape.recording, **options)
        async with monitor:
            stream = monitor.subscribe()
            try:
                with scope:
                    while tape.failure is None and (batch := await stream.receive_many()):
                        tape.take(batch, monitor)
                if scope.was_cancelled and tape.failure is None:
                    await poll_to_the_end(monitor, "the last flows may be missing")
            finally:
                await monitor.aclose()
                rest: list[Any] = []
                with contextlib.suppress(NstatError):  # nothing waits
                    rest = stream.receive_nowait()
                tape.take(rest, monitor)  # also without events: the last records count
        return 0

    progress = Progress(tape.describe) if can_draw(sys.stderr) else None
    try:
        run_until_stopped(work, duration=arguments.duration, output=tape.pipe, progress=progress)
    except UsageError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            raise
        # What cannot work is on the disk, not on the command line.
        what = "exists and is not a recording; --force replaces it" if cause.errno == errno.EEXIST else cause.strerror
        raise OSError(cause.errno, what, tape.name) from error
    if tape.failure is not None and not getattr(tape.pipe_file, "reader_gone", False):
        complain(f"error: {tape.name}: {tape.failure}")
        return 1
    tape.summarise(as_json=arguments.json)
    return 0


class _Tape:
    """The recording's target and its progress."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.to_stdout = arguments.file == "-"
        self.name: str = "standard output" if self.to_stdout else arguments.file
        self.failure: str | None = None
        self.size = self.events = self.losses = 0
        if self.to_stdout and sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        if self.to_stdout and arguments.json:
            raise UsageError("json: standard output is the recording; give a path, or take the summary as it is")
        parts = arguments.rotate_size or arguments.rotate_every
        if self.to_stdout and parts:
            raise UsageError("file: standard output has no parts (--rotate-size, --rotate-every); give a path")
        self.pipe = Output() if self.to_stdout else None
        self.pipe_file = standard_output() if self.to_stdout else None
        target: Any = self.pipe_file or arguments.file
        self.recording = Recording(
            target,
            max_bytes=arguments.rotate_size,
            max_seconds=arguments.rotate_every,
            keep=arguments.keep,
            overwrite=arguments.force,
        )

    def take(self, events: list[Any], monitor: Monitor) -> None:
        """Count events, and note the end of the recording."""
        self.size = monitor.statistics().feed["recorded_bytes"]
        self.events += len(events)
        for event in events:
            if isinstance(event, EventsLost):
                self.losses += 1
            elif isinstance(event, AuxiliaryFailed) and event.auxiliary is Auxiliary.RECORDER:
                self.failure = event.detail

    def describe(self) -> str:
        """How far it is."""
        return f"{bytes_text(self.size)}  {events_text(self.events)}"

    def summarise(self, *, as_json: bool) -> None:
        """Print what was recorded, in a line outside of the recording."""
        part: Path | None = None
        with contextlib.suppress(OSError, IndexError):  # the directory cannot be listed, or is gone
            if self.recording.rotates:
                part = self.recording.parts()[-1][1]
        if as_json:
            last = {} if part is None else {"last_part": str(part)}
            facts = {"file": self.name, **last, "bytes": self.size, "events": self.events, "losses": self.losses}
            Output().line(dump({"v": 1, **facts}))
            return
        shown = "" if part is None else f"; the last part is {part.name}"
        complain(f"{self.name}: {bytes_text(self.size)}, {events_text(self.events, self.losses)}{shown}")
