"""What is public: named, documented, and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pydoc
import typing
from pathlib import Path

import attrs
import pytest

import nstat_async
from nstat_async._fields import TABLE
from nstat_async._public import _own_explanations
from nstat_async.recording import Recording

PUBLIC = [
    "nstat_async",
    "nstat_async.aggregate",
    "nstat_async.backends",
    "nstat_async.filters",
    "nstat_async.fleet",
    "nstat_async.json",
    "nstat_async.ntstat",
    "nstat_async.recording",
    "nstat_async.sockdiag",
    "nstat_async.testing",
]
ROOT = Path(nstat_async.__file__).parent


def _imported(module) -> set[str]:
    """Public names that a module's source binds at its top: imports from the package, definitions, constants."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body:
        inner = isinstance(node, ast.ImportFrom) and node.level and node.module != "_public"
        if inner and module.__file__.endswith("__init__.py"):
            names |= {alias.asname or alias.name for alias in node.names if node.module is not None}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
    return {name for name in names if not name.startswith("_") and name != "annotations"}


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_what_the_package_gathers(name):
    module = importlib.import_module(name)
    exported = list(module.__all__)
    assert len(set(exported)) == len(exported), "a name stands twice"
    missing = [entry for entry in exported if not hasattr(module, entry)]
    assert not missing
    forgotten = _imported(module) - set(exported)
    if name == "nstat_async.filters":
        forgotten -= {"as_filter", "is_of", "check_reach", "unknown_users"}  # for the library's own use
    assert not forgotten, f"public and not in __all__: {sorted(forgotten)}"


def test_a_star_import_brings_no_module_over_one_of_the_same_name():
    """``json`` of the standard library stays what it was; the submodules are attributes of the package."""
    found: dict[str, object] = {}
    exec("import json\nfrom nstat_async import *", found)  # allowed at a module's top only
    assert found["json"] is json
    assert not {name for name in nstat_async.__all__ if inspect.ismodule(getattr(nstat_async, name))}
    assert all(map(inspect.ismodule, (nstat_async.backends, nstat_async.filters, nstat_async.json)))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    bare = []
    for entry in module.__all__:
        value = getattr(module, entry)
        if inspect.isclass(value) or inspect.isfunction(value):
            doc = inspect.getdoc(value)
            if not doc or doc.startswith(f"{entry}("):
                bare.append(entry)
            if inspect.isclass(value):
                bare += [
                    f"{entry}.{member}"
                    for member, thing in vars(value).items()
                    if not member.startswith("_")
                    and (inspect.isfunction(thing) or isinstance(thing, (property, classmethod, staticmethod)))
                    and not inspect.getdoc(getattr(value, member))
                ]
    assert not bare, f"without a docstring: {bare}"


def _own_names(tree: ast.Module) -> tuple[list[str], set[str]]:
    """What ``__all__`` says, and what a module binds."""
    declared: list[str] = []
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            bound.add(node.name)
            continue
        for part in ast.walk(node):
            if isinstance(part, (ast.Import, ast.ImportFrom)):
                bound |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                bound.add(part.id)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            declared = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
    return declared, bound


def test_a_module_says_what_it_is_and_only_a_public_one_what_it_exports():
    """What a private module names without an underscore is for the library; `_model` gathers what others define."""
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        head, _, _ = text.partition("\nfrom __future__ ")  # to parse it all takes its time
        assert ast.get_docstring(ast.parse(head)), f"{path} does not begin by saying what it is"
        if "__all__" not in text:
            continue
        declared, bound = _own_names(ast.parse(text))
        is_private = any(
            part.startswith("_") and part != "__init__" for part in path.relative_to(ROOT).with_suffix("").parts
        )
        assert not (declared and is_private) or path.parent.name == "_model", path
        assert set(declared) <= bound, (path, set(declared) - bound)
        assert len(set(declared)) == len(declared), path


def test_the_package_is_typed_and_has_a_version():
    assert (ROOT / "py.typed").exists()
    assert nstat_async.__version__.count(".") == 2
    assert set(nstat_async.AnyEvent.__args__) == {
        value
        for entry in nstat_async.__all__
        if inspect.isclass(value := getattr(nstat_async, entry))
        and issubclass(value, nstat_async.Event)
        and value not in {nstat_async.Event, nstat_async.FlowEvent}
    }


HINTED = [
    *PUBLIC,
    "nstat_async.recording.steps",
    "nstat_async.integrations.nats",
    "nstat_async.integrations.otel",
    "nstat_async.integrations.otel_logs",
    "nstat_async.integrations.prometheus",
    "nstat_async.integrations.server",
]


def _callables(module):
    """Public functions, methods and properties, each with its name."""
    for entry in module.__all__:
        value = getattr(module, entry)
        if inspect.isfunction(value):
            yield entry, value
        elif inspect.isclass(value):
            if attrs.has(value):  # the types of its fields
                yield entry, value
            for member, found in vars(value).items():
                thing = getattr(found, "__func__", getattr(found, "fget", found))
                if inspect.isfunction(thing) and (not member.startswith("_") or member == "__init__"):
                    yield f"{entry}.{member}", thing


@pytest.mark.parametrize("name", HINTED)
def test_the_types_of_public_callables_can_be_looked_up(name):
    """Tools evaluate annotations: a name that is imported for the type checker only would fail them."""
    module = importlib.import_module(name)
    for label, function in _callables(module):
        try:
            typing.get_type_hints(function)
        except NameError as error:
            pytest.fail(f"{label}: {error}")


@pytest.mark.parametrize("name", sorted({*PUBLIC, "nstat_async.ebpf"} - {"nstat_async"}))
def test_dir_of_a_public_module_shows_public_names_only(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)


_ENUMS = [nstat_async.LossCause, nstat_async.RemovalReason, nstat_async.Auxiliary, nstat_async.HostState]


@pytest.mark.parametrize(
    "value", [*(record.cls for record in TABLE.records), *_ENUMS, nstat_async.backends.Replay, Recording]
)
def test_help_says_what_each_field_and_member_of_a_public_class_means(value):
    for name in sorted(PUBLIC):  # it is explained where it is public, and first asked for
        getattr(importlib.import_module(name), value.__name__, None)
    members = getattr(value, "__members__", ())
    fields = [field.name for field in attrs.fields(value)] if attrs.has(value) else []
    text = pydoc.getdoc(value)
    assert text == inspect.cleandoc(value.__doc__).rstrip()
    assert not [each for each in (*members, *fields) if not each.startswith("_") and f"\n    {each}: " not in text]


def test_help_of_a_class_without_its_source_is_its_own_text(monkeypatch: pytest.MonkeyPatch):
    """As in an executable."""
    _own_explanations.cache_clear()
    monkeypatch.setattr(inspect, "getsource", lambda _cls: (_ for _ in ()).throw(OSError("no source")))
    assert nstat_async.PollCompleted.__doc__ == "One poll of all flows is over."
