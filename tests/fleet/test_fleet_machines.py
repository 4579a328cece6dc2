"""What a fleet's reader knows of machines: silence, clocks, and which flows are both ends of a connection."""

from __future__ import annotations

import attrs
import pytest
from fleet_world import WALL, Machine, Reader, Stream, lived, taken, truth

from nstat_async import (
    Endpoint,
    FlowAdded,
    FlowUpdated,
    HostState,
    HostUpdated,
    PollCompleted,
)
from nstat_async.fleet import Delivery
from nstat_async.fleet._incoming import Incoming

# --- silence ---------------------------------------------------------------------------------


def test_a_machine_that_vanishes_is_an_event_one_that_comes_back_another_and_its_flows_stay_meanwhile():
    stream = Stream()
    machine = lived(Machine("web"), stream, 5)
    reader = Reader().begin().read(stream.deliveries, now=100.0)
    flows = list(reader.core.flows())
    for now in (110.0, 129.0, 131.0, 132.0):
        reader.core.handle_deadline(now, WALL + now)
    reader.look()
    assert [event.state for event in reader.of(HostUpdated)] == [HostState.PRESENT, HostState.SILENT]
    assert list(reader.core.flows()) == flows
    lived(machine, stream, 1)
    reader.read(stream.deliveries[-1:], now=140.0)
    assert reader.of(HostUpdated)[-1].state is HostState.PRESENT
    assert reader.totals == truth(machine)
    assert not reader.losses


def test_who_joins_finds_a_machine_silent_whose_last_message_is_old_if_everything_was_read():
    stream = Stream()
    lived(Machine("web"), stream, 5)
    for now, state in ((129.0, HostState.PRESENT), (131.0, HostState.SILENT), (None, HostState.PRESENT)):
        core = Incoming()
        for delivery in stream.deliveries:
            core.receive(delivery, 100.0)
        core.begin(WALL, now)
        first, *_, last = taken(core)
        assert (first.state, last.complete) == (state, state is HostState.PRESENT)


def test_silence_says_nothing_while_the_stream_was_not_read_and_everything_when_the_server_is_gone():
    stream = Stream()
    lived(Machine("web"), stream, 5)
    reader = Reader().begin().read(stream.deliveries, now=100.0)
    reader.core.caught_up = False
    reader.core.handle_deadline(500.0, WALL)
    assert not taken(reader.core)
    reader.core.connection = "the server is gone"
    reader.core.handle_deadline(502.0, WALL)
    [event] = taken(reader.core)
    assert (event.state, event.detail) == (HostState.SILENT, "the server is gone")


def test_a_machine_is_forgotten_after_a_long_silence_and_no_memory_stays():
    stream = Stream()
    lived(Machine("web"), stream, 5)
    reader = Reader(forget=600.0).begin().read(stream.deliveries, now=0.0)
    for now in range(1, 700):
        reader.core.handle_deadline(float(now), WALL)
    reader.look()
    assert [event.state for event in reader.of(HostUpdated)] == [HostState.PRESENT, HostState.SILENT, HostState.LEFT]
    assert not list(reader.core.flows())
    assert not reader.core._views
    assert not reader.core._intake.flows._ends._keys


def test_a_machine_that_was_silent_for_long_before_somebody_joined_is_named_and_makes_the_look_incomplete():
    stream = Stream()
    lived(Machine("old"), stream, 1)
    reader = Reader()
    reader.core.remember(stream.deliveries[0], 0.0)
    reader.begin()
    assert [(event.host, event.state) for event in reader.of(HostUpdated)] == [("old", HostState.SILENT)]
    assert not reader.of(PollCompleted)[0].complete
    reader.core.handle_deadline(4000.0, WALL)
    assert [event.state for event in taken(reader.core)] == [HostState.LEFT]
    left = Reader()
    stopped = Stream()
    lived(Machine("old"), stopped, 1, stop=True)
    left.core.remember(stopped.deliveries[-1], 0.0)
    assert left.begin().of(PollCompleted)[0].complete


