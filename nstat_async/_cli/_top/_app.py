"""The screen of `top`, with Textual.

Only the lines that are visible are formatted (the line API of `ScrollView`), at most
once a look, so that ten thousand flows cost no more than a screenful.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Any, ClassVar

import anyio
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.geometry import Region, Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from ... import Monitor
from ..._contract import Backend
from ..._errors import NstatError
from ...aggregate import TrafficTable
from ...backends import Replay
from .._text import rate_text
from .._views import View
from ._layout import Cell, Columns
from ._model import SORTS, ProcessLine, TopModel

__all__ = ["TopApp", "TrafficView"]

_SLICE = 1000
"""Events that are taken in before keys and timers get a turn."""
_STYLES = {
    "": Style(),
    "name": Style(bold=True),
    "dim": Style(dim=True),
    "rx": Style(color="green"),
    "tx": Style(color="cyan"),
    "curve": Style(color="yellow"),
}
_CURSOR = Style(reverse=True)
_HELP = """\
Processes, most traffic first; rates over the last seconds.

  up down pgup pgdn home end   move
  enter, right, left           show or hide the flows of a process
  s                            sort by the next column
  1 2 3 4 5 6 7                sort by rate, traffic, rx, tx, flows, name, pid
  r                            reverse the order
  /                            only processes with this in their name, or with this pid
  p, space                     hold the screen still; counting goes on
  z                            begin all totals at zero
  q, ctrl-c                    quit

