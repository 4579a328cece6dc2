"""The command line as a process: exit status, pipes, signals."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import conversations
import forked
import pytest
from support import PYTHON, run

from nstat_async._cli._output import events_text, use_colour
from nstat_async._cli._parser import did_you_mean
from nstat_async._cli._progress import Progress
from nstat_async._starting import is_command

EXAMPLE = "stack/xnu-11417.121.6/b_tcp_loopback"
COMMANDS = ["watch", "top", "processes", "snapshot", "record", "replay", "messages", "doctor", "emulate"]


def _command(*arguments: object) -> list[str]:
    return [PYTHON, "-m", "nstat_async", *map(str, arguments)]


def _run(*arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    return forked.run(_command(*arguments), **options)


@pytest.fixture
def recording(tmp_path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_bytes(conversations.raw(EXAMPLE))
    return path


def test_every_command_explains_itself_with_an_example():
    """One process for all: `--help` needs no backend and no extra."""
    script = (
        "import sys; from nstat_async._cli import main\n"
        "for name in sys.argv[1:]: print(name, main([name, '--help']))\n"
        "sys.exit('textual' in sys.modules or 'anyio' in sys.modules and 2 * ('trio' in sys.modules))"
    )
    done = subprocess.run([PYTHON, "-c", script, *COMMANDS], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"example:\n  nstat-async") == len(COMMANDS)
    assert done.stdout.count(b" 0\n") >= len(COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["watch", "--interval", "0"],
        ["watch", "--interval", "nan"],
        ["watch", "--pid", "-1"],
        ["watch", "--provider", "tcp,smtp"],
        ["watch", "--backend", "carrier-pigeon"],
        ["watch", "--backend", "unix:/tmp/none"],
        ["watch", "--backend", "emulated", "--kernel", "vista"],
        ["replay"],
        ["replay", "x", "--speed", "0"],
        ["messages", "--kernel", "xnu-1", "/dev/null", "more"],
        ["emulate"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capfd):
    from nstat_async._cli import main

    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err


def test_a_recording_ends_with_status_0_and_silence_on_stderr(recording):
    done = subprocess.run(_command("replay", recording, "--json"), capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert {"flow_added", "flow_updated", "flow_removed"} <= set(events)


def test_standard_input_is_a_recording_too(recording):
    done = _run("replay", "-", "--json", input=recording.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == run("replay", recording, "--json")[1]


@pytest.mark.parametrize("command", ["replay", "messages"])
def test_what_cannot_be_read_is_one_line_and_status_1(command, tmp_path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x93NUMPY\0\0" * 50)
    for path in (garbage, tmp_path / "missing", tmp_path):
        status, out, err = run(command, path)
        assert (status, out) == (1, "")
        assert err.startswith("nstat-async: error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["replay", "messages"])
def test_a_reader_that_goes_away_is_the_end_and_no_failure(command, recording):
    """Like ``| head -1``: status 0, no traceback, no "Exception ignored"."""
    content = recording.read_bytes()
    head, _, rest = content.partition(b"\n")
    recording.write_bytes(head + b"\n" + rest * 40)
    process = forked.Popen(_command(command, recording), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_reader_that_goes_away_between_two_lines_leaves_no_noise_at_exit(recording):
    """What could not be written is not tried again, and complained about, when the interpreter ends."""
    header, *lines = recording.read_bytes().splitlines(keepends=True)
    line = next(line for line in lines if b"from_kernel" in line)
    process = forked.Popen(
        _command("messages", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(header + line)
    process.stdin.flush()
    assert _next_line(process)
    process.stdout.close()
    process.stdin.write(line)
    process.stdin.close()
    assert process.wait(120) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("command", [("replay", "-"), ("messages", "-"), ("emulate", "--listen", "x", "--script", "-")])
def test_a_closed_standard_input_is_one_line_and_status_1(command, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    status, out, err = run(*command)
    assert (status, out, err) == (1, "", "nstat-async: error: standard input is closed\n")


def test_a_closed_standard_output_is_no_failure(recording):
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *_command("replay", recording)], stderr=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_recording_of_another_system_is_status_1_and_a_wrong_option_status_2(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"xnu": "plan9"}\n')
    for command in ("replay", "messages"):
        assert run(command, path)[0] == 1
        assert run(command, path, "--kernel", "vista")[0] == 2


def test_a_full_disk_is_one_line_and_status_1(recording):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        done = forked.run(_command("messages", recording), stdout=full)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert done.stderr.count(b"\n") == 1


def _next_line(process: subprocess.Popen[bytes], seconds: float = 120) -> bytes:
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "no line came"
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("number", "start"),
    [(signal.SIGINT, subprocess.Popen), (signal.SIGTERM, forked.Popen), (signal.SIGHUP, forked.Popen)],
)
def test_a_signal_ends_watch_with_status_0(number, start):
    """Each line is there as it happens; Ctrl-C, SIGTERM and the end of the terminal are a normal end."""
    command = _command("watch", "--backend", "emulated", "--interval", "0.1", "--json")
    ours = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, which a command would inherit
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(number, ours)
    assert json.loads(_next_line(process))["v"] == 1
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("words", [("watch",), ("serve", "--port", "0")], ids=lambda words: words[0])
def test_a_signal_ends_a_command_that_waits_for_the_writer_of_a_pipe(words, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    command = _command(*words, "--backend", f"replay:{tmp_path / 'pipe'}")
    process = forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while True:
        with contextlib.suppress(OSError):  # until somebody reads it
            writer = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
            break
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 0
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_caller_ignores_stays_ignored(number):
    """As by nohup, or by a shell for what runs in its background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        command = _command("watch", "--backend", "emulated", "--interval", "0.1", "--json")
        process = forked.Popen(command, stdout=subprocess.PIPE)
    finally:
        signal.signal(number, before)
    _next_line(process)
    process.send_signal(number)
    for _ in range(30):  # more than was under way
        _next_line(process)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.parametrize(("arguments", "status"), [(("watch", "--bogus"), 2), (("replay", "/nonexistent/x"), 1)])
