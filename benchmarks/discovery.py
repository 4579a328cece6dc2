"""How soon flows are known, and what watching them costs: a monitor on an emulated kernel.

Run: ``python benchmarks/discovery.py`` (about two minutes; ``--quick`` for a third).

The emulated kernel (`nstat_async.testing`) runs in a process of its own behind a Unix socket,
so that processor time here is the monitor's alone. Elapsed time contains the emulated kernel,
which is Python too and makes an answer much more slowly than a real one; it is therefore
given beside the monitor's own time.

The other client is modelled on the C++ program libntstat: it asks for one
source at a time and waits 50 ms between two requests. Small numbers of flows are run, for
larger ones its law (time per flow times flows) is computed, and marked so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import threading
import time

import anyio
from _kernels import KERNEL, machine, table

from nstat_async import EventsLost, FlowAdded, FlowRemoved, Monitor, PollCompleted, backends
from nstat_async.ntstat import AddAllSources, GetSourceDescription, Kernel, MessageType, split
from nstat_async.testing import EmulatedKernel, Workload, serve_unix

PAUSE = 0.05
"""Seconds that the other client waits between two requests."""
LIFE = 4.0
RECEIVE_SPACE = 2 << 20
"""Receive buffer, bytes: what a monitor asks the real socket for, and cannot ask for through a Unix socket."""


# --- the kernel, elsewhere ------------------------------------------------------


def serve(path, pipe, size, rate, life, tcp_only):
    """Serve an emulated kernel until told to stop; then tell what truly happened."""
    kernel = EmulatedKernel(KERNEL, clock=time.monotonic, seed=1, receive_space=RECEIVE_SPACE)
    kinds = [(provider, False) for provider, userland in kernel.release.providers.values()
             if provider.value == "tcp" and not userland] if tcp_only else None  # fmt: skip
    transfers = 0.2 if life else 0.0
    workload = Workload(kernel, rate=rate, size=size, mean_life=life or 1e9, transfers=transfers, kinds=kinds, seed=1)
    if not rate:
        workload.start()
    stop = threading.Event()
    thread = threading.Thread(target=serve_unix, args=(kernel, path), kwargs={"stop": stop})
    thread.start()
    pipe.send("ready")
    while (word := pipe.recv()) != "stop":
        if word == "go":
            workload.start()
        elif word == "quiet":
            with kernel.lock:
                workload.stop()
        with kernel.lock:
            pipe.send((workload.opened, workload.closed, workload.rx_bytes, workload.tx_bytes))
    stop.set()
    thread.join()


class Kernels:
    """An emulated kernel in another process."""

    def __init__(self, *, size=0, rate=0.0, life=None, tcp_only=False):
        self._directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._directory.name, "kernel")
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        arguments = (self.path, far, size, rate, life, tcp_only)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        self._pipe.recv()
        while not self._listens():
            time.sleep(0.01)

    def _listens(self):
        """True once somebody can be connected to; the path is there a moment before."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.path) == 0

    def ask(self, word):
        """Say ``go`` or ``quiet`` to the workload; flows opened and closed by then, bytes received and sent."""
        self._pipe.send(word)
        return self._pipe.recv()

    def backend(self):
        """The way to it."""
        return backends.UnixSocket(self.path, KERNEL)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._pipe.send("stop")
        self._process.join(10)
        self._directory.cleanup()


# --- flows that exist already -------------------------------------------------------


async def described(backend, count):
    """Seconds until the last of so many flows is described: elapsed, and of our processor."""
    begin, own, seen = time.perf_counter(), time.process_time(), 0
    async with Monitor(backend=backend) as monitor:
        subscription = monitor.subscribe()
        while seen < count:
            seen += sum(1 for event in await subscription.receive_many() if isinstance(event, FlowAdded))
        return time.perf_counter() - begin, time.process_time() - own


