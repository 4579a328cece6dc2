"""One monitor for all clients of a server: its tables, its clients, its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any

import anyio
import attrs

from nstat_async._errors import NstatError, UsageError
from nstat_async._monitor import Monitor
from nstat_async._subscription import Subscription
from nstat_async.aggregate import ProcessTable, SortKey
from nstat_async.json import to_dict

from ._series import SeriesKeeper

__all__ = ["Hub"]

logger = logging.getLogger("nstat_async")


class Hub:
    """Opens the monitor with the server, feeds the tables from it, counts the clients.

    Args:
        open_monitor: Makes the monitor, a context manager; called once for each start of the server.
        max_clients: Event streams at a time.
        max_pending: Events that may wait for one of them.
        table_options: Those of `ProcessTable`.
    """

    def __init__(
        self,
        open_monitor: Callable[[], AbstractAsyncContextManager[Any]],
        *,
        max_clients: int,
        max_pending: int,
        table_options: dict[str, Any],
    ) -> None:
        if max_clients < 0:
            raise UsageError(f"max_clients: {max_clients!r} is negative")
        if max_pending < 1:
            raise UsageError(f"max_pending: {max_pending!r} is not a positive number")
        self.table = ProcessTable(**table_options)
        self.keeper = SeriesKeeper()
        self.monitor: Monitor | None = None
        self.state = "starting"
        self.clients = 0
        self.streams: set[Callable[[], object]] = set()
        """Functions that end the event streams."""
        self.max_clients = max_clients
        self.max_pending = max_pending
        self._open_monitor = open_monitor
        self._table_options = table_options
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> None:
        # A server may be started again: totals begin anew, as the monitor's flow ids do.
        self.table = ProcessTable(**self._table_options)
        self.keeper = SeriesKeeper()
        async with AsyncExitStack() as stack:
            monitor: Monitor = await stack.enter_async_context(self._open_monitor())
            self.monitor = monitor
            subscription = monitor.subscribe()
            await stack.enter_async_context(subscription)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._feed, subscription)
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state = "stopped"
        await self._stack.aclose()

    def end_streams(self) -> None:
        """The server is about to stop: every event stream says so, and ends."""
        for end in tuple(self.streams):
            end()

    async def _feed(self, subscription: Subscription) -> None:
        self.state = "running"
        try:
            while events := await subscription.receive_many():
                # A recording has its own time; rates of a running kernel go by a clock that nobody sets.
                recorded = self.monitor is not None and self.monitor.capabilities.backend == "replay"
                self.table.feed_many(events, now=None if recorded else anyio.current_time())
                self.keeper.feed_many(events)
            self.state = "ended"
        except NstatError as error:
            # The page and the metrics stay up and say so; a service manager sees the log.
            self.state = f"failed: {error}"
            logger.error("server: the monitor failed: %s", error)  # noqa: TRY400  # no traceback for what a kernel does
        except Exception as error:
            self.state = f"failed: {type(error).__name__}"
            logger.exception("server: the monitor failed")

    def processes(self, count: int, by: SortKey) -> dict[str, Any]:
        """The answer of ``/processes``."""
        table = self.table
        time = table.time
        return {
            "v": 1,
            "time": time,
            "state": self.state,
            "backend": None if self.monitor is None else self.monitor.capabilities.backend,
            "total": to_dict(table.total(), time=time),
            "processes": [to_dict(row, time=time) for row in table.top(count, by)],
            "losses": [{**attrs.asdict(loss), "cause": loss.cause.value} for loss in table.losses],
        }
