"""A core that is recorded: what it is given, what is written of it, and when that ends."""

from __future__ import annotations

import io
import os
import types
from pathlib import Path
from typing import Any

import pytest

from nstat_async._contract import CloseChannel, Lookup, OpenChannel, Send
from nstat_async._errors import UsageError
from nstat_async._events import Auxiliary, AuxiliaryFailed
from nstat_async._io import pipes, record
from nstat_async._io.record import RecordedCore, recorded
from nstat_async._options import MonitorOptions
from nstat_async.recording import Record, Recording, RecordKind, open_recording
from nstat_async.sockdiag import AttachAnswer, AttachRequest, ChannelPurpose, OwnersAnswer, Role, Session

NOW, EPOCH = 2.5, 1000.0
ROUTES = ChannelPurpose(0, Role.ROUTES)
DRAINED = {"drained": True}


class Noting:
    """A core that notes its inputs, and gives the commands that it is told to."""

    setup = Session(MonitorOptions(), kernel="6.18.0").setup
    capabilities = types.SimpleNamespace(layout=None)
    epoch_offset = 0.0

    def __init__(self) -> None:
        self.inputs: list[tuple[Any, ...]] = []
        self.next: list[Any] = []

    def start(self, now: float) -> None:
        self.inputs.append(("start", now))

    def receive_datagrams(self, datagrams: Any, now: float, channel: int) -> None:
        self.inputs.append(("datagrams", now, channel, datagrams))

    def channel_drained(self, channel: int, now: float) -> None:
        self.inputs.append(("drained", now, channel))

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        self.inputs.append(("opened", now, channel, immediate, receive_buffer))

    def channel_closed(self, channel: int, now: float) -> None:
        self.inputs.append(("closed", now, channel))

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        self.inputs.append(("answer", now, token, answer))

    def commands(self) -> list[Any]:
        taken, self.next = self.next, []
        return taken

    def take_events(self) -> list[Any]:
        return []

    def statistics(self) -> dict[str, int]:
        return {}


class Run:
    """A core that is recorded, and its recording."""

    def __init__(self, target: Any = None, epoch: float = EPOCH, **limits: Any) -> None:
        self.file = io.BytesIO()
        self.core = Noting()
        recording = Recording(self.file if target is None else target, **limits)
        self.recorded = RecordedCore(self.core, recording, MonitorOptions(), now=NOW, epoch_offset=epoch)  # type: ignore[arg-type]

    def command(self, *commands: Any) -> None:
        self.core.next = list(commands)
        self.recorded.commands()

    @property
    def failures(self) -> list[Any]:
        return self.recorded.take_events()

    def records(self) -> list[Record]:
        self.recorded.close()
        return records(io.BytesIO(self.file.getvalue()))


def records(source: Any) -> list[Record]:
    with open_recording(source) as recording:
        return list(recording)


def test_the_core_gets_the_times_that_are_written_and_no_two_inputs_have_the_same():
    run = Run()
    run.recorded.start(NOW)
    run.recorded.receive_datagrams([b"a", b"b"], NOW, 7)
    run.recorded.channel_drained(7, NOW + 1)
    run.recorded.receive_datagrams([b"c"], NOW + 1, 7)
    run.recorded.channel_opened(8, NOW + 1.5, immediate=False, receive_buffer=5)
    run.recorded.channel_closed(8, NOW + 2)
    assert run.core.inputs == [
        ("start", NOW),
        ("datagrams", NOW + 1e-9, 7, [b"a", b"b"]),
        ("drained", NOW + 1e-9, 7),
        ("datagrams", NOW + 1, 7, [b"c"]),
        ("opened", NOW + 1.5, 8, False, 5),
        ("closed", NOW + 2, 8),
    ]
    written = run.records()
    assert [each.time_ns for each in written] == [0, 1, 1, 10**9, 15 * 10**8, 2 * 10**9]
    assert [dict(each.extra) for each in written[1:4]] == [{}, DRAINED, {}]
    assert [each.client for each in written] == [0, 7, 7, 7, 8, 8]
    with open_recording(io.BytesIO(run.file.getvalue())) as recording:
        assert recording.info.started_ns == (NOW + EPOCH) * 1e9


