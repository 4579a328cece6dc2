"""Dump messages as rows that can be compared: what changed between two dumps?

Wanted: the answer "new, changed, or the same" for up to 100,000 sockets in each dump, in a fraction of the time that the
kernel needs to write a message (about 1 µs). So a compiled format cuts a message into pieces: head, identity, cookie,
rest up to ``tcp_info``, counters. The pieces of two dumps are compared as one tuple. There is a format for each message
length: sockets of one kind have one length, so that one `struct.Struct.iter_unpack` reads a whole datagram. Bytes that
change without traffic (timers, times since the last segment) lie between the pieces.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._compiled import speedups
from .._model import IPV4_MAPPED
from ._constants import AF_INET6, SOCK_DIAG_BY_FAMILY, TIMER_TIME_WAIT, DiagAttribute, SocketState, TcpInfo
from ._messages import ATTRIBUTES_AT, HEADER, align, find_attribute

Pieces = tuple[Any, ...]
"""Head (length, type, flags), identity (family to device), cookie, rest (from uid), counters."""
Columns = tuple[tuple[str, tuple[slice, ...]], ...]
"""The numbers that are compared in many rows together: their size as a letter of `struct`, and where each row has them."""

_IDENTITY_SIZE = 44
_ENDS = slice(4, 6), slice(6, 8), slice(8, 24), slice(24, 40), slice(40, _IDENTITY_SIZE)
"""Ports, addresses and device in an identity."""
_DEVICE = struct.Struct("=40xI")
_REST_AT = HEADER.size + 64
"""Offset of the rest, which begins with uid and inode."""
_COUNTERS_AT = int(TcpInfo.BYTES_ACKED)
_COUNTERS_SIZE = 40
"""From ``tcpi_bytes_acked`` to ``tcpi_data_segs_out``: all traffic changes something in it."""
_TOTALS = struct.Struct("=QQ24xQQ24x")
"""``tcpi_bytes_acked`` and ``tcpi_bytes_received`` in the counters of two rows; 64 bits never wrap."""
_RECEIVED = struct.Struct("=8xQ16xI4x")
"""``tcpi_bytes_received`` and ``tcpi_data_segs_in`` in a row's counters."""
_ONE, _NO_SEGMENTS = struct.pack("=Q", 1), bytes(4)
_ROW = struct.Struct("=IHHII BBBB 2s2s 16s16s I Q IIIII")
"""``struct nlmsghdr`` and ``struct inet_diag_msg``."""
_STATE_AT, _TIMER_AT, _PORTS_AT = HEADER.size + 1, HEADER.size + 2, HEADER.size + 4
NO_PORT = bytes(2)
_FIRST = f"={_STATE_AT}xBBx2sH52xI{{}}x4sQ{{}}x4sB23xI72xI16xQ16xI8xI32xI4xQQ"
"""For `RowFormat.first`, with the distances to the cgroup and from there to ``tcp_info``."""
_QUEUE_END = HEADER.size + 64
_FIRST_END = int(TcpInfo.BYTES_RETRANS) + 8
REMAINS = frozenset({SocketState.TIME_WAIT, SocketState.SYN_RECV})
"""States of rows whose sockets do not exist any more, or do not exist yet."""
_MAX_FORMATS = 256
"""Most formats that are kept; a kernel has a dozen message lengths."""


def encode_row(
    family: int,
    state: int,
    ports: tuple[bytes, bytes],
    addresses: tuple[bytes, bytes],
    cookie: int,
    *,
    uid: int,
    inode: int = 0,
    device: int = 0,
) -> bytes:
    """The row that a dump would have, without ``tcp_info``, of a socket that another source reported.

    Args:
        family: As in a row, like everything else here.
        state: `SocketState`.
        ports: Local and remote port, in network order.
        addresses: Local and remote address, of 4 or 16 bytes.
        cookie: The socket's cookie.
        uid: The user who made it.
        inode: Its inode; 0 if unknown.
        device: Index of the interface that it is bound to.
    """
    head = _ROW.size, SOCK_DIAG_BY_FAMILY, 0, 0, 0
    return _ROW.pack(*head, family, state, 0, 0, *ports, *addresses, device, cookie, 0, 0, 0, uid, inode)


