"""What the Darwin core costs, from a datagram to ``async for``; everything beside its floor, in turn.

Run: ``python benchmarks/core.py`` (a minute or two).
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc

import _turns
import trio
from _kernels import Flows, Follower, events_of_polls, walked
from _turns import Done, Row, in_turn

from nstat_async import Capabilities, Monitor
from nstat_async.ntstat import Error, SourceAdded, SourceDescription, SourceRemoved, SourceUpdate, Success

SOURCES = 100


# --- datagrams to events -------------------------------------------------------


def through(flows, known, polls):
    """These polls through framer, codecs and session, events taken poll by poll."""
    follower, events = Follower(flows.kernel, *known), 0
    begin = time.process_time()
    for number, poll in enumerate(polls):
        follower.receive(poll, float(number))
        events += len(follower.take_events())
    return Done(len(polls) * SOURCES, time.process_time() - begin, events)


def streams(arguments):
    flows, number = Flows(SOURCES), 3 if arguments.short else 150
    for kind, wanted in (("updates", {"changed": 3.0, "idle": 2.0}), ("counts", None)):
        changing = [flows.poll(n, kind=kind) for n in range(1, number + 1)]
        idle = [flows.poll(n, changed=False, kind=kind) for n in range(1, number + 1)]
        # Before the counts nothing is known of them: the first poll of an idle stream would be news.
        known = flows.poll(0, changed=False)
        waiting = [datagram for poll in changing for datagram in poll]
        ways = {
            "floor: received and walked": lambda waiting=waiting: walked(waiting),
            "changed": lambda changing=changing, known=known: through(flows, known, changing),
            "idle": lambda idle=idle, known=known: through(flows, known, idle),
        }
        title = f"{kind}: from datagram to event, {SOURCES} flows a poll, datagrams of 4 KiB"
        yield title, in_turn(arguments.rounds, ways, floor="floor: received and walked", wanted=wanted)


# --- messages by kind ------------------------------------------------------------


def kinds(arguments):
    count = 20 if arguments.short else 400
    flows, references = Flows(count), range(1, count + 1)
    layout, known = flows.kernel.layout, flows.poll(0)
    updates = [bytes(message) for message in flows.updates]
    known_counts = [*known, *flows.poll(0, kind="counts")]
    counts = [bytes(message) for message in flows.counts]
    flows.poll(3, kind="counts")
    grown = [bytes(message) for message in flows.counts]

    def each(make):
        return [make(ref).encode(layout) for ref in references]

    def described(ref, **changes):
        return SourceDescription(srcref=ref, provider=2, descriptor=flows.descriptor(ref, **changes))

    def moved(ref):
        return SourceUpdate(
            srcref=ref, provider=2, counts=flows.counters(ref), descriptor=flows.descriptor(ref, state=5)
        )

    cases = {
        "SUCCESS": (known, each(lambda ref: Success(context=ref))),
        "ERROR with its request": (known, each(lambda ref: Error(context=ref, error=2, request=bytes(24)))),
        "SRC_ADDED, a new source": ([], each(lambda ref: SourceAdded(srcref=ref, provider=2))),
        "SRC_UPDATE, a new flow": ([], updates),
        "SRC_UPDATE, unchanged": (known, updates),
        "SRC_UPDATE, a new state": (known, each(moved)),
        "SRC_DESC, unchanged": (known, each(described)),
        "SRC_DESC, a new state": (known, each(lambda ref: described(ref, state=5))),
        "SRC_COUNTS, unchanged": (known_counts, counts),
        "SRC_COUNTS, grown": (known_counts, grown),
        "SRC_REMOVED": (known, each(lambda ref: SourceRemoved(srcref=ref))),
    }

    def run(before, messages):
        follower = Follower(flows.kernel, *before)
        begin = time.process_time()
        for message in messages:
            follower.receive((message,), 1.0)
        events = follower.take_events()
        return Done(len(messages), time.process_time() - begin, len(events))

    ways = {name: lambda case=case: run(*case) for name, case in cases.items()}
    ways = {"floor: received and walked": lambda: walked(updates), **ways}
    yield (
        "one message alone in its datagram, by kind",
        in_turn(arguments.rounds, ways, floor="floor: received and walked"),
    )


# --- hand-over ----------------------------------------------------------------------


class Feed:
    """Hands over prepared batches of events, as a replay does."""

    can_wait = True
    capabilities = Capabilities(backend="benchmark")

    def __init__(self, batches):
        self.batches = batches

    async def run(self, sink):
        """Deliver them, one after another."""
        for batch in self.batches:
            sink.deliver(batch)
            await sink.room()

    async def subscribed(self):
        """There is nothing to wait for."""

    def flows(self):
        """There are none."""
        return ()

    def request_poll(self):
        """There is nobody to ask."""

    def close(self):
        """There is nothing to close."""

    def statistics(self):
        """There are none."""
        return {}


class Backend:
    """Opens a `Feed`."""

    name = "benchmark"

    def __init__(self, batches):
        self.batches = batches

    def open(self, options):  # noqa: ARG002
        """Make the feed."""
        return Feed(self.batches)


class Bare:
    """The least that an asynchronous iterator can be: a coroutine that takes the next of a list."""

    def __init__(self, batches):
        self._events = iter([event for batch in batches for event in batch])

    def __aiter__(self):
        return self

    async def __anext__(self):
        for event in self._events:
            return event
        raise StopAsyncIteration


async def bare(batches, _overflow):
    count, events = 0, Bare(batches)
    begin = time.process_time()
    async for _ in events:
        count += 1
    return Done(count, time.process_time() - begin, count)


async def one_by_one(batches, overflow):
    count = 0
    async with Monitor(backend=Backend(batches), overflow=overflow) as monitor:
        begin = time.process_time()
        async for _ in monitor:
            count += 1
        return Done(count, time.process_time() - begin, count)


async def by_many(batches, overflow):
    count = 0
    async with Monitor(backend=Backend(batches), overflow=overflow) as monitor:
        subscription = monitor.subscribe()
        begin = time.process_time()
        while events := await subscription.receive_many():
            count += len(events)
        return Done(count, time.process_time() - begin, count)


def loops():
    found = {"asyncio": lambda work, *arguments: asyncio.run(work(*arguments)), "trio": trio.run}
    try:
        import uvloop
    except ImportError:
        return found

    def on_uvloop(work, *arguments):
        loop = uvloop.new_event_loop()
        try:
            return loop.run_until_complete(work(*arguments))
        finally:
            loop.close()

    return {**found, "uvloop": on_uvloop}


def hand_over(arguments):
    batches = events_of_polls(20 if arguments.short else 1000, 3 if arguments.short else 100)
    # What waits longer than a batch would be merged: for the coalescing policy, as many different flows.
    distinct = events_of_polls(100 if arguments.short else 10_000, 1)
    for loop, run in loops().items():
        for policy, chosen, wanted in (("block", batches, 2.5), ("coalesce", distinct, 4.5)):
            ways = {
                "a bare coroutine": lambda run=run, chosen=chosen: run(bare, chosen, None),
                "async for": lambda run=run, chosen=chosen, policy=policy: run(one_by_one, chosen, policy),
                "receive_many": lambda run=run, chosen=chosen, policy=policy: run(by_many, chosen, policy),
            }
            rows = in_turn(arguments.rounds, ways, floor="a bare coroutine", wanted={"async for": wanted})
            yield f"hand-over of an event on {loop}, policy {policy}, delivery included", rows


# --- memory and growth -----------------------------------------------------------------


def known_flows(flows, polls):
    follower = Follower(flows.kernel)
    for poll in polls:
        follower.receive(poll, 0.0)
        follower.take_events()
    return follower


def memory(arguments):
    sizes, rows, ways = (10, 100) if arguments.short else (100, 1_000, 10_000, 100_000), [], {}
    for count in sizes:
        flows = Flows(count)
        polls = [flows.poll(0), flows.poll(1)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        follower = known_flows(flows, polls)
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        del follower
        rows.append(Row(f"{count:,} flows", "bytes", [size], units=count))

        def run(flows=flows, polls=polls, count=count):
            begin = time.process_time()
            known_flows(flows, polls)
            return Done(count, time.process_time() - begin, count)

        ways[f"{count:,} flows"] = run
    yield "memory of a flow, in 100 processes", rows
    yield "to add a flow and update it once", in_turn(arguments.rounds, ways, floor=f"{sizes[0]:,} flows")


def measure(arguments):
    for part in (streams, kinds, hand_over, memory):
        yield from part(arguments)


if __name__ == "__main__":
    _turns.main(__file__, __doc__, measure)
