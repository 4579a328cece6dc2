"""Stream every network flow of this machine, with the process behind it, into ``async for``.

    async with Monitor() as monitor:
        async for event in monitor:
            print(event)

See `Monitor`, the events (`FlowAdded`, `FlowUpdated`, `FlowRemoved`, `EventsLost`, …) and
`nstat_async.backends`. The protocol cores are public in `nstat_async.ntstat` and
`nstat_async.sockdiag`; `nstat_async.testing` has an emulated kernel.
"""

__version__ = "0.1.0"

from . import _starting as _starting  # first: the command may be stopped while the rest is imported

# isort: split
from typing import TYPE_CHECKING

from . import backends as backends
from . import filters as filters
from ._buffer import BufferStatistics
from ._coverage import Coverage
from ._errors import (
    BackendUnavailableError,
    ConcurrentReadError,
    IncompleteSnapshotError,
    MonitorClosedError,
    NstatError,
    ProtocolError,
    RecordingError,
    RequestError,
    StreamEndedError,
    UnavailableReason,
    UsageError,
)
from ._events import (
    AnyEvent,
    Auxiliary,
    AuxiliaryFailed,
    Event,
    EventsLost,
    FlowAdded,
    FlowEvent,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    InterfaceUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
)
from ._model import (
    Attribution,
    Capabilities,
    Counts,
    Delta,
    Details,
    DetailsSource,
    Direction,
    DomainInfo,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    MediumCounts,
    Outcome,
    Peer,
    Process,
    Proof,
    Provider,
    TcpState,
    Visibility,
)
from ._monitor import Monitor, MonitorStatistics, snapshot
from ._options import DEFAULT_PROVIDERS, Discovery, Ebpf, MonitorOptions, Overflow
from ._public import explain, on_demand
from ._subscription import Subscription

if TYPE_CHECKING:
    from . import json as json
    from . import recording as recording

__all__ = [
    "DEFAULT_PROVIDERS",
    "AnyEvent",
    "Attribution",
    "Auxiliary",
    "AuxiliaryFailed",
    "BackendUnavailableError",
    "BufferStatistics",
    "Capabilities",
    "ConcurrentReadError",
    "Counts",
    "Coverage",
    "Delta",
    "Details",
    "DetailsSource",
    "Direction",
    "Discovery",
    "DomainInfo",
    "Ebpf",
    "Endpoint",
    "Event",
    "EventsLost",
    "Flow",
    "FlowAdded",
    "FlowEvent",
    "FlowRemoved",
    "FlowUpdated",
    "HostState",
    "HostUpdated",
    "IncompleteSnapshotError",
    "Interface",
    "InterfaceKind",
    "InterfaceUpdated",
    "LossCause",
    "MediumCounts",
    "Monitor",
    "MonitorClosedError",
    "MonitorOptions",
    "MonitorStatistics",
    "NstatError",
    "Outcome",
    "Overflow",
    "Peer",
    "PollCompleted",
    "Process",
    "Proof",
    "ProtocolError",
    "Provider",
    "ProviderRefused",
    "RecordingError",
    "RemovalReason",
    "RequestError",
    "RouteUpdated",
    "StreamEndedError",
    "Subscription",
    "SystemInfo",
    "TcpState",
    "UnavailableReason",
    "Unrecognized",
    "UsageError",
    "Visibility",
    "__version__",
    "snapshot",
]

explain(__all__, globals())
__getattr__ = on_demand(__name__, {".json": (), ".recording": ()})
