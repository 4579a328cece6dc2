"""Lines of flows for terminals that are too narrow for whole lines."""

from __future__ import annotations

from collections.abc import Sequence

from ._table import cell_width, fit, shortened

_TIME, _PROTOCOL, _LOCAL, _REMOTE, _PROCESS, _SENT = 0, 1, 2, 3, 4, 6
_LEAST = {_LOCAL: 17, _REMOTE: 17, _PROCESS: 9}
"""Least width of these texts: with less, another column is left out first. Other cells are never cut."""
_SPARE = {_LOCAL: 13, _TIME: 13, _PROTOCOL: 0, _SENT: 0}
"""Cells that a narrow terminal leaves out, in this order, each with the width that must remain for the end of the line:
how a flow ended, or where it is."""
_END = 13


def narrow_line(cells: Sequence[str], widths: Sequence[int], notes: str, place: str, room: int) -> str:
    """A line of this width, whose cells are aligned with those of other lines.

    Args:
        cells: The time, the protocol, both ends, the process, received, sent; escaped.
        widths: The widest cell of each column so far.
        notes: Text that must be in the line; the last cells are left out if there is no room for it.
        place: Text at the end, cut if there is no room.
        room: Width of the line.
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
    if _LOCAL not in kept and texts[_REMOTE] == "*":  # a listener: its local end is what matters
        texts[_REMOTE] = texts[_LOCAL]
    # The beginning of a name matters, and of an address the beginning and the port.
    parts = (fit(shortened(texts[at], found[at]) if at in {_LOCAL, _REMOTE} else texts[at], found[at]) for at in kept)
    line = f"{' '.join(parts)} {notes}".rstrip()
    left = room - cell_width(line) - 1 if notes else room - _taken(found, kept) - 1
    if place and left >= _END - 1:
        return f"{fit(line, room - left - 1)} {shortened(place, left)}"
    return fit(line, room).rstrip()


def _taken(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] + 1 for at in kept) - 1
