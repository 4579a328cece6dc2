"""A kernel behind an AF_UNIX socket: answers come later, the other side may go away and come back."""

from __future__ import annotations

import asyncio
import os
import socket

import anyio
import pytest
import trio
from virtual import Picture, compare

from nstat_async import (
    BackendUnavailableError,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    Monitor,
    PollCompleted,
    UnavailableReason,
    UsageError,
)
from nstat_async.backends import UnixSocket
from nstat_async.ntstat import _sockets
from nstat_async.testing import EmulatedKernel

KERNEL = "xnu-11417.121.6"
LIMIT = 120.0
pytestmark = pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="no packet sockets for AF_UNIX here")


def on_asyncio(body):
    asyncio.run(body(), debug=True)


@pytest.fixture(params=[on_asyncio, trio.run], ids=["asyncio", "trio"])
def run(request):
    def bounded(body):
        async def within():
            with anyio.fail_after(LIMIT):
                await body()

        request.param(within)

    return bounded


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "kernel")


@pytest.fixture
def kernel():
    made = EmulatedKernel(KERNEL)
    yield made
    made.close()


@pytest.fixture
def quick_reopening(monkeypatch):
    monkeypatch.setattr(_sockets, "REOPEN_DELAYS", (0.01, 0.02, 0.03))


def providers(monitor):
    return monitor.options.providers


async def polled(stream, picture):
    """Read until a poll is over."""
    while True:
        event = await stream.__anext__()
        picture.feed([event])
        if isinstance(event, PollCompleted):
            return


def test_flows_appear_change_and_go_over_the_bridge(run, kernel, path):
    kernel.serve_unix(path)
    there = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
            picture = Picture()
            stream = monitor.subscribe()
            await polled(stream, picture)
            compare(kernel, picture.flows.values(), providers=providers(monitor))
            there.transfer(5, 6)
            new = kernel.open_udp(502, "dns", remote=("198.51.100.53", 53), tx=40)
            await monitor.poll_now()
            picture.feed(stream.receive_nowait())
            compare(kernel, picture.flows.values(), providers=providers(monitor))
            new.close()
            there.close()
            while picture.flows:
                await monitor.poll_now()
                picture.feed(stream.receive_nowait())
            assert {r.counts.rx_bytes for r in picture.removed} == {1005, 0}
            assert all(removed.final for removed in picture.removed)
            assert not picture.losses

    run(body)


@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_hundreds_of_flows_come_over_the_bridge_and_none_is_missing(kernel, path, discovery):
    kernel.serve_unix(path)
    for number in range(400):
        kernel.open_tcp(1000 + number, f"p{number}", remote=("198.51.100.7", 443), rx=number)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None, discovery=discovery) as monitor:
            picture = Picture()
            stream = monitor.subscribe()
            while len(picture.flows) < 400:
                await monitor.poll_now()
                picture.feed(stream.receive_nowait())
            compare(kernel, picture.flows.values(), providers=providers(monitor))

    asyncio.run(asyncio.wait_for(body(), LIMIT))


def test_answers_that_come_late_are_waited_for(run, path):
    import time

    kernel = EmulatedKernel(KERNEL, clock=time.monotonic)
    kernel.faults.reply_delay = 0.01
    kernel.serve_unix(path)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
            await monitor.poll_now()
            compare(kernel, monitor.flows, providers=providers(monitor))
            assert monitor.statistics().feed["replies_lost"] == 0

    try:
        run(body)
    finally:
        kernel.close()


def test_a_control_that_ends_is_connected_again_and_every_flow_goes_on(run, kernel, path, quick_reopening):
    kernel.serve_unix(path)
    stays = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    goes = kernel.open_udp(502, "dns", remote=("198.51.100.53", 53), tx=40)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
            picture = Picture()
            stream = monitor.subscribe()
            await polled(stream, picture)
            before = set(picture.flows)
            kernel.end_controls()
            goes.close()
            stays.transfer(7, 0)
            kernel.open_tcp(503, "new", remote=("198.51.100.8", 443))
            events = []
            while not {FlowUpdated, FlowRemoved, FlowAdded, EventsLost} <= {type(event) for event in events}:
                event = await stream.__anext__()
                picture.feed([event])
                events.append(event)
            assert LossCause.RESYNC in {loss.cause for loss in picture.losses}
            (updated,) = (event for event in events if isinstance(event, FlowUpdated))
            assert updated.flow.id in before
            assert (updated.counts.rx_bytes, updated.delta.rx_bytes) == (1007, 7)
            compare(kernel, picture.flows.values(), providers=providers(monitor))
            stays.transfer(1, 1)
            await monitor.poll_now()
            picture.feed(stream.receive_nowait())
            compare(kernel, picture.flows.values(), providers=providers(monitor))

    run(body)


