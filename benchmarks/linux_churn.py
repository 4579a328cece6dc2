"""Many short connections: is anything lost, and what does a connection cost?

Run: ``python benchmarks/linux_churn.py [--rate 10000] [--seconds 10] [--bytes 100] [--receive-buffer BYTES]``
Needs Linux and a C compiler. A generator makes loopback connections one after another
at the rate; every end must be reported once, removed once, with exact final bytes, or
the loss be announced. A loopback connection has two ends: two flows each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter

from linux_common import Collector, HoldMeter, enter_namespace, generator, machine, open_feed

from nstat_async._events import EventsLost, FlowAdded, FlowRemoved
from nstat_async._model import Provider


class Judge(Collector):
    """Counts instead of keeping."""

    def __init__(self, size):
        super().__init__(keep=False)
        self.size = size
        self.facts = Counter()

    def deliver(self, events):
        """Take events."""
        for event in events:
            if isinstance(event, FlowAdded):
                self.facts["added"] += 1
            elif isinstance(event, FlowRemoved):
                self.removed(event)
            elif isinstance(event, EventsLost):
                self.facts[f"lost: {event.cause.value}"] += 1
        super().deliver(events)

    def removed(self, event):
        """Compare a flow's last counts with what was sent."""
        self.facts["removed"] += 1
        if event.flow.remote is None:
            return
        outbound = event.flow.remote.port == 900
        counts = event.counts
        exact = (counts.tx_bytes, counts.rx_bytes) == ((self.size, 0) if outbound else (0, self.size))
        self.facts["exact" if exact and event.final else "not exact"] += 1


async def run(program, connections, rate, size, receive_buffer):
    feed = open_feed(interval=1.0, providers={Provider.TCP}, receive_buffer=receive_buffer)
    sink, meter = Judge(size), HoldMeter(feed)
    running = asyncio.create_task(feed.run(sink))
    await sink.until_polls(2)
    cpu, wall = time.process_time(), time.perf_counter()
    arguments = ["make", str(connections), str(size), str(rate)]
    child = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    took = float(output)
    await sink.until_polls(sink.polls + 2)
    spent = time.process_time() - cpu
    statistics = feed.statistics()
    buffer = feed.capabilities.receive_buffer
    feed.close()
    await running
    return {
        "connections": connections,
        "per_second": connections / took,
        "ends": 2 * connections,
        **sink.facts,
        "overruns": statistics.get("overruns", 0),
        "unanswered_lookups": statistics["unanswered_lookups"],
        "cpu_us_per_connection": spent / connections * 1e6,
        "cpu_share": spent / (time.perf_counter() - wall),
        "longest_hold_cpu_ms": meter.longest * 1e3,
        "longest_hold_wall_ms": statistics["longest_slice_us"] / 1e3,
        "receive_buffer": buffer,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--receive-buffer", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    enter_namespace()
    connections = int(arguments.rate * arguments.seconds)
    result = asyncio.run(run(generator(), connections, arguments.rate, arguments.bytes, arguments.receive_buffer))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(machine())
    for name, value in result.items():
        print(f"  {name:24s} {value:,.2f}" if isinstance(value, float) else f"  {name:24s} {value:,}")


if __name__ == "__main__":
    main()
