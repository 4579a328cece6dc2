"""A task that belongs to the event loop, not to the task that starts it.

A task group lives in the task that entered it: it has to be left there, in order, and it
cancels that task when something fails. A `BackgroundTask` has no such host. It may be
started in one task and stopped in another, in any order, and no cancel scope is open
while the caller's code runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    import asyncio

STOP_SECONDS = 2.0
"""How long `BackgroundTask.stop` waits at most; cancelled work normally ends within a few turns of the loop."""

_running: set[BackgroundTask] = set()
"""The tasks that run: asyncio has only weak references to them, so something else has to hold them."""


class BackgroundTask:
    """Runs some work in a task of the running event loop: asyncio's `create_task`, trio's `spawn_system_task`.

    Args:
        work: The work to run, once.
        ended: Called exactly once when the work is over for any reason: with its error, with
            the cancellation if the loop ended it, else with `None`.
        name: Name of the task, for debuggers.
    """

    def __init__(
        self, work: Callable[[], Awaitable[None]], ended: Callable[[BaseException | None], None], name: str
    ) -> None:
        self._work = work
        self._ended = ended
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._soon: Callable[[Callable[[], None]], Any]
        trio = _trio()
        if trio is not None:
            self._soon = trio.lowlevel.current_trio_token().run_sync_soon
            trio.lowlevel.spawn_system_task(self._run, name=name)
        else:
            import asyncio  # noqa: PLC0415  # not needed on trio

            self._loop = asyncio.get_running_loop()
            self._soon = self._loop.call_soon_threadsafe
            self._task = self._loop.create_task(self._run(), name=name)
            self._task.add_done_callback(self._task_done)
        for forgotten in [task for task in _running if task.loop_closed]:
            _running.discard(forgotten)
        _running.add(self)

    @property
    def done(self) -> bool:
        """True once the work is over."""
        return self._done.is_set()

    @property
    def loop_closed(self) -> bool:
        """True once the work can never go on."""
        return self._loop is not None and self._loop.is_closed()

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._work()
        except Exception as error:  # noqa: BLE001  # it is handed to `ended`
            self._end(error)
        except BaseException as error:
            self._end(error)  # the loop ends, or somebody cancelled every task of it
            raise
        else:
            self._end(None)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not self.done:  # cancelled before its first step
            self._end(_cancelled(task))
        if not task.cancelled():
            task.exception()  # retrieved: it was handed to `ended`

    def _end(self, error: BaseException | None) -> None:
        _running.discard(self)
        self._done.set()
        self._ended(error)

    async def stop(self) -> None:
        """Cancel the work and wait until it is over. Any task of the loop may call this, more than once, too."""
        if not self.done:
            self._scope.cancel()
            # Shielded: a task that is cancelled while it leaves a block still closes everything.
            with anyio.move_on_after(STOP_SECONDS, shield=True):
                await self._done.wait()

    def stop_soon(self, release: Callable[[], None]) -> None:
        """Cancel the work without waiting, from any thread, also after the loop is closed (for ``__del__``).

        Args:
            release: Called as well: in the loop while it runs, else at once.
        """

        def stop() -> None:
            release()
            self._scope.cancel()

        if self.done or (self._loop is not None and not self._loop.is_running()):
            release()
            return
        try:
            self._soon(stop)
        except RuntimeError:  # the loop ended
            release()


def _cancelled(task: asyncio.Task[None]) -> BaseException | None:
    """The cancellation of a task that never ran."""
    try:
        task.result()
    except BaseException as error:  # noqa: BLE001  # it is handed on
        return error
    return None


async def side_by_side(*works: Callable[[], Awaitable[None]]) -> None:
    """Run these until the first of them ends, and cancel the others.

    Raises:
        Exception: The error of the first of them, not in an exception group.
    """
    failures: list[Exception] = []

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # raised below
            failures.append(error)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(run, work)
    if failures:
        raise failures[0]


def set_event(event: anyio.Event) -> None:
    """Set an event, and ignore that its loop may be closed, since no task waits for it then."""
    with contextlib.suppress(RuntimeError):
        event.set()


def checkpoint_here() -> Callable[[], Awaitable[None]]:
    """The running loop's function that lets other tasks run; `anyio.lowlevel.checkpoint` looks for the loop at each call."""
    trio = _trio()
    if trio is not None:
        checkpoint: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        return checkpoint
    import asyncio  # noqa: PLC0415  # not needed on trio

    return lambda: asyncio.sleep(0)


def _trio() -> Any:
    """The module `trio`, if one of its tasks is running now."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio
