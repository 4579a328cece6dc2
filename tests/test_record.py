"""Recording a monitor: to a full disk, in parts, to a pipe, over what is there already."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from replaying import assert_same, replayed
from virtual import EPOCH, VirtualMonitor

from nstat_async import (
    EventsLost,
    FlowAdded,
    LossCause,
    Monitor,
    MonitorClosedError,
    PollCompleted,
    Proof,
    RecordingError,
    UsageError,
)
from nstat_async._events import Auxiliary, AuxiliaryFailed
from nstat_async._io import pipes, pump, record
from nstat_async._io.record import RecordedCore
from nstat_async.backends import Replay
from nstat_async.recording import NEXT, Recording, RecordingInfo, RecordingWriter, RecordKind, open_recording
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel

WHOLE = Path(__file__).parent.parent / "examples" / "recordings" / "web-session.jsonl"
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
            assert 0 < len(written) <= figures["recorded_bytes"]
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


# --- parts -----------------------------------------------------------------------------


class Run:
    """A recorded run in virtual time."""

    def __init__(
        self,
        target: Any,
        *,
        seconds: int,
        flows: int = 5,
        kernel: EmulatedKernel | None = None,
        clock: dict[int, float] | None = None,
        overloaded: int | None = None,
        keep_events: bool = True,
        **options: Any,
    ) -> None:
        self.kernel = kernel or EmulatedKernel()
        self.events: list[Any] = []
        self.recorded: Any = None
        self.most_pending = 0
        self._clock = clock or {}
        self._overloaded = overloaded
        self._keep_events = keep_events
        self._monitor = VirtualMonitor(
            self.kernel, wrap=self._wrap(target), sink=self._take, **{"interval": 1.0, "verify": False, **options}
        )
        self._flows = [
            self.kernel.open_tcp(pid=n, name=f"p{n}", remote=("192.0.2.9", 443)) for n in range(1, flows + 1)
        ]
        self.go_on(seconds)
        if keep_events:
            self.recorded.close()

    def go_on(self, seconds: int) -> None:
        for second in range(seconds):
            self._monitor.offset += self._clock.get(second, 0.0)
            if second == self._overloaded:
                self.recorded.channel_failed(0, errno.ENOBUFS, float(self.kernel.now))
            self._flows[second % len(self._flows)].transfer(rx=100)
            self._monitor.run(1.0)

    def _wrap(self, target: Any) -> Any:
        def wrap(session: Any, options: Any) -> Any:
            recording = target if isinstance(target, Recording) else Recording(target)
            now = float(self.kernel.now)
            self.recorded = RecordedCore(session, recording, options, now=now, epoch_offset=EPOCH)
            return self.recorded

        return wrap

    def _take(self, events: list[Any]) -> None:
        if self._keep_events:
            self.events += events
        self.most_pending = max(self.most_pending, len(self.recorded._pending))


def parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))


@pytest.mark.parametrize("name", ["day.nstat", "day.jsonl"])
@pytest.mark.parametrize("limit", [{"max_bytes": 4000}, {"max_seconds": 10.0}])
def test_a_recording_in_parts_is_the_run_and_each_part_can_be_read_alone(tmp_path, name, limit):
    path = tmp_path / name
    run = Run(Recording(path, **limit), seconds=60)
    found = parts(path)
    assert len(found) > 3
    assert found[0].name == f"day.000001{path.suffix}"
    if "max_bytes" in limit:
        sizes = [part.stat().st_size for part in found]
        assert min(sizes[:-1]) >= 4000
        assert max(sizes) < 4000 + 20_000, "a part ends in the turn that fills it"
    assert_same(replayed(found), run.events)
    for part in found[1:]:
        alone = replayed(part)
        assert {event.flow.process.pid for event in alone if isinstance(event, FlowAdded)} <= {1, 2, 3, 4, 5}
        assert any(isinstance(event, PollCompleted) for event in alone)
        assert not [event for event in alone if isinstance(event, EventsLost)]


def test_parts_that_do_not_follow_each_other_are_refused(tmp_path):
    Run(Recording(tmp_path / "a.nstat", max_seconds=10), seconds=40)
    Run(Recording(tmp_path / "b.nstat", max_seconds=10), seconds=40)
    one, two, three, *_ = parts(tmp_path / "a.nstat")
    other = parts(tmp_path / "b.nstat")[1]
    for wrong in ([one, three], [two, one], [one, one]):
        with pytest.raises(RecordingError, match="not the part that follows"):
            replayed(wrong)
    assert other.exists()
    for before, another in ((one, WHOLE), (WHOLE, one), (WHOLE, WHOLE)):
        with pytest.raises(RecordingError, match="of another recording than the file before it"):
            replayed([before, another])
    assert replayed([two, three]), "from the middle it is followed"
    with pytest.raises(UsageError, match="no file"):
        replayed([])


def test_only_the_newest_parts_are_kept_and_foreign_files_stay(tmp_path):
    path = tmp_path / "day.nstat"
    foreign = tmp_path / "day.000001.nstat"
    foreign.write_text("mine")
    Run(Recording(path, max_seconds=5, keep=3), seconds=60)
    left = parts(path)
    assert foreign in left
    assert foreign.read_text() == "mine"
    assert len(left) == 4
    before = [part for part in left if part != foreign]
    Run(Recording(path, max_seconds=5, keep=3), seconds=20)
    after = [part for part in parts(path) if part != foreign]
    assert len(after) == 3
    assert after[-1].name > before[-1].name, "numbers go on"
    for part in after:
        assert replayed(part)


def test_an_old_part_that_somebody_else_deleted_is_no_trouble(tmp_path, monkeypatch):
    listed = Recording.parts
    monkeypatch.setattr(Recording, "parts", lambda self: [(0, tmp_path / "deleted"), *listed(self)])
    run = Run(Recording(tmp_path / "day.nstat", max_seconds=5, keep=3), seconds=30)
    assert not [event for event in run.events if isinstance(event, AuxiliaryFailed)]


def test_bytes_of_a_recording_whose_next_part_cannot_be_opened_are_counted_once(tmp_path, monkeypatch):
    run = Run(Recording(tmp_path / "day.nstat", max_seconds=30), seconds=25, keep_events=False)

    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "open", refuse)
    run.go_on(seconds=10)
    figures = run.recorded.statistics()
    assert figures["failed_recorder"] == 1
    assert figures["recorded_bytes"] == sum(part.stat().st_size for part in parts(tmp_path / "day.nstat")) > 0


def test_what_waits_to_be_written_and_what_is_read_at_once_have_a_bound(tmp_path, monkeypatch):
    """However long a recording is: records are written in each turn, and read in pieces."""
    path = tmp_path / "day.nstat"
    run = Run(path, seconds=300, flows=40)
    assert run.most_pending == 0, "a turn leaves nothing behind"
    assert path.stat().st_size > 200_000
    most = 0
    with open_recording(path) as recording:
        for batch in recording.records_batch(256):
            most = max(most, len(batch))
            assert len(recording._reader._parser._buffer) < 64 << 10
    assert most <= 256
    monkeypatch.setattr(record, "MOST_PENDING", 8)
    recorded = run.recorded
    recorded._recorder = tape = Tape()
    for number in range(1000):
        recorded._add(number)
    assert len(recorded._pending) < 8
    assert max(tape.sizes) == 8


class Tape:
    """A recorder that only counts."""

    size = 0

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def write(self, records: Any, _repeat: Any) -> None:
        self.sizes.append(len(records))


# --- hostile values ----------------------------------------------------------------------


def _changed(change: Any) -> list[Any]:
    """The events of a replay of a run whose steps and answers were changed."""
    file = io.BytesIO()
    Run(file, seconds=5)
    file.seek(0)
    with open_recording(file) as source:
        records = [change(record) for record in source]
    again = io.BytesIO()
    RecordingWriter(again, source.info).write_batch(records)
    again.seek(0)
    return replayed(again)


@pytest.mark.parametrize(
    "value",
    [None, [], "x", {}, {"type": "Drained"}, {"type": ["Started"]}, {"type": "ChannelFailed", "errno": "x"}]
    + [{"type": "ClockSet", "epoch_offset": bad} for bad in ("now", None, 10**400)]
    + [{"type": "ChannelOpened", "receive_buffer": 10**30}, {"type": "Lookup", "token": 1.5}],
)
def test_a_step_that_cannot_be_is_one_damaged_record_and_the_rest_plays(value):
    done: list[int] = []

    def change(record: Any) -> Any:
        if record.kind is RecordKind.STEP and record.value == {"type": "ChannelDrained"} and not done:
            done.append(record.index)
            return record._replace(value=value)
        return record

    events = _changed(change)
    loss = next(event for event in events if isinstance(event, EventsLost))
    assert loss.count == 1
    assert f"record {done[0]}" in loss.detail
    assert sum(isinstance(event, PollCompleted) for event in events) >= 4


def test_a_record_from_the_past_is_damaged_and_a_leap_forward_is_time():
    changed: list[int] = []

    def change(time_ns: int) -> Any:
        def change(record: Any) -> Any:
            if record.kind is RecordKind.FROM_KERNEL and record.index > 20 and not changed:
                changed.append(record.index)
                return record._replace(time_ns=time_ns)
            return record

        return change

    (loss,) = [event for event in _changed(change(-(1 << 63))) if isinstance(event, EventsLost) and event.count == 1]
    assert f"record {changed[0]} is earlier" in loss.detail
    changed.clear()
    assert len(_changed(change((1 << 63) - 1))) > 3


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"library": 3},
        {"zero_ns": 10**400},
        {"epoch_offset": float("inf")},
        {"setup": {"kernel": None}},
        {"setup": {"kernel": "no kernel"}},
        {"setup": {"kernel": "xnu-11417.121.6", "timebase": [0, 0]}},
        {"options": {"providers": [["tcp"]]}},
        {"options": {"interval": "often"}},
        {"options": 3},
        {"part": 2},
        {"library": "99.0"},
    ],
)
def test_a_run_that_cannot_be_run_again_is_followed(run):
    file = io.BytesIO()
    Run(file, seconds=5)
    file.seek(0)
    with open_recording(file) as source:
        records = list(source)
    info: RecordingInfo = attrs.evolve(source.info, run={**(source.info.run or {}), **run} if run else {})
    again = io.BytesIO()
    try:
        RecordingWriter(again, info).write_batch(records)
    except UsageError:
        pytest.skip("not JSON")
    again.seek(0)
    events = replayed(again)
    assert sum(isinstance(event, FlowAdded) for event in events) == 5


# --- what a part knows ---------------------------------------------------------------------


def test_a_later_part_reads_descriptors_as_the_proof_in_an_earlier_one_found_them(tmp_path):
    """On a kernel that moved fields, a part after the proof names the same processes and ends of flows."""
    kernel = EmulatedKernel("xnu-12500.1.1", insertions=DARWIN_27_INSERTIONS[0], layout_number=12)
    run = Run(Recording(tmp_path / "day.nstat", max_seconds=10), seconds=40, kernel=kernel, verify=None)
    assert run.recorded.capabilities.layout_proof is Proof.PROBED
    expected = {flow.process.pid: flow.process for flow, _ in run.recorded.flows() if flow.process is not None}
    assert all(expected[pid].name == f"p{pid}" and expected[pid].uuid is not None for pid in (1, 2, 3, 4, 5))
    for part in parts(tmp_path / "day.nstat")[1:]:
        flows = [event.flow for event in replayed(part) if isinstance(event, FlowAdded)]
        assert {flow.process.pid: flow.process for flow in flows} == {pid: expected[pid] for pid in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize(
    "proven",
    [
        {"name": "nstat_tcp_descriptor", "length": 1 << 60, "offsets": [["pid", 4]]},
        {"name": "nstat_tcp_descriptor", "length": 400, "offsets": [["pid", -4], ["uid", 4]]},
        {"name": "nstat_tcp_descriptor", "length": 400, "offsets": [["pid", 398]]},
        {"name": "nstat_tcp_descriptor", "length": 400, "offsets": [["colour", 4]]},
        {"name": "palmistry", "length": 400, "offsets": [["pid", 4]]},
        {"name": "nstat_tcp_descriptor", "length": "long", "offsets": []},
    ],
)
def test_a_proof_that_cannot_be_is_no_proof_and_the_rest_plays(proven):
    file = io.BytesIO()
    Run(file, seconds=5)
    file.seek(0)
    with open_recording(file) as source:
        records, run = list(source), source.info.run
    assert run is not None
    run = {**run, "part": 2, "setup": {**run["setup"], "proven": [proven]}}
    again = io.BytesIO()
    RecordingWriter(again, attrs.evolve(source.info, run=run)).write_batch(records)
    again.seek(0)
    assert {event.flow.process.pid for event in replayed(again) if isinstance(event, FlowAdded)} == {1, 2, 3, 4, 5}


def test_a_later_part_has_the_wall_clock_and_the_losses_of_the_run(tmp_path):
    """A clock that is set before and within a part, and a receive buffer that was full, are in each part's own replay."""
    path = tmp_path / "day.nstat"
    run = Run(Recording(path, max_seconds=10), seconds=45, clock={5: 3600.0, 25: -60.0}, overloaded=27)
    found = parts(path)
    assert len(found) == 5
    for part in found[1:]:
        again = replayed(part)
        polls = [event.time for event in again if isinstance(event, PollCompleted)]
        theirs = [event.time for event in run.events if isinstance(event, PollCompleted)]
        assert polls
        assert all(min(abs(time - one) for one in theirs) < 1e-3 for time in polls)
    losses = [event.cause for event in replayed(found[2]) if isinstance(event, EventsLost)]
    assert losses == [LossCause.KERNEL_BUFFER]


