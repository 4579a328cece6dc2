"""Views by anything, fields of one's choice, names of remotes: what `processes`, `snapshot` and `watch` print of them."""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
import types

import attrs
import conversations
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from support import run, run_json

from nstat_async import (
    Counts,
    Direction,
    Endpoint,
    EventsLost,
    Flow,
    FlowAdded,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    PollCompleted,
    Process,
    Provider,
    ProviderRefused,
    UsageError,
)
from nstat_async._cli._columns import event_columns, picked, row_columns
from nstat_async._cli._formats import event_formatter, flow_form, row_form
from nstat_async._cli._names import NameResolver
from nstat_async._cli._output import Output
from nstat_async._cli._processes import _missing
from nstat_async._cli._views import SORT_KEYS, View, user_text
from nstat_async.aggregate import GroupBy, Row, RowKind, TrafficTable
from nstat_async.json import to_dict


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "c.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/b_tcp_loopback"))
    return f"replay:{path}"


def test_every_view_adds_up_to_the_same_total(source):
    totals = set()
    for name in GroupBy.names():
        rows = run_json("processes", "--json", "--by", name, "--backend", source)
        totals.add((sum(row["rx_bytes"] or 0 for row in rows), sum(row["tx_bytes"] or 0 for row in rows)))
    assert len(totals) == 1
    assert max(totals) > (0, 0)


def test_a_loss_of_unknown_size_is_some_and_not_none():
    table = TrafficTable(GroupBy.processes())
    for loss in (EventsLost(1.0, LossCause.SILENCE, None), EventsLost(1.0, LossCause.BATCH, 3)):
        table.feed(loss)
    lines = _missing(table)
    assert lines == ["! lost: some (silence)", "! lost: 3 (batch)"]


@pytest.mark.parametrize("form", ["json", "csv", "ocsf"])
def test_what_rows_for_programs_lack_is_said_on_standard_error(form, tmp_path):
    lines = conversations.raw("stack/xnu-11417.121.6/b_tcp_loopback").splitlines(keepends=True)
    lines[len(lines) // 2] = b"damaged\n"
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"".join(lines))
    status, out, err = run("processes", "--backend", f"replay:{path}", "--format", form)
    assert (status, "lost" in out) == (0, False)
    assert "nstat-async: ! lost: 1 (recording)\n" in err


def test_a_table_says_which_flows_were_refused_if_it_would_count_them():
    table = TrafficTable(GroupBy.processes())
    table.feed(ProviderRefused(1.0, Provider.UDP, 2, "the kernel has no sock_diag for it\x1b"))
    table.feed(ProviderRefused(1.0, Provider.TCP, 1, ""))
    table.feed(ProviderRefused(1.0, Provider.UDP_SUBFLOW, 1, "not without eBPF"))
    assert _missing(table) == [
        "! no udp flows: the kernel has no sock_diag for it\\x1b", "! no tcp flows: refused",
    ]  # fmt: skip


def test_a_table_of_a_fleet_names_the_machines_that_are_silent():
    table = TrafficTable(GroupBy.processes())
    for number in range(6):
        table.feed(HostUpdated(1.0, HostState.PRESENT, host=f"web{number}"))
    assert _missing(table) == []
    table.feed(HostUpdated(2.0, HostState.SILENT, host="web3"))
    assert _missing(table) == ["! 1 of 6 machines is silent: web3"]
    for number in (0, 1, 2):
        table.feed(HostUpdated(2.0, HostState.SILENT, host=f"web{number}"))
    table.feed(HostUpdated(3.0, HostState.LEFT, host="web5"))
    assert _missing(table) == ["! 4 of 5 machines are silent: web0, web1, web2, …"]
    table.feed(HostUpdated(4.0, HostState.PRESENT, host="web0"))
    assert _missing(table) == ["! 3 of 5 machines are silent: web1, web2, web3"]


def test_names_of_views_have_any_separator_and_a_wrong_one_is_told_the_others():
    for name in ("remote-address", "remote address", "remote_address"):
        assert GroupBy.named(name).name == "remote address"
    with pytest.raises(UsageError, match="'adress' is not one of process, user, remote-address"):
        GroupBy.named("adress")
    for name in GroupBy.names():
        assert GroupBy.named(name).name


