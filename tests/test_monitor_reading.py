"""Who reads a `Monitor`: events in order, none lost by a cancellation, one reader at a time."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from scripted import POLLED, Script, added, on_both_loops, run, watching

from nstat_async import ConcurrentReadError, Monitor, Overflow, RequestError
from nstat_async._buffer import EventBuffer
from nstat_async._subscription import Distributor, Subscription


@on_both_loops
async def test_events_arrive_in_order_and_the_end_of_the_feed_ends_the_iteration():
    async with watching() as (script, monitor):
        events = [added(1), added(2), POLLED]
        script.deliver(*events)
        script.stop.set()
        assert [event async for event in monitor] == events
        assert [event async for event in monitor] == []
        assert script.closed == 0
    assert script.closed == 1


@on_both_loops
async def test_a_second_reader_at_once_is_refused_by_name_and_the_first_goes_on():
    script = Script()
    async with Monitor(backend=script) as monitor, anyio.create_task_group() as tasks:
        got = []

        async def read() -> None:
            got.append(await monitor.__anext__())

        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ConcurrentReadError, match="another task is reading"):
            await monitor.__anext__()
        script.deliver(POLLED)
        await anyio.wait_all_tasks_blocked()
        assert got == [POLLED]


@on_both_loops
async def test_a_failure_comes_at_the_read_after_all_that_came_before_it():
    error = RequestError("subscription to tcp", 1)
    async with watching() as (script, monitor):
        script.deliver(added(1))
        script.fail(error)
        await anyio.wait_all_tasks_blocked()
        assert await monitor.__anext__() == added(1)
        for _ in range(2):
            with pytest.raises(RequestError) as caught:
                await monitor.__anext__()
            assert caught.value is error
        with pytest.raises(RequestError):
            await monitor.poll_now()
        late = monitor.subscribe()
        with pytest.raises(RequestError):
            late.receive_nowait()


@on_both_loops
async def test_a_cancelled_read_took_nothing():
    seen = []
    async with watching(overflow="all") as (script, monitor), anyio.create_task_group() as tasks:

        async def produce() -> None:
            for number in range(3_000):
                script.deliver(added(number))
                if number % 7 == 0:
                    await anyio.lowlevel.checkpoint()
            script.stop.set()

        tasks.start_soon(produce)
        ended = False
        while not ended:
            with anyio.CancelScope() as scope:

                async def cut(scope: anyio.CancelScope = scope) -> None:
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()

                tasks.start_soon(cut)
                try:
                    while True:
                        seen.append(await monitor.__anext__())
                except StopAsyncIteration:
                    ended = True
    assert [event.flow.id for event in seen] == [str(number) for number in range(3_000)]


@on_both_loops
async def test_a_busy_stream_leaves_other_tasks_their_turn():
    async with watching(overflow="all") as (script, monitor), anyio.create_task_group() as tasks:
        script.deliver(*[added(number) for number in range(10_000)])
        script.stop.set()
        turns = []

        async def other() -> None:
            while True:
                turns.append(None)
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(other)
        count = 0
        async for _ in monitor:
            count += 1
        tasks.cancel_scope.cancel()
    assert count == 10_000
    assert len(turns) >= 8


@on_both_loops
async def test_a_reader_that_is_cancelled_at_every_event_loses_none():
    """At the thousandth, too, where others get a turn: nothing is taken before that."""
    got = []
    async with watching(overflow="all") as (script, monitor):
        script.deliver(*(added(number) for number in range(2_500)))
        while len(got) < 2_500:
            with anyio.CancelScope() as scope:
                scope.cancel()
                got.append(await monitor.__anext__())
            if scope.cancelled_caught:
                got.append(await monitor.__anext__())
    assert [event.flow.id for event in got] == [str(number) for number in range(2_500)]


@on_both_loops
@pytest.mark.parametrize("cut", [False, True])
async def test_what_one_way_to_read_left_another_one_gets_also_after_a_cancellation(cut):
    async with watching() as (script, monitor):
        script.deliver(*(added(number) for number in range(3)))
        subscription = monitor.subscribe()
        assert await subscription.__anext__() == added(0)
        assert subscription.statistics().pending == 2
        assert subscription.statistics().delivered == 1
        if cut:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await subscription.receive_many()
            assert scope.cancelled_caught
        script.deliver(added(3))
        assert await subscription.receive_many() == [added(1), added(2), added(3)]
        script.deliver(added(4), added(5))
        assert await subscription.__anext__() == added(4)
        assert subscription.receive_nowait() == [added(5)]


def test_what_a_reader_is_about_to_take_no_other_task_gets():
    async def main() -> None:
        sink = Distributor()
        reader = Subscription(sink, EventBuffer(9, Overflow.ALL), None)
        sink.deliver([added(1)])
        first = reader.receive_many()
        first.send(None)  # it gives other tasks a turn now
        with pytest.raises(ConcurrentReadError):
            await reader.__anext__()
        with pytest.raises(StopIteration) as end:
            first.send(None)
        assert end.value.value == [added(1)]

    run("asyncio", main)


@on_both_loops
async def test_reading_at_once_is_refused_while_another_task_waits_for_an_event():
    async with watching() as (script, monitor), anyio.create_task_group() as tasks:
        subscription = monitor.subscribe()
        tasks.start_soon(subscription.receive_many)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(ConcurrentReadError):
            subscription.receive_nowait()
        script.deliver(added(1))