@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full"])
def test_a_mistake_that_cannot_be_said_has_the_same_status(arguments, status, where):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    assert (
        subprocess.run(["/bin/sh", "-c", f'"$@" {where}', "sh", *_command(*arguments)], check=False).returncode
        == status
    )


def test_a_quiet_watch_ends_when_its_reader_goes_away(tmp_path):
    """Nothing happens in the kernel, so nothing is written: the closed pipe alone ends it."""
    script = tmp_path / "script"
    script.write_text('{"do": "open", "flow": "a", "remote": "198.51.100.7:443"}\n')
    path = tmp_path / "s"
    server = forked.Popen(_command("emulate", "--listen", path, "--script", script), stderr=subprocess.PIPE)
    try:
        assert b"listens on" in server.stderr.readline()
        command = _command("watch", "--backend", f"unix:{path}", "--kernel", "xnu-11417.121.6", "--interval", "0.1")
        watch = forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert b"198.51.100.7:443" in _next_line(watch)
        watch.stdout.close()
        assert watch.wait(120) == 0
        assert watch.stderr.read() == b""
        watch.stderr.close()
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
        server.stderr.close()
    assert not path.exists()


def test_emulate_serves_a_random_workload_until_stopped(tmp_path):
    path = tmp_path / "s"
    server = forked.Popen(_command("emulate", "--listen", path, "--flows", 30), stderr=subprocess.PIPE)
    try:
        assert b"listens on" in server.stderr.readline()
        done = _run("snapshot", "--json", "--backend", f"unix:{path}", "--kernel", "xnu-11417.121.6")
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(done.stdout.splitlines()) >= 20
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0
        server.stderr.close()
    assert not path.exists()


def test_a_terminal_gets_colour(recording):
    near, far = pty.openpty()
    environment = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    process = forked.Popen(_command("replay", recording), stdout=far, env={**environment, "TERM": "xterm"})
    os.close(far)
    out = b""
    with contextlib.suppress(OSError):  # Linux: the other side is closed
        while data := os.read(near, 65536):
            out += data
    os.close(near)
    assert process.wait(120) == 0
    assert b"\x1b[32m" in out


