"""The final counts of TCP sockets: how many payload bytes were received, to the byte, and whether that is proven.

A destroyed TCP socket reports its whole ``tcp_info``, but its state is always CLOSE. So the message does not say
whether the peer's FIN is among ``tcpi_bytes_received``. This proves it:

1. No data segment ever came: there is no payload.
2. The last dump saw a state after the FIN (CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT).
3. No data segment came since the last dump: what was received since then is the FIN, or nothing.
4. The other end, if it is on this machine: a FIN comes after everything that was sent.
5. What is left in the kernel after an orderly end. FIN_WAIT2: the FIN had not come. TIME_WAIT with unread data: it
   had, or the end would have been a reset.

A TIME_WAIT as old as the last segment of the socket makes it likely that this segment was the FIN; a younger one, that
the FIN came later. Neither is proof, because a repeated FIN renews TIME_WAIT (``tcp_timewait_state_process``).

Where nothing proves it, the likelier count is reported, as uncertain by one byte.
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
"""Milliseconds by which two equal times may seem to differ: the kernel measures both in jiffies, of at most 10 ms."""
FIN_RECEIVED = frozenset({SocketState.CLOSE_WAIT, SocketState.LAST_ACK, SocketState.CLOSING, SocketState.TIME_WAIT})
"""States of a socket that received the peer's FIN."""
_STATE_AT = int(TcpInfo.STATE)
_SILENT_AT, _SILENT = int(TcpInfo.LAST_DATA_SENT), struct.Struct("=I4xII")
"""Milliseconds since data was sent, since data came, and since the last acknowledgement."""
_U32 = struct.Struct("=I")
_EXPIRES_AT = HEADER.size + 52
_QUEUES = struct.Struct("=II")
_QUEUES_AT = HEADER.size + 56
_FAILED_ATTEMPT = 3
"""Length that ``tcp_disconnect`` leaves to the write queue of a failed attempt: its SYN and 2."""


class Fin(NamedTuple):
    """How many of the received bytes are the peer's FIN."""

    counted: int
    proven: bool


class Remains(enum.Enum):
    """What is left in the kernel of a socket that ended."""

    UNKNOWN = enum.auto()
    """It was not asked for: there was no need."""
    UNCLEAR = enum.auto()
    """The answer proves nothing: none came, it may be about another connection, or TIME_WAIT is not kept (``tcp_max_tw_buckets``)."""
    NOTHING = enum.auto()
    FIN_WAIT2 = enum.auto()
    TIME_WAIT = enum.auto()


class LastWords(NamedTuple):
    """The counters of a TCP socket in its removal, or in the last row of it."""

    received: int
    """Bytes received, a FIN included."""
    data_segments: int | None
    """Segments received with data; `None` before Linux 4.6."""
    payload_sent: int
    """Bytes sent, without those that were sent again."""
    unread: int
    """Bytes that the program did not read, a FIN included."""
    unacknowledged: int
    """Sequence numbers that the peer did not acknowledge."""
    acknowledged: int
    """Bytes that the peer acknowledged, the opener's SYN and a FIN included."""
    extra: int | None
    """Sequence numbers used for SYN and FIN; `None` if unknown."""
    unanswered: int
    """Retransmissions and probes since the last answer."""
    repeated: int
    """All segments that were sent again."""
    segments_in: int
    segments_out: int
    data_segments_out: int
    delivered: int
    """Segments that the peer acknowledged: those with data, the SYN (of an acceptor: the answer to it), a FIN without data."""
    window: int
    """The window that the peer offered; 0 before its first answer."""
    last_segment_ms: int
    """Milliseconds since the last segment that came in order."""

    @property
    def cleared(self) -> bool:
        """True if the kernel forgot its counters (``tcp_disconnect``)."""
        return not (self.segments_in or self.segments_out)

    @property
    def quiet(self) -> bool:
        """True if the connection ended some time after the last segment, not with it."""
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
"""The fields of ``tcp_info`` that are read, by offset, with their formats."""


def _info_format() -> struct.Struct:
    """One format that reads all `_FIELDS`."""
    text, at = "=", 0
    for field, kind in _FIELDS:
        text += f"{field - at}x{kind}"
        at = field + struct.calcsize(kind)
    return struct.Struct(text)


_INFO = _info_format()


def last_words(message: bytes, start: int, length: int) -> LastWords:
    """Read the counters of a TCP socket's message; those that the kernel does not have are 0."""
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


def least_age(message: bytes, start: int, length: int) -> float:
    """How many seconds a connection had at least been established for when it ended; 0 if that is not known.

    It did not send, receive or hear anything for so long: each of these times begins with the connection
    (``tcp_finish_connect``, ``tcp_create_openreq_child``).
    """
    if length < _SILENT_AT + _SILENT.size:
        return 0.0
    longest = max(_SILENT.unpack_from(message, start + _SILENT_AT)) - _TICKS_MS
    if longest <= 0:
        return 0.0
    words = last_words(message, start, length)
    return 0.0 if words.cleared or not (words.received or words.payload_sent) else longest / 1000


def is_behind_fin(message: bytes, start: int, length: int) -> bool:
    """True if the FIN is among the bytes of a row.

    A row has the state twice: as the kernel read it first, and in ``tcp_info``, together with the counters.
    """
    return message[HEADER.size + 1] in FIN_RECEIVED or (
        length > _STATE_AT and message[start + _STATE_AT] in FIN_RECEIVED
    )


