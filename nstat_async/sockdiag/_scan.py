"""Compares the rows of a dump with the dump before. The C code (``_speedups.c``) does the same; this is its reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice

import attrs

from .._compiled import speedups
from ._entry import Entry
from ._rows import Columns, Pieces, RowFormat

FEW = 8
"""If a comparison of this many rows finds a difference, they are compared one by one."""
MANY = 1024
"""Most rows that are compared at once."""
LOOK_AHEAD = 64
"""Most expected sockets that are skipped as gone to find the one of a row."""

Apply = Callable[[Entry | None, int, Pieces, bytes, RowFormat], None]


@attrs.define
class _Run:
    """Consecutive rows of one datagram, each with its socket."""

    entries: list[Entry]
    pieces: list[Pieces]
    """The pieces of the last row of each socket; `Entry.last` is another object if another source reported the socket since."""
    data: bytes
    end: int
    """Offset after the rows."""
    form: RowFormat


class Memory:
    """The last dump of a kind. The kernel lists sockets in the order of its tables, so most rows are where they were before."""

    def __init__(self) -> None:
        self._now: list[_Run] = []
        self._most = MANY

    def begin(self) -> None:
        """Begin a dump, and compare it with the one before from the first row on."""
        self._before, self._now = self._now, []
        self._run = self._place = 0

    @property
    def over(self) -> bool:
        """True if no more sockets are expected."""
        return self._run >= len(self._before)

    def pass_over(self, data: bytes, offset: int, end: int, form: RowFormat, poll: int) -> int:
        """Mark the sockets of rows that are as expected and unchanged; returns the offset after these rows."""
        rows, stride = memoryview(data), form.stride
        while offset < end and self._run < len(self._before):
            run = self._before[self._run]
            left = len(run.entries) - self._place
            number = min((end - offset) // stride, left, self._most)
            there, size = run.end - left * stride, number * stride
            entries, pieces = run.entries, run.pieces
            if number < len(entries):
                expected = slice(self._place, self._place + number)
                entries, pieces = entries[expected], pieces[expected]
            if (
                run.form is form
                and are_alike(rows[offset : offset + size], memoryview(run.data)[there : there + size], form.columns)
                and [entry.last for entry in entries] == pieces
            ):
                for entry in entries:
                    entry.seen = poll
                offset += size
                self.keep(entries, pieces, data, offset, form)
                self._move(number)
                self._most = min(MANY, 2 * number)
            elif number > FEW:
                self._most = max(FEW, number // 2)
            else:
                break
        return offset

    def keep(self, entries: list[Entry], pieces: list[Pieces], data: bytes, end: int, form: RowFormat) -> None:
        """Remember consecutive rows of the present dump; the last one ends at this offset."""
        last = self._now[-1] if self._now else None
        if (
            last is not None
            and last.data is data
            and last.end == end - len(entries) * form.stride
            and last.form is form
        ):
            entries, pieces = last.entries + entries, last.pieces + pieces
            self._now.pop()
        self._now.append(_Run(entries, pieces, data, end, form))

    def go_behind(self, entry: Entry | None, number: int) -> None:
        """Skip `number` rows that were compared one by one; the last one is this socket's."""
        if self.over:
            return
        place, many = self._place, number + LOOK_AHEAD
        ahead: list[Entry] = []
        for run in islice(self._before, self._run, None):
            ahead += run.entries
            if len(ahead) >= place + many:
                break
        try:
            number = ahead.index(entry, place, place + many) + 1 - place  # type: ignore[arg-type]
        except ValueError:
            number = min(number, len(ahead) - place)
        self._move(number)

    def _move(self, number: int) -> None:
        """Stop expecting the next `number` sockets."""
        self._place += number
        while self._run < len(self._before) and self._place >= len(self._before[self._run].entries):
            self._place -= len(self._before[self._run].entries)
            self._run += 1


def are_alike(rows: memoryview, others: memoryview, columns: Columns) -> bool:
    """True if the rows are equal in all columns."""
    for code, places in columns:
        here, there = rows.cast(code), others.cast(code)  # type: ignore[call-overload]  # one of its letters
        for place in places:
            if here[place] != there[place]:
                return False
    return True


def new_memory() -> Memory:
    """A memory for the scan that is used: the Python code's, or the C code's."""
    made: Memory = Memory() if speedups is None else speedups.Memory()
    return made


def scan(
    datagrams: tuple[bytes, ...],
    index: int,
    offset: int,
    entries: dict[int, Entry],
    poll: int,
    every: bool,  # in the place where the C code has it
    apply: Apply,
    protocol: int,
    form: RowFormat,
    memory: Memory,
) -> tuple[int, int, int]:
    """Take in the row at `offset` and the rows after it that begin alike, also in the next datagrams.

    Args:
        datagrams: The datagrams.
        index: Index of the datagram.
        offset: Offset of its first row.
        entries: The known sockets, by cookie.
        poll: Serial of the poll, which marks the sockets of unchanged rows.
        every: Apply unchanged rows, too.
        apply: Called for each other row with the socket if it is known, protocol, the pieces of the row, the row and its form.
        protocol: For `apply`.
        form: How to cut the rows.
        memory: The memory of this kind of dump.

    Returns:
        Index and offset after these rows, and their number.
    """
    number = 0
    while True:
        data, begin = datagrams[index], offset
        offset = _scan_one(data, offset, entries, poll, every, apply, protocol, form, memory)
        number += (offset - begin) // form.stride
        following = datagrams[index + 1] if index + 1 < len(datagrams) else b""
        if offset < len(data) or len(following) < 12 or following[:12] != data[begin : begin + 12]:
            return index, offset, number
        index, offset = index + 1, 0


def _scan_one(
    data: bytes,
    offset: int,
    entries: dict[int, Entry],
    poll: int,
    every: bool,
    apply: Apply,
    protocol: int,
    form: RowFormat,
    memory: Memory,
) -> int:
    """As `scan`, in one datagram; returns the offset after the rows."""
    length, stride, get = form.length, form.stride, entries.get
    head = int.from_bytes(data[offset : offset + 8], sys.byteorder)
    end = offset + (len(data) - offset) // stride * stride
    while True:
        if not every:
            offset = memory.pass_over(data, offset, end, form, poll)
        if offset == end:
            return offset
        begin, some = offset, end if every or memory.over else min(end, offset + FEW * stride)
        known: list[Entry] = []
        entry = None
        for pieces in form.format.iter_unpack(memoryview(data)[offset:some]):
            if pieces[0] != head:
                end = offset
                break
            entry = get(pieces[2])
            if entry is not None and entry.last == pieces and not every:
                entry.seen = poll
            else:
                apply(entry, protocol, pieces, data[offset : offset + length], form)
                entry = get(pieces[2])
            if entry is not None and entry.last == pieces:
                known.append(entry)
            elif known:
                memory.keep(known, [each.last for each in known], data, offset, form)
                known = []
            offset += stride
        if known:
            memory.keep(known, [each.last for each in known], data, offset, form)
        memory.go_behind(entry, (offset - begin) // stride)
