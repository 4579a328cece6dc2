"""How long a turn is and what it has: deadlines, slices, batches, and a sink without room."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from pump_parts import LIMIT, NoteBook

from nstat_async import PollCompleted
from nstat_async._contract import OpenChannel, Send
from nstat_async._io import pump
from nstat_async._io.channel import SocketChannel

pytestmark = pytest.mark.anyio


async def test_a_deadline_is_kept_and_a_request_from_outside_wakes(it):
    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and ("deadline",) not in it.core.heard:
            it.core.deadline = time.monotonic() + 0.02
        if heard == ("deadline",):
            it.feed.request_poll()

    await it.until("poll")
    assert it.core.heard[-2:] == [("deadline",), ("poll",)]


async def test_nobody_waits_longer_than_until_the_deadline(it, monkeypatch):
    delays, move_on = [], anyio.move_on_after

    def move_on_after(delay, **options):
        delays.append(delay)
        return move_on(delay, **options)

    it.core.deadline = time.monotonic() + 0.02
    monkeypatch.setattr(pump.anyio, "move_on_after", move_on_after)
    await it.until("deadline")
    assert not delays or max(delays) <= 0.02


async def test_what_came_before_a_deadline_is_heard_before_it(it, monkeypatch):
    """Also by a loop that was held until then, so that nobody said the channel is readable."""
    monkeypatch.setattr(pump, "SLICE", LIMIT)  # however slow the machine is, one slice is enough

    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and ("datagram", b"in time", 0) not in it.core.heard:
            it.wires.far[0].send(b"in time")
            it.core.deadline = 0.0

    await it.until("deadline")
    assert it.core.heard[-2:] == [("drained", 0), ("deadline",)]
    assert ("datagram", b"in time", 0) in it.core.heard


async def test_what_is_known_to_be_empty_is_read_once_more_at_a_deadline_and_not_reported_again(it):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.feed.run, it.plate)
        await anyio.wait_all_tasks_blocked()
        before = it.feed.statistics()
        it.core.deadline = 0.0
        it.feed.wake()
        await anyio.wait_all_tasks_blocked()
        assert it.core.heard == [("start",), ("opened", 0, True, 4096), ("drained", 0), ("deadline",)]
        after = it.feed.statistics()
        assert (after["slices"], after["wakes"]) == (before["slices"] + 1, before["wakes"] + 1)
        it.feed.close()


async def test_of_a_deadline_that_is_still_due_other_tasks_have_turns(it):
    """A core gives up what waits in slices: each is asked for at once, with a turn for the others between."""
    turns, deadlines = [], 30

    @it.hearing
    def hear(*heard):
        if heard[0] in {"opened", "deadline"} and it.core.heard.count(("deadline",)) < deadlines:
            it.core.deadline = 0.0

    async def other():
        while True:
            turns.append(it.core.heard.count(("deadline",)))
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            tasks.start_soon(it.feed.run, it.plate)
            while it.core.heard.count(("deadline",)) < deadlines:
                await anyio.lowlevel.checkpoint()
            it.feed.close()
            tasks.cancel_scope.cancel()
    assert len(set(turns)) > 2, "all deadlines in one turn"  # trio shuffles: two may come between
    assert it.feed.statistics()["slices"] >= deadlines


async def test_of_questions_that_follow_one_another_the_deadline_is_asked_for_behind_the_last(it, monkeypatch):
    """Each is one of thousands of things that a slice may have."""
    monkeypatch.setattr(pump, "SLICE", LIMIT)
    asked, questions = [], 5

    def next_deadline():
        asked.append(len(it.core.heard))

    def take_in(_data, _channel):
        if it.core.heard.count(("datagram", b"answer", 0)) < questions:
            it.wires.far[0].send(b"answer")
            it.core.next = [Send(0, b"question")]

    @it.hearing
    def hear(*heard):
        if heard == ("opened", 0, True, 4096):
            take_in(b"", 0)

    it.core.next_deadline, it.core.on_datagram = next_deadline, take_in
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.feed.run, it.plate)
        await anyio.wait_all_tasks_blocked()
        it.feed.close()
    assert it.core.heard.count(("datagram", b"answer", 0)) == questions
    assert len(asked) <= 2


@pytest.mark.parametrize("takes", [2, 0], ids=["long", "no time"])
async def test_what_is_due_and_its_events_wait_for_another_slice_where_this_one_is_over(it, monkeypatch, takes):
    """Reading, what a deadline asks for and its delivery may take a whole slice each: other tasks have turns between."""
    clock, steps = [100.0], []
    at = SimpleNamespace(perf_counter=lambda: clock[0], monotonic=time.monotonic, time=float)
    monkeypatch.setattr(pump, "time", at)

    def read_into(_, batch, number):
        steps.append("read")
        clock[0] += 2 * pump.SLICE
        return False

    @it.hearing
    def hear(*heard):
        if heard == ("opened", 0, True, 4096):
            it.core.deadline = 0.0
        if heard == ("deadline",):
            steps.append("deadline")
            clock[0] += takes * pump.SLICE
            it.core.events.append(PollCompleted(1.0, 0, complete=True))

    def deliver(_events):
        steps.append("delivery")
        it.feed.close()

    async def checkpoint():  # trio shuffles tasks: whether another one runs in between is not to be seen in a single turn
        steps.append("turn of others")
        await real_checkpoint()

    real_checkpoint = pump.checkpoint_here()
    monkeypatch.setattr(pump, "checkpoint_here", lambda: checkpoint)
    monkeypatch.setattr(SocketChannel, "read_into", read_into)
    it.plate.deliver = deliver
    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)
    deadline, delivery = map(steps.index, ("deadline", "delivery"))
    assert steps[deadline - 2 : deadline] == ["read", "turn of others"]
    assert steps[deadline + 1 : delivery] == ["turn of others"] * bool(takes)
    assert it.feed.statistics()["slices"] == steps.count("turn of others") + 1


async def test_a_kernel_that_never_stops_talking_leaves_other_tasks_their_turns_and_is_read_on(it, monkeypatch):
    it.core.on_datagram = lambda data, channel: it.wires.far[0].send(data)
    turns = 0

    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            monkeypatch.setattr(pump, "SLICE", 0.0)  # one batch in each
            for _ in range(pump.BATCH):
                it.wires.far[0].send(b"again and again")

    async def other():
        nonlocal turns
        while turns < 40:
            turns += 1
            await anyio.lowlevel.checkpoint()
        it.feed.close()

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await it.feed.run(it.plate)
    assert turns == 40
    assert len(it.core.heard) > 20


@pytest.mark.parametrize(("has_news", "reads"), [(True, [64, 1, 1, 1]), (False, [1, 32, 16, 16])])
async def test_a_slice_is_shared_among_channels(it, monkeypatch, has_news, reads):
    """The first ring may take all of it, another one half, channels equal parts of the rest; each has one batch at least."""
    clock, done = [100.0], [0, 0, 0, 0]
    monkeypatch.setattr(pump, "SLICE", 1.0)
    at = SimpleNamespace(perf_counter=lambda: clock[0], monotonic=float, time=float)
    monkeypatch.setattr(pump, "time", at)

    class Reader(SocketChannel):
        def read_into(self, batch, most):
            done[self.number] += 1
            if not self.number and not has_news:
                return False
            clock[0] += 1 / 64
            batch.append(b"and more")
            return True

    def connect(number):
        near, far = socket.socketpair()
        it.wires.far[number] = far
        channel = Reader(near, immediate=True, receive_buffer=None)
        channel.number, channel.rest = number, 1.0 if number < 2 else 0.0
        return channel

    async def room():
        await anyio.lowlevel.checkpoint()
        it.feed.close()

    it.wires.open, it.core.next = connect, [OpenChannel(number, number) for number in (2, 0, 3, 1)]
    it.plate.room = room
    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)
    assert done == reads
    assert it.feed.statistics()["longest_slice_us"] == int((clock[0] - 100.0) * 1e6)


async def run_a_slice(it, monkeypatch, read_into, take_in, *, answers_only):
    """Run the feed for one slice, with a channel that is read like this, and a core that takes what was read in like this."""

    async def room():
        await anyio.lowlevel.checkpoint()
        it.feed.close()

    def connect(_purpose):
        near, it.wires.far[0] = socket.socketpair()
        return SocketChannel(near, immediate=True, receive_buffer=None, answers_only=answers_only)

    it.wires.open = connect
    monkeypatch.setattr(SocketChannel, "read_into", read_into)
    it.core.on_datagram, it.plate.room = take_in, room
    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)


@pytest.mark.parametrize(
    ("answers_only", "taking", "batches"),
    [(True, 0, 8), (True, 7, 5), (True, 8, 3), (True, 16, 2), (False, 0, 4), (False, 7, 3)],
)
async def test_answers_in_which_the_core_finds_little_count_less_of_a_slice(
    it, monkeypatch, answers_only, taking, batches
):
    """Those that the core takes in twice as quickly as the kernel writes them. A slice is 64 ticks, a batch is read in 16."""
    clock, done = [0], []
    monkeypatch.setattr(pump, "SLICE", 64.0)
    monkeypatch.setattr(pump, "ANSWERING", 0.5)
    monkeypatch.setattr(pump, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=float, time=float))

    def read_into(_, batch, _most):
        clock[0] += 16
        batch.append(b"and more")
        return True

    def take_in(_data, _channel):
        clock[0] += taking
        done.append(clock[0])

    await run_a_slice(it, monkeypatch, read_into, take_in, answers_only=answers_only)
    assert len(done) == batches
    assert it.feed.statistics()["longest_slice_us"] == batches * (16 + taking) * 1_000_000, "measured whole"


@pytest.mark.parametrize(("answers_only", "questions", "at_once"), [(True, 8, 16), (False, 4, 1)])
async def test_so_many_more_questions_have_room_in_a_slice_and_more_answers_in_a_batch(
    it, monkeypatch, answers_only, questions, at_once
):
    """Where the kernel needs the time for its answers, and the core hardly any. A slice is 64 ticks, an answer takes 16."""
    clock, asked, numbers = [0], [], []
    monkeypatch.setattr(pump, "SLICE", 64.0)
    monkeypatch.setattr(pump, "ANSWERING", 0.5)
    monkeypatch.setattr(pump, "BATCH_SECONDS", 20.0)
    monkeypatch.setattr(pump, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=float, time=float))

    def read_into(_, batch, most):
        numbers.append(most)
        if not len(numbers) % 2:
            return False
        clock[0] += 16
        batch.append(b"an answer")
        return True

    def take_in(_data, _channel):
        asked.append(clock[0])
        it.core.next = [Send(0, b"a question")]

    await run_a_slice(it, monkeypatch, read_into, take_in, answers_only=answers_only)
    assert (len(asked), max(numbers)) == (questions, at_once)


@pytest.mark.parametrize(("size", "most"), [(100, pump.BATCH), (32_768, 8), (200_000, 1)])
async def test_of_large_datagrams_fewer_are_read_at_once(it, monkeypatch, size, most):
    """As many as fit into `BATCH_BYTES`: memory for more is taken from the system anew each time."""
    batches = []

    def read_into(_, batch, number):
        batches.append(number)
        batch += [bytes(size)] * number
        if len(batches) == 12:
            it.feed.close()
        return True

    monkeypatch.setattr(SocketChannel, "read_into", read_into)
    monkeypatch.setattr(pump, "BATCH_SECONDS", 100.0)
    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)
    assert max(batches) == batches[-1] == most


@pytest.mark.parametrize(
    ("spent", "size", "after"),
    [
        (0.0, 0, 8),
        (0.45 * pump.BATCH_SECONDS, 0, 8),
        (pump.BATCH_SECONDS / 2, 0, 4),
        (pump.BATCH_SECONDS, pump.BATCH_BYTES, 4),
        (0.0, pump.BATCH_BYTES // 2, 8),
        (0.0, pump.BATCH_BYTES // 2 + 1, 4),
        (0.0, pump.BATCH_BYTES + 1, 2),
        (2 * pump.BATCH_SECONDS, 0, 2),
    ],
)
async def test_how_many_datagrams_are_read_at_once_follows_from_what_the_last_ones_took(it, spent, size, after):
    near, far = socket.socketpair()
    with near, far:
        waiter = pump._Waiter(0, SocketChannel(near, immediate=True, receive_buffer=None), it.feed)
        assert waiter.batch == 1
        waiter.adapt(spent, pump.BATCH_BYTES + 1)
        assert waiter.batch == 1, "one at least"
        waiter.batch = 4
        waiter.adapt(spent, size)
        assert waiter.batch == after
        for _ in range(9):
            waiter.adapt(0.0, 0)
        assert waiter.batch == pump.BATCH


async def test_a_sink_without_room_stops_the_reading_until_it_has_some(it):
    it.plate.gate = anyio.Event()

    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and it.core.heard.count(heard) == 1:
            it.wires.far[0].send(b"wait for room")

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.until, "datagram", b"wait for room", 0)
            while not it.plate.room_asked:
                await anyio.sleep(0.001)
            await anyio.sleep(0.01)
            assert ("datagram", b"wait for room", 0) not in it.core.heard
            it.plate.gate.set()


async def test_who_always_has_work_waits_for_room_after_each_slice(it):
    class Busy(NoteBook):
        def next_deadline(self):
            return 0.0

    busy = it.feed.core = Busy()
    busy.events = [PollCompleted(0.0, 0, True)]
    busy.on_hearing = lambda *heard: it.feed.close() if len(busy.heard) > 50 else None
    it.plate.gate = anyio.Event()
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            while not it.plate.room_asked:
                await anyio.sleep(0.001)
            heard = len(busy.heard)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert len(busy.heard) == heard < 50
            it.feed.close()
            it.plate.gate.set()
