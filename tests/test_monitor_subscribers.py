"""Several readers of one `Monitor`: each has a buffer, a policy, filters and an end of its own."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import attrs
import pytest
from scripted import POLLED, Script, added, flow, on_both_loops, updated, watching

from nstat_async import (
    Counts,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    LossCause,
    Monitor,
    MonitorClosedError,
    Overflow,
    RemovalReason,
    filters,
)
from nstat_async._buffer import EventBuffer
from nstat_async._subscription import Distributor, Subscription


@on_both_loops
async def test_each_subscriber_has_a_buffer_and_a_policy_of_its_own():
    async with watching(max_pending=3) as (script, monitor):
        merged, everything = monitor.subscribe(), monitor.subscribe(overflow=Overflow.ALL)
        script.deliver(added(1, 1), *[updated(1, n + 1, n) for n in range(1, 50)])
        assert [e.counts.rx_bytes for e in merged.receive_nowait()] == [1, 50]
        assert len(everything.receive_nowait()) == 50
        for number in range(2, 40):
            script.deliver(
                added(number, 10), FlowRemoved(1.0, flow(number), Counts(rx_bytes=10), True, RemovalReason.CLOSED)
            )
        events = await merged.receive_many()
        (lost,) = [e for e in events if isinstance(e, EventsLost)]
        assert lost.cause is LossCause.OVERFLOW
        told = sum(e.counts.rx_bytes for e in events if isinstance(e, FlowRemoved))
        assert told + lost.counts.rx_bytes == 380
        assert merged.receive_nowait() == []
        assert merged.statistics().given_up == lost.count
        assert len(monitor.statistics().buffers) == 2


@on_both_loops
async def test_the_blocking_policy_holds_the_feed_until_there_is_room():
    class Eager(Script):
        sent = 0

        async def run(self, sink) -> None:
            for number in range(100):
                sink.deliver([added(number)])
                self.sent += 1
                await sink.room()

    script = Eager(can_wait=True)
    async with Monitor(backend=script, max_pending=4) as monitor:
        await anyio.wait_all_tasks_blocked()
        assert script.sent == 4
        seen = 0
        async for _ in monitor:
            seen += 1
            assert script.sent - seen <= 4
        assert seen == 100
    held = Eager(can_wait=True)
    async with Monitor(backend=held, max_pending=4) as monitor:
        await anyio.wait_all_tasks_blocked()
        await monitor.aclose()  # closing frees a feed that waits for room


@on_both_loops
async def test_who_subscribes_late_gets_the_flows_of_that_moment_first():
    async with watching() as (script, monitor):
        script.deliver(added(1))
        first = monitor.subscribe()  # takes over what waits, since nobody read it
        assert first.receive_nowait() == [added(1)]
        script.known = [(flow(1), Counts(rx_bytes=7)), (flow(2, state=None), None)]
        async with monitor.subscribe() as late:
            script.deliver(updated(1, 9, 7))
            known, unknown, news = late.receive_nowait()
            assert (known.flow.id, known.counts.rx_bytes, known.preexisting) == ("1", 7, True)
            assert (unknown.flow.id, unknown.counts, unknown.preexisting) == ("2", None, True)
            assert news == updated(1, 9, 7)
        script.deliver(POLLED)
        with pytest.raises(MonitorClosedError):
            late.receive_nowait()
        assert first.receive_nowait()[-1] == POLLED
        late.close()
        assert [event async for event in late] == []
        assert [(await monitor.__anext__()).flow.id for _ in range(2)] == ["1", "2"]  # a place of its own again
        script.deliver(added(3))
        assert await monitor.__anext__() == added(3)


@on_both_loops
async def test_who_takes_over_what_waits_knows_which_hidden_flows_are_older_than_the_monitor():
    """And which were seen before: what they had carried until they match is nobody's new traffic."""
    wanted = {"1"}
    async with watching(flow_filter=lambda each: each.id in wanted) as (script, monitor):
        script.deliver(added(1), attrs.evolve(added(2, 500), preexisting=True), added(3, 30))
        wanted.clear()
        script.deliver(updated(1, 10, 0))
        reader = monitor.subscribe(filters.by_provider("tcp"))
        wanted |= {"1", "2", "3"}
        script.deliver(updated(1, 11, 10), updated(2, 501, 500), updated(3, 31, 30))
        again = [event for event in reader.receive_nowait() if isinstance(event, FlowAdded)]
        assert [(event.flow.id, event.preexisting) for event in again] == [("1", True), ("2", True), ("3", False)]


