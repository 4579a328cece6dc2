"""One hand-made event of each kind, with awkward values."""

from __future__ import annotations

from uuid import UUID

from nstat_async._events import (
    AnyEvent,
    Auxiliary,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    InterfaceUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
)
from nstat_async._model import (
    Counts,
    Direction,
    Endpoint,
    Flow,
    Interface,
    InterfaceKind,
    Process,
    Provider,
    TcpState,
)

TIME = 1763865123.1234565
EVIL = 'x\x1b[31m\n"\\\u202e\x7f\ud800é'

CURL = Flow(
    id="7",
    provider=Provider.TCP,
    userland=False,
    local=Endpoint.parse("10.0.0.5", 50312),
    remote=Endpoint.parse("2001:db8::1", 443),
    process=Process(
        pid=811,
        name="curl",
        unique_pid=9001,
        effective_pid=812,
        uuid=UUID("00112233-4455-6677-8899-aabbccddeeff"),
        uid=501,
        path="/usr/bin/curl",
    ),
    interface=Interface(4, "en0", InterfaceKind.WIFI),
    state=TcpState.ESTABLISHED,
    direction=Direction.OUTBOUND,
    started_ns=1763865120_123456789,
)
LISTENER = Flow(
    id="8",
    provider=Provider.TCP,
    userland=False,
    local=Endpoint.parse("fe80::1%4", 22),
    process=Process(pid=1),
    state=TcpState.LISTEN,
    direction=Direction.LISTENER,
)
BARE = Flow(id="9", provider=Provider.UDP)
HOSTILE = Flow(id="10", provider=Provider.QUIC, userland=True, process=Process(pid=66, name=EVIL), namespace="blue")
FIRST = Counts(rx_bytes=0, tx_bytes=517, rx_packets=0, tx_packets=1)
SECOND = Counts(
    rx_packets=120, rx_bytes=1_572_864, tx_packets=61, tx_bytes=2_000, cell_rx_bytes=0, cell_tx_bytes=0,
    wifi_rx_bytes=1_572_864, wifi_tx_bytes=2_000, wired_rx_bytes=0, wired_tx_bytes=0, rx_duplicate_bytes=1,
    rx_out_of_order_bytes=2, tx_retransmitted_bytes=3, connect_attempts=1, connect_successes=1,
    min_rtt_us=1000, avg_rtt_us=1500, var_rtt_us=250,
)  # fmt: skip

EVENTS: list[AnyEvent] = [
    FlowAdded(TIME, CURL, FIRST, preexisting=False),
    FlowAdded(TIME, LISTENER, None, preexisting=True),
    FlowAdded(TIME, BARE, None, preexisting=False),
    FlowUpdated(TIME, CURL, SECOND, FIRST),
    FlowUpdated(TIME, HOSTILE, FIRST, None),
    FlowRemoved(TIME, CURL, SECOND, final=True, reason=RemovalReason.CLOSED),
    FlowRemoved(TIME, CURL, FIRST, final=True, reason=RemovalReason.CLOSED),
    FlowRemoved(TIME, CURL, FIRST, final=False, reason=RemovalReason.DROPPED),
    FlowRemoved(TIME, LISTENER, Counts(rx_bytes=0, rx_packets=0), final=True, reason=RemovalReason.CLOSED),
    FlowRemoved(TIME, BARE, None, final=False, reason=RemovalReason.MONITOR),
    PollCompleted(TIME, 3, complete=True, serial=7),
    PollCompleted(TIME, 3, complete=False, serial=8),
    EventsLost(TIME, LossCause.OVERFLOW, 5, SECOND, "slow\nconsumer"),
    EventsLost(TIME, LossCause.GOODBYE, None),
    ProviderRefused(TIME, Provider.CONNECTION, 1, "needs privilege"),
    AuxiliaryFailed(TIME, Auxiliary.RECORDER, "disk\x1b full"),
    InterfaceUpdated(TIME, Interface(4, "en0", InterfaceKind.WIFI), FIRST, "Wi-Fi", 1 << 20, (("ul_max_latency", 7),)),
    RouteUpdated(TIME, "r1", Endpoint.parse("192.0.2.0"), None, Endpoint.parse("10.0.0.1"), None, 3, FIRST),
    RouteUpdated(TIME, "r1", None, None, None, None, 3, FIRST, removed=True),
    SystemInfo(TIME, ((6, 1008), (7, float("nan")), (100, "sig\x1b"))),
    Unrecognized(TIME, 10010, b"\1\2"),
]
