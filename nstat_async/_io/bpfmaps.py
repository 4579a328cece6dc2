"""Makes the maps of the eBPF programs a channel: requests are sent, answers are read in pieces.

A piece takes one or two milliseconds, the core's work included, so that a large map does not hold the event loop. An
event descriptor (``eventfd(2)``) is readable while there are pieces.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence

from .._errors import ProtocolError
from ..ebpf import (
    FLOW,
    FLOW_KEY,
    OWNER,
    PEER,
    PEER_KEY,
    Operation,
    Statistics,
    decode_request,
    encode_answer,
    encode_statistics,
)
from .bpf import create_iterator, map_batch, map_delete, map_lookup, map_take, map_update, read_rows, recursion_misses
from .ring import Ring, fence

BATCH = 256
"""Entries in one piece."""
ROWS = 48 * OWNER.size
"""Bytes of an iterator's rows in one piece. It is a multiple of a row, because the kernel cuts where the buffer ends."""
_COPIES = ("tcp_state", "tcp_state_again")
"""The two copies of a program: if the kernel skips both, a change of state is not reported."""
_SKIPPED = frozenset({*_COPIES, "sent", "received"})
_COUNTERS = 4
_MOVED = 8


class SharedCounters:
    """The map of statistics in shared memory, which is read without a system call."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._numbers = memoryview(self._map)[: 8 * (_MOVED + 1)].cast("Q")

    def read(self) -> tuple[int, ...]:
        """The counters that only grow, in the order of ``enum statistic``."""
        return tuple(self._numbers[:_COUNTERS].tolist())

    def take_moved(self) -> int:
        """Whether a count in the map of flows grew since the last call; the next call reports later growth."""
        moved = self._numbers[_MOVED]
        if moved:
            self._numbers[_MOVED] = 0
            fence()  # the counts are read after this
        return moved

    def close(self) -> None:
        """Release the mapping. Idempotent."""
        self._numbers.release()
        self._map.close()


class MapsChannel:
    """Answers requests about the maps.

    Args:
        maps: Descriptors by name; the caller keeps and closes them.
        programs: Descriptors of the attached programs by name, as above.
        owners: The iterator's link; `None` if there is none.
        counters: The statistics, as above.
        ring: The ring, for its counters.
    """

    immediate = True
    receive_buffer: int | None = None

    def __init__(
        self,
        maps: Mapping[str, int],
        programs: Mapping[str, int],
        owners: int | None,
        counters: SharedCounters,
        ring: Ring,
    ) -> None:
        self._maps = maps
        self._programs = programs
        self._owners = owners
        self._counters = counters
        self._ring = ring
        self._work: deque[Generator[bytes, None, None]] = deque()
        self._submitted = -1
        self._missed = (0, 0)
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def fileno(self) -> int:
        """The descriptor to wait on: readable while an answer is not completely read."""
        return self._event

    def send(self, data: bytes) -> None:
        """Take a request.

        Raises:
            OSError: It is not a request, or a map cannot be changed.
        """
        try:
            operation, cookies, body = decode_request(data)
        except ProtocolError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        if operation is Operation.DROP:
            for cookie in cookies:
                map_delete(self._maps["flows"], FLOW_KEY.pack(cookie))
        elif operation is Operation.DISMISS:
            for at in range(0, len(body), PEER_KEY.size):
                map_delete(self._maps["peers"], body[at : at + PEER_KEY.size])
        elif operation is Operation.ADOPT:
            for number, cookie in enumerate(cookies):
                value = body[number * FLOW.size : (number + 1) * FLOW.size]
                map_update(self._maps["flows"], FLOW_KEY.pack(cookie), value)
        else:
            self._work.append(self._guarded(operation, self._answers(operation, cookies)))
            os.eventfd_write(self._event, 1)

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append one piece of an answer; see `Channel`."""
        del most  # one piece is as much as the loop should take at once
        while self._work:
            piece = next(self._work[0], None)
            if piece is not None:
                batch.append(piece)
                return True
            self._work.popleft()
        self._quiet()
        return False

    def _quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def close(self) -> None:
        """Release the event descriptor. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for work in self._work:
            work.close()
        self._work.clear()
        os.close(self._event)

    def _guarded(self, operation: Operation, answers: Iterator[bytes]) -> Generator[bytes, None, None]:
        """Make sure that an answer ends, with the error if there is one."""
        try:
            yield from answers
        except OSError as error:
            yield encode_answer(operation, b"", b"", last=True, errno=error.errno or errno.EIO)

    def _answers(self, operation: Operation, cookies: Sequence[int]) -> Iterator[bytes]:
        if operation is Operation.FLOWS:
            return self._walk(operation, self._maps["flows"], (FLOW_KEY.size, FLOW.size))
        if operation is Operation.PEERS:
            return self._walk(operation, self._maps["peers"], (PEER_KEY.size, PEER.size))
        if operation in {Operation.TAKE, Operation.LOOK}:
            return self._some(operation, cookies)
        if operation is Operation.OWNERS:
            return self._held()
        return self._count()

    @staticmethod
    def _walk(operation: Operation, descriptor: int, sizes: tuple[int, int]) -> Iterator[bytes]:
        cursor: bytes | None = None
        while True:
            keys, values, cursor = map_batch(descriptor, cursor, sizes, BATCH)
            yield encode_answer(operation, keys, values, last=cursor is None)
            if cursor is None:
                return

    def _some(self, operation: Operation, cookies: Sequence[int]) -> Iterator[bytes]:
        find = map_take if operation is Operation.TAKE else map_lookup
        for begin in range(0, max(1, len(cookies)), BATCH):
            keys = [FLOW_KEY.pack(cookie) for cookie in cookies[begin : begin + BATCH]]
            found = [(key, find(self._maps["flows"], key, FLOW.size)) for key in keys]
            there = [(key, value) for key, value in found if value is not None]
            keys, values = [key for key, _ in there], [value for _, value in there]
            yield encode_answer(operation, b"".join(keys), b"".join(values), last=begin + BATCH >= len(cookies))

    def _held(self) -> Iterator[bytes]:
        if self._owners is None:
            raise OSError(errno.EOPNOTSUPP, "no iterator")
        descriptor = create_iterator(self._owners)
        try:
            while True:
                rows = read_rows(descriptor, ROWS)
                yield encode_answer(Operation.OWNERS, b"", rows, last=not rows)
                if not rows:
                    return
        finally:
            os.close(descriptor)

    def _count(self) -> Iterator[bytes]:
        moved = self._counters.take_moved()
        submitted, ring_full, map_full, caught = self._counters.read()
        if moved or submitted != self._submitted:
            self._submitted, self._missed = submitted, self._skipped()
        foreign = self._ring.foreign
        yield encode_statistics(Statistics(submitted, ring_full, map_full, caught, *self._missed, moved, foreign))

    def _skipped(self) -> tuple[int, int]:
        """How often both copies for changes of state, and those for sends and receives, were skipped."""
        missed = {name: recursion_misses(number) for name, number in self._programs.items() if name in _SKIPPED}
        states = [missed.pop(name) for name in _COPIES if name in missed]
        return min(states, default=0), sum(missed.values())
