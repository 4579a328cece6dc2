"""The tools of ``accuracy.py``: each watches until its standard input ends, then prints what it saw as JSON.

A flow is ``[protocol, local port, remote port, pid, bytes sent, bytes received]``; 0 for a port that is not there, `None`
for what is not known. The tools that look look each second, which is the library's interval, too.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys

import _turns  # noqa: F401  # finds the library

INTERVAL = 1.0
LINE = re.compile(r"^(tcp|udp|mptcp)\s+\S+\s+\d+\s+\d+\s+\S*:(\d+)\s+\S*:(\d+|\*)")


def ended(seconds):
    """True if the standard input ended; waits so long for it."""
    return bool(select.select([0], [], [], seconds)[0]) and not os.read(0, 1)


def library(ebpf="off"):
    import asyncio
    import contextlib
    import threading

    from nstat_async import BackendUnavailableError, FlowAdded, FlowRemoved, FlowUpdated, Monitor, UsageError
    from nstat_async._cli._run import poll_to_the_end
    from nstat_async.backends import SockDiag

    seen = {}

    def note(flow, counts):
        ends = [0 if end is None else end.port for end in (flow.local, flow.remote)]
        pid = None if flow.process is None else flow.process.pid
        before = seen.get(flow.id, [None] * 6)
        moved = before[4:] if counts is None else [counts.tx_bytes, counts.rx_bytes]
        seen[flow.id] = [flow.provider.value, *ends, pid, *moved]

    async def watch(backend, first):
        async with Monitor(backend=backend, interval=INTERVAL, overflow="all", ebpf=ebpf) as monitor:
            await monitor.poll_now()
            if first:
                print("ready", flush=True)
            stopped = asyncio.Event()
            threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stopped.set))).start()
            loop = asyncio.get_running_loop()

            async def read():
                async for event in monitor:
                    if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
                        note(event.flow, event.counts)

            reading = asyncio.create_task(read())
            await stopped.wait()
            await poll_to_the_end(monitor, "the last flows may be missing")
            await asyncio.sleep(1.0)  # `read` takes what was delivered
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    try:
        asyncio.run(watch(SockDiag(netns="all"), first=True))
    except (BackendUnavailableError, UsageError):
        asyncio.run(watch(SockDiag(), first=True))  # what is not granted to see more ends here, if it is eBPF
    return list(seen.values())


def _looking(look):
    seen = {}
    look(seen)
    print("ready", flush=True)
    while not ended(INTERVAL):
        look(seen)
    look(seen)
    return list(seen.values())


def _keep(seen, flow):
    """A later look may no longer know the owner, or the bytes."""
    before = seen.get(tuple(flow[:3]), flow)
    seen[tuple(flow[:3])] = [new if new is not None else old for new, old in zip(flow, before, strict=True)]


def psutil():
    import socket

    import psutil as module

    def look(seen):
        for connection in module.net_connections("inet"):
            proto = "tcp" if connection.type == socket.SOCK_STREAM else "udp"
            ends = [end.port if end else 0 for end in (connection.laddr, connection.raddr)]
            _keep(seen, [proto, *ends, connection.pid, None, None])

    return _looking(look)


def ss():
    def look(seen):
        text = subprocess.run(["ss", "-tuainpHO"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in text.splitlines():
            if found := LINE.match(line):
                pid = re.search(r"pid=(\d+)", line)
                sent, received = (re.search(rf"\b{name}:(\d+)", line) for name in ("bytes_sent", "bytes_received"))
                again = re.search(r"\bbytes_retrans:(\d+)", line)
                there = re.search(r"\bbytes_acked:(\d+)", line) is not None or received is not None
                tx = int(sent[1]) - (int(again[1]) if again else 0) if sent else 0 if there else None
                rx = int(received[1]) if received else 0 if there else None
                ends = [int(port) if port != "*" else 0 for port in found.groups()[1:]]
                _keep(seen, [found[1], *ends, int(pid[1]) if pid else None, tx, rx])

    return _looking(look)


WATCHERS = {"library": library, "psutil": psutil, "ss": ss}

if __name__ == "__main__":
    print(json.dumps(WATCHERS[sys.argv[1]](*(["require"] if sys.argv[2:] else []))))
