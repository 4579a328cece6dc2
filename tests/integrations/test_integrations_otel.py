"""The OpenTelemetry metrics, read through the reference SDK."""

from __future__ import annotations

import anyio
import pytest
from aggregate_events import FakeMonitor, added, counts, flow, lost, until, updated

from nstat_async import Coverage
from nstat_async._model import Counts, Process

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from nstat_async.integrations.otel import TrafficMetrics


@pytest.fixture
def exported():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    def read():
        data = reader.get_metrics_data()
        return {
            (metric.name, *point.attributes.values()): point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    yield provider.get_meter("test"), read
    provider.shutdown()


def test_traffic_is_exported_by_name_and_direction(exported):
    meter, read = exported
    metrics = TrafficMetrics(meter, limit=1)
    metrics.feed_many([added(flow("a"), 1, counts(100, 50)), added(flow("b", Process(9, "x")), 1, counts(7))])
    metrics.feed_many([updated(flow("a"), 2, counts(300, 50)), lost(3, 4, counts(5))])
    seen = read()
    assert seen["process.network.io", "curl", "receive"] == 300
    assert seen["process.network.io", "curl", "transmit"] == 50
    assert seen["process.network.io", "(other)", "receive"] == 7
    assert seen["nstat.process.packets", "curl", "receive"] == 3
    assert seen["nstat.process.flows", "(lost)"] == 4
    assert seen["nstat.process.open_flows", "curl"] == 1
    assert seen["nstat.losses", "overflow"] == 1


def test_a_counter_beyond_what_the_protocol_carries_stays_at_its_greatest_number(exported):
    """One that it cannot carry would end the export of all others."""
    meter, read = exported
    TrafficMetrics(meter).feed_many([added(flow("a"), 1, counts(1 << 64, 5))])
    seen = read()
    assert seen["process.network.io", "curl", "receive"] == (1 << 63) - 1
    assert seen["process.network.io", "curl", "transmit"] == 5


def test_bytes_that_the_platform_does_not_tell_are_not_exported(exported):
    meter, read = exported
    TrafficMetrics(meter).feed_many([added(flow("a"), 1, Counts())])
    seen = read()
    assert ("process.network.io", "curl", "receive") not in seen
    assert seen["nstat.process.flows", "curl"] == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_metrics_follow_a_monitor(exported, backend):
    meter, read = exported

    async def main():
        monitor, metrics = FakeMonitor(), TrafficMetrics(meter)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(metrics.run, monitor)
            await until(lambda: monitor.subscriptions)
            monitor.deliver(added(flow("a"), 1, counts(12)))
            await until(lambda: read().get(("process.network.io", "curl", "receive")) == 12)
            monitor.end()

    anyio.run(main, backend=backend)


def test_the_share_that_flows_explain_is_exported_once_it_is_known(exported):
    meter, read = exported
    metrics = TrafficMetrics(meter)
    metrics.feed_many([added(flow("a"), 1, counts(1))])
    assert not any(name in {"nstat.interface.io", "nstat.attributed.io"} for name, *_ in read())
    metrics.coverage = Coverage(1000, 2000, 900, 1700, 0, 0, 0, 0)
    seen = read()
    assert (seen["nstat.interface.io", "receive"], seen["nstat.interface.io", "transmit"]) == (1000, 2000)
    assert (seen["nstat.attributed.io", "receive"], seen["nstat.attributed.io", "transmit"]) == (900, 1700)


def test_only_names_of_the_conventions_are_outside_of_the_librarys_own_namespace(exported):
    from opentelemetry.semconv._incubating.attributes import network_attributes, process_attributes
    from opentelemetry.semconv._incubating.metrics import process_metrics

    known = {value for module in (process_metrics, network_attributes, process_attributes)
             for value in vars(module).values() if isinstance(value, str)}  # fmt: skip
    _meter, _ = exported
    made = []

    class Spy:
        def create_observable_counter(self, name, *_arguments, **_options):
            made.append(name)

        create_observable_up_down_counter = create_observable_counter

    TrafficMetrics(Spy())
    assert "process.network.io" in made
    from nstat_async.integrations import otel

    for name in (*made, otel._NAME, otel._DIRECTION, otel._CAUSE):
        assert name in known or name.startswith("nstat."), name
