"""Values of descriptor fields, checked: addresses, UUIDs and names as bytes.

If no kernel could have a value that a test gives, a `UsageError` names the argument.
"""

from __future__ import annotations

import difflib
import functools
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType
from typing import Any

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint
from nstat_async.ntstat._constants import DARWIN_AF_INET, DARWIN_AF_INET6
from nstat_async.ntstat._tables import STRUCTS

_UUID_SPACE = uuid.UUID("5d5e2a6e-7a53-4c1b-9c45-0d2d4c6f8a10")
_BITS = {"BOOL": 8, "U8": 8, "U16": 32, "U32": 32, "I32": 32, "U64": 64, "I64": 64}
"""Bits of a number by its type. Fields that newer releases widened have their new width in every release."""
_BYTES = {"SOCKADDR": 28, "UUID": 16}
LONGEST = 1e9
"""Seconds, or anything else that is counted: about 31 years."""


@functools.lru_cache(1024)
def executable_uuid(name: str) -> bytes:
    """A UUID for an executable of that name: the same for every process that runs it."""
    return uuid.uuid5(_UUID_SPACE, name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")).bytes


def whole(name: str, value: Any, *, bits: int = 64, least: int = 0) -> int:
    """A whole number that fits."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << bits:
        raise UsageError(f"{name}: {_shown(value)} is not a whole number from {least} to {(1 << bits) - 1}")
    return int(value)


def _shown(value: Any) -> str:
    """A value for the text of an error; Python refuses to write very large numbers."""
    return repr(value) if not isinstance(value, int) or abs(value) < 1 << 200 else "what was given"


def wholes(**values: Any) -> None:
    """Whole numbers of 64 bits."""
    for name, value in values.items():
        whole(name, value)


def text(name: str, value: Any) -> str:
    """A text without NUL that can be encoded; bytes that are not UTF-8 may be in it as surrogates."""
    try:
        if isinstance(value, str) and "\0" not in value and value.encode("utf-8", "surrogateescape") is not None:
            return value
    except UnicodeEncodeError:
        pass
    raise UsageError(f"{name}: {value!r} is not a text without NUL")


def flag(name: str, value: Any) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: {value!r} is neither True nor False")
    return value


def number(name: str, value: Any, *, least: float = 0.0, most: float = LONGEST) -> float:
    """A finite number in a range."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:  # NaN is not
        return value
    raise UsageError(f"{name}: {_shown(value)} is not a number from {least:g} to {most:g}")


def instance(name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    """A value of a class."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = ("None" if each is NoneType else each.__name__ for each in kinds)
        raise UsageError(f"{name}: {value!r} is not an instance of {' or '.join(names)}")
    return value


def octets(name: str, value: Any) -> bytes:
    """Bytes, from any object that has them."""
    return bytes(instance(name, value, (bytes, bytearray, memoryview)))


def one_of(name: str, value: Any, choices: Collection[Any]) -> Any:
    """One of several values."""
    if not any(type(value) is type(each) and value == each for each in choices):
        raise UsageError(f"{name}: {value!r} is not one of {', '.join(map(str, choices))}")
    return value


def checked(check: Callable[..., Any], *arguments: Any, optional: bool = False, **options: Any) -> Any:
    """One of these checks as a validator for `attrs`; with `optional`, `None` passes."""

    def validate(_instance: object, attribute: Any, value: Any) -> None:
        if not (optional and value is None):
            check(attribute.name, value, *arguments, **options)

    return validate


def inserted(name: str, value: Any) -> dict[str, list[tuple[int, int]]]:
    """Bytes that were put into structures: name of the structure to pairs of (offset, bytes)."""
    found = {}
    for structure, places in instance(name, value, Mapping).items():
        one_of(name, structure, sorted(STRUCTS))
        try:
            pairs = [(offset, size) for offset, size in places]
        except (TypeError, ValueError):
            raise UsageError(f"{name}: {places!r} is not a list of pairs (offset, bytes)") from None
        for offset, size in pairs:
            whole(f"{name}: offset", offset, bits=12)
            whole(f"{name}: bytes", size, bits=10, least=1)
        found[structure] = sorted(pairs)
    return found


def endpoint(value: Endpoint | str | tuple[str, int] | None, name: str = "address") -> Endpoint | None:
    """An endpoint from ``("192.0.2.1", 443)``, ``"192.0.2.1:443"`` or ``"[2001:db8::1]:443"``."""
    if value is None or isinstance(value, Endpoint):
        return value
    try:
        if isinstance(value, tuple):
            address, port = value
            return Endpoint.parse(address, whole("port", port, bits=16))
        address, colon, digits = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if colon and digits.isdecimal():
            return Endpoint.parse(address.strip("[]"), whole("port", int(digits), bits=16))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {value!r} is not an address: {error}") from error
    raise UsageError(f"{name}: {value!r} is not an address such as 192.0.2.1:443 or [2001:db8::1]:443")


def sockaddr(value: Endpoint | None) -> bytes:
    """A BSD socket address in 28 bytes; all zero for `None`."""
    if value is None:
        return bytes(28)
    port = value.port.to_bytes(2, "big")
    if len(value.packed) == 4:
        return (bytes((16, DARWIN_AF_INET)) + port + value.packed).ljust(28, b"\0")
    scope = (value.scope_id or 0).to_bytes(4, "little")
    return bytes((28, DARWIN_AF_INET6)) + port + bytes(4) + value.packed + scope


def _encoded(kind: str) -> Callable[[str, Any], Any]:
    """The function that checks a value of this type, and converts it to what the encoder takes."""
    base, _, times = kind.partition("*")
    count = int(times or 1)

    def encode_text(name: str, value: Any) -> bytes:
        encoded = value if isinstance(value, bytes) else text(name, value).encode("utf-8", "surrogateescape")
        return encoded[:count]

    def check_bytes(name: str, value: Any) -> bytes:
        if base == "SOCKADDR" and not isinstance(value, bytes):
            return sockaddr(endpoint(value, name))
        found = value.bytes if isinstance(value, uuid.UUID) else value
        if not isinstance(found, bytes) or len(found) != _BYTES[base]:
            raise UsageError(f"{name}: {value!r} does not have {_BYTES[base]} bytes")
        return found

    def check_number(name: str, value: Any) -> int:
        if type(value) is int and 0 <= value <= most:  # the quick way
            return value
        return whole(name, value, bits=bits)

    def check_numbers(name: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, tuple) or len(value) != count:
            raise UsageError(f"{name}: {value!r} is not a tuple of {count} numbers")
        return tuple(whole(name, each, bits=bits) for each in value)

    if base == "CHAR":
        return encode_text
    if base in _BYTES:
        return check_bytes
    bits = _BITS[base]
    most = (1 << bits) - 1
    return check_numbers if times else check_number


@functools.cache
def _checks(structure: str) -> dict[str, Callable[[str, Any], Any]]:
    """The check of each field by its name: of this descriptor, of counters, and of other descriptors' fields, which are not sent.

    A field has its type of the newest release.
    """
    others = [name for name in STRUCTS if name.endswith("_descriptor")]
    found: dict[str, Callable[[str, Any], Any]] = {}
    for each in (structure, "nstat_counts", "nstat_detailed_counts", *others):
        for name, kind, _ in STRUCTS[each][1]:
            found.setdefault(name, _encoded(kind if isinstance(kind, str) else str(kind[max(kind)])))
    return found


def check_fields(structure: str, names: Iterable[str]) -> None:
    """Check that these are names of counters, or of a descriptor's fields in any release."""
    known = _checks(structure)
    for name in names:
        if name not in known:
            text("a field's name", name)
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(f"{name}: no descriptor has such a field{f'; is it {near[0]}?' if near else ''}")


def field_value(structure: str, name: str, value: Any) -> Any:
    """A field or counter in the form that the encoder takes."""
    checks = _checks(structure)
    if name not in checks:
        check_fields(structure, (name,))
    return checks[name](name, value)
