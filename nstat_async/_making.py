"""Objects of frozen classes made without their constructor, for whoever makes tens of thousands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs

from . import _events
from ._compiled import speedups

_OF_ADDED = ("time", "flow", "_kept_counts", "preexisting", "_details")
flow_added = _events.flow_added if speedups is None else speedups.Maker(_events.FlowAdded, _OF_ADDED, ()).make
"""What says that a flow was added; not looked at by the garbage collector either."""


class Maker(Protocol):
    """Makes objects of one frozen class."""

    def make(self, *values: Any) -> Any:
        """An object with these values in its first fields, and defaults in the others."""

    def fill(self, made: Any, *values: Any) -> None:
        """Make of an object of a subclass without slots of its own an object of the class: the same with its fields.

        Until then it is what it was, for other threads too; what was in the last of all fields is there to the end.
        """


class _Maker:
    """The reference of the same in C."""

    def __init__(self, owner: type, names: tuple[str, ...], rest: tuple[Any, ...]) -> None:
        fields = {name: attrs.field() for name in names}
        self._draft: Any = attrs.make_class(
            owner.__name__, fields, eq=False, repr=False, slots=True, weakref_slot=False
        )
        self._owner = owner
        self._rest = rest
        self._puts = [owner.__dict__[name].__set__ for name in names]

    def make(self, *values: Any) -> Any:
        made = self._draft(*values, *self._rest)
        made.__class__ = self._owner  # it can be written to until then
        return made

    def fill(self, made: Any, *values: Any) -> None:
        for put, value in zip(self._puts, (*values, *self._rest), strict=True):
            put(made, value)
        _set_class(made, self._owner)


_set_class = object.__dict__["__class__"].__set__


def maker_of(owner: type, first: tuple[str, ...], last: str | None = None) -> Maker:
    """What makes objects of a frozen class of attrs: in a sixth of the time, and without a look at their values.

    Made by the C code they are not looked at by the garbage collector, which else walks over all that lives again and
    again: so they must hold values alone, and nothing that could refer to them.

    Args:
        owner: The class; it has slots.
        first: The fields that are given, in this order; the others have their defaults.
        last: The last of these, for `Maker.fill`.
    """
    defaults = {field.name: field.default for field in attrs.fields(owner)}
    others = sorted((name for name in defaults if name not in first), key=lambda name: name == last)
    rest = tuple(defaults[name] for name in others)
    make: Callable[..., Maker] = _Maker if speedups is None else speedups.Maker
    return make(owner, (*first, *others), rest)


def unread_maker(owner: type, slot: str) -> Callable[..., Any]:
    """What makes objects of this class that have nothing but a tuple of the values given, in this slot."""
    if speedups is not None:
        gather: Callable[..., Any] = speedups.Maker(owner, (slot,), ()).gather
        return gather
    new, put = object.__new__, getattr(owner, slot).__set__

    def make(*values: Any) -> Any:
        made: Any = new(owner)
        put(made, values)
        return made

    return make
