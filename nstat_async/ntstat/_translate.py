"""Wire values to true values: units, addresses, owners, directions.

What misleads on the wire, and what is made of it:

- Round-trip times are scaled integers: 1/32 ms for average and minimum, 1/16 ms for
  the variance; 0 is "no sample" (``nstat_tcp_counts``, ``tcp_timer.h``).
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
from typing import Any, Union
from uuid import UUID

import attrs

from .._model import (
    COUNTS_FIELDS,
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
from ._kernels import Kernel, Line
from ._layouts import Layout, StructCodec
from ._messages import split_items
from ._tables import MEDIA

__all__ = [
    "PACKED",
    "ConnectionCounts",
    "DescriptorReader",
    "Raw",
    "TcpCounts",
    "Translator",
    "UdpCounts",
    "Values",
    "counts_unpacker",
    "decode_endpoint",
    "interface_kind",
    "make_counts",
    "raw_values",
    "text",
    "unpacked",
]

Values = tuple[Any, ...]
"""Raw counters in the order of `COUNTS_FIELDS`; `None` where the release has no field."""
Raw = Union[bytes, Values]
"""Counters as a session keeps them: ``nstat_counts`` itself where it has the canonical
form (`PACKED`, since xnu-4570), which takes a third of the memory; else `Values`."""

PACKED = struct.Struct("<10Q8I")
"""``nstat_counts`` since xnu-4570: the fields in the order of `COUNTS_FIELDS`."""

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


# --- counters --------------------------------------------------------------


def unpacked(raw: Raw) -> Values:
    """The counters as numbers."""
    return PACKED.unpack(raw) if isinstance(raw, bytes) else raw


def raw_values(counts: Counts) -> Raw:
    """What `make_counts` put into these counters."""
    return counts._values  # noqa: SLF001  # the one door to them, beside the one that fills them


def _scaled(position: int, divisor: int, doc: str | None) -> Any:
    def read(self: Counts) -> int | None:
        # Without a sample the average is 0; the variance then has its initial value, which means nothing.
        values = unpacked(raw_values(self))
        raw = values[position]
        return raw * 1000 // divisor if raw and values[16] else None

    read.__doc__ = doc
    return property(read)


def _unknown(doc: str | None) -> Any:
    return property(lambda self: None, doc=doc)  # noqa: ARG005


class TcpCounts(Counts):
    """Counters of a kernel or user-land TCP or QUIC source, kept as sent."""

    __slots__ = ()

    min_rtt_us = _scaled(15, 32, Counts.min_rtt_us.__doc__)
    avg_rtt_us = _scaled(16, 32, Counts.avg_rtt_us.__doc__)
    var_rtt_us = _scaled(17, 16, Counts.var_rtt_us.__doc__)

    def _translated(self) -> tuple[int | None, ...]:
        return (*unpacked(raw_values(self))[:15], self.min_rtt_us, self.avg_rtt_us, self.var_rtt_us)


class UdpCounts(Counts):
    """Counters of a UDP source: no duplicates, no retransmissions, no round trips."""

    __slots__ = ()

    rx_duplicate_bytes = _unknown(Counts.rx_duplicate_bytes.__doc__)
    rx_out_of_order_bytes = _unknown(Counts.rx_out_of_order_bytes.__doc__)
    tx_retransmitted_bytes = _unknown(Counts.tx_retransmitted_bytes.__doc__)
    connect_attempts = _unknown(Counts.connect_attempts.__doc__)
    connect_successes = _unknown(Counts.connect_successes.__doc__)
    min_rtt_us = _unknown(Counts.min_rtt_us.__doc__)
    avg_rtt_us = _unknown(Counts.avg_rtt_us.__doc__)
    var_rtt_us = _unknown(Counts.var_rtt_us.__doc__)

    def _translated(self) -> tuple[int | None, ...]:
        return (*unpacked(raw_values(self))[:10], *(None,) * 8)


class SubflowCounts(UdpCounts):
    """Counters of a UDP subflow: the kernel does not split them by medium."""

    __slots__ = ()

    def _translated(self) -> tuple[int | None, ...]:
        return (*unpacked(raw_values(self))[:4], *(None,) * 14)


for _name in COUNTS_FIELDS[4:10]:
    setattr(SubflowCounts, _name, _unknown(getattr(Counts, _name).__doc__))


class ConnectionCounts(Counts):
    """A connection of the network framework carries nothing itself: all is `None`."""

    __slots__ = ()

    def _translated(self) -> tuple[int | None, ...]:
        return (None,) * len(COUNTS_FIELDS)


for _name in COUNTS_FIELDS:
    setattr(ConnectionCounts, _name, _unknown(getattr(Counts, _name).__doc__))

_COUNTS_CLASSES: dict[Provider, type[Counts]] = {
    Provider.UDP: UdpCounts,
    Provider.UDP_SUBFLOW: SubflowCounts,
    Provider.CONNECTION: ConnectionCounts,
}


def _packed_field(position: int, doc: str | None) -> Any:
    before = f"{8 * position}x" if position < 10 else f"80x{4 * (position - 10)}x"
    unpack = struct.Struct(f"<{before}{'Q' if position < 10 else 'I'}").unpack_from

    def read(self: Counts) -> int | None:
        value: int | None = unpack(self._values)[0]  # type: ignore[arg-type]  # bytes, in these classes
        return value

    read.__doc__ = doc
    return property(read)


def _packed(cls: type[Counts], known: int) -> type[Counts]:
    """The same counters around `PACKED` bytes: their first `known` fields are read from there."""
    members: dict[str, Any] = {"__slots__": (), "__doc__": cls.__doc__, "__module__": cls.__module__}
    members["media"] = property(lambda self: (), doc=Counts.media.__doc__)  # noqa: ARG005
    for position, name in enumerate(COUNTS_FIELDS[:known]):
        members[name] = _packed_field(position, getattr(Counts, name).__doc__)
    return type("Packed" + cls.__name__, (cls,), members)


_PACKED_CLASSES = {
    TcpCounts: _packed(TcpCounts, 15),
    UdpCounts: _packed(UdpCounts, 10),
    SubflowCounts: _packed(SubflowCounts, 4),
    ConnectionCounts: _packed(ConnectionCounts, 0),
}

_new = object.__new__
set_values = Counts.__dict__["_values"].__set__
"""(counts, raw values): fills a `Counts` made by `object.__new__`, past its keyword constructor."""


def make_counts(reader: DescriptorReader, raw: Raw) -> Counts:
    """The counters of this reader's provider, without the keyword constructor of `Counts`."""
    counts = _new(reader.packed_class if isinstance(raw, bytes) else reader.counts_class)
    set_values(counts, raw)
    return counts