def test_what_ended_leaves_nothing_behind_but_a_bounded_memory_of_ends(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._peers._REMEMBERED", 20)
    stream, machine = Stream(), Machine("web")
    for _ in range(300):
        machine.time += 1
        machine.take([machine.begin(), *([machine.end(next(iter(machine.open)))] if len(machine.open) > 5 else [])])
        for message in machine.messages():
            stream.add(message, machine)
    reader = Reader().begin().read(stream.deliveries)
    view, ends = reader.core._views["web"], reader.core._intake.flows._ends
    assert len(view.flows) == len(machine.open) == len(view.read._flows) == len(machine.outgoing._flows)
    assert len(ends._keys) == len(machine.open)
    assert len(ends._ended) == 20


# --- clocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [-86_400.0, -30.0, 30.0, 1e9])
def test_a_clock_that_differs_is_shown_and_not_believed(clock):
    stream = Stream()
    machine = Machine("web")
    machine.clock = clock
    lived(machine, stream, 10)
    reader = Reader().begin().read(stream.deliveries)
    assert reader.of(HostUpdated)[0].clock_offset == pytest.approx(clock)
    times = [event.time for event in reader.of(FlowUpdated)]
    assert all(WALL <= time <= WALL + 15 for time in times)
    assert reader.totals == truth(machine)


def test_a_clock_that_is_set_meanwhile_is_reported_and_a_delayed_message_is_none():
    stream = Stream()
    machine = lived(Machine("web"), stream, 3)
    machine.step()
    [late] = machine.messages()
    stream.deliveries.append(
        Delivery(late.subject, late.data, len(stream.deliveries) + 1, WALL + machine.time + 25, machine.wall)
    )
    reader = Reader().begin().read(stream.deliveries)
    assert len(reader.of(HostUpdated)) == 1
    machine.clock = 100.0
    at = len(stream.deliveries)
    lived(machine, stream, 3)
    reader.read(stream.deliveries[at:])
    assert reader.of(HostUpdated)[-1].clock_offset == pytest.approx(100.0)


@pytest.mark.parametrize("time", [-1e300, 0.0, 1e300])
def test_a_time_that_cannot_be_is_near_that_of_its_message(time):
    stream, machine = Stream(), Machine("web")
    machine.take([attrs.evolve(machine.begin(), time=time)])
    for message in machine.messages():
        stream.add(message, machine)
    [event] = Reader().begin().read(stream.deliveries).of(FlowAdded)
    assert WALL - 8 * 86_400 < event.time < WALL + 10


# --- both ends -------------------------------------------------------------------------------


def test_both_ends_of_a_connection_know_each_other():
    stream, web, db = Stream(), Machine("web"), Machine("db")
    client, server = Endpoint.parse("192.0.2.1", 50_000), Endpoint.parse("::ffff:192.0.2.2", 5432)
    web.take([web.begin(rx=5, local=client, remote=Endpoint.parse("192.0.2.2", 5432))])
    db.take([db.begin(rx=7, local=server, remote=Endpoint.parse("::ffff:192.0.2.1", 50_000))])
    for machine in (web, db):
        for message in machine.messages():
            stream.add(message, machine)
    reader = Reader().begin().read(stream.deliveries)
    peers = {flow.host: flow.peer for flow, _ in reader.core.flows()}
    assert (peers["web"].host, peers["web"].process.name) == ("db", "p100")
    assert (peers["db"].host, peers["db"].flow) == ("web", "web/00000000/c0")
    # The end that was there first hears of the other by an update that adds nothing.
    [update] = reader.of(FlowUpdated)
    assert update.flow.host == "web"
    assert update.delta.rx_bytes == 0
    assert reader.totals == truth(web, db)


def test_an_end_that_was_over_before_the_other_was_reported_is_still_its_peer_and_of_one_flow_only():
    stream, web, db = Stream(), Machine("web"), Machine("db")
    client, server = Endpoint.parse("192.0.2.1", 50_000), Endpoint.parse("192.0.2.2", 5432)
    web.take([web.begin(rx=5, local=client, remote=server), web.end("c0")])
    db.take([db.begin(local=server, remote=client), db.end("c0"), db.begin(local=server, remote=client)])
    for machine in (web, db):
        for message in machine.messages():
            stream.add(message, machine)
    reader = Reader().begin().read(stream.deliveries)
    added = [event.flow.peer for event in reader.of(FlowAdded) if event.flow.host == "db"]
    assert (added[0].host, added[0].process.name, added[1]) == ("web", "p100", None)


def test_where_two_flows_could_be_the_other_end_none_is_taken():
    stream, web, one, other = Stream(), Machine("web"), Machine("one"), Machine("other")
    client, server = Endpoint.parse("172.17.0.2", 50_000), Endpoint.parse("172.17.0.3", 80)
    for machine, here, there in ((one, server, client), (other, server, client), (web, client, server)):
        machine.take([machine.begin(local=here, remote=there)])
        for message in machine.messages():
            stream.add(message, machine)
    reader = Reader().begin().read(stream.deliveries)
    assert {flow.host: flow.peer for flow, _ in reader.core.flows()} == {"one": None, "other": None, "web": None}


def test_the_same_loopback_addresses_on_two_machines_are_no_connection():
    stream, web, db = Stream(), Machine("web"), Machine("db")
    one, other = Endpoint.parse("127.0.0.1", 50_000), Endpoint.parse("127.0.0.1", 80)
    web.take([web.begin(local=one, remote=other)])
    db.take([db.begin(local=other, remote=one)])
    for machine in (web, db):
        for message in machine.messages():
            stream.add(message, machine)
    reader = Reader().begin().read(stream.deliveries)
    assert [flow.peer for flow, _ in reader.core.flows()] == [None, None]
