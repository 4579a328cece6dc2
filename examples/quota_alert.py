"""Raise an alarm when a process moved more than its quota.

python quota_alert.py [BYTES]
"""

import asyncio
import signal
import sys
from collections.abc import Callable

import anyio

from nstat_async import Monitor
from nstat_async.aggregate import RowKind, by_process
from nstat_async.backends import Backend


async def main(
    quota: int, backend: Backend | None = None, every: float = 5.0, alarm: Callable[[str], object] = print
) -> None:
    alerted = set()
    async with Monitor(backend=backend) as monitor, by_process(monitor, every=every, max_age=3600) as tables:
        async for table in tables:
            for row in table.top(20, other=False):
                # A key is (pid, unique_pid): a successor with the same pid has a quota of its own.
                if row.kind is RowKind.GROUP and row.bytes > quota and row.key not in alerted:
                    alerted.add(row.key)
                    alarm(f"pid {row.pid} {row.name!r} moved {row.bytes:,} bytes (quota {quota:,})")
            alerted &= {row.key for row in table.rows()}  # forget what the table forgot


async def until_stopped(quota: int) -> None:
    with anyio.CancelScope() as scope:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        await main(quota)


if __name__ == "__main__":
    anyio.run(until_stopped, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_000)
