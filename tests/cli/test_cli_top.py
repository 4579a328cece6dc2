"""`top`: the model without a screen, the columns, the golden screens, and the application in Textual's pilot."""

from __future__ import annotations

import asyncio
import io
import random
import time

import attrs
import pytest
import top_scenes as scenes
from hypothesis import given
from hypothesis import strategies as st
from replaying import failed_run

from nstat_async import Capabilities, Coverage, HostState, HostUpdated, ProviderRefused, Visibility
from nstat_async._cli._arguments import SORT_KEYS as SORT_WORDS
from nstat_async._cli._table import cell_width, fit
from nstat_async._cli._top._graph import chart_lines, curve_text
from nstat_async._cli._top._head import State, alarm_text, empty_text, state_text, totals_text
from nstat_async._cli._top._layout import Layout
from nstat_async._cli._top._model import FlowLine, HeadingLine, RestLine, RowLine, TopModel
from nstat_async._cli._top._screen import screen_on
from nstat_async._cli._views import SORT_KEYS, View
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted, RemovalReason
from nstat_async._model import (
    Counts,
    Direction,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    MediumCounts,
    Process,
    Provider,
    TcpState,
)
from nstat_async.aggregate import GroupBy
from nstat_async.testing import EmulatedKernel

EVIL = "\x1b[31m[red]\u202e\n"


def _flow(number: int, pid: int, name: str = "app", **more) -> Flow:
    return Flow(
        id=str(number),
        provider=Provider.TCP,
        local=Endpoint.parse("10.0.0.1", 1000 + number % 60000),
        remote=Endpoint.parse("2001:db8::1", 443),
        process=Process(pid, name),
        interface=Interface(1, "en0", InterfaceKind.WIFI),
        state=TcpState.ESTABLISHED,
        **more,
    )


def _counts(rx: int, tx: int = 0) -> Counts:
    return Counts(rx_bytes=rx, tx_bytes=tx, rx_packets=1, tx_packets=1)


def _model(**options) -> TopModel:
    """Three processes: 1 has the most bytes, 2 the highest rate, 3 the most flows."""
    model = TopModel(**options)
    one, two = _flow(1, 1, "big"), _flow(2, 2, "quick")
    model.feed([FlowAdded(0.0, one, _counts(10_000_000), preexisting=False)])
    model.feed([FlowAdded(0.0, two, _counts(0), preexisting=False)])
    model.feed([FlowAdded(0.0, _flow(n, 3, EVIL), _counts(1), preexisting=False) for n in range(3, 9)])
    model.feed([PollCompleted(10.0, 8, complete=True)])
    model.feed([FlowUpdated(12.0, two, _counts(200_000), _counts(0)), PollCompleted(12.0, 8, complete=True)])
    model.look()
    return model


def _rows(model: TopModel) -> list[RowLine]:
    return [line for line in model.lines if isinstance(line, RowLine)]


def _pids(model: TopModel) -> list[int]:
    return [line.row.pid for line in _rows(model)]


# --- the model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "order"),
    [("rate", [2, 1, 3]), ("traffic", [1, 2, 3]), ("flows", [3, 1, 2]), ("pid", [1, 2, 3]), ("rx-rate", [2, 1, 3])],
)
def test_rows_are_in_the_order_of_the_key(key, order):
    model = _model(sort=key)
    assert _pids(model)[0] == order[0]
    model.sort_by(key)
    assert model.reverse
    assert _pids(model)[-1] == order[0]


def test_the_command_line_and_top_know_the_same_keys():
    assert set(SORT_WORDS) == set(SORT_KEYS)


