"""Recording a monitor: to a full disk, in parts, to a pipe, over what is there already."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from replaying import assert_same, replayed

from nstat_async import (
    EventsLost,
    Monitor,
    MonitorClosedError,
    UsageError,
)
from nstat_async._events import Auxiliary, AuxiliaryFailed
from nstat_async._io import pipes, pump
from nstat_async.backends import Replay
from nstat_async.recording import Recording, open_recording
from nstat_async.testing import EmulatedKernel

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])
GENEROUS = 120.0


class Disk(io.BytesIO):
    """A file on a disk that has so much room."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


async def watch(kernel: EmulatedKernel, polls: int, **options: Any) -> tuple[list[Any], dict[str, int]]:
    """The events until so many polls are complete, with traffic in between, and the figures."""
    flow = kernel.open_tcp(pid=42, name="curl", remote=("192.0.2.9", 443))
    events: list[Any] = []
    with anyio.fail_after(GENEROUS):
        async with Monitor(backend=kernel.backend(), interval=None, **options) as monitor:
            stream = monitor.subscribe(overflow="all")
            for _ in range(polls):
                flow.transfer(rx=1000)
                await monitor.poll_now()
                events += stream.receive_nowait()
            return events, monitor.statistics().feed


@LOOPS
@pytest.mark.parametrize("room", [1500, 4000])
def test_a_full_disk_ends_the_recording_and_nothing_else(loop, room):
    async def main() -> None:
        disk = Disk(room)
        events, figures = await watch(EmulatedKernel(), 40, record_to=disk)
        (failure,) = [event for event in events if isinstance(event, AuxiliaryFailed)]
        assert failure.auxiliary is Auxiliary.RECORDER
        assert "No space left" in failure.detail
        assert figures["failed_recorder"] == 1
        assert figures["recorded_bytes"] <= room
        assert not [event for event in events if isinstance(event, EventsLost)]
        last = [event for event in events if hasattr(event, "counts")][-1]
        assert last.counts.rx_bytes == 40_000, "no datagram was lost with the recording"
        assert events.index(failure) < len(events) - 1

    anyio.run(main, backend=loop)


def test_what_a_full_disk_holds_is_the_beginning_of_the_run():
    async def main() -> tuple[list[Any], Disk]:
        disk = Disk(8000)
        return (await watch(EmulatedKernel(), 40, record_to=disk))[0], disk

    events, disk = anyio.run(main)
    run = [event for event in events if not isinstance(event, AuxiliaryFailed)]
    again = replayed(io.BytesIO(disk.getvalue()))
    assert len(again) > 3
    assert_same(again, run[: len(again)])


class Stubborn(io.BytesIO):
    """Fails with an error of its own from some time on, as a file of a library may."""

    failure: Exception | None = None

    def write(self, data: Any) -> int:
        if self.failure is not None:
            raise self.failure
        return super().write(data)


@pytest.mark.parametrize("error", [RuntimeError(), KeyError("bucket")])
def test_a_file_that_fails_in_its_own_way_ends_the_recording_and_nothing_else(error):
    async def main() -> None:
        file = Stubborn()
        kernel = EmulatedKernel()
        with anyio.fail_after(GENEROUS):
            async with Monitor(backend=kernel.backend(), interval=0.01, record_to=file) as monitor:
                await monitor.poll_now()
                file.failure = error
                async for event in monitor:
                    if isinstance(event, AuxiliaryFailed):
                        assert event.detail == f"the recording ends here: {str(error) or 'RuntimeError'}"
                        break
                await monitor.poll_now()

    anyio.run(main)


def test_a_file_that_somebody_closed_is_said_as_well():
    async def main() -> None:
        file = io.BytesIO()
        kernel = EmulatedKernel()
        with anyio.fail_after(GENEROUS):
            async with Monitor(backend=kernel.backend(), interval=0.01, record_to=file) as monitor:
                await monitor.poll_now()
                file.close()
                async for event in monitor:
                    if isinstance(event, AuxiliaryFailed):
                        break
                await monitor.poll_now()

    anyio.run(main)


# --- what is there already -------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"years of work\n",
        b"{}",
        b'{"xnu": "xnu-11417.121.6"}\n',
        b'{"tool": "other 1"}\n',
        b"\x89NSTAX\r\n",
        b"{" * 9999,
    ],
)
def test_a_file_that_this_library_did_not_write_is_never_replaced(tmp_path, content):
    path = tmp_path / "thesis.jsonl"
    path.write_bytes(content)

    async def main(target: Any) -> None:
        await watch(EmulatedKernel(), 1, record_to=target)

    for target in (path, str(path), Recording(path)):
        with pytest.raises(UsageError, match=r"thesis\.jsonl: exists"):
            anyio.run(main, target)
    assert path.read_bytes() == content
    anyio.run(main, Recording(path, overwrite=True))
    assert replayed(path)
    anyio.run(main, path)  # it is a recording now


