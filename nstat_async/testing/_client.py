"""One control socket of the emulated kernel, from the client's side and the kernel's."""

from __future__ import annotations

import errno as host_errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from nstat_async._model import Provider
from nstat_async.ntstat._constants import HEADER_SIZE, DarwinErrno

from ._requests import RequestHandler
from ._socket import BATCH_STORAGE, MAX_REQUEST, ReceiveBuffer, SocketStatistics
from ._sources import ProviderFilter, Reporter, Source

if TYPE_CHECKING:
    from ._flows import EmulatedFlow
    from ._kernel import EmulatedKernel

__all__ = ["EmulatedClient", "host_error"]

_FOUND_BY_NEW_TIMER = frozenset({Provider.ROUTE, Provider.INTERFACE})
"""What the minute-timer of macOS 26 looks at."""
_OLD_HEADER = 12
"""Up to xnu-2782 the last word of the header is not used, and need not be there."""
_ENOBUFS = int(DarwinErrno.ENOBUFS)
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


class EmulatedClient:
    """A connected control socket: `send` runs the request, `receive` takes one record.

    Made by `EmulatedKernel.connect`.
    """

    def __init__(self, kernel: EmulatedKernel, unit: int) -> None:
        self.kernel = kernel
        self.unit = unit
        """Number of the socket; counts from 1."""
        release = kernel.release
        self.buffer = ReceiveBuffer(
            kernel.receive_space,
            critical_quarter=release.version >= (2782,),
            count_mbufs=release.version < (10002,),
        )
        self.filters: dict[int, ProviderFilter] = {}
        self.sources: dict[int, Source] = {}
        """Sources by reference, oldest first."""
        self.watching: set[int] = set()
        self.added_by_name: set[int] = set()
        """Providers of which a source was added by ADD_SRC."""
        self.updates = False
        """Update mode: goodbyes and events come as updates."""
        self.wants_details = False
        self.subscribed_to_sysinfo = False
        self.polled = False
        """A QUERY of everything came since the last minute-timer."""
        self.closed = False
        self.ended = False
        """The control went away: end of file once everything was read."""
        self.on_readable: Callable[[], None] | None = None
        """Called when a record becomes readable (also from within `send`)."""
        self.reporter = Reporter(self)
        self.handler = RequestHandler(self)
        self.next_reference = 1
        self._delayed = 0
        self._last_release = 0.0

    # The client's side

    def send(self, datagram: bytes) -> None:
        """Send one request; it is carried out, and answered, before this returns.

        Raises:
            OSError: ``EMSGSIZE`` above 2048 bytes, ``EINVAL`` below 16, ``ENOBUFS`` or ``ENOMEM``
                when not even the error reply could be queued, ``EPIPE`` after the end.
        """
        with self.kernel.lock:
            if self.closed:
                raise OSError(host_errno.EBADF, os.strerror(host_errno.EBADF))
            if self.ended:
                raise OSError(host_errno.EPIPE, os.strerror(host_errno.EPIPE))
            self.kernel.run_due()
            if len(datagram) > MAX_REQUEST:
                raise host_error(DarwinErrno.EMSGSIZE)
            if len(datagram) < (HEADER_SIZE if self.kernel.wire.has_lengths else _OLD_HEADER):
                raise host_error(DarwinErrno.EINVAL)
            error = self.handler.handle(bytes(datagram).ljust(HEADER_SIZE, b"\0"))
            if error:
                raise host_error(error)

    def receive(self, bufsize: int = 65536) -> bytes:
        """The next record; what does not fit into `bufsize` of it is lost.

        Raises:
            BlockingIOError: There is none now.
            EOFError: The control went away.
        """
        with self.kernel.lock:
            if self.closed:
                raise OSError(host_errno.EBADF, os.strerror(host_errno.EBADF))
            self.kernel.run_due()
            if not self.readable:
                if self.ended and not self.buffer:
                    raise EOFError("the emulated control went away")
                raise BlockingIOError(host_errno.EAGAIN, os.strerror(host_errno.EAGAIN))
            return self.buffer.pop()[:bufsize]

    @property
    def readable(self) -> int:
        """Records that can be received now (those on their way over a slow bridge left out)."""
        return len(self.buffer) - self._delayed

    def set_receive_buffer(self, size: int) -> int:
        """``SO_RCVBUF``; returns what was granted."""
        with self.kernel.lock:
            return self.buffer.resize(size)

    @property
    def receive_buffer(self) -> int:
        """Byte limit of the receive buffer."""
        return self.buffer.size

    @property
    def statistics(self) -> SocketStatistics:
        """The state of the socket's receive side."""
        return self.buffer.statistics

    def close(self) -> None:
        """Close the socket; nothing is said about its sources. Idempotent."""
        with self.kernel.lock:
            if not self.closed:
                self.closed = True
                for source in list(self.sources.values()):
                    self.drop(source)
                self.kernel.client_closed(self)

    def end(self) -> None:
        """Let the control go away: what is queued can be read, then there is end of file."""
        with self.kernel.lock:
            self.ended = True
            self._notify()

    def inject(self, datagram: bytes) -> None:
        """Put bytes before the client that no kernel would send (a fault)."""
        with self.kernel.lock:
            self.buffer.force(datagram)
            self._arrived()

    # The kernel's side: queueing

    def enqueue(
        self, record: bytes, *, critical: bool = False, storage: int | None = None, allocated: bool = False
    ) -> int:
        """Queue a record; 0, ``ENOBUFS`` or ``ENOMEM``.

        Args:
            record: The bytes.
            critical: It may use the buffer's reserve.
            storage: Its cost in mbufs, if not what its size tells.
            allocated: It is in memory that was had before.
        """
        faults = self.kernel.faults
        if faults.full and not critical:
            self.buffer.refused += 1
            return _ENOBUFS
        if not self.buffer.admits(len(record), critical=critical):
            return _ENOBUFS
        if not allocated and not faults.allocates():
            return int(DarwinErrno.ENOMEM)
        self.buffer.append(self.kernel.finish(record), storage=storage)
        self._arrived()
        return 0

    def enqueue_batch(self, record: bytes) -> int:
        """Queue a batch, in the cluster that was made for it."""
        if self.kernel.faults.loses_batch():
            self.buffer.refused += 1
            return _ENOBUFS
        return self.enqueue(record, storage=BATCH_STORAGE, allocated=True)

    def _arrived(self) -> None:
        delay = self.kernel.faults.reply_delay
        if delay <= 0 and not self._delayed:
            self._notify()
            return
        # Records stay in order: nothing overtakes one that is still on its way.
        now = self.kernel.now
        self._last_release = max(self._last_release, now + delay)
        self._delayed += 1
        self.kernel.call_later(self._last_release - now, self._release)

    def _release(self) -> None:
        self._delayed -= 1
        self._notify()

    def _notify(self) -> None:
        if self.on_readable is not None:
            self.on_readable()

    # The kernel's side: sources

    def watches(self, provider_id: int) -> bool:
        """True if new flows of this provider become sources here."""
        return provider_id in self.watching and not self.closed

    def filter_of(self, provider_id: int) -> ProviderFilter:
        """What was asked of a provider; nothing by default."""
        return self.filters.get(provider_id, _NO_FILTER)

    def add_source(self, flow: EmulatedFlow, announced_as: int, context: int = 0, *, named: bool = False) -> int:
        """Make a source and announce it (``nstat_client_source_add``).

        The reference is drawn before the announcement is queued, and a refused
        announcement means that the source is never made.
        """
        srcref = self._draw_reference()
        bits = self.filter_of(announced_as).bits
        source = Source(self, srcref, flow, announced_as)
        silent = not named and bits & 0x100000 and self.kernel.release.can_suppress
        initial = bits & 0x1000000000 and not self.reporter.allowed(source)
        if not silent and not initial:
            announcement = self.kernel.wire.added(srcref, announced_as, context)
            error = _ENOBUFS if self.kernel.faults.loses_announcement() else self.enqueue(announcement)
            if error:
                return error
        self.sources[srcref] = source
        flow.sources[self.unit, srcref] = source
        self.handler.source_added(source)
        return 0

    def _draw_reference(self) -> int:
        srcref = self.next_reference
        if self.kernel.release.references_are_gapless:
            self.next_reference += 1
            return srcref
        while srcref in self.sources or srcref in {0, 0xFFFFFFFF}:
            srcref = srcref + 1 & 0xFFFFFFFF
        self.next_reference = srcref + 1 & 0xFFFFFFFF
        return srcref

    def drop(self, source: Source) -> None:
        """Forget a source without a word."""
        self.sources.pop(source.srcref, None)
        source.flow.sources.pop((self.unit, source.srcref), None)

    def say_goodbye(self, source: Source) -> None:
        """Report a source for the last time and forget it."""
        self.reporter.goodbye(source)
        self.drop(source)

    def find_gone(self) -> None:
        """The minute-timer: goodbyes for sources that ended unnoticed."""
        version = self.kernel.release.version
        if self.polled and (2050,) <= version < (11215,):
            self.polled = False
            return
        self.polled = False
        kinds = _FOUND_BY_NEW_TIMER if self.kernel.release.has_details else None
        for source in reversed(list(self.sources.values())):
            if source.flow.gone and (kinds is None or source.flow.provider in kinds):
                self.say_goodbye(source)

    def event(self, source: Source, event: int) -> None:
        """An event of one of its sources; the client's mask decides."""
        if self.filter_of(source.announced_as).events & event:
            self.reporter.event(source, event)

    @property
    def event_mask(self) -> int:
        """All events that it asked for, of any provider."""
        mask = 0
        for wanted in self.filters.values():
            mask |= wanted.events
        return mask & (1 << 64) - 1

    def __repr__(self) -> str:
        return f"<EmulatedClient {self.unit} sources={len(self.sources)} queued={len(self.buffer)}>"


_NO_FILTER = ProviderFilter()
