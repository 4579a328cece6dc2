"""The SQLite file of a history: its tables, how it is opened, and what may go wrong.

The file is in WAL mode, so that reading never waits for writing. Every transaction is flushed
to the disk (``synchronous=FULL``): one per bucket is cheap, and a written bucket survives
a crash of the program or the machine.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from nstat_async._errors import NstatError
from nstat_async._escape import unicode
from nstat_async._fields import TABLE, Field, FieldTable, SqlTable
from nstat_async._io.sqlite import may_make_files, why_not_opened
from nstat_async._model import Process
from nstat_async._rows import Row

APPLICATION_ID = 0x6E737461
_FIRST = """
CREATE TABLE process (
    id         INTEGER PRIMARY KEY,
    identity   TEXT NOT NULL UNIQUE, -- JSON of the columns below: UNIQUE takes each NULL for another value
    {process}
);
CREATE TABLE traffic (
    start      INTEGER NOT NULL,     -- of the bucket, seconds since the epoch
    process    INTEGER NOT NULL REFERENCES process (id),
    length     REAL NOT NULL,        -- of the bucket, seconds
    {traffic},
    PRIMARY KEY (start, process)
) WITHOUT ROWID;
CREATE TABLE gap (
    start  INTEGER NOT NULL,         -- of the bucket in which it was reported
    cause  TEXT NOT NULL,
    events INTEGER NOT NULL,         -- reports of it
    count  INTEGER NOT NULL,         -- flows or messages concerned, as far as they are known
    PRIMARY KEY (start, cause)
) WITHOUT ROWID;
CREATE INDEX traffic_by_process ON traffic (process);
"""

_VIEW = """\
CREATE TABLE {table} (
    start      INTEGER NOT NULL,     -- of the bucket, seconds since the epoch
    {column:<10} TEXT NOT NULL,        -- {comment}
    length     REAL NOT NULL,        -- of the bucket, seconds
    {traffic},
    PRIMARY KEY (start, {column})
) WITHOUT ROWID;
"""


@attrs.frozen
class View:
    """A further table of traffic, with the counters that ``traffic`` had when this table came."""

    table: str
    column: str
    """The column that it groups by."""
    comment: str
    since: int
    """The schema that brought it."""


REMOTES = View("remote", "address", "of the peer; empty: none is known, or it is not among the largest", 2)
OUTCOMES = View("outcome", "outcome", "how flows ended; they count whole where they end", 3)
_VIEWS = (REMOTES, OUTCOMES)


@attrs.frozen
class Schema:
    """The schema for a table of fields: its first version, and the steps from each version to the next."""

    fields: FieldTable

    @property
    def version(self) -> int:
        """The newest version."""
        return self.fields.schema_version

    def columns(self, table: SqlTable, version: int) -> dict[str, tuple[type, Field]]:
        """The columns of a table in a version, by name, each with its class and field."""
        return {field.name: (cls, field) for cls, field in self.fields.columns(table) if field.since <= version}

    def step(self, version: int) -> str:
        """The statements that bring a file of the previous version (0: an empty file) to this version."""
        new = {
            table: [(name, _type(table, field)) for name, (_, field) in self.columns(table, version).items()
                    if field.since == version]
            for table in SqlTable
        }  # fmt: skip
        if version == 1:
            return _FIRST.format(
                **{
                    table.value: ",\n    ".join(" ".join(column) for column in columns)
                    for table, columns in new.items()
                }
            )
        views = [self._view(view) for view in _VIEWS if view.since == version]
        return "".join(views) + "".join(
            f"ALTER TABLE {table.value} ADD COLUMN {name} {kind};\n"
            for table, columns in new.items() for name, kind in columns
        )  # fmt: skip

    def _view(self, view: View) -> str:
        traffic = ",\n    ".join(self._counters(view.since))
        return _VIEW.format(table=view.table, column=view.column, comment=view.comment, traffic=traffic)

    def _counters(self, version: int) -> list[str]:
        """The columns of counters, with their types."""
        found = self.columns(SqlTable.TRAFFIC, version).items()
        return [f"{name} {_type(SqlTable.TRAFFIC, field)}" for name, (_, field) in found]

    def process_values(self, row: Row) -> dict[str, Any]:
        """The values that identify a row, by column."""
        values = {}
        for name, (cls, field) in self.columns(SqlTable.PROCESS, self.version).items():
            owner: Any = row.process if cls is not Row else row
            value = None if owner is None else getattr(owner, name)
            value = None if value is None else field.kind.plain(value)
            values[name] = unicode(value) if isinstance(value, str) else value  # as in every other output
        return values

    def process_of(self, values: Mapping[str, Any]) -> Process | None:
        """The process that a row of the table ``process`` was made of; `None` if the row is not a process."""
        if values.get("pid") is None:
            return None
        record = self.fields.of(Process)
        known = {field.name: field for field in record.fields}
        found = {
            name: known[name].kind.read(value) for name, value in values.items() if name in known and value is not None
        }
        process: Process = record.cls(**found)
        return process


def _type(table: SqlTable, field: Field) -> str:
    if table is SqlTable.PROCESS:
        return field.kind.sql
    return field.kind.sql + (" NOT NULL" if field.since == 1 else " NOT NULL DEFAULT 0")


SCHEMA = Schema(TABLE)
TRAFFIC = View("traffic", "process", "the row of a process", SCHEMA.version)
_IDENTITY = ("kind", "source", "pid", "unique_pid", "name", "path", "uid")
"""Columns of the first schema, in the order of their values in ``identity``; known values of later columns follow, with their names."""


def addition(view: View, names: list[str]) -> str:
    """The statement that adds a bucket's counters to those in the file; its arguments are start, key, length and the counters."""
    added = ", ".join(f"{name} = {name} + excluded.{name}" for name in names)
    return (
        f"INSERT INTO {view.table} (start, {view.column}, length, {', '.join(names)}) VALUES (?, ?, ?{', ?' * len(names)})"  # noqa: S608  # our own names
        f" ON CONFLICT (start, {view.column}) DO UPDATE SET length = max(length, excluded.length), {added}"
    )


