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
BATCH_STORAGE = _MBUF + _BIG_CLUSTER
"""What a batch costs in mbufs: always a cluster for the largest batch, however few messages it has."""


def _mbuf_storage(size: int) -> int:
    """Bytes of mbufs that a record takes: an mbuf alone for a small record, else also clusters."""
    if size <= _MBUF_ROOM:
        return _MBUF
    if size <= _CLUSTER:
        return _MBUF + _CLUSTER
    clusters = -(-size // _BIG_CLUSTER)
    return clusters * (_MBUF + _BIG_CLUSTER)


class ReceiveBuffer:
    """Records that wait for the client. A reserve for critical records and a limit of mbuf storage depend on the release."""

    def __init__(self, size: int, *, critical_quarter: bool, count_mbufs: bool) -> None:
        self._critical_quarter = critical_quarter
        self._count_mbufs = count_mbufs
        self._records: deque[tuple[bytes, int]] = deque()
        self.queued_bytes = 0
        """Bytes in all records (``FIONREAD``)."""
        self._storage = 0
        self.size = self._ideal = size
        """Byte limit of this moment; `resize` sets it, critical records and reading move it."""

    def __len__(self) -> int:
        return len(self._records)

    def resize(self, size: int) -> int:
        """``SO_RCVBUF``: set the byte limit, clamped silently; returns what was set."""
        self.size = self._ideal = max(1, min(size, _MAX_SOCKET_BUFFER))
        return self.size

    def _room(self) -> int:
        room = self.size - self.queued_bytes
        if self._count_mbufs:
            room = min(room, self.size * _EFFICIENCY - self._storage)
        return room

    def admits(self, size: int, *, critical: bool) -> bool:
        """True if a record of this size would be queued (a critical one may make the buffer grow)."""
        room = self._room()
        if not self._critical_quarter:
            return room >= size
        if not critical:
            return room >= self.size >> 2 and room >= size
        if room >= size:
            return True
        limit = min(self._ideal + (self._ideal >> 2), _MAX_AUTOMATIC_GROWTH)
        if self.size >= limit:
            return False
        self.size = min(self.size + size - room + _MBUF, limit)
        return self._room() >= size

    def append(self, record: bytes, *, storage: int | None = None) -> None:
        """Queue a record that `admits` let in; `storage` is its cost in mbufs if that does not follow from its size."""
        cost = _mbuf_storage(len(record)) if storage is None else storage
        self._records.append((record, cost))
        self.queued_bytes += len(record)
        self._storage += cost

    def force(self, record: bytes) -> None:
        """Queue a record whatever there is room for (a fault, not the kernel's way)."""
        self._records.append((record, 0))
        self.queued_bytes += len(record)

    def pop(self) -> bytes:
        """Take the first record."""
        record, cost = self._records.popleft()
        self.queued_bytes -= len(record)
        self._storage -= cost
        if self.size > self._ideal:
            self.size -= max(0, min(self.size - self.queued_bytes, self.size - self._ideal))
        return record