def test_a_row_expands_into_its_flows_under_headings_and_back():
    model = _model(sort="flows")
    model.toggle(model.lines[0].row.serial)
    assert isinstance(model.lines[1], HeadingLine)
    flows = [line for line in model.lines if isinstance(line, FlowLine)]
    assert [line.flow.process.pid for line in flows] == [3] * 6
    assert model.lines[2:8] == flows
    model.toggle(model.lines[0].row.serial)
    assert len(model.lines) == 3


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 10**6)), max_size=40))
def test_what_stands_below_a_row_adds_up_to_it(steps):
    """Bytes, flows and rates; whatever begins, grows, changes its owner and ends."""
    model, totals = TopModel(), {}
    for at, (kind, number, amount) in enumerate(steps):
        flow, now = _flow(number, number % 2 + (kind == 2)), 1.0 + at / 4
        before = totals.get(number)
        totals[number] = (before or 0) + amount
        if before is None:
            model.feed([FlowAdded(now, flow, _counts(amount), preexisting=amount % 2 == 0)])
        elif kind == 1:
            model.feed([FlowRemoved(now, flow, _counts(totals.pop(number)), final=True, reason=RemovalReason.CLOSED)])
        else:
            model.feed([FlowUpdated(now, flow, _counts(totals[number]), _counts(before))])
    model.look()
    for line in _rows(model):
        model.expanded.add(line.row.serial)
    model.rearrange()
    for place, line in enumerate(model.lines):
        if not isinstance(line, RowLine):
            continue
        below = []
        for each in model.lines[place + 1 :]:
            if isinstance(each, RowLine):
                break
            below.append(each)
        flows = [each for each in below if isinstance(each, FlowLine)]
        rest = [each.row for each in below if isinstance(each, RestLine)]
        assert sum(each.share.rx_bytes for each in flows) + sum(row.rx_bytes for row in rest) == line.row.rx_bytes
        assert sum(each.share.parts for each in flows) + sum(row.flows for row in rest) == line.row.flows
        assert len(flows) == line.row.open_flows


def test_the_total_is_that_of_the_rows_that_pass_the_filter():
    model = _model()
    assert model.total.rx_bytes == 10_200_006
    model.choose("QUI")
    assert (_pids(model), model.total.rx_bytes, model.shown, model.hidden) == ([2], 200_000, 1, 2)
    model.choose("3")
    assert (_pids(model), model.total.open_flows) == ([3], 6)
    model.choose("")
    assert model.hidden == 0


def test_gone_flows_and_folded_rows_leave_nothing_behind():
    model = TopModel()
    model.table._groups.max_finished = 0
    for number in range(100):
        flow = _flow(number, number)
        model.feed([FlowAdded(0.0, flow, _counts(1), preexisting=False)])
        model.look()
        model.feed([FlowRemoved(1.0, flow, _counts(2), final=True, reason=RemovalReason.CLOSED)])
    model.look()
    assert not model._events
    assert not model._first
    assert len(model._curves) <= 2
    assert len(model._flows) == 0


def test_zero_begins_all_totals_anew():
    model = _model()
    model.reset()
    assert model.total.bytes == 0
    assert model.total.open_flows == 8


def test_another_view_has_the_same_flows_and_counts_from_now():
    model = _model()
    model.change_view(View(GroupBy.remote_port()))
    (line,) = _rows(model)
    assert (line.row.key, line.row.open_flows, line.row.bytes) == (443, 8, 0)
    model.feed([FlowUpdated(13.0, _flow(2, 2, "quick"), _counts(200_500), _counts(200_000))])
    model.look()
    assert (_rows(model)[0].row.bytes, _rows(model)[0].row.rx_rate) == (500, 500), "in the second since the last event"
    model.toggle(_rows(model)[0].row.serial)
    assert sum(isinstance(line, FlowLine) for line in model.lines) == 8


