"""``doctor``: what this machine offers, as text or JSON."""

from __future__ import annotations

import argparse
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import anyio

from .._escape import dump, escape
from ._output import Output, use_colour
from ._run import run_until_stopped
from ._source import backend_of
from ._table import cell_width

__all__ = ["Finding", "Report", "render_json", "render_text", "run"]

_COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m", "info": "\x1b[2m"}
_PLAIN = "\x1b[0m"


class Finding(Protocol):
    """One thing that was looked at."""

    @property
    def name(self) -> str:
        """What was looked at, in a word or two."""

    @property
    def status(self) -> str | enum.Enum:
        """``ok``, ``warn``, ``fail`` or ``info``."""

    @property
    def detail(self) -> str:
        """What was found, for a person."""

    @property
    def data(self) -> Mapping[str, Any] | None:
        """The same for a program."""


class Report(Protocol):
    """Everything that was found."""

    @property
    def findings(self) -> Sequence[Finding]:
        """In the order in which a person wants to read them."""

    @property
    def works(self) -> bool:
        """True if at least one backend shows the flows of this machine."""


def run(arguments: argparse.Namespace) -> int:
    """Examine the machine; status 1 when nothing works.

    Raises:
        UsageError: The chosen backend lacks an option.
    """
    from .._doctor import examine  # noqa: PLC0415  # the probes are needed here only

    output = Output()
    reports: list[Report] = []
    # Without a choice every backend of this machine is examined, also the one that is not for it.
    backend = None if arguments.backend == "auto" and not arguments.netns else backend_of(arguments)

    async def work(scope: anyio.CancelScope) -> int:
        with scope:
            reports.append(await examine(backend))
        return 0

    run_until_stopped(work)
    if not reports:  # stopped before there was anything to say
        return 0
    report = reports[0]
    if arguments.json:
        output.line(render_json(report))
    else:
        output.lines(render_text(report, colour=use_colour(output.stream)))
    return 0 if report.works else 1


def _status(finding: Finding) -> str:
    status = finding.status
    return str(status.value) if isinstance(status, enum.Enum) else status


def render_text(report: Report, *, colour: bool = False) -> list[str]:
    """A line a finding; further lines of its detail are indented below it."""
    width = max((cell_width(escape(finding.name)) for finding in report.findings), default=0)
    lines = []
    for finding in report.findings:
        status, name = _status(finding), escape(finding.name)
        shown = f"{status:<4}"
        if colour:
            shown = f"{_COLOURS.get(status, '')}{shown}{_PLAIN}"
        first, *more = [escape(part) for part in finding.detail.splitlines()] or [""]
        lines.append(f"{shown}  {name}{' ' * (width - cell_width(name))}  {first}".rstrip())
        lines += [f"{'':<{width + 8}}{part}" for part in more]
    lines.append("" if report.works else "nothing works here: see the lines marked fail")
    return lines if lines[-1] else lines[:-1]


def render_json(report: Report) -> str:
    """The whole report as one object."""
    findings = [
        {
            "name": finding.name,
            "status": _status(finding),
            "detail": finding.detail,
            "data": None if finding.data is None else dict(finding.data),
        }
        for finding in report.findings
    ]
    return dump({"v": 1, "works": report.works, "findings": findings})
