"""``watch``: events of this machine until stopped."""

from __future__ import annotations

import argparse

from ._formats import event_formatter
from ._output import Output
from ._source import backend_of, monitor_options
from ._stream import show_events


def run(arguments: argparse.Namespace) -> int:
    """Stream events."""
    output = Output(quiet=arguments.quiet)
    formatter = event_formatter(arguments, output)
    backend = backend_of(arguments)
    return show_events(arguments, backend, monitor_options(arguments, backend), output, formatter)
