"""Numbers of the protocol, grouped and named as in the kernel's ``ntstat.h``.

Numbers that changed between releases are in ``_kernels.py``. Error numbers and address families
here are *Darwin's*: a host that reads a recording may have other values in its ``errno`` and
``socket`` modules.
"""

from __future__ import annotations

import enum

from .._model import Provider, TcpState

CONTROL_NAME = "com.apple.network.statistics"
"""Name of the kernel control."""

HEADER_SIZE = 16
"""Bytes of ``nstat_msg_hdr``."""

MAX_BATCH = 4096
"""Largest aggregated datagram (``NSTAT_MAX_MSG_SIZE``)."""

POLL_CHUNK = 100
"""Most sources that one paced request reports."""


class MessageType(enum.IntEnum):
    """Types of messages and requests."""

    SUCCESS = 0
    ERROR = 1
    ADD_SRC = 1001
    ADD_ALL_SRCS = 1002
    REM_SRC = 1003
    QUERY_SRC = 1004
    GET_SRC_DESC = 1005
    SET_FILTER = 1006
    GET_UPDATE = 1007
    SUBSCRIBE_SYSINFO = 1008
    GET_DETAILS = 1009
    SRC_ADDED = 10001
    SRC_REMOVED = 10002
    SRC_DESC = 10003
    SRC_COUNTS = 10004
    SYSINFO_COUNTS = 10005
    SRC_UPDATE = 10006
    SRC_EXTENDED_UPDATE = 10007
    SRC_DETAILS = 10008
    SRC_EXTENDED_DETAILS = 10009


MESSAGE_NAMES = {member.value: member.name for member in MessageType}


class HeaderFlag(enum.IntFlag):
    """Flags in the header, since xnu-3247."""

    SUPPORTS_AGGREGATE = 1
    CONTINUATION = 2
    CLOSING = 4
    CLOSED_AFTER_DROP = 8
    CLOSED_AFTER_FILTER = 16
    CLOSED_AFTER_GONE = 64


class EventFlag(enum.IntFlag):
    """Reasons for an unsolicited update."""

    ADDED = 0x1
    REMOVED = 0x2
    QUERIED = 0x4
    QUERIED_ALL = 0x8
    WILL_CHANGE_STATE = 0x10
    DID_CHANGE_STATE = 0x20
    WILL_CHANGE_OWNER = 0x40
    DID_CHANGE_OWNER = 0x80
    WILL_CHANGE_PROPERTY = 0x100
    DID_CHANGE_PROPERTY = 0x200
    ENTER_CELLFALLBACK = 0x400
    EXIT_CELLFALLBACK = 0x800
    FLOW_STATE_LISTEN = 0x1000
    FLOW_STATE_OUTBOUND = 0x2000
    FLOW_UUID_ASSIGNED = 0x4000
    FLOW_UUID_CHANGED = 0x8000
    ATTRIBUTION_CHANGE = 0x10000
    PREV_EVENT_DISCARDED = 0x80000000


class InterfaceProperty(enum.IntFlag):
    """Bits of ``ifnet_properties``: the interface, and since xnu-10002 the role of a TCP socket."""

    UNKNOWN_TYPE = 0x1
    LOOPBACK = 0x2
    CELLULAR = 0x4
    WIFI = 0x8
    WIRED = 0x10
    AWDL = 0x20
    EXPENSIVE = 0x40
    VPN = 0x80
    VIA_CELLFALLBACK = 0x100
    COMPANIONLINK = 0x200
    CONSTRAINED = 0x400
    LOCAL = 0x800
    NON_LOCAL = 0x1000
    ROUTE_VALUE_UNOBTAINABLE = 0x2000
    FLOWSWITCH_VALUE_UNOBTAINABLE = 0x4000
    LLW = 0x8000
    WIFI_INFRA = 0x10000
    PEER_EGRESS_CELLULAR = 0x20000
    COMPANIONLINK_BT = 0x40000
    ULTRA_CONSTRAINED = 0x80000
    CONN_HAS_NET_ACCESS = 0x1000000
    SOURCE_IS_LISTENER = 0x2000000
    SOURCE_IS_INBOUND = 0x4000000
    SOURCE_IS_OUTBOUND = 0x8000000