# --- columns ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 60, 80, 99, 100, 120, 160, 200, 300])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("by", ["process", "remote-address"])
def test_lines_fill_the_terminal_exactly_and_carry_no_control_characters(width, ascii_only, by):
    model = _model(sort="flows", view=View(GroupBy.named(by)))
    model.feed([FlowRemoved(12.0, _flow(3, 3, EVIL), _counts(9), final=True, reason=RemovalReason.CLOSED)])
    for line in _rows(model):
        model.expanded.add(line.row.serial)
    model.rearrange()
    layout = Layout(width, model.view, ascii_only)
    for line in model.lines:
        text = "".join(cell for cell, _ in layout.cells(line, 12.0))
        assert text.isprintable()
        assert not ascii_only or text.isascii()
        if width >= 40:
            assert cell_width(text) == width
    assert cell_width(layout.heading("rate", reverse=False)) == width
    if width >= 40:
        assert sum(each for _, each, _, _ in layout.headings()) == width


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_each_heading_is_where_its_column_is_and_sorts_by_it(width):
    layout = Layout(width)
    heading, at = layout.heading("", reverse=False), 0
    for text, wide, key, _ in layout.headings():
        assert heading[at : at + wide].strip() == text
        assert {layout.sort_at(x) for x in range(at, at + wide)} == {key}
        assert key in SORT_KEYS or not text
        at += wide
    assert layout.sort_at(1000) == ""


@pytest.mark.parametrize(
    ("direction", "arrow"),
    [(Direction.OUTBOUND, "→"), (Direction.INBOUND, "←"), (None, "↔"), (Direction.LISTENER, "@")],
)
def test_a_flow_shows_both_ends_direction_state_age_round_trip_and_what_was_sent_again(direction, arrow):
    model = TopModel()
    counts = Counts(rx_bytes=1, tx_bytes=1, avg_rtt_us=12_345, tx_retransmitted_bytes=1500)
    flow = _flow(1, 1, direction=direction, started_ns=40_000_000_000)
    model.feed([FlowAdded(100.0, flow, counts, preexisting=True)])
    model.look()
    model.toggle(_rows(model)[0].row.serial)
    line = next(line for line in model.lines if isinstance(line, FlowLine))
    text = "".join(cell for cell, _ in Layout(160).cells(line, 160.0))
    assert arrow in text
    assert "10.0.0.1:1001" in text
    assert direction is Direction.LISTENER or all(part in text for part in ("[2001:db8::1]:443", "12ms", "1.5 kB"))
    assert "2m" in text
    assert "estab" in text
    small = "".join(cell for cell, _ in Layout(40).cells(line, 160.0))
    assert "12ms" not in small


def test_the_age_of_a_flow_that_was_there_before_is_at_least_that():
    model = TopModel()
    model.feed([FlowAdded(100.0, _flow(1, 1), _counts(1), preexisting=True)])
    model.feed([FlowAdded(100.0, _flow(2, 1), _counts(1), preexisting=False)])
    model.look()
    model.toggle(_rows(model)[0].row.serial)
    texts = {
        line.flow.id: "".join(cell for cell, _ in Layout(160).cells(line, 130.0))
        for line in model.lines
        if isinstance(line, FlowLine)
    }
    assert ">30s" in texts["1"]
    assert " 30s" in texts["2"]


def test_no_state_is_ever_cut():
    for state in TcpState:
        model = TopModel()
        flow = Flow("1", Provider.TCP, process=Process(1), state=state, local=Endpoint.parse("::", 1))
        model.feed([FlowAdded(1.0, flow, _counts(1), preexisting=False)])
        model.look()
        model.toggle(_rows(model)[0].row.serial)
        line = next(line for line in model.lines if isinstance(line, FlowLine))
        assert "…" not in "".join(cell for cell, _ in Layout(80).cells(line, 1.0))


def test_a_column_of_which_nothing_is_known_has_no_place():
    nothing = Layout(200, known=frozenset())
    everything = Layout(200)
    names = [{text for text, *_ in layout.headings()} for layout in (nothing, everything)]
    assert names[1] - names[0] == {"USER", "UNIT", "COMMAND"}


def test_media_stand_in_rows_flows_and_the_total_as_soon_as_a_report_has_them():
    model = _model()
    model.look()
    assert "MEDIA" not in {text for text, *_ in Layout(200, known=model.known).headings()}
    counts = Counts(
        rx_bytes=3000,
        tx_bytes=0,
        media={
            "total": MediumCounts(3000, 0, 3, 0),
            "wifi_infra": MediumCounts(900, 100, 1, 1),
            "loopback": MediumCounts(2000, 0, 2, 0),
        },
    )
    model.feed([FlowAdded(1.0, _flow(999, 77), counts, preexisting=False)])
    model.look()
    row = next(line for line in _rows(model) if line.row.pid == 77)
    model.toggle(row.row.serial)
    flow = next(line for line in model.lines if isinstance(line, FlowLine))
    layout = Layout(260, known=model.known)
    for line in (row, flow):
        assert "loopback 2.0 kB  wifi_infra 1.0 kB" in "".join(text for text, _ in layout.cells(line, 1.0))
    assert "loopback 2.0 kB" in totals_text(model, 200)


