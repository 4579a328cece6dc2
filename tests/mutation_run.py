"""Tries mutants inside one pytest: collects the tests once, and forks for each mutant.

A pytest plugin, started by ``tests/mutation.py``. It runs every test once and notes which lines of the mutated
modules it reaches. Then, for each mutant, a child process gets the changed code in place of the function's own, and
runs the tests that reach the line, the quickest first, until one fails.

A constant of the module or a default of a function gets its other value. What else is not inside a function has done
its work when the module was imported, and what no test reaches may run in another process: that is left to a pytest of
its own, and so is a constant that no test noticed, because others may have been made of it.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import json
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from mutation import Mutant, changed

ORDER = "NSTAT_MUTANTS"
"""Environment variable: a file with what is to be tried, and where the answers go."""
MEMORY = 4 << 30
"""Bytes that a mutant may have, all that is mapped counted: some fill a list without end."""
LIKELY = 16
"""Tests that killed others last, and are tried first."""
LEAST = 2.0
"""Seconds of processor time that a mutant has at least for each test."""
IDLE = 10
"""Seconds without any processor time, after which it waits for what never comes."""


def functions_of(code: CodeType, within: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], CodeType]:
    """The code of a module's functions, those within others too, by where each stands: an edit moves the lines."""
    found: dict[tuple[Any, ...], CodeType] = {}
    for each in code.co_consts:
        if isinstance(each, CodeType):
            same = sum(place[:-1] == (*within, each.co_name) for place in found)
            place = (*within, each.co_name, same)
            if each.co_flags & inspect.CO_OPTIMIZED:
                found[place] = each
            found |= functions_of(each, place)
    return found


def body_of(code: CodeType) -> tuple[Any, ...]:
    """A module's or class's own code, without that of its functions."""
    inner: list[Any] = []
    for each in code.co_consts:
        if not isinstance(each, CodeType):
            inner.append((type(each), each))
        elif each.co_flags & inspect.CO_OPTIMIZED:
            inner.append(each.co_name)
        else:
            inner.append(body_of(each))
    return code.co_code, code.co_names, inner


class Patched:
    """A module that was imported, some function or constant of which a mutant changes.

    Args:
        path: Of its file.
        source: Its text.
    """

    def __init__(self, path: str, source: str) -> None:
        self._path, self._source = path, source
        code = compile(source, path, "exec")
        self._body, self._codes = body_of(code), functions_of(code)
        found = (each for each in gc.get_objects() if isinstance(each, FunctionType))
        self._functions = [each for each in found if each.__code__.co_filename == path]
        self._globals = next((vars(m) for m in [*sys.modules.values()] if getattr(m, "__file__", None) == path), {})

    def apply(self, mutant: Mutant) -> str | None:
        """Change it: "code" or "constant", or `None` if neither is what changed."""
        source = changed(self._source, mutant)
        new = compile(source, self._path, "exec")
        if body_of(new) != self._body:
            return "constant" if self._change_constant(source, mutant) else None
        after = functions_of(new)
        places = {(c.co_name, c.co_firstlineno): after[place] for place, c in self._codes.items() if c != after[place]}
        done = None
        for function in self._functions:
            code = function.__code__
            other = places.get((code.co_name, code.co_firstlineno))
            if other is not None and len(code.co_freevars) == len(other.co_freevars):
                function.__code__ = other
                done = "code"
        return done

    def _change_constant(self, source: str, mutant: Mutant) -> bool:
        """Give a constant of the module, or a default of a function, the value that it has in this source."""
        for before, after in zip(ast.walk(ast.parse(self._source)), ast.walk(ast.parse(source)), strict=False):
            if isinstance(after, ast.Module):
                for old, new in zip(before.body, after.body, strict=True):
                    if isinstance(new, ast.Assign) and ast.dump(old) != ast.dump(new):
                        return self._set(new)
            elif isinstance(after, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                ast.dump(before.args) != ast.dump(after.args)
            ):
                return self._set_defaults(after)
        return False

    def _set(self, node: ast.Assign) -> bool:
        """In every module that has it under this name."""
        target = node.targets[0]
        if not isinstance(target, ast.Name):
            return False
        old, new = self._globals[target.id], self._value(node.value)
        for module in [*sys.modules.values()]:
            names = getattr(module, "__dict__", {})
            if names.get(target.id) is old:
                names[target.id] = new
        return True

    def _set_defaults(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        first = min(each.lineno for each in (node, *node.decorator_list))
        found = [f for f in self._functions if (f.__code__.co_name, f.__code__.co_firstlineno) == (node.name, first)]
        named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        keywords = {each.arg: self._value(value) for each, value in named if value is not None}
        for function in found:
            function.__defaults__ = tuple(map(self._value, node.args.defaults))
            function.__kwdefaults__ = keywords
        return bool(found)

    def _value(self, node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), self._path, "eval"), self._globals)


