"""What ``dir()`` of a public module shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["only"]


def only(names: Iterable[str]) -> Callable[[], list[str]]:
    """A module's ``__dir__`` that shows these names, and none of what the module uses itself."""
    shown = sorted(names)
    return lambda: list(shown)
