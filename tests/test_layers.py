"""The floors of ``docs/architecture.md``: imports go down or sideways, never up.

Walks the syntax trees, so that an import inside a function counts as well: there it may
reach upward only where the architecture says so.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nstat_async

ROOT = Path(nstat_async.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "modules.md"

FLOORS = {
    "_errors": 0, "_checks": 0, "_model": 0, "_events": 0, "_coverage": 0, "_rows": 0, "_public": 0, "_workload": 0,
    "_compiled": 1, "_making": 1, "_options": 1, "_contract": 1, "_values": 1, "_errnos": 1, "_escape": 1, "_fields": 1, "_writing": 1, "json": 1,
    "ntstat._constants": 1, "ntstat._tables": 1, "ntstat._layouts": 1, "ntstat._kernels": 1,
    "ntstat._messages": 1, "ntstat._framer": 1,
    "sockdiag._constants": 1, "sockdiag._messages": 1,
    "ebpf._listing": 1, "ebpf._btf": 1, "ebpf._relocate": 1, "ebpf._records": 1, "ebpf._requests": 1, "ebpf._tiers": 1,
    "fleet._messages": 1,
    "recording": 1,
    "ntstat": 2, "sockdiag": 2, "ebpf": 2, "fleet": 2,
    "filters": 2, "_buffer": 2,
    "_io": 3, "_starting": 3,
    "backends": 4, "_subscription": 4, "_monitor": 4,
    "": 5,  # the package itself: it gathers what is public
    "aggregate": 5, "testing": 5, "integrations": 5, "_doctor": 5,
    "_cli": 6, "__main__": 6, "_pyinstaller": 6,
}  # fmt: skip
"""Module, or package for all its modules, to floor."""

UPWARD = {("backends._emulated", "testing")}
"""Imports that go up on purpose, inside a function."""

FORBIDDEN = {"socket", "asyncio", "anyio", "trio", "selectors", "select", "time", "os", "threading", "subprocess"}
"""Not on floors 0 to 2: time and bytes are arguments there."""

ALLOWED = {
    ("_checks", "os"): "os.PathLike and os.fspath, which touch no file",
    ("_compiled", "os"): "one variable of the environment, read once",
    ("_model._flow", "socket"): "inet_ntop, which touches no network, and if_nametoindex for a zone that a user wrote",
    ("recording._target", "os"): "os.PathLike, a type",
}
"""(module, import) with the reason."""
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
"""Where a statement has others."""


def _name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py")) if "-" not in path.name}


def floor(module: str) -> int:
    """The floor of a module: its own entry, or that of the nearest package around it."""
    parts = module.split(".")
    while parts:
        known = FLOORS.get(".".join(parts))
        if known is not None:
            return known
        parts.pop()
    if not module:
        return FLOORS[""]
    raise AssertionError(f"nstat_async.{module} stands on no floor: name it here and in docs/architecture.md")


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> tuple[tuple[str, bool, int], ...]:
    """(imported module, true if inside a function, line); modules of the package without its name."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool, int]]:
        for child in (each for block in BLOCKS for each in getattr(node, block, ())):
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, inside, child.lineno
            elif isinstance(child, ast.ImportFrom):
                if child.level:
                    base = package[: len(package) - child.level + 1]
                    target = [*base, *(child.module.split(".") if child.module else [])]
                    for alias in child.names:
                        if alias.name == "__version__":
                            continue  # set before the package imports anything
                        whole = ".".join([*target, alias.name])
                        found = whole if whole in MODULES else ".".join(target)
                        yield "nstat_async." + found if found else "nstat_async", inside, child.lineno
                else:
                    for alias in child.names:
                        whole = f"{child.module}.{alias.name}"
                        known = whole.removeprefix("nstat_async.") in MODULES and whole.startswith("nstat_async.")
                        yield whole if known else child.module, inside, child.lineno
            yield from visit(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return tuple(visit(_tree(module), inside=False))


def _own(imported: str) -> str | None:
    """The module inside the package, or `None` for a foreign one."""
    if imported == "nstat_async":
        return ""
    return imported.removeprefix("nstat_async.") if imported.startswith("nstat_async.") else None


def test_a_module_imports_from_its_own_floor_or_below():
    offenders = []
    for module in MODULES:
        for imported, inside, line in imports(module):
            target = _own(imported)
            if target is None or floor(target) <= floor(module):
                continue
            if inside and any(module == m and (target == t or target.startswith(t + ".")) for m, t in UPWARD):
                continue
            offenders.append(
                f"line {line}: {module or 'nstat_async'} (floor {floor(module)}) imports {target} ({floor(target)})"
            )
    assert not offenders, "\n".join(offenders)


def test_the_lower_floors_touch_no_clock_socket_or_loop():
    offenders = [
        f"line {line}: {module} imports {imported}"
        for module in MODULES
        if module and floor(module) <= 2
        for imported, _, line in imports(module)
        if imported.split(".")[0] in FORBIDDEN and (module, imported.split(".")[0]) not in ALLOWED
    ]
    assert not offenders, "\n".join(offenders)


def test_the_emulated_kernel_never_reads_the_session():
    """Two readings of one header meet at the bytes: neither may copy from the other."""
    offenders = []
    for module in MODULES:
        if module.split(".")[0] != "testing" or module == "testing._plugin":
            continue
        for imported, inside, line in imports(module):
            target = _own(imported)
            if target is None or inside or target.split(".")[0] == "testing":
                continue
            # The package itself gathers what its floor-1 modules define; options are no reading.
            if floor(target) > 1 and target != "ntstat":
                offenders.append(f"line {line}: {module} imports {target}")
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("package", ["sockdiag", "testing"])
def test_no_module_of_a_package_imports_in_a_circle(package):
    """Imports for the type checker count as well: a reader has to follow them."""
    below = {
        module: {
            f"{package}.{node.module}"
            for node in ast.walk(_tree(module))
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        }
        for module in MODULES
        if module.startswith(f"{package}._")
    }
    while below:
        lowest = {module for module, targets in below.items() if not targets & set(below)}
        assert lowest, f"a circle among {sorted(below)}"
        below = {module: targets for module, targets in below.items() if module not in lowest}


def test_only_attrs_and_anyio_are_imported_by_the_core():
    """Everything else is an extra, asked for where it is used."""
    extras = {"integrations", "_cli", "testing"}
    standard = set(sys.stdlib_module_names)
    offenders = []
    for module in MODULES:
        if module.split(".")[0] in extras:
            continue
        for imported, inside, line in imports(module):
            top = imported.split(".")[0]
            if top not in standard | {"nstat_async", "attrs", "anyio"} and not inside:
                offenders.append(f"{module}, line {line}: {imported}")
    assert not offenders, "\n".join(offenders)


def test_every_module_stands_on_a_floor():
    assert {floor(module) for module in MODULES} == set(range(7))
    known = {entry for entry in FLOORS if entry}
    missing = {entry for entry in known if entry not in MODULES}
    assert not missing, f"the floors name modules that are gone: {sorted(missing)}"


def test_the_page_of_modules_names_every_module_on_its_floor():
    text = PAGE.read_text(encoding="utf-8")
    named = {}
    for level, where in re.findall(r"^\| ([0-6]) \| (`[^|]+) \|", text, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([\w./]+)\.py`", where):
            head, slash, last = name.rpartition("/")
            folder = (head.removeprefix(".").replace("/", ".") + ".").removeprefix(".") if slash else folder
            named[folder + last] = int(level)
    files = {module for module, path in MODULES.items() if not path.name.startswith("__")}
    assert named == {module: floor(module) for module in files}


def test_the_page_of_modules_is_made_from_their_docstrings():
    spec = importlib.util.spec_from_file_location("make_modules", DOCS / "make_modules.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert PAGE.read_text(encoding="utf-8") == maker.page(), "run: python docs/make_modules.py"


def test_what_the_floors_of_the_architecture_name_is_there():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [0-6] \| [^|`]+ \| ([^|]+) \|", text, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w./]+)`", re.sub(r"\([^)]*\)", "", row))]
    assert len(rows) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []
