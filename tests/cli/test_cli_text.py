"""The form for people."""

from __future__ import annotations

import io
import re
from pathlib import Path

import attrs
import pytest
import sample_events as sample
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._cli._cells import bytes_text, moment_text, process_text
from nstat_async._cli._output import use_colour
from nstat_async._cli._table import cell_width, fit, render, shortened
from nstat_async._cli._text import TextFormatter
from nstat_async._escape import dump, escape
from nstat_async._events import FlowAdded, FlowRemoved, FlowUpdated, RemovalReason
from nstat_async._model import Counts, Direction, Endpoint, Outcome, Process, TcpState

GOLDEN = Path(__file__).parent / "golden"


def test_each_event_is_the_line_of_the_golden_file():
    formatter = TextFormatter(utc=True)
    lines = [str(formatter(event)) for event in sample.EVENTS]
    assert lines == (GOLDEN / "events.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.9994, "00:00:01.999"), (1.9996, "00:00:02.000"), (-1.5, "23:59:58.500"), (1.79e305, f"{int(1.79e305)}.000")],
)
def test_a_moment_is_shown_to_the_millisecond_and_one_beyond_all_calendars_as_its_number(seconds, text):
    assert moment_text(seconds, utc=True) == text


def test_only_tcp_that_ended_without_receiving_failed():
    lines = [TextFormatter(utc=True)(event) for event in sample.EVENTS[5:10]]
    assert [("FAILED" in line) for line in lines] == [False, True, False, False, False]


def test_what_ended_in_order_did_not_fail_nor_did_what_was_no_connection():
    """A client that only sends receives nothing; a listener may go before anyone saw its state."""
    ended = next(event for event in sample.EVENTS[5:10] if "FAILED" in TextFormatter()(event))
    for harmless in (
        attrs.evolve(ended, flow=attrs.evolve(ended.flow, outcome=Outcome.CLOSED_HERE)),
        attrs.evolve(ended, flow=attrs.evolve(ended.flow, remote=None)),
    ):
        assert "FAILED" not in TextFormatter()(harmless)


def test_a_good_poll_is_silent_and_a_bad_one_is_not():
    assert TextFormatter()(sample.EVENTS[10]) is None
    assert "incomplete" in TextFormatter()(sample.EVENTS[11])


def test_colour_is_only_in_signs_and_can_be_taken_away():
    plain = [TextFormatter(utc=True)(event) for event in sample.EVENTS]
    coloured = [TextFormatter(utc=True, colour=True)(event) for event in sample.EVENTS]
    assert any("\x1b" in str(line) for line in coloured)
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"):
        coloured = [line and line.replace(code, "") for line in coloured]
    assert coloured == plain


def test_times_beyond_the_calendar_do_not_stop_the_stream():
    assert TextFormatter()(FlowAdded(1e300, sample.BARE, None, preexisting=False))


@given(st.text())
def test_escaped_text_is_one_printable_line_and_can_be_read_back(text):
    shown = escape(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    names = shown.encode("ascii", "backslashreplace").decode()
    assert names.encode().decode("unicode_escape") == text


@given(st.text())
def test_json_is_ascii_without_control_characters(text):
    assert dump(text).isascii()
    assert dump(text).isprintable()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (999_999, "1.0 MB"),
        (99_944, "99.9 kB"),
        (200_000, "200 kB"),
        (2**63, "9.2 EB"),
        (16_384 * 10**18, "16384 EB"),
        (2**1000, "1e+283 EB"),
    ],
)
def test_units(number, text):
    assert bytes_text(number) == text


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
    ],
)
def test_colour_is_for_terminals_unless_somebody_forbids_or_forces_it(environment, terminal, coloured, monkeypatch):
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert use_colour(Stream()) is coloured


