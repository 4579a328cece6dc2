"""``doctor``: what this machine offers, as text or JSON."""

from __future__ import annotations

import argparse
from textwrap import wrap

import attrs

from .._doctor import DoctorReport, examine
from .._escape import dump, escape
from ._output import Output, use_colour
from ._run import Scope, run_until_stopped
from ._source import backend_of
from ._table import cell_width

_COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[31m", "info": "\x1b[2m"}
_PLAIN = "\x1b[0m"
_LEAST = 20
"""Least width of a detail that is wrapped here, and not by the terminal."""


def run(arguments: argparse.Namespace) -> int:
    """Examine the machine; status 1 when nothing works."""
    output = Output()
    reports: list[DoctorReport] = []
    # Without a chosen backend all are examined, also the one of another system.
    chosen = arguments.backend != "auto" or arguments.netns or arguments.kernel
    backend = backend_of(arguments) if chosen else None

    async def work(scope: Scope) -> int:
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
        output.lines(render_text(report, colour=use_colour(output.stream), columns=output.columns))
    return 0 if report.works else 1


def render_text(report: DoctorReport, *, colour: bool = False, columns: int | None = None) -> list[str]:
    """One line per finding; further lines of its detail, and what does not fit a terminal, are indented below it."""
    width = max((cell_width(escape(finding.name)) for finding in report.findings), default=0)
    lines = []
    for finding in report.findings:
        status, name = finding.status.value, escape(finding.name)
        shown = f"{status:<4}"
        if colour:
            shown = f"{_COLOURS[status]}{shown}{_PLAIN}"
        parts = [escape(part) for part in finding.detail.splitlines()]
        if columns is not None and columns >= width + 8 + _LEAST:
            parts = [piece for part in parts for piece in wrap(part, columns - width - 8, break_on_hyphens=False)]
        first, *more = parts or [""]
        lines.append(f"{shown}  {name}{' ' * (width - cell_width(name))}  {first}".rstrip())
        lines += [f"{'':<{width + 8}}{part}" for part in more]
    lines.append("" if report.works else "nothing works here: see the lines marked fail")
    return lines if lines[-1] else lines[:-1]


def render_json(report: DoctorReport) -> str:
    """The whole report as one object."""
    findings = [{**attrs.asdict(finding), "status": finding.status.value} for finding in report.findings]
    return dump({"v": 1, "works": report.works, "findings": findings})
