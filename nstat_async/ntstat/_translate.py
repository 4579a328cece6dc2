"""Wire values to true values: units, addresses, owners, directions.

What misleads on the wire, and what is made of it:

- Times are ticks of the Mach *continuous* clock; the timebase (125/3 ns a tick on
  Apple silicon) makes nanoseconds of them. The age (report minus start) needs no clock.
- Addresses are Darwin ``sockaddr``: the family byte decides (2, 30), never the
  length byte; a scope embedded in a link-local address moves to `Endpoint.scope_id`;
  IPv4-mapped addresses become IPv4; an all-zero peer is no peer.
- The interface's properties tell its kind, and since xnu-10002 who began a TCP flow.

`DescriptorReader` does this for one descriptor structure. Its `identity` is the
part of a descriptor that makes a `Flow`, as bytes: when it did not change, neither
did the flow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

import attrs

from .._model import (
    Counts,
    Details,
    Direction,
    DomainInfo,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    MediumCounts,
    Process,
    Provider,
    TcpState,
)
from ._constants import DARWIN_AF_INET, DARWIN_AF_INET6, TCP_STATES, Extension, InterfaceProperty
from ._counters import COUNTS_CLASSES, PACKED_CLASSES, TcpCounts
from ._kernels import Kernel, Line
from ._layouts import Layout, StructCodec
from ._messages import split_items

__all__ = [
    "DescriptorReader",
    "RawDetails",
    "Translator",
    "decode_endpoint",
    "interface_kind",
    "sysinfo_value",
    "text",
]

_MAPPED = b"\0" * 10 + b"\xff\xff"
_ZERO_UUID = b"\0" * 16


def text(raw: bytes) -> str | None:
    """A NUL-terminated string; `None` when empty. Names may be cut inside a character."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace") or None


def uuid_of(raw: bytes | None) -> UUID | None:
    """A UUID; `None` when absent or zero."""
    return UUID(bytes=raw) if raw is not None and raw != _ZERO_UUID else None


def decode_endpoint(raw: bytes) -> Endpoint | None:
    """An address slot of 28 bytes; `None` for a family that is no IP address."""
    family = raw[1]
    port = raw[2] << 8 | raw[3]
    if family == DARWIN_AF_INET:
        return Endpoint(raw[4:8], port)
    if family != DARWIN_AF_INET6:
        return None
    packed = raw[8:24]
    if packed[:12] == _MAPPED:
        return Endpoint(packed[12:], port)
    scope = int.from_bytes(raw[24:28], "little")
    if packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and (packed[2] or packed[3]):
        scope = scope or packed[2] << 8 | packed[3]
        packed = packed[:2] + b"\0\0" + packed[4:]
    return Endpoint(packed, port, scope or None)


def _peer(raw: bytes) -> Endpoint | None:
    """An address slot where all zero means "none"."""
    endpoint = decode_endpoint(raw)
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
    """The kind that the property bits name (``nstat_ifnet_to_flags``); `None` when they name none."""
    if properties is not None:
        for mask, kind in _KIND_MASKS:
            if properties & mask:
                return kind
    return None


_IDENTITY = frozenset(
    {
        "upid",
        "eupid",
        "start_timestamp",
        "ifindex",
        "state",
        "traffic_class",
        "pid",
        "epid",
        "local",
        "remote",
        "pname",
        "uuid",
        "euuid",
        "vuuid",
        "fuuid",
        "cuuid",
        "puuid",
        "persona_id",
        "uid",
        "ifnet_properties",
        "fallback_mode",
    }
)
_IDENTITY_NEIGHBOURS = frozenset({"traffic_mgt_flags", "cc_algo", "connstatus"})
"""Samples that hardly ever change and lie between identity fields: compared along with them, fewer pieces are cut out."""
_PROCESS_CACHE = 4096
_ADDRESS_FORMS = {(DARWIN_AF_INET, 16), (DARWIN_AF_INET6, 28)}
"""(family, length byte) of the address slots that there are."""


