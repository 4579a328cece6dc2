"""What one client watches: its sources, and the reports about them.

The rules are those of ``ntstat.c``: which reports pass a filter, which messages a
*goodbye* (the reports at a source's end) consists of, and what is lost if the buffer is full. Requests are in
``_client.py``, the socket's buffer in ``_control_socket.py``.
"""

from __future__ import annotations

from nstat_async.ntstat import (
    DarwinErrno,
    Extension,
    FilterFlag,
    HeaderFlag,
    MessageType,
    SourceAdded,
    SourceRemoved,
)
from nstat_async.ntstat._constants import MAX_BATCH

from ._control_socket import ControlSocket
from ._encoding import pack_items
from ._filters import GENERIC, NO_FILTER, FilterRules, ProviderFilter
from ._flows import EmulatedFlow
from ._machine import Machine

_DESCRIPTION_LIMIT = 512
_EXTENSION_SHIFT = 40
_DOMAIN_BIT_OF_8019 = 1 << 28
_DETAILS_SIZE = 448


def is_buffer_error(error: int) -> bool:
    """True for errors that end a walk over sources, because nothing more would fit."""
    return error in {DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM}


class ClientSource:
    """One flow as one client watches it (``nstat_src``)."""

    __slots__ = ("announced_as", "flow", "no_zero_bytes", "reported", "role", "sequence", "srcref", "threshold")

    def __init__(self, srcref: int, flow: EmulatedFlow, announced_as: int, sequence: int) -> None:
        self.srcref = srcref
        self.flow = flow
        self.announced_as = announced_as
        """Provider number in its messages (xnu-3789 announces user-land UDP as user-land TCP)."""
        self.sequence = sequence
        """The paced poll that reported it last."""
        self.no_zero_bytes = False
        self.reported = False
        """A generic provider's report went out ("boring" filters look at it)."""
        self.role = 0
        """TCP's role as the last description had it. At the flow's end the kernel knows only this one."""
        self.threshold = 0
        """Interface sources: bytes after which the client wants a report."""


