"""The application of `top`, with Textual: keys, timers, and the monitor that feeds the model."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.driver import Driver
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from ... import Monitor
from ..._contract import Backend
from ..._errors import NstatError
from ...aggregate import GroupBy
from ...aggregate._consumer import Arrivals
from ...backends import Replay
from .. import ending_signals
from .._names import NameResolver
from .._views import SORT_KEYS, View
from ._head import CHART, SMALL, State, alarm_text, chart, empty_text, small_chart, state_text, totals_text
from ._model import TopModel
from ._screen import is_ascii_only
from ._view import Heading, TrafficView

_SLICE = 1000
"""Events that are taken in before keys and timers get a turn."""
_TALL = 34
"""Screens with at least as many lines have a chart, unless the user hides it."""
_VIEWS = ("process", "user", "unit", "container", "remote-address", "remote-port", "interface", "connection")
"""What ``v`` goes through."""
_OF_PROCESSES = ("process", "effective-process")
_HELP = """\
Most traffic first; rates over the last seconds.

up down pgup pgdn home end   move
enter, right, left   show or hide the flows of a row
< > s      sort by the column before, the next one
1 … 9      sort by rate, traffic, rx, tx, flows, name,
           pid, user, unit; a click on a heading, too
r          reverse the order
v          the next view: rows per user, remote, …
n          names of remotes, asked of name servers
c          command lines instead of names
/          only rows with this in their name, or this pid
t          show or hide the chart of the total
p, space   hold the screen still; counting goes on
z          reset all totals to zero
ctrl-z     suspend; fg brings it back
q, ctrl-c  quit

