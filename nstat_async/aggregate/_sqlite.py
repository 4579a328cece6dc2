"""A history of traffic per process: time buckets in an SQLite file.

Events are counted in memory. When the events' clock leaves a bucket, its totals
are set aside, and the next write stores them in one transaction. A crash loses
only what is not written: the open bucket. Counting never touches the disk, so the
asynchronous form counts in the loop, and writes in a worker thread.

Bytes belong to the bucket in which they were *reported*, up to one polling
interval after they passed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import anyio
import attrs

from nstat_async._checks import LONGEST_SECONDS, check_number, check_path
from nstat_async._errors import NstatError, UsageError
from nstat_async._events import AnyEvent, FlowRemoved, LossCause
from nstat_async._fields import SqlTable
from nstat_async._model import Counts, Outcome
from nstat_async._monitor import Monitor
from nstat_async._rows import Row, RowKind

from .._io.threads import in_thread
from ._grouping import GroupBy
from ._keeping import HOUR, give_back, join_old, largest, now_of, remove_old
from ._rows import Loss, TableSnapshot, added_up, sum_rows
from ._schema import OUTCOMES, REMOTES, SCHEMA, TRAFFIC, HistoryError, View, addition, connect, process_id
from ._table import ProcessTable, TrafficTable

logger = logging.getLogger("nstat_async")

DEFAULT_BUCKET = 300.0
_RETRY_SECONDS = 5.0
"""Seconds until a file that could not be written is tried again."""
MAX_PENDING_BUCKETS = 288
"""Most closed buckets that wait while the file cannot be written, a day with the default length.
Beyond that the two oldest become one: bytes are kept, resolution is not."""
_LATE = 60.0
"""Seconds by which an event may be older than the bucket that counts it (a coalesced update)."""
_LAST_MOMENT = 2.0**40
"""Latest time of an event, seconds since the epoch: a later one is an error."""
_LARGEST_NUMBER = 2**63 - 1
_CARRIED = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
_LARGEST = 2**48
"""Limit for the counters of a bucket, so that their sums stay below SQLite's limit of 2**63; what is beyond it is a gap."""


@attrs.define
class _Bucket:
    start: int
    length: float
    rows: list[Row]
    losses: dict[str, tuple[int, int]]
    remotes: list[Row]
    """Traffic by remote address; empty if that is not kept."""
    outcomes: list[Row]
    """Flows that ended, by outcome."""

    def join(self, later: _Bucket, most: int) -> None:
        """Add a later bucket; the result has at most `most` rows of each kind."""
        self.length = max(self.length, later.start + later.length - self.start)  # it may end earlier: a clock set back
        self.rows = largest(_added(self.rows + later.rows, _stored_identity), most)
        self.remotes = largest(_added(self.remotes + later.remotes, _name), most)
        self.outcomes = _added(self.outcomes + later.outcomes, _name)
        for cause, (events, count) in later.losses.items():
            known = self.losses.get(cause, (0, 0))
            self.losses[cause] = (known[0] + events, known[1] + count)


def _stored_identity(row: Row) -> tuple[Any, ...]:
    return tuple(SCHEMA.process_values(row).values())


def _name(row: Row) -> str | None:
    return row.name


