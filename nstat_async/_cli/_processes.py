"""``processes``: totals per process, once at the end or at intervals."""

from __future__ import annotations

import argparse
import contextlib
import math
from time import time

import anyio

from .. import Monitor
from .._errors import StreamEndedError
from .._escape import escape
from .._fields import TABLE, Field
from .._model import Process
from ..aggregate import ProcessTable, Row, TableStream
from ..json import dumps
from ._output import Output
from ._run import run_until_stopped
from ._source import backend_of, is_recorded, monitor_options
from ._table import render
from ._text import bytes_text, rate_text

__all__ = ["row_name", "run", "sort_rows"]

_LAST_POLL = 2.0
"""Seconds that the last poll may take."""


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    output = Output()
    backend = backend_of(arguments)
    recorded = is_recorded(arguments)
    options = monitor_options(arguments)
    table = ProcessTable(include_history=arguments.include_history or recorded, effective=arguments.effective)
    every: float | None = arguments.every

    async def work(scope: anyio.CancelScope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            # A recording has its own time; on a running machine rates go by a clock that nobody sets.
            looks = TableStream(monitor, table, every=every or math.inf, clock="events" if recorded else "wall")
            with scope:
                async for _ in looks:
                    if every is not None:
                        await output.send(_table_lines(table, arguments))
            if scope.cancelled_caught:  # stopped while flows live: ask how far they are
                with contextlib.suppress(StreamEndedError), anyio.move_on_after(_LAST_POLL):
                    await monitor.poll_now()
                looks.catch_up()
        if every is None or scope.cancelled_caught:
            await output.send(_table_lines(table, arguments))
        return 0

    return run_until_stopped(work, duration=arguments.duration, output=output)


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
    """What to call a row, escaped; in a fleet with its machine."""
    return escape(row.label if row.source is None else f"{row.label} @{row.source}")


def _table_lines(table: ProcessTable, arguments: argparse.Namespace) -> list[str]:
    rows = sort_rows(table.rows(), arguments.sort)
    moment = table.time if table.time is not None else time()
    if arguments.json:
        return [dumps(row, time=moment) for row in rows]
    columns = [field for _, field in _columns()]
    right = [at for at, field in enumerate(columns) if field.kind.sql != "TEXT"]
    lines = render([field.heading for field in columns], [_cells(row) for row in rows], right=right)
    lines += [f"! {loss.cause.value}: {loss.events} reports, {loss.count} flows or messages" for loss in table.losses]
    return [*lines, ""] if arguments.every is not None else lines


def _columns() -> list[tuple[type, Field]]:
    """The fields that have a heading: those of the row, then those of its process."""
    return [(cls, field) for cls in (Row, TABLE.of(Process).cls) for field in TABLE.of(cls).fields if field.heading]


def _cells(row: Row) -> list[str]:
    return [_cell(row if cls is Row else row.process, field) for cls, field in _columns()]


def _cell(owner: Row | Process | None, field: Field) -> str:
    if isinstance(owner, Row) and field.name == "name":
        return row_name(owner)
    value = None if owner is None else field.value_of(owner)
    if field.unit == "bytes":
        return bytes_text(value)
    if value is None:
        return ""
    return rate_text(value) if field.unit == "bytes per second" else escape(str(value))
