"""Ring records made by hand, and a ring buffer in plain memory."""

from __future__ import annotations

import struct

from nstat_async.ebpf import RECORD, RECORD_SIZE, RING_STEP, Flag, Kind, Record, SocketType

PAGE = 4096
BUSY, DISCARDED = 1 << 31, 1 << 30
DEFAULTS = {
    "header": RECORD_SIZE,
    "page": 0,
    "family": 2,
    "protocol": 6,
    "type": SocketType.STREAM,
    "comm": b"curl".ljust(16, b"\0"),
    "local": b"\x7f\0\0\1".ljust(16, b"\0"),
    "remote": b"\x7f\0\0\2".ljust(16, b"\0"),
}
STATES = {Kind.OPENED: (7, 2), Kind.ESTABLISHED: (2, 1), Kind.ACCEPTED: (3, 1), Kind.CLOSED: (1, 7)}


def record(kind: Kind, cookie: int = 1, time: int = 0, **fields) -> Record:
    """A record; what is not given is zero, or as a connection over IPv4 has it."""
    old, new = STATES.get(kind, (0, 0))
    values = dict.fromkeys(Record._fields, 0) | DEFAULTS
    values |= {"kind": kind, "cookie": cookie, "time": time, "old": old, "new": new}
    if fields.get("pid"):
        fields.setdefault("flags", Flag.HAS_PROCESS)
    return Record(**(values | fields))


def datagram_record(kind: Kind, cookie: int = 1, time: int = 0, **fields) -> Record:
    """A record of a UDP socket."""
    return record(kind, cookie, time, **{"protocol": 17, "type": SocketType.DGRAM, **fields})


def encode(*records: Record) -> bytes:
    """What the ring's channel gives."""
    return b"".join(RECORD.pack(*r) for r in records)


class FakeRing:
    """The kernel's side of a ring buffer, as ``kernel/bpf/ringbuf.c`` has it: reserve, then submit or discard."""

    def __init__(self, size: int = PAGE) -> None:
        self.size = size
        self.consumer = bytearray(PAGE)
        self.producer = bytearray(PAGE + 2 * size)
        self.full = 0

    @property
    def produced(self) -> int:
        return struct.unpack_from("=Q", self.producer)[0]

    @property
    def consumed(self) -> int:
        return struct.unpack_from("=Q", self.consumer)[0]

    def put(self, at: int, data: bytes) -> None:
        """Write where both mappings show it."""
        for index, byte in enumerate(data):
            place = (at + index) % self.size
            self.producer[PAGE + place] = self.producer[PAGE + self.size + place] = byte

    def reserve(self, what: Record, length: int = RECORD_SIZE) -> int | None:
        """Begin a record; it stays busy until it is submitted or discarded."""
        at = self.produced
        step = 8 + (length + 7) // 8 * 8
        if at + step - self.consumed > self.size - 1:
            self.full += 1
            return None
        self.put(at, RECORD.pack(*what)[:step].ljust(step, b"\0"))
        self.put(at, struct.pack("=I", length | BUSY))
        struct.pack_into("=Q", self.producer, 0, at + step)
        return at

    def finish(self, at: int, *, discard: bool = False, length: int = RECORD_SIZE) -> None:
        """Submit or discard a record."""
        self.put(at, struct.pack("=I", length | (DISCARDED if discard else 0)))

    def submit(self, what: Record) -> bool:
        """A whole record at once; False where there is no room."""
        at = self.reserve(what)
        if at is None:
            return False
        self.finish(at)
        return True

    def step(self, number: int) -> int:
        """Where record `number` begins, counted from the first that ever was."""
        return number * RING_STEP
