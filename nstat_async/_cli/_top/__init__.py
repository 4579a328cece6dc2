"""``top``: a live table of processes, most traffic first.

The model (`_model`) knows what is shown and in which order and is plain Python; the
layout (`_layout`) knows columns; the application (`_app`) knows Textual. Only the last
needs the extra ``[cli]``.
"""

from __future__ import annotations

import argparse
import sys

from ..._errors import BackendUnavailableError, NstatError, UnavailableReason
from .._output import can_draw
from .._processes import run as print_rows
from .._processes import view_of
from .._source import backend_of, monitor_options
from ._screen import screen_on


def run(arguments: argparse.Namespace) -> int:
    """Show the table until the user quits."""
    if arguments.json:
        arguments.every = arguments.interval or 1.0
        arguments.format, arguments.fields = "json", None
        return print_rows(arguments)
    try:
        from ._app import TopApp  # noqa: PLC0415  # needs the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"textual", "rich"}:
            raise
        raise BackendUnavailableError(
            "top", UnavailableReason.DEPENDENCY, "top needs Textual: pip install 'nstat-async[cli]'"
        ) from error
    # Textual reads standard input and draws on standard error.
    if not all(map(can_draw, (sys.stdin, sys.stdout, sys.stderr))):
        raise NstatError(
            "top needs a terminal that can draw (not TERM=dumb) on all three standard streams; "
            "`processes --every 1` prints the same numbers to anything"
        )
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)
    app = TopApp(
        backend,
        options,
        interval=arguments.interval or 1.0,
        sort=arguments.sort,
        duration=arguments.duration,
        view=view_of(arguments),
        include_history=arguments.include_history,
    )
    with screen_on(sys.__stderr__):
        app.run()
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0