A dash is an unknown number: Linux does not count the bytes of UDP sockets.
Processes count from the start of top, flows from their own beginning.
"!" in the first line: the kernel or a full buffer lost reports; totals may be low.
"""


class TrafficView(ScrollView, can_focus=True):
    """The lines of a model, of which one is under the cursor."""

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

    def __init__(self, model: TopModel) -> None:
        super().__init__()
        self.model = model
        self.cursor = 0
        self._key: object = None
        self.ascii_only = "utf" not in (os.environ.get("LC_ALL") or os.environ.get("LANG") or "utf-8").lower()

    def update_lines(self) -> None:
        """The model has changed: keep the cursor on its line, and show what is visible of it."""
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
        width = self.scrollable_content_region.width or self.size.width
        at = y + int(self.scroll_offset.y)
        if at >= len(self.model.lines):
            return Strip.blank(width, self.rich_style)
        line = self.model.lines[at]
        columns = Columns(width, self.ascii_only, self.model.view)
        cells: list[Cell] = columns.process(line) if isinstance(line, ProcessLine) else columns.flow(line, self.model)
        base = self.rich_style
        if at == self.cursor:  # one plain bar: colours would make a patchwork of it
            base += _CURSOR
            segments = [Segment("".join(text for text, _ in cells), base)]
        else:
            segments = [Segment(text, base + _STYLES[role]) for text, role in cells]
        return Strip(segments).adjust_cell_length(width, base)

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

    def _process(self) -> ProcessLine | None:
        above = reversed(self.model.lines[: self.cursor + 1])
        return next((line for line in above if isinstance(line, ProcessLine)), None)

    def action_toggle_flows(self) -> None:
        """Show or hide the flows of the process at the cursor."""
        process = self._process()
        if process is None:
            return
        self._key = process.key
        self.model.toggle(process.key)
        self.update_lines()

    def action_expand(self, wanted: bool) -> None:  # Textual's actions have no keywords
        """Show its flows, or hide them."""
        process = self._process()
        if process is not None and process.expanded is not wanted:
            self.action_toggle_flows()


class HelpScreen(ModalScreen[None]):
    """What the keys do."""

    CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll { width: 78; max-width: 100%; height: auto; max-height: 90%; border: round $accent;
                                background: $surface; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss_help", "Close")]

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll():
            yield Static(Text(_HELP))

    def action_dismiss_help(self) -> None:
        """Back to the table."""
        self.dismiss()


class TopApp(App[None]):
    """The application.

    Args:
        backend: Where the events come from.
        options: Keywords of `Monitor`.
        interval: Seconds between two looks.
        sort: Column to sort by at the start.
        duration: Seconds after which it ends.
        view: What the rows stand for.
        include_history: Count what open flows had carried before.
    """

    TITLE = "nstat-async"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layers: base; }
    #summary { height: 1; width: 100%; text-style: bold; }
    #heading { height: 1; width: 100%; text-style: reverse; }
    TrafficView { height: 1fr; scrollbar-size-horizontal: 0; }
    #filter { dock: bottom; display: none; height: 3; }
    #filter.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("s", "next_sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("p,space", "pause", "Pause"),
        Binding("z", "reset", "Zero"),
        Binding("question_mark,f1", "help", "Help"),
        *(Binding(str(number), f"sort_by({number - 1})", show=False) for number in range(1, 8)),
    ]

    def __init__(
        self,
        backend: Backend,
        options: Mapping[str, Any],
        *,
        interval: float = 1.0,
        sort: str = "rate",
        duration: float | None = None,
        view: View | None = None,
        include_history: bool = False,
    ) -> None:
        super().__init__()
        view = view or View()
        self.model = TopModel(TrafficTable(view.group_by, include_history=include_history), view, sort=sort)
        self.failure: Exception | None = None
        """Why the monitor failed, if it did."""
        self.ended = False
        """True when the source (a recording) came to its end."""
        self.paused = False
        self._backend = backend
        self._options = dict(options)
        self._look_every = interval
        self._duration = duration
        self._source = backend.name
        self._recorded = isinstance(backend, Replay)  # its time is its own

    def compose(self) -> ComposeResult:
        """Two lines of head, the table, the keys."""
        yield Static(id="summary")
        yield Static(id="heading")
        yield TrafficView(self.model)
        yield Input(placeholder="name or pid; enter keeps it, escape takes it away", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        # Not on Windows, and not where the application runs outside the main thread.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.view.focus()
        self.set_interval(self._look_every, self.look)
        if self._duration is not None:
            self.set_timer(self._duration, self.exit)
        self.run_worker(self._follow(), exit_on_error=False)

    @property
    def view(self) -> TrafficView:
        """The table."""
        return self.screen_stack[0].query_one(TrafficView)

    async def _follow(self) -> None:
        try:
            async with Monitor(backend=self._backend, **self._options) as monitor:
                stream = monitor.subscribe()
                while batch := await stream.receive_many():
                    for begin in range(0, len(batch), _SLICE):
                        self.model.feed(batch[begin : begin + _SLICE], None if self._recorded else anyio.current_time())
                        await asyncio.sleep(0)
            self.ended = True
            self.look()
        except (NstatError, OSError) as error:
            self.failure = error
            self.exit()

    def look(self) -> None:
        """Look at the table again, unless the screen is held still."""
        if self.paused or not self.is_running:
            return
        self.model.look(self._look_every)
        self.show_model()

    def show_model(self) -> None:
        """Put the model on the screen."""
        main = self.screen_stack[0]
        main.query_one("#summary", Static).update(self._summary())
        view = self.view
        width = view.scrollable_content_region.width or self.size.width
        heading = Columns(width, view.ascii_only, self.model.view).heading(self.model.sort, reverse=self.model.reverse)
        main.query_one("#heading", Static).update(Text(heading, no_wrap=True, overflow="crop"))
        view.update_lines()

    def _summary(self) -> Text:
        model, total = self.model, self.model.total
        parts = [
            "END" if self.ended else "",
            "PAUSED" if self.paused else "",
            f"filter {model.wanted!a}" if model.wanted else "",
            f"! {model.gaps} gaps" if model.gaps else "",
            self._source,
            f"{model.processes} processes",
            f"{total.open_flows} flows",
            f"rx {rate_text(total.rx_rate or 0)}",
            f"tx {rate_text(total.tx_rate or 0)}",
        ]
        return Text("  ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")

    def on_resize(self, _event: events.Resize) -> None:
        """Other columns fit now."""
        self.call_after_refresh(self.show_model)

    def _rearranged(self) -> None:
        self.model.rearrange()
        self.show_model()

    def action_next_sort(self) -> None:
        """Sort by the next column."""
        self.model.sort = SORTS[(SORTS.index(self.model.sort) + 1) % len(SORTS)]
        self._rearranged()

    def action_sort_by(self, place: int) -> None:
        """Sort by this column; once more: the other way round."""
        if self.model.sort == SORTS[place]:
            self.model.reverse = not self.model.reverse
        self.model.sort = SORTS[place]
        self._rearranged()

    def action_reverse(self) -> None:
        """The other way round."""
        self.model.reverse = not self.model.reverse
        self._rearranged()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self.paused = not self.paused
        self.look()
        self.show_model()

    def action_reset(self) -> None:
        """Begin all totals at zero."""
        self.model.reset()
        self.model.look(self._look_every)
        self.show_model()

    def action_help(self) -> None:
        """What the keys do."""
        self.push_screen(HelpScreen())

    def action_filter(self) -> None:
        """Ask for a name."""
        field = self.query_one("#filter", Input)
        field.value = self.model.wanted
        field.add_class("open")
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the name is typed."""
        self.model.wanted = event.value.strip()
        self._rearranged()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Keep the filter."""
        self._close_filter()

    def on_key(self, event: events.Key) -> None:
        """Escape takes the filter away."""
        if event.key != "escape" or isinstance(self.screen, HelpScreen):
            return
        self.query_one("#filter", Input).value = ""
        self.model.wanted = ""
        self._close_filter()
        self._rearranged()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("open")
        self.view.focus()
