"""One complete refresh of the picture: this library beside psutil, pyroute2, ss, and the bare kernel.

Run: ``python benchmarks/linux_refresh.py [--sockets 1000 10000 50000] [--rounds 3] [--json]``
Needs Linux; psutil, pyroute2 and ss are measured where they are installed. Every
candidate is a process of its own that looks at the same idle sockets; candidates take
turns, and medians are shown. Compare ratios, not milliseconds; on a machine with other work those of CPU.

- ``floor``: the four dumps requested and received by a loop that looks for nothing but the end.
- ``this library``: from the request of a poll to ``PollCompleted`` on asyncio: dumps, change
  detection, events; processes are known since the first poll.
- ``hold``: longest CPU time in one turn of the event loop (and its wall time, which has other
  programs' turns in it on a busy machine); ``first``: the same in the first poll, which makes
  all flows and finds their processes; there the garbage collector's full passes are shown
  apart, because they belong to the interpreter.
- ``ss``: run and parsed into the same facts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time

from linux_common import Collector, Holders, HoldMeter, enter_namespace, machine, median, open_feed, settle

from nstat_async.sockdiag._dumps import dump_requests


def floor(repeat):
    sock = socket.socket(16, socket.SOCK_RAW, 4)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    requests = dump_requests()
    head = struct.Struct("=IH")
    for _ in repeat:
        for request in requests:
            sock.send(request)
            while head.unpack_from(sock.recv(65536))[1] != 3:
                pass


def library(repeat):
    return asyncio.run(_library(repeat))


async def _library(repeat):
    collections = []

    def watch_collector(phase, _info):
        if phase == "start":
            collections.append(time.perf_counter())
        else:
            collections[-1] = time.perf_counter() - collections[-1]

    gc.callbacks.append(watch_collector)
    feed, sink = open_feed(interval=None), Collector(keep=False)
    meter = HoldMeter(feed)
    running = asyncio.create_task(feed.run(sink))
    start = time.perf_counter()
    await sink.until_polls(1)
    facts = {
        "first_ms": (time.perf_counter() - start) * 1e3,
        "first_hold_ms": meter.longest * 1e3,
        "collector_ms": max(collections, default=0.0) * 1e3,
        "flows": feed.statistics()["flows"],
    }
    await asyncio.sleep(0.5)
    feed._longest_slice = meter.longest = 0.0
    polls = sink.polls
    for _ in repeat:
        polls += 1
        feed.request_poll()
        await sink.until_polls(polls)
    facts["hold_ms"] = meter.longest * 1e3
    facts["hold_wall_ms"] = feed.statistics()["longest_slice_us"] / 1e3
    feed.close()
    await running
    return facts


def psutil(repeat):
    import psutil as module

    for _ in repeat:
        module.net_connections("inet")


def pyroute2(repeat):
    from pyroute2 import DiagSocket

    with DiagSocket() as sock:
        sock.bind()
        for _ in repeat:
            for family in (socket.AF_INET, socket.AF_INET6):
                sock.get_sock_stats(family=family, extensions=2)


def _ss(options):
    def run(repeat):
        for _ in repeat:
            text = subprocess.run(["ss", *options], capture_output=True, text=True, check=True).stdout
            for line in text.splitlines():
                parse(line)

    return run


def parse(line):
    """A line of ss as the facts that this library's flows have: addresses, ports, counters, round trip, owner."""
    state, unread, unsent, local, remote, *rest = line.split()
    facts = {"state": state, "unread": int(unread), "unsent": int(unsent)}
    for name, end in (("local", local), ("remote", remote)):
        facts[name], _, facts[f"{name}_port"] = end.rpartition(":")
    for field in rest:
        name, colon, value = field.partition(":")
        if colon:
            facts[name] = int(value) if value.isdigit() else value
    if "rtt" in facts:
        facts["rtt"], facts["rttvar"] = (float(part) for part in str(facts["rtt"]).split("/"))
    return facts


CANDIDATES = {
    "floor": floor,
    "this library": library,
    "psutil": psutil,
    "pyroute2": pyroute2,
    "ss -tin": _ss(["-tinaHO"]),
    "ss -tinp": _ss(["-tinapHO"]),
}


def timed(count, walls, cpus):
    """Yields `count` times and notes what each time cost."""
    for _ in range(count):
        wall, cpu = time.perf_counter(), _cpu()
        yield
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((_cpu() - cpu) * 1e3)


def _cpu():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def child(name, count):
    walls, cpus = [], []
    before = peak_memory()
    facts = CANDIDATES[name](timed(count, walls, cpus)) or {}
    grown = peak_memory() - before
    if name.startswith("ss"):
        grown += resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"wall": walls, "cpu": cpus, "memory_mib": grown / 1024, **facts}))


def peak_memory():
    """KiB; ``ru_maxrss`` would include the parent's before exec."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def available(name):
    if name.startswith("ss"):
        return shutil.which("ss") is not None
    if name in {"psutil", "pyroute2"}:
        try:
            __import__(name)
        except ImportError:
            return False
    return True


def measure(sockets, rounds, only):
    results = {name: {"wall": [], "cpu": []} for name in only if available(name)}
    with Holders(sockets):
        settle()
        for _ in range(rounds):
            for name, result in results.items():
                count = 1 if name not in {"floor", "this library"} and sockets > 5000 else 5
                command = [sys.executable, __file__, "--child", name, "--count", str(count)]
                answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                result["wall"] += answer.pop("wall")
                result["cpu"] += answer.pop("cpu")
                for key, value in answer.items():
                    result.setdefault(key, []).append(value)
    return {name: {key: median(values) for key, values in result.items()} for name, result in results.items()}


def show(sockets, results):
    base, ours = results["floor"], results["this library"]
    head = ("wall ms", "CPU ms", "MiB", "x floor: wall", "CPU", "x this library: wall", "CPU")
    print(f"\n{sockets:>7} sockets  " + "  ".join(f"{title:>9s}" for title in head))
    for name, row in results.items():
        cells = [row["wall"], row["cpu"], row["memory_mib"]]
        cells += [row[clock] / other[clock] for other in (base, ours) for clock in ("wall", "cpu")]
        print(
            f"  {name:14s} "
            + "  ".join(f"{cell:{max(9, len(title))}.2f}" for cell, title in zip(cells, head, strict=True))
        )
    row = results["this library"]
    print(
        f"  hold {row['hold_ms']:.2f} ms (wall {row['hold_wall_ms']:.2f}); first poll {row['first_ms']:.0f} ms, hold {row['first_hold_ms']:.2f} ms, "
        f"of which the collector {row['collector_ms']:.2f} ms; {row['flows']:.0f} flows, "
        f"{row['memory_mib'] * 2**20 / max(1, row['flows']):.0f} bytes a flow"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sockets", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.count)
        return
    enter_namespace()
    if not arguments.json:
        print(machine())
    everything = {}
    for sockets in arguments.sockets:
        everything[sockets] = measure(sockets, arguments.rounds, arguments.only)
        if not arguments.json:
            show(sockets, everything[sockets])
    if arguments.json:
        print(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
