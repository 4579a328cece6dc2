"""A fleet over a real NATS server: what it shows, and what it says when something breaks."""

from __future__ import annotations

import asyncio
import math
import re
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import anyio
import pytest
from fleet_living import BINARY, PATIENCE, Machine, Proxy, Server, SmallDisk, Watcher, needs_mounts, truth

from nstat_async import (
    BackendUnavailableError,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    Monitor,
    PollCompleted,
    ProtocolError,
    UnavailableReason,
    UsageError,
    json,
    snapshot,
)
from nstat_async.aggregate import ProcessTable
from nstat_async.backends import Fleet, NatsAccess, StreamSettings

nats = pytest.importorskip("nstat_async.integrations.nats", exc_type=ImportError)
Publisher, publish = nats.Publisher, nats.publish
pytestmark = [pytest.mark.nats, pytest.mark.skipif(BINARY is None, reason="nats-server is not installed")]
SMALL = StreamSettings(max_bytes=64 << 20)


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path) as started:
        yield started


def fleet(url, **options):
    return Monitor(backend=Fleet(url, stream=SMALL, **options))


async def eventually(condition):
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)


@pytest.mark.asyncio
async def test_two_machines_are_one_stream_and_totals_by_process_and_machine_are_exact(server):
    async with Machine("web", server.url) as web, Machine("db", server.url) as db, fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        for machine, pid in ((web, 501), (db, 501), (db, 77)):
            machine.open(pid)
        for _ in range(5):
            web.move(1000, 1)
            db.move(50_000, 3)
            await anyio.sleep(0.05)
        for machine in (web, db):
            machine.close()
        await watcher.until(watcher.ended(3))
    assert watcher.totals == truth(web, db)
    assert not watcher.of(EventsLost)
    assert {event.host for event in watcher.of(HostUpdated, state=HostState.PRESENT)} == {"web", "db"}


@pytest.mark.asyncio
async def test_a_snapshot_of_a_fleet_has_the_flows_of_all_machines(server):
    async with Machine("web", server.url) as web, Machine("db", server.url) as db:
        for machine in (web, db):
            machine.open()
            machine.move(7, 7)
            counts = machine.publisher.statistics
            await eventually(lambda counts=counts: counts()["events"] >= 2)
        flows = await snapshot(backend=Fleet(server.url, stream=SMALL))
        only = await snapshot(backend=Fleet(server.url, stream=SMALL, hosts="db"))
    assert sorted(flow.host for flow, _ in flows) == ["db", "web"]
    assert [flow.host for flow, _ in only] == ["db"]


@pytest.mark.asyncio
async def test_a_consumer_that_comes_late_hears_of_each_machine_before_its_flows(server):
    async with Machine("web", server.url, labels={"rack": "7"}) as web, fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        await watcher.until(lambda: watcher.of(FlowAdded))
        first, second = await monitor.subscribe().receive_many()
    assert (first.host, first.state, first.labels) == ("web", HostState.PRESENT, (("rack", "7"),))
    assert (second.flow.host, second.preexisting) == ("web", True)


@pytest.mark.asyncio
async def test_an_empty_stream_is_an_empty_fleet_and_its_look_is_complete(server):
    async with fleet(server.url) as monitor:
        first = await monitor.__anext__()
    assert isinstance(first, PollCompleted)
    assert (first.flows, first.complete, first.host) == (0, True, None)


@pytest.mark.asyncio
async def test_a_connection_that_is_lost_while_the_beginning_is_looked_up_changes_nothing_of_the_beginning(
    server, monkeypatch
):
    """From its first message on the stream would tell what is long over, and take an old run for the newest."""
    from nstat_async._io import fleet as feeds
    from nstat_async._io.nats import LostError

    for _ in range(2):
        async with Machine("web", server.url) as web:
            counts = web.publisher.statistics
            await eventually(lambda counts=counts: counts()["messages"] >= 1)
    monkeypatch.setattr(feeds, "STATE_AGE", 0.0)  # all that is there is old
    monkeypatch.setattr(feeds, "_RETRY_SECONDS", 0.0)
    look_up, lost = feeds.FleetFeed._last_states, []

    async def lose_once(feed, connection):
        found = await look_up(feed, connection)
        if not lost:
            lost.append(found)
            raise LostError("as if the connection were lost")
        return found

    monkeypatch.setattr(feeds.FleetFeed, "_last_states", lose_once)
    async with fleet(server.url) as monitor:
        assert isinstance(await monitor.__anext__(), PollCompleted)
        assert monitor.statistics().feed["reconnections"] == 1
        assert monitor.statistics().feed["messages"] == 0


