"""How soon flows are known, and what watching them costs: a monitor on an emulated kernel.

Run: ``python benchmarks/discovery.py``. The emulated kernel (`nstat_async.testing`) runs in a process of its own behind
a Unix socket, so that processor time here is the monitor's alone. The floor is the one of ``core.py``: to receive one
message of a flow from a socket and to walk its header. With ``--against DIR`` the part is left out that waits by the
clock for new flows.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time

import _turns
import anyio
from _kernels import KERNEL, Flows, walked
from _turns import Done, Row, in_turn

from nstat_async import EventsLost, FlowAdded, FlowRemoved, Monitor, PollCompleted, backends
from nstat_async.testing import EmulatedKernel, Workload, serve_unix

LIFE = 4.0
RECEIVE_SPACE = 2 << 20
"""Receive buffer, bytes: what a monitor asks the real socket for, and cannot ask for through a Unix socket."""


# --- the kernel, elsewhere ------------------------------------------------------


def serve(path, pipe, size, rate, life, tcp_only):
    """Serve an emulated kernel until asked to stop; answer each word with what truly happened until then."""
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
        with kernel.lock:
            if word == "quiet":
                workload.stop()
        if word == "go":
            workload.start()
        with kernel.lock:
            pipe.send((workload.opened, workload.closed, workload.rx_bytes))
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
        far.close()  # a kernel that dies is the pipe's end here, not silence
        self._pipe.recv()
        while not self._listens():
            time.sleep(0.01)

    def _listens(self):
        """True once somebody can be connected to; the path is there a moment before."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(self.path) == 0

    def ask(self, word):
        """Say ``go`` or ``quiet`` to the workload; flows opened, flows closed and bytes received by then."""
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
    """Our processor time until the last of so many flows is described."""
    begin, seen = time.process_time(), 0
    async with Monitor(backend=backend) as monitor:
        subscription = monitor.subscribe()
        while seen < count:
            seen += sum(1 for event in await subscription.receive_many() if isinstance(event, FlowAdded))
        return Done(count, time.process_time() - begin, seen)


def existing(arguments):
    for count in (50,) if arguments.short else (100, 1_000, 5_000, 10_000):
        flows = Flows(min(count, 1000))
        waiting = [datagram for number in range(10) for datagram in flows.poll(number)]
        with Kernels(size=count, tcp_only=True) as kernels:
            anyio.run(described, kernels.backend(), count)  # imports what is imported at the first use

            def run(kernels=kernels, count=count):
                return anyio.run(described, kernels.backend(), count)

            ways = {"floor: received and walked": lambda waiting=waiting: walked(waiting), "described": run}
            rows = in_turn(arguments.rounds, ways, floor="floor: received and walked", wanted={"described": 100})
        yield f"{count:,} flows that exist: a flow, from the subscription to its description", rows


# --- flows that come ---------------------------------------------------------------------


async def churn(kernels, seconds, discovery):
    """Watch for so long; the shares that were seen while they lived, delays, and what is not the truth."""
    added, removed, lost, delays = {}, {}, 0, []
    async with Monitor(backend=kernels.backend(), discovery=discovery) as monitor:
        await monitor.poll_now()  # subscribed: what comes from now on shall be seen
        kernels.ask("go")
        until, truth, quiet = time.monotonic() + seconds, None, 0
        async for event in monitor:
            if isinstance(event, FlowAdded):
                added[event.flow.id] = event.time
                if not event.preexisting and event.flow.started_ns:
                    delays.append(event.time - event.flow.started_ns / 1e9)
            elif isinstance(event, FlowRemoved):
                removed[event.flow.id] = (event.time, event.counts.rx_bytes or 0)
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
    seen = (len(added), len(removed), sum(size for _, size in removed.values()) + open_bytes)
    alive = len(added) - len(removed) + sum(end - added[flow] > 0.001 for flow, (end, _) in removed.items())
    return {
        "alive": alive / max(1, len(added)),
        "delay": statistics.median(delays or [0.0]),
        "lost": lost,
        "seen": seen,
        "true": truth,
    }


def arriving(arguments):
    rows = []
    for rate in (20,) if arguments.short else (5, 50, 500):
        for discovery in ("poll", "announce"):
            with Kernels(size=int(rate * LIFE), rate=rate, life=LIFE) as kernels:
                found = anyio.run(churn, kernels, 1 if arguments.short else 12, discovery)
            exact = "exact" if tuple(found["seen"]) == tuple(found["true"]) else f"NOT {found['true']}"
            note = f"{found['seen'][0]:,} flows, {exact}, {found['alive']:.0%} seen alive, {found['lost']} losses"
            rows.append(
                Row(f"{rate}/s, {discovery}", "ms", [found["delay"]], units=found["seen"][0], counted=found, note=note)
            )
    yield f"new flows of mean life {LIFE:.0f} s, a poll a second: median delay of their report", rows


# --- flows that stay ------------------------------------------------------------------------


async def polled(kernels, count, polls):
    """Processor time of a poll of flows that idle; counts the polls."""
    async with Monitor(backend=kernels.backend(), interval=None) as monitor:
        subscription = monitor.subscribe()
        for _ in range(2):
            await monitor.poll_now()
        subscription.receive_nowait()
        begin, completed = time.process_time(), 0
        for _ in range(polls):
            await monitor.poll_now()
            completed += len(subscription.receive_nowait())
        return Done(polls * count, time.process_time() - begin, completed)


def steady(arguments):
    polls = 2 if arguments.short else 5
    for count in (50,) if arguments.short else (1_000, 10_000):
        waiting = [datagram for number in range(10) for datagram in Flows(min(count, 1000)).poll(number)]
        with Kernels(size=count) as idle:
            ways = {
                "floor: received and walked": lambda waiting=waiting: walked(waiting),
                "idle": lambda at=idle, count=count: anyio.run(polled, at, count, polls),
            }
            yield (
                f"{count:,} flows: a flow in a poll",
                in_turn(arguments.rounds, ways, floor="floor: received and walked"),
            )


def measure(arguments):
    # How late new flows are reported says the interval of polls: no cost of ours, and minutes of waiting.
    for part in (existing, steady) if arguments.compared else (existing, arriving, steady):
        yield from part(arguments)


if __name__ == "__main__":
    _turns.main(__file__, __doc__, measure)