"?" is an unknown number: without eBPF, Linux does not
count the bytes of UDP sockets.
Bytes count from the start of top. Flows that ended have
a line of their own, so that a row is the sum of the
lines below it.
"!" in the first line: the kernel or a full buffer lost
reports; totals may be low.
"""


class HelpScreen(ModalScreen[None]):
    """What the keys do."""

    CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll { width: 62; max-width: 100%; height: auto; max-height: 100%; border: round $accent;
                                background: $surface; padding: 0 1; scrollbar-size-vertical: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss_help", "Close")]

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll():
            yield Static(Text(_HELP))

    def action_dismiss_help(self) -> None:
        """Back to the table."""
        self.dismiss()


def _reading_on(read: Callable[[Driver], None]) -> Callable[[Driver], None]:
    """Read the keys until the end, also of a terminal with another character set: none of its letters is a command."""

    def read_on(driver: Driver) -> None:
        while True:
            try:
                return read(driver)
            except UnicodeDecodeError:
                continue

    return read_on


class TopApp(App[None]):
    """The application.

    Args:
        backend: Where the events come from.
        options: Keywords of `Monitor`.
        view: What the rows stand for.
        interval: Seconds between two looks.
        sort: Column to sort by at the start.
        duration: Seconds after which it ends.
        include_history: Count what open flows had carried before.
    """

    TITLE = "nstat-async"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layers: base; }
    #state, #totals { height: 1; width: 100%; }
    #state { text-style: bold; }
    #chart { width: 100%; }
    Heading { height: 1; width: 100%; text-style: reverse; }
    TrafficView { height: 1fr; scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1; }
    #filter { dock: bottom; display: none; height: 3; }
    #filter.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,f1", "help", "Help"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("s,greater_than_sign", "next_sort(1)", "Sort"),
        Binding("less_than_sign", "next_sort(-1)", show=False),
        Binding("r", "reverse", show=False),
        Binding("v", "next_view", "View"),
        Binding("slash", "filter", "Filter"),
        Binding("c", "commands", "Command"),
        Binding("n", "names", show=False),
        Binding("t", "chart", show=False),
        Binding("p,space", "pause", "Pause"),
        Binding("z", "reset", show=False),
        *(Binding(str(number), f"sort_by({number - 1})", show=False) for number in range(1, 10)),
    ]

    def get_key_display(self, binding: Binding) -> str:
        """The name of a key; without signs that the screen may not have."""
        shown = super().get_key_display(binding)
        return binding.key if is_ascii_only(sys.__stderr__) and not shown.isascii() else shown

    def __init__(
        self,
        backend: Backend,
        options: Mapping[str, Any],
        *,
        view: View | None = None,
        interval: float = 1.0,
        sort: str = "rate",
        duration: float | None = None,
        include_history: bool = False,
    ) -> None:
        super().__init__()
        view = view or View()
        self.model = TopModel(view, include_history=include_history, sort=sort)
        self._processes = view.group_by if view.is_of_processes else GroupBy.processes()
        """By processes: by effective ones, if that was asked for."""
        self.state = State(backend.name, filtered="flow_filter" in options)
        self.failure: Exception | None = None
        """Why the monitor failed, if it did."""
        self._backend = backend
        self._options = dict(options)
        self._look_every = interval
        self._duration = duration
        self._chart_wanted: bool | None = None
        """Whether there is a chart; `None`: where there is room."""
        self._monitor: Monitor | None = None
        self._recorded = isinstance(backend, Replay)  # its time is its own

    def get_driver_class(self) -> type[Driver]:
        """Textual's own, which a byte that is not UTF-8 does not end."""
        driver = super().get_driver_class()
        read = getattr(driver, "run_input_thread", None)
        return driver if read is None else type(driver.__name__, (driver,), {"run_input_thread": _reading_on(read)})

    def compose(self) -> ComposeResult:
        """The head, the table, the keys."""
        yield Static(id="state")
        yield Static(id="totals")
        yield Static(id="chart")
        yield Heading()
        yield TrafficView(self.model, lambda: empty_text(self.state, self.model))
        yield Input(placeholder="name or pid; enter keeps it, escape takes it away", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        # Not on Windows, and not where the application runs outside the main thread.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            for number in ending_signals():  # Ctrl-C is a key here
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
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
                self._monitor = monitor
                stream, arrivals = monitor.subscribe(), Arrivals(monitor)
                while batch := await stream.receive_many():
                    for begin in range(0, len(batch), _SLICE):
                        part = batch[begin : begin + _SLICE]
                        self.model.feed(part, None if self._recorded else arrivals.of(part))
                        await asyncio.sleep(0)
        except (NstatError, OSError) as error:
            self.failure = error
            if not getattr(error, "recorded", False):
                self.exit()
                return
        self.state.ended = True
        self.look()

    def look(self) -> None:
        """Look at the table again, unless the screen is held still."""
        if self.state.paused or not self.is_running:
            return
        self.model.look()
        self.show_model()

    def show_model(self) -> None:
        """Put the model on the screen."""
        if self._monitor is not None:
            self.state.capabilities = self._monitor.capabilities
            self.state.coverage = self._monitor.statistics().coverage
        main, view, model = self.screen_stack[0], self.view, self.model
        width, small = self.size.width, self.size.height < SMALL
        self._write("#state", state_text(self.state, model), shown=not small)
        totals = totals_text(model, width, alarm=alarm_text(model) if small else "")
        small_one = (
            "" if self._show_chart(width) else small_chart(model, width - len(totals), ascii_only=view.ascii_only)
        )
        self._write("#totals", totals, small_one)
        self._write("Heading", view.columns.heading(model.sort, reverse=model.reverse))
        main.query_one(Footer).display = not small
        view.update_lines()

    def _write(self, where: str, text: str, curve: str = "", *, shown: bool = True) -> None:
        widget = self.screen_stack[0].query_one(where, Static)
        widget.display = shown
        widget.update(Text(text, no_wrap=True, overflow="ellipsis").append(curve, "yellow"))

    def _show_chart(self, width: int) -> bool:
        widget = self.screen_stack[0].query_one("#chart", Static)
        wanted = self.size.height >= _TALL if self._chart_wanted is None else self._chart_wanted
        widget.display = wanted
        widget.styles.height = CHART
        if wanted:
            lines = chart(self.model, width, ascii_only=self.view.ascii_only)
            text = Text(no_wrap=True, overflow="crop")
            for label, blocks in lines:
                text.append(label, "dim")
                text.append(f"{blocks}\n", "yellow")
            widget.update(text)
        return wanted

    def on_resize(self, _event: events.Resize) -> None:
        """Other columns fit now."""
        self.call_after_refresh(self.show_model)

    def on_heading_clicked(self, event: Heading.Clicked) -> None:
        """Sort by the column under the mouse."""
        key = self.view.columns.sort_at(event.x)
        if key:
            self.model.sort_by(key)
            self.show_model()

    def action_next_sort(self, by: int) -> None:
        """Sort by the next column, or the one before."""
        self.model.sort_next(by)
        self.show_model()

    def action_sort_by(self, place: int) -> None:
        """Sort by this column; once more: the other way round."""
        self.model.sort_by(list(SORT_KEYS)[place])
        self.show_model()

    def action_reverse(self) -> None:
        """The other way round."""
        self.model.sort_by(self.model.sort)
        self.show_model()

    def action_next_view(self) -> None:
        """Rows of something else."""
        now = self.model.view.group_by.name.replace(" ", "-")
        name = (
            _VIEWS[(_VIEWS.index(now) + 1) % len(_VIEWS)] if now in _VIEWS else _VIEWS[1 if now in _OF_PROCESSES else 0]
        )
        group_by = self._processes if name == "process" else GroupBy.named(name)
        self.model.change_view(attrs.evolve(self.model.view, group_by=group_by))
        self.show_model()

    def action_names(self) -> None:
        """Ask for the names of remotes, or do not."""
        view = self.model.view
        self.model.view = attrs.evolve(view, names=NameResolver() if view.names is None else None)
        self.show_model()

    def action_commands(self) -> None:
        """Command lines instead of names, or names."""
        self.view.commands = not self.view.commands
        self.show_model()

    def action_chart(self) -> None:
        """Show the chart, or take it away."""
        self._chart_wanted = not self.screen_stack[0].query_one("#chart", Static).display
        self.show_model()

    def action_pause(self) -> None:
        """Hold the screen still, or let it go on."""
        self.state.paused = not self.state.paused
        self.look()
        self.show_model()

    def action_reset(self) -> None:
        """Begin all totals at zero."""
        self.model.reset()
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
        self.model.choose(event.value.strip())
        self.show_model()

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Keep the filter."""
        self._close_filter()

    def on_key(self, event: events.Key) -> None:
        """Escape takes the filter away."""
        if event.key != "escape" or isinstance(self.screen, HelpScreen):
            return
        self.query_one("#filter", Input).value = ""
        self.model.choose("")
        self._close_filter()
        self.show_model()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("open")
        self.view.focus()
