"""``emulate``: the emulated kernel on an AF_UNIX socket."""

from __future__ import annotations

import argparse
import threading
from time import monotonic

import anyio
import anyio.to_thread

from ..testing import EmulatedKernel, UnixServer, Workload
from ._output import complain
from ._run import Scope, run_until_stopped
from ._source import check_input
from ._workload import Script, read_script


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    check_input(arguments.script)
    steps = None if arguments.script is None else read_script(arguments.script)
    more = {} if arguments.receive_space is None else {"receive_space": arguments.receive_space}
    kernel = EmulatedKernel(
        arguments.kernel, privileged=arguments.privileged, clock=monotonic, seed=arguments.seed, **more
    )
    server = UnixServer(kernel, arguments.listen)
    workload: Script | Workload
    if steps is None:
        workload = Workload(
            kernel, rate=arguments.rate, size=arguments.flows, mean_life=arguments.life, seed=arguments.seed
        )
    else:
        workload = Script(kernel, steps, complain)

    stop = threading.Event()

    async def work(scope: Scope) -> int:
        failures: list[Exception] = []

        async def serve() -> None:
            try:
                await anyio.to_thread.run_sync(server.run, stop)
            except Exception as error:  # noqa: BLE001  # raised below, out of the task group
                failures.append(error)
            scope.cancel()

        workload.start()
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            complain(f"{kernel.name} listens on {arguments.listen}")
            with scope:
                await anyio.sleep_forever()
            stop.set()
        if failures:
            raise failures[0]
        return 0

    try:
        return run_until_stopped(work, duration=arguments.duration)
    finally:
        server.close()
