"""For public modules: what ``dir()`` shows, what ``help()`` says about classes, and what is imported on demand."""

from __future__ import annotations

import enum
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def only(names: Iterable[str]) -> Callable[[], list[str]]:
    """A module's ``__dir__`` that shows these names only, not what the module imports for itself."""
    shown = sorted(names)
    return lambda: list(shown)


def on_demand(package: str, modules: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that imports rarely used names on first use.

    Args:
        package: Name of the package.
        modules: Relative modules, with the names that come from each; without names the module itself is meant.
    """
    where = {name: module for module, names in modules.items() for name in names or (module.removeprefix("."),)}

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(where[name], package)
        if not modules[where[name]]:
            return module
        explain((name,), vars(module))
        return getattr(module, name)

    return find


def explain(names: Iterable[str], module: Mapping[str, Any]) -> None:
    """Let ``help()`` of a module's public classes show the docstrings of their fields and members."""
    for name in names:
        value = module.get(name)
        if isinstance(value, type) and (hasattr(value, "__attrs_attrs__") or issubclass(value, enum.Enum)):
            text = vars(value).get("__doc__")
            if not isinstance(text, _Explained):
                explained = _Explained(text or "")
                explained.owner = value
                type.__setattr__(value, "__doc__", explained)


class _Explained(str):
    """The docstring of a class; reading it adds those of the class's attributes."""

    __slots__ = ("owner",)
    owner: type

    def __get__(self, _instance: object, owner: type) -> str:
        names = getattr(owner, "__members__", None) or [field.name for field in getattr(owner, "__attrs_attrs__", ())]
        try:
            texts = explanations(owner)
        except (OSError, TypeError):  # there is no source, e.g. in an executable
            return str(self)
        lines = [f"    {name}: {texts[name]}" for name in names if name in texts and not name.startswith("_")]
        return "\n".join([self.rstrip(), "", "Attributes:", *lines, ""]) if lines else str(self)

    def expandtabs(self, *size: Any, **more: Any) -> str:
        """Called by ``help()``, which for an enum reads the docstring without `__get__`."""
        return self.__get__(None, self.owner).expandtabs(*size, **more)


def explanations(cls: type) -> dict[str, str]:
    """The docstring of each attribute of a class and its bases.

    Raises:
        OSError: There is no source.
    """
    found: dict[str, str] = {}
    for each in reversed([base for base in cls.__mro__ if base.__module__ not in ("builtins", "enum")]):
        found |= _own_explanations(each)
    return found


@functools.lru_cache(maxsize=256)  # help() asks several times, and each time a whole module would be parsed
def _own_explanations(cls: type) -> dict[str, str]:
    import ast  # noqa: PLC0415  # as the next three: only help() needs it
    import inspect  # noqa: PLC0415
    import itertools  # noqa: PLC0415
    import textwrap  # noqa: PLC0415

    found: dict[str, str] = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for one, after in itertools.pairwise(definition.body):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
            found |= {ast.unparse(target): str(after.value.value) for target in targets if target is not None}
    found |= {name: str(thing.__doc__) for name, thing in vars(cls).items() if isinstance(thing, property)}
    return {name: " ".join(text.split("\n\n", maxsplit=1)[0].split()) for name, text in found.items()}
