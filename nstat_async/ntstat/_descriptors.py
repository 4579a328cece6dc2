"""Descriptors: the bytes that say who and where a source is, made into a `Flow` and its `Details`.

`DescriptorReader` reads one descriptor structure of one provider. Its `identity` is the
part of a descriptor that makes a `Flow`, as bytes: while these do not change, the flow does not
either. The rest are samples, kept as bytes and decoded when they are read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Container
from typing import Any

from .._compiled import speedups
from .._events import Report
from .._making import maker_of
from .._model import (
    Counts,
    Details,
    Direction,
    DomainInfo,
    Endpoint,
    Flow,
    MediumCounts,
    Provider,
    TcpState,
    is_loopback,
)
from ._constants import DARWIN_AF_INET, DARWIN_AF_INET6, NO_FLOWS, TCP_STATES, Extension, InterfaceProperty
from ._counters import (
    COUNTED,
    DETAILS_SIZE,
    Raw,
    Values,
    counts_classes,
    counts_form,
    counts_unpacker,
    detailed_values,
    make_counts,
)
from ._layouts import Field, Layout, Reader, StructCodec, compile_format, layout
from ._messages import split_items
from ._translate import Translator, decode_peer, decode_text, decode_uuid

_IDENTITY = frozenset({
    "upid", "eupid", "start_timestamp", "ifindex", "state", "traffic_class", "pid", "epid", "local", "remote", "pname",
    "uuid", "euuid", "vuuid", "fuuid", "cuuid", "puuid", "persona_id", "uid", "ifnet_properties", "fallback_mode",
    # Samples that hardly ever change and lie between the others: fewer pieces are cut out.
    "traffic_mgt_flags", "cc_algo", "connstatus",
})  # fmt: skip
"""Fields that make a `Flow`."""
_ADDRESS_BEGINNINGS = {bytes((16, DARWIN_AF_INET)), bytes((28, DARWIN_AF_INET6))}
"""Length and family byte of valid address slots."""
_LONGEST_AGE_NS = 100 * 365 * 86_400 * 1_000_000_000
"""Oldest credible age of a flow: an older creation time is ignored."""
_INBOUND = int(InterfaceProperty.SOURCE_IS_INBOUND)
_LISTENER = int(InterfaceProperty.SOURCE_IS_LISTENER)
_OUTBOUND = int(InterfaceProperty.SOURCE_IS_OUTBOUND)
_BEGUN = frozenset({Direction.INBOUND, Direction.OUTBOUND})
_FIRST_DOMAIN = layout(9)["nstat_domain_info"]
_MEDIUM = ("nstat_rxpackets", "nstat_rxbytes", "nstat_txpackets", "nstat_txbytes")


_OF_A_SOURCE = (
    "id", "provider", "userland", "local", "remote", "process", "interface", "state", "direction", "started_ns", "uuid",
    "parent_uuid", "provider_id", "traffic_class", "fallback_mode", "vpn_uuid",
)  # fmt: skip
_make_flow: Callable[..., Flow] = maker_of(Flow, _OF_A_SOURCE).make


def _nothing(_data: bytes, _at: int) -> tuple[Any, ...]:
    return ()


@functools.lru_cache(64)
def _identity(codec: StructCodec | None, trusted: int) -> tuple[Reader, bytes]:
    """A reader of the identity's fields, with neighbours joined because fewer pieces are quicker, and their places for `_speedups`."""
    pieces: list[Field] = []
    for field in () if codec is None else codec.fields:
        if field.name not in _IDENTITY or field.end > trusted:
            continue
        begin = pieces.pop().offset if pieces and pieces[-1].end == field.offset else field.offset
        size = field.end - begin
        pieces.append(Field("", "CHAR", begin, size, f"{size}s", 1))
    return compile_format(pieces).unpack_from, b"".join(
        struct.pack("=II", piece.offset, piece.size) for piece in pieces
    )


