"""Who began a TCP connection: what its state, its sequence numbers and the listeners say."""

from __future__ import annotations

import struct
from collections import deque

from .._model import Direction, Process
from ._constants import SocketState, TcpInfo
from ._entry import Weight
from ._messages import HEADER
from ._rows import address_of

_U32 = struct.Struct("=I")
_NUMBERS = struct.Struct("=I72xI16xQ16xI8xI32xI4xQQ")
"""From ``tcpi_unacked``: it, total_retrans, bytes_acked, notsent, data_segs_out, delivered, bytes_sent, bytes_retrans."""
_NUMBERS_AT = int(TcpInfo.UNACKED)
_MOST_EXTRA = 2
"""Most sequence numbers that are no payload: a SYN and a FIN."""
_NOTHING, ACCEPTED, OPENED, _RESTORED = range(4)
"""What sequence numbers prove about a connection: the results of `evidence_of`."""
_WRITE_QUEUE_AT = HEADER.size + 60
_SENT = struct.Struct("=Q16xI52xQQ")
"""From ``tcpi_bytes_acked``: it, notsent, bytes_sent, bytes_retrans."""
_SENT_END = int(TcpInfo.BYTES_RETRANS) + 8
_ACKED_AT = int(TcpInfo.BYTES_ACKED)
_STATE_AT = int(TcpInfo.STATE)
_INBOUND, _OUTBOUND = Direction.INBOUND, Direction.OUTBOUND
"""Members under short names: looking one up in its class takes longer than the rest of a step."""
_LISTEN, _SYN_SENT = SocketState.LISTEN, SocketState.SYN_SENT
_NONE, _LISTENER, _DOUBTED = Weight.NONE, Weight.LISTENER, Weight.DOUBTED
_SEQUENCE, _STATE = Weight.SEQUENCE, Weight.STATE
LEFT_SECONDS = 2.0
"""Seconds for which a listener that is gone still tells whose its connections are: those that lived longer were seen themselves."""
_MOST_LEFT = 64
BEFORE_FIN = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT})
AFTER_FIN = frozenset({SocketState.FIN_WAIT1, SocketState.FIN_WAIT2, SocketState.LAST_ACK, SocketState.CLOSING})


def extra_sequence_numbers(message: bytes, start: int, length: int) -> int | None:
    """How many sequence numbers were used for SYN and FIN instead of payload; `None` when that cannot be known.

    ``snd_una`` moved by ``bytes_acked``, the write queue is ``write_seq - snd_una``, and
    the unsent bytes are known: together they give all sequence numbers sent. The opener's SYN
    is among ``bytes_acked`` (``tcp_ack``), an acceptor's is not (``tcp_rcv_state_process`` sets
    ``snd_una`` itself); a FIN is counted on both sides.
    """
    if length < _SENT_END:
        return None
    acked, waiting, sent, again = _SENT.unpack_from(message, start + _ACKED_AT)
    (queue,) = _U32.unpack_from(message, _WRITE_QUEUE_AT)
    extra: int = acked + queue - waiting - (sent - again)
    return extra if 0 <= extra <= 2 else None


def direction_by_state(identity: bytes) -> Direction | None:
    """The direction that a socket's state and ports prove; `None` if they prove none."""
    state = identity[1]
    if state == _LISTEN:
        return Direction.LISTENER
    # A refused attempt: the kernel forgets the port and keeps the address.
    refused = not (identity[6] or identity[7]) and any(identity[24:40])
    return _OUTBOUND if refused or state == _SYN_SENT else None


def evidence_of(state: int, message: bytes, start: int, length: int) -> int:
    """What the sequence numbers of a row prove: with a SYN among them it was opened, without one accepted.

    That is sure only where a FIN cannot be mistaken for the SYN, which depends on the state.

    A connection that ``TCP_REPAIR`` made without a handshake (checkpoint and restore) looks like an accepted one. But
    the kernel counts an acknowledged or answered SYN among the segments delivered (``tcp_rcv_state_process``,
    ``tcp_ack``), so such a connection lacks one. Where anything was sent again the numbers prove nothing.
    """
    # A dump does not lock the socket: if the state changed meanwhile, the numbers belong to neither state.
    if length < _SENT_END or message[start + _STATE_AT] != state:
        return _NOTHING
    (queue,) = _U32.unpack_from(message, _WRITE_QUEUE_AT)
    return evidence_in(state, queue, *_NUMBERS.unpack_from(message, start + _NUMBERS_AT))


