"""One look at all sockets of a Linux machine: this library beside the bare kernel, psutil and ss, in turn.

Run: ``python benchmarks/linux_look.py [--sockets 8000 50000]`` (as root it makes a network namespace of its own).

- The floor of a poll is four bare dumps (TCP and UDP over IPv4 and IPv6), received by a loop that looks for the end only.
- Beside it stand the dumps that a poll asks for, as bare: TCP sockets of both families in one walk. No poll costs less.
- A poll is of a monitor that is open, asked for, when nothing changed: once with eBPF off, by dumps alone, and once as
  it comes, which as root asks an eBPF program where there are 5,000 sockets. ``snapshot()`` is from nothing, with owners.
- psutil and ss are measured where they are installed; nobody parses the text of ss.
- The least look is what each look consists of, in as little Python as that takes: the link of each descriptor of all
  processes, a dump of TCP with ``tcp_info``, and two objects for each socket.
- The hold is the longest processor time of one turn of the event loop in the first poll, which makes all flows.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

import _turns
from _turns import Done, Row, cpu, environment, in_turn_async
from linux_common import Holders, HoldMeter, enter_namespace

from nstat_async import Monitor, snapshot

try:
    from nstat_async._cli._run import collecting_rarely
    from nstat_async._compiled import speedups
except ImportError:  # an older checkout, to be compared with
    from contextlib import nullcontext as collecting_rarely

    speedups = None

_ALIVE, _ALL = 0xF36, 0xFFFFFFFF
DUMPS = [
    struct.pack("=IHHII4BI48x", 72, 20, 0x301, 1, 0, family, protocol, extensions, 0, states)
    for protocol, extensions, states in ((6, 10, _ALIVE), (17, 64, _ALL))
    for family in (2, 10)
]
"""Requests of ``SOCK_DIAG_BY_FAMILY`` with the extensions that a monitor asks for (tcp_info, and the like)."""
TOGETHER = [struct.pack("=IHHII3xB48xII", 76, 18, 0x301, 1, 0, 10, _ALIVE, 0), *DUMPS[2:]]
"""The same with ``TCPDIAG_GETSOCK``, as a poll asks."""


def dumps(times, requests=DUMPS):
    """Bare dumps, so many times."""
    head, messages = struct.Struct("=IH"), 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
        begin = cpu()
        for _ in range(times):
            for request in requests:
                sock.send(request)
                while head.unpack_from(sock.recv(65536))[1] != 3:
                    messages += 1
        return Done(times, cpu() - begin, messages)


def watching(**options):
    """A monitor that polls when it is asked to; an older checkout knows fewer options."""
    known = inspect.signature(Monitor).parameters
    return Monitor(
        interval=None, **{name: value for name, value in {"pulse": None, **options}.items() if name in known}
    )


async def polls(arguments, times):
    def poll(monitor):
        async def run():
            begin = cpu()
            for _ in range(times):
                await monitor.poll_now()
            return Done(times, cpu() - begin, len(monitor.flows))

        return run

    async def floor():
        return dumps(times)

    async def least():
        return dumps(times, TOGETHER)

    async with watching(ebpf="off") as dumping, watching() as walking:
        for _ in range(1 if arguments.short else 20):  # who holds what is found out once, in the first seconds
            for monitor in (dumping, walking):
                await monitor.poll_now()
            await asyncio.sleep(arguments.count / 200_000)
        many = arguments.count > 20_000
        wanted = (1.25 if many else 1.10) if speedups is None else (1.0 if many else 0.95)
        dumped, walked = "a poll, nothing changed", "a poll, nothing changed, with eBPF"
        ways = {
            "four bare dumps": floor,
            "the dumps of a poll, bare": least,
            dumped: poll(dumping),
            walked: poll(walking),
        }
        wanted = {dumped: wanted, walked: wanted}
        return await in_turn_async(arguments.rounds, ways, floor="four bare dumps", wanted=wanted, unit="ms")


class Seen:
    """As little as may be said of a socket: two of these are made for each, as a flow and its counts are."""

    __slots__ = ("about", "message")


def holders_of_sockets():
    """Inode to process, of all sockets that a process has a descriptor of."""
    holders = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY)
        except OSError:
            continue
        for number in os.listdir(directory):
            try:
                target = os.readlink(number, dir_fd=directory)
            except OSError:
                continue
            if target.startswith("socket:["):
                holders[int(target[8:-1])] = int(pid)
        os.close(directory)
    return holders


def least_look():
    """A look at TCP that does nothing else than it must."""
    head, place, new = struct.Struct("=IH"), struct.Struct("=84xI"), object.__new__
    holders, found = holders_of_sockets(), []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
        sock.send(TOGETHER[0])
        while True:
            data, at = sock.recv(65536), 0
            while at < len(data):
                length, kind = head.unpack_from(data, at)
                if kind == 3:
                    return found
                flow, counts = new(Seen), new(Seen)
                flow.message = counts.message = message = data[at : at + length]
                flow.about = holders.get(place.unpack_from(message)[0])
                found.append((flow, counts))
                at += (length + 3) & ~3


def program(*words):
    async def run():
        text = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout  # noqa: ASYNC221  # nothing else runs
        return Done(1, counted=text.count(b"\n"))

    return run


async def looks(arguments):
    async def ours():
        return Done(1, counted=len(await snapshot(providers="tcp")))

    async def least():
        return Done(1, counted=len(least_look()))

    ways, floor = {"snapshot(), TCP": ours, "the least look, in Python": least}, None
    if importlib.util.find_spec("psutil"):
        import psutil

        async def theirs():
            return Done(1, counted=len(psutil.net_connections("tcp")))

        ways, floor = {"psutil.net_connections('tcp')": theirs, **ways}, "psutil.net_connections('tcp')"
    if shutil.which("ss"):
        ways |= {"ss -tinHO": program("ss", "-tinHO"), "ss -tinHOp": program("ss", "-tinHOp")}
    await ours()
    async with watching(providers="tcp") as monitor:

        async def again():
            await monitor.poll_now()
            return Done(1, counted=len(monitor.flows))

        await again()
        ways |= {"a poll of an open monitor, TCP": again}
        wanted = {"snapshot(), TCP": 1.0} if floor else None
        return await in_turn_async(arguments.rounds, ways, floor=floor, wanted=wanted, unit="ms")


async def first_poll():
    """The longest holds of a first poll; in a process of its own, since the collector walks all that lives."""
    async with Monitor(providers="udp", interval=None):  # what is imported when a monitor is opened is imported now
        pass
    with HoldMeter() as meter:
        async with Monitor(interval=None) as monitor:
            await monitor.poll_now()
            return {"whole": meter.longest, "besides": meter.besides_collector, "flows": len(monitor.flows)}


HOLDS = {
    "longest hold": ("--first-poll", "whole", ""),
    "longest hold besides the collector": ("--first-poll", "besides", "wanted: 5 ms"),
    "longest hold in the command": ("--first-poll-of-the-command", "whole", "wanted: 15 ms"),
}


def holds(arguments):
    rows = [Row("four bare dumps", "ms"), *(Row(name, "ms", note=note) for name, (_, _, note) in HOLDS.items())]
    for _ in range(arguments.rounds):
        begin = time.process_time()
        flows = dumps(1).counted
        rows[0].costs.append(time.process_time() - begin)
        answers = {}
        for option in dict.fromkeys(option for option, _, _ in HOLDS.values()):
            command = [sys.executable, __file__, option]
            child = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
            answers[option] = json.loads(child.stdout)
        for row in rows[1:]:
            option, key, _ = HOLDS[row.name]
            answer = answers[option]
            row.costs.append(answer[key])
            row.of, row.units, row.counted = rows[0].name, 1, answer["flows"]
        rows[0].units, rows[0].counted = 1, flows
    for row in rows[1:]:
        row.ratios = [a / b for a, b in zip(row.costs, rows[0].costs, strict=True)]
    return rows


def measure(arguments):
    for count in arguments.sockets or ([200] if arguments.short else [8_000, 50_000]):
        arguments.count = count
        with Holders(count):
            yield (
                f"{count:,} sockets: a poll",
                asyncio.run(polls(arguments, 1 if arguments.short else max(3, 60_000 // count))),
            )
            yield f"{count:,} sockets: a look", asyncio.run(looks(arguments))
            yield f"{count:,} sockets: the first poll", holds(arguments)


if __name__ == "__main__":
    if sys.argv[1:] == ["--first-poll"]:
        print(json.dumps(asyncio.run(first_poll())))
    elif sys.argv[1:] == ["--first-poll-of-the-command"]:
        with collecting_rarely():
            print(json.dumps(asyncio.run(first_poll())))
    else:
        enter_namespace()
        _turns.main(__file__, __doc__, measure, options=[("--sockets", {"type": int, "nargs": "+"})])