@pytest.mark.asyncio
async def test_yesterday_is_played_from_the_stream_and_ends_where_it_is_to_end(server):
    async with Machine("web", server.url) as web:
        web.open()
        web.move()
        await eventually(lambda: web.publisher.statistics()["events"] >= 2)
        web.close()
        await eventually(lambda: web.publisher.statistics()["events"] >= 3)
    async with fleet(server.url, since=0, until=4e9) as monitor:
        events = []
        with anyio.move_on_after(PATIENCE):
            async for event in monitor:
                events.append(event)
                if isinstance(event, HostUpdated) and event.state is HostState.LEFT:
                    break
    assert [event.final for event in events if isinstance(event, FlowRemoved)] == [True]
    async with fleet(server.url, since=0, until=1) as monitor:
        assert [event.complete async for event in monitor if isinstance(event, PollCompleted)] == [True]


@pytest.mark.asyncio
async def test_only_machines_and_kinds_that_are_asked_for_are_seen_and_silent_ones_hold_nothing_up(server):
    async with Machine("web", server.url) as web:
        web.open()
        web.kernel.open_udp(7, "named", remote=("198.51.100.7", 53))
        await eventually(lambda: web.publisher.statistics()["events"] >= 3)
        async with Monitor(backend=Fleet(server.url, hosts="nobody", stream=SMALL)) as monitor:
            assert isinstance(await monitor.__anext__(), PollCompleted)
        async with Monitor(backend=Fleet(server.url, stream=SMALL), providers="udp") as monitor:
            assert [flow.provider.value for flow, _ in monitor.flows] == ["udp"]
            events = await monitor.subscribe().receive_many()
            assert [event.flow.provider.value for event in events if isinstance(event, FlowAdded)] == ["udp"]


@pytest.mark.asyncio
async def test_a_server_that_takes_small_messages_only_gets_small_ones(tmp_path):
    with Server(tmp_path, config="max_payload: 16384") as server:
        async with Machine("web", server.url) as web, fleet(server.url) as monitor:
            watcher = Watcher(monitor, ProcessTable())
            for _ in range(200):
                web.open()
            web.move()
            web.close()
            await watcher.until(watcher.ended(200))
        assert watcher.totals == truth(web)
        assert not watcher.of(EventsLost)


@pytest.mark.asyncio
async def test_with_strict_what_cannot_be_read_ends_the_monitor(server):
    from nats.aio.client import Client

    async with Machine("web", server.url), Monitor(backend=Fleet(server.url, stream=SMALL), strict=True) as monitor:
        client = Client()
        await client.connect(server.url)
        await client.jetstream().publish("nstat.evil.events", b"what?")
        await client.close()
        with pytest.raises(ProtocolError, match="evil"), anyio.fail_after(PATIENCE):
            async for _ in monitor:
                pass


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_server_that_is_killed_and_comes_back_costs_nothing(server):
    async with Machine("web", server.url) as web, fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        web.move()
        await watcher.until(lambda: watcher.totals)
        server.kill()
        for _ in range(5):
            web.move()
            await anyio.sleep(0.1)
        server.start()
        web.move()
        web.close()
        await watcher.until(watcher.ended(1))
    assert watcher.totals == truth(web)
    assert not watcher.of(EventsLost)
    assert web.publisher.statistics()["connections"] == 2


@pytest.mark.asyncio
async def test_a_connection_that_ended_without_a_word_is_noticed_all_the_same(server):
    async with Machine("web", server.url) as web, fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        web.move()
        await watcher.until(lambda: watcher.totals)
        client = web.publisher._sender._connection.client
        client._closed_cb = client._disconnected_cb = None
        server.kill()
        server.start()
        web.move()
        web.close()
        await watcher.until(watcher.ended(1))
    assert watcher.totals == truth(web)