def test_text_is_cut_to_columns_not_characters():
    assert fit("日本語", 5) == "日本…"
    assert cell_width(fit("日本語", 4)) == 4
    assert fit("ab", 4, right=True) == "  ab"


def test_curves_are_as_wide_as_asked_and_grow_with_the_rate():
    text = curve_text([0.0, 100.0, 1e4, 1e6, 1e12], 6)
    assert len(text) == 6
    assert text[-1] == "█"
    assert list(text) == sorted(text, key=" ▁▂▃▄▅▆▇█".index)


@given(st.lists(st.floats(0, 1e15), max_size=50), st.integers(1, 60), st.integers(1, 6), st.floats(0, 1e15))
def test_a_chart_has_the_size_asked_for_and_grows_from_its_ground(rates, width, height, top):
    lines = chart_lines(rates, width, height, top)
    assert [len(line) for line in lines] == [width] * height
    for column in zip(*lines, strict=True):
        blocks = ["".join(" ▁▂▃▄▅▆▇█").index(mark) for mark in column]
        assert blocks == sorted(blocks)


# --- the head -----------------------------------------------------------------------------


def test_the_head_says_where_from_how_much_is_seen_and_what_was_lost():
    model = _model()
    model.feed([EventsLost(12.0, LossCause.OVERFLOW, 1, None)])
    able = Capabilities(backend="sock_diag", kernel="6.18", ebpf="tcp", processes=Visibility.OWN)
    text = state_text(State("sock_diag", able, paused=True), model)
    assert [part in text for part in ("PAUSED", "! 1 gap ", "eBPF tcp", "6.18", "processes of this user only")] == [
        True
    ] * 5
    able = attrs.evolve(able, ebpf="none", ebpf_reason="maps: EPERM: needs CAP_BPF and CAP_PERFMON (or root)")
    assert "eBPF none (maps: EPERM: needs CAP_BPF" in state_text(State("sock_diag", able), model)
    able = attrs.evolve(able, kernel="6.18\u202e\x1b[31m", ebpf_reason="\x1b[2J")  # as a recording may have it
    assert state_text(State("replay", able), model).isprintable()
    for width in (10, 40, 80, 200):
        assert "8 flows" in totals_text(model, width)


def test_the_head_names_silent_machines_and_refused_flows_in_every_view():
    model = _model()
    model.feed([HostUpdated(12.0, HostState.PRESENT, host=host) for host in ("db1", "web1")])
    assert "silent" not in state_text(State("fleet"), model) + alarm_text(model)
    model.feed([HostUpdated(13.0, HostState.SILENT, host="db1"), EventsLost(13.0, LossCause.TRANSPORT, 1)])
    assert alarm_text(model) == "! 1  ! 1 silent"
    model.feed([ProviderRefused(14.0, Provider.UDP, 2, "the kernel has no sock_diag for it")])
    model.change_view(View(GroupBy.user()))
    model.reset()
    assert "! 1 of 2 machines is silent: db1" in state_text(State("fleet"), model)
    assert "! no udp flows: the kernel has no sock_diag for it" in state_text(State("fleet"), model)


@pytest.mark.parametrize(
    ("coverage", "says"),
    [
        (None, False),
        (Coverage(rx_bytes=0, tx_bytes=0, flow_rx_bytes=0, flow_tx_bytes=0), False),
        (Coverage(rx_bytes=1000, tx_bytes=0, flow_rx_bytes=884, flow_tx_bytes=0), "rx 88%, tx ? of the wire"),
        (Coverage(rx_bytes=1000, tx_bytes=200, flow_rx_bytes=0, flow_tx_bytes=100), "rx 0%, tx 50% of the wire"),
    ],
)
def test_the_head_says_how_much_of_the_interfaces_traffic_the_flows_explain(coverage, says):
    text = state_text(State("sock_diag", Capabilities(backend="sock_diag"), coverage), _model())
    assert ("payload of flows: " in text) is bool(says)
    assert not says or says in text


