"""`--format csv`: what a reader of CSV gets."""

from __future__ import annotations

import csv

import attrs
import conversations
import pytest
from support import run, run_json

from nstat_async import (
    Counts,
    Endpoint,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    LossCause,
    Process,
    Provider,
    RemovalReason,
)
from nstat_async._cli._columns import event_columns, row_columns
from nstat_async._cli._csv import csv_of_events, csv_of_rows
from nstat_async.aggregate import Row, RowKind

FLOW = Flow("c1", Provider.TCP, None, Endpoint.parse("2001:db8::1", 80), process=Process(7, 'a,"b"\n=1 '))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/b_tcp_loopback"))
    return path


def test_the_columns_of_a_replay_are_the_keys_and_values_of_its_json(path):
    status, out, err = run("replay", "--format", "csv", path)
    assert (status, err) == (0, "")
    rows = list(csv.DictReader(out.splitlines()))
    lines = [line for line in run_json("replay", "--json", path) if "flow" in line]
    assert len(rows) == len(lines) > 5
    for row, line in zip(rows, lines, strict=True):
        flow, counts = line["flow"], line["counts"] or {}
        assert (float(row["time"]), row["event"], row["id"]) == (pytest.approx(line["time"]), line["event"], flow["id"])
        assert row["pid"] == ("" if flow["process"] is None else str(flow["process"]["pid"]))
        assert row["remote.address"] == ("" if flow["remote"] is None else flow["remote"]["address"])
        assert row["rx_bytes"] == ("" if counts.get("rx_bytes") is None else str(counts["rx_bytes"]))
        assert row["final"] == {None: "", True: "true", False: "false"}[line.get("final")]


def test_a_name_is_one_cell_of_one_line_whatever_is_in_it():
    lines = csv_of_events(event_columns("name,local,rx_bytes"))([FlowAdded(1.5, FLOW, None, preexisting=False)])
    assert lines[0] == "name,local,rx_bytes"
    assert list(csv.reader(lines[1:])) == [['a,"b"\\x0a=1 ', "[2001:db8::1]:80", ""]]
    assert lines[1:] == ['"a,""b""\\x0a=1 ",[2001:db8::1]:80,']


def test_an_unknown_value_in_the_only_column_is_a_record_too():
    """An empty line would be skipped."""
    lines = csv_of_events(event_columns("container"))([FlowAdded(1.5, FLOW, None, preexisting=False)])
    assert list(csv.DictReader(lines)) == [{"container": ""}]


def test_what_is_no_flow_is_said_on_standard_error(capsys):
    removed = FlowRemoved(2.0, FLOW, Counts(rx_bytes=5), final=True, reason=RemovalReason.CLOSED)
    form = csv_of_events(event_columns("event,final"))
    assert form.of_events([EventsLost(1.0, LossCause.OVERFLOW, 3), removed]) == ["event,final", "flow_removed,true"]
    assert form.of_events([removed]) == ["flow_removed,true"], "the names of the columns come once"
    assert "lost: 3 (overflow)" in capsys.readouterr().err


def test_rows_have_the_time_of_the_look():
    row = attrs.evolve(Row(kind=RowKind.GROUP, key="x", flows=2), rx_rate=1.5)
    assert csv_of_rows(row_columns("name,flows,rx_rate,tx_rate"))([row], 12.25) == [
        "time,name,flows,rx_rate,tx_rate",
        "12.25,x,2,1.5,",
    ]


def test_tables_and_snapshots_are_read_by_names(path):
    for command, backend, wanted in (
        ("processes", f"replay:{path}", "open_flows"),
        ("snapshot", "emulated", "local.port"),
    ):
        status, out, _ = run(command, "--format", "csv", "--backend", backend)
        rows = list(csv.DictReader(out.splitlines()))
        assert status == 0
        assert rows
        assert all(int(row[wanted]) >= 0 and float(row["time"]) > 0 for row in rows)
