"""``snapshot``: the flows of this moment, once."""

from __future__ import annotations

import argparse
from time import time

import anyio

from .. import snapshot
from .._errors import IncompleteSnapshotError
from .._model import Counts, Flow
from ._formats import flow_form
from ._output import Output, complain
from ._run import run_until_stopped
from ._source import backend_of, monitor_options

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the flows; status 1 when some are known to be missing."""
    output = Output()
    lines_of = flow_form(arguments)
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
    output.lines(lines_of(found, time()))
    return status
