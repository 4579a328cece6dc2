"""What tests of a living fleet share: a NATS server, a proxy that stalls, machines of known traffic."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from nstat_async import FlowRemoved, Monitor
from nstat_async.backends import StreamSettings
from nstat_async.testing import EmulatedKernel

try:
    from nstat_async.integrations.nats import Publisher
except ImportError:  # nats-py is an extra: without it these tests are skipped
    Publisher = None

BINARY = Publisher and shutil.which(
    "nats-server", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
MAY_MOUNT = sys.platform == "linux" and os.geteuid() == 0 and not os.system("unshare -m true 2>/dev/null")
needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs root and mount namespaces")
PATIENCE = 120.0
"""Seconds that a condition may take on a machine that is busy with others."""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """A nats-server with JetStream, which can be killed and started again with what it has on its disk."""

    def __init__(self, place, *, config="", store=None, inside=lambda *command: list(command)):
        self.place, self.port, self._inside = Path(place), free_port(), inside
        self.store = Path(store or self.place / "js")
        self.config = self.place / f"nats-{self.port}.conf"
        self.config.write_text(
            f'host: 127.0.0.1\nport: {self.port}\njetstream {{ store_dir: "{self.store}" }}\n{config}\n'
        )
        self.process = None

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    def start(self):
        log = self.place / f"nats-{self.port}.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(self._inside(BINARY, "-c", str(self.config)), stdout=out, stderr=out)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.02)
        raise RuntimeError("nats-server does not listen")

    def kill(self):
        """kill -9."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


class Proxy:
    """Between a client and the server; after `stall` it takes bytes and lets none through, as a broken network does."""

    def __init__(self, port):
        self._target, self.port = port, 0
        self._tasks = set()
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self):
        return f"nats://127.0.0.1:{self.port}"

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def stall(self):
        self._flows.clear()

    def cut(self):
        """All connections end, and new ones wait."""
        self.stall()
        for task in list(self._tasks):
            task.cancel()

    def flow(self):
        self._flows.set()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        asyncio.current_task().add_done_callback(self._tasks.discard)
        other = None
        try:
            await self._flows.wait()
            there, other = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._copy(reader, other), self._copy(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, other):
                if each is not None:
                    each.transport.abort()

    async def _copy(self, reader, writer):
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise OSError("one side is gone")


class Machine:
    """An emulated machine of known traffic, and its publisher."""

    def __init__(self, name, url, **options):
        self.name = name
        self.kernel = EmulatedKernel(clock=time.monotonic)
        self.truth = Counter()
        """Bytes received and sent, by process id."""
        self.flows = []
        options = {"linger": 0.02, "heartbeat": 0.5, "stream": StreamSettings(max_bytes=64 << 20), **options}
        self.publisher = Publisher(url, host=name, **options)
        self.monitor = None

    def open(self, pid=501, name="curl", remote=("198.51.100.7", 443), **more):
        flow = self.kernel.open_tcp(pid, name, remote=remote, **more)
        self.flows.append((flow, pid))
        return flow

    def move(self, rx=1000, tx=100):
        """Every flow carries something."""
        for flow, pid in self.flows:
            flow.transfer(rx, tx)
            self.truth[pid] += rx + tx

    def close(self):
        """Every flow ends."""
        for flow, _ in self.flows:
            flow.close()
        self.flows.clear()

    async def __aenter__(self):
        self.monitor = Monitor(backend=self.kernel.backend(), interval=0.1)
        await self.monitor.start()
        self._task = asyncio.create_task(self.publisher.run(self.monitor))
        return self

    async def kill(self):
        """It ends without a word."""
        connection = self.publisher._sender._connection
        if connection is not None:
            connection.client._transport.close()
            connection.end()
        await self._end()

    async def _end(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.monitor.aclose()

    async def __aexit__(self, *_):
        await self._end()
        self.kernel.close()


class Watcher:
    """A subscriber: what it got, as events and as a table."""

    def __init__(self, monitor, table):
        self.events, self.table = [], table
        self._subscription = monitor.subscribe()

    async def until(self, condition):
        """Read until this is true."""
        with anyio.fail_after(PATIENCE):
            while not condition():
                for event in await self._subscription.receive_many():
                    self.events.append(event)
                    self.table.feed(event)
        return self

    def of(self, kind, **facts):
        return [e for e in self.events if isinstance(e, kind) and all(getattr(e, k) == v for k, v in facts.items())]

    @property
    def totals(self):
        return {(row.source, row.pid): row.bytes for row in self.table.rows() if row.pid and row.bytes}

    def ended(self, count):
        return lambda: len(self.of(FlowRemoved, final=True)) >= count


def truth(*machines):
    return {(machine.name, pid): total for machine in machines for pid, total in machine.truth.items()}


class SmallDisk:
    """A directory on a small tmpfs in a mount namespace of its own, for a server whose disk can be full."""

    def __init__(self, place, size):
        self.place = Path(place) / "disk"
        self.place.mkdir()
        command = f"mount -t tmpfs -o size={size} tmpfs {self.place} && echo mounted && exec sleep 1000"
        self._holder = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE)
        assert self._holder.stdout.readline() == b"mounted\n"

    def inside(self, *command):
        """A command as it is run there."""
        return ["nsenter", "-t", str(self._holder.pid), "-m", *command]

    def fill(self):
        filler = ["dd", "if=/dev/zero", f"of={self.place}/filler", "bs=64k"]
        subprocess.run(self.inside(*filler), stderr=subprocess.DEVNULL, check=False)

    def empty(self):
        subprocess.run(self.inside("rm", f"{self.place}/filler"), check=True)

    def close(self):
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()
