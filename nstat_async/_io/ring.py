"""Reads a BPF ring buffer: two mappings, and a rule about who writes what.

We write the consumer's position, the kernel writes the producer's. The data is mapped twice in a row, so that
a record across the end is contiguous (``kernel/bpf/ringbuf.c``). Positions only grow.

The order matters: the producer's position is read before the headers, a header before its record, the
record before our position is stored, and our position is stored before the producer's is read again. Without a full
barrier between that store and that load a wake-up may be lost, because kernel and reader each expect the other to
act. Python has no barrier; taking and releasing a lock is one on every machine that CPython runs on. In addition
the ring is drained in every poll, so nothing depends on the wake-up alone.
"""

from __future__ import annotations

import errno
import mmap
import threading

from ..ebpf import RECORD_SIZE, RING_STEP

BUSY = 1 << 31
"""In a record's header: it was reserved and is still being written."""
SLICE = 32
"""Records in one datagram, which the event loop takes in at once: 1 ms if each is of a new flow."""
REST = 0.01
"""Seconds after a reading in which the ring wakes no task: a wake-up for each record would cost more than everything else."""
_LOCK = threading.Lock()


def fence() -> None:
    """A memory barrier for this thread."""
    _LOCK.acquire()
    _LOCK.release()


class Ring:
    """Records of one size, read in order.

    Args:
        consumer: Page whose first eight bytes are our position.
        producer: Page whose first eight bytes are the kernel's position, with the data twice behind it.
        size: Bytes of the data, a power of two.
        page: Bytes of a page.
    """

    def __init__(self, consumer: memoryview, producer: memoryview, size: int, page: int) -> None:
        self.size = size
        self.foreign = 0
        """Bytes that were skipped because they were no record of our programs: always 0 if only these write."""
        self._consumed = consumer[:8].cast("Q")
        self._produced = producer[:8].cast("Q")
        self._data = producer[page : page + 2 * size]
        self._headers = self._data.cast("I")

    @property
    def is_full(self) -> bool:
        """True if the next record finds no room, or the last one found none; it stays true until something is read."""
        return self._produced[0] - self._consumed[0] + RING_STEP >= self.size

    def read(self, most: int = SLICE, *, keep: bool = False) -> bytes:
        """Read the finished records at the front, with headers and with discarded ones; empty if there are none.

        Args:
            most: Most records.
            keep: Leave them in the ring.
        """
        begin = self._consumed[0]
        there = self._produced[0] - begin
        number = min(there // RING_STEP, most)
        if number <= 0:
            return b""
        fence()
        at = begin & (self.size - 1)
        number = self._finished(at, number, begin + there)
        fence()
        data = bytes(self._data[at : at + number * RING_STEP])
        fence()
        if not keep and number:
            self._consumed[0] = begin + number * RING_STEP
            fence()
        return data

    def _finished(self, at: int, number: int, produced: int) -> int:
        """How many of the next records are finished: those before the first busy one."""
        step = RING_STEP // 4
        headers = self._headers[at // 4 : at // 4 + number * step : step].tolist()
        if headers.count(RECORD_SIZE) == number:
            return number
        for index, header in enumerate(headers):
            if header & BUSY:
                return index
            if header & (BUSY // 2 - 1) != RECORD_SIZE:
                if not index:  # not even the first one is a record: skip all
                    self.foreign += produced - self._consumed[0]
                    self._consumed[0] = produced
                return index
        return number

    def release(self) -> None:
        """Release the memory, so that the mappings can be closed."""
        for view in (self._headers, self._data, self._produced, self._consumed):
            view.release()


class MappedRing:
    """The memory of a ring buffer's map.

    Args:
        descriptor: The map's descriptor; the caller keeps and closes it.
        size: Bytes of the map.

    Raises:
        OSError: It cannot be mapped.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._closed = False
        self._maps = [mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)]
        try:
            self._maps.append(mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page))
        except BaseException:
            self._maps[0].close()
            raise
        consumer, producer = (memoryview(mapping) for mapping in self._maps)
        self.ring = Ring(consumer, producer, size, page)
        consumer.release()
        producer.release()

    def close(self) -> None:
        """Release the mappings. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.ring.release()
        for mapping in self._maps:
            mapping.close()


class RingChannel:
    """The ring buffer as a channel: a datagram is up to `SLICE` records.

    Args:
        descriptor: The map's descriptor; the caller keeps and closes it.
        ring: The map's memory, which the caller keeps mapped.
    """

    immediate = True
    rest = REST

    def __init__(self, descriptor: int, ring: Ring) -> None:
        self.receive_buffer: int | None = ring.size
        self._descriptor = descriptor
        self._ring = ring
        self._overrun = False
        """The ring was full, and was not read empty since then."""

    def fileno(self) -> int:
        """The descriptor to wait on: readable while there is a finished record."""
        return self._descriptor

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append datagrams; see `Channel`.

        Raises:
            OSError: ENOBUFS: records may have found no room. It is raised once until the ring was read empty.
        """
        if self._ring.is_full and not self._overrun:
            self._overrun = True
            raise OSError(errno.ENOBUFS, "the ring was full")
        for _ in range(most):
            data = self._ring.read()
            if not data:
                self._overrun = False
                return False
            batch.append(data)
        return True

    def send(self, data: bytes) -> None:
        """A ring buffer takes nothing.

        Raises:
            OSError: Always.
        """
        raise OSError(errno.EOPNOTSUPP, "a ring buffer takes no datagrams", len(data))

    def close(self) -> None:
        """Do nothing: the memory belongs to the source, whose other channels read it too."""
