"""Lines of flows for terminals that whole lines do not fit."""

from __future__ import annotations

from collections.abc import Sequence

from ._table import cell_width, fit, shortened

_TIME, _PROTOCOL, _LOCAL, _REMOTE, _PROCESS, _SENT = 0, 1, 2, 3, 4, 6
_LEAST = {_LOCAL: 17, _REMOTE: 17, _PROCESS: 9}
"""So much of a text is wanted before a column is left out. Other cells are never cut."""
_SPARE = {_LOCAL: 13, _TIME: 13, _PROTOCOL: 0, _SENT: 0}
"""What a narrow terminal does without, in this order, and how many columns are wanted behind the cells before:
how a flow ended, or a part of where it is."""
_END = 13


def narrow_line(cells: Sequence[str], widths: Sequence[int], notes: str, place: str, room: int) -> str:
    """A line whose cells stand below those of other lines, in so many columns.

    Args:
        cells: The time, the protocol, both ends, the process, received, sent; escaped.
        widths: The widest cell of each column so far.
        notes: What must be said besides; where there is no room for it, the last cells give way.
        place: What stands at the end as far as there is room.
        room: Columns that there are.
    """
    found = [min(width, _LEAST.get(at, width)) for at, width in enumerate(widths)]
    kept = list(range(len(found)))
    for spare, behind in _SPARE.items():
        if _taken(found, kept) + behind > room:
            kept.remove(spare)
    found[_REMOTE] -= max(0, min(found[_REMOTE] - 1, _taken(found, kept) - room))
    for at in (_PROCESS, _REMOTE, _LOCAL):
        if at in kept:
            found[at] += min(widths[at] - found[at], max(0, room - _END - _taken(found, kept)))
    while notes and kept[-1] > _PROCESS and _taken(found, kept) + 1 + cell_width(notes) > room:
        del kept[-1]
    texts = list(cells)
    if _LOCAL not in kept and texts[_REMOTE] == "*":  # it waits for somebody: say where
        texts[_REMOTE] = texts[_LOCAL]
    # A name is known by its beginning, an address by its beginning and its port.
    parts = (fit(shortened(texts[at], found[at]) if at in {_LOCAL, _REMOTE} else texts[at], found[at]) for at in kept)
    line = f"{' '.join(parts)} {notes}".rstrip()
    left = room - cell_width(line) - 1 if notes else room - _taken(found, kept) - 1
    if place and left >= _END - 1:
        return f"{fit(line, room - left - 1)} {shortened(place, left)}"
    return fit(line, room).rstrip()


def _taken(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] + 1 for at in kept) - 1