@on_both_loops
async def test_who_iterates_the_monitor_keeps_that_place_when_others_subscribe():
    async with watching() as (script, monitor):
        script.deliver(added(1), added(2))
        assert await monitor.__anext__() == added(1)
        script.known = [(flow(1), None)]
        late = monitor.subscribe()
        assert await monitor.__anext__() == added(2)
        assert [event.flow.id for event in late.receive_nowait()] == ["1"]


@on_both_loops
async def test_what_was_there_before_is_added_at_the_time_of_the_stream_or_before_its_first_event_of_the_wall():
    async with watching() as (script, monitor):
        script.known = [(flow(1), None)]
        monitor.subscribe()  # takes over the monitor's own place, in which nothing waits
        before = time.time()
        assert before <= monitor.subscribe().receive_nowait()[0].time <= time.time()
        script.deliver(added(5))
        assert monitor.subscribe().receive_nowait()[0].time == 5.0


@on_both_loops
async def test_filters_of_the_monitor_and_of_a_subscriber_both_apply():
    async with watching(flow_filter=lambda f: f.id != "3") as (script, monitor):
        script.known = [(flow(n), None) for n in (1, 2, 3)]
        assert [f.id for f, _ in monitor.flows] == ["1", "2"]
        some = monitor.subscribe(filters.matching(lambda f: f.id in {"2", "3"}))
        everyone = monitor.subscribe()
        assert [e.flow.id for e in everyone.receive_nowait()] == ["1", "2"]
        script.deliver(added(2), added(3), added(4), POLLED)
        assert [e.flow.id for e in some.receive_nowait()[:-1]] == ["2"]


@on_both_loops
@pytest.mark.parametrize("free", ["end", "close", "reader", "read", "many", "at once"])
async def test_whoever_waits_for_room_goes_on_when_there_is_some_or_nothing_will_be_read_any_more(free):
    sink, went_on = Distributor(), []
    reader = Subscription(sink, EventBuffer(1, Overflow.BLOCK), None)

    async def wait_for_room() -> None:
        await sink.room()
        went_on.append(True)

    sink.deliver([added(1)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_for_room)
        tasks.start_soon(wait_for_room)
        await anyio.wait_all_tasks_blocked()
        assert not went_on
        if free == "end":
            sink.end(None)
        elif free == "close":
            sink.close()
        elif free == "reader":
            reader.close()
        elif free == "many":
            assert await reader.receive_many() == [added(1)]
        elif free == "at once":
            assert reader.receive_nowait() == [added(1)]
        else:
            assert await reader.__anext__() == added(1)
    assert went_on == [True, True]


@on_both_loops
@pytest.mark.parametrize("read", [0, 1])
async def test_who_closes_a_subscription_gets_nothing_more_of_what_waited(read):
    sink = Distributor()
    reader = Subscription(sink, EventBuffer(9, Overflow.ALL), None)
    sink.deliver([added(1), added(2), added(3)])
    for number in range(read):
        assert await reader.__anext__() == added(number + 1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await reader.aclose()  # closes before it gives others a turn, and so hears of the cancellation
    assert scope.cancelled_caught
    assert [event async for event in reader] == []
    assert await reader.receive_many() == []


@on_both_loops
async def test_a_reader_that_waits_sees_that_another_task_closes_its_subscription():
    reader, seen = Subscription(Distributor(), EventBuffer(9, Overflow.ALL), None), []

    async def read() -> None:
        seen.append([event async for event in reader])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        reader.close()
    assert seen == [[]]
