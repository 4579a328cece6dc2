"""Standard output whose reader is slow, or shares a non-blocking descriptor with us."""

from __future__ import annotations

import fcntl
import io
import os
import select
import subprocess
import sys
import time

import anyio
import conversations
import forked
import pytest
from support import PYTHON, run

from nstat_async import Monitor
from nstat_async._cli._limits import Limits
from nstat_async._cli._output import Output, complain
from nstat_async._cli._run import run_until_stopped
from nstat_async._cli._stream import stream
from nstat_async.json import JsonFormatter
from nstat_async.testing import EmulatedKernel


@pytest.fixture
def pipe():
    """A pipe that nobody reads yet: (descriptor to read from, output into it)."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        yield reading, Output(file)
    os.close(reading)


def _read_until(reading: int, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        found += os.read(reading, 65536)
    return found


def test_a_full_pipe_lets_the_loop_go_on_and_gets_every_line_in_order(pipe):
    reading, output = pipe
    lines = [f"{number:06d}{'x' * (number % 7_000)}" for number in range(200)]

    async def main() -> bytes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(output.send, lines)
            for _ in range(100):  # the pipe is full long before the end, and this runs all the same
                await anyio.sleep(0)
            return await anyio.to_thread.run_sync(_read_until, reading, lines[-1].encode() + b"\n")

    assert anyio.run(main).decode().splitlines() == lines


def test_what_is_cut_off_while_a_pipe_is_full_ends_with_a_whole_line(pipe):
    reading, output = pipe

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def cut_off() -> None:
                while select.select([], [output.stream], [], 0)[1]:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()

            tasks.start_soon(cut_off)
            while True:
                await output.send(["y" * 1000] * 10)

    anyio.run(main)
    os.set_blocking(reading, False)
    assert set(os.read(reading, 1 << 20).splitlines(keepends=True)) == {b"y" * 1000 + b"\n"}


def test_a_slow_reader_does_not_stop_the_monitor(pipe):
    """The kernel is polled while nobody reads, and what is read then is true: the totals of the moment."""
    reading, output = pipe
    kernel = EmulatedKernel()
    flows = [kernel.open_tcp(pid=number, name="busy", remote=("2001:db8::1", 443)) for number in range(100)]

    async def main() -> bytes:
        async with Monitor(backend=kernel.backend(), interval=0.01) as monitor, anyio.create_task_group() as tasks:
            tasks.start_soon(stream, monitor, output, JsonFormatter().lines, Limits(recorded=False))
            polls = 0
            with anyio.fail_after(120):
                while polls < 40:
                    for flow in flows:
                        flow.transfer(rx=10)
                    await monitor.poll_now()
                    polls += 1
            for flow in flows:
                flow.close()
            kernel.open_tcp(pid=999, name="last", remote=("2001:db8::1", 443))
            found = b""
            while b'"name":"last"' not in found:
                found += await anyio.to_thread.run_sync(os.read, reading, 65536)
            tasks.cancel_scope.cancel()
            return found

    text = anyio.run(main)
    assert text.count(b"flow_removed") == 100
    # Far fewer updates than happened: those that nobody read were replaced by newer ones.
    assert text.count(b"flow_updated") < 100 * 20


@pytest.mark.parametrize("arguments", [("replay", "--json"), ("replay",), ("messages",)])
def test_a_non_blocking_standard_output_gets_everything(arguments, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/b_tcp_loopback"))
    command = [PYTHON, "-m", "nstat_async", *arguments, str(path)]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    if sys.platform == "linux":
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # much less than what comes
    with forked.Popen(command, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        first = os.read(reading, 1)
        time.sleep(0.3)  # so that the pipe is full meanwhile; what is right is right without it
        found = b""
        while data := os.read(reading, 512):
            found += data
        os.close(reading)
        assert (process.wait(120), process.stderr.read()) == (0, b"")
    assert (first + found).decode() == run(*arguments, path)[1]


def test_what_is_said_on_standard_error_cannot_steer_a_terminal():
    status, _, err = run("watch", "--netns", "/nonexistent/\x1b[31m\u202e", "--duration", "1")
    assert status in {1, 2}  # not on macOS
    assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize("words", [["watch", "--\x1b[31m"], ["watch", "--pro\x1b[31m"], ["\x1b[31m"]])
def test_a_mistaken_word_cannot_steer_a_terminal(words):
    status, _, err = run(*words)
    assert status == 2
    assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "command", [["replay", ""], ["serve", "--token", ""], ["emulate", "--listen="], ["history", ""]]
)
def test_an_empty_text_is_no_name(command):
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert "the text is empty" in err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["history", "x", "--pid", "5"], "argument --pid: only with --record"),
        (["history", "x", "--record", "--by", "user"], "argument --by: not with --record"),
        (["history", "x", "--by", "user", "--step", "1h"], "argument --by: not with --step"),
        (["serve", "--host", "::1", "--unix-socket", "x"], "argument --host: not with --unix-socket"),
        (["publish", "nats://x", "--spool-size", "100M"], "argument --spool-size: only with --spool"),
        (["emulate", "--listen", "x", "--script", "y", "--rate", "3"], "argument --rate: not with --script"),
        (["record", "x", "--keep", "3"], "argument --keep: only with --rotate-size or --rotate-every"),
    ],
)
def test_an_option_that_would_do_nothing_is_wrong_usage(command, says):
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert says in err


def test_the_duration_counts_from_when_a_command_has_begun():
    looks = []

    async def work(scope):
        await anyio.sleep(0.05)
        with scope:
            looks.append("begun")
            await anyio.sleep_forever()
        return 7

    assert run_until_stopped(work, duration=0.01) == 7
    assert looks == ["begun"]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "caf\\xe9~ +-1"), ("latin-1", "café~ ±1"), ("utf-8", "café… ±1")]
)
def test_what_a_terminal_cannot_show_is_readable_and_as_wide_where_a_text_was_cut(encoding, shown):
    """As without a UTF-8 locale: the mark of a cut text is one column there, too, or tables would be askew."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding=encoding) as file:
        Output(file).line("café… ±1")
    with os.fdopen(reading, encoding=encoding) as file:
        assert file.read() == f"{shown}\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "caf\\xe9~"), ("utf-8", "café…")])
def test_what_is_said_is_readable_too(encoding, shown, monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    monkeypatch.setattr("sys.stderr", file)
    complain("café…")
    assert file.buffer.getvalue().decode(encoding) == f"nstat-async: {shown}\n"
