"""The two halves of a fleet without I/O: what one publishes is what the other shows, whatever happens in between."""

from __future__ import annotations

import json as standard
import zlib

import attrs
import pytest
from fleet_world import WALL, Machine, Reader, Stream, taken, truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import (
    Endpoint,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    Peer,
    PollCompleted,
    RemovalReason,
    UsageError,
    json,
)
from nstat_async.fleet import Delivery, Facts, Header, Outgoing, encode
from nstat_async.fleet._incoming import Incoming
from nstat_async.fleet._intake import SLICE
from nstat_async.fleet._messages import MOST_LINES


def lived(machine, stream, seconds=30, *, stop=False):
    """Let a machine live and publish each second."""
    for _ in range(seconds):
        machine.step()
        for message in machine.messages():
            stream.add(message, machine)
    if stop:
        for message in machine.messages(stop=True):
            stream.add(message, machine)
    return machine


def test_totals_by_machine_and_process_are_the_truth_to_the_byte():
    stream = Stream()
    machines = [lived(Machine(name), stream) for name in ("web", "db")]
    reader = Reader().begin().read(stream.deliveries)
    assert reader.totals == truth(*machines)
    assert not reader.losses


def test_what_comes_twice_counts_once_and_changes_nothing():
    stream = Stream()
    machine = lived(Machine("web"), stream)
    twice = [delivery for delivery in stream.deliveries for _ in range(2)]
    once, doubled = Reader().begin().read(stream.deliveries), Reader().begin().read(twice + twice)
    assert doubled.events == once.events
    assert doubled.totals == truth(machine)
    assert doubled.core.statistics()["duplicate_messages"] > 0


def test_who_joins_late_gets_a_snapshot_first_and_then_the_stream():
    stream = Stream()
    machine = lived(Machine("web"), stream)
    before, open_now = dict(machine.truth), {f"web/{machine.run}/{identity}" for identity in machine.open}
    joined = len(stream.deliveries)
    lived(machine, stream)
    reader = Reader().read(stream.deliveries[:joined])
    assert not reader.events
    reader.begin()
    assert [type(event) for event in reader.events] == [HostUpdated, *[FlowAdded] * len(open_now), PollCompleted]
    assert {event.flow.id for event in reader.of(FlowAdded)} == open_now
    assert all(event.preexisting for event in reader.of(FlowAdded))
    assert reader.events[-1].complete
    assert reader.events[-1].host is None
    reader.read(stream.deliveries[joined:])
    grown = {("web", pid): total - before.get(pid, 0) for pid, total in machine.truth.items()}
    assert reader.totals == {key: value for key, value in grown.items() if value}


def test_what_takes_long_is_done_in_slices_and_what_was_reported_so_far_is_what_is_known():
    stream, machine = Stream(), Machine("web", most_bytes=4000)
    machine.take([machine.begin(rx=1) for _ in range(300)])
    lived(machine, stream, 1, stop=True)
    core = Incoming()

    def work(reported=()):
        reported = list(reported)
        for events in core.take_events():
            assert len(events) <= SLICE + 2
            reported += events
            opened = {event.flow.id for event in reported if isinstance(event, FlowAdded)}
            opened -= {event.flow.id for event in reported if isinstance(event, FlowRemoved)}
            assert {flow.id for flow, _ in core.flows()} == opened
            states = [event.state for event in reported if isinstance(event, HostUpdated)][-1:]
            assert [event.state for event in core.machines(WALL)] == [s for s in states if s is not HostState.LEFT]
        return reported

    for delivery in stream.deliveries[:-1]:
        core.receive(delivery, 0.0)
    assert work() == []
    core.begin(WALL)
    reported, opened = work(), len(list(core.flows()))
    assert len(reported) == 1 + opened + 1 > 300
    core.receive(stream.deliveries[-1], 0.0)
    assert len(work(reported)) == 1 + opened + 1 + opened + 1


def test_a_state_in_the_middle_of_the_stream_is_enough_to_join_at():
    stream = Stream()
    machine = lived(Machine("web"), stream, 150)
    states = [at for at, each in enumerate(stream.deliveries) if each.subject == "nstat.web.state"]
    assert len(states) >= 2
    reader = Reader().read(stream.deliveries[states[-1] :]).begin()
    assert {event.flow.id.rpartition("/")[2] for event in reader.of(FlowAdded)} == set(machine.open)
    assert not reader.losses


