"""How a pulse begins and ends: its channels, its thread and what of it may fail; the thread runs when the test says so."""

from __future__ import annotations

import errno
import math
import os
import select
import threading
import time
import types

import pytest
from sockdiag_fakes import FakeSocket

from nstat_async._io import budget, pulse
from nstat_async._io.processes import ProcessReader
from nstat_async.sockdiag import PulsePurpose, PulseReport

pytestmark = pytest.mark.linux


class Room:
    """It stands in for `Glance`."""

    dumped = whole_takes = 0.0
    several = False

    def __init__(self, purpose, report) -> None:
        self.purpose, self.report = purpose, report
        self.begun, self.closed, self.unread = False, 0, 0
        self.look_at = self.active_until = 0.0
        self.counters = types.SimpleNamespace(numbers=len(rooms), readings=0)
        self.budget = budget.Budget(budget.SHARE, 0.0)
        self.failure: Exception | None = None
        self.new: list[tuple[int, bytes]] = []
        self.looks = 0
        rooms.append(self)

    def begin(self) -> None:
        if self.failure:
            raise self.failure
        self.begun = True

    def next_look(self) -> float:
        return 0.0 if self.new else math.inf

    def look(self, _now, *, whole):
        self.looks += 1
        if self.failure:
            raise self.failure
        new, self.new = self.new, []
        return new

    def look_again(self, *_) -> None:
        pass

    def expect(self, _at) -> None:
        pass

    def notice(self, _now) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1


class Thread:
    """It starts, and runs when the test says so, or when it is waited for."""

    def __init__(self, target, name, daemon) -> None:
        assert (name, daemon) == ("nstat-async-pulse", True), "a program may end without it"
        self.run, self.state = target, "made"
        self.stuck = False
        threads.append(self)

    def start(self) -> None:
        if refused:
            raise RuntimeError("can't start new thread")
        self.state = "alive"

    def is_alive(self) -> bool:
        return self.state == "alive"

    def join(self, _timeout) -> None:
        if not self.stuck:
            self.run()
            self.state = "ended"


rooms: list[Room] = []
threads: list[Thread] = []
refused: list[bool] = []


@pytest.fixture
def beat(monkeypatch):
    """A pulse whose waits are counted: after so many it is ended."""
    for each in (rooms, threads, refused):
        each.clear()
    monkeypatch.setattr(pulse, "Glance", Room)
    monkeypatch.setattr(pulse, "threading", types.SimpleNamespace(Thread=Thread, Lock=threading.Lock))
    made = pulse.Pulse({}, ProcessReader())
    made.waits = []

    def wait(_bell, watched, pause, *_):
        made.waits.append((watched, pause))
        if len(made.waits) >= made.most:
            made._ended = True

    monkeypatch.setattr(pulse, "await_counters", wait)
    made.most = 1
    yield made
    made.close()


def opened(beat, pause=0.02) -> tuple[pulse.PulseChannel, Room]:
    return beat.open(PulsePurpose(0, pause)), rooms[-1]


def rang(beat) -> bool:
    return bool(select.select([beat._bell], [], [], 0)[0])


def readable(channel) -> bool:
    return bool(select.select([channel.fileno()], [], [], 0)[0])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def read(channel, most=10) -> list[PulseReport]:
    batch: list[bytes] = []
    channel.read_into(batch, most)
    return [PulseReport.decode(data) for data in batch]


# -- beginning


def test_all_namespaces_have_one_thread_that_is_rung_for_each(beat):
    first, _ = opened(beat)
    assert rang(beat)
    os.eventfd_read(beat._bell)
    second, _ = opened(beat)
    assert rang(beat)
    assert [thread.state for thread in threads] == ["alive"]
    assert first.fileno() != second.fileno()
    assert not os.get_inheritable(first.fileno())
    assert not os.get_blocking(first.fileno())
    assert beat._budget.share == pytest.approx(2 * budget.SHARE)
    assert beat._glances == rooms


