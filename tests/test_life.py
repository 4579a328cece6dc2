"""The life of a monitor: started and closed from any task, in any order, cut off anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import sys
import threading
import warnings

import anyio
import anyio.lowlevel
import pytest
import pytest_asyncio

from nstat_async import (
    Capabilities,
    Counts,
    Flow,
    FlowAdded,
    Monitor,
    MonitorClosedError,
    PollCompleted,
    Provider,
    StreamEndedError,
    UsageError,
)
from nstat_async._io import background
from nstat_async.testing import EmulatedKernel

GENEROUS = 120.0
LOOPS = {
    "asyncio": {"backend": "asyncio", "backend_options": {"debug": True}},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
if sys.platform == "win32":
    del LOOPS["uvloop"]


@pytest.fixture(autouse=True)
def alone():
    """A loop that ended with a monitor of an earlier test left its task: whatever the order, it is not this test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        background._running.clear()
        gc.collect()
        gc.freeze()  # what earlier tests left to the end of the run: each collection here is a quick one


@pytest.fixture(params=LOOPS)
def run(request):
    """Runs a test on each loop; asyncio in debug mode."""

    def runner(main, *arguments):
        async def guarded():
            with anyio.fail_after(GENEROUS):
                return await main(*arguments)

        return anyio.run(guarded, **LOOPS[request.param])

    runner.loop = request.param
    return runner


def asyncio_only(run):
    if run.loop == "trio":
        pytest.skip("a matter of asyncio")


class Kernel:
    """An emulated kernel with one flow, and a count of what monitors on it hold open."""

    def __init__(self):
        self.kernel = EmulatedKernel()
        self.kernel.open_tcp(pid=1, name="a", remote=("192.0.2.1", 443), rx=7)

    def monitor(self, **options):
        return Monitor(backend=self.kernel.backend(), **{"interval": 0.02, **options})


async def first_poll(monitor):
    async for event in monitor:
        if isinstance(event, PollCompleted):
            return event
    raise AssertionError("the stream ended")


def descriptors():
    return set(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


async def until(condition):
    """Turn the loop until this holds."""
    while not condition():
        await anyio.sleep(0.001)


# --- tasks and order -----------------------------------------------------------------


def test_a_monitor_is_started_in_one_task_read_in_another_and_closed_in_a_third(run):
    async def main():
        monitor = Kernel().monitor()
        for step in (monitor.start, lambda: first_poll(monitor), monitor.aclose):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)

    run(main)


def test_monitors_are_closed_in_the_order_of_opening(run):
    async def main():
        monitors = [await Kernel().monitor().start() for _ in range(3)]
        for monitor in monitors:
            await first_poll(monitor)
        for monitor in monitors:
            await monitor.aclose()
        await anyio.sleep(0.01)

    run(main)


