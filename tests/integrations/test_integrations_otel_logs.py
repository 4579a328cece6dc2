"""OpenTelemetry logs: what arrives at a receiver of OTLP over HTTP, decoded from its protobuf."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import math
import threading

import anyio
import pytest
from aggregate_events import CURL, FakeMonitor, counts, flow, lost, removed, until, updated

from nstat_async import Direction, EventsLost, HostState, HostUpdated, LossCause, Peer, Process, TcpState
from nstat_async._model import Counts

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
pytest.importorskip("opentelemetry.proto")

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

from nstat_async.integrations import otel_logs
from nstat_async.integrations.otel_logs import FlowLogs


@contextlib.contextmanager
def receiver():
    """A receiver of OTLP/HTTP on loopback; the records that it got."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            data = gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data
            got.append((self.path, ExportLogsServiceRequest.FromString(data)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/logs", got
        finally:
            server.shutdown()
            thread.join()


def plain(value):
    return getattr(value, value.WhichOneof("value")) if value.WhichOneof("value") else None


def exported(feed, **options):
    """What arrives of what is fed: records with their attributes as a dictionary."""
    with receiver() as (url, got):
        provider = LoggerProvider()
        provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(url)))
        try:
            feed(FlowLogs(provider.get_logger("test"), host_id="here", **options))
            assert provider.force_flush(60_000)
        finally:
            provider.shutdown()
    assert {path for path, _ in got} <= {"/v1/logs"}
    records = [
        record
        for _, request in got
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    return [(record, {each.key: plain(each.value) for each in record.attributes}) for record in records]


ENDED = flow(
    "7",
    Process(42, "curl", uid=501, path="/usr/bin/curl", title="fetch"),
    direction=Direction.OUTBOUND,
    state=TcpState.CLOSED,
    started_ns=1_700_000_000_500_000_000,
)


def test_a_flow_that_ended_is_one_record_with_the_names_of_the_conventions():
    event = removed(ENDED, 1_700_000_002.0, counts(1000, 50))
    [(record, attributes)] = exported(lambda logs: logs.feed_many([updated(ENDED, 1.0, counts(1)), event]))
    assert record.event_name == "nstat.flow.end"
    assert record.time_unix_nano == 1_700_000_002_000_000_000
    assert record.severity_text == "INFO"
    name = attributes.pop("host.name")
    assert name
    assert "." not in name
    assert attributes == {
        "network.transport": "tcp", "network.type": "ipv4", "network.connection.state": "closed",
        "network.local.address": "192.0.2.1", "network.local.port": 50000,
        "network.peer.address": "198.51.100.7", "network.peer.port": 443,
        "client.address": "192.0.2.1", "client.port": 50000, "server.address": "198.51.100.7", "server.port": 443,
        "network.interface.name": "en0", "process.pid": 42, "process.executable.name": "curl",
        "process.executable.path": "/usr/bin/curl", "process.user.id": 501, "process.title": "fetch",
        "host.id": "here", "nstat.rx_bytes": 1000, "nstat.tx_bytes": 50, "nstat.rx_packets": 10, "nstat.tx_packets": 0,
        "nstat.final": True, "nstat.reason": "closed", "nstat.flow.id": "7", "nstat.flow.duration": 1.5,
    }  # fmt: skip


def test_a_name_that_is_no_unicode_arrives_with_replacement_characters():
    event = removed(flow("7", Process(42, "a\udcff", path="/\udcff")), 2.0, counts(1))
    [(_, attributes)] = exported(lambda logs: logs.feed_many([event]))
    assert attributes["process.executable.name"] == "a\ufffd"
    assert attributes["process.executable.path"] == "/\ufffd"


@pytest.mark.parametrize("time", [math.nan, math.inf, -5.0, 1e300])
def test_a_time_that_is_none_is_left_out_and_the_record_arrives(time):
    [(record, attributes)] = exported(lambda logs: logs.feed_many([removed(ENDED, time, counts(1))]))
    assert record.time_unix_nano == 0
    assert record.observed_time_unix_nano > 0
    assert attributes["nstat.rx_bytes"] == 1


def test_a_number_beyond_64_bits_does_not_cost_the_batch():
    events = [removed(flow(str(number)), 2.0, counts(number)) for number in (1, 1 << 64, -(1 << 70), 2)]
    found = [attributes["nstat.rx_bytes"] for _, attributes in exported(lambda logs: logs.feed_many(events))]
    assert found == [1, (1 << 63) - 1, -(1 << 63), 2]


def test_every_name_that_is_not_ours_is_one_of_the_conventions():
    semconv = pytest.importorskip("opentelemetry.semconv._incubating.attributes.network_attributes").__package__
    import importlib
    import pkgutil

    package = importlib.import_module(semconv)
    known = {
        value
        for found in pkgutil.iter_modules(package.__path__)
        for value in vars(importlib.import_module(f"{semconv}.{found.name}")).values()
        if isinstance(value, str)
    }
    pod = flow("8", cgroup="/kubepods.slice/kubepods-pod5b0c1e3a_1b2c_4d5e_8f90_0123456789ab.slice/cri-containerd-"
               + "a" * 64 + ".scope", container="web", pod="shop/web-0", direction=Direction.INBOUND)  # fmt: skip
    sent = exported(lambda logs: logs.feed_many([removed(ENDED, 2.0, counts(1)), removed(pod, 2.0, counts(1))]))
    names = {name for _, attributes in sent for name in attributes if not name.startswith("nstat.")}
    assert names <= known
    assert {"container.id", "k8s.pod.uid", "k8s.pod.name", "k8s.namespace.name"} <= names
    assert sent[1][1]["k8s.pod.uid"] == "5b0c1e3a-1b2c-4d5e-8f90-0123456789ab"
    assert sent[1][1]["server.address"] == "192.0.2.1"


def test_what_is_not_known_has_no_attribute_and_losses_are_warnings():
    bare = flow("9", None, remote=None, interface=None)
    sent = exported(lambda logs: logs.feed_many([removed(bare, 2.0, None), lost(3.0, 4, counts(5))]))
    [(_, attributes), (record, loss)] = sent
    assert None not in attributes.values()
    assert not [name for name in attributes if name.startswith(("process.", "network.peer", "client.", "nstat.rx"))]
    assert (record.event_name, record.severity_text) == ("nstat.loss", "WARN")
    assert (loss["nstat.cause"], loss["nstat.count"], loss["nstat.rx_bytes"]) == ("overflow", 4, 5)


def test_what_a_machine_says_that_is_not_unicode_can_be_exported():
    loss = EventsLost(3.0, LossCause.TRANSPORT, 1, detail="a\ud800", host="web")
    [(record, _)] = exported(lambda logs: logs.feed_many([loss]))
    assert record.body.string_value == "a\ufffd"


def test_in_a_fleet_a_record_has_its_machine_and_the_other_end():
    there = flow("web/1/1", CURL, host="web", peer=Peer("db", Process(7, "postgres"), "db/1/1"))
    host = HostUpdated(1.0, HostState.PRESENT, machine_id="0123", host="web")
    [(_, attributes)] = exported(lambda logs: logs.feed_many([host, removed(there, 2.0, counts(1))]))
    assert (attributes["host.name"], attributes["host.id"]) == ("web", "0123")
    assert (attributes["nstat.peer.host"], attributes["nstat.peer.name"]) == ("db", "postgres")


def test_only_the_machines_that_were_heard_of_last_are_remembered(monkeypatch):
    """In a fleet whose machines come and go; a flow may end after its machine left."""
    monkeypatch.setattr(otel_logs, "_MOST_HOSTS", 2)
    states = [("a", "present"), ("b", "present"), ("a", "left"), ("c", "present")]
    events = [HostUpdated(1.0, HostState(state), machine_id=f"id-{name}", host=name) for name, state in states]
    ends = [removed(flow(name, host=name), 2.0, counts(1)) for name in "abc"]
    found = [attributes.get("host.id") for _, attributes in exported(lambda logs: logs.feed_many([*events, *ends]))]
    assert found == ["id-a", None, "id-c"]


def test_updates_are_records_where_they_are_asked_for_and_a_monitor_feeds_them():
    async def run(logs):
        monitor = FakeMonitor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logs.run, monitor)
            await until(lambda: monitor.subscriptions)
            monitor.deliver(updated(ENDED, 1.0, counts(1)), removed(ENDED, 2.0, Counts()))
            monitor.end()

    sent = exported(lambda logs: anyio.run(run, logs), updates=True)
    assert [record.event_name for record, _ in sent] == ["nstat.flow.update", "nstat.flow.end"]
