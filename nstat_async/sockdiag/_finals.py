"""The final counts of sockets: how many payload bytes came in, to the byte, and whether that is proven.

A destroyed TCP socket reports its whole ``tcp_info``, yet always as CLOSE, so the
message does not say whether the peer's FIN is among ``tcpi_bytes_received``. What proves it
either way:

1. no data segment ever came: no payload;
2. the last dump saw a state behind the FIN (CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT);
3. no data segment came since the last dump: what was received since is the FIN, or nothing;
4. the other end, if it is on this machine: a FIN is received behind everything that was sent;
5. what is left in the kernel after an orderly end: FIN_WAIT2 -- the FIN had not come; TIME_WAIT
   with something unread -- it had, or the end would have been a reset.

TIME_WAIT that is as old as the last segment of the socket makes likely that this was the FIN, a younger one that the
FIN came afterwards, and neither more: one that comes again renews it (``tcp_timewait_state_process``).

Beyond these sock_diag cannot tell: the likelier count is reported, as uncertain by one byte.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from .._model import Direction
from ._constants import TIMER_TIME_WAIT, SocketState, TcpInfo
from ._direction import extra_sequence_numbers
from ._entry import Entry, Weight
from ._messages import COOKIE_AT, HEADER

_TIME_WAIT_MS = 60_000
"""``TCP_TIMEWAIT_LEN``."""
_TICKS_MS = 20
"""Times of the kernel are jiffies, of 10 ms at most: two of them differ by no more than that when they are equal."""
FIN_RECEIVED = frozenset({SocketState.CLOSE_WAIT, SocketState.LAST_ACK, SocketState.CLOSING, SocketState.TIME_WAIT})
_STATE_AT = int(TcpInfo.STATE)
_U32 = struct.Struct("=I")
_EXPIRES_AT = HEADER.size + 52
_QUEUES = struct.Struct("=II")
_QUEUES_AT = HEADER.size + 56
_FAILED_ATTEMPT = 3
"""What ``tcp_disconnect`` leaves in the write queue of a failed attempt: its SYN and 2."""


class Fin(NamedTuple):
    """How many of the received bytes are the peer's FIN."""

    counted: int
    proven: bool


class Remains(enum.Enum):
    """What is left in the kernel of a socket that ended."""

    UNKNOWN = enum.auto()
    NOTHING = enum.auto()
    FIN_WAIT2 = enum.auto()
    TIME_WAIT = enum.auto()


class LastWords(NamedTuple):
    """What the removal of a TCP socket says."""

    received: int
    """Bytes received, a FIN included."""
    data_segments: int | None
    """Received with data; `None` before Linux 4.6."""
    payload_sent: int
    """Bytes sent, without what was sent again."""
    unread: int
    """Bytes that nobody read, a FIN included."""
    unacknowledged: int
    """Sequence numbers that the peer did not acknowledge."""
    acknowledged: int
    extra: int | None
    """Sequence numbers used for SYN and FIN."""
    unanswered: int
    """How often it was sent again, or probed, without an answer."""
    repeated: int
    """Segments that were sent again, ever."""
    segments_in: int
    segments_out: int
    data_segments_out: int
    delivered: int
    """Segments that the peer acknowledged: those with data, a SYN (of an acceptor: the answer to it), a FIN that was alone."""
    window: int
    """What the peer offered; 0 while nobody answered."""
    last_segment_ms: int
    """Since a segment came that was in order."""

    @property
    def cleared(self) -> bool:
        """True if the kernel forgot its counters (``tcp_disconnect``)."""
        return not (self.segments_in or self.segments_out)

    @property
    def quiet(self) -> bool:
        """True if it did not end with the last segment that came, but some time later."""
        return self.last_segment_ms > _TICKS_MS


_FIELDS = (
    (TcpInfo.RETRANSMITS, "B"),
    (TcpInfo.PROBES, "B"),
    (TcpInfo.LAST_ACK_RECV, "I"),
    (TcpInfo.TOTAL_RETRANS, "I"),
    (TcpInfo.BYTES_ACKED, "Q"),
    (TcpInfo.BYTES_RECEIVED, "Q"),
    (TcpInfo.SEGS_OUT, "I"),
    (TcpInfo.SEGS_IN, "I"),
    (TcpInfo.DATA_SEGS_IN, "I"),
    (TcpInfo.DATA_SEGS_OUT, "I"),
    (TcpInfo.DELIVERED, "I"),
    (TcpInfo.BYTES_SENT, "Q"),
    (TcpInfo.BYTES_RETRANS, "Q"),
    (TcpInfo.SND_WND, "I"),
)
"""What is read of ``tcp_info``, in its order."""


def _in_one() -> struct.Struct:
    """All of them in one format."""
    text, at = "=", 0
    for field, kind in _FIELDS:
        text += f"{field - at}x{kind}"
        at = field + struct.calcsize(kind)
    return struct.Struct(text)


_INFO = _in_one()


def last_words(message: bytes, start: int, length: int) -> LastWords:
    """Read the last message of a TCP socket, or one of a living socket; what its kernel does not have is 0."""
    unread, unacknowledged = _QUEUES.unpack_from(message, _QUEUES_AT)
    if length < _INFO.size:
        known, at = message[start : start + length].ljust(_INFO.size, b"\0"), 0
    else:
        known, at = message, start
    (retransmits, probes, last_segment, repeated, acknowledged, received, segments_out, segments_in, data_segments,
     data_out, delivered, sent, sent_again, window) = _INFO.unpack_from(known, at)  # fmt: skip
    return LastWords(
        received,
        data_segments if length >= TcpInfo.DATA_SEGS_IN + 4 else None,
        sent - sent_again,
        unread,
        unacknowledged,
        acknowledged,
        extra_sequence_numbers(message, start, length),
        retransmits + probes,
        repeated,
        segments_in,
        segments_out,
        data_out,
        delivered,
        window,
        last_segment,
    )


