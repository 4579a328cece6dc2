"""The same monitor on trio: a table of the busiest processes, beside another task.

python with_trio.py [RECORDING]
"""

import contextlib
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


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, backends.Replay(sys.argv[1]) if len(sys.argv) > 1 else None)
