"""The same monitor on trio: a table of the busiest processes, beside another task.

python with_trio.py [RECORDING]  (pip install trio)
"""

import signal
import sys

import trio

from nstat_async import EventsLost, Monitor, Subscription, backends
from nstat_async.aggregate import by_process
from nstat_async.backends import Backend


async def watch_losses(subscription: Subscription) -> None:
    async for event in subscription:
        if isinstance(event, EventsLost):
            print("lost:", event.cause.value, event.count)


async def main(backend: Backend | None = None, every: float = 2.0) -> None:
    async with (
        Monitor(backend=backend) as monitor,
        by_process(monitor, every=every) as tables,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_losses, monitor.subscribe())
        async for table in tables:
            for row in table.top(5, by="rate"):
                print(f"{row.name or row.kind.value:20} {row.rx_bytes:>12,} in {row.tx_bytes:>12,} out")


async def until_stopped(backend: Backend | None) -> None:
    async with trio.open_nursery() as nursery:

        async def work() -> None:
            await main(backend)
            nursery.cancel_scope.cancel()

        nursery.start_soon(work)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(until_stopped, backends.Replay(sys.argv[1]) if len(sys.argv) > 1 else None)