def one_at_a_time(path, most):
    """The other client, for its first flows: seconds for each."""
    kernel = Kernel.parse(KERNEL)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(path)
    client.settimeout(5)
    provider = next(n for n, (p, userland) in kernel.providers.items() if p.value == "tcp" and not userland)
    client.send(AddAllSources(context=1, provider=provider).encode(kernel.layout))
    references, done = [], False
    while not done:
        data = client.recv(65536)
        for kind, context, _, begin, _end in split(data, has_lengths=True)[0]:
            if kind == MessageType.SRC_ADDED:
                references.append(kernel.layout["nstat_msg_src_added"].read("srcref", data, begin))
            done = done or (kind == MessageType.SUCCESS and context == 1)
    begin, asked = time.perf_counter(), 0
    for asked, reference in enumerate(references[:most], 1):
        client.send(GetSourceDescription(context=1 + asked, srcref=reference).encode(kernel.layout))
        answered = False
        while not answered:
            answered = any(frame[0] == MessageType.SRC_DESC for frame in split(client.recv(65536), has_lengths=True)[0])
        time.sleep(PAUSE)
    span = time.perf_counter() - begin
    client.close()
    return span / asked


def announced(count):
    """How many of so many announcements fit into the receive buffer that a client has by default."""
    kernel = EmulatedKernel(KERNEL)
    for number in range(count):
        kernel.open_tcp(100 + number % 50, "app", remote=("198.51.100.1", 443))
    client = kernel.connect()
    provider = next(n for n, (p, userland) in kernel.release.providers.items() if p.value == "tcp" and not userland)
    client.send(AddAllSources(context=1, provider=provider).encode(kernel.release.layout))
    seen = 0
    while client.readable:
        seen += sum(f[0] == MessageType.SRC_ADDED for f in split(client.receive(), has_lengths=True)[0])
    return seen


def existing(numbers, rounds):
    rows = []
    with Kernels(size=20, tcp_only=True) as kernels:
        law = one_at_a_time(kernels.path, 20)
        anyio.run(described, kernels.backend(), 20)  # imports what is imported on first use
    for count in numbers:
        with Kernels(size=count, tcp_only=True) as kernels:
            runs = [anyio.run(described, kernels.backend(), count) for _ in range(rounds)]
        wall, own = (statistics.median(run[at] for run in runs) for at in (0, 1))
        met = ("yes" if own <= 0.15 else f"no, {own / 0.15:.2f}x") if count == 5000 else ""
        ratio, seen = law * count / wall, announced(count)
        rows.append([f"{count:,}", f"{wall:.3f}", f"{own:.3f}", f"{own / count * 1e6:.1f}", met,
                     f"{law * count:,.1f}", f"{ratio:,.0f}", f"{seen:,}"])  # fmt: skip
    header = ["flows", "elapsed s", "our CPU s", "µs a flow", "<= 0.15 s CPU", "one by one s*", "ratio", "it hears of"]
    table("subscription to the last of N flows described", header, rows)
    print(f"  * computed: {law * 1000:.1f} ms a flow, measured with 20. It hears of what fits its 8 KiB of buffer.")


# --- flows that come ---------------------------------------------------------------------


async def churn(kernels, seconds, discovery):
    """Watch for so long; what was seen, and whether it is the truth."""
    added, removed, lost, delays = {}, {}, 0, []
    open_bytes = 0
    async with Monitor(backend=kernels.backend(), discovery=discovery) as monitor:
        await monitor.poll_now()  # subscribed: what comes from now on shall be seen
        kernels.ask("go")
        until = time.monotonic() + seconds
        truth, quiet = None, 0
        async for event in monitor:
            if isinstance(event, FlowAdded):
                added[event.flow.id] = event.time
                if not event.preexisting and event.flow.started_ns:
                    delays.append(event.time - event.flow.started_ns / 1e9)
            elif isinstance(event, FlowRemoved):
                removed[event.flow.id] = (event.time, event.counts.rx_bytes or 0, event.final)
            elif isinstance(event, EventsLost):
                lost += 1
            elif isinstance(event, PollCompleted):
                if truth is None and time.monotonic() >= until:
                    truth = kernels.ask("quiet")
                elif truth is not None:
                    quiet += 1
                    if quiet >= 2:
                        break
        open_bytes = sum(counts.rx_bytes or 0 for _, counts in monitor.flows if counts is not None)
    total = sum(size for _, size, _ in removed.values()) + open_bytes
    alive = sum(1 for flow, (end, _, _) in removed.items() if end - added[flow] > 0.001)
    return {
        "opened": len(added),
        "closed": len(removed),
        "alive": (alive + len(added) - len(removed)) / max(1, len(added)),
        "delay": statistics.median(delays) if delays else 0.0,
        "late": sorted(delays)[int(len(delays) * 0.99)] if delays else 0.0,
        "lost": lost,
        "exact": (len(added), len(removed), total) == truth[:3],
        "truth": truth,
        "seen": (len(added), len(removed), total),
    }


