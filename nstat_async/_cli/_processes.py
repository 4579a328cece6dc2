"""``processes``: totals per process, once at the end or at intervals."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from time import time

import anyio

from .. import Monitor, Subscription
from .._errors import StreamEndedError
from .._escape import dump, escape
from .._events import AnyEvent
from ..aggregate import ProcessTable, Row, RowKind, process_row_to_dict
from ._output import Output
from ._run import run_until_stopped
from ._source import backend_of, monitor_options
from ._table import render
from ._text import bytes_text, rate_text

__all__ = ["row_name", "run", "sort_rows"]

_LAST_POLL = 2.0
"""Seconds that the last poll may take."""
_HEADINGS = ("PID", "PROCESS", "FLOWS", "OPEN", "RX", "TX", "RX/S", "TX/S")
_RIGHT = frozenset({0, 2, 3, 4, 5, 6, 7})


def run(arguments: argparse.Namespace) -> int:
    """Print the tables.

    Raises:
        NstatError: The backend cannot be opened, or failed.
    """
    output = Output()
    backend = backend_of(arguments)
    recorded = arguments.backend.startswith("replay:")
    options = monitor_options(arguments, recorded=recorded)
    table = ProcessTable(include_history=arguments.include_history or recorded, effective=arguments.effective)

    def show() -> None:
        output.lines(_table_lines(table, arguments))

    async def work(scope: anyio.CancelScope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            events = monitor.subscribe()
            with scope:
                await _feed(events, table, arguments.every, show)
            if scope.cancelled_caught:  # stopped while flows live: ask how far they are
                with contextlib.suppress(StreamEndedError):
                    with anyio.move_on_after(_LAST_POLL):
                        await monitor.poll_now()
                    table.feed_many(events.receive_nowait())
        show()
        return 0

    return run_until_stopped(work, duration=arguments.duration, output=output)


async def _feed(events: Subscription, table: ProcessTable, every: float | None, show: Callable[[], None]) -> None:
    if every is None:
        while batch := await events.receive_many():
            table.feed_many(batch)
        return
    due = anyio.current_time() + every
    while True:
        more: list[AnyEvent] | None = None
        with anyio.CancelScope(deadline=due):
            more = await events.receive_many()
        if more == []:
            return
        table.feed_many(more or ())
        if anyio.current_time() >= due:
            show()
            # Intervals that passed meanwhile are skipped, not made up for.
            due += every * max(1, -(-(anyio.current_time() - due) // every))


def sort_rows(rows: list[Row], key: str) -> list[Row]:
    """The rows in the order of a ``--sort`` key; numbers fall, names rise."""
    keys = {
        "traffic": lambda row: -row.bytes,
        "rx": lambda row: -row.rx_bytes,
        "tx": lambda row: -row.tx_bytes,
        "rate": lambda row: (-(row.rate or 0.0), -row.bytes),
        "flows": lambda row: -row.flows,
        "pid": lambda row: -1 if row.pid is None else row.pid,
        "name": lambda row: row_name(row).lower(),
    }
    return sorted(rows, key=keys[key])


def row_name(row: Row) -> str:
    """What to call a row, escaped."""
    if row.kind is RowKind.GROUP:
        return escape(row.name) if row.name else "?"
    return {
        RowKind.UNKNOWN: "(owner unknown)",
        RowKind.OTHER: "(others, finished)",
        RowKind.LOST: "(closed flows, owner lost)",
        RowKind.TOTAL: "(all)",
    }[row.kind]


def _table_lines(table: ProcessTable, arguments: argparse.Namespace) -> list[str]:
    rows = sort_rows(table.rows(), arguments.sort)
    moment = table.time if table.time is not None else time()
    if arguments.json:
        return [dump(process_row_to_dict(row, round(moment, 6))) for row in rows]
    lines = render(_HEADINGS, [_cells(row) for row in rows], right=_RIGHT)
    lines += [f"! {loss.cause.value}: {loss.events} reports, {loss.count} flows or messages" for loss in table.losses]
    return [*lines, ""] if arguments.every is not None else lines


def _cells(row: Row) -> tuple[str, ...]:
    known = row.is_counted
    return (
        "" if row.pid is None else str(row.pid),
        row_name(row),
        str(row.flows),
        str(row.open_flows),
        bytes_text(row.rx_bytes if known else None),
        bytes_text(row.tx_bytes if known else None),
        rate_text(row.rx_rate) if known and row.rx_rate is not None else "",
        rate_text(row.tx_rate) if known and row.tx_rate is not None else "",
    )