@pytest.mark.parametrize("between", ["another channel", "another input", "written", "drained"])
def test_that_a_channel_is_empty_is_a_mark_on_its_last_datagram_or_an_input_of_its_own(between):
    """Which has a time of its own."""
    run = Run()
    run.recorded.receive_datagrams([b"a"], NOW, 7)
    if between == "another channel":
        run.recorded.receive_datagrams([b"b"], NOW, 8)
    elif between == "another input":
        run.recorded.start(NOW)
    elif between == "written":
        run.recorded.take_events()
    else:
        run.recorded.channel_drained(7, NOW)
    run.recorded.channel_drained(7, NOW + 1)
    assert run.core.inputs[-1] == ("drained", NOW + 1, 7)
    last = run.records()[-1]
    assert (last.kind, last.time_ns, last.client, last.value) == (RecordKind.STEP, 10**9, 7, {"type": "ChannelDrained"})


@pytest.mark.parametrize(
    ("first", "then", "is_followed"),
    [(0.0, 0.001, True), (0.0, -0.001, True), (EPOCH, EPOCH + 0.0009, False), (EPOCH, EPOCH + 0.0011, True)],
)
def test_the_wall_clock_is_followed_in_steps_of_a_millisecond(first, then, is_followed):
    run = Run(epoch=first + 1)
    run.recorded.start(NOW)
    run.recorded.epoch_offset = first
    run.recorded.epoch_offset = then
    followed = [first, *([then] if is_followed else [])]
    assert run.core.epoch_offset == run.recorded.epoch_offset == followed[-1]
    assert [each.value["epoch_offset"] for each in run.records()[1:]] == followed


def test_commands_are_written():
    run = Run()
    run.command(OpenChannel(7, ROUTES), Send(7, b"x"), Lookup(3, AttachRequest()), CloseChannel(7))
    opened, sent, asked, closed = run.records()
    assert opened.value == {
        "type": "OpenChannel",
        "purpose": {"type": "ChannelPurpose", "namespace": 0, "role": "routes", "groups": []},
        "repeated": False,
    }
    assert (sent.kind, sent.client, sent.data) == (RecordKind.TO_KERNEL, 7, b"x")
    assert (asked.value["token"], asked.value["request"]["type"]) == (3, "AttachRequest")
    assert (closed.value, closed.client) == ({"type": "CloseChannel"}, 7)


def test_a_later_part_begins_with_the_open_channels_and_the_answers_that_last(tmp_path):
    path = tmp_path / "day.nstat"
    run = Run(path, max_seconds=10)
    run.command(OpenChannel(7, ROUTES), OpenChannel(8, ROUTES), OpenChannel(9, ROUTES))
    for channel in (7, 8, 9):
        run.recorded.channel_opened(channel, NOW, immediate=True, receive_buffer=None)
    run.recorded.lookup_done(1, OwnersAnswer(()), NOW)
    run.recorded.lookup_done(2, AttachAnswer(detail="first"), NOW)
    run.recorded.lookup_done(3, AttachAnswer(detail="last"), NOW)
    run.command(CloseChannel(8))
    run.recorded.channel_closed(9, NOW)
    run.recorded.take_events()
    run.recorded.start(NOW + 10)
    run.recorded.close()
    answer, opening, opened, last = records(tmp_path / "day.000002.nstat")
    assert (answer.kind, answer.value["token"], answer.value["answer"]["detail"]) == (RecordKind.ANSWER, 3, "last")
    assert (opening.client, opening.value["type"]) == (opened.client, "OpenChannel") == (7, "OpenChannel")
    assert opened.value["type"] == "ChannelOpened"
    assert {each.value["repeated"] for each in (answer, opening, opened)} == {True}
    assert {each.time_ns for each in (answer, opening, opened, last)} == {10**10}


