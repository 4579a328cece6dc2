"""A fork that the tests use instead of a start finds the same, and ends in the same way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import forked
import pytest

PROGRAM = """
import atexit, os, signal, sys
atexit.register(print, "the end")
print(sys.argv[1:], __name__, os.getcwd(), os.getppid(), os.environ["WORD"], "HOME" in os.environ, sys.path[:1])
print(*(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)))
for file in (sys.stdin, sys.stdout, sys.stderr):
    print(file.fileno(), file.encoding, file.errors, file.line_buffering, file.isatty(), file is sys.__stdout__)
print(sorted(os.listdir("/proc/self/fd")))
print(sys.stdin.read(), "é", file=sys.stderr)
sys.exit(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are started")
@pytest.mark.parametrize("way", ["program", "path"])
def test_a_fork_is_as_a_start(way, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = {"program": ["-c", PROGRAM], "path": [str(tmp_path / "program.py")]}[way]
    dropped = {"HOME", "PYTHONUNBUFFERED"}
    environment = {name: text for name, text in os.environ.items() if name not in dropped} | {"WORD": "é\n"}
    ours = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        command = [sys.executable, *words, "farewell"]
        options = {"input": b"a text", "env": environment, "cwd": tmp_path}
        started = subprocess.run(command, capture_output=True, check=False, **options)
        done = forked.run(command, **options)
    finally:
        signal.signal(signal.SIGHUP, ours)
    assert (done.returncode, done.stdout, done.stderr) == (started.returncode, started.stdout, started.stderr)
    assert done.stdout.endswith(b"the end\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_is_its_status_and_its_processor_time_is_counted(number):
    before = sum(os.times()[2:4])
    program = "sum(range(2_000_000)); print('there', flush=True); import time; time.sleep(100)"
    with forked.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(120) == -number
    assert sum(os.times()[2:4]) > before


def test_a_module_runs_with_what_is_imported():
    done = forked.run([sys.executable, "-m", "nstat_async", "watch", "--bogus"])
    assert done.returncode == 2
    assert done.stderr.startswith(b"nstat-async watch: error: ")
    program = "import sys; print('nstat_async._cli' in sys.modules, flush=True); raise ValueError('a mistake')"
    done = forked.run([sys.executable, "-c", program], text=True)
    assert (done.returncode, done.stdout) == (1, f"{sys.platform == 'linux'}\n")
    assert done.stderr.endswith("ValueError: a mistake\n")