def test_a_connection_takes_its_past_along_when_more_of_it_is_known():
    """No row of a half-known connection stays behind."""
    table = TrafficTable(GroupBy.connection())
    begun = Flow("1", Provider.TCP, local=Endpoint.parse("10.0.0.1", 5), remote=Endpoint.parse("192.0.2.1", 443))
    table.feed(FlowAdded(1.0, begun, Counts(rx_bytes=100, tx_bytes=0), preexisting=False))
    known = attrs.evolve(begun, process=Process(7, "curl"))
    table.feed(FlowUpdated(2.0, known, Counts(rx_bytes=300, tx_bytes=0), Counts(rx_bytes=100, tx_bytes=0)))
    (row,) = table.rows()
    assert (row.name, row.rx_bytes, row.flows) == ("tcp 10.0.0.1:5 > 192.0.2.1:443  curl", 300, 1)


@given(st.lists(strategies.rows(), max_size=5), st.sampled_from(sorted(SORT_KEYS)), st.sampled_from(GroupBy.names()))
def test_any_rows_can_be_sorted_and_shown(rows, key, by):
    view = View(GroupBy.named(by))
    ordered = view.sorted(rows, key)
    assert sorted(map(id, ordered)) == sorted(map(id, rows))
    for row in ordered:
        assert view.label(row).isprintable()
        assert all(view.cell(column, row).isprintable() for column in view.columns(rows))


def test_a_user_has_a_name_on_this_machine_and_a_number_elsewhere():
    row = Row(kind=RowKind.GROUP, key=0)
    assert View(GroupBy.user()).label(row) == user_text(0) == "root"
    assert View(GroupBy.user(), users=False).label(row) == "0"
    assert user_text(2**31 - 7) == str(2**31 - 7)


# --- fields -------------------------------------------------------------------------------


def test_fields_choose_the_columns_of_text_and_the_keys_of_json(source):
    status, out, err = run("processes", "--backend", source, "--fields", "pid,process.path,rx_bytes")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["PID", "PROCESS.PATH", "RX_BYTES"]
    rows = run_json("processes", "--backend", source, "--fields", "pid,process.name", "--json")
    assert all(list(row) == ["v", "pid", "process"] and list(row["process"]) == ["name"] for row in rows)


def test_fields_of_events_may_leave_out_their_beginning(source):
    path = source.partition(":")[2]
    lines = run_json("replay", path, "--json", "--fields", "event,pid", "--fields", "remote.port,rx_bytes")
    flows = [line for line in lines if line["event"].startswith("flow_")]
    assert flows
    assert all(line.keys() == {"v", "event", "flow", "counts"} for line in flows)
    assert all(line["flow"].keys() == {"process", "remote"} for line in flows)
    status, out, _ = run("replay", path, "--fields", "process,counts")
    assert "pid:" in out
    assert "  rx " in out
    status, out, _ = run("replay", path, "--fields", "event,pid,remote,rx_bytes,final")
    assert status == 0
    heading, *rest = out.splitlines()
    assert heading.split() == ["EVENT", "PID", "REMOTE", "RX_BYTES", "FINAL"]
    assert any(line.startswith("flow_removed") for line in rest)


def test_an_end_that_a_socket_does_not_have_is_a_star_in_columns_too():
    remote, holders = event_columns("remote,inode")
    event = FlowAdded(0.0, Flow("1", Provider.TCP, None), None, preexisting=False)
    assert (remote.text(event), holders.text(event)) == ("*", "?")


