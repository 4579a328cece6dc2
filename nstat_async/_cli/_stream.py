"""From a monitor to lines: what `watch` and `replay` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .. import Subscription
from .._events import AnyEvent
from ..json import JsonFormatter
from ._output import Output
from ._text import TextFormatter

__all__ = ["Formatter", "formatter_of", "stream"]

Formatter = Callable[[AnyEvent], "str | None"]


def formatter_of(arguments: argparse.Namespace, *, colour: bool) -> Formatter:
    """JSON Lines or text, as asked."""
    return JsonFormatter(full=arguments.details) if arguments.json else TextFormatter(colour=colour, utc=arguments.utc)


async def stream(events: Subscription, output: Output, formatter: Formatter) -> None:
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
