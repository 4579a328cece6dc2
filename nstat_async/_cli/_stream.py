"""From a monitor to lines: what `watch` and `replay` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from .. import Monitor, Subscription
from .._contract import Backend
from .._events import AnyEvent
from ..json import JsonFormatter
from ._output import Output, complain, use_colour
from ._progress import Progress
from ._run import run_until_stopped
from ._text import TextFormatter

__all__ = ["show_events", "stream"]


def show_events(
    arguments: argparse.Namespace,
    backend: Backend,
    options: Mapping[str, Any],
    output: Output,
    progress: Progress | None = None,
) -> int:
    """Print the events of a backend, as JSON Lines or text, until they end or it is stopped."""
    formatter: Callable[[AnyEvent], str | None] = (
        JsonFormatter(full=arguments.details)
        if arguments.json
        else TextFormatter(colour=use_colour(output.stream), utc=arguments.utc)
    )

    async def work(scope: anyio.CancelScope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            with scope:
                await stream(monitor.subscribe(), output, formatter)
        return 0

    status = run_until_stopped(work, duration=arguments.duration, output=output, progress=progress)
    if arguments.quiet:
        complain(f"{output.written} events")
    return status


async def stream(events: Subscription, output: Output, formatter: Callable[[AnyEvent], str | None]) -> None:
    """Print every event until the stream ends; whatever waits is one batch.

    With a quiet output nothing is formatted: that is the null sink by which the
    library itself is measured.
    """
    if output.quiet:
        while batch := await events.receive_many():
            output.written += len(batch)
        return
    while batch := await events.receive_many():
        await output.send([line for event in batch if (line := formatter(event)) is not None])