@pytest.mark.parametrize(
    ("words", "says", "ends"),
    [
        (
            ["processes"],
            rb"\r\x1b\[K\d+ s  \d+ flows  rx [^ ]+ [kM]?B  tx [^ ]+ [kM]?B  \(Ctrl-C prints the table\)",
            rb" *PID  PROCESS",
        ),
        (
            ["history", f"./{'long' * 9}-h.db", "--record"],
            rb"\r\x1b\[K\d+ s  \./[long]+\xe2\x80\xa6[long]+-h\.db: [^ ]+ [kM]?B  \(Ctrl-C ends it\)",
            rb"nstat-async: \./(long){9}-h\.db: ",
        ),
    ],
)
def test_a_terminal_is_told_that_a_command_without_output_counts(words, says, ends, tmp_path):
    near, far = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*_command(*words), "--backend", "emulated"]
    process = forked.Popen(command, stdout=far, stderr=far, cwd=tmp_path, env=environment)
    os.close(far)
    said = b""
    while not re.search(says, said):
        said += os.read(near, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # Linux: the other side is closed
        while data := os.read(near, 65536):
            said += data
    os.close(near)
    assert process.wait(120) == 0
    assert re.search(rb"\r\x1b\[K" + ends, said), "the line is taken away first"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(12, "7 s  日本…"), (13, "7 s  日本語…"), (80, "7 s  日本語日\\x1b本"), (0, "7 s  日本語日\\x1b本")],
)
def test_a_line_of_progress_stays_in_one_line_of_the_terminal(columns, shown, monkeypatch):
    """A longer one could not be taken away."""
    near, far = pty.openpty()
    with open(near, "rb", buffering=0), open(far, "w", encoding="utf-8") as terminal:
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        said = io.StringIO()
        monkeypatch.setattr(said, "fileno", terminal.fileno)
        monkeypatch.setattr(sys, "stderr", said)
        monkeypatch.setattr("nstat_async._cli._progress.monotonic", lambda: 107.0)
        Progress(lambda: "日本語日\x1b本", started=100.0).show()
    assert said.getvalue() == f"\r\x1b[K{shown}"


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": "", "TERM": "xterm"}, True)],
)
def test_a_terminal_may_decline_colour(environment, coloured, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, text)
    near, far = pty.openpty()
    with open(near, "rb", buffering=0), open(far, "w") as terminal:
        assert use_colour(terminal) is coloured


def test_top_needs_a_terminal():
    status, out, err = run("top", "--backend", "emulated")
    assert (status, out) == (1, "")
    assert "needs a terminal" in err


def test_top_without_textual_says_what_to_install():
    script = "import sys; sys.modules['textual'] = None; from nstat_async._cli import main; sys.exit(main(['top']))"
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == b"nstat-async: error: top needs Textual: pip install 'nstat-async[cli]'\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_modules_are_imported_is_a_quiet_end(number, tmp_path):
    """The process kills itself in the midst of it, when `attrs` is wanted first."""
    (tmp_path / "attrs.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(number)})\nraise ImportError('too late')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    before = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore it, and a child inherits that
    try:
        command = _command("watch", "--backend", "emulated")
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)
    finally:
        signal.signal(number, before)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_class_is_made_is_a_quiet_end(number, tmp_path):
    """`history` imports `sqlite3` when it runs. Before Python 3.12 the exception is another one there."""
    (tmp_path / "sqlite3.py").write_text(f"""
import os

class Field:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {int(number)})

class Owner:
    field = Field()
""")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        _command("history", tmp_path / "h.db"), capture_output=True, timeout=120, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_whose_exception_is_dropped_ends_the_command_all_the_same(monkeypatch, number, slowly):
    """In a finalizer, as in callbacks of weak references while modules are imported, Python drops what a handler raises."""
    if slowly:  # on a busy machine the hook is not over when the signal could be sent again
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: (start(thread), time.sleep(0.05)))

    class Finalized:
        def __del__(self):
            signal.raise_signal(number)

    def work(_arguments):
        Finalized()
        threading.Event().wait(60)  # it is interrupted
        return 1

    monkeypatch.setattr("nstat_async._cli._doctor.run", work)
    hook, before = sys.unraisablehook, signal.signal(number, signal.SIG_DFL)  # the tests may run with it ignored
    try:
        assert run("doctor") == (0, "", "")
    finally:
        signal.signal(number, before)
    assert sys.unraisablehook is hook


