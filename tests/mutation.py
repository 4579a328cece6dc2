"""Do the tests notice? Changes a module in one small place after the other and runs its tests on each change.

    python tests/mutation.py                                     # what there is
    python tests/mutation.py nstat_async/_buffer.py --jobs 2     # every mutant of a module
    python tests/mutation.py nstat_async/ntstat --sample 100     # a hundred of those of a package
    python tests/mutation.py nstat_async/_buffer.py --patience 6  # a first look: the quickest six seconds of tests
    python tests/mutation.py nstat_async/_buffer.py --again FILE  # those that an earlier run printed
    python tests/mutation.py nstat_async/_buffer.py --list       # run nothing

A mutant that no test notices is printed with its place: it survived. Either a test is missing, or the change means
nothing; then it stands in ``tests/mutation_explained.txt`` with the reason, and is not tried again. Exit status 1 if
others survived.

Most take a fraction of a second: ``mutation_run.py`` forks a pytest that has collected the tests, gives one function
other code, or one constant another value, and runs the tests that reach it. What else is not in a function, or reached
in another process only, gets a pytest of its own, in a copy of the tree. The C code is off: it is Python that is
changed. This takes minutes to hours, so it is no part of the suite; several modules of a package share one collection.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
EXPLAINED = Path(__file__).with_name("mutation_explained.txt")
OPTIONS = ("-q", "-p", "no:cacheprovider", "--tb=native", "--assert=plain")
"""Of pytest: how a test failed is of no interest, and takes longer than the test."""
QUICK = "not (long or slow or benchmark or browser or nats or privileged)"
"""What of these tests runs: what takes seconds would be run a thousand times."""
LINUX_CORE = ("tests/sockdiag", "tests/ebpf", "-m", f"{QUICK} and not linux")
"""The tests of a core that does no I/O: those on the living kernel mostly wait, and leave too much to it."""
MONITOR = ("tests/test_monitor.py", "tests/test_monitor_reading.py", "tests/test_monitor_subscribers.py")
TESTS = {
    "nstat_async/ntstat": ("tests/ntstat", "tests/conformance", "tests/property", "tests/test_proof.py"),
    "nstat_async/sockdiag": LINUX_CORE,
    "nstat_async/ebpf": LINUX_CORE,
    "nstat_async/fleet": ("tests/fleet",),
    "nstat_async/_buffer.py": (
        "tests/test_buffer.py",
        *MONITOR,
        "tests/property",
        "tests/conformance/test_conformance_load.py",
        "tests/test_ledger.py",
    ),
    "nstat_async/_monitor.py": (
        *MONITOR,
        "tests/test_life.py",
        "tests/test_polls.py",
        "tests/test_snapshot.py",
        "tests/test_backends.py",
    ),
    "nstat_async/_starting.py": ("tests/cli/test_cli_process.py",),
    "nstat_async/_subscription.py": (*MONITOR, "tests/test_life.py", "tests/test_polls.py"),
    "nstat_async/_io/background.py": ("tests/test_life.py", "tests/pump"),
    "nstat_async/_io/budget.py": ("tests/sockdiag/test_sockdiag_pulse_budget.py",),
    "nstat_async/_io/census.py": ("tests/sockdiag/test_sockdiag_census.py",),
    "nstat_async/_io/glance.py": ("tests/sockdiag/test_sockdiag_glance.py",),
    "nstat_async/_io/likely.py": ("tests/sockdiag/test_sockdiag_likely.py",),
    "nstat_async/_io/pulse.py": (
        "tests/sockdiag/test_sockdiag_pulse_budget.py",
        "tests/sockdiag/test_sockdiag_pulse_reports.py",
        "tests/sockdiag/test_sockdiag_pulse_thread.py",
    ),
    "nstat_async/_io/processes.py": ("tests/sockdiag/test_sockdiag_processes.py",),
    "nstat_async/_io/reach.py": ("tests/sockdiag/test_sockdiag_pulse_reports.py",),
    "nstat_async/_io/successors.py": ("tests/sockdiag/test_sockdiag_successors.py",),
    "nstat_async/_io/outside.py": ("tests/sockdiag/test_sockdiag_outside_search.py",),
    "nstat_async/_io/pipes.py": (
        "tests/test_pipes.py",
        "tests/test_record.py",
        "tests/test_record_runs.py",
        "tests/test_replay.py",
    ),
    "nstat_async/_io/proctables.py": ("tests/sockdiag/test_sockdiag_proctables.py",),
    "nstat_async/_io/record.py": (
        "tests/test_recorded_core.py",
        "tests/test_record.py",
        "tests/test_record_runs.py",
        "tests/sockdiag/test_sockdiag_replay.py",
        "tests/property/test_replay_is_the_run.py",
    ),
    "nstat_async/_io/pump.py": (
        "tests/pump",
        "tests/test_life.py",
        "tests/test_unix_bridge.py",
        "tests/test_record.py",
        "tests/test_record_runs.py",
    ),
    "nstat_async/_io/replay.py": ("tests/test_replay.py", "tests/recording"),
    "nstat_async/aggregate": ("tests/aggregate",),
    "nstat_async/recording": ("tests/recording", "tests/test_replay.py"),
    "nstat_async/filters.py": ("tests/test_filters.py",),
}
"""Where mutants are looked for, and the tests that ought to kill them."""

ENVIRONMENT = {"NSTAT_ASYNC_PURE": "1", "HYPOTHESIS_PROFILE": "mutants"}
LONGEST = 900.0
"""Seconds until a whole run of tests is given up: only a mutant that hangs is meant, on a machine that may be busy."""

_COMPARE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.BitAnd: "|", ast.BitOr: "&",
           ast.LShift: ">>", ast.RShift: "<<", ast.Mod: "*", ast.Div: "*"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    path: str
    """Of the module, from the root of the repository."""
    line: int
    begin: int
    """Offset of what is replaced, in bytes."""
    end: int
    old: str
    new: str
    code: str = ""
    """The line of code that it is in."""

    @property
    def place(self) -> str:
        """As it is printed."""
        return f"{self.path}:{self.line}: {self.name.partition(': ')[2]}"

    @property
    def name(self) -> str:
        """What it is called among the explained: the line itself instead of its number, which any edit would change."""
        old = " ".join(self.old.split())
        place = "" if old.startswith(self.code) else f"{self.code} | "
        return f"{self.path}: {place}{old} => {' '.join(self.new.split())}"


class _Finder(ast.NodeVisitor):
    """Finds every place of one module's tree."""

    def __init__(self, path: str, source: str) -> None:
        self.found: list[Mutant] = []
        self._path, self._data = path, source.encode()
        self._lines = self._data.splitlines(keepends=True)
        self._starts = [0, *accumulate(map(len, self._lines))]

    def _place(self, node: ast.AST) -> slice:
        begin = self._starts[node.lineno - 1] + node.col_offset
        return slice(begin, self._starts[node.end_lineno - 1] + node.end_col_offset)

    def _add(self, node: ast.AST, new: str) -> None:
        place = self._place(node)
        old = self._data[place].decode()
        if old != new:
            code = self._lines[node.lineno - 1].decode().strip()
            self.found.append(Mutant(self._path, node.lineno, place.start, place.stop, old, new, code))

    def _text(self, node: ast.AST) -> str:
        return f"({self._data[self._place(node)].decode()})"

    # What is not code that runs, or says nothing but words, is left alone.

    def visit_arg(self, node):
        """Leave annotations alone."""

    def visit_Assert(self, node):
        """Leave it alone: it is there for the type checker."""

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)
            self._delete_attribute(node, node.target)

    def visit_FunctionDef(self, node):
        for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(child)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        for child in node.body:
            self.visit(child)

    def visit_If(self, node):
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        self._add(node.test, f"(not {self._text(node.test)})")
        self.generic_visit(node)

    def visit_While(self, node):
        if not isinstance(node.test, ast.Constant):
            self._add(node.test, "False")
        self.generic_visit(node)

    def visit_IfExp(self, node):
        self._add(node.test, f"(not {self._text(node.test)})")
        self.generic_visit(node)

    def visit_Compare(self, node):
        if len(node.ops) == 1:
            new = _COMPARE[type(node.ops[0])]
            self._add(node, f"{self._text(node.left)} {new} {self._text(node.comparators[0])}")
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        word = " or " if isinstance(node.op, ast.And) else " and "
        self._add(node, f"({word.join(self._text(value) for value in node.values)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            self._add(node, f"bool{self._text(node.operand)}")
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if type(node.op) in _BINARY:
            self._add(node, f"({self._text(node.left)} {_BINARY[type(node.op)]} {self._text(node.right)})")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self._add(node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            self._add(node, str(node.value + 1))

    def visit_keyword(self, node):
        """Leave `zip`'s check of what its arguments are anyway alone."""
        if node.arg != "strict":
            self.visit(node.value)

    def visit_JoinedStr(self, node):
        """Leave it alone: words."""

    def visit_Raise(self, node):
        """Leave it alone: whether it is reached is the condition's business."""

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        self._add(node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node):
        for target in node.targets:
            self._delete_attribute(node, target)
        self.visit(node.value)

    def _delete_attribute(self, node, target):
        """A state that is not kept; a plain name that is not bound would only be a `NameError`."""
        if isinstance(target, (ast.Attribute, ast.Subscript)):
            self._add(node, "pass")

    def visit_AugAssign(self, node):
        self._add(node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node):
        if node.value is None:
            return
        if not (
            isinstance(node.value, ast.Constant) and node.value.value in {None, False}
        ):  # to who asks they are alike
            self._add(node, "return None")
        self.visit(node.value)

    def visit_Break(self, node):
        self._add(node, "continue")

    def visit_Continue(self, node):
        self._add(node, "break")


def mutants(path: str, source: str) -> list[Mutant]:
    """Every mutant of a module that still compiles."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return [mutant for mutant in dict.fromkeys(finder.found) if _compiles(changed(source, mutant))]


def changed(source: str, mutant: Mutant) -> str:
    """The source of the mutant."""
    data = source.encode()
    return (data[: mutant.begin] + mutant.new.encode() + data[mutant.end :]).decode()


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class Copy:
    """A copy of the tree in which one mutant after the other is tried."""

    def __init__(self, root: Path, directory: Path) -> None:
        self._root, self.directory = root, directory
        for entry in root.iterdir():
            if entry.name == "nstat_async":
                shutil.copytree(entry, directory / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif not entry.name.startswith("."):
                (directory / entry.name).symlink_to(entry)

    def run(self, tests: tuple[str, ...], seconds: float | None) -> str:
        """Run these tests: "survived", "killed", or "killed by time"."""
        command = [sys.executable, "-B", "-m", "pytest", "-x", *OPTIONS, "-m", QUICK, *tests]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(self.directory)}
        process = subprocess.Popen(
            command, cwd=self.directory, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return "killed" if process.wait(seconds) else "survived"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "killed by time"

    def try_out(self, mutant: Mutant, tests: tuple[str, ...], seconds: float) -> str:
        """The tests' word on one mutant."""
        place, source = self.directory / mutant.path, (self._root / mutant.path).read_text(encoding="utf-8")
        place.write_text(changed(source, mutant), encoding="utf-8")
        try:
            return self.run(tests, seconds)
        finally:
            place.write_text(source, encoding="utf-8")


def explained(path: Path = EXPLAINED) -> dict[str, str]:
    """Mutants that may survive, with the reason."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = [line.rsplit(" # ", 1) for line in lines if line.strip() and not line.startswith("#")]
    return {name.strip(): reason.strip() for name, reason in pairs}


def tests_of(path: str) -> tuple[str, ...]:
    """The tests that ought to kill the mutants of this module."""
    for place, tests in TESTS.items():
        if path == place or path.startswith(place + "/"):
            return tests
    sys.exit(f"no tests are known for {path}: name them in TESTS of tests/mutation.py, or with --tests")


def chosen(root: Path, places: list[str]) -> list[Mutant]:
    """Every mutant of these modules and packages."""
    found: list[Mutant] = []
    for place in places:
        path = root / place
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += mutants(module.relative_to(root).as_posix(), module.read_text(encoding="utf-8"))
    return found


def hunt(root: Path, found: list[Mutant], tests, *, jobs: int, patience: float = LONGEST, show=print) -> Counter[str]:
    """Try these mutants; how many were killed, survived, or may survive.

    Args:
        root: Of the repository.
        found: The mutants.
        tests: Called with a module's path; its tests.
        jobs: How many run at a time.
        patience: Seconds of processor time that the tests of one mutant may take in all.
        show: Called with a line for each survivor, as soon as it is known.
    """
    reasons, narrowed = explained(), {}
    outcomes = {mutant: "explained" for mutant in found if mutant.name in reasons}
    found = [mutant for mutant in found if mutant not in outcomes]

    def note(mutant, outcome, reached=()):
        outcomes[mutant], narrowed[mutant] = outcome, tuple(reached)
        if outcome == "survived":
            show(mutant.place)

    with tempfile.TemporaryDirectory() as directory:
        parts = [
            (chosen_tests, [mutant for mutant in found if tests(mutant.path) == chosen_tests][number::jobs])
            for chosen_tests in dict.fromkeys(tests(mutant.path) for mutant in found)
            for number in range(jobs)
        ]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda part: forked(root, part[1], part[0], Path(directory), patience, note), parts))
        outside = [mutant for mutant in found if outcomes[mutant] == "outside"]
        one_by_one(root, outside, lambda m: narrowed[m] or tests(m.path), note, jobs=jobs, directory=Path(directory))
    return Counter(outcomes.values())


def forked(root: Path, found: list[Mutant], tests: tuple[str, ...], directory: Path, patience: float, note) -> None:
    """Note the tests' word on mutants, from one pytest that forks for each: see ``mutation_run.py``."""
    if not found:
        return
    reading, writing = os.pipe()
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=directory, delete=False) as order:
        mutants_of_it = [asdict(mutant) for mutant in found]
        json.dump({"root": str(root), "answers": writing, "patience": patience, "mutants": mutants_of_it}, order)
    command = [
        sys.executable, "-m", "pytest", "-p", "mutation_run", *OPTIONS, "-m", QUICK, *tests,
    ]  # fmt: skip
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "NSTAT_MUTANTS": order.name}
    with open(f"{order.name}.out", "w+", encoding="utf-8") as said, open(reading, encoding="utf-8") as answers:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=said, stderr=said, pass_fds=[writing])
        os.close(writing)
        count = 0
        for count, (mutant, line) in enumerate(zip(found, answers, strict=False), 1):  # noqa: B007
            note(mutant, *json.loads(line))
        process.wait()
        if count < len(found):
            sys.exit(f"pytest ended early: {Path(said.name).read_text(encoding='utf-8')[-4000:]}")