def evidence_in(
    state: int,
    queue: int,
    flying: int,
    again: int,
    acked: int,
    waiting: int,
    segments: int,
    delivered: int,
    sent: int,
    sent_again: int,
) -> int:
    """`evidence_of` by the numbers themselves: the write queue, and those of `_NUMBERS`."""
    extra = acked + queue - waiting - (sent - sent_again)
    if not 0 <= extra <= _MOST_EXTRA:
        return _NOTHING
    if state in BEFORE_FIN:
        if extra:
            return OPENED
        return _RESTORED if not delivered or (not again and delivered + flying == segments) else ACCEPTED
    if state in AFTER_FIN and not waiting and extra:
        return OPENED if extra == _MOST_EXTRA else ACCEPTED
    return (ACCEPTED, _NOTHING, OPENED)[extra]


def direction_by_listener(identity: bytes, listeners: ListenerTable) -> tuple[Direction | None, Weight]:
    """The direction of an aborted connection. Without a peer's port it looks like a refused attempt, but may have been accepted."""
    return (_INBOUND, _LISTENER) if listeners.covers(identity) else (None, _NONE)


def direction_by_remains(message: bytes, info: tuple[int, int]) -> Direction | None:
    """The direction of a connection that ended in order: one of its sequence numbers is the FIN, a second one is the SYN."""
    return {1: _INBOUND, 2: _OUTBOUND}.get(extra_sequence_numbers(message, *info) or 0)


class ListenerTable:
    """The listeners of one namespace: they tell accepted connections from opened ones."""

    def __init__(self) -> None:
        self.by_port: dict[bytes, dict[int, bytes]] = {}
        """Cookie and address of each listener, by its port as in a row."""
        self._left: deque[tuple[float, bytes, bytes, Process | None]] = deque(maxlen=_MOST_LEFT)
        """The listeners that went away lately: when, port, address, and the process if it alone held the socket."""

    def add(self, cookie: int, identity: bytes) -> None:
        """Note a listener; one with an unspecified address listens on every address."""
        self.by_port.setdefault(identity[4:6], {})[cookie] = address_of(identity, 8)

    def discard(self, cookie: int, identity: bytes) -> None:
        """Forget a listener."""
        found = self.by_port.get(identity[4:6])
        if found is not None:
            found.pop(cookie, None)
            if not found:
                del self.by_port[identity[4:6]]

    def leave(self, cookie: int, identity: bytes, owner: Process | None, now: float) -> None:
        """Forget a listener, but remember its only `owner` for a while: its unseen connections may end later."""
        self.discard(cookie, identity)
        self._left.append((now, identity[4:6], address_of(identity, 8), owner))

    def owners_before(self, identity: bytes, now: float) -> set[Process | None]:
        """The owners of listeners at this local end that went away lately; `None` among them: several processes held one."""
        address, since = address_of(identity, 8), now - LEFT_SECONDS
        return {
            owner
            for left, port, own, owner in self._left
            if left >= since and port == identity[4:6] and (own == address or not any(own))
        }

    def of(self, identity: bytes) -> list[int]:
        """Cookies of the listeners that may have accepted a connection to this local end: first those of its very address."""
        found = self.by_port.get(identity[4:6])
        if found is None:
            return []
        address = address_of(identity, 8)
        exact = [cookie for cookie, own in found.items() if own == address]
        return exact or [cookie for cookie, own in found.items() if not any(own)]

    def covers(self, identity: bytes) -> bool:
        """True if a known listener would have accepted a connection to this local end."""
        return identity[4:6] in self.by_port and bool(self.of(identity))


def weigh_direction(
    identity: bytes, message: bytes, info: tuple[int, int], listeners: ListenerTable
) -> tuple[Direction | None, Weight]:
    """The direction of a connection by the strongest evidence, and the weight of that evidence."""
    direction = direction_by_state(identity)
    if direction is not None:
        return direction, _STATE
    if not (identity[6] or identity[7]):
        return None, _NONE
    evidence = evidence_of(identity[1], message, *info)
    if evidence == ACCEPTED:
        return _INBOUND, _SEQUENCE
    accepted = listeners.covers(identity)
    if evidence == _RESTORED:
        return (_INBOUND, _LISTENER) if accepted else (None, _SEQUENCE)
    # While bytes are in flight, one that is acknowledged during the dump looks like a SYN: a listener outweighs that.
    if evidence == OPENED and not (accepted and any(message[_WRITE_QUEUE_AT : _WRITE_QUEUE_AT + 4])):
        return _OUTBOUND, _DOUBTED if accepted else _SEQUENCE
    return (_INBOUND, _LISTENER) if accepted else (None, _NONE)
