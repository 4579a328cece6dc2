"""The Prometheus exporter, read with Prometheus' own parser."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import socket
import subprocess
import time

import anyio
import attrs
import httpx
import pytest
from aggregate_events import FakeMonitor, added, counts, flow, lost, polled, until, updated
from plain_http import PLAIN
from test_integrations_serving import serving

from nstat_async import Coverage, HostState, HostUpdated, __version__
from nstat_async._errors import UsageError
from nstat_async._model import Counts, MediumCounts, Process

prometheus_client = pytest.importorskip("prometheus_client")
parser = pytest.importorskip("prometheus_client.parser")

from nstat_async.integrations.prometheus import TrafficCollector


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


def test_machines_of_a_fleet_are_exported_by_their_state():
    collector = TrafficCollector()
    assert not any("machines" in name for name, *_ in scrape(collector))
    states = {"web1": HostState.PRESENT, "web2": HostState.PRESENT, "db1": HostState.SILENT}
    collector.feed_many(HostUpdated(1.0, state, host=host) for host, state in states.items())
    seen = scrape(collector)
    assert (seen["nstat_machines", "present"], seen["nstat_machines", "silent"]) == (2, 1)


def test_bytes_by_medium_are_exported_where_reports_have_them():
    collector = TrafficCollector()
    curl, ssh = flow("a"), flow("b", Process(9, "ssh"))
    collector.feed_many([added(curl, 1, counts(5)), polled(1)])
    assert not any("medium" in name for name, *_ in scrape(collector))
    for each, name, amount in ((curl, "wifi_infra", 100), (ssh, "wifi_infra", 7), (ssh, "loopback", 50)):
        media = {name: MediumCounts(amount, 1, 2, 3)}
        collector.feed_many(
            [added(attrs.evolve(each, id=f"{each.id}{amount}"), 2, Counts(rx_bytes=amount, media=media))]
        )
    seen = scrape(collector)
    assert seen["nstat_medium_receive_bytes_total", "wifi_infra"] == 107
    assert seen["nstat_medium_receive_bytes_total", "loopback"] == 50
    assert seen["nstat_medium_transmit_packets_total", "wifi_infra"] == 6


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
            assert ("nstat_interface_receive_bytes_total",) not in scrape(collector)
            names = (f.name for f in attrs.fields(Coverage))
            monitor.figures = {f"coverage_{name}": place for place, name in enumerate(names)}
            monitor.deliver(updated(flow("a"), 2, counts(13)))
            await until(lambda: scrape(collector).get(("nstat_interface_transmit_bytes_total",)) == 1)
            seen = scrape(collector)
            assert (seen["nstat_attributed_receive_bytes_total",], seen["nstat_attributed_transmit_bytes_total",]) == (
                2,
                3,
            )
            monitor.end()
        assert scrape(collector)["nstat_up",] == 0

    anyio.run(main, backend=backend)


def with_unit(name, unit):
    return flow(name, Process(5, name), cgroup=f"/system.slice/{unit}")


def test_units_and_containers_are_bounded_labels_where_asked_for():
    collector = TrafficCollector(by=["unit", "container"], limit=1)
    collector.feed_many([added(flow("a"), 1, counts(5))])
    assert not any("unit" in key[0] or "container" in key[0] for key in scrape(collector)), "no units, no series"
    collector.feed_many(
        [added(with_unit("b", "nginx.service"), 2, counts(10)), added(with_unit("c", "sshd.service"), 2, counts(1))]
    )
    seen = scrape(collector)
    assert seen["nstat_unit_receive_bytes_total", "nginx.service"] == 10
    assert seen["nstat_unit_receive_bytes_total", "(other)"] == 1
    assert seen["nstat_unit_receive_bytes_total", "(unknown)"] == 5
    assert not any("nstat_container" in key[0] for key in seen)
    with pytest.raises(UsageError, match="by: 'colour' is not one of process, unit, container, pod"):
        TrafficCollector(by=["colour"])


def test_it_says_which_version_counted():
    (labels,) = [key[1:] for key in scrape(TrafficCollector()) if key[0] == "nstat_build_info"]
    assert __version__ in labels


# --- with Prometheus' own tools -----------------------------------------------------------------

DIRECTORY = pathlib.Path(__file__).parents[2] / "examples" / "prometheus"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")


def exported():
    """What a collector with a bit of everything exports."""
    collector = TrafficCollector(by=["unit", "container", "pod"])
    collector.feed_many([added(with_unit("b", "nginx.service"), 1, counts(10)), polled(2), lost(3, 4, counts(5))])
    collector.feed_many([HostUpdated(3.0, HostState.SILENT, host="db1")])
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    return prometheus_client.generate_latest(registry)


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_metrics():
    done = subprocess.run(["promtool", "check", "metrics"], input=exported(), capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_promtool
@pytest.mark.parametrize(
    "command", ["check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"]
)
def test_promtool_accepts_the_rules_and_they_do_what_they_say(command):
    done = subprocess.run(["promtool", *command.split()], cwd=DIRECTORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


def test_dashboard_and_rules_ask_for_metrics_that_exist():
    families = set(re.findall(rb"^# TYPE (\S+)", exported(), re.MULTILINE))
    families |= {name.replace(b"unit", b"container") for name in families}
    dashboard = json.loads((DIRECTORY / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += re.findall(r"expr: (.*)", (DIRECTORY / "alerts.yml").read_text())
    names = {name for expression in asked for name in re.findall(r"nstat_\w+", expression)}
    assert names
    assert {name.encode() for name in names} <= families


@needs_prometheus
def test_a_real_prometheus_scrapes_the_server(tmp_path):
    """Its configuration is the one that is shown; it finds the series, and its rules see them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    async def main():
        monitor = FakeMonitor()
        async with serving(monitor) as (url,):
            monitor.deliver(added(with_unit("nginx", "nginx.service"), time.time(), counts(1234)), polled(time.time()))
            target = url.removeprefix("http://").strip("/")
            text = (DIRECTORY / "prometheus.yml").read_text().replace("127.0.0.1:8765", target).replace("15s", "1s")
            (tmp_path / "prometheus.yml").write_text(text)
            shutil.copy(DIRECTORY / "alerts.yml", tmp_path)
            command = [
                "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
            ]  # fmt: skip
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as prometheus:
                try:
                    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **PLAIN) as client:
                        with anyio.fail_after(120):
                            query = {"query": 'nstat_unit_receive_bytes_total{unit="nginx.service"}'}
                            while not (found := await result_of(client, query)):
                                await anyio.sleep(0.1)
                        assert found[0]["value"][1] == "1234"
                        assert found[0]["metric"]["job"] == "nstat"
                        assert (await result_of(client, {"query": "nstat_build_info"}))[0]["metric"][
                            "version"
                        ] == __version__
                finally:
                    prometheus.terminate()

    anyio.run(main)


async def result_of(client, query):
    try:
        return (await client.get("/api/v1/query", params=query)).json()["data"]["result"]
    except (httpx.HTTPError, ValueError, KeyError):  # it is starting
        return []
