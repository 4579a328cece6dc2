"""Tries mutants inside one pytest: collects the tests once, and forks for each mutant.

A pytest plugin, started by ``tests/mutation.py``. It runs every test once and notes which lines of the mutated
modules it reaches. Then, for each mutant, a child process gets the changed code in place of the function's own, and
runs the tests that reach the line, the quickest first, until one fails.

What is not inside a function has done its work when the module was imported, and what no test reaches may run in
another process: that is left to a pytest of its own.
"""

from __future__ import annotations

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
from collections.abc import Iterable
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


def functions_in(paths: Iterable[str]) -> dict[str, list[FunctionType]]:
    """The functions of these modules, as they are imported."""
    found: dict[str, list[FunctionType]] = {path: [] for path in paths}
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename in found:
            found[each.__code__.co_filename].append(each)
    return found


def patch(path: str, source: str, mutant: Mutant, functions: list[FunctionType]) -> bool:
    """Give the functions of a module that is imported the mutant's code; False if that is not what changed."""
    old = compile(source, path, "exec")
    new = compile(changed(source, mutant), path, "exec")
    if body_of(old) != body_of(new):
        return False
    after = functions_of(new)
    places = {
        (c.co_name, c.co_firstlineno): after[place] for place, c in functions_of(old).items() if c != after[place]
    }
    done = False
    for function in functions:
        code = function.__code__
        other = places.get((code.co_name, code.co_firstlineno))
        if other is not None and len(code.co_freevars) == len(other.co_freevars):
            function.__code__ = other
            done = True
    return done


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
    functions = functions_in(sources)
    gc.freeze()  # what a child does not look at, it shares
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # the children's
    tests = in_child(lambda: survey(session.items, set(sources))) or []
    reaching: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    for number, cost, reached in tests:
        for place in reached:
            reaching[place].append((cost, number))
    killers: list[int] = []
    with open(order["answers"], "a", encoding="utf-8") as answers:
        for mutant in found:
            path = str(root / mutant.path)
            last = mutant.line + mutant.old.count("\n")
            chosen = sorted({test for line in range(mutant.line, last + 1) for test in reaching[path, line]})
            outcome = try_out(
                session,
                lambda p=path, m=mutant: patch(p, sources[p], m, functions[p]),
                chosen,
                killers,
                order["patience"],
            )
            answers.write(json.dumps(outcome) + "\n")
            answers.flush()
    return True


def try_out(session, change, chosen, killers, patience) -> str:
    """The word of these tests on one mutant, or of those that take so many seconds in all."""
    numbers = [number for _, number in chosen]
    likely = [number for number in killers[-8:] if number in set(numbers)]
    numbers = [*dict.fromkeys([*likely[::-1], *numbers])]
    costs = {number: cost for cost, number in chosen}

    def act() -> tuple[str, int | None]:
        begin = time.process_time()
        if not chosen or not change():
            return "outside", None
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
        return "survived", None

    answer = in_child(act, 60.0 + 30 * sum(costs.values()))
    if answer is None:
        return "killed by time"
    if answer[1] is not None:
        killers.append(answer[1])
    return answer[0]
