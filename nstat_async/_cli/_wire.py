"""Structures of the Darwin wire as JSON values, with the kernel's own names.

The bytes are read as they are: no unit is converted, and a scope stays in its address.
Names lose a leading ``nstat_``, also behind a dot.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from .._errors import ProtocolError
from ..ntstat._constants import DARWIN_AF_INET, DARWIN_AF_INET6, EXTENSION_NAMES, Extension
from ..ntstat._kernels import Kernel
from ..ntstat._layouts import Field, StructCodec
from ..ntstat._messages import ExtensionItem
from ..ntstat._proof import codecs_of
from ..ntstat._readers import Readers
from ..ntstat._setup import ProvenStruct
from ..ntstat._translate import Translator

_PORT = struct.Struct(">H")
_SCOPE = struct.Struct("<I")


def kernel_name(name: str) -> str:
    """A field's name without ``nstat_``: ``u.nstat_sysinfo_scalar`` becomes ``u.sysinfo_scalar``."""
    return ".".join(part.removeprefix("nstat_") for part in name.split("."))


def sockaddr(data: bytes) -> dict[str, Any]:
    """A Darwin socket address of 28 bytes (``sockaddr_in``, ``sockaddr_in6``, or another, kept raw)."""
    family = data[1]
    (port,) = _PORT.unpack_from(data, 2)
    if family == DARWIN_AF_INET:
        text = socket.inet_ntop(socket.AF_INET, data[4:8])
        return {"family": "inet", "address": text, "port": port, "scope_id": 0}
    if family == DARWIN_AF_INET6:
        text = socket.inet_ntop(socket.AF_INET6, data[8:24])
        (scope,) = _SCOPE.unpack_from(data, 24)
        return {"family": "inet6", "address": text, "port": port, "scope_id": scope}
    if family == 0:  # AF_UNSPEC: an address that is not set; the fields are where they would be
        return {"family": None, "address": None, "port": port, "scope_id": 0, "raw": data.hex()}
    return {"family": None, "address": None, "port": None, "scope_id": None, "raw": data.hex()}


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def _uuid(data: bytes) -> str:
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _flag(value: int) -> bool | int:
    return bool(value) if value < 2 else value


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "SOCKADDR": sockaddr,
    "UUID": _uuid,
    "CHAR": _text,
    "F64": _number,
    "BOOL": _flag,
    "COUNTS": bytes.hex,
    "DETAILED_COUNTS": bytes.hex,
}


def _converter(field: Field) -> Callable[[Any], Any] | None:
    """The function that makes a JSON value of a field; `None`: the field is a plain number."""
    return list if field.count > 1 else _CONVERTERS.get(field.kind)


