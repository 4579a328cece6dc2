"""What a table shows: frozen rows, and the differences of two looks at it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from nstat_async._events import LossCause
    from nstat_async._model import Process

__all__ = ["Loss", "Row", "RowKind", "TableSnapshot", "process_row_to_dict", "sum_rows"]


class RowKind(enum.Enum):
    """What a row stands for."""

    GROUP = "group"
    """One process, or one value of whatever the table groups by."""
    UNKNOWN = "unknown"
    """Flows for which the platform did not tell the key (e.g. no owner)."""
    OTHER = "other"
    """What was folded together to keep the table, or the list shown, short."""
    LOST = "lost"
    """Closed flows that an overflowing buffer gave up: their sum is known, their owners are not."""
    TOTAL = "total"
    """The sum of a table."""


@attrs.frozen(kw_only=True)
class Row:
    """One line of a table. Bytes and packets count what is told in `TrafficTable`."""

    kind: RowKind
    key: Hashable = None
    """What the table groups by; for a process ``(pid, unique_pid)``. `None` unless `kind` is ``GROUP``."""
    source: str | None = None
    """Name of the machine or recording that the row came from, after `TrafficTable.merge`."""
    process: Process | None = None
    """The process, in a table of processes."""
    flows: int = 0
    """Flows seen, each counted once: in the row where it was last."""
    open_flows: int = 0
    """Those that are still open."""
    uncounted_flows: int = 0
    """Those of `flows` whose bytes the platform never told (Linux UDP)."""
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    rx_rate: float | None = None
    """Bytes received per second over the window; `None` until two moments were seen."""
    tx_rate: float | None = None
    """Bytes sent per second."""
    first_seen: float | None = None
    """Time of the first event, seconds since the epoch."""
    last_seen: float | None = None
    """Time of the last event."""
    serial: int = attrs.field(default=0, repr=False, eq=False)
    """Tells a row from a later one with the same key."""

    @property
    def pid(self) -> int | None:
        """Process id; `None` in rows that are no process."""
        return None if self.process is None else self.process.pid

    @property
    def unique_pid(self) -> int | None:
        """`Process.unique_pid`; `None` in rows that are no process, or where it is not told."""
        return None if self.process is None else self.process.unique_pid

    @property
    def name(self) -> str | None:
        """Name of the process, or the key as text; `None` when neither is known.

        Names are chosen by the processes: escape before printing.
        """
        if self.process is not None:
            return self.process.name
        return None if self.key is None else str(self.key)

    @property
    def bytes(self) -> int:
        """Received and sent together."""
        return self.rx_bytes + self.tx_bytes

    @property
    def rate(self) -> float | None:
        """Both directions together, bytes per second."""
        return None if self.rx_rate is None or self.tx_rate is None else self.rx_rate + self.tx_rate

    @property
    def is_counted(self) -> bool:
        """False when no flow of the row ever reported bytes: its zeros then mean "unknown"."""
        return not self.flows or self.flows > self.uncounted_flows or bool(self.bytes)


def _sum_rate(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def sum_rows(rows: Iterable[Row], kind: RowKind = RowKind.TOTAL) -> Row:
    """Add rows up."""
    listed = list(rows)
    return Row(
        kind=kind,
        flows=sum(row.flows for row in listed),
        open_flows=sum(row.open_flows for row in listed),
        uncounted_flows=sum(row.uncounted_flows for row in listed),
        rx_bytes=sum(row.rx_bytes for row in listed),
        tx_bytes=sum(row.tx_bytes for row in listed),
        rx_packets=sum(row.rx_packets for row in listed),
        tx_packets=sum(row.tx_packets for row in listed),
        rx_rate=_sum_rate(row.rx_rate for row in listed),
        tx_rate=_sum_rate(row.tx_rate for row in listed),
        first_seen=min((row.first_seen for row in listed if row.first_seen is not None), default=None),
        last_seen=max((row.last_seen for row in listed if row.last_seen is not None), default=None),
    )


def _minus(later: Row, earlier: Row) -> Row:
    return attrs.evolve(
        later,
        flows=later.flows - earlier.flows,
        uncounted_flows=later.uncounted_flows - earlier.uncounted_flows,
        rx_bytes=later.rx_bytes - earlier.rx_bytes,
        tx_bytes=later.tx_bytes - earlier.tx_bytes,
        rx_packets=later.rx_packets - earlier.rx_packets,
        tx_packets=later.tx_packets - earlier.tx_packets,
    )


def _is_same_count(one: Row, other: Row) -> bool:
    return (
        one.flows == other.flows
        and one.bytes == other.bytes
        and one.rx_bytes == other.rx_bytes
        and one.rx_packets == other.rx_packets
        and one.tx_packets == other.tx_packets
    )


@attrs.frozen
class Loss:
    """How often one kind of loss was reported."""

    cause: LossCause
    events: int
    """Reports of it."""
    count: int
    """Flows or messages concerned, as far as the reports told."""


@attrs.frozen
class TableSnapshot:
    """A table at one moment; it does not change any more."""

    time: float | None
    """Time of the last event; `None` before the first."""
    rows: tuple[Row, ...]
    """Every row: groups, unknown, other, lost."""
    losses: tuple[Loss, ...] = ()
    """What the stream reported as lost so far."""

    @property
    def total(self) -> Row:
        """The sum of all rows."""
        return sum_rows(self.rows)

    def since(self, earlier: TableSnapshot) -> tuple[Row, ...]:
        """What changed since an earlier look at the same table.

        Counters of the rows are differences, `Row.open_flows` and rates are those of
        this snapshot; rows without any growth are left out. The differences add up to
        exactly the difference of the totals. Therefore one can be negative: in the row
        ``UNKNOWN`` when the owner of a flow became known after its first bytes.
        """
        before = {row.serial: row for row in earlier.rows}
        changed, folded = [], []
        for row in self.rows:
            old = before.pop(row.serial, None)
            if row.kind is RowKind.OTHER:
                folded.append(row if old is None else _minus(row, old))
            elif old is None:
                changed.append(row)
            elif not _is_same_count(row, old):
                changed.append(_minus(row, old))
        # A row that is gone was folded into "other" with all it had, or was emptied.
        other = sum_rows(folded, RowKind.OTHER)
        for old in before.values():
            other = _minus(other, old)
        if other.flows or other.bytes or other.rx_packets or other.tx_packets or other.rx_bytes:
            changed.append(other)
        return tuple(changed)


def process_row_to_dict(row: Row, time: float | None) -> dict[str, Any]:
    """A row as the object of ``processes --json``, keys in their documented order.

    Counters are `None` in a row none of whose flows was ever counted.
    """
    counted = row.is_counted
    return {
        "v": 1,
        "time": time,
        "pid": row.pid,
        "name": row.name,
        "flows": row.flows,
        "open_flows": row.open_flows,
        "rx_bytes": row.rx_bytes if counted else None,
        "tx_bytes": row.tx_bytes if counted else None,
        "rx_packets": row.rx_packets if counted else None,
        "tx_packets": row.tx_packets if counted else None,
        "rx_rate": row.rx_rate if counted else None,
        "tx_rate": row.tx_rate if counted else None,
        "unique_pid": row.unique_pid,
        "kind": "process" if row.kind is RowKind.GROUP else row.kind.value,
        "uncounted_flows": row.uncounted_flows,
        "source": row.source,
    }
