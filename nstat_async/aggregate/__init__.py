"""Totals and rates of flows: per process, or grouped by anything.

`ProcessTable` and `TrafficTable` are pure objects: feed them events, look at
rows. `by_process` feeds one from a monitor beside its other consumers.
`ConnectionTable` says who talks to whom in a fleet, each byte once.
`HistoryWriter` and `History` keep and read totals in an SQLite file.
"""

from nstat_async._rows import Row, RowKind, unattributed_row

from .._public import explain, only
from ._connections import ConnectionTable, Party, Talk
from ._consumer import TableStream, by_process
from ._grouping import GroupBy, ProcessKey
from ._history import Gap, History, Usage
from ._rows import Loss, TableSnapshot, sum_rows
from ._schema import HistoryError
from ._sqlite import HistoryWriter, keep_history
from ._table import ProcessTable, SortKey, TrafficTable
from ._tally import Share

__all__ = [
    "ConnectionTable",
    "Gap",
    "GroupBy",
    "History",
    "HistoryError",
    "HistoryWriter",
    "Loss",
    "Party",
    "ProcessKey",
    "ProcessTable",
    "Row",
    "RowKind",
    "Share",
    "SortKey",
    "TableSnapshot",
    "TableStream",
    "Talk",
    "TrafficTable",
    "Usage",
    "by_process",
    "keep_history",
    "sum_rows",
    "unattributed_row",
]
__dir__ = only(__all__)
explain(__all__, globals())
