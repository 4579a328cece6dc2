"""Pipes as files: a thread that waits for their other end can always be released."""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Union

from .._errnos import no_thread_text
from . import system

TICK = 0.1
"""Seconds between two checks whether the file was closed."""
PIPE_SECONDS = 10.0
"""How long the end of writing waits at most for the reader of a pipe."""
MOST_WAITING = 32 << 20
"""Most bytes that wait for the reader of a pipe: the first dump of 50,000 sockets is 20 MB."""
_AT_ONCE = 65_536
_WITHOUT_BLOCKING = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes without blocking when it is ready."""


class ReadPipe:
    """A pipe, terminal or socket that a worker thread reads; `close` ends the reading, from any thread.

    Args:
        source: A path, which is opened without waiting for a writer, or an open file, which the caller closes.
    """

    def __init__(self, source: Union[str, os.PathLike[str], BinaryIO]) -> None:
        self._owned = isinstance(source, (str, os.PathLike))
        if isinstance(source, (str, os.PathLike)):
            self.name: Any = os.fspath(source)
            descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._file: Any = os.fdopen(descriptor, "rb", buffering=0)
        else:
            self.name = getattr(source, "name", None)
            self._file = source
        self._read: Any = getattr(self._file, "read1", None) or self._file.read
        self._poll = select.poll()
        self._poll.register(self._file.fileno(), select.POLLIN)
        self._reading = threading.Lock()
        self._early = self._owned and not system.is_here(system.LINUX) and is_pipe(Path(self.name))
        """True if the system may call a pipe without a writer ready, and at its end."""
        self._closed = False

    def read(self, size: int) -> bytes:
        """The next bytes, at least one; none at the end, or if it was closed while waiting."""
        data = None
        with self._reading:
            while data is None and not self._closed:
                if self._poll.poll(TICK * 1000):
                    data = self._read(size)
                if data == b"" and self._early:
                    time.sleep(TICK)
                    data = None
            self._early = False
        if self._closed:
            self.close()
        return data or b""

    def fileno(self) -> int:
        """Its descriptor."""
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        """Close it without waiting: the reading thread, if there is one, closes the file. Idempotent."""
        self._closed = True
        if self._owned and self._reading.acquire(blocking=False):
            self._file.close()
            self._reading.release()


class PipeWriter:
    """A file that a thread writes, because its reader may be slow: no one else waits, and a reader too far behind is given up.

    Args:
        file: An open file, which may block.
        at_once: Bytes that are written at once; if the file blocks, as many as a ready pipe takes.
        owned: Close it at the end.
    """

    def __init__(self, file: Any, at_once: int = _WITHOUT_BLOCKING, *, owned: bool = False) -> None:
        self._file = file
        self._at_once = at_once
        self._owned = owned
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._thread: threading.Thread | None = None
        self._ending = self._given_up = False
        self._until = math.inf
        """Monotonic time at which the thread gives up the reader, even if `check` is never called."""

    @property
    def is_writing(self) -> bool:
        """True while data waits for the reader, and the reader is neither gone nor given up."""
        return bool(self._waiting) and self._error is None and not self._given_up

    @property
    def reader_gone(self) -> bool:
        """True once it was noticed that the other end is closed."""
        return isinstance(self._error, BrokenPipeError)

    def write(self, data: bytes) -> int:
        """Take all data.

        Raises:
            OSError: The reader is gone, or too far behind.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if len(self._waiting) >= MOST_WAITING:
                self._give_up()
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="nstat-async-pipe", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise OSError(errno.EAGAIN, no_thread_text(error)) from error
                self._thread = thread
            self._waiting += data
            self._changed.notify_all()
        return len(data)

    def flush(self) -> None:
        """Do nothing: data is written as fast as the reader takes it."""

    def close(self) -> None:
        """End writing, without waiting: the thread ends when the reader has everything, or after `PIPE_SECONDS`. Idempotent."""
        with self._changed:
            self._ending, self._until = True, min(self._until, time.monotonic() + PIPE_SECONDS)
            self._changed.notify_all()
            if self._thread is None and self._owned:
                self._file.close()

    def check(self) -> None:
        """Call after `close`: check that the reader has everything, and give up what still waits.

        Raises:
            OSError: The reader is gone, or was too late.
        """
        with self._changed:
            if self._waiting:
                if self._error is not None:
                    raise self._error
                self._give_up()

    def _give_up(self) -> None:
        self._given_up = True
        raise OSError(errno.ETIMEDOUT, f"the pipe's reader is {len(self._waiting):,} bytes behind")

    def _work(self) -> None:
        try:
            ready = select.poll()
            ready.register(self._file.fileno(), select.POLLOUT)
            while (data := self._next()) and not self._given_up and time.monotonic() < self._until:
                if ready.poll(TICK * 1000):
                    written = self._file.write(data)
                    self._file.flush()
                    self._done(written or 0)
        except (OSError, ValueError) as error:  # ValueError: somebody closed the file
            self._done(0, error if isinstance(error, OSError) else OSError(errno.EBADF, str(error)))
        if self._owned:
            self._file.close()

    def _next(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            return bytes(self._waiting[: self._at_once])

    def _done(self, written: int, error: OSError | None = None) -> None:
        with self._changed:
            del self._waiting[:written]
            self._error = error


def open_pipe(path: Path) -> PipeWriter:
    """Open a named pipe for writing.

    Raises:
        OSError: It may not be written, or has no reader (`errno.ENXIO`).
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.ENXIO, "nobody reads this pipe; start its reader first", str(path)) from error
    return PipeWriter(os.fdopen(descriptor, "wb", buffering=0), _AT_ONCE, owned=True)


def standard_output() -> Any:
    """Standard output as a binary file."""
    # Without the buffer, which cannot tell how much of a write a full pipe took.
    return writable(getattr(sys.stdout.buffer, "raw", sys.stdout.buffer))


def writable(file: Any) -> Any:
    """An open file, which the caller closes; a thread writes it if its reader may be slow."""
    late = not isinstance(file, PipeWriter) and hasattr(select, "poll") and may_wait(file)
    return PipeWriter(file) if late else file


def is_pipe(path: Path) -> bool:
    """True for a named pipe."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def may_wait(source: object) -> bool:
    """True for a file whose reading may have to wait for a writer."""
    try:
        if isinstance(source, (str, os.PathLike)):
            mode = os.stat(source).st_mode  # noqa: PTH116  # a path of any kind
        else:
            fileno = getattr(source, "fileno", None)
            mode = 0 if fileno is None else os.fstat(fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
