"""What works, and what is said, in a process that may start no more threads."""

from __future__ import annotations

import errno
import os
import sys
import threading

import anyio
import pytest

from nstat_async import Monitor
from nstat_async._cli import main
from nstat_async._cli._names import NameResolver
from nstat_async._errnos import NO_THREAD
from nstat_async._io.pipes import PipeWriter
from nstat_async._io.threads import in_thread
from nstat_async.aggregate import History, keep_history
from nstat_async.backends import Replay

RECORDING = "examples/recordings/web-session.jsonl"


def refuse(_thread):
    raise RuntimeError(NO_THREAD)


@pytest.fixture
def no_threads(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        patched.setattr("_thread.start_new_thread", lambda *_arguments: refuse(None))
        # Threads that an earlier test left idle would do the work.
        patched.setattr("anyio.to_thread.run_sync", run_sync)
        yield


async def run_sync(_work, *_values, **_options):
    await anyio.lowlevel.checkpoint()
    refuse(None)


@pytest.mark.anyio
async def test_work_is_done_once_here_where_no_thread_can_be_started_and_elsewhere_where_one_can(monkeypatch):
    where = []

    def work(*values):
        where.append(threading.current_thread() is threading.main_thread())
        return values

    assert await in_thread(work, 1, 2) == (1, 2)
    monkeypatch.setattr("anyio.to_thread.run_sync", run_sync)
    assert await in_thread(work, 3) == (3,)
    assert where == [False, True]


@pytest.mark.anyio
async def test_an_error_of_the_work_is_no_missing_thread():
    calls = []

    def work():
        calls.append(1)
        raise RuntimeError("of the work")

    with pytest.raises(RuntimeError, match="of the work"):
        await in_thread(work)
    assert calls == [1]


@pytest.mark.anyio
@pytest.mark.usefixtures("no_threads")
async def test_a_history_is_written(tmp_path):
    path = tmp_path / "h.db"
    async with Monitor(backend=Replay(RECORDING)) as monitor:
        await keep_history(monitor, path)
    with History(path) as history:
        assert {each.name for each in history.usage()} >= {"curl", "sshd"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_refuses_what_nobody_could_write_and_takes_it_when_a_thread_can_be_had(monkeypatch):
    reading, writing = os.pipe()
    pipe = PipeWriter(os.fdopen(writing, "wb", 0), owned=True)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match=NO_THREAD) as caught:
            pipe.write(b"lost")
        assert caught.value.errno == errno.EAGAIN
        assert "; raise the limit (ulimit -u, " in str(caught.value)
        assert not pipe.is_writing
    pipe.write(b"kept")
    pipe.close()
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"kept"


def test_addresses_stay_without_names_until_there_is_a_thread(monkeypatch):
    names = NameResolver({"192.0.2.1": "one.example"}.get)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert names.name("192.0.2.1") is None
        names.wait(60)  # for nothing
    assert names.name("192.0.2.1") is None
    names.wait(60)
    assert names.name("192.0.2.1") == "one.example"


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize(
    "words",
    [
        ["emulate", "--listen", "PATH"],
        pytest.param(
            ["watch", "--netns", "all", "--duration", "0.1"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="network namespaces"),
        ),
    ],
)
def test_what_needs_a_thread_says_which_limit_to_raise(words, tmp_path, capfd):
    assert main([word if word != "PATH" else str(tmp_path / "k") for word in words]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.endswith(
        f"{NO_THREAD}; raise the limit (ulimit -u, TasksMax= of a service, or pids.max of a container)"
    )
