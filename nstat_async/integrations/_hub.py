"""One monitor for all clients of a server, with its tables and its log of events."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from nstat_async._checks import check_number
from nstat_async._coverage import Coverage
from nstat_async._errors import NstatError, UsageError
from nstat_async._escape import dump
from nstat_async._events import silent_hosts
from nstat_async._io.background import BackgroundTask
from nstat_async._monitor import Monitor
from nstat_async._rows import Row
from nstat_async._subscription import Subscription
from nstat_async.aggregate import GroupBy, ProcessTable, SortKey, TrafficTable
from nstat_async.aggregate._consumer import Arrivals
from nstat_async.filters import Filter, check_reach, from_items
from nstat_async.json import JsonFormatter, to_dict

from ._log import EVENTS_AT_ONCE, EventLog, Reader, message
from ._series import keepers
from ._views import View, Views

logger = logging.getLogger("nstat_async")

_KEPT = 8
"""The log keeps this many times the events that a client may be behind."""
_LINES = 200
_FLOWS = 200
_NAMED = 10
"""Most silent machines that are named."""


class Hub:
    """Opens the monitor with the server, feeds tables and log from it, counts the clients.

    Args:
        open_monitor: Makes the monitor, a context manager; called once for each start of the server.
        max_clients: How many event streams may be open at a time.
        max_pending: How many events may wait for one of them.
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
        if not callable(open_monitor):
            raise UsageError(f"open_monitor: {open_monitor!r} is not a function that makes a monitor, such as Monitor")
        check_number("max_clients", max_clients, whole=True, least=0)
        check_number("max_pending", max_pending, whole=True)
        self.monitor: Monitor | None = None
        self.state = "starting"
        self.failure: Exception | None
        """Why the monitor failed, if it did."""
        self.on_failure: Callable[[], object] = lambda: None
        """Called when the monitor failed, unless that was the end of a recorded run."""
        self.max_clients = max_clients
        self.max_pending = max_pending
        self._open_monitor = open_monitor
        self._table_options = table_options
        self._stack = AsyncExitStack()
        self._begin()

    def _begin(self) -> None:
        """Make empty tables: when a server is started again, totals and the monitor's flow ids start again, too."""
        self.failure = None
        self.views = Views(ProcessTable(**self._table_options), self._table_options, self.filter_of)
        self.keepers = keepers(("unit", "container", "pod"))
        self.run = secrets.token_hex(8)
        """Identifies this start of the server: the same id of a flow or row means another one in another start."""
        self.log = EventLog(_KEPT * self.max_pending)
        self._format = JsonFormatter()

    async def __aenter__(self) -> None:
        self._begin()
        async with AsyncExitStack() as stack:
            monitor: Monitor = await stack.enter_async_context(self._open_monitor())
            self.monitor = monitor
            subscription = monitor.subscribe()
            await stack.enter_async_context(subscription)
            self.state = "running"
            # A task group would have to be left in the task that entered it; a fixture of a test has two tasks.
            task = BackgroundTask(lambda: self._feed(subscription), self._over, "nstat_async web service")
            stack.push_async_callback(task.stop)
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_streams()
        self.state = "stopped"
        await self._stack.aclose()

    def end_streams(self) -> None:
        """End every event stream with a message that says so: the server is about to stop."""
        for reader in tuple(self.log.readers):
            reader.end()

    async def _feed(self, subscription: Subscription) -> None:
        # A recording has its own time; rates of a running kernel go by the monotonic clock.
        assert self.monitor is not None
        recorded = self.monitor.capabilities.backend == "replay"
        arrivals = Arrivals(self.monitor)
        try:
            while events := await subscription.receive_many():
                now = anyio.current_time()
                for at in range(0, len(events), EVENTS_AT_ONCE):
                    part = events[at : at + EVENTS_AT_ONCE]
                    self.views.feed(part, None if recorded else arrivals.of(part), now)
                    for keeper in self.keepers.values():
                        keeper.feed_many(part)
                    self.log.feed(part)
                    await anyio.lowlevel.checkpoint()
        except NstatError as error:
            logger.error("server: the monitor failed: %s", error)  # noqa: TRY400  # no traceback for what a kernel does
            self._fail(error, str(error))
        except Exception as error:
            logger.exception("server: the monitor failed")
            self._fail(error, f"internal error ({type(error).__name__}); the server's log has more")

    def _over(self, _error: BaseException | None) -> None:
        """Nothing more will come, also if somebody cancelled all tasks of the loop."""
        if self.state == "running":
            self.state = "ended"
        self.log.end()

    def _fail(self, error: Exception, why: str) -> None:
        """Keep the error: page, streams and health show it from now on."""
        self.state, self.failure = f"failed: {why}", error
        self.log.end(why)
        if not getattr(error, "recorded", False):  # what a recording has stays to be looked at
            self.on_failure()

    def reader(self, chosen: Filter | None) -> Reader:
        """A place in the log for one more client."""
        assert self.monitor is not None
        capabilities = self.monitor.capabilities
        hello = {"v": 1, "event": "hello", "backend": capabilities.backend, "kernel": capabilities.kernel}
        return Reader(self.log, message("hello", dump(hello)), chosen, self.max_pending)

    def filter_of(self, items: Iterable[tuple[str, str]]) -> Filter | None:
        """The filter of a request's conditions; `None` if there are none.

        Raises:
            UsageError: A condition is wrong, or is about something that this monitor does not ask for.
        """
        chosen = from_items(items)
        if chosen is not None and self.monitor is not None:
            backend, options = self.monitor.capabilities.backend, self.monitor.options
            check_reach(chosen, backend, options.providers)
            if chosen.needs_extras and backend == "sock_diag" and not options.extras:
                # It would never match, which looks like silence.
                raise UsageError(
                    "filter: cmdline: command lines are not asked for here; serve with --extras, in a program with Monitor(extras=True)"
                )
        return chosen

    def view(self, group: str, items: Iterable[tuple[str, str]]) -> View:
        """The table of a request; see `Views.find`."""
        return self.views.find(group, items, self.log.opened, anyio.current_time())

    def processes(self, view: View, count: int, by: SortKey) -> dict[str, Any]:
        """The answer of ``/processes``."""
        table = view.table
        return {
            **self._head(view),
            "processes": [to_dict(row, time=table.time) for row in table.top(count, by)],
            "losses": _losses(table),
        }

    def live(self, view: View, count: int, by: SortKey, *, since: int, expanded: int | None) -> str:
        """The answer of ``/live`` as JSON, which the page shows.

        Args:
            view: The table.
            count: The greatest number of rows.
            by: The key that they are sorted by.
            since: How many events the page has already.
            expanded: Serial of a row whose flows are shown.
        """
        table, coverage = view.table, self.coverage()
        rows = table.top(count, by)
        answer = {
            **self._head(view),
            "since": view.since,
            "run": self.run,
            "seen": self.log.count,
            "groups": GroupBy.names(),
            "rows": [{**to_dict(row, time=table.time), "serial": row.serial} for row in rows],
            "losses": _losses(table),
            "shares": None if coverage is None else [coverage.rx_share, coverage.tx_share],
        }
        lists = {
            "events": self.log.latest(since, _LINES, view.chosen),
            "flows": self._flows(view, [row for row in rows if row.serial == expanded]),
        }
        lines = "".join(f',"{name}":[{",".join(each)}]' for name, each in lists.items())
        return f"{dump(answer)[:-1]}{lines}}}"

    def coverage(self) -> Coverage | None:
        """How much of the interfaces' traffic the flows explain; `None` while that is not known."""
        return None if self.monitor is None else self.monitor.statistics().coverage

    def _head(self, view: View) -> dict[str, Any]:
        return {
            "v": 1,
            "time": view.table.time,
            "state": self.state,
            "backend": None if self.monitor is None else self.monitor.capabilities.backend,
            "total": to_dict(view.table.total(), time=view.table.time),
            **_missing(self.views.main.table),  # the others did not see what was said before
        }

    def _flows(self, view: View, rows: list[Row]) -> list[str]:
        """The open flows of rows with the most bytes, as lines of JSON."""
        found = [
            self.log.open_flows[flow.id]
            for row in rows
            for flow in view.table.flows(row.key, row.source)
            if flow.id in self.log.open_flows
        ]
        found.sort(
            key=lambda event: sum(filter(None, (event.counts.rx_bytes, event.counts.tx_bytes))) if event.counts else 0
        )
        time = view.table.time or 0.0
        return [self._format.flow_line(event.flow, event.counts, time) for event in found[: -_FLOWS - 1 : -1]]


def _missing(table: TrafficTable) -> dict[str, Any]:
    """How many machines of a fleet are known, and which are silent; which kinds of flows were refused, and why."""
    hosts = table.hosts
    refused = {provider.value: why for provider, why in table.refused.items()}
    silent = silent_hosts(hosts)
    machines = {"known": len(hosts), "silent": len(silent), "names": silent[:_NAMED]}
    return ({"machines": machines} if hosts else {}) | ({"refused": refused} if refused else {})


def _losses(table: TrafficTable) -> list[dict[str, Any]]:
    return [{**attrs.asdict(loss), "cause": loss.cause.value} for loss in table.losses]
