"""Where results go: lines on standard output, and what happens when it goes away.

A batch of lines is written and flushed at once: while little happens each line
appears as it comes, and a large replay costs one system call for many lines.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from typing import TextIO

import attrs

__all__ = ["Output", "abandon_stdout", "complain", "is_terminal", "use_colour"]


def is_terminal(stream: TextIO | None) -> bool:
    """True if a person looks at `stream`."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def use_colour(stream: TextIO | None) -> bool:
    """True for terminals that can, unless ``NO_COLOR`` (https://no-color.org) says no."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@attrs.define(eq=False)
class Output:
    """Standard output as a sink of lines."""

    stream: TextIO | None = attrs.field(factory=lambda: sys.stdout)
    quiet: bool = False
    """True: count the lines, print none."""
    written: int = 0
    """Lines so far."""

    def __attrs_post_init__(self) -> None:
        # A name outside the terminal's character set must not end the program.
        reconfigure = getattr(self.stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def lines(self, lines: Iterable[str]) -> None:
        """Write these lines and flush.

        Raises:
            BrokenPipeError: The reader went away.
            OSError: They cannot be written.
        """
        batch = list(lines)
        if not batch:
            return
        self.written += len(batch)
        if self.quiet or self.stream is None:
            return
        batch.append("")
        self.stream.write("\n".join(batch))
        self.stream.flush()

    def line(self, line: str) -> None:
        """Write one line and flush."""
        self.lines((line,))

    @property
    def pipe(self) -> int | None:
        """Descriptor of the pipe behind it; `None` for terminals and files."""
        if self.stream is None or self.quiet:
            return None
        try:
            number = self.stream.fileno()
            return number if stat.S_ISFIFO(os.fstat(number).st_mode) else None
        except (OSError, ValueError):
            return None


def abandon_stdout() -> None:
    """Make sure that the interpreter's own flush at exit cannot fail once more."""
    try:
        number = sys.stdout.fileno()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, number)
        os.close(sink)
    except (AttributeError, OSError, ValueError):
        return


def complain(text: str) -> None:
    """One line on standard error."""
    if sys.stderr is None:
        return
    try:
        print(f"nstat-async: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)
    except OSError:  # nobody listens
        return
