"""What the Darwin core costs, from a datagram to ``async for``; everything beside its floor, in one run.

Run: ``python benchmarks/core.py`` (about a minute; ``--quick`` for a third of it).
Figures are medians of several runs, in processor time of this process (kernel's share
included), since other programs may run beside. A machine that is shared still gives
figures that differ from hour to hour: compare the ratios, and only within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import struct
import time
import tracemalloc

from _kernels import Flows, clock, machine, table

from nstat_async import Monitor
from nstat_async._buffer import EventBuffer
from nstat_async._model import Capabilities
from nstat_async._options import Overflow
from nstat_async.ntstat import (
    Error,
    Mode,
    Session,
    SourceAdded,
    SourceDescription,
    SourceRemoved,
    SourceUpdate,
    Success,
)

SOURCES = 100
HEADER = struct.Struct("<QIHH")
BUDGET = {"update": 500_000, "counts": 1_000_000}


# --- (a) datagrams to events ---------------------------------------------------


def polls(flows, number, *, changed, kind):
    return [flows.poll(n, changed=changed, kind=kind) for n in range(1, number + 1)]


def floor(stream):
    """Receive these datagrams from an AF_UNIX datagram socket and walk their headers."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    unpack, messages, span = HEADER.unpack_from, 0, 0.0
    waiting = [datagram for poll in stream for datagram in poll]
    at = 0
    while at < len(waiting):
        try:
            while at < len(waiting):
                far.send(waiting[at])
                at += 1
        except BlockingIOError:
            pass
        begin = time.process_time()
        try:
            while True:
                data = near.recv(65536)
                offset, size = 0, len(data)
                while offset < size:
                    offset += unpack(data, offset)[2]
                    messages += 1
        except BlockingIOError:
            pass
        span += time.process_time() - begin
    near.close()
    far.close()
    return span, messages


def session_of(flows, *first):
    session = Session(flows.kernel, mode=Mode.FOLLOWING)
    for datagram in first:
        session.receive_datagram(datagram, 0.0)
    session.take_events()
    return session


def through(flows, stream, known, expected):
    """These polls through framer, codecs and session, events taken poll by poll."""
    session = session_of(flows, *known)
    events = 0
    begin = time.process_time()
    for number, poll in enumerate(stream):
        session.receive_datagrams(poll, float(number), 0)
        events += len(session.take_events())
    span = time.process_time() - begin
    assert events == expected, (events, expected)
    return span, len(stream) * len(flows.updates)


def decoded(flows, stream):
    """Framing and unpacking alone, as the session does it, without the table behind it."""
    decoder = Session(flows.kernel, mode=Mode.FOLLOWING)._current.decoder

    class Nothing:
        time = 0.0
        sources = ()

        def update(self, *args):
            pass

        def count(self, *args, solicited):
            pass

    decoder.table = Nothing()
    decoder._compile()
    begin = time.process_time()
    for poll in stream:
        decoder.decode(poll)
    return time.process_time() - begin, len(stream) * len(flows.updates)


def streams(rounds, quick):
    flows = Flows(SOURCES)
    number = 60 if quick else 150
    known = flows.poll(0)
    rows = []
    for kind in ("updates", "counts"):
        base = None
        for changed in (True, False):
            stream = polls(flows, number, changed=changed, kind=kind)
            if not changed:
                known = flows.poll(0, changed=False)
            if base is None:
                base, _ = clock(rounds, floor, stream)
                rows.append(_stream_row(f"{kind}: floor, received and walked", base, base, None))
                cost, _ = clock(rounds, decoded, flows, stream)
                rows.append(_stream_row(f"{kind}: framed and unpacked", cost, base, BUDGET.get(kind)))
            expected = number * SOURCES if changed else 0
            cost, _ = clock(rounds, through, flows, stream, known, expected)
            what = "all changed" if changed else "nothing changed"
            rows.append(
                _stream_row(f"{kind}: session, {what}", cost, base, BUDGET[kind[:-1] if kind == "updates" else kind])
            )
    header = ["datagram to events, 100 sources, 4 KiB", "messages/s", "ns each", "x floor", "target/s", "met"]
    table("(a) streams", header, rows)


