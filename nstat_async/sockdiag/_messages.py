"""The netlink messages of sock_diag and rtnetlink: encode beside decode.

A netlink datagram is a sequence of messages. A message is a 16-byte header (length, type,
flags, sequence, port) and a body, padded to four bytes. An ``inet_diag`` body is a fixed
part (56 bytes in a request, 72 in a reply) and attributes. Numbers are in host order,
addresses and ports in network order.

The classes here are for rare messages, tests and tools; dumps are read by the formats of `_rows`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from .._errors import ProtocolError
from ._constants import (
    AF_UNSPEC,
    IPPROTO_TCP,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    AddressAttribute,
    DiagAttribute,
    LinkAttribute,
    MessageFlag,
    MessageType,
)

HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence, port."""
_ATTRIBUTE = struct.Struct("=HH")
_REQUEST = struct.Struct("=BBBBI48s")
_OLD_REQUEST = struct.Struct("=BxxB48sII")
"""``inet_diag_req``."""
_SOCKET = struct.Struct("=BBBB48sIIIII")
_ERROR = struct.Struct("=i")
_LINK = struct.Struct("=BBHiII")
_ADDRESS = struct.Struct("=BBBBI")

SOCKET_ID_AT = HEADER.size + 4
"""Offset of ``inet_diag_sockid`` in a reply: 48 bytes with ports, addresses, device, cookie."""
COOKIE_AT = SOCKET_ID_AT + 40
"""Offset of the socket's cookie in a reply."""
ATTRIBUTES_AT = HEADER.size + 72
"""Offset of the first attribute in a reply."""
_NESTED = 0x3FFF
"""Mask for the type of an attribute: without the flags "nested" and "network order"."""


def align(length: int) -> int:
    """`length` rounded up to the start of the next message or attribute."""
    return (length + 3) & ~3


@attrs.frozen
class Frame:
    """Where a message lies in its datagram."""

    offset: int
    """Offset of its header in the datagram."""
    length: int
    """Bytes of header and body, without padding."""
    type: int
    """``nlmsg_type``."""
    flags: int
    """``nlmsg_flags``."""
    sequence: int
    """``nlmsg_seq``."""

    @property
    def body(self) -> int:
        """Offset of the body."""
        return self.offset + HEADER.size

    @property
    def end(self) -> int:
        """Offset of the first byte after the message, which may be padding."""
        return self.offset + self.length


def _fixed_part(form: struct.Struct, data: bytes, frame: Frame, name: str) -> tuple[Any, ...]:
    """The values of a message before its attributes.

    Raises:
        ProtocolError: The message is too short.
    """
    if frame.length < HEADER.size + form.size:
        raise ProtocolError(f"{name} is too short", offset=frame.offset, raw=data)
    return form.unpack_from(data, frame.body)


def iterate_messages(data: bytes) -> Iterator[Frame]:
    """The messages of a datagram.

    Raises:
        ProtocolError: A length is impossible; the messages before it were yielded.
    """
    offset, size = 0, len(data)
    while offset < size:
        if size - offset < HEADER.size:
            raise ProtocolError("datagram ends inside a netlink header", offset=offset, raw=data)
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > size:
            raise ProtocolError(f"netlink message of impossible length {length}", offset=offset, raw=data)
        yield Frame(offset, length, kind, flags, sequence)
        offset += align(length)


def encode_message(kind: int, body: bytes, *, sequence: int = 0, flags: int = 0) -> bytes:
    """A message with its header and padding."""
    length = HEADER.size + len(body)
    return HEADER.pack(length, kind, flags, sequence, 0) + body + bytes(align(length) - length)


def numbered(message: bytes, sequence: int) -> bytes:
    """The same message with this sequence number."""
    return message[:8] + sequence.to_bytes(4, sys.byteorder) + message[12:]


def encode_done(sequence: int) -> bytes:
    """The end of a dump."""
    return encode_message(MessageType.DONE, _ERROR.pack(0), sequence=sequence, flags=MessageFlag.MULTI)


def encode_error(number: int, request: bytes = b"", *, sequence: int = 0) -> bytes:
    """A refusal (`number` positive) or acknowledgement (0), with the header of what it answers."""
    return encode_message(MessageType.ERROR, _ERROR.pack(-number) + request[: HEADER.size], sequence=sequence)


def error_number(data: bytes, frame: Frame) -> int:
    """The positive error number in an ERROR message, or in the DONE message that ends a dump; 0 is success."""
    if frame.length < HEADER.size + _ERROR.size:
        return 0
    number: int = _ERROR.unpack_from(data, frame.body)[0]
    return max(0, -number)


