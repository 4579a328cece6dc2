"""Runs that are recorded, whole or in parts, and replayed: the same run comes out, and whatever is wrong in a file is said."""

from __future__ import annotations

import errno
import gc
import io
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
    PollCompleted,
    Proof,
    RecordingError,
    UsageError,
)
from nstat_async._events import AuxiliaryFailed
from nstat_async._io import record
from nstat_async._io.record import RecordedCore
from nstat_async.backends import Replay
from nstat_async.recording import NEXT, Recording, RecordingInfo, RecordingWriter, RecordKind, open_recording
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel

# --- parts -----------------------------------------------------------------------------


WHOLE = Path(__file__).parent.parent / "examples" / "recordings" / "web-session.jsonl"


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
    + [{"type": "ClockSet", "epoch_offset": bad} for bad in ("now", None, 10**400, 1e308, -1e308)]
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
        {"epoch_offset": 1e308},
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
