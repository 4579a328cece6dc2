"""Datagrams to table entries: the first station of everything that a kernel sends.

A `Decoder` reads the datagrams of one control socket with readers compiled for the
kernel's layout, puts what they report into the source table, and hands replies to the
client that asked. A message shorter than its structure costs itself, a broken length
costs the rest of its datagram, and both are reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Union

from .._errors import ProtocolError
from .._events import AnyEvent, EventsLost, LossCause, SystemInfo, Unrecognized
from ._constants import MESSAGE_NAMES, NO_FLOWS, MessageType
from ._counters import Raw, Values, counts_unpacker, detailed_values, unpacked
from ._framer import HEADER, Defect, Frame, split
from ._kernels import Kernel
from ._messages import are_items
from ._sources import SourceTable
from ._translate import decode_sysinfo

__all__ = ["Decoder", "Listener", "Observer"]

_log = logging.getLogger("nstat_async.ntstat")

_LONGEST_GROWTH = 256
"""Bytes by which a descriptor may be longer than the newest known, for its items to be found."""
_UPDATE = int(MessageType.SRC_UPDATE)
_COUNTS = int(MessageType.SRC_COUNTS)
_PLAIN = {_UPDATE, int(MessageType.SRC_DETAILS)}
"""Types whose descriptor goes to the message's end; the others of their kind have items behind it."""

Observer = Callable[[int, Union[int, None], Union[Values, None], bytes], None]
"""(reference, provider number, counters, descriptor); `None` or empty is what the message does not have."""


class Listener(Protocol):
    """Whoever asked the kernel: hears the replies."""

    def succeeded(self, context: int, flags: int) -> None:
        """SUCCESS, with its header's flags."""

    def failed(self, context: int, errno: int) -> None:
        """ERROR, with Darwin's error number."""

    def answered(self, context: int, ref: int) -> None:
        """A report about this source came as the answer to a request."""

    def announced(self, ref: int) -> None:
        """SRC_ADDED came for this reference and is about to be taken in."""


