"""The backend on the event loops: the pump, the session and the living kernel together."""

from __future__ import annotations

import os
import socket
import sys

import anyio
import pytest

from nstat_async._errors import BackendUnavailableError, UnavailableReason, UsageError
from nstat_async._events import FlowAdded, FlowRemoved, PollCompleted
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import ChannelPurpose, Role

if not sys.platform.startswith("linux"):
    pytest.skip("the living kernel is Linux'", allow_module_level=True)

from nstat_async._io.netlink import NetlinkTransport
from nstat_async.backends import SockDiag

pytestmark = pytest.mark.linux


class Sink:
    def __init__(self) -> None:
        self.events = []
        self.news = anyio.Event()

    def deliver(self, events):
        self.events += events
        self.news.set()

    async def room(self) -> None:
        pass

    async def until(self, condition):
        with anyio.fail_after(120):
            while not condition():
                await self.news.wait()
                self.news = anyio.Event()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_connection_on_every_loop(loop):
    """From open to close a connection is one FlowAdded and one final FlowRemoved, on each event loop."""

    async def main() -> None:
        sink = Sink()
        feed = SockDiag().open(MonitorOptions(interval=0.05))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(feed.run, sink)
            await sink.until(lambda: any(isinstance(e, PollCompleted) for e in sink.events))
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                client = socket.create_connection(listener.getsockname())
                server, _ = listener.accept()
            ends = client.getsockname()[1], client.getpeername()[1]
            client.sendall(b"x" * 777)
            assert len(server.recv(777)) == 777

            def is_mine(flow):
                """Others are in this network namespace as well, who may have the same port to somebody else."""
                return flow.remote is not None and (flow.local.port, flow.remote.port) == ends

            def mine(kind):
                return [e for e in sink.events if isinstance(e, kind) and is_mine(e.flow)]

            await sink.until(lambda: any(is_mine(f) and f.process for f, _ in feed.flows()))
            client.close()
            server.close()
            await sink.until(lambda: mine(FlowRemoved))
            feed.request_poll()
            (_,), (removed,) = mine(FlowAdded), mine(FlowRemoved)
            assert removed.flow.process.pid == os.getpid()
            assert (removed.counts.tx_bytes, removed.final) == (777, True)
            assert feed.capabilities.backend == "sock_diag"
            feed.close()

    options = {"backend": "asyncio", "backend_options": {"use_uvloop": True}} if loop == "uvloop" else {"backend": loop}
    anyio.run(main, **options)


def test_other_platforms_say_so(monkeypatch):
    """Opening elsewhere fails with the platform's name."""
    monkeypatch.setattr("nstat_async._io.system.system", lambda: "darwin")
    with pytest.raises(BackendUnavailableError, match="this is darwin") as caught:
        SockDiag().open(MonitorOptions())
    assert caught.value.reason is UnavailableReason.PLATFORM


@pytest.mark.parametrize("value", [1.5, True, (), ("a", object())])
def test_a_namespace_is_a_name_a_path_or_a_pid(value):
    """Anything else is a usage error that shows the value."""
    with pytest.raises(UsageError, match="netns"):
        SockDiag(value)


def test_the_receive_buffer_is_as_large_as_privileges_allow():
    """A channel says what was granted; asking for less gives less."""
    transport = NetlinkTransport(receive_buffer=64 << 10)
    small = transport.open(ChannelPurpose(0, Role.REMOVALS, (1,)))
    large = NetlinkTransport().open(ChannelPurpose(0, Role.REMOVALS, (1, 2, 3, 4)))
    assert small.receive_buffer == 64 << 10
    assert large.receive_buffer > small.receive_buffer
    batch: list[bytes] = []
    assert not small.read_into(batch, 4)
    assert not batch
    for channel in (small, large):
        channel.close()
        channel.close()
        assert channel.fileno() == -1
    transport.close()
    transport.close()


def test_descriptors_do_not_leak():
    """A failed opening releases the namespaces entered before."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendUnavailableError):
        SockDiag((None, "/proc/self/ns/net", "/no/such/namespace")).parts(MonitorOptions())
    assert len(os.listdir("/proc/self/fd")) == before
