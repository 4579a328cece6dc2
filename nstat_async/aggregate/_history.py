"""Reads a history: who used how much, and when."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Union

import attrs

from nstat_async._checks import check_number, check_path
from nstat_async._errors import UsageError
from nstat_async._escape import unicode
from nstat_async._fields import SqlTable
from nstat_async._model import Outcome, Process

from ._schema import OUTCOMES, REMOTES, SCHEMA, HistoryError, View, connect

Moment = Union[float, datetime, None]
_EVER = 1e18
"""Seconds that no bucket begins beyond."""
_ADDED_UP = ("flows", "uncounted_flows", "rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
_PROCESSES = "traffic JOIN process ON process.id = traffic.process"
_MOST_FIRST = "ORDER BY sum(rx_bytes) + sum(tx_bytes) DESC"
_SUMS = [*(f"sum({name})" for name in _ADDED_UP), "min(start)", "max(start + length)"]


@attrs.frozen(kw_only=True)
class Usage:
    """Traffic of one process, name or span of time."""

    kind: str | None = None
    """``"group"`` for processes, else ``"unknown"``, ``"other"`` or ``"lost"``; `None` in a timeline."""
    name: str | None = None
    """Name of the process, in an answer per name or process; `None` if it is not known."""
    source: str | None = None
    """As `Row.source`, in an answer per name or process."""
    pid: int | None = None
    """Process id, in an answer per process."""
    unique_pid: int | None = None
    """As `Process.unique_pid`, in an answer per process."""
    path: str | None = None
    """Path of the executable, in an answer per process; `None` if it is not known."""
    uid: int | None = None
    """Number of the user, in an answer per user or process; `None` if it is not known."""
    user: str | None = None
    """Name of the user, where the machine said it: in an answer per user or process."""
    process: Process | None = None
    """All that the file has about the process, in an answer per process."""
    cgroup: str | None = None
    """As `Row.cgroup`, in an answer per process."""
    unit: str | None = None
    """As `Row.unit`, in an answer per unit or process."""
    container: str | None = None
    """As `Row.container`, in an answer per container or process."""
    pod: str | None = None
    """As `Row.pod`, in an answer per pod or process."""
    remote: str | None = None
    """Remote address, in an answer by remotes; `None` for flows without one, and for the sum of the smaller remotes."""
    outcome: Outcome | None = None
    """How the flows ended, in an answer by outcomes. Such flows count with all their traffic, and only if the outcome is known."""
    flows: int
    """Flows that began in this time."""
    uncounted_flows: int
    """How many of them had no bytes reported by the platform."""
    rx_bytes: int
    """Bytes received. Rarely -1 in a timeline: a span takes back the byte of a FIN that an earlier span counted."""
    tx_bytes: int
    """Bytes sent."""
    rx_packets: int
    """Packets received."""
    tx_packets: int
    """Packets sent."""
    begin: float
    """Start of the first bucket with traffic, seconds since the epoch."""
    end: float
    """End of the last one."""

    @property
    def bytes(self) -> int:
        """Received and sent together."""
        return self.rx_bytes + self.tx_bytes


@attrs.frozen
class Gap:
    """A loss in a bucket, also of what a file cannot hold: more than 2**48 of anything (``limit``)."""

    start: float
    """Start of the bucket, seconds since the epoch."""
    cause: str
    """A value of `LossCause`."""
    events: int
    """Reports of it."""
    count: int
    """Flows or messages concerned (of a bucket that cannot hold everything: rows), as far as the reports said; at most 2**48 at once."""


def _seconds(name: str, value: Moment, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError(f"{name}: a datetime needs a time zone")
        return value.timestamp()
    if not isinstance(value, (int, float)) or not -math.inf <= value <= math.inf:
        raise UsageError(f"{name}: {value!r} is neither seconds since the epoch nor a datetime")
    return max(-_EVER, min(value, _EVER))


class History:
    """A history that was written by `HistoryWriter`, opened for reading.

    It may be read while it is written. Times are seconds since the epoch or aware
    `datetime` objects; a bucket belongs to a span of time if it begins in it. Use it
    as a context manager.

    Raises:
        HistoryError: The file does not exist, or is not a history.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_path("path", path)
        self.path = path
        self._connection, self._version = connect(path, write=False, schema=SCHEMA)

    def _select(
        self, columns: Iterable[str], table: str, since: Moment, until: Moment, rest: str, name: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Rows of the buckets that begin in a span of time; with a name, only those of processes with that name."""
        values: list[Any] = [_seconds("since", since, -_EVER), _seconds("until", until, _EVER)]
        values += [] if name is None else [unicode(name)]
        named = "" if name is None else "AND name = ?"
        try:
            query = f"SELECT {', '.join(columns)} FROM {table} WHERE start >= ? AND start < ? {named} {rest}"  # noqa: S608  # our own names
            return self._connection.execute(query, values).fetchall()
        except sqlite3.ProgrammingError as error:
            raise UsageError(f"history: {error}") from error
        except sqlite3.Error as error:
            raise HistoryError(self.path, f"cannot be read: {error}") from error

    def usage(
        self,
        since: Moment = None,
        until: Moment = None,
        *,
        name: str | None = None,
        by: Literal["name", "process", "user", "unit", "container", "pod", "remote", "outcome"] = "name",
    ) -> list[Usage]:
        """Who used how much, most first.

        Args:
            since: First moment; `None`: from the beginning.
            until: First moment that is not included; `None`: to the end.
            name: Only processes of this name.
            by: ``"name"``: processes of one name together. ``"process"``: each by itself. ``"user"``, ``"unit"``,
                ``"container"``, ``"pod"``: `Usage.uid` and so on; a file that is older than these has a single answer
                without them. ``"remote"``: `Usage.remote`, if the writer kept addresses (``remotes=``).
                ``"outcome"``: `Usage.outcome`, of flows that ended in this time.

        Raises:
            UsageError: `by` is not one of these, a `datetime` has no time zone, or a name is combined with remotes or outcomes.
        """
        if by == "remote":
            found = self._view(REMOTES, since, until, name)
            return [attrs.evolve(usage, remote=address or None) for usage, address in found]
        if by == "outcome":
            known = {each.value: each for each in Outcome}
            found = self._view(OUTCOMES, since, until, name)
            return [attrs.evolve(usage, outcome=known.get(word)) for usage, word in found]
        columns = self._columns(by)
        chosen = ", ".join(columns) or "NULL"
        shown = dict.fromkeys(columns) | ({"user": "max(user)"} if by == "user" and "user" in self._there else {})
        asked = [expression or name for name, expression in shown.items()]
        rest = f"GROUP BY {chosen} {_MOST_FIRST}, name, kind"
        rows = self._select([*_SUMS, *asked], _PROCESSES, since, until, rest, name)
        return [self._usage(row, list(shown)) for row in rows]

    @property
    def _there(self) -> list[str]:
        """The columns of a process in this file."""
        return list(SCHEMA.columns(SqlTable.PROCESS, self._version))

    def _columns(self, by: str) -> list[str]:
        """The columns that identify an answer; those that the file lacks are left out."""
        there = self._there
        views = {"name": ["kind", "source", "name"], "process": there, "user": ["uid"]}
        views |= {name: [name] for name in ("unit", "container", "pod")}
        if by not in views:
            raise UsageError(f"by: {by!r} is not one of {', '.join(views)}, remote, outcome")
        return [column for column in views[by] if column in there]

    def _view(self, view: View, since: Moment, until: Moment, name: str | None) -> list[tuple[Usage, str]]:
        """The answers of a table that is not about processes; none if the file is older than the table."""
        if name is not None:
            raise UsageError(f"name: {view.table}s are not kept for each process")
        if self._version < view.since:
            return []
        rest = f"GROUP BY {view.column} {_MOST_FIRST}, {view.column}"
        found = self._select([*_SUMS, view.column], view.table, since, until, rest)
        return [(self._usage(row[:-1], []), row[-1]) for row in found]

    def timeline(
        self, step: float, since: Moment = None, until: Moment = None, *, name: str | None = None
    ) -> list[Usage]:
        """Traffic over time, in steps; steps without traffic are left out.

        Args:
            step: Seconds per entry; at least a bucket to be of use. Steps begin at multiples of it since the epoch, so days are
                those of UTC.
            since: See `usage`.
            until: See `usage`.
            name: Only processes of this name.

        Raises:
            UsageError: `step` is not positive.
        """
        check_number("step", step)
        # Starts are integers: without the cast SQLite would round for whole steps, but not for fractional ones.
        rest = f"GROUP BY CAST(start / {float(step)!r} AS INTEGER) ORDER BY start"
        return [self._usage(row, []) for row in self._select(_SUMS, _PROCESSES, since, until, rest, name)]

    def gaps(self, since: Moment = None, until: Moment = None) -> list[Gap]:
        """What the stream reported as lost, by bucket and cause."""
        columns = ("start", "cause", "events", "count")
        return [Gap(*row) for row in self._select(columns, "gap", since, until, "ORDER BY start, cause")]

    @staticmethod
    def _usage(row: tuple[Any, ...], columns: list[str]) -> Usage:
        sums = dict(zip((*_ADDED_UP, "begin", "end"), row, strict=False))
        sums["begin"] = float(sums["begin"])
        named = dict(zip(columns, row[len(sums) :], strict=True))
        shown = {each.name for each in attrs.fields(Usage)}
        return Usage(
            **sums,
            **{name: value for name, value in named.items() if name in shown},
            process=SCHEMA.process_of(named),
        )

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
