"""``processes``: totals per process, or by another key, once at the end or at intervals."""

from __future__ import annotations

import argparse
import contextlib
import sys
from time import time
from typing import Literal

import anyio

from .. import Monitor
from .._checks import LONGEST_SECONDS
from .._errors import NstatError, StreamEndedError, UsageError
from .._io.threads import in_thread
from ..aggregate import GroupBy, TableStream, TrafficTable, unattributed_row
from ._cells import bytes_text
from ._formats import row_form
from ._limits import Limits
from ._names import NameResolver
from ._output import Output, can_draw, complain
from ._progress import Progress
from ._run import Scope, run_until_stopped
from ._source import backend_of, is_recorded, monitor_options
from ._views import View

_FIRST_EVENT = 1.0
"""Most seconds to wait for the first event before the first table: a fleet may be silent."""
_LAST_POLL = 2.0
"""Most seconds for the last poll."""
_NAMES = 3.0
"""Most seconds for the names in the last table."""


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    output = Output()
    backend = backend_of(arguments)
    recorded = is_recorded(arguments)
    options = monitor_options(arguments)
    view = view_of(arguments)
    if arguments.names and not view.shows_names:
        raise UsageError(f"names: rows by {view.group_by.name} have no remote address; --by remote-address has")
    lines_of = row_form(arguments, view, output)
    table = TrafficTable(view.group_by, include_history=arguments.include_history or recorded)
    every: float | None = arguments.every
    limits = Limits(recorded=recorded)
    counting = False

    def progress_text() -> str:
        if not counting:
            return ""
        total = table.total()
        amounts = f"rx {bytes_text(total.rx_bytes)}  tx {bytes_text(total.tx_bytes)}"
        return f"{total.flows} flows  {amounts}  (Ctrl-C prints the table)"

    # Without it a terminal shows nothing until somebody ends it, as if it did nothing.
    progress = Progress(progress_text, every=1.0) if every is None and can_draw(sys.stderr) else None

    def lines(monitor: Monitor) -> list[str]:
        limits.say(monitor)
        rows = view.sorted(table.rows(), arguments.sort)
        rest = unattributed_row(monitor.statistics().coverage)
        if rest is not None and rest.bytes:
            rows.append(rest)
        found = lines_of(rows, table.time if table.time is not None else time()) + _losses(table, arguments)
        return [*found, ""] if every is not None and arguments.format == "text" else found

    async def work(scope: Scope) -> int:
        nonlocal counting
        failure: NstatError | None = None
        # A recording has its own time; rates of a running machine use a clock that cannot be set.
        look: Literal["events", "wall"] = "events" if recorded else "wall"
        async with (
            Monitor(backend=backend, **options) as monitor,
            TableStream(monitor, table, every=every or LONGEST_SECONDS, clock=look) as looks,
        ):
            with scope:
                if not recorded:
                    await _begun(monitor)
                    limits.say(monitor)
                counting = True
                try:
                    async for _ in looks:
                        if every is not None:
                            await output.send(lines(monitor))
                except NstatError as error:
                    failure = error
            counting = False
            if progress is not None:
                progress.clear()
            if scope.was_cancelled:  # stopped while flows are open: ask for their latest counters
                with contextlib.suppress(StreamEndedError), anyio.move_on_after(_LAST_POLL) as last:
                    await monitor.poll_now()
                if last.cancelled_caught:
                    complain(f"the kernel did not answer a last poll within {_LAST_POLL:g} s: totals may be behind")
                looks.catch_up()
        if every is None or scope.was_cancelled or failure is not None:  # what was counted is not lost by a failure
            if view.names is not None:
                lines(monitor)  # asks for the names
                await in_thread(view.names.wait, _NAMES)
            await output.send(lines(monitor))
        if failure is not None:
            raise failure
        return 0

    return run_until_stopped(work, duration=arguments.duration, output=output, progress=progress)


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
        if group_by.process is None:
            raise UsageError(f"effective: rows by {group_by.name} are not processes")
        group_by = GroupBy.processes(effective=True)
    return View(group_by, NameResolver() if arguments.names else None, users=not is_recorded(arguments))


def _losses(table: TrafficTable, arguments: argparse.Namespace) -> list[str]:
    if arguments.format != "text":
        return []
    return [f"! lost: {loss.count or 'some'} ({loss.cause.value})" for loss in table.losses]