def test_a_server_that_does_not_come_back_ends_the_monitor_with_an_error_that_says_so(
    run, kernel, path, quick_reopening
):
    server = kernel.serve_unix(path)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))

    async def body():
        events = []

        async def watch():
            async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
                async for event in monitor:
                    events.append(event)
                    if isinstance(event, PollCompleted):
                        await anyio.to_thread.run_sync(server.close)

        with pytest.raises(BackendUnavailableError, match=f"cannot connect to {path}") as caught:
            await watch()
        assert caught.value.reason is UnavailableReason.MISSING
        assert isinstance(events[-1], EventsLost)

    run(body)


def test_a_path_that_is_too_long_for_a_socket_is_refused_as_that(run, tmp_path):
    async def body():
        with pytest.raises(BackendUnavailableError, match="path too long"):
            async with Monitor(backend=UnixSocket(str(tmp_path / ("x" * 200)), KERNEL)):
                pass

    run(body)


def test_a_server_that_comes_back_in_time_is_found_again(run, kernel, path, monkeypatch):
    monkeypatch.setattr(_sockets, "REOPEN_DELAYS", (0.01,) * 12_000)
    server = kernel.serve_unix(path)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
            picture = Picture()
            stream = monitor.subscribe()
            await polled(stream, picture)
            await anyio.to_thread.run_sync(server.close)
            await anyio.sleep(0.03)
            kernel.serve_unix(path)
            while not picture.losses:
                picture.feed([await stream.__anext__()])
            await monitor.poll_now()
            while monitor.statistics().feed["sources"] == 0:
                await anyio.sleep(0.005)
            picture.feed(stream.receive_nowait() if len(stream._buffer) else [])
            compare(kernel, picture.flows.values(), providers=providers(monitor))
            assert len(picture.ids) == 1, "the flow went on"

    run(body)


def test_nobody_listening_is_told_at_opening_with_the_path(run, path):
    async def body():
        with pytest.raises(BackendUnavailableError, match=path) as caught:
            async with Monitor(backend=UnixSocket(path, KERNEL)):
                raise AssertionError("opened")
        assert caught.value.reason is UnavailableReason.MISSING

    run(body)


def test_a_stream_socket_is_no_bridge(run, path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)

        async def body():
            with pytest.raises(BackendUnavailableError) as caught:
                async with Monitor(backend=UnixSocket(path, KERNEL)):
                    raise AssertionError("opened")
            assert caught.value.reason is UnavailableReason.MISSING

        run(body)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may connect to anything")
def test_a_path_that_may_not_be_used_is_a_matter_of_permission(run, kernel, path):
    kernel.serve_unix(path)
    os.chmod(path, 0)

    async def body():
        with pytest.raises(BackendUnavailableError) as caught:
            async with Monitor(backend=UnixSocket(path, KERNEL)):
                raise AssertionError("opened")
        assert caught.value.reason is UnavailableReason.PERMISSION

    run(body)


@pytest.mark.parametrize("text", ["", "no kernel", "xnu-1504.15.3"])
def test_a_kernel_that_is_not_understood_is_refused_where_the_backend_is_made(path, text):
    with pytest.raises(UsageError, match="kernel: "):
        UnixSocket(path, text)


def test_a_monitor_that_is_left_closes_its_end(kernel, path):
    kernel.serve_unix(path)

    async def body():
        async with Monitor(backend=UnixSocket(path, KERNEL), interval=None) as monitor:
            await monitor.poll_now()
            assert len(kernel.clients) == 1
        while kernel.clients:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(body(), LIMIT))
