"""A client's view of flows: sources, filters, and the reports about them.

What is here follows ``ntstat.c``: which report a filter lets pass, which message a
goodbye consists of, what a full buffer does to each. The handlers of requests are
in ``_requests.py``, the socket's buffer in ``_socket.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from nstat_async._model import Provider
from nstat_async.ntstat._constants import DarwinErrno, Filter, HeaderFlag, MessageType

from ._interfaces import known_property_bits
from ._wire import pack_items

if TYPE_CHECKING:
    from ._client import EmulatedClient
    from ._flows import EmulatedFlow

__all__ = ["ProviderFilter", "Reporter", "Source"]

_OK = 0
_ENOBUFS = int(DarwinErrno.ENOBUFS)
_EAGAIN = int(DarwinErrno.EAGAIN)
_EINVAL = int(DarwinErrno.EINVAL)
_DESCRIPTION_LIMIT = 512
_HAS_NETWORK_ACCESS = 0x1000000
_GENERIC = frozenset({Provider.CONNECTION, Provider.UDP_SUBFLOW})
_EXTENSION_SHIFT = 40
_DOMAIN_BIT_OF_8019 = 1 << 28


@attrs.frozen
class ProviderFilter:
    """What a client asked of one provider in ``ADD_ALL_SRCS``."""

    bits: int = 0
    events: int = 0
    pid: int = 0
    uuid: bytes = bytes(16)


class Source:
    """One flow as one client watches it."""

    __slots__ = ("announced_as", "client", "flow", "no_zero_bytes", "reported", "sequence", "srcref", "threshold")

    def __init__(self, client: EmulatedClient, srcref: int, flow: EmulatedFlow, announced_as: int) -> None:
        self.client = client
        self.srcref = srcref
        self.flow = flow
        self.announced_as = announced_as
        """Provider number in its messages (xnu-3789 announces user-land UDP as user-land TCP)."""
        self.sequence = 0
        """The paced poll that reported it last."""
        self.no_zero_bytes = False
        self.reported = False
        """A generic provider's report went out ("boring" filters look at it)."""
        self.threshold = 0
        """Interface sources: bytes after which the client wants to be told."""