def _attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type of each attribute, and offset and length of its value."""
    while end - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > end:
            raise ProtocolError(f"netlink attribute of impossible length {length}", offset=offset, raw=data)
        yield kind & _NESTED, offset + _ATTRIBUTE.size, length - _ATTRIBUTE.size
        offset += align(length)


def decode_attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """The attributes between two offsets, by type; the last one counts if a type is repeated.

    Raises:
        ProtocolError: An attribute is shorter than its header or longer than the message.
    """
    return {kind: data[start : start + length] for kind, start, length in _attributes(data, offset, end)}


def find_attribute(data: bytes, offset: int, end: int, wanted: int) -> tuple[int, int] | None:
    """Offset and length of one attribute's value; `None` if it is missing, or the attributes are broken."""
    try:
        return next((at, length) for kind, at, length in _attributes(data, offset, end) if kind == wanted)
    except (ProtocolError, StopIteration):
        return None


def encode_attributes(attributes: Mapping[int, bytes]) -> bytes:
    """Attributes in the mapping's order, each padded."""
    parts = []
    for kind, value in attributes.items():
        length = _ATTRIBUTE.size + len(value)
        parts.append(_ATTRIBUTE.pack(length, kind) + value + bytes(align(length) - length))
    return b"".join(parts)


def extension_bits(*attributes: DiagAttribute) -> int:
    """The ``idiag_ext`` byte that asks for these attributes."""
    return sum(1 << (attribute - 1) for attribute in attributes)


@attrs.frozen
class DiagRequest:
    """``inet_diag_req_v2``: a dump of one family and protocol, or a look-up of one socket."""

    family: int
    """``AF_UNSPEC`` is a dump of TCP sockets of both families, by the older ``inet_diag_req``."""
    protocol: int
    """``IPPROTO_TCP`` or another; a dump of both families is of TCP in any case."""
    extensions: int = 0
    """Bits of `extension_bits`."""
    states: int = 0xFFFFFFFF
    """Bit *n*: sockets in state *n*."""
    socket_id: bytes = bytes(48)
    """For a look-up: ports, addresses, device and cookie, as in a reply."""
    dump: bool = True
    """True: all sockets that match. False: the one with this `socket_id`."""
    sequence: int = 0
    """``nlmsg_seq``, which the answers repeat."""

    def encode(self, sequence: int | None = None) -> bytes:
        """The message; a given sequence number replaces its own."""
        number = self.sequence if sequence is None else sequence
        flags = MessageFlag.REQUEST | (MessageFlag.DUMP if self.dump else 0)
        if self.family == AF_UNSPEC:
            body = _OLD_REQUEST.pack(self.family, self.extensions, self.socket_id, self.states, 0)
            return encode_message(TCPDIAG_GETSOCK, body, sequence=number, flags=flags)
        body = _REQUEST.pack(self.family, self.protocol, self.extensions, 0, self.states, self.socket_id)
        return encode_message(SOCK_DIAG_BY_FAMILY, body, sequence=number, flags=flags)

    @classmethod
    def decode(cls, data: bytes, frame: Frame) -> DiagRequest:
        """Read a request.

        Raises:
            ProtocolError: It is too short.
        """
        if frame.type == TCPDIAG_GETSOCK:
            protocol = IPPROTO_TCP
            family, extensions, socket_id, states, _ = _fixed_part(_OLD_REQUEST, data, frame, "sock_diag request")
        else:
            parts = _fixed_part(_REQUEST, data, frame, "sock_diag request")
            family, protocol, extensions, _, states, socket_id = parts
        dump = frame.flags & MessageFlag.DUMP == MessageFlag.DUMP
        return cls(family, protocol, extensions, states, socket_id, dump, frame.sequence)


@attrs.frozen
class DiagMessage:
    """``inet_diag_msg`` with its attributes: a socket in a dump, a look-up or a removal."""

    family: int
    """``AF_INET`` or ``AF_INET6``, by the numbers of Linux."""
    state: int
    """See `SocketState`."""
    socket_id: bytes
    """``inet_diag_sockid``: ports, addresses, device and cookie."""
    timer: int = 0
    """The timer that runs (sock_diag(7)): 0 none, 1 retransmission, 2 keep-alive, 3 TIME_WAIT, 4 probe of a closed window."""
    retransmits: int = 0
    """With timer 1, 2 or 4: the number of retransmissions or probes; otherwise 0."""
    expires: int = 0
    """Milliseconds until the timer fires."""
    receive_queue: int = 0
    """Bytes that are not read yet; of a listener, connections that are not accepted yet."""
    write_queue: int = 0
    """Sequence numbers that are not acknowledged yet; of a listener, its backlog."""
    uid: int = 0
    """User who made the socket."""
    inode: int = 0
    """Inode of the socket; 0 if no process has it."""
    attributes: Mapping[int, bytes] = attrs.field(factory=dict, hash=False)
    """Values by type, see `DiagAttribute`."""
    sequence: int = 0
    """``nlmsg_seq``: that of the request."""
    flags: int = 0
    """``nlmsg_flags``."""

    @property
    def cookie(self) -> int:
        """The socket's id, never reused while the machine is up."""
        low, high = struct.unpack_from("=II", self.socket_id, 40)
        return int(low | high << 32)

    def encode(self) -> bytes:
        """The message."""
        numbers = (self.expires, self.receive_queue, self.write_queue, self.uid, self.inode)
        body = _SOCKET.pack(self.family, self.state, self.timer, self.retransmits, self.socket_id, *numbers)
        body += encode_attributes(self.attributes)
        return encode_message(SOCK_DIAG_BY_FAMILY, body, sequence=self.sequence, flags=self.flags)

    @classmethod
    def decode(cls, data: bytes, frame: Frame) -> DiagMessage:
        """Read a socket.

        Raises:
            ProtocolError: It is too short, or its attributes are broken.
        """
        parts = _fixed_part(_SOCKET, data, frame, "inet_diag message")
        family, state, timer, retransmits, socket_id, expires, unread, unsent, uid, inode = parts
        attributes = decode_attributes(data, frame.offset + ATTRIBUTES_AT, frame.end)
        numbers = (expires, unread, unsent, uid, inode)
        return cls(family, state, socket_id, timer, retransmits, *numbers, attributes, frame.sequence, frame.flags)


