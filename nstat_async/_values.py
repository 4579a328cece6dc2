"""Values by name: frozen attrs classes as JSON objects, and back.

Setups, purposes, look-up requests and answers are classes of simple fields. Their type
hints are enough to write and read them, without a pair of functions for each class.

The JSON may be of a later version, or damaged. An unknown field is skipped, a missing one gets
its default, and anything of the wrong type or size is a `ProtocolError` about this one value.
"""

from __future__ import annotations

import collections.abc
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Union

import attrs

from ._errors import ProtocolError, UsageError

_T = TypeVar("_T")
_Reader = Callable[[Any], Any]

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
"""Limits of a kernel's number, signed or unsigned."""
_SHOWN = 60
_PLAIN = (str, bool, int, float, type(None))


def to_json(value: Any, *, only: Iterable[str] | None = None) -> Any:
    """A value in the types of JSON: bytes as hex, enumerations as their value, tuples and sets as lists.

    Args:
        value: An instance of an attrs class, or a value that a field of one may have.
        only: Names of the fields to write; `None`: all.

    Raises:
        UsageError: The value, or something in it, has another type.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (frozenset, set)):
        return sorted((to_json(item) for item in value), key=repr)
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if isinstance(value, collections.abc.Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if attrs.has(type(value)):
        return {name: to_json(getattr(value, name)) for name in (_names(value) if only is None else only)}
    raise UsageError(f"{type(value).__name__} is not a value that can be written by name")


def to_text(value: Any) -> str:
    """The JSON text of `to_json`, in half the time: the encoder handles plain values by itself."""
    return _encoder.encode(value)


def _level(value: Any) -> Any:
    if attrs.has(type(value)):
        return {name: getattr(value, name) for name in _names(value)}
    return to_json(value)


_encoder = json.JSONEncoder(separators=(",", ":"), default=_level)


def _names(value: Any) -> tuple[str, ...]:
    return _names_of(typing.cast("Any", type(value)))


@functools.cache
def _names_of(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in attrs.fields(kind) if field.init)


def from_json(kind: type[_T], data: Any) -> _T:
    """The instance of an attrs class that `to_json` wrote.

    Raises:
        ProtocolError: It is not one; the text says which field is wrong.
    """
    try:
        return typing.cast("_T", _reader(typing.cast("Any", kind))(data))
    except ProtocolError:
        raise
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from error


class Vocabulary:
    """Classes that are distinguished by their name, under the key ``"type"``. Any attrs class can be written."""

    def __init__(self, *kinds: type) -> None:
        self._kinds = {kind.__name__: kind for kind in kinds}

    @staticmethod
    def write(value: Any) -> Any:
        """A value with its class' name; a value that is not of an attrs class is written as it is."""
        data = to_json(value)
        return {"type": type(value).__name__, **data} if attrs.has(type(value)) else data

    def read(self, data: Any) -> Any:
        """The value that `write` wrote; a ProtocolError if its class is unknown, or it is not a value of that class."""
        if data is None or isinstance(data, str):
            return data
        name = data.get("type") if isinstance(data, dict) else None
        kind = self._kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ProtocolError(f"a value of unknown type {name!r:.{_SHOWN}}")
        return from_json(kind, data)


# --- readers, made once for each type ------------------------------------------------


@functools.cache
def _reader(hint: Any) -> _Reader:
    """A function that makes a value of this type of JSON, or raises `ValueError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin in {Union, types.UnionType}:
        return _one_of(tuple(_reader(argument) for argument in arguments))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _collection(tuple, _reader(arguments[0]))
    if origin is tuple:
        return _row(tuple(_reader(argument) for argument in arguments))
    if origin is frozenset:
        return _collection(frozenset, _reader(arguments[0]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(hint)
    if isinstance(hint, type) and attrs.has(hint):
        return _record(hint)
    raise UsageError(f"{hint!r} is not a type of a value that can be read by name")


def _refuse(data: Any, what: str) -> ValueError:
    return ValueError(f"expected {what}, got {data!r:.{_SHOWN}}")


def _exactly(kind: type, what: str) -> _Reader:
    def read(data: Any) -> Any:
        if type(data) is not kind:  # `True` is not a number here
            raise _refuse(data, what)
        return data

    return read


def _integer(data: Any) -> int:
    if type(data) is not int or not _INT_MIN <= data <= _INT_MAX:
        raise ValueError("not a whole number of at most 64 bits")
    return data


def _number(data: Any) -> float:
    if type(data) not in {int, float} or not math.isfinite(data):
        raise ValueError("not a finite number")
    return float(data)


_text = _exactly(str, "text")
_SIMPLE: dict[Any, _Reader] = {
    Any: lambda data: data,
    type(None): _exactly(type(None), "null"),
    int: _integer,
    float: _number,
    bool: _exactly(bool, "truth value"),
    str: _text,
    bytes: lambda data: bytes.fromhex(_text(data)),
}


def _one_of(readers: tuple[_Reader, ...]) -> _Reader:
    optional = _SIMPLE[type(None)] in readers

    def read(data: Any) -> Any:
        if data is None and optional:  # the most frequent value: every other reader would raise an exception for it
            return None
        reasons = []
        for reader in readers:
            try:
                return reader(data)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(", ".join(reasons))

    return read


def _collection(kind: type, reader: _Reader) -> _Reader:
    def read(data: Any) -> Any:
        if type(data) is not list:
            raise _refuse(data, "list")
        return kind(map(reader, data))

    return read


def _row(readers: tuple[_Reader, ...]) -> _Reader:
    def read(data: Any) -> tuple[Any, ...]:
        if type(data) is not list or len(data) != len(readers):
            raise _refuse(data, f"list of {len(readers)}")
        return tuple(reader(item) for reader, item in zip(readers, data, strict=True))

    return read


def _member(kind: type[enum.Enum]) -> _Reader:
    known = {member.value: member for member in kind}

    def read(data: Any) -> enum.Enum:
        member = known.get(data) if isinstance(data, (str, int)) else None
        if member is None:
            raise _refuse(data, kind.__name__)
        return member

    return read


def _record(kind: type) -> _Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: (field.alias, _reader(hints[field.name])) for field in attrs.fields(kind) if field.init}

    def read(data: Any) -> Any:
        if type(data) is not dict:
            raise _refuse(data, "object")
        values = {}
        for name, (argument, reader) in readers.items():
            if name in data:
                try:
                    values[argument] = reader(data[name])
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        return kind(**values)  # a TypeError if a field without a default is missing

    return read
