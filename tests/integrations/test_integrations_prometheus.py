"""The Prometheus exporter, read with Prometheus' own parser."""

from __future__ import annotations

import anyio
import pytest
from aggregate_events import FakeMonitor, added, counts, flow, lost, polled, until, updated

from nstat_async._model import Counts, Process

prometheus_client = pytest.importorskip("prometheus_client")
parser = pytest.importorskip("prometheus_client.parser")

from nstat_async.integrations.prometheus import TrafficCollector  # noqa: E402


def scrape(collector):
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_traffic_is_exported_by_name_and_in_all():
    collector = TrafficCollector(limit=1)
    curl = flow("a")
    collector.feed_many([added(curl, 1, counts(1000, 500)), added(flow("b", Process(9, 'we"ird')), 1, counts(70))])
    collector.feed_many(
        [updated(curl, 2, counts(3000, 500)), polled(2), polled(3, complete=False), lost(3, 4, counts(5))]
    )
    seen = scrape(collector)
    assert seen["nstat_process_receive_bytes_total", "curl"] == 3000
    assert seen["nstat_process_transmit_bytes_total", "curl"] == 500
    assert seen["nstat_process_receive_packets_total", "curl"] == 30
    assert seen["nstat_process_flows_total", "curl"] == 1
    assert seen["nstat_process_open_flows", "curl"] == 1
    assert seen["nstat_process_receive_bytes_total", "(other)"] == 70
    assert seen["nstat_process_receive_bytes_total", "(lost)"] == 5
    assert seen["nstat_receive_bytes_total",] == 3075
    assert seen["nstat_flows_total",] == 6
    assert seen["nstat_open_flows",] == 2
    assert seen["nstat_losses_total", "overflow"] == 1
    assert seen["nstat_polls_total", "complete"] == 1
    assert seen["nstat_polls_total", "incomplete"] == 1
    assert seen["nstat_last_event_timestamp_seconds",] == 3
    assert seen["nstat_up",] == 0
    assert scrape(collector) == seen


def test_bytes_that_the_platform_does_not_tell_are_not_exported():
    """Unknown is absent, not zero."""
    collector = TrafficCollector()
    collector.feed_many([added(flow("a"), 1, Counts())])
    seen = scrape(collector)
    assert ("nstat_process_receive_bytes_total", "curl") not in seen
    assert seen["nstat_process_flows_total", "curl"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_collector_follows_a_monitor(backend):
    async def main():
        monitor, collector = FakeMonitor(), TrafficCollector()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collector.run, monitor)
            await until(lambda: monitor.subscriptions)
            monitor.deliver(added(flow("a"), 1, counts(12)))
            await until(lambda: scrape(collector).get(("nstat_receive_bytes_total",)) == 12)
            assert scrape(collector)["nstat_up",] == 1
            monitor.end()
        assert scrape(collector)["nstat_up",] == 0

    anyio.run(main, backend=backend)
