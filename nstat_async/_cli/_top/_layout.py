"""Columns of `top`: which are there, how wide, what stands in them.

A narrow terminal (80 columns) gets one column of totals and a short curve; a wide one
gets both directions and a long curve. The name takes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Union

import attrs

from ..._escape import escape
from ..._model import Flow
from .._table import cell_width
from .._text import bytes_text, interface_text, is_listener, rate_text
from .._views import View
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

_ROLES = ("rx", "tx")
_Pair = tuple[Union[float, None], Union[float, None]]
"""Received and sent; `None` for unknown."""

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
    view: View = attrs.field(factory=View)

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
        totals = (
            {"RX": ("rx", "traffic"), "TX": ("tx", "traffic")} if self._wide else {"TOTAL": ("rx", "tx", "traffic")}
        )
        parts = ["  "]
        for text, width, keys in (
            ("PID", 8, ("pid",)),
            ("PROCESS", self._name, ("name",)),
            ("FLOWS", 6, ("flows",)),
            ("RX/S", _RATE, ("rate",)),
            ("TX/S", _RATE, ("rate",)),
            *((text, 10, keys) for text, keys in totals.items()),
        ):
            marked = arrow + text if sort in keys else text
            parts.append(" " + fit(marked, width) if text == "PROCESS" else fit(marked, width, right=True))
        return fit(f"{''.join(parts)} HISTORY", self.width)

    def process(self, line: ProcessLine) -> list[Cell]:
        """The cells of a process."""
        row = line.row
        opened, closed = ("v ", "> ") if self.ascii_only else ("▾ ", "▸ ")
        marker = "  " if not row.open_flows else opened if line.expanded else closed
        totals = (row.rx_bytes, row.tx_bytes) if row.is_counted else (None, None)
        return [
            (marker, ""),
            (fit("" if row.pid is None else str(row.pid), 8, right=True) + " ", "dim"),
            (fit(self.view.label(row), self._name), "name" if row.open_flows else "dim"),
            (fit(str(row.open_flows), 6, right=True), ""),
            *self._numbers((row.rx_rate, row.tx_rate), totals),
            (" " + curve_text(line.curve, self._curve, ascii_only=self.ascii_only), "curve"),
        ]

    def _numbers(self, rates: _Pair, totals: _Pair) -> list[Cell]:
        cells = [
            ("-" if rate is None else rate_text(rate), _RATE, role) for rate, role in zip(rates, _ROLES, strict=True)
        ]
        if self._wide:
            cells += [
                ("-" if total is None else bytes_text(total), 10, role)
                for total, role in zip(totals, _ROLES, strict=True)
            ]
        else:
            known = [total for total in totals if total is not None]
            cells.append((bytes_text(sum(known)) if known else "-", 10, ""))
        return [(fit(text, width, right=True), role) for text, width, role in cells]

    def flow(self, line: FlowLine, model: TopModel) -> list[Cell]:
        """The cells of a flow under its process."""
        counts = line.counts
        totals = (None, None) if counts is None else (counts.rx_bytes, counts.tx_bytes)
        return [
            ("    ", ""),
            (fit(self._flow_name(line.flow), 7 + self._name + 6), "dim"),
            *self._numbers(model.flow_rates(line), totals),
            (" " + fit(interface_text(line.flow.interface), self._curve), "dim"),
        ]

    @staticmethod
    def _flow_name(flow: Flow) -> str:
        mark = "@" if is_listener(flow) else " "
        place = str(flow.remote or flow.local or "*")
        state = "" if flow.state is None else f" {flow.state.value}"
        return escape(f"{mark}{flow.provider.value} {place}{state}")
