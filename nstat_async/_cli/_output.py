"""Writes results to standard output, whose reader may be slow or go away.

A batch of lines is written together: a single line appears as it comes, and a large replay
needs few system calls. Commands with an event loop use `send`: while the reader is slow, the loop goes on, the
kernel is polled, and the buffer of the subscription coalesces what piles up.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

import anyio
import attrs

from .._escape import escape
from .._io.threads import in_thread


def is_terminal(stream: TextIO | None) -> bool:
    """True if a person looks at `stream`."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def use_colour(stream: TextIO | None) -> bool:
    """True for a terminal with colours; ``NO_COLOR`` (https://no-color.org) turns them off, ``FORCE_COLOR`` on."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or can_draw(stream)


def can_draw(stream: TextIO | None) -> bool:
    """True for a terminal that can move the cursor."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def _readable(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the terminal does not have: ``~`` where a text was cut, ``+-``, else their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end].replace("…", "~").replace("±", "+-")
    return missing.encode("ascii", "backslashreplace").decode(), error.end


_READABLE = "nstat_async.readable"
codecs.register_error(_READABLE, _readable)

_AT_ONCE = 1 << 15
"""Characters that are written together: for more, the system would be asked for memory each time."""


@attrs.define(eq=False)
class Output:
    """Standard output as a sink of lines."""

    stream: TextIO | None = attrs.field(factory=lambda: sys.stdout)
    quiet: bool = False
    """True: print nothing."""
    events: int = 0
    """Number of events so far, shown or not, to tell how far a command is."""
    losses: int = 0
    """Number of `EventsLost` among those that were not shown."""
    _number: int | None = attrs.field(init=False)
    """Descriptor of the stream; `None` if the stream itself writes lines."""
    _kind: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        # A name outside the terminal's character set must not stop the program.
        reconfigure = getattr(self.stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_READABLE)
        try:
            self._number = self.stream.fileno() if self.stream is not None and os.name == "posix" else None
            self._kind = 0 if self._number is None else stat.S_IFMT(os.fstat(self._number).st_mode)
        except (OSError, ValueError):
            self._number = None

    def lines(self, lines: Iterable[str]) -> None:
        """Write these lines, and wait for the reader."""
        for text in self._encoded(lines):
            self._write(text)

    def line(self, line: str) -> None:
        """Write one line."""
        self.lines((line,))

    async def send(self, lines: Iterable[str]) -> None:
        """Write these lines; the event loop goes on while the reader is slow.

        If this is cancelled while a pipe is full, the written text ends with a whole line.
        """
        for text in self._encoded(lines):
            if self._number is not None and self._kind == stat.S_IFIFO:
                for part in _parts(text):
                    while not select.select((), (self._number,), (), 0)[1]:
                        await anyio.wait_writable(self._number)
                    self._write(part)
            elif self._kind == stat.S_IFSOCK or is_terminal(self.stream):
                await in_thread(self._write, text, abandon_on_cancel=True)
            else:
                self._write(text)

    def _encoded(self, lines: Iterable[str]) -> Iterator[bytes]:
        """Lines as bytes, several together; nothing for a quiet output."""
        if self.quiet or self.stream is None:
            return
        encoding, some, size = self.stream.encoding or "utf-8", [], 0
        for line in lines:
            some.append(line)
            size += len(line)
            if size >= _AT_ONCE:
                yield "\n".join([*some, ""]).encode(encoding, _READABLE)
                some, size = [], 0
        if some:
            yield "\n".join([*some, ""]).encode(encoding, _READABLE)

    def _write(self, data: bytes) -> None:
        if self._number is None:
            if self.stream is not None and data:
                self.stream.write(data.decode(self.stream.encoding or "utf-8"))
                self.stream.flush()
            return
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._number, left) :]
            except BlockingIOError:  # another process that shares it made it non-blocking
                select.select((), (self._number,), ())
            except OSError as error:
                error.filename = "standard output"
                raise

    @property
    def columns(self) -> int | None:
        """The width for tables: ``COLUMNS``, or the terminal's; `None` if it is not a terminal."""
        given = os.environ.get("COLUMNS", "")
        if given.isascii() and given.isdigit() and int(given):
            return int(given)
        try:
            return os.get_terminal_size(self._number).columns or None if self._number is not None else None
        except OSError:  # no terminal
            return None

    @property
    def pipe(self) -> int | None:
        """Descriptor of the pipe behind it; `None` for terminals and files."""
        return self._number if self._kind == stat.S_IFIFO and not self.quiet else None


def _parts(data: bytes) -> Iterator[bytes]:
    """Parts that a ready pipe takes at once: as many whole lines as fit, or pieces of a longer line."""
    begin = 0
    while begin < len(data):
        end = begin + select.PIPE_BUF
        if end < len(data):
            end = data.rfind(b"\n", begin, end) + 1 or end
        yield data[begin:end]
        begin = end


def abandon(stream: TextIO | None) -> None:
    """Make sure that the interpreter's own flush at exit cannot fail again."""
    if stream is None:
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        number = stream.fileno()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, number)
        os.close(sink)


def events_text(number: int, losses: int = 0) -> str:
    """A number of events in words, and of the gaps among them, if there are any."""
    gaps = f", {losses} gap{'' if losses == 1 else 's'}" if losses else ""
    return f"{number} event{'' if number == 1 else 's'}{gaps}"


def in_one_line(text: str) -> str:
    """A text without anything that moves or colours what a terminal shows."""
    return "".join(char if char.isprintable() else escape(char) for char in " ".join(text.splitlines()))


def complain(text: str) -> None:
    """Write one line to standard error, escaped."""
    say(f"nstat-async: {in_one_line(text)}\n")


def say(text: str) -> None:
    """Write to standard error; if that fails, the command goes on, with the same exit status."""
    if sys.stderr is None:
        return
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    try:
        sys.stderr.write(text.encode(encoding, _READABLE).decode(encoding))
        sys.stderr.flush()
    except OSError:  # standard error is gone
        abandon(sys.stderr)
