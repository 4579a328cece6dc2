"""Totals and rates of flows: per process, or grouped by anything.

`ProcessTable` and `TrafficTable` are pure objects: feed them events, look at
rows. `by_process` feeds one from a monitor beside its other consumers.
`HistoryWriter` and `History` keep and read totals in an SQLite file.
"""

from ._grouping import GroupBy, ProcessKey
from ._rows import Loss, Row, RowKind, TableSnapshot, process_row_to_dict, sum_rows
from ._table import ProcessTable, TrafficTable

__all__ = [
    "GroupBy",
    "Loss",
    "ProcessKey",
    "ProcessTable",
    "Row",
    "RowKind",
    "TableSnapshot",
    "TrafficTable",
    "process_row_to_dict",
    "sum_rows",
]