def test_other_exceptions_that_are_dropped_are_told_as_before(monkeypatch):
    class Finalized:
        def __del__(self):
            raise ValueError("odd")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(str(dropped.exc_value)))
    monkeypatch.setattr("nstat_async._cli._doctor.run", lambda _arguments: Finalized() is None)
    assert run("doctor") == (0, "", "")
    assert told == ["odd"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_event_loop_begins_is_a_quiet_end(monkeypatch, number):
    """The task that is to wait for signals has no handler yet."""
    monkeypatch.setattr("nstat_async._cli._run.ending_signals", lambda: signal.raise_signal(number))
    before = signal.signal(number, signal.SIG_DFL)  # as above
    try:
        assert run("watch", "--backend", "emulated") == (0, "", "")
    finally:
        signal.signal(number, before)


def test_only_the_command_takes_signals_while_it_is_imported():
    assert is_command(["/usr/bin/nstat-async", "watch"], [])
    assert is_command(["-m", "watch"], ["python", "-m", "nstat_async", "watch"])
    assert not is_command(["-m"], ["python", "-m", "pytest"])
    assert not is_command(["serve.py"], ["python", "serve.py", "nstat_async"])
    assert not is_command([], [])


@pytest.mark.parametrize(("word", "others"), [("--user", ["--pulse", "--utc"]), ("nope", ["inode"]), ("", ["a"])])
def test_what_is_near_by_chance_is_not_suggested(word, others):
    assert did_you_mean(word, others) == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wach"], "did you mean 'watch'?"),
        (["watch", "--jsn"], "did you mean '--json'?"),
        (["watch", "--provider", "tpc"], "did you mean 'tcp'?"),
        (["watch", "--backend", "emulate"], "did you mean 'emulated'?"),
        (["watch", "--filter", "prot=443"], "did you mean 'port'?"),
        (["watch", "--filter", "loopbak"], "did you mean 'loopback'?"),
        (["watch", "--filter", "state=established,listn"], "did you mean 'listen'?"),
        (["processes", "--by", "remote-adress"], "did you mean 'remote-address'?"),
        (["watch", "--backend", "fleet:http://x"], "argument --backend: 'http://x' is not a URL"),
        (["watch", "--details"], "argument --details: only with --format json"),
        (["replay", "/dev/null", "--details"], "argument --details: only with --format json"),
        (["replay", "/dev/null", "--format", "ocsf", "--fields", "pid"], "argument --fields: OCSF has its own; choose"),
        (["publish", "nats://[::1"], "'[' and ']' enclose an IPv6 address, as in 'nats://[::1]:4222'"),
        (["watch", "--format", "ocsf", "--details"], "argument --details: only with --format json"),
        (["replay", "/dev/null", "--utc", "--json"], "argument --utc: only with --format text"),
        (["watch", "--backend", "replay:/none", "--utc", "--format", "csv"], "argument --utc: only with --format text"),
        (["record", "-", "--json"], "argument --json: standard output is the recording"),
        (["watch", "--backend", "replay:/none", "--pid", "1_0"], "argument --pid: '1_0' is not a whole number"),
        (["watch", "--backend", "replay:/none", "--pid", "+5"], "argument --pid: '+5' is not a whole number"),
        (["watch", "--backend", "replay:/none", "--interval", " 2"], "argument --interval: ' 2' is not a number"),
        (["watch", "--backend", "replay:/none", "--duration", "1_0.5"], "argument --duration: '1_0.5' is not a number"),
        (["watch", "--backend", "replay:/none", "--pulse", "\u0665"], "argument --pulse: '\u0665' is not a number"),
        (
            ["record", "x", "--backend", "replay:/none", "--rotate-size", "1_0M"],
            "argument --rotate-size: '1_0M' is not a size",
        ),
        (["history", "x", "--step", "1_0m"], "argument --step: '1_0m' is not a time"),
        (["history", "x", "--since", "\u0665d"], "argument --since: '\u0665d' is neither a duration"),
        (["history", "x", "--since", "17000000\u0660\u0660"], "argument --since: '17000000\u0660\u0660' is neither a"),
        (
            ["snapshot", "--backend", "emulated", "--filter", "outcome=refused"],
            "argument --filter: outcome: the flows of a",
        ),
        (["snapshot", "--backend", "sock_diag", "--filter", "namespace=x"], "argument --filter: namespace: only this"),
        (
            ["processes", "--backend", "emulated", "--filter", "host=x"],
            "argument --filter: host: only flows of a fleet",
        ),
        (
            ["record", "x", "--backend", "emulated", "--filter", "provider=raw"],
            "argument --filter: provider: raw flows",
        ),
        (["replay", "x", "--timebase", "1_25/3"], "argument --timebase: '1_25/3' is not a fraction"),
        (["processes", "--names"], "argument --names: rows by process have no remote address"),
        (["history", "h.db", "--name", ""], "argument --name: the text is empty"),
        (["processes", "--sort", "trafic"], "did you mean 'traffic'?"),
        (["record"], "required: FILE"),
        (["watch", "--int", "5"], "did you mean '--interval'?"),
        (
            ["watch", "--filter", "port=https"],
            "argument --filter: port: 'https' is not a port from 0 to 65535, e.g. 443",
        ),
        (["watch", "--netns", "all", "--netns", "x"], "argument --netns: 'all' cannot be combined"),
        (["watch", "--interval", "1e300"], "argument --interval: 1e300 must be at most"),
        (["watch", "--duration", "inf"], "argument --duration: 'inf' is not a finite number"),
        (["watch", "--duration", "xh"], "argument --duration: 'xh' is not a time such as 90, 5m, 2h, 7d or 4w"),
        (["watch", "--duration", "999999w"], "must be at most 1000000000"),
        (["replay", "x", "--speed", "2h"], "argument --speed: '2h' is not a number"),
        (["watch", "--fields", "pid,foo"], "argument --fields: 'foo' is not a field such as pid, name or rx_bytes"),
        (["processes", "--by", "user", "--effective"], "argument --effective: rows by user are not processes"),
        (["record", "-", "--rotate-size", "1M"], "argument FILE: standard output has no parts"),
        (["emulate", "--listen", "x", "--kernel", "vista"], "argument --kernel: no XNU version in 'vista'"),
    ],
)
def test_a_mistake_is_two_lines_that_say_what_and_where_help_is(arguments, says, capfd):
    from nstat_async._cli import main

    assert main(arguments) == 2
    error, usage = capfd.readouterr().err.splitlines()
    assert says in error
    assert usage.startswith("usage: nstat-async")
    assert "--help" in usage