def test_a_table_fits_its_columns_by_leaving_out_what_is_worth_least_then_by_cutting_texts():
    headings, cells = ("", "NAME", "WHERE", "SIZE"), ("@", "a name that is long", "[2001:db8::1]:44300", "1.5 kB")
    whole = render(headings, [cells], right={3})
    assert render(headings, [cells], right={3}, columns=len(whole[1])) == whole
    for columns in range(16, 60):
        lines = render(headings, [cells], right={3}, columns=columns, spare=[2])
        assert max(map(cell_width, lines)) <= max(columns, 22)
        assert lines[1].endswith("1.5 kB")
        assert ("WHERE" in lines[0]) is (columns >= 45)
        assert (
            max(map(cell_width, render(headings, [cells], right={3}, columns=columns, spare=[2], last=[3]))) <= columns
        )
    assert render(headings, [cells], columns=47)[1] == "@  a name tha…s long  [2001:db8:…:44300  1.5 kB"


def test_lines_of_flows_stand_in_columns_however_long_their_parts_become():
    """A column grows with its widest cell, to a limit, and never shrinks."""
    formatter = TextFormatter(utc=True)
    names = ["a", "日本語", "much longer than the others", "x" * 100]
    flows = [
        attrs.evolve(sample.CURL, id=name, local=Endpoint.parse("10.0.0.1", port), process=Process(port, name))
        for port, name in zip((1, 50_000, 443, 80), names, strict=True)
    ]
    lines = [formatter(FlowAdded(0.0, flow, None, preexisting=False)) for flow in [*flows, *flows]]
    ends = [cell_width(line[: line.index("rx ?")]) for line in lines[len(flows) :]]
    assert len(set(ends[:3])) == 1
    assert ends[3] > ends[0]  # wider than any column may become


def _changed(formatter, *changes):
    """The lines of updates of a flow, after the one that adds it."""
    counts = Counts(rx_bytes=1_500_000, tx_bytes=10, rx_packets=None, tx_packets=None)
    flow, lines = sample.CURL, []
    formatter(FlowAdded(0.0, flow, counts, preexisting=False))
    for more, numbers in changes:
        flow = attrs.evolve(flow, **more) if more else flow
        before, counts = counts, Counts(**{**counts.as_dict(), **numbers})
        lines.append(formatter(FlowUpdated(1.0, flow, counts, before)))
    return lines


def test_an_update_that_shows_nothing_else_says_what_changed():
    same, state, rtt, small, wide = _changed(
        TextFormatter(utc=True),
        ({}, {}),
        ({"state": TcpState.CLOSE_WAIT}, {}),
        ({}, {"avg_rtt_us": 1200, "tx_retransmitted_bytes": 1448}),
        ({}, {"rx_bytes": 1_500_001}),
        ({"process": Process(811, "a longer name than before")}, {}),
    )
    assert same is None
    assert state.endswith("wifi  close_wait")
    assert rtt.endswith("wifi  tx_retransmitted_bytes 1.4 kB  avg_rtt_us 1200")
    assert small.endswith("wifi  rx_bytes 1.5 MB")
    assert wide.endswith("pid:811 (a longer name than before)  rx 1.5 MB   tx 10 B     wifi")


def test_a_change_of_state_is_said_beside_new_numbers_and_every_update_has_a_line_where_that_is_asked_for():
    grown, same = _changed(
        TextFormatter(utc=True, every=True), ({"state": TcpState.FIN_WAIT_1}, {"rx_bytes": 2_000_000}), ({}, {})
    )
    assert "rx 2.0 MB" in grown
    assert grown.endswith("wifi  fin_wait_1")
    assert same.endswith("wifi  unchanged")


