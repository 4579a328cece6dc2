"""Events as JSON Lines, version 1.

Written by hand for each event: the order of the keys is part of the format, and a
replay writes hundreds of thousands of lines a second. Numbers are plain, what is
unknown is ``null``, and no value is ever NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import attrs

from ._escape import dump, quote
from ._events import (
    AnyEvent,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    InterfaceUpdated,
    PollCompleted,
    ProviderRefused,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
)
from ._model import COUNTS_FIELDS, Counts, Endpoint, Flow, Interface, Process

__all__ = ["JsonFormatter", "counts_json", "flow_json", "flow_line", "time_json"]

_SHOWN_COUNTS = (
    "rx_bytes",
    "tx_bytes",
    "rx_packets",
    "tx_packets",
    "rx_duplicate_bytes",
    "rx_out_of_order_bytes",
    "tx_retransmitted_bytes",
    "min_rtt_us",
    "avg_rtt_us",
    "var_rtt_us",
    "cell_rx_bytes",
    "cell_tx_bytes",
    "wifi_rx_bytes",
    "wifi_tx_bytes",
    "wired_rx_bytes",
    "wired_tx_bytes",
)
_pick_counts: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*map(COUNTS_FIELDS.index, _SHOWN_COUNTS))
_COUNTS = "{" + ",".join(f'"{name}":%s' for name in _SHOWN_COUNTS) + "}"
_DELTA = '{"rx_bytes":%s,"tx_bytes":%s,"rx_packets":%s,"tx_packets":%s}'
_REMEMBERED = 50_000


def time_json(seconds: float) -> str:
    """Seconds since the epoch, to the microsecond."""
    return f"{seconds:.6f}"


def _number(value: float | None) -> str:
    return "null" if value is None else str(value)


def _flag(value: bool | None) -> str:
    if value is None:
        return "null"
    return "true" if value else "false"


def _shown(counts: Counts) -> tuple[int | None, ...]:
    """The values of ``COUNTS``; the first four are those of a delta."""
    return _pick_counts(counts._translated())  # noqa: SLF001  # all at once, for speed


def _format(template: str, values: tuple[int | None, ...]) -> str:
    if None in values:
        return template % tuple("null" if value is None else value for value in values)
    return template % values


def counts_json(counts: Counts | None) -> str:
    """``COUNTS``, or ``null``."""
    return "null" if counts is None else _format(_COUNTS, _shown(counts))


def _grown(new: int | None, old: int | None) -> int | None:
    return None if new is None else max(0, new - (old or 0))


def _endpoint_json(end: Endpoint | None) -> str:
    if end is None:
        return "null"
    return f'{{"address":"{end.address}","port":{end.port},"scope":{_number(end.scope_id)}}}'


def _process_json(process: Process | None) -> str:
    if process is None:
        return "null"
    uuid = "null" if process.uuid is None else f'"{process.uuid}"'
    return (
        f'{{"pid":{process.pid},"name":{quote(process.name)},"unique_pid":{_number(process.unique_pid)},'
        f'"effective_pid":{_number(process.effective_pid)},"uuid":{uuid},"uid":{_number(process.uid)},'
        f'"path":{quote(process.path)}}}'
    )


def _interface_json(interface: Interface | None) -> str:
    if interface is None:
        return "null"
    kind = "null" if interface.kind is None else f'"{interface.kind.value}"'
    return f'{{"index":{interface.index},"name":{quote(interface.name)},"kind":{kind}}}'


def _started_json(ns: int | None) -> str:
    if ns is None:
        return "null"
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{seconds}.{rest // 1000:06d}" if seconds >= 0 else time_json(ns / 1e9)


def flow_json(flow: Flow) -> str:
    """``FLOW``; with ``namespace`` behind the rest where the flow is in another one (Linux)."""
    state = "null" if flow.state is None else f'"{flow.state.value}"'
    direction = "null" if flow.direction is None else f'"{flow.direction.value}"'
    namespace = "" if flow.namespace is None else f',"namespace":{quote(flow.namespace)}'
    return (
        f'{{"id":{quote(flow.id)},"provider":"{flow.provider.value}","userland":{_flag(flow.userland)},'
        f'"local":{_endpoint_json(flow.local)},"remote":{_endpoint_json(flow.remote)},'
        f'"process":{_process_json(flow.process)},"interface":{_interface_json(flow.interface)},'
        f'"state":{state},"direction":{direction},"started":{_started_json(flow.started_ns)}{namespace}}}'
    )


def flow_line(flow: Flow, counts: Counts | None, time: float) -> str:
    """A flow of this moment, as `snapshot` prints it."""
    return f'{{"v":1,"event":"flow","time":{time_json(time)},"flow":{flow_json(flow)},"counts":{counts_json(counts)}}}'


@attrs.define(eq=False)
class JsonFormatter:
    """Turns events into lines.

    Operations: one look-up and a few formats an event. The text of a flow is kept
    while successive events carry the same object, at most `_REMEMBERED` of them.
    """

    _flows: dict[str, tuple[Flow, str]] = attrs.field(factory=dict, init=False)
    _values: dict[str, tuple[Counts | None, tuple[int | None, ...]]] = attrs.field(factory=dict, init=False)

    _formatters: dict[type, Callable[[Any], str]] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._formatters = {
            FlowUpdated: self._updated,
            FlowAdded: self._added,
            FlowRemoved: self._removed,
            PollCompleted: self._poll,
            EventsLost: self._lost,
            ProviderRefused: self._refused,
            AuxiliaryFailed: self._auxiliary,
            InterfaceUpdated: self._interface,
            RouteUpdated: self._route,
            SystemInfo: self._system,
            Unrecognized: self._unrecognized,
        }

    def __call__(self, event: AnyEvent) -> str | None:
        """The line; `None` for an event that has none (there is no such event)."""
        formatter = self._formatters.get(type(event))
        if formatter is None:  # a subclass of an event: its own base decides
            formatter = next(f for kind, f in self._formatters.items() if isinstance(event, kind))
        return formatter(event)

    def _flow(self, flow: Flow) -> str:
        known = self._flows.get(flow.id)
        if known is not None and known[0] is flow:
            return known[1]
        text = flow_json(flow)
        if len(self._flows) >= _REMEMBERED:
            self._flows.clear()
            self._values.clear()
        self._flows[flow.id] = (flow, text)
        return text

    def _added(self, event: FlowAdded) -> str:
        return (
            f'{{"v":1,"event":"flow_added","time":{event.time:.6f},"flow":{self._flow(event.flow)},'
            f'"counts":{counts_json(event.counts)},"preexisting":{_flag(event.preexisting)}}}'
        )

    def _updated(self, event: FlowUpdated) -> str:
        flow, counts, previous = event.flow, event.counts, event.previous
        text = self._flow(flow)
        values = _shown(counts)
        if previous is None:
            delta = values[:4]
        else:
            # Nearly always the counts of the line before, whose values are still there.
            last, before = self._values.get(flow.id, (None, ()))
            if last is not previous:
                before = _shown(previous)
            delta = tuple(map(_grown, values[:4], before))
        self._values[flow.id] = (counts, values)
        return (
            f'{{"v":1,"event":"flow_updated","time":{event.time:.6f},"flow":{text},'
            f'"counts":{_format(_COUNTS, values)},"delta":{_format(_DELTA, delta)}}}'
        )

    def _removed(self, event: FlowRemoved) -> str:
        line = (
            f'{{"v":1,"event":"flow_removed","time":{event.time:.6f},"flow":{self._flow(event.flow)},'
            f'"counts":{counts_json(event.counts)},"final":{_flag(event.final)},"reason":"{event.reason.value}"}}'
        )
        self._flows.pop(event.flow.id, None)
        self._values.pop(event.flow.id, None)
        return line

    def _poll(self, event: PollCompleted) -> str:
        return (
            f'{{"v":1,"event":"poll_completed","time":{event.time:.6f},"flows":{event.flows},'
            f'"complete":{_flag(event.complete)}}}'
        )

    def _lost(self, event: EventsLost) -> str:
        return (
            f'{{"v":1,"event":"events_lost","time":{event.time:.6f},"cause":"{event.cause.value}",'
            f'"count":{_number(event.count)},"counts":{counts_json(event.counts)},"detail":{quote(event.detail)}}}'
        )

    def _refused(self, event: ProviderRefused) -> str:
        return (
            f'{{"v":1,"event":"provider_refused","time":{event.time:.6f},"provider":"{event.provider.value}",'
            f'"errno":{event.errno},"detail":{quote(event.detail)}}}'
        )

    def _auxiliary(self, event: AuxiliaryFailed) -> str:
        return (
            f'{{"v":1,"event":"auxiliary_failed","time":{event.time:.6f},"auxiliary":"{event.auxiliary.value}",'
            f'"detail":{quote(event.detail)}}}'
        )

    def _interface(self, event: InterfaceUpdated) -> str:
        return (
            f'{{"v":1,"event":"interface_updated","time":{event.time:.6f},'
            f'"interface":{_interface_json(event.interface)},"description":{quote(event.description)},'
            f'"threshold":{_number(event.threshold)},"counts":{counts_json(event.counts)},'
            f'"link":{dump(dict(event.link))}}}'
        )

    def _route(self, event: RouteUpdated) -> str:
        return (
            f'{{"v":1,"event":"route_updated","time":{event.time:.6f},"id":{quote(event.id)},'
            f'"destination":{_endpoint_json(event.destination)},"mask":{_endpoint_json(event.mask)},'
            f'"gateway":{_endpoint_json(event.gateway)},"interface":{_interface_json(event.interface)},'
            f'"flags":{event.flags},"counts":{counts_json(event.counts)},"removed":{_flag(event.removed)}}}'
        )

    def _system(self, event: SystemInfo) -> str:
        values = ",".join(f"[{key},{_sysinfo_value(value)}]" for key, value in event.values)
        return f'{{"v":1,"event":"system_info","time":{event.time:.6f},"values":[{values}]}}'

    def _unrecognized(self, event: Unrecognized) -> str:
        return (
            f'{{"v":1,"event":"unrecognized","time":{event.time:.6f},"type_number":{event.number},'
            f'"raw":"{event.data.hex()}"}}'
        )


def _sysinfo_value(value: float | str) -> str:
    try:
        return dump(value)
    except ValueError:  # a distribution that is not finite
        return "null"