class DescriptorReader:
    """Reads one descriptor structure of one provider.

    Args:
        translator: The session's.
        provider_id: The kernel's number.
        provider: What it is.
        userland: True for user-land flows.
        codec: The structure, or `None` when the provider's descriptor is unknown.
        trusted: Number of descriptor bytes that are read; less than the structure
            if a newer kernel moved what follows.
        doubtful: Check each descriptor with `looks_sane` first.
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
        """Number of descriptor bytes that are read."""
        self._is_socket = userland is False and provider in {Provider.TCP, Provider.UDP}
        counted = COUNTED.get(provider, 18)
        self._classes = counts_classes(counted, is_socket=self._is_socket)
        self._unpack, self._packed = counts_unpacker(translator.kernel.layout)
        self.form = counts_form(counted) if self._packed else None
        self.is_flow = provider not in NO_FLOWS
        """False for routes and interfaces, which have events of their own."""
        self.self_reported = bool(userland) or provider is Provider.UNKNOWN
        """True if a process reports the counters itself, and so may write anything."""
        self._tells_interface = provider is Provider.CONNECTION or (codec is not None and "ifindex" in codec)
        self._has_roles = translator.kernel.tells_roles and provider is Provider.TCP and not userland
        has_start = codec is not None and "start_timestamp" in codec
        self._start = codec.reader("start_timestamp") if codec is not None and has_start else None
        named = () if codec is None else codec.fields
        self._names = tuple(f.name for f in named if f.name in {*_IDENTITY, "timestamp"} and f.end <= self.trusted)
        self._read = _nothing if codec is None else codec.reader(*self._names)
        cut, self.pieces = _identity(codec, self.trusted)
        self.identity: Callable[[bytes, int], Any] = cut if speedups is None else lambda *place: b"".join(cut(*place))
        """(data, offset) to the bytes of the flow's identity (and few others): in pieces, or joined, as the C code hashes
        them."""

    def counts(self, raw: Raw) -> Counts:
        """The counts of this provider, made of raw counters."""
        if isinstance(raw, bytes) and self._packed:
            return make_counts(self._classes[len(raw)], raw)
        return make_counts(self._classes[0], self.unpack(raw))

    def unpack(self, raw: Raw) -> Values:
        """Counters as numbers."""
        if not isinstance(raw, bytes):
            return raw
        return self._unpack(raw) if len(raw) != DETAILS_SIZE else detailed_values(raw, is_socket=self._is_socket)

    def fields(self, data: bytes, at: int, end: int) -> dict[str, Any]:
        """All trusted fields by the kernel's names."""
        if self.codec is None:
            return {}
        limit = min(end, at + self.trusted)
        return self.codec.decode(data, at, limit)

    def start_ticks(self, data: bytes, at: int) -> int | None:
        """Creation of the socket in ticks; `None` before xnu-4570."""
        return (self._start(data, at)[0] or None) if self._start is not None else None

    def state_is_sane(self, data: bytes, at: int) -> bool:
        """False if the TCP state is impossible: then the descriptor is of another kind."""
        assert self.codec is not None
        return bool(self.codec.read("state", data, at) < len(TCP_STATES))

    def looks_sane(self, data: bytes, at: int) -> bool:
        """True if the addresses, the state and the name are possible values."""
        codec = self.codec
        assert codec is not None
        addresses = (codec.read(name, data, at) for name in ("local", "remote"))
        name = codec.read("pname", data, at).partition(b"\0")[0]
        return (
            all(raw[:2] in _ADDRESS_BEGINNINGS or raw[1] == 0 for raw in addresses)
            and all(byte >= 0x20 for byte in name)
            and ("state" not in codec or self.state_is_sane(data, at))
        )

    def flow(
        self,
        flow_id: str,
        data: bytes,
        at: int,
        end: int,
        *,
        time_ns: int,
        previous: Flow | None,
        listening: Container[int],
    ) -> Flow:
        """Make the flow of a descriptor.

        Args:
            flow_id: Its id.
            data: The datagram.
            at: Offset where the descriptor begins.
            end: Offset where it ends.
            time_ns: Wall clock of the report.
            previous: The flow as it was, for facts that only earlier reports had.
            listening: Local ports with listeners.
        """
        whole = end - at >= self.trusted
        fields = dict(zip(self._names, self._read(data, at), strict=True)) if whole else self.fields(data, at, end)
        get = fields.get
        local = decode_peer(fields["local"], self.translator.shared) if "local" in fields else None
        remote = decode_peer(fields["remote"]) if "remote" in fields else None
        number = get("state")
        state = TCP_STATES[number] if number is not None and number < len(TCP_STATES) else None
        properties = get("ifnet_properties")
        known = None if previous is None else previous.direction
        direction = self._direction(state, properties, local, remote, listening, known) or known
        started = self._started(fields, time_ns)
        if previous is not None:
            started = previous.started_ns if previous.started_ns is not None else started
        return _make_flow(
            flow_id,
            self.provider,
            self.userland,
            local,
            remote,
            self.translator.process(fields, None if previous is None else previous.process),
            # A proven layout may lack the index; 0 would then claim something.
            self.translator.interface(get("ifindex"), properties, loopback=_is_loopback(local, remote))
            if self._tells_interface
            else None,
            state,
            direction,
            started,
            decode_uuid(get("cuuid") if "cuuid" in fields else get("fuuid")),
            decode_uuid(get("puuid")),
            self.provider_id,
            get("traffic_class"),
            get("fallback_mode") or None,
            decode_uuid(get("vuuid")),
        )

    def _started(self, fields: dict[str, Any], time_ns: int) -> int | None:
        start, stamp = fields.get("start_timestamp"), fields.get("timestamp")
        if not start or not stamp or stamp < start:
            return None
        age = self.translator.nanoseconds(stamp - start)
        return time_ns - age if age < _LONGEST_AGE_NS else None

    def _direction(
        self,
        state: TcpState | None,
        properties: int | None,
        local: Endpoint | None,
        remote: Endpoint | None,
        listening: Container[int],
        known: Direction | None,
    ) -> Direction | None:
        if self.provider is not Provider.TCP or self.userland:
            return None
        connected = remote is not None and remote.port != 0
        if self._has_roles and properties is not None:
            if properties & _INBOUND:
                return Direction.INBOUND
            if properties & _LISTENER:
                return Direction.LISTENER
            # A connection that lived between two reports may have no bit at all;
            # an inbound one would have its bit (``nstat_inpcb_to_flags``).
            outbound = connected or properties & _OUTBOUND
            return Direction.OUTBOUND if outbound else None
        if state is TcpState.LISTEN:
            return Direction.LISTENER
        if not connected:
            return None
        if known in _BEGUN:  # its SYN is past, and the listener that accepted it may be gone
            return known
        if state is TcpState.SYN_SENT:
            return Direction.OUTBOUND
        if state is TcpState.SYN_RECEIVED or (local is not None and local.port in listening):
            return Direction.INBOUND
        return Direction.OUTBOUND

    def details(self, report: Report) -> Details | None:
        """The samples of a report; `None` if it has only counters."""
        _, data, at, end, items_end, time_ns, _, _ = report
        if time_ns < 0:
            return None
        fields = self.fields(data, at, end)
        get = fields.get
        start, bits = get("activity_bitmap.start"), get("activity_bitmap.bitmap")
        values: dict[str, Any] = {
            "congestion_control": decode_text(get("cc_algo") or b""),
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
            "undecoded": data[at + self.trusted : end],
        }
        if items_end > end:
            values.update(self._items(data[end:items_end]))
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
            elif item.type == Extension.BLUETOOTH_COUNTS:
                codec = layout.find("nstat_interface_counts")
                if codec is not None and len(item.data) >= codec.size:
                    rx_packets, rx_bytes, tx_packets, tx_bytes = codec.reader(*_MEDIUM)(item.data, 0)
                    values["bluetooth"] = MediumCounts(rx_bytes, tx_bytes, rx_packets, tx_packets)
        return values


