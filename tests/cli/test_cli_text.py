"""The form for people."""

from __future__ import annotations

from pathlib import Path

import pytest
import sample_events as sample
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._cli._text import TextFormatter, bytes_text
from nstat_async._escape import dump, escape
from nstat_async._events import FlowAdded

GOLDEN = Path(__file__).parent / "golden"


def test_each_event_is_the_line_of_the_golden_file():
    formatter = TextFormatter(utc=True)
    lines = [str(formatter(event)) for event in sample.EVENTS]
    assert lines == (GOLDEN / "events.txt").read_text().splitlines()


def test_only_tcp_that_ended_without_receiving_failed():
    lines = [TextFormatter(utc=True)(event) for event in sample.EVENTS[5:10]]
    assert [("FAILED" in line) for line in lines] == [False, True, False, False, False]


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
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (1_048_575, "1.0 MiB"),
        (102_348, "99.9 KiB"),
        (200 * 1024, "200 KiB"),
        (2**63, "8.0 EiB"),
        (2**74, "16384 EiB"),
    ],
)
def test_units(number, text):
    assert bytes_text(number) == text