def one_by_one(root: Path, found: list[Mutant], tests, note, *, jobs: int, directory: Path) -> None:
    """The same of what runs at import or in other processes: a pytest for each, in a copy of the tree."""
    if not found:
        return
    idle = SimpleQueue()
    for number in range(jobs):
        place = directory / f"copy{number}"
        place.mkdir()
        idle.put(Copy(root, place))

    def one(mutant):
        copy = idle.get()
        try:
            note(mutant, copy.try_out(mutant, tests(mutant), LONGEST))
        finally:
            idle.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, found))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", help="modules and packages, from the root of the repository")
    parser.add_argument("--tests", nargs="+", help="run these instead of those that are known for the module")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn at random")
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="only those that stand in this output of another run"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the drawing")
    parser.add_argument("--patience", type=float, default=LONGEST, help="seconds for the tests of one mutant in all")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    arguments = parser.parse_args()
    found = chosen(ROOT, arguments.places or list(TESTS))
    if arguments.again is not None:
        printed = {re.sub(r":\d+: ", ": ", line, count=1) for line in arguments.again.read_text("utf-8").splitlines()}
        found = [mutant for mutant in found if mutant.name in printed]
    if arguments.sample is not None and arguments.sample < len(found):
        found = sorted(random.Random(arguments.seed).sample(found, arguments.sample), key=lambda m: (m.path, m.begin))
    if arguments.list or not arguments.places:
        for mutant in found if arguments.list else ():
            print(mutant.place)
        for path, count in Counter(mutant.path for mutant in found).items():
            print(f"{count:6,} {path}")
        return 0
    named = tuple(arguments.tests) if arguments.tests else None
    results = hunt(ROOT, found, lambda path: named or tests_of(path), jobs=arguments.jobs, patience=arguments.patience)
    print(f"{len(found):,} mutants: " + ", ".join(f"{count:,} {word}" for word, count in sorted(results.items())))
    return bool(results["survived"])


if __name__ == "__main__":
    sys.exit(main())