def test_a_state_of_many_flows_comes_in_parts_and_is_one():
    stream = Stream()
    machine = Machine("web", most_bytes=4000)
    machine.take([machine.begin(rx=7) for _ in range(60)])
    lived(machine, stream, 1)
    machine.time += 700
    lived(machine, stream, 1)
    at = max(at for at, each in enumerate(stream.deliveries) if each.subject == "nstat.web.state")
    assert len(stream.deliveries) - at > 3
    reader = Reader().read(stream.deliveries[at:]).begin()
    assert {event.flow.id.rpartition("/")[2] for event in reader.of(FlowAdded)} == set(machine.open)
    cut = Reader().read([*stream.deliveries[at : at + 2], *stream.deliveries[at + 3 :]]).begin()
    assert not cut.of(FlowAdded)
    assert [loss.cause for loss in cut.losses] == [LossCause.TRANSPORT]


def test_a_hole_is_reported_with_its_machine_and_the_next_state_sets_everything_right_that_is_still_open():
    stream = Stream()
    machine = lived(Machine("web"), stream, 5)
    hole = len(stream.deliveries)
    begun, ended = machine.begin(rx=11), machine.end(next(iter(machine.open)))
    grown = machine.grow(next(iter(machine.open)), 1234)
    machine.take([begun, ended, grown])
    lived(machine, stream, 1)
    in_hole = len(stream.deliveries)
    machine.time += 700
    lived(machine, stream, 1)
    reader = Reader().begin().read([*stream.deliveries[:hole], *stream.deliveries[in_hole:]])
    [loss] = reader.losses
    assert (loss.cause, loss.count, loss.host) == (LossCause.TRANSPORT, in_hole - hole, "web")
    ids = {flow.id.rpartition("/")[2] for flow, _ in reader.core.flows()}
    assert ids == set(machine.open)
    # A flow that began in the hole is new in full; what ended there had an end that nobody saw.
    whole = next(event for event in reader.of(FlowAdded) if event.flow.id.endswith(f"/{begun.flow.id}"))
    assert not whole.preexisting
    gone = next(event for event in reader.of(FlowRemoved) if event.flow.id.endswith(f"/{ended.flow.id}"))
    assert (gone.final, gone.reason) == (False, RemovalReason.GONE)


def test_a_machine_that_is_met_in_the_middle_of_its_run_is_a_loss_and_its_flows_were_there_before():
    stream = Stream()
    machine = lived(Machine("web"), stream, 5)
    at = len(stream.deliveries)
    lived(machine, stream, 1)
    machine.time += 700
    lived(machine, stream, 1)
    reader = Reader().begin().read(stream.deliveries[at:])
    assert [(loss.cause, loss.host) for loss in reader.losses] == [(LossCause.TRANSPORT, "web")]
    added = reader.of(FlowAdded)
    assert {event.flow.id.rpartition("/")[2] for event in added} == set(machine.open)
    assert all(event.preexisting for event in added)
    assert not reader.totals
    assert [event.machine_id for event in reader.of(HostUpdated)] == [None, "web"]


def test_a_publisher_that_begins_anew_is_reported_and_nothing_counts_twice():
    stream = Stream()
    machine = lived(Machine("web"), stream)
    machine.start()
    lived(machine, stream)
    reader = Reader().begin().read(stream.deliveries)
    assert [(loss.cause, loss.host) for loss in reader.losses] == [(LossCause.RESYNC, "web")]
    assert all(total <= truth(machine)[key] for key, total in reader.totals.items())
    assert {event.reason for event in reader.of(FlowRemoved) if not event.final} == {RemovalReason.MONITOR}


def test_a_publisher_that_stops_says_so_and_one_that_begins_again_after_that_lost_nothing_unsaid():
    stream = Stream()
    machine = lived(Machine("web"), stream, 10, stop=True)
    reader = Reader().begin().read(stream.deliveries)
    assert [event.state for event in reader.of(HostUpdated)] == [HostState.PRESENT, HostState.LEFT]
    assert not list(reader.core.flows())
    machine.start()
    lived(machine, stream, 3)
    reader.read(stream.deliveries[len(stream.deliveries) - 3 :])
    assert reader.of(HostUpdated)[-1].state is HostState.PRESENT


