"""Translates values on the wire: times, addresses, owners, interfaces.

Values on the wire may mislead:

- Times are ticks of the Mach *continuous* clock; the timebase (125/3 ns a tick on
  Apple silicon) converts them to nanoseconds. The age (report minus start) needs no clock.
- Addresses are Darwin ``sockaddr``: the family byte decides (2, 30), never the
  length byte. A scope inside a link-local address becomes `Endpoint.scope_id`, an
  IPv4-mapped address becomes IPv4, and an all-zero peer becomes `None`.
- The interface's properties tell its kind, and since xnu-10002 the direction of a TCP flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Union
from uuid import UUID

import attrs

from .._making import maker_of
from .._model import IPV4_MAPPED, Endpoint, Interface, InterfaceKind, Process
from ._constants import DARWIN_AF_INET, DARWIN_AF_INET6, InterfaceProperty, SysinfoFlag
from ._evidence import PathsFound
from ._kernels import Kernel

_ZERO_UUID = b"\0" * 16


_make_end: Callable[[bytes, int, Union[int, None]], Endpoint] = maker_of(Endpoint, ("packed", "port", "scope_id")).make


def decode_text(raw: bytes) -> str | None:
    """A NUL-terminated string; `None` if it is empty. Names may be cut inside a character."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace") or None


def decode_uuid(raw: bytes | None) -> UUID | None:
    """A UUID; `None` if it is absent or zero."""
    return UUID(bytes=raw) if raw is not None and raw != _ZERO_UUID else None


def decode_endpoint(raw: bytes, keep: Callable[[bytes], bytes] = bytes) -> Endpoint | None:
    """The endpoint in an address slot of 28 bytes; `None` if it is not IP. `keep` is applied to the address."""
    family = raw[1]
    port = raw[2] << 8 | raw[3]
    if family == DARWIN_AF_INET:
        return _make_end(keep(raw[4:8]), port, None)
    if family != DARWIN_AF_INET6:
        return None
    packed = raw[8:24]
    if packed[:12] == IPV4_MAPPED:
        return _make_end(keep(packed[12:]), port, None)
    scope = int.from_bytes(raw[24:28], "little")
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and (packed[2] or packed[3]):
        scope = scope or packed[2] << 8 | packed[3]
        packed = packed[:2] + b"\0\0" + packed[4:]
    return _make_end(keep(packed), port, scope or None)


def decode_peer(raw: bytes, keep: Callable[[bytes], bytes] = bytes) -> Endpoint | None:
    """The endpoint in an address slot, where all zeros mean that there is none."""
    endpoint = decode_endpoint(raw, keep)
    if endpoint is None or (endpoint.port == 0 and endpoint.is_unspecified):
        return None
    return endpoint


_KINDS = (
    (InterfaceProperty.LOOPBACK, InterfaceKind.LOOPBACK),
    (InterfaceProperty.VPN, InterfaceKind.VPN),
    (InterfaceProperty.CELLULAR, InterfaceKind.CELLULAR),
    (InterfaceProperty.AWDL | InterfaceProperty.LLW, InterfaceKind.AWDL),
    (InterfaceProperty.WIFI, InterfaceKind.WIFI),
    (InterfaceProperty.WIRED, InterfaceKind.WIRED),
    (InterfaceProperty.COMPANIONLINK_BT, InterfaceKind.BLUETOOTH),
    (InterfaceProperty.COMPANIONLINK, InterfaceKind.COMPANION),
)
_KIND_MASKS = tuple((int(mask), kind) for mask, kind in _KINDS)


def interface_kind(properties: int | None) -> InterfaceKind | None:
    """The kind in the property bits (``nstat_ifnet_to_flags``); `None` if they have none."""
    if properties is not None:
        for mask, kind in _KIND_MASKS:
            if properties & mask:
                return kind
    return None


def _true_kind(name: str | None, properties: int | None, loopback: bool | None) -> InterfaceKind | None:
    """The kind of an interface, also if the bits are wrong.

    Since macOS 26 a UDP socket keeps the bits of earlier interfaces after it was disconnected. One end of a
    loopback connection may lack its bit. A tunnel's flow may have only the bits of the interface under the tunnel.
    The addresses and the interface's name are reliable.
    """
    if properties is None:
        return None
    kind = interface_kind(properties)
    if kind is None:
        return None
    if loopback:
        return InterfaceKind.LOOPBACK
    if kind is InterfaceKind.LOOPBACK and loopback is False:
        return interface_kind(properties & ~InterfaceProperty.LOOPBACK) or kind
    if name is not None and name.startswith(_TUNNELS):
        return InterfaceKind.VPN
    return kind


_TUNNELS = ("utun", "ipsec", "ppp")
_CACHED = 4096
_OWNER = ("pid", "upid", "epid", "eupid", "pname", "uuid", "euuid", "uid", "persona_id")
_NO_PERSONA = 0xFFFFFFFF
"""``PERSONA_ID_NONE``."""


