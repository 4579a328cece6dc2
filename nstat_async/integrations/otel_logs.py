"""OpenTelemetry logs: one record for each flow that ended, through the API only.

The attributes have the names of the semantic conventions; the names of all others start with ``nstat.``:

=======================================  ==============================================================
``network.transport``, ``network.type``  ``tcp``, ``udp``, ``quic``; ``ipv4``, ``ipv6``
``network.local.*``, ``network.peer.*``  ``address`` and ``port`` of both ends, as this machine sees them
``client.*``, ``server.*``               the same by who began the flow, where that is known
``network.interface.name``               the interface of the last packet
``process.pid``, ``.executable.name``    and ``.executable.path``, ``process.user.id``, ``process.title``
``process.linux.cgroup``                 path of the cgroup
``container.id``, ``container.name``     the container that the socket was made in
``k8s.pod.uid``, ``k8s.pod.name``        and ``k8s.namespace.name``
``host.id``, ``host.name``               the machine: in a fleet the flow's, else this one
``nstat.rx_bytes`` etc.                  ``rx_bytes``, ``tx_bytes``, ``rx_packets``, ``tx_packets``
``nstat.final``, ``nstat.reason``        whether these are the very last, and why the flow ended
``nstat.flow.id``, ``.duration``         id in the monitor; seconds since its socket was made
``nstat.peer.host``, ``.pid``, ``.name``  in a fleet: the other end
=======================================  ==============================================================

A fact that is not known has no attribute. The event's name is ``nstat.flow.end`` (``nstat.flow.update`` for updates, which
are optional); a loss is ``nstat.loss`` with severity WARN.
"""

from __future__ import annotations

try:
    from opentelemetry._logs import Logger, SeverityNumber, get_logger
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.otel_logs needs opentelemetry-api 1.35 or newer: pip install 'nstat-async[otel]'"
    raise ImportError(msg) from error

from collections.abc import Iterable
from typing import Any, Union

from nstat_async._escape import unicode
from nstat_async._events import AnyEvent, EventsLost, FlowRemoved, FlowUpdated, HostUpdated
from nstat_async._io import identity
from nstat_async._model import Counts, Direction, Endpoint, Flow, Process
from nstat_async._monitor import Monitor

from .otel import clamped

__all__ = ["FlowLogs"]

_Values = dict[str, Union[str, int, float, bool, None]]
_LAST_SECOND = 1.8e10
"""Times are nanoseconds in 64 bits; this is the year 2540."""
_MOST_HOSTS = 20_000
"""Most machines whose ids are kept."""