def test_a_publisher_that_goes_on_after_it_stopped_is_a_loss_and_known_again_at_its_next_state():
    stream = Stream()
    machine = lived(Machine("web"), stream, 3, stop=True)
    lived(machine, stream, 3)
    machine.time += 700
    lived(machine, stream, 1)
    reader = Reader().begin().read(stream.deliveries)
    assert [loss.cause for loss in reader.losses] == [LossCause.TRANSPORT]
    assert {flow.id.rpartition("/")[2] for flow, _ in reader.core.flows()} == set(machine.open)
    well_formed(reader.events)


def test_a_machine_that_comes_back_under_another_name_is_known_by_its_machine_id():
    stream = Stream()
    lived(Machine("old"), stream, 1)
    renamed = Machine("new")
    renamed.outgoing = Outgoing("new", "ffffffff", Facts(machine_id="old"))
    lived(renamed, stream, 1)
    reader = Reader().begin().read(stream.deliveries)
    assert [(event.host, event.detail) for event in reader.of(HostUpdated)] == [
        ("old", None), ("new", "its machine id is also that of old"),
    ]  # fmt: skip


def test_two_publishers_of_one_name_are_reported_and_the_later_one_is_believed():
    stream = Stream()
    first = lived(Machine("web"), stream, 3)
    second = Machine("web", 1)
    second.outgoing = Outgoing("web", "ffffffff")
    lived(second, stream, 3)
    lived(first, stream, 3)
    lived(second, stream, 3)
    reader = Reader().begin().read(stream.deliveries)
    assert [loss.cause for loss in reader.losses] == [LossCause.RESYNC, LossCause.TRANSPORT]
    assert "two publishers" in reader.losses[1].detail
    assert {flow.id.split("/")[1] for flow, _ in reader.core.flows()} == {"ffffffff"}


@pytest.mark.parametrize("stops", [True, False], ids=["stops", "falls silent"])
def test_an_earlier_publisher_of_the_same_name_is_believed_again_when_the_later_one_is_gone(stops):
    stream, first, second = Stream(), Machine("web"), Machine("web", 1)
    second.outgoing = Outgoing("web", "ffffffff")
    lived(first, stream, 3)
    early = list(stream.deliveries)
    lived(second, stream, 3)
    lived(first, stream, 3)
    if stops:
        lived(second, stream, 1, stop=True)
    reader = Reader().begin().read(stream.deliveries, now=100.0)
    if not stops:
        reader.core.handle_deadline(132.0, WALL)
        reader.look()
    assert reader.of(HostUpdated)[-1].state is not HostState.PRESENT
    read = len(stream.deliveries)
    lived(first, stream, 3)
    reader.read(early).read(stream.deliveries[read:], now=140.0)
    assert reader.of(HostUpdated)[-1].state is HostState.PRESENT
    assert [loss.cause for loss in reader.losses[2:]] == [LossCause.TRANSPORT]
    assert "earlier one still publishes" in reader.losses[-1].detail
    assert not list(reader.core.flows())
    # Its next complete state: from then on its flows are known, and what moves counts once.
    first.time += 700.0
    for message in first.messages():
        stream.add(message, first)
    reader.read(stream.deliveries[read:], now=140.0)
    assert {flow.id for flow, _ in reader.core.flows()} == {f"web/{first.run}/{identity}" for identity in first.open}
    before, table, read = dict(first.truth), dict(reader.totals), len(stream.deliveries)
    lived(first, stream, 5)
    reader.read(early).read(stream.deliveries[read:], now=140.0)
    for pid, total in first.truth.items():
        assert reader.totals.get(("web", pid), 0) - table.get(("web", pid), 0) == total - before.get(pid, 0)
    # The later one comes back: that they are two is said again.
    losses = len(reader.losses)
    lived(second, stream, 1)
    reader.read(stream.deliveries[-1:], now=140.0)
    assert "two publishers" in reader.losses[losses].detail