@attrs.frozen
class RowFormat:
    """How to cut a message of one length."""

    length: int
    stride: int
    """Distance to the next message."""
    info: int
    """Offset of ``tcp_info``; 0 when there is none."""
    info_length: int
    format: struct.Struct
    info_header: bytes
    """What the rest ends with if ``tcp_info`` is where it is expected."""
    cgroup: int
    """Offset of the cgroup's number; 0 when there is none."""
    first: struct.Struct | None
    """What the first row of a connection tells, in short (`_first_rows`): state, timer, ports, write queue, header and number of
    the cgroup, header of ``tcp_info``, the state there, and its numbers for `evidence_in`; `None`: it is not in this order."""
    columns: Columns
    """All pieces, as columns (`columns_of`)."""
    scan: Callable[..., tuple[int, int, int]] | None
    """`_scan.scan` in C; `None` where that is not used."""

    @classmethod
    def learn(cls, message: bytes) -> RowFormat:
        """Learn the format of messages like this one from its attributes.

        Only the first 88 bytes are always the same: which attributes follow depends on the kernel, the socket and
        this process's privileges.
        """
        length = len(message)
        stride = align(length)
        start, size = find_attribute(message, ATTRIBUTES_AT, length, DiagAttribute.INFO) or (0, 0)
        cgroup, _ = find_attribute(message, ATTRIBUTES_AT, length, DiagAttribute.CGROUP_ID) or (0, 0)
        if size < _COUNTERS_AT + _COUNTERS_SIZE:
            rest, counters_at, counters, header = length - _REST_AT, length, 0, b""
        else:
            rest, counters_at, counters = start - _REST_AT, start + _COUNTERS_AT, _COUNTERS_SIZE
            header = message[start - 4 : start]
        between, tail = counters_at - _REST_AT - rest, stride - counters_at - counters
        text = f"=Q8x{_IDENTITY_SIZE}sQ12x{rest}s{between}x{counters}s{tail}x"
        gaps = cgroup - 4 - _QUEUE_END, start - 4 - (cgroup + 8)
        first = struct.Struct(_FIRST.format(*gaps)) if min(gaps) >= 0 and size >= _FIRST_END else None
        scan = None if speedups is None else speedups.Rows(length, stride, rest, counters_at, counters).scan
        pieces = (counters_at, counters), (HEADER.size, _IDENTITY_SIZE + 8), (_REST_AT, rest), (0, 8)
        columns = columns_of(stride, pieces)
        return cls(length, stride, start, size, struct.Struct(text), header, cgroup, first, columns, scan)


