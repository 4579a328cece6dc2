"""One look at all TCP sockets by this library, by psutil and by ss; and what each sees of short connections.

Linux, in a network namespace of its own, so that nothing else is counted::

    unshare -n sh -c 'ip link set lo up && python benchmarks/comparison.py'

Needs psutil and iproute2. Nothing leaves the namespace.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from nstat_async import FlowRemoved, Monitor, __version__, snapshot

LOOKS = 7
SIZE = 10_000
SHORT = 200
LIFE = 0.05
SPREAD = 4.0
EVERY = 1.0


def ss(*options):
    return subprocess.run(["ss", "-tinHO", *options], capture_output=True, text=True, check=True).stdout


def cpu():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def timed(look):
    walls, cpus = [], []
    for _ in range(LOOKS):
        before, wall = cpu(), time.perf_counter()
        look()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu() - before)
    return statistics.median(walls) * 1e3, statistics.median(cpus) * 1e3


async def steady():
    """A poll of a monitor that is open anyway."""
    walls, cpus = [], []
    async with Monitor(providers="tcp", interval=None) as monitor:
        await monitor.poll_now()
        for _ in range(LOOKS):
            before, wall = cpu(), time.perf_counter()
            await monitor.poll_now()
            walls.append(time.perf_counter() - wall)
            cpus.append(cpu() - before)
    return statistics.median(walls) * 1e3, statistics.median(cpus) * 1e3


def costs(sockets):
    """Hold this many established sockets in another process and look."""
    code = (
        "import socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0), backlog=4096); held = []\n"
        f"for _ in range({sockets // 2}):\n"
        "    c = socket.create_connection(s.getsockname()); held += [c, s.accept()[0]]\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        rows = [
            ("nstat_async, a poll of an open monitor", anyio.run(steady)),
            ("nstat_async, `snapshot()` from nothing", timed(lambda: anyio.run(lambda: snapshot(providers="tcp")))),
            ("`psutil.net_connections('tcp')`, no counters", timed(lambda: psutil.net_connections("tcp"))),
            ("`ss -tinHO`, text not parsed", timed(ss)),
            ("`ss -tinHOp`, text not parsed", timed(lambda: ss("-p"))),
        ]
        child.stdin.close()
    return rows


def traffic(ports):
    """Short connections; each receives SIZE bytes. Fills `ports` with the clients' ports."""
    server = socket.create_server(("127.0.0.1", 0), backlog=256)

    def serve():
        for _ in range(SHORT):
            peer, _ = server.accept()
            peer.sendall(bytes(SIZE))
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1)
            peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(SHORT):
        with socket.create_connection(server.getsockname()) as client:
            ports.add(client.getsockname()[1])
            left = SIZE
            while left:
                left -= len(client.recv(65536))
            time.sleep(LIFE)
        time.sleep(max(0.0, SPREAD / SHORT - LIFE))
    thread.join()
    server.close()


def polled(look):
    """(different ports used, seen, with exact bytes) by looking each second."""
    ports, seen, exact = set(), set(), set()
    thread = threading.Thread(target=traffic, args=(ports,))
    thread.start()
    while thread.is_alive():
        for port, received in look():
            seen.add(port)
            if received == SIZE:
                exact.add(port)
        thread.join(EVERY)
    return len(ports), len(seen & ports), len(exact & ports)


def by_psutil():
    """Ports of either end: the server's end stays for a minute, in TIME_WAIT, with the client's port as its peer's."""
    for connection in psutil.net_connections("tcp"):
        for end in (connection.laddr, connection.raddr):
            if end:
                yield end.port, None


def by_ss():
    for line in ss("-a").splitlines():
        ends = re.search(r"\S+:(\d+)\s+\S+:(\d+|\*)", line)
        received = re.search(r"bytes_received:(\d+)", line)
        yield int(ends[1]), int(received[1]) if received else None
        if ends[2] != "*":
            yield int(ends[2]), None


async def by_library():
    ports, seen, exact = set(), set(), set()
    async with Monitor(providers="tcp", interval=EVERY) as monitor, anyio.create_task_group() as tasks:
        await monitor.poll_now()

        async def read():
            async for event in monitor:
                if isinstance(event, FlowRemoved) and event.flow.local is not None:
                    seen.add(event.flow.local.port)
                    if event.final and event.counts.rx_bytes == SIZE:
                        exact.add(event.flow.local.port)

        tasks.start_soon(read)
        await anyio.to_thread.run_sync(traffic, ports)
        await monitor.poll_now()
        await anyio.sleep(0.2)
        tasks.cancel_scope.cancel()
    return len(ports), len(seen & ports), len(exact & ports)


def main():
    print(
        f"nstat_async {__version__}, psutil {psutil.__version__}, Python {platform.python_version()}, "
        f"Linux {platform.release()}, {os.cpu_count()} CPUs"
    )
    for sockets in (1_000, 8_000):
        print(f"\n| {sockets:,} TCP sockets: one look | ms | ms of CPU | ratio of CPU |\n|---|---|---|---|")
        rows = costs(sockets)
        for name, (wall, used) in rows:
            print(f"| {name} | {wall:.1f} | {used:.1f} | {used / rows[0][1][1]:.1f} |")
    print(
        f"\n| {SHORT} connections of {LIFE * 1e3:.0f} ms, a look each {EVERY:.0f} s | ports used | seen | with exact bytes |\n|---|---|---|---|"
    )
    for name, (used, seen, exact) in (
        ("nstat_async", anyio.run(by_library)),
        ("`psutil.net_connections('tcp')`", polled(by_psutil)),
        ("`ss -tinaHO`", polled(by_ss)),
    ):
        print(f"| {name} | {used} | {seen} | {exact} |")


if __name__ == "__main__":
    main()
