"""Keeps the messages of a machine until the server has them: in memory, or in a file that outlives the process."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from .._errors import UsageError
from ..fleet import Message
from .sqlite import why_not_opened
from .threads import in_thread

_APPLICATION_ID = 0x6E73706F  # "nspo", in the file's header
_PAGE = 4096
_FREE_PAGES = 256
"""How many free pages (a MiB) an empty file may have before it is made smaller."""
_AGAIN_SECONDS = 5.0
"""Seconds after which a file without room is tried again, if the server takes no message of it."""
_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE message (number INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, events INTEGER NOT NULL);
"""
_T = TypeVar("_T")


class Outbox:
    """Keeps one message in memory, which is being sent: the next one is made when the server has it."""

    def __init__(self) -> None:
        self._message: Message | None = None
        self._changed = anyio.Event()
        self.unsaved = 0
        """Messages that neither the server nor a file had when it was closed."""

    @property
    def lasts(self) -> bool:
        """True if the messages here outlive the process."""
        return False

    async def room(self) -> None:
        """Wait until another message may be made."""
        await self._until(lambda: self.waiting == 0)

    async def put(self, message: Message) -> None:
        """Keep a message."""
        self._message = message
        self._change()

    async def first(self) -> Message:
        """The oldest message; waits until there is one."""
        await self._until(lambda: self._message is not None)
        assert self._message is not None
        return self._message

    async def drop(self, message: Message) -> None:
        """The server has this message, which is what `first` gave."""
        if message is self._message:
            self._message = None
            self._change()

    async def emptied(self) -> None:
        """Wait until the server has everything."""
        await self._until(lambda: self.waiting == 0)

    @property
    def waiting(self) -> int:
        """Messages that wait."""
        return int(self._message is not None)

    def close(self) -> None:
        """Close it: nothing is put or read any more."""
        self.unsaved += int(self._message is not None)
        self._message = None

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Spool(Outbox):
    """Keeps messages in an SQLite file of bounded size, oldest first. After a kill the publisher's next run finds them.

    While the file cannot be written, messages wait in memory, as without it; what is in the file is published first.

    Args:
        path: The file; made if it does not exist. It has one publisher at a time.
        most_bytes: Greatest size of the file.
        subject: First words of the subjects, ``nstat.HOST.``: a file of another machine is refused.
        report: Called with a line for a person when the file is full, cannot be written, or fails.

    Raises:
        UsageError: The file cannot be opened, belongs to another running publisher, or is not a spool.
    """

    def __init__(
        self, path: str | os.PathLike[str], most_bytes: int, subject: str, report: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._path, self._most_bytes, self._report = os.fspath(path), most_bytes, report
        self._file: sqlite3.Connection | None = None
        self._turn = anyio.Lock()
        self._subject = subject
        self._full = False
        """True while a message waits for room in the file."""
        self._why = ""
        """Why nothing can be written, since that was said."""
        self._stored = 0
        """Messages in the file that the server does not have."""
        self._sent = self._first = 0
        """Numbers in the file: of the newest message that the server has, and of the oldest that it does not have."""
        try:
            self._file = sqlite3.connect(self._path, timeout=0.0, isolation_level=None, check_same_thread=False)
            self._prepare(self._file, subject)
        except (sqlite3.Error, UsageError) as error:
            self.close()
            why = why_not_opened(self._path, error, write=True) if isinstance(error, sqlite3.Error) else str(error)
            raise UsageError(f"spool: {self._path}: {_said(why)}") from error

    @property
    def lasts(self) -> bool:
        """True while there is a file."""
        return self._file is not None

    def _prepare(self, file: sqlite3.Connection, subject: str) -> None:
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("BEGIN EXCLUSIVE")  # fails while another process has it
        file.execute("COMMIT")
        if not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            file.executescript(_SCHEMA)
        if file.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
            raise UsageError("it is a database of something else")
        # What a killed process had written is kept; a machine that loses power may lose its last moments.
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute(f"PRAGMA max_page_count = {self._most_bytes // _PAGE}")
        others = "SELECT subject FROM message WHERE substr(subject, 1, ?) <> ? LIMIT 1"
        for (other,) in file.execute(others, (len(subject), subject)):
            raise UsageError(
                f"it has messages of {other.rpartition('.')[0]}: publish them as that machine, or delete it"
            )
        self._stored = file.execute("SELECT count(*) FROM message").fetchone()[0]

    @property
    def waiting(self) -> int:
        """Messages that wait."""
        return self._stored + super().waiting

    async def room(self) -> None:
        """Wait until another message may be made."""
        await self._until(lambda: not self._full and self._message is None)

    async def put(self, message: Message) -> None:
        """Keep a message; waits while the file has others and no room."""
        changed = self._changed
        while not await self._ask(_insert, (message.subject, message.id, message.data, message.events)):
            if not self._stored:  # no file, or no room although it is empty
                await super().put(message)
                return
            self._full = True
            with anyio.move_on_after(_AGAIN_SECONDS):  # others may make room on the disk
                await changed.wait()
            changed = self._changed
        self._stored += 1
        self._full, self._why = False, ""
        self._change()

    async def first(self) -> Message:
        """The oldest message; waits until there is one."""
        while True:
            await self._until(lambda: self.waiting > 0)
            found = await self._ask(_oldest, self._sent, self._subject) if self._stored else None
            if found is not None:
                self._first, *values = found
                return Message(*values)
            self._stored = 0
            if self._message is not None:
                return self._message

    async def drop(self, message: Message) -> None:
        """The server has this message, which is what `first` gave."""
        if message is self._message:
            await super().drop(message)
        elif self._stored:  # else the file has failed meanwhile
            self._stored -= 1
            self._sent, self._full = self._first, False
            await self._ask(_delete, self._sent)
            self._change()

    def close(self) -> None:
        """Close the file; the messages stay in it."""
        before = self.unsaved
        self.unsaved += int(self._full)
        self._full = False
        super().close()
        if self.unsaved > before:
            self._report(f"{self._path} does not have the last events, which are lost")
        self._close_file()

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    async def _ask(self, work: Callable[..., _T], *values: Any) -> _T | None:
        """Do some work on the file in a worker thread; `None` if the file is full, or cannot be used any more."""
        async with self._turn:
            if self._file is None:
                return None
            try:
                return await in_thread(work, self._file, *values)
            except sqlite3.Error as error:
                # A file that cannot be written (the limit, the disk, a quota) can mostly be read.
                if work is _oldest or not await self._is_readable():
                    self._fail(error)
                elif work is _insert:
                    self._say_why("full" if "is full" in str(error) else f"not writable ({error})")
                return None

    async def _is_readable(self) -> bool:
        try:
            await in_thread(_oldest, self._file, self._sent, self._subject)
        except sqlite3.Error:
            return False
        return True

    def _say_why(self, why: str) -> None:
        if why != self._why:
            self._why = why
            self._report(f"{self._path} is {why}: events wait in memory, where updates of a flow become one")

    def _fail(self, error: sqlite3.Error) -> None:
        lost = f", {self._stored} messages of it are lost" if self._stored else ""
        self._report(f"{self._path}: {_said(str(error))}: going on without it{lost}")
        self._stored, self._full = 0, False
        self._close_file()
        self._change()


def _insert(file: sqlite3.Connection, values: tuple[Any, ...]) -> bool:
    file.execute("INSERT INTO message (subject, id, data, events) VALUES (?, ?, ?, ?)", values)
    return True


def _oldest(file: sqlite3.Connection, sent: int, words: str) -> Any:
    select = "SELECT number, subject, id, data, events FROM message WHERE number > ? ORDER BY number LIMIT 1"
    found = file.execute(select, (sent,)).fetchone()
    if found is not None and not _is_message(words, *found[1:]):
        raise sqlite3.DatabaseError("a message in it is damaged")
    return found


def _is_message(words: str, subject: Any, identity: Any, data: Any, events: Any) -> bool:
    """False for a row that no server takes: it would be published again and again."""
    kinds = isinstance(subject, str), isinstance(identity, str), isinstance(data, bytes), isinstance(events, int)
    return all(kinds) and subject.removeprefix(words).isidentifier() and identity.isprintable()


def _delete(file: sqlite3.Connection, sent: int) -> None:
    file.execute("DELETE FROM message WHERE number <= ?", (sent,))
    free = file.execute("PRAGMA freelist_count").fetchone()[0]
    if free > _FREE_PAGES and not file.execute("SELECT EXISTS (SELECT 1 FROM message)").fetchone()[0]:
        file.execute("PRAGMA incremental_vacuum").fetchall()


def _said(error: str) -> str:
    return "another publisher uses it" if "locked" in error else error