def test_a_machine_whose_last_state_alone_was_looked_up_has_lost_no_message_when_it_continues():
    stream = Stream()
    machine = lived(Machine("old"), stream, 5)
    reader = Reader()
    reader.core.remember(stream.deliveries[-1], 0.0)
    lived(machine, stream, 1)
    reader.begin().read(stream.deliveries[-1:])
    assert reader.core.statistics()["lost_messages"] == 0


@pytest.mark.parametrize("most_bytes", [-10, 100])
def test_each_message_takes_a_line_along_however_small_the_server_wants_messages(most_bytes):
    machine = Machine("web", most_bytes=most_bytes)
    machine.messages()
    machine.outgoing.feed([machine.begin(), machine.begin()])
    sent = []
    while machine.outgoing.waiting and len(sent) < 10:
        sent += filter(None, [machine.outgoing.next_message(1.0)])
    assert [message.events for message in sent] == [1, 1]


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


# --- worlds ----------------------------------------------------------------------------------


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_in_any_world_what_is_missing_was_said_and_nothing_counts_twice(data):
    """Messages get lost, come twice, publishers begin anew, subscribers join: the totals are the truth, or it was said."""
    machines = [Machine(name, data.draw(st.integers(0, 3))) for name in ("a", "b")]
    stream, kept, touched, met_late = Stream(), [], set(), set()

    def publish(machine, *, lose=False, again=False, stop=False):
        for message in machine.messages(stop=stop):
            stream.add(message, machine)
            if lose and data.draw(st.booleans()):
                touched.add(machine.name)
                if not any(f".{machine.name}." in each.subject for each in kept):
                    met_late.add(machine.name)  # nobody can know what was before
                continue
            kept.extend(stream.deliveries[-1:] * (1 + again))
        if again and kept:
            kept.append(kept[data.draw(st.integers(0, len(kept) - 1))])

    for _ in range(data.draw(st.integers(1, 12))):
        machine = data.draw(st.sampled_from(machines))
        fate = data.draw(st.sampled_from(["live", "live", "live", "lose", "again", "restart", "stop", "pause"]))
        machine.time += 700 if fate == "pause" else 0
        if fate in {"restart", "stop"}:
            touched.add(machine.name)
        if fate == "restart":
            machine.start()
        machine.step(data.draw(st.integers(0, 8)))
        publish(machine, lose=fate == "lose", again=fate == "again", stop=fate == "stop")
        if fate == "stop":
            machine.start()
    for machine in machines:  # what was lost last is known when something comes after it
        machine.step(1)
        publish(machine)
    reader = Reader().begin().read(kept)
    right = truth(*machines)
    assert all(total <= right[key] for key, total in reader.totals.items()), "counted twice"
    said = {event.host for event in reader.losses}
    said |= {event.host for event in reader.of(HostUpdated) if event.state is HostState.LEFT}
    for machine in machines:
        mine = {key: total for key, total in reader.totals.items() if key[0] == machine.name}
        if machine.name not in touched:
            assert mine == truth(machine)
            assert machine.name not in said
        elif mine != truth(machine):
            assert machine.name in said | met_late
    well_formed(reader.events)


def well_formed(events):
    """Added once, removed once, updates in between, counters that go on where they were."""
    known = {}
    for event in events:
        if isinstance(event, FlowAdded):
            assert event.flow.id not in known
            known[event.flow.id] = event.counts
        elif isinstance(event, FlowUpdated):
            assert known[event.flow.id] == event.previous
            known[event.flow.id] = event.counts
        elif isinstance(event, FlowRemoved):
            del known[event.flow.id]


# --- what others write ------------------------------------------------------------------------


@settings(max_examples=examples(200))
@given(
    st.binary(max_size=200), st.sampled_from(["nstat.web.events", "nstat.web.state", "nstat.web", "x", "nstat.a.b.c"])
)
def test_bytes_that_are_no_message_are_an_event_and_never_an_error(data, subject):
    core = Incoming()
    core.begin(WALL)
    taken(core)
    core.receive(Delivery(subject, data, 1, WALL), 0.0)
    assert [event.cause for event in taken(core)] == [LossCause.PROTOCOL]


