"""How a run begins and ends, whoever ends it, and what the feed says of itself."""

from __future__ import annotations

import threading
import time

import anyio
import pytest
from pump_parts import LIMIT, Pumping

from nstat_async import Auxiliary, Monitor, PollCompleted, RequestError
from nstat_async._contract import Lookup, Send
from nstat_async._io import pump
from nstat_async.testing import EmulatedKernel

pytestmark = pytest.mark.anyio


async def test_a_feed_says_what_its_core_knows_and_its_figures_begin_at_zero(it, monkeypatch):
    monkeypatch.setattr(pump, "SLICE", LIMIT)  # a slice for each turn
    it.core.flows = lambda: [("a flow", None)]
    it.core.statistics = lambda: {"wakes": 7, "of the core": 1}
    assert it.feed.capabilities is it.core.capabilities
    assert list(it.feed.flows()) == [("a flow", None)]
    figures = {f"failed_{auxiliary.value}": 0 for auxiliary in Auxiliary}
    figures |= {"of the core": 1, "wakes": 0, "slices": 0, "longest_slice_us": 0}
    assert it.feed.statistics() == figures
    it.core.on_hearing = lambda *heard: time.sleep(0.002)
    it.core.deadline = 0.0
    take, taken = it.core.take_events, []
    it.core.take_events = lambda: taken.append(1) or take()
    await it.until("deadline")
    figures = it.feed.statistics()
    assert figures["slices"] == len(taken) - 2, "and what is left, when it is closed and at the end"
    assert 2_000 <= figures["longest_slice_us"] < LIMIT * 1e6


async def test_a_turn_in_which_the_core_became_subscribed_ends_the_waiting_for_it(it, monkeypatch):
    monkeypatch.setattr(pump, "SUBSCRIBE_SECONDS", 1e9)
    it.core.subscribed, told = False, []

    @it.hearing
    def hear(*heard):
        if heard[0] == "drained":
            it.core.deadline = 0.0
        if heard == ("deadline",):
            told.append(it.feed._subscribed.is_set())
            it.core.subscribed = True

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            await it.feed.subscribed()
            assert it.core.subscribed
            assert told == [False]
            tasks.cancel_scope.cancel()
    it.feed.close()


@pytest.mark.parametrize(
    ("turns", "answered", "silent"),
    [(1_000_000_000, True, False), (1_000_000_000, True, True), (15, False, False)],
    ids=["that takes long", "and not for what is behind it", "and not without end"],
)
async def test_opening_waits_longer_for_a_look_up(it, monkeypatch, turns, answered, silent):
    """It is work of our own, which an overloaded machine may delay."""
    monkeypatch.setattr(pump, "SUBSCRIBE_SECONDS", 0.0)
    monkeypatch.setattr(pump, "SUBSCRIBE_TURNS", turns)
    going_on = threading.Event()
    it.core.subscribed, it.core.next = False, [Lookup(1, "who")]
    it.wires.answer = lambda _request: going_on.wait(LIMIT)

    @it.hearing
    def hear(*heard):
        it.core.subscribed = heard[0] == "answer" and not silent

    async def answer():
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        going_on.set()

    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            await anyio.wait_all_tasks_blocked()
            if answered:
                tasks.start_soon(answer)
            await it.feed.subscribed()
            assert it.core.heard[-1] == (("answer", 1, True) if answered else ("start",))
            going_on.set()
            tasks.cancel_scope.cancel()
    it.feed.close()


async def test_a_feed_that_is_closed_before_it_ran_lets_nobody_wait_for_its_subscription(it, monkeypatch):
    monkeypatch.setattr(pump, "SUBSCRIBE_SECONDS", 1e9)
    it.feed.close()
    with anyio.fail_after(LIMIT):
        await it.feed.subscribed()


async def test_a_pump_that_waits_for_nothing_is_woken_by_a_request_for_a_poll_and_ends_when_it_is_closed(it):
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            await anyio.wait_all_tasks_blocked()
            waiting = it.feed.statistics()["wakes"]
            it.core.next = [Send(0, b"what a poll asks")]
            assert it.feed.request_poll() == 1
            await anyio.wait_all_tasks_blocked()
            assert it.wires.far[0].recv(100) == b"what a poll asks"
            assert it.feed.statistics()["wakes"] > waiting
            it.feed.close()  # and nobody cancels anything
    assert it.wires.closed >= 1


async def test_a_failed_core_ends_the_run_with_its_own_error_not_with_a_group(it):
    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            it.core.failure = RequestError("ADD_ALL_SRCS tcp", 1)
            it.core.events = [PollCompleted(0.0, 0, True)]

    with pytest.raises(RequestError):
        await it.feed.run(it.plate)
    assert len(it.plate.events) == 1, "what was known before the failure is delivered"
    assert it.wires.closed


async def test_what_was_known_before_the_answer_of_a_look_up_failed_the_core_is_delivered(it):
    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            it.core.next = [Lookup(1, "who")]
        elif heard[0] == "answer":
            it.core.events.append(PollCompleted(0.0, 0, True))
            it.core.failure = RequestError("ADD_ALL_SRCS tcp", 1)

    with anyio.fail_after(LIMIT), pytest.raises(RequestError):
        await it.feed.run(it.plate)
    assert len(it.plate.events) == 1


async def test_an_error_of_the_core_itself_comes_out_as_it_is(it):
    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await it.feed.run(it.plate)


async def test_what_was_read_was_fed_and_delivered_when_a_cancellation_comes(it):
    def take(data, channel):
        it.core.events.append(PollCompleted(float(len(it.core.heard)), 0, True))

    def hear(*heard):
        if heard[0] == "opened":
            for _ in range(5):
                it.wires.far[0].send(b"x")

    it.core.on_datagram, it.core.on_hearing = take, hear
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.feed.run, it.plate)
        with anyio.fail_after(LIMIT):
            while len(it.plate.events) < 5:
                await anyio.sleep(0)
        tasks.cancel_scope.cancel()
    assert len(it.plate.events) == [heard[0] for heard in it.core.heard].count("datagram") == 5
    assert it.wires.closed, "a cancelled pump releases its sockets"


def test_closing_twice_is_closing_once_and_closes_what_was_opened():
    it = Pumping()
    it.feed.close()
    it.feed.close()
    assert it.wires.closed >= 1


async def test_events_follow_the_wall_clock_when_it_is_set(monkeypatch):
    wall, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall() + ahead[0])
    async with Monitor(backend=EmulatedKernel().backend(), interval=None) as monitor:
        stream, times = monitor.subscribe(), []
        before = wall()
        for ahead[0] in (0.0, 1e6):
            await monitor.poll_now()
            times.append(stream.receive_nowait()[-1].time)
        assert before - 1 < times[0] < wall() + 1
    assert 0.9e6 < times[1] - times[0] < 1.1e6