@attrs.define(eq=False)
class Translator:
    """What all readers of one session share: kernel, timebase, interface names."""

    kernel: Kernel
    timebase: tuple[int, int] = (1, 1)
    """Nanoseconds a tick, as numerator and denominator."""
    interfaces: dict[int, str] = attrs.field(factory=dict)
    """Interface names by index, where they are known."""
    path_of: Callable[[int], str | None] | None = None
    """Finds the executable of a living process on the kernel's machine; `None`: it cannot be asked."""
    _processes: dict[tuple[Any, ...], Process] = attrs.field(factory=dict, init=False)
    _interfaces: dict[tuple[int | None, int | None], Interface] = attrs.field(factory=dict, init=False)
    _packed: dict[bytes, bytes] = attrs.field(factory=dict, init=False)

    def shared(self, endpoint: Endpoint | None) -> Endpoint | None:
        """The same endpoint; its address shared with other flows, which have the few local ones in common."""
        if endpoint is None:
            return None
        known = self._packed.get(endpoint.packed)
        if known is None:
            if len(self._packed) >= _PROCESS_CACHE:
                self._packed.clear()
            self._packed[endpoint.packed] = endpoint.packed
            return endpoint
        return Endpoint(known, endpoint.port, endpoint.scope_id)

    def nanoseconds(self, ticks: int) -> int:
        """Ticks of the kernel's clock in nanoseconds."""
        numerator, denominator = self.timebase
        return ticks * numerator // denominator

    def process(self, fields: dict[str, Any]) -> Process | None:
        """The owner; shared between flows of the same owner."""
        get = fields.get
        key = (
            get("pid"), get("upid"), get("epid"), get("eupid"), get("pname"),
            get("uuid"), get("euuid"), get("uid"), get("persona_id"),
        )  # fmt: skip
        process = self._processes.get(key)
        if process is None:
            pid, upid, epid, eupid, raw_name, uuid, euuid, uid, persona = key
            name = text(raw_name) if raw_name else None
            if pid is None or (pid == 0 and not upid and name is None):
                return None
            process = Process(
                pid, name, upid or None, epid or None, eupid or None, uuid_of(uuid), uuid_of(euuid), uid, persona or None,
                self._path(pid, name),
            )  # fmt: skip
            if len(self._processes) >= _PROCESS_CACHE:
                self._processes.clear()
            self._processes[key] = process
        return process

    def _path(self, pid: int, name: str | None) -> str | None:
        """Path of a process' executable, if the process that has the pid now is the one that is named."""
        path = None if self.path_of is None or not name else self.path_of(pid)
        # A flow may be told after its owner is gone and the pid was given away; names may be cut.
        return path if path is not None and name is not None and path.rpartition("/")[2].startswith(name) else None

    def interface(self, index: int | None, properties: int | None) -> Interface | None:
        """The interface; `None` when no packet was sent yet."""
        if not index:
            if interface_kind(properties) is None:
                return None
            index = None
        key = (index, properties)
        interface = self._interfaces.get(key)
        if interface is None:
            interface = Interface(
                index, None if index is None else self.interfaces.get(index), interface_kind(properties), properties
            )
            if len(self._interfaces) >= _PROCESS_CACHE:
                self._interfaces.clear()
            self._interfaces[key] = interface
        return interface


@attrs.define(eq=False, weakref_slot=False)
class RawDetails:
    """The volatile part of a report, opened when somebody looks.

    Made for every report: not frozen, because that alone would double its price.
    """

    reader: DescriptorReader
    descriptor: bytes
    items: bytes
    time_ns: int

    def details(self) -> Details:
        """Decode."""
        return self.reader.details(self.descriptor, self.items, self.time_ns)