def _added(rows: Iterable[Row], identity: Callable[[Row], Any]) -> list[Row]:
    """The rows, with those added up that are the same row in the file."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(identity(row), []).append(row)
    return [attrs.evolve(same[-1], **added_up(same)) for same in found.values()]


def _new_losses(now: tuple[Loss, ...], before: tuple[Loss, ...]) -> dict[str, tuple[int, int]]:
    old = {loss.cause: loss for loss in before}
    found = {}
    for loss in now:
        known = old.get(loss.cause, Loss(loss.cause, 0, 0))
        if loss.events > known.events:
            found[loss.cause.value] = (loss.events - known.events, loss.count - known.count)
    return found


class HistoryWriter:
    """Writes the traffic of each process, in buckets of time, to an SQLite file.

    It is synchronous: `feed` counts, `write` stores the complete buckets, `flush` stores
    everything. Several writers may share a file, and a bucket may be written in
    several parts, which add up. Use it as a context manager.

    Args:
        path: The file; made if it is not there.
        bucket: Length of a bucket in seconds; buckets begin at multiples of it since the epoch.
        keep: Seconds after which buckets are deleted (or up to a day later, to be sure of the clock); `None`: never.
        detail: Seconds after which buckets are joined into hours, and processes with the same name, user, unit and container
            into one; `None`: never.
        max_rows: Most processes in each bucket, those with most traffic; all others are kept as one sum.
        remotes: Most remote addresses in each bucket, those with most traffic, for ``History.usage(by="remote")``; all
            others are kept as one sum. 0: addresses are not kept.
        options: Those of `ProcessTable`, e.g. ``effective=True``, ``source="laptop"``.

    Raises:
        HistoryError: The file cannot be opened.
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bucket: float = DEFAULT_BUCKET,
        keep: float | None = None,
        remotes: int = 0,
        detail: float | None = 30 * 86_400.0,
        max_rows: int = 1_000,
        **options: Any,
    ) -> None:
        check_path("path", path)
        check_number("bucket", bucket, least=1, most=LONGEST_SECONDS)
        check_number("keep", keep, optional=True, least=bucket)
        check_number("remotes", remotes, whole=True, least=0)
        check_number("detail", detail, optional=True, least=HOUR)
        check_number("max_rows", max_rows, whole=True)
        self.path = path
        self.bucket = bucket
        self.keep = keep
        self._detail = detail
        self._max_rows = max_rows
        # A row has to be remembered only until its last bucket is set aside.
        self._table = ProcessTable(**{"max_age": bucket + _LATE, **options})
        self._remotes = None if not remotes else _RemoteCounter(remotes, bucket, options)
        self._outcomes = _OutcomeCounter()
        self._start: float | None = None
        self._before: TableSnapshot = self._table.snapshot()
        self._pending: list[_Bucket] = []
        self._written_rows = self._written_buckets = self._failures = 0
        self._connection: sqlite3.Connection | None = connect(path, write=True, schema=SCHEMA)[0]

    def feed(self, event: AnyEvent) -> None:
        """Take in one event.

        Raises:
            HistoryError: Its time is impossible; it is not counted.
        """
        start = self._start
        if start is None or not start - _LATE <= event.time < start + self.bucket:
            self._turn(event.time)
        self._table.feed(event)
        if self._remotes is not None:
            self._remotes.table.feed(event)
        if isinstance(event, FlowRemoved):
            self._outcomes.feed(event)

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order.

        Raises:
            HistoryError: The time of some of them is impossible; the others are counted.
        """
        failure, listed, start = None, list(events), self._start
        if start is not None and any(not start - _LATE <= event.time < start + self.bucket for event in listed):
            # Each change of the bucket costs a look at all rows: the backlog of one machine, between the events of others.
            listed.sort(key=_machine)
        for event in listed:
            try:
                self.feed(event)
            except HistoryError as error:
                failure = error
        if failure is not None:
            raise failure

    def _turn(self, time: float) -> None:
        if not 0 <= time < _LAST_MOMENT:
            raise HistoryError(self.path, f"an event's time is {time!r}: it is not counted")
        self._put_aside()
        self._start = time // self.bucket * self.bucket

    def _put_aside(self) -> None:
        now = self._table.snapshot()
        rows = largest(now.since(self._before), self._max_rows)
        losses = _new_losses(now.losses, self._before.losses)
        self._before = now
        remotes = [] if self._remotes is None else self._remotes.take()
        outcomes = self._outcomes.take()
        if self._start is None or not (rows or losses or outcomes):
            return
        self._pending.append(_Bucket(int(self._start), self.bucket, rows, losses, remotes, outcomes))
        if len(self._pending) > MAX_PENDING_BUCKETS:
            self._pending[0].join(self._pending.pop(1), self._max_rows)

    @property
    def pending(self) -> int:
        """Number of complete buckets that are not written yet."""
        return len(self._pending)

    def statistics(self) -> dict[str, int]:
        """Counters: buckets and rows written, buckets pending, failed writes."""
        return {
            "buckets_written": self._written_buckets,
            "rows_written": self._written_rows,
            "buckets_pending": len(self._pending),
            "failed_writes": self._failures,
        }

    def write(self) -> None:
        """Store the complete buckets in one transaction.

        Raises:
            HistoryError: It failed, e.g. the disk is full; the next attempt writes these buckets too.
            UsageError: The writer is closed.
        """
        if self._connection is None:
            raise UsageError("write: the history is closed")
        if not self._pending:
            return
        refused = self._refused_rows()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                rows = sum(self._write_bucket(self._connection, bucket) for bucket in self._pending)
                self._keep_small(self._connection)
                self._connection.execute("COMMIT")
                give_back(self._connection)
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self._failures += 1
            raise HistoryError(self.path, f"cannot be written: {error}") from error
        self._written_rows += rows
        self._written_buckets += len(self._pending)
        self._pending.clear()
        if refused:
            row = refused[0]
            text = (
                f"{len(refused)} rows are not kept: a number of {row.label!r} (pid {row.pid}) does not fit into 64 bits"
            )
            raise HistoryError(self.path, text)

    def _refused_rows(self) -> list[Row]:
        """Take out rows whose process has numbers too large for the file: a recording may contain anything."""
        refused: list[Row] = []
        for bucket in self._pending:
            good = [row for row in bucket.rows if _can_be_kept(row)]
            refused += [row for row in bucket.rows if row not in good] if len(good) < len(bucket.rows) else []
            bucket.rows = good
        return refused

    def flush(self) -> None:
        """Store everything, including the open bucket so far.

        Raises:
            HistoryError: It failed; everything is kept for the next attempt.
        """
        self._put_aside()
        self.write()

    def _write_bucket(self, connection: sqlite3.Connection, bucket: _Bucket) -> int:
        cut = max(
            _write_rows(
                connection, TRAFFIC, bucket, bucket.rows, lambda row: process_id(connection, SCHEMA.process_values(row))
            ),
            _write_rows(connection, REMOTES, bucket, bucket.remotes, lambda row: row.name or ""),
            _write_rows(connection, OUTCOMES, bucket, bucket.outcomes, lambda row: row.name or ""),
        )
        losses = dict(bucket.losses)
        if cut:
            limit = LossCause.LIMIT.value
            events, count = losses.get(limit, (0, 0))
            losses[limit] = (events + 1, count + cut)
        for cause, (events, count) in losses.items():
            connection.execute(
                "INSERT INTO gap VALUES (?, ?, ?, ?) ON CONFLICT (start, cause) DO UPDATE SET"
                " events = events + excluded.events, count = count + excluded.count",
                (bucket.start, cause, events, min(count, _LARGEST)),
            )
        return len(bucket.rows)

    def _keep_small(self, connection: sqlite3.Connection) -> None:
        """Delete and join old buckets; see `_keeping` for the clock."""
        if self._start is None or (self.keep is None and self._detail is None):
            return
        now = now_of(connection, self.bucket, min(self.keep or math.inf, self._detail or math.inf))
        if now is None:
            return
        now = min(now, int(self._start))
        if self.keep is not None:
            remove_old(connection, now - self.keep)
        if self._detail is not None:
            join_old(connection, now - self._detail)

    def close(self) -> None:
        """Store everything and close the file. Idempotent.

        Raises:
            HistoryError: The last write failed; the file is closed anyway.
        """
        if self._connection is None:
            return
        try:
            self.flush()
        finally:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _machine(event: AnyEvent) -> str:
    """The machine of a fleet that an event is about, if any."""
    return event.host or ""


class _RemoteCounter:
    """Counts traffic by remote address; each bucket keeps the largest."""

    def __init__(self, most: int, bucket: float, options: Mapping[str, Any]) -> None:
        options = {name: value for name, value in options.items() if name != "effective"}
        self.table = TrafficTable(GroupBy.remote_address(), **{"max_age": bucket + _LATE, **options})
        self._most = most
        self._before = self.table.snapshot()

    def take(self) -> list[Row]:
        """The traffic since the last call: the largest addresses, and the sum of all others."""
        now = self.table.snapshot()
        grown = now.since(self._before)
        self._before = now
        known = sorted((row for row in grown if row.kind is RowKind.GROUP), key=lambda row: -row.bytes)
        rest = [*known[self._most :], *(row for row in grown if row.kind is not RowKind.GROUP)]
        return [*known[: self._most], *([sum_rows(rest, RowKind.OTHER)] if rest else [])]


class _OutcomeCounter:
    """Counts flows that ended with a known outcome, with all their traffic."""

    def __init__(self) -> None:
        self._rows: dict[Outcome, Row] = {}

    def feed(self, event: FlowRemoved) -> None:
        if event.outcome is None:
            return
        counts = event.counts or Counts()
        row = self._rows.get(event.outcome) or Row(kind=RowKind.GROUP, key=event.outcome)
        self._rows[event.outcome] = attrs.evolve(
            row,
            flows=row.flows + 1,
            uncounted_flows=row.uncounted_flows + (counts.rx_bytes is None),
            **{name: getattr(row, name) + (getattr(counts, name) or 0) for name in _CARRIED},
        )

    def take(self) -> list[Row]:
        """The flows since the last call."""
        rows, self._rows = list(self._rows.values()), {}
        return rows


def _write_rows(
    connection: sqlite3.Connection, view: View, bucket: _Bucket, rows: Iterable[Row], key: Callable[[Row], Any]
) -> int:
    """Write rows of a bucket; returns how many have a counter that is larger than what is kept of it."""
    cut = 0
    names = list(SCHEMA.columns(SqlTable.TRAFFIC, view.since))
    statement = addition(view, names)
    for row in rows:
        counters = [getattr(row, name) for name in names]
        cut += max(counters) > _LARGEST
        kept = (min(counter, _LARGEST) for counter in counters)
        connection.execute(statement, (bucket.start, key(row), bucket.length, *kept))
    return cut


def _can_be_kept(row: Row) -> bool:
    return all(abs(value) <= _LARGEST_NUMBER for value in SCHEMA.process_values(row).values() if isinstance(value, int))


async def keep_history(
    monitor: Monitor,
    path: str | os.PathLike[str],
    *,
    bucket: float = DEFAULT_BUCKET,
    keep: float | None = None,
    **options: Any,
) -> None:
    """Write the history of a monitor until it ends, or this is cancelled.

    Run it in a task of its own. Only worker threads touch the file. While the file cannot
    be written, buckets wait, and a warning is logged. At the end, or after a cancellation,
    everything is written before this returns.

    Args:
        monitor: A `Monitor`.
        path: The SQLite file.
        bucket: Length of a bucket in seconds.
        keep: Seconds after which buckets are deleted; `None`: never.
        options: Those of `HistoryWriter`.

    Raises:
        HistoryError: The file cannot be opened, or cannot be written at the very end.
    """

    def open_writer() -> HistoryWriter:
        return HistoryWriter(path, bucket=bucket, keep=keep, **options)

    again = 0.0
    async with monitor.subscribe() as subscription:
        writer = await in_thread(open_writer)
        try:
            while events := await subscription.receive_many():
                again = await _write(writer, events, path, again)
        except anyio.get_cancelled_exc_class():
            with contextlib.suppress(NstatError):
                writer.feed_many(subscription.receive_nowait())
            raise
        finally:
            # Whatever ends this, received events are written.
            with anyio.CancelScope(shield=True):
                await in_thread(writer.close)


async def _write(
    writer: HistoryWriter, events: Iterable[AnyEvent], path: str | os.PathLike[str], again: float
) -> float:
    """Take in events and write what is due, at time `again` after a failure; returns the time of the next attempt, or 0."""
    try:
        writer.feed_many(events)
        if not writer.pending or anyio.current_time() < again:
            return again
        await in_thread(writer.write)
    except HistoryError as error:
        if not again:  # warn once until it works again
            logger.warning("history: %s; counts wait in memory until the file can be written", error)
        return anyio.current_time() + _RETRY_SECONDS
    if again:
        logger.warning("history: %s: what waited is written", path)
    return 0.0
