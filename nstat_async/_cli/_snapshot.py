"""``snapshot``: the flows of this moment, once."""

from __future__ import annotations

import argparse
from time import time

import anyio

from .. import snapshot
from .._errors import IncompleteSnapshotError
from .._model import Counts, Flow
from ..json import JsonFormatter
from ._output import Output, complain
from ._run import run_until_stopped
from ._source import backend_of, monitor_options
from ._table import render
from ._text import bytes_text, interface_text, is_listener, process_text

__all__ = ["run"]

_HEADINGS = ("", "PROTOCOL", "LOCAL", "REMOTE", "STATE", "PROCESS", "RX", "TX", "VIA")
_RIGHT = frozenset({6, 7})


def run(arguments: argparse.Namespace) -> int:
    """Print the flows; status 1 when some are known to be missing."""
    output = Output()
    backend = backend_of(arguments)
    options = monitor_options(arguments)
    options = {name: options[name] for name in ("providers", "flow_filter") if name in options}
    found: list[tuple[Flow, Counts | None]] = []

    async def work(scope: anyio.CancelScope) -> int:
        with scope:
            try:
                found.extend(await snapshot(backend=backend, **options))
            except IncompleteSnapshotError as error:
                found.extend(error.flows)
                complain(str(error))
                return 1
        return 0

    status = run_until_stopped(work, duration=arguments.duration, output=output)
    moment = time()
    if arguments.json:
        line = JsonFormatter().flow_line
        output.lines(line(flow, counts, moment) for flow, counts in found)
    else:
        output.lines(render(_HEADINGS, [_cells(flow, counts) for flow, counts in found], right=_RIGHT))
    return status


def _cells(flow: Flow, counts: Counts | None) -> tuple[str, ...]:
    return (
        "@" if is_listener(flow) else "",
        flow.provider.value,
        str(flow.local or "*"),
        str(flow.remote or "*"),
        "" if flow.state is None else flow.state.value,
        process_text(flow.process),
        "" if counts is None or counts.rx_bytes is None else bytes_text(counts.rx_bytes),
        "" if counts is None or counts.tx_bytes is None else bytes_text(counts.tx_bytes),
        interface_text(flow.interface),
    )
