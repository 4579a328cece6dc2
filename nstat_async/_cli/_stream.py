"""From a monitor to lines: what `watch` and `replay` share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .. import Monitor
from .._contract import Backend
from .._events import EventsLost
from ._formats import EventFormatter
from ._limits import Limits
from ._output import Output, complain, events_text
from ._progress import Progress
from ._run import Scope, run_until_stopped
from ._source import is_recorded


def show_events(
    arguments: argparse.Namespace,
    backend: Backend,
    options: Mapping[str, Any],
    output: Output,
    formatter: EventFormatter,
    progress: Progress | None = None,
) -> int:
    """Print the events of a backend until they end or it is stopped."""
    limits = Limits(recorded=is_recorded(arguments))

    async def work(scope: Scope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            with scope:
                await stream(monitor, output, formatter, limits)
        return 0

    status = None
    try:
        status = run_until_stopped(work, duration=arguments.duration, output=output, progress=progress)
        return status
    finally:
        if arguments.quiet and (output.events or status is not None):  # else only the error is said
            complain(events_text(output.events, output.losses))


async def stream(monitor: Monitor, output: Output, formatter: EventFormatter, limits: Limits) -> None:
    """Print every event until the stream ends; the events that wait are one batch.

    A quiet output formats nothing, and so measures the library itself; it counts losses. Limits are printed after the first batch.
    """
    events = monitor.subscribe()
    while batch := await events.receive_many():
        output.events += len(batch)
        if output.quiet:
            output.losses += list(map(type, batch)).count(EventsLost)
        else:
            await output.send(formatter(batch))
        limits.say(monitor)