def counts_unpacker(layout: Layout) -> tuple[int, Callable[[bytes], Values] | None]:
    """How ``nstat_counts`` of a layout becomes `Raw`.

    Returns:
        Its size, and the function that makes `Values` of its bytes (`None`: they are `PACKED`).
    """
    codec = layout["nstat_counts"]
    order = [COUNTS_FIELDS.index(_CANONICAL[field.name]) for field in codec.fields]
    fmt = struct.Struct("<" + "".join(field.format for field in codec.fields))
    if order == list(range(18)):
        return codec.size, None

    def arrange(raw: bytes) -> Values:
        values: list[Any] = [None] * 18
        for position, value in zip(order, fmt.unpack_from(raw), strict=True):
            values[position] = value
        return tuple(values)

    return codec.size, arrange


_CANONICAL = {
    "nstat_rxpackets": "rx_packets",
    "nstat_rxbytes": "rx_bytes",
    "nstat_txpackets": "tx_packets",
    "nstat_txbytes": "tx_bytes",
    "nstat_cell_rxbytes": "cell_rx_bytes",
    "nstat_cell_txbytes": "cell_tx_bytes",
    "nstat_wifi_rxbytes": "wifi_rx_bytes",
    "nstat_wifi_txbytes": "wifi_tx_bytes",
    "nstat_wired_rxbytes": "wired_rx_bytes",
    "nstat_wired_txbytes": "wired_tx_bytes",
    "nstat_rxduplicatebytes": "rx_duplicate_bytes",
    "nstat_rxoutoforderbytes": "rx_out_of_order_bytes",
    "nstat_txretransmit": "tx_retransmitted_bytes",
    "nstat_connectattempts": "connect_attempts",
    "nstat_connectsuccesses": "connect_successes",
    "nstat_min_rtt": "min_rtt_us",
    "nstat_avg_rtt": "avg_rtt_us",
    "nstat_var_rtt": "var_rtt_us",
}


def detailed_values(fields: dict[str, Any]) -> Values:
    """``nstat_detailed_counts`` as `Values`, with the media behind them."""

    def medium(name: str) -> MediumCounts:
        at = f"media_stats.{name}."
        return MediumCounts(
            fields[at + "rxbytes"], fields[at + "txbytes"], fields[at + "rxpackets"], fields[at + "txpackets"]
        )

    media = {name: medium(name) for name in MEDIA}
    total, cell, wired = media["total"], media["cellular"], media["wired"]
    infra, other = media["wifi_infra"], media["wifi_non_infra"]
    return (
        total.rx_packets,
        total.rx_bytes,
        total.tx_packets,
        total.tx_bytes,
        cell.rx_bytes,
        cell.tx_bytes,
        infra.rx_bytes + other.rx_bytes,
        infra.tx_bytes + other.tx_bytes,
        wired.rx_bytes,
        wired.tx_bytes,
        fields["rxduplicatebytes"],
        fields["rxoutoforderbytes"],
        fields["txretransmit"],
        None,
        None,
        fields["min_rtt"],
        fields["avg_rtt"],
        fields["var_rtt"],
        tuple(media.items()),
    )


# --- descriptors -----------------------------------------------------------

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
    _interfaces: dict[tuple[int, int | None], Interface] = attrs.field(factory=dict, init=False)
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
            if properties is None or interface_kind(properties) is None:
                return None
            index = 0
        key = (index, properties)
        interface = self._interfaces.get(key)
        if interface is None:
            interface = Interface(index, self.interfaces.get(index), interface_kind(properties), properties)
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
        self.counts_class = _COUNTS_CLASSES.get(provider, TcpCounts)
        """Class of this provider's counters."""
        self.packed_class = _PACKED_CLASSES[self.counts_class]
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
