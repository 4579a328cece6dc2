"""Sums of rows, and differences of two snapshots of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import attrs

from nstat_async._events import LossCause
from nstat_async._fields import TABLE, SqlTable
from nstat_async._rows import Row, RowKind

from ._media import add_media, row_media, sum_media

_ADDED_UP = tuple(field.name for _, field in TABLE.columns(SqlTable.TRAFFIC))
"""The counters of a row that have differences."""


_get_counters = [(name, attrgetter(name)) for name in (*_ADDED_UP, "open_flows")]


def added_up(rows: Sequence[Any]) -> dict[str, Any]:
    """The sums of the counters of rows (or of objects with the same attributes), and the first and last of their times."""
    first = [row.first_seen for row in rows if row.first_seen is not None]
    last = [row.last_seen for row in rows if row.last_seen is not None]
    return {
        "first_seen": min(first, default=None),
        "last_seen": max(last, default=None),
        **{name: sum(map(get, rows)) for name, get in _get_counters},
        "media": row_media(sum_media(row.media for row in rows)),
    }


def sum_rows(rows: Iterable[Row], kind: RowKind = RowKind.TOTAL) -> Row:
    """Add rows up."""
    listed = list(rows)
    rx_rates = [row.rx_rate for row in listed if row.rx_rate is not None]
    tx_rates = [row.tx_rate for row in listed if row.tx_rate is not None]
    return Row(
        kind=kind,
        rx_rate=sum(rx_rates) if rx_rates else None,
        tx_rate=sum(tx_rates) if tx_rates else None,
        **added_up(listed),
    )


def _minus(later: Row, earlier: Row) -> Row:
    media = sum_media([later.media])
    add_media(media, sum_media([earlier.media]), -1)
    grown = {name: getattr(later, name) - getattr(earlier, name) for name in _ADDED_UP}
    return attrs.evolve(later, **grown, media=row_media(media))


def _has_grown(row: Row) -> bool:
    return any(getattr(row, name) for name in _ADDED_UP)


@attrs.frozen
class Loss:
    """How often one kind of loss was reported."""

    cause: LossCause
    """What made the gaps."""
    events: int
    """Reports of it."""
    count: int
    """Flows or messages concerned, as far as the reports said."""


@attrs.frozen
class TableSnapshot:
    """A table as it was at one moment."""

    time: float | None
    """Time of the last event; `None` before the first."""
    rows: tuple[Row, ...]
    """All rows: groups, unknown, other, lost."""
    losses: tuple[Loss, ...] = ()
    """The losses that the stream reported so far."""

    @property
    def total(self) -> Row:
        """The sum of all rows."""
        return sum_rows(self.rows)

    def since(self, earlier: TableSnapshot) -> tuple[Row, ...]:
        """The changes since an earlier snapshot of the same table.

        Counters of the rows are differences, `Row.open_flows` and rates are those of
        this snapshot; rows without any growth are left out. The sum of the differences is
        exactly the difference of the totals. So a difference can be negative: that of
        ``UNKNOWN``, if the owner of a flow became known after its first bytes.
        """
        before = {row.serial: row for row in earlier.rows}
        changed, folded = [], []
        for row in self.rows:
            old = before.pop(row.serial, None)
            grown = row if old is None else _minus(row, old)
            if row.kind is RowKind.OTHER:
                folded.append(grown)
            elif old is None or _has_grown(grown):
                changed.append(grown)
        # A row that is missing now was folded into "other" with all its traffic, or was emptied.
        other = sum_rows(folded, RowKind.OTHER)
        for old in before.values():
            other = _minus(other, old)
        return (*changed, other) if _has_grown(other) else tuple(changed)
