"""Tables of plain text: columns as wide as their widest cell."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence

_GAP = 2
_SHORT, _SHORTEST = 16, 9
"""Least width of a text before another column is left out, and least width in any case."""


def cell_width(text: str) -> int:
    """Columns that a terminal needs for `text`: two for wide East Asian characters, none for marks."""
    return len(text) if text.isascii() else sum(map(_char_width, text))


def _char_width(char: str) -> int:
    """The width of a character as in the C library's ``wcwidth``; vowels and finals of conjoining Hangul have none."""
    if unicodedata.category(char) in {"Mn", "Me"} or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fit(text: str, width: int, *, right: bool = False, ascii_only: bool = False) -> str:
    """`text` in exactly `width` terminal columns, cut with ``…`` (or ``~``) if it is too long."""
    if width <= 0:
        return ""
    taken = cell_width(text)
    if taken > width:
        kept, used = _beginning(text, width - 1)
        text, taken = kept + ("~" if ascii_only else "…"), used + 1
    space = " " * (width - taken)
    return space + text if right else text + space


def _beginning(text: str, width: int) -> tuple[str, int]:
    """The beginning of a text that fits, and its width."""
    used = 0
    for at, char in enumerate(text):
        step = _char_width(char)
        if used + step > width:
            return text[:at], used
        used += step
    return text, used


def shortened(text: str, width: int, *, ascii_only: bool = False) -> str:
    """A text shortened in the middle, so that the port of an address and the end of a name stay."""
    if cell_width(text) <= width or width < 1:
        return text
    end, taken = _beginning(text[::-1], (width - 1) * 2 // 5)
    end = end[::-1]
    while end and not _char_width(end[0]):  # marks of a letter that is gone
        end = end[1:]
    return f"{_beginning(text, width - 1 - taken)[0]}{'~' if ascii_only else '…'}{end}"


def render(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[int] = (),
    columns: int | None = None,
    spare: Sequence[int] = (),
    last: Sequence[int] = (),
) -> list[str]:
    """The lines of a table with its headings.

    Args:
        headings: One per column.
        rows: The cells of each row, escaped.
        right: Columns that are aligned to the right.
        columns: Greatest width of the table; `None`: any width.
        spare: Columns that are left out if there is no room, in this order. Then long texts are shortened in the middle.
        last: Columns that are left out if there is no room for the shortest texts either, in this order.
    """
    everything = [headings, *rows]
    widths = [max(map(cell_width, column)) for column in zip(*everything, strict=True)]
    if columns is None:
        return [_line(cells, widths, right) for cells in everything]
    kept = _kept(widths, columns, right, spare, last)
    aligned = {at for at, column in enumerate(kept) if column in right}
    widths = _narrowed([widths[at] for at in kept], columns - _GAP * (len(kept) - 1), aligned)
    return [
        _line([shortened(cells[at], widths[place]) for place, at in enumerate(kept)], widths, aligned)
        for cells in everything
    ]


def _kept(
    widths: Sequence[int], columns: int, right: Collection[int], spare: Sequence[int], last: Sequence[int]
) -> list[int]:
    """The columns that fit, if texts are shortened."""
    kept = list(range(len(widths)))
    for short, candidates in ((_SHORT, spare), (_SHORTEST, last)):
        least = [width if at in right else min(width, short) for at, width in enumerate(widths)]
        for column in candidates:
            if sum(least[at] + _GAP for at in kept) - _GAP > columns:
                kept.remove(column)
    return kept


def _narrowed(widths: Sequence[int], room: int, right: Collection[int]) -> list[int]:
    """Widths that fit into `room`: the widest texts are shortened, numbers are not."""
    found = list(widths)
    texts = [at for at in range(len(found)) if at not in right]
    while sum(found) > room and texts:
        widest = max(texts, key=found.__getitem__)
        if found[widest] <= _SHORTEST:
            break
        found[widest] -= 1
    return found


def _line(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    parts = []
    for place, (text, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_width(text))
        parts.append(space + text if place in right else text + space)
    return (" " * _GAP).join(parts).rstrip()
