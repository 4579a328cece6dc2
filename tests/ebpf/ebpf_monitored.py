"""A monitor of the living kernel beside what a test does, in this process or, with few capabilities, in another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from ebpf_living import LIMIT, NotReportedError, pauses

from nstat_async import FlowAdded, FlowRemoved, Monitor
from nstat_async import json as flow_json
from nstat_async._model import Direction

_CLOSED = re.compile(
    r"setpriv: failed to execute|error while loading shared libraries|No module named|PermissionError: .*site-packages"
)
"""What another user's process says if this Python, or the project, lies in somebody's closed home."""


class Seen:
    """A monitor, and everything that it said."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.events = []

    async def keep(self) -> None:
        async for event in self.monitor:
            self.events.append(event)

    async def until(
        self, condition: Callable[[], object], stir: Callable[[], Awaitable[object]] | None = None
    ) -> object:
        """Wait until it is true, and stir between two looks; its value."""
        for pause in pauses():
            if value := condition():
                return value
            if stir is not None:
                await stir()
            await asyncio.sleep(pause)
        raise NotReportedError(f"not within {LIMIT} s; {len(self.events)} events")

    def of(self, kind: type, port: int) -> list:
        return [
            e for e in self.events if isinstance(e, kind) and e.flow.local is not None and e.flow.local.port == port
        ]


def monitored(work, **options) -> Seen:
    """Run a coroutine function beside an open monitor; what the monitor said."""

    async def run() -> Seen:
        async with Monitor(**{"providers": ("tcp", "udp"), "ebpf": "require", **options}) as monitor:
            seen = Seen(monitor)
            keeper = asyncio.ensure_future(seen.keep())
            try:
                await work(seen)
            finally:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper
            return seen

    return asyncio.run(run())


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def port(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def connection() -> tuple[socket.socket, socket.socket, socket.socket]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(8)
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0], server


async def end_of_connection(seen: Seen) -> FlowRemoved:
    """A connection sends three bytes and is closed: its end, when that is reported."""
    client, inbound, server = connection()
    number = port(client)
    client.sendall(bytes(3))
    for sock in (client, inbound, server):
        sock.close()
    await seen.until(lambda: seen.of(FlowRemoved, number))
    (removed,) = seen.of(FlowRemoved, number)
    return removed


def own(event) -> bool:
    return event.flow.process is not None and event.flow.process.pid == os.getpid()


def short_processes(traffic: str, count: int) -> dict[int, tuple[int, int, int | None]]:
    """Processes that connect to themselves and are gone: by port their pid, bytes and datagrams."""
    truth, running = {}, []
    for index in range(count):
        for job in (("tcp", 10000 + index, 1000 + index), ("udp", 20000 + index, 100 + index, 1 + index % 7)):
            running.append(process := subprocess.Popen([traffic, *map(str, job)]))
            datagrams = job[3] if len(job) > 3 else None
            truth[job[1]] = process.pid, job[2] * (datagrams or 1), datagrams
        while len(running) > 8:
            assert running.pop(0).wait() == 0
    assert [process.wait() for process in running] == [0] * len(running)
    return truth


def ends(events, truth) -> dict[tuple[int, bool], FlowRemoved]:
    """The ends of the flows of these processes, by port and whether they sent; none twice."""
    found = {}
    for event in events:
        if isinstance(event, FlowRemoved):
            local, remote = event.flow.local.port, event.flow.remote and event.flow.remote.port
            sends = remote in truth
            key = (remote if sends else local), sends
            if key[0] in truth and (event.flow.provider.value == "udp" or remote):
                assert key not in found, event
                found[key] = event
    return found


def check_short_processes(events, truth, *, packets: bool) -> None:
    found = ends(events, truth)
    added = {e.flow.id for e in events if isinstance(e, FlowAdded)}
    assert len(found) == 2 * len(truth)
    for (number, sends), event in found.items():
        pid, size, datagrams = truth[number]
        assert event.flow.id in added
        if event.flow.process is None:
            raise NotReportedError(event)
        assert (event.flow.process.pid, event.flow.process.name) == (pid, "traffic")
        assert event.final
        assert (event.counts.tx_bytes, event.counts.rx_bytes) == ((size, 0) if sends else (0, size))
        if datagrams is not None and packets:
            assert (event.counts.tx_packets, event.counts.rx_packets) == ((datagrams, 0) if sends else (0, datagrams))
        if datagrams is None:
            assert event.flow.direction is (Direction.OUTBOUND if sends else Direction.INBOUND)


class Watcher:
    """``nstat-async watch --json`` in a process of its own, with exactly these capabilities."""

    def __init__(self, *capabilities: str, ebpf: str = "require", netns: str | None = None) -> None:
        wanted = ",".join(f"+{name}" for name in capabilities)
        caps = f"-all,{wanted}" if wanted else "-all"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={caps}"]
        command += [f"--ambient-caps={caps}", sys.executable, "-m", "nstat_async", "watch", "--json", "--ebpf", ebpf]
        command += ["--interval", "0.3", *(["--netns", netns] if netns else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events: list = []
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.append(flow_json.loads(line))

    def until(self, condition: Callable[[], object]) -> None:
        for pause in pauses():
            if condition():
                return
            if self.process.poll() is not None:
                error = self.process.stderr.read()
                if _CLOSED.search(error):
                    pytest.skip("this Python, or the project, is closed to other users")
                pytest.fail(error)
            time.sleep(pause)
        raise NotReportedError(len(self.events))

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)  # SIGINT is ignored where these tests run in the background
        self.process.wait(LIMIT)
        self.thread.join()
        self.process.stdout.close()
        self.process.stderr.close()