def socket_id(
    local: bytes, local_port: int, remote: bytes, remote_port: int, *, device: int = 0, cookie: int = 0
) -> bytes:
    """``inet_diag_sockid``; addresses of 4 or 16 bytes in network order."""
    ports = struct.pack("!HH", local_port, remote_port)
    low, high = cookie & 0xFFFFFFFF, cookie >> 32
    return ports + local.ljust(16, b"\0") + remote.ljust(16, b"\0") + struct.pack("=III", device, low, high)


def encode_route_dump(kind: int, sequence: int) -> bytes:
    """A request for all links or all addresses."""
    flags = MessageFlag.REQUEST | MessageFlag.DUMP
    return encode_message(kind, bytes(_LINK.size), sequence=sequence, flags=flags)


@attrs.frozen
class LinkMessage:
    """``ifinfomsg``: an interface."""

    index: int
    """Its number."""
    hardware: int
    """``ARPHRD_*``, see `HardwareType`."""
    name: str | None = None
    """Its name; `None` if the message has none."""
    kind: str | None = None
    """The driver's kind of a software device (``IFLA_INFO_KIND``)."""

    def encode(self, message_type: int, *, sequence: int = 0) -> bytes:
        """The message."""
        attributes: dict[int, bytes] = {}
        if self.name is not None:
            attributes[LinkAttribute.IFNAME] = self.name.encode() + b"\0"
        if self.kind is not None:
            attributes[LinkAttribute.LINKINFO] = encode_attributes({LinkAttribute.INFO_KIND: self.kind.encode()})
        body = _LINK.pack(0, 0, self.hardware, self.index, 0, 0) + encode_attributes(attributes)
        return encode_message(message_type, body, sequence=sequence)

    @classmethod
    def decode(cls, data: bytes, frame: Frame) -> LinkMessage:
        """Read an interface.

        Raises:
            ProtocolError: It is too short, or its attributes are broken.
        """
        _, _, hardware, index, _, _ = _fixed_part(_LINK, data, frame, "ifinfomsg")
        found = decode_attributes(data, frame.body + _LINK.size, frame.end)
        details = found.get(LinkAttribute.LINKINFO)
        kind = None
        if details is not None:
            kind = _text(decode_attributes(details, 0, len(details)).get(LinkAttribute.INFO_KIND))
        return cls(index, hardware, _text(found.get(LinkAttribute.IFNAME)), kind)


@attrs.frozen
class AddressMessage:
    """``ifaddrmsg``: an address of an interface."""

    family: int
    """``AF_INET`` or ``AF_INET6``, by the numbers of Linux."""
    index: int
    """Number of the interface."""
    address: bytes | None
    """The local address, network order; `None` when the message has none."""
    prefix: int = 0
    """Length of the network's prefix in bits."""

    def encode(self, message_type: int, *, sequence: int = 0) -> bytes:
        """The message."""
        attributes: dict[int, bytes] = {} if self.address is None else {AddressAttribute.LOCAL: self.address}
        body = _ADDRESS.pack(self.family, self.prefix, 0, 0, self.index) + encode_attributes(attributes)
        return encode_message(message_type, body, sequence=sequence)

    @classmethod
    def decode(cls, data: bytes, frame: Frame) -> AddressMessage:
        """Read an address; on point-to-point links ``IFA_LOCAL`` is ours and ``IFA_ADDRESS`` the peer's.

        Raises:
            ProtocolError: It is too short, or its attributes are broken.
        """
        family, prefix, _, _, index = _fixed_part(_ADDRESS, data, frame, "ifaddrmsg")
        found = decode_attributes(data, frame.body + _ADDRESS.size, frame.end)
        return cls(family, index, found.get(AddressAttribute.LOCAL, found.get(AddressAttribute.ADDRESS)), prefix)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.split(b"\0", 1)[0].decode("utf-8", "replace")
