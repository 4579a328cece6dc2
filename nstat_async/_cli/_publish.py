"""``publish URL``: sends the events of this machine to a NATS server, for a fleet."""

from __future__ import annotations

import argparse

import attrs

from .. import Monitor
from .._errors import NstatError, UsageError
from .._io.nats_access import NatsAccess
from ._cells import bytes_text
from ._output import Output, complain
from ._run import Scope, run_until_stopped
from ._source import backend_of, missing, monitor_options


def run(arguments: argparse.Namespace) -> int:
    """Publish until stopped.

    Raises:
        NstatError: The backend cannot be opened, or failed, or the server refuses the login.
    """
    try:
        from ..integrations.nats import Publisher  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise missing("publish", error) from error
    access = NatsAccess.from_environment()
    publisher = Publisher(
        arguments.url,
        host=arguments.host,
        labels=dict(map(_label, arguments.label or ())),
        access=attrs.evolve(access, credentials=arguments.creds) if arguments.creds else access,
        compress=not arguments.no_compress,
        details=arguments.details,
        spool=arguments.spool,
        **({} if arguments.spool_size is None else {"spool_bytes": arguments.spool_size}),
        report=complain,
    )
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)

    async def work(scope: Scope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            with scope:
                await publisher.run(monitor)
        return 0

    try:
        status = run_until_stopped(work, duration=arguments.duration, output=Output())
    except UsageError as error:
        if error.__cause__ is None:
            raise
        raise NstatError(str(error)) from error  # what cannot work is on the disk, not on the command line
    counts = publisher.statistics()
    complain(f"{counts['events']} events in {counts['messages']} messages, {bytes_text(counts['bytes'])}")
    if counts["waiting"]:
        complain(f"{arguments.spool}: {counts['waiting']} messages wait for the next run")
    if not counts["unsaved"]:
        return status
    if not arguments.spool:  # a spool has said it
        complain("error: the server does not have the last events, which are lost; --spool FILE keeps such events")
    return 1


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"label: {text!r} is not a NAME=TEXT")
    return name, value