# --- a day -------------------------------------------------------------------------------------


class Nowhere(io.RawIOBase):
    """A disk without an end: it counts."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def held() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_a_day_of_recording_holds_no_more_than_its_first_minutes():
    """Objects held by whoever records do not grow with the length of the recording."""
    nowhere = Nowhere()
    run = Run(Recording(nowhere), seconds=20, keep_events=False)
    first, written = held(), nowhere.size
    run.go_on(seconds=100)
    assert nowhere.size > 4 * written
    assert held() < first + 500


class Endless(io.RawIOBase):
    """A recording that goes on: the records of a few seconds again and again, each time later."""

    def __init__(self, rounds: int) -> None:
        file = io.BytesIO()
        Run(file, seconds=20)
        with open_recording(io.BytesIO(file.getvalue())) as source:
            self.records = [record for record in source if record.kind is RecordKind.FROM_KERNEL]
        self._out = io.BytesIO()
        self._writer = RecordingWriter(self._out, attrs.evolve(source.info, run=None))
        self._rounds = rounds
        self.read_so_far = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._rounds and self._out.tell() < size:
            self._rounds -= 1
            later = 10**11 * self.read_so_far
            self._writer.write_batch(
                record._replace(index=NEXT, time_ns=later + record.time_ns) for record in self.records
            )
        data = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        self.read_so_far += len(data)
        return data


def test_a_day_of_replaying_holds_no_more_than_its_first_minutes():
    """Objects held by whoever replays do not grow with the length of the recording, however slow the reader is."""

    async def main() -> None:
        source = Endless(150)
        counted = []
        async with Monitor(backend=Replay(source), every_update=True) as monitor:
            number = 0
            async for _ in monitor:
                number += 1
                if number in {1000, 8000}:
                    counted.append((held(), source.read_so_far))
        (first, read), (last, read_last) = counted
        assert read_last > 5 * read
        assert last < first + 2000

    anyio.run(main)