def is_behind_fin(message: bytes, start: int, length: int) -> bool:
    """True if the FIN is among the bytes of a row: its state is read twice, and the second one is the counters' own."""
    return message[HEADER.size + 1] in FIN_RECEIVED or (
        length > _STATE_AT and message[start + _STATE_AT] in FIN_RECEIVED
    )


def sent_fin(entry: Entry, words: LastWords) -> bool | None:
    """True if a FIN is among the sequence numbers; `None`: that, or a SYN.

    Who began is known by a listener, or a dump. Else the segments tell: a FIN that is acknowledged was one more than those with
    data and the SYN, unless it came with the last data of a listener that nobody saw.
    """
    if words.extra != 1:
        return words.extra == 2
    if entry.direction is not None and entry.weight is not Weight.DOUBTED:
        return entry.direction is not Direction.OUTBOUND
    return None if words.repeated else {1: False, 2: True}.get(words.delivered - words.data_segments_out)


def is_orderly(entry: Entry, words: LastWords) -> bool | None:
    """True if the peer acknowledged a FIN; `None`: that, or a SYN."""
    return False if words.unacknowledged else sent_fin(entry, words)


def fin_by_dump(entry: Entry, words: LastWords) -> Fin | None:
    """What the counters and the last dump prove (1 to 3); `None`: nothing."""
    if not words.received or words.data_segments == 0:
        return Fin(min(words.received, 1), proven=True)
    if entry.state in FIN_RECEIVED or (entry.report is not None and entry.report.has_fin):
        return Fin(1, proven=True)
    if entry.report is None or words.data_segments is None:
        return None
    before = last_words(*entry.report.raw)
    came = words.received - before.received
    if not before.data_segments or before.data_segments != words.data_segments or came not in {0, 1}:
        return None
    # A dump does not lock the socket: a FIN that comes meanwhile may be counted in a row of the state before. Whoever
    # dumps may lose the processor between the two, for long (``lock_sock_fast`` in ``tcp_get_info``): the last segment
    # has to be older than the dump.
    if came or entry.seen > entry.changed or before.last_segment_ms > _TICKS_MS + 1000 * entry.reading:
        return Fin(came, proven=True)
    return None


def fin_by_peer(words: LastWords, peer: LastWords) -> Fin | None:
    """What the other end's counts prove (4); `None`: it cannot be the other end, or has no counts any more."""
    if peer.cleared or words.received > peer.payload_sent + 1 or peer.received > words.payload_sent + 1:
        return None
    return Fin(int(words.received == peer.payload_sent + 1), proven=True)


def remains_of(message: bytes, found: bytes | None, *, known: bool) -> Remains:
    """What a look-up found under the addresses of a socket: its own remains, or nothing of it.

    Args:
        message: The socket's last message.
        found: The answer; `None`: nothing is there.
        known: The socket was in a dump: then its remains have its cookie (``inet_twsk_alloc``), else one of their own.
    """
    if not found or found[HEADER.size + 2] != TIMER_TIME_WAIT:
        return Remains.NOTHING
    if known and found[COOKIE_AT : COOKIE_AT + 8] != message[COOKIE_AT : COOKIE_AT + 8]:
        return Remains.NOTHING
    return Remains.FIN_WAIT2 if found[HEADER.size + 1] == SocketState.FIN_WAIT2 else Remains.TIME_WAIT


def fin_by_remains(words: LastWords, remains: Remains, found: bytes | None, *, since_ms: float, here: bool) -> Fin:
    """What is left of a socket that ended in order, proves (5), or makes likely.

    Args:
        words: Its last words.
        remains: What is left.
        found: The message of that.
        since_ms: From the last words until now.
        here: It was seen to be closed here, while the other end was open.
    """
    if remains is Remains.FIN_WAIT2:
        return Fin(0, proven=True)
    if remains is Remains.TIME_WAIT:
        assert found is not None
        if words.unread:
            return Fin(1, proven=True)
        (expires,) = _U32.unpack_from(found, _EXPIRES_AT)
        older = _TIME_WAIT_MS - expires - words.last_segment_ms - since_ms
        # What is older was read late: who read the end of the stream may have held the socket, an orphan goes at once.
        return Fin(int(abs(older) <= _TICKS_MS or (older > 0 and words.quiet)), proven=False)
    # A FIN would have left something of what was closed here first. Where the other end was first the socket goes with
    # the last segment; and one unread byte is the FIN, more likely: unread data makes an end a reset (``tcp_close``).
    return Fin(int(words.unread <= 1 and not (here or words.quiet)), proven=False)


def has_remote_port(message: bytes) -> bool:
    """False where the kernel forgot the remote port, or never knew one."""
    return any(message[HEADER.size + 6 : HEADER.size + 8])


def is_unused(message: bytes) -> bool:
    """True for a socket that was made and closed, and had neither port nor peer."""
    return not any(message[HEADER.size + 4 : HEADER.size + 8]) and not any(message[HEADER.size + 24 : HEADER.size + 40])


def was_disconnected(message: bytes, start: int, length: int) -> bool:
    """True if a connection was aborted by its owner (``SO_LINGER`` with time 0), or dissolved by ``AF_UNSPEC``.

    ``tcp_disconnect`` forgets the peer's port, sets every counter to zero and moves
    ``write_seq`` behind the peer's window. The kernel treats a failed attempt the same
    way, but that has no window: nothing was lost with it.
    """
    if length < TcpInfo.SEGS_IN + 4 or has_remote_port(message):
        return False
    words = last_words(message, start, length)
    return words.cleared and words.unacknowledged > _FAILED_ATTEMPT
