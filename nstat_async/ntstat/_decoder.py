"""From datagrams to table entries: the first step for everything that a kernel sends.

A `Decoder` reads the datagrams of one control socket with readers compiled for the
kernel's layout. It puts reports into the source table, and passes replies to the
client that asked. A message shorter than its structure is skipped, a broken length
ends its datagram, and both are reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Union

from .._compiled import speedups
from .._errors import ProtocolError
from .._events import AnyEvent, EventsLost, FlowUpdated, LossCause, SystemInfo, Unrecognized, UpdateDraft, flow_updated
from ._constants import HEADER_SIZE, MESSAGE_NAMES, NO_FLOWS, MessageType
from ._counters import (
    DETAILS_SIZE,
    QUIET,
    Raw,
    Values,
    counts_unpacker,
    detailed_values,
    growing_details,
    growing_fields,
    growing_reader,
)
from ._framer import HEADER, Defect, Frame, split
from ._kernels import Kernel
from ._layouts import Field, StructCodec, compile_format
from ._messages import are_items
from ._source import Source
from ._sources import SourceTable
from ._translate import decode_sysinfo

_log = logging.getLogger("nstat_async.ntstat")

_LONGEST_GROWTH = 256
"""Most bytes by which an unknown descriptor may be longer than the newest known one, so that its items are still found."""
_UPDATE = int(MessageType.SRC_UPDATE)
_COUNTS = int(MessageType.SRC_COUNTS)
_DETAILED = int(MessageType.SRC_DETAILS)
_PLAIN = {_UPDATE, _DETAILED}
"""Types whose descriptor goes to the message's end; in the extended types, items follow it."""

Observer = Callable[[int, Union[int, None], Union[Values, None], bytes], None]
"""Called with (reference, provider number, counters, descriptor); parts that the message lacks are `None` or empty."""


_totals_of_details: Any = growing_details()


def _is_quiet(raw: bytes, before: bytes) -> bool:
    """True if two details of a kernel socket differ only in bits of activity."""
    return raw[:32] == before[:32] and raw[QUIET:] == before[QUIET:]


class Listener(Protocol):
    """The client that sends requests: it gets the replies."""

    def succeeded(self, context: int, flags: int) -> None:
        """SUCCESS, with its header's flags."""

    def failed(self, context: int, errno: int) -> None:
        """ERROR, with Darwin's error number."""

    def answered(self, context: int, ref: int) -> None:
        """A report about this source answers a request."""

    def announced(self, ref: int) -> None:
        """SRC_ADDED came for this reference, and is not in the table yet."""


