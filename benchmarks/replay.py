"""Replaying large recordings into nothing: as a library, as the command, and by a program of yours, in turn.

Run: ``python benchmarks/replay.py [--messages N] [--peer 'COMMAND {file} {kernel}']``. ``--peer`` names a program
that replays headerless recordings (``.bin``), such as the one that comes with libntstat; ``{file}``, ``{kernel}`` (xnu-4570.1.46)
and ``{major}`` (4570) are replaced, and without ``{file}`` the file comes last. Without a peer there is nothing to be compared with but the floor:
the file read, its records cut out. The recordings are written to a temporary directory (half a gigabyte).
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
import sys
import tempfile

import _turns
import anyio
from _kernels import KERNEL, Flows, write_bin
from _turns import Done, environment, in_turn

from nstat_async import Monitor
from nstat_async.backends import Replay
from nstat_async.recording import RecordingInfo, RecordingWriter

SOURCES = 100
OLD = ("xnu-4570.1.46", "xnu-3789.70.16")
_CHUNK = 1 << 20


def write(path, messages, *, changed):
    """A recording in the library's own format: polls of updates in datagrams of 4 KiB."""
    flows = Flows(SOURCES)
    with open(path, "wb") as file, RecordingWriter(file, RecordingInfo(kernel=KERNEL), flush=False) as writer:
        for number in range(messages // SOURCES):
            for datagram in flows.poll(number, changed=changed):
                writer.from_kernel(datagram, number * 10**9)


def cut(path, messages):
    """The floor of a ``.bin``: read by the megabyte, its records cut out."""
    unpack, records, rest = struct.Struct("<II").unpack_from, 0, b""
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            data, at = rest + data, 0
            end = len(data) - 8
            while at <= end:
                stop = at + 8 + unpack(data, at)[1]
                if stop > end + 8:
                    break
                data[at + 8 : stop]
                records, at = records + 1, stop
            rest = data[at:]
    return Done(messages, counted=records)


def library(path, messages, kernel=None):
    async def drained():
        events = 0
        async with Monitor(backend=Replay(path, kernel=kernel)) as monitor:
            subscription = monitor.subscribe()
            while batch := await subscription.receive_many():
                events += len(batch)
        return events

    return Done(messages, counted=anyio.run(drained))


def command(path, messages, *flags):
    program = [sys.executable, "-m", "nstat_async", "replay", *flags, path]
    answer = subprocess.run(program, stdout=subprocess.PIPE if messages < 10_000 else subprocess.DEVNULL, check=True,
                            stderr=subprocess.DEVNULL, env=environment())  # fmt: skip
    return Done(messages, counted=answer.stdout and answer.stdout.count(b"\n"))


def peer(text, path, kernel, messages):
    words = shlex.split(text if "{file}" in text else f"{text} {{file}}")
    major = kernel.removeprefix("xnu-").partition(".")[0]
    program = [word.format(file=path, kernel=kernel, major=major) for word in words]
    answer = subprocess.run(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if answer.returncode < 0:
        sys.exit(f"{program[0]} was ended by signal {-answer.returncode}")
    return Done(messages, counted=answer.returncode)


def headerless(arguments, directory):
    """`.bin` files of old kernels, beside a peer."""
    messages = arguments.messages
    for kernel in OLD:
        for changed, what in ((True, "changed"), (False, "idle")):
            path = os.path.join(directory, "old.bin")
            write_bin(path, kernel, messages, changed=changed)
            ways = {
                "floor: records cut out": lambda path=path: cut(path, messages),
                "library": lambda path=path, kernel=kernel: library(path, messages, kernel),
            }
            floor, wanted = "floor: records cut out", None
            if arguments.peer:
                ways["peer"] = lambda path=path, kernel=kernel: peer(arguments.peer, path, kernel, messages)
                floor, wanted = "peer", {"library": 2.0 if changed else 0.9}
            title = f"{kernel}, counts, one a record, {what}"
            yield title, in_turn(arguments.rounds, ways, floor=floor, wanted=wanted)


def own(arguments, directory):
    """The library's own recordings, and the command beside the library."""
    messages = arguments.messages
    for changed, what in ((True, "changed"), (False, "idle")):
        path = os.path.join(directory, "own.nstat")
        write(path, messages, changed=changed)
        ways = {
            "library": lambda path=path: library(path, messages),
            "command, --json": lambda path=path: command(path, messages, "--json"),
            "command, text": lambda path=path: command(path, messages),
        }
        title = f"{KERNEL}, updates, {what}"
        yield title, in_turn(arguments.rounds, ways, floor="library", wanted={"command, --json": 1.7})


def measure(arguments):
    arguments.messages = arguments.messages or (2_000 if arguments.short else 500_000)
    with tempfile.TemporaryDirectory() as directory:
        first = os.path.join(directory, "first.nstat")
        write(first, SOURCES, changed=True)
        library(first, SOURCES)  # what is imported at the first use is no part of a replay
        yield from headerless(arguments, directory)
        yield from own(arguments, directory)


if __name__ == "__main__":
    options = [
        ("--messages", {"type": int, "help": "in each recording (default: 500,000)"}),
        ("--peer", {"metavar": "COMMAND", "help": "a program that replays headerless recordings"}),
    ]
    _turns.main(__file__, __doc__, measure, options=options, rounds=3)