class WireReader:
    """Reads the structures of one kernel."""

    def __init__(self, kernel: Kernel, proven: Iterable[ProvenStruct] = ()) -> None:
        self.kernel = kernel
        self._readers = Readers(Translator(kernel))
        self._readers.prove(codecs_of(kernel, proven))
        self._plans: dict[str, list[tuple[str, str, Callable[[Any], Any] | None]]] = {}

    def codec(self, name: str | None) -> StructCodec | None:
        """The structure of this name in this kernel; `None` if the kernel has none."""
        return None if name is None else self.kernel.layout.find(name)

    def fields(self, codec: StructCodec, data: bytes, at: int = 0) -> dict[str, Any]:
        """Every named field of a structure; the caller has checked its length."""
        plan = self._plans.get(codec.name)
        if plan is None:
            plan = [(field.name, kernel_name(field.name), _converter(field)) for field in codec.fields]
            self._plans[codec.name] = plan
        values = codec.decode(data, at)
        return {shown: values[name] if convert is None else convert(values[name]) for name, shown, convert in plan}

    def structure(self, name: str, data: bytes) -> dict[str, Any]:
        """Every named field of the structure `name` that `data` begins with.

        Raises:
            ProtocolError: `data` is too short.
        """
        codec = self.kernel.layout[name]
        if len(data) < codec.size:
            raise ProtocolError(f"{name} of {len(data)} bytes is shorter than its {codec.size}", raw=data)
        return self.fields(codec, data)

    def descriptor(self, provider: int, data: bytes) -> tuple[dict[str, Any] | None, bytes, str | None]:
        """A provider's descriptor.

        Returns:
            The fields (`None` if the provider is unknown; a field is `None` if its place is not proven), the bytes after
            them, and a remark.

        Raises:
            ProtocolError: `data` is shorter than the layout says.
        """
        codec = self.codec(self.kernel.descriptor_name(provider))
        if codec is None and provider == _SYSINFO_PROVIDER_2782 and self.kernel.version < (3247,):
            codec = self.codec("nstat_sysinfo_descriptor")
        if codec is None:
            return None, data, f"provider {provider} is unknown: its descriptor was not decoded"
        if len(data) < codec.size:
            raise ProtocolError(f"{codec.name} of {len(data)} bytes is shorter than its {codec.size}", raw=data)
        if not self.kernel.known:
            return self._doubtful(provider, codec, data)
        tail = data[codec.size :]
        note = f"{len(tail)} bytes behind the known {codec.name}" if tail else None
        return self.fields(codec, data), tail, note

    def _doubtful(
        self, provider: int, codec: StructCodec, data: bytes
    ) -> tuple[dict[str, Any] | None, bytes, str | None]:
        """A descriptor of a kernel newer than the known ones: the proven fields, or those that no newer kernel moved."""
        reader = self._readers.choose(provider, data, 0, len(data))
        shown = dict.fromkeys(kernel_name(field.name) for field in codec.fields)
        for name, value in reader.fields(data, 0, len(data)).items():
            convert = _converter(codec.by_name[name])
            shown[kernel_name(name)] = value if convert is None else convert(value)
        if self._readers.is_proven(provider, len(data)):
            return shown, data[reader.trusted :], None
        tail = data[reader.trusted :]
        if tail:
            return shown, tail, f"the layout of {self.kernel.name} is not proven: {len(tail)} bytes were not decoded"
        return shown, tail, f"the layout of {self.kernel.name} is not proven: {self.kernel.layout.name} is assumed"

    def extension(self, item: ExtensionItem) -> dict[str, Any]:
        """One extension item: its fields if its structure is known, else its bytes."""
        line: dict[str, Any] = {"type": item.type, "name": EXTENSION_NAMES.get(item.type), "length": item.length}
        if item.type == Extension.FUUID and len(item.data) == 16:
            line["fuuid"] = _uuid(item.data)
            return line
        codec = self.codec(_EXTENSION_STRUCTS.get(item.type))
        if codec is None or len(item.data) < codec.size:
            line["data"] = item.data.hex()
            return line
        line.update(self.fields(codec, item.data))
        if len(item.data) - codec.size >= 8 or any(item.data[codec.size :]):  # more than padding to 8
            line["tail"] = item.data[codec.size :].hex()
        return line

    def system_information(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """The list of keys and values, and the bytes left over, too few for another pair."""
        codec = self.kernel.layout["nstat_sysinfo_keyval"]
        whole = len(data) - len(data) % codec.size
        return [self.fields(codec, data, at) for at in range(0, whole, codec.size)], data[whole:]

    def add_parameter(self, provider: int, data: bytes) -> dict[str, Any]:
        """The parameter of a request for one named source: ``param`` as hex, and its fields if they are known."""
        shown: dict[str, Any] = {"param": data.hex()}
        name = self.kernel.descriptor_name(provider)
        codec = self.codec(_PARAMETERS.get(name)) if name is not None else None
        if codec is not None and len(data) >= codec.size:
            for key, value in self.fields(codec, data).items():
                shown[f"param.{key}"] = value
        return shown


_SYSINFO_PROVIDER_2782 = 5
"""System information was a provider of its own only from xnu-2782 until before xnu-3247."""

_EXTENSION_STRUCTS = {
    int(Extension.DOMAIN): "nstat_domain_info",
    int(Extension.ORIGINAL_DOMAIN): "nstat_domain_info",
    int(Extension.BLUETOOTH_COUNTS): "nstat_interface_counts",
}

_PARAMETERS = {
    "nstat_tcp_descriptor": "nstat_tcp_add_param",
    "nstat_udp_descriptor": "nstat_tcp_add_param",
    "nstat_route_descriptor": "nstat_route_add_param",
    "nstat_ifnet_descriptor": "nstat_ifnet_add_param",
}
