"""``history FILE``: totals of traffic in an SQLite file, written and asked."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import attrs

from .. import Monitor
from .._escape import dump, escape
from ..aggregate import History, HistoryError, Usage, keep_history
from ._output import Output, complain
from ._run import run_until_stopped
from ._source import backend_of, monitor_options
from ._table import render
from ._text import bytes_text
from ._views import user_text

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Write the history until stopped, or print an answer.

    Raises:
        HistoryError: The file cannot be written or read.
        UsageError: Options contradict each other.
    """
    return _record(arguments) if arguments.record else _answer(arguments)


def _record(arguments: argparse.Namespace) -> int:
    backend, options = backend_of(arguments), monitor_options(arguments)
    settings = {"bucket": arguments.bucket, "keep": arguments.keep, "remotes": int(arguments.remotes)}

    async def work(scope: anyio.CancelScope) -> int:
        async with Monitor(backend=backend, **options) as monitor:
            with scope:  # what was counted is written before it is left
                await keep_history(monitor, arguments.file, **settings)
        return 0

    status = run_until_stopped(work, duration=arguments.duration)
    complain(f"{arguments.file}: {bytes_text(Path(arguments.file).stat().st_size)}")
    return status


def _answer(arguments: argparse.Namespace) -> int:
    since, until = arguments.since, arguments.until
    if not Path(arguments.file).exists():
        raise HistoryError(arguments.file, "is not there; --record makes it")
    with History(arguments.file) as history:
        if arguments.step is not None:
            found = history.timeline(arguments.step, since, until, name=arguments.name)
        else:
            found = history.usage(since, until, name=arguments.name, by=arguments.by)
        gaps = history.gaps(since, until)
    shown = found[: arguments.limit]
    if arguments.json:
        Output().lines(dump(_plain(usage)) for usage in shown)
        return 0
    label = _LABELS["step" if arguments.step is not None else arguments.by]
    Output().lines(_table(shown, arguments, label))
    if len(found) > len(shown):
        complain(f"{len(found) - len(shown)} more; --limit shows them")
    if gaps:
        complain(f"reports of loss in this time: {sum(gap.events for gap in gaps)}")
    return 0


def _plain(usage: Usage) -> dict[str, object]:
    facts = attrs.asdict(usage, recurse=False)
    del facts["process"]
    facts["outcome"] = None if usage.outcome is None else usage.outcome.value
    return {"v": 1, **{name: value for name, value in facts.items() if value is not None}}


def _time_text(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)).removesuffix(":00")
    except (OverflowError, OSError, ValueError):  # beyond the C library's calendar
        return str(seconds)


def _process_text(usage: Usage) -> str:
    name = usage.name or (f"({usage.kind})" if usage.kind != "group" else "?")
    return escape(name)


def _or_none(value: str | None) -> str:
    return "(none)" if value is None else escape(value)


_LABELS: dict[str, tuple[str, Callable[[Usage], str]]] = {
    "name": ("PROCESS", _process_text),
    "process": ("PROCESS", lambda usage: f"{_process_text(usage)} {'' if usage.pid is None else usage.pid}".rstrip()),
    "user": ("USER", lambda usage: "(none)" if usage.uid is None else escape(usage.user or user_text(usage.uid))),
    "unit": ("UNIT", lambda usage: _or_none(usage.unit)),
    "container": ("CONTAINER", lambda usage: _or_none(usage.container)),
    "pod": ("POD", lambda usage: _or_none(usage.pod)),
    "remote": ("REMOTE", lambda usage: "(others)" if usage.remote is None else escape(usage.remote)),
    "outcome": ("OUTCOME", lambda usage: "?" if usage.outcome is None else usage.outcome.value),
    "step": ("FROM", lambda usage: _time_text(usage.begin)),
}
"""What an answer is of: the heading of its first column, and what stands there."""


def _table(found: list[Usage], arguments: argparse.Namespace, label: tuple[str, Callable[[Usage], str]]) -> list[str]:
    heading, text = label
    rows = [
        [
            text(usage),
            str(usage.flows),
            *(bytes_text(value if _is_counted(usage) else None) for value in (usage.rx_bytes, usage.tx_bytes)),
            *([] if arguments.step is not None else [_time_text(usage.begin)]),
            _time_text(usage.end),
        ]
        for usage in found
    ]
    more = ["UNTIL"] if arguments.step is not None else ["FROM", "UNTIL"]
    return render([heading, "FLOWS", "RX", "TX", *more], rows, right={1, 2, 3})


def _is_counted(usage: Usage) -> bool:
    return bool(usage.bytes) or usage.flows > usage.uncounted_flows or not usage.flows
