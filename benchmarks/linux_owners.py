"""What it costs to know whose a socket is on Linux, and how short a flow may be: without eBPF, without a privilege of its own.

Run: ``python benchmarks/linux_owners.py [--processes 50 1000 10000]`` (as root it makes a network namespace of its own).

- Costs of a poll are those of the worker thread, with so many processes that hold a socket each: the search for a socket that
  nobody has, the checks of what is known (a second after the last ones), a look at all tables of descriptors, and the next one.
- Short flows: a process each that connects, sends, waits and ends. "Right" is the process of both ends. The cost is the
  processor time of the monitor's process a second, beside the same monitor with polls alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time

import _turns
from _turns import Done, Row, environment, in_turn
from linux_common import enter_namespace

from nstat_async import FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted
from nstat_async._io.census import Census
from nstat_async._io.procfs import ProcessScanner
from nstat_async.sockdiag import OwnersRequest
from nstat_async.sockdiag._owners import PROCESSES_PER_SECOND, SOCKETS_PER_SECOND

LIVES = (0.005, 0.01, 0.02, 0.05, 0.2, 1.0)
PULSES = {"polls alone": None, "pulse 0.02": 0.02, "pulse 0.005": 0.005}


class Owners:
    """Processes with a socket each: forks, so that ten thousand of them fit."""

    def __init__(self, count):
        self.sockets = {}
        end, self._end = os.pipe()
        for _ in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                inode, descriptor, pid = os.fstat(sock.fileno()).st_ino, sock.fileno(), os.fork()
                if not pid:
                    os.close(self._end)
                    os.read(end, 1)
                    os._exit(0)
            self.sockets[inode] = pid, descriptor
        os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self._end)
        for pid, _ in self.sockets.values():
            os.waitpid(pid, 0)


def spent(work, times=1):
    """The processor time of this thread for some work, and what it counted last."""
    begin = time.thread_time()
    for _ in range(times):
        counted = work()
    return Done(times, time.thread_time() - begin, counted)


def whole(scanner, request):
    """Answers until the search is over; the owners that were found."""
    found = 0
    while True:
        answer = scanner.answer(request)
        found += len(answer.owners)
        if answer.below is None:
            return found
        request = OwnersRequest(frozenset(), (), answer.below)


def around(census):
    """Look at all tables of descriptors once; an answer does a part of it, as much as the time since the last one allows."""
    while census.go_on(math.inf) is None:
        pass
    return 1


def polls(arguments, count):
    with Owners(count) as owners:
        scanner, census = ProcessScanner(), Census()
        places = tuple((inode, *place) for inode, place in owners.sockets.items())
        held, checked = places[: SOCKETS_PER_SECOND + 1], tuple(started(owners))[: PROCESSES_PER_SECOND + 1]
        checks = OwnersRequest(frozenset(), verify=checked, held=held)
        ways = {
            "all owners, from nothing": lambda: spent(
                lambda: whole(ProcessScanner(), OwnersRequest(frozenset(owners.sockets)))
            ),
            "one that nobody has": lambda: spent(lambda: whole(scanner, OwnersRequest(frozenset({1})))),
            "who else has them, for the first time": lambda: spent(lambda: around(Census())),
            "the same once more": lambda: spent(lambda: around(census)),
            "the checks of a poll": lambda: spent(lambda: len(scanner.answer(checks).lost)),
        }
        around(census)
        yield f"{count:,} processes with a socket each", in_turn(arguments.rounds, ways, unit="ms")


def started(owners):
    from nstat_async._io.processes import start_ticks

    return ((pid, start_ticks(pid)) for pid, _ in owners.sockets.values())


# -- short flows


def serve(listener):
    """A server in a process of its own; its pid."""
    pid = os.fork()
    if pid:
        return pid
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=drain, args=(connection,), daemon=True).start()


def drain(connection):
    with connection:
        while connection.recv(65_536):
            pass


def dial(port, life):
    """A client in a process of its own; its pid."""
    pid = os.fork()
    if not pid:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"x" * 1000)
        time.sleep(life)
        client.close()
        os._exit(0)
    return pid


def short_flows(arguments, life, flows, rate):
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        port, server = listener.getsockname()[1], serve(listener)
        rows = {name: Row(name, "ms") for name in PULSES}
        for _ in range(arguments.rounds):
            for name, pulse in PULSES.items():
                watched, clients = watch(port, pulse, lambda: dial_all(port, life, flows, rate))
                right = sum(pid in clients for pid in watched["out"]), sum(pid == server for pid in watched["in"])
                rows[name].costs.append(watched["cpu"] / watched["wall"])
                rows[name].units, rows[name].counted = flows, [flows, *right]
                rows[name].note = f"of {flows} right: {right[0]} that connected, {right[1]} that accepted"
        os.kill(server, 9)
        os.waitpid(server, 0)
    for row in list(rows.values())[1:]:
        row.of, base = "polls alone", rows["polls alone"]
        row.ratios = [a / b for a, b in zip(row.costs, base.costs, strict=True)]
    return list(rows.values())


def dial_all(port, life, flows, rate):
    clients, begin = set(), time.monotonic()
    for number in range(flows):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        clients.add(dial(port, life))
    for pid in clients:
        os.waitpid(pid, 0)
    return clients


def watch(port, pulse, work):
    """What a monitor in another process saw while this one worked."""
    command = [sys.executable, __file__, "--watch", str(port), json.dumps(pulse)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as monitor:
        monitor.stdout.readline()
        done = work()
        answer, _ = monitor.communicate("\n", timeout=60)
    return json.loads(answer), done


async def watching(port, pulse):
    owners = {"out": {}, "in": {}}
    async with Monitor(ebpf="off", pulse=pulse, providers="tcp") as monitor:

        async def read():
            async for event in monitor:
                if isinstance(event, PollCompleted) and event.serial == 2:
                    print("ready", flush=True)
                    begun.extend((time.process_time(), time.monotonic()))
                if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)) and event.flow.remote is not None:
                    ends = event.flow.local.port, event.flow.remote.port
                    pid = None if event.flow.process is None else event.flow.process.pid
                    if port in ends:
                        owners["in" if ends[0] == port else "out"][ends] = pid

        begun = []
        reader = asyncio.create_task(read())
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(1.5)
        cpu, wall = time.process_time() - begun[0], time.monotonic() - begun[1]
        reader.cancel()
    print(
        json.dumps({"out": list(owners["out"].values()), "in": list(owners["in"].values()), "cpu": cpu, "wall": wall})
    )


def measure(arguments):
    for count in arguments.processes or ([20] if arguments.short else [50, 1_000, 10_000]):
        yield from polls(arguments, count)
    for life in (0.05,) if arguments.short else LIVES:
        flows = 3 if arguments.short else 60
        title = f"flows of {life * 1000:g} ms, 16 a second: processor time a second"
        yield title, short_flows(arguments, life, flows, 16)
    for rate in () if arguments.short else (50, 1_000):
        title = f"flows of 50 ms, {rate} a second: processor time a second"
        yield title, short_flows(arguments, 0.05, 10 * rate, rate)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        asyncio.run(watching(int(sys.argv[2]), json.loads(sys.argv[3])))
    else:
        enter_namespace()
        _turns.main(__file__, __doc__, measure, options=[("--processes", {"type": int, "nargs": "+"})])
