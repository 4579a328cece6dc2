"""Checks of users' arguments: validators for `attrs` whose `UsageError` names the option and the right values."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ._errors import UsageError

LONGEST_SECONDS = 1_000_000_000
"""About 31 years: timers of event loops do not take much more."""
_Number = TypeVar("_Number", int, float)
_PLAIN = re.compile(r"[-.0-9A-Za-z]+(?:\+[0-9]+)?")


def number_of(text: str, kind: Callable[[str], _Number]) -> _Number:
    """A text as a number, by `int` or `float`, without what only Python reads as one: ``1_000``, `` 5``, ``+5``, other scripts' digits.

    Raises:
        ValueError: It is not a number.
    """
    if not _PLAIN.fullmatch(text):
        raise ValueError(text)
    return kind(text)


def check_number(
    name: str,
    value: Any,
    *,
    optional: bool = False,
    whole: bool = False,
    least: float | None = None,
    most: int | None = None,
) -> None:
    """Check that a value is a number within limits; without `least` it has to be positive.

    Raises:
        UsageError: It is not; the text says what is right.
    """
    if value is None and optional:
        return
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not (value > 0 if least is None else value >= least) or (most and value > most):
        limits = [*([] if least is None else [f"at least {least:g}"]), *([] if most is None else [f"at most {most}"])]
        right = f"{'' if least == 0 else 'positive '}{'whole ' if whole else ''}number"
        shown = repr(value) if not isinstance(value, int) or value < 1 << 80 else "what was given"
        hint = "; None means none" if optional and not number else ""
        raise UsageError(f"{name}: {shown} is not a {right}{' of ' if limits else ''}{' and '.join(limits)}{hint}")


def positive(**limits: Any) -> Any:
    """`check_number` as a validator."""
    return lambda _instance, attribute, value: check_number(attribute.name, value, **limits)


def check_flag(_instance: object, attribute: Any, value: Any) -> None:
    """A validator for `True` or `False`: a text such as ``"no"`` would count as true."""
    if not isinstance(value, bool):
        raise UsageError(f"{attribute.name}: {value!r} is neither True nor False")


def check_flag_or_none(instance: object, attribute: Any, value: Any) -> None:
    """`check_flag` that also takes `None`."""
    if value is not None:
        check_flag(instance, attribute, value)


def check_path(name: str, value: Any, mode: str | None = None) -> None:
    """Check that a value is a path, or (with a mode, ``"rb"`` or ``"wb"``) an open binary file.

    Raises:
        UsageError: It is neither.
    """
    doing = "writing" if mode == "wb" else "reading"
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if not isinstance(text, str) or not text or "\0" in text or not _is_encodable(text):
            raise UsageError(f"{name}: {value!r} is not a path")
        return
    if mode is None:
        raise UsageError(f"{name}: {value!r} is not a path")
    if isinstance(value, io.TextIOBase):
        raise UsageError(f"{name}: {value!r} is a text file; open it with mode {mode!r}")
    if not callable(getattr(value, "write" if mode == "wb" else "read", None)):
        raise UsageError(f"{name}: {value!r} is neither a path nor a file that is open for {doing}")
    can: Any = getattr(value, "writable" if mode == "wb" else "readable", None)
    if getattr(value, "closed", False) or (can is not None and not can()):
        raise UsageError(f"{name}: {value!r} is not open for {doing}")


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def check_predicate(name: str, value: Any) -> None:
    """Check that a value is a plain function: what an ``async def`` or a generator returns is always true.

    Raises:
        UsageError: It is not.
    """
    if not callable(value):
        hint = "; nstat_async.filters.parse makes a filter of text" if isinstance(value, str) else ""
        raise UsageError(f"{name}: {value!r} is neither a Filter nor callable{hint}")
    for function in (value, getattr(value, "__call__", None)):  # noqa: B004  # an object's method counts, too
        if any(late(function) for late in _LATE):
            raise UsageError(
                f"{name}: {value!r} is asynchronous or a generator; a filter is a plain function of a flow"
            )


_LATE = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


def check_timebase(_instance: object, attribute: Any, value: Any) -> None:
    """A validator for nanoseconds per tick: a pair of 32-bit numbers, or `None` if that is the default."""
    if value is None and attribute.default is None:
        return
    numbers = isinstance(value, tuple) and len(value) == 2 and all(type(part) is int for part in value)
    if not numbers or not all(0 < part < 1 << 32 for part in value):
        raise UsageError(f"{attribute.name}: {value!r} is not a pair of positive whole numbers such as (125, 3)")
