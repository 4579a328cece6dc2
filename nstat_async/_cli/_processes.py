"""``processes``: totals per process, or by another key, once at the end or at intervals."""

from __future__ import annotations

import argparse
import sys
from time import time
from typing import Literal

import anyio

from .. import Monitor
from .._checks import LONGEST_SECONDS
from .._errors import NstatError, UsageError
from .._io.threads import in_thread
from ..aggregate import GroupBy, TableStream, TrafficTable, unattributed_row
from ._cells import bytes_text
from ._formats import row_form
from ._limits import Limits, refusal_texts, silence_text
from ._names import NameResolver
from ._output import Output, can_draw, complain
from ._progress import Progress
from ._run import Scope, poll_to_the_end, run_until_stopped
from ._source import backend_of, is_recorded, monitor_options
from ._views import View

_FIRST_EVENT = 1.0
"""Most seconds to wait for the first event before the first table: a fleet may be silent."""
_NAMES = 3.0
"""Most seconds for the names in the last table."""


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    tables = _Tables(arguments)
    return run_until_stopped(tables.show, duration=arguments.duration, output=tables.output, progress=tables.progress)


class _Tables:
    """The tables of one run of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output = Output()
        self._arguments = arguments
        self._backend = backend_of(arguments)
        self._recorded = is_recorded(arguments)
        self._options = monitor_options(arguments, self._backend)
        self._view = view = view_of(arguments)
        if arguments.names and not view.shows_names:
            raise UsageError(f"names: rows by {view.group_by.name} have no remote address; --by remote-address has")
        self._lines_of = row_form(arguments, view, self.output)
        self._table = TrafficTable(view.group_by, include_history=arguments.include_history or self._recorded)
        self._every: float | None = arguments.every
        self._limits = Limits(recorded=self._recorded)
        self._counting = False
        # Without it a terminal shows nothing until somebody ends it, as if it did nothing.
        shown = self._every is None and can_draw(sys.stderr)
        self.progress = Progress(self._progress_text, every=1.0) if shown else None

    def _progress_text(self) -> str:
        if not self._counting:
            return ""
        total = self._table.total()
        amounts = f"rx {bytes_text(total.rx_bytes)}  tx {bytes_text(total.tx_bytes)}"
        return f"{total.flows} flows  {amounts}  (Ctrl-C prints the table)"

    def _lines(self, monitor: Monitor) -> list[str]:
        """The lines of the table as it is now."""
        self._limits.say(monitor)
        table, arguments = self._table, self._arguments
        rows = self._view.sorted(table.rows(), arguments.sort)
        rest = unattributed_row(monitor.statistics().coverage)
        if rest is not None and rest.bytes:
            rows.append(rest)
        found = self._lines_of(rows, table.time if table.time is not None else time())
        if arguments.format != "text":
            return found
        return [*found, *_missing(table), *([""] if self._every is not None else [])]

    async def show(self, scope: Scope) -> int:
        """Count until the end, and print the tables: at intervals, or the last one."""
        monitor = Monitor(backend=self._backend, **self._options)
        failure = await self._count(monitor, scope)
        names = self._view.names
        # What was counted is not lost by a failure.
        if self._every is None or scope.was_cancelled or failure is not None:
            if names is not None:
                self._lines(monitor)  # asks for the names
                await in_thread(names.wait, _NAMES)
            await self.output.send(self._lines(monitor))
        if self._arguments.format != "text":  # its lines are rows, and nothing else
            for line in _missing(self._table):
                complain(line)
        if failure is not None:
            raise failure
        return 0

    async def _count(self, monitor: Monitor, scope: Scope) -> NstatError | None:
        """Count until the end, and print the tables at intervals; returns the error with which the monitor failed."""
        failure: NstatError | None = None
        # A recording has its own time; rates of a running machine use a clock that cannot be set.
        clock: Literal["events", "wall"] = "events" if self._recorded else "wall"
        looks = TableStream(monitor, self._table, every=self._every or LONGEST_SECONDS, clock=clock)
        async with monitor, looks:
            with scope:
                if not self._recorded:
                    await _begun(monitor)
                    self._limits.say(monitor)
                self._counting = True
                try:
                    async for _ in looks:
                        if self._every is not None:
                            await self.output.send(self._lines(monitor))
                except NstatError as error:
                    failure = error
            self._counting = False
            if self.progress is not None:
                self.progress.clear()
            if scope.was_cancelled:
                await poll_to_the_end(monitor, "totals may be behind")
                looks.catch_up()
        return failure


async def _begun(monitor: Monitor) -> None:
    """Wait a moment until something came, or raise why nothing does."""
    async with monitor.subscribe() as first:
        with anyio.move_on_after(_FIRST_EVENT):
            await first.receive_many()


def view_of(arguments: argparse.Namespace) -> View:
    """How rows are grouped and named, by ``--by``, ``--effective`` and ``--names``.

    Raises:
        UsageError: Options contradict each other.
    """
    group_by: GroupBy = arguments.by
    if arguments.effective:
        if group_by.process_of is None:
            raise UsageError(f"effective: rows by {group_by.name} are not processes")
        group_by = GroupBy.processes(effective=True)
    return View(group_by, NameResolver() if arguments.names else None, users=not is_recorded(arguments))


def _missing(table: TrafficTable) -> list[str]:
    """What the table lacks: losses, machines that are silent, and kinds of flows that were refused."""
    lost = [f"lost: {loss.count or 'some'} ({loss.cause.value})" for loss in table.losses]
    return [f"! {text}" for text in (*lost, silence_text(table.hosts), *refusal_texts(table.refused)) if text]