def sent_fin(entry: Entry, words: LastWords) -> bool | None:
    """True if a FIN is among the sequence numbers; `None`: either a FIN or a SYN is.

    A known direction tells which. Otherwise the acknowledged segments do: the SYN is one and each with data is one, so a
    further one is a FIN. That misses a FIN which came with the last data of an accepted connection.
    """
    if words.extra != 1:
        return words.extra == 2
    if entry.direction is not None and entry.weight is not Weight.DOUBTED:
        return entry.direction is not Direction.OUTBOUND
    return None if words.repeated else {1: False, 2: True}.get(words.delivered - words.data_segments_out)


def is_orderly(entry: Entry, words: LastWords) -> bool | None:
    """True if the peer acknowledged a FIN; `None`: it acknowledged a FIN or a SYN."""
    return False if words.unacknowledged else sent_fin(entry, words)


def fin_by_dump(entry: Entry, words: LastWords) -> Fin | None:
    """What the counters and the last dump prove (rules 1 to 3); `None` if they prove nothing."""
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
    # A dump does not lock the socket: a row may have the state before a FIN, and the counters after it. The dumping
    # thread may lose the processor in between for long (``lock_sock_fast`` in ``tcp_get_info``). So the last segment
    # must be older than the dump.
    if came or entry.last_seen > entry.changed or before.last_segment_ms > _TICKS_MS + 1000 * entry.reading:
        return Fin(came, proven=True)
    return None


def fin_by_peer(words: LastWords, peer: LastWords) -> Fin | None:
    """What the other end's counts prove (rule 4); `None`: it is another connection, or its counts were cleared."""
    if peer.cleared or words.received > peer.payload_sent + 1 or peer.received > words.payload_sent + 1:
        return None
    return Fin(int(words.received == peer.payload_sent + 1), proven=True)


def is_pair(words: LastWords, peer: LastWords) -> bool:
    """True if each of two ends received what the other one sent, in as many segments: all of it, and perhaps a FIN."""
    return (
        0 <= words.received - peer.payload_sent <= 1
        and 0 <= peer.received - words.payload_sent <= 1
        and words.data_segments == peer.data_segments_out
        and peer.data_segments == words.data_segments_out
    )


def remains_of(message: bytes, found: bytes | None, *, known: bool) -> Remains:
    """What is left of a socket, by the look-up of its addresses.

    Args:
        message: The socket's last message.
        found: The answer; `None`: nothing has these addresses.
        known: A dump had the socket: then its remains have the same cookie (``inet_twsk_alloc``), otherwise another one.
    """
    if not found or found[HEADER.size + 2] != TIMER_TIME_WAIT:
        return Remains.NOTHING
    if known and found[COOKIE_AT : COOKIE_AT + 8] != message[COOKIE_AT : COOKIE_AT + 8]:
        return Remains.NOTHING
    return Remains.FIN_WAIT2 if found[HEADER.size + 1] == SocketState.FIN_WAIT2 else Remains.TIME_WAIT


def fin_by_remains(words: LastWords, remains: Remains, found: bytes | None, *, since_ms: float, here: bool) -> Fin:
    """What the remains of a socket that ended in order prove (rule 5), or make likely.

    Args:
        words: The counters in its removal.
        remains: What is left of it.
        found: The message about the remains.
        since_ms: Milliseconds since the removal was read.
        here: A dump saw that this end had closed and the other one had not.
    """
    if remains is Remains.FIN_WAIT2:
        return Fin(0, proven=True)
    if remains is Remains.TIME_WAIT:
        assert found is not None
        if words.unread:
            return Fin(1, proven=True)
        (expires,) = _U32.unpack_from(found, _EXPIRES_AT)
        older = _TIME_WAIT_MS - expires - words.last_segment_ms - since_ms
        # If TIME_WAIT is older, the removal was read late: a process may have held the socket; an orphan goes at once.
        return Fin(int(abs(older) <= _TICKS_MS or (older > 0 and words.quiet)), proven=False)
    # Nothing is left. If this end closed first, a FIN would have left TIME_WAIT. If the other end did, the socket goes
    # with the last segment. A single unread byte is probably the FIN: unread data would have made the end a reset
    # (``tcp_close``).
    return Fin(int(words.unread <= 1 and not (here or words.quiet)), proven=False)


def has_remote_port(message: bytes) -> bool:
    """False where the kernel forgot the remote port, or never knew one."""
    return any(message[HEADER.size + 6 : HEADER.size + 8])


def is_unused(message: bytes) -> bool:
    """True for a socket that was closed without ever having a port or a peer."""
    return not any(message[HEADER.size + 4 : HEADER.size + 8]) and not any(message[HEADER.size + 24 : HEADER.size + 40])


def was_disconnected(message: bytes, start: int, length: int) -> bool:
    """True if the owner aborted a connection (``SO_LINGER`` with time 0), or dissolved it (``connect`` with ``AF_UNSPEC``).

    ``tcp_disconnect`` forgets the peer's port, clears every counter and moves ``write_seq`` beyond the
    peer's window. It does the same for a failed attempt, but that has no window, and no counts were lost.
    """
    if length < TcpInfo.SEGS_IN + 4 or has_remote_port(message):
        return False
    words = last_words(message, start, length)
    return words.cleared and words.unacknowledged > _FAILED_ATTEMPT
