"""A machine's name where flows and events have one: filters, groups, tables, the buffer, lines."""

from __future__ import annotations

import time
from datetime import datetime

import anyio
import attrs
import pytest
from aggregate_events import CURL, added, counts, flow, updated

from nstat_async import (
    BackendUnavailableError,
    EventsLost,
    Flow,
    HostState,
    HostUpdated,
    LossCause,
    Monitor,
    Peer,
    PollCompleted,
    Process,
    Provider,
    UsageError,
    filters,
    json,
)
from nstat_async._buffer import MERGEABLE_LOSSES, EventBuffer
from nstat_async._cli._arguments import build_parser
from nstat_async._cli._source import backend_of
from nstat_async._cli._text import TextFormatter
from nstat_async._cli._top._layout import Layout
from nstat_async._cli._top._model import FlowLine, TopModel
from nstat_async._cli._views import View
from nstat_async._options import Overflow
from nstat_async.aggregate import GroupBy, ProcessTable, TrafficTable
from nstat_async.backends import Fleet

WEB, DB = flow("web/1", host="web"), flow("db/1", host="db")


def fed(table):
    for each, total in ((WEB, 1000), (DB, 500)):
        table.feed(added(each, 1.0, counts(0)))
        table.feed(updated(each, 2.0, counts(total)))
    return table


def test_equal_process_ids_of_two_machines_are_two_rows_and_each_names_its_machine():
    rows = fed(ProcessTable()).rows()
    assert [(row.source, row.rx_bytes, View().label(row)) for row in rows] == [
        ("web", 1000, "curl @web"),
        ("db", 500, "curl @db"),
    ]


def test_by_name_the_rows_are_over_all_machines_and_by_host_there_is_one_for_each():
    assert [row.rx_bytes for row in fed(TrafficTable(GroupBy.process_name())).rows()] == [1500]
    assert {row.key: row.rx_bytes for row in fed(TrafficTable(GroupBy.host())).rows()} == {"web": 1000, "db": 500}


def test_top_shows_the_flows_of_the_expanded_machine_s_process_only():
    model = TopModel(View())
    for each in (WEB, DB):
        model.feed([added(each, 1.0, counts(0)), updated(each, 2.0, counts(500))])
    model.look()
    model.toggle(next(row.serial for row in model.table.rows() if row.source == "db"))
    assert [line.flow.id for line in model.lines if isinstance(line, FlowLine)] == ["db/1"]


def test_top_names_the_other_end_of_a_flow_where_there_is_room():
    peered = attrs.evolve(WEB, peer=Peer("db", Process(7, "postgres"), "db/1"))
    layout = Layout(200)
    assert layout._ends(peered, 100).endswith("198.51.100.7:443 postgres @db")
    assert layout._ends(peered, 34).endswith(":443")


def test_a_filter_by_host_is_a_function_a_key_and_refuses_nonsense():
    assert filters.by_host("web")(WEB)
    assert not filters.by_host("web")(DB)
    assert filters.parse("host=db,other")(DB)
    assert filters.parse("~host=web")(DB)
    with pytest.raises(UsageError, match="machine of the fleet"):
        filters.by_host("")


def test_of_each_machine_the_newest_poll_and_the_newest_state_wait():
    buffer = EventBuffer(100, Overflow.COALESCE)
    for number in range(3):
        for host in ("a", "b", None):
            buffer.extend([PollCompleted(float(number), number, complete=True, host=host)])
        buffer.extend([HostUpdated(float(number), HostState.PRESENT, host="a")])
    events = buffer.pop_all()
    assert [(type(event).__name__, event.host, event.time) for event in events] == [
        ("HostUpdated", "a", 2.0),
        ("PollCompleted", "a", 2.0),
        ("PollCompleted", "b", 2.0),
        ("PollCompleted", None, 2.0),
    ]


