"""``history``: written until it is stopped, and asked by whom, where to and when."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import time

import conversations
import forked
import pytest
from support import PYTHON, run, run_json

from nstat_async import Counts, Flow, FlowRemoved, Process, Provider, RemovalReason
from nstat_async._cli._arguments import _since
from nstat_async.aggregate import History, HistoryWriter
from nstat_async.testing import EmulatedKernel, UnixServer

EXAMPLE = "stack/xnu-11417.121.6/b_tcp_loopback"
VIEWS = ("name", "process", "user", "unit", "container", "pod", "remote")


@pytest.fixture
def recording(tmp_path) -> str:
    path = tmp_path / "c.jsonl"
    path.write_bytes(conversations.raw(EXAMPLE))
    return f"replay:{path}"


@pytest.fixture
def written(recording, tmp_path) -> str:
    path = str(tmp_path / "traffic.db")
    status, out, err = run("history", path, "--record", "--backend", recording, "--bucket", "1s")
    assert (status, out) == (0, "")
    assert path in err
    return path


@pytest.mark.parametrize("by", VIEWS)
def test_every_view_adds_up_to_the_same_total(by, written):
    total = run_json("history", written, "--json")
    found = run_json("history", written, "--json", "--by", by)
    for name in ("rx_bytes", "tx_bytes", "flows"):
        assert sum(row[name] for row in found) == sum(row[name] for row in total) > 0


def test_steps_of_time_add_up_to_the_total_too(written):
    steps = run_json("history", written, "--json", "--step", "1s")
    assert sum(row["rx_bytes"] for row in steps) == sum(
        row["rx_bytes"] for row in run_json("history", written, "--json")
    )
    assert [row["begin"] for row in steps] == sorted(row["begin"] for row in steps)


def test_the_text_is_a_table_of_at_most_so_many_rows(written):
    status, out, err = run("history", written, "--by", "remote", "--limit", "1")
    assert status == 0
    assert out.splitlines()[0].split() == ["REMOTE", "FLOWS", "RX", "TX", "FROM", "UNTIL"]
    assert len(out.splitlines()) == 2
    assert "more; --limit shows them" in err
    assert run("history", written, "--by", "remote", "--limit", "1", "--json")[2] == err, "what is left out is said"


def test_in_a_fleet_a_row_names_its_machine(tmp_path):
    path = str(tmp_path / "fleet.db")
    with HistoryWriter(path) as history:
        for host in ("web1", "web2", None):
            flow = Flow(f"{host}/1", Provider.TCP, process=Process(5, "nginx"), host=host)
            history.feed(FlowRemoved(1000.0, flow, Counts(rx_bytes=5), final=True, reason=RemovalReason.CLOSED))
    for by in ("name", "process"):
        lines = run("history", path, "--by", by)[1].splitlines()[1:]
        assert sorted(line.partition("nginx")[2].split("  ")[0] for line in lines) == ["", " @web1", " @web2"]


def test_a_span_of_time_leaves_out_what_is_not_in_it(written):
    assert run("history", written, "--json", "--since", "1s")[:2] == (0, "")
    everything = run_json("history", written, "--json", "--until", "1s")
    assert everything == run_json("history", written, "--json")


def test_remotes_beyond_the_limit_are_one_sum(recording, tmp_path):
    path = str(tmp_path / "few.db")
    assert run("history", path, "--record", "--backend", recording, "--remotes", "1")[0] == 0
    found = run_json("history", path, "--json", "--by", "remote")
    assert len([row for row in found if row["remote"] is not None]) <= 1
    assert sum(row["rx_bytes"] for row in found) == sum(row["rx_bytes"] for row in run_json("history", path, "--json"))


def test_without_remotes_there_is_no_answer_about_them(recording, tmp_path):
    path = str(tmp_path / "none.db")
    assert run("history", path, "--record", "--backend", recording, "--remotes", "0")[0] == 0
    says = f"nstat-async: {path}: no remote addresses were kept (--remotes 0)\n"
    assert run("history", path, "--json", "--by", "remote") == (0, "", says)


def test_the_same_file_written_twice_adds_up(written, recording):
    before = run_json("history", written, "--json", "--by", "remote")
    assert run("history", written, "--record", "--backend", recording, "--bucket", "1s")[0] == 0
    after = run_json("history", written, "--json", "--by", "remote")
    assert sum(row["rx_bytes"] for row in after) == 2 * sum(row["rx_bytes"] for row in before)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["-", "--record", "--backend", "emulated"], 2, "argument FILE: a history is an SQLite file"),
        (["/nonexistent/x.db"], 1, "/nonexistent/x.db: there is no such file; --record creates it"),
        (["/nonexistent/x.db", "--record", "--backend", "emulated"], 1, "/nonexistent/x.db: cannot be opened"),
        (["{written}", "--since", "yesterday"], 2, "neither a duration such as"),
        (["{written}", "--by", "remote", "--name", "x"], 2, "not kept for each process"),
        (["{written}", "--record", "--bucket", "x"], 2, "is not a time such as"),
        (
            ["{written}", "--record", "--keep", "1s", "--backend", "emulated"],
            2,
            "is not a positive number of at least 300",
        ),
        (["{written}", "--since", "1h", "--until", "2h"], 2, "argument --since: it is not before --until"),
    ],
)
def test_what_cannot_be_is_one_error_with_its_status(arguments, status, says, written, capfd):
    from nstat_async._cli import main

    assert main(["history", *(each.format(written=written) for each in arguments)]) == status
    assert says in capfd.readouterr().err


def test_without_an_answer_it_says_why_instead_of_headings(written):
    name = run_json("history", written, "--json")[0]["name"]
    for arguments, says in [
        (["--name", name[:-1]], f"no process is named {name[:-1]!r}; did you mean {name!r}?"),
        (["--since", "1s"], "nothing was written in this time"),
    ]:
        for form in ([], ["--json"]):
            status, out, err = run("history", written, *arguments, *form)
            assert (status, out) == (0, "")
            assert err == f"nstat-async: {written}: {says}\n"


def test_who_or_when_stands_before_the_numbers(written):
    def headings(*arguments):
        return run("history", written, *arguments)[1].splitlines()[0].split()

    assert headings("--by", "process") == ["PID", "PROCESS", "FLOWS", "RX", "TX", "FROM", "UNTIL"]
    assert headings("--step", "1h") == ["FROM", "UNTIL", "FLOWS", "RX", "TX"]


@pytest.mark.parametrize("width", [20, 30, 40])
@pytest.mark.parametrize("asked", [("--by", "process"), ("--by", "remote"), ("--step", "1h")])
def test_an_answer_fits_a_narrow_terminal(asked, width, written, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run("history", written, *asked)[1].splitlines()
    assert "RX" in lines[0].split()
    assert max(map(len, lines)) <= width


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but dear to somebody\n" * 10)
    for more in ([], ["--record", "--backend", "emulated", "--duration", "1"]):
        status, _, err = run("history", path, *more)
        assert status == 1
        assert "no history" in err
    assert path.read_text().startswith("not a database")


def test_an_empty_file_and_a_directory_are_called_so(tmp_path):
    (tmp_path / "empty.db").touch()
    assert run("history", tmp_path / "empty.db") == (
        1,
        "",
        f"nstat-async: error: {tmp_path}/empty.db: no history: it is empty\n",
    )
    assert run("history", tmp_path) == (1, "", f"nstat-async: error: {tmp_path}: cannot be opened: Is a directory\n")


def test_a_path_in_a_directory_that_was_deleted_is_said_to_be_that(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    says = "nstat-async: error: h.db: cannot be opened: the current directory: No such file or directory\n"
    assert run("history", "h.db", "--record", "--backend", "emulated") == (1, "", says)


def _polls(kernel: EmulatedKernel) -> int:
    """How often a client was answered."""
    sources = [source for client in list(kernel.clients) for source in list(client.sources.values())]
    return max((source.sequence for source in sources), default=0)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_what_was_counted_is_written_when_it_is_stopped(stop, tmp_path):
    kernel = EmulatedKernel(clock=time.monotonic)
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))
    path, socket = str(tmp_path / "h.db"), str(tmp_path / "k.sock")
    with contextlib.closing(UnixServer(kernel, socket)) as server:
        server.start()
        command = [PYTHON, "-m", "nstat_async", "history", path, "--record", "--interval", "0.1"]
        command += ["--backend", f"unix:{socket}", "--kernel", kernel.name]
        process = forked.Popen(command, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while _polls(kernel) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        flow.transfer(rx=12_345)
        before = _polls(kernel)
        while _polls(kernel) < before + 2 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(stop)
        assert process.wait(120) == 0
        assert b"Traceback" not in process.stderr.read()
        process.stderr.close()
    with History(path) as history:
        assert [usage.rx_bytes for usage in history.usage(by="remote")] == [12_345]


def test_moments_are_ages_dates_and_seconds():
    now = time.time()
    assert now - 8 * 86400 < _since("7d") < now
    assert _since("1767225600") == 1767225600
    assert _since("2026-01-31T12:00+00:00") == 1769860800
    assert _since("2026-01-31") == pytest.approx(1769860800, abs=86400)
    assert _since("0s") <= time.time()


@pytest.mark.parametrize("text", ["nand", "infs", "-5d", "1e400w", "9" * 400])
def test_a_moment_is_a_number_of_days_or_seconds(text):
    with pytest.raises(argparse.ArgumentTypeError, match="neither a duration"):
        _since(text)


def test_answers_of_a_file_of_the_first_version_are_right_and_have_no_remotes(tmp_path):
    from test_fields import VERSION_1

    with History(VERSION_1) as history:
        total = sum(usage.rx_bytes for usage in history.usage())
        assert history.usage(by="remote") == []
        for by in ("user", "unit", "container"):
            assert sum(usage.rx_bytes for usage in history.usage(by=by)) == total
    copy = tmp_path / "copy.db"
    copy.write_bytes(VERSION_1.read_bytes())
    with HistoryWriter(copy, remotes=5):
        pass
    with History(copy) as history:
        assert sum(usage.rx_bytes for usage in history.usage()) == total


def test_json_leaves_out_what_is_unknown_except_what_was_asked_for(recording, tmp_path):
    path = str(tmp_path / "few.db")
    run("history", path, "--record", "--backend", recording, "--remotes", "1")
    lines = run_json("history", path, "--json", "--by", "remote")
    assert {key for line in lines for key, value in line.items() if value is None} == {"remote"}
    assert {type(line[key]) for line in lines for key in ("begin", "end")} == {float}
