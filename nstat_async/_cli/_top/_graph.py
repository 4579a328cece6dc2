"""Rates drawn with characters: a curve for each row, a chart for the total."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:-=+*#@"
_FLOOR = 128.0
"""Bytes per second below which a curve shows its lowest mark."""
_STEP = 2.2
"""Powers of two per mark: 8 marks reach from 128 B/s to some 25 MB/s."""


def curve_text(rates: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Rates as a row of blocks, newest on the right, on a logarithmic scale that is the same for all rows."""
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    marks = [
        blocks[0] if rate < 1 else blocks[max(1, min(8, 1 + int(log2(max(rate, _FLOOR) / _FLOOR) / _STEP)))]
        for rate in rates[-width:]
    ]
    return "".join(marks).rjust(width)


def chart_lines(rates: Sequence[float], width: int, height: int, top: float, *, ascii_only: bool = False) -> list[str]:
    """Rates as columns of blocks, newest on the right, on a linear scale from 0 to `top`."""
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    shown = list(rates[-width:])
    eighths = [0 if top <= 0 else max(rate > 0, round(8 * height * min(1.0, rate / top))) for rate in shown]
    return [
        "".join(blocks[max(0, min(8, each - 8 * level))] for each in eighths).rjust(width)
        for level in reversed(range(height))
    ]
