"""A socket by the first row of it: all that the row says by itself. The reference of the same in C (``_speedups.c``)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .._compiled import speedups
from .._model import Direction
from ._cgroups import cgroup_of
from ._constants import IPPROTO_TCP, SocketState
from ._direction import ACCEPTED, AFTER_FIN, BEFORE_FIN, OPENED, evidence_of
from ._entry import Entry, Keeper, Weight
from ._finals import FIN_RECEIVED, is_behind_fin
from ._reports import SocketReport, socket_report
from ._rows import REMAINS, Pieces, RowFormat, info_of, is_first_fin

_TOLD_BY_STATE = frozenset({SocketState.LISTEN, SocketState.SYN_SENT})
_DIRECTIONS = {ACCEPTED: Direction.INBOUND, OPENED: Direction.OUTBOUND}
_SEQUENCE = Weight.SEQUENCE

FirstSight = Callable[..., Entry]


def _first_sight(
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
        keeper: Weakly where it will be.
        protocol: Of the socket.
        pieces: Of the row.
        message: The row.
        form: How it is cut.
        poll: Serial of the poll that has it.
        reading: Seconds since the begin of that poll.
        listening: The ports, as in a row, that somebody listens on: who began a connection of one takes more than its row.
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


def first_sight() -> FirstSight:
    """What looks at first rows: the Python code, or the C code."""
    if speedups is None:
        return _first_sight
    take: FirstSight = _compiled().take
    return take


def first_rows() -> Callable[..., None] | None:
    """What takes the rows of a first dump before `Book.take_row`, in C: all that is needed of most of them; `None` where it is not used.

    It takes what it needs of a book (weakly the book, its sockets, who listens, where new sockets go, and `Book.take_row`),
    the serial of the poll and the seconds since its begin, and then the same as that.
    """
    if speedups is None:
        return None
    apply: Callable[..., None] = _compiled().apply
    return apply


@functools.cache
def _compiled() -> Any:
    defaults = {field.name: field.default for field in attrs.fields(Entry)}
    return speedups.Sight(
        (Entry, SocketReport, RowFormat),
        tuple(defaults),
        tuple(defaults.values()),
        tuple(
            sum(1 << state for state in states)
            for states in (FIN_RECEIVED, BEFORE_FIN, AFTER_FIN, _TOLD_BY_STATE, REMAINS)
        ),
        (_DIRECTIONS[ACCEPTED], _DIRECTIONS[OPENED], _SEQUENCE),
        _first_sight,
    )
