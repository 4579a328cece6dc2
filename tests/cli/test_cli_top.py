"""`top`: the model without a screen, the columns, and the application in Textual's pilot."""

from __future__ import annotations

import random
import time

import pytest

from nstat_async._cli._table import cell_width
from nstat_async._cli._top._layout import Columns, curve_text, fit
from nstat_async._cli._top._model import FlowLine, ProcessLine, TopModel
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted, RemovalReason
from nstat_async._model import Counts, Endpoint, Flow, Interface, InterfaceKind, Process, Provider, TcpState
from nstat_async.aggregate import ProcessTable
from nstat_async.testing import EmulatedKernel

EVIL = "\x1b[31m[red]\u202e\n"


def _flow(number: int, pid: int, name: str = "app") -> Flow:
    return Flow(
        id=str(number),
        provider=Provider.TCP,
        local=Endpoint.parse("10.0.0.1", 1000 + number % 60000),
        remote=Endpoint.parse("2001:db8::1", 443),
        process=Process(pid, name),
        interface=Interface(1, "en0", InterfaceKind.WIFI),
        state=TcpState.ESTABLISHED,
    )


def _counts(rx: int, tx: int = 0) -> Counts:
    return Counts(rx_bytes=rx, tx_bytes=tx, rx_packets=1, tx_packets=1)


def _model(**options) -> TopModel:
    """Three processes: 1 has the most bytes, 2 the highest rate, 3 the most flows."""
    model = TopModel(ProcessTable(), **options)
    one, two = _flow(1, 1, "big"), _flow(2, 2, "quick")
    model.feed([FlowAdded(0.0, one, _counts(10_000_000), preexisting=False)])
    model.feed([FlowAdded(0.0, two, _counts(0), preexisting=False)])
    model.feed([FlowAdded(0.0, _flow(n, 3, EVIL), _counts(1), preexisting=False) for n in range(3, 9)])
    model.feed([PollCompleted(10.0, 8, complete=True)])
    model.feed([FlowUpdated(12.0, two, _counts(200_000), _counts(0)), PollCompleted(12.0, 8, complete=True)])
    model.look()
    return model


def _pids(model: TopModel) -> list[int]:
    return [line.row.pid for line in model.lines if isinstance(line, ProcessLine)]


@pytest.mark.parametrize(
    ("key", "order"), [("rate", [2, 1, 3]), ("traffic", [1, 2, 3]), ("flows", [3, 1, 2]), ("pid", [1, 2, 3])]
)
def test_processes_are_in_the_order_of_the_key(key, order):
    model = _model(sort=key)
    assert _pids(model)[0] == order[0]
    model.reverse = True
    model.rearrange()
    assert _pids(model)[-1] == order[0]


def test_a_process_expands_into_its_flows_and_back():
    model = _model(sort="flows")
    model.toggle(model.lines[0].key)
    flows = [line for line in model.lines if isinstance(line, FlowLine)]
    assert [line.flow.process.pid for line in flows] == [3] * 6
    assert isinstance(model.lines[6], FlowLine)
    model.toggle(model.lines[0].key)
    assert len(model.lines) == 3


def test_a_flow_has_a_rate_until_its_last_report_is_old():
    model = _model()
    line = model._flows["2"]
    assert model.flow_rates(line) == (200_000 / 12, 0.0)
    model.feed([PollCompleted(20.0, 8, complete=True)])
    assert model.flow_rates(line) == (0.0, 0.0)


def test_the_filter_takes_names_and_pids():
    model = _model()
    model.wanted = "QUI"
    model.rearrange()
    assert _pids(model) == [2]
    model.wanted = "3"
    model.rearrange()
    assert _pids(model) == [3]


def test_gone_flows_and_folded_processes_leave_nothing_behind():
    model = TopModel(ProcessTable(max_finished=0))
    for number in range(100):
        flow = _flow(number, number)
        model.feed([FlowAdded(0.0, flow, _counts(1), preexisting=False)])
        model.look()
        model.feed([FlowRemoved(1.0, flow, _counts(2), final=True, reason=RemovalReason.CLOSED)])
    model.look()
    assert not model._flows
    assert len(model._curves) <= 2


def test_zero_begins_all_totals_anew():
    model = _model()
    model.reset()
    model.look()
    assert model.total.bytes == 0
    assert model.total.open_flows == 8


@pytest.mark.parametrize("width", [40, 80, 99, 100, 120, 160, 200])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_lines_fill_the_terminal_exactly_and_carry_no_control_characters(width, ascii_only):
    model = _model(sort="flows")
    model.toggle(model.lines[0].key)
    columns = Columns(width, ascii_only)
    for line in model.lines:
        cells = columns.process(line) if isinstance(line, ProcessLine) else columns.flow(line, model)
        text = "".join(cell for cell, _ in cells)
        assert text.isprintable()
        if width >= 80:
            assert cell_width(text) == width
    assert cell_width(columns.heading("rate", reverse=False)) == width