def queue_model(rate, seconds):
    """Share of new flows that the other client would describe while they live (computed)."""
    draw, free, alive, now, count = random.Random(1), 0.0, 0, 0.0, 0
    while now < seconds:
        now += draw.expovariate(rate)
        count += 1
        free = max(free, now) + PAUSE
        alive += free < now + draw.expovariate(1 / LIFE)
    return alive / count


def arriving(rates, seconds):
    rows = []
    for rate in rates:
        for discovery in ("poll", "announce"):
            with Kernels(size=int(rate * LIFE), rate=rate, life=LIFE) as kernels:
                seen = anyio.run(churn, kernels, seconds, discovery)
            exact = "yes" if seen["exact"] else f"no: {seen['seen']} of {seen['truth'][:3]}"
            rows.append([f"{rate}/s, {discovery}", f"{seen['opened']:,}", f"{seen['alive']:.1%}",
                         f"{seen['delay'] * 1e3:.0f}", f"{seen['late'] * 1e3:.0f}", seen["lost"], exact,
                         f"{queue_model(rate, seconds):.1%}"])  # fmt: skip
    header = ["new flows", "flows", "seen alive", "median delay ms", "99% ms", "losses", "flows, ends, bytes exact",
              "one by one alive*"]  # fmt: skip
    table(f"new flows of mean life {LIFE:.0f} s, for {seconds} s, a poll a second", header, rows)
    print("  * computed as a queue served every 50 ms, from an empty machine on.")


# --- flows that stay ------------------------------------------------------------------------


async def polled(kernels, polls):
    """Processor seconds of one poll, in steady state; and updates it brought."""
    costs, updates = [], 0
    async with Monitor(backend=kernels.backend()) as monitor:
        subscription, own, seen = monitor.subscribe(), None, 0
        while len(costs) < polls:
            events = await subscription.receive_many()
            updates += len(events)
            for event in events:
                if isinstance(event, PollCompleted):
                    now, seen = time.process_time(), seen + 1
                    if seen > 2 and own is not None:
                        costs.append(now - own)
                    if seen == 2:
                        updates = 0
                    own = now
    return statistics.median(costs), updates / max(1, len(costs))


def steady(numbers, polls):
    rows = []
    for count in numbers:
        for life in (1e9, None):
            with Kernels(size=count, life=life) as kernels:
                cost, updates = anyio.run(polled, kernels, polls)
            what = "a fifth of them changing" if life else "all idle"
            rows.append([f"{count:,}, {what}", f"{cost * 1e3:.1f}", f"{cost:.1%}", f"{cost / count * 1e6:.2f}",
                         f"{updates:,.0f}"])  # fmt: skip
    header = ["flows", "our CPU a poll, ms", "share of a CPU", "µs a flow", "events a poll"]
    table("steady polling, once a second", header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    quick = parser.parse_args().quick
    print(machine())
    existing((100, 1_000, 5_000) if quick else (100, 1_000, 5_000, 10_000), 3 if quick else 5)
    arriving((5, 50, 500), 6 if quick else 12)
    steady((1_000, 10_000), 4 if quick else 8)


if __name__ == "__main__":
    main()
