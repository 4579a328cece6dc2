"""The flows of the emulated kernel: the state of sockets, channels, routes and interfaces.

A flow keeps its counters and descriptor by the names of the kernel's header. The
methods that tests usually call (`connect`, `transfer`, `close`) keep those fields
consistent the way the kernel does; `EmulatedFlow.set` writes any of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint, Provider
from nstat_async.ntstat import DarwinErrno, EventFlag
from nstat_async.ntstat import InterfaceProperty as Bit
from nstat_async.ntstat._constants import DARWIN_AF_INET, TCP_STATES

from ._counters import FlowCounters, mark_active
from ._interfaces import EmulatedInterface, property_bits
from ._machine import OWNER_FIELDS, Machine
from ._time import NANOSECOND
from ._values import endpoint, field_value, flag, instance, whole, wholes

COUNTERS = ("nstat_", "media_stats.")
"""How the names of counters begin; all others are fields of the descriptor."""

Address = Endpoint | str | tuple[str, int]
_CLOSED, _LISTEN, _SYN_SENT, _ESTABLISHED, _TIME_WAIT = 0, 1, 2, 4, 10
_SEGMENT = 1448
_HEADERS = 54
"""Bytes of Ethernet, IPv4 and TCP before the payload of a packet."""
_TIMESTAMP = struct.Struct("<Q")
# Plain numbers: an operation on enum members costs a microsecond, and each report needs several.
_LISTENER, _INBOUND, _OUTBOUND = int(Bit.SOURCE_IS_LISTENER), int(Bit.SOURCE_IS_INBOUND), int(Bit.SOURCE_IS_OUTBOUND)
_LOCAL, _NON_LOCAL, _FALLBACK = int(Bit.LOCAL), int(Bit.NON_LOCAL), int(Bit.VIA_CELLFALLBACK)
_STREAMS = frozenset({Provider.TCP, Provider.QUIC})


class EmulatedFlow:
    """One socket, channel flow, route or interface of an `EmulatedKernel`.

    Made by the kernel's ``open_…`` methods, never directly.
    """

    def __init__(self, kernel: Machine, provider_id: int, fields: dict[str, Any]) -> None:
        self.kernel = kernel
        self.provider_id = provider_id
        """The provider's number in this release."""
        provider, userland = kernel.release.providers[provider_id]
        self.provider = provider
        self.userland = bool(userland)
        self.is_kernel_socket = provider in {Provider.TCP, Provider.UDP} and not userland
        """True for BSD sockets (not for channels, connections, subflows, routes, interfaces)."""
        self.interface: EmulatedInterface | None = None
        """The interface of the last packet."""
        self.open = True
        """False once it was closed (its goodbye may still be to come)."""
        self.gone = False
        """True if it ended unnoticed, until a poll or the minute-timer finds it."""
        self.unreadable = False
        """True: the kernel cannot read it any more (EIO), because its process took the memory away."""
        self.inbound = False
        """True for an accepted connection."""
        self.peer_is_local: bool | None = None
        """Whether TCP regards its peer as local; `None`: loopback and link-local peers are."""
        self.cell_fallback = False
        """True while it may fall back from Wi-Fi to cellular."""
        self.properties_at_open: int | None = None
        """User-land: the properties that filters look at; `None`: those of the descriptor."""
        self.number = kernel.next_number()
        """Counts the flows of this kernel."""
        self.items: dict[int, bytes] = {}
        """Extension items by type (`nstat_async.ntstat.Extension`)."""
        self.broken_items: set[int] = set()
        """Types of items whose provider gives a size and then fails."""
        self._counters = FlowCounters(by_medium=kernel.release.has_details)
        self.fields = fields
        """The descriptor's fields by the kernel's names; absent means 0. `set` writes them."""
        self._former_bits = 0
        self.role = 0
        """TCP's role in the last description, "listener" or "outbound"; each source keeps it (see `ClientSource`)."""
        structure = kernel.release.descriptor_name(provider_id)
        assert structure is not None
        self._structure = structure
        self._codec = kernel.layout[structure]
        self._descriptor_parts: tuple[bytes, bytes] | None = None
        bits = self._codec.by_name.get("ifnet_properties")
        self._role_at = kernel.inserted_offset(structure, bits.offset) if bits is not None else 0
        stamp = self._codec.by_name.get("timestamp")
        self._stamp = kernel.inserted_offset(structure, stamp.offset) if stamp is not None else None
        fields.setdefault("start_timestamp", kernel.ticks)

    def __repr__(self) -> str:
        name = "quic" if self.provider is Provider.QUIC else self.provider.value
        return f"<EmulatedFlow {self.number} {name} pid={self.fields.get('pid')}{'' if self.open else ' closed'}>"

    # What it holds

    @property
    def counts(self) -> Mapping[str, int]:
        """The counters by the kernel's names; absent means 0."""
        return self._counters.values

    @property
    def rx_bytes(self) -> int:
        """Bytes received."""
        return self.counts.get("nstat_rxbytes", 0)

    @property
    def tx_bytes(self) -> int:
        """Bytes sent."""
        return self.counts.get("nstat_txbytes", 0)

    @property
    def filter_properties(self) -> int:
        """The properties that interface filters look at."""
        return self._whole_properties() if self.properties_at_open is None else self.properties_at_open

    @property
    def properties(self) -> int:
        """``ifnet_properties`` as a description of this moment would have it."""
        version, bits = self.kernel.release.version, self._whole_properties()
        if not self.is_kernel_socket or self.fields.get("ifnet_properties") is not None:
            return bits
        if (8019,) <= version < (10002,):
            return bits & 0xFFFF
        if version < (10002,) or self.provider is not Provider.TCP:
            return bits
        if self.inbound:
            return bits | _INBOUND
        state = self.fields.get("state", _CLOSED)
        return bits | (_LISTENER if state == _LISTEN else _OUTBOUND if state else 0)

    def _whole_properties(self) -> int:
        """The properties without TCP's role, before they are truncated to the width of the release's field."""
        raw = self.fields.get("ifnet_properties")
        if raw is not None:
            return int(raw)
        version = self.kernel.release.version
        bits = property_bits(version, self.interface)
        if not self.is_kernel_socket:
            return bits
        reports_locality = version >= ((6153,) if self.provider is Provider.TCP else (10002,))
        if reports_locality and (self.interface is not None or version >= (10002,)):
            bits |= _LOCAL if self._remote_is_local() else _NON_LOCAL
        if self.cell_fallback and version >= (6153,):
            bits |= _FALLBACK
        return bits if self.inbound else bits | self._former_bits

    def _remote_is_local(self) -> bool:
        """TCP's own view: the peer is on a directly attached network (here: loopback, link-local)."""
        if self.peer_is_local is not None:
            return self.peer_is_local
        slot: bytes = self.fields.get("remote", b"")
        if slot[1:2] == bytes((DARWIN_AF_INET,)):
            return slot[4] == 127 or slot[4:6] == b"\xa9\xfe"
        return slot[8:24] == b"\0" * 15 + b"\1" or slot[8:10] == b"\xfe\x80"

    def encoded_counts(self, *, detailed: bool = False) -> bytes:
        """``nstat_counts`` of this release, or ``nstat_detailed_counts`` (macOS 26)."""
        encode = self._counters.encode_details if detailed else self._counters.encode
        return encode(self.kernel.layout)

    def encoded_descriptor(self, kept_role: int = 0) -> bytes:
        """The descriptor of this release, with the time of now in it.

        Args:
            kept_role: The role that an earlier description for the same client had; it holds when TCP is CLOSED.
        """
        before, behind = self._descriptor_parts or self.prepare()
        if kept_role and not self.role:
            at = self._role_at - len(before) - _TIMESTAMP.size
            bits = int.from_bytes(behind[at : at + 4], "little") | kept_role
            behind = behind[:at] + bits.to_bytes(4, "little") + behind[at + 4 :]
        return before if self._stamp is None else b"".join((before, _TIMESTAMP.pack(self.kernel.ticks), behind))

    def prepare(self) -> tuple[bytes, bytes]:
        """Encode the descriptor now; returns its bytes before and after the time."""
        values, codec = dict(self.fields), self._codec
        if "ifnet_properties" in codec:
            bits = self.properties
            self.role = bits & (_LISTENER | _OUTBOUND)
            values["ifnet_properties"] = bits & (1 << 8 * codec.by_name["ifnet_properties"].size) - 1
        if self.interface is not None:
            values.setdefault("ifindex", self.interface.index)
        if "pname" in codec:
            room = codec.by_name["pname"].size - 1
            longest = 63 if self.kernel.release.version >= (11215,) or not self.is_kernel_socket else 16
            values["pname"] = values.get("pname", b"")[: min(room, longest)]
        if self.provider is Provider.TCP and not self.userland and values.get("state") == _CLOSED and not self.open:
            values["cc_algo"] = b""
        data = self.kernel.insert(codec.name, codec.pack(values))
        stamp = self._stamp
        parts = (data, b"") if stamp is None else (data[:stamp], data[stamp + _TIMESTAMP.size :])
        self._descriptor_parts = parts
        return parts

    # What the provider's functions answer

    def details_errno(self) -> int:
        """The error of a request for counters by medium, which routes and interfaces do not have; 0: none."""
        return DarwinErrno.EOPNOTSUPP if self.provider in {Provider.ROUTE, Provider.INTERFACE} else 0

    def descriptor_errno(self) -> int:
        """Error of the provider's descriptor function: since xnu-2782 a dead socket has no descriptor."""
        if self.unreadable:
            return DarwinErrno.EIO
        dead = self.gone and self.is_kernel_socket and self.kernel.release.version >= (2782,)
        return DarwinErrno.EINVAL if dead else 0

    # Changing it

    def set(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Write fields of the descriptor or counters by the kernel's names.

        Names that begin with ``nstat_`` are counters, ``media_stats.…`` detailed counters
        (macOS 26); strings and `UUID` are encoded, endpoints may be given as for `endpoint`.
        A field that this release lacks is left out of what it sends.

        Raises:
            UsageError: There is no such field in any release, or it cannot have this value.
        """
        said = {**instance("values", {} if values is None else values, Mapping), **more}
        checked = {name: field_value(self._structure, name, value) for name, value in said.items()}
        with self.kernel.lock:
            for name, value in checked.items():
                if name.startswith(COUNTERS):
                    self._counters.set(name, value)
                else:
                    self.fields[name] = value
                    self._descriptor_parts = None

    def use_interface(self, interface: str | EmulatedInterface | None) -> None:
        """Make this the interface of the last packet."""
        with self.kernel.lock:
            if interface is not None and not isinstance(interface, EmulatedInterface):
                interface = self.kernel.interface(interface)
            self.interface = interface
            self._descriptor_parts = None

    def transfer(
        self,
        rx: int = 0,
        tx: int = 0,
        *,
        rx_packets: int | None = None,
        tx_packets: int | None = None,
        interface: str | None = None,
        switch: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Count traffic: totals, packets, the interface's medium and the activity bitmap.

        Args:
            rx: Bytes received.
            tx: Bytes sent.
            rx_packets: Number of packets received. Default: TCP and QUIC in segments of 1448 bytes,
                others in one datagram.
            tx_packets: Number of packets sent, as `rx_packets`.
            interface: The interface of this traffic; default: that of the last packet.
            switch: Flows in user space: packets and bytes received, packets and bytes sent, as the flow switch
                counts them, with headers. Default: the same numbers as those of the process.

        Raises:
            UsageError: A number is no number of bytes or packets, or there is no such interface.
        """
        if switch is not None and (not isinstance(switch, (tuple, list)) or len(switch) != 4):
            raise UsageError(f"switch: {switch!r} is not packets and bytes received, packets and bytes sent")
        wholes(rx=rx, tx=tx)
        rxp = self._packets(rx) if rx_packets is None else whole("rx_packets", rx_packets)
        txp = self._packets(tx) if tx_packets is None else whole("tx_packets", tx_packets)
        for amount in switch or ():
            whole("switch", amount)
        said = (rxp, rx, txp, tx)
        with self.kernel.lock:
            uptime = self.kernel.now_ns // NANOSECOND
            carrier = self.interface if interface is None else self.kernel.interface(interface)
            if carrier is not None:
                wire = (rx + rxp * _HEADERS, tx + txp * _HEADERS) if switch is None else (switch[1], switch[3])
                carrier.carry(*wire)
            self._counters.add(said, switch or said, carrier.medium if carrier is not None else None, uptime)
            names, fields = ("activity_bitmap.start", "activity_bitmap.bitmap"), self.fields
            before = fields.get(names[0], 0), fields.get(names[1], (0, 0))
            after = mark_active(*before, uptime)
            if after != before:
                fields.update(zip(names, after, strict=True))
                self._descriptor_parts = None

    def _packets(self, size: int) -> int:
        return -(-size // _SEGMENT) if self.provider in _STREAMS else int(size > 0)

    def rename_process(self, pid: int, name: str, *, upid: int | None = None) -> None:
        """Let another process use the socket last (descriptor passing, ``accept`` in a child)."""
        self.set(self.kernel.owner_fields(pid, name, upid=upid))

    # Its life

    @property
    def state(self) -> str:
        """The TCP state as `nstat_async.TcpState` names it."""
        return TCP_STATES[self.fields.get("state", 0)].value

    def bind(self, local: Address) -> None:
        """Give it a local address."""
        self.set(local=local)

    def _enter(self, state: int) -> None:
        self.fields["state"] = state
        self._descriptor_parts = None
        if self.is_kernel_socket:
            self._counters.set("nstat_connectattempts", int(state >= _SYN_SENT))
            self._counters.set("nstat_connectsuccesses", int(state >= _ESTABLISHED))

    def set_state(self, state: str | int) -> None:
        """Put a TCP flow into a state, by number or by `nstat_async.TcpState`'s word.

        Raises:
            UsageError: There is no such state.
        """
        with self.kernel.lock:
            names = [each.value for each in TCP_STATES]
            if isinstance(state, str) and state not in names:
                raise UsageError(f"state: {state!r} is not one of {', '.join(names)}")
            self._enter(names.index(state) if isinstance(state, str) else whole("state", state, bits=32))

    def connect(
        self,
        remote: Address,
        *,
        local: Address | None = None,
        interface: str | EmulatedInterface | None = "en0",
        established: bool = True,
    ) -> EmulatedFlow:
        """Connect; TCP raises the "outbound" event and is established unless `established` is false."""
        peer = endpoint(remote, "remote")
        flag("established", established)
        with self.kernel.lock:
            self.set(remote=peer, local=local if local is not None else self._end_towards(peer))
            self.use_interface(interface)
            if self.provider in _STREAMS:
                self._enter(_SYN_SENT)
                if self.is_kernel_socket:
                    self.event(EventFlag.FLOW_STATE_OUTBOUND)
                if established:
                    self._enter(_ESTABLISHED)
        return self

    def _end_towards(self, peer: Endpoint | None) -> Endpoint:
        """Its end of a connection: a port that it has stays (``in_pcbconnect`` takes one only for a socket without)."""
        end = self.kernel.ephemeral(peer)
        port = int.from_bytes(self.fields.get("local", bytes(4))[2:4], "big")
        return Endpoint(end.packed, port) if port else end

    def disconnect(self) -> None:
        """Take a UDP socket's peer away; `connect` may give it another one.

        Reports keep the last addresses and bits meanwhile (``nstat_pcb_cache``). Since macOS 26 the
        bits of the present interface stay, beside those of later ones.

        Raises:
            UsageError: It is no kernel UDP socket.
        """
        if self.provider is not Provider.UDP or not self.is_kernel_socket:
            raise UsageError("disconnect: only a UDP socket can be disconnected")
        with self.kernel.lock:
            if self.kernel.release.has_details:
                self._former_bits |= property_bits(self.kernel.release.version, self.interface)

    def listen(self, local: Address) -> EmulatedFlow:
        """Become a TCP listener; raises the "listen" event.

        Raises:
            UsageError: There is no address to listen at.
        """
        with self.kernel.lock:
            bound = endpoint(local, "local")
            if bound is None:
                raise UsageError("local: a listener needs an address")
            self.set(local=bound, remote=Endpoint(bytes(len(bound.packed)), 0))
            self._enter(_LISTEN)
            self.event(EventFlag.FLOW_STATE_LISTEN)
        return self

    def accept(
        self,
        remote: Address,
        *,
        local: Address | None = None,
        interface: str | EmulatedInterface | None = "en0",
    ) -> EmulatedFlow:
        """A new inbound connection of this listener, owned by its last user."""
        with self.kernel.lock:
            mine = local if local is not None else self.fields.get("local")
            inherited = {name: self.fields[name] for name in OWNER_FIELDS if name in self.fields}
            child: EmulatedFlow = self.kernel.open_flow(
                self.provider_id, {**inherited, "state": _ESTABLISHED}, inbound=True
            )
            child.set(local=mine, remote=remote)
            child.use_interface(interface)
        return child

    def event(self, event: int) -> None:
        """Raise an event for this flow (`nstat_async.ntstat.EventFlag`)."""
        whole("event", event)
        with self.kernel.lock:
            self.kernel.raise_event(self, event)

    # The end

    def close(self, *, first: bool | None = None) -> None:
        """End it, with the goodbye that this release says.

        Args:
            first: For kernel TCP: this side closes first, so it says goodbye on entering
                TIME_WAIT. Default: outbound established connections do.
        """
        if first is not None:
            flag("first", first)
        with self.kernel.lock:
            if not self.open:
                return
            self.open = False
            if self.provider is Provider.TCP and self.is_kernel_socket:
                state = self.fields.get("state", 0)
                closes_first = (not self.inbound and state == _ESTABLISHED) if first is None else first
                self._enter(_TIME_WAIT if closes_first else _CLOSED)
            self.kernel.flow_closed(self)

    def time_wait(self) -> None:
        """A user-land TCP flow enters TIME_WAIT: an early goodbye, unless a client filters for none."""
        with self.kernel.lock:
            self._enter(_TIME_WAIT)
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
