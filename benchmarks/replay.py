"""Replaying a recording of a million messages into nothing: as a library and as the command.

Run: ``python benchmarks/replay.py [--messages N]``. The recording (100 sources, polls of
updates in 4 KiB datagrams, every one changed, or none) is written to a temporary file first,
half a gigabyte for a million messages.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from _kernels import KERNEL, Flows, machine, table

from nstat_async import Monitor, backends
from nstat_async.recording import RecordingInfo, RecordingWriter, open_recording

LIBNTSTAT = (350_000, 600_000)
"""Messages a second of the C++ program libntstat, measured on a machine of this kind: least and most."""


def write(path, messages, *, changed, sources=100):
    """A recording of at least so many messages; returns how many."""
    flows = Flows(sources)
    count = 0
    with open(path, "wb") as file, RecordingWriter(file, RecordingInfo(kernel=KERNEL), flush=False) as writer:
        while count < messages:
            number = count // sources
            for datagram in flows.poll(number, changed=changed):
                writer.from_kernel(datagram, number * 10**9)
            count += sources
    return count


def read_only(path):
    with open_recording(path) as recording:
        for batch in recording.records_batch(256):
            assert batch


async def drained(path):
    events = 0
    async with Monitor(backend=backends.Replay(path)) as monitor:
        subscription = monitor.subscribe()
        while batch := await subscription.receive_many():
            events += len(batch)
    return events


async def iterated(path):
    events = 0
    async with Monitor(backend=backends.Replay(path)) as monitor:
        async for _ in monitor:
            events += 1
    return events


def command(path, *flags):
    program = [sys.executable, "-m", "nstat_async", "replay", *flags, path]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with open(os.devnull, "wb") as sink:
        subprocess.run(program, stdout=sink, stderr=sink, check=True, env=environment)


def timed(function, rounds):
    """Medians of (processor seconds, wall seconds), children included."""
    spans, walls = [], []
    for _ in range(rounds):
        before = _processor()
        begin = time.perf_counter()
        function()
        walls.append(time.perf_counter() - begin)
        spans.append(_processor() - before)
    return statistics.median(spans), statistics.median(walls)


def _processor():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(path, messages, what, rounds):
    ways = [
        ("file read, records made", lambda: read_only(path)),
        ("Monitor, receive_many", lambda: anyio.run(drained, path)),
        ("Monitor, async for", lambda: anyio.run(iterated, path)),
        ("command, --json > /dev/null", lambda: command(path, "--json")),
        ("command, text > /dev/null", lambda: command(path)),
    ]
    for name, function in ways:
        span, wall = timed(function, 1 if name.startswith("command") and what == "all changed" else rounds)
        speed = messages / span
        yield [
            f"{what}: {name}",
            f"{speed:,.0f}",
            f"{messages / wall:,.0f}",
            f"{span / messages * 1e9:,.0f}",
            f"{speed / LIBNTSTAT[0]:.2f}-{speed / LIBNTSTAT[1]:.2f}",
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    rows = []
    for changed, what in ((True, "all changed"), (False, "nothing changed")):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "large.nstat")
            messages = write(path, arguments.messages, changed=changed)
            print(f"{what}: {messages:,} messages, {os.path.getsize(path):,} bytes")
            rows += measure(path, messages, what, arguments.rounds)
    header = ["(e) replay", "messages/s of CPU", "messages/s of wall", "ns each", "x libntstat"]
    table("replay of a large recording", header, rows)


if __name__ == "__main__":
    main()
