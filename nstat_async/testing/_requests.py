"""What the emulated kernel does for each request.

One method a type, named after the request. Each returns Darwin's error number, 0 for
success; the caller turns an error into the ``ERROR`` message.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nstat_async._model import Provider
from nstat_async.ntstat._constants import HEADER_SIZE, POLL_CHUNK, DarwinErrno, Filter, HeaderFlag, MessageType

from ._lookup import find_named, interface_removed
from ._sources import ProviderFilter, Source, is_buffer_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._client import EmulatedClient

__all__ = ["RequestHandler"]

_HEADER = struct.Struct("<QIHH")
_OK = 0
_EPERM = int(DarwinErrno.EPERM)
_ENOENT = int(DarwinErrno.ENOENT)
_EINVAL = int(DarwinErrno.EINVAL)
_EAGAIN = int(DarwinErrno.EAGAIN)
_EALREADY = int(DarwinErrno.EALREADY)
_ENOTSUP = int(DarwinErrno.ENOTSUP)
_EXTENSION_BITS = 0xFFFFFF << 40 | 1 << 28
_CONTENDED_CHUNK = 5
_PRIVILEGED = frozenset({Provider.CONNECTION, Provider.UDP_SUBFLOW})


class RequestHandler:
    """Carries out one client's requests and keeps the state of its paced poll."""

    def __init__(self, client: EmulatedClient) -> None:
        self.client = client
        self.kernel = client.kernel
        self.version = client.kernel.release.version
        self._poll_context = 0
        self._poll_sequence = 0
        self._walk: tuple[int, list[Source]] | None = None
        self._fresh: list[Source] = []
        self._handlers: dict[int, Callable[[bytes, int, int], int]] = {
            MessageType.ADD_SRC: self._add_source,
            MessageType.ADD_ALL_SRCS: self._add_all,
            MessageType.REM_SRC: self._remove,
            MessageType.QUERY_SRC: self._query,
            MessageType.GET_SRC_DESC: self._describe,
        }
        if (2422,) <= self.version < (11215,):
            self._handlers[MessageType.SET_FILTER] = self._set_filter
        if self.version >= (3247,):
            self._handlers[MessageType.GET_UPDATE] = self._update
            self._handlers[MessageType.SUBSCRIBE_SYSINFO] = self._subscribe_sysinfo
        if self.kernel.release.has_details:
            self._handlers[MessageType.GET_DETAILS] = self._details

    def handle(self, data: bytes) -> int:
        """Carry out one request; returns what ``send`` fails with (0: it succeeds)."""
        context, kind, length, flags = _HEADER.unpack_from(data)
        if not self.kernel.wire.has_lengths:
            flags = 0
        elif length != len(data):
            # A client that does not fill in the length is taken for an old one: no flags.
            flags = 0
            data = _HEADER.pack(context, kind, len(data), 0) + data[HEADER_SIZE:]
        handler = self._handlers.get(kind)
        error = _EINVAL if handler is None else handler(data, context, flags)
        return self._refuse(data, context, error) if error else 0

    def _refuse(self, data: bytes, context: int, error: int) -> int:
        wire, client = self.kernel.wire, self.client
        if self.version >= (3247,) and not client.enqueue(
            wire.error(context, error, data), critical=True, allocated=True
        ):
            return 0
        return client.enqueue(wire.error(context, error), critical=True)

    def source_added(self, source: Source) -> None:
        """A source came while a paced poll may be under way: it is at the head of the list."""
        if self._walk is not None:
            self._fresh.append(source)

    # Subscribing

    def _add_all(self, data: bytes, context: int, _flags: int) -> int:
        codec = self.kernel.release.layout["nstat_msg_add_all_srcs"]
        if len(data) < codec.size:
            return _EINVAL
        request = codec.decode(data)
        provider_id, bits = int(request["provider"]), int(request.get("filter", 0))  # type: ignore[arg-type]
        error = self._may_watch(provider_id)
        if error:
            return error
        client = self.client
        if bits & Filter.SUPPRESS_SRC_ADDED and self.kernel.release.suppress_switches_updates:
            client.updates = True
        if provider_id in client.watching:
            return _EALREADY
        client.watching.add(provider_id)
        if provider_id in client.added_by_name and self.version >= (8796, 141, 3):
            return _EALREADY
        if not self.kernel.privileged and self.version >= (8792, 61, 2):
            bits &= ~_EXTENSION_BITS
        client.filters[provider_id] = ProviderFilter(
            bits,
            int(request.get("events", 0)),  # type: ignore[arg-type]
            int(request.get("target_pid", 0)),  # type: ignore[arg-type]
            bytes(request.get("target_uuid", bytes(16))),  # type: ignore[arg-type]
        )
        error = self._scan(provider_id)
        if error:
            if self.version < (4570,):
                client.watching.discard(provider_id)
            return error
        client.enqueue(self.kernel.wire.success(context, 0), critical=True)
        return _OK

    def _may_watch(self, provider_id: int) -> int:
        known = self.kernel.release.providers.get(provider_id)
        if known is None or provider_id in self.kernel.absent_providers:
            return _ENOENT
        if known[0] is Provider.INTERFACE:
            return _ENOTSUP
        if self.kernel.privileged:
            return _OK
        if self.kernel.privilege_check and self.version >= (2422,):
            return _EPERM
        return _EPERM if known[0] in _PRIVILEGED and self.version >= (8792, 61, 2) else _OK

    def _scan(self, provider_id: int) -> int:
        """Add what exists. Kernel sockets: a refused announcement ends the scan in silence."""
        in_silence = self.kernel.release.providers[provider_id] in {(Provider.TCP, False), (Provider.UDP, False)}
        for flow in self.kernel.existing(provider_id):
            error = self.client.add_source(flow, provider_id)
            if error and self.kernel.release.has_details:
                continue  # macOS 26 skips what cannot be announced and goes on
            if error:
                return _OK if in_silence else error
        return _OK

    def _add_source(self, data: bytes, context: int, _flags: int) -> int:
        codec = self.kernel.release.layout["nstat_msg_add_src"]
        if len(data) < codec.size:
            return _EINVAL
        provider_id = int(codec.read("provider", data))
        return find_named(self.client, provider_id, data[codec.size :], context)

    def _remove(self, data: bytes, _context: int, _flags: int) -> int:
        srcref = self._reference("nstat_msg_rem_src", data)
        if srcref is None:
            return _EINVAL
        source = self.client.sources.get(srcref)
        if source is None:
            return _ENOENT
        self._cleanup(source)
        return _OK

    def _cleanup(self, source: Source) -> None:
        self.client.reporter.removed(source)
        self.client.drop(source)
        if source.flow.provider is Provider.INTERFACE:
            interface_removed(self.kernel, source)

    def _set_filter(self, data: bytes, _context: int, _flags: int) -> int:
        codec = self.kernel.release.layout["nstat_msg_set_filter"]
        if len(data) < codec.size:
            return _EINVAL
        srcref, bits = codec.read("srcref", data), codec.read("filter", data)
        if srcref in {0, self.kernel.release.layout.all_sources}:
            return _EINVAL
        source = self.client.sources.get(srcref)
        if source is None:
            return _ENOENT
        source.no_zero_bytes = bool(bits & 1)
        return _OK

    def _subscribe_sysinfo(self, _data: bytes, _context: int, _flags: int) -> int:
        if not self.kernel.privileged:
            return _EPERM
        self.client.subscribed_to_sysinfo = True
        return _OK

    # Asking

    def _reference(self, structure: str, data: bytes) -> int | None:
        codec = self.kernel.release.layout[structure]
        return None if len(data) < codec.size else int(codec.read("srcref", data))

    def _query(self, data: bytes, context: int, flags: int) -> int:
        srcref = self._reference("nstat_msg_query_src", data)
        if srcref is None:
            return _EINVAL
        reporter, everything = self.client.reporter, srcref == self.kernel.release.layout.all_sources
        batched = everything and self._batches(flags)
        paced = self._begin(context, flags, everything=everything)
        if everything:
            self.client.polled = True
        dead: list[Source] = []
        error, walked, reported = (_OK if everything else _ENOENT), True, 0
        for source in self._candidates(srcref, everything=everything, paced=paced):
            if reporter.allowed(source, int(Filter.SUPPRESS_BORING_POLL) if everything else 0):
                error = reporter.counts(source, 0 if batched else context, batched=batched)
                if is_buffer_error(error):
                    self.client.polled = False
                    walked = False
                    break
                reported += self._mark(source, error, paced=paced)
            if source.flow.gone:
                # Its state is told once more; if even that cannot be had, the walk ends here.
                error = reporter.description(source, 0)
                if error:
                    self.client.polled = False
                    walked = False
                    break
                dead.append(source)
            if paced and everything and reported >= self._chunk():
                walked = self._is_last()
                break
        reporter.flush()
        return self._finish(context, error, dead, everything=everything, paced=paced, walked=walked)

    def _describe(self, data: bytes, context: int, flags: int) -> int:
        srcref = self._reference("nstat_msg_get_src_description", data)
        if srcref is None:
            return _EINVAL
        everything = srcref == self.kernel.release.layout.all_sources and self.kernel.release.can_describe_all
        reporter, batched = self.client.reporter, everything and self._batches(flags)
        paced = self._begin(context, flags, everything=everything)
        error, walked, reported = (_OK if everything else _ENOENT), True, 0
        for source in self._candidates(srcref, everything=everything, paced=paced):
            if not reporter.allowed(source, int(Filter.SUPPRESS_BORING_POLL) if everything else 0):
                continue
            error = reporter.description(source, 0 if batched else context, batched=batched)
            if is_buffer_error(error):
                walked = False
                break
            reported += self._mark(source, error, paced=paced)
            if paced and everything and reported >= self._chunk():
                walked = self._is_last()
                break
        reporter.flush()
        return self._finish(context, error, [], everything=everything, paced=paced, walked=walked)

    def _details(self, data: bytes, context: int, flags: int) -> int:
        if self._reference("nstat_msg_query_src", data) is None:
            return _EINVAL
        self.client.wants_details = True
        return self._report(data, context, flags, details=True)

    def _update(self, data: bytes, context: int, flags: int) -> int:
        return self._report(data, context, flags, details=False)

    def _report(self, data: bytes, context: int, flags: int, *, details: bool) -> int:
        srcref = self._reference("nstat_msg_query_src", data)
        if srcref is None:
            return _EINVAL
        self.client.updates = True
        everything = srcref == self.kernel.release.layout.all_sources
        reporter, paced = self.client.reporter, self._begin(context, flags, everything=everything)
        dead: list[Source] = []
        error, walked, reported = (_OK if everything else _ENOENT), True, 0
        for source in self._candidates(srcref, everything=everything, paced=paced):
            if reporter.allowed(source, int(Filter.SUPPRESS_BORING_POLL) if everything else 0):
                error = reporter.update(source, 0 if everything else context, batched=everything, details=details)
                if is_buffer_error(error):
                    walked = False
                    break
                reported += self._mark(source, error, paced=paced)
                if source.flow.gone and not error:
                    dead.append(source)
            if paced and everything and reported >= self._chunk():
                walked = self._is_last()
                break
        reporter.flush()
        return self._finish(context, error, dead, everything=everything, paced=paced, walked=walked)

    # A walk over the sources

    def _batches(self, flags: int) -> bool:
        if self.version >= (11215,):
            return True
        return self.version >= (3247,) and bool(flags & HeaderFlag.SUPPORTS_AGGREGATE)

    def _chunk(self) -> int:
        contended = self.kernel.contended and self.version >= (11215,)
        return _CONTENDED_CHUNK if contended else POLL_CHUNK

    def _begin(self, context: int, flags: int, *, everything: bool) -> bool:
        """Start or continue a paced poll; True if this request is one.

        A context that differs from the stored one displaces that poll, which is told so.
        """
        if self.version < (3247,):
            return False
        paced = bool(flags & HeaderFlag.CONTINUATION)
        abandons = everything and self.version < (3789,)
        if (paced or abandons) and self._poll_context != context:
            if self._poll_context:
                self.client.enqueue(self.kernel.wire.error(self._poll_context, _EAGAIN), critical=True)
                self._poll_context = 0
            if paced:
                self._poll_context = context
                self._poll_sequence += 1
                self._walk = None
        return paced

    def _candidates(self, srcref: int, *, everything: bool, paced: bool) -> Iterator[Source]:
        """The sources of a request, newest first; of a paced poll those not reported yet."""
        sources = self.client.sources
        if not everything:
            source = sources.get(srcref)
            return iter(() if source is None else (source,))
        if not paced:
            return reversed(list(sources.values()))
        return self._unreported()

    def _unreported(self) -> Iterator[Source]:
        """Walk on where the last chunk ended, without looking at every source again."""
        sequence = self._poll_sequence
        if self._walk is None or self._walk[0] != sequence:
            waiting = list(self.client.sources.values())
        else:
            waiting = self._walk[1] + self._fresh
        self._fresh = []
        skipped: list[Source] = []
        self._walk = (sequence, waiting)
        sources = self.client.sources
        source = None
        try:
            while waiting:
                source = waiting.pop()
                if source.sequence == sequence or sources.get(source.srcref) is not source:
                    continue
                yield source
                if source.sequence != sequence:
                    skipped.append(source)
                source = None
        finally:
            # The chunk may have ended at a source that did not fit: it is asked for again.
            if source is not None and source.sequence != sequence:
                skipped.append(source)
            waiting.extend(reversed(skipped))

    def _is_last(self) -> bool:
        """True if a chunk that is full ends the walk.

        Since xnu-4570 the kernel looks at the source it stopped at, not at the next one: where
        the limit falls on the last source, another chunk is asked for, and is empty.
        """
        if self.version >= (4570,) or self._walk is None:
            return False
        sources, sequence = self.client.sources, self._poll_sequence
        return not any(s.sequence != sequence and sources.get(s.srcref) is s for s in self._walk[1])

    def _mark(self, source: Source, error: int, *, paced: bool) -> int:
        """Note that a source was reported; returns how many count towards the chunk."""
        if error:
            return 0
        source.reported = True
        if not paced:
            return 0
        source.sequence = self._poll_sequence
        return 1

    def _finish(
        self, context: int, error: int, dead: list[Source], *, everything: bool, paced: bool, walked: bool
    ) -> int:
        flags = 0
        if everything:
            if walked or not paced:
                self._poll_context = 0
                self._walk = None
            else:
                flags = int(HeaderFlag.CONTINUATION)
        early = self.version < (2782,)
        if early:
            self._bury(dead)
        if everything and not (is_buffer_error(error) and self.version >= (3247,)):
            self.client.enqueue(self.kernel.wire.success(context, flags), critical=True)
            error = _OK
        if not early:
            self._bury(dead)
        return error

    def _bury(self, dead: list[Source]) -> None:
        for source in dead:
            self._cleanup(source)