@pytest.mark.parametrize("name", ["day.nstat", "day.jsonl"])
def test_a_recording_of_this_library_is_replaced_and_an_empty_file_filled(tmp_path, name):
    path = tmp_path / name
    path.touch()

    async def main() -> None:
        await watch(EmulatedKernel(), 1, record_to=path)

    anyio.run(main)
    first = path.read_bytes()
    anyio.run(main)
    assert path.read_bytes() != first
    assert replayed(path)


def test_what_cannot_be_written_says_so_where_the_block_begins(tmp_path):
    async def main(target: Any) -> None:
        await watch(EmulatedKernel(), 1, record_to=target)

    for target in (tmp_path / "no" / "day.nstat", tmp_path, Recording(tmp_path / "no" / "day.nstat", max_bytes=9)):
        with pytest.raises(UsageError, match="record_to"):
            anyio.run(main, target)


@LOOPS
def test_a_pipe_that_nobody_reads_is_said_at_once(loop, tmp_path):
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        with pytest.raises(UsageError, match=r"record_to: .*pipe: nobody reads this pipe"):
            await watch(EmulatedKernel(), 1, record_to=tmp_path / "pipe")

    anyio.run(main, backend=loop)


def test_a_pipe_that_is_read_no_more_ends_the_recording_and_what_it_holds_is_the_beginning(tmp_path, monkeypatch):
    """Without any wait: that would hold the loop."""
    monkeypatch.setattr(pump, "PIPE_SECONDS", 600.0)
    monkeypatch.setattr(pipes, "MOST_WAITING", 20_000)
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
            events, figures = await watch(EmulatedKernel(), 400, record_to=tmp_path / "pipe")
            (failed,) = [event for event in events if isinstance(event, AuxiliaryFailed)]
            assert (failed.auxiliary, "bytes behind" in failed.detail) == (Auxiliary.RECORDER, True)
            os.set_blocking(reader.fileno(), True)
            written = await anyio.to_thread.run_sync(reader.read)
            assert len(written) <= figures["recorded_bytes"]
            if written:  # on a busy machine the thread that writes may not have begun
                assert list(open_recording(io.BytesIO(written)))

    anyio.run(main)


def test_a_reader_of_a_pipe_that_is_late_gets_everything_and_holds_up_nobody(tmp_path, monkeypatch):
    """Whoever records writes more than the pipe holds before it is read for the first time."""
    monkeypatch.setattr(pump, "STOP_SECONDS", 0.0)  # what a cancellation would leave is not enough
    os.mkfifo(tmp_path / "pipe")
    kernel = EmulatedKernel()
    for number in range(300):
        kernel.open_tcp(number + 1, "curl", remote=("192.0.2.9", 443))
    parts = []

    def read(reader: Any) -> None:
        while part := reader.read(65_536):
            parts.append(part)

    async def main() -> None:
        with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
            monitor = Monitor(backend=kernel.backend(), interval=None, record_to=tmp_path / "pipe", every_update=True)
            async with monitor:
                while monitor.statistics().feed["recorded_bytes"] < 200_000:
                    await monitor.poll_now()
                os.set_blocking(reader.fileno(), True)
                late = threading.Thread(target=read, args=(reader,))
                late.start()
            await anyio.to_thread.run_sync(late.join)
            assert sum(map(len, parts)) == monitor.statistics().feed["recorded_bytes"]

    anyio.run(main)


