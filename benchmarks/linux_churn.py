"""Many short connections: is anything lost, and what does a connection cost beside those who make it?

Run: ``python benchmarks/linux_churn.py [--connections 50000] [--bytes 100]``. Needs Linux and a C compiler. A
generator makes loopback connections one after another, up to ten thousand a second; every end must be reported
once, removed once, with exact final bytes or no farther off than it says, or the loss be announced. A loopback
connection has two ends: two flows.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict, deque

import _turns
from _turns import Row
from linux_common import HoldMeter, compiled, enter_namespace

from nstat_async import EventsLost, FlowAdded, FlowRemoved, Monitor

PORT = 900


class Judge:
    """Counts what was reported."""

    def __init__(self, size):
        self.size = size
        self.facts = Counter()
        self.last = deque(maxlen=2_000)  # what was reported of connections; a short run has fewer
        self.wrong = deque(maxlen=20)

    def take(self, events):
        """Take events."""
        for event in events:
            if isinstance(event, FlowAdded) and event.flow.remote is not None:
                self.facts["added"] += 1
                self.last.append(event)
            elif isinstance(event, FlowRemoved) and event.flow.remote is not None:
                self.removed(event)
                self.last.append(event)
            elif isinstance(event, EventsLost):
                self.facts["losses"] += 1
                self.last.append(event)

    def removed(self, event):
        """Compare a flow's last counts with what was sent."""
        sent = (self.size, 0) if event.flow.remote.port == PORT else (0, self.size)
        off = max(abs(event.counts.tx_bytes - sent[0]), abs(event.counts.rx_bytes - sent[1]))
        self.facts["removed"] += 1
        if event.final and not off:
            self.facts["exact"] += 1
        elif not event.final and off <= (event.uncertainty or 0):
            self.facts["as far off as said"] += 1
        else:
            self.wrong.append(event)

    def odd(self):
        """For whoever has to explain it: ends that were not just added and removed, wrong counts, and losses."""
        stories = defaultdict(list)
        for event in self.last:
            stories[event if isinstance(event, EventsLost) else (event.flow.local, event.flow.remote)].append(event)
        usual = [FlowAdded, FlowRemoved]
        odd = [event for story in stories.values() if [type(event) for event in story] != usual for event in story]
        return [repr(event) for event in (*odd, *self.wrong)]


async def read(subscription, judge):
    """A consumer of its own, which leaves others their turns: the longest hold is the library's."""
    while True:
        events = await subscription.receive_many()
        for at in range(0, len(events), 64):
            judge.take(events[at : at + 64])
            await asyncio.sleep(0)


async def churn(program, connections, size):
    judge = Judge(size)
    with HoldMeter() as meter:
        async with Monitor(providers="tcp", overflow="all") as monitor:
            reader = asyncio.create_task(read(monitor.subscribe(), judge))
            await monitor.poll_now()
            begin = time.process_time()
            child = await asyncio.create_subprocess_exec(
                program, str(connections), str(size), stdout=asyncio.subprocess.PIPE
            )
            output = asyncio.ensure_future(child.communicate())
            while not output.done():
                await monitor.poll_now()
                await asyncio.sleep(0.2)
            before, quiet = -1, 0
            while quiet < 5:  # the last ends wait for what proves them; a machine may stand still during one sleep
                await asyncio.sleep(0.2)
                quiet = quiet + 1 if judge.facts["removed"] == before else 0
                before = judge.facts["removed"]
            spent = time.process_time() - begin
            reader.cancel()
    return float(output.result()[0]) / connections, spent / connections, meter, judge


def measure(arguments):
    connections = arguments.connections or (200 if arguments.short else 50_000)
    program = compiled()
    theirs = Row("to make a connection", units=connections)
    ours = Row("to report its two ends", of=theirs.name, units=connections)
    hold = Row("longest hold of the loop", "ms", units=1)
    besides = Row("the same besides the collector", "ms", units=1)
    for _ in range(arguments.rounds):
        made, reported, meter, judge = asyncio.run(churn(program, connections, arguments.bytes))
        theirs.costs.append(made)
        ours.costs.append(reported)
        ours.ratios.append(reported / made)
        hold.costs.append(meter.longest)
        besides.costs.append(meter.besides_collector)
        ours.counted = {**judge.facts, "odd": judge.odd()}
    said = ", ".join(f"{name} {count:,}" for name, count in judge.facts.items())
    ours.note = f"of {2 * connections:,} ends: {said}"
    yield f"{connections:,} connections of {arguments.bytes} bytes", [theirs, ours, hold, besides]


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("this benchmark needs Linux")
    enter_namespace()
    options = [("--connections", {"type": int}), ("--bytes", {"type": int, "default": 100})]
    _turns.main(__file__, __doc__, measure, options=options, rounds=3)
