"""A world for tests of a fleet: machines with flows, a stream between, and what the truth is."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from nstat_async import (
    Counts,
    Endpoint,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Overflow,
    PollCompleted,
    Process,
    Provider,
    RemovalReason,
)
from nstat_async._buffer import EventBuffer
from nstat_async.aggregate import GroupBy, ProcessTable
from nstat_async.fleet import Delivery, Facts, Incoming, Outgoing

WALL = 1_764_000_000.0


class Machine:
    """A machine whose flows come, carry and go; its monitor's subscription; its publisher."""

    def __init__(self, name, seed=0, *, limit=10_000, **options):
        self.name, self.options = name, options
        self.random = random.Random(f"{name}/{seed}")
        self.time, self.clock = 0.0, 0.0
        self.numbers = itertools.count()
        self.runs = itertools.count()
        self.open = {}
        self.truth = Counter()
        """Bytes received, by process id."""
        self.limit = limit
        self.start()

    def start(self):
        """A monitor and a publisher begin: what is open was there before."""
        self.buffer = EventBuffer(self.limit, Overflow.COALESCE)
        self.run = f"{next(self.runs):08x}"
        self.outgoing = Outgoing(self.name, self.run, Facts(machine_id=self.name), **self.options)
        self.take([FlowAdded(self.wall, flow, count(rx), preexisting=True) for flow, rx, _ in self.open.values()])
        self.said = {identity: rx for identity, (_, rx, _) in self.open.items()}

    @property
    def wall(self):
        return WALL + self.time + self.clock

    def take(self, events):
        self.buffer.extend(events)

    def step(self, moves=5):
        """A second of its life: some flows come, some grow, some go; then a poll."""
        self.time += 1.0
        events = []
        for _ in range(moves):
            draw = self.random.random()
            if draw < 0.4 or not self.open:
                events.append(self.begin())
            elif draw < 0.8:
                events.append(self.grow(self.random.choice(list(self.open))))
            else:
                events.append(self.end(self.random.choice(list(self.open))))
        events.append(PollCompleted(self.wall, len(self.open), complete=True))
        self.take(events)

    def begin(self, *, rx=0, **more):
        number = next(self.numbers)
        pid = 100 + number % 7
        flow = Flow(
            f"{self.run}{number}" if more.pop("unlike", False) else f"c{number}",
            Provider.TCP,
            local=more.pop("local", Endpoint.parse("192.0.2.1", 1024 + number % 60_000)),
            remote=more.pop("remote", Endpoint.parse("198.51.100.7", 443)),
            process=Process(pid, f"p{pid}", unique_pid=pid),
            **more,
        )
        self.open[flow.id] = (flow, rx, pid)
        self.truth[pid] += rx
        return FlowAdded(self.wall, flow, count(rx), preexisting=False)

    def grow(self, identity, more=None):
        flow, rx, pid = self.open[identity]
        more = self.random.randrange(1, 5000) if more is None else more
        self.open[identity] = (flow, rx + more, pid)
        self.truth[pid] += more
        return FlowUpdated(self.wall, flow, count(rx + more), count(rx))

    def end(self, identity):
        flow, rx, _ = self.open.pop(identity)
        return FlowRemoved(self.wall, flow, count(rx), final=True, reason=RemovalReason.CLOSED)

    def messages(self, *, stop=False):
        """What is to be published now."""
        found = []
        self.outgoing.feed(self.buffer.pop_all())
        while (message := self.outgoing.next_message(self.time)) is not None:
            found.append(message)
        if stop:
            found.append(self.outgoing.last_message(self.time))
        return found


def count(rx):
    return Counts(rx_bytes=rx, tx_bytes=0, rx_packets=rx // 100, tx_packets=0)


def taken(core):
    """The events that a core has made."""
    return [event for events in core.take_events() for event in events]


class Stream:
    """What the server has."""

    def __init__(self):
        self.deliveries = []

    def add(self, message, machine, *, time=None):
        stored = WALL + (machine.time if time is None else time)
        position = len(self.deliveries) + 1
        self.deliveries.append(Delivery(message.subject, message.data, position, stored, machine.wall))


class Reader:
    """A subscriber: its core, and a table of processes fed from it."""

    def __init__(self, **options):
        self.core = Incoming(**options)
        self.core.caught_up = True
        self.table, self.events = ProcessTable(), []
        self.hosts = {}

    def read(self, deliveries, now=0.0):
        for delivery in deliveries:
            self.core.receive(delivery, now)
        return self.look()

    def begin(self, time=WALL):
        self.core.begin(time)
        return self.look()

    def look(self):
        events = taken(self.core)
        self.table.feed_many(events)
        self.events += events
        return self

    @property
    def totals(self):
        """Bytes received by machine and process id."""
        return {(row.source, row.pid): row.rx_bytes for row in self.table.rows() if row.rx_bytes and row.pid}

    @property
    def losses(self):
        return [event for event in self.events if isinstance(event, EventsLost)]

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def truth(*machines):
    return {(m.name, pid): total for m in machines for pid, total in m.truth.items() if total}


def lived(machine, stream, seconds=30, *, stop=False):
    """Let a machine live and publish each second."""
    for _ in range(seconds):
        machine.step()
        for message in machine.messages():
            stream.add(message, machine)
    if stop:
        for message in machine.messages(stop=True):
            stream.add(message, machine)
    return machine


__all__ = ["WALL", "GroupBy", "Machine", "Reader", "Stream", "count", "lived", "taken", "truth"]
