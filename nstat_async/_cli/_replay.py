"""``replay FILE``: a recording as events."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from .. import backends
from .._errors import RecordingError, UsageError
from ._cells import bytes_text
from ._formats import event_formatter
from ._output import Output, can_draw, events_text, is_terminal
from ._progress import Progress
from ._source import check_input, monitor_options
from ._stream import show_events


def run(arguments: argparse.Namespace) -> int:
    """Stream the events of a recording.

    Raises:
        NstatError: It is not a recording, or does not name its kernel.
        OSError: It cannot be read.
        UsageError: Options contradict each other.
    """
    output = Output(quiet=arguments.quiet)
    formatter = event_formatter(arguments, output)
    options = monitor_options(arguments)
    for path in arguments.file:
        check_input(path)
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(path)) for path in arguments.file]
        backend = backends.Replay(files, kernel=arguments.kernel, speed=arguments.speed, timebase=arguments.timebase)
        # A progress line would disturb events that scroll on the same terminal.
        visible = can_draw(sys.stderr) and (arguments.quiet or not is_terminal(output.stream))
        progress = Progress(_describe(files, output)) if visible else None
        try:
            return show_events(arguments, backend, options, output, formatter, progress)
        except UsageError as error:
            if arguments.kernel is not None:
                raise
            # What cannot work is then in the file, not on the command line.
            raise RecordingError(str(error)) from error


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:  # noqa: PTH123  # a name of any kind, also of a pipe
        yield file


class _describe:  # noqa: N801  # a function with a memory
    """Describes the progress of a replay."""

    def __init__(self, files: list[BinaryIO], output: Output) -> None:
        self._files = files
        self._output = output
        facts = [os.fstat(file.fileno()) for file in files]
        self._total = sum(f.st_size for f in facts) if all(stat.S_ISREG(f.st_mode) for f in facts) else None

    def __call__(self) -> str:
        text = events_text(self._output.events)
        if self._total is None or any(file.closed for file in self._files):
            return text
        return f"{text}  {bytes_text(sum(file.tell() for file in self._files))} of {bytes_text(self._total)}"
