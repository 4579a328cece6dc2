"""The columns that ``--fields`` chooses, for events of flows and for rows, made from the table of fields.

The name of a column is its keys in a JSON line, joined by dots: ``flow.process.name``. The prefixes ``flow.``,
``counts.``, ``flow.process.`` and ``details.`` may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from .._errors import UsageError
from .._events import Event, FlowAdded, FlowRemoved, FlowUpdated
from .._fields import TABLE, TEXT, Field
from .._model import Endpoint, Flow
from .._rows import Row
from ..json import to_dict
from ._cells import cell_text
from ._parser import did_you_mean

_PREFIXES: tuple[tuple[str, ...], ...] = ((), ("flow",), ("counts",), ("flow", "process"), ("details",))
_ROW_PREFIXES: tuple[tuple[str, ...], ...] = ((), ("process",))
_NAME = Field("event", TEXT, get=lambda event: TABLE.of(type(event)).event)
_EVENT_FIELDS = tuple(
    {field.key: field for kind in (FlowAdded, FlowUpdated, FlowRemoved) for field in TABLE.of(kind).fields}.values()
)
_ENDS = tuple(field for field in TABLE.of(Flow).fields if field.kind.record is Endpoint)
"""The ends of a flow: a star stands for a missing one, as in every line."""


@attrs.frozen
class Column:
    """A column: one value of each line."""

    heading: str
    steps: tuple[Field, ...]
    """The fields that lead from the event or row to the value."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that lead to it in a JSON line."""
        return tuple(field.key for field in self.steps)

    @property
    def is_number(self) -> bool:
        """True for a number, which is aligned to the right."""
        kind = self.steps[-1].kind
        return kind.sql != "TEXT" and kind.record is None and self.steps[-1].unit != "seconds since the epoch"

    def value(self, owner: Any) -> Any:
        """The value; `None` if it is unknown, or events of this class do not have it."""
        for field in self.steps:
            try:
                owner = None if owner is None else field.value_of(owner)
            except AttributeError:  # e.g. `final` of a `FlowAdded`
                return None
        return owner

    def text(self, owner: Any, *, utc: bool = False) -> str:
        """The text of the value for people."""
        value, field = self.value(owner), self.steps[-1]
        return "*" if value is None and field in _ENDS else cell_text(field, value, utc=utc)


def event_columns(text: str) -> tuple[Column, ...]:
    """The columns of events of flows that a list with commas names.

    Raises:
        UsageError: There is no such field.
    """
    return _columns(text, (_NAME, *_EVENT_FIELDS), _PREFIXES)


def row_columns(text: str) -> tuple[Column, ...]:
    """The columns of rows that a list with commas names.

    Raises:
        UsageError: There is no such field.
    """
    return _columns(text, TABLE.of(Row).fields, _ROW_PREFIXES)


def _columns(text: str, fields: tuple[Field, ...], prefixes: tuple[tuple[str, ...], ...]) -> tuple[Column, ...]:
    found = []
    for name in (part.strip() for part in text.split(",")):
        keys = tuple(name.split("."))
        paths = (_path((*prefix, *keys), fields) for prefix in prefixes)
        steps = next((path for path in paths if path is not None), None)
        if steps is None:
            known = sorted(_names(fields, prefixes))
            raise UsageError(
                f"fields: {name!r} is not a field such as pid, name or rx_bytes{did_you_mean(name, known)} (docs/fields.md lists them)"
            )
        found.append(Column(name.upper(), steps))
    return tuple(found)


def _path(keys: tuple[str, ...], fields: Iterable[Field]) -> tuple[Field, ...] | None:
    for field in fields:
        if field.key == keys[0]:
            if len(keys) == 1:
                return (field,)
            rest = None if field.kind.record is None else _path(keys[1:], TABLE.of(field.kind.record).fields)
            return None if rest is None else (field, *rest)
    return None


def _names(fields: Iterable[Field], prefixes: tuple[tuple[str, ...], ...], before: str = "") -> Iterator[str]:
    """All names, with and without the prefixes that may be left out."""
    short = {".".join(prefix) + "." for prefix in prefixes if prefix}
    for field in fields:
        name = f"{before}{field.key}"
        yield name
        if before in short:
            yield field.key
        if field.kind.record is not None:
            yield from _names(TABLE.of(field.kind.record).fields, prefixes, f"{name}.")


def picked(value: Event | Row, columns: Iterable[Column], moment: float | None = None) -> dict[str, Any]:
    """The usual JSON object with only the chosen fields."""
    chosen = tuple(columns)
    full = any(step.full for column in chosen for step in column.steps)
    line = to_dict(value, time=moment, full=full)
    result: dict[str, Any] = {key: line[key] for key in ("v", "event") if key in line}
    for column in chosen:
        source: dict[str, Any] = line
        target = result
        for key in column.keys[:-1]:
            source = source.get(key) or {}
            target[key] = target.get(key) or {}
            target = target[key]
        target[column.keys[-1]] = source.get(column.keys[-1])
    return result