def test_a_channel_that_is_opened_again_is_open_once_in_a_later_part(tmp_path):
    run = Run(tmp_path / "day.nstat", max_seconds=10)
    for _ in range(2):
        run.command(OpenChannel(7, ROUTES))
        run.recorded.channel_opened(7, NOW, immediate=True, receive_buffer=None)
    run.recorded.take_events()
    run.recorded.start(NOW + 10)
    run.recorded.close()
    assert [each.value["type"] for each in records(tmp_path / "day.000002.nstat")] == [
        "OpenChannel",
        "ChannelOpened",
        "Started",
    ]


@pytest.mark.parametrize("by", ["answer", "request", "purpose"])
def test_what_cannot_be_written_ends_the_recording_which_has_all_before_it(by):
    run = Run()
    run.recorded.start(NOW + 1)
    strange: Any = object()
    if by == "answer":
        run.recorded.lookup_done(1, strange, NOW + 2)
        assert run.core.inputs[-1] == ("answer", NOW + 2, 1, strange), "the core gets it all the same"
    else:
        run.command(Lookup(1, strange) if by == "request" else OpenChannel(1, strange), Send(1, b"not written"))
    (failure,) = run.failures
    assert (failure.auxiliary, failure.time) == (Auxiliary.RECORDER, EPOCH + NOW + (2 if by == "answer" else 1))
    assert "object is not a value" in failure.detail
    run.recorded.start(NOW + 3)
    assert [each.value for each in run.records()] == [{"type": "Started"}]
    figures = run.recorded.statistics()
    assert figures == {"recorded_bytes": len(run.file.getvalue()), "failed_recorder": 1}
    assert run.failures == []


def test_a_reader_that_went_away_is_said_once_also_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pipes, "MOST_WAITING", 1)
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb"):
        run = Run(tmp_path / "pipe")
        failures: list[Any] = []
        while not failures:
            run.recorded.receive_datagrams([bytes(100_000)], NOW, 7)
            failures = run.failures
        assert isinstance(failures[0], AuxiliaryFailed)
        run.recorded.close()
        assert not run.recorded.is_writing
        run.recorded.check()
        assert run.failures == []


def test_a_file_that_cannot_be_closed_is_said(tmp_path, monkeypatch):
    def fail(recorder: Any, close: Any = record.Recorder.close) -> None:
        close(recorder)
        raise OSError(28, "No space left on device")

    run = Run(tmp_path / "day.nstat")
    monkeypatch.setattr(record.Recorder, "close", fail)
    run.recorded.close()
    (failure,) = run.failures
    assert "No space left on device" in failure.detail


class Transport:
    """It has opened something."""

    closed = False

    def open(self, purpose: Any) -> Any:
        raise NotImplementedError

    def lookup(self, request: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def test_the_wall_clock_of_the_beginning_is_in_the_recording(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: NOW, time=lambda: EPOCH + NOW)
    monkeypatch.setattr(record, "time", clock)
    options = MonitorOptions(record_to=Recording(tmp_path / "day.nstat"))
    transport = Transport()
    core, both = recorded(Noting(), transport, options)  # type: ignore[arg-type]
    assert core.epoch_offset == EPOCH
    both.close()
    assert transport.closed
    assert not core.is_writing
    with open_recording(tmp_path / "day.nstat") as recording:
        assert recording.info.started_ns == (EPOCH + NOW) * 1e9


def test_a_transport_is_closed_whose_recording_cannot_be_written():
    transport = Transport()
    with pytest.raises(UsageError):
        recorded(Noting(), transport, MonitorOptions(record_to=Recording(Path("no", "day.nstat"))))  # type: ignore[arg-type]
    assert transport.closed