def _stream_row(name, cost, base, target):
    met = "" if target is None else "yes" if 1 / cost >= target else f"no, {target * cost:.2f}x"
    wanted = "" if target is None else f"{target:,}"
    return [name, f"{1 / cost:,.0f}", f"{cost * 1e9:,.0f}", f"{cost / base:.1f}", wanted, met]


# --- (b) messages by kind --------------------------------------------------------


def kinds(rounds):
    flows = Flows(400)
    layout, size = flows.kernel.layout, range(1, 401)
    counters = flows._counters(1)
    known = flows.poll(0)

    def each(make):
        return [make(ref).encode(layout) for ref in size]

    def update(ref, **changes):
        descriptor = flows.descriptor(ref, **changes)
        return SourceUpdate(srcref=ref, provider=2, counts=counters, descriptor=descriptor)

    described = [SourceDescription(srcref=r, provider=2, descriptor=flows.descriptor(r)).encode(layout) for r in size]
    cases = [
        ("SUCCESS", known, each(lambda ref: Success(context=ref))),
        ("ERROR with its request", known, each(lambda ref: Error(context=ref, error=2, request=bytes(24)))),
        ("SRC_ADDED, a new source", [], each(lambda ref: SourceAdded(srcref=ref, provider=2))),
        ("SRC_UPDATE, a new flow", [], [bytes(message) for message in flows.updates]),
        ("SRC_UPDATE, unchanged", known, [bytes(message) for message in flows.updates]),
        ("SRC_UPDATE, a new state", known, each(lambda ref: update(ref, state=5))),
        ("SRC_DESC, unchanged", known, described),
        ("SRC_DESC, a new state", known, each(
            lambda ref: SourceDescription(srcref=ref, provider=2, descriptor=flows.descriptor(ref, state=5)))),
        ("SRC_COUNTS, unchanged", [*known, *flows.poll(0, kind="counts")], [bytes(message) for message in flows.counts]),
        ("SRC_COUNTS, grown", known, [b"".join(flows.poll(3, kind="counts"))[at * 144 : at * 144 + 144] for at in range(400)]),
        ("SRC_REMOVED", known, each(lambda ref: SourceRemoved(srcref=ref))),
    ]  # fmt: skip
    rows = []
    for name, before, messages in cases:

        def run(before=before, messages=messages):
            session = session_of(flows, *before)
            begin = time.process_time()
            for message in messages:
                session.receive_datagram(message, 1.0)
            session.take_events()
            return time.process_time() - begin, len(messages)

        cost, _ = clock(rounds, run)
        rows.append([name, f"{cost * 1e6:.2f}"])
    table("(b) one message alone in its datagram, by kind", ["message", "µs each"], rows)


# --- (c) hand-over ------------------------------------------------------------------


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
        """At once."""

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


async def one_by_one(batches, overflow):
    count = 0
    async with Monitor(backend=Backend(batches), overflow=overflow) as monitor:
        begin = time.process_time()
        async for _ in monitor:
            count += 1
        return time.process_time() - begin, count


async def by_many(batches, overflow):
    count = 0
    async with Monitor(backend=Backend(batches), overflow=overflow) as monitor:
        subscription = monitor.subscribe()
        begin = time.process_time()
        while events := await subscription.receive_many():
            count += len(events)
        return time.process_time() - begin, count


def runners():
    import trio

    found = {"asyncio": lambda work, *arguments: asyncio.run(work(*arguments)), "trio": trio.run}
    try:
        import uvloop
    except ImportError:
        return found

    def on_uvloop(work, *arguments):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work(*arguments))

    if hasattr(asyncio, "Runner"):
        found["uvloop"] = on_uvloop
    return found


