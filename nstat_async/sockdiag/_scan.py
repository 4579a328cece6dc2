"""Compares the rows of a dump with the dump before. The C code (``_speedups.c``) does the same; this is its reference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import eq

import attrs

from .._compiled import speedups
from ._entry import Entry, Shared
from ._rows import Columns, Pieces, RowFormat

FEW = 8
"""If a comparison of this many rows finds a difference, they are compared one by one."""
MANY = 1024
"""Most rows that are compared at once."""
ALIKE = 12
"""Bytes that rows which begin alike have in common: length, type, flags and sequence number."""
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
    columns: list[memoryview] = attrs.Factory(list)
    """The numbers that are compared, column by column; empty while the datagram has them."""
    shared: Shared | None = None
    """The common mark of the sockets; `None` until the same rows came a second time as one whole datagram."""

    def numbers(self, place: int, number: int) -> Iterable[memoryview]:
        """The columns of `number` rows, from the one at `place` on."""
        if not self.columns:
            begin = self.end - (len(self.entries) - place) * self.form.stride
            return columns_in(memoryview(self.data)[begin : begin + number * self.form.stride], self.form.columns)
        if number == len(self.entries):
            return self.columns
        return (column[place : place + number] for column in self.columns)

    def share(self, poll: int) -> bool:
        """Mark all sockets at once: this poll had their rows, unchanged. False if one of them changed otherwise."""
        if self.shared is not None and self.shared.holds:
            self.shared.poll = poll
            return True
        if [entry.last for entry in self.entries] != self.pieces:
            return False
        self.shared = shared = Shared(poll)
        for entry in self.entries:
            entry.share(shared)
        if self.data:  # a third of the memory, and quicker to compare
            numbers = self.numbers(0, len(self.entries))
            self.columns = [memoryview(bytes(column)).cast(column.format) for column in numbers]  # type: ignore[call-overload]
            self.data = b""
        return True


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

    def pass_whole(self, data: bytes, form: RowFormat, poll: int) -> bool:
        """Mark the sockets of a datagram that has the rows of the expected one, unchanged; false if it has other rows."""
        if self._place or self._run >= len(self._before):
            return False
        run = self._before[self._run]
        if run.form is not form or len(run.entries) * form.stride != len(data):
            return False
        if not are_alike(memoryview(data), form.columns, run.numbers(0, len(run.entries))) or not run.share(poll):
            return False
        self._now.append(run)
        self._run += 1
        return True

    def pass_over(self, data: bytes, offset: int, end: int, form: RowFormat, poll: int) -> int:
        """Mark the sockets of rows that are as expected and unchanged; returns the offset after these rows."""
        rows, stride = memoryview(data), form.stride
        while offset < end and self._run < len(self._before):
            run, place = self._before[self._run], self._place
            number = min((end - offset) // stride, len(run.entries) - place, self._most)
            behind = offset + number * stride
            entries, pieces = run.entries[place : place + number], run.pieces[place : place + number]
            if (
                run.form is form
                and are_alike(rows[offset:behind], form.columns, run.numbers(place, number))
                and [entry.last for entry in entries] == pieces
            ):
                for entry in entries:
                    entry.seen = poll
                offset = behind
                self.keep(entries, pieces, data, offset, form)
                self._move(number)
                self._most = min(MANY, max(self._most, 2 * number))
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


def columns_in(rows: memoryview, columns: Columns) -> Iterator[memoryview]:
    """The columns of these rows."""
    for code, places in columns:
        numbers = rows.cast(code)  # type: ignore[call-overload]  # one of its letters
        for place in places:
            yield numbers[place]


def are_alike(rows: memoryview, columns: Columns, others: Iterable[memoryview]) -> bool:
    """True if all columns of the rows are these."""
    return all(map(eq, columns_in(rows, columns), others))


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
        if offset == 0 and not every and memory.pass_whole(data, form, poll):
            offset = len(data)
        else:
            offset = _scan_one(data, offset, entries, poll, every, apply, protocol, form, memory)
        number += (offset - begin) // form.stride
        following = datagrams[index + 1] if index + 1 < len(datagrams) else b""
        if offset < len(data) or len(following) < ALIKE or following[:ALIKE] != data[begin : begin + ALIKE]:
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
            if entry is not None and entry.last == pieces and not every:
                known.append(entry)
            elif known:
                memory.keep(known, [each.last for each in known], data, offset, form)
                known = []
            offset += stride
        if known:
            memory.keep(known, [each.last for each in known], data, offset, form)
        memory.go_behind(entry, (offset - begin) // stride)