def test_an_exit_stack_is_entered_in_one_task_and_left_in_another(run):
    async def main():
        stack = contextlib.AsyncExitStack()
        monitors = []

        async def enter():
            monitors.extend([await stack.enter_async_context(Kernel().monitor()) for _ in range(2)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
        await first_poll(monitors[0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stack.aclose)
        assert [event async for event in monitors[1] if not isinstance(event, (FlowAdded, PollCompleted))] == []

    run(main)


def test_starting_works_under_wait_for_and_several_at_once(run):
    asyncio_only(run)

    async def main():
        one = await asyncio.wait_for(Kernel().monitor().start(), GENEROUS)
        two, three = await asyncio.gather(Kernel().monitor().start(), Kernel().monitor().start())
        for monitor in (two, one, three):
            await first_poll(monitor)
            await asyncio.wait_for(monitor.aclose(), GENEROUS)

    run(main)


def test_a_second_start_is_refused_whenever_it_comes(run):
    async def main():
        monitor = Kernel().monitor()
        outcomes = []

        async def start():
            try:
                outcomes.append(await monitor.start())
            except UsageError as error:
                outcomes.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            tasks.start_soon(start)
        assert monitor in outcomes
        refusal = "a Monitor can be started only once; make a new one"
        assert refusal in outcomes
        await first_poll(monitor)
        await monitor.aclose()
        with pytest.raises(UsageError, match="started only once"):
            await monitor.start()

    run(main)


def test_closing_is_done_by_several_tasks_at_once_and_again(run):
    async def main():
        kernel = Kernel()
        monitor = await kernel.monitor().start()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(monitor.aclose)
        await monitor.aclose()
        assert not kernel.kernel.clients

    run(main)


class Held:
    """A backend whose subscription is never confirmed, so that starting waits."""

    name = "held"
    can_wait = False
    capabilities = Capabilities(backend="held")

    def open(self, options):
        self.begun, self.closed = anyio.Event(), anyio.Event()
        self.sink = None
        return self

    async def run(self, sink):
        self.sink = sink
        self.begun.set()
        await self.closed.wait()

    async def subscribed(self):
        await self.closed.wait()

    def flows(self):
        return ()

    def request_poll(self):
        return 1

    def close(self):
        self.closed.set()

    def statistics(self):
        return {}


class Ready(Held):
    async def subscribed(self):
        await self.begun.wait()


def test_closing_while_it_starts_ends_the_start_with_an_error(run):
    async def main():
        held = Held()
        monitor = Monitor(backend=held)
        ended = []

        async def start():
            with pytest.raises(MonitorClosedError):
                await monitor.start()
            ended.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await anyio.wait_all_tasks_blocked()
            await monitor.aclose()
        assert ended

    run(main)


# --- generators ------------------------------------------------------------------------


async def flows(kernel):
    """A user's own generator around a monitor."""
    async with kernel.monitor() as monitor:
        async for event in monitor:
            if isinstance(event, FlowAdded):
                yield event.flow
            if isinstance(event, PollCompleted):
                yield None


def test_a_generator_that_is_closed_leaves_its_caller_undisturbed(run):
    async def main():
        generator = flows(Kernel())
        assert (await generator.__anext__()).process.name == "a"
        await generator.aclose()
        for _ in range(20):
            await anyio.sleep(0.001)

    run(main)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's own, about the generator
def test_a_generator_that_is_left_by_break_leaves_its_caller_undisturbed_and_closes_its_monitor(run):
    async def main():
        kernel = Kernel()
        async for flow in flows(kernel):
            assert flow.process.name == "a"
            break
        gc.collect()
        await until(lambda: not kernel.kernel.clients)

    run(main)


# --- forgotten ---------------------------------------------------------------------------


def test_a_forgotten_monitor_warns_and_is_closed(run):
    async def main():
        ready = Ready()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await Monitor(backend=ready).start()
            gc.collect()
        assert [w.category for w in caught] == [ResourceWarning]
        assert "never closed" in str(caught[0].message)
        assert caught[0].filename.endswith("_monitor.py"), "no line that only happened to run then"
        await ready.closed.wait()
        await until(lambda: not background._running)

    run(main)


def test_a_forgotten_monitor_is_closed_also_if_its_warning_is_an_error(run, monkeypatch):
    said = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: said.append(found.exc_type))

    async def main():
        ready = Ready()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await Monitor(backend=ready).start()
            gc.collect()
        assert said == [ResourceWarning]
        with anyio.fail_after(60):
            await ready.closed.wait()
            await until(lambda: not background._running)

    run(main)


def test_a_forgotten_monitor_may_be_collected_by_another_thread(run):
    async def main():
        ready = Ready()
        kept = [await Monitor(backend=ready).start()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            thread = threading.Thread(target=kept.clear)
            thread.start()
            thread.join()
        await ready.closed.wait()
        await until(lambda: not background._running)

    run(main)


def test_a_loop_that_ends_ends_its_monitors_quietly(run, capfd):
    run(anyio.lowlevel.checkpoint)  # the first loop of uvloop in a process opens what stays
    before = descriptors()
    kept = []

    async def main():
        monitor = await Kernel().monitor().start()
        kept.append(monitor)
        await first_poll(monitor)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main)
        kept.clear()
        gc.collect()
    assert not background._running
    assert descriptors() == before
    assert capfd.readouterr() == ("", "")


def test_a_loop_that_is_closed_without_a_word_leaves_no_socket_behind(run):
    asyncio_only(run)
    before = descriptors()
    loop = asyncio.new_event_loop()
    monitor = loop.run_until_complete(Kernel().monitor().start())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del monitor
        gc.collect()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert descriptors() == before


def test_cancelling_every_task_of_the_loop_ends_the_stream_with_an_error(run):
    asyncio_only(run)

    async def main():
        monitor = await Kernel().monitor().start()
        await first_poll(monitor)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name() == "nstat_async feed":
                task.cancel()
        with pytest.raises(MonitorClosedError):
            async for _ in monitor:
                pass
        await monitor.aclose()
        ready = Ready()
        monitor = await Monitor(backend=ready).start()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(MonitorClosedError):
            await monitor.__anext__()
        assert ready.closed.is_set(), "what a feed holds open is closed without its help"

    run(main)


# --- failures ------------------------------------------------------------------------------


def test_whatever_a_feed_raises_comes_at_each_read_as_if_for_the_first_time(run):
    class Broken(Ready):
        async def run(self, sink):
            self.begun.set()
            raise ZeroDivisionError("in the feed")

    async def main():
        async with Monitor(backend=Broken()) as monitor:
            lengths = set()
            for _ in range(3):
                with pytest.raises(ZeroDivisionError, match="in the feed") as caught:
                    await monitor.__anext__()
                lengths.add(len(caught.traceback))
            assert len(lengths) == 1, "the traceback grows with each read"
            with pytest.raises(ZeroDivisionError):
                await monitor.poll_now()

    run(main)


def test_a_feed_that_ends_before_it_is_subscribed_does_not_hold_up_the_start(run):
    """A feed of one's own may wait for its first look, and fail at it."""

    class Early(Ready):
        async def run(self, sink):
            if self.raises:
                raise ZeroDivisionError("in the feed")

    async def main():
        for raises, error in ((True, ZeroDivisionError), (False, StopAsyncIteration)):
            early = Early()
            early.raises = raises
            async with Monitor(backend=early) as monitor:
                with pytest.raises(error):
                    await monitor.__anext__()

    run(main)


def test_a_consumer_s_filter_that_raises_fails_that_consumer_alone_and_after_what_it_let_pass(run):
    def picky(flow):
        return flow.remote.port == 443

    async def main():
        ready = Ready()
        async with Monitor(backend=ready, overflow="all") as monitor:
            good, bad = monitor.subscribe(), monitor.subscribe(picky)
            one = FlowAdded(1.0, Flow("1", Provider.TCP), Counts(), False)
            fine = FlowAdded(1.0, Flow("2", Provider.TCP, remote=endpoint(443)), Counts(), False)
            ready.sink.deliver([fine, one, fine])
            assert await bad.__anext__() == fine
            for _ in range(2):
                with pytest.raises(AttributeError):
                    await bad.__anext__()
                with pytest.raises(AttributeError):
                    await bad.receive_many()
                with pytest.raises(AttributeError):
                    bad.receive_nowait()
            ready.sink.deliver([one])
            ready.sink.deliver([fine])
            assert len(good.receive_nowait()) == 5
            assert bad.statistics().pending == 0
            waiting = monitor.subscribe(picky)

            async def wait():
                with pytest.raises(AttributeError):
                    await waiting.__anext__()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                ready.sink.deliver([one])

    run(main)


def test_a_filter_of_the_monitor_that_raises_fails_its_own_iteration(run):
    def picky(flow):
        raise LookupError

    async def main():
        ready = Ready()
        async with Monitor(backend=ready, flow_filter=picky) as monitor:
            ready.sink.deliver([FlowAdded(1.0, Flow("1", Provider.TCP), Counts(), False)])
            with pytest.raises(LookupError):
                await monitor.__anext__()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(monitor.poll_now)
                await anyio.wait_all_tasks_blocked()
                ready.sink.deliver([PollCompleted(1.0, 0, True, 1)])

    run(main)


def endpoint(port):
    from nstat_async import Endpoint

    return Endpoint.parse("192.0.2.1", port)


def test_reading_at_once_says_what_is_empty_what_is_over_and_what_is_closed(run):
    async def main():
        ready = Ready()
        async with Monitor(backend=ready) as monitor:
            stream, other = monitor.subscribe(), monitor.subscribe()
            assert stream.receive_nowait() == []
            await other.aclose()
            with pytest.raises(MonitorClosedError):
                other.receive_nowait()
            ready.sink.deliver([PollCompleted(1.0, 0, True, 1)])
            ready.close()
            await anyio.wait_all_tasks_blocked()
            assert len(stream.receive_nowait()) == 1
            with pytest.raises(StreamEndedError):
                stream.receive_nowait()
            with pytest.raises(StreamEndedError):
                await monitor.poll_now()
        with pytest.raises(MonitorClosedError):
            stream.receive_nowait()

    run(main)


# --- cancellation, at every await ----------------------------------------------------------


class Cut:
    """Awaits something, and calls `cancel` when it waits for the n-th time."""

    def __init__(self, coroutine, at, cancel):
        self.coroutine, self.at, self.cancel = coroutine, at, cancel
        self.waits = 0

    def __await__(self):
        inner = self.coroutine.__await__()
        send, value = inner.send, None
        while True:
            try:
                waited = send(value)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self.at:
                self.cancel()
            try:
                send, value = inner.send, (yield waited)
            except BaseException as error:
                send, value = inner.throw, error


async def cut(body, at):
    """Run `body` cancelled at its n-th wait, by a scope; True if it came that far."""
    with anyio.CancelScope() as scope:
        watched = Cut(body(), at, scope.cancel)
        await watched
    return watched.waits >= at


async def cut_natively(body, at):
    """The same by ``Task.cancel``, as ``wait_for`` and ``asyncio.timeout`` do it."""
    task = asyncio.create_task(_awaited(watched := Cut(body(), at, lambda: task.cancel())))  # noqa: PLW0108  # not there yet
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return watched.waits >= at


async def _awaited(thing):
    return await thing


@pytest.mark.parametrize("way", [cut, cut_natively])
def test_cut_off_at_any_await_a_monitor_leaves_nothing_open(run, way):
    if way is cut_natively:
        asyncio_only(run)

    async def main():
        kernel = Kernel()
        await anyio.sleep(0.001)
        async with kernel.monitor() as monitor:  # whatever the loop opens for itself is open afterwards
            await first_poll(monitor)
        await until(lambda: not background._running)
        before = descriptors()

        async def body():
            async with kernel.monitor() as monitor:
                await monitor.poll_now()
                stream = monitor.subscribe()
                await stream.__anext__()
                await stream.receive_many()
                await monitor.poll_now()
                await stream.aclose()
                await monitor.aclose()

        async def explicit():
            monitor = kernel.monitor()
            try:
                await monitor.start()
                await first_poll(monitor)
            finally:
                await monitor.aclose()

        for each in (body, explicit):
            at = 1
            while await way(each, at):
                at += 1
                if way is cut:
                    assert not background._running, f"cut at wait {at}: the task lives on"
                await until(lambda: not background._running)
                await until(lambda: descriptors() == before)
            assert at >= 4, at

    run(main)


@pytest.mark.parametrize("way", [cut, cut_natively])
@pytest.mark.parametrize("many", [False, True])
def test_cut_off_at_any_await_a_read_loses_no_event(run, way, many):
    if way is cut_natively:
        asyncio_only(run)
    total = 1_200  # a read that found events makes a checkpoint at each thousandth

    async def main():
        ready = Ready()
        async with Monitor(backend=ready, overflow="all") as monitor, anyio.create_task_group() as tasks:

            async def produce():
                for number in range(total):
                    ready.sink.deliver([FlowAdded(1.0, Flow(str(number), Provider.TCP), None, False)])
                    if number % 50 == 0:
                        await anyio.lowlevel.checkpoint()
                ready.close()

            seen = []

            async def read():
                while True:
                    try:
                        if many:
                            seen.extend(await stream.receive_many())
                        else:
                            seen.append(await stream.__anext__())
                    except StopAsyncIteration:
                        return
                    if len(seen) == total:
                        return

            stream = monitor.subscribe()
            tasks.start_soon(produce)
            at = 0
            while len(seen) < total:
                at = at % 3 + 1
                await way(read, at)
            assert [event.flow.id for event in seen] == [str(number) for number in range(total)]

    run(main)


# --- pytest-asyncio ---------------------------------------------------------------------------


@pytest_asyncio.fixture
async def lent_monitor():
    async with Kernel().monitor() as monitor:
        yield monitor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lent_to_the_module():
    async with Kernel().monitor() as monitor:
        yield monitor


@pytest.mark.asyncio
async def test_a_fixture_lends_a_monitor(lent_monitor):
    await first_poll(lent_monitor)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("turn", [1, 2])
async def test_a_fixture_lends_a_monitor_to_a_whole_module(lent_to_the_module, turn):
    await first_poll(lent_to_the_module)


@pytest.mark.parametrize("uvloop", [False, "uvloop" in LOOPS])
def test_a_monitor_that_outlives_its_loop_is_forgotten_with_one_warning(uvloop, capfd):
    new_event_loop = importlib.import_module("uvloop" if uvloop else "asyncio").new_event_loop
    first = new_event_loop()  # a library may keep what its first loop needs
    first.run_until_complete(anyio.sleep(0))
    first.close()
    before = descriptors()
    loop, kernel = new_event_loop(), Kernel()
    monitor = kernel.monitor(interval=60.0)
    loop.run_until_complete(monitor.start())
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del monitor
        gc.collect()
    assert [w.category for w in caught] == [ResourceWarning]
    assert capfd.readouterr() == ("", "")
    background._running.clear()
    gc.collect()
    assert descriptors() == before
