"""OpenTelemetry metrics: traffic per process name, through the API only.

The instruments are asynchronous: they are read when the SDK exports. One has a name in the semantic conventions, the
names of the others start with ``nstat.``.

============================  ==================  ============  ====================================
``process.network.io``        observable counter  ``By``        attribute ``network.io.direction``
``nstat.process.packets``     observable counter  ``{packet}``  attribute ``network.io.direction``
``nstat.process.flows``       observable counter  ``{flow}``    flows seen
``nstat.process.open_flows``  observable up-down  ``{flow}``    flows open now
``nstat.losses``              observable counter  ``{report}``  attribute ``nstat.loss.cause``
``nstat.interface.io``        observable counter  ``By``        attribute ``network.io.direction``
``nstat.attributed.io``       observable counter  ``By``        attribute ``network.io.direction``
============================  ==================  ============  ====================================

The instruments of processes have the attribute ``process.executable.name``. Its values are bounded in
number; ``(other)``, ``(unknown)`` and ``(lost)`` are as in `nstat_async.integrations.prometheus`.
The last two compare the wire bytes of interfaces with the payload of the flows (`nstat_async.Coverage`); they are
absent while that is not known.
"""

from __future__ import annotations

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.otel needs opentelemetry-api: pip install 'nstat-async[otel]'"
    raise ImportError(msg) from error

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ._series import KeeperFeed, Series, keepers

__all__ = ["TrafficMetrics"]

_NAME = "process.executable.name"
_DIRECTION = "network.io.direction"
_CAUSE = "nstat.loss.cause"


class TrafficMetrics(KeeperFeed):
    """Reports the traffic of a monitor to OpenTelemetry.

    The instruments are made with the object; feed it with `run` in a task, or with `feed_many`.

    Args:
        meter: Makes the instruments; `None`: the meter of the global provider.
        limit: Process names with series of their own; the rest is ``(other)``.
        review: Seconds after which busier names may take the places of quiet ones.
        include_history: Count what flows had carried before they were seen.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        *,
        limit: int = 50,
        review: float = 300.0,
        include_history: bool = False,
    ) -> None:
        super().__init__(keepers((), limit=limit, review=review, include_history=include_history))
        meter = meter or get_meter("nstat_async")
        counter, up_down = meter.create_observable_counter, meter.create_observable_up_down_counter
        counter("process.network.io", [self._bytes], unit="By", description="Payload bytes by process name")
        counter("nstat.process.packets", [self._packets], unit="{packet}", description="Packets by process name")
        counter("nstat.process.flows", [self._flows], unit="{flow}", description="Flows seen, by process name")
        up_down("nstat.process.open_flows", [self._open], unit="{flow}", description="Flows open now, by process name")
        counter("nstat.losses", [self._losses], unit="{report}", description="Reports of loss in the stream")
        wire, payload = "Wire bytes of interfaces, headers included", "Payload of flows among them"
        counter("nstat.interface.io", [self._interface_bytes], unit="By", description=wire)
        counter("nstat.attributed.io", [self._attributed_bytes], unit="By", description=payload)

    def _series(self) -> tuple[Series, ...]:
        return self._keepers["process"].observe().series

    def _bytes(self, _options: CallbackOptions) -> Iterator[Observation]:
        for each in self._series():
            yield from _of_series(each, each.rx_bytes, each.tx_bytes)

    def _packets(self, _options: CallbackOptions) -> Iterator[Observation]:
        for each in self._series():
            yield from _of_series(each, each.rx_packets, each.tx_packets)

    def _flows(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (Observation(each.flows, {_NAME: each.label}) for each in self._series())

    def _open(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (Observation(each.open_flows, {_NAME: each.label}) for each in self._series())

    def _losses(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (
            Observation(loss.events, {_CAUSE: loss.cause.value}) for loss in self._keepers["process"].observe().losses
        )

    def _interface_bytes(self, _options: CallbackOptions) -> Iterator[Observation]:
        coverage = self.coverage
        return iter(()) if coverage is None else _both_ways(coverage.rx_bytes, coverage.tx_bytes)

    def _attributed_bytes(self, _options: CallbackOptions) -> Iterator[Observation]:
        coverage = self.coverage
        return iter(()) if coverage is None else _both_ways(coverage.flow_rx_bytes, coverage.flow_tx_bytes)


def _of_series(series: Series, received: int, sent: int) -> Iterator[Observation]:
    if series.is_counted:
        yield from _both_ways(received, sent, {_NAME: series.label})


def _both_ways(received: int, sent: int, labels: Mapping[str, str] = MappingProxyType({})) -> Iterator[Observation]:
    yield Observation(clamped(received), {**labels, _DIRECTION: "receive"})
    yield Observation(clamped(sent), {**labels, _DIRECTION: "transmit"})


def clamped(number: int) -> int:
    """The nearest number that OTLP can carry: it has 64 bits and a sign."""
    return max(-(1 << 63), min(number, (1 << 63) - 1))
