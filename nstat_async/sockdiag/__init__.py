"""Linux' sock_diag: its messages, and the core that makes events of them.

`Session` is the whole logic without sockets and clock; feed it datagrams with the
time and carry out its commands, or let `nstat_async.Monitor` do that.
"""

from __future__ import annotations

from .._contract import CloseChannel, Command, Core, Lookup, OpenChannel, Send
from .._public import only
from ._constants import (
    DiagAttribute,
    DiagGroup,
    HardwareType,
    MessageFlag,
    MessageType,
    RouteMessage,
    SocketState,
    TcpInfo,
)
from ._host_requests import (
    ANYWHERE,
    RECORDED,
    AttachAnswer,
    AttachRequest,
    CgroupFacts,
    CgroupsAnswer,
    CgroupsRequest,
    ChangedAnswer,
    ChangedRequest,
    FoundNamespace,
    LinkKindsAnswer,
    LinkKindsRequest,
    NamespacesAnswer,
    NamespacesRequest,
    OwnersAnswer,
    OwnersRequest,
    ProcessesAnswer,
    ProcessesRequest,
    ProcessFacts,
    SocketTablesAnswer,
    SocketTablesRequest,
    TableRow,
    TrafficAnswer,
    TrafficRequest,
)
from ._messages import AddressMessage, DiagMessage, DiagRequest, Frame, LinkMessage, iterate_messages
from ._pulse import PulseReport
from ._purposes import ChannelPurpose, PulsePurpose, Role
from ._session import Session
from ._setup import NetworkNamespace, Setup

__all__ = [
    "ANYWHERE",
    "RECORDED",
    "AddressMessage",
    "AttachAnswer",
    "AttachRequest",
    "CgroupFacts",
    "CgroupsAnswer",
    "CgroupsRequest",
    "ChangedAnswer",
    "ChangedRequest",
    "ChannelPurpose",
    "CloseChannel",
    "Command",
    "Core",
    "DiagAttribute",
    "DiagGroup",
    "DiagMessage",
    "DiagRequest",
    "FoundNamespace",
    "Frame",
    "HardwareType",
    "LinkKindsAnswer",
    "LinkKindsRequest",
    "LinkMessage",
    "Lookup",
    "MessageFlag",
    "MessageType",
    "NamespacesAnswer",
    "NamespacesRequest",
    "NetworkNamespace",
    "OpenChannel",
    "OwnersAnswer",
    "OwnersRequest",
    "ProcessFacts",
    "ProcessesAnswer",
    "ProcessesRequest",
    "PulsePurpose",
    "PulseReport",
    "Role",
    "RouteMessage",
    "Send",
    "Session",
    "Setup",
    "SocketState",
    "SocketTablesAnswer",
    "SocketTablesRequest",
    "TableRow",
    "TcpInfo",
    "TrafficAnswer",
    "TrafficRequest",
    "iterate_messages",
]
__dir__ = only(__all__)
