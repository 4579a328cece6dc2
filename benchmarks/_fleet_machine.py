"""One machine of ``fleet.py``, a process of its own: an emulated kernel, its monitor, its publisher.

It takes orders on standard input, a JSON object a line, and answers each with one on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
from collections import Counter

from nstat_async import Monitor
from nstat_async.integrations.nats import Publisher, StreamSettings
from nstat_async.testing import EmulatedKernel

TICK = 0.5
PROCESSES = 10
FLOWS = 1000
PATIENCE = 60.0


class Traffic:
    """Flows that come, carry known bytes and go: so many events a second."""

    def __init__(self, kernel, rate, seed, place):
        self.kernel, self.random, self.place = kernel, random.Random(seed), place
        self.each = max(1, round(rate * TICK))
        self.flows, self.truth, self.events = [], Counter(), 0

    def open(self):
        pid = 500 + self.random.randrange(PROCESSES)
        remote = (f"198.51.100.{self.random.randrange(1, 250)}", 443)
        self.flows.append((self.kernel.open_tcp(pid, f"program-{pid}", remote=remote), pid))
        self.events += 1

    def tick(self):
        """A twentieth of the events are beginnings and ends, the others reports of flows that grew."""
        while len(self.flows) < min(FLOWS, self.each):
            self.open()
        for _ in range(self.each // 40):
            flow, _ = self.flows.pop(0)
            flow.close()
            self.events += 1
            self.open()
        moves = [
            (flow, pid, self.random.randrange(1, 5000), self.random.randrange(1, 500))
            for flow, pid in self.random.sample(self.flows, min(len(self.flows), self.each))
        ]
        for _, pid, rx, tx in moves:
            self.truth[pid] += rx + tx
        self.write_truth()  # before it is true: who is killed has never moved more than it wrote
        for flow, _, rx, tx in moves:
            flow.transfer(rx, tx)
        self.events += len(moves)

    def write_truth(self):
        """What this run moves, in a file that outlives it."""
        if self.place is not None:
            part = f"{self.place}.part"
            with open(part, "w") as file:
                json.dump({"truth": self.truth, "events": self.events}, file)
            os.replace(part, self.place)

    def end(self):
        for flow, _ in self.flows:
            flow.close()
        self.events += len(self.flows)
        self.flows.clear()


class Machine:
    """Does what it is asked to."""

    def __init__(self, arguments):
        self.kernel = EmulatedKernel(clock=time.monotonic, receive_space=2 << 20)
        self.traffic = Traffic(self.kernel, arguments.rate, arguments.name, arguments.truth)
        self.publisher = Publisher(
            arguments.url, host=arguments.name, heartbeat=arguments.heartbeat, stream=StreamSettings(max_bytes=1 << 30),
            spool=arguments.spool,
        )  # fmt: skip
        self._publishing = self._moving = None
        self._publishes = False

    async def run(self):
        loop = asyncio.get_running_loop()
        async with Monitor(backend=self.kernel.backend(), interval=TICK) as monitor:
            self._monitor = monitor
            self.say("ready")
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                await getattr(self, "do_" + line.strip())()
        self.kernel.close()

    def say(self, what, **more):
        print(json.dumps({"said": what, **more}), flush=True)

    async def do_publish(self):
        self._publishing, self._publishes = asyncio.create_task(self.publisher.run(self._monitor)), True
        self.say("publishes")

    async def published(self):
        """Whoever began while the server hung may still wait for its first connection, and cannot take its leave yet."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not self._publishing.done():
            figures = self.publisher.statistics()
            if figures["connections"] and not figures["waiting"]:
                return
            await asyncio.sleep(0.1)

    async def do_consume(self):
        """The floor: somebody reads the monitor's events, and nothing is published."""

        async def read():
            async with self._monitor.subscribe() as events:
                while await events.receive_many():
                    await asyncio.sleep(0.2)

        self._publishing = asyncio.create_task(read())
        self.say("consumes")

    async def do_go(self):
        async def move():
            due = time.monotonic()
            while True:
                self.traffic.tick()
                due += TICK
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        self._moving = asyncio.create_task(move())
        self.say("goes")

    async def do_cost(self):
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.say(
            "cost", cpu=used.ru_utime + used.ru_stime, rss=used.ru_maxrss << 10, events=self.traffic.events,
            published=self.publisher.statistics(),
        )  # fmt: skip

    async def do_end(self):
        """Traffic ends, the last poll is made and published, and the truth is told."""
        self._moving.cancel()
        self.traffic.end()
        await self._monitor.poll_now()
        await asyncio.sleep(0.5)
        if self._publishes:
            await self.published()
        self._publishing.cancel()
        await asyncio.gather(self._moving, self._publishing, return_exceptions=True)
        self.say("truth", truth=dict(self.traffic.truth), events=self.traffic.events)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--heartbeat", type=float, default=10.0)
    parser.add_argument("--truth", help="write here what was moved, before it is")
    parser.add_argument("--spool", help="the publisher's")
    asyncio.run(Machine(parser.parse_args()).run())
