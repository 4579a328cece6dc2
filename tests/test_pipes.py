"""Pipes as files: whoever reads or writes one can be released, and waits without using the processor."""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import threading
import time
from typing import Any

import pytest

from nstat_async._io import pipes
from nstat_async._io.pipes import PipeWriter, ReadPipe, open_pipe

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


class Poll:
    """Says so many times that nothing is there, and then that something is."""

    def __init__(self, times: int) -> None:
        self.timeouts: list[float] = []
        self._times = times

    def poll(self, timeout: float) -> bool:
        self.timeouts.append(timeout)
        return len(self.timeouts) > self._times


# -- reading


def test_a_reader_waits_in_the_kernel_and_looks_ten_times_a_second_whether_it_was_closed(fifo):
    with open(os.open(fifo, os.O_RDWR), "r+b", buffering=0) as file:
        file.write(b"ab")
        pipe = ReadPipe(file)
        poll = Poll(2)
        pipe._poll = poll
        assert (pipe.read(1), pipe.name) == (b"a", file.name)
        assert poll.timeouts == [100.0] * 3
        pipe.close()
        assert pipe.read(1) == b""
        assert not file.closed, "who opened it closes it"


@pytest.mark.parametrize("linux", [True, False])
def test_where_a_pipe_without_a_writer_looks_ended_the_reader_looks_again_after_a_pause(fifo, monkeypatch, linux):
    """Elsewhere than on Linux, until somebody has written."""
    monkeypatch.setattr(pipes.system, "is_here", lambda _system: linux)
    pauses: list[float] = []
    pipe = ReadPipe(fifo)
    contents = [b"", b"", b"ab", b""]
    pipe._poll = Poll(0)
    pipe._read = lambda _size: contents.pop(0)
    monkeypatch.setattr(pipes, "time", type("Clock", (), {"sleep": pauses.append}))
    assert pipe.read(9) == (b"" if linux else b"ab")
    assert pauses == ([] if linux else [pipes.TICK] * 2)
    assert pipe.read(9) == b""
    pipe.close()


def test_a_pipe_is_closed_without_waiting_for_its_reader_which_closes_the_file(fifo):
    pipe = ReadPipe(fifo)
    assert (pipe.name, pipe.fileno()) == (str(fifo), pipe._file.fileno())
    with pipe._reading:  # somebody reads
        pipe.close()
        assert not pipe._file.closed
    assert pipe.read(1) == b""
    assert pipe._file.closed


def test_a_pipe_that_nobody_reads_is_closed_at_once_and_may_be_closed_and_read_again(fifo):
    pipe = ReadPipe(fifo)
    for _ in range(2):
        pipe.close()
        assert pipe._file.closed
    assert pipe.read(1) == b""


def test_what_is_written_is_read_until_the_last_writer_is_gone(fifo):
    pipe = ReadPipe(fifo)
    with open(fifo, "wb", buffering=0) as file:
        file.write(b"abc")
        assert [pipe.read(2), pipe.read(2)] == [b"ab", b"c"]
    assert pipe.read(2) == b""
    pipe.close()


def test_a_reader_that_waits_is_released(fifo):
    pipe, parts = ReadPipe(fifo), []
    with open(os.open(fifo, os.O_RDWR), "r+b", buffering=0):
        reader = threading.Thread(target=lambda: parts.append(pipe.read(1)))
        reader.start()
        pipe.close()
        reader.join()
    assert parts == [b""]
    assert pipe._file.closed


# -- writing


def reader_of(path: Any) -> Any:
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)


def test_who_has_written_all_ends_when_it_is_closed(fifo):
    with reader_of(fifo) as reader:
        late = open_pipe(fifo)
        assert late.write(b"all") == 3
        while late.is_writing:
            time.sleep(0.001)
        assert reader.read() == b"all"
        late.close()
        assert late._thread is not None
        late._thread.join(60.0)
        assert late._file.closed
        late.check()


def test_what_is_written_later_and_what_waits_at_the_end_comes_too(fifo):
    with reader_of(fifo) as reader:
        late = open_pipe(fifo)
        for part in (b"one", b"two"):
            late.write(part)
            while late.is_writing:
                time.sleep(0.001)
            assert reader.read() == part
        os.set_blocking(reader.fileno(), True)
        late.write(bytes(300_000))
        late.close()
        assert reader.readall() == bytes(300_000)


def test_why_a_pipe_cannot_be_written_is_said(fifo):
    with pytest.raises(OSError, match="nobody reads this pipe") as failure:
        open_pipe(fifo)
    assert failure.value.errno == errno.ENXIO
    with pytest.raises(FileNotFoundError, match="No such file"):
        open_pipe(fifo.with_name("nothing"))


def test_what_a_thread_writes_already_needs_no_other_one(fifo):
    with reader_of(fifo):
        late = open_pipe(fifo)
        assert pipes.writable(late) is late
        late.close()


