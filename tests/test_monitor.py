"""`Monitor` between a feed and its readers, on asyncio and on trio."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from nstat_async import (
    BackendUnavailableError,
    Capabilities,
    ConcurrentReadError,
    Counts,
    Coverage,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    Monitor,
    MonitorClosedError,
    Overflow,
    PollCompleted,
    Provider,
    RemovalReason,
    RequestError,
    UsageError,
    backends,
    filters,
    snapshot,
)
from nstat_async._buffer import EventBuffer
from nstat_async._options import MonitorOptions
from nstat_async._subscription import Distributor, Subscription
from nstat_async.testing import EmulatedKernel

LOOPS = ["asyncio", "trio"]
GENEROUS = 120.0


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run a test on one of the loops; asyncio in debug mode."""

    async def guarded() -> None:
        with anyio.fail_after(GENEROUS):
            await main()

    anyio.run(guarded, backend=loop, backend_options={"debug": True} if loop == "asyncio" else {})


on_both_loops = pytest.mark.parametrize("loop", LOOPS)


class Script:
    """A backend and its feed: delivers what the test says."""

    name = "script"
    can_wait = False

    def __init__(self, *, can_wait: bool = False, refuse: Exception | None = None) -> None:
        self.can_wait = can_wait
        self._refuse = refuse
        self.closed = 0
        self.polls = 0
        self.known: list[tuple[Flow, Counts | None]] = []
        self.failure: Exception | None = None
        self.capabilities = Capabilities(backend="script", kernel=None)

    def open(self, options):
        if self._refuse is not None:
            raise self._refuse
        self.options = options
        self.running, self.stop = anyio.Event(), anyio.Event()
        return self

    async def run(self, sink) -> None:
        self.sink = sink
        self.running.set()
        await self.stop.wait()
        if self.failure is not None:
            raise self.failure

    def flows(self):
        return list(self.known)

    async def subscribed(self) -> None:
        await anyio.lowlevel.checkpoint()

    def request_poll(self) -> int:
        self.polls += 1
        return self.polls

    def close(self) -> None:
        self.closed += 1
        self.stop.set()

    def statistics(self):
        return {"polls": self.polls}

    def fail(self, error: Exception) -> None:
        self.failure = error
        self.stop.set()

    def deliver(self, *events) -> None:
        self.sink.deliver(list(events))


def flow(number: int = 1, **facts) -> Flow:
    return Flow(str(number), Provider.TCP, **facts)


def added(number: int, rx: int = 0, **facts) -> FlowAdded:
    return FlowAdded(float(number), flow(number, **facts), Counts(rx_bytes=rx), False)


def updated(number: int, rx: int, before: int) -> FlowUpdated:
    return FlowUpdated(float(rx), flow(number), Counts(rx_bytes=rx), Counts(rx_bytes=before))


POLLED = PollCompleted(0.0, 0, True, 1)


