"""What a feed has read and delivered when it says that everything is settled."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from pump_parts import LIMIT, NoteBook, Plate, Pumping, Wires

from nstat_async import PollCompleted
from nstat_async._contract import OpenChannel, Settles
from nstat_async._io import pump
from nstat_async._io.pump import KernelFeed
from nstat_async._options import MonitorOptions

pytestmark = pytest.mark.anyio


class HoldingBack(NoteBook):
    """A core that says until when all that it read of is an event."""

    def __init__(self):
        super().__init__()
        self.complete_until = float("-inf")
        self.asked = []

    def settled(self, until):
        self.asked.append(until)
        return until <= self.complete_until


class Holding(Pumping):
    def __init__(self):
        self.core, self.wires, self.plate = HoldingBack(), Wires(), Plate()
        self.feed = KernelFeed(self.core, self.wires, options=MonitorOptions())


@pytest.fixture
async def holding(monkeypatch):
    monkeypatch.setattr(pump, "SETTLED_SECONDS", LIMIT)
    monkeypatch.setattr(pump, "REPORTING_SECONDS", 0.0)
    return Holding()


def numbers(count):
    return [b"%d" % number for number in range(count)]


def heard(it, channel=0):
    return [each[1] for each in it.core.heard if each[0] == "datagram" and each[2] == channel]


async def run(it, then):
    """Run the pump, and this once it waits."""
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            await anyio.wait_all_tasks_blocked()
            await then()
            it.feed.close()


async def test_all_that_each_channel_had_is_delivered_in_however_many_turns(it, monkeypatch):
    monkeypatch.setattr(pump, "SETTLED_SECONDS", LIMIT)
    it.core.next = [OpenChannel(0, 0), OpenChannel(1, 1)]
    it.core.on_datagram = lambda data, channel: it.core.events.append(PollCompleted(float(data), channel, True))

    async def ask():
        monkeypatch.setattr(pump, "SLICE", 0.0)  # a batch in each turn
        for channel in (0, 1):
            for data in numbers(30):
                it.wires.far[channel].send(data)
        it.feed.request_poll()
        await it.feed.settled(ends=False)
        assert heard(it, 0) == heard(it, 1) == numbers(30)
        assert [event.time for event in it.plate.events if event.flows == 1] == list(map(float, range(30)))

    await run(it, ask)


@pytest.mark.parametrize("ends", [True, False])
async def test_more_than_a_channel_can_hold_is_not_waited_for(holding, ends, monkeypatch):
    """Of what comes all the time as much is read as its buffer has room for: that was there before."""
    it, left = holding, [20_000]
    it.core.complete_until = float("inf")

    def send(*_heard):
        if left[0]:
            left[0] -= 1
            it.wires.far[0].send(bytes(100))

    async def ask():
        monkeypatch.setattr(pump, "SLICE", 0.0)
        it.core.on_datagram = send
        for _ in range(50):
            send()
        it.feed.request_poll()
        await it.feed.settled(ends=ends)
        assert len(heard(it)) >= 41, "4096 bytes"
        assert left[0]

    await run(it, ask)


async def test_what_is_known_to_be_read_costs_no_turn(it):
    async def ask():
        it.feed.request_poll()
        await anyio.wait_all_tasks_blocked()
        turns = it.feed.statistics()
        await it.feed.settled(ends=False)
        await it.feed.settled(ends=True)  # this core holds nothing back
        await anyio.wait_all_tasks_blocked()
        assert it.feed.statistics() == turns

    await run(it, ask)


async def test_what_a_core_holds_back_of_what_was_read_is_waited_for(holding):
    it = holding
    steps = []

    async def ask():
        async def settle():
            await it.feed.settled(ends=True)
            steps.append("settled")

        it.wires.far[0].send(b"an end")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle)
            await anyio.wait_all_tasks_blocked()
            while not it.core.asked:  # it sleeps first
                await anyio.sleep(0)
            assert heard(it) == [b"an end"]
            it.feed.wake()
            await anyio.wait_all_tasks_blocked()
            assert not steps
            (read,) = set(it.core.asked)
            it.core.complete_until = read
            it.feed.wake()
        assert steps

    await run(it, ask)
    assert isinstance(it.feed, Settles)


async def test_a_kernel_that_reports_ends_late_is_given_some_time_for_it_where_ends_are_waited_for(
    holding, monkeypatch
):
    it, slept = holding, []
    it.core.complete_until = float("inf")

    async def sleep(seconds):
        slept.append(seconds)
        it.wires.far[0].send(b"an end")
        await anyio.lowlevel.checkpoint()

    async def ask():
        monkeypatch.setattr(pump.anyio, "sleep", sleep)
        await it.feed.settled(ends=False)
        assert not slept
        await it.feed.settled(ends=True)
        assert slept == [pump.REPORTING_SECONDS]
        assert heard(it) == [b"an end"]
        monkeypatch.undo()

    await run(it, ask)


async def test_it_is_not_asked_what_is_held_back_unless_ends_are_waited_for(holding):
    async def ask():
        holding.wires.far[0].send(b"an end")
        holding.feed.request_poll()
        await holding.feed.settled(ends=False)
        assert heard(holding) == [b"an end"]
        assert not holding.core.asked

    await run(holding, ask)


@pytest.mark.parametrize("how", ["time", "close", "cancel", "closed before"])
async def test_a_core_that_never_tells_holds_up_nobody_for_ever(holding, how, monkeypatch):
    it = holding
    if how == "time":
        monkeypatch.setattr(pump, "SETTLED_SECONDS", 0.01)

    async def ask():
        if how == "closed before":
            it.feed.close()
        async with anyio.create_task_group() as tasks:

            async def settle():
                await it.feed.settled(ends=True)

            tasks.start_soon(settle)
            while how in {"close", "cancel"} and not it.core.asked:
                await anyio.sleep(0)
            if how == "close":
                it.feed.close()
            elif how == "cancel":
                tasks.cancel_scope.cancel()
        assert it.feed._settling == []

    await run(it, ask)


async def test_a_channel_that_ends_meanwhile_is_not_waited_for(it, monkeypatch):
    monkeypatch.setattr(pump, "SETTLED_SECONDS", LIMIT)
    it.core.next = [OpenChannel(0, 0), OpenChannel(1, 1)]

    async def ask():
        it.wires.far[0].close()
        it.feed.request_poll()
        await it.feed.settled(ends=False)
        assert ("closed", 0) in it.core.heard

    await run(it, ask)