class Decoder:
    """Decodes what one control socket says.

    Args:
        table: Where sources go.
        emit: Where events about the stream itself go.
        client: Who hears the replies.
        strict: Raise `ProtocolError` for undecodable bytes.
    """

    def __init__(
        self, table: SourceTable, emit: Callable[[AnyEvent], object], client: Listener, *, strict: bool = False
    ) -> None:
        self.kernel: Kernel = table.kernel
        self.table = table
        self.emit = emit
        self.client = client
        self.strict = strict
        self.observer: Observer | None = None
        """Also sees the raw bytes of each description, update and counts: the proof of a layout."""
        self.bytes = 0
        """Received so far."""
        self.datagrams = 0
        self.to_settle = False
        """The last datagram said more than how known flows fare: the client should draw its conclusions."""
        self._people = dict.fromkeys(("messages", "malformed", "unrecognized"), 0)
        self._has_lengths = self.kernel.layout.has_lengths
        self._compile()

    def _compile(self) -> None:
        layout = self.kernel.layout
        self._arrange = counts_unpacker(layout)[1]
        self._sizes: dict[int, int] = {}
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
        self._hot = (
            HEADER.unpack_from,
            self.table.count,
            self.table.update,
            self._readers[_COUNTS],
            self._readers.get(_UPDATE, self._readers[_COUNTS]),
            self._sizes[_COUNTS],
            self._sizes.get(_UPDATE, 0),
        )
        """What `decode` needs for reports; without updates nothing goes the direct way."""

    @property
    def statistics(self) -> dict[str, int]:
        """Counters about the stream, by name."""
        return {"datagrams": self.datagrams, "bytes": self.bytes, **self._people}

    def continue_statistics(self, earlier: Decoder) -> None:
        """This socket replaces another one: count on from where that one was."""
        self.datagrams += earlier.datagrams
        self.bytes += earlier.bytes
        for name, value in earlier._people.items():
            self._people[name] += value

    def decode(self, datagrams: Sequence[bytes], begin: int = 0) -> int:
        """Take in datagrams from `begin` on, up to and with the first that leaves something to `settle`.

        Most datagrams are answers to polls: nothing but updates, or counts, of known
        sources. They go by here without a call but that of the table.

        Returns:
            Where to go on.

        Raises:
            ProtocolError: Only with `strict`.
        """
        header, counted, updated, read_counts, read_update, shortest_counts, shortest_update = self._hot
        sources, arrange, client = self.table.sources, self._arrange, self.client
        is_direct = shortest_update and self.observer is None
        self.to_settle = False
        for index in range(begin, len(datagrams)):
            data = datagrams[index]
            size = len(data)
            self.datagrams += 1
            self.bytes += size
            at, count, known, asked = 0, 0, len(sources), False
            while is_direct and size - at >= shortest_counts:
                context, kind, length, flags = header(data, at)
                end = at + length
                if end > size:
                    break
                if kind == _UPDATE and length >= shortest_update:
                    ref, raw, provider = read_update(data, at)
                    if arrange is not None:
                        raw = arrange(raw)
                    updated(ref, provider, raw, data, at + shortest_update, end, flags)
                elif kind == _COUNTS and length >= shortest_counts:
                    ref, raw = read_counts(data, at)
                    counted(ref, raw if arrange is None else arrange(raw), flags, solicited=True)
                else:
                    break
                if context:
                    client.answered(context, ref)
                    asked = True
                at = end
                count += 1
            self._people["messages"] += count
            if at != size or not size:
                self._decode_rest(data, at)
                asked = True
            if asked or len(sources) != known:
                self.to_settle = True
                return index + 1
        return len(datagrams)

    def _decode_rest(self, data: bytes, begin: int) -> None:
        """Everything else, message by message."""
        frames, defect = split(data, has_lengths=self._has_lengths, begin=begin)
        for frame in frames:
            kind = frame[0]
            handler = self._handlers.get(kind)
            if handler is None:
                self._people["unrecognized"] += 1
                self.emit(Unrecognized(self.table.time, kind, data[frame[3] : frame[4]]))
            elif frame[4] - frame[3] < self._sizes.get(kind, 0):
                name = MESSAGE_NAMES.get(kind, str(kind))
                reason = f"{name} of {frame[4] - frame[3]} bytes is shorter than its structure"
                self._report_broken(data, Defect(reason, frame[3], frame[4]))
            else:
                handler(data, frame)
        self._people["messages"] += len(frames)
        if defect is not None and not defect.harmless:
            self._report_broken(data, defect)

    def _report_broken(self, data: bytes, defect: Defect) -> None:
        self._people["malformed"] += 1
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
        raw = counts if self._arrange is None else self._arrange(counts)
        self.table.count(ref, raw, flags, solicited=context != 0 or self._has_lengths)
        if self.observer is not None:
            self.observer(ref, None, unpacked(raw), b"")
        if context:
            self.client.answered(context, ref)

    def _on_update(self, data: bytes, frame: Frame) -> None:
        """Updates and details, plain and extended."""
        kind, context, flags, begin, end = frame
        ref, counts, provider = self._readers[kind](data, begin)
        raw: Raw | None
        if kind < MessageType.SRC_DETAILS:
            raw = counts if self._arrange is None else self._arrange(counts)
        elif self.kernel.provider(provider)[0] in NO_FLOWS:
            raw = None  # routes and interfaces have no details: the kernel sends zeros
        else:
            raw = detailed_values(self.kernel.layout["nstat_detailed_counts"].decode(counts))
        payload = begin + self._sizes[kind]
        stop = end if kind in _PLAIN else self._items_begin(provider, data, payload, end)
        self.table.update(ref, provider, raw, data, payload, stop, flags, data[stop:end])
        if self.observer is not None and kind == _UPDATE:
            self.observer(ref, provider, unpacked(raw), data[payload:end])  # type: ignore[arg-type]  # of an update
        if context:
            self.client.answered(context, ref)

    def _items_begin(self, provider_id: int, data: bytes, payload: int, end: int) -> int:
        """Where the descriptor of an extended message ends."""
        name = self.kernel.descriptor_name(provider_id)
        codec = self.kernel.layout.find(name) if name is not None else None
        if codec is None:
            return end
        stop = min(end, payload + codec.size)
        if self.kernel.known:
            return stop
        # A newer kernel's descriptor may be longer: the items begin where all the rest is items.
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
