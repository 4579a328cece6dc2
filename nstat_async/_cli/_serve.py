"""``serve``: the live page, totals, events and metrics over HTTP."""

from __future__ import annotations

import argparse
import os
import secrets

from .. import Monitor
from ._output import complain
from ._run import Scope, run_until_stopped
from ._source import backend_of, missing, monitor_options

_TOKEN = "NSTAT_TOKEN"  # noqa: S105  # the name of a variable


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped.

    Raises:
        NstatError: It cannot listen, or the backend cannot be opened.
        UsageError: Others could reach it without a token.
    """
    try:
        from ..integrations.server import serve_forever  # noqa: PLC0415  # an extra

        if arguments.metrics:
            from ..integrations import prometheus  # noqa: F401, PLC0415  # another one
    except ImportError as error:
        raise missing("serve", error) from error
    token = arguments.token or os.environ.get(_TOKEN) or None
    if token == "new":  # noqa: S105  # the word that asks for one
        token = secrets.token_urlsafe(24)
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)

    def open_monitor() -> Monitor:
        return Monitor(backend=backend, **options)

    def ready(addresses: list[str]) -> None:
        for address in addresses:
            secret = f"?token={token}" if token is not None and address.startswith("http") else ""
            complain(f"{address}{secret}")

    async def work(scope: Scope) -> int:
        with scope:
            await serve_forever(
                open_monitor,
                host=arguments.host,
                port=arguments.port,
                unix_socket=arguments.unix_socket,
                token=token,
                allowed_hosts=arguments.allow_host,
                metrics=arguments.metrics,
                ready=ready,
                include_history=arguments.include_history,
            )
        return 0

    return run_until_stopped(work, duration=arguments.duration)
