"""What the eBPF source costs: its reader under load, and the programs inside other people's calls.

Run as root: ``python benchmarks/linux_ebpf.py [--seconds 3] [--rounds 7] [--sockets 8000 50000] [--json]``. Needs Linux,
BPF and a C compiler.

- *reader*: CPU time of the process that reads and understands everything, as a share of one CPU at a given rate:
  connections over loopback (both ends are seen: six records each), and datagrams sent and received.
- *overhead*: CPU time of the traffic itself, with the programs attached as a ratio to without, in turns in one run:
  other load on the machine falls on both alike.
- *polls* (with ``--sockets``): CPU time of a poll of so many TCP sockets, of which one in a hundred sends and receives
  before it, as a ratio to four bare dumps: by walks, and, without the programs, by dumps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _turns import machine
from linux_common import Holders, compiled, enter_namespace
from linux_look import dumps

from nstat_async import Monitor
from nstat_async._io.ebpf import EbpfSettings, EbpfSource
from nstat_async.ebpf import Ended, Ledger, MapsPurpose, Operation, RingPurpose, decode_answer, encode_request

TRAFFIC = Path(__file__).resolve().parent.parent / "tests" / "ebpf" / "traffic.c"
REST = 0.01
"""Seconds between two looks at the ring while it is busy."""
START = 12
"""Polls of a monitor that are not measured."""
POLL = 0.5
"""Seconds between two lists of counts."""


class Reader:
    """Reads a source as a monitor does: woken by the ring, resting in between, listing counts now and then."""

    def __init__(self, source: EbpfSource) -> None:
        self.ring = source.open(RingPurpose())
        self.maps = source.open(MapsPurpose())
        self.ledger = Ledger(packets=True, births=True, ignore=source.own_cookies)
        self.waiting = select.poll()
        self.waiting.register(self.ring.fileno(), select.POLLIN)
        self.ends = self.evidence = 0

    def drain(self) -> None:
        """Read what is there."""
        batch: list[bytes] = []
        more = True
        while more:
            more = self.ring.read_into(batch, 8)
            for data in batch:
                self.ledger.receive(data)
                self.taken()
            batch.clear()

    def taken(self) -> None:
        """Count the evidence."""
        for evidence in self.ledger.take_evidence():
            self.evidence += 1
            self.ends += isinstance(evidence, Ended)

    def ask(self, operation: Operation):
        """Send a request and take in its answer."""
        self.maps.send(encode_request(operation))
        batch: list[bytes] = []
        while self.maps.read_into(batch, 1):
            pass
        answers = [decode_answer(data) for data in batch]
        for answer in answers:
            self.ledger.answer(answer)
        self.taken()
        return answers

    def follow(self, process: subprocess.Popen) -> None:
        """Until the traffic ends."""
        listed = time.monotonic()
        while process.poll() is None:
            self.waiting.poll(50)
            self.drain()
            if time.monotonic() - listed > POLL:
                self.ask(Operation.FLOWS)
                listed = time.monotonic()
            time.sleep(REST)
        self.drain()


def reading(label: str, command: list[str], units: int, rate: int) -> dict:
    with EbpfSource.attach() as source:
        reader = Reader(source)
        reader.ask(Operation.STATISTICS)
        cpu, wall = time.process_time(), time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            reader.follow(process)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        (answer,) = reader.ask(Operation.STATISTICS)
        reader.maps.close()
    lost = answer.statistics
    return {
        "load": label,
        "per_second": round(units / wall),
        "cpu_share": cpu / wall,
        f"cpu_share_at_{rate}": cpu / units * rate,
        "records": reader.ledger.records,
        "us_per_record": cpu / reader.ledger.records * 1e6 if reader.ledger.records > 100 else None,
        "ends": reader.ends,
        "lost": lost.ring_full + lost.map_full + lost.states_missed,
    }


def cpu_of(command: list[str]) -> float:
    """CPU time of a child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


VARIANTS = {
    "calls": EbpfSettings(cgroup=None),
    "all": EbpfSettings(),
    "all and peers": EbpfSettings(peers=True),
}


def overhead(traffic: str, rounds: int, pairs: int) -> list[dict]:
    loads = {
        "datagrams of 1200 bytes": [traffic, "flood", str(pairs), "1200"],
        "connections of 100 bytes": [traffic, "churn", str(pairs // 20), "901", "100"],
    }
    ratios: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        base = {load: cpu_of(command) for load, command in loads.items()}
        for variant, settings in VARIANTS.items():
            with EbpfSource.attach(settings) as source:
                reader = Reader(source)
                for load, command in loads.items():
                    ratios.setdefault((load, variant), []).append(cpu_of(command) / base[load])
                reader.maps.close()
    return [
        {"load": load, "programs": variant, "ratio": statistics.median(values)}
        for (load, variant), values in ratios.items()
    ]


async def polls(count: int, rounds: int) -> list[dict]:
    """Polls in turn with the floor; the first ones of each monitor look for processes, too."""
    costs: dict[str, list[float]] = {"four bare dumps": [], "walks": [], "dumps": []}
    with Holders(count), socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        clients = [socket.create_connection(server.getsockname()) for _ in range(max(1, count // 200))]
        pairs = [(client, server.accept()[0]) for client in clients]
        async with Monitor(interval=None) as walks, Monitor(interval=None, ebpf="off", pulse=None) as plain:
            for number in range(START + rounds):
                for client, accepted in pairs:
                    client.send(b"x")
                    accepted.recv(1)
                costs["four bare dumps"].append(dumps(1).span if number >= START else 0.0)
                for name, monitor in (("walks", walks), ("dumps", plain)):
                    begin = time.process_time()
                    await monitor.poll_now()
                    costs[name].append(time.process_time() - begin)
            walked = walks.statistics().feed.get("walks", 0)
        for pair in pairs:
            for each in pair:
                each.close()
    medians = {name: statistics.median(values[START:]) for name, values in costs.items()}
    floor = medians["four bare dumps"]
    return [
        {"sockets": count, "poll": name, "ms": cost * 1e3, "ratio": cost / floor, "walks": walked}
        for name, cost in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sockets", type=int, nargs="+", default=[], help="also measure polls of so many sockets")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this benchmark needs root")
    enter_namespace()
    traffic = compiled(TRAFFIC.read_text())
    connections, datagrams = int(10_000 * arguments.seconds), int(100_000 * arguments.seconds)
    results = {
        "reader": [
            reading("connections", [traffic, "paced", str(connections), "900", "100", "10000"], connections, 10_000),
            reading("datagrams", [traffic, "rate", str(datagrams), "1200", "100000"], datagrams, 100_000),
        ],
        "overhead": overhead(traffic, arguments.rounds, max(1000, datagrams // 3)),
        "polls": [row for count in arguments.sockets for row in asyncio.run(polls(count, arguments.rounds))],
    }
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    print(machine())
    for name, rows in results.items():
        print(name)
        for row in rows:
            print("  " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