@on_both_loops
def test_events_arrive_in_order_and_the_end_of_the_feed_ends_the_iteration(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
            events = [added(1), added(2), POLLED]
            script.deliver(*events)
            script.stop.set()
            assert [event async for event in monitor] == events
            assert [event async for event in monitor] == []
            assert script.closed == 0
        assert script.closed == 1

    run(loop, main)


@on_both_loops
def test_closing_ends_a_reader_that_waits_and_may_be_done_again(loop):
    async def main() -> None:
        script = Script()
        seen = []
        async with Monitor(backend=script) as monitor, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def read() -> None:
                async for event in monitor:
                    seen.append(event)  # noqa: PERF401  # as users write it
                ended.set()

            tasks.start_soon(read)
            await script.running.wait()
            script.deliver(POLLED)
            await anyio.wait_all_tasks_blocked()
            await monitor.aclose()
            await ended.wait()
            await monitor.aclose()
            with pytest.raises(MonitorClosedError):
                monitor.subscribe()
            with pytest.raises(MonitorClosedError):
                await monitor.poll_now()
        await monitor.aclose()
        assert seen == [POLLED]
        assert script.closed == 1

    run(loop, main)


@on_both_loops
def test_a_second_reader_at_once_is_refused_by_name_and_the_first_goes_on(loop):
    async def main() -> None:
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

    run(loop, main)


@on_both_loops
def test_a_failure_comes_at_the_read_after_all_that_came_before_it(loop):
    async def main() -> None:
        script = Script()
        error = RequestError("subscription to tcp", 1)
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
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

    run(loop, main)


@on_both_loops
def test_a_failure_that_nobody_reads_leaves_the_block_alone(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script):
            script.fail(RequestError("x", 1))
            await anyio.wait_all_tasks_blocked()

    run(loop, main)


@on_both_loops
def test_a_block_s_own_error_and_a_cancellation_leave_it_as_they_are(loop):
    async def main() -> None:
        script = Script()
        with pytest.raises(LookupError):
            async with Monitor(backend=script):
                raise LookupError
        with anyio.move_on_after(0.02) as scope:
            async with Monitor(backend=Script()) as monitor:
                async for _ in monitor:
                    pass
        assert scope.cancelled_caught
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with Monitor(backend=Script()) as monitor:
                await anyio.sleep_forever()
        assert script.closed >= 1

    run(loop, main)


@on_both_loops
def test_a_cancelled_read_took_nothing(loop):
    async def main() -> None:
        script = Script()
        seen = []
        async with Monitor(backend=script, overflow="all") as monitor, anyio.create_task_group() as tasks:
            await script.running.wait()

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

    run(loop, main)


@on_both_loops
def test_a_busy_stream_leaves_other_tasks_their_turn(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script, overflow="all") as monitor, anyio.create_task_group() as tasks:
            await script.running.wait()
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

    run(loop, main)


@on_both_loops
def test_each_subscriber_has_a_buffer_and_a_policy_of_its_own(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script, max_pending=3) as monitor:
            await script.running.wait()
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

    run(loop, main)


@on_both_loops
def test_the_blocking_policy_holds_the_feed_until_there_is_room(loop):
    async def main() -> None:
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

    run(loop, main)


@on_both_loops
def test_who_subscribes_late_gets_the_flows_of_that_moment_first(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
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

    run(loop, main)


@on_both_loops
def test_who_iterates_the_monitor_keeps_that_place_when_others_subscribe(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
            script.deliver(added(1), added(2))
            assert await monitor.__anext__() == added(1)
            script.known = [(flow(1), None)]
            late = monitor.subscribe()
            assert await monitor.__anext__() == added(2)
            assert [event.flow.id for event in late.receive_nowait()] == ["1"]

    run(loop, main)


def test_what_was_there_before_is_added_at_the_time_of_the_stream_or_before_its_first_event_of_the_wall():
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
            script.known = [(flow(1), None)]
            monitor.subscribe()  # takes over the monitor's own place, in which nothing waits
            before = time.time()
            assert before <= monitor.subscribe().receive_nowait()[0].time <= time.time()
            script.deliver(added(5))
            assert monitor.subscribe().receive_nowait()[0].time == 5.0

    run("asyncio", main)


@on_both_loops
def test_filters_of_the_monitor_and_of_a_subscriber_both_apply(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script, flow_filter=lambda f: f.id != "3") as monitor:
            await script.running.wait()
            script.known = [(flow(n), None) for n in (1, 2, 3)]
            assert [f.id for f, _ in monitor.flows] == ["1", "2"]
            some = monitor.subscribe(filters.matching(lambda f: f.id in {"2", "3"}))
            everyone = monitor.subscribe()
            assert [e.flow.id for e in everyone.receive_nowait()] == ["1", "2"]
            script.deliver(added(2), added(3), added(4), POLLED)
            assert [e.flow.id for e in some.receive_nowait()[:-1]] == ["2"]

    run(loop, main)


@on_both_loops
def test_poll_now_returns_when_the_kernel_has_answered(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor, anyio.create_task_group() as tasks:
            await script.running.wait()
            done = []

            async def ask() -> None:
                await monitor.poll_now()
                done.append(True)

            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert (script.polls, done) == (1, [])
            script.deliver(POLLED)
            await anyio.wait_all_tasks_blocked()
            assert done == [True]
            with anyio.move_on_after(0.01) as scope:
                await monitor.poll_now()
            assert scope.cancelled_caught

            async def ask_in_vain() -> None:
                with pytest.raises(MonitorClosedError):
                    await monitor.poll_now()
                done.append(True)

            tasks.start_soon(ask_in_vain)
            await anyio.wait_all_tasks_blocked()
            await monitor.aclose()  # nobody waits for ever
            await anyio.wait_all_tasks_blocked()
            assert len(done) == 2

    run(loop, main)


def test_a_recording_is_not_polled():
    async def main() -> None:
        script = Script(can_wait=True)
        async with Monitor(backend=script) as monitor:
            await monitor.poll_now()
            script.fail(RequestError("a record", 5))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RequestError):
                await monitor.poll_now()
            assert script.polls == 0

    run("asyncio", main)


@on_both_loops
def test_what_was_never_opened_says_so_and_may_be_closed(loop):
    async def main() -> None:
        monitor = Monitor(backend=Script())
        assert repr(monitor) == "<Monitor script not open>"
        with pytest.raises(UsageError, match="not open: use it in an async with block"):
            await monitor.poll_now()
        for use in (monitor.__anext__, monitor.subscribe, lambda: monitor.flows, lambda: monitor.capabilities):
            with pytest.raises(UsageError, match="not open: use it in an async with block"):
                use()
        assert monitor.statistics().feed == {}
        assert monitor.statistics().buffers == ()
        await monitor.aclose()
        assert repr(monitor) == "<Monitor script closed>"
        with pytest.raises(MonitorClosedError, match="the monitor is closed"):
            monitor.subscribe()
        with pytest.raises(UsageError, match="started once"):
            await monitor.start()
        async with Monitor(backend=Script()) as monitor:
            assert repr(monitor) == "<Monitor script open>"
        assert repr(Monitor()) == "<Monitor auto not open>"

    run(loop, main)


def test_a_monitor_has_the_defaults_of_the_options():
    assert Monitor().options == MonitorOptions()


def test_figures_say_what_flows_explain_of_all_traffic_where_the_feed_knows_it():
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            assert monitor.statistics().coverage is None
            figures = {"rx_bytes": 1, "tx_bytes": 2, "flow_rx_bytes": 3, "flow_tx_bytes": 4}
            script.statistics = lambda: {f"coverage_{name}": value for name, value in figures.items()}
            assert monitor.statistics().coverage == Coverage(**figures)

    run("asyncio", main)


@on_both_loops
def test_what_cannot_be_opened_says_so_where_the_block_begins(loop):
    async def main() -> None:
        from nstat_async import UnavailableReason

        refusal = BackendUnavailableError("script", UnavailableReason.PERMISSION, "no")
        with pytest.raises(BackendUnavailableError):
            async with Monitor(backend=Script(refuse=refusal)):
                pass
        monitor = Monitor(backend=Script())
        for attempt in (lambda: monitor.flows, lambda: monitor.capabilities, monitor.subscribe):
            with pytest.raises(UsageError, match="not open"):
                attempt()
        assert repr(monitor) == "<Monitor script not open>"
        assert monitor.statistics().feed == {}
        async with monitor:
            assert monitor.capabilities.backend == "script"
            assert monitor.statistics().feed == {"polls": 0}
            with pytest.raises(UsageError, match="started once"):
                await monitor.__aenter__()
        with pytest.raises(UsageError, match="started once"):
            await monitor.__aenter__()

    run(loop, main)


@on_both_loops
def test_a_day_with_an_emulated_kernel_is_recorded_and_replayed_alike(loop, tmp_path):
    async def main() -> None:
        kernel = EmulatedKernel()
        one = kernel.open_tcp(pid=42, name="curl", remote=("192.0.2.9", 443))
        path = tmp_path / "day.nstat"
        lived = []
        async with Monitor(backend=kernel.backend(), record_to=path, interval=None) as monitor:
            stream = monitor.subscribe(overflow="all")
            while not any(isinstance(e, PollCompleted) for e in lived):
                lived += await stream.receive_many()
            one.transfer(rx=1500, tx=20)
            two = kernel.open_udp(pid=43, name="dig", remote=("192.0.2.53", 53))
            two.transfer(tx=40)
            two.close()
            await monitor.poll_now()
            one.close()
            await monitor.poll_now()
            lived += stream.receive_nowait()
            assert monitor.capabilities.final_counts
        async with Monitor(backend=backends.Replay(path)) as monitor:
            replayed = [event async for event in monitor]

        def story(events):
            return [
                (type(e), e.flow.process.name, e.counts.rx_bytes, e.counts.tx_bytes, getattr(e, "final", None))
                for e in events
                if isinstance(e, (FlowAdded, FlowUpdated, FlowRemoved))
            ]

        assert story(replayed) == story(lived)
        assert (FlowRemoved, "dig", 0, 40, True) in story(lived)
        assert (FlowRemoved, "curl", 1500, 20, True) in story(lived)

    run(loop, main)


@on_both_loops
def test_a_snapshot_is_the_flows_of_one_moment(loop):
    async def main() -> None:
        kernel = EmulatedKernel()
        kernel.open_tcp(pid=42, name="curl", remote=("192.0.2.9", 443)).transfer(rx=7)
        kernel.open_udp(pid=43, name="dig", remote=("192.0.2.53", 53))
        everything = await snapshot(backend=kernel.backend())
        assert sorted(f.process.name for f, _ in everything) == ["curl", "dig"]
        (only,) = await snapshot(backend=kernel.backend(), providers="tcp", flow_filter=filters.by_pid(42))
        assert only[1].rx_bytes == 7

    run(loop, main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_flow_that_ends_right_after_the_monitor_opened_is_told_to_the_last_byte(backend):
    async def run():
        kernel = EmulatedKernel()
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            flow = kernel.open_tcp(pid=42, name="curl", remote=("2001:db8::1", 443))
            flow.transfer(rx=1500)
            flow.close()
            with anyio.fail_after(120):
                async for event in monitor:
                    if isinstance(event, FlowRemoved):
                        return event
        raise AssertionError("the stream ended without it")

    event = anyio.run(run, backend=backend)
    assert event.final
    assert event.counts.rx_bytes == 1500


@on_both_loops
def test_a_reader_that_is_cancelled_at_every_event_loses_none(loop):
    """At the thousandth, too, where others get a turn: nothing is taken before that."""

    async def main() -> None:
        script, got = Script(), []
        async with Monitor(backend=script, overflow="all") as monitor:
            await script.running.wait()
            script.deliver(*(added(number) for number in range(2_500)))
            while len(got) < 2_500:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    got.append(await monitor.__anext__())
                if scope.cancelled_caught:
                    got.append(await monitor.__anext__())
        assert [event.flow.id for event in got] == [str(number) for number in range(2_500)]

    run(loop, main)


@on_both_loops
@pytest.mark.parametrize("cut", [False, True])
def test_what_one_way_to_read_left_another_one_gets_also_after_a_cancellation(loop, cut):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor:
            await script.running.wait()
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

    run(loop, main)


@on_both_loops
@pytest.mark.parametrize("free", ["end", "close", "reader", "read", "many", "at once"])
def test_whoever_waits_for_room_goes_on_when_there_is_some_or_nothing_will_be_read_any_more(loop, free):
    async def main() -> None:
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

    run(loop, main)


@on_both_loops
@pytest.mark.parametrize("read", [0, 1])
def test_who_closes_a_subscription_gets_nothing_more_of_what_waited(loop, read):
    async def main() -> None:
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

    run(loop, main)


@on_both_loops
def test_a_reader_that_waits_sees_that_another_task_closes_its_subscription(loop):
    async def main() -> None:
        reader, seen = Subscription(Distributor(), EventBuffer(9, Overflow.ALL), None), []

        async def read() -> None:
            seen.append([event async for event in reader])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            reader.close()
        assert seen == [[]]

    run(loop, main)


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
def test_a_feed_may_have_polled_before_it_says_which_poll_that_was(loop):
    async def main() -> None:
        class Quick(Script):
            def request_poll(self) -> int:
                serial = super().request_poll()
                self.deliver(PollCompleted(0.0, 0, True, serial))
                return serial

        async with Monitor(backend=Quick()) as monitor:
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                await monitor.poll_now()

    run(loop, main)


@on_both_loops
def test_reading_at_once_is_refused_while_another_task_waits_for_an_event(loop):
    async def main() -> None:
        script = Script()
        async with Monitor(backend=script) as monitor, anyio.create_task_group() as tasks:
            await script.running.wait()
            subscription = monitor.subscribe()
            tasks.start_soon(subscription.receive_many)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ConcurrentReadError):
                subscription.receive_nowait()
            script.deliver(added(1))

    run(loop, main)
