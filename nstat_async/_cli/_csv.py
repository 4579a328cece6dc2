"""Comma-separated values (RFC 4180): a line with the names of the columns, then one for each flow or row.

Values are those of JSON, without units; what is unknown is empty. Texts are escaped as in all text that is printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from .._escape import dump, escape
from .._events import AnyEvent, FlowEvent
from ._cells import cell_text
from ._columns import Column, event_columns, row_columns
from ._output import complain
from ._text import TextFormatter

_FLOWS = (
    "id,provider,direction,state,pid,name,local.address,local.port,remote.address,remote.port,interface.name,"
    "rx_bytes,tx_bytes,rx_packets,tx_packets"
)
_EVENTS = f"time,event,{_FLOWS},outcome,final"
_ROWS = "kind,pid,name,flows,open_flows,rx_bytes,tx_bytes,rx_packets,tx_packets,rx_rate,tx_rate"
_QUOTED = re.compile(r'[",]|^ | $')


@attrs.define(eq=False)
class CsvLines:
    """Makes lines; the names of the columns come before the first ones."""

    columns: Sequence[Column]
    moments: bool = False
    """True: the time of the look is the first column, which rows do not have themselves."""
    _others: TextFormatter = attrs.field(factory=TextFormatter, init=False)
    _begun: bool = attrs.field(default=False, init=False)

    def __call__(self, owners: Iterable[Any], moment: float | None = None) -> list[str]:
        """Lines of events of flows, or of rows."""
        first = [dump(moment)] if self.moments else []
        lines = [_line([*first, *(_cell(each, owner) for each in self.columns)]) for owner in owners]
        if self._begun:
            return lines
        self._begun = True
        names = ["time"] if self.moments else []
        return [_line([*names, *(each.heading.lower() for each in self.columns)]), *lines]

    def of_events(self, events: Sequence[AnyEvent]) -> list[str]:
        """Lines of the events of flows; what else happened is said on standard error."""
        for event in events:
            if not isinstance(event, FlowEvent) and (text := self._others(event)) is not None:
                complain(text)
        return self([event for event in events if isinstance(event, FlowEvent)])


def csv_of_events(chosen: Sequence[Column]) -> CsvLines:
    """For events."""
    return CsvLines(chosen or event_columns(_EVENTS))


def csv_of_flows(chosen: Sequence[Column]) -> CsvLines:
    """For the flows of a moment."""
    return CsvLines(chosen or event_columns(f"time,{_FLOWS}"))


def csv_of_rows(chosen: Sequence[Column]) -> CsvLines:
    """For the rows of a table."""
    return CsvLines(chosen or row_columns(_ROWS), moments=True)


def _cell(column: Column, owner: Any) -> str:
    value, kind = column.value(owner), column.steps[-1].kind
    if value is None:
        return ""
    if kind.record is not None:
        return cell_text(column.steps[-1], value)
    plain = kind.plain(value)
    return escape(plain) if isinstance(plain, str) else dump(plain)


def _line(cells: Iterable[str]) -> str:
    line = ",".join('"{}"'.format(cell.replace('"', '""')) if _QUOTED.search(cell) else cell for cell in cells)
    return line or '""'  # readers skip an empty line
