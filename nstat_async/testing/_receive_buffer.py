"""The receive side of a control socket: how much fits, and what is refused.

The rules are those of ``kern_control.c`` (``ctl_rcvbspace``, ``ctl_sbrcv_trim``) and
``uipc_socket2.c`` (``sbspace``):

- Room is what is left of the byte limit and, up to xnu-8796, of the *mbuf storage*
  limit too: eight times the byte limit, where the smallest record costs 256 bytes.
- Since xnu-2782 an ordinary record is refused when less than a quarter of the buffer
  is free; a critical one may use that quarter, and a quarter beyond the size that
  was set, while that stays within 256 KiB. Reading gives the extra room back.
- Nothing waits: a refused record is gone.
"""

from __future__ import annotations

from collections import deque

import attrs

__all__ = ["DEFAULT_RECEIVE_SPACE", "MAX_REQUEST", "ReceiveBuffer", "SocketStatistics"]

DEFAULT_RECEIVE_SPACE = 8192
"""Bytes that ``connect`` reserves for what the kernel sends."""
MAX_REQUEST = 2048
"""Bytes that ``connect`` reserves for one request."""
_MAX_SOCKET_BUFFER = 8 * 1024 * 1024
_MAX_AUTOMATIC_GROWTH = 256 * 1024
_EFFICIENCY = 8
_MBUF = 256
_MBUF_ROOM = 160
_CLUSTER = 2048
_BIG_CLUSTER = 4096


@attrs.frozen
class SocketStatistics:
    """The state of a control socket's receive side."""

    size: int
    """Byte limit of this moment."""
    ideal: int
    """Byte limit that was set."""
    queued_bytes: int
    queued_records: int
    refused: int
    """Records that did not fit since `connect`."""


def _mbuf_storage(size: int) -> int:
    """What a record costs in mbufs: a lone one, or one with a cluster."""
    if size <= _MBUF_ROOM:
        return _MBUF
    if size <= _CLUSTER:
        return _MBUF + _CLUSTER
    clusters = -(-size // _BIG_CLUSTER)
    return clusters * (_MBUF + _BIG_CLUSTER)


class ReceiveBuffer:
    """Records that wait for the client.

    Args:
        size: Byte limit, as ``connect`` sets it.
        critical_quarter: Critical records have a reserve (since xnu-2782).
        count_mbufs: Storage is limited too (up to xnu-8796).
    """

    def __init__(self, size: int, *, critical_quarter: bool, count_mbufs: bool) -> None:
        self._critical_quarter = critical_quarter
        self._count_mbufs = count_mbufs
        self._records: deque[tuple[bytes, int]] = deque()
        self._bytes = 0
        self._storage = 0
        self._size = self._ideal = size
        self.refused = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def size(self) -> int:
        """Byte limit of this moment."""
        return self._size

    @property
    def queued_bytes(self) -> int:
        """Bytes in all records (``FIONREAD``)."""
        return self._bytes

    @property
    def statistics(self) -> SocketStatistics:
        """The state, as a value."""
        return SocketStatistics(self._size, self._ideal, self._bytes, len(self._records), self.refused)

    def resize(self, size: int) -> int:
        """``SO_RCVBUF``: set the byte limit, clamped silently; returns what was set."""
        self._size = self._ideal = max(1, min(size, _MAX_SOCKET_BUFFER))
        return self._size

    def _room(self) -> int:
        room = self._size - self._bytes
        if self._count_mbufs:
            room = min(room, self._size * _EFFICIENCY - self._storage)
        return room

    def _admits(self, size: int, *, critical: bool) -> bool:
        room = self._room()
        if not self._critical_quarter:
            return room >= size
        if not critical:
            return room >= self._size >> 2 and room >= size
        if room >= size:
            return True
        limit = min(self._ideal + (self._ideal >> 2), _MAX_AUTOMATIC_GROWTH)
        if self._size >= limit:
            return False
        self._size = min(self._size + size - room + _MBUF, limit)
        return self._room() >= size

    def admits(self, size: int, *, critical: bool) -> bool:
        """True if a record of this size would be queued (a critical one may make the buffer grow)."""
        if self._admits(size, critical=critical):
            return True
        self.refused += 1
        return False

    def append(self, record: bytes, *, storage: int | None = None) -> None:
        """Queue a record that `admits` let in.

        Args:
            record: The bytes.
            storage: What it costs in mbufs, where its size does not say it: a batch has
                a cluster for the largest batch, however few messages are in it.
        """
        cost = _mbuf_storage(len(record)) if storage is None else storage
        self._records.append((record, cost))
        self._bytes += len(record)
        self._storage += cost

    def force(self, record: bytes) -> None:
        """Queue a record whatever there is room for (a fault, not the kernel's way)."""
        self._records.append((record, 0))
        self._bytes += len(record)

    def pop(self) -> bytes:
        """Take the first record.

        Raises:
            IndexError: There is none.
        """
        record, cost = self._records.popleft()
        self._bytes -= len(record)
        self._storage -= cost
        if self._size > self._ideal:
            self._size -= max(0, min(self._size - self._bytes, self._size - self._ideal))
        return record


BATCH_STORAGE = _MBUF + _BIG_CLUSTER
"""Mbuf storage of one batch."""