def events_of_polls(sources, number):
    flows = Flows(sources)
    session = session_of(flows, *flows.poll(0))
    batches = []
    for n in range(1, number + 1):
        for datagram in flows.poll(n):
            session.receive_datagram(datagram, float(n))
        batches.append(session.take_events())
    return batches


def hand_over(rounds, quick):
    batches = events_of_polls(1000, 30 if quick else 100)
    events = sum(map(len, batches))
    # What waits longer than a batch would be merged: for the coalescing policy, as many different flows.
    distinct = events_of_polls(10_000, 1)
    rows = []

    def plain():
        count = 0
        for batch in batches:
            for _ in batch:
                count += 1
        return count

    def buffer(policy, take):
        def run():
            queue, count = EventBuffer(10_000, policy), 0
            for batch in batches:
                queue.extend(batch)
                if take == "all":
                    count += len(queue.pop_all())
                elif take == "one":
                    while queue.pop() is not None:
                        count += 1
                else:
                    count += len(batch)
            return count

        return run

    cost, _ = clock(rounds, plain)
    rows.append(["the bare loop over lists", f"{cost * 1e9:.0f}", "", ""])
    for policy in (Overflow.COALESCE, Overflow.BLOCK):
        for take, name in (("all", "in and all out"), ("one", "in and out one by one"), ("none", "in, merging")):
            if take == "none" and policy is Overflow.BLOCK:
                continue
            cost, _ = clock(rounds, buffer(policy, take))
            rows.append([f"EventBuffer {policy.value}: {name}", f"{cost * 1e9:.0f}", "", ""])
    for name, run in runners().items():
        for policy in ("coalesce", "block"):
            chosen = distinct if policy == "coalesce" else batches
            for way, work in (("async for", one_by_one), ("receive_many", by_many)):
                cost, _ = clock(rounds, run, work, chosen, policy)
                met = "yes" if cost <= 0.5e-6 else f"no, {cost / 0.5e-6:.2f}x"
                rows.append([f"{name}, {way}, {policy}", f"{cost * 1e9:.0f}", "500", met])
    table(f"(c) hand-over of {events:,} events, delivery included", ["way", "ns each", "target", "met"], rows)


# --- (d) memory ----------------------------------------------------------------------


def memory(quick):
    rows, first = [], None
    for flow_ids in (False, True):
        for count in (100, 1_000, 10_000) if quick or flow_ids else (100, 1_000, 10_000, 100_000):
            flows = Flows(count, flow_ids=flow_ids)
            two = [flows.poll(0), flows.poll(1)]
            begin = time.process_time()
            session = session_of(flows)
            for poll in two:
                for datagram in poll:
                    session.receive_datagram(datagram, 0.0)
                session.take_events()
            cost = (time.process_time() - begin) / count
            del session
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            session = session_of(flows)
            for poll in two:
                for datagram in poll:
                    session.receive_datagram(datagram, 0.0)
                session.take_events()
            gc.collect()
            size = (tracemalloc.get_traced_memory()[0] - before) / count
            tracemalloc.stop()
            first = first or cost
            name = f"{count:,} flows" + (", each with a flow UUID" if flow_ids else "")
            met = "" if count < 10_000 else "yes" if size <= 1024 else f"no, {size / 1024:.2f}x"
            rows.append([name, f"{size:,.0f}", met, f"{cost * 1e6:.1f}", f"{cost / first:.2f}"])
    header = ["tracked", "bytes a flow", "<= 1 KiB", "µs for add + update", "x 100 flows"]
    table("(d) memory and growth, flows of 100 processes", header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    quick = parser.parse_args().quick
    rounds = 3 if quick else 7
    print(machine())
    streams(rounds, quick)
    kinds(rounds)
    hand_over(rounds, quick)
    memory(quick)


if __name__ == "__main__":
    main()
