"""Traffic per process for Prometheus, on http://127.0.0.1:9107/metrics.

    python prometheus_exporter.py [RECORDING]

Needs the extra ``prometheus``.
"""

import asyncio
import signal
import sys

import anyio
from prometheus_client import CollectorRegistry, start_http_server

from nstat_async import Monitor, backends
from nstat_async.backends import Backend
from nstat_async.integrations.prometheus import TrafficCollector


async def main(backend: Backend | None = None, port: int = 9107) -> None:
    registry = CollectorRegistry()
    collector = TrafficCollector(limit=50)  # process names with a series of their own
    registry.register(collector)
    # The client library answers scrapes in a thread of its own; the collector allows for it.
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    print(f"metrics on http://127.0.0.1:{server.server_port}/metrics", flush=True)
    try:
        async with Monitor(backend=backend) as monitor:
            await collector.run(monitor)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def until_stopped(backend: Backend | None) -> None:
    with anyio.CancelScope() as scope:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        await main(backend)


if __name__ == "__main__":
    anyio.run(until_stopped, backends.Replay(sys.argv[1]) if len(sys.argv) > 1 else None)
