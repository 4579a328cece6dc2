"""Two consumers of one monitor in plain asyncio: events as they come, and the busiest processes.

python plain_asyncio.py [RECORDING]
"""

import asyncio
import contextlib
import signal
import sys

from nstat_async import EventsLost, FlowAdded, FlowRemoved, Monitor, Subscription, backends
from nstat_async.aggregate import ProcessTable, TableStream, by_process
from nstat_async.backends import Backend


async def print_events(events: Subscription) -> None:
    async for event in events:
        if isinstance(event, FlowAdded):
            print("+", event.flow)
        elif isinstance(event, FlowRemoved):
            print("-", event.flow, event.reason.value)
        elif isinstance(event, EventsLost):
            print("!", event.cause.value, event.count)


async def print_processes(tables: TableStream[ProcessTable]) -> None:
    async for table in tables:
        for row in table.top(3, by="rate"):
            print(f"  {row.name or row.kind.value:20} {row.rx_bytes:>12,} in {row.tx_bytes:>12,} out")


async def main(backend: Backend | None = None, every: float = 2.0) -> None:
    async with (
        Monitor(backend=backend) as monitor,
        monitor.subscribe() as events,
        by_process(monitor, every=every) as tables,
    ):
        await asyncio.gather(print_events(events), print_processes(tables))


async def until_stopped(backend: Backend | None) -> None:
    task = asyncio.ensure_future(main(backend))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(until_stopped(backends.Replay(sys.argv[1]) if len(sys.argv) > 1 else None))