def test_a_file_of_another_stays_open(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        PipeWriter(file).close()
        assert not file.closed


def test_so_much_may_wait_for_the_reader_and_no_more(monkeypatch):
    class Never:
        def register(self, *_: Any) -> None: ...

        def poll(self, _timeout: float) -> bool:
            time.sleep(0.001)
            return False

    monkeypatch.setattr(pipes, "MOST_WAITING", 3)
    monkeypatch.setattr(pipes.select, "poll", Never)
    file = io.BytesIO()
    file.fileno = lambda: 0  # type: ignore[method-assign]
    late = PipeWriter(file)
    late.write(b"ab")
    late.write(b"c")
    with pytest.raises(OSError, match="3 bytes behind"):
        late.write(b"d")


def test_a_pipe_that_got_nothing_is_closed_by_whoever_closes_it(fifo):
    with reader_of(fifo):
        late = open_pipe(fifo)
        late.close()
        assert late._file.closed
        assert not late.is_writing


def test_a_reader_too_far_behind_is_given_up_and_its_thread_leaves(fifo, monkeypatch):
    monkeypatch.setattr(pipes, "MOST_WAITING", 100_000)
    with reader_of(fifo):
        late = open_pipe(fifo)
        late.write(bytes(300_000))
        with pytest.raises(OSError, match="bytes behind") as failure:
            late.write(b"more")
        assert failure.value.errno == errno.ETIMEDOUT
        assert not late.is_writing
        assert late._thread is not None
        assert late._thread.daemon, "it does not hold up the end of the process"
        late._thread.join(60.0)
        assert late._file.closed
        assert not late.reader_gone


class File:
    """A file that does not block, and is full at first."""

    def __init__(self) -> None:
        self.written, self.flushed = b"", b""
        self._full = True

    def fileno(self) -> int:
        return 0

    def write(self, data: bytes) -> int | None:
        full, self._full = self._full, False
        if full:
            return None
        self.written += data
        return len(data)

    def flush(self) -> None:
        self.flushed = self.written


def test_a_writer_waits_in_the_kernel_for_its_reader(monkeypatch):
    """And looks now and then whether it is still to wait."""
    poll, file = Poll(2), File()
    poll.register = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setattr(pipes.select, "poll", lambda: poll)
    late = PipeWriter(file, at_once=2)
    late.write(b"abc")
    late.close()
    assert late._thread is not None
    late._thread.join()
    assert (file.written, file.flushed) == (b"abc", b"abc")
    assert poll.timeouts == [100.0] * 5
    assert not late.is_writing


def test_what_a_reader_does_not_have_at_the_end_is_said(fifo):
    with reader_of(fifo):
        late = open_pipe(fifo)
        late.write(bytes(300_000))
        late.close()
        with pytest.raises(OSError, match="bytes behind"):
            late.check()
        assert not late.is_writing


def test_a_reader_that_went_away_is_said(fifo):
    with reader_of(fifo) as reader:
        late = open_pipe(fifo)
        reader.close()
        late.write(b"x")
        assert late._thread is not None
        late._thread.join()
        assert late.reader_gone
        late.close()
        with pytest.raises(BrokenPipeError):
            late.check()


def test_a_file_that_somebody_closed_is_an_error_of_whoever_writes(fifo):
    with reader_of(fifo):
        late = open_pipe(fifo)
        late._file.close()
        late.write(b"x")
        assert late._thread is not None
        late._thread.join()
        for fails in (late.check, lambda: late.write(b"y")):
            with pytest.raises(OSError) as failure:
                fails()
            assert failure.value.errno == errno.EBADF
        assert not late.reader_gone


# -- which files may have to be waited for


def test_what_may_have_to_be_waited_for_is_a_pipe_a_terminal_or_a_socket(fifo, tmp_path):
    (tmp_path / "file").touch()
    one, other = socket.socketpair()
    with one, other, open(os.devnull, "rb") as device, open(tmp_path / "file", "rb") as file, io.BytesIO() as memory:
        waits = [pipes.may_wait(each) for each in (fifo, str(fifo), one, device, file, memory, tmp_path / "file")]
    assert waits == [True, True, True, True, False, False, False]
    assert not pipes.may_wait(tmp_path / "nothing")
    assert not pipes.may_wait(file), "it is closed"
    assert [pipes.is_pipe(each) for each in (fifo, tmp_path / "file", tmp_path / "nothing")] == [True, False, False]


def test_standard_output_is_written_without_its_buffer(monkeypatch):
    raw = io.BytesIO()

    class Output:
        buffer = io.BufferedWriter(raw)  # type: ignore[arg-type]

    monkeypatch.setattr(sys, "stdout", Output)
    assert pipes.standard_output() is raw