_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _values, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each, max_size=4)
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_a_message_with_one_thing_wrong_is_an_event_or_harmless(data):
    """A header or a line of which one value is something else."""
    stream = Stream()
    lived(Machine("web"), stream, 2)
    core = Incoming()
    core.begin(WALL)
    for delivery in stream.deliveries:
        plain = delivery.data if delivery.data[:1] == b"{" else zlib.decompress(delivery.data)
        lines = [standard.loads(line) for line in plain.split(b"\n")]
        target = data.draw(st.sampled_from(lines))
        while isinstance(target, dict) and target:
            key = data.draw(st.sampled_from(sorted(target)))
            if not isinstance(target[key], dict) or data.draw(st.booleans()):
                target[key] = data.draw(_json)
                break
            target = target[key]
        broken = b"\n".join(standard.dumps(line).encode() for line in lines)
        core.receive(attrs.evolve(delivery, data=broken), 0.0)
        core.handle_deadline(1e6, WALL)
    for event in taken(core):
        json.dumps(event)


def test_a_small_message_that_claims_to_be_huge_is_refused_before_it_is_made():
    core = Incoming()
    core.begin(WALL)
    taken(core)
    core.receive(Delivery("nstat.web.events", zlib.compress(b" " * (8 << 20)), 1, WALL), 0.0)
    [event] = taken(core)
    assert f"more than {1 << 20}" in event.detail
    core.receive(Delivery("nstat.web.events", zlib.compress(b"{}" + b"\n" * 900_000), 2, WALL), 0.0)
    [event] = taken(core)
    assert f"more than {MOST_LINES} lines" in event.detail


ADDED = '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp",%s},"counts":%s,"preexisting":false}'


@pytest.mark.parametrize(
    "line",
    [
        '{"v":1,"time":1,"pid":1,"name":"x","flows":1,"open_flows":1,"rx_bytes":1,"tx_bytes":1,"kind":"process"}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":-1},"preexisting":false}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":1e99},"preexisting":false}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":' + "9" * 4000
        + '},"preexisting":false}',
        '{"v":1,"event":"flow_removed","time":1,"flow":{"id":"7","provider":"tcp"},"counts":null,"final":false,"reason":"gone"}',
        ADDED % ('"process":{"pid":99999999999999999999}', "null"),
        ADDED % ('"state":null', '{"media":{"wifi":{"rx_bytes":-1,"tx_bytes":0,"rx_packets":0,"tx_packets":0}}}'),
        '{"v":1,"event":"events_lost","time":1,"cause":"limit","count":-1,"counts":null,"detail":null}',
        '{"v":1,"event":"host_updated","time":1,"host":"web","state":"left"}',
    ],
    ids=["a row", "below zero", "a fraction", "beyond 64 bits", "the end of what never began", "a process id beyond 64 bits",
         "a medium below zero", "a loss of less than nothing", "that it left"],
)  # fmt: skip
def test_a_line_that_no_machine_writes_is_a_loss_of_that_machine(line):
    core = Incoming()
    core.begin(WALL)
    first = Header(incarnation="0" * 8, seq=0, next=10.0, part=0, facts=Facts())
    core.receive(Delivery("nstat.web.state", encode(first, []), 1, WALL), 0.0)
    taken(core)
    core.receive(
        Delivery("nstat.web.events", encode(Header(incarnation="0" * 8, seq=1, next=10.0), [line]), 2, WALL), 0.0
    )
    [event] = taken(core)
    assert isinstance(event, EventsLost)
    assert (event.cause, event.host) == (LossCause.PROTOCOL, "web")


def test_a_machine_cannot_make_flows_of_another_one():
    """What a line says of a host is not believed: the subject says whose it is."""
    core = Incoming()
    core.begin(WALL)
    first = Header(incarnation="0" * 8, seq=0, next=10.0, part=0, facts=Facts())
    core.receive(Delivery("nstat.web.state", encode(first, []), 1, WALL), 0.0)
    line = '{"v":1,"event":"flow_added","time":1,"flow":{"id":"db/1/1","provider":"tcp","host":"db"},"counts":null,"preexisting":false}'
    core.receive(
        Delivery("nstat.web.events", encode(Header(incarnation="0" * 8, seq=1, next=10.0), [line]), 2, WALL), 0.0
    )
    added = taken(core)[-1]
    assert added.flow.host == "web"
    assert added.flow.id == "web/00000000/db/1/1"


