"""Makes the entry of a new socket from its first row. The C code (``_speedups.c``) does the same; this is its reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .._compiled import speedups
from .._model import Direction
from ._cgroups import CGROUP_HEADER, cgroup_of
from ._constants import IPPROTO_TCP, TIMER_TIME_WAIT, SocketState
from ._direction import ACCEPTED, AFTER_FIN, BEFORE_FIN, OPENED, evidence_in, evidence_of
from ._entry import Entry, Keeper, Weight
from ._finals import FIN_RECEIVED, is_behind_fin
from ._reports import SocketReport, socket_report
from ._rows import NO_PORT, REMAINS, Pieces, RowFormat, info_of, is_first_fin

_TOLD_BY_STATE = frozenset({SocketState.LISTEN, SocketState.SYN_SENT})
_DIRECTIONS = {ACCEPTED: Direction.INBOUND, OPENED: Direction.OUTBOUND}
_SEQUENCE, _ESTABLISHED = Weight.SEQUENCE, int(SocketState.ESTABLISHED)

MakeEntry = Callable[..., Entry]


def _make_entry(
    keeper: Callable[[], Keeper | None],
    protocol: int,
    pieces: Pieces,
    message: bytes,
    form: RowFormat,
    poll: int,
    reading: float,
    listening: Mapping[bytes, Any],
) -> Entry:
    """The entry of a socket that was not known.

    Args:
        keeper: A weak reference to its book.
        protocol: Protocol of the socket.
        pieces: The pieces of the row.
        message: The row.
        form: How the row is cut.
        poll: Serial of the poll that has the row.
        reading: Seconds since the start of that poll.
        listening: Local ports with listeners, as in a row: for these the row alone does not tell the direction.
    """
    identity = pieces[1]
    start, length = info_of(message, form, pieces)
    is_tcp, state = protocol == IPPROTO_TCP, identity[1]
    fin = is_tcp and (is_behind_fin(message, start, length) or is_first_fin(pieces[4]))
    report = socket_report(message, start, length, int(fin))
    cgroup = cgroup_of(message, form)
    entry = Entry(keeper, protocol, pieces, poll, poll, state, reading, report=report, cgroup=cgroup)
    if is_tcp and (identity[6] or identity[7]) and state not in _TOLD_BY_STATE:
        evidence = evidence_of(state, message, start, length)
        if evidence == ACCEPTED or (evidence == OPENED and identity[4:6] not in listening):
            entry.direction, entry.weight = _DIRECTIONS[evidence], _SEQUENCE
    return entry


def _take_plain(
    about: tuple[Any, ...],
    poll: int,
    reading: float,
    entry: Entry | None,
    protocol: int,
    pieces: Pieces,
    message: bytes,
    form: RowFormat,
) -> None:
    """As `Book.take_row` in the first poll; its arguments are those of `first_rows`.

    Nearly all rows are of established connections: what makes the entry of one is read from its row at once.
    """
    keeper, entries, listening, new, take_row = about
    if entry is None and protocol == IPPROTO_TCP and form.first is not None:
        facts = form.first.unpack_from(message)
        state, timer, port, remote_port, queue, cgroup_header, cgroup, info_header, same_state, *numbers = facts
        if (
            state == same_state == _ESTABLISHED
            and timer != TIMER_TIME_WAIT
            and remote_port
            and port != NO_PORT
            and cgroup_header == CGROUP_HEADER
            and info_header == form.info_header
            and not is_first_fin(pieces[4])
        ):
            evidence = evidence_in(state, queue, *numbers)
            if evidence == ACCEPTED or (evidence == OPENED and port not in listening):
                report, direction = socket_report(message, form.info, form.info_length, 0), _DIRECTIONS[evidence]
                made = Entry(
                    keeper, protocol, pieces, poll, poll, state, reading, report, direction, _SEQUENCE, cgroup, True, False
                )  # fmt: skip  # by position, which takes half as long as by name
                entries[pieces[2]] = made
                new.append(made)
                return
    take_row(entry, protocol, pieces, message, form)


def entry_maker() -> MakeEntry:
    """The function that makes entries of first rows, in C if that is used."""
    if speedups is None:
        return _make_entry
    take: MakeEntry = _compiled().take
    return take


def first_rows() -> Callable[..., None]:
    """The function that takes most rows of a first dump, and calls `Book.take_row` for the others; in C if that is used.

    Its arguments are parts of a book (a weak reference to it, its sockets, the listeners, the list of new sockets, and
    `Book.take_row`), the serial of the poll, the seconds since its start, and then those of `Book.take_row`.
    """
    if speedups is None:
        return _take_plain
    apply: Callable[..., None] = _compiled().apply
    return apply


@functools.cache
def _compiled() -> Any:
    defaults = {field.name: field.default for field in attrs.fields(Entry)}
    return speedups.EntryMaker(
        (Entry, SocketReport, RowFormat),
        tuple(defaults),
        tuple(defaults.values()),
        tuple(
            sum(1 << state for state in states)
            for states in (FIN_RECEIVED, BEFORE_FIN, AFTER_FIN, _TOLD_BY_STATE, REMAINS)
        ),
        (_DIRECTIONS[ACCEPTED], _DIRECTIONS[OPENED], _SEQUENCE),
        _make_entry,
    )