class Reporter:
    """Makes the reports of one client's sources and queues them."""

    def __init__(self, client: EmulatedClient) -> None:
        self.client = client
        self.kernel = client.kernel
        self._batch: list[bytes] = []
        self._batch_size = 0
        self.property_bits = known_property_bits(self.kernel.release.version)
        users = self.kernel.release.specific_user_bits
        self._users = users or {}
        self._user_bits = sum(users.values()) if users else 0
        self._no_zero_bit = self.kernel.release.no_zero_bytes_bit or 0

    # Filters

    def plain(self, bits: int) -> bool:
        """True if a provider's filter lets every report pass."""
        return not bits & (self.property_bits | self._user_bits | _HAS_NETWORK_ACCESS | 0x30000000)

    def allowed(self, source: Source, boring: int = 0) -> bool:
        """``nstat_client_reporting_allowed``: may this source be reported?

        Args:
            source: The source.
            boring: The "boring" filter bit that this occasion concerns (generic providers).
        """
        flow = source.flow
        wanted = self.client.filters.get(source.announced_as)
        if wanted is None or self.plain(wanted.bits):
            return True
        if flow.provider in _GENERIC and wanted.bits & boring and source.reported:
            return False
        mask = self.property_bits | (_HAS_NETWORK_ACCESS if flow.provider in _GENERIC else 0)
        asked = wanted.bits & mask
        if asked and not asked & flow.filter_properties and not self._moved_on(flow, asked):
            return False
        return not wanted.bits & self._user_bits or self._owner_matches(flow, wanted)

    @staticmethod
    def _moved_on(flow: EmulatedFlow, asked: int) -> bool:
        """Kernel UDP passes also when it has moved bytes on a medium that was asked for."""
        if flow.provider is not Provider.UDP or not flow.is_kernel_socket:
            return False
        counts = flow.counts
        for bits, medium in ((0x4 | 0x40, "cell"), (0x8, "wifi"), (0x10, "wired")):
            moved = counts.get(f"nstat_{medium}_rxbytes", 0) or counts.get(f"nstat_{medium}_txbytes", 0)
            if asked & bits and moved:
                return True
        return False

    def _owner_matches(self, flow: EmulatedFlow, wanted: ProviderFilter) -> bool:
        fields, users = flow.fields, self._users
        if wanted.bits & users["pid"] and fields.get("pid", 0) == wanted.pid:
            return True
        if wanted.bits & users["epid"]:
            if flow.is_kernel_socket:
                # The kernel's comparison binds wrongly and yields an owner's id, which is "true".
                if fields.get("pid", 0):
                    return True
            elif fields.get("epid", 0) == wanted.pid:
                return True
        if wanted.bits & users["uuid"] and fields.get("uuid", bytes(16)) == wanted.uuid:
            return True
        return bool(wanted.bits & users["euuid"] and fields.get("euuid", bytes(16)) == wanted.uuid)

    def _silent(self, source: Source) -> bool:
        """True for a source without bytes where the client asked for none such."""
        wanted = self.client.filters.get(source.announced_as)
        filtered = source.no_zero_bytes or (wanted is not None and wanted.bits & self._no_zero_bit)
        counts = source.flow.counts
        return bool(filtered) and not counts.get("nstat_rxbytes") and not counts.get("nstat_txbytes")

    # The batch

    def accumulate(self, message: bytes) -> int:
        """Put a message into the batch; a full batch is flushed, and its loss goes unnoticed."""
        if self._batch_size + len(message) > self.kernel.batch_limit:
            self.flush()
        if not self._batch and not self.kernel.faults.allocates():
            return self.client.enqueue(message)
        self._batch.append(message)
        self._batch_size += len(message)
        return _OK

    def flush(self) -> None:
        """Queue the batch; refused, it is gone and nobody is told."""
        if self._batch:
            self.client.enqueue_batch(b"".join(self._batch))
            self._batch.clear()
            self._batch_size = 0

    def _deliver(self, message: bytes, *, batched: bool) -> int:
        return self.accumulate(message) if batched else self.client.enqueue(message)

    # Reports

    def counts(self, source: Source, context: int, flags: int = 0, *, batched: bool = False) -> int:
        """``SRC_COUNTS``; counters that cannot be had are passed over in silence."""
        if source.flow.counts_errno():
            return _OK if not batched else source.flow.counts_errno()
        if self._silent(source):
            return _EAGAIN
        message = self.kernel.wire.source_counts(source.srcref, source.flow.encoded_counts(), context, flags)
        return self._deliver(message, batched=batched)

    def description(self, source: Source, context: int, flags: int = 0, *, batched: bool = False) -> int:
        """``SRC_DESC``."""
        error = source.flow.descriptor_errno()
        if error:
            return error
        descriptor = self._descriptor(source)
        message = self.kernel.wire.source_description(source.srcref, source.announced_as, descriptor, context, flags)
        if batched and len(message) > _DESCRIPTION_LIMIT:
            return _EINVAL
        return self._deliver(message, batched=batched)

    def _descriptor(self, source: Source) -> bytes:
        descriptor = source.flow.encoded_descriptor()
        if source.announced_as != source.flow.provider_id:
            structure = self.kernel.release.descriptor_name(source.announced_as)
            assert structure is not None
            descriptor = descriptor.ljust(self.kernel.release.layout[structure].size, b"\0")
        return descriptor

    def update(
        self,
        source: Source,
        context: int = 0,
        flags: int = 0,
        events: int = 0,
        *,
        batched: bool = False,
        details: bool = False,
    ) -> int:
        """``SRC_UPDATE`` or ``SRC_DETAILS`` (macOS 26), extended where items were asked for."""
        flow = source.flow
        error = flow.descriptor_errno() or flow.counts_errno()
        if error:
            return error
        if self._silent(source):
            return _EAGAIN
        items = self._items(source, padded=batched)
        if details:
            counts = flow.encoded_detailed_counts()
            kind = MessageType.SRC_EXTENDED_DETAILS if items else MessageType.SRC_DETAILS
        else:
            counts = flow.encoded_counts()
            kind = MessageType.SRC_EXTENDED_UPDATE if items else MessageType.SRC_UPDATE
        descriptor = self._descriptor(source)
        message = self.kernel.wire.source_update(
            source.srcref, source.announced_as, counts, descriptor, context, flags, events, kind=kind, items=items
        )
        if batched and len(message) > self.kernel.update_limit:
            return _EINVAL
        return self._deliver(message, batched=batched)

    def _items(self, source: Source, *, padded: bool) -> bytes:
        if not source.flow.items:
            return b""
        wanted = self.client.filters.get(source.announced_as)
        if wanted is None:
            return b""
        asked = wanted.bits >> _EXTENSION_SHIFT
        if self.kernel.release.version < (8019, 61, 5):
            asked = 2 if wanted.bits & _DOMAIN_BIT_OF_8019 else 0
        broken = source.flow.broken_items
        chosen = [
            (kind, None if kind in broken else data, len(data))
            for kind, data in sorted(source.flow.items.items())
            if asked >> kind & 1
        ]
        return pack_items(chosen, padded=padded) if chosen else b""

    def removed(self, source: Source, flags: int = 0) -> int:
        """``SRC_REMOVED``."""
        if not self.kernel.release.explains_removal:
            flags = 0
        return self.client.enqueue(self.kernel.wire.removed(source.srcref, flags), critical=True)

    def goodbye(self, source: Source) -> None:
        """The last reports about a source that ended (``nstat_client_send_goodbye``)."""
        if self.kernel.faults.loses_goodbye():
            return
        flags = int(HeaderFlag.CLOSED_AFTER_FILTER)
        updates = self.client.updates
        boring = int(Filter.SUPPRESS_BORING_CLOSE) if updates else 0
        if self.allowed(source, boring):
            flags = 0
            refused = self.kernel.faults.loses_final_report()
            if refused or self._final_reports(source):
                flags = int(HeaderFlag.CLOSED_AFTER_DROP)
        self.removed(source, flags)

    def _final_reports(self, source: Source) -> int:
        closing = int(HeaderFlag.CLOSING) if self.kernel.wire.has_lengths else 0
        if self.client.updates:
            return self.update(source, flags=closing, details=self.client.wants_details)
        if not self.kernel.release.has_counts_at_goodbye:
            return self.description(source, 0, closing)
        first = self.counts(source, 0, closing)
        second = self.description(source, 0, closing)
        return first or second

    def event(self, source: Source, event: int) -> None:
        """An update for an event, if the client is in update mode and nothing filters it."""
        if self.client.updates and self.allowed(source):
            self.update(source, events=event, details=self.client.wants_details)


def is_buffer_error(error: int) -> bool:
    """True for errors that end a walk: nothing more would fit."""
    return error in {_ENOBUFS, int(DarwinErrno.ENOMEM)}
