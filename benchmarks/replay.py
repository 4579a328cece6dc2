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
from _kernels import KERNEL, Flows, write_bin
from _turns import Done, environment, in_turn

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


_CHILD = """
import sys, time, anyio
from nstat_async import Monitor, backends
from nstat_async.__main__ import main

async def drained(path, kernel):
    events = 0
    async with Monitor(backend=backends.Replay(path, kernel=kernel or None)) as monitor:
        subscription = monitor.subscribe()
        while batch := await subscription.receive_many():
            events += len(batch)
    return events

def spent(path):
    begin = time.process_time()
    done = main([*words, path]) if words[0] == "replay" else anyio.run(drained, path, words[1])
    return time.process_time() - begin, done

first, path, *words = sys.argv[1:]
spent(first)
print(*spent(path), file=sys.stderr)
"""


class Processes:
    """What replays in a process of its own, which measures itself: without its start, and what is imported at the first use."""

    def __init__(self, directory, messages):
        self.messages = messages
        self._first = os.path.join(directory, "first.nstat"), os.path.join(directory, "first.bin")
        write(self._first[0], SOURCES, changed=True)

    def _spent(self, *words, pure):
        few = self.messages < 10_000
        answer = subprocess.run(
            [sys.executable, "-c", _CHILD, *words], stdout=subprocess.PIPE if few else subprocess.DEVNULL, check=True,
            stderr=subprocess.PIPE, env={**environment(), "NSTAT_ASYNC_PURE": str(int(pure))},
        )  # fmt: skip
        span, done = answer.stderr.split()[-2:]
        if few and words[2] == "replay":
            done = answer.stdout.count(b"\n") - SOURCES  # the lines of `first` are none of them
        return Done(self.messages, float(span), int(done))

    def library(self, path, kernel="", *, pure=False):
        """A program that reads all events and does nothing with them."""
        if kernel:
            write_bin(self._first[1], kernel, SOURCES, changed=True)
        return self._spent(self._first[bool(kernel)], path, "library", kernel, pure=pure)

    def command(self, path, *flags, pure=False):
        """The command; its lines go nowhere, unless they are few and counted."""
        return self._spent(self._first[0], path, "replay", *flags, pure=pure)


def start(path):
    """The command from its start to its end, with a recording of a hundred messages."""
    subprocess.run([sys.executable, "-m", "nstat_async", "replay", path], stdout=subprocess.DEVNULL, check=True,
                   env=environment())  # fmt: skip
    return Done(1, counted=1)


def peer(text, path, kernel, messages):
    words = shlex.split(text if "{file}" in text else f"{text} {{file}}")
    major = kernel.removeprefix("xnu-").partition(".")[0]
    program = [word.format(file=path, kernel=kernel, major=major) for word in words]
    answer = subprocess.run(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if answer.returncode < 0:
        sys.exit(f"{program[0]} was ended by signal {-answer.returncode}")
    return Done(messages, counted=answer.returncode)


def headerless(arguments, directory, processes):
    """`.bin` files of old kernels, beside a peer."""
    messages = arguments.messages
    for kernel in OLD:
        for changed, what in ((True, "changed"), (False, "idle")):
            path = os.path.join(directory, "old.bin")
            write_bin(path, kernel, messages, changed=changed)
            ways = {
                "floor: records cut out": lambda path=path: cut(path, messages),
                "library": lambda path=path, kernel=kernel: processes.library(path, kernel),
                "library, Python alone": lambda path=path, kernel=kernel: processes.library(path, kernel, pure=True),
            }
            floor, wanted = "floor: records cut out", None
            if arguments.peer:
                ways["peer"] = lambda path=path, kernel=kernel: peer(arguments.peer, path, kernel, messages)
                floor = "peer"
                wanted = {"library": 1.0 if changed else 0.5, "library, Python alone": 2.0 if changed else 0.9}
            title = f"{kernel}, counts, one a record, {what}"
            yield title, in_turn(arguments.rounds, ways, floor=floor, wanted=wanted)


def own(arguments, directory, processes):
    """The library's own recordings, and the command beside the library."""
    for changed, what in ((True, "changed"), (False, "idle")):
        path = os.path.join(directory, "own.nstat")
        write(path, arguments.messages, changed=changed)
        for pure, code in ((False, ""), (True, ", Python alone")):
            ways = {
                "library": lambda path=path, pure=pure: processes.library(path, pure=pure),
                "command, --json": lambda path=path, pure=pure: processes.command(path, "--json", pure=pure),
                "command, text": lambda path=path, pure=pure: processes.command(path, pure=pure),
            }
            title = f"{KERNEL}, updates, {what}{code}"
            yield title, in_turn(arguments.rounds, ways, floor="library", wanted={"command, --json": 1.7})
    first = os.path.join(directory, "first.nstat")
    yield "the command without lines", in_turn(arguments.rounds, {"start and end": lambda: start(first)}, unit="s")


def measure(arguments):
    arguments.messages = arguments.messages or (2_000 if arguments.short else 500_000)
    with tempfile.TemporaryDirectory() as directory:
        processes = Processes(directory, arguments.messages)
        yield from headerless(arguments, directory, processes)
        yield from own(arguments, directory, processes)


if __name__ == "__main__":
    options = [
        ("--messages", {"type": int, "help": "in each recording (default: 500,000)"}),
        ("--peer", {"metavar": "COMMAND", "help": "a program that replays headerless recordings"}),
    ]
    _turns.main(__file__, __doc__, measure, options=options, rounds=3)
