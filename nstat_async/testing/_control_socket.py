"""A control socket of the emulated kernel: the records that wait in it, and the client's end."""

from __future__ import annotations

import errno as host_errno
import os
from collections.abc import Callable

from nstat_async.ntstat import DarwinErrno

from ._machine import Machine
from ._receive_buffer import BATCH_STORAGE, ReceiveBuffer

_HOST_ERRNO = {
    member.value: getattr(host_errno, member.name) for member in DarwinErrno if hasattr(host_errno, member.name)
}


def host_error(darwin: int) -> OSError:
    """The `OSError` with the host's number for a Darwin error number.

    Darwin's and the host's numbers differ from 35 on (``EAGAIN`` 35 is 11 on Linux): as a
    real ``send`` raises the numbers of its own system, so does the emulated one.
    """
    number = _HOST_ERRNO.get(darwin, host_errno.EIO)
    return OSError(number, os.strerror(number))


class ControlSocket:
    """The receive side of a connected control socket."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        version = machine.release.version
        self.buffer = ReceiveBuffer(
            machine.receive_space, critical_quarter=version >= (2782,), count_mbufs=version < (10002,)
        )
        self.refused = 0
        """How many records did not fit."""
        self.closed = False
        self.ended = False
        """True if the control is gone: end of file follows once everything was read."""
        self.on_readable: Callable[[], None] | None = None
        """Called when a record becomes readable (also from within ``send``)."""
        self._delayed = 0
        self._last_release = 0.0

    # The client's side

    def receive(self, bufsize: int = 65536) -> bytes:
        """The next record; the part that does not fit into `bufsize` is lost.

        Raises:
            BlockingIOError: There is none now.
            EOFError: The control went away.
        """
        with self.machine.lock:
            if self.closed:
                raise OSError(host_errno.EBADF, os.strerror(host_errno.EBADF))
            self.machine.run_due()
            if not self.readable:
                if self.ended and not self.buffer:
                    raise EOFError("the emulated control went away")
                raise BlockingIOError(host_errno.EAGAIN, os.strerror(host_errno.EAGAIN))
            return self.buffer.pop()[:bufsize]

    @property
    def readable(self) -> int:
        """Number of records that can be received now, without those on their way over a slow bridge."""
        return len(self.buffer) - self._delayed

    def set_receive_buffer(self, size: int) -> int:
        """``SO_RCVBUF``; returns what was granted."""
        with self.machine.lock:
            return self.buffer.resize(size)

    @property
    def receive_buffer(self) -> int:
        """Byte limit of the receive buffer."""
        return self.buffer.size

    # The kernel's side

    def end(self) -> None:
        """Let the control go away: what is queued can be read, then there is end of file."""
        with self.machine.lock:
            self.ended = True
            self._notify()

    def inject(self, datagram: bytes) -> None:
        """Send the client bytes that no kernel would send (a fault)."""
        with self.machine.lock:
            self.buffer.force(datagram)
            self._arrived()

    def enqueue(
        self, record: bytes, *, critical: bool = False, storage: int | None = None, allocated: bool = False
    ) -> int:
        """Queue a record; 0, ``ENOBUFS`` or ``ENOMEM``. An `allocated` one has had its memory before."""
        faults = self.machine.faults
        if (faults.full and not critical) or not self.buffer.admits(len(record), critical=critical):
            self.refused += 1
            return DarwinErrno.ENOBUFS
        if not allocated and not faults.allocates():
            return DarwinErrno.ENOMEM
        if self.machine.header_garbage:
            record = record[:12] + self.machine.random.randbytes(4) + record[16:]
        self.buffer.append(record, storage=storage)
        self._arrived()
        return 0

    def enqueue_batch(self, record: bytes) -> int:
        """Queue a batch, in the cluster that was made for it."""
        if self.machine.faults.happens(self.machine.faults.lose_batches):
            self.refused += 1
            return DarwinErrno.ENOBUFS
        return self.enqueue(record, storage=BATCH_STORAGE, allocated=True)

    def _arrived(self) -> None:
        delay = self.machine.faults.reply_delay
        if delay <= 0 and not self._delayed:
            self._notify()
            return
        # Records stay in order: nothing overtakes one that is still on its way.
        now = self.machine.now
        self._last_release = max(self._last_release, now + delay)
        self._delayed += 1
        self.machine.call_later(self._last_release - now, self._release)

    def _release(self) -> None:
        self._delayed -= 1
        self._notify()

    def _notify(self) -> None:
        if self.on_readable is not None:
            self.on_readable()
