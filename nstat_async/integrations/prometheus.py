"""A Prometheus collector: traffic per process name, with a bounded number of series.

Metrics (all with the prefix ``nstat_``):

====================================  ========  ==============================================
``process_receive_bytes_total``       counter   bytes received, label ``process``: its name
``process_transmit_bytes_total``      counter   bytes sent
``process_receive_packets_total``     counter   packets received
``process_transmit_packets_total``    counter   packets sent
``process_flows_total``               counter   flows seen
``process_open_flows``                gauge     flows open now
``unit_…``, ``container_…``, ``pod_…``          the same with labels of these names, where asked for (`by`)
``receive_bytes_total`` etc.          counter   the same for the whole machine, exact
``medium_receive_bytes_total`` etc.   counter   bytes and packets by medium and over loopback, label ``medium``
                                                (macOS 26 with ``extras``)
``losses_total``                      counter   reports of loss, label ``cause``
``polls_total``                       counter   polls, label ``result``: ``complete`` or ``incomplete``
``machines``                          gauge     machines of a fleet, label ``state``: ``present`` or ``silent``
``interface_receive_bytes_total``     counter   wire bytes that interfaces received since the start
``interface_transmit_bytes_total``    counter   wire bytes that they sent
``attributed_receive_bytes_total``    counter   payload that flows received of these
``attributed_transmit_bytes_total``   counter   payload that flows sent of these
``last_event_timestamp_seconds``      gauge     when the last event was observed
``up``                                gauge     1 while `TrafficCollector.run` is fed
``build_info``                        gauge     1, labels ``version`` and ``python_version``
====================================  ========  ==============================================

The labels ``(other)``, ``(unknown)`` and ``(lost)`` are not names: they have the traffic of names without a
series, the traffic without a known owner, and the traffic that an overflowing buffer dropped.
"""

from __future__ import annotations

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.prometheus needs prometheus-client: pip install 'nstat-async[prometheus]'"
    raise ImportError(msg) from error

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from nstat_async import __version__
from nstat_async._coverage import Coverage
from nstat_async._events import HostState
from nstat_async._model import MediumCounts

from ._series import LABELS, KeeperFeed, Series, SeriesKeeper, keepers

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
        by: Further labels with series of their own: ``"unit"`` (systemd), ``"container"``, ``"pod"`` (Linux).
        limit: Process names with series of their own; the rest is ``(other)``.
        review: Seconds after which busier names may take the places of quiet ones.
        include_history: Count what flows had carried before they were seen.
        fed: Counters by label that something else feeds, instead of new ones.
        is_running: Returns True while they are fed.
        coverage: Returns how much of the interfaces' traffic their flows explain.

    Raises:
        UsageError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        by: Sequence[str] = (),
        limit: int = 50,
        review: float = 300.0,
        include_history: bool = False,
        fed: Mapping[str, SeriesKeeper] | None = None,
        is_running: Callable[[], bool] | None = None,
        coverage: Callable[[], Coverage | None] | None = None,
    ) -> None:
        super().__init__(fed or keepers(by, limit=limit, review=review, include_history=include_history))
        self._is_running = is_running or (lambda: self._feeds > 0)
        self._coverage_now = coverage or (lambda: self.coverage)

    def describe(self) -> Iterable[Metric]:
        """Describe nothing at registration: `collect` names the metrics."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The present metrics; the registry calls this, in any thread."""
        for label, keeper in self._keepers.items():
            series = keeper.observe().series
            # A system without units has no series of units, rather than a single "(unknown)".
            if label == "process" or any(not each.is_reserved for each in series):
                yield from _families(label, series)
        seen = self._keepers["process"].observe()
        for name, field, text, kind in _METRICS:
            yield kind(f"nstat_{name}", f"{text}, all together", getattr(seen.total, field))
        yield from _media(seen.total.media)
        losses = CounterMetricFamily("nstat_losses", "Reports of loss in the stream", labels=["cause"])
        for loss in seen.losses:
            losses.add_metric([loss.cause.value], loss.events)
        yield losses
        polls = CounterMetricFamily("nstat_polls", "Polls of the kernel", labels=["result"])
        polls.add_metric(["complete"], seen.polls[0] - seen.polls[1])
        polls.add_metric(["incomplete"], seen.polls[1])
        yield polls
        if seen.hosts:
            machines = GaugeMetricFamily("nstat_machines", "Machines of the fleet", labels=["state"])
            for state in (HostState.PRESENT, HostState.SILENT):
                machines.add_metric([state.value], sum(each is state for each in seen.hosts.values()))
            yield machines
        yield from self._coverage()
        if seen.time is not None:
            yield GaugeMetricFamily("nstat_last_event_timestamp_seconds", "Time of the last event", seen.time)
        yield GaugeMetricFamily("nstat_up", "1 while a monitor feeds this", float(self._is_running()))
        info = {"version": __version__, "python_version": platform.python_version()}
        build = GaugeMetricFamily("nstat_build_info", "The library that counted", labels=list(info))
        build.add_metric(list(info.values()), 1.0)
        yield build

    def _coverage(self) -> Iterator[Metric]:
        coverage = self._coverage_now()
        if coverage is not None:
            for name, wire, payload in (
                ("receive_bytes", coverage.rx_bytes, coverage.flow_rx_bytes),
                ("transmit_bytes", coverage.tx_bytes, coverage.flow_tx_bytes),
            ):
                yield CounterMetricFamily(f"nstat_interface_{name}", "Wire bytes of interfaces, headers included", wire)
                yield CounterMetricFamily(f"nstat_attributed_{name}", "Payload of flows among them", payload)


def _families(label: str, series: Sequence[Series]) -> Iterator[Metric]:
    for name, field, text, kind in _METRICS:
        family = kind(f"nstat_{label}_{name}", f"{text}, by {LABELS[label]}", labels=[label])
        for each in series:
            if each.is_counted or field in {"flows", "open_flows"}:
                family.add_metric([each.label], getattr(each, field))
        yield family


def _media(media: Sequence[tuple[str, MediumCounts]]) -> Iterator[Metric]:
    """The metrics by medium; none if no report tells media apart."""
    for name, field, text, kind in _METRICS if media else ():
        if hasattr(MediumCounts, field):
            family = kind(f"nstat_medium_{name}", f"{text}, by medium", labels=["medium"])
            for medium, counts in media:
                family.add_metric([medium], getattr(counts, field))
            yield family
