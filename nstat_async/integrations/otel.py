"""OpenTelemetry metrics: traffic per process name, through the API only.

Instruments (asynchronous, read when the SDK exports): one has a name in the semantic conventions, the others are
under ``nstat.``.

============================  ==================  ============  ====================================
``process.network.io``        observable counter  ``By``        attribute ``network.io.direction``
``nstat.process.packets``     observable counter  ``{packet}``  attribute ``network.io.direction``
``nstat.process.flows``       observable counter  ``{flow}``    flows seen
``nstat.process.open_flows``  observable up-down  ``{flow}``    flows open now
``nstat.losses``              observable counter  ``{report}``  attribute ``nstat.loss.cause``
============================  ==================  ============  ====================================

Those of processes have the attribute ``process.executable.name``. Its values are bounded in
number; ``(other)``, ``(unknown)`` and ``(lost)`` are as in `nstat_async.integrations.prometheus`.
"""

from __future__ import annotations

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.otel needs opentelemetry-api: pip install 'nstat-async[otel]'"
    raise ImportError(msg) from error

from collections.abc import Iterator

from ._series import KeeperFeed, Series, keepers

__all__ = ["TrafficMetrics"]

_NAME = "process.executable.name"
_DIRECTION = "network.io.direction"
_CAUSE = "nstat.loss.cause"


class TrafficMetrics(KeeperFeed):
    """Reports the traffic of a monitor to OpenTelemetry.

    The instruments are made with the object; feed it with `run` in a task, or with `feed_many`.

    Args:
        meter: Where to make them; `None`: the global meter provider's.
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

    def _series(self) -> tuple[Series, ...]:
        return self._keepers["process"].observe().series

    def _bytes(self, _options: CallbackOptions) -> Iterator[Observation]:
        for each in self._series():
            yield from _both_ways(each, each.rx_bytes, each.tx_bytes)

    def _packets(self, _options: CallbackOptions) -> Iterator[Observation]:
        for each in self._series():
            yield from _both_ways(each, each.rx_packets, each.tx_packets)

    def _flows(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (Observation(each.flows, {_NAME: each.label}) for each in self._series())

    def _open(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (Observation(each.open_flows, {_NAME: each.label}) for each in self._series())

    def _losses(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (
            Observation(loss.events, {_CAUSE: loss.cause.value}) for loss in self._keepers["process"].observe().losses
        )


def _both_ways(series: Series, received: int, sent: int) -> Iterator[Observation]:
    if series.is_counted:
        yield Observation(received, {_NAME: series.label, _DIRECTION: "receive"})
        yield Observation(sent, {_NAME: series.label, _DIRECTION: "transmit"})