def test_lines_fit_a_terminal_and_stand_in_columns_there():
    """What a narrow one does without is said elsewhere; how a flow ended never goes."""
    flows = [
        attrs.evolve(
            sample.CURL, id=str(at), local=Endpoint.parse("10.0.0.1", 50_000 + at), remote=Endpoint.parse(remote, 443),
            process=Process(at, name, title=title),
        )
        for at, (remote, name, title) in enumerate([
            ("192.0.2.7", "a", None), ("2001:db8:1234:5678:9abc:def0:1234:5678", "python3.11", "a title"), ("192.0.2.9", "日本語", None),
        ], 1)
    ]  # fmt: skip
    counts = Counts(rx_bytes=123_456, tx_bytes=12, rx_packets=1234, tx_packets=1)
    whole = [cell_width(TextFormatter(utc=True)(FlowAdded(0.0, flow, counts, preexisting=False))) for flow in flows]
    for room in (68, 80, 100, 120):
        formatter = TextFormatter(utc=True, columns=lambda room=room: room)
        events = [*(FlowAdded(0.0, flow, counts, preexisting=False) for flow in flows)] * 2
        lines = [formatter(event) for event in events][3:]
        lines += [
            formatter(FlowRemoved(1.0, flow, counts, final=False, reason=RemovalReason.DROPPED)) for flow in flows
        ]
        assert max(map(cell_width, lines)) <= room
        assert len({cell_width(line[: line.index("rx 123 kB")]) for line in lines}) == 1
        assert all(line.endswith("[dropped]") for line in lines[3:])
        assert ("50001" in lines[0]) is (room >= 100)
        assert ("00:00:00" in lines[0]) is (room >= 80)
    for room in range(30, 68):  # the protocol and what was sent go, how it ended stays
        formatter = TextFormatter(utc=True, columns=lambda room=room: room)
        lines = [formatter(event) for event in events][3:]
        lines += [
            formatter(FlowRemoved(1.0, flow, counts, final=False, reason=RemovalReason.DROPPED)) for flow in flows
        ]
        assert max(map(cell_width, lines)) <= room
        assert len({cell_width(line[: line.index("rx 123 kB")]) for line in lines[:3]}) == 1
        assert all(shown in line for line, shown in zip(lines, ["1 a", "2 a t", "3 日本語"] * 2, strict=True))
        assert all(line.endswith("[dropped]") for line in lines[3:]) or room < 40
    formatter = TextFormatter(utc=True, columns=lambda: max(whole))
    assert all("(1234)" in formatter(FlowAdded(0.0, flow, counts, preexisting=False)) for flow in flows)
    listener = attrs.evolve(sample.CURL, direction=Direction.LISTENER, remote=None)
    assert "@" in TextFormatter(columns=lambda: 64)(FlowAdded(0.0, listener, None, preexisting=True))


@pytest.mark.parametrize(
    ("name", "title", "shown"),
    [
        ("python3.11", "mail-relay", "python3.11: mail-relay"),
        ("python3.11", "python3", "python3.11"),
        ("a-name-longer-than-15", "a-name-longer-t", "a-name-longer-than-15"),
        ("dash", "sh\x1b", "dash: sh\\x1b"),
        ("curl", None, "curl"),
    ],
)
def test_a_script_is_called_by_its_own_name_too(name, title, shown):
    """The executable of every Python daemon is the interpreter."""
    assert process_text(Process(7, name, title=title)) == f"pid:7 ({shown})"


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("e\u0301", 1),
        ("日本", 4),
        ("\u1112\u1161\u11ab", 2),
        ("नमस्ते", 4),
        ("🔥", 2),
        ("a\u20dd", 1),
    ],
    ids=["a mark", "wide letters", "conjoining Hangul", "vowel signs", "a picture", "an enclosing mark"],
)
def test_a_text_is_as_wide_as_a_terminal_shows_it(text, width):
    assert cell_width(text) == width
    assert cell_width(fit(text * 9, 7)) == 7


def test_what_is_left_of_a_text_has_no_mark_of_a_letter_that_is_gone():
    assert shortened("e\u0301" * 9, 6).partition("…")[2] == "e\u0301" * 2
    assert cell_width(shortened("\u1112\u1161\u11ab" * 9, 8)) <= 8
    assert not re.search("…[\u1160-\u11ff]", shortened("\u1112\u1161\u11ab" * 9, 8))


@pytest.mark.parametrize("char", ["\u3164", "\ufe0f", "\U000e0101", "\u2800", "\u115f"])
def test_what_has_no_picture_is_shown_by_its_number(char):
    """A name of nothing but such letters would look like no name."""
    shown = escape(f"é{char}")
    assert shown.isprintable()
    assert shown == f"é{char.encode('ascii', 'backslashreplace').decode()}"