@pytest.mark.asyncio
async def test_hosts_are_silent_while_the_server_is_gone_and_the_reason_is_said(server):
    async with Machine("web", server.url) as web, fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        await watcher.until(lambda: watcher.of(FlowAdded))
        server.kill()
        await watcher.until(lambda: watcher.of(HostUpdated, state=HostState.SILENT))
        assert "127.0.0.1" in watcher.of(HostUpdated, state=HostState.SILENT)[0].detail
        assert len(monitor.flows) == 1
        server.start()
        await watcher.until(lambda: watcher.events[-1:] and watcher.of(HostUpdated)[-1].state is HostState.PRESENT)
    assert not watcher.of(EventsLost)


@pytest.mark.asyncio
async def test_a_publisher_that_is_killed_is_silent_and_its_next_run_is_a_new_beginning_that_is_said(server):
    async with fleet(server.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web = Machine("web", server.url)
        await web.__aenter__()
        web.open()
        web.move()
        await watcher.until(lambda: watcher.totals)
        await web.kill()
        await watcher.until(lambda: watcher.of(HostUpdated, state=HostState.SILENT))
        web.publisher = Publisher(server.url, host="web", linger=0.02, heartbeat=0.5, stream=SMALL)
        web.move()
        async with web:
            web.move()
            web.close()
            await watcher.until(watcher.ended(1))
    [loss] = watcher.of(EventsLost)
    assert (loss.cause, loss.host) == (LossCause.RESYNC, "web")
    assert 0 < sum(watcher.totals.values()) <= sum(truth(web).values())


@pytest.mark.asyncio
async def test_who_joins_is_told_at_once_that_a_machine_fell_silent_before(server):
    web = Machine("web", server.url, heartbeat=0.1)
    await web.__aenter__()
    web.open()
    await eventually(lambda: web.publisher.statistics()["events"] >= 1)
    await web.kill()
    states, complete = [], True
    with anyio.fail_after(PATIENCE):
        while complete:  # it is not silent yet
            async with fleet(server.url) as monitor:
                states = []
                async for event in monitor:
                    if isinstance(event, HostUpdated):
                        states.append(event.state)
                    elif isinstance(event, PollCompleted):
                        complete = event.complete
                        break
    assert states == [HostState.SILENT]


@pytest.mark.asyncio
async def test_a_subscriber_that_begins_anew_gets_a_snapshot_and_goes_on(server):
    async with Machine("web", server.url) as web:
        web.open()
        web.move()
        async with fleet(server.url) as first:
            watcher = Watcher(first, ProcessTable())
            await watcher.until(lambda: any(counts for _, counts in first.flows))
        web.move()
        async with fleet(server.url) as second:
            watcher = Watcher(second, ProcessTable(include_history=True))
            web.move()
            web.close()
            await watcher.until(watcher.ended(1))
    assert watcher.totals == truth(web)
    assert watcher.of(FlowAdded)[0].preexisting


@pytest.mark.asyncio
async def test_a_subscriber_that_is_killed_and_goes_on_where_it_was_has_everything_and_nothing_twice(server, tmp_path):
    written = tmp_path / "flows.jsonl"

    async def watch(*more):
        words = [sys.executable, "-m", "nstat_async", "watch", "--json", "--backend", f"fleet:{server.url}", *more]
        with written.open("ab") as out:
            return await asyncio.create_subprocess_exec(*words, stdout=out)

    def events():
        *whole, _ = written.read_text().split("\n")
        return [json.loads(line) for line in whole if line.endswith("}")]

    def ended():
        return {event.flow.id for event in events() if isinstance(event, FlowRemoved) and event.final}

    async with Machine("web", server.url) as web:
        for pid in (501, 502):
            web.open(pid)
        first = await watch()
        await eventually(lambda: any(isinstance(event, FlowAdded) for event in events()))
        web.move()
        await eventually(lambda: any(isinstance(event, FlowUpdated) for event in events()))
        first.kill()  # kill -9
        await first.wait()
        read = events()
        with written.open("ab") as out:  # half a line, as a crash leaves one
            out.write(b"\n")
        web.open(503)
        web.move()
        web.close()
        await eventually(lambda: not web.monitor.flows)
        web.open(504)
        web.move()
        second = await watch("--since", datetime.fromtimestamp(read[-1].time).isoformat())
        await eventually(lambda: len(ended()) == 3)
        web.close()
        await eventually(lambda: len(ended()) == 4)
        second.terminate()
        await second.wait()
    last = {event.flow.id: event for event in events() if isinstance(event, (FlowUpdated, FlowRemoved))}
    totals = Counter()
    for event in last.values():
        totals["web", event.flow.process.pid] += event.counts.rx_bytes + event.counts.tx_bytes
    assert totals == truth(web)
    assert not [event for event in events() if isinstance(event, EventsLost)]


@pytest.mark.asyncio
async def test_a_partition_costs_nothing_and_is_over_when_the_network_is_back(server):
    async with (
        Proxy(server.port) as publishing,
        Proxy(server.port) as reading,
        Machine("web", publishing.url) as web,
        fleet(reading.url) as monitor,
    ):
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        web.move()
        await watcher.until(lambda: watcher.totals)
        for proxy in (publishing, reading):
            proxy.stall()
        for _ in range(10):
            web.move()
            await anyio.sleep(0.2)
        await watcher.until(lambda: watcher.of(HostUpdated, state=HostState.SILENT))
        publishing.flow()
        await anyio.sleep(0.5)
        reading.flow()
        web.move()
        web.close()
        await watcher.until(watcher.ended(1))
    assert watcher.totals == truth(web)
    assert not watcher.of(EventsLost)


@pytest.mark.asyncio
async def test_what_the_stream_dropped_before_it_was_read_is_a_loss_of_that_machine(server):
    from nats.aio.client import Client

    async with Proxy(server.port) as reading, Machine("web", server.url) as web, fleet(reading.url) as monitor:
        watcher = Watcher(monitor, ProcessTable())
        web.open()
        web.move()
        await watcher.until(lambda: watcher.totals)
        reading.cut()
        before = web.publisher.statistics()["messages"]
        web.move()
        await eventually(lambda: web.publisher.statistics()["messages"] > before + 2)
        client = Client()
        await client.connect(server.url)
        await client.jetstream().purge_stream("NSTAT")
        await client.close()
        reading.flow()
        web.close()
        await watcher.until(watcher.ended(1))
    assert {(loss.cause, loss.host) for loss in watcher.of(EventsLost)} == {(LossCause.TRANSPORT, "web")}
    assert watcher.totals == truth(web)  # counters are totals: only what came and went meanwhile is unknown


@pytest.mark.privileged
@needs_mounts
@pytest.mark.asyncio
async def test_a_full_disk_of_the_server_costs_resolution_and_no_byte(tmp_path):
    disk = SmallDisk(tmp_path, "8m")
    try:
        with Server(tmp_path, store=disk.place / "js", inside=disk.inside) as server:
            said = []
            small = StreamSettings(max_bytes=4 << 20)
            machine = Machine("web", server.url, report=said.append, stream=small)
            reader = Monitor(backend=Fleet(server.url, stream=small))
            async with machine as web, reader as monitor:
                watcher = Watcher(monitor, ProcessTable())
                web.open()
                web.move()
                await watcher.until(lambda: watcher.totals)
                disk.fill()
                # What fits into the last block may still be taken: there are enough messages for that to end.
                with anyio.fail_after(PATIENCE):
                    while not web.publisher.statistics()["retries"]:
                        for _ in range(20):
                            web.open()
                        web.move()
                        await anyio.sleep(0.1)
                web.move()
                disk.empty()
                server.kill()  # a server whose disk was full keeps no stream until it begins anew
                server.start()
                web.move()
                flows = len(web.flows)
                web.close()
                await watcher.until(lambda: watcher.ended(flows)() or watcher.of(EventsLost))
        # What the server had acknowledged and could not keep is said; where nothing is said nothing is missing.
        assert watcher.of(EventsLost) or watcher.totals == truth(web)
        assert any("not published" in line for line in said)
    finally:
        disk.close()


# --- being let in -----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_an_error_that_says_where_and_never_a_password():
    async with fleet("nats://user:s3cret@127.0.0.1:1") as monitor:
        with pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1:1\b") as caught:
            await monitor.__anext__()
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(NatsAccess(password="s3cret", token="s3cret"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "INFO"),
        (b"INFO []\r\n", "not a NATS server"),
        (b"INFO {}\r\n+ERR", "127.0.0.1|connection"),
    ],
)
@pytest.mark.asyncio
async def test_something_else_at_the_port_is_an_error_for_the_reader_and_a_reason_to_wait_for_the_publisher(
    words, says
):
    async def answer(_, writer):
        writer.write(words)
        await writer.drain()
        writer.close()

    said = []
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        url = f"nats://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        async with Machine("web", url, report=said.append) as web:
            await eventually(lambda: said)
            assert not web._task.done()
        async with fleet(url) as monitor:
            with pytest.raises(BackendUnavailableError, match=says):
                await monitor.__anext__()
    assert re.search(says, said[0])


