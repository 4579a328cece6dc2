"""A Prometheus collector: traffic per process name, with a bounded number of series.

Metrics (all with the prefix ``nstat_``):

====================================  ========  ==============================================
``process_receive_bytes_total``       counter   bytes received, label ``process``: its name
``process_transmit_bytes_total``      counter   bytes sent
``process_receive_packets_total``     counter   packets received
``process_transmit_packets_total``    counter   packets sent
``process_flows_total``               counter   flows seen
``process_open_flows``                gauge     flows open now
``receive_bytes_total`` etc.          counter   the same for the whole machine, exact
``losses_total``                      counter   reports of loss, label ``cause``
``polls_total``                       counter   polls, label ``result``: ``complete`` or ``incomplete``
``last_event_timestamp_seconds``      gauge     when the last event was observed
``up``                                gauge     1 while `TrafficCollector.run` is fed
====================================  ========  ==============================================

Labels ``(other)``, ``(unknown)`` and ``(lost)`` are no names: they have what got no series of its
own, what has no known owner, and what an overflowing buffer gave up.
"""

from __future__ import annotations

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.prometheus needs prometheus-client: pip install nstat-async[prometheus]"
    raise ImportError(msg) from error

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._series import KeeperFeed, SeriesKeeper

__all__ = ["TrafficCollector"]

_METRICS: tuple[tuple[str, str, str, Any], ...] = (
    ("receive_bytes", "rx_bytes", "Payload bytes received", CounterMetricFamily),
    ("transmit_bytes", "tx_bytes", "Payload bytes sent", CounterMetricFamily),
    ("receive_packets", "rx_packets", "Packets received", CounterMetricFamily),
    ("transmit_packets", "tx_packets", "Packets sent", CounterMetricFamily),
    ("flows", "flows", "Flows seen", CounterMetricFamily),
    ("open_flows", "open_flows", "Flows open now", GaugeMetricFamily),
)


class TrafficCollector(KeeperFeed, Collector):
    """Exports the traffic of a monitor; register it with a `prometheus_client` registry.

    Feed it with `run` in a task, or with `feed_many`. It may be scraped from another thread.

    Args:
        limit: Process names with series of their own; the rest is ``(other)``.
        review: Seconds after which busier names may take the places of quiet ones.
        include_history: Count what flows had carried before they were seen.
        keeper: Counters that are fed elsewhere, instead of new ones.
        is_running: Says whether these are fed.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        limit: int = 50,
        review: float = 300.0,
        include_history: bool = False,
        keeper: SeriesKeeper | None = None,
        is_running: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(keeper or SeriesKeeper(limit=limit, review=review, include_history=include_history))
        self._is_running = is_running or (lambda: self._feeds > 0)

    def describe(self) -> Iterable[Metric]:
        """Nothing is promised at registration: `collect` names them."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of now; called by the registry, in any thread."""
        seen = self._keeper.observe()
        for name, field, text, kind in _METRICS:
            family = kind(f"nstat_process_{name}", f"{text}, by process name", labels=["process"])
            for each in seen.series:
                if each.is_counted or field in {"flows", "open_flows"}:
                    family.add_metric([each.label], getattr(each, field))
            yield family
            yield kind(f"nstat_{name}", f"{text}, all together", getattr(seen.total, field))
        losses = CounterMetricFamily("nstat_losses", "Reports of loss in the stream", labels=["cause"])
        for loss in seen.losses:
            losses.add_metric([loss.cause.value], loss.events)
        yield losses
        polls = CounterMetricFamily("nstat_polls", "Polls of the kernel", labels=["result"])
        polls.add_metric(["complete"], seen.polls[0] - seen.polls[1])
        polls.add_metric(["incomplete"], seen.polls[1])
        yield polls
        if seen.time is not None:
            yield GaugeMetricFamily("nstat_last_event_timestamp_seconds", "Time of the last event", seen.time)
        yield GaugeMetricFamily("nstat_up", "1 while a monitor feeds this", float(self._is_running()))