class Decoder:
    """Decodes the messages of one control socket.

    Args:
        table: Where sources go.
        emit: Where events about the stream itself go.
        client: Gets the replies.
        strict: Raise `ProtocolError` for undecodable bytes.
    """

    def __init__(
        self, table: SourceTable, emit: Callable[[AnyEvent], object], client: Listener, *, strict: bool
    ) -> None:
        self.kernel: Kernel = table.kernel
        self.table = table
        self.emit = emit
        self.client = client
        self.strict = strict
        self.observer: Observer | None = None
        """Gets the raw bytes of each description, update and counts too, to prove a layout."""
        self.bytes = 0
        """Received so far."""
        self.datagrams = 0
        self.to_settle = False
        """The last datagram said more than how known flows grew: the client should `settle`."""
        self._statistics = dict.fromkeys(("messages", "malformed", "unrecognized"), 0)
        self._has_lengths = self.kernel.layout.has_lengths
        self._compile()

    def _compile(self) -> None:
        layout = self.kernel.layout
        self._unpack_counts = counts_unpacker(layout)[0]
        self._sizes: dict[int, int] = {MessageType.SUCCESS: HEADER_SIZE}
        self._readers: dict[int, Callable[[bytes, int], tuple[Any, ...]]] = {}
        self._handlers: dict[int, Callable[[bytes, Frame], None]] = {MessageType.SUCCESS: self._on_success}
        for kinds, name, fields, handler in (
            ((MessageType.ERROR,), "nstat_msg_error", ("error",), self._on_error),
            ((MessageType.SRC_ADDED,), "nstat_msg_src_added", ("srcref", "provider"), self._on_added),
            ((MessageType.SRC_REMOVED,), "nstat_msg_src_removed", ("srcref",), self._on_removed),
            ((MessageType.SRC_DESC,), "nstat_msg_src_description", ("srcref", "provider"), self._on_description),
            ((MessageType.SRC_COUNTS,), "nstat_msg_src_counts", ("srcref", "counts"), self._on_counts),
            (
                (MessageType.SRC_UPDATE, MessageType.SRC_EXTENDED_UPDATE),
                "nstat_msg_src_update",
                ("srcref", "counts", "provider"),
                self._on_update,
            ),
            (
                (MessageType.SRC_DETAILS, MessageType.SRC_EXTENDED_DETAILS),
                "nstat_msg_src_details",
                ("srcref", "detailed_counts", "provider"),
                self._on_update,
            ),
            ((MessageType.SYSINFO_COUNTS,), "nstat_msg_sysinfo_counts", ("srcref",), self._on_sysinfo),
        ):
            codec = layout.find(name)
            if codec is None:
                continue
            for kind in kinds:
                self._sizes[kind] = codec.size
                self._readers[kind] = codec.reader(*fields)
                self._handlers[kind] = handler
        codec = layout["nstat_msg_src_counts"]
        report = [
            Field("", "CHAR", 0, HEADER_SIZE, f"{HEADER_SIZE}s", 1),
            codec.by_name["srcref"],
            codec.by_name["counts"],
        ]
        self._details_payload = self._sizes.get(_DETAILED, 0)
        self._details_at = (
            layout["nstat_msg_src_details"].by_name["detailed_counts"].offset if self.kernel.has_details else 0
        )
        sources = self.table.sources
        growing: Any = growing_reader(layout)
        facts = codec.size, self._sizes.get(_UPDATE, 0), self.kernel.has_details
        self._hot = (compile_format(report).unpack_from, growing, *facts, sources, sources.get)
        """What `decode` needs for reports: counts and updates have header, reference and counters at the same places."""
        self._take = self._compiled(codec) if speedups is not None and self._has_lengths else None

    def _compiled(self, counts: StructCodec) -> Callable[..., tuple[int, int, int, int]]:
        """The loop of `decode` in C: it takes plain reports, and returns where it stopped."""
        field = counts.by_name
        places = (field["srcref"].offset, field["counts"].offset, field["counts"].size, counts.size)
        offsets = tuple(each.offset for each in growing_fields(self.kernel.layout))
        reports: Any = speedups.Reports(
            (_UPDATE, _COUNTS), (*places, self._sizes[_UPDATE]), offsets, Source, FlowUpdated
        )
        return reports.take  # type: ignore[no-any-return]

    @property
    def statistics(self) -> dict[str, int]:
        """Counters about the stream, by name."""
        return {"datagrams": self.datagrams, "bytes": self.bytes, **self._statistics}

    def continue_statistics(self, earlier: Decoder) -> None:
        """This socket replaces another one: continue its counters."""
        self.datagrams += earlier.datagrams
        self.bytes += earlier.bytes
        for name, value in earlier._statistics.items():
            self._statistics[name] += value

    def decode(self, datagrams: Sequence[bytes], begin: int = 0) -> int:
        """Take in datagrams from `begin` on, up to and including the first one after which the client has to `settle`.

        Most datagrams answer polls, and have only updates or counts of known sources. These are handled here, without a
        call except that for the event; all other messages have handlers.

        Returns:
            Where to go on.

        Raises:
            ProtocolError: Only with `strict`.
        """
        read, totals, shortest, update_size, has_details, sources, find = self._hot
        table, emit, every = self.table, self.table.emit, self.table.every_update
        time, time_ns, serial = table.time, table.time_ns, table.poll_serial
        is_direct, draft = self._has_lengths and self.observer is None, UpdateDraft
        update, counts, detailed = _UPDATE, _COUNTS, _DETAILED
        self.to_settle = False
        take = self._take if is_direct else None
        index, stop, known_head = begin, len(datagrams), b""
        while index < stop:
            at, count, known, asked = 0, 0, len(sources), False
            if take is not None:
                first = index
                index, at, size, count = take(datagrams, first, sources, serial, time, time_ns, every, emit)
                self.datagrams += index - first
                self.bytes += size
                if index == stop:
                    self._statistics["messages"] += count
                    break
            data = datagrams[index]
            index += 1
            size = len(data)
            self.datagrams += 1
            self.bytes += size
            last = size - shortest if is_direct else -1
            while at <= last:
                head, ref, raw = read(data, at)
                if head != known_head:  # nearly all messages of a datagram have the same
                    context, kind, length, flags = HEADER.unpack(head)
                    if kind == update:
                        payload = update_size
                    elif kind == counts and length >= shortest:
                        payload = 0
                    elif kind == detailed and has_details:
                        payload = self._details_payload
                    else:
                        known_head = b""
                        break
                    known_head, span = head, length - payload
                    is_bare = kind != detailed and not flags and not context
                end = at + length
                if end > size:
                    break
                source: Any = find(ref)
                if (
                    source is not None
                    and source.is_plain is not False
                    and is_bare
                    and (
                        not payload
                        or (source.span == span and source.identity == hash(source.reader.identity(data, at + payload)))
                    )
                ):
                    before = source.raw
                    if raw == before and not every:
                        source.seen = serial
                        at = end
                        count += 1
                        continue
                    # Updates do not replace details.
                    if source.is_plain and (not has_details or len(raw) == len(before)):
                        a, b, c, d, wrapping = now = totals(raw)
                        e, f, g, h, wrapped = source.totals or totals(before)
                        if b >= f and d >= h and a >= e and c >= g and wrapping == wrapped:
                            source.raw, source.totals, source.seen = raw, now, serial
                            if payload:
                                report = (source.reader, data, at + payload, end, end, time_ns, raw, before)
                            elif source.report is None:
                                report = (source.reader, b"", 0, 0, 0, -1, raw, before)
                            else:
                                report = source.take_report(before)
                            event: Any = draft()  # `flow_updated`, without the call
                            event.time, event.flow, event._details = time, source.flow, report  # noqa: SLF001
                            event.__class__ = FlowUpdated
                            emit(event)
                            at = end
                            count += 1
                            continue
                if kind == detailed and source is not None and not flags and self._take_details(source, data, at, end):
                    pass
                elif length >= self._sizes[kind]:
                    self._handlers[kind](data, (kind, 0, flags, at, end))
                else:
                    break
                if context:
                    self.client.answered(context, ref)
                    asked = True
                at = end
                count += 1
            self._statistics["messages"] += count
            if at != size or not size:
                self._decode_rest(data, at)
                asked = True
            if asked or len(sources) != known:
                self.to_settle = True
                return index
        return stop

    def _take_details(self, source: Any, data: bytes, at: int, end: int) -> bool:
        """Take in plain details, whose counters have another form; False if they are not plain, and `_on_update` has to."""
        payload, counters = at + self._details_payload, at + self._details_at
        raw, before, table = data[counters : counters + DETAILS_SIZE], source.raw, self.table
        if (
            source.is_plain is False
            or source.span != end - payload
            or source.identity != hash(source.reader.identity(data, payload))
        ):
            return False
        if raw != before or table.every_update:
            if not source.is_plain or len(raw) != len(before):  # details do not replace updates
                return False
            a, b, c, d, wrapping = now = _totals_of_details(raw)
            e, f, g, h, wrapped = source.totals or _totals_of_details(before)
            if b < f or d < h or a < e or c < g or wrapping != wrapped:
                return False
            source.raw, source.totals = raw, now
            if b > f or d > h or table.every_update or not _is_quiet(raw, before):
                report = (source.reader, data, payload, end, end, table.time_ns, raw, before)
                table.emit(flow_updated(table.time, source.flow, report))
        source.seen = table.poll_serial
        return True

    def _decode_rest(self, data: bytes, begin: int) -> None:
        """Take in the other messages of a datagram, one by one."""
        if self._has_lengths and len(data) - begin >= HEADER_SIZE:
            context, kind, length, flags = HEADER.unpack_from(data, begin)
            if begin + length == len(data):  # the last message, and mostly the only one
                self._handle(data, (kind, context, flags, begin, len(data)))
                return
        frames, defect = split(data, has_lengths=self._has_lengths, begin=begin)
        for frame in frames:
            self._handle(data, frame)
        if defect is not None and not defect.harmless:
            self._report_broken(data, defect)

    def _handle(self, data: bytes, frame: Frame) -> None:
        self._statistics["messages"] += 1
        kind, _, _, begin, end = frame
        handler = self._handlers.get(kind)
        if handler is None:
            self._statistics["unrecognized"] += 1
            self.emit(Unrecognized(self.table.time, kind, data[begin:end]))
        elif end - begin < self._sizes[kind]:
            name = MESSAGE_NAMES.get(kind, str(kind))
            reason = f"{name} of {end - begin} bytes is shorter than its structure"
            self._report_broken(data, Defect(reason, begin, end))
        else:
            handler(data, frame)

    def _report_broken(self, data: bytes, defect: Defect) -> None:
        self._statistics["malformed"] += 1
        if self.strict:
            raise ProtocolError(defect.reason, offset=defect.begin, raw=data)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("undecodable bytes, %s: %s", defect.reason, data[defect.begin : defect.end].hex())
        self.emit(EventsLost(self.table.time, LossCause.PROTOCOL, 1, detail=defect.reason))

    # --- one handler per kind of message ------------------------------------

    def _on_success(self, data: bytes, frame: Frame) -> None:  # noqa: ARG002
        self.client.succeeded(frame[1], frame[2])

    def _on_error(self, data: bytes, frame: Frame) -> None:
        (errno,) = self._readers[frame[0]](data, frame[3])
        self.client.failed(frame[1], errno)

    def _on_added(self, data: bytes, frame: Frame) -> None:
        kind, context, _, begin, _ = frame
        ref, provider = self._readers[kind](data, begin)
        self.client.announced(ref)
        self.table.add(ref, provider, requested=context != 0)
        if context:
            self.client.answered(context, ref)

    def _on_removed(self, data: bytes, frame: Frame) -> None:
        (ref,) = self._readers[frame[0]](data, frame[3])
        self.table.end(ref, frame[2])

    def _on_description(self, data: bytes, frame: Frame) -> None:
        kind, context, flags, begin, end = frame
        ref, provider = self._readers[kind](data, begin)
        payload = begin + self._sizes[kind]
        self.table.describe(ref, provider, data, payload, end, flags)
        if self.observer is not None:
            self.observer(ref, provider, None, data[payload:end])
        if context:
            self.client.answered(context, ref)

    def _on_counts(self, data: bytes, frame: Frame) -> None:
        kind, context, flags, begin, _ = frame
        ref, counts = self._readers[kind](data, begin)
        self.table.count(ref, counts, flags, solicited=context != 0 or self._has_lengths)
        if self.observer is not None:
            self.observer(ref, None, self._unpack_counts(counts), b"")
        if context:
            self.client.answered(context, ref)

    def _on_update(self, data: bytes, frame: Frame) -> None:
        """Updates and details, plain and extended."""
        kind, context, flags, begin, end = frame
        ref, counts, provider = self._readers[kind](data, begin)
        is_detailed = kind >= MessageType.SRC_DETAILS
        raw: Raw | None = counts
        if is_detailed and self.kernel.provider(provider)[0] in NO_FLOWS:
            raw = None  # routes and interfaces have no details: the kernel sends zeros
        payload = begin + self._sizes[kind]
        stop = end if kind in _PLAIN else self._items_begin(provider, data, payload, end)
        self.table.update(ref, provider, raw, data, payload, stop, end, flags)
        if self.observer is not None:
            values = detailed_values(counts, is_socket=False) if is_detailed else self._unpack_counts(counts)
            self.observer(ref, provider, values, data[payload:stop])
        if context:
            self.client.answered(context, ref)

    def _items_begin(self, provider_id: int, data: bytes, payload: int, end: int) -> int:
        """Offset where the descriptor of an extended message ends."""
        name = self.kernel.descriptor_name(provider_id)
        codec = self.kernel.layout.find(name) if name is not None else None
        if codec is None:
            return end
        stop = min(end, payload + codec.size)
        if self.kernel.known:
            return stop
        # A newer kernel's descriptor may be longer: it ends where the rest of the message is nothing but items.
        longer = range(stop, min(end, stop + _LONGEST_GROWTH) + 1, 8)
        return next((at for at in longer if are_items(data, at, end)), stop)

    def _on_sysinfo(self, data: bytes, frame: Frame) -> None:
        kind, _, _, begin, end = frame
        codec = self.kernel.layout["nstat_sysinfo_keyval"]
        values = []
        for at in range(begin + self._sizes[kind], end - codec.size + 1, codec.size):
            fields: dict[str, Any] = codec.decode(data, at)
            value = decode_sysinfo(fields)
            if value is not None:
                values.append((int(fields["nstat_sysinfo_key"]), value))
        self.emit(SystemInfo(self.table.time, tuple(values)))
