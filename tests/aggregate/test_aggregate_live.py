"""Tables of real monitors: emulated kernels, their recordings, and this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import anyio
import attrs
import pytest
from aggregate_events import until

from nstat_async import Monitor, backends
from nstat_async.aggregate import GroupBy, ProcessTable, RowKind, TrafficTable, by_process
from nstat_async.testing import EmulatedKernel, Workload

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def comparable(table):
    """Rows without what depends on the moment of looking."""
    rows = sorted(table.rows(), key=lambda row: (row.kind.value, str(row.key)))
    return [attrs.evolve(row, first_seen=None, last_seen=None, rx_rate=None, tx_rate=None) for row in rows]


@BACKENDS
def test_a_table_fed_by_a_recording_equals_one_fed_live(backend, tmp_path):
    """Every row, for a workload of many short and long flows."""
    path = tmp_path / "session.nstat"

    async def main():
        kernel = EmulatedKernel(seed=7)
        workload = Workload(kernel, rate=20, size=60, mean_life=3, transfers=0.5, seed=7)
        live = ProcessTable(include_history=True)
        async with (
            Monitor(backend=kernel.backend(), interval=0.02, record_to=path) as monitor,
            monitor.subscribe() as subscription,
        ):
            await monitor.poll_now()
            workload.start()
            for _ in range(20):
                kernel.advance(1.0)
                await monitor.poll_now()
                live.feed_many(subscription.receive_nowait())
        async with Monitor(backend=backends.Replay(path)) as monitor:
            replayed = ProcessTable(include_history=True)
            async for event in monitor:
                replayed.feed(event)
        assert workload.closed > 300
        assert (live.total().rx_bytes, live.total().tx_bytes) == (workload.rx_bytes, workload.tx_bytes)
        assert live.total().flows == workload.opened
        assert comparable(replayed) == comparable(live)

    anyio.run(main, backend=backend)


@BACKENDS
def test_two_consumers_of_one_monitor_see_the_same_totals(backend):
    """A quick one and one that hardly ever reads; what the kernel says is what both add up to."""

    async def main():
        kernel = EmulatedKernel()
        totals = {}

        async def consume(tables, name):
            async for table in tables:
                totals[name] = table.total()

        async with (
            Monitor(backend=kernel.backend(), interval=0.01) as monitor,
            anyio.create_task_group() as tasks,
            by_process(monitor, every=0.005) as quick,
            by_process(monitor, every=30) as slow,
        ):
            tasks.start_soon(consume, quick, "quick")
            tasks.start_soon(consume, slow, "slow")
            await monitor.poll_now()
            for number in range(50):
                flow = kernel.open_tcp(pid=number % 7 + 2, name=f"p{number % 7}", remote=("2001:db8::1", 443))
                flow.transfer(rx=1000 + number, tx=10)
                if number % 2:
                    flow.close()
            await monitor.poll_now()
            await until(lambda: totals.get("quick") and totals["quick"].flows == 50)
            await monitor.aclose()
            await until(lambda: "slow" in totals)
        assert totals["slow"].flows == totals["quick"].flows == 50
        assert totals["slow"].rx_bytes == totals["quick"].rx_bytes == sum(1000 + number for number in range(50))
        assert totals["slow"].open_flows == 25

    anyio.run(main, backend=backend)


PROGRAM = """
import socket, sys
size, port = int(sys.argv[1]), int(sys.argv[2])
with socket.create_connection(("127.0.0.1", port)) as peer:
    peer.sendall(bytes(size))
    peer.shutdown(socket.SHUT_WR)
    while peer.recv(65536):
        pass
"""


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="needs the living Linux kernel")
def test_processes_of_this_machine_have_their_exact_bytes(tmp_path):
    """Several processes, each with traffic of a known size: each row has it, also when the process is gone."""
    sizes = [100_001, 250_002, 1_000_003]

    def answer(listener, release):
        peer, _ = listener.accept()
        with peer:
            while peer.recv(65536):
                pass
            release.wait(120)

    async def main():
        table, release = ProcessTable(), threading.Event()
        own = TrafficTable(GroupBy.local_port())
        listener = socket.create_server(("127.0.0.1", 0))  # no name is looked up: loopback may be all there is
        port = listener.getsockname()[1]
        servers = [threading.Thread(target=answer, args=(listener, release), daemon=True) for _ in sizes]
        children = []
        async with Monitor(backend=backends.SockDiag(), interval=0.05) as monitor:
            subscription = monitor.subscribe()
            async with anyio.create_task_group() as tasks:
                for server in servers:
                    server.start()
                await monitor.poll_now()

                async def feed():
                    while events := await subscription.receive_many():
                        table.feed_many(events)
                        own.feed_many(events)

                tasks.start_soon(feed)
                for size in sizes:
                    command = [sys.executable, "-c", PROGRAM, str(size), str(port)]
                    children += [await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None)]
                pids = {child.pid: size for child, size in zip(children, sizes, strict=True)}
                await until(lambda: {row.pid: row.tx_bytes for row in table.rows() if row.pid in pids} == pids)
                release.set()
                for child in children:
                    await child.wait()
                    await child.aclose()
                await monitor.poll_now()
                await until(lambda: all(row.open_flows == 0 for row in table.rows() if row.pid in pids))
                tasks.cancel_scope.cancel()
        listener.close()
        rows = {row.pid: row for row in table.rows() if row.kind is RowKind.GROUP}
        assert {pid: rows[pid].tx_bytes for pid in pids} == pids
        assert {rows[pid].rx_bytes for pid in pids} == {0}
        assert own.row(port).rx_bytes == sum(sizes)

    anyio.run(main)