class FlowLogs:
    """Writes a log record for each flow that ended.

    Feed it with `run` in a task, or with `feed_many`. Records are batched by the SDK's own processor.

    Args:
        logger: Gets the records; `None`: the logger of the global provider.
        updates: Also write a record for each update.
        host_id: ``host.id`` of flows of this machine; `None`: the machine's own id.
    """

    def __init__(self, logger: Logger | None = None, *, updates: bool = False, host_id: str | None = None) -> None:
        self._logger = logger or get_logger("nstat_async")
        self._updates = updates
        self._here: _Values = {
            "host.id": host_id or identity.machine_id(),
            "host.name": identity.short_name(),
        }
        self._hosts: dict[str, _Values] = {}

    async def run(self, monitor: Monitor) -> None:
        """Feed from a monitor, beside its other consumers, until it ends."""
        async with monitor.subscribe() as subscription:
            while events := await subscription.receive_many():
                self.feed_many(events)

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        for event in events:
            if isinstance(event, FlowRemoved):
                more: _Values = {"nstat.final": event.final, "nstat.reason": event.reason.value}
                self._emit("nstat.flow.end", event.time, self._of_flow(event.flow, event.counts, event.time) | more)
            elif isinstance(event, FlowUpdated) and self._updates:
                self._emit("nstat.flow.update", event.time, self._of_flow(event.flow, event.counts, event.time))
            elif isinstance(event, EventsLost):
                self._emit_loss(event)
            elif isinstance(event, HostUpdated) and event.host is not None:
                self._hosts.pop(event.host, None)
                self._hosts[event.host] = {"host.id": event.machine_id, "host.name": event.host}
                if len(self._hosts) > _MOST_HOSTS:  # one that left stays: its flows may be reported after it
                    del self._hosts[next(iter(self._hosts))]

    def _emit_loss(self, event: EventsLost) -> None:
        values: _Values = {"nstat.cause": event.cause.value, "nstat.count": event.count, **_counters(event.counts)}
        self._emit("nstat.loss", event.time, values | self._host(event.host), event.detail, SeverityNumber.WARN)

    def _emit(
        self,
        name: str,
        time: float,
        values: _Values,
        body: str | None = None,
        severity: SeverityNumber = SeverityNumber.INFO,
    ) -> None:
        known: Any = {key: _carried(value) for key, value in values.items() if value is not None}
        # Without a timestamp the record has the time of its arrival.
        moment = int(time * 1e9) if 0 <= time < _LAST_SECOND else None
        self._logger.emit(
            timestamp=moment,
            severity_number=severity,
            severity_text=severity.name,
            body=None if body is None else unicode(body),
            attributes=known,
            event_name=name,
        )

    def _host(self, host: str | None) -> _Values:
        return self._here if host is None else self._hosts.get(host, {"host.name": host})

    def _of_flow(self, flow: Flow, counts: Counts | None, time: float) -> _Values:
        local, remote = _address("network.local", flow.local), _address("network.peer", flow.remote)
        return {
            "network.transport": flow.provider.value,
            "network.type": _family(flow.local or flow.remote),
            **local,
            **remote,
            **_roles(flow),
            "network.interface.name": None if flow.interface is None else flow.interface.name,
            "network.connection.state": None if flow.state is None else flow.state.value,
            **_process(flow.process),
            **_workload(flow),
            **self._host(flow.host),
            **_counters(counts),
            "nstat.flow.id": flow.id,
            "nstat.flow.duration": None if flow.started is None else max(0.0, time - flow.started),
            **_peer(flow),
        }


def _carried(value: str | float) -> str | float:
    """A value as OTLP can carry it: one that it cannot would cost a whole batch.

    A name may have what is not Unicode, and a machine of a fleet may say any number.
    """
    if isinstance(value, str):
        return unicode(value)
    return clamped(value) if isinstance(value, int) else value


def _address(prefix: str, endpoint: Endpoint | None) -> _Values:
    if endpoint is None:
        return {}
    return {f"{prefix}.address": endpoint.address, f"{prefix}.port": endpoint.port or None}


def _family(endpoint: Endpoint | None) -> str | None:
    return None if endpoint is None else "ipv4" if len(endpoint.packed) == 4 else "ipv6"


def _roles(flow: Flow) -> _Values:
    if flow.direction is Direction.OUTBOUND:
        return {**_address("client", flow.local), **_address("server", flow.remote)}
    if flow.direction in {Direction.INBOUND, Direction.LISTENER}:
        return {**_address("client", flow.remote), **_address("server", flow.local)}
    return {}


def _process(process: Process | None) -> _Values:
    if process is None:
        return {}
    return {
        "process.pid": process.pid,
        "process.executable.name": process.name,
        "process.executable.path": process.path,
        "process.user.id": process.uid,
        "process.title": process.title,
    }


def _workload(flow: Flow) -> _Values:
    if flow.cgroup is None:
        return {}
    namespace, slash, pod = (flow.pod or "").partition("/")
    found: _Values = {
        "process.linux.cgroup": flow.cgroup,
        "container.id": flow.container_id,
        "container.name": flow.container if flow.container != flow.container_id else None,
        "k8s.pod.uid": flow.pod_uid,
    }
    return found | ({"k8s.namespace.name": namespace, "k8s.pod.name": pod} if slash else {})


def _counters(counts: Counts | None) -> _Values:
    if counts is None:
        return {}
    return {f"nstat.{name}": getattr(counts, name) for name in ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")}


def _peer(flow: Flow) -> _Values:
    peer = flow.peer
    if peer is None:
        return {}
    process = peer.process
    return {
        "nstat.peer.host": peer.host,
        "nstat.peer.pid": None if process is None else process.pid,
        "nstat.peer.name": None if process is None else process.name,
    }