def test_what_a_flow_says_of_another_flow_is_of_the_same_machine_and_run():
    stream, machine = Stream(), Machine("web")
    machine.take([machine.begin(), machine.begin(parent="c0", peer=Peer("db", None, "forged"))])
    for message in machine.messages():
        stream.add(message, machine)
    flows = {flow.id: flow for flow, _ in Reader().begin().read(stream.deliveries).core.flows()}
    child = flows["web/00000000/c1"]
    assert child.parent == "web/00000000/c0"
    assert child.peer is None


def test_machines_beyond_the_limit_are_left_out_and_it_is_said_once_for_each(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 3)
    core = Incoming()
    core.begin(WALL)
    for number in range(5):
        data = encode(Header(incarnation="0" * 8, seq=0, next=10.0, part=0), [])
        for _ in range(2):
            core.receive(Delivery(f"nstat.h{number}.state", data, number, WALL), 0.0)
    limits = [event for event in taken(core) if isinstance(event, EventsLost)]
    assert [(event.cause, event.host) for event in limits] == [(LossCause.LIMIT, "h3"), (LossCause.LIMIT, "h4")]


def test_flows_beyond_the_limit_are_left_out_and_it_is_said_once(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._flows.MOST_FLOWS", 10)
    stream, machine = Stream(), Machine("web")
    machine.take([machine.begin() for _ in range(30)])
    lived(machine, stream, 5)
    reader = Reader().begin().read(stream.deliveries)
    assert [loss.cause for loss in reader.losses] == [LossCause.LIMIT]
    assert len(list(reader.core.flows())) <= 10


# --- the publisher ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "-a", "a" * 64, "ä", None, 7])
def test_a_name_that_is_no_word_of_a_subject_is_refused(name):
    with pytest.raises(UsageError, match="such as 'web1'"):
        Outgoing(name, "0" * 8)


def test_a_quiet_machine_is_heard_of_at_its_heartbeat_and_polls_alone_are_no_news():
    machine = Machine("web", heartbeat=10.0)
    assert len(machine.messages()) == 1  # the beginning
    heard = 0
    for _ in range(100):
        machine.step(0)
        heard += len(machine.messages())
    assert 8 <= heard <= 11


def test_a_poll_that_was_not_complete_is_news_at_its_place():
    machine = Machine("web", compress=False)
    machine.messages()
    missing = PollCompleted(WALL, 3, complete=False)
    machine.take([missing, machine.begin()])
    [message] = machine.messages()
    assert json.loads(message.data.split(b"\n")[1]) == missing


def test_the_state_of_many_idle_flows_is_published_rarely_and_that_of_busy_ones_each_minute():
    machine = Machine("web")
    machine.take([machine.begin() for _ in range(100)])

    def states(seconds, moves):
        found = 0
        for _ in range(seconds // 5):
            machine.time += 4
            machine.step(moves)
            found += sum(message.subject.endswith(".state") for message in machine.messages())
        return found

    assert states(70, 0) == 2  # the beginning, and the state after so many flows came
    assert states(500, 0) == 0
    assert states(200, 20) == 3


def test_no_message_is_larger_than_it_may_be_and_a_line_that_is_is_a_loss():
    machine = Machine("web", most_bytes=2000, compress=False)
    machine.take([machine.begin(rx=1) for _ in range(50)])
    huge = machine.begin(rx=1, namespace="x" * 5000)
    machine.take([huge])
    messages = machine.messages()
    assert all(len(message.data) < 2500 for message in messages)
    lost = [
        json.loads(line) for message in messages for line in message.data.split(b"\n")[1:] if b"events_lost" in line
    ]
    assert [loss.cause for loss in lost] == [LossCause.LIMIT]


def test_lines_are_public_json_and_a_message_can_be_read_without_the_library():
    machine = Machine("web", compress=False)
    machine.step()
    [first, second, *_] = machine.messages()
    assert b'"facts":{"machine_id":"web"' in first.data
    assert [json.loads(line) for line in second.data.split(b"\n")[1:]]