def test_losses_of_two_machines_are_never_one_event():
    buffer = EventBuffer(10_000, Overflow.COALESCE)
    for number in range(MERGEABLE_LOSSES + 20):
        buffer.extend([EventsLost(float(number), LossCause.TRANSPORT, 1, host="ab"[number % 2])])
    lost = {"a": 0, "b": 0}
    for event in buffer.pop_all():
        lost[event.host] += event.count
    assert lost == {"a": MERGEABLE_LOSSES // 2 + 10, "b": MERGEABLE_LOSSES // 2 + 10}


def test_lines_say_the_machine_and_the_peer():
    peered = attrs.evolve(WEB, peer=Peer("db", Process(7, "postgres"), "db/1"))
    line = TextFormatter()(added(peered, 1.0))
    assert "host:web" in line
    assert "peer:db pid:7 (postgres)" in line
    event = HostUpdated(1.0, HostState.SILENT, host="web", labels=(("rack", "1\x1b"),), clock_offset=-30.0)
    assert "machine is silent  rack=1\\x1b  its clock is 30.0 s behind" in (line := TextFormatter(utc=True)(event))
    assert line.endswith("host:web")
    lost = EventsLost(1.0, LossCause.TRANSPORT, 3, host="web")
    assert TextFormatter(utc=True)(lost).endswith("host:web")
    assert json.loads(json.dumps(lost)) == lost
    assert WEB.process == CURL


def test_a_machine_that_stops_has_left():
    event = HostUpdated(1.0, HostState.LEFT, host="web", detail="it said that it stops")
    assert "machine has left  it said that it stops" in TextFormatter(utc=True)(event)


def test_in_a_narrow_top_the_machine_stays_readable():
    model = TopModel(View())
    for host in ("web", "db"):
        model.feed(
            [added(flow(f"{host}/1", process=Process(7, "a-program-with-a-long-name"), host=host), 1.0, counts(0))]
        )
    model.look()
    layout = Layout(80, model.view)
    texts = ["".join(text for text, _ in layout.cells(line, None)) for line in model.lines]
    assert ["@web " in text for text in texts].count(True) == 1
    assert ["@db " in text for text in texts].count(True) == 1


def test_a_server_that_is_not_there_is_said_in_the_words_of_the_system():
    pytest.importorskip("nats")

    async def main():
        async with Monitor(backend=Fleet("nats://127.0.0.1:1")) as monitor:
            await anext(monitor)

    with pytest.raises(BackendUnavailableError, match=r"nats://127\.0\.0\.1:1: Connection refused") as caught:
        anyio.run(main)
    assert "Errno" not in str(caught.value)


def test_a_machine_s_own_lines_are_as_they_were():
    line = json.dumps(added(Flow("1", Provider.TCP), 1.0))
    assert "host" not in line
    assert "peer" not in line
    assert "host" not in json.dumps(PollCompleted(1.0, 1, complete=True))


def test_on_trio_both_ways_say_that_they_need_asyncio(tmp_path):
    pytest.importorskip("nats")
    from nstat_async.integrations.nats import publish

    async def subscribe():
        await Monitor(backend=Fleet("nats://127.0.0.1:1")).start()

    async def send():
        async with Monitor(backend="emulated") as monitor:
            await publish(monitor, "nats://127.0.0.1:1")

    for work in (subscribe, send):
        with pytest.raises(UsageError, match="asyncio"):
            anyio.run(work, backend="trio")


def test_a_fleet_s_past_is_asked_for_by_a_while_or_a_time_and_others_have_none(capsys):
    def backend(*words):
        return backend_of(build_parser().parse_args(["watch", *words]))

    now = time.time()
    assert backend("--backend", "fleet:nats://x").since is None
    assert now - 7300 < backend("--backend", "fleet:nats://x", "--since", "2h").since <= time.time() - 7200
    moment = backend("--backend", "fleet:nats://x", "--since", "2026-11-25T08:00").since
    assert moment == datetime(2026, 11, 25, 8).timestamp()
    with pytest.raises(UsageError, match="no past"):
        backend("--backend", "emulated", "--since", "1h")
    for wrong in ("", "h", "5", "soon", "1y"):
        with pytest.raises(SystemExit):
            backend("--since", wrong)
        assert "24h" in capsys.readouterr().err