class FilterFlag(enum.IntFlag):
    """Filter bits of ``ADD_ALL_SRCS`` that kept their place; see `Kernel` for those that moved."""

    SUPPRESS_SRC_ADDED = 0x100000
    SUPPRESS_BORING_CLOSE = 0x10000000
    SUPPRESS_BORING_POLL = 0x20000000
    INITIAL_PROPERTIES = 0x1000000000


class Extension(enum.IntEnum):
    """Types of the items after the descriptor of an extended update."""

    UNKNOWN = 0
    DOMAIN = 1
    NECP_TLV = 2
    ORIGINAL_NECP_TLV = 3
    ORIGINAL_DOMAIN = 4
    FUUID = 5
    BLUETOOTH_COUNTS = 6


EXTENSION_NAMES = {member.value: member.name for member in Extension}


class SysinfoFlag(enum.IntFlag):
    """How to read the value of a system-information entry."""

    SCALAR = 1
    DISTRIBUTION = 2
    STRING = 4


class LinkStatus(enum.IntEnum):
    """Which block of an interface's link status is in use."""

    NONE = 0
    CELLULAR = 1
    WIFI = 2
    ETHERNET = 3


TCP_STATES = (
    TcpState.CLOSED,
    TcpState.LISTEN,
    TcpState.SYN_SENT,
    TcpState.SYN_RECEIVED,
    TcpState.ESTABLISHED,
    TcpState.CLOSE_WAIT,
    TcpState.FIN_WAIT_1,
    TcpState.CLOSING,
    TcpState.LAST_ACK,
    TcpState.FIN_WAIT_2,
    TcpState.TIME_WAIT,
)
"""``TCPS_*`` of ``tcp_fsm.h``: the index is the kernel's number."""

NO_FLOWS = frozenset({Provider.ROUTE, Provider.INTERFACE})
"""Providers whose sources have events of their own."""

DARWIN_AF_INET = 2
DARWIN_AF_INET6 = 30


class DarwinErrno(enum.IntEnum):
    """Darwin's numbers of the errors that the control sends, or that opening it raises."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    ENOMEM = 12
    EACCES = 13
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    EAGAIN = 35
    EALREADY = 37
    EMSGSIZE = 40
    ENOTSUP = 45
    EAFNOSUPPORT = 47
    ENOBUFS = 55
    EOPNOTSUPP = 102

    @property
    def text(self) -> str:
        """Text of the error (``errno(2)``)."""
        return _ERROR_TEXTS[self.name]


_ERROR_TEXTS = {
    "EPERM": "Operation not permitted",
    "ENOENT": "No such file or directory",
    "EIO": "Input/output error",
    "ENOMEM": "Cannot allocate memory",
    "EACCES": "Permission denied",
    "EINVAL": "Invalid argument",
    "ENFILE": "Too many open files in system",
    "EMFILE": "Too many open files",
    "EAGAIN": "Resource temporarily unavailable",
    "EALREADY": "Operation already in progress",
    "EMSGSIZE": "Message too long",
    "ENOTSUP": "Operation not supported",
    "EAFNOSUPPORT": "Address family not supported by protocol family",
    "ENOBUFS": "No buffer space available",
    "EOPNOTSUPP": "Operation not supported on socket",
}


NO_ROOM = frozenset({DarwinErrno.ENOMEM, DarwinErrno.ENOBUFS, 105, 10055})
"""Errors of a full buffer; ENOBUFS by Darwin's, Linux' and Windows' numbers, because a recording is played anywhere."""


def error_text(number: int) -> str:
    """Darwin's text of an error; its number if the control does not send it."""
    return DarwinErrno(number).text if number in DarwinErrno.__members__.values() else f"error {number}"