def test_text_is_cut_to_columns_not_characters():
    assert fit("日本語", 5) == "日本…"
    assert cell_width(fit("日本語", 4)) == 4
    assert fit("ab", 4, right=True) == "  ab"


def test_curves_are_as_wide_as_asked_and_grow_with_the_rate():
    text = curve_text([0.0, 100.0, 1e4, 1e6, 1e12], 6)
    assert len(text) == 6
    assert text[-1] == "█"
    assert list(text) == sorted(text, key=" ▁▂▃▄▅▆▇█".index)


def _app(kernel: EmulatedKernel, **options):
    pytest.importorskip("textual")
    from nstat_async._cli._top._app import TopApp

    return TopApp(kernel.backend(), {"interval": 0.05}, interval=0.05, **options)


async def _until(pilot, condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await pilot.pause(0.02)


def _screen(app) -> str:
    view = app.view
    return "\n".join(view.render_line(y).text for y in range(view.size.height))


@pytest.mark.asyncio
async def test_the_application_shows_processes_and_takes_keys():
    """Expanding, filtering, sorting, pausing, help, resizing and quitting work."""
    kernel = EmulatedKernel()
    first = kernel.open_tcp(501, "Safari", remote=("198.51.100.7", 443), rx=5000)
    kernel.open_tcp(502, EVIL[:15], remote=("198.51.100.8", 443), rx=1)
    app = _app(kernel, sort="traffic", include_history=True)
    async with app.run_test(size=(80, 24)) as pilot:
        await _until(pilot, lambda: "Safari" in _screen(app))
        assert "\\x1b" in _screen(app)
        assert _screen(app).replace("\n", "").isprintable()
        first.transfer(rx=1_000_000)
        await _until(pilot, lambda: "1.0 MB" in _screen(app))
        await pilot.press("enter")
        await _until(pilot, lambda: "198.51.100.7:443" in _screen(app))
        await pilot.press("left")
        await _until(pilot, lambda: "198.51.100.7:443" not in _screen(app))
        await pilot.press("slash", *"safa")
        await _until(pilot, lambda: "\\x1b" not in _screen(app))
        await pilot.press("escape")
        await _until(pilot, lambda: "\\x1b" in _screen(app))
        await pilot.press("s")
        assert app.model.sort == "rx"
        await pilot.press("p")
        assert app.paused
        kernel.open_tcp(600, "late", remote=("198.51.100.9", 443), rx=1)
        await _until(pilot, lambda: len(app.model.table) == 3)
        polls = app.model.table.polls[0]
        await _until(pilot, lambda: app.model.table.polls[0] > polls + 3)
        assert "late" not in _screen(app)
        await pilot.press("p")
        await _until(pilot, lambda: "late" in _screen(app))
        await pilot.press("question_mark", "escape")
        await pilot.resize_terminal(200, 60)
        await _until(pilot, lambda: len(_screen(app).splitlines()[0]) >= 198)
        assert "late" in _screen(app)
        await pilot.press("q")
    assert app.failure is None
    assert app.return_code == 0


@pytest.mark.asyncio
async def test_a_backend_that_fails_ends_the_application_with_its_error():
    from nstat_async import backends

    pytest.importorskip("textual")
    from nstat_async._cli._top._app import TopApp

    app = TopApp(backends.UnixSocket("/nonexistent/socket", "xnu-11417"), {})
    async with app.run_test() as pilot:
        await _until(pilot, lambda: app.failure is not None)
    assert "nonexistent" in str(app.failure)


@pytest.mark.asyncio
async def test_the_loop_stays_responsive_with_ten_thousand_flows():
    """A key press is handled while 10,000 flows change; only visible lines are drawn."""
    pytest.importorskip("textual")
    app = _app(EmulatedKernel())
    app._look_every = 1.0
    draw = random.Random(1)
    async with app.run_test(size=(80, 24)) as pilot:
        flows = [_flow(n, n % 50) for n in range(10_000)]
        app.model.feed(FlowAdded(1.0, flow, _counts(1), preexisting=False) for flow in flows)
        app.model.feed([EventsLost(1.0, LossCause.OVERFLOW, 1, None)])
        app.look()
        for line in list(app.model.lines):
            app.model.expanded.add(line.key)
        app.look()
        assert len(app.model.lines) >= 10_050
        drawn = []
        original = app.view.render_line
        app.view.render_line = lambda y: drawn.append(y) or original(y)
        app.model.feed(FlowUpdated(2.0, flow, _counts(draw.randrange(10**6)), _counts(1)) for flow in flows)
        await pilot.press("end")
        assert app.view.cursor == len(app.model.lines) - 1
        await pilot.press("home")
        await pilot.pause()
        assert app.view.cursor == 0
        assert drawn
        assert max(drawn) < 24
