"""Objects of frozen classes made without their constructor, for code that makes tens of thousands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs

from . import _events
from ._compiled import speedups

_OF_ADDED = ("time", "flow", "_kept_counts", "preexisting", "_details")
flow_added = _events.flow_added if speedups is None else speedups.Maker(_events.FlowAdded, _OF_ADDED, ()).make
"""Makes a `FlowAdded`; with the C code the garbage collector does not look at it."""


class Maker(Protocol):
    """Makes objects of one frozen class."""

    def make(self, *values: Any) -> Any:
        """An object with these values in its first fields, and defaults in the others."""

    def fill(self, made: Any, *values: Any) -> None:
        """Turn an object of a subclass without slots of its own into an object of the class with these values.

        Other threads see the old object until it is complete: the last field is filled last.
        """


class _Maker:
    """The maker in Python, the reference for the C code."""

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
        made.__class__ = self._owner  # from now on the object is frozen
        return made

    def fill(self, made: Any, *values: Any) -> None:
        for put, value in zip(self._puts, (*values, *self._rest), strict=True):
            put(made, value)
        _set_class(made, self._owner)


_set_class = object.__dict__["__class__"].__set__


def maker_of(owner: type, first: tuple[str, ...], last: str | None = None) -> Maker:
    """A maker of objects of a frozen attrs class: it takes a sixth of the time, and does not check the values.

    The garbage collector does not look at objects that the C code makes, which saves its walks over all living objects.
    So such an object must hold values only, and nothing that could refer to it.

    Args:
        owner: The class; it has slots.
        first: The fields that are given, in this order; the others have their defaults.
        last: The field that `Maker.fill` sets last.
    """
    defaults = {field.name: field.default for field in attrs.fields(owner)}
    others = sorted((name for name in defaults if name not in first), key=lambda name: name == last)
    rest = tuple(defaults[name] for name in others)
    make: Callable[..., Maker] = _Maker if speedups is None else speedups.Maker
    return make(owner, (*first, *others), rest)


def unread_maker(owner: type, slot: str) -> Callable[..., Any]:
    """A function that makes objects of this class with a tuple of its arguments in this slot, and nothing else."""
    if speedups is not None:
        gather: Callable[..., Any] = speedups.Maker(owner, (slot,), ()).gather
        return gather
    new, put = object.__new__, getattr(owner, slot).__set__

    def make(*values: Any) -> Any:
        made: Any = new(owner)
        put(made, values)
        return made

    return make
