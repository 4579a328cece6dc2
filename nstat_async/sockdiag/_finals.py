"""The final counts of sockets: how many payload bytes came in, to the byte.

A destroyed TCP socket reports its whole ``tcp_info``, yet always as CLOSE, so the
message does not say whether the peer's FIN is among ``tcpi_bytes_received``. The
evidence, strongest first:

1. no data segment ever came: no payload;
2. the last dump saw a state behind the FIN (CLOSE_WAIT, LAST_ACK, CLOSING), or
   FIN_WAIT2, which a socket with an owner leaves by the FIN;
3. one unread byte (``rcv_nxt`` ahead of ``copied_seq``) at an orderly end: that is the
   FIN, because unread data would have made it a reset (``tcp_close``);
4. a reset: no FIN, as far as anyone can tell (a FIN before an unread end counts as a byte then);
5. what is left in the kernel after an orderly end: nothing -- we closed second, the FIN
   came first; FIN_WAIT2 -- it had not come; TIME_WAIT -- it came, before the end
   or after: before, if the remains are older than the notification.

Number 5 needs a look-up and is rare on sockets that lived through a poll. Nothing left and
nobody known to have listened may also be a reset of a connection that we opened: then
the other end is looked at, which is in TIME_WAIT only if it is on this machine and closed
in order.
"""

from __future__ import annotations

import struct
import sys

from .._model import Direction
from ._constants import TIMER_TIME_WAIT, SocketState, TcpInfo
from ._direction import extra_sequence_numbers
from ._entry import Entry, Weight
from ._messages import HEADER

_TIME_WAIT_MS = 60_000
"""``TCP_TIMEWAIT_LEN``."""
_NOTICE_MS = 50
"""Notifications are written by a work queue and read by us: remains older than this were there before."""
_BEHIND_FIN = frozenset(
    {
        SocketState.CLOSE_WAIT,
        SocketState.LAST_ACK,
        SocketState.CLOSING,
        SocketState.TIME_WAIT,
        SocketState.FIN_WAIT2,
    }
)
_U32 = struct.Struct("=I")
_EXPIRES_AT = HEADER.size + 52
_RECEIVE_QUEUE_AT = HEADER.size + 56
_WRITE_QUEUE_AT = HEADER.size + 60
_FAILED_ATTEMPT = 3
"""What ``tcp_disconnect`` leaves in the write queue of a failed attempt: its SYN and 2."""


def received_bytes(message: bytes, start: int) -> int:
    """The bytes that a connection received, a FIN included."""
    return int.from_bytes(message[start + TcpInfo.BYTES_RECEIVED : start + TcpInfo.BYTES_RECEIVED + 8], sys.byteorder)


def fin_among_received(entry: Entry, message: bytes, start: int, length: int) -> int | None:
    """How many of the received bytes are a FIN; `None` when the kernel has to be asked (number 5).

    Args:
        entry: What was known of the socket before.
        message: Its last message.
        start: Offset of ``tcp_info``.
        length: Length of ``tcp_info``.
    """
    if length < TcpInfo.DATA_SEGS_IN + 4:
        return 1 if entry.state in _BEHIND_FIN else 0
    received = received_bytes(message, start)
    if not received or not _U32.unpack_from(message, start + TcpInfo.DATA_SEGS_IN)[0]:
        return min(received, 1)
    if entry.state in _BEHIND_FIN:
        return 1
    extra = extra_sequence_numbers(message, start, length)
    outbound = entry.direction is Direction.OUTBOUND and entry.weight is not Weight.DOUBTED
    orderly = extra == 2 or (extra == 1 and not outbound)
    if not orderly:
        return 0
    unread: int = _U32.unpack_from(message, _RECEIVE_QUEUE_AT)[0]
    if unread > 1:
        return 0  # not orderly after all
    return 1 if unread else None


def fin_by_remains(remains: bytes | None) -> int:
    """How many of the received bytes are a FIN, by what a look-up found under the socket's addresses."""
    if not remains or remains[HEADER.size + 2] != TIMER_TIME_WAIT:
        return 1  # nothing, or the listener: we closed second
    if remains[HEADER.size + 1] == SocketState.FIN_WAIT2:
        return 0
    expires: int = _U32.unpack_from(remains, _EXPIRES_AT)[0]
    return 1 if _TIME_WAIT_MS - expires > _NOTICE_MS else 0


def is_unused(message: bytes) -> bool:
    """True for a socket that was made and closed, and had neither port nor peer."""
    return not any(message[HEADER.size + 4 : HEADER.size + 8]) and not any(message[HEADER.size + 24 : HEADER.size + 40])


def was_disconnected(message: bytes, start: int, length: int) -> bool:
    """True if a connection was aborted by its owner (``SO_LINGER`` with time 0), or dissolved by ``AF_UNSPEC``.

    ``tcp_disconnect`` forgets the peer's port, sets every counter to zero and moves
    ``write_seq`` behind the peer's window. The kernel treats a failed attempt the same
    way, but that has no window: nothing was lost with it.
    """
    if length < TcpInfo.SEGS_IN + 4 or any(message[HEADER.size + 6 : HEADER.size + 8]):
        return False
    segments = message[start + TcpInfo.SEGS_OUT : start + TcpInfo.SEGS_IN + 4]
    (unacknowledged,) = _U32.unpack_from(message, _WRITE_QUEUE_AT)
    return not any(segments) and unacknowledged > _FAILED_ATTEMPT
