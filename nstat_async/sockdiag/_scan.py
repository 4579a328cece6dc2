"""Rows of a dump, compared with what is known of their sockets. The reference of the same in C (``_speedups.c``)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from .._compiled import speedups
from ._entry import Entry
from ._rows import Pieces, RowFormat

FEW = 4
"""Rows that are cut before it is known whether those behind them begin alike."""
LOOK_AHEAD = 64
"""Sockets that may be gone since, for the next one to be where it is expected."""

Apply = Callable[[Entry | None, int, Pieces, bytes, RowFormat], None]


class Memory:
    """The sockets of the last dump of a kind in their order: a kernel lists them by its own tables, so the next one has it, too."""

    def __init__(self) -> None:
        self.now: list[Entry] = []
        """Sockets of the dump under way."""

    def begin(self) -> None:
        """Another dump begins: what the one under way had is what the next one is compared with, from its first place on."""
        self._before, self.now, self._next = self.now, [], 0

    def has(self, rows: list[Pieces], poll: int) -> bool:
        """True if these rows are those that are expected, and as they were; their sockets are marked."""
        expected = self._before[self._next : self._next + len(rows)]
        if [entry.last for entry in expected] != rows:
            return False
        for entry in expected:
            entry.seen = poll
        self.now += expected
        self._next += len(rows)
        return True

    def go_behind(self, entry: Entry | None, number: int) -> None:
        """So many rows were looked at one by one, this socket's the last."""
        try:
            self._next = self._before.index(entry, self._next, self._next + number + LOOK_AHEAD) + 1  # type: ignore[arg-type]
        except ValueError:
            self._next += number


def new_memory() -> Memory:
    """A memory for whatever scans: the Python code, or the C code."""
    made: Memory = Memory() if speedups is None else speedups.Memory()
    return made


def scan(
    data: bytes,
    offset: int,
    entries: dict[int, Entry],
    poll: int,
    every: bool,  # as the C code has it
    apply: Apply,
    protocol: int,
    form: RowFormat,
    memory: Memory,
) -> int:
    """Take in the row at `offset` and those behind it that begin alike.

    Args:
        data: A datagram.
        offset: Where its first row is.
        entries: What is known, by cookie.
        poll: Marks the sockets whose rows are as they were.
        every: Apply these rows, too.
        apply: Called with all others: the socket if it is known, its protocol, the pieces of the row, it and its form.
        protocol: For `apply`.
        form: How to cut the rows.
        memory: Of this dump.

    Returns:
        The offset behind them.
    """
    length, stride, get = form.length, form.stride, entries.get
    end = offset + (len(data) - offset) // stride * stride
    cut = form.format.iter_unpack(memoryview(data)[offset:end])
    rows = list(islice(cut, FEW))
    head = rows[0][0]
    if rows[-1][0] == head:
        rows += cut
    alike = rows[-1][0] == head  # a longer last row may look like what is known of it, cut as these are
    expected = alike and not every and memory.has(rows, poll)
    unlike = None if expected else next((number for number, row in enumerate(rows) if row[0] != head), None)
    if unlike is not None:
        del rows[unlike:]
        expected = not every and memory.has(rows, poll)
    if expected:
        return offset + len(rows) * stride
    entry = None
    for pieces in rows:
        entry = get(pieces[2])
        if entry is not None and entry.last == pieces and not every:
            entry.seen = poll
        else:
            apply(entry, protocol, pieces, data[offset : offset + length], form)
            entry = get(pieces[2])
        if entry is not None:
            memory.now.append(entry)
        offset += stride
    memory.go_behind(entry, len(rows))
    return offset
