"""``watch``: events of this machine until stopped."""

from __future__ import annotations

import argparse

import anyio

from .. import Monitor
from ._output import Output, complain, use_colour
from ._run import run_until_stopped
from ._source import backend_of, monitor_options
from ._stream import formatter_of, stream

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Stream events.

    Raises:
        NstatError: The backend cannot be opened, or failed.
    """
    output = Output(quiet=arguments.quiet)
    formatter = formatter_of(arguments, colour=use_colour(output.stream))
    backend = backend_of(arguments)
    options = monitor_options(arguments)

    async def work(scope: anyio.CancelScope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            with scope:
                await stream(monitor.subscribe(), output, formatter)
        return 0

    status = run_until_stopped(work, duration=arguments.duration, output=output)
    if arguments.quiet:
        complain(f"{output.written} events")
    return status
