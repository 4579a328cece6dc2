"""User code that is never run: it has to pass ``mypy --strict`` as it stands.

What must *not* type-check is marked; mypy complains about a mark that is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# `typing.assert_type` and `assert_never` are from 3.11; the typing of 3.10 is enough here.
from typing_extensions import assert_never, assert_type

from nstat_async import (
    AnyEvent,
    Auxiliary,
    AuxiliaryFailed,
    BackendUnavailableError,
    Capabilities,
    Counts,
    Delta,
    Details,
    Direction,
    Endpoint,
    EventsLost,
    Flow,
    FlowAdded,
    FlowEvent,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    InterfaceUpdated,
    LossCause,
    Monitor,
    MonitorOptions,
    PollCompleted,
    Process,
    Provider,
    ProviderRefused,
    RemovalReason,
    RouteUpdated,
    Subscription,
    SystemInfo,
    TcpState,
    UnavailableReason,
    Unrecognized,
    backends,
    filters,
    json,
    snapshot,
)
from nstat_async.aggregate import GroupBy, ProcessTable, Row, TrafficTable, by_process
from nstat_async.backends import Backend
from nstat_async.ntstat import Kernel, OpenChannel, Send, Session
from nstat_async.recording import Record, open_recording
from nstat_async.testing import EmulatedKernel


def lines(event: AnyEvent, row: Row) -> None:
    """Events and rows as JSON, and built by hand."""
    assert_type(json.dumps(event), str)
    assert_type(json.to_dict(row, time=1.0), dict[str, Any])
    assert_type(json.loads("{}"), AnyEvent | Row)
    assert_type(row.label, str)
    if isinstance(event, FlowEvent):
        update = FlowUpdated(event.time, event.flow, Counts(), event.counts, details=Details(mss=1448))
        assert_type(update.details, Details | None)
    filters.parse("pid=1 & ~loopback")
    ProcessTable().top(3, by="speed")  # type: ignore[arg-type]


async def iterate() -> None:
    async with Monitor(providers={"tcp", Provider.UDP}, interval=0.5, overflow="coalesce") as monitor:
        assert_type(monitor, Monitor)
        assert_type(monitor.capabilities, Capabilities)
        async for event in monitor:
            assert_type(event, AnyEvent)
            handle(event)


def handle(event: AnyEvent) -> str:
    """A ``match`` over all events is exhaustive."""
    match event:
        case FlowAdded(flow=flow, counts=counts, preexisting=preexisting):
            assert_type(flow, Flow)
            assert_type(counts, Counts | None)
            assert_type(preexisting, bool)
            return counts.rx_bytes  # type: ignore[union-attr, return-value]
        case FlowUpdated(flow=flow, counts=counts, delta=delta, details=details):
            assert_type(counts, Counts)
            assert_type(delta, Delta)
            assert_type(details, Details | None)
            return str(flow)
        case FlowRemoved(flow=flow, final=final, reason=reason):
            assert_type(final, bool)
            assert_type(reason, RemovalReason)
            return flow.id
        case PollCompleted(flows=number, complete=complete):
            assert_type(number, int)
            assert_type(complete, bool)
        case EventsLost(cause=cause, count=count):
            assert_type(cause, LossCause)
            assert_type(count, int | None)
        case ProviderRefused(provider=provider):
            assert_type(provider, Provider)
        case AuxiliaryFailed(auxiliary=auxiliary):
            assert_type(auxiliary, Auxiliary)
        case InterfaceUpdated() | RouteUpdated() | SystemInfo() | Unrecognized():
            pass
        case HostUpdated(host=host, state=state):
            assert_type(host, str | None)
            assert_type(state, HostState)
        case _:
            assert_never(event)
    return ""


def values(flow: Flow, counts: Counts) -> None:
    assert_type(flow.process, Process | None)
    assert_type(flow.local, Endpoint | None)
    assert_type(flow.state, TcpState | None)
    assert_type(flow.direction, Direction | None)
    assert_type(counts.rx_bytes, int | None)
    assert_type(counts.since(None), Delta)
    assert_type(counts.as_dict(), dict[str, int | None])
    flow.id = "another"  # type: ignore[misc]
    print(flow.process.pid)  # type: ignore[union-attr]  # it may be None
    Counts(rx_bytes=1, tx_bytes=None)
    Endpoint.parse("192.0.2.1", 443)


async def several_consumers(monitor: Monitor) -> None:
    chosen = filters.by_pid(1, 2) & ~filters.loopback() | (lambda flow: flow.provider is Provider.QUIC)
    assert_type(chosen, filters.Filter)
    async with monitor.subscribe(chosen, max_pending=10) as subscription:
        assert_type(subscription, Subscription)
        assert_type(await subscription.receive_many(), list[AnyEvent])
        assert_type(subscription.receive_nowait(), list[AnyEvent])
    monitor.subscribe("curl")  # type: ignore[arg-type]


async def once() -> Sequence[Flow]:
    flows = [flow for flow, _ in await snapshot(flow_filter=filters.by_port(443))]
    assert_type(flows, list[Flow])
    return flows


async def totals(monitor: Monitor) -> None:
    async with by_process(monitor, every=2.0) as tables:
        async for table in tables:
            assert_type(table, ProcessTable)
            for row in table.top(10, by="rate"):
                assert_type(row.rx_rate, float | None)
    table_by_port = TrafficTable(GroupBy.function(lambda flow: flow.is_loopback, "loopback"))
    table_by_port.feed_many([PollCompleted(0.0, flows=0, complete=True)])


def choose(path: str) -> Backend:
    """Every backend is a value of one type."""
    every: list[Backend] = [
        backends.auto(),
        backends.Kctl(verify=True),
        backends.SockDiag(netns=1),
        backends.UnixSocket(path, "xnu-11417"),
        backends.Replay(path, speed=1.0),
        EmulatedKernel("xnu-11417.121.6").backend(),
    ]
    return every[0]


async def failing() -> UnavailableReason:
    try:
        async with Monitor(backend=choose("x")):
            return UnavailableReason.MISSING
    except BackendUnavailableError as error:
        return error.reason


def without_io() -> None:
    session = Session(Kernel.parse("xnu-11417.121.6"), options=MonitorOptions(interval=None))
    session.start(0.0)
    for command in session.commands():
        if isinstance(command, OpenChannel):
            session.channel_opened(command.channel, 0.0, immediate=False, receive_buffer=None)
        elif isinstance(command, Send):
            assert_type(command.data, bytes)
    assert_type(session.next_event(), AnyEvent | None)
    assert_type(session.next_deadline(), float | None)


def read(path: str) -> list[Record]:
    with open_recording(path) as recording:
        return list(recording)


Monitor(intervall=1.0)  # type: ignore[call-arg]