@LOOPS
@pytest.mark.parametrize("is_path", [True, False])
@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_reader_that_stalls_at_the_end_holds_no_loop_and_what_it_did_not_take_is_said_once(
    loop, is_path, is_cancelled, tmp_path, monkeypatch
):
    """It is waited for in the loop, for so long at most, and not beyond a cancellation for long."""
    monkeypatch.setattr(pipes, "PIPE_SECONDS", 600.0)  # the thread is told to leave
    monkeypatch.setattr(pump, "STOP_SECONDS", 0.01)
    monkeypatch.setattr(pump, "PIPE_SECONDS", 600.0 if is_cancelled else 0.02)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    kernel, turns = EmulatedKernel(), []
    for number in range(300):
        kernel.open_tcp(number + 1, "curl", remote=("192.0.2.9", 443))

    async def take_turns() -> None:
        while True:
            turns.append(1)
            await anyio.sleep(0.001)

    async def main() -> None:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb"), contextlib.ExitStack() as stack:
            target: Any = path if is_path else stack.enter_context(open(path, "wb", buffering=0))
            monitor = Monitor(backend=kernel.backend(), interval=None, record_to=target, every_update=True)
            async with anyio.create_task_group() as tasks:
                await monitor.start()
                stream = monitor.subscribe(overflow="all")
                while monitor.statistics().feed["recorded_bytes"] < 80_000:
                    await monitor.poll_now()
                stream.receive_nowait()
                tasks.start_soon(take_turns)
                if is_cancelled:
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await monitor.aclose()
                else:
                    await monitor.aclose()
                assert len(turns) > 1
                tasks.cancel_scope.cancel()
            (failed,) = stream.receive_nowait()
            assert (failed.auxiliary, "bytes behind" in failed.detail) == (Auxiliary.RECORDER, True)
            await monitor.aclose()
            assert monitor.statistics().feed["failed_recorder"] == 1
            with pytest.raises(MonitorClosedError):
                stream.receive_nowait()

    with contextlib.closing(kernel):
        anyio.run(main, backend=loop)
    while any(thread.name == "nstat-async-pipe" for thread in threading.enumerate()):
        time.sleep(0.001)  # until it noticed


def test_an_open_pipe_that_blocks_is_written_by_a_thread_and_stays_open(tmp_path):
    """Also standard output: nobody else waits for its reader."""
    reading, writing = os.pipe()
    with open(writing, "wb") as file, open(reading, "rb") as reader:
        late = pipes.writable(file)
        assert late.write(bytes(300_000)) == 300_000
        late.close()
        assert late.is_writing
        assert reader.read(300_000) == bytes(300_000)
        while late.is_writing:
            time.sleep(0.001)
        late.check()
        assert not file.closed
        assert pipes.writable(late) is late
    with open(tmp_path / "file", "wb") as plain:
        assert pipes.writable(plain) is plain


def test_a_pipe_that_nobody_looks_after_any_more_is_left_by_its_thread(monkeypatch):
    """As that of a monitor that everybody forgot."""
    monkeypatch.setattr(pipes, "PIPE_SECONDS", 0.0)
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file, open(reading, "rb"):
        late = pipes.writable(file)
        late.write(bytes(300_000))
        late.close()
        late._thread.join()
        with pytest.raises(OSError, match="bytes behind"):
            late.check()


def test_what_waits_for_a_reader_that_is_gone_is_an_error(tmp_path):
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as file:
        late = pipes.writable(file)
        late.write(bytes(300_000))
        os.close(reading)
        while late.is_writing:
            time.sleep(0.001)
        assert late.reader_gone
        with pytest.raises(BrokenPipeError):
            late.write(b"more")
        with pytest.raises(BrokenPipeError):
            late.check()


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": 0},
        {"max_bytes": "5"},
        {"max_seconds": -1.0},
        {"max_bytes": 5, "keep": 0},
        {"keep": 3},
        {"target": "-", "max_bytes": 5},
        {"target": io.BytesIO(), "max_seconds": 5},
    ],
)
def test_limits_that_cannot_be_are_refused(options):
    options = {"target": "day.nstat", **options}
    with pytest.raises(UsageError):
        Recording(options.pop("target"), **options)


def test_a_recording_is_not_recorded_again(tmp_path):
    async def main() -> None:
        with pytest.raises(UsageError, match="copy"):
            async with Monitor(backend=Replay(io.BytesIO(b"")), record_to=tmp_path / "x"):
                pass

    anyio.run(main)


@LOOPS
def test_a_run_that_is_closed_in_any_turn_is_the_same_when_it_is_replayed(loop, monkeypatch):
    """Also between what a core was given and its events: they come to the reader then."""

    async def rest(_self: Any) -> None:
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(pump.KernelFeed, "_rest", rest)  # as where each part of a turn takes long

    async def main(turns: int) -> tuple[bytes, list[Any]]:
        kernel, file, events = EmulatedKernel(), io.BytesIO(), list[Any]()
        flows = [kernel.open_tcp(pid=42, name="curl", remote=("192.0.2.9", 443)) for _ in range(turns + 1)]
        monitor = await Monitor(backend=kernel.backend(), interval=0.001, record_to=file, overflow="all").start()
        for _ in range(turns):
            time.sleep(0.001)  # a poll is due
            flows.pop().close()  # and there is something to read
            await anyio.lowlevel.checkpoint()
        await monitor.aclose()
        with contextlib.suppress(MonitorClosedError):
            while True:
                events += monitor._own.receive_nowait()
        return file.getvalue(), events

    for turns in range(6):
        recording, events = anyio.run(main, turns, backend=loop)
        assert_same(replayed(io.BytesIO(recording), overflow="all"), events)
