"""Events as OCSF 1.8 network activity, class 4001 (https://schema.ocsf.io/1.8.0/classes/network_activity).

- `FlowAdded` is *Open*, of a listener *Listen*; a flow that was there before is *Traffic*. `FlowUpdated` is *Traffic*.
- `FlowRemoved` is *Close*, or by its outcome *Reset*, *Refuse* or *Fail* (also of TCP that never got beyond its SYN). What the
  monitor itself gave up is *Traffic*.
- ``traffic`` is what was added since the event before, ``cumulative_traffic`` the total since the flow began. Source is
  who began the connection (this machine, where that is unknown), and bytes go out of the source.
- What was lost is *Other*, with ``traffic.bytes_missed`` as far as the bytes are known. So are polls without a full answer.
- A row of a table is *Traffic* with its total.

Values without a place in the schema are in ``unmapped``. Unknown values are left out, as OCSF requires.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .. import __version__
from .._escape import dump
from .._events import (
    AnyEvent,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostUpdated,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
)
from .._model import Counts, Delta, Direction, Endpoint, Flow, Outcome, Process, Provider, TcpState
from .._rows import Row
from ..json import to_dict
from ._cells import is_listener

_VERSION = "1.8.0"
_CLASS, _CATEGORY = 4001, 4
_INFORMATIONAL = 1
_LARGEST = 2**63 - 1
_FAILURE = 2


class _Activity(enum.IntEnum):
    OPEN = 1
    CLOSE = 2
    RESET = 3
    FAIL = 4
    REFUSE = 5
    TRAFFIC = 6
    LISTEN = 7
    OTHER = 99


_DIRECTIONS = {Direction.INBOUND: 1, Direction.OUTBOUND: 2}
_LOCAL = 4
_LOCALHOST = 1
_PROTOCOLS = {Provider.TCP: ("tcp", 6), Provider.UDP: ("udp", 17), Provider.QUIC: ("udp", 17)}
_NOT_ENDED = frozenset({RemovalReason.FILTERED, RemovalReason.MONITOR})
_UNMAPPED = ("provider", "state", "namespace", "cgroup", "unit", "container", "pod", "parent", "attribution")
"""Keys of a flow's JSON that OCSF has no place for."""


def _known(**values: Any) -> dict[str, Any]:
    """The known values; numbers are limited to OCSF's ``long_t`` of 64 bits."""
    return {
        name: max(-_LARGEST, min(value, _LARGEST)) if isinstance(value, int) else value
        for name, value in values.items()
        if value is not None
    }


