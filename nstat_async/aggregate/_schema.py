"""The SQLite file of a history: its tables, how it is opened, and what may go wrong.

The file is in WAL mode, so that reading never waits for writing, and every
transaction is flushed to the disk (``synchronous=FULL``): one a bucket is cheap, and a
bucket that was written survives a crash of the machine as well as of the program.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from nstat_async._errors import NstatError

if TYPE_CHECKING:
    import os

__all__ = ["HistoryError", "connect"]

APPLICATION_ID = 0x6E737461
VERSION = 1

SCHEMA = """
CREATE TABLE process (
    id         INTEGER PRIMARY KEY,
    identity   TEXT NOT NULL UNIQUE, -- JSON of the columns below: UNIQUE takes each NULL for another value
    kind       TEXT NOT NULL,        -- group (a process), unknown, other (folded together), lost
    source     TEXT,                 -- machine or recording, when named
    pid        INTEGER,
    unique_pid INTEGER,              -- tells processes with the same pid apart
    name       TEXT,
    path       TEXT,
    uid        INTEGER
);
CREATE TABLE traffic (
    start           INTEGER NOT NULL, -- of the bucket, seconds since the epoch
    process         INTEGER NOT NULL REFERENCES process (id),
    length          REAL NOT NULL,    -- of the bucket, seconds
    flows           INTEGER NOT NULL, -- that began in it
    uncounted_flows INTEGER NOT NULL, -- those of them whose bytes are not told
    rx_bytes        INTEGER NOT NULL,
    tx_bytes        INTEGER NOT NULL,
    rx_packets      INTEGER NOT NULL,
    tx_packets      INTEGER NOT NULL,
    PRIMARY KEY (start, process)
) WITHOUT ROWID;
CREATE TABLE gap (
    start  INTEGER NOT NULL,          -- of the bucket in which it was reported
    cause  TEXT NOT NULL,
    events INTEGER NOT NULL,          -- reports of it
    count  INTEGER NOT NULL,          -- flows or messages concerned, as far as told
    PRIMARY KEY (start, cause)
) WITHOUT ROWID;
CREATE INDEX traffic_by_process ON traffic (process);
"""


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


def connect(path: str | os.PathLike[str], *, write: bool) -> sqlite3.Connection:
    """Open a history; a writer makes it if it is not there.

    Raises:
        HistoryError: It cannot be opened, or is something else.
    """
    try:
        if write:
            connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        else:
            uri = f"{Path(path).absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise HistoryError(path, f"cannot be opened: {error}") from error
    try:
        _check(connection, path, write=write)
    except sqlite3.Error as error:
        connection.close()
        raise HistoryError(path, f"is no history: {error}") from error
    except HistoryError:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: str | os.PathLike[str], *, write: bool) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if write and application == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        connection.execute("PRAGMA journal_mode=WAL")
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={VERSION};COMMIT;"
            )
        except sqlite3.OperationalError:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # Another writer may have made it at the same moment; anything else is an error.
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise
        application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        raise HistoryError(path, "is a database of something else")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise HistoryError(path, f"has version {version} of the format; this library knows {VERSION}")
    if write:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
