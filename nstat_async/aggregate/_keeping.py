"""Keeps a history small: old buckets are deleted, older ones joined to hours, and the file gives back what it does not need.

What counts as *now* is not the newest bucket, but one that many others agree about: a clock that is
ahead, for a moment or for hours, deletes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from nstat_async._fields import SqlTable
from nstat_async._rows import Row, RowKind

from ._rows import sum_rows
from ._schema import SCHEMA, TRAFFIC, addition, process_id

HOUR = 3600
_DAY = 86_400.0
_FEWEST, _MOST = 3, 288
_PAGES_AT_ONCE = 2_000
_KEPT_WHEN_JOINED = ("kind", "source", "name", "uid", "user", "unit", "container", "pod")
"""Of what identifies a process; the rest, its number above all, is given up."""


def largest(rows: Sequence[Row], most: int) -> list[Row]:
    """The rows with most traffic; those of all others as one, so that the sum stays what it was."""
    groups = sorted((row for row in rows if row.kind is RowKind.GROUP), key=lambda row: row.bytes, reverse=True)
    if len(groups) <= most:
        return list(rows)
    rest = [*groups[most:], *(row for row in rows if row.kind is RowKind.OTHER)]
    return [
        *groups[:most],
        *(row for row in rows if row.kind not in {RowKind.GROUP, RowKind.OTHER}),
        sum_rows(rest, RowKind.OTHER),
    ]


def now_of(connection: sqlite3.Connection, bucket: float, span: float) -> int | None:
    """The start of a bucket after which there are buckets of a day, or of an eighth of `span` seconds; `None`: too few."""
    wanted = min(max(_FEWEST, int(min(_DAY, span / 8) / bucket)), _MOST)
    found: int | None = None
    for _ in range(wanted):
        row = connection.execute(
            "SELECT max(start) FROM traffic WHERE start < ?", (2**62 if found is None else found,)
        ).fetchone()
        if row[0] is None:
            return None
        found = row[0]
    return found


def remove_old(connection: sqlite3.Connection, before: float) -> None:
    """Delete the buckets that began before this time."""
    gone = 0
    for table in _tables(connection):
        gone += connection.execute(f"DELETE FROM {table} WHERE start < ?", (before,)).rowcount  # noqa: S608  # our own names
    if gone:
        _forget_processes(connection)


def _tables(connection: sqlite3.Connection) -> list[str]:
    """The tables that have buckets."""
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        name
        for name in names
        if any(column[1] == "start" for column in connection.execute(f"PRAGMA table_info({name})"))
    ]


def join_old(connection: sqlite3.Connection, before: float) -> None:
    """Make hours of the buckets that began before this time, and one of all processes that differ in their number only."""
    limit = before // HOUR * HOUR
    names = list(SCHEMA.columns(SqlTable.TRAFFIC, SCHEMA.version))
    old = "FROM traffic WHERE start < ? AND length < ?"
    if connection.execute(f"SELECT 1 {old} LIMIT 1", (limit, HOUR)).fetchone() is None:  # as above
        return
    known = [name for name in SCHEMA.columns(SqlTable.PROCESS, SCHEMA.version) if name in _KEPT_WHEN_JOINED]
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS joined (old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
    connection.execute("DELETE FROM temp.joined")
    found = connection.execute(
        f"SELECT id, {', '.join(known)} FROM process WHERE id IN (SELECT process {old})",  # noqa: S608  # as above
        (limit, HOUR),
    ).fetchall()
    for number, *values in found:
        target = process_id(connection, dict(zip(known, values, strict=True)))
        connection.execute("INSERT INTO temp.joined VALUES (?, ?)", (number, target))
    sums = ", ".join(f"sum({name})" for name in names)
    hours = connection.execute(
        f"SELECT start / {HOUR} * {HOUR}, new, {HOUR}, {sums} FROM traffic JOIN temp.joined ON process = old"  # noqa: S608  # as above
        " WHERE start < ? AND length < ? GROUP BY 1, 2",
        (limit, HOUR),
    ).fetchall()
    connection.execute(f"DELETE {old}", (limit, HOUR))  # as above
    connection.executemany(addition(TRAFFIC, names), hours)
    _forget_processes(connection)


def _forget_processes(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM process WHERE id NOT IN (SELECT process FROM traffic)")


def give_back(connection: sqlite3.Connection) -> None:
    """Let the file shrink by some of the pages that it does not need, outside of a transaction."""
    # A script: `execute` takes one step of it, which is one page.
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
