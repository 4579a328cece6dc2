"""Traffic per process as OpenTelemetry metrics, printed by the SDK's console exporter.

    python otel_metrics.py [RECORDING]

The library uses the API only (extra ``otel``); this program chooses an SDK
(``pip install opentelemetry-sdk``) and an exporter.
"""

import asyncio
import signal
import sys

import anyio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from nstat_async import Monitor, backends
from nstat_async.backends import Backend
from nstat_async.integrations.otel import TrafficMetrics


async def main(backend: Backend | None = None) -> None:
    reader = PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=10_000)
    provider = MeterProvider([reader])
    metrics = TrafficMetrics(provider.get_meter("otel_metrics"), limit=20)
    try:
        async with Monitor(backend=backend) as monitor:
            await metrics.run(monitor)
    finally:
        # Exports once more. In a thread, because an exporter may wait for a network.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(provider.shutdown)


async def until_stopped(backend: Backend | None) -> None:
    with anyio.CancelScope() as scope:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        await main(backend)


if __name__ == "__main__":
    anyio.run(until_stopped, backends.Replay(sys.argv[1]) if len(sys.argv) > 1 else None)