@pytest.mark.asyncio
async def test_a_wrong_token_is_an_error_at_the_first_connection_and_the_right_one_lets_in(tmp_path):
    with Server(tmp_path, config='authorization { token: "s3cret" }') as server:
        for access in (NatsAccess(), NatsAccess(token="wrong")):
            async with Machine("web", server.url, access=access) as web:
                with pytest.raises(BackendUnavailableError) as caught:
                    await asyncio.wait_for(web._task, PATIENCE)
                assert caught.value.reason is UnavailableReason.PERMISSION
        right = NatsAccess(token="s3cret")
        async with Machine("web", server.url, access=right) as web, fleet(server.url, access=right) as monitor:
            watcher = Watcher(monitor, ProcessTable())
            web.open()
            await watcher.until(lambda: watcher.of(FlowAdded))


@pytest.mark.asyncio
async def test_a_publisher_waits_for_a_server_that_is_absent_and_loses_nothing(tmp_path):
    server = Server(tmp_path)
    said = []
    async with Machine("web", server.url, report=said.append) as web:
        web.open()
        web.move()
        web.close()
        await eventually(lambda: said)
        with server:
            async with Monitor(backend=Fleet(server.url, stream=SMALL, since=0)) as monitor:
                watcher = Watcher(monitor, ProcessTable())
                await watcher.until(watcher.ended(1))
    assert watcher.totals == truth(web)
    assert "127.0.0.1" in said[0]


