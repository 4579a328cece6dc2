"""`Monitor` between a feed and its readers, on asyncio and on trio: from its opening to its end."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from scripted import POLLED, Script, on_both_loops, watching

from nstat_async import (
    BackendUnavailableError,
    Coverage,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Monitor,
    MonitorClosedError,
    PollCompleted,
    RequestError,
    UsageError,
    backends,
    filters,
    snapshot,
)
from nstat_async._options import MonitorOptions
from nstat_async.testing import EmulatedKernel


@on_both_loops
async def test_closing_ends_a_reader_that_waits_and_may_be_done_again():
    seen = []
    async with watching() as (script, monitor), anyio.create_task_group() as tasks:
        ended = anyio.Event()

        async def read() -> None:
            async for event in monitor:
                seen.append(event)  # noqa: PERF401  # as users write it
            ended.set()

        tasks.start_soon(read)
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


@on_both_loops
async def test_a_failure_that_nobody_reads_leaves_the_block_alone():
    script = Script()
    async with Monitor(backend=script):
        script.fail(RequestError("x", 1))
        await anyio.wait_all_tasks_blocked()


@on_both_loops
async def test_a_block_s_own_error_and_a_cancellation_leave_it_as_they_are():
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


@on_both_loops
async def test_poll_now_returns_when_the_kernel_has_answered():
    async with watching() as (script, monitor), anyio.create_task_group() as tasks:
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


@on_both_loops
async def test_a_recording_is_not_polled():
    script = Script(can_wait=True)
    async with Monitor(backend=script) as monitor:
        await monitor.poll_now()
        script.fail(RequestError("a record", 5))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RequestError):
            await monitor.poll_now()
        assert script.polls == 0


@on_both_loops
async def test_what_was_never_opened_says_so_and_may_be_closed():
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
    with pytest.raises(UsageError, match="started only once"):
        await monitor.start()
    async with Monitor(backend=Script()) as monitor:
        assert repr(monitor) == "<Monitor script open>"
    assert repr(Monitor()) == "<Monitor auto not open>"


def test_a_monitor_has_the_defaults_of_the_options():
    assert Monitor().options == MonitorOptions()


@on_both_loops
async def test_figures_say_what_flows_explain_of_all_traffic_where_the_feed_knows_it():
    script = Script()
    async with Monitor(backend=script) as monitor:
        assert monitor.statistics().coverage is None
        figures = {"rx_bytes": 1, "tx_bytes": 2, "flow_rx_bytes": 3, "flow_tx_bytes": 4}
        script.statistics = lambda: {f"coverage_{name}": value for name, value in figures.items()}
        assert monitor.statistics().coverage == Coverage(**figures)


@on_both_loops
async def test_what_cannot_be_opened_says_so_where_the_block_begins():
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
        with pytest.raises(UsageError, match="started only once"):
            await monitor.__aenter__()
    with pytest.raises(UsageError, match="started only once"):
        await monitor.__aenter__()


@on_both_loops
async def test_a_day_with_an_emulated_kernel_is_recorded_and_replayed_alike(tmp_path):
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


@on_both_loops
async def test_a_snapshot_is_the_flows_of_one_moment():
    kernel = EmulatedKernel()
    kernel.open_tcp(pid=42, name="curl", remote=("192.0.2.9", 443)).transfer(rx=7)
    kernel.open_udp(pid=43, name="dig", remote=("192.0.2.53", 53))
    everything = await snapshot(backend=kernel.backend())
    assert sorted(f.process.name for f, _ in everything) == ["curl", "dig"]
    (only,) = await snapshot(backend=kernel.backend(), providers="tcp", flow_filter=filters.by_pid(42))
    assert only[1].rx_bytes == 7


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
async def test_a_feed_may_have_polled_before_it_says_which_poll_that_was():
    class Quick(Script):
        def request_poll(self) -> int:
            serial = super().request_poll()
            self.deliver(PollCompleted(0.0, 0, True, serial))
            return serial

    async with Monitor(backend=Quick()) as monitor:
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            await monitor.poll_now()