def process_id(connection: sqlite3.Connection, given: Mapping[str, Any]) -> int:
    """Id of the row of a process with these values; the row is made if need be."""
    values = {name: given.get(name) for name in SCHEMA.columns(SqlTable.PROCESS, SCHEMA.version)}
    later = [[name, value] for name, value in values.items() if name not in _IDENTITY and value is not None]
    identity = json.dumps([values[name] for name in _IDENTITY] + later)
    connection.execute(
        f"INSERT INTO process (identity, {', '.join(values)}) VALUES (?{', ?' * len(values)})"  # noqa: S608  # as above
        " ON CONFLICT (identity) DO NOTHING",
        (identity, *values.values()),
    )
    found: int = connection.execute("SELECT id FROM process WHERE identity = ?", (identity,)).fetchone()[0]
    return found


class HistoryError(NstatError):
    """A history cannot be opened, read or written; ``__cause__`` has SQLite's error.

    Args:
        path: The file.
        detail: What is wrong, for a person.
    """

    def __init__(self, path: str | os.PathLike[str], detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


def connect(path: str | os.PathLike[str], *, write: bool, schema: Schema = SCHEMA) -> tuple[sqlite3.Connection, int]:
    """Open a history. A writer makes the file if it does not exist, and brings an older one up to date.

    Returns:
        The connection, and the version of the file.

    Raises:
        HistoryError: It cannot be opened, or is another kind of file.
    """
    if _may_wait(path):
        raise HistoryError(path, "no history, but a pipe or a device")
    for way in _ways(Path(path), write=write):
        try:
            return _opened(path, schema, way, write=write)
        except sqlite3.OperationalError as error:
            failure = error
        except sqlite3.Error as error:
            raise HistoryError(path, f"no history: {error}") from error
        except OSError as error:
            raise HistoryError(path, f"cannot be opened: the current directory: {error.strerror}") from error
    raise HistoryError(path, f"cannot be opened: {why_not_opened(path, failure, write=write)}") from failure


def _ways(path: Path, *, write: bool) -> list[str]:
    """Ways to open the file, to be tried in order.

    A connection that may write removes the files of the write-ahead log at its end; one that may not leaves them behind. If
    these files do not exist and cannot be made, nobody writes, and the file is read as it is.
    """
    if write:
        return ["mode=rwc"]
    if os.access(path, os.W_OK) and may_make_files(path.parent):
        return ["mode=rw"]
    return ["mode=ro"] if Path(f"{path}-wal").exists() else ["mode=ro", "mode=ro&immutable=1"]


def _opened(path: str | os.PathLike[str], schema: Schema, way: str, *, write: bool) -> tuple[sqlite3.Connection, int]:
    target = f"{Path(path).absolute().as_uri()}?{way}"
    connection = sqlite3.connect(target, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA query_only={'OFF' if write else 'ON'}")
        return connection, _checked(connection, path, schema, write=write)
    except BaseException:
        connection.close()
        raise


def _may_wait(path: str | os.PathLike[str]) -> bool:
    """True for a path that is not a file: SQLite would wait for the other end of a pipe, and ignore signals."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _checked(connection: sqlite3.Connection, path: str | os.PathLike[str], schema: Schema, *, write: bool) -> int:
    application, version = _identity(connection)
    if write and application == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        application = APPLICATION_ID
    if application != APPLICATION_ID:
        empty = connection.execute("PRAGMA page_count").fetchone()[0] == 0
        raise HistoryError(path, "no history: it is empty" if empty else "no history, but a database of something else")
    if version > schema.version:
        raise HistoryError(
            path,
            f"written by a newer version of this library (version {version} of the format; this one knows {schema.version})",
        )
    if write:
        if not version:
            connection.execute(
                "PRAGMA auto_vacuum=INCREMENTAL"
            )  # of a new file only: it can shrink without being rewritten
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = _migrate(connection, schema) if version < schema.version else version
    return version


def _identity(connection: sqlite3.Connection) -> tuple[int, int]:
    """The ids in the file: (application, version)."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    return application, connection.execute("PRAGMA user_version").fetchone()[0]


def _migrate(connection: sqlite3.Connection, schema: Schema) -> int:
    """Carry out the missing steps, in order, all or none."""
    connection.execute("BEGIN IMMEDIATE")  # another writer may be about to do the same
    try:
        _, version = _identity(connection)
        for step in range(version + 1, schema.version + 1):
            for statement in schema.step(step).split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={max(version, schema.version)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    return schema.version
