"""What every benchmark does alike: runs in turn, ratios with their spread, a table or JSON, a comparison of two checkouts.

Whatever is compared runs in turn (A B A B …) in one run: the ratio of each round is taken by itself, and the
median is printed with the least and the most. Costs are processor time of this process and its children.
Which checkout of the library is measured says ``NSTAT_BENCHMARK_LIBRARY``; the default is the one around this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_VARIABLE = "NSTAT_BENCHMARK_LIBRARY"
LIBRARY = os.environ.get(_VARIABLE, str(ROOT))
sys.path.insert(0, LIBRARY)

UNITS = {"µs": 1e6, "ms": 1e3, "s": 1.0, "bytes": 1.0, "": 1.0}


@dataclass
class Done:
    """What one run of a way did."""

    units: int
    """How many of what is measured: messages, events, polls."""
    span: float | None = None
    """Its cost, where the way measured it itself; otherwise the processor time of the whole call."""
    counted: object = None
    """What the run counted, for the tests: it shows that the work was done."""


@dataclass
class Row:
    """One line of a table."""

    name: str
    unit: str = "µs"
    costs: list[float] = field(default_factory=list)
    """Of one unit, a round each; seconds, or bytes."""
    of: str = ""
    """The row that it is compared with."""
    ratios: list[float] = field(default_factory=list)
    """To that row, a round each."""
    wanted: float | None = None
    """The ratio that is wanted at most."""
    units: int = 0
    counted: object = None
    note: str = ""
    """What else is to be said of it."""


def cpu():
    """Processor seconds of this process and of its children that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class _Turns:
    def __init__(self, rounds, ways, floor, wanted, unit):
        self._rows = {name: Row(name, unit, of="" if name == floor else floor or "") for name in ways}
        self._ways, self._rounds = ways, rounds
        for name, most in (wanted or {}).items():
            self._rows[name].wanted = most

    def __iter__(self):
        for _ in range(self._rounds):
            for name, way in self._ways.items():
                gc.collect()
                begin = cpu()
                yield way
                row, done = self._rows[name], self.done
                row.costs.append((cpu() - begin if done.span is None else done.span) / done.units)
                row.units, row.counted = done.units, done.counted

    def rows(self):
        for row in self._rows.values():
            if row.of:
                row.ratios = [a / b for a, b in zip(row.costs, self._rows[row.of].costs, strict=True)]
        return list(self._rows.values())


def in_turn(rounds, ways, *, floor=None, wanted=None, unit="µs"):
    """Run ways in turn.

    Args:
        rounds: How often each runs.
        ways: Name to a function without arguments that returns a `Done`.
        floor: The name of the way that the others are compared with.
        wanted: Name to the ratio that is wanted at most.
        unit: Of the costs.

    Returns:
        A row for each.
    """
    turns = _Turns(rounds, ways, floor, wanted, unit)
    for way in turns:
        turns.done = way()
    return turns.rows()


async def in_turn_async(rounds, ways, *, floor=None, wanted=None, unit="µs"):
    """The same for coroutine functions."""
    turns = _Turns(rounds, ways, floor, wanted, unit)
    for way in turns:
        turns.done = await way()
    return turns.rows()


def spread(values, digits=2):
    """``median (least-most)``."""
    shown = [f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]}-{shown[2]})" if len(values) > 1 else shown[0]


def table(title, header, rows):
    """Print a table with aligned columns."""
    print(f"\n{title}")
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        first, *others = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        print("  " + "  ".join([first, *others]).rstrip())


def show(title, rows):
    """Print the rows of one table."""
    lines = []
    for row in rows:
        cost = (
            f"{statistics.median(row.costs) * UNITS[row.unit]:,.{0 if row.unit == 'bytes' else 2}f} {row.unit}".strip()
        )
        wanted = "" if row.wanted is None else f"<= {row.wanted:g}"
        lines.append([row.name, cost, spread(row.ratios) if row.ratios else "", row.of, wanted, row.note])
    table(title, ["", "each", "x", "of", "wanted", ""], lines)


def machine():
    """One line: what ran this."""
    model = platform.processor() or "?"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.release()} {platform.machine()}, {model}, {os.cpu_count()} CPUs, load {load}"


def environment(library=LIBRARY):
    """The environment of a child that measures this checkout."""
    return {**os.environ, _VARIABLE: library, "PYTHONPATH": library}


def against(script, arguments, rounds, other):
    """Run a benchmark with this checkout and another one in turn; a row for each row that both have."""
    costs = {}
    for _ in range(rounds):
        for side, library in ((0, LIBRARY), (1, str(Path(other).resolve()))):
            command = [sys.executable, script, *arguments, "--rounds", "1", "--json", "--compared"]
            answer = subprocess.run(command, env=environment(library), stdout=subprocess.PIPE, text=True, check=True)
            for title, rows in json.loads(answer.stdout)["tables"].items():
                for row in rows:
                    costs.setdefault((title, row["name"], row["unit"]), ([], []))[side].extend(row["costs"])
    tables = {}
    for (title, name, unit), (ours, theirs) in costs.items():
        if len(ours) == len(theirs):
            ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
            tables.setdefault(title, []).append(Row(name, unit, ours, str(other), ratios))
    return tables


def main(script, doc, measure, *, options=(), rounds=5):
    """Run a benchmark from the command line.

    Args:
        script: Its ``__file__``.
        doc: Its docstring.
        measure: Called with the parsed arguments; yields (title, rows).
        options: Its own arguments: pairs of a name and the keywords of ``add_argument``.
        rounds: How often each way runs, if nothing else is said.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a hundredth of the work, to see that everything runs")
    parser.add_argument("--rounds", type=int, help=f"how often each runs (default: {rounds}, short: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--against", metavar="DIR", help="run in turn with this other checkout of the library")
    parser.add_argument("--compared", action="store_true", help=argparse.SUPPRESS)  # what `--against` runs in turn
    for name, keywords in options:
        parser.add_argument(name, **keywords)
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.short else rounds)
    if not arguments.json:
        print(machine())
    if arguments.against:
        words, skip = [], False
        for word in sys.argv[1:]:
            if skip or word in {"--against", "--rounds", "--json"} or word.startswith(("--against=", "--rounds=")):
                skip = not skip and word in {"--against", "--rounds"}
            else:
                words.append(word)
        tables = iter(against(script, words, arguments.rounds, arguments.against).items())
    else:
        tables = measure(arguments)
    found = {}
    for title, rows in tables:
        found[title] = [asdict(row) for row in rows]
        if not arguments.json:
            show(title, rows)
    if arguments.json:
        json.dump({"machine": machine(), "library": LIBRARY, "tables": found}, sys.stdout)
        print()
