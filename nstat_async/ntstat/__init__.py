"""The Darwin protocol: layouts, messages, sessions.

Public for those who bring their own I/O, write tools or study the protocol;
`nstat_async.Monitor` needs none of it. ``docs/how-to/sans-io.md`` shows a whole
client in thirty lines.
"""

from .._contract import CloseChannel, Command, Core, Lookup, OpenChannel, Send
from ._constants import (
    CONTROL_NAME,
    DarwinErrno,
    EventFlag,
    Extension,
    Filter,
    HeaderFlag,
    InterfaceProperty,
    MessageType,
)
from ._evidence import CloseEvidence, Evidence, KnownFlow, OpenEvidence
from ._framer import Defect, Frame, split
from ._kernels import Kernel
from ._layouts import Field, Layout, StructCodec, layout
from ._messages import (
    AddAllSources,
    AddSource,
    Error,
    ExtensionItem,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    Message,
    QuerySource,
    RemoveSource,
    SetFilter,
    SourceAdded,
    SourceCounts,
    SourceDescription,
    SourceDetails,
    SourceExtendedDetails,
    SourceExtendedUpdate,
    SourceRemoved,
    SourceUpdate,
    SubscribeSystemInfo,
    Success,
    SystemInfoCounts,
    UnknownMessage,
    decode_message,
)
from ._passive import PassiveSession
from ._session import Session
from ._setup import RECORDED, Setup

__all__ = [
    "CONTROL_NAME",
    "RECORDED",
    "AddAllSources",
    "AddSource",
    "CloseChannel",
    "CloseEvidence",
    "Command",
    "Core",
    "DarwinErrno",
    "Defect",
    "Error",
    "EventFlag",
    "Evidence",
    "Extension",
    "ExtensionItem",
    "Field",
    "Filter",
    "Frame",
    "GetDetails",
    "GetSourceDescription",
    "GetUpdate",
    "HeaderFlag",
    "InterfaceProperty",
    "Kernel",
    "KnownFlow",
    "Layout",
    "Lookup",
    "Message",
    "MessageType",
    "OpenChannel",
    "OpenEvidence",
    "PassiveSession",
    "QuerySource",
    "RemoveSource",
    "Send",
    "Session",
    "SetFilter",
    "Setup",
    "SourceAdded",
    "SourceCounts",
    "SourceDescription",
    "SourceDetails",
    "SourceExtendedDetails",
    "SourceExtendedUpdate",
    "SourceRemoved",
    "SourceUpdate",
    "StructCodec",
    "SubscribeSystemInfo",
    "Success",
    "SystemInfoCounts",
    "UnknownMessage",
    "decode_message",
    "layout",
    "split",
]