def columns_of(stride: int, pieces: Iterable[tuple[int, int]]) -> Columns:
    """The columns, of whole words, that cover these pieces (offset and size) of rows of this length."""
    words = dict.fromkeys(word for at, size in pieces for word in range(at // 4, (at + size + 3) // 4))
    long = [word // 2 for word in words if not (stride % 8 or word % 2) and word + 1 in words]
    short = [word for word in words if word // 2 not in long]
    numbers = ("Q", 8, long), ("I", 4, short)
    return tuple(
        (code, tuple(slice(at, None, stride // size) for at in places)) for code, size, places in numbers if places
    )


class RowFormats:
    """The formats that are known so far, by message length."""

    def __init__(self) -> None:
        self._known: dict[int, RowFormat] = {}

    def of(self, data: bytes, offset: int, length: int) -> RowFormat:
        """The format of the message at `offset`."""
        known = self._known.get(length)
        if known is None:
            if len(self._known) >= _MAX_FORMATS:
                self._known.clear()
            known = self._known[length] = RowFormat.learn(data[offset : offset + length])
        return known

    def cut(self, message: bytes) -> tuple[Pieces, RowFormat]:
        """The pieces of a single message, as a dump has them, and its format."""
        form = self.of(message, 0, len(message))
        return form.format.unpack(message.ljust(form.stride, b"\0")), form


def info_of(message: bytes, form: RowFormat, pieces: Pieces) -> tuple[int, int]:
    """Offset and length of ``tcp_info`` in this message; (0, 0) when it has none.

    Messages of one length may still be built differently. The pieces include the header before ``tcp_info``, which tells.
    """
    if form.info_header and pieces[3].endswith(form.info_header):
        return form.info, form.info_length
    return find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO) or (0, 0)


def is_remains(message: bytes) -> bool:
    """True for connection requests, for what is left of a socket in TIME_WAIT or orphaned FIN_WAIT2, and for one just closed.

    A dump writes a row after it released the lock of its hash table (``inet_diag_dump_icsk``). A connection that is closed
    meanwhile gives back its local port first (``inet_put_port``), so the row has none, in whatever state. Its end is
    reported otherwise, with the port.
    """
    if message[_TIMER_AT] == TIMER_TIME_WAIT or message[_STATE_AT] in REMAINS:
        return True
    return message[_PORTS_AT : _PORTS_AT + 2] == NO_PORT != message[_PORTS_AT + 2 : _PORTS_AT + 4]


class Change(enum.IntEnum):
    """How a socket's counters changed between two rows."""

    NONE = 0
    """No payload, no data segment and no smaller round trip: keep-alives at most."""
    GROWN = 1
    RESTARTED = 2
    """A total fell: the kernel cleared them (``tcp_disconnect``)."""


_NONE, _GROWN, _RESTARTED = Change


def counters_changed(old: Pieces, new: Pieces) -> Change:
    """Compare the counters of two rows of a socket."""
    before, after = old[4], new[4]
    if before[:16] == after[:16]:
        return _NONE if before[28:] == after[28:] else _GROWN
    counters = before + after
    if len(counters) == _TOTALS.size:
        acked, received, acked_now, received_now = _TOTALS.unpack(counters)
        if acked_now < acked or received_now < received:
            return _RESTARTED
    return _GROWN


def is_fin_alone(before: bytes, after: bytes) -> bool:
    """True if one byte and no data segment came between two rows: it is the peer's FIN, whatever state the row has."""
    if len(before) != _COUNTERS_SIZE or len(after) != _COUNTERS_SIZE:
        return False
    received, segments = _RECEIVED.unpack(before)
    return bool(_RECEIVED.unpack(after) == (received + 1, segments))


def is_first_fin(counters: bytes) -> bool:
    """`is_fin_alone` for a socket's first row, before which nothing was received."""
    return counters[8:16] == _ONE and counters[32:36] == _NO_SEGMENTS


def identity_differs(old: Pieces, new: Pieces) -> bool:
    """True if state, addresses, device, user or inode changed."""
    before, after = old[1], new[1]
    return bool(before[1] != after[1] or before[4:] != after[4:] or old[3][:8] != new[3][:8])


def address_of(identity: bytes, at: int) -> bytes:
    """The local (at 8) or remote (at 24) address of an identity, in 4 or 16 bytes; a v4-mapped one is IPv4."""
    if identity[0] != AF_INET6:
        return identity[at : at + 4]
    return identity[at : at + 16].removeprefix(IPV4_MAPPED)


def device_of(identity: bytes) -> int:
    """Index of the interface that a socket is bound to; 0: none."""
    device: int = _DEVICE.unpack(identity)[0]
    return device


def ends_completed(identity: bytes, other: bytes) -> bytes:
    """An identity whose missing ports, addresses and device are taken from another one of the same connection."""
    if identity[0] != other[0]:  # IPV6_ADDRFORM
        return identity
    ends = (identity[part] if any(identity[part]) else other[part] for part in _ENDS)
    return identity[: _ENDS[0].start] + b"".join(ends)


def same_connection(before: bytes, after: bytes) -> bool:
    """True if two identities of one TCP socket may belong to one connection.

    ``connect(AF_UNSPEC)`` dissolves a connection; the socket, with the same cookie, may then have another one. The kernel
    forgets the remote port of a failed attempt, and ``IPV6_ADDRFORM`` changes the family: both keep the connection.
    """
    if SocketState.LISTEN in (before[1], after[1]):
        return before[1] == SocketState.LISTEN and not any(after[6:8])
    same_port = before[4:6] == after[4:6]
    if not any(before[6:8]) or not any(after[6:8]):
        return same_port or not any(before[4:6]) or not any(after[4:6])
    # A connection that a record saw begin has no local port until a dump has it.
    local = same_port or not any(before[4:6])
    return local and before[6:8] == after[6:8] and address_of(before, 24) == address_of(after, 24)
