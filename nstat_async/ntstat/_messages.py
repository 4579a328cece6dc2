"""Messages of both directions: one class for each type, with encoding and decoding.

A message class names its structure and its fields; offsets come from the layout.
Counters, descriptors and parameters stay bytes here: the codecs of the layout decode
them. Sessions that follow recorded requests, the emulated kernel and the ``messages`` command
use these classes; a session's hot path reads datagrams with its own readers of the same structures.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

from .._errors import ProtocolError
from ._constants import HEADER_SIZE, MESSAGE_NAMES, Extension, MessageType
from ._framer import HEADER, Frame
from ._kernels import Kernel
from ._layouts import Layout, StructCodec

ITEM = struct.Struct("<II")
"""``nstat_msg_src_extended_item_hdr``: type, length."""


@attrs.frozen
class ExtensionItem:
    """One item after the descriptor of an extended update."""

    type: int
    """`Extension` number; 0 is filler after an item that the kernel could not make."""
    length: int
    """Length as sent: exact in answers about one source, rounded up to 8 in answers about all."""
    data: bytes
    """The content, `length` bytes, or fewer if the message ended earlier."""


def split_items(data: bytes) -> tuple[tuple[ExtensionItem, ...], bytes]:
    """Split what follows the descriptor of an extended update.

    Returns:
        The items, and the rest, which is too short for another one.
    """
    items = []
    at, size = 0, len(data)
    while size - at >= 8:
        kind, length = ITEM.unpack_from(data, at)
        begin = at + 8
        items.append(ExtensionItem(kind, length, data[begin : begin + length]))
        at = begin + (length + 7 & ~7)
    return tuple(items), data[at:] if at < size else b""


_ITEM_LENGTHS: dict[int, Callable[[int], bool]] = {
    Extension.DOMAIN: (1032, 1056).__contains__,
    Extension.NECP_TLV: bool,
    Extension.ORIGINAL_NECP_TLV: bool,
    Extension.ORIGINAL_DOMAIN: (1032, 1056).__contains__,
    Extension.FUUID: (16).__eq__,
    Extension.BLUETOOTH_COUNTS: (32).__eq__,
}


def are_items(data: bytes, at: int, end: int) -> bool:
    """True if these bytes are nothing but known items of their usual lengths, at least one."""
    if at == end:
        return False
    while end - at >= 8:
        kind, length = ITEM.unpack_from(data, at)
        at += 8
        if kind == Extension.UNKNOWN:
            return bool(at + length == end)  # filler takes the rest
        fits = _ITEM_LENGTHS.get(kind)
        if fits is None or not fits(length) or at + length > end:
            return False
        at = min(end, at + (length + 7 & ~7))
    return at == end


def encode_items(items: tuple[ExtensionItem, ...]) -> bytes:
    """The bytes of items, each padded to 8: the inverse of `split_items`."""
    parts = []
    for item in items:
        parts.append(ITEM.pack(item.type, item.length))
        parts.append(item.data)
        parts.append(b"\0" * (-len(item.data) % 8))
    return b"".join(parts)


@attrs.frozen(kw_only=True)
class Message:
    """Base of all messages."""

    TYPE: ClassVar[int] = -1
    STRUCT: ClassVar[str] = "nstat_msg_hdr"
    FIELDS: ClassVar[tuple[str, ...]] = ()
    PAYLOAD: ClassVar[str | None] = None

    context: int = 0
    """The request's number, which the kernel repeats in its answers."""
    flags: int = 0
    """`HeaderFlag` bits; always 0 up to xnu-2782."""
    tail: bytes = attrs.field(default=b"", repr=False)
    """Bytes beyond the structure that this message has no field for."""

    @property
    def name(self) -> str:
        """The type's name in the kernel, without ``NSTAT_MSG_TYPE_``."""
        return MESSAGE_NAMES[self.TYPE]

    @classmethod
    def present(cls, codec: StructCodec) -> tuple[str, ...]:
        """The names in `FIELDS` that the structure has in this layout."""
        return tuple(name for name in cls.FIELDS if name in codec)

    @classmethod
    def decode(cls, kernel: Kernel, data: bytes, frame: Frame) -> Message:
        """Read a message that `split` found.

        Raises:
            ProtocolError: The message is shorter than its structure, or this kernel does not have it.
        """
        _, context, flags, begin, end = frame
        codec = kernel.layout.find(cls.STRUCT)
        name = MESSAGE_NAMES[cls.TYPE]
        if codec is None:
            raise ProtocolError(f"{kernel.name} has no {name}", offset=begin, raw=data)
        if end - begin < codec.size:
            reason = f"{name} of {end - begin} bytes is shorter than its {codec.size}"
            raise ProtocolError(reason, offset=begin, raw=data)
        names = cls.present(codec)
        values: dict[str, Any] = dict(zip(names, codec.reader(*names)(data, begin), strict=True)) if names else {}
        rest = data[begin + codec.size : end]
        if cls.PAYLOAD is None:
            values["tail"] = rest
        else:
            values.update(cls._open_payload(kernel, values, rest))
        return cls(context=context, flags=flags, **values)

    @classmethod
    def _open_payload(cls, kernel: Kernel, values: dict[str, Any], rest: bytes) -> dict[str, Any]:  # noqa: ARG003
        assert cls.PAYLOAD is not None
        return {cls.PAYLOAD: rest}

    def _payload(self) -> bytes:
        return getattr(self, self.PAYLOAD) if self.PAYLOAD is not None else b""

    def encode(self, layout: Layout, *, context: int | None = None) -> bytes:
        """The message as the kernel (or a client) of this layout sends it.

        Args:
            layout: The layout.
            context: Replaces the message's own; `None`: does not.

        Raises:
            KeyError: The layout has no such message.
        """
        codec = layout[self.STRUCT]
        buffer = bytearray(codec.size)
        for field in self.FIELDS:
            if field in codec:
                codec.write(buffer, field, self._field(field))
        buffer += self._payload()
        buffer += self.tail
        length, flags = (len(buffer), self.flags) if layout.has_lengths else (0, 0)
        HEADER.pack_into(
            buffer, 0, self.context if context is None else context, self.type_number, length & 0xFFFF, flags
        )
        return bytes(buffer)

    def _field(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def type_number(self) -> int:
        """The type's number."""
        return self.TYPE


@attrs.frozen(kw_only=True)
class Success(Message):
    """End of an answer; with `HeaderFlag.CONTINUATION` the same request continues it."""

    TYPE = MessageType.SUCCESS


@attrs.frozen(kw_only=True)
class Error(Message):
    """Refusal of a request, or end of a poll that a newer one replaced."""

    TYPE = MessageType.ERROR
    STRUCT = "nstat_msg_error"
    FIELDS = ("error",)
    PAYLOAD = "request"

    error: int = 0
    """Darwin's error number."""
    request: bytes = attrs.field(default=b"", repr=False)
    """Copy of the offending request (since xnu-3247, not always)."""


@attrs.frozen(kw_only=True)
class _SourceMessage(Message):
    FIELDS: ClassVar[tuple[str, ...]] = ("srcref",)

    srcref: int = 0
    """Source reference."""


@attrs.frozen(kw_only=True)
class SourceAdded(_SourceMessage):
    """A source exists."""

    TYPE = MessageType.SRC_ADDED
    STRUCT = "nstat_msg_src_added"
    FIELDS = ("srcref", "provider")

    provider: int = 0
    """Provider number of this release."""


@attrs.frozen(kw_only=True)
class SourceRemoved(_SourceMessage):
    """A source is gone; the flags may tell what became of its last report."""

    TYPE = MessageType.SRC_REMOVED
    STRUCT = "nstat_msg_src_removed"


@attrs.frozen(kw_only=True)
class SourceDescription(_SourceMessage):
    """Who and where a source is."""

    TYPE = MessageType.SRC_DESC
    STRUCT = "nstat_msg_src_description"
    FIELDS = ("srcref", "event_flags", "provider")
    PAYLOAD = "descriptor"

    event_flags: int = 0
    """`EventFlag` bits of what it reports without having been asked; else 0."""
    provider: int = 0
    """Provider number of this release."""
    descriptor: bytes = attrs.field(default=b"", repr=False)
    """The provider's descriptor, with whatever a newer kernel put behind it."""


@attrs.frozen(kw_only=True)
class SourceCounts(_SourceMessage):
    """Counters of a source."""

    TYPE = MessageType.SRC_COUNTS
    STRUCT = "nstat_msg_src_counts"
    FIELDS = ("srcref", "event_flags", "counts")

    event_flags: int = 0
    """As in `SourceDescription`."""
    counts: bytes = attrs.field(default=b"", repr=False)
    """``nstat_counts``."""


@attrs.frozen(kw_only=True)
class SourceUpdate(_SourceMessage):
    """Counters and description in one."""

    TYPE = MessageType.SRC_UPDATE
    STRUCT = "nstat_msg_src_update"
    FIELDS = ("srcref", "event_flags", "counts", "provider")
    PAYLOAD = "descriptor"

    event_flags: int = 0
    """As in `SourceDescription`."""
    counts: bytes = attrs.field(default=b"", repr=False)
    """``nstat_counts``."""
    provider: int = 0
    """Provider number of this release."""
    descriptor: bytes = attrs.field(default=b"", repr=False)
    """The provider's descriptor, with whatever a newer kernel put behind it."""


class _WithItems:
    """Finds the items after a descriptor by the descriptor's known size."""

    @classmethod
    def _open_payload(cls, kernel: Kernel, values: dict[str, Any], rest: bytes) -> dict[str, Any]:
        name = kernel.descriptor_name(values["provider"])
        codec = kernel.layout.find(name) if name is not None else None
        if codec is None or len(rest) < codec.size:
            return {"descriptor": rest}
        items, tail = split_items(rest[codec.size :])
        return {"descriptor": rest[: codec.size], "items": items, "tail": tail}

    def _payload(self) -> bytes:
        return self.descriptor + encode_items(self.items)  # type: ignore[attr-defined, no-any-return]  # mixed in


@attrs.frozen(kw_only=True)
class SourceExtendedUpdate(_WithItems, SourceUpdate):
    """An update with extension items."""

    TYPE = MessageType.SRC_EXTENDED_UPDATE

    items: tuple[ExtensionItem, ...] = ()
    """The items behind the descriptor."""


@attrs.frozen(kw_only=True)
class SourceDetails(_SourceMessage):
    """Counters by medium and description (macOS 26)."""

    TYPE = MessageType.SRC_DETAILS
    STRUCT = "nstat_msg_src_details"
    FIELDS = ("srcref", "event_flags", "detailed_counts", "provider")
    PAYLOAD = "descriptor"

    event_flags: int = 0
    """As in `SourceDescription`."""
    detailed_counts: bytes = attrs.field(default=b"", repr=False)
    """``nstat_detailed_counts``."""
    provider: int = 0
    """Provider number of this release."""
    descriptor: bytes = attrs.field(default=b"", repr=False)
    """The provider's descriptor, with whatever a newer kernel put behind it."""


@attrs.frozen(kw_only=True)
class SourceExtendedDetails(_WithItems, SourceDetails):
    """Details with extension items."""

    TYPE = MessageType.SRC_EXTENDED_DETAILS

    items: tuple[ExtensionItem, ...] = ()
    """The items behind the descriptor."""


@attrs.frozen(kw_only=True)
class SystemInfoCounts(_SourceMessage):
    """System-wide statistics."""

    TYPE = MessageType.SYSINFO_COUNTS
    STRUCT = "nstat_msg_sysinfo_counts"
    FIELDS = ("srcref", "counts.nstat_sysinfo_len")
    PAYLOAD = "entries"

    size: int = 0
    """``nstat_sysinfo_len``."""
    entries: bytes = attrs.field(default=b"", repr=False)
    """The list of ``nstat_sysinfo_keyval``."""

    @classmethod
    def _open_payload(cls, kernel: Kernel, values: dict[str, Any], rest: bytes) -> dict[str, Any]:  # noqa: ARG003
        return {"size": values.pop("counts.nstat_sysinfo_len"), "entries": rest}

    def _field(self, name: str) -> Any:
        return self.size if name == "counts.nstat_sysinfo_len" else super()._field(name)


@attrs.frozen(kw_only=True)
class AddSource(Message):
    """Request: watch one named source."""

    TYPE = MessageType.ADD_SRC
    STRUCT = "nstat_msg_add_src"
    FIELDS = ("provider",)
    PAYLOAD = "param"

    provider: int = 0
    """Provider number of this release."""
    param: bytes = b""
    """``nstat_…_add_param`` of the provider."""


@attrs.frozen(kw_only=True)
class AddAllSources(Message):
    """Request: watch all sources of a provider."""

    TYPE = MessageType.ADD_ALL_SRCS
    STRUCT = "nstat_msg_add_all_srcs"
    FIELDS = ("filter", "events", "provider", "target_pid", "target_uuid")

    provider: int = 0
    """Provider number of this release."""
    filter: int = 0
    """Filter bits (since xnu-3247)."""
    events: int = 0
    """`EventFlag` mask (since xnu-3789)."""
    target_pid: int = 0
    """With a filter bit for one process: its pid; else 0."""
    target_uuid: bytes = b"\0" * 16
    """With a filter bit for one executable: its UUID; else zeros."""


@attrs.frozen(kw_only=True)
class RemoveSource(_SourceMessage):
    """Request: give one source up."""

    TYPE = MessageType.REM_SRC
    STRUCT = "nstat_msg_rem_src"


@attrs.frozen(kw_only=True)
class QuerySource(_SourceMessage):
    """Request: counters of one or all sources."""

    TYPE = MessageType.QUERY_SRC
    STRUCT = "nstat_msg_query_src"


@attrs.frozen(kw_only=True)
class GetSourceDescription(_SourceMessage):
    """Request: description of one or all sources."""

    TYPE = MessageType.GET_SRC_DESC
    STRUCT = "nstat_msg_get_src_description"


@attrs.frozen(kw_only=True)
class SetFilter(_SourceMessage):
    """Request: private filter of one source (xnu-2422 to 10063)."""

    TYPE = MessageType.SET_FILTER
    STRUCT = "nstat_msg_set_filter"
    FIELDS = ("srcref", "filter")

    filter: int = 0
    """Bit 0: no reports of sources without bytes."""


@attrs.frozen(kw_only=True)
class GetUpdate(QuerySource):
    """Request: update of one or all sources (since xnu-3247)."""

    TYPE = MessageType.GET_UPDATE


@attrs.frozen(kw_only=True)
class GetDetails(QuerySource):
    """Request: details of one or all sources (macOS 26)."""

    TYPE = MessageType.GET_DETAILS


@attrs.frozen(kw_only=True)
class SubscribeSystemInfo(Message):
    """Request: system-wide statistics from now on."""

    TYPE = MessageType.SUBSCRIBE_SYSINFO


@attrs.frozen(kw_only=True)
class UnknownMessage(Message):
    """A type that this library does not know."""

    number: int = -1
    """The type's number."""
    body: bytes = attrs.field(default=b"", repr=False)
    """Everything after the header."""

    @property
    def name(self) -> str:
        """Always ``UNKNOWN``."""
        return "UNKNOWN"

    @property
    def type_number(self) -> int:
        """The number that was sent."""
        return self.number

    def _payload(self) -> bytes:
        return self.body


MESSAGE_CLASSES: dict[int, type[Message]] = {
    each.TYPE: each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, Message) and each.TYPE >= 0
}
"""The class of each known type."""


def decode_message(kernel: Kernel, data: bytes, frame: Frame) -> Message:
    """Read any message; an unknown type becomes `UnknownMessage`.

    Raises:
        ProtocolError: The message is shorter than its structure, or this kernel does not have it.
    """
    cls = MESSAGE_CLASSES.get(frame[0])
    if cls is None:
        number, context, flags, begin, end = frame
        return UnknownMessage(context=context, flags=flags, number=number, body=data[begin + HEADER_SIZE : end])
    return cls.decode(kernel, data, frame)