@pytest.mark.parametrize("command", [("processes",), ("processes", "--by", "remote-address"), ("snapshot",)])
@pytest.mark.parametrize("width", [20, 30, 40, 50, 80])
def test_tables_fit_a_narrow_terminal(command, width, source, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = run(*command, "--backend", source)
    assert status == 0
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize(
    ("width", "headings"), [(30, ["PROCESS RX", "PID PROCESS RX"]), (40, ["PID PROCESS RX", "PID PROCESS OPEN RX TX"])]
)
def test_tables_of_much_traffic_fit_a_narrow_terminal_too(width, headings):
    owner = Process(4_194_303, "python3.11", title="mail-relay")
    both = {"local": Endpoint.parse("127.0.0.1", 50_000), "remote": Endpoint.parse("192.0.2.1", 50_000)}
    flow = Flow("1", Provider.TCP, None, process=owner, **both)
    counts = Counts(rx_bytes=960_000, tx_bytes=320_000)
    output = types.SimpleNamespace(columns=width)
    of_flows = flow_form(argparse.Namespace(format="text", fields=None), output)
    table = TrafficTable(GroupBy.processes())
    table.feed(FlowAdded(0.0, flow, Counts(rx_bytes=0, tx_bytes=0), preexisting=True))
    table.feed(FlowUpdated(1.0, flow, counts, None))
    of_rows = row_form(argparse.Namespace(format="text", fields=None), View(), output)
    tables = [of_flows([(flow, counts)], 0.0), of_rows(table.rows(), 0.0)]
    assert all(max(map(len, lines)) <= width for lines in tables)
    assert [" ".join(lines[0].split()).removeprefix("REMOTE ") for lines in tables] == headings


def test_headings_of_chosen_fields_stand_above_the_columns_of_the_first_events():
    remotes = ("192.0.2.1", "2001:db8:1234::5678")
    flows = [Flow(text, Provider.TCP, None, remote=Endpoint.parse(text, 443)) for text in remotes]
    events = [FlowAdded(0.0, flow, Counts(rx_bytes=5), preexisting=True) for flow in flows]
    fields = event_columns("provider,remote,rx_bytes")
    arguments = argparse.Namespace(format="text", fields=fields, details=False, utc=True, every_update=False)
    form = event_formatter(arguments, Output(stream=io.StringIO()))
    assert list(form([PollCompleted(0.0, 2, complete=True)])) == []
    assert list(form(events)) == [
        "PROVIDER  REMOTE                     RX_BYTES",
        "tcp       192.0.2.1:443              5 B",
        "tcp       [2001:db8:1234::5678]:443  5 B",
    ]
    assert len(list(form(events))) == 2


def test_times_in_chosen_fields_are_in_utc_where_that_is_asked_for(monkeypatch):
    (column,) = event_columns("time")
    event = FlowAdded(86_400.25, Flow("1", Provider.TCP, None), None, preexisting=False)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert (column.text(event), column.text(event, utc=True)) == ("09:00:00.250", "00:00:00.250")
        arguments = argparse.Namespace(format="text", fields=(column,), details=False, utc=True, every_update=False)
        assert list(event_formatter(arguments, Output(stream=io.StringIO()))([event])) == ["TIME", "00:00:00.250"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_snapshot_has_pids_of_their_own_and_says_where_a_socket_waits_however_narrow_it_is():
    owner = Process(4_194_303, "python3.11", title="mail-relay")
    ends = {"local": Endpoint.parse("127.0.0.1", 8080), "remote": Endpoint.parse("192.0.2.1", 50_000)}
    listener = Flow("1", Provider.TCP, None, ends["local"], process=owner, direction=Direction.LISTENER)
    found = [(listener, Counts(rx_bytes=0, tx_bytes=0)), (Flow("2", Provider.UDP, None, **ends), None)]

    def table(columns):
        form = flow_form(argparse.Namespace(format="text", fields=None), types.SimpleNamespace(columns=columns))
        return [line.split() for line in form(found, 0.0)]

    pid, name = "4194303", ["python3.11:", "mail-relay"]
    assert table(None)[1:] == [
        ["@", "tcp", "127.0.0.1:8080", "*", pid, *name, "0", "B", "0", "B"],
        ["udp", "127.0.0.1:8080", "192.0.2.1:50000", "?", "?", "?", "?"],
    ]
    narrow = table(62)
    assert narrow[0] == ["PROTO", "REMOTE", "PID", "PROCESS", "RX", "TX"]
    assert narrow[1:] == [
        ["@", "tcp", "127.0.0.1:8080", pid, "python3.1…-relay", "0", "B", "0", "B"],
        ["udp", "192.0.2.1:50000", "?", "?", "?", "?"],
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ("nope", "rx_bytes (docs/"),
        ("nam", "did you mean 'name'"),
        ("flow.process.pdi", "did you mean 'flow.process.pid'"),
        ("", "is not a field"),
    ],
)
def test_an_unknown_field_is_told_a_better_one(fields, says, capfd):
    from nstat_async._cli import main

    assert main(["watch", "--fields", fields]) == 2
    assert says in capfd.readouterr().err


def test_ocsf_and_fields_together_are_a_usage_error(source):
    status, _, err = run("processes", "--backend", source, "--format", "ocsf", "--fields", "pid")
    assert status == 2
    assert "OCSF has its own" in err


@given(strategies.flow_events)
def test_picked_fields_are_those_of_the_whole_line(event):
    whole = to_dict(event)
    columns = event_columns("event,time,flow.local.address,counts.rx_bytes,details.cgroup_id,final,flow.process")
    line = picked(event, columns)
    json.dumps(line, allow_nan=False)
    assert line["event"] == whole["event"]
    assert line["flow"]["process"] == whole["flow"]["process"]
    assert line["counts"]["rx_bytes"] == (whole["counts"] or {}).get("rx_bytes")
    assert line["final"] == whole.get("final")
    assert all(column.text(event).isprintable() for column in columns)


@given(strategies.rows())
def test_picked_fields_of_a_row_are_those_of_the_whole_line(row):
    line = picked(row, row_columns("name,process.uid,rx_rate"), 1.0)
    whole = to_dict(row, time=1.0)
    assert (line["name"], line["rx_rate"]) == (whole["name"], whole["rx_rate"])
    assert line["process"]["uid"] == (whole.get("process") or {}).get("uid")


# --- names --------------------------------------------------------------------------------


def test_a_name_is_looked_up_beside_the_loop_and_shown_when_it_is_known():
    answer, asked = threading.Event(), []

    def look_up(address: str) -> str | None:
        asked.append(address)
        answer.wait(60)
        return {"192.0.2.1": "one.example\x1b[31m"}.get(address)

    names = NameResolver(look_up)
    view = View(GroupBy.remote_address(), names)
    row = Row(kind=RowKind.GROUP, key="192.0.2.1")
    assert view.label(row) == "192.0.2.1"  # at once, though nobody has answered
    assert names.name("192.0.2.2") is None
    answer.set()
    names.wait(60)
    assert view.label(row) == "192.0.2.1 (one.example\\x1b[31m)"
    assert names.name("192.0.2.2") is None  # it has none, and is not asked for again
    names.wait(60)
    assert sorted(asked) == ["192.0.2.1", "192.0.2.2"]


def test_look_ups_are_bounded_however_many_addresses_are_shown():
    answer = threading.Event()
    names = NameResolver(lambda _address: answer.wait(60) and None)
    before = threading.active_count()
    for number in range(10_000):
        names.name(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert threading.active_count() - before <= 4
    assert len(names._asked) <= 520
    answer.set()
    names.wait(60)
    assert not names._asked


def test_processes_by_remote_address_asks_for_names_only_when_told_to(source, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "nstat_async._cli._names.socket.gethostbyaddr", lambda address: asked.append(address) or ("home",)
    )
    _, out, _ = run("processes", "--backend", source, "--by", "remote-address")
    assert not asked
    assert "home" not in out
    _, out, _ = run("processes", "--backend", source, "--by", "remote-address", "--names")
    assert asked
    assert "(home)" in out


def test_a_key_that_is_a_member_of_an_enumeration_is_called_by_its_value(source):
    table = TrafficTable(GroupBy.interface_kind())
    rows = run_json("processes", "--json", "--by", "interface-kind", "--backend", source)
    assert table.group_by.name == "interface kind"
    assert {row["name"] for row in rows} <= {"loopback", "wifi", "wired", None}
