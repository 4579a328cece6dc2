"""A table beside a monitor: handed out in time, ended cleanly, on asyncio and trio."""

from __future__ import annotations

import anyio
import attrs
import pytest
from aggregate_events import FakeMonitor, added, counts, flow, polled, until, updated

from nstat_async._checks import LONGEST_SECONDS
from nstat_async._errors import NstatError, UsageError
from nstat_async.aggregate import GroupBy, TableStream, TrafficTable, _consumer, by_process

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@BACKENDS
def test_a_table_is_handed_out_each_interval_and_once_more_at_the_end(backend):
    async def main():
        monitor = FakeMonitor()
        async with by_process(monitor, every=0.02) as tables:
            monitor.deliver(added(flow("a"), 1, counts(100)))
            table = await anext(tables)
            assert table.total().rx_bytes == 100
            monitor.deliver(updated(flow("a"), 2, counts(250)))
            assert await anext(tables) is table
            assert table.total().rx_bytes == 250
            monitor.deliver(updated(flow("a"), 3, counts(300)))
            monitor.end()
            assert [each.total().rx_bytes async for each in tables] == [300]
            assert monitor.subscriptions == []
        with pytest.raises(StopAsyncIteration):
            await anext(tables)

    anyio.run(main, backend=backend)


@BACKENDS
def test_looks_come_in_time_however_busy_the_monitor_is(backend):
    """Events that never stop do not put a look off."""

    async def main():
        monitor = FakeMonitor()
        stopped = False

        async def busy():
            time = 0.0
            while not stopped:
                time += 0.001
                monitor.deliver(polled(time))
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks, by_process(monitor, every=0.01) as tables:
            tasks.start_soon(busy)
            with anyio.fail_after(120):
                for _ in range(5):
                    await anext(tables)
            stopped = True

    anyio.run(main, backend=backend)


def of_a_fleet():
    monitor = FakeMonitor()
    monitor.capabilities = attrs.evolve(monitor.capabilities, backend="fleet")
    return monitor


@BACKENDS
def test_the_past_of_a_fleet_has_its_own_rates_however_fast_it_is_read(backend):
    async def main():
        monitor = of_a_fleet()
        async with by_process(monitor, every=0.01) as tables:
            monitor.deliver(added(flow("a"), 1000, counts(0)))
            for step in range(1, 5):
                await anext(tables)
                monitor.deliver(updated(flow("a"), 1000 + 10 * step, counts(1000 * step)))
            (row,) = (await anext(tables)).rows()
        assert (row.rx_bytes, row.rx_rate) == (4000, 100.0)

    anyio.run(main, backend=backend)


@BACKENDS
def test_events_come_in_now_as_soon_as_they_are_of_this_moment(backend, monkeypatch):
    """Also if some are late afterwards: a machine that was cut off sends its past, too."""
    monkeypatch.setattr(_consumer, "wall_time", lambda: 2000.0)
    late, present = [polled(1994)], [polled(1994), polled(1996)]

    async def main():
        arrivals = _consumer.Arrivals(of_a_fleet())
        assert [arrivals.of(late), arrivals.of([])] == [None, None]
        before = anyio.current_time()
        assert all(arrivals.of(events) >= before for events in (present, late, []))
        assert _consumer.Arrivals(FakeMonitor()).of(late) >= before

    anyio.run(main, backend=backend)


@BACKENDS
def test_a_recording_gives_tables_of_its_own_time(backend):
    """On the events' clock each table has exactly the events before its moment, however fast they came."""

    async def main():
        monitor = FakeMonitor()
        tables = by_process(monitor, every=2.0, clock="events")
        async with tables:
            a = flow("a")
            monitor.deliver(added(a, 100, counts(0)), *(updated(a, 100 + n, counts(n)) for n in range(1, 9)))
            monitor.deliver(updated(a, 200, counts(1000)))
            monitor.end()
            seen = [(table.time, table.total().rx_bytes) async for table in tables]
        assert seen == [(101, 1), (103, 3), (105, 5), (107, 7), (108, 8), (200, 1000)]

    anyio.run(main, backend=backend)


@BACKENDS
def test_a_recorded_clock_that_was_set_back_does_not_end_the_tables(backend):
    async def main():
        monitor = FakeMonitor()
        async with by_process(monitor, every=2.0, clock="events") as tables:
            a = flow("a")
            times = (1e9, 1e9 + 2, 2e9, 1e9 + 4, 1e9 + 5, 1e9 + 6, 1e9 - 28_800, 1e9 - 28_798)
            monitor.deliver(added(a, times[0], counts(0)), *(updated(a, t, counts(n)) for n, t in enumerate(times)))
            monitor.end()
            seen = [table.total().rx_bytes async for table in tables]
        assert seen == [0, 1, 4, 6, 7]

    anyio.run(main, backend=backend)


@BACKENDS
@pytest.mark.parametrize("every", [2.0, LONGEST_SECONDS])
@pytest.mark.parametrize("odd", [1e300, -1e300, 1e17, float("inf"), float("-inf"), float("nan")])
def test_an_impossible_time_in_a_recording_takes_one_look_at_most(backend, every, odd):
    async def main():
        monitor = FakeMonitor()
        async with by_process(monitor, every=every, clock="events") as tables:
            a = flow("a")
            monitor.deliver(
                added(a, odd, counts(0)), *(updated(a, t, counts(n)) for n, t in enumerate((1e9, odd, 1e9)))
            )
            monitor.deliver(*(updated(a, 1e9 + n * every, counts(n)) for n in range(4)))
            monitor.end()
            seen = 0
            async for _ in tables:
                seen += 1
                assert seen < 10
        assert tables.table.total().rx_bytes == 3

    anyio.run(main, backend=backend)


@BACKENDS
def test_a_monitor_that_fails_tells_the_consumer(backend):
    async def main():
        monitor = FakeMonitor()
        tables = TableStream(monitor, TrafficTable(GroupBy.provider()), every=60)
        async with tables:
            monitor.end(NstatError("broken"))
            with pytest.raises(NstatError, match="broken"):
                await anext(tables)
            assert monitor.subscriptions == []

    anyio.run(main, backend=backend)


@BACKENDS
def test_a_cancelled_wait_loses_no_event(backend):
    async def main():
        monitor = FakeMonitor()
        tables = by_process(monitor, every=60)
        with anyio.move_on_after(0.01):
            await anext(tables)
        monitor.deliver(added(flow("a"), 1, counts(5)))
        monitor.end()
        assert (await anext(tables)).total().rx_bytes == 5
        await tables.aclose()
        await tables.aclose()

    anyio.run(main, backend=backend)


@BACKENDS
def test_several_tables_of_one_monitor_do_not_disturb_each_other(backend):
    async def main():
        monitor = FakeMonitor()
        totals = {}

        async def consume(name, every):
            async for table in by_process(monitor, every=every):
                totals[name] = table.total().rx_bytes

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, "quick", 0.001)
            tasks.start_soon(consume, "slow", 30)
            await until(lambda: len(monitor.subscriptions) == 2)
            monitor.deliver(added(flow("a"), 1, counts(5)))
            await until(lambda: totals.get("quick") == 5)
            assert "slow" not in totals
            monitor.end()
        assert totals == {"quick": 5, "slow": 5}

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("options", [{"every": 0}, {"clock": "moon"}])
def test_arguments_out_of_range_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        by_process(FakeMonitor(), **options)
