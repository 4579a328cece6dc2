"""``snapshot``: the flows of this moment, once."""

from __future__ import annotations

import argparse
from time import time

from .._errors import IncompleteSnapshotError
from .._model import Counts, Flow
from .._monitor import look_once
from ._formats import flow_form
from ._limits import Limits
from ._output import Output, complain
from ._run import Scope, run_until_stopped
from ._source import backend_of, is_recorded, monitor_options


def run(arguments: argparse.Namespace) -> int:
    """Print the flows; the status is 1 if some are known to be missing. If it is stopped early, it prints none."""
    output = Output()
    lines_of = flow_form(arguments, output)
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)
    found: list[tuple[Flow, Counts | None]] | None = None
    moment: float | None = None

    async def work(scope: Scope) -> int:
        nonlocal found, moment
        with scope:
            look = await look_once(
                backend=backend,
                providers=options.get("providers"),
                flow_filter=options.get("flow_filter"),
                extras=options.get("extras", False),
            )
            found, moment = list(look.flows), look.moment
            Limits(recorded=is_recorded(arguments)).say(look)
            if look.missing is not None:
                complain(str(IncompleteSnapshotError(look.flows, look.missing)))
                return 1
            return 0
        if scope.timed_out:
            complain(f"the snapshot is incomplete: no whole answer came within {arguments.duration:g} s")
            return 1
        return 0

    status = run_until_stopped(work, duration=arguments.duration, output=output)
    if found is not None:
        output.lines(lines_of(found, time() if moment is None else moment))
    return status