@attrs.define(eq=False)
class Translator:
    """What all readers of a session share: kernel, timebase, interface names."""

    kernel: Kernel
    timebase: tuple[int, int] = (1, 1)
    """Nanoseconds a tick, as numerator and denominator."""
    interfaces: dict[int, str] = attrs.field(factory=dict)
    """The known interface names by index."""
    asks_paths: bool = False
    """True if paths of executables can be looked up: then `unasked` collects pids."""
    gone: set[int] = attrs.field(factory=set, init=False)
    """Indexes of interfaces that are gone, whose names flows may still have."""
    unasked: dict[int, None] = attrs.field(factory=dict, init=False)
    """Pids of new processes whose executables are still to be looked up."""
    _processes: dict[tuple[Any, ...], Process] = attrs.field(factory=dict, init=False)
    _interfaces: dict[tuple[Any, ...], Interface] = attrs.field(factory=dict, init=False)
    _packed: dict[bytes, bytes] = attrs.field(factory=dict, init=False)

    def shared(self, packed: bytes) -> bytes:
        """An equal address that flows share: they have few local addresses."""
        known = self._packed.get(packed)
        if known is None:
            if len(self._packed) >= _CACHED:
                self._packed.clear()
            known = self._packed[packed] = packed
        return known

    def nanoseconds(self, ticks: int) -> int:
        """Ticks of the kernel's clock in nanoseconds."""
        numerator, denominator = self.timebase
        return ticks * numerator // denominator

    def process(self, fields: dict[str, Any], before: Process | None = None) -> Process | None:
        """The owner; shared between flows of the same owner. `before`: the flow's owner so far, whose path may be known."""
        key = tuple(map(fields.get, _OWNER))
        process = self._processes.get(key)
        if process is None:
            pid, upid, epid, eupid, raw_name, uuid, euuid, uid, persona = key
            name = decode_text(raw_name) if raw_name else None
            if pid is None or (pid == 0 and not upid and name is None):
                return None
            # Without a pid the second UUID is not the effective process' (``nstat_tcp_copy_descriptor``: ``so_ruuid``).
            # If one number is unknown and the other one 0, it is not known whose UUID it is.
            second = decode_uuid(euuid)
            responsible = second if pid and epid == eupid == 0 else None
            effective = second if not pid or epid or eupid else None
            process = Process(
                pid, name, upid or None, epid or None, eupid or None, decode_uuid(uuid), effective, uid,
                None if persona in {0, _NO_PERSONA} else persona,
                responsible_uuid=responsible,
            )  # fmt: skip
            if len(self._processes) >= _CACHED:
                self._processes.clear()
            if before is not None and before.path is not None and attrs.evolve(before, path=None) == process:
                process = before
            self._processes[key] = process
            if process is not before and self.asks_paths and name and len(self.unasked) < _CACHED:
                self.unasked[pid] = None
        return process

    def merge_paths(self, found: PathsFound) -> dict[Process, Process]:
        """Give processes the paths of their executables.

        A flow may be reported after its owner ended and another process got the pid. So a path is
        used only if its last part begins with the process' name, which may be cut.

        Returns:
            The processes that changed: old value to new value.
        """
        paths = dict(zip(found.pids, found.paths, strict=False))
        changed: dict[Process, Process] = {}
        for key, process in self._processes.items():
            path = paths.get(process.pid)
            if path and process.name and path.rpartition("/")[2].startswith(process.name) and process.path != path:
                self._processes[key] = changed[process] = attrs.evolve(process, path=path)
        return changed

    def interface(self, index: int | None, properties: int | None, *, loopback: bool | None = None) -> Interface | None:
        """The interface; `None` if no packet was sent yet.

        Args:
            index: Its index.
            properties: The kernel's property bits.
            loopback: Whether the addresses are loopback; `None`: they do not tell.
        """
        if not index:
            if interface_kind(properties) is None:
                return None
            index = None
        key = (index, properties, loopback)
        interface = self._interfaces.get(key)
        if interface is None:
            interface = self._make_interface(*key)
            if len(self._interfaces) >= _CACHED:
                self._interfaces.clear()
            self._interfaces[key] = interface
        return interface

    def _make_interface(self, index: int | None, properties: int | None, loopback: bool | None) -> Interface:
        name = None if index is None else self.interfaces.get(index)
        return Interface(index, name, _true_kind(name, properties, loopback), properties)

    def merge_names(self, names: dict[int, str]) -> dict[Interface, Interface]:
        """Learn the names of the interfaces that there are now: some came later, and a number may be another one's.

        Returns:
            The interfaces that changed: old value to new value.
        """
        self.gone = self.interfaces.keys() - names.keys()
        if names.items() <= self.interfaces.items():
            return {}
        self.interfaces |= names
        changed: dict[Interface, Interface] = {}
        for key, before in self._interfaces.items():
            interface = self._make_interface(*key)
            if interface != before:
                self._interfaces[key] = changed[before] = interface
        return changed


def decode_sysinfo(fields: dict[str, Any]) -> int | float | str | None:
    """The value of a ``nstat_sysinfo_keyval``; `None` for an unknown kind."""
    flags = fields["nstat_sysinfo_flags"]
    if flags & SysinfoFlag.STRING:
        raw = fields.get("u.nstat_sysinfo_string")
        if raw is None:
            return None  # before xnu-4570 there were no strings
        size = fields.get("nstat_sysinfo_valsize", len(raw))
        return str(raw[:size].split(b"\0", 1)[0], "utf-8", "replace")
    if flags & SysinfoFlag.DISTRIBUTION:
        value = fields["u.nstat_sysinfo_distribution"]
        return float(value) if math.isfinite(value) else None
    return int(fields["u.nstat_sysinfo_scalar"]) if flags & SysinfoFlag.SCALAR else None