def lines_of(item: pytest.Item, following: pytest.Item | None, paths: set[str]) -> tuple[bool, set[tuple[str, int]]]:
    """Run a test: whether it passes, and which lines of these files it reaches."""
    reached: set[tuple[str, int]] = set()

    def local(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def trace(frame: Any, _event: str, _: Any) -> Any:
        if frame.f_code.co_filename in paths:
            reached.add((frame.f_code.co_filename, frame.f_lineno))
            return local
        return None

    sys.settrace(trace)
    threading.settrace(trace)
    try:
        passed = _passes(item, following)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return passed, reached


def _passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def in_child(act: Any, seconds: float | None = None) -> Any:
    """Do this in a child process; its answer, or `None` if it ended or was ended without one."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.setsid()
        try:
            answer = pickle.dumps(act())
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    parts, end = [], seconds and time.monotonic() + seconds
    while seconds is None or _is_ready(reading, child, end):
        if not (data := os.read(reading, 1 << 16)):
            break
        parts.append(data)
    else:
        parts.clear()
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return pickle.loads(b"".join(parts)) if parts else None


def _is_ready(reading: int, child: int, end: float) -> bool:
    """Wait until there is something to read; False when the time is over, or the child sleeps for good."""
    used, idle = 0, 0
    while not select.select([reading], [], [], 1.0)[0]:
        before, used = used, _ticks(child)
        idle = idle + 1 if used == before and used else 0
        if idle >= IDLE or time.monotonic() > end:
            return False
    return True


def _ticks(session: int) -> int:
    """The processor time of all processes of a session so far; 0 where the system does not say."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_bytes().rpartition(b")")[2].split()
            total += (int(fields[3]) == session) * (int(fields[11]) + int(fields[12]))
    return total


def survey(items: list[pytest.Item], paths: set[str]) -> list[tuple[int, float, set[tuple[str, int]]]]:
    """Of each test that passes: its number, what it costs, what it reaches."""
    found = []
    for number, item in enumerate(items):
        begin = time.process_time()
        passed, reached = lines_of(item, items[number + 1] if number + 1 < len(items) else None, paths)
        if passed and reached:
            found.append((number, time.process_time() - begin, reached))
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """In place of the tests: the mutants."""
    order = json.loads(Path(os.environ[ORDER]).read_text(encoding="utf-8"))
    root = Path(order["root"])
    found = [Mutant(**each) for each in order["mutants"]]
    sources = {str(root / m.path): (root / m.path).read_text(encoding="utf-8") for m in found}
    gc.unfreeze()  # functions are among what the collector knows
    modules = {path: Patched(path, source) for path, source in sources.items()}
    gc.freeze()  # what a child does not look at, it shares
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # the children's
    tests = in_child(lambda: survey(session.items, set(sources))) or []
    reaching: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    anywhere: dict[str, set[tuple[float, int]]] = defaultdict(set)
    for number, cost, reached in tests:
        for path, line in reached:
            reaching[path, line].append((cost, number))
            anywhere[path].add((cost, number))
    killers: list[int] = []
    patience = order["patience"]
    with open(order["answers"], "w", encoding="utf-8") as answers:
        for mutant in found:
            path = str(root / mutant.path)
            last = mutant.line + mutant.old.count("\n")
            chosen = {test for line in range(mutant.line, last + 1) for test in reaching[path, line]}
            outcome = try_out(
                session, partial(modules[path].apply, mutant), sorted(chosen), sorted(anywhere[path]), killers, patience
            )
            names = [session.items[number].nodeid for _, number in sorted(anywhere[path])]
            answers.write(json.dumps([outcome, names if outcome == "outside" else []]) + "\n")
            answers.flush()
    return True


def try_out(session, change, chosen, everywhere, killers, patience) -> str:
    """The tests' word on one mutant: of those that reach its line, or, of a constant, its module, as long as may be."""
    costs = {number: cost for cost, number in everywhere}

    def act() -> tuple[str, int | None]:
        begin, kind = time.process_time(), change()
        if kind is None or (kind == "code" and not chosen):
            return "outside", None
        numbers = [number for _, number in (chosen if kind == "code" else everywhere)]
        reach = set(numbers)
        likely = [number for number in killers if number in reach]
        numbers = [*dict.fromkeys([*likely[:LIKELY], *numbers])]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for at, number in enumerate(numbers):
            if time.process_time() - begin > patience:
                break
            limit = int(time.process_time() + LEAST + 5 * costs[number])
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            following = session.items[numbers[at + 1]] if at + 1 < len(numbers) else None
            if not _passes(session.items[number], following):
                return "killed", number
        return ("survived" if kind == "code" else "outside"), None

    answer = in_child(act, 60.0 + 30 * sum(costs.values()))
    if answer is None:
        return "killed by time"
    if answer[1] is not None:
        killers[:] = [answer[1], *(number for number in killers if number != answer[1])]
    return answer[0]
