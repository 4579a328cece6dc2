"""The forms of results: text, JSON Lines, CSV, OCSF, with all fields or with chosen ones."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Union

import attrs

from .._errors import UsageError
from .._escape import dump
from .._events import AnyEvent, FlowAdded, FlowEvent
from .._model import Counts, Flow
from .._rows import Row
from ..json import JsonFormatter, dumps
from ._cells import UNKNOWN, bytes_text, is_listener, name_text, place_text
from ._columns import Column, picked
from ._output import Output, is_terminal, use_colour
from ._source import is_recorded
from ._table import render
from ._text import TextFormatter

if TYPE_CHECKING:  # modules that few commands need are imported when used
    from ._ocsf import OcsfFormatter
    from ._views import View

EventFormatter = Callable[[Sequence[AnyEvent]], Iterable[str]]
"""Makes lines of events; a text may have several lines."""
_HEADINGS = ("", "PROTO", "LOCAL", "REMOTE", "STATE", "PID", "PROCESS", "RX", "TX", "VIA")
_LOCAL, _REMOTE = 2, 3
_RIGHT = frozenset({5, 7, 8})
_SPARE = (9, 4, _LOCAL, 1)
"""Columns that a narrow terminal leaves out, in this order: the interface, the state, the local end, the protocol."""
_LAST = (8, 5, 0, 7)
"""Then what was sent, the pid, the mark of a listener, and what was received."""


def _ocsf(arguments: argparse.Namespace) -> OcsfFormatter:
    from ._ocsf import OcsfFormatter  # noqa: PLC0415  # see above

    if arguments.fields:
        raise UsageError("fields: OCSF has its own; choose --format json, csv or text")
    return OcsfFormatter(None if is_recorded(arguments) else socket.gethostname())


def event_formatter(arguments: argparse.Namespace, output: Output) -> EventFormatter:
    """A function that makes lines of events, by ``--format``, ``--fields``, ``--details`` and ``--utc``.

    Raises:
        UsageError: A field is unknown, or options contradict each other.
    """
    if arguments.details and arguments.format != "json":
        raise UsageError("details: only with --format json")
    if arguments.utc and arguments.format != "text":
        raise UsageError("utc: only with --format text; times of other formats are counted from the epoch, in no zone")
    if arguments.format == "ocsf":
        return _one_by_one(_ocsf(arguments))
    if arguments.format == "csv":
        from ._csv import csv_of_events  # noqa: PLC0415  # as OCSF

        return csv_of_events(arguments.fields or ()).of_events
    if arguments.format == "json" and not arguments.fields:
        return JsonFormatter(full=arguments.details).lines
    text = TextFormatter(
        colour=use_colour(output.stream),
        utc=arguments.utc,
        every=arguments.every_update,
        columns=(lambda: output.columns) if is_terminal(output.stream) else None,
    )
    if not arguments.fields:
        return _one_by_one(text)
    columns: Sequence[Column] = arguments.fields
    if arguments.format == "json":
        whole = JsonFormatter(full=arguments.details)
        return _one_by_one(lambda event: dump(picked(event, columns)) if isinstance(event, FlowEvent) else whole(event))
    return _ChosenText(columns, text)


def _one_by_one(formatter: Callable[[AnyEvent], str | None]) -> EventFormatter:
    return lambda events: (line for event in events if (line := formatter(event)) is not None)


@attrs.define(eq=False)
class _ChosenText:
    """Makes lines of chosen fields, each column as wide as its widest cell so far; losses keep their usual line."""

    columns: Sequence[Column]
    others: TextFormatter
    _begun: bool = attrs.field(default=False, init=False)

    def __call__(self, events: Sequence[AnyEvent]) -> Iterator[str]:
        """The lines; before the first ones the headings, all as wide as the first events need it."""
        if not self._begun and (first := [self._cells(event) for event in events if isinstance(event, FlowEvent)]):
            self._begun = True
            headings = [column.heading for column in self.columns]
            for cells in (headings, *first):
                self._line(cells)  # makes the columns wider
            yield self._line(headings)
        for event in events:
            line = self._line(self._cells(event)) if isinstance(event, FlowEvent) else self.others(event)
            if line is not None:
                yield line

    def _cells(self, event: AnyEvent) -> list[str]:
        return [column.text(event, utc=self.others.utc) for column in self.columns]

    def _line(self, cells: list[str]) -> str:
        return "  ".join(self.others.cell(f"chosen {at}", cell) for at, cell in enumerate(cells)).rstrip()


Found = Sequence[tuple[Flow, Union[Counts, None]]]


def flow_form(arguments: argparse.Namespace, output: Output) -> Callable[[Found, float], list[str]]:
    """A function that makes lines of the flows of a moment.

    Raises:
        UsageError: As for `event_formatter`.
    """
    columns: Sequence[Column] = arguments.fields or ()
    if arguments.format == "ocsf":
        ocsf = _ocsf(arguments)
        return lambda found, moment: [ocsf.flow_line(flow, counts, moment) for flow, counts in found]
    if arguments.format == "csv":
        from ._csv import csv_of_flows  # noqa: PLC0415  # as OCSF

        of_flows = csv_of_flows(columns)
        return lambda found, moment: of_flows(_events(found, moment))
    if arguments.format == "json":
        if columns:
            return lambda found, moment: [
                dump({**picked(event, columns), "event": "flow"}) for event in _events(found, moment)
            ]
        line = JsonFormatter().flow_line
        return lambda found, moment: [line(flow, counts, moment) for flow, counts in found]
    if columns:
        return lambda found, moment: _table(
            columns, [[column.text(event) for column in columns] for event in _events(found, moment)], output
        )
    return lambda found, _moment: _flow_table([_cells(flow, counts) for flow, counts in found], output.columns)


def _flow_table(rows: list[list[str]], columns: int | None) -> list[str]:
    lines = render(_HEADINGS, rows, right=_RIGHT, columns=columns, spare=_SPARE, last=_LAST)
    if _HEADINGS[_LOCAL] in lines[0].split():
        return lines
    for row in rows:
        if row[_REMOTE] == "*":  # it waits for somebody: say where
            row[_REMOTE] = row[_LOCAL]
    return render(_HEADINGS, rows, right=_RIGHT, columns=columns, spare=_SPARE, last=_LAST)


def _events(found: Found, moment: float) -> list[FlowAdded]:
    """Existing flows as events, which have the same fields."""
    return [FlowAdded(moment, flow, counts, preexisting=True) for flow, counts in found]


def _cells(flow: Flow, counts: Counts | None) -> list[str]:
    process = flow.process
    return [
        "@" if is_listener(flow) else "",
        flow.provider.value,
        str(flow.local or "*"),
        str(flow.remote or "*"),
        "" if flow.state is None else flow.state.value,
        UNKNOWN if process is None else str(process.pid),
        UNKNOWN if process is None else name_text(process),
        bytes_text(None if counts is None else counts.rx_bytes),
        bytes_text(None if counts is None else counts.tx_bytes),
        place_text(flow),
    ]


def row_form(arguments: argparse.Namespace, view: View, output: Output) -> Callable[[Sequence[Row], float], list[str]]:
    """A function that makes lines of the rows of a table, in their order.

    Raises:
        UsageError: As for `event_formatter`.
    """
    chosen: Sequence[Column] = arguments.fields or ()
    if arguments.format == "ocsf":
        ocsf = _ocsf(arguments)
        return lambda rows, moment: [ocsf.row_line(row, view.group_by.name, moment) for row in rows]
    if arguments.format == "csv":
        from ._csv import csv_of_rows  # noqa: PLC0415  # as OCSF

        of_rows = csv_of_rows(chosen)
        return lambda rows, moment: of_rows(map(view.named, rows), moment)
    if arguments.format == "json":
        return lambda rows, moment: [
            dump(picked(row, chosen, moment)) if chosen else dumps(row, time=moment) for row in map(view.named, rows)
        ]

    def text(rows: Sequence[Row], _moment: float) -> list[str]:
        columns = chosen or view.columns(rows)
        return _table(
            columns, [[view.cell(column, row) for column in columns] for row in rows], output, view, chosen=bool(chosen)
        )

    return text


def _table(
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    output: Output,
    view: View | None = None,
    *,
    chosen: bool = True,
) -> list[str]:
    headings = [column.heading if view is None else view.heading_of(column) for column in columns]
    right = [at for at, column in enumerate(columns) if column.is_number]
    spare: list[int] = []
    last: list[int] = []
    if not chosen:
        (main,) = _places(columns, "TX")
        spare = [*range(len(columns) - 1, main, -1), *_places(columns, "FLOWS")]
        last = _places(columns, "OPEN", "TX", "PID")
    return render(headings, cells, right=right, columns=output.columns, spare=spare, last=last)


def _places(columns: Sequence[Column], *names: str) -> list[int]:
    """Where the columns with these headings are, if they are there."""
    places = {column.heading: place for place, column in enumerate(columns)}
    return [places[name] for name in names if name in places]
