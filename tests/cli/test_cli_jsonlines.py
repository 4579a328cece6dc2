"""Event lines: the golden file is the format."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import pytest
import sample_events as sample
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import json as jsonlines
from nstat_async._events import FlowAdded, FlowUpdated
from nstat_async._model import Counts, Flow, Provider
from nstat_async.json import JsonFormatter

GOLDEN = Path(__file__).parent / "golden"


def test_each_event_is_the_line_of_the_golden_file():
    formatter = JsonFormatter()
    lines = [formatter(event) for event in sample.EVENTS]
    assert lines == (GOLDEN / "events.jsonl").read_text().splitlines()


def test_lines_are_json_without_nan_and_ascii_without_control_characters():
    for event in sample.EVENTS:
        line = JsonFormatter()(event)
        json.loads(line, parse_constant=pytest.fail)
        assert line.isascii()
        assert line.isprintable()


def test_keys_of_a_flow_are_those_of_the_contract_in_its_order():
    line = json.loads(JsonFormatter()(sample.EVENTS[0]))
    assert list(line) == ["v", "event", "time", "flow", "counts", "preexisting"]
    assert list(line["flow"]) == [
        "id", "provider", "userland", "local", "remote", "process", "interface", "state", "direction", "started",
        "started_ns",
    ]  # fmt: skip
    assert list(line["flow"]["process"]) == ["pid", "name", "unique_pid", "effective_pid", "uuid", "uid", "path"]
    assert list(line["flow"]["local"]) == ["address", "port", "scope"]
    assert list(line["flow"]["interface"]) == ["index", "name", "kind"]
    assert list(line["counts"]) == [
        "rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_duplicate_bytes", "rx_out_of_order_bytes",
        "tx_retransmitted_bytes", "min_rtt_us", "avg_rtt_us", "var_rtt_us", "cell_rx_bytes", "cell_tx_bytes",
        "wifi_rx_bytes", "wifi_tx_bytes", "wired_rx_bytes", "wired_tx_bytes",
    ]  # fmt: skip


def test_the_time_and_the_name_survive_the_line():
    line = json.loads(JsonFormatter()(sample.EVENTS[4]))
    assert math.isclose(line["time"], sample.TIME, abs_tol=1e-6)
    assert line["flow"]["process"]["name"] == sample.EVIL.replace("\ud800", "\ufffd")
    assert line["flow"]["namespace"] == "blue"


def test_a_flow_that_changed_is_written_anew():
    """The text of a flow is kept only for the very same object."""
    formatter = JsonFormatter()
    formatter(FlowAdded(1.0, sample.CURL, None, preexisting=False))
    moved = attrs.evolve(sample.CURL, remote=None)
    assert json.loads(formatter(FlowUpdated(2.0, moved, sample.FIRST, None)))["flow"]["remote"] is None


def test_the_kept_texts_are_bounded(monkeypatch):
    monkeypatch.setattr(jsonlines, "_REMEMBERED", 100)
    formatter = JsonFormatter()
    for number in range(101):
        formatter(FlowAdded(1.0, Flow(id=str(number), provider=Provider.UDP), None, preexisting=False))
    assert len(formatter._flows) == 1


def test_a_flow_of_a_snapshot_has_the_same_flow_and_counts():
    line = json.loads(JsonFormatter().flow_line(sample.CURL, Counts(rx_bytes=1), 5.0))
    assert line["event"] == "flow"
    assert line["flow"] == json.loads(JsonFormatter()(sample.EVENTS[0]))["flow"]
    assert line["counts"]["rx_bytes"] == 1
    assert line["counts"]["tx_bytes"] is None


_amount = st.none() | st.integers(0, 2**64 - 1)
_counts = st.builds(Counts, rx_bytes=_amount, tx_bytes=_amount, rx_packets=_amount, tx_packets=_amount)


@given(st.lists(st.tuples(st.sampled_from(["1", "2"]), _counts, st.booleans()), max_size=12))
def test_the_delta_of_a_line_is_the_delta_of_its_event(steps):
    """Also where the kept values are not those of the event's previous counts."""
    formatter = JsonFormatter()
    last: dict[str, Counts] = {}
    for number, counts, follows in steps:
        flow = Flow(id=number, provider=Provider.TCP)
        previous = last.get(number) if follows else Counts(rx_bytes=5, tx_bytes=None)
        event = FlowUpdated(1.0, flow, counts, previous)
        line = json.loads(formatter(event))
        assert line["delta"] == attrs.asdict(event.delta)
        assert line["counts"]["rx_bytes"] == counts.rx_bytes
        last[number] = counts
