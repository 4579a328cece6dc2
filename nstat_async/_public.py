"""What ``dir()`` of a public module shows, and what it imports only when somebody asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def only(names: Iterable[str]) -> Callable[[], list[str]]:
    """A module's ``__dir__`` that shows these names, and none of what the module uses itself."""
    shown = sorted(names)
    return lambda: list(shown)


def on_demand(package: str, modules: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """A package's ``__getattr__``: what few need takes no time of everybody's import.

    Args:
        package: Its name.
        modules: Modules, relative to it, with the names that come from each; none for a module that is itself asked for.
    """
    where = {name: module for module, names in modules.items() for name in names or (module.removeprefix("."),)}

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(where[name], package)
        return getattr(module, name) if modules[where[name]] else module

    return find
