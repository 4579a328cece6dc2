"""Runs an asynchronous command until it ends or is asked to end.

Ctrl-C, SIGTERM and SIGHUP, the end of ``--duration`` and a reader that closes the pipe behind
standard output all cancel one scope; the command leaves its loop there and may still
print what it owes. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

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

from .._starting import IS_COMMAND
from . import ending_signals
from ._output import Output
from ._progress import Progress

THRESHOLDS = (5_000, 100, 100)
"""New objects between two looks at the young, such looks between two at the middle-aged, those between two at everything."""


class Scope:
    """What is cancelled when a command shall end.

    Args:
        duration: Seconds after which it is, from when it is entered: what a command needs to begin does not count.
    """

    def __init__(self, duration: float | None) -> None:
        self._duration = duration
        self._scope = anyio.CancelScope()
        self.cancel = self._scope.cancel
        self.entered = False
        """Before it is, the command still begins."""

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
        """True when that was what ended the block, or will."""
        return self._scope.cancel_called

    @property
    def timed_out(self) -> bool:
        """True when it was the end of the duration."""
        return self.was_cancelled and anyio.current_time() >= self._scope.deadline


Work = Callable[[Scope], Awaitable[int]]
"""A command: enters the scope around its loop, returns the exit status."""


def run_until_stopped(
    work: Work, *, duration: float | None = None, output: Output | None = None, progress: Progress | None = None
) -> int:
    """Run `work` on asyncio.

    Args:
        work: The command.
        duration: Seconds after which the scope is cancelled, from when it is entered.
        output: If it is a pipe, its reader is watched.
        progress: What to show on standard error meanwhile.

    Returns:
        What `work` returned; 0 if it was ended.
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
    """Fail in words where an event loop cannot work: it is woken through a pair of sockets, and only logs that it cannot be."""
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
    """Let the garbage collector look at young objects mostly, as a library must not decide for others.

    Flows are freed without it. A look at everything there is takes 0.1 s with 50,000 of them, in which no loop goes on;
    by default the first poll has five.
    """
    before = gc.get_threshold()
    if IS_COMMAND:
        gc.freeze()  # what there is stays to the end; elsewhere it is the caller's
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _of_group(error: Exception) -> Exception:
    """What went wrong in a task group, without the group: a command says one thing."""
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
    """End when nobody reads: a quiet machine would otherwise never write, and so never notice.

    The write end of a pipe becomes "readable" only in error, which is when its last reader closed it.
    """
    try:
        await anyio.wait_readable(pipe)
    except (OSError, ValueError, NotImplementedError):  # a descriptor that the loop cannot watch
        return
    scope.cancel()
