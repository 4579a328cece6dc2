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
"""A SYN and a FIN."""
_NOTHING, ACCEPTED, OPENED, _RESTORED = range(4)
"""What sequence numbers prove of a connection, as `evidence_of` says it."""
_WRITE_QUEUE_AT = HEADER.size + 60
_SENT = struct.Struct("=Q16xI52xQQ")
"""From ``tcpi_bytes_acked``: it, notsent, bytes_sent, bytes_retrans."""
_SENT_END = int(TcpInfo.BYTES_RETRANS) + 8
_ACKED_AT = int(TcpInfo.BYTES_ACKED)
_STATE_AT = int(TcpInfo.STATE)
_INBOUND, _OUTBOUND = Direction.INBOUND, Direction.OUTBOUND
"""A look-up of a member takes longer than the rest of a step."""
_LISTEN, _SYN_SENT = SocketState.LISTEN, SocketState.SYN_SENT
_NONE, _LISTENER, _DOUBTED = Weight.NONE, Weight.LISTENER, Weight.DOUBTED
_SEQUENCE, _STATE = Weight.SEQUENCE, Weight.STATE
LEFT_SECONDS = 2.0
"""How long the connections of a listener that left are known to be its process's: what lives on has been seen by then."""
_MOST_LEFT = 64
BEFORE_FIN = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT})
AFTER_FIN = frozenset({SocketState.FIN_WAIT1, SocketState.FIN_WAIT2, SocketState.LAST_ACK, SocketState.CLOSING})


def extra_sequence_numbers(message: bytes, start: int, length: int) -> int | None:
    """How many sequence numbers were used for SYN and FIN instead of payload; `None` when that cannot be known.

    ``snd_una`` moved by ``bytes_acked``, the write queue is ``write_seq - snd_una``, and
    what is not sent yet is known: the sum is all sequence numbers sent. Of the
    opener's SYN ``tcp_ack`` counts the acknowledgement, of an acceptor's it does not
    (``tcp_rcv_state_process`` sets ``snd_una`` itself); a FIN counts on both sides.
    """
    if length < _SENT_END:
        return None
    acked, waiting, sent, again = _SENT.unpack_from(message, start + _ACKED_AT)
    (queue,) = _U32.unpack_from(message, _WRITE_QUEUE_AT)
    extra: int = acked + queue - waiting - (sent - again)
    return extra if 0 <= extra <= 2 else None


def direction_by_state(identity: bytes) -> Direction | None:
    """What a socket's state and ports prove by themselves."""
    state = identity[1]
    if state == _LISTEN:
        return Direction.LISTENER
    # A refused attempt: the kernel forgets the port and keeps the address.
    refused = not (identity[6] or identity[7]) and any(identity[24:40])
    return _OUTBOUND if refused or state == _SYN_SENT else None


def evidence_of(state: int, message: bytes, start: int, length: int) -> int:
    """What the sequence numbers of a row in this state prove: a SYN among them does so either way, while no FIN can be mistaken for it.

    A connection without a handshake, made of nothing by ``TCP_REPAIR`` as checkpoint and restore do, looks like an accepted
    one: but the kernel counts the SYN that was acknowledged, or answered, among the segments delivered
    (``tcp_rcv_state_process``, ``tcp_ack``). Where anything was sent again the numbers do not tell.
    """
    # The dump does not lock the socket: between two states the numbers belong to neither.
    if length < _SENT_END or message[start + _STATE_AT] != state:
        return _NOTHING
    flying, again, acked, waiting, segments, delivered, sent, sent_again = _NUMBERS.unpack_from(
        message, start + _NUMBERS_AT
    )
    extra = acked + _U32.unpack_from(message, _WRITE_QUEUE_AT)[0] - waiting - (sent - sent_again)
    if not 0 <= extra <= _MOST_EXTRA:
        return _NOTHING
    if state in BEFORE_FIN:
        if extra:
            return OPENED
        return _RESTORED if not delivered or (not again and delivered + flying == segments) else ACCEPTED
    if state in AFTER_FIN and not waiting and extra:
        return OPENED if extra == _MOST_EXTRA else ACCEPTED
    return (ACCEPTED, _NOTHING, OPENED)[extra]


def direction_by_remains(message: bytes, info: tuple[int, int]) -> Direction | None:
    """Who began a connection that is known to have ended in order: with its FIN known, the rest is a SYN or none."""
    return {1: _INBOUND, 2: _OUTBOUND}.get(extra_sequence_numbers(message, *info) or 0)


class ListenerTable:
    """Who listens where, in one namespace: distinguishes accepted connections from made ones."""

    def __init__(self) -> None:
        self.by_port: dict[bytes, dict[int, bytes]] = {}
        """Cookies and addresses, by the port as in a row."""
        self._left: deque[tuple[float, bytes, bytes, Process | None]] = deque(maxlen=_MOST_LEFT)
        """Those that left lately: when, the port, the address and the only process that listened there."""

    def add(self, cookie: int, identity: bytes) -> None:
        """A listener was seen; an unspecified address listens everywhere."""
        self.by_port.setdefault(identity[4:6], {})[cookie] = address_of(identity, 8)

    def discard(self, cookie: int, identity: bytes) -> None:
        """A listener is gone."""
        found = self.by_port.get(identity[4:6])
        if found is not None:
            found.pop(cookie, None)
            if not found:
                del self.by_port[identity[4:6]]

    def leave(self, cookie: int, identity: bytes, owner: Process | None, now: float) -> None:
        """A listener is gone whose connections may end later, though no source has seen them: this process alone had it."""
        self.discard(cookie, identity)
        self._left.append((now, identity[4:6], address_of(identity, 8), owner))

    def owners_before(self, identity: bytes, now: float) -> set[Process | None]:
        """The processes that listened at this local end until lately; `None`: several may have."""
        address, since = address_of(identity, 8), now - LEFT_SECONDS
        return {
            owner
            for left, port, own, owner in self._left
            if left >= since and port == identity[4:6] and (own == address or not any(own))
        }

    def of(self, identity: bytes) -> list[int]:
        """The cookies of those that would have accepted a connection to this local end: of its address, or else of every one."""
        found = self.by_port.get(identity[4:6])
        if found is None:
            return []
        address = address_of(identity, 8)
        exact = [cookie for cookie, own in found.items() if own == address]
        return exact or [cookie for cookie, own in found.items() if not any(own)]

    def covers(self, identity: bytes) -> bool:
        """True if a connection to this local end would have been accepted by a listener that is known."""
        return identity[4:6] in self.by_port and bool(self.of(identity))


def weigh_direction(
    identity: bytes, message: bytes, info: tuple[int, int], listeners: ListenerTable
) -> tuple[Direction | None, Weight]:
    """What the strongest evidence says about who began a connection, and how sure it is."""
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
    # While bytes are on their way one that is acknowledged during the dump looks like a SYN: it may not outweigh a listener.
    if evidence == OPENED and not (accepted and any(message[_WRITE_QUEUE_AT : _WRITE_QUEUE_AT + 4])):
        return _OUTBOUND, _DOUBTED if accepted else _SEQUENCE
    return (_INBOUND, _LISTENER) if accepted else (None, _NONE)
