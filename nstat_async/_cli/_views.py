"""Rows of a table as people see them: the name of each, their order, their columns."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from .._escape import escape
from .._fields import TABLE
from .._model import Process
from ..aggregate import GroupBy, Row, RowKind
from ._cells import cell_text, name_text, short_id
from ._columns import Column
from ._names import NameResolver

_Key = Callable[["View", Row], Any]
SORT_KEYS: dict[str, _Key] = {
    "rate": lambda _, row: (-(row.rate or 0.0), -row.bytes),
    "traffic": lambda _, row: -row.bytes,
    "rx": lambda _, row: -row.rx_bytes,
    "tx": lambda _, row: -row.tx_bytes,
    "flows": lambda _, row: (-row.open_flows, -row.flows),
    "name": lambda view, row: view.label(row).lower(),
    "pid": lambda _, row: -1 if row.pid is None else row.pid,
    "user": lambda view, row: view.user(row),
    "unit": lambda view, row: view.unit(row),
    "rx-rate": lambda _, row: (-(row.rx_rate or 0.0), -row.rx_bytes),
    "tx-rate": lambda _, row: (-(row.tx_rate or 0.0), -row.tx_bytes),
}
"""What ``--sort`` takes, and the key of each order: the most traffic comes first, names and pids rise."""


@functools.lru_cache(256)
def user_text(uid: int) -> str:
    """Name of a user of this machine, else the number."""
    try:
        name: str = importlib.import_module("pwd").getpwuid(uid).pw_name
    except (ImportError, KeyError, OverflowError):  # no such user, or a system without users
        return str(uid)
    return escape(name)


@attrs.frozen(eq=False)
class View:
    """What the rows stand for, and how they are shown."""

    group_by: GroupBy = attrs.field(factory=GroupBy.processes)
    names: NameResolver | None = None
    """Finds the names of remote addresses; `None`: names are not wanted."""
    users: bool = True
    """True: the users are those of this machine, which can name them."""

    @property
    def is_of_processes(self) -> bool:
        """True when a row is a process."""
        return self.group_by.process_of is not None

    @property
    def shows_names(self) -> bool:
        """True when a row is something whose name can be looked up."""
        return self.group_by.name == "remote address"

    @property
    def heading(self) -> str:
        """What a row is, as the heading of its column."""
        return "PROCESS" if self.is_of_processes else self.group_by.name.upper()

    def named(self, row: Row) -> Row:
        """The row of a user, with this machine's name for the user unless the row has one."""
        if self.users and self.group_by.name == "user" and row.text is None and isinstance(row.key, int):
            return attrs.evolve(row, text=user_text(row.key))
        return row

    def label(self, row: Row) -> str:
        """The name of a row, escaped."""
        row = self.named(row)
        if row.kind is RowKind.UNKNOWN and not self.is_of_processes:
            return "(unknown)"
        if row.kind is RowKind.GROUP and row.process is not None and row.process.name is not None:
            text = name_text(row.process)
        else:
            text = escape(short_id(row.label))
        if row.kind is RowKind.GROUP and self.shows_names:
            text = self.with_name(text)
        return text if row.source is None else f"{text} @{escape(row.source)}"

    def user(self, row: Row) -> str:
        """The user of a process; empty where it is not known."""
        process = row.process
        if process is None or process.uid is None:
            return ""
        return escape(process.user) if process.user else user_text(process.uid) if self.users else str(process.uid)

    @staticmethod
    def unit(row: Row) -> str:
        """The container of a process, else its unit; empty where it has none."""
        return escape(row.container or row.unit or "")

    def with_name(self, address: str) -> str:
        """An address with its name, where that is asked for and known."""
        name = None if self.names is None else self.names.name(address)
        return address if name is None else f"{address} ({escape(name)})"

    def sorted(self, rows: Sequence[Row], key: str) -> list[Row]:
        """The rows in the order of a key of `SORT_KEYS`."""
        return sorted(rows, key=functools.partial(SORT_KEYS[key], self))

    def columns(self, rows: Sequence[Row]) -> list[Column]:
        """The fields of a row and its process that have a heading and a value in at least one row."""
        record = TABLE.of(Row)
        inner = next(field for field in record.fields if field.name == "process")
        found = [Column(field.heading, (field,)) for field in record.fields if field.heading]
        found += [Column(field.heading, (inner, field)) for field in TABLE.of(Process).fields if field.heading]
        if not self.is_of_processes:
            found = [column for column in found if column.steps[0].name != "pid" and column.steps[0] is not inner]
        return [
            each for each in found
            if not each.steps[-1].later or not all(each.steps[-1].is_absent(each.value(row)) for row in rows)
        ]  # fmt: skip

    def cell(self, column: Column, row: Row) -> str:
        """The text of a cell."""
        field = column.steps[-1]
        if field.name == "name" and len(column.steps) == 1:
            return self.label(row)
        value = column.value(row)
        # A row that is not a process has no pid, which differs from a pid that is unknown.
        return "" if value is None and not field.unit else cell_text(field, value)

    def heading_of(self, column: Column) -> str:
        """The heading of a column; the heading of the name says what a row is."""
        return self.heading if column.heading == "PROCESS" else column.heading