def test_a_thread_that_cannot_be_started_is_an_error_and_leaves_nothing_open(beat):
    """The next one may be started."""
    before = descriptors()
    refused.append(True)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        opened(beat)
    assert caught.value.errno == errno.EAGAIN
    assert (descriptors(), rooms[0].closed, beat._glances) == (before, 1, [])
    refused.clear()
    opened(beat)
    assert threads[-1].state == "alive"


def test_a_namespace_without_counters_or_descriptors_is_an_error_and_leaves_nothing_open(beat, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pulse, "Glance", refuse)
    before = descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        opened(beat)
    assert (descriptors(), beat._glances, threads) == (before, [], [])


def test_where_looks_failed_before_there_are_none_again(beat):
    opened(beat)
    threads[0].state = "ended"
    with pytest.raises(OSError, match="looks failed before") as caught:
        opened(beat)
    assert caught.value.errno == errno.EIO
    assert [room.closed for room in rooms] == [0, 1]
    assert beat._glances == [rooms[0]]
    assert len(threads) == 1


# -- ending


def test_what_nobody_wants_any_more_is_closed_by_the_thread(beat):
    """It may be using it at the time. What comes for it meanwhile is not kept."""
    channel, room = opened(beat)
    _, other = opened(beat)
    os.eventfd_read(beat._bell)
    before = descriptors()
    channel.close()
    channel.close()
    assert descriptors() == before - 1
    room.report(PulseReport())
    assert (room.closed, room.unread, beat._glances) == (0, 0, [other])
    assert rang(beat)
    assert beat._budget.share == pytest.approx(budget.SHARE)
    beat._ended = False
    beat.most = 2
    beat._look_and_rest()
    assert (room.closed, other.closed) == (1, 0)


def test_a_pulse_that_is_closed_ends_its_thread_and_closes_all(beat):
    _, room = opened(beat)
    before = descriptors()
    beat.close()
    assert (threads[0].state, room.closed, beat.waits) == ("ended", 1, [])
    assert descriptors() == before - 1
    beat.close()


def test_while_the_thread_does_not_end_its_bell_stays(beat):
    opened(beat)
    os.eventfd_read(beat._bell)
    threads[0].stuck = True
    beat.close()
    assert beat._ended
    assert rang(beat)
    threads[0].stuck = False


def test_a_pulse_without_a_thread_is_closed_as_well(beat):
    beat.close()
    assert beat._bell == -1


# -- the thread


def test_the_thread_says_when_it_knows_what_was_there_before_and_then_reports_what_is_new(beat, monkeypatch):
    monkeypatch.setattr(beat, "_report_of", lambda glance, new: (PulseReport(tuple(new)), set()))
    channel, room = opened(beat)
    row = (6, FakeSocket(1).message())
    room.new = [row]
    beat.most = 3
    threads[0].run()
    assert read(channel) == [PulseReport(), PulseReport((row,))]
    assert (room.looks, room.closed) == (1, 1)
    assert [watched for watched, _ in beat.waits] == [(0,)] * 3


@pytest.mark.parametrize(
    ("failure", "number"), [(OSError(errno.EPERM, "no"), errno.EPERM), (ValueError("x"), errno.EIO)]
)
def test_a_namespace_whose_sockets_cannot_be_listed_has_no_pulse_and_others_have(beat, failure, number):
    (channel, room), (other, second) = opened(beat), opened(beat)
    room.failure = failure
    threads[0].run()
    with pytest.raises(OSError) as caught:
        read(channel)
    assert caught.value.errno == number
    assert read(other) == [PulseReport()]
    assert [watched for watched, _ in beat.waits] == [(1,)]
    assert second.begun


