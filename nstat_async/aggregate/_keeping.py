"""Keeps a history small: old buckets are joined into hours, older ones deleted, and unused pages returned to the disk.

*Now* is not the newest bucket, but one that has many buckets after it: a clock that is wrong
for a moment, or for hours, deletes nothing.
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
"""Columns of a process that joined buckets keep; the others, above all the pid, are dropped."""


def largest(rows: Sequence[Row], most: int) -> list[Row]:
    """The rows with most traffic, and one row with the sum of all others."""
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
    """The tables with buckets."""
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        name
        for name in names
        if any(column[1] == "start" for column in connection.execute(f"PRAGMA table_info({name})"))
    ]


def join_old(connection: sqlite3.Connection, before: float) -> None:
    """Join the buckets that began before this time into hours, and processes that differ only in dropped columns into one."""
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
    """Shrink the file by some of its unused pages; call it outside of a transaction."""
    # As a script, because `execute` would take a single step, which is one page.
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
