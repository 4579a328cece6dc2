"""Columns of `top`: which are there, how wide, what stands in them.

A narrow terminal (80 columns) gets one column of totals and a short curve; a wide one
gets both directions and a long curve. The name takes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import attrs

from ..._escape import escape
from ..._model import Flow
from ...aggregate import Row
from .._processes import row_name
from .._table import cell_width
from .._text import bytes_text, interface_text, is_listener, rate_text
from ._model import FlowLine, ProcessLine, TopModel

__all__ = ["Cell", "Columns", "curve_text", "fit"]

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:-=+*#@"
_FLOOR = 128.0
"""Bytes per second below which a curve shows its lowest mark."""
_RATE = 12
"""Columns of a rate: "92.5 KiB/s" and room between."""
_STEP = 2.2
"""Powers of two to a mark: 8 marks reach from 128 B/s to some 25 MB/s."""

Cell = tuple[str, str]
"""Text and role: ``""``, ``"rx"``, ``"tx"``, ``"dim"``, ``"name"``."""


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` terminal columns, cut with ``…`` if need be."""
    if width <= 0:
        return ""
    taken = cell_width(text)
    if taken > width:
        kept, used = [], 0
        for char in text:
            step = cell_width(char)
            if used + step > width - 1:
                break
            kept.append(char)
            used += step
        text, taken = "".join(kept) + "…", used + 1
    space = " " * (width - taken)
    return space + text if right else text + space


def curve_text(rates: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Rates as a row of blocks, newest on the right, on a logarithmic scale that is the same for all rows."""
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    marks = [
        blocks[0] if rate < 1 else blocks[max(1, min(8, 1 + int(log2(max(rate, _FLOOR) / _FLOOR) / _STEP)))]
        for rate in rates[-width:]
    ]
    return "".join(marks).rjust(width)


@attrs.frozen
class Columns:
    """The columns for one width."""

    width: int
    ascii_only: bool = False

    @property
    def _wide(self) -> bool:
        return self.width >= 110

    @property
    def _curve(self) -> int:
        return 10 if self.width < 100 else 20 if self.width < 160 else 40

    @property
    def _name(self) -> int:
        totals = 20 if self._wide else 10
        return max(8, self.width - 2 - 9 - 6 - 2 * _RATE - totals - self._curve - 1)

    def heading(self, sort: str, *, reverse: bool) -> str:
        """The headings; an arrow marks the one that is sorted by."""
        arrow = ("^" if reverse else "v") if self.ascii_only else ("▴" if reverse else "▾")

        def mark(text: str, *keys: str) -> str:
            return arrow + text if sort in keys else text

        parts = [
            "  " + fit(mark("PID", "pid"), 8, right=True) + " ",
            fit(mark("PROCESS", "name"), self._name),
            fit(mark("FLOWS", "flows"), 6, right=True),
            fit(mark("RX/S", "rate"), _RATE, right=True),
            fit(mark("TX/S", "rate"), _RATE, right=True),
        ]
        if self._wide:
            parts += [
                fit(mark("RX", "rx", "traffic"), 10, right=True),
                fit(mark("TX", "tx", "traffic"), 10, right=True),
            ]
        else:
            parts.append(fit(mark("TOTAL", "rx", "tx", "traffic"), 10, right=True))
        parts.append(" " + fit("HISTORY", self._curve))
        return fit("".join(parts), self.width)

    def process(self, line: ProcessLine) -> list[Cell]:
        """The cells of a process."""
        row = line.row
        known = row.is_counted
        marker = "▾ " if line.expanded else "▸ "
        if self.ascii_only:
            marker = "v " if line.expanded else "> "
        if not row.open_flows:
            marker = "  "
        role = "name" if row.open_flows else "dim"
        return [
            (marker, ""),
            (fit("" if row.pid is None else str(row.pid), 8, right=True) + " ", "dim"),
            (fit(row_name(row), self._name), role),
            (fit(str(row.open_flows), 6, right=True), ""),
            *self._numbers(row.rx_rate, row.tx_rate, *(self._totals(row) if known else (None, None)), known=known),
            (" " + curve_text(line.curve, self._curve, ascii_only=self.ascii_only), "curve"),
        ]

    @staticmethod
    def _totals(row: Row) -> tuple[int, int]:
        return row.rx_bytes, row.tx_bytes

    def _numbers(
        self, rx_rate: float | None, tx_rate: float | None, rx: int | None, tx: int | None, *, known: bool
    ) -> list[Cell]:
        cells = [(fit(rate_text(rate) if known and rate is not None else "-", _RATE, right=True), role)
                 for rate, role in ((rx_rate, "rx"), (tx_rate, "tx"))]  # fmt: skip
        if self._wide:
            cells += [(fit("-" if total is None else bytes_text(total), 10, right=True), role)
                      for total, role in ((rx, "rx"), (tx, "tx"))]  # fmt: skip
        else:
            both = None if rx is None and tx is None else (rx or 0) + (tx or 0)
            cells.append((fit("-" if both is None else bytes_text(both), 10, right=True), ""))
        return cells

    def flow(self, line: FlowLine, model: TopModel) -> list[Cell]:
        """The cells of a flow under its process."""
        counts = line.counts
        rx, tx = (None, None) if counts is None else (counts.rx_bytes, counts.tx_bytes)
        rx_rate, tx_rate = model.flow_rates(line)
        return [
            ("    ", ""),
            (fit(self._flow_name(line.flow), 7 + self._name + 6), "dim"),
            *self._numbers(rx_rate, tx_rate, rx, tx, known=True),
            (" " + fit(interface_text(line.flow.interface), self._curve), "dim"),
        ]

    @staticmethod
    def _flow_name(flow: Flow) -> str:
        mark = "@" if is_listener(flow) else " "
        place = str(flow.remote or flow.local or "*")
        state = "" if flow.state is None else f" {flow.state.value}"
        return escape(f"{mark}{flow.provider.value} {place}{state}")