@pytest.mark.parametrize(
    ("failure", "number"), [(OSError(errno.EPERM, "no"), errno.EPERM), (ValueError("x"), errno.EIO)]
)
def test_looks_that_fail_ten_times_in_a_row_are_given_up_and_it_is_said(beat, failure, number):
    """Between them it rests."""
    channel, room = opened(beat)
    beat._begin(room)
    read(channel)
    room.failure, room.new = failure, [(6, b"")]
    beat.most = 100
    threads[0].run()
    assert room.looks == pulse.MOST_FAILURES
    rests = [pause for watched, pause in beat.waits if watched == ()]
    assert rests == [pulse.USUAL_PAUSE] * (pulse.MOST_FAILURES - 1)
    with pytest.raises(OSError) as caught:
        read(channel)
    assert caught.value.errno == number
    assert room.closed == 1


def test_one_that_succeeds_between_them_makes_them_begin_anew(beat, monkeypatch):
    _, room = opened(beat)
    outcomes = iter([*[ValueError()] * (pulse.MOST_FAILURES - 1), None] * 3)

    def look(_now, *, whole):
        failure = next(outcomes, None)
        if failure:
            raise failure
        return []

    room.look, room.new, beat.most = look, [(6, b"")], 6 * pulse.MOST_FAILURES
    threads[0].run()
    assert next(outcomes, "over") == "over"


def test_what_a_pulse_finds_is_where_others_look_first_and_parents_are_asked_for(monkeypatch):
    """One without a parent, or that is gone, has 0 for it."""
    asked = []
    monkeypatch.setattr(pulse, "eldest", lambda places, parent_of: asked.append(parent_of) or places)
    recent: dict[int, None] = {}
    found = pulse.Pulse(recent, ProcessReader())._answer([(77, os.getpid(), os.getpid(), 3)], set())
    assert found.owners == ((77, os.getpid()),)
    assert list(recent) == [os.getpid()]
    assert [asked[0](pid) for pid in (os.getpid(), 1, 1 << 30)] == [os.getppid(), 0, 0]


def test_what_the_thread_does_is_paid(beat, monkeypatch):
    cpu = iter(range(1000))
    monkeypatch.setattr(
        pulse, "time", types.SimpleNamespace(monotonic=time.monotonic, thread_time=lambda: next(cpu) / 1000)
    )
    opened(beat)
    paid = []
    monkeypatch.setattr(beat, "_pay", paid.append)
    beat.most = 2
    threads[0].run()
    assert len(paid) == 2
    assert all(0.001 <= seconds < 0.02 for seconds in paid)


# -- the channel


def test_reports_are_read_in_their_order_and_so_many_at_a_time(beat):
    """The descriptor is readable until nothing is left."""
    channel, room = opened(beat)
    reports = [PulseReport(((6, bytes([number]) * 100),)) for number in range(3)]
    assert not readable(channel)
    for report in reports:
        room.report(report)
    assert (room.unread, readable(channel)) == (3, True)
    batch = [b"before"]
    assert channel.read_into(batch, 2) is True
    assert (batch[1:], room.unread) == ([report.encode() for report in reports[:2]], 1)
    assert read(channel) == reports[2:]
    batch.clear()
    assert readable(channel)
    assert channel.read_into(batch, 2) is False
    assert (batch, room.unread, readable(channel)) == ([], 0, False)
    assert channel.read_into(batch, 2) is False


def test_what_the_reader_does_until_it_comes_again_is_charged(beat, monkeypatch):
    channel, room = opened(beat)
    cpu = [10.0]
    monkeypatch.setattr(pulse, "time", types.SimpleNamespace(monotonic=time.monotonic, thread_time=lambda: cpu[0]))
    room.report(PulseReport())
    read(channel)
    assert not beat._charged
    cpu[0] += 2**-12
    read(channel)
    cpu[0] += 2**-12
    read(channel)
    assert list(beat._charged) == [(room, 2**-12)]


def test_nothing_can_be_sent_to_a_pulse(beat):
    channel, _ = opened(beat)
    with pytest.raises(OSError) as caught:
        channel.send(b"x")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert (channel.immediate, channel.receive_buffer) == (False, None)
