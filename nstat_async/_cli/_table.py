"""Tables of plain text: columns as wide as their widest cell."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence

__all__ = ["cell_width", "render"]


def cell_width(text: str) -> int:
    """Columns that a terminal needs for `text`: two for wide East Asian characters, none for marks."""
    if text.isascii():
        return len(text)
    width = 0
    for char in text:
        if not unicodedata.combining(char):
            width += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return width


def render(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> list[str]:
    """The lines of a table with its headings.

    Args:
        headings: One a column.
        rows: Their cells, escaped already.
        right: Columns that are aligned to the right.
    """
    everything = [headings, *rows]
    widths = [max(map(cell_width, column)) for column in zip(*everything, strict=True)]
    return [_line(cells, widths, right) for cells in everything]


def _line(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    parts = []
    for place, (text, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_width(text))
        parts.append(space + text if place in right else text + space)
    return "  ".join(parts).rstrip()
