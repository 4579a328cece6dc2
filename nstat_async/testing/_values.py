"""Values of descriptor fields: addresses, UUIDs and names as bytes."""

from __future__ import annotations

import functools
import uuid
from typing import Any

from nstat_async._model import Endpoint
from nstat_async.ntstat._constants import DARWIN_AF_INET, DARWIN_AF_INET6

__all__ = ["endpoint", "executable_uuid", "field_value", "sockaddr"]

_UUID_SPACE = uuid.UUID("5d5e2a6e-7a53-4c1b-9c45-0d2d4c6f8a10")


@functools.lru_cache(1024)
def executable_uuid(name: str) -> bytes:
    """A UUID for an executable of that name: the same for every process that runs it."""
    return uuid.uuid5(_UUID_SPACE, name).bytes


def endpoint(value: Endpoint | str | tuple[str, int] | None) -> Endpoint | None:
    """An endpoint from ``("192.0.2.1", 443)``, ``"192.0.2.1:443"`` or ``"[2001:db8::1]:443"``.

    Raises:
        ValueError: It is none of these.
    """
    if value is None or isinstance(value, Endpoint):
        return value
    if not isinstance(value, str):
        return Endpoint.parse(value[0], value[1])
    address, _, port = value.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"{value!r} is no address such as 192.0.2.1:443 or [2001:db8::1]:443")
    return Endpoint.parse(address.strip("[]"), int(port))


def sockaddr(value: Endpoint | None) -> bytes:
    """A BSD socket address in 28 bytes; all zero for `None`."""
    if value is None:
        return bytes(28)
    port = value.port.to_bytes(2, "big")
    if len(value.packed) == 4:
        return (bytes((16, DARWIN_AF_INET)) + port + value.packed).ljust(28, b"\0")
    scope = (value.scope_id or 0).to_bytes(4, "little")
    return bytes((28, DARWIN_AF_INET6)) + port + bytes(4) + value.packed + scope


def field_value(name: str, value: Any) -> Any:
    """A descriptor field in the form that the encoder takes."""
    if name in {"local", "remote", "dst", "mask", "gateway"} and not isinstance(value, bytes):
        return sockaddr(endpoint(value))
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return value.bytes if isinstance(value, uuid.UUID) else value