class DescriptorReader:
    """Reads one descriptor structure of one provider.

    Args:
        translator: The session's.
        provider_id: The kernel's number.
        provider: What it is.
        userland: True for user-land flows.
        codec: The structure, or `None` when the provider's descriptor is unknown.
        trusted: Bytes of the descriptor that may be believed; fewer than the
            structure has when a newer kernel moved what follows.
        doubtful: Each descriptor is to be checked with `looks_sane` first.
    """

    def __init__(
        self,
        translator: Translator,
        provider_id: int,
        provider: Provider,
        userland: bool | None,
        codec: StructCodec | None,
        trusted: int | None = None,
        *,
        doubtful: bool = False,
    ) -> None:
        self.translator = translator
        self.provider_id = provider_id
        self.provider = provider
        self.userland = userland
        self.codec = codec
        size = 0 if codec is None else codec.size
        self.doubtful = doubtful
        self.trusted = size if trusted is None else min(trusted, size)
        """Descriptor bytes that are read."""
        self.counts_class = COUNTS_CLASSES.get(provider, TcpCounts)
        """Class of this provider's counters."""
        self.packed_class = PACKED_CLASSES[self.counts_class]
        """The same for counters kept as the kernel's bytes."""
        self.is_flow = provider not in {Provider.ROUTE, Provider.INTERFACE}
        """False for routes and interfaces, which have events of their own."""
        self.self_reported = bool(userland) or provider is Provider.UNKNOWN
        """True if a process may write any numbers."""
        self.growing_class = None if self.self_reported else self.packed_class
        """`packed_class` where the kernel counts: there, growth of the main counters is enough to believe the rest."""
        self._tells_interface = provider is Provider.CONNECTION or (codec is not None and "ifindex" in codec)
        self._has_roles = translator.kernel.version >= Line.ROLES and provider is Provider.TCP and not userland
        self._struct = struct.Struct(self._identity_format())
        self.identity: Callable[[bytes, int], tuple[bytes, ...]] = self._struct.unpack_from
        """(data, offset) to the bytes that make the flow's identity, and few others."""

    def made(self, counts: Counts) -> bool:
        """True if these counters are of this provider's classes."""
        return counts.__class__ is self.packed_class or counts.__class__ is self.counts_class

    def _identity_format(self) -> str:
        if self.codec is None:
            return "<0s"
        parts, at, run = ["<"], 0, 0
        for field in self.codec.fields:
            if field.name not in _IDENTITY and field.name not in _IDENTITY_NEIGHBOURS:
                continue
            if field.end > self.trusted:
                continue
            if field.offset == at:
                run += field.size
            else:
                if run:
                    parts.append(f"{run}s")
                parts.append(f"{field.offset - at}x")
                run = field.size
            at = field.end
        parts.append(f"{run}s")
        return "".join(parts)

    def fields(self, data: bytes, at: int, end: int) -> dict[str, Any]:
        """All trusted fields by the kernel's names."""
        if self.codec is None:
            return {}
        limit = min(end, at + self.trusted)
        return self.codec.decode(data, at, limit)

    def start_ticks(self, data: bytes, at: int) -> int | None:
        """Creation of the socket in ticks; `None` where the release does not tell (before xnu-4570)."""
        if self.codec is None or "start_timestamp" not in self.codec:
            return None
        ticks: int = self.codec.read("start_timestamp", data, at)
        return ticks or None

    def state_is_sane(self, data: bytes, at: int) -> bool:
        """False when the TCP state is none: the descriptor is of another kind."""
        assert self.codec is not None
        return bool(self.codec.read("state", data, at) < len(TCP_STATES))

    def looks_sane(self, data: bytes, at: int) -> bool:
        """True if addresses, state and name look like addresses, a state and a name."""
        codec = self.codec
        if codec is None:
            return True
        for name in ("local", "remote"):
            if name in codec:
                length, family = codec.read(name, data, at)[:2]
                if (family, length) not in _ADDRESS_FORMS and family != 0:
                    return False
        if "pname" in codec and any(byte < 0x20 for byte in codec.read("pname", data, at).split(b"\0", 1)[0]):
            return False
        return "state" not in codec or self.state_is_sane(data, at)

    def flow(
        self,
        flow_id: str,
        data: bytes,
        at: int,
        end: int,
        *,
        time_ns: int,
        previous: Flow | None,
        inbound_ports: Callable[[int], bool],
    ) -> Flow:
        """Make the flow of a descriptor.

        Args:
            flow_id: Its id.
            data: Where the descriptor is.
            at: Where it begins.
            end: Where the bytes that belong to it end.
            time_ns: Wall clock of the report.
            previous: The flow as it was, for what only earlier reports told.
            inbound_ports: Tells whether a local port is listened on.
        """
        fields = self.fields(data, at, end)
        get = fields.get
        local = self.translator.shared(_peer(fields["local"])) if "local" in fields else None
        remote = _peer(fields["remote"]) if "remote" in fields else None
        number = get("state")
        state = TCP_STATES[number] if number is not None and number < len(TCP_STATES) else None
        properties = get("ifnet_properties")
        direction = self._direction(state, properties, local, remote, inbound_ports)
        started = self._started(fields, time_ns)
        if previous is not None:
            direction = direction if direction is not None else previous.direction
            started = previous.started_ns if previous.started_ns is not None else started
        return Flow(
            flow_id,
            self.provider,
            self.userland,
            local,
            remote,
            self.translator.process(fields),
            # A proven layout may lack the index; 0 would then be a claim.
            self.translator.interface(get("ifindex"), properties) if self._tells_interface else None,
            state,
            direction,
            started,
            uuid_of(get("cuuid") if "cuuid" in fields else get("fuuid")),
            uuid_of(get("puuid")),
            self.provider_id,
            get("traffic_class"),
            get("fallback_mode") or None,
            uuid_of(get("vuuid")),
        )

    def _started(self, fields: dict[str, Any], time_ns: int) -> int | None:
        start, stamp = fields.get("start_timestamp"), fields.get("timestamp")
        if not start or not stamp or stamp < start:
            return None
        return time_ns - self.translator.nanoseconds(stamp - start)

    def _direction(
        self,
        state: TcpState | None,
        properties: int | None,
        local: Endpoint | None,
        remote: Endpoint | None,
        inbound_ports: Callable[[int], bool],
    ) -> Direction | None:
        if self.provider is not Provider.TCP or self.userland:
            return None
        connected = remote is not None and remote.port != 0
        if self._has_roles and properties is not None:
            if properties & InterfaceProperty.SOURCE_IS_INBOUND:
                return Direction.INBOUND
            if properties & InterfaceProperty.SOURCE_IS_LISTENER:
                return Direction.LISTENER
            # A connection that lived between two reports may come without any bit;
            # an inbound one would have said so (``nstat_inpcb_to_flags``).
            outbound = connected or properties & InterfaceProperty.SOURCE_IS_OUTBOUND
            return Direction.OUTBOUND if outbound else None
        if state is TcpState.LISTEN:
            return Direction.LISTENER
        if not connected:
            return None
        if state is TcpState.SYN_SENT:
            return Direction.OUTBOUND
        if state is TcpState.SYN_RECEIVED or (local is not None and inbound_ports(local.port)):
            return Direction.INBOUND
        return Direction.OUTBOUND

    def details(self, descriptor: bytes, items: bytes, time_ns: int) -> Details:
        """The samples of a report."""
        fields = self.fields(descriptor, 0, len(descriptor))
        get = fields.get
        start, bits = get("activity_bitmap.start"), get("activity_bitmap.bitmap")
        known = self.trusted
        values: dict[str, Any] = {
            "congestion_control": text(get("cc_algo") or b""),
            "congestion_window": get("txcwindow"),
            "send_window": get("txwindow"),
            "unacked_bytes": get("txunacked"),
            "send_buffer_size": get("sndbufsize"),
            "send_buffer_used": get("sndbufused"),
            "receive_buffer_size": get("rcvbufsize"),
            "receive_buffer_used": get("rcvbufused"),
            "traffic_mgt_flags": get("traffic_mgt_flags"),
            "connection_status": get("connstatus"),
            "rx_transfer_size": (get("rx_transfer_size") or None) if self.userland else None,
            "tx_transfer_size": (get("tx_transfer_size") or None) if self.userland else None,
            "activity_started_s": start or None,
            "activity": bits[0] | bits[1] << 64 if start and bits is not None else None,
            "sampled_at_ns": time_ns,
            "undecoded": descriptor[known:],
        }
        if items:
            values.update(self._items(items))
        return Details(**values)

    def _items(self, data: bytes) -> dict[str, Any]:
        values: dict[str, Any] = {}
        layout = self.translator.kernel.layout
        for item in split_items(data)[0]:
            if item.type in {Extension.DOMAIN, Extension.ORIGINAL_DOMAIN}:
                key = "domain" if item.type == Extension.DOMAIN else "original_domain"
                values[key] = _domain(layout, item.data)
            elif item.type == Extension.NECP_TLV:
                values["necp_parameters"] = item.data
            elif item.type == Extension.ORIGINAL_NECP_TLV:
                values["original_necp_parameters"] = item.data
            elif item.type == Extension.BLUETOOTH_COUNTS and len(item.data) >= 32:
                rx_packets, rx_bytes, tx_packets, tx_bytes = struct.unpack_from("<4Q", item.data)
                values["bluetooth"] = MediumCounts(rx_bytes, tx_bytes, rx_packets, tx_packets)
        return values