@pytest.mark.parametrize(
    ("state", "wanted", "says"),
    [
        (State("kctl"), "", "Opening kctl"),
        (State("kctl", Capabilities(backend="kctl")), "", "first answer"),
        (State("replay", Capabilities(backend="replay"), ended=True), "", "ended without an answer"),
    ],
)
def test_an_empty_screen_says_why(state, wanted, says):
    assert says in "\n".join(empty_text(state, TopModel()))
    model = _model()
    model.choose("nobody")
    assert "3 rows are hidden" in "\n".join(empty_text(state, model))
    model = TopModel()
    model.feed([PollCompleted(1.0, 0, complete=True)])
    able = Capabilities(backend="sock_diag", processes=Visibility.OWN)
    assert "doctor" in "\n".join(empty_text(State("sock_diag", able), model))
    assert "filter of the command line" in "\n".join(empty_text(State("sock_diag", able, filtered=True), model))


# --- the screen ---------------------------------------------------------------------------


@pytest.mark.parametrize("flows", [*scenes.FLOWS[:2], pytest.param(scenes.FLOWS[2], marks=pytest.mark.slow)])
def test_the_screens_are_those_of_the_golden_files(flows, monkeypatch):
    """``python tests/cli/top_scenes.py`` makes them; look at what changed."""
    pytest.importorskip("textual")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    model = scenes.model_of(flows)
    for size in scenes.SIZES:
        assert asyncio.run(scenes.capture(model, size)) == scenes.golden(flows, size).read_text(encoding="utf-8"), size


@pytest.mark.parametrize(
    ("width", "keys"), [(80, "Flows Help Quit Sort View Filter Command Pause"), (40, "Flows Help Quit")]
)
def test_the_list_of_keys_is_whole_on_eighty_columns_and_has_help_on_forty(width, keys):
    pytest.importorskip("textual")

    async def shown():
        app = scenes.Still(scenes.model_of(0))
        async with app.run_test(size=(width, 24)) as pilot:
            for _ in range(200):  # the list is made anew when the table has the focus
                await pilot.pause()
                line = "".join(segment.text for segment in app.screen._compositor.render_strips()[-1])
                if [word for word in line.split() if word in keys.split()] == keys.split():
                    return True
        return line

    assert asyncio.run(shown()) is True


@pytest.mark.parametrize(
    ("encoding", "locale", "plain"),
    [
        ("utf-8", "C.UTF-8", False),
        ("utf-8", "C", True),
        ("ascii", "C.UTF-8", True),
        ("latin-1", "", True),
        (None, "", False),
    ],
)
def test_a_screen_without_unicode_is_drawn_with_ascii_and_keeps_its_places(encoding, locale, plain, monkeypatch):
    pytest.importorskip("textual")
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.delenv("LANG", raising=False)
    screen = (
        None if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace", write_through=True)
    )
    monkeypatch.setattr("sys.__stderr__", screen)
    from nstat_async._cli._top._view import TrafficView

    app = scenes.Still(scenes.model_of(0))
    view = TrafficView(app.model, list)
    assert view.ascii_only is plain
    shown = [app.get_key_display(binding) for binding in view._bindings.key_to_bindings["enter"]]
    assert shown == ["enter" if plain else "⏎"]
    if screen is not None:
        with screen_on(screen):
            screen.write("│日本 é…\N{COMBINING ACUTE ACCENT}│")
        seen = {"ascii": "|???? ?~|", "latin-1": "|???? é~|"}.get(encoding, "│日本 é…\N{COMBINING ACUTE ACCENT}│")
        assert screen.buffer.getvalue().decode(encoding) == seen
        assert screen.errors == "backslashreplace"


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
        assert app.state.paused
        kernel.open_tcp(600, "late", remote=("198.51.100.9", 443), rx=1)
        await _until(pilot, lambda: len(app.model.table) == 3)
        polls = app.model.polls
        await _until(pilot, lambda: app.model.polls > polls + 3)
        assert "late" not in _screen(app)
        await pilot.press("p")
        await _until(pilot, lambda: "late" in _screen(app))
        suspended: list[bool] = []
        app.action_suspend_process = lambda: suspended.append(True)
        await pilot.press("question_mark", "ctrl+z", "escape", "ctrl+z")
        assert len(suspended) == 2, "also where the keys are shown"
        await pilot.resize_terminal(200, 60)
        await _until(pilot, lambda: len(_screen(app).splitlines()[0]) >= 198)
        assert "late" in _screen(app)
        await pilot.press("q")
    assert app.failure is None
    assert app.return_code == 0