def _is_loopback(local: Endpoint | None, remote: Endpoint | None) -> bool | None:
    """True if the addresses say that a flow stays within the machine; `None` if they do not tell."""
    here = b"" if local is None else local.packed
    there = b"" if remote is None else remote.packed
    if is_loopback(here) or is_loopback(there):
        return True
    return here == there if any(here) and any(there) else None


def domain_codec(layout: Layout, length: int) -> StructCodec | None:
    """The layout of a domain item, known by its length: 1032 in xnu-8019.41, 1056 later."""
    codec = layout.find("nstat_domain_info")
    if codec is not None and codec.size > length:
        codec = _FIRST_DOMAIN
    return codec if codec is not None and length >= codec.size else None


def _domain(layout: Layout, data: bytes) -> DomainInfo | None:
    codec = domain_codec(layout, len(data))
    if codec is None:
        return None
    fields: dict[str, Any] = codec.decode(data)
    return DomainInfo(
        name=decode_text(fields["domain_name"]),
        owner=decode_text(fields["domain_owner"]),
        tracker_context=decode_text(fields["domain_tracker_ctxt"]),
        attributed_bundle_id=decode_text(fields["domain_attributed_bundle_id"]),
        remote=decode_peer(fields["remote"]) if "remote" in fields else None,
        is_tracker=bool(fields["is_tracker"]),
        is_non_app_initiated=bool(fields["is_non_app_initiated"]),
        is_silent=bool(fields["is_silent"]),
    )
