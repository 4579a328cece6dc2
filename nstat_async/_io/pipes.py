"""Pipes as files: nobody waits for their other end without being able to leave."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Union

from . import system

TICK = 0.1
"""Seconds between two looks whether somebody closed what is waited for."""
PIPE_SECONDS = 10.0
"""Longest that a full pipe which does not block is waited for."""
MOST_WAITING = 32 << 20
"""Bytes that may wait for the reader of a pipe: the first dump of 50,000 sockets is 20 MB."""
_AT_ONCE = 65_536


class ReadPipe:
    """What is read from a pipe, a terminal or a socket, by a worker thread; `close` ends that, from any thread.

    Args:
        source: A path, which is opened without waiting for a writer, or an open file, which stays the caller's.
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
        """Other systems call a pipe that nobody writes yet ready, and empty."""
        self._closed = False

    def read(self, size: int) -> bytes:
        """What is there, at least a byte; none at the end, and when it is closed meanwhile."""
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
        """Close it without waiting: who reads does it then. Idempotent."""
        self._closed = True
        if self._owned and self._reading.acquire(blocking=False):
            self._file.close()
            self._reading.release()


class WritePipe:
    """A pipe that a thread writes: a reader that is late holds up nobody, and is given up when `MOST_WAITING` bytes wait for it.

    Raises:
        OSError: It is not open for writing, or nobody reads it (`errno.ENXIO`).
    """

    def __init__(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            raise OSError(errno.ENXIO, "nobody reads this pipe; start its reader first", str(path)) from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._ending = self._given_up = False
        threading.Thread(target=self._work, name="nstat-async-pipe", daemon=True).start()

    def write(self, data: bytes) -> int:
        """Take all of it.

        Raises:
            OSError: Its reader is gone, or too far behind.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if len(self._waiting) >= MOST_WAITING:
                self._given_up = True
                raise OSError(errno.ETIMEDOUT, f"the pipe's reader is {len(self._waiting):,} bytes behind")
            self._waiting += data
            self._changed.notify_all()
        return len(data)

    def flush(self) -> None:
        """Nothing is held back longer than its reader takes."""

    def close(self) -> None:
        """Close it when all is written, nobody read for `PIPE_SECONDS`, or its reader was given up."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            if self._given_up:  # `write` said it
                return
            self._given_up = not self._changed.wait_for(lambda: self._error or not self._waiting, PIPE_SECONDS)
            if self._error is not None:
                raise self._error
            if self._given_up:
                raise OSError(errno.ETIMEDOUT, "nobody reads this pipe any more")

    def _work(self) -> None:
        ready = select.poll()
        ready.register(self._file.fileno(), select.POLLOUT)
        with self._file:
            while data := self._next():
                try:
                    written = self._file.write(data)
                except OSError as error:
                    self._done(0, error)
                    return
                if written is None and self._given_up:
                    return
                if written is None:
                    ready.poll(TICK * 1000)
                else:
                    self._done(written)

    def _next(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            return bytes(self._waiting[:_AT_ONCE])

    def _done(self, written: int, error: OSError | None = None) -> None:
        with self._changed:
            del self._waiting[:written]
            self._error = error
            self._changed.notify_all()


def write_some(file: Any, data: bytes) -> int | None:
    """Write at least a part; `None`: it does not block, and nobody read for `PIPE_SECONDS`."""
    written: int | None = file.write(data)
    if written is None:
        select.select([], [file], [], PIPE_SECONDS)
        written = file.write(data)
    return written


def is_pipe(path: Path) -> bool:
    """True for a pipe that has a name."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def may_wait(source: object) -> bool:
    """True for a file whose reading may have to wait for somebody."""
    try:
        if isinstance(source, (str, os.PathLike)):
            mode = os.stat(source).st_mode  # noqa: PTH116  # a path of any kind
        else:
            fileno = getattr(source, "fileno", None)
            mode = 0 if fileno is None else os.fstat(fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