@pytest.mark.slow
@pytest.mark.asyncio
async def test_every_view_chart_commands_and_names_are_a_key_away_and_a_click_sorts():
    kernel = EmulatedKernel()
    kernel.open_tcp(501, "Safari", remote=("198.51.100.7", 443), rx=5000)
    app = _app(kernel)
    async with app.run_test(size=(80, 24)) as pilot:
        await _until(pilot, lambda: "Safari" in _screen(app))
        seen = []
        for _ in range(8):
            seen.append(app.model.view.group_by.name)
            await pilot.press("v")
            assert app.model.lines
        assert len(set(seen)) == 8
        assert app.model.view.group_by.name == "process"
        await pilot.press("c")
        assert app.view.commands
        await pilot.press("n")
        assert app.model.view.names is not None
        await pilot.press("n")
        assert app.model.view.names is None
        chart = app.query_one("#chart")
        heading = app.view.columns.heading(app.model.sort, reverse=False)
        await pilot.click("Heading", offset=(heading.index("PID"), 0))
        assert app.model.sort == "pid"
        await pilot.press("less_than_sign")
        assert app.model.sort == "name"
        for size in ((40, 10), (20, 5), (120, 40)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await _until(pilot, lambda: chart.display)
        await pilot.press("t")
        assert not chart.display
        await pilot.press("t")
        assert chart.display
    assert app.failure is None


@pytest.mark.asyncio
async def test_a_backend_that_fails_ends_the_application_with_its_error():
    from nstat_async import backends

    pytest.importorskip("textual")
    from nstat_async._cli._top._app import TopApp

    app = TopApp(backends.UnixSocket("/nonexistent/socket", "xnu-11417"), {})
    async with app.run_test() as pilot:
        await _until(pilot, lambda: app.failure is not None)
    assert "nonexistent" in str(app.failure)


def test_a_letter_of_another_character_set_does_not_end_the_keys(monkeypatch):
    """Textual decodes them strictly, and ends with a traceback."""
    pytest.importorskip("textual")
    from textual.app import App

    reads = []

    class Keys:
        def run_input_thread(self):
            reads.append(self)
            if len(reads) < 3:
                b"\xe9q".decode()

    monkeypatch.setattr(App, "get_driver_class", lambda _app: Keys)
    keys = _app(EmulatedKernel()).get_driver_class()()
    assert isinstance(keys, Keys)
    keys.run_input_thread()
    assert reads == [keys] * 3


@pytest.fixture
def failed():
    """The recording of a run that failed."""
    return io.BytesIO(failed_run())


@pytest.mark.asyncio
async def test_the_table_of_a_recorded_run_that_failed_stays_until_it_is_left(failed):
    from nstat_async import backends

    pytest.importorskip("textual")
    from nstat_async._cli._top._app import TopApp

    app = TopApp(backends.Replay(failed), {})
    async with app.run_test() as pilot:
        await _until(pilot, lambda: app.failure is not None)
        await pilot.pause()
        assert app.is_running
        assert app.state.ended
        await pilot.press("q")
    assert "refused every provider" in str(app.failure)


@pytest.mark.slow
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
        for line in _rows(app.model):
            app.model.expanded.add(line.row.serial)
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
