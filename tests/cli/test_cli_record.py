"""`record`: to standard output, in parts, to a full disk; and `replay` of what comes out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from support import PYTHON, run, run_json

from nstat_async._cli._record import _Tape
from nstat_async.testing import EmulatedKernel

KERNEL = "xnu-11417.121.6"


@pytest.fixture
def options(tmp_path):
    """An emulated kernel with a flow behind a socket: options for the command line."""
    kernel = EmulatedKernel(KERNEL, clock=time.monotonic)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10, tx=20)
    server = kernel.serve_unix(str(tmp_path / "s"))
    yield ("--backend", f"unix:{tmp_path / 's'}", "--kernel", KERNEL, "--interval", "0.05")
    server.close()


def command(*arguments: object) -> list[str]:
    return [PYTHON, "-m", "nstat_async", *map(str, arguments)]


def stopped(process: subprocess.Popen[bytes], done: Callable[[], bool]) -> tuple[bytes, bytes]:
    """Both outputs of a command that is interrupted when enough is done."""
    limit = time.monotonic() + 120
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    return out, err


def test_standard_output_takes_a_recording_and_nothing_else(options):
    process = forked.Popen(command("record", "-", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    first = b""
    while len(first) < 6000:
        first += process.stdout.read(6000) or pytest.fail(f"it ended: {process.communicate()[1]!r}")
    rest, err = stopped(process, lambda: True)
    assert first.startswith(b"\x89NSTAT\r\n")
    assert b"events" in err, "the summary is not among the recording's bytes"
    played = forked.run(command("replay", "-", "--json"), input=first + rest)
    assert played.returncode == 0
    events = [json.loads(line) for line in played.stdout.splitlines()]
    assert "curl" in {e["flow"]["process"]["name"] for e in events if e["event"] == "flow_added"}
    assert not [e for e in events if e["event"] == "events_lost"]


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
def test_a_full_pipe_that_does_not_block_is_waited_for(options):
    """Somebody else set standard output non-blocking: the recording is whole all the same."""
    import fcntl

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    full = os.write(writing, bytes(4096))
    process = forked.Popen(command("record", "-", *options), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        time.sleep(1.5)  # until it has begun; when that takes longer the pipe is not full, and nothing is shown
        assert len(pipe.read(full)) == full
        data = bytearray()
        while len(data) < 3000:
            data += pipe.read(100) or pytest.fail(f"it ended: {process.communicate()[1]!r}")
        process.send_signal(signal.SIGINT)
        data += pipe.readall()
    assert process.communicate(timeout=120)[1]
    assert process.returncode == 0
    played = forked.run(command("replay", "-", "--json"), input=data)
    assert played.returncode == 0
    assert not [e for e in map(json.loads, played.stdout.splitlines()) if e["event"] == "events_lost"]


def test_a_reader_of_the_recording_that_goes_away_is_the_end_and_no_failure(options):
    process = forked.Popen(command("record", "-", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(8) == b"\x89NSTAT\r\n"
    process.stdout.close()
    assert process.wait(120) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_parts_are_written_kept_and_replayed_in_order(options, tmp_path):
    path = tmp_path / "day.nstat"

    def parts() -> list[Path]:
        return sorted(tmp_path.glob("day.*.nstat"))

    def recording(*more: object) -> subprocess.Popen[bytes]:
        return forked.Popen(
            command("record", path, "--rotate-size", "2K", *more, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    out, _ = stopped(recording("--json", "--rotate-every", "100"), lambda: len(parts()) > 3)
    summary = json.loads(out)
    assert not path.exists()
    assert (summary["file"], summary["last_part"]) == (str(path), str(parts()[-1]))
    assert summary["bytes"] == sum(part.stat().st_size for part in parts())
    events = run_json("replay", *parts(), "--json")
    assert [e["flow"]["process"]["name"] for e in events if e["event"] == "flow_added"] == ["curl"]
    assert not [e for e in events if e["event"] == "events_lost"]
    assert run_json("messages", parts()[0])
    status, _, err = run("replay", parts()[1], parts()[0])
    assert status == 1
    assert "day.000001.nstat: not the part that follows" in err
    newest = parts()[-1]
    _, err = stopped(recording("--keep", "1"), lambda: len(parts()) == 1)
    assert f"; the last part is {parts()[0].name}\n".encode() in err
    assert parts()[0] > newest, "numbers go on"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--keep", "3"), "argument --keep: only with --rotate-size or --rotate-every"),
        (("--keep", "0", "--rotate-size", "1M"), "at least 1"),
        (("--rotate-size", "much"), "is not a size"),
        (("--rotate-size", "-1"), "is not a size"),
        (("--rotate-every", "0"), "more than 0"),
    ],
)
def test_limits_that_cannot_be_are_usage_errors(arguments, says, tmp_path):
    status, _, err = run("record", tmp_path / "x.nstat", *arguments, "--backend", "emulated", "--duration", "0.1")
    assert status == 2
    assert says in err
    assert not list(tmp_path.iterdir())


def test_a_filter_leaves_the_recording_whole_and_that_is_said(options, tmp_path):
    path = tmp_path / "all.nstat"
    status, _, err = run("record", str(path), "--pid", "1", "--duration", "0.05", *options)
    assert status == 0
    assert f"{path}: all flows are recorded" in err
    assert "pid:501 (curl)" in run("replay", str(path))[1]


def test_a_full_disk_is_one_line_and_status_1(options, tmp_path):
    limit = "import resource, signal, sys; sys.dont_write_bytecode = True;"  # it would be cut short, too, and stay so
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000));"
    limit += "from nstat_async._cli import main; sys.exit(main(sys.argv[1:]))"
    done = forked.run([PYTHON, "-c", limit, "record", str(tmp_path / "x.nstat"), *options])
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"File too large" in done.stderr
    assert run_json("replay", tmp_path / "x.nstat", "--json")


@pytest.mark.parametrize(("losses", "end"), [(0, "0 events"), (1, "0 events, 1 gap"), (2, "0 events, 2 gaps")])
def test_the_summary_counts_gaps_in_words(losses, end, tmp_path, capsys):
    options = {"rotate_size": None, "rotate_every": None, "keep": None, "force": False}
    tape = _Tape(argparse.Namespace(file=str(tmp_path / "x"), **options))
    tape.losses = losses
    tape.summarise(as_json=False)
    assert capsys.readouterr().err == f"nstat-async: {tmp_path}/x: 0 B, {end}\n"