class Watcher(ControlSocket):
    """A control socket with the sources that it watches."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.release = machine.release
        self.filters: dict[int, ProviderFilter] = {}
        self.sources: dict[int, ClientSource] = {}
        """Sources by reference, oldest first."""
        self.watching: set[int] = set()
        """Providers whose new flows become sources here."""
        self.updates = False
        """Update mode: goodbyes and events come as updates."""
        self.wants_details = False
        """Details mode: goodbyes and events come as details (macOS 26)."""
        self.next_reference = 1
        self.refused_sources = 0
        """The kernel's own count of sources that were not made (``net.stats.metrics``)."""
        self.failed_goodbyes = 0
        """The kernel's own count of final reports that were refused."""
        self._by_flow: dict[int, list[ClientSource]] = {}
        self._rules = FilterRules(self.release)
        self._update_limit = 2048 if self.release.version >= (8019,) else 512
        # xnu-3248 does not set the sequence of a new source, so it is that of no poll.
        self._first_sequence = 0 if self.release.version >= (3789,) else -1
        self._batch: list[bytes] = []
        self._batch_size = 0

    # Sources

    def filter_of(self, provider_id: int) -> ProviderFilter:
        """The filter that was requested for a provider; `NO_FILTER` if none was."""
        return self.filters.get(provider_id, NO_FILTER)

    def sources_of(self, flow: EmulatedFlow) -> list[ClientSource]:
        """The sources made of a flow, oldest first."""
        return list(self._by_flow.get(flow.number, ()))

    def add_source(self, flow: EmulatedFlow, announced_as: int, context: int = 0, *, named: bool = False) -> int:
        """Make a source and announce it (``nstat_client_source_add``); 0, or Darwin's error number.

        The reference is drawn before the announcement is queued, and a refused
        announcement means that the source is never made.
        """
        error = self._make_source(flow, announced_as, context, named=named)
        self.refused_sources += bool(error)
        return error

    def _make_source(self, flow: EmulatedFlow, announced_as: int, context: int, *, named: bool) -> int:
        faults = self.machine.faults
        if faults.happens(faults.fail_allocations):
            return DarwinErrno.ENOMEM
        srcref = self._draw_reference()
        bits = self.filter_of(announced_as).bits
        source = ClientSource(srcref, flow, announced_as, self._first_sequence)
        silent = not named and bits & FilterFlag.SUPPRESS_SRC_ADDED and self.release.can_suppress
        hidden = bits & FilterFlag.INITIAL_PROPERTIES and flow.provider in GENERIC and not self.allows(source)
        if not silent and not hidden:
            announcement = SourceAdded(srcref=srcref, provider=announced_as, context=context)
            lost = faults.happens(faults.lose_announcements)
            error = DarwinErrno.ENOBUFS if lost else self.enqueue(announcement.encode(self.machine.layout))
            if error:
                self.machine.refused_announcements += 1
                return error
        self.sources[srcref] = source
        self._by_flow.setdefault(flow.number, []).append(source)
        self.source_added(source)
        return 0

    def source_added(self, source: ClientSource) -> None:
        """A source was added, perhaps while a paced poll is under way."""

    def _draw_reference(self) -> int:
        srcref = self.next_reference
        if self.release.references_are_unique:
            self.next_reference += 1
            return srcref
        while srcref in self.sources or srcref in {0, 0xFFFFFFFF}:
            srcref = srcref + 1 & 0xFFFFFFFF
        self.next_reference = srcref + 1 & 0xFFFFFFFF
        return srcref

    def drop(self, source: ClientSource) -> None:
        """Forget a source without a report."""
        if self.sources.pop(source.srcref, None) is not None:
            same = self._by_flow[source.flow.number]
            same.remove(source)
            if not same:
                del self._by_flow[source.flow.number]

    # Filters

    def allows(self, source: ClientSource, boring: int = 0) -> bool:
        """True if the client's filter lets a report about this source pass; see `FilterRules.allows`."""
        wanted = self.filters.get(source.announced_as)
        if wanted is None:
            return True
        return self._rules.allows(wanted, source.flow, source.announced_as, boring, source.reported)

    def _silent(self, source: ClientSource) -> bool:
        """True for a source without bytes where the client asked for none such."""
        hides = source.no_zero_bytes or self._rules.hides_silence(self.filter_of(source.announced_as))
        return hides and not source.flow.rx_bytes and not source.flow.tx_bytes

    # The batch

    def accumulate(self, message: bytes) -> int:
        """Put a message into the batch; a full batch is flushed, and its loss goes unnoticed."""
        if self._batch_size + len(message) > MAX_BATCH:
            self.flush()
        if not self._batch and not self.machine.faults.allocates():
            return self.enqueue(message)
        self._batch.append(message)
        self._batch_size += len(message)
        return 0

    def flush(self) -> None:
        """Queue the batch; a refused one is lost without a report."""
        if self._batch:
            self.enqueue_batch(b"".join(self._batch))
            self._batch.clear()
            self._batch_size = 0

    def _deliver(self, message: bytes, *, batched: bool) -> int:
        return self.accumulate(message) if batched else self.enqueue(message)

    # Reports

    def report_counts(self, source: ClientSource, context: int, flags: int = 0, *, batched: bool = False) -> int:
        """``SRC_COUNTS``; counters that cannot be had are passed over in silence."""
        if source.flow.unreadable:
            return DarwinErrno.EIO if batched else 0
        if self._silent(source):
            return DarwinErrno.EAGAIN
        message = self.machine.reports.counts(source.srcref, source.flow.encoded_counts(), context, flags)
        return self._deliver(message, batched=batched)

    def report_description(self, source: ClientSource, context: int, flags: int = 0, *, batched: bool = False) -> int:
        """``SRC_DESC``."""
        error = source.flow.descriptor_errno()
        if error:
            return error
        descriptor = self._descriptor(source)
        message = self.machine.reports.description(source.srcref, source.announced_as, descriptor, context, flags)
        if batched and len(message) > _DESCRIPTION_LIMIT:
            return DarwinErrno.EINVAL
        return self._deliver(message, batched=batched)

    def _descriptor(self, source: ClientSource) -> bytes:
        descriptor = source.flow.encoded_descriptor(source.role)
        source.role = source.flow.role or source.role
        if source.announced_as != source.flow.provider_id:
            structure = self.release.descriptor_name(source.announced_as)
            assert structure is not None
            descriptor = descriptor.ljust(self.machine.layout[structure].size, b"\0")
        return descriptor

    def report_update(
        self,
        source: ClientSource,
        context: int = 0,
        flags: int = 0,
        events: int = 0,
        *,
        batched: bool = False,
        details: bool = False,
    ) -> int:
        """``SRC_UPDATE`` or ``SRC_DETAILS``, extended where items were asked for.

        A source without counters by medium has zeros in details of all sources; alone it is refused.
        """
        flow = source.flow
        error = flow.descriptor_errno()
        without = details and flow.details_errno()
        if error or (without and not batched):
            return error or without
        if self._silent(source):
            return DarwinErrno.EAGAIN
        items = self._items(source, padded=batched) if flow.items else b""
        if details:
            kind = MessageType.SRC_EXTENDED_DETAILS if items else MessageType.SRC_DETAILS
            counts = bytes(_DETAILS_SIZE) if without else flow.encoded_counts(detailed=True)
        else:
            kind = MessageType.SRC_EXTENDED_UPDATE if items else MessageType.SRC_UPDATE
            counts = flow.encoded_counts()
        message = self.machine.reports.update(
            source.srcref, source.announced_as, counts, self._descriptor(source),
            kind=kind, context=context, flags=flags, events=events, items=items,
        )  # fmt: skip
        if batched and len(message) > self._update_limit:
            return DarwinErrno.EINVAL
        return self._deliver(message, batched=batched)

    def _items(self, source: ClientSource, *, padded: bool) -> bytes:
        bits = self.filter_of(source.announced_as).bits
        asked = bits >> _EXTENSION_SHIFT
        if self.release.version < (8019, 61, 5):
            asked = 1 << Extension.DOMAIN if bits & _DOMAIN_BIT_OF_8019 else 0
        broken = source.flow.broken_items
        chosen = [
            (kind, None if kind in broken else data, len(data))
            for kind, data in sorted(source.flow.items.items())
            if asked >> kind & 1
        ]
        return pack_items(chosen, padded=padded) if chosen else b""

    # Goodbyes and events

    def report_removed(self, source: ClientSource, flags: int = 0) -> int:
        """``SRC_REMOVED``."""
        message = SourceRemoved(srcref=source.srcref, flags=flags if self.release.explains_removal else 0)
        return self.enqueue(message.encode(self.machine.layout), critical=True)

    def say_goodbye(self, source: ClientSource) -> None:
        """Report a source for the last time and forget it (``nstat_client_send_goodbye``)."""
        faults = self.machine.faults
        if not faults.happens(faults.lose_goodbyes):
            flags = int(HeaderFlag.CLOSED_AFTER_FILTER)
            if self.allows(source, int(FilterFlag.SUPPRESS_BORING_CLOSE) if self.updates else 0):
                dropped = faults.happens(faults.lose_final_reports) or self._report_last(source)
                flags = int(HeaderFlag.CLOSED_AFTER_DROP) if dropped else 0
                self.failed_goodbyes += bool(dropped)
            self.report_removed(source, flags)
        self.drop(source)

    def _report_last(self, source: ClientSource) -> int:
        closing = int(HeaderFlag.CLOSING)
        if self.updates:
            return self.report_update(source, flags=closing, details=self.wants_details)
        if not self.release.has_counts_at_goodbye:
            return self.report_description(source, 0, closing)
        first = self.report_counts(source, 0, closing)
        return self.report_description(source, 0, closing) or first

    def event(self, source: ClientSource, event: int) -> None:
        """An event of one of its sources, reported if the client asked for it and is in update mode."""
        if self.updates and self.filter_of(source.announced_as).events & event and self.allows(source):
            self.report_update(source, events=event, details=self.wants_details)

    @property
    def event_mask(self) -> int:
        """All events that it asked for, of any provider."""
        mask = 0
        for wanted in self.filters.values():
            mask |= wanted.events
        return mask & (1 << 64) - 1
