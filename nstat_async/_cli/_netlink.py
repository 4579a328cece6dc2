"""Records of a Linux recording as message lines, with the same keys.

``context`` is the sequence number, ``descriptor`` an ``inet_diag_msg``, ``ifinfomsg`` or
``ifaddrmsg`` by the kernel's names, ``counts`` the known fields of ``tcp_info``,
``extensions`` the attributes, ``request`` an ``inet_diag_req_v2``.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from .._errors import ProtocolError
from ..recording import Record, RecordKind
from ..sockdiag._constants import (
    AF_INET,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    DiagAttribute,
    MessageType,
    RouteMessage,
    TcpInfo,
)
from ..sockdiag._messages import (
    AddressMessage,
    DiagMessage,
    DiagRequest,
    Frame,
    LinkMessage,
    error_number,
    iterate_messages,
)
from ..sockdiag._pulse import PulseReport
from ..sockdiag._purposes import PulsePurpose, Role, place_of_channel
from ._decode import Line, empty_line
from ._programs import CHANNELS, program_lines

_CONTROL = {int(member): member.name for member in MessageType}
_SOCKETS = {**_CONTROL, SOCK_DIAG_BY_FAMILY: "SOCK_DIAG_BY_FAMILY", TCPDIAG_GETSOCK: "TCPDIAG_GETSOCK"}
_REQUESTS = {"SOCK_DIAG_BY_FAMILY", "TCPDIAG_GETSOCK"}
_ROUTES = {**_CONTROL, **{int(member): member.name for member in RouteMessage}}
_LINKS = {"NEWLINK", "DELLINK"}
_ADDRESSES = {"NEWADDR", "DELADDR"}
_BYTES = {"STATE", "RETRANSMITS", "PROBES"}
_WIDE = {"PACING_RATE", "BYTES_ACKED", "BYTES_RECEIVED", "DELIVERY_RATE", "BYTES_SENT", "BYTES_RETRANS"}
_TCP_INFO = tuple(
    (
        f"tcpi_{member.name.lower()}",
        int(member),
        struct.Struct("=Q" if member.name in _WIDE else "=B" if member.name in _BYTES else "=I"),
    )
    for member in TcpInfo
)
_ID = struct.Struct("!HH16s16s")
_DEVICE_AND_COOKIE = struct.Struct("=III")


class NetlinkDecoder:
    """Decodes the records of a netlink conversation; ``c`` is the number of the socket."""

    def __init__(self) -> None:
        self._roles: dict[int, str] = {}
        """The role of a socket, if the recording has it; in older ones the channel's number tells."""
        self._others: dict[int, str] = {}
        """Channels that are not netlink sockets, with the class of their purpose."""

    def lines(self, record: Record) -> list[Line]:
        """The lines of one record; none for notes, answers of look-ups and facts about the recording."""
        if record.kind is RecordKind.DAMAGE:
            line = empty_line(record, 0, None)
            line["note"] = record.text
            line["raw"] = record.data.hex()
            return [line]
        if record.kind is RecordKind.STEP:
            self._note_role(record)
        if record.kind not in {RecordKind.FROM_KERNEL, RecordKind.TO_KERNEL}:
            return []
        if record.client in CHANNELS:
            return program_lines(record)
        result: list[Line] = []
        try:
            for part in self._parts(record, result):
                for frame in iterate_messages(part.data):
                    result.append(self._message(part, len(result), frame))  # the number counts on
        except ProtocolError as error:
            line = empty_line(record, len(result), record.kind.value)
            line["note"] = error.reason
            line["raw"] = error.raw[error.offset :].hex()
            result.append(line)
        return result

    def _parts(self, record: Record, result: list[Line]) -> list[Record]:
        """The netlink messages in a record: those of each socket in a report of a pulse, none in eBPF records."""
        purpose = self._others.get(record.client)
        if purpose == PulsePurpose.__name__:
            return [record._replace(data=message) for _, message in PulseReport.decode(record.data).sockets]
        if purpose is None:
            return [record]
        line = empty_line(record, 0, record.kind.value)
        line.update(type="UNKNOWN", note=f"of eBPF programs ({purpose})", raw=record.data.hex())
        result.append(line)
        return []

    def _note_role(self, record: Record) -> None:
        purpose = record.value.get("purpose") if isinstance(record.value, dict) else None
        role = purpose.get("role") if isinstance(purpose, dict) else None
        if isinstance(role, str):
            self._roles[record.client] = role
        elif isinstance(purpose, dict) and isinstance(purpose.get("type"), str):
            self._others[record.client] = purpose["type"]

    def _is_of_routes(self, record: Record) -> bool:
        role = self._roles.get(record.client, place_of_channel(record.client)[1].value)
        return role == Role.ROUTES.value

    def _message(self, record: Record, place: int, frame: Frame) -> Line:
        line = empty_line(record, place, record.kind.value)
        line["type_number"] = frame.type
        line["context"] = frame.sequence
        line["length"] = frame.length
        line["flags"] = frame.flags
        raw = record.data[frame.offset : frame.end]
        # The two families number their messages independently: 20 is a socket in one and an address in the other.
        names = _ROUTES if self._is_of_routes(record) else _SOCKETS
        name = names.get(frame.type, "UNKNOWN")
        try:
            self._fill(line, record, frame, name)
        except ProtocolError as error:
            line.update(descriptor=None, counts=None, extensions=[], request=None, note=error.reason, raw=raw.hex())
            return line
        line["type"] = name
        if name == "UNKNOWN":
            line["raw"] = raw.hex()
        return line

    def _fill(self, line: Line, record: Record, frame: Frame, name: str) -> None:
        data = record.data
        if record.kind is RecordKind.TO_KERNEL:
            line["request"] = self._request(data, frame) if name in _REQUESTS else {}
        elif name in _REQUESTS:
            message = DiagMessage.decode(data, frame)
            line["descriptor"] = self._socket(message)
            line["counts"] = self._tcp_info(message.attributes.get(DiagAttribute.INFO))
            line["extensions"] = [self._attribute(kind, value) for kind, value in message.attributes.items()]
        elif name in _LINKS:
            link = LinkMessage.decode(data, frame)
            line["descriptor"] = {
                "ifi_type": link.hardware,
                "ifi_index": link.index,
                "ifname": link.name,
                "info_kind": link.kind,
            }
        elif name in _ADDRESSES:
            address = AddressMessage.decode(data, frame)
            line["descriptor"] = {
                "ifa_family": address.family,
                "ifa_index": address.index,
                "address": None if address.address is None else _address(address.address),
            }
        elif name in {"ERROR", "DONE"}:
            line["error"] = error_number(data, frame)

    @staticmethod
    def _request(data: bytes, frame: Frame) -> dict[str, Any]:
        request = DiagRequest.decode(data, frame)
        return {
            "sdiag_family": request.family,
            "sdiag_protocol": request.protocol,
            "idiag_ext": request.extensions,
            "idiag_states": request.states,
            **_socket_id(request.family, request.socket_id),
        }

    @staticmethod
    def _socket(message: DiagMessage) -> dict[str, Any]:
        return {
            "idiag_family": message.family,
            "idiag_state": message.state,
            "idiag_timer": message.timer,
            "idiag_retrans": message.retransmits,
            **_socket_id(message.family, message.socket_id),
            "idiag_expires": message.expires,
            "idiag_rqueue": message.receive_queue,
            "idiag_wqueue": message.write_queue,
            "idiag_uid": message.uid,
            "idiag_inode": message.inode,
        }

    @staticmethod
    def _tcp_info(data: bytes | None) -> dict[str, int] | None:
        """The known fields in this kernel's ``tcp_info``."""
        if data is None:
            return None
        return {name: form.unpack_from(data, at)[0] for name, at, form in _TCP_INFO if at + form.size <= len(data)}

    @staticmethod
    def _attribute(kind: int, value: bytes) -> dict[str, Any]:
        try:
            name: str | None = DiagAttribute(kind).name
        except ValueError:
            name = None
        shown: dict[str, Any] = {"type": kind, "name": name, "length": len(value)}
        if kind == DiagAttribute.CONG:
            shown["cong"] = value.split(b"\0", 1)[0].decode("utf-8", "replace")
        elif kind == DiagAttribute.CGROUP_ID and len(value) == 8:
            shown["cgroup_id"] = struct.unpack("=Q", value)[0]
        elif kind == DiagAttribute.MARK and len(value) == 4:
            shown["mark"] = struct.unpack("=I", value)[0]
        elif kind != DiagAttribute.INFO:  # its fields are the counts
            shown["data"] = value.hex()
        return shown


def _address(packed: bytes) -> str | None:
    family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(packed))
    return None if family is None else socket.inet_ntop(family, packed)


def _socket_id(family: int, data: bytes) -> dict[str, Any]:
    source_port, destination_port, source, destination = _ID.unpack_from(data)
    device, low, high = _DEVICE_AND_COOKIE.unpack_from(data, _ID.size)
    length = 4 if family == AF_INET else 16
    return {
        "id.idiag_sport": source_port,
        "id.idiag_dport": destination_port,
        "id.idiag_src": _address(source[:length]),
        "id.idiag_dst": _address(destination[:length]),
        "id.idiag_if": device,
        "id.idiag_cookie": low | high << 32,
    }
