"""The scrolling part of `top`: it formats only the lines that are visible, so that many lines cost no more than a screen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from .._table import fit
from ._layout import Cell, Layout
from ._model import RowLine, TopModel
from ._screen import is_ascii_only

_STYLES = {
    "": Style(),
    "name": Style(bold=True),
    "dim": Style(dim=True),
    "rx": Style(color="green"),
    "tx": Style(color="cyan"),
    "curve": Style(color="yellow"),
    "heading": Style(dim=True, underline=True),
}
_CURSOR = Style(reverse=True)


class Heading(Static):
    """The line of headings; a click sorts by the column."""

    class Clicked(Message):
        """A column was clicked.

        Args:
            x: Where.
        """

        def __init__(self, x: int) -> None:
            super().__init__()
            self.x = x

    def on_click(self, event: events.Click) -> None:
        """Say which column it was."""
        self.post_message(self.Clicked(event.x))


class TrafficView(ScrollView, can_focus=True):
    """The lines of a model; one of them is under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "edge(0)", show=False),
        Binding("end,G", "edge(1)", show=False),
        Binding("enter", "toggle_flows", "Flows"),
        Binding("right,l", "expand(True)", show=False),
        Binding("left,h", "expand(False)", show=False),
    ]

    def __init__(self, model: TopModel, explain: Callable[[], list[str]]) -> None:
        super().__init__()
        self.model = model
        self.cursor = 0
        self.ascii_only = is_ascii_only(sys.__stderr__)
        self.commands = False
        """True: command lines instead of names."""
        self._key: object = None
        self._explain = explain
        self._layout: Layout | None = None
        self._wanted: object = None

    @property
    def columns(self) -> Layout:
        """The columns for the present width."""
        width = self.scrollable_content_region.width or self.size.width
        wanted = (width, self.model.view, self.ascii_only, self.commands, self.model.known)
        if self._layout is None or self._wanted != wanted:
            self._layout, self._wanted = Layout(*wanted), wanted
        return self._layout

    def update_lines(self) -> None:
        """Show the changed model, and keep the cursor on its line."""
        lines = self.model.lines
        if self.cursor >= len(lines) or lines[self.cursor].key != self._key:
            self.cursor = next((at for at, line in enumerate(lines) if line.key == self._key), self.cursor)
            # The first line follows the traffic as long as nobody moved away from it.
            if self._key is None or self.cursor >= len(lines):
                self.cursor = max(0, min(self.cursor, len(lines) - 1))
        self.virtual_size = Size(self.size.width, len(lines))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the visible part."""
        columns, base, lines = self.columns, self.rich_style, self.model.lines
        at = y + int(self.scroll_offset.y)
        if at >= len(lines):
            text = self._explained(y, columns.width) if not lines else ""
            return Strip([Segment(text, base)]).adjust_cell_length(columns.width, base)
        cells: list[Cell] = columns.cells(lines[at], self.model.table.time)
        if at == self.cursor:  # the bar of the cursor has one colour
            base += _CURSOR
            segments = [Segment("".join(text for text, _ in cells), base)]
        else:
            segments = [Segment(text, base + _STYLES[role]) for text, role in cells]
        return Strip(segments).adjust_cell_length(columns.width, base)

    def _explained(self, y: int, width: int) -> str:
        """A line of the text that says why there is nothing to show."""
        reasons = self._explain()
        return fit(f" {reasons[y - 1]}", width) if 1 <= y <= len(reasons) else ""

    def on_resize(self, _event: events.Resize) -> None:
        """Other columns fit now."""
        self.update_lines()

    def _go(self, at: int) -> None:
        lines = self.model.lines
        self.cursor = max(0, min(at, len(lines) - 1))
        self._key = lines[self.cursor].key if lines and self.cursor else None
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False)
        self.refresh()

    def action_move(self, by: int) -> None:
        """One line up or down."""
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        """One screen up or down."""
        self._go(self.cursor + by * max(1, self.size.height - 1))

    def action_edge(self, last: int) -> None:
        """To the first or last line."""
        self._go(len(self.model.lines) - 1 if last else 0)

    def on_click(self, event: events.Click) -> None:
        """Choose a line with the mouse; choose it again to expand it."""
        at = int(event.y + self.scroll_offset.y)
        if at == self.cursor:
            self.action_toggle_flows()
        elif at < len(self.model.lines):
            self._go(at)

    def _row(self) -> RowLine | None:
        above = reversed(self.model.lines[: self.cursor + 1])
        return next((line for line in above if isinstance(line, RowLine)), None)

    def action_toggle_flows(self) -> None:
        """Show or hide the flows of the row at the cursor."""
        line = self._row()
        if line is None or not (line.row.open_flows or line.expanded):
            return
        self._key = line.key
        self.model.toggle(line.row.serial)
        self.update_lines()

    def action_expand(self, wanted: bool) -> None:  # Textual's actions have no keywords
        """Show its flows, or hide them."""
        line = self._row()
        if line is not None and line.expanded is not wanted:
            self.action_toggle_flows()