def domain_codec(layout: Layout, length: int) -> StructCodec | None:
    """The layout of a domain item, told by its length: 1032 in xnu-8019.41, 1056 later."""
    from ._layouts import layout as layout_of  # noqa: PLC0415

    codec = layout.find("nstat_domain_info")
    if codec is None or (codec.size > length >= 1032):
        return layout_of(9)["nstat_domain_info"] if length >= 1032 else None
    return codec if length >= codec.size else None


def _domain(layout: Layout, data: bytes) -> DomainInfo | None:
    codec = domain_codec(layout, len(data))
    if codec is None:
        return None
    fields: dict[str, Any] = codec.decode(data)
    return DomainInfo(
        name=text(fields["domain_name"]),
        owner=text(fields["domain_owner"]),
        tracker_context=text(fields["domain_tracker_ctxt"]),
        attributed_bundle_id=text(fields["domain_attributed_bundle_id"]),
        remote=_peer(fields["remote"]) if "remote" in fields else None,
        is_tracker=bool(fields["is_tracker"]),
        is_non_app_initiated=bool(fields["is_non_app_initiated"]),
        is_silent=bool(fields["is_silent"]),
    )


def sysinfo_value(fields: dict[str, Any]) -> int | float | str | None:
    """The value of a ``nstat_sysinfo_keyval``; `None` for a kind that is unknown."""
    flags = fields["nstat_sysinfo_flags"]
    if flags & 4:
        raw = fields.get("u.nstat_sysinfo_string")
        if raw is None:
            return None  # before xnu-4570 there were no strings
        size = fields.get("nstat_sysinfo_valsize", len(raw))
        return str(raw[:size].split(b"\0", 1)[0], "utf-8", "replace")
    if flags & 2:
        value = fields["u.nstat_sysinfo_distribution"]
        return float(value) if math.isfinite(value) else None
    return int(fields["u.nstat_sysinfo_scalar"]) if flags & 1 else None
