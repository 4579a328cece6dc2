"""What did this command send and receive?

    python subprocess_traffic.py curl -sO https://example.com/

Counts the started process, not its children. On Linux without eBPF a connection of milliseconds may have no owner.
"""

import contextlib
import shutil
import signal
import sys

import anyio
from anyio.abc import Process

from nstat_async import Monitor, Subscription
from nstat_async.aggregate import ProcessTable, Row, sum_rows
from nstat_async.backends import Backend


async def pass_on_signals(process: Process) -> None:
    """Ctrl-C and SIGTERM are for the command; when it ended, its traffic is still reported."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


async def traffic_of(command: list[str], backend: Backend | None = None, interval: float = 0.1) -> tuple[int, Row]:
    """Run a command; its exit status and the sum of its rows."""
    table = ProcessTable()

    async def count(subscription: Subscription) -> None:
        while events := await subscription.receive_many():
            table.feed_many(events)

    async with Monitor(backend=backend, interval=interval) as monitor, monitor.subscribe() as subscription:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count, subscription)
            await monitor.poll_now()  # what is there already is not the command's
            async with await anyio.open_process(command, stdin=None, stdout=None, stderr=None) as process:
                tasks.start_soon(pass_on_signals, process)
                status = await process.wait()
            await monitor.poll_now(ends=True)  # its last words, too
            tasks.cancel_scope.cancel()
        table.feed_many(subscription.receive_nowait())
    return status, sum_rows(row for row in table.rows() if row.pid == process.pid)


async def main(command: list[str]) -> int:
    shutil.which(command[0]) or sys.exit(f"there is no command {command[0]}")
    status, total = await traffic_of(command)
    print(f"exit status {status}, {total.flows} flows", file=sys.stderr)
    print(f"received {total.rx_bytes:,} bytes, sent {total.tx_bytes:,} bytes", file=sys.stderr)
    return 128 - status if status < 0 else status  # as a shell says it


if __name__ == "__main__":
    sys.exit(anyio.run(main, sys.argv[1:] or sys.exit(__doc__)))
