"""Inputs that know the structures: bytes, read as choices of a machine that speaks well, and then does something odd.

An input is a whole life of such a machine, of hundreds of datagrams: a target returns how many it played.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("", "sockdiag", "ebpf"))]

from nstat_async import FlowEvent
from nstat_async._compiled import speedups

T = TypeVar("T")
NUMBERS = (0, 1, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
TREES = (None, True, -1, 0, 1.5, 1 << 64, 10**400, "", "x" * 300, "\ud800", [], {}, [[]], {"": None}, [1, "a", None])


class Choices:
    """Bytes, read as choices; behind their end every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """True when all bytes are used."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """One byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.byte() % len(options)]

    def rarely(self) -> bool:
        """True once in sixteen."""
        return self.byte() % 16 == 15

    def spoiled(self, value: Any) -> Any:
        """The same tree with something else at one place."""
        if isinstance(value, dict) and value and not self.rarely():
            name = self.pick(sorted(value))
            changed = dict(value)
            if self.rarely():
                del changed[name]
            elif self.rarely():
                changed["unknown"] = self.pick(TREES)
            else:
                changed[name] = self.spoiled(value[name])
            return changed
        if isinstance(value, list) and value and not self.rarely():
            at = self.byte() % len(value)
            return [*value[:at], self.spoiled(value[at]), *value[at + 1 :]]
        if isinstance(value, str) and value and self.byte() % 2:
            at = self.byte() % len(value)
            return value[:at] + self.pick("0fz") + value[at + 1 :]
        return self.pick(TREES)


def is_thorough(flags: int) -> bool:
    """Whether an input is played to the Python code as well, and everything is looked at: a quarter of them."""
    return flags < 64


def flows_of(core: Any) -> dict[str, Any]:
    """The open flows of a core, by their ids."""
    return {flow.id: (flow, counts) for flow, counts in core.flows()}


def looked_at(events: list[Any]) -> list[Any]:
    """Events with all that is made of them when somebody looks."""
    return [(event, event.details if isinstance(event, FlowEvent) else None) for event in events]


@contextlib.contextmanager
def without_speedups(*modules: Any) -> Iterator[None]:
    """Cores that are made meanwhile do without the C code."""
    for module in modules:
        module.speedups = None
    try:
        yield
    finally:
        for module in modules:
            module.speedups = speedups
