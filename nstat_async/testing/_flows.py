"""Flows of the emulated kernel: what sockets, channels, routes and interfaces hold.

A flow keeps its counters and descriptor by the names of the kernel's header. The
methods that tests usually call (`connect`, `transfer`, `close`) keep those fields
consistent the way the kernel does; `EmulatedFlow.set` writes any of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat._constants import DARWIN_AF_INET, TCP_STATES, EventFlag
from nstat_async.ntstat._constants import InterfaceProperty as Bit

from ._interfaces import EmulatedInterface, interface_properties
from ._values import endpoint, field_value
from ._wire import Packer

if TYPE_CHECKING:
    from ._kernel import EmulatedKernel
    from ._sources import Source

__all__ = ["EmulatedFlow"]

_CLOSED, _LISTEN, _SYN_SENT, _ESTABLISHED, _TIME_WAIT = 0, 1, 2, 4, 10
_SECONDS_PER_BIT = 8
_SEGMENT = 1448
_TIMESTAMP = struct.Struct("<Q")
_MEDIUM_FIELDS = {
    InterfaceKind.CELLULAR: ("nstat_cell_rxbytes", "nstat_cell_txbytes"),
    InterfaceKind.WIFI: ("nstat_wifi_rxbytes", "nstat_wifi_txbytes"),
    InterfaceKind.AWDL: ("nstat_wifi_rxbytes", "nstat_wifi_txbytes"),
    InterfaceKind.WIRED: ("nstat_wired_rxbytes", "nstat_wired_txbytes"),
    InterfaceKind.BRIDGE: ("nstat_wired_rxbytes", "nstat_wired_txbytes"),
}
_DETAILED_MEDIA = {
    InterfaceKind.CELLULAR: "cellular",
    InterfaceKind.WIFI: "wifi_infra",
    InterfaceKind.AWDL: "wifi_non_infra",
    InterfaceKind.WIRED: "wired",
    InterfaceKind.BRIDGE: "wired",
    InterfaceKind.BLUETOOTH: "bluetooth",
}


class EmulatedFlow:
    """One socket, channel flow, route or interface of an `EmulatedKernel`.

    Made by the kernel's ``open_…`` methods, never directly.
    """

    def __init__(self, kernel: EmulatedKernel, provider_id: int, fields: dict[str, Any]) -> None:
        self.kernel = kernel
        self.provider_id = provider_id
        """The provider's number in this release."""
        provider, userland = kernel.release.providers[provider_id]
        self.provider = provider
        self.userland = bool(userland)
        self.interface: EmulatedInterface | None = None
        """The interface of the last packet."""
        self.open = True
        """False once it was closed (its goodbye may still be to come)."""
        self.gone = False
        """True while it ended unnoticed: polls and the minute-timer find it."""
        self.inbound = False
        """True for an accepted connection."""
        self.peer_is_local: bool | None = None
        """What TCP thinks of its peer's network; `None`: loopback and link-local peers are local."""
        self.cell_fallback = False
        """True while it may fall back from Wi-Fi to cellular."""
        self.properties_at_open: int | None = None
        """User-land: what the network layer told the filters; `None`: what the descriptor says."""
        self.number = kernel.next_number()
        """Counts the flows of this kernel."""
        self.items: dict[int, bytes] = {}
        """Extension items by type (`nstat_async.ntstat.Extension`)."""
        self.broken_items: set[int] = set()
        """Items whose provider tells a size and then fails."""
        self.sources: dict[tuple[int, int], Source] = {}
        """The sources made of it, by client unit and reference."""
        self._counts: dict[str, int] = {}
        self._detailed: dict[str, Any] = {}
        self._fields = fields
        self._counts_bytes: bytes | None = None
        self._descriptor_parts: tuple[bytes, bytes] | None = None
        structure = kernel.release.descriptor_name(provider_id)
        assert structure is not None
        self._packer: Packer = kernel.packer(structure)
        stamp = self._packer.codec.by_name.get("timestamp")
        self._stamp = kernel.shifted(structure, stamp.offset) if stamp is not None else None
        fields.setdefault("start_timestamp", kernel.ticks)

    def __repr__(self) -> str:
        name = "quic" if self.provider is Provider.QUIC else self.provider.value
        return f"<EmulatedFlow {self.number} {name} pid={self._fields.get('pid')}{'' if self.open else ' closed'}>"

    # What it holds

    @property
    def is_kernel_socket(self) -> bool:
        """True for BSD sockets (not for channels, connections, subflows, routes, interfaces)."""
        return self.provider in {Provider.TCP, Provider.UDP} and not self.userland

    @property
    def counts(self) -> Mapping[str, int]:
        """The counters by the kernel's names; absent means 0."""
        return self._counts

    @property
    def fields(self) -> Mapping[str, Any]:
        """The descriptor's fields by the kernel's names; absent means 0."""
        return self._fields

    @property
    def rx_bytes(self) -> int:
        """Bytes received."""
        return self._counts.get("nstat_rxbytes", 0)

    @property
    def tx_bytes(self) -> int:
        """Bytes sent."""
        return self._counts.get("nstat_txbytes", 0)

    @property
    def properties(self) -> int:
        """``ifnet_properties`` as a report of this moment would have it."""
        raw = self._fields.get("ifnet_properties")
        if raw is not None:
            return int(raw)
        version = self.kernel.release.version
        bits = interface_properties(version, self.interface)
        if not self.is_kernel_socket:
            return bits
        tells_locality = version >= ((4570,) if self.provider is Provider.TCP else (10002,))
        if tells_locality and (self.interface is not None or version >= (10002,)):
            bits |= Bit.LOCAL if self._remote_is_local() else Bit.NON_LOCAL
        if self.cell_fallback and version >= (6153,):
            bits |= Bit.VIA_CELLFALLBACK
        if (8019,) <= version < (10002,):
            return bits & 0xFFFF
        if version >= (10002,) and self.provider is Provider.TCP:
            bits |= self._role()
        return bits

    @property
    def filter_properties(self) -> int:
        """The properties that interface filters look at."""
        return self.properties if self.properties_at_open is None else self.properties_at_open

    def _remote_is_local(self) -> bool:
        """TCP's own view: the peer is on a directly attached network (here: loopback, link-local)."""
        if self.peer_is_local is not None:
            return self.peer_is_local
        slot: bytes = self._fields.get("remote", b"")
        if slot[1:2] == bytes((DARWIN_AF_INET,)):
            return slot[4] == 127 or slot[4:6] == b"\xa9\xfe"
        return slot[8:24] == b"\0" * 15 + b"\1" or slot[8:10] == b"\xfe\x80"

    def _role(self) -> int:
        state = self._fields.get("state", 0)
        if self.inbound:
            return Bit.SOURCE_IS_INBOUND
        if state == _LISTEN:
            self._fields["_listener"] = True
        elif state != _CLOSED:
            self._fields["_outbound"] = True
        if self._fields.get("_listener"):
            return Bit.SOURCE_IS_LISTENER
        return Bit.SOURCE_IS_OUTBOUND if self._fields.get("_outbound") else 0

    def encoded_counts(self) -> bytes:
        """``nstat_counts`` of this release."""
        if self._counts_bytes is None:
            self._counts_bytes = self.kernel.wire.counts(self._counts)
        return self._counts_bytes

    def encoded_detailed_counts(self) -> bytes:
        """``nstat_detailed_counts`` (macOS 26)."""
        values: dict[str, Any] = dict(self._detailed)
        for name in ("rxpackets", "rxbytes", "txpackets", "txbytes"):
            values[f"media_stats.total.{name}"] = self._counts.get(f"nstat_{name}", 0)
        for field in self.kernel.wire.detailed_counts.codec.fields:
            if not field.name.startswith("media_stats.") and field.name in self._counts:
                values[field.name] = self._counts[field.name]
        return self.kernel.wire.detailed_counts(values)

    def encoded_descriptor(self) -> bytes:
        """The descriptor of this release, with the time of now in it."""
        parts = self._descriptor_parts
        if parts is None:
            parts = self._descriptor_parts = self._encode_descriptor()
        if self._stamp is None:
            return parts[0]
        return b"".join((parts[0], _TIMESTAMP.pack(self.kernel.ticks), parts[1]))

    def _encode_descriptor(self) -> tuple[bytes, bytes]:
        values = dict(self._fields)
        codec = self._packer.codec
        if "ifnet_properties" in codec:
            field = codec.by_name["ifnet_properties"]
            values["ifnet_properties"] = self.properties & (1 << 8 * field.size) - 1
        if self.interface is not None:
            values.setdefault("ifindex", self.interface.index)
        name = values.get("pname", b"")
        room = codec.by_name["pname"].size - 1 if "pname" in codec else 0
        values["pname"] = name[: min(room, self.kernel.longest_name) if self.is_kernel_socket else room]
        if self.provider is Provider.TCP and not self.userland and values.get("state") == _CLOSED and not self.open:
            values["cc_algo"] = b""
        data = self.kernel.shift("" if self._packer is None else codec.name, self._packer(values))
        if self._stamp is None:
            return data, b""
        return data[: self._stamp], data[self._stamp + 8 :]

    # Changing it

    def set(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Write fields of the descriptor or counters by the kernel's names.

        Names that begin with ``nstat_`` are counters, ``media_stats.…`` detailed counters
        (macOS 26); strings and `UUID` are encoded, endpoints may be given as for `endpoint`.
        """
        with self.kernel.lock:
            for name, value in {**(values or {}), **more}.items():
                if name.startswith("media_stats."):
                    self._detailed[name] = value
                elif name.startswith("nstat_"):
                    self._counts[name] = value
                    self._counts_bytes = None
                else:
                    self._fields[name] = field_value(name, value)
                    self._descriptor_parts = None

    def use_interface(self, interface: str | EmulatedInterface | None) -> None:
        """Let the last packet have gone out by this interface."""
        with self.kernel.lock:
            self.interface = self.kernel.interface(interface) if isinstance(interface, str) else interface
            self._descriptor_parts = None

    def transfer(
        self, rx: int = 0, tx: int = 0, *, rx_packets: int | None = None, tx_packets: int | None = None
    ) -> None:
        """Count traffic: totals, packets, the interface's medium and the activity bitmap.

        Args:
            rx: Bytes received.
            tx: Bytes sent.
            rx_packets: Packets of them; by default what TCP segments of 1448 bytes would be,
                and one datagram for the others.
            tx_packets: As `rx_packets`.
        """
        with self.kernel.lock:
            counts = self._counts
            rxp = self._packets(rx) if rx_packets is None else rx_packets
            txp = self._packets(tx) if tx_packets is None else tx_packets
            for name, amount in (
                ("nstat_rxbytes", rx),
                ("nstat_txbytes", tx),
                ("nstat_rxpackets", rxp),
                ("nstat_txpackets", txp),
            ):
                counts[name] = counts.get(name, 0) + amount
            if self.interface is not None:
                self._count_medium(self.interface.media, rx, tx, rxp, txp)
            self._counts_bytes = None
            self._mark_activity()

    def _packets(self, size: int) -> int:
        return -(-size // _SEGMENT) if self.provider in {Provider.TCP, Provider.QUIC} else int(size > 0)

    def _count_medium(self, kind: InterfaceKind, rx: int, tx: int, rxp: int, txp: int) -> None:
        names = _MEDIUM_FIELDS.get(kind)
        if names is not None:
            for name, amount in zip(names, (rx, tx), strict=True):
                self._counts[name] = self._counts.get(name, 0) + amount
        if self.kernel.release.has_details:
            medium = _DETAILED_MEDIA.get(kind, "alternate")
            for name, amount in (("rxbytes", rx), ("txbytes", tx), ("rxpackets", rxp), ("txpackets", txp)):
                key = f"media_stats.{medium}.{name}"
                self._detailed[key] = self._detailed.get(key, 0) + amount

    def _mark_activity(self) -> None:
        fields, now = self._fields, self.kernel.now_ns // 1_000_000_000
        start = fields.get("activity_bitmap.start") or now
        low, high = fields.get("activity_bitmap.bitmap", (0, 0))
        bits, position = low | high << 64, (now - start) // _SECONDS_PER_BIT
        if position > 127:
            bits, start, position = bits >> position - 127, start + (position - 127) * _SECONDS_PER_BIT, 127
        marked = bits | 1 << max(position, 0)
        if marked == bits and fields.get("activity_bitmap.start") == start:
            return
        fields["activity_bitmap.start"] = start
        fields["activity_bitmap.bitmap"] = (marked & (1 << 64) - 1, marked >> 64 & (1 << 64) - 1)
        self._descriptor_parts = None

    def rename_process(self, pid: int, name: str, *, upid: int | None = None) -> None:
        """Let another process use the socket last (descriptor passing, ``accept`` in a child)."""
        owner = self.kernel.owner_fields(pid, name, upid=upid)
        self.set(owner)

    # TCP's life

    @property
    def state(self) -> str:
        """The TCP state as `nstat_async.TcpState` names it."""
        return TCP_STATES[self._fields.get("state", 0)].value

    def bind(self, local: Endpoint | str | tuple[str, int]) -> None:
        """Give it a local address."""
        self.set(local=local)

    def _enter(self, state: int) -> None:
        self._fields["state"] = state
        if self.is_kernel_socket:
            self._counts["nstat_connectattempts"] = int(state >= _SYN_SENT)
            self._counts["nstat_connectsuccesses"] = int(state >= _ESTABLISHED)
        self._counts_bytes = None
        self._descriptor_parts = None

    def set_state(self, state: str | int) -> None:
        """Put a TCP flow into a state, by number or by `nstat_async.TcpState`'s word."""
        with self.kernel.lock:
            number = state if isinstance(state, int) else [s.value for s in TCP_STATES].index(state)
            self._enter(number)

    def connect(
        self,
        remote: Endpoint | str | tuple[str, int],
        *,
        local: Endpoint | str | tuple[str, int] | None = None,
        interface: str | EmulatedInterface | None = "en0",
        established: bool = True,
    ) -> EmulatedFlow:
        """Connect; TCP raises the "outbound" event and is established unless told otherwise."""
        peer = endpoint(remote)
        with self.kernel.lock:
            self.set(remote=peer, local=local if local is not None else self.kernel.ephemeral(peer))
            self.use_interface(interface)
            if self.provider in {Provider.TCP, Provider.QUIC}:
                self._enter(_SYN_SENT)
                if self.is_kernel_socket:
                    self.event(EventFlag.FLOW_STATE_OUTBOUND)
                if established:
                    self._enter(_ESTABLISHED)
        return self

    def listen(self, local: Endpoint | str | tuple[str, int]) -> EmulatedFlow:
        """Become a TCP listener; raises the "listen" event."""
        with self.kernel.lock:
            bound = endpoint(local)
            assert bound is not None
            self.set(local=bound, remote=Endpoint(bytes(len(bound.packed)), 0))
            self._enter(_LISTEN)
            self.event(EventFlag.FLOW_STATE_LISTEN)
        return self

    def accept(
        self,
        remote: Endpoint | str | tuple[str, int],
        *,
        local: Endpoint | str | tuple[str, int] | None = None,
        interface: str | EmulatedInterface | None = "en0",
    ) -> EmulatedFlow:
        """A new inbound connection of this listener, owned by its last user."""
        with self.kernel.lock:
            mine = local if local is not None else self._fields.get("local")
            inherited = {name: self._fields[name] for name in self.kernel.owner_names if name in self._fields}
            child = self.kernel.open_flow(self.provider_id, {**inherited, "state": _ESTABLISHED}, inbound=True)
            child.set(local=mine, remote=remote)
            child.use_interface(interface)
        return child

    # The end

    def event(self, event: int) -> None:
        """Raise an event for this flow (`nstat_async.ntstat.EventFlag`)."""
        with self.kernel.lock:
            self.kernel.raise_event(self, event)

    def close(self, *, first: bool | None = None) -> None:
        """End it, with the goodbye that this release says.

        Args:
            first: For kernel TCP: this side closes first, so it says goodbye on entering
                TIME_WAIT. Default: outbound established connections do.
        """
        with self.kernel.lock:
            if not self.open:
                return
            if self.provider is Provider.TCP and self.is_kernel_socket:
                state = self._fields.get("state", 0)
                closes_first = (not self.inbound and state == _ESTABLISHED) if first is None else first
                self.properties  # noqa: B018  (a report of this moment would remember the role)
                self.open = False
                self._enter(_TIME_WAIT if closes_first else _CLOSED)
            self.open = False
            self.kernel.flow_closed(self)

    def time_wait(self) -> None:
        """A user-land TCP flow enters TIME_WAIT: an early goodbye, unless a client filters for none."""
        with self.kernel.lock:
            self._enter(_TIME_WAIT)
            self.time_wait_event()

    def time_wait_event(self) -> None:
        """The early goodbye of TIME_WAIT, with the fields as they are."""
        with self.kernel.lock:
            self.kernel.userland_time_wait(self)

    def detach(self) -> None:
        """End it with the fields as they are (reproductions of recorded histories)."""
        with self.kernel.lock:
            self.open = False
            self.kernel.flow_closed(self)

    def mark_gone(self) -> None:
        """Let it end unnoticed: no goodbye until a poll or the minute-timer finds it."""
        with self.kernel.lock:
            self.gone = True

    # What the provider's functions answer

    def counts_errno(self) -> int:
        """Error of the provider's counters function; 0 in life."""
        return 0

    def descriptor_errno(self) -> int:
        """Error of the provider's descriptor function: since xnu-2782 a dead socket has none to tell."""
        return 22 if self.gone and self.is_kernel_socket and self.kernel.release.version >= (2782,) else 0