@attrs.frozen
class OcsfFormatter:
    """Turns events, flows and rows into lines."""

    host: str | None = None
    """Name of the watched machine; `None` for a recording. Flows of a fleet have the name of their own machine."""

    def __call__(self, event: AnyEvent) -> str | None:
        """The line; `None` for events that are neither traffic nor a loss."""
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
            return self._of_flow(event)
        if isinstance(event, PollCompleted) and event.complete:
            return None
        describe = _GAPS.get(type(event))
        if describe is None:
            return None
        name, text = describe(event)
        counts = event.counts if isinstance(event, EventsLost) else None
        traffic = {} if counts is None else _known(bytes_missed=_sum(counts.rx_bytes, counts.tx_bytes))
        more: dict[str, Any] = {"traffic": traffic} if traffic else {}
        details = to_dict(event, full=False)
        return self._line(
            _Activity.OTHER,
            event.time,
            **more,
            activity_name=name,
            message=text,
            host=event.host,
            src_endpoint=self._machine(event.host),
            unmapped={key: value for key, value in details.items() if key not in {"v", "time"} and value is not None},
        )

    def flow_line(self, flow: Flow, counts: Counts | None, time: float) -> str:
        """A flow of this moment."""
        activity = _Activity.LISTEN if is_listener(flow) else _Activity.TRAFFIC
        return self._line(activity, time, host=flow.host, **self._about(flow), **self._totals(flow, counts))

    def row_line(self, row: Row, by: str, time: float) -> str:
        """A row of a table.

        Args:
            row: The row.
            by: What the table groups by.
            time: The moment, seconds since the epoch.
        """
        counts = (
            _traffic(Counts(**{name: getattr(row, name) for name in _FOUR}), inbound=False) if row.is_counted else {}
        )
        more: dict[str, Any] = {"cumulative_traffic": {**counts, **_span(row.first_seen, time)}}
        if by == "remote address" and row.key is not None:
            more["dst_endpoint"] = {"ip": str(row.key)}
        if row.process is not None:
            more["actor"] = _actor(row.process)
        unmapped = _known(by=by, row=row.kind.value, name=row.name, flows=row.flows, open_flows=row.open_flows)
        source = self._machine(row.source)
        return self._line(_Activity.TRAFFIC, time, host=row.source, src_endpoint=source, unmapped=unmapped, **more)

    def _of_flow(self, event: FlowAdded | FlowUpdated | FlowRemoved) -> str:
        flow, counts = event.flow, event.counts
        activity, more = _activity(event)
        traffic: Mapping[str, Any] = {}
        if isinstance(event, FlowUpdated):
            traffic = _traffic(event.delta, inbound=flow.direction is Direction.INBOUND)
        elif isinstance(event, FlowAdded) and not event.preexisting and counts is not None:
            traffic = _traffic(counts, inbound=flow.direction is Direction.INBOUND)
        if traffic:
            more["traffic"] = traffic
        return self._line(
            activity, event.time, host=flow.host, **self._about(flow), **self._totals(flow, counts), **more
        )

    def _totals(self, flow: Flow, counts: Counts | None) -> dict[str, Any]:
        traffic = {} if counts is None else _traffic(counts, inbound=flow.direction is Direction.INBOUND)
        return {"cumulative_traffic": {**traffic, **_span(flow.started, None)}} if traffic else {}

    def _about(self, flow: Flow) -> dict[str, Any]:
        """Who talks to whom."""
        here = _endpoint(flow.local) or self._machine(flow.host)
        if flow.interface is not None and flow.interface.name is not None:
            here = {**here, "interface_name": flow.interface.name}
        there = _endpoint(flow.remote)
        inward = flow.direction is Direction.INBOUND or is_listener(flow)
        source, target = (there, here) if inward else (here, there)
        line = to_dict(flow)
        return _known(
            src_endpoint=source,
            dst_endpoint=target,
            connection_info=_connection(flow),
            actor=None if flow.process is None else _actor(flow.process),
            app_protocol_name="quic" if flow.provider is Provider.QUIC else None,
            unmapped={key: line[key] for key in _UNMAPPED if line.get(key) is not None},
        )

    def _machine(self, host: str | None) -> dict[str, Any]:
        name = host or self.host
        return {"hostname": name} if name else {"name": "the machine that was recorded"}

    def _line(self, activity: _Activity, time: float, *, host: str | None, **more: Any) -> str:
        device = {"device": {**self._machine(host), "type_id": 0}}
        return dump({
            "activity_id": int(activity),
            "category_uid": _CATEGORY,
            "class_uid": _CLASS,
            "type_uid": _CLASS * 100 + int(activity),
            "time": _milliseconds(time),
            "severity_id": _INFORMATIONAL,
            "metadata": {
                "version": _VERSION,
                "profiles": ["host"],
                "product": {"name": "nstat_async", "vendor_name": "nstat_async", "version": __version__},
            },
            "activity_name": activity.name.capitalize(),
            "class_name": "Network Activity",
            **device,
            **more,
        })  # fmt: skip


def _activity(event: FlowAdded | FlowUpdated | FlowRemoved) -> tuple[_Activity, dict[str, Any]]:
    """The activity of an event, and further values."""
    if isinstance(event, FlowUpdated):
        return _Activity.TRAFFIC, {}
    if isinstance(event, FlowAdded):
        if event.preexisting:
            return _Activity.TRAFFIC, {}
        return _Activity.LISTEN if is_listener(event.flow) else _Activity.OPEN, {}
    how = event.reason.value if event.outcome is None else f"{event.reason.value} ({event.outcome.value})"
    detail = {"status_detail": f"{how}, counts are {'final' if event.final else 'as last reported'}"}
    if event.reason in _NOT_ENDED:
        return _Activity.TRAFFIC, detail
    ended = _OUTCOMES.get(event.outcome) if event.outcome is not None else None
    if ended is None:
        ended = _Activity.FAIL if event.flow.state is TcpState.SYN_SENT else _Activity.CLOSE
    return ended, detail if ended is _Activity.CLOSE else {"status_id": _FAILURE, **detail}


