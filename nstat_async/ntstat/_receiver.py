"""One control socket, receiving: datagrams to table entries and replies.

Shared by the active and the passive session. Decoding is by formats compiled for
the kernel's layout; a message shorter than its structure costs itself, a broken
length costs the rest of its datagram, and both are told.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Any, Union

from .._errors import ProtocolError
from .._events import AnyEvent, EventsLost, LossCause, SystemInfo, Unrecognized
from ._constants import MESSAGE_NAMES, MessageType
from ._counters import Values, counts_unpacker, detailed_values, unpacked
from ._framer import HEADER, Defect, Frame, split
from ._kernels import Kernel
from ._messages import are_items
from ._sources import SourceTable
from ._translate import sysinfo_value

__all__ = ["Receiver"]

_log = logging.getLogger("nstat_async.ntstat")

_LONGEST_GROWTH = 256
"""Bytes by which a descriptor may be longer than the newest known, for its items to be found."""

_SUCCESS = int(MessageType.SUCCESS)
_ERROR = int(MessageType.ERROR)
_ADDED = int(MessageType.SRC_ADDED)
_REMOVED = int(MessageType.SRC_REMOVED)
_DESC = int(MessageType.SRC_DESC)
_COUNTS = int(MessageType.SRC_COUNTS)
_UPDATE = int(MessageType.SRC_UPDATE)
_EXTENDED = int(MessageType.SRC_EXTENDED_UPDATE)
_DETAILS = int(MessageType.SRC_DETAILS)
_EXTENDED_DETAILS = int(MessageType.SRC_EXTENDED_DETAILS)
_SYSINFO = int(MessageType.SYSINFO_COUNTS)

Success = Callable[[int, int], None]
"""(context, flags)"""
Observer = Callable[[int, Union[int, None], Union[Values, None], bytes], None]
"""(reference, provider number, counters, descriptor); `None` or empty is what the message does not have."""
Failure = Callable[[int, int, bytes], None]
"""(context, errno, copy of the request)"""


class Receiver:
    """Feeds a `SourceTable` from the datagrams of one control socket.

    Args:
        kernel: Whose bytes these are.
        table: Where sources go.
        emit: Where events about the stream itself go.
        on_success: Called for SUCCESS.
        on_error: Called for ERROR.
        on_answer: Called with the context of each report that answers a single request.
        strict: Raise `ProtocolError` for undecodable bytes.
    """

    def __init__(
        self,
        kernel: Kernel,
        table: SourceTable,
        emit: Callable[[AnyEvent], None],
        *,
        on_success: Success,
        on_error: Failure,
        on_answer: Callable[[int, int], None],
        strict: bool = False,
    ) -> None:
        self.kernel = kernel
        self.table = table
        self.emit = emit
        self.on_success = on_success
        self.on_error = on_error
        self.on_answer = on_answer
        self.strict = strict
        self.statistics = dict.fromkeys(("datagrams", "messages", "bytes", "malformed", "unrecognized"), 0)
        self._has_lengths = kernel.layout.has_lengths
        self._handlers: dict[int, Callable[[bytes, Frame], None]] = {}
        self._direct = False
        self._compile()

    def _compile(self) -> None:
        layout = self.kernel.layout
        ref = "Q" if layout.reference_size == 8 else "I"
        counts_size, self._arrange = counts_unpacker(layout)
        self._ref = struct.Struct(f"<16x{ref}")
        self._added = self._fields("nstat_msg_src_added", "srcref", "provider")
        self._error = self._fields("nstat_msg_error", "error")
        self._error_size = layout["nstat_msg_error"].size
        self._added_size = layout["nstat_msg_src_added"].size
        self._desc = self._fields("nstat_msg_src_description", "srcref", "provider")
        self._desc_size = layout["nstat_msg_src_description"].size
        counts = layout["nstat_msg_src_counts"]
        gap = counts.by_name["counts"].offset - 16 - layout.reference_size
        self._counts = struct.Struct(f"<16x{ref}{gap}x{counts_size}s")
        self._handlers = {
            _SUCCESS: self._on_success,
            _ERROR: self._on_error,
            _ADDED: self._on_added,
            _REMOVED: self._on_removed,
            _DESC: self._on_desc,
            _COUNTS: self._on_counts,
        }
        update = layout.find("nstat_msg_src_update")
        if update is not None:
            provider_gap = update.by_name["provider"].offset - update.by_name["counts"].offset - counts_size
            self._update = struct.Struct(f"<16x{ref}{gap}x{counts_size}s{provider_gap}xI")
            self._update_size = update.size
            self._handlers[_UPDATE] = self._on_update
            self._handlers[_EXTENDED] = self._on_update
            self._direct = True
        if "nstat_msg_sysinfo_counts" in layout:
            self._handlers[_SYSINFO] = self._on_sysinfo
        details = layout.find("nstat_msg_src_details")
        if details is not None:
            self._details_size = details.size
            self._handlers[_DETAILS] = self._on_details
            self._handlers[_EXTENDED_DETAILS] = self._on_details

    def _fields(self, name: str, *fields: str) -> Callable[[bytes, int], tuple[Any, ...]]:
        """A function that reads these fields of a structure, in this order."""
        codec = self.kernel.layout[name]
        by_offset = sorted(fields, key=lambda field: codec.by_name[field].offset)
        parts, at = ["<"], 0
        for field_name in by_offset:
            field = codec.by_name[field_name]
            parts.append(f"{field.offset - at}x{field.format}")
            at = field.end
        unpack = struct.Struct("".join(parts)).unpack_from
        if tuple(by_offset) == fields:
            return unpack

        def reordered(data: bytes, begin: int) -> tuple[Any, ...]:
            values = unpack(data, begin)
            return values[::-1]

        return reordered

    def watch(self, observer: Observer | None) -> None:
        """Also show the raw bytes of each description, update and counts to an observer (`None`: to nobody)."""
        plain = {_DESC: self._on_desc, _COUNTS: self._on_counts, _UPDATE: self._on_update}
        for kind, handler in plain.items():
            if kind in self._handlers:
                self._handlers[kind] = handler if observer is None else self._shown(observer, handler)
        if _UPDATE in self._handlers:
            self._direct = observer is None

    def _shown(self, observer: Observer, handler: Callable[[bytes, Frame], None]) -> Callable[[bytes, Frame], None]:
        def show(data: bytes, frame: Frame) -> None:
            handler(data, frame)  # first: it refuses what is too short
            kind, _, _, begin, end = frame
            if kind == _DESC:
                ref, provider = self._desc(data, begin)
                observer(ref, provider, None, data[begin + self._desc_size : end])
            elif kind == _COUNTS:
                ref, raw = self._counts.unpack_from(data, begin)
                observer(ref, None, self._values_of(raw), b"")
            else:
                ref, raw, provider = self._update.unpack_from(data, begin)
                observer(ref, provider, self._values_of(raw), data[begin + self._update_size : end])

        return show

    def _values_of(self, raw: bytes) -> Values:
        return unpacked(raw) if self._arrange is None else self._arrange(raw)

    def receive(self, data: bytes, time: float) -> None:
        """Take in one datagram that arrived at this wall-clock time (seconds)."""
        statistics = self.statistics
        statistics["datagrams"] += 1
        statistics["bytes"] += len(data)
        table = self.table
        table.begin(time)
        begin = self._receive_reports(data) if self._direct else 0
        if begin == len(data) and begin:
            return
        frames, defect = split(data, has_lengths=self._has_lengths, begin=begin)
        handlers = self._handlers
        for frame in frames:
            handler = handlers.get(frame[0])
            if handler is None:
                self._unrecognized(data, frame)
                continue
            try:
                handler(data, frame)
            except struct.error:
                # The compiled formats are longer than what is left of the datagram.
                self._too_short(data, frame)
        statistics["messages"] += len(frames)
        if defect is not None and not defect.harmless:
            self._broken(data, defect)

    def _receive_reports(self, data: bytes) -> int:
        """Take in the updates and counts that a datagram begins with: of a poll's answer most, or all.

        Does what `split`, `_on_update` and `_on_counts` do, without a tuple and two calls a message.

        Returns:
            Where the first other message begins.
        """
        at, count, size = 0, 0, len(data)
        header, update, counts = HEADER.unpack_from, self._update.unpack_from, self._counts.unpack_from
        shortest_update, shortest_counts = self._update_size, self._counts.size
        table, arrange, on_answer = self.table, self._arrange, self.on_answer
        try:
            while size - at >= shortest_counts:
                context, kind, length, flags = header(data, at)
                end = at + length
                if end > size:
                    break
                if kind == _UPDATE and length >= shortest_update:
                    ref, raw, provider = update(data, at)
                    if arrange is not None:
                        raw = arrange(raw)
                    table.updated(ref, provider, raw, data, at + shortest_update, end, flags)
                elif kind == _COUNTS and length >= shortest_counts:
                    ref, raw = counts(data, at)
                    table.counted(ref, raw if arrange is None else arrange(raw), flags, True)
                else:
                    break
                if context:
                    on_answer(context, ref)
                at = end
                count += 1
        except struct.error:
            pass  # the caller meets it again at the same message, and tells
        self.statistics["messages"] += count
        return at

    # --- trouble -----------------------------------------------------------

    def _unrecognized(self, data: bytes, frame: Frame) -> None:
        self.statistics["unrecognized"] += 1
        self.emit(Unrecognized(self.table.time, frame[0], data[frame[3] : frame[4]]))

    def _too_short(self, data: bytes, frame: Frame) -> None:
        kind, _, _, begin, end = frame
        name = MESSAGE_NAMES.get(kind, str(kind))
        self._broken(data, Defect(f"{name} of {end - begin} bytes is shorter than its structure", begin, end))

    def _broken(self, data: bytes, defect: Defect) -> None:
        self.statistics["malformed"] += 1
        if self.strict:
            raise ProtocolError(defect.reason, offset=defect.begin, raw=data)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("undecodable bytes, %s: %s", defect.reason, data[defect.begin : defect.end].hex())
        self.emit(EventsLost(self.table.time, LossCause.PROTOCOL, 1, detail=defect.reason))

    # --- one handler a type -------------------------------------------------

    def _on_success(self, data: bytes, frame: Frame) -> None:  # noqa: ARG002
        self.on_success(frame[1], frame[2])

    def _on_error(self, data: bytes, frame: Frame) -> None:
        begin, end = frame[3], frame[4]
        request = begin + self._error_size
        if request > end:
            self._short()
        (errno,) = self._error(data, begin)
        self.on_error(frame[1], errno, data[request:end])

    def _on_added(self, data: bytes, frame: Frame) -> None:
        _, context, _, begin, end = frame
        if end - begin < self._added_size:
            self._short()
        ref, provider = self._added(data, begin)
        self.table.added(ref, provider, requested=context != 0)
        if context:
            self.on_answer(context, ref)

    def _on_removed(self, data: bytes, frame: Frame) -> None:
        _, _, flags, begin, end = frame
        if end - begin < 16 + self.kernel.layout.reference_size:
            self._short()
        (ref,) = self._ref.unpack_from(data, begin)
        self.table.removed(ref, flags)

    def _on_desc(self, data: bytes, frame: Frame) -> None:
        _, context, flags, begin, end = frame
        payload = begin + self._desc_size
        if payload > end:
            self._short()
        ref, provider = self._desc(data, begin)
        self.table.described(ref, provider, data, payload, end, flags)
        if context:
            self.on_answer(context, ref)

    def _on_counts(self, data: bytes, frame: Frame) -> None:
        _, context, flags, begin, end = frame
        if end - begin < self._counts.size:
            self._short()
        ref, raw = self._counts.unpack_from(data, begin)
        if self._arrange is not None:
            raw = self._arrange(raw)
        self.table.counted(ref, raw, flags, context != 0 or self._has_lengths)
        if context:
            self.on_answer(context, ref)

    def _on_update(self, data: bytes, frame: Frame) -> None:
        kind, context, flags, begin, end = frame
        payload = begin + self._update_size
        if payload > end:
            self._short()
        ref, raw, provider = self._update.unpack_from(data, begin)
        if self._arrange is not None:
            raw = self._arrange(raw)
        if kind == _UPDATE:
            self.table.updated(ref, provider, raw, data, payload, end, flags)
        else:
            stop, items = self._items(provider, data, payload, end)
            self.table.updated(ref, provider, raw, data, payload, stop, flags, items)
        if context:
            self.on_answer(context, ref)

    def _items(self, provider_id: int, data: bytes, payload: int, end: int) -> tuple[int, bytes]:
        """Where the descriptor of an extended message ends, and what follows it."""
        name = self.kernel.descriptor_name(provider_id)
        codec = self.kernel.layout.find(name) if name is not None else None
        stop = end if codec is None else min(end, payload + codec.size)
        if codec is not None and not self.kernel.known:
            # A newer kernel's descriptor may be longer: the items begin where all the rest is items.
            longer = range(stop, min(end, stop + _LONGEST_GROWTH) + 1, 8)
            stop = next((at for at in longer if are_items(data, at, end)), stop)
        return stop, data[stop:end]

    def _on_details(self, data: bytes, frame: Frame) -> None:
        kind, context, flags, begin, end = frame
        payload = begin + self._details_size
        if payload > end:
            self._short()
        layout = self.kernel.layout
        message = layout["nstat_msg_src_details"]
        ref = message.read("srcref", data, begin)
        provider = message.read("provider", data, begin)
        at = begin + message.by_name["detailed_counts"].offset
        raw = detailed_values(layout["nstat_detailed_counts"].decode(data, at))
        stop, items = self._items(provider, data, payload, end) if kind == _EXTENDED_DETAILS else (end, b"")
        self.table.updated(ref, provider, raw, data, payload, stop, flags, items)
        if context:
            self.on_answer(context, ref)

    def _on_sysinfo(self, data: bytes, frame: Frame) -> None:
        begin, end = frame[3], frame[4]
        layout = self.kernel.layout
        codec = layout["nstat_sysinfo_keyval"]
        at = begin + layout["nstat_msg_sysinfo_counts"].size
        if at > end:
            self._short()
        values = []
        while at + codec.size <= end:
            fields: dict[str, Any] = codec.decode(data, at)
            value = sysinfo_value(fields)
            if value is not None:
                values.append((int(fields["nstat_sysinfo_key"]), value))
            at += codec.size
        self.emit(SystemInfo(self.table.time, tuple(values)))

    @staticmethod
    def _short() -> Any:
        raise struct.error
