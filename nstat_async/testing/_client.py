"""What the emulated kernel does for each request.

Each type of request has a method, which is named after it. It returns Darwin's error number, 0 for
success; the caller makes an ``ERROR`` message of an error. `nstat_async.ntstat` decodes the
requests; only this module has their meaning, from ``ntstat.c``.
"""

from __future__ import annotations

import errno as host_errno
import functools
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from nstat_async import ntstat
from nstat_async._errors import ProtocolError
from nstat_async._model import Provider
from nstat_async.ntstat import DarwinErrno, FilterFlag, GetDetails, GetUpdate, HeaderFlag, QuerySource
from nstat_async.ntstat._constants import HEADER_SIZE, POLL_CHUNK

from ._control_socket import host_error
from ._filters import GENERIC, ProviderFilter
from ._lookup import find_flow, reset_threshold, set_threshold
from ._polls import PacedPoll
from ._receive_buffer import MAX_REQUEST
from ._scripting import ScriptedMachine
from ._watcher import ClientSource, Watcher, is_buffer_error

_HEADER = struct.Struct("<QIHH")
_OLD_HEADER = 12
"""Bytes of a header up to xnu-2782, whose last word is not used and may be missing."""
_EXTENSION_BITS = 0xFFFFFF << 40 | 1 << 28
_CONTENDED_CHUNK = 5
_NAMED_ONCE = (8796, 141, 3)
"""Since then a client has at most one source for a route or interface."""


