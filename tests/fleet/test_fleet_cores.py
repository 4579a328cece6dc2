"""The two halves of a fleet without I/O: what one publishes is what the other shows, whatever happens in between."""

from __future__ import annotations

import attrs
import pytest
from fleet_world import WALL, Machine, Reader, Stream, lived, truth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import (
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    PollCompleted,
    RemovalReason,
)
from nstat_async.fleet import Facts, Outgoing
from nstat_async.fleet._incoming import Incoming
from nstat_async.fleet._intake import SLICE


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


def test_who_joins_after_a_hole_is_told_and_has_no_complete_look_until_the_next_state():
    stream = Stream()
    machine = lived(Machine("web"), stream, 5)
    hole = len(stream.deliveries)
    machine.take([machine.begin(rx=11)])
    lived(machine, stream, 1)
    reader = Reader().read([*stream.deliveries[: hole - 1], *stream.deliveries[hole:]])
    assert not reader.events
    reader.begin()
    assert [(loss.cause, loss.host) for loss in reader.losses] == [(LossCause.TRANSPORT, "web")]
    assert not reader.events[-1].complete
    assert reader.core.statistics()["lost_messages"] == 1
    machine.time += 700
    lived(machine, stream, 1)
    again = Reader().read([*stream.deliveries[: hole - 1], *stream.deliveries[hole:]]).begin()
    assert not again.losses
    assert again.events[-1].complete


def test_a_line_that_cannot_be_read_is_made_good_by_the_next_state_and_who_joins_before_it_is_told():
    stream = Stream()
    machine = lived(Machine("web", compress=False), stream, 2)
    machine.take([machine.begin(rx=11)])
    lived(machine, stream, 1)
    bad = attrs.evolve(
        stream.deliveries[-1], data=stream.deliveries[-1].data.replace(b'"flow_added"', b'"flow_edded"', 1)
    )
    deliveries = [*stream.deliveries[:-1], bad]
    joined, live = Reader().read(deliveries).begin(), Reader().begin().read(deliveries)
    assert [loss.cause for loss in joined.losses] == [LossCause.TRANSPORT]
    assert not joined.events[-1].complete
    assert joined.core.statistics()["malformed_messages"] == 1
    assert {loss.cause for loss in live.losses} == {LossCause.PROTOCOL}
    machine.time += 700
    lived(machine, stream, 1)
    for reader in (joined, live):
        reader.read(stream.deliveries[len(deliveries) :])
        assert {flow.id.rpartition("/")[2] for flow, _ in reader.core.flows()} == set(machine.open)


def two_publishers():
    """A stream in which two publishers of one name take turns; the second one began later."""
    stream = Stream()
    first = lived(Machine("web"), stream, 3)
    second = Machine("web", 1)
    second.outgoing = Outgoing("web", "ffffffff")
    lived(second, stream, 3)
    lived(first, stream, 3)
    return stream, first, second


def test_the_second_publisher_of_a_name_is_said_to_who_joins_later():
    stream, first, _ = two_publishers()
    reader = Reader().read(stream.deliveries).begin()
    assert not reader.losses
    lived(first, stream, 1)
    reader.read(stream.deliveries[-1:])
    assert ["two publishers" in loss.detail for loss in reader.losses] == [True]


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
    stream, _, second = two_publishers()
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
