"""How true the picture is: short processes with one TCP connection of known size each.

Run: ``python benchmarks/linux_accuracy.py [--processes 400] [--hold 0 300 3000] [--interval 1.0 0.1]``
Needs Linux and a C compiler. For each time that a connection is held, and each poll
interval, the share of flows that were seen, whose final bytes were exact at the client
and at the server, and whose process was named rightly.
"""

from __future__ import annotations

import argparse
import asyncio
import json

from linux_common import Collector, enter_namespace, generator, machine, open_feed

from nstat_async._events import EventsLost, FlowAdded, FlowRemoved
from nstat_async._model import Provider

FIRST_PORT, FIRST_SIZE, AT_ONCE = 10_000, 1000, 0.004


async def run(program, processes, hold, interval):
    feed, sink = open_feed(interval=interval, providers={Provider.TCP}), Collector()
    running = asyncio.create_task(feed.run(sink))
    await sink.until_polls(1)
    children = []
    for number in range(processes):
        arguments = ["hold", str(FIRST_PORT + number), str(FIRST_SIZE + number), str(hold)]
        children.append(await asyncio.create_subprocess_exec(program, *arguments))
        await asyncio.sleep(AT_ONCE)
    pids = {FIRST_PORT + number: child.pid for number, child in enumerate(children)}
    failures = sum([await child.wait() != 0 for child in children])
    await sink.until_polls(sink.polls + 2)
    feed.close()
    await running
    return {"hold_ms": hold, "interval_s": interval, "failed": failures, **judge(sink.events, pids, processes)}


def judge(events, pids, processes):
    """Shares, in percent."""
    ends = [e for e in events if isinstance(e, FlowRemoved) and e.flow.remote is not None]
    clients = {e.flow.remote.port: e for e in ends if e.flow.remote.port in pids}
    servers = {e.flow.local.port: e for e in ends if e.flow.local.port in pids}
    size = {port: port - FIRST_PORT + FIRST_SIZE for port in pids}

    def share(condition):
        return 100.0 * sum(map(condition, pids)) / processes

    def named(flows):
        return lambda p: p in flows and flows[p].flow.process is not None and flows[p].flow.process.pid == pids[p]

    polled = {e.flow.id for e in events if isinstance(e, FlowAdded) and e.flow.process is not None}
    wrong = [e for e in ends if e.flow.process is not None and e.flow.process.pid not in pids.values()]
    return {
        "clients_seen": share(lambda p: p in clients),
        "servers_seen": share(lambda p: p in servers),
        "sent_exact": share(
            lambda p: p in clients and (clients[p].counts.tx_bytes, clients[p].final) == (size[p], True)
        ),
        "received_exact": share(
            lambda p: p in servers and (servers[p].counts.rx_bytes, servers[p].final) == (size[p], True)
        ),
        "client_pid_right": share(named(clients)),
        "server_pid_right": share(named(servers)),
        "polled": 100.0 * sum(e.flow.id in polled for e in clients.values()) / processes,
        "pids_wrong": len(wrong),
        "losses": sum(isinstance(e, EventsLost) for e in events),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=400)
    parser.add_argument("--hold", type=int, nargs="+", default=[0, 300, 3000], help="milliseconds")
    parser.add_argument("--interval", type=float, nargs="+", default=[1.0, 0.1], help="seconds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    enter_namespace()
    program = generator()
    rows = []
    if not arguments.json:
        print(machine())
        columns = (
            "hold",
            "poll",
            "seen",
            "sent exact",
            "received exact",
            "pid client",
            "pid server",
            "named",
            "wrong",
            "losses",
        )
        print("".join(f"{column:>15s}" for column in columns))
    for hold in arguments.hold:
        for interval in arguments.interval:
            row = asyncio.run(run(program, arguments.processes, hold, interval))
            rows.append(row)
            if not arguments.json:
                shares = ("sent_exact", "received_exact", "client_pid_right", "server_pid_right", "polled")
                seen = min(row["clients_seen"], row["servers_seen"])
                cells = [
                    f"{hold} ms",
                    f"{interval} s",
                    *(f"{value:.1f} %" for value in (seen, *(row[s] for s in shares))),
                ]
                print("".join(f"{cell:>15}" for cell in (*cells, row["pids_wrong"], row["losses"])))
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
