"""The Darwin protocol: layouts, messages, sessions.

Public for those who bring their own I/O, write tools or study the protocol;
`nstat_async.Monitor` needs none of it. ``docs/how-to/sans-io.md`` shows a whole
client in thirty lines.
"""

from .._contract import CloseChannel, Command, Core, Lookup, Mode, OpenChannel, Send
from .._public import only
from ._constants import (
    CONTROL_NAME,
    DarwinErrno,
    EventFlag,
    Extension,
    FilterFlag,
    HeaderFlag,
    InterfaceProperty,
    MessageType,
)
from ._evidence import CloseEvidence, Evidence, FindPaths, KnownFlow, OpenEvidence, PathsFound
from ._framer import HEADER, Defect, Frame, request_frame, split
from ._kernels import RELEASES, Kernel, Release
from ._layouts import Field, Layout, StructCodec, compile_format, layout
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
from ._session import Session
from ._setup import RECORDED, Setup

__all__ = [
    "CONTROL_NAME",
    "HEADER",
    "RECORDED",
    "RELEASES",
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
    "FilterFlag",
    "FindPaths",
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
    "Mode",
    "OpenChannel",
    "OpenEvidence",
    "PathsFound",
    "QuerySource",
    "Release",
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
    "compile_format",
    "decode_message",
    "layout",
    "request_frame",
    "split",
]
__dir__ = only(__all__)