@pytest.mark.asyncio
async def test_a_stream_that_is_for_something_else_is_an_error_that_names_it_and_no_fleet_without_machines(server):
    from nats.aio.client import Client

    said, client = [], Client()
    await client.connect(server.url)
    await client.jetstream().add_stream(name="NSTAT", subjects=["orders.*"])
    await client.close()
    async with Machine("web", server.url, report=said.append):
        await eventually(lambda: any("orders.*" in line for line in said))
    async with fleet(server.url) as monitor:
        with pytest.raises(BackendUnavailableError, match=r"NSTAT has the subjects orders\.\*, not nstat"):
            await monitor.__anext__()


@pytest.mark.asyncio
async def test_a_consumer_that_reads_slowly_and_holds_the_feed_up_gets_everything(server):
    monitor = Monitor(backend=Fleet(server.url, stream=SMALL), overflow="block", max_pending=2)
    async with Machine("web", server.url) as web, monitor:
        for _ in range(20):
            web.open()
        web.move()
        await eventually(lambda: web.publisher.statistics()["events"] >= 40)
        await anyio.sleep(1.2)  # both the reading and the look for silent machines wait for room
        watcher = Watcher(monitor, ProcessTable())
        web.close()
        await watcher.until(watcher.ended(20))
    assert watcher.totals == truth(web)


@pytest.mark.asyncio
async def test_a_server_without_jetstream_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("nstat_async._io.fleet._JOIN_SECONDS", 1.0)
    server, said = Server(tmp_path), []
    server.config.write_text(f"host: 127.0.0.1\nport: {server.port}\n")
    with server:
        async with Machine("web", server.url, report=said.append):
            await eventually(lambda: any("without -js" in line for line in said))
        async with fleet(server.url) as monitor:
            with pytest.raises(BackendUnavailableError, match="without -js"):
                await monitor.__anext__()


