"""``history FILE``: writes and reads totals of traffic in an SQLite file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import attrs

from .. import Monitor
from .._errors import UsageError
from .._escape import dump, escape
from ..aggregate import History, HistoryError, Usage, keep_history
from ._cells import bytes_text, clock_text
from ._output import Output, can_draw, complain
from ._parser import did_you_mean
from ._progress import Progress
from ._run import Scope, poll_to_the_end, run_until_stopped
from ._source import backend_of, monitor_options
from ._table import render, shortened
from ._views import user_text


def run(arguments: argparse.Namespace) -> int:
    """Write the history until stopped, or print an answer.

    Raises:
        HistoryError: The file cannot be written or read.
        UsageError: Options contradict each other.
    """
    if arguments.file == "-":
        raise UsageError(
            "file: a history is an SQLite file, which standard output cannot be; give a path (./- for this name)"
        )
    return _record(arguments) if arguments.record else _answer(arguments)


def _record(arguments: argparse.Namespace) -> int:
    backend = backend_of(arguments)
    options = monitor_options(arguments, backend)
    settings = {"bucket": arguments.bucket, "keep": arguments.keep, "remotes": int(arguments.remotes)}

    async def work(scope: Scope) -> int:
        async with Monitor(backend=backend, **options) as monitor, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def keep() -> None:
                await keep_history(monitor, arguments.file, **settings)
                ended.set()

            tasks.start_soon(keep)
            with scope:
                await ended.wait()
            if not ended.is_set():
                await poll_to_the_end(monitor, "the last flows may be missing")
            tasks.cancel_scope.cancel()  # everything counted is written at its end
        return 0

    def progress_text() -> str:
        return f"{shortened(arguments.file, 40)}: {bytes_text(_size(arguments.file))}  (Ctrl-C ends it)"

    progress = Progress(progress_text) if can_draw(sys.stderr) else None
    status = run_until_stopped(work, duration=arguments.duration, progress=progress)
    size = _size(arguments.file)
    complain(
        f"{arguments.file}: {bytes_text(size) if size else 'nothing was written: it ended before anything was seen'}"
    )
    return status


def _size(path: str) -> int:
    files = (Path(path), Path(f"{path}-wal"))  # the second one while somebody has it open
    return sum(each.stat().st_size for each in files if each.exists())


def _answer(arguments: argparse.Namespace) -> int:
    since, until = arguments.since, arguments.until
    if since is not None and until is not None and since >= until:
        raise UsageError("since: it is not before --until")
    if not Path(arguments.file).exists():
        raise HistoryError(arguments.file, "there is no such file; --record creates it")
    with History(arguments.file) as history:
        if arguments.step is not None:
            found = history.timeline(arguments.step, since, until, name=arguments.name)
        else:
            found = history.usage(since, until, name=arguments.name, by=arguments.by)
        gaps = history.gaps(since, until)
        if not found:
            complain(f"{arguments.file}: {_nothing(history, arguments)}")
    shown = found[: arguments.limit]
    output = Output()
    if arguments.json:
        asked = None if arguments.step is not None else {"user": "uid"}.get(arguments.by, arguments.by)
        output.lines(dump(_plain(usage, asked)) for usage in shown)
    elif shown:
        output.lines(_table(shown, "step" if arguments.step is not None else arguments.by, output.columns))
    if len(found) > len(shown):
        complain(f"{len(found) - len(shown)} more; --limit shows them")
    if gaps:
        complain(f"reports of loss in this time: {sum(gap.events for gap in gaps)}")
    return 0


def _nothing(history: History, arguments: argparse.Namespace) -> str:
    """Why there is no answer."""
    names = [usage.name or "" for usage in history.usage()]
    if arguments.name is not None and arguments.name not in names:
        return f"no process is named {arguments.name!r}{did_you_mean(arguments.name, names)}"
    if arguments.by == "remote" and history.usage(arguments.since, arguments.until):
        return "no remote addresses were kept (--remotes 0)"
    return "nothing was written in this time" if names else "nothing was written yet"


def _plain(usage: Usage, asked: str | None) -> dict[str, object]:
    """The known values of an answer, and the value that was asked for, even if it is unknown."""
    facts = attrs.asdict(usage, recurse=False)
    del facts["process"]
    facts["outcome"] = None if usage.outcome is None else usage.outcome.value
    return {"v": 1, **{name: value for name, value in facts.items() if value is not None or name == asked}}


def _time_text(seconds: float) -> str:
    return clock_text(seconds, "%Y-%m-%d %H:%M:%S").removesuffix(":00")


def _process_text(usage: Usage) -> str:
    name = usage.name or (f"({usage.kind})" if usage.kind != "group" else "?")
    return escape(name if usage.source is None else f"{name} @{usage.source}")


def _or_none(value: str | None) -> str:
    return "(none)" if value is None else escape(value)


_Cell = Callable[[Usage], str]
_BEGIN: tuple[str, _Cell] = ("FROM", lambda usage: _time_text(usage.begin))
_END: tuple[str, _Cell] = ("UNTIL", lambda usage: _time_text(usage.end))
_PID: tuple[str, _Cell] = ("PID", lambda usage: "" if usage.pid is None else str(usage.pid))
_LABELS: dict[str, tuple[str, _Cell]] = {
    "name": ("PROCESS", _process_text),
    "process": ("PROCESS", _process_text),
    "user": ("USER", lambda usage: "(none)" if usage.uid is None else escape(usage.user or user_text(usage.uid))),
    "unit": ("UNIT", lambda usage: _or_none(usage.unit)),
    "container": ("CONTAINER", lambda usage: _or_none(usage.container)),
    "pod": ("POD", lambda usage: _or_none(usage.pod)),
    "remote": ("REMOTE", lambda usage: "(others)" if usage.remote is None else escape(usage.remote)),
    "outcome": ("OUTCOME", lambda usage: "?" if usage.outcome is None else usage.outcome.value),
}
"""For each kind of answer, the heading of its first column, and the text in it."""
_NUMBERS: tuple[tuple[str, _Cell], ...] = (
    ("FLOWS", lambda usage: str(usage.flows)),
    ("RX", lambda usage: bytes_text(usage.rx_bytes if _is_counted(usage) else None)),
    ("TX", lambda usage: bytes_text(usage.tx_bytes if _is_counted(usage) else None)),
)


def _table(found: list[Usage], by: str, columns: int | None) -> list[str]:
    """The lines of a table: first who or when, then the numbers."""
    if by == "step":
        shown = [_BEGIN, _END, *_NUMBERS]
    else:
        shown = [*[_PID] * (by == "process"), _LABELS[by], *_NUMBERS, _BEGIN, _END]
    right = {at for at, each in enumerate(shown) if each in _NUMBERS or each is _PID}
    rows = [[text(usage) for _, text in shown] for usage in found]
    flows, sent = shown.index(_NUMBERS[0]), shown.index(_NUMBERS[2])
    spare, last = ([1, flows], []) if by == "step" else ([shown.index(_BEGIN), shown.index(_END)], [flows])
    last += [sent, *[0] * (by == "process")]  # the pid
    return render([heading for heading, _ in shown], rows, right=right, columns=columns, spare=spare, last=last)


def _is_counted(usage: Usage) -> bool:
    return bool(usage.bytes) or usage.flows > usage.uncounted_flows or not usage.flows