_OUTCOMES = {
    Outcome.CLOSED_HERE: _Activity.CLOSE,
    Outcome.CLOSED_THERE: _Activity.CLOSE,
    Outcome.RESET_HERE: _Activity.RESET,
    Outcome.RESET_THERE: _Activity.RESET,
    Outcome.RESET: _Activity.RESET,
    Outcome.TIMED_OUT: _Activity.FAIL,
    Outcome.REFUSED: _Activity.REFUSE,
    Outcome.FAILED: _Activity.FAIL,
}


_FOUR = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _traffic(counts: Counts | Delta, *, inbound: bool) -> dict[str, Any]:
    """Bytes and packets from the source's point of view; the source of an inbound flow is the other end."""
    bytes_in, bytes_out = counts.rx_bytes, counts.tx_bytes
    packets_in, packets_out = counts.rx_packets, counts.tx_packets
    if inbound:
        bytes_in, bytes_out, packets_in, packets_out = bytes_out, bytes_in, packets_out, packets_in
    return _known(
        bytes=_sum(bytes_in, bytes_out),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        packets=_sum(packets_in, packets_out),
        packets_in=packets_in,
        packets_out=packets_out,
    )


def _span(begin: float | None, end: float | None) -> dict[str, Any]:
    return _known(
        start_time=None if begin is None else _milliseconds(begin), end_time=None if end is None else _milliseconds(end)
    )


def _milliseconds(seconds: float) -> int:
    return round(max(-_LARGEST, min(seconds * 1000, _LARGEST)))


def _endpoint(end: Endpoint | None) -> dict[str, Any] | None:
    return None if end is None else {"ip": end.address, **({"port": end.port} if end.port else {})}


def _connection(flow: Flow) -> dict[str, Any]:
    name, number = _PROTOCOLS.get(flow.provider, (None, None))
    end = flow.remote or flow.local
    return _known(
        direction_id=_LOCAL if flow.is_loopback else _DIRECTIONS.get(flow.direction, 0) if flow.direction else 0,
        boundary_id=_LOCALHOST if flow.is_loopback else None,
        protocol_name=name,
        protocol_num=number,
        protocol_ver_id=None if end is None else 4 if len(end.packed) == 4 else 6,
        uid=flow.id,
    )


def _actor(process: Process) -> dict[str, Any]:
    user = None if process.uid is None else {"uid": str(process.uid)}
    facts = to_dict(process)
    return _known(
        process=_known(
            pid=process.pid, name=process.name, path=process.path, cmd_line=facts.get("cmdline"), user=user,
            uid=None if process.unique_pid is None else f"{process.pid}-{process.unique_pid}",
        ),
        user=user,
    )  # fmt: skip


def _count_text(event: EventsLost) -> str:
    return "some flows or messages" if event.count is None else f"{event.count} flows or messages"


_GAPS: dict[type, Callable[[Any], tuple[str, str]]] = {
    EventsLost: lambda event: ("Events Lost", f"{_count_text(event)} were lost: {event.cause.value}"),
    PollCompleted: lambda event: ("Incomplete Poll", f"incomplete poll, {event.flows} flows are known"),
    ProviderRefused: lambda event: (
        "Provider Refused",
        f"provider {event.provider.value}: {event.detail or f'error {event.errno}'}",
    ),
    AuxiliaryFailed: lambda event: ("Auxiliary Failed", f"{event.auxiliary.value}: {event.detail}"),
    HostUpdated: lambda event: ("Machine Updated", f"a machine of the fleet is {event.state.value}"),
}
"""Events about something missing: the name of the activity, and a sentence."""
