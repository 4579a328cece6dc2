"""From a socket's message to the `Flow` that users see."""

from __future__ import annotations

import struct

from .._model import Direction, Endpoint, Flow, Process, Provider, TcpState
from ._constants import AF_INET, IPPROTO_TCP, TCP_STATES, SocketState, TcpInfo
from ._links import LinkTable
from ._messages import HEADER
from ._table import Entry

__all__ = ["FlowBuilder", "ListenerTable", "extra_sequence_numbers", "with_owner"]

_PORTS = struct.Struct("!HH")
_DEVICE = struct.Struct("=I")
_WRITE_QUEUE = struct.Struct("=I")
_WRITE_QUEUE_AT = HEADER.size + 60
_SENT = struct.Struct("=Q16xI52xQQ")
"""From ``tcpi_bytes_acked``: it, notsent, bytes_sent, bytes_retrans."""
_SENT_END = int(TcpInfo.BYTES_RETRANS) + 8
_MAPPED = bytes(10) + b"\xff\xff"
_BEFORE_FIN = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT})
_AFTER_FIN = frozenset({SocketState.FIN_WAIT1, SocketState.FIN_WAIT2, SocketState.LAST_ACK, SocketState.CLOSING})


def extra_sequence_numbers(message: bytes, start: int, length: int) -> int | None:
    """How many sequence numbers were used for SYN and FIN instead of payload; `None` when that cannot be told.

    ``snd_una`` moved by ``bytes_acked``, the write queue is ``write_seq - snd_una``, and
    what is not sent yet is known: the sum is all sequence numbers sent. Of the
    opener's SYN ``tcp_ack`` counts the acknowledgement, of an acceptor's it does not
    (``tcp_rcv_state_process`` sets ``snd_una`` itself); a FIN counts on both sides.
    """
    if length < _SENT_END:
        return None
    acked, waiting, sent, again = _SENT.unpack_from(message, start + TcpInfo.BYTES_ACKED)
    (queue,) = _WRITE_QUEUE.unpack_from(message, _WRITE_QUEUE_AT)
    extra: int = acked + queue - waiting - (sent - again)
    return extra if 0 <= extra <= 2 else None


class ListenerTable:
    """Who listens where, in one namespace: tells accepted connections from made ones."""

    def __init__(self) -> None:
        self._listeners: dict[int, dict[int, bytes]] = {}

    def add(self, port: int, cookie: int, address: bytes) -> None:
        """A listener was seen; an unspecified address listens everywhere."""
        self._listeners.setdefault(port, {})[cookie] = address

    def discard(self, port: int, cookie: int) -> None:
        """A listener is gone."""
        found = self._listeners.get(port)
        if found is not None:
            found.pop(cookie, None)
            if not found:
                del self._listeners[port]

    def covers(self, port: int, address: bytes) -> bool:
        """True if a connection to this local address would have been accepted by one that is known."""
        found = self._listeners.get(port)
        return found is not None and any(own == address or not any(own) for own in found.values())


class FlowBuilder:
    """Makes flows for one namespace."""

    def __init__(self, namespace: str | None, prefix: str, links: LinkTable) -> None:
        self.namespace = namespace
        self.prefix = prefix
        self.links = links
        self.listeners = ListenerTable()

    def build(self, entry: Entry) -> Flow:
        """The flow of a socket as known now; endpoints are shared with the one announced before."""
        identity: bytes = entry.last[1]
        local, remote = self.endpoints(identity)
        old = entry.flow
        if old is not None:
            local = old.local if old.local == local else local
            remote = old.remote if old.remote == remote else remote
        return self.make(entry, local, remote)

    def make(self, entry: Entry, local: Endpoint, remote: Endpoint | None) -> Flow:
        """A flow from its parts."""
        device: int = _DEVICE.unpack_from(entry.last[1], 40)[0]
        tcp = entry.kind.protocol == IPPROTO_TCP
        return Flow(
            f"{self.prefix}c{entry.cookie:x}",
            Provider.TCP if tcp else Provider.UDP,
            False,
            local,
            remote,
            entry.owner,
            self.links.interface_of(local.packed, device),
            TCP_STATES.get(entry.state, TcpState.CLOSED) if tcp else None,
            entry.direction,
            namespace=self.namespace,
        )

    def endpoints(self, identity: bytes) -> tuple[Endpoint, Endpoint | None]:
        """Local and remote; no remote where there is neither address nor port."""
        local_port, remote_port = _PORTS.unpack_from(identity, 4)
        device: int = _DEVICE.unpack_from(identity, 40)[0]
        local = self._endpoint(identity[0], identity[8:24], local_port, device)
        if not remote_port and not any(identity[24:40]):
            return local, None
        return local, self._endpoint(identity[0], identity[24:40], remote_port, device)

    def _endpoint(self, family: int, address: bytes, port: int, device: int) -> Endpoint:
        if family == AF_INET:
            return Endpoint(address[:4], port)
        if address.startswith(_MAPPED):
            return Endpoint(address[12:], port)
        if address[0] == 0xFE and address[1] & 0xC0 == 0x80:
            return Endpoint(address, port, device or self.links.index_of(address))
        return Endpoint(address, port)

    def direction(self, identity: bytes, message: bytes, info: tuple[int, int]) -> Direction | None:
        """Who began a TCP connection.

        A known listener on the local port accepted it. Else a SYN among the sequence
        numbers is proof either way, while no FIN can be mistaken for it. Else it is
        unknown.
        """
        state = identity[1]
        if state == SocketState.LISTEN:
            return Direction.LISTENER
        if state == SocketState.SYN_SENT:
            return Direction.OUTBOUND
        local, remote = self.endpoints(identity)
        if remote is None:
            return None
        if remote.port == 0:  # a refused attempt: the kernel forgets the port and keeps the address
            return Direction.OUTBOUND
        if self.listeners.covers(local.port, local.packed):
            return Direction.INBOUND
        extra = extra_sequence_numbers(message, *info)
        # The dump does not lock the socket: between two states the numbers belong to neither.
        if extra is None or message[info[0] + TcpInfo.STATE] != state:
            return None
        waiting = _SENT.unpack_from(message, info[0] + TcpInfo.BYTES_ACKED)[1]
        if state in _BEFORE_FIN:
            return Direction.OUTBOUND if extra else Direction.INBOUND
        if state in _AFTER_FIN and not waiting and extra:
            return Direction.OUTBOUND if extra == 2 else Direction.INBOUND
        return {0: Direction.INBOUND, 2: Direction.OUTBOUND}.get(extra)

    def note_listener(self, entry: Entry) -> None:
        """Remember a listening socket."""
        local, _ = self.endpoints(entry.last[1])
        self.listeners.add(local.port, entry.cookie, local.packed)

    def forget_listener(self, entry: Entry) -> None:
        """A listening socket is gone."""
        local, _ = self.endpoints(entry.last[1])
        self.listeners.discard(local.port, entry.cookie)


def with_owner(flow: Flow, owner: Process) -> Flow:
    """The same flow with its process known."""
    return Flow(
        flow.id,
        flow.provider,
        flow.userland,
        flow.local,
        flow.remote,
        owner,
        flow.interface,
        flow.state,
        flow.direction,
        namespace=flow.namespace,
    )