def test_the_help_fits_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], *([command] for command in COMMANDS)):
        _, out, _ = run(*arguments, "--help")
        assert max(map(len, out.splitlines())) <= 100 if arguments else max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "/nonexistent/x"),
        ("messages", "/nonexistent/x"),
        ("watch", "--backend", "replay:/nonexistent/x"),
        ("record", "/nonexistent/x", "--backend", "emulated"),
        ("emulate", "--listen", "/nonexistent/x"),
    ],
)
def test_a_path_that_is_not_there_is_named_with_status_1_by_every_command(arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert "/nonexistent/x: No such file or directory" in err


@pytest.mark.parametrize("arguments", [("emulate", "--listen"), ("serve", "--unix-socket")])
def test_a_file_is_not_taken_for_a_socket_and_stays(arguments, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    status, out, err = run(*arguments, path)
    assert (status, out) == (1, "")
    assert f"{path}: it exists and is not a socket" in err
    assert path.read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x1f\x8b\x08\0\0", b'{"xnu": 5}\n'])
@pytest.mark.parametrize("arguments", [("replay",), ("messages",), ("watch", "--backend")])
def test_a_file_that_is_no_recording_is_named_with_status_1_by_every_command(arguments, content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    status, out, err = run(*arguments, f"replay:{path}" if len(arguments) > 1 else str(path))
    assert (status, out) == (1, "")
    assert err.startswith(f"nstat-async: error: {path}: ")
    assert err.count("\n") == 1


def test_a_recording_that_would_replace_something_else_names_the_option_that_does(tmp_path):
    path = tmp_path / "notes"
    path.write_text("dear to somebody")
    status, _, err = run("record", path, "--backend", "emulated", "--duration", "0.1")
    assert (status, err) == (1, f"nstat-async: error: {path}: exists and is not a recording; --force replaces it\n")
    assert path.read_text() == "dear to somebody"


def test_usage_names_what_must_be_given():
    for command, given in {
        "publish": "URL",
        "replay": "FILE ...",
        "record": "FILE",
        "emulate": "--listen PATH",
    }.items():
        assert run(command, "--help")[1].startswith(f"usage: nstat-async {command} {given} [options]")


def test_one_event_is_an_event():
    assert [events_text(number) for number in (0, 1, 2)] == ["0 events", "1 event", "2 events"]
