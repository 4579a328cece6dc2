"""Runs an asynchronous command until it ends or is stopped.

Ctrl-C, SIGTERM and SIGHUP, the end of ``--duration``, and a reader that closes the pipe of
standard output all cancel one scope. The command then leaves its loop, and may still
print results. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import selectors
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import anyio
import anyio.abc

from .. import Monitor
from .._errors import StreamEndedError
from .._starting import IS_COMMAND
from . import ending_signals
from ._output import Output, complain
from ._progress import Progress

THRESHOLDS = (5_000, 100, 100)
"""Thresholds of the garbage collector: new objects, young collections, middle-aged collections (``gc.set_threshold``)."""

LAST_POLL = 2.0
"""Most seconds for the last poll."""


class Scope:
    """The scope that is cancelled to end a command.

    Args:
        duration: Seconds until it is cancelled, from when it is entered: the time to begin does not count.
    """

    def __init__(self, duration: float | None) -> None:
        self._duration = duration
        self._scope = anyio.CancelScope()
        self.cancel = self._scope.cancel
        self.entered = False
        """False while the command still begins."""

    def __enter__(self) -> None:
        self.entered = True
        if self._duration is not None:
            self._scope.deadline = anyio.current_time() + self._duration
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return bool(self._scope.__exit__(kind, error, trace))

    @property
    def was_cancelled(self) -> bool:
        """True if the scope was cancelled."""
        return self._scope.cancel_called

    @property
    def timed_out(self) -> bool:
        """True if the duration ended it."""
        return self.was_cancelled and anyio.current_time() >= self._scope.deadline


Work = Callable[[Scope], Awaitable[int]]
"""A command: it enters the scope around its loop, and returns the exit status."""


def run_until_stopped(
    work: Work, *, duration: float | None = None, output: Output | None = None, progress: Progress | None = None
) -> int:
    """Run `work` on asyncio.

    Args:
        work: The command.
        duration: See `Scope`.
        output: If it is a pipe, its reader is watched.
        progress: Shown on standard error meanwhile.

    Returns:
        The status that `work` returned; 0 if it was stopped.
    """
    _check_sockets()
    try:
        with collecting_rarely():
            return anyio.run(_supervise, work, duration, None if output is None else output.pipe, progress)
    except Exception as error:
        if (inner := _of_group(error)) is not error:
            raise inner from inner.__cause__
        raise
    finally:
        if progress is not None:
            progress.clear()


def _check_sockets() -> None:
    """Raise a clear error if an event loop cannot be woken: it needs a pair of sockets, and would only log their failure."""
    try:
        one, other = socket.socketpair()
        with one, other, selectors.DefaultSelector() as selector:
            selector.register(one, selectors.EVENT_READ)
            other.send(b"?")
            one.recv(1)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise
        why = f"{error.strerror}; a seccomp filter (of a container or a service) or a security module forbids it"
        raise OSError(error.errno, why, "sockets of the event loop") from error


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Let the garbage collector look mostly at young objects; only the command does so, because a library must not.

    Flows are freed without it. A complete collection takes 0.1 s with 50,000 flows, and stops the loop; by
    default there would be five in the first poll.
    """
    before = gc.get_threshold()
    if IS_COMMAND:
        gc.freeze()  # the present objects stay to the end; in another process they would be the caller's
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _of_group(error: Exception) -> Exception:
    """The error inside a task group's exception group, because a command prints one error."""
    while (inner := getattr(error, "exceptions", ())) and isinstance(inner[0], Exception):
        error = inner[0]
    return error


async def _supervise(work: Work, duration: float | None, pipe: int | None, progress: Progress | None) -> int:
    scope = Scope(duration)
    status = 0
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        if threading.current_thread() is threading.main_thread():
            await group.start(_watch_signals, scope, group)
        if pipe is not None:
            group.start_soon(_watch_reader, pipe, scope)
        if progress is not None:
            group.start_soon(progress.keep_showing)
        try:
            status = await work(scope)
        except Exception as error:  # noqa: BLE001  # raised below, out of the task group
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return status


async def _watch_signals(
    scope: Scope,
    group: anyio.abc.TaskGroup,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    try:
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            async for _ in signals:
                if scope.was_cancelled or not scope.entered:
                    group.cancel_scope.cancel()
                scope.cancel()
    except NotImplementedError:  # Windows' loops have no signals; Ctrl-C is an exception there
        task_status.started()


async def _watch_reader(pipe: int, scope: Scope) -> None:
    """End when the last reader is gone. A quiet machine would never write, and so never notice it.

    The write end of a pipe becomes "readable" only with an error, after its last reader closed it.
    """
    try:
        await anyio.wait_readable(pipe)
    except (OSError, ValueError, NotImplementedError):  # a descriptor that the loop cannot watch
        return
    scope.cancel()


async def poll_to_the_end(monitor: Monitor, otherwise: str) -> None:
    """After a command was stopped: poll until everything is an event that had happened, or say what may be missing.

    Args:
        monitor: An open monitor.
        otherwise: What it means if this takes too long, or nothing answers.
    """
    with contextlib.suppress(StreamEndedError), anyio.move_on_after(LAST_POLL) as last:
        await monitor.poll_now(ends=True)
    if last.cancelled_caught:
        complain(f"the last poll took more than {LAST_POLL:g} s: {otherwise}")
