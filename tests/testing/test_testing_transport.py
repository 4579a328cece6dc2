"""Emulated control sockets behind real descriptors, and monitors on them."""

import contextlib
import errno
import os
import select
import socket
import threading
import time

import anyio
import pytest
from channels import read_one
from ntstat_wire import NEWER
from talk import SUPPRESS, Talk

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted, Proof, Provider
from nstat_async.aggregate import ProcessTable
from nstat_async.ntstat._messages import AddAllSources, GetUpdate
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel, UnixServer, Workload, serve_unix

seqpacket = pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="no AF_UNIX packets on this system")


def readable(channel, timeout=0):
    return bool(select.select([channel], [], [], timeout)[0])


def watch_tcp(kernel, **fields):
    return AddAllSources(provider=2, context=1, **fields).encode(kernel.release.layout)


def poll(kernel, context=2):
    layout = kernel.release.layout
    return GetUpdate(srcref=layout.all_sources, context=context, flags=2).encode(layout)


def wait_until(condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


# Channels within the process


def test_an_answer_is_readable_by_select_as_soon_as_send_returns():
    kernel = EmulatedKernel()
    transport = kernel.transport()
    channel = transport.open(None)
    assert channel.immediate
    assert not readable(channel)
    channel.send(watch_tcp(kernel))
    assert readable(channel)
    assert read_one(channel)
    assert not readable(channel)
    with pytest.raises(BlockingIOError):
        read_one(channel)
    kernel.open_tcp()
    assert readable(channel)
    channel.close()
    channel.close()
    with pytest.raises(OSError) as caught:
        read_one(channel)
    assert caught.value.errno == errno.EBADF
    assert not kernel.clients


def test_the_end_of_a_control_is_readable_and_stays_so():
    kernel = EmulatedKernel()
    channel = kernel.transport().open(None)
    kernel.end_controls()
    for _ in range(2):
        assert readable(channel)
        with pytest.raises(EOFError):
            read_one(channel)
    channel.close()


def test_a_transport_sets_the_receive_buffer_it_is_told_to():
    kernel = EmulatedKernel(receive_space=4096)
    from nstat_async.testing._transport import EmulatedTransport

    for asked, granted in ((None, 4096), (65536, 65536), (1 << 30, 8 << 20)):
        channel = EmulatedTransport(kernel, asked).open(None)
        assert channel.receive_buffer == granted
        channel.close()


def test_timers_run_by_the_clock_while_a_channel_is_open():
    kernel = EmulatedKernel(clock=time.monotonic)
    transport = kernel.transport()
    channel = transport.open(None)
    channel.send(watch_tcp(kernel))
    kernel.call_later(0.01, kernel.open_tcp)
    read_one(channel)
    assert readable(channel, 10)
    channel.close()
    transport.close()


# Packets over AF_UNIX


@seqpacket
def test_a_socket_pair_is_served_and_its_end_closes_the_control():
    kernel = EmulatedKernel()
    kernel.open_tcp()
    with contextlib.closing(kernel), kernel.serve_socketpair() as client:
        client.settimeout(120)
        client.send(watch_tcp(kernel))
        assert client.recv(65536)[8:12] == (10001).to_bytes(4, "little")
        assert client.recv(65536)[8:12] == bytes(4)
        client.close()
        wait_until(lambda: not kernel.clients)


@seqpacket
def test_a_client_that_does_not_read_loses_what_the_buffers_cannot_hold():
    kernel = EmulatedKernel()
    with contextlib.closing(kernel), kernel.serve_socketpair() as client:
        client.settimeout(120)
        client.send(watch_tcp(kernel))
        client.recv(65536)
        for _ in range(2000):
            kernel.open_tcp()
        server_side = kernel.clients[0]
        assert server_side.next_reference == 2001
        assert 193 <= len(server_side.sources) < 2000


@seqpacket
def test_a_path_is_served_until_stopped_and_removed_then(tmp_path):
    kernel = EmulatedKernel(clock=time.monotonic)
    path, stop = str(tmp_path / "k"), threading.Event()
    workload = Workload(kernel, rate=200, size=20, mean_life=0.1, seed=1)
    thread = threading.Thread(target=serve_unix, args=(kernel, path), kwargs={"workload": workload, "stop": stop})
    thread.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(120)
        wait_until(lambda: not client.connect_ex(path))  # the path is there a moment before somebody listens
        client.send(watch_tcp(kernel, filter=SUPPRESS))
        client.recv(65536)
        client.send(poll(kernel))
        assert client.recv(65536)[8:12] == (10006).to_bytes(4, "little")
        wait_until(lambda: workload.closed > 5)
        stop.set()
        thread.join(120)
        assert not thread.is_alive()
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    assert not os.path.exists(path)


@seqpacket
def test_a_socket_left_by_a_dead_server_is_replaced_and_a_living_one_is_not(tmp_path):
    path = str(tmp_path / "k")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(path)
    with UnixServer(EmulatedKernel(), path) as server:
        server.start()
        with pytest.raises(OSError) as caught:
            UnixServer(EmulatedKernel(), path)
        assert caught.value.errno == errno.EADDRINUSE
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        UnixServer(EmulatedKernel(), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@seqpacket
def test_several_clients_of_one_server_are_apart(tmp_path):
    kernel = EmulatedKernel()
    path = str(tmp_path / "k")
    with UnixServer(kernel, path) as server:
        server.start()
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        for client in clients:
            client.settimeout(120)
            client.connect(path)
            client.send(watch_tcp(kernel))
            assert client.recv(65536)
        clients.pop().close()
        kernel.open_tcp()
        for client in clients:
            assert client.recv(65536)[16:24] == (1).to_bytes(8, "little")
            client.close()
        assert server.served == 3


@seqpacket
def test_a_client_for_which_there_is_no_descriptor_is_accepted_later(tmp_path, monkeypatch):
    """It stays in the queue, so that a look without a pause would fail at once, again and again."""
    accept, calls, pauses = socket.socket.accept, [], []

    def full_at_first(listener):
        calls.append(listener)
        if len(calls) <= 2:
            raise OSError(errno.EMFILE, "no descriptors")
        return accept(listener)

    path = str(tmp_path / "k")
    with UnixServer(EmulatedKernel(), path) as server:
        monkeypatch.setattr(socket.socket, "accept", full_at_first)
        monkeypatch.setattr(server._stopped, "wait", pauses.append)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(path)
            server.start()
            wait_until(lambda: server.served)
    assert len(pauses) == 2


# A monitor on it

BACKENDS = [("asyncio", {"debug": True}), ("asyncio", {"use_uvloop": True}), ("trio", {})]


def run(body, backend=BACKENDS[0]):
    async def limited():
        with anyio.fail_after(120):
            await body()

    anyio.run(limited, backend=backend[0], backend_options=backend[1])


@pytest.mark.parametrize("backend", BACKENDS, ids=["asyncio-debug", "uvloop", "trio"])
def test_a_monitor_sees_a_flow_come_move_and_go(backend):
    kernel = EmulatedKernel()
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=100, tx=10)

    async def body():
        async with Monitor(backend=kernel.backend(), interval=0.02) as monitor:
            async for event in monitor:
                if isinstance(event, FlowAdded):
                    assert event.flow.process.name == "curl"
                    assert event.counts.rx_bytes == 100
                    flow.transfer(rx=900)
                elif isinstance(event, FlowUpdated):
                    assert event.counts.rx_bytes == 1000
                    flow.transfer(tx=90)
                    flow.close()
                elif isinstance(event, FlowRemoved):
                    assert (event.counts.rx_bytes, event.counts.tx_bytes, event.final) == (1000, 100, True)
                    break

    run(body, backend)


def test_the_layout_of_a_newer_kernel_is_proven_and_moved_fields_are_found():
    for insertions, proof in ((None, Proof.VERIFIED), (DARWIN_27_INSERTIONS[0], Proof.PROBED)):
        kernel = EmulatedKernel(NEWER, insertions=insertions)

        async def body(kernel=kernel, proof=proof):
            async with Monitor(backend=kernel.backend(), interval=0.01) as monitor:
                async for event in monitor:
                    if isinstance(event, PollCompleted) and monitor.capabilities.layout_proof is proof:
                        break
            assert list(kernel.flows()) == [], "the flows of the proof were closed again"

        run(body)


def test_a_lost_batch_is_repaired_by_the_next_poll():
    kernel = EmulatedKernel(seed=5)
    flows = [kernel.open_tcp(remote=("198.51.100.7", 443), rx=index) for index in range(40)]
    kernel.faults.lose_batches = 0.5

    async def body():
        async with Monitor(backend=kernel.backend(), interval=0.01, providers="tcp") as monitor:
            seen = set()
            async for event in monitor:
                if isinstance(event, FlowAdded):
                    seen.add(event.counts.rx_bytes)
                assert not isinstance(event, FlowRemoved)
                if len(seen) == len(flows):
                    break

    run(body)


def test_garbage_is_reported_and_the_flows_stay():
    kernel = EmulatedKernel()
    kernel.open_tcp(remote=("198.51.100.7", 443))

    async def body():
        async with Monitor(backend=kernel.backend(), interval=0.02) as monitor:
            injected = False
            async for event in monitor:
                if isinstance(event, PollCompleted) and not injected:
                    kernel.inject(b"\xff" * 50)
                    injected = True
                if isinstance(event, EventsLost):
                    break
            assert len(list(monitor.flows)) == 1

    run(body)


def test_the_default_talk_reads_what_a_channel_reads():
    kernel = EmulatedKernel()
    kernel.open_tcp()
    talk = Talk(kernel)
    channel = kernel.transport().open(None)
    channel.send(watch_tcp(kernel))
    assert talk.watch(Provider.TCP, userland=False)[0].encode(talk.layout) == read_one(channel)
    channel.close()


def test_a_workload_with_a_life_beyond_the_longest_timer_runs():
    kernel = EmulatedKernel("xnu-11417.121.6")
    workload = Workload(kernel, size=200, mean_life=1e9, rate=1e-9, seed=1)
    workload.start()
    kernel.advance(10)
    assert (workload.opened, workload.closed) == (200, 0)


@pytest.mark.parametrize("version", ["xnu-11417.121.6", "xnu-2050.7.9"])
def test_what_was_open_when_time_passed_is_preexisting_and_its_bytes_are_no_traffic(version):
    kernel = EmulatedKernel(version)
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10_000)
    kernel.advance(1)

    async def main() -> None:
        table = ProcessTable()
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            await monitor.poll_now()
            flow.transfer(rx=5)
            await monitor.poll_now()
            table.feed_many(monitor.subscribe().receive_nowait())
        assert [row.rx_bytes for row in table.rows()] == [5]

    anyio.run(main)
