"""The web service, asked by a real HTTP client over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re

import attrs
import httpx
import pytest
import uvicorn
from aggregate_events import FakeMonitor, added, counts, flow, lost, polled, removed, until, updated
from plain_http import PLAIN

from nstat_async._coverage import Coverage
from nstat_async._errors import NstatError, UsageError
from nstat_async._events import HostState, HostUpdated, ProviderRefused
from nstat_async._model import Process, Provider
from nstat_async.integrations.server import create_app

pytestmark = pytest.mark.asyncio


@contextlib.asynccontextmanager
async def served(monitor, **options):
    """A running server on a free port of loopback, and a client for it."""
    app = create_app(lambda: monitor, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="on", ws="none", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", **PLAIN) as client:
        try:
            yield client
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 120)


class Events:
    """Reads server-sent events."""

    def __init__(self, response):
        self.lines = response.aiter_lines()

    async def next(self):
        event = {}
        async with asyncio.timeout(20) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
            async for line in self.lines:
                if not line and event:
                    return event
                name, _, value = line.partition(": ")
                if name in {"event", "data"}:
                    event[name] = value
        return None

    async def named(self, name):
        while (event := await self.next()) is not None:
            if event["event"] == name:
                return json.loads(event["data"])
        return None


async def test_processes_are_served_as_json():
    monitor = FakeMonitor()
    async with served(monitor) as client:
        monitor.deliver(added(flow("a"), 1, counts(0)), added(flow("b", Process(9, "bad\udcff<script>")), 1, counts(7)))
        monitor.deliver(updated(flow("a"), 2, counts(3000, 10)), lost(2, 5, counts(1)), polled(3))

        async def answer():
            return (await client.get("/processes", params={"by": "rx_rate", "n": 1})).json()

        while (seen := await answer())["time"] != 3:
            await asyncio.sleep(0.002)
        assert (seen["state"], seen["backend"], seen["total"]["rx_bytes"]) == ("running", "fake", 3008)
        assert [(row["name"], row["kind"], row["rx_bytes"]) for row in seen["processes"]] == [
            ("curl", "process", 3000),
            (None, "other", 7),
            (None, "lost", 1),
        ]
        assert seen["losses"] == [{"cause": "overflow", "events": 1, "count": 5}]
        everything = await client.get("/processes")
        assert everything.json()["processes"][1]["name"] == "bad\ufffd<script>"
        assert everything.content.isascii()
        for wrong, says in (
            ("/processes?by=size", "by: 'size' is not one of bytes, rate, "),
            ("/processes?group=size", "group: 'size' is not one of process, user, "),
            ("/processes?n=many", "n: 'many' is not a whole number"),
            ("/processes?n=1_0", "n: '1_0' is not a whole number"),
            ("/processes?n=-1", "n: -1 is not a whole number of at least 0"),
            ("/processes?n=" + "9" * 5000, "n: "),
            ("/live?since=x", "since: 'x' is not a whole number"),
            ("/live?expanded=x", "expanded: 'x' is not a whole number"),
        ):
            refused = await client.get(wrong)
            assert refused.status_code == 400
            assert refused.text.startswith(says)
            assert len(refused.text) < 1000


async def test_the_past_of_a_fleet_is_served_with_its_own_rates():
    monitor = FakeMonitor()
    monitor.capabilities = attrs.evolve(monitor.capabilities, backend="fleet")
    async with served(monitor) as client:
        for step in range(5):
            moment = 1000 + 10 * step
            total = counts(1000 * step)
            monitor.deliver(updated(flow("a"), moment, total) if step else added(flow("a"), moment, total))
            while (seen := (await client.get("/processes")).json())["time"] != moment:
                await asyncio.sleep(0)
        assert seen["total"]["rx_rate"] == 100.0


async def test_events_are_streamed_to_every_client():
    """Each gets every event, in order, named and as one line of JSON, until the monitor ends."""
    monitor = FakeMonitor()
    async with (
        served(monitor) as client,
        client.stream("GET", "/events") as one,
        client.stream("GET", "/events") as two,
    ):
        streams = Events(one), Events(two)
        for each in streams:
            assert (await each.named("hello"))["backend"] == "fake"
        monitor.deliver(
            added(flow("a", Process(1, "line\nevent: forged")), 1, counts(5)), removed(flow("a"), 2, counts(6))
        )
        monitor.deliver(polled(3), lost(4, None))
        for each in streams:
            first = await each.named("flow_added")
            assert (first["flow"]["process"]["name"], first["counts"]["rx_bytes"]) == ("line\nevent: forged", 5)
            assert (await each.next())["event"] == "flow_removed"
            assert (await each.next())["event"] == "poll_completed"
            assert (await each.next())["event"] == "events_lost"
        monitor.end()
        for each in streams:
            assert (await each.next())["event"] == "ended"
            assert await each.next() is None
    assert one.headers["content-type"].startswith("text/event-stream")


async def test_many_events_at_once_reach_a_client_whole_and_in_order():
    monitor = FakeMonitor()
    async with served(monitor) as client, client.stream("GET", "/events") as response:
        stream = Events(response)
        await stream.named("hello")
        monitor.deliver(*(added(flow(str(number)), number, counts(number)) for number in range(1234)))
        monitor.end()
        for number in range(1234):
            assert (await stream.named("flow_added"))["flow"]["id"] == str(number)
        assert (await stream.next())["event"] == "ended"


async def test_the_number_of_clients_is_limited_and_they_leave_nothing_behind():
    monitor = FakeMonitor()
    async with served(monitor, max_clients=1) as client:
        async with client.stream("GET", "/events") as response:
            await Events(response).named("hello")
            refused = await client.get("/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        status = 503
        while status == 503:  # that the first one is gone is noticed a moment later
            async with client.stream("GET", "/events") as again:
                status = again.status_code
        assert status == 200
    assert len(monitor.options) == 1  # the hub's, whoever listens


async def test_a_stream_has_the_flows_that_pass_its_filter():
    """In the words of the command line; the flows that are open come first."""
    monitor = FakeMonitor()
    async with served(monitor) as client:
        processes = {
            "a": Process(7, "curl"), "b": Process(1, "curl", effective_pid=9), "c": Process(1, "curl"),
            "d": Process(7), "e": Process(8, "x"), "f": None,
        }  # fmt: skip
        monitor.deliver(*(added(flow(name, process), 1, counts(1)) for name, process in processes.items()))
        while (await client.get("/processes")).json()["total"]["flows"] < 6:
            await asyncio.sleep(0.002)
        async with client.stream("GET", "/events?process=curl&pid=7&pid=9&~loopback") as response:
            stream = Events(response)
            await stream.named("hello")
            monitor.deliver(*(updated(flow(name, process), 2, counts(5)) for name, process in processes.items()))
            monitor.end()
            seen = []
            while (event := await stream.next()) is not None:
                seen.append((event["event"], json.loads(event["data"]).get("flow", {}).get("id")))
        assert seen == [
            ("flow_added", "a"), ("flow_added", "b"), ("flow_updated", "a"), ("flow_updated", "b"), ("ended", None),
        ]  # fmt: skip
        assert (await client.get("/events?colour=red")).status_code == 400
        assert (await client.get("/events?pid=x")).status_code == 400
        assert (await client.get("/events?" + "&".join(f"pid={n}" for n in range(101)))).status_code == 400


async def test_a_server_stops_while_clients_listen():
    monitor = FakeMonitor()
    async with served(monitor) as client, client.stream("GET", "/events") as response:
        await Events(response).named("hello")
    assert monitor.ended
    assert monitor.subscriptions == []


async def test_a_monitor_that_fails_is_said_to_have_failed():
    """The page, the totals and the metrics stay; the streams end with the reason, and it is not healthy any more."""
    monitor = FakeMonitor()
    async with served(monitor) as client, client.stream("GET", "/events") as response:
        stream = Events(response)
        await stream.named("hello")
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (200, "running\n")
        monitor.end(NstatError("the kernel went away"))
        assert (await stream.named("failed"))["detail"] == "the kernel went away"
        assert (await client.get("/processes")).json()["state"] == "failed: the kernel went away"
        assert "nstat_up 0.0" in (await client.get("/metrics")).text
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "failed\n")


async def test_an_error_that_nobody_expected_does_not_take_the_server_down(caplog):
    monitor = FakeMonitor()
    async with served(monitor) as client:
        monitor.end(OSError("surprise"))
        while "failed: internal error (OSError)" not in (await client.get("/processes")).json()["state"]:
            await asyncio.sleep(0.002)
        assert (await client.get("/")).status_code == 200
    assert "surprise" in caplog.text


async def test_metrics_are_served_for_prometheus():
    monitor = FakeMonitor()
    async with served(monitor) as client:
        monitor.deliver(added(flow("a"), 1, counts(12)))
        while "nstat_receive_bytes_total 12.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.002)
        answer = await client.get("/metrics")
        assert 'nstat_process_receive_bytes_total{process="curl"} 12.0' in answer.text
        assert "nstat_up 1.0" in answer.text


async def test_the_page_loads_nothing_from_elsewhere():
    async with served(FakeMonitor()) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        for name in ("live.js", "live.css", "icon.svg", "uPlot.iife.min.js", "uPlot.min.css"):
            assert name in page.text
            part = await client.get(f"/{name}")
            assert part.status_code == 200
            assert not re.search(
                "//[a-z]",
                part.text.replace("http://www.w3.org/2000/svg", "").replace("https://github.com/leeoniya/uPlot", ""),
            )
            assert "innerHTML" not in part.text or name.startswith("uPlot")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in page.headers
        assert (await client.get("/live/../server.py")).status_code == 404
        assert (await client.post("/processes")).status_code == 405


@pytest.mark.parametrize("path", ["/", "/events", "/processes", "/metrics", "/nothing"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:80"}, 421),
        ({"host": "localhost@evil.example"}, 400),
        ({"host": "127.0.0.1:x"}, 400),
        ({"host": ""}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
async def test_what_other_sites_ask_for_is_refused(path, headers, status):
    """DNS rebinding, cross-origin scripts, images and forms get nothing, not even an error page of ours."""
    app = create_app(FakeMonitor)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
        answer = await client.get(path, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "LOCALHOST:1234"},
        {"host": "[::1]:8765"},
        {"host": "localhost."},
        {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ],
)
async def test_what_the_own_page_asks_for_is_answered(headers):
    transport = httpx.ASGITransport(app=create_app(FakeMonitor))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
        assert (await client.get("/", headers=headers)).status_code == 200


async def test_other_names_can_be_allowed():
    transport = httpx.ASGITransport(app=create_app(FakeMonitor, allowed_hosts=["Stats.Example"]))
    async with httpx.AsyncClient(transport=transport, base_url="http://stats.example") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/", headers={"host": "localhost"})).status_code == 421
    transport = httpx.ASGITransport(app=create_app(FakeMonitor, allowed_hosts=["*"]))
    async with httpx.AsyncClient(transport=transport, base_url="http://any.example") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/events")).status_code == 503


@pytest.mark.parametrize(
    "options",
    [{"max_clients": -1}, {"max_clients": math.nan}, {"max_pending": 0}, {"max_pending": 1.5}, {"rate_window": 0}],
)
async def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        create_app(FakeMonitor, **options)


async def test_command_lines_that_nobody_asks_for_are_no_condition_instead_of_one_that_nothing_meets():
    monitor = FakeMonitor()
    monitor.capabilities = attrs.evolve(monitor.capabilities, backend="sock_diag")
    async with served(monitor) as client:
        for path in ("/events?cmdline=x", "/processes?~cmdline=x", "/live?pid=1&cmdline=x"):
            answer = await client.get(path)
            assert answer.status_code == 400
            assert "serve with --extras" in answer.text
        monitor.options.extras = True
        assert (await client.get("/processes?cmdline=x")).status_code == 200
        for path, says in (
            ("/events?host=x", "host: only flows of a fleet have one"),
            ("/live?provider=tcp,raw", "provider: raw flows are not asked for; --provider raw does"),
        ):
            answer = await client.get(path)
            assert (answer.status_code, answer.text.startswith(f"filter: {says}")) == (400, True)


async def test_a_monitor_instead_of_what_makes_one_is_refused_before_the_server_starts():
    with pytest.raises(UsageError, match=r"open_monitor: .* is not a function that makes a monitor"):
        create_app(FakeMonitor())


async def test_a_view_by_another_key_or_of_some_flows_counts_from_when_it_was_asked_for():
    monitor = FakeMonitor()
    async with served(monitor) as client:

        async def live(**query):
            return (await client.get("/live", params=query)).json()

        monitor.deliver(added(flow("a"), 1, counts(10)), added(flow("b", port=22), 1, counts(20)))
        while (await live())["total"]["rx_bytes"] < 30:
            await asyncio.sleep(0.002)
        first = await live(group="remote-port", address="198.51.100.7")
        assert first["since"] == 1
        assert (await live())["since"] is None
        assert [row["open_flows"] for row in first["rows"]] == [1, 1]
        monitor.deliver(updated(flow("a"), 2, counts(110)), updated(flow("b", port=22), 2, counts(21)))
        while (await live())["total"]["rx_bytes"] < 131:
            await asyncio.sleep(0.002)
        seen = await live(
            group="remote-port", address="198.51.100.7", by="rx_bytes", expanded=first["rows"][0]["serial"]
        )
        assert [(row["name"], row["rx_bytes"]) for row in seen["rows"]] == [("443", 100), ("22", 1)]
        assert [line["flow"]["id"] for line in seen["flows"]] == ["a"]
        assert seen["flows"][0]["counts"]["rx_bytes"] == 110
        assert (await live(process="nobody"))["rows"] == []
        for wrong in ({"group": "size"}, {"colour": "red"}, {"since": "x"}, {"expanded": "x"}, {"n": "x"}, {"by": "x"}):
            assert (await client.get("/live", params=wrong)).status_code == 400, wrong


async def test_machines_of_a_fleet_that_are_silent_are_named_in_every_view():
    monitor = FakeMonitor()
    async with served(monitor) as client:

        async def machines(where, **query):
            return (await client.get(where, params=query)).json().get("machines")

        assert await machines("/live") is None
        states = {"web1": HostState.SILENT, "db1": HostState.SILENT, "db2": HostState.PRESENT}
        monitor.deliver(*(HostUpdated(1.0, state, host=host) for host, state in states.items()))
        while await machines("/live") is None:
            await asyncio.sleep(0.002)
        known = {"known": 3, "silent": 2, "names": ["db1", "web1"]}
        assert await machines("/live", group="user") == await machines("/processes") == known


async def test_what_a_kernel_refuses_to_report_is_said_in_every_view():
    monitor = FakeMonitor()
    async with served(monitor) as client:

        async def refused(**query):
            return (await client.get("/live", params=query)).json().get("refused")

        assert await refused() is None
        monitor.deliver(ProviderRefused(1.0, Provider.UDP, 2, "no sock_diag"))
        while await refused() is None:
            await asyncio.sleep(0.002)
        assert await refused(group="user") == {"udp": "no sock_diag"}


async def test_the_page_is_given_the_events_that_it_does_not_know():
    monitor = FakeMonitor()
    async with served(monitor) as client:

        async def live(**query):
            return (await client.get("/live", params=query)).json()

        monitor.deliver(
            *(added(flow(str(number)), number, counts(1)) for number in range(300)), polled(300), lost(301, 2)
        )
        while (seen := await live())["seen"] < 302:
            await asyncio.sleep(0.002)
        assert len(seen["events"]) == 200
        assert seen["events"][-1]["event"] == "events_lost"
        assert seen["events"][-2]["flow"]["id"] == "299"
        assert (await live(since=302))["events"] == []
        monitor.deliver(removed(flow("5"), 302, counts(2)), removed(flow("6", Process(1, "x")), 302, counts(2)))
        while (seen := await live(since=302))["seen"] < 304:
            await asyncio.sleep(0.002)
        assert [(event["event"], event["flow"]["id"]) for event in seen["events"]] == [
            ("flow_removed", "5"),
            ("flow_removed", "6"),
        ]
        assert [event["flow"]["id"] for event in (await live(since=302, process="x"))["events"]] == ["6"]


async def test_the_number_of_views_is_limited_and_idle_ones_are_forgotten():
    monitor = FakeMonitor()
    async with served(monitor) as client:
        for number in range(16):
            assert (await client.get(f"/processes?pid={number}")).status_code == 200
        refused = await client.get("/processes?pid=16")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "15")
        assert (await client.get("/processes")).status_code == 200


async def test_slow_clients_hold_nobody_up():
    """Twenty that never read, while 4,500 events come: others are answered, and a quick one gets each event."""
    monitor = FakeMonitor()
    async with served(monitor, max_clients=64, max_pending=100) as client, contextlib.AsyncExitStack() as stack:
        port = client.base_url.port
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            stack.callback(writer.close)
            writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = await stack.enter_async_context(client.stream("GET", "/events"))
        quick = Events(response)
        await quick.named("hello")
        for _ in range(5):
            await client.get("/processes")  # let them begin
        for turn in range(15):
            monitor.deliver(*(updated(flow(str(number)), turn, counts(turn * 1000 + number)) for number in range(300)))
            assert (await client.get("/processes")).status_code == 200
            seen = [await quick.named("flow_updated") for _ in range(300)]
            assert [event["counts"]["rx_bytes"] for event in seen] == [turn * 1000 + number for number in range(300)]


async def test_how_much_the_flows_explain_is_in_the_page_and_in_the_metrics():
    monitor = FakeMonitor()
    async with served(monitor) as client:
        assert (await client.get("/live")).json()["shares"] is None
        names = [each.name for each in attrs.fields(Coverage)]
        monitor.figures = {f"coverage_{name}": 0 for name in names} | {
            "coverage_rx_bytes": 1000, "coverage_flow_rx_bytes": 900,
        }  # fmt: skip
        assert (await client.get("/live")).json()["shares"] == [0.9, None]
        assert "nstat_interface_receive_bytes_total 1000.0" in (await client.get("/metrics")).text