class EmulatedClient(Watcher):
    """A connected control socket: `send` runs the request, `receive` takes one record.

    Made by `EmulatedKernel.connect`.
    """

    def __init__(self, machine: ScriptedMachine, unit: int) -> None:
        super().__init__(machine)
        self.kernel = machine
        self.unit = unit
        """Number of the socket; counts from 1."""
        self.subscribed_to_sysinfo = False
        self.polled = False
        """True if a QUERY of all sources came since the last minute-timer."""
        self.on_closed: Callable[[], None] = lambda: None
        """Called once the socket was closed."""
        self._added_by_name: set[int] = set()
        self._poll = PacedPoll(self)
        version = self.release.version
        self._handlers: dict[type, Callable[[Any], int]] = {
            ntstat.AddSource: self._add_source,
            ntstat.AddAllSources: self._add_all,
            ntstat.RemoveSource: self._remove,
            QuerySource: self._ask,
            ntstat.GetSourceDescription: self._ask,
        }
        self._reports: dict[type, Callable[..., int]] = {
            QuerySource: self.report_counts,
            ntstat.GetSourceDescription: self.report_description,
            GetUpdate: self.report_update,
            GetDetails: functools.partial(self.report_update, details=True),
        }
        if (2422,) <= version < (11215,):
            self._handlers[ntstat.SetFilter] = self._set_filter
        if version >= (3247,):
            self._handlers[GetUpdate] = self._ask
            self._handlers[ntstat.SubscribeSystemInfo] = self._subscribe_sysinfo
        if self.release.has_details:
            self._handlers[GetDetails] = self._ask

    def __repr__(self) -> str:
        return f"<EmulatedClient {self.unit} sources={len(self.sources)} queued={len(self.buffer)}>"

    # The client's side

    def send(self, datagram: bytes) -> None:
        """Send one request; it is carried out, and answered, before this returns.

        Raises:
            OSError: ``EMSGSIZE`` above 2048 bytes, ``EINVAL`` below 16, ``ENOBUFS`` or ``ENOMEM``
                when not even the error reply could be queued, ``EPIPE`` after the end.
        """
        with self.machine.lock:
            if self.closed or self.ended:
                number = host_errno.EBADF if self.closed else host_errno.EPIPE
                raise OSError(number, os.strerror(number))
            self.machine.run_due()
            if len(datagram) > MAX_REQUEST:
                raise host_error(DarwinErrno.EMSGSIZE)
            if len(datagram) < (HEADER_SIZE if self.machine.layout.has_lengths else _OLD_HEADER):
                raise host_error(DarwinErrno.EINVAL)
            error = self._handle(bytes(datagram).ljust(HEADER_SIZE, b"\0"))
            if error:
                raise host_error(error)

    def close(self) -> None:
        """Close the socket; nothing is reported about its sources. Idempotent."""
        with self.machine.lock:
            if not self.closed:
                self.closed = True
                for source in list(self.sources.values()):
                    self.drop(source)
                self.kernel.clients.remove(self)
                self.on_closed()

    # The kernel's side

    def _handle(self, data: bytes) -> int:
        """Carry out one request; returns what ``send`` fails with (0: it succeeds)."""
        context, kind, length, flags = _HEADER.unpack_from(data)
        if self.machine.layout.has_lengths and length != len(data):
            # A client that does not set the length is treated as an old one, without flags.
            flags = 0
            data = _HEADER.pack(context, kind, len(data), 0) + data[HEADER_SIZE:]
        elif not self.machine.layout.has_lengths:
            flags = 0
        try:
            request = ntstat.decode_message(self.release, data, (kind, context, flags, 0, len(data)))
        except ProtocolError:
            error: int = DarwinErrno.EINVAL
        else:
            handler = self._handlers.get(type(request))
            error = DarwinErrno.EINVAL if handler is None else handler(request)
        return self._refuse(data, context, error) if error else 0

    def _refuse(self, data: bytes, context: int, error: int) -> int:
        layout = self.machine.layout
        message = ntstat.Error(context=context, error=error, request=data)
        if self.release.version >= (3247,) and not self.enqueue(message.encode(layout), critical=True, allocated=True):
            return 0
        return self.enqueue(ntstat.Error(context=context, error=error).encode(layout), critical=True)

    def _succeed(self, context: int, flags: int = 0) -> None:
        self.enqueue(ntstat.Success(context=context, flags=flags).encode(self.machine.layout), critical=True)

    def source_added(self, source: ClientSource) -> None:
        """A source was added, perhaps while a paced poll is under way: it is at the head of the list."""
        self._poll.source_added(source)

    def find_gone(self) -> None:
        """Say goodbye for sources that ended unnoticed, as the minute-timer does."""
        skipped = self.polled and (2050,) <= self.release.version < (11215,)
        self.polled = False
        for source in [] if skipped else reversed(list(self.sources.values())):
            if source.flow.gone:
                self.say_goodbye(source)

    # Subscribing

    def _add_all(self, request: ntstat.AddAllSources) -> int:
        provider_id, bits, version = request.provider, request.filter, self.release.version
        error = self._may_watch(provider_id)
        if error:
            return error
        if bits & FilterFlag.SUPPRESS_SRC_ADDED and self.release.suppress_switches_updates:
            self.updates = True
        if provider_id in self.watching:
            return DarwinErrno.EALREADY
        self.watching.add(provider_id)
        if provider_id in self._added_by_name and version >= _NAMED_ONCE:
            return DarwinErrno.EALREADY
        if not self.machine.privileged and version >= (8792, 61, 2):
            bits &= ~_EXTENSION_BITS
        asked = ProviderFilter(bits, request.events, request.target_pid, bytes(request.target_uuid))
        self.filters[provider_id] = asked
        error = self._scan(provider_id)
        if error:
            if version < (4570,):
                self.watching.discard(provider_id)
            return error
        self._succeed(request.context)
        return 0

    def _may_watch(self, provider_id: int) -> int:
        known = self.release.providers.get(provider_id)
        if known is None or provider_id in self.machine.absent_providers:
            return DarwinErrno.ENOENT
        if known[0] is Provider.INTERFACE:
            return DarwinErrno.ENOTSUP
        if self.machine.privileged:
            return 0
        if self.machine.privilege_check and self.release.version >= (2422,):
            return DarwinErrno.EPERM
        return DarwinErrno.EPERM if known[0] in GENERIC and self.release.version >= (8792, 61, 2) else 0

    def _scan(self, provider_id: int) -> int:
        """Add the existing flows of a provider.

        A refused announcement ends the scan: with an error, except that a scan of kernel sockets
        ends without one. macOS 26 skips only the kernel socket itself.
        """
        kernel_sockets = self.release.providers[provider_id] in {(Provider.TCP, False), (Provider.UDP, False)}
        for flow in self.kernel.existing(provider_id):
            error = self.add_source(flow, provider_id)
            if error and not (kernel_sockets and self.release.has_details):
                return 0 if kernel_sockets else error
        return 0

    def _add_source(self, request: ntstat.AddSource) -> int:
        error, flow = find_flow(self.kernel, request.provider, request.param)
        if flow is None:
            return error
        is_interface = flow.provider is Provider.INTERFACE
        threshold = set_threshold(self.kernel, flow, request.param) if is_interface else 0
        if self.release.version >= _NAMED_ONCE:
            for source in self.sources_of(flow):
                self.say_goodbye(source)
                if is_interface:
                    reset_threshold(self.kernel, source)
        error = self.add_source(flow, request.provider, request.context, named=True)
        if not error:
            self._added_by_name.add(request.provider)
            self.sources_of(flow)[-1].threshold = threshold
        return error

    def _remove(self, request: ntstat.RemoveSource) -> int:
        source = self.sources.get(request.srcref)
        if source is None:
            return DarwinErrno.ENOENT
        self._clean_up(source)
        return 0

    def _clean_up(self, source: ClientSource) -> None:
        self.report_removed(source)
        self.drop(source)
        if source.flow.provider is Provider.INTERFACE:
            reset_threshold(self.kernel, source)

    def _set_filter(self, request: ntstat.SetFilter) -> int:
        if request.srcref in {0, self.machine.layout.all_sources}:
            return DarwinErrno.EINVAL
        source = self.sources.get(request.srcref)
        if source is None:
            return DarwinErrno.ENOENT
        source.no_zero_bytes = bool(request.filter & 1)
        return 0

    def _subscribe_sysinfo(self, _request: ntstat.SubscribeSystemInfo) -> int:
        if not self.machine.privileged:
            return DarwinErrno.EPERM
        self.subscribed_to_sysinfo = True
        return 0

    # Asking

    def _ask(self, request: QuerySource | ntstat.GetSourceDescription) -> int:
        """Report one source, or all of them, and answer the request."""
        kind, version = type(request), self.release.version
        everything = request.srcref == self.machine.layout.all_sources
        if kind is ntstat.GetSourceDescription and not self.release.can_describe_all:
            everything = False
        self.polled |= everything and kind is QuerySource
        is_update = kind in {GetUpdate, GetDetails}
        self.updates |= is_update
        self.wants_details |= kind is GetDetails
        aggregates = bool(request.flags & HeaderFlag.SUPPORTS_AGGREGATE) and version >= (3247,)
        batched = everything and (is_update or aggregates or version >= (11215,))
        report, dead = self._reports[kind], list[ClientSource]()
        paced = self._poll.begin(request.context, request.flags)
        # A report of one source counts as one of the paced poll that has its context.
        marks = paced and (everything or not is_update or version < (11215,))
        chunk = _CONTENDED_CHUNK if self.machine.contended and version >= (11215,) else POLL_CHUNK
        boring = int(FilterFlag.SUPPRESS_BORING_POLL) if everything else 0
        error, walked, reported = (0 if everything else DarwinErrno.ENOENT), True, 0
        for source in self._candidates(request.srcref, everything=everything, paced=paced):
            if self.allows(source, boring):
                error = report(source, 0 if batched else request.context, batched=batched)
                if not error:
                    source.reported = True
                    if marks:
                        self._poll.mark(source)
                        reported += 1
                    if source.flow.gone and is_update:
                        dead.append(source)
            if source.flow.gone and kind is QuerySource and not is_buffer_error(error):
                # Its state is reported once more; if that is not possible, the walk ends here.
                error = self.report_description(source, 0)
                if error:
                    walked = False
                else:
                    dead.append(source)
            if is_buffer_error(error) or not walked:
                walked = False
                self.polled = self.polled and kind is not QuerySource
                break
            if everything and paced and reported >= chunk:
                walked = self._poll.is_last()
                break
        self.flush()
        return self._finish(request.context, error, dead, everything=everything, paced=paced, walked=walked)

    def _candidates(self, srcref: int, *, everything: bool, paced: bool) -> Iterator[ClientSource]:
        """The sources of a request, newest first; of a paced poll those not reported yet."""
        if not everything:
            source = self.sources.get(srcref)
            return iter(() if source is None else (source,))
        return self._poll.unreported() if paced else reversed(list(self.sources.values()))

    def _finish(
        self, context: int, error: int, dead: list[ClientSource], *, everything: bool, paced: bool, walked: bool
    ) -> int:
        """End the answer. Sources that were found gone are removed before SUCCESS up to xnu-2422, and after it since then."""
        flags = 0
        if everything and (walked or not paced):
            self._poll.end()
        elif everything:
            flags = int(HeaderFlag.CONTINUATION)
        early = dead if self.release.version < (2782,) else []
        for source in early:
            self._clean_up(source)
        if everything and not (is_buffer_error(error) and self.release.version >= (3247,)):
            self._succeed(context, flags)
            error = 0
        for source in [] if early else dead:
            self._clean_up(source)
        return error
