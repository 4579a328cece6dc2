"""What watching costs while nothing happens: CPU over a minute with idle sockets.

Run: ``python benchmarks/linux_idle.py [--sockets 10 1000 10000] [--seconds 60] [--interval 1.0]``
Needs Linux. The CPU of this process, beginning after the first poll.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from linux_common import Collector, Holders, enter_namespace, machine, open_feed, settle


async def run(seconds, interval):
    feed, sink = open_feed(interval=interval), Collector(keep=False)
    running = asyncio.create_task(feed.run(sink))
    await sink.until_polls(2)
    polls, events, cpu, wall = sink.polls, sink.count, time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    spent, took, polls = time.process_time() - cpu, time.perf_counter() - wall, sink.polls - polls
    flows = feed.statistics()["flows"]
    feed.close()
    await running
    return {
        "flows": flows,
        "polls": polls,
        "events_besides_polls": sink.count - events - polls,
        "cpu_percent": 100 * spent / took,
        "cpu_ms_per_poll": spent / max(1, polls) * 1e3,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sockets", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    enter_namespace()
    rows = []
    if not arguments.json:
        print(machine())
    for sockets in arguments.sockets:
        with Holders(sockets):
            settle()
            row = {"sockets": sockets, **asyncio.run(run(arguments.seconds, arguments.interval))}
        rows.append(row)
        if not arguments.json:
            print("  " + "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