@pytest.mark.asyncio
async def test_a_recording_is_published_whole(server):
    recording = Path(__file__).parents[2] / "examples" / "recordings" / "web-session.jsonl"
    right = ProcessTable()
    async with Monitor(backend=f"replay:{recording}") as replay:
        async for event in replay:
            right.feed(event)
    async with Monitor(backend=f"replay:{recording}") as replay, fleet(server.url) as monitor:
        table = Watcher(monitor, ProcessTable())
        await publish(replay, server.url, host="tape", stream=SMALL)
        await table.until(lambda: table.of(HostUpdated, state=HostState.LEFT))
    assert {(row.pid, row.bytes) for row in table.table.rows()} == {(row.pid, row.bytes) for row in right.rows()}
    assert not table.of(EventsLost)


# --- usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fleet(""), "URL"),
        (lambda: Fleet([]), "URL"),
        (lambda: Fleet(7), "URL"),
        (lambda: Fleet("http://x"), "URL"),
        (lambda: Fleet("nats://"), "URL"),
        (lambda: Fleet("nats://x:99999"), "URL"),
        (lambda: Fleet("nats://x:0"), "port 0"),
        (lambda: Fleet(["nats://a", "nats://b c"]), "'nats://b c'.*' '"),
        (lambda: Fleet("nats://x\n:4222"), r"'nats://x\\n:4222'.*'\\n'"),
        (lambda: Publisher("nats://x\t", host="a"), r"'\\t'"),
        (lambda: Fleet("nats://ä"), "'ä'"),
        (lambda: Fleet("nats://me:p4ss/word@x"), "^(?!.*p4ss)servers: 'nats://x' is.*%2F"),
        (lambda: Fleet("nats://x/stream"), "nothing may follow the port"),
        (lambda: Fleet("nats://a,,b"), "URL"),
        (lambda: Fleet("nats://x", hosts=[]), "at least one"),
        (lambda: Fleet("nats://x", hosts="a.b"), "such as 'web1'"),
        (lambda: Fleet("nats://x", since="yesterday"), "datetime"),
        (lambda: Fleet("nats://x", since=math.nan), "datetime"),
        (lambda: Fleet("nats://x", since=1e12), "1970 to 9999"),
        (lambda: Fleet("nats://x", until=datetime(1, 1, 2, tzinfo=timezone.utc)), "1970 to 9999"),
        (lambda: Fleet("nats://x", since=10, until=5), "^until: 5.0 is before since"),
        (lambda: Fleet("nats://x", forget=0), "forget"),
        (lambda: Publisher("nats://x", host="a b"), "such as 'web1'"),
        (lambda: Publisher("nats://x", host="a", labels={"a": 1}), "labels"),
        (lambda: Publisher("nats://x", host="a", labels={"a": "b" * 3000}), "labels"),
        (lambda: StreamSettings(name="a.b"), "name"),
        (lambda: StreamSettings(prefix="*"), "prefix"),
        (lambda: StreamSettings(max_age=0), "max_age"),
        (lambda: StreamSettings(max_bytes=1.5), "max_bytes"),
        (lambda: Publisher("nats://x", host="a", heartbeat=0.1), "heartbeat"),
        (lambda: NatsAccess(credentials="/nowhere").arguments(), "/nowhere"),
        (lambda: NatsAccess(credentials="/dev/null").arguments(), "/dev/null: not a regular file"),
        (lambda: NatsAccess(ca=__file__).arguments(), "ca"),
        (lambda: NatsAccess(user="me").arguments(), "password"),
    ],
)
@pytest.mark.asyncio
async def test_what_cannot_work_is_refused_where_it_is_said(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.asyncio
async def test_a_fleet_is_neither_recorded_nor_published_once_more(server, tmp_path):
    with pytest.raises(UsageError, match="its stream keeps the past"):
        await Monitor(backend=Fleet(server.url), record_to=tmp_path / "x").start()
    async with fleet(server.url) as monitor:
        with pytest.raises(UsageError, match="published again"):
            await publish(monitor, server.url)


def test_on_uvloop_it_is_the_same(tmp_path):
    pytest.importorskip("uvloop")

    async def run():
        async with Machine("web", server.url) as web, fleet(server.url) as monitor:
            watcher = Watcher(monitor, ProcessTable())
            web.open()
            web.move()
            web.close()
            await watcher.until(watcher.ended(1))
            return watcher.totals == truth(web)

    with Server(tmp_path) as server:
        assert anyio.run(run, backend_options={"use_uvloop": True})
