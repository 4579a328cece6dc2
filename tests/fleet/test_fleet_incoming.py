"""What a fleet's reader makes of single messages: numbers and lines, limits, runs, what is due when."""

from __future__ import annotations

import pytest
from fleet_by_hand import LATER, NOW, added, flow, losses, message, read, reader, state
from fleet_world import WALL, count, taken

from nstat_async import (
    Capabilities,
    EventsLost,
    FlowAdded,
    FlowUpdated,
    HostState,
    HostUpdated,
    LossCause,
    Provider,
    json,
)
from nstat_async.fleet import Delivery, Facts, Incoming
from nstat_async.fleet._intake import SLICE
from nstat_async.fleet._messages import LONGEST_LINE

# --- lines -----------------------------------------------------------------------------------


def test_what_a_machine_says_beside_its_flows_is_reported_with_its_name():
    line = json.dumps(EventsLost(WALL, LossCause.BATCH, 3, detail="asked for again"))
    _, (*_, lost) = reader(state(0), message(1, line))
    assert (lost.cause, lost.count, lost.detail, lost.host, lost.time) == (
        LossCause.BATCH, 3, "asked for again", "web", WALL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rx", "detail"),
    [
        ((1 << 64) - 1, None),
        (1 << 64, "a number has more than 64 bits"),
        (1 << 66, "a number has more than 64 bits"),
        (-1, "a counter is not a number of at most 64 bits"),
    ],
)
def test_a_counter_has_64_bits_and_a_line_with_another_one_is_a_loss(rx, detail):
    core, events = reader(state(0), message(1, added(1, rx=0).replace('"rx_bytes":0', f'"rx_bytes":{rx}')))
    assert [event.counts.rx_bytes for event in events if isinstance(event, FlowAdded)] == ([] if detail else [rx])
    assert losses(events) == ([(LossCause.PROTOCOL, 1, f"a line is not an event: {detail}")] if detail else [])
    assert core.statistics()["malformed_messages"] == bool(detail)


@pytest.mark.parametrize(("length", "whole"), [(LONGEST_LINE, True), (LONGEST_LINE + 1, False)])
def test_a_line_may_be_so_long_and_no_longer(length, whole):
    _, events = reader(state(0), message(1, added(1).ljust(length)))
    assert [isinstance(event, FlowAdded) for event in events[-1:]] == [whole]


def test_an_update_of_a_flow_that_was_never_announced_is_one_loss():
    update = json.dumps(FlowUpdated(WALL, flow(1), count(10), count(0)))
    _, events = reader(state(0), message(1, update))
    assert losses(events) == [(LossCause.PROTOCOL, 1, "flow 'web/00000001/c1' was never announced")]


# --- complete states -------------------------------------------------------------------------


def test_a_state_of_which_a_line_cannot_be_read_is_not_complete():
    for line, complete in ((added(2), True), ("{}", False)):
        core = Incoming()
        read(core, state(0, added(1), line))
        core.begin(WALL)
        assert taken(core)[-1].complete is complete


def test_after_a_loss_a_state_sets_right_what_differs_and_nothing_else():
    lines = added(1, rx=5), added(2, rx=5), added(3, rx=5)
    core, _ = reader(state(0, *lines))
    later = added(1, rx=9), added(2, rx=5), added(3, rx=5, name="wget")
    _, *changed = read(core, state(2, *later))
    assert [(type(event), event.flow.id, event.delta.rx_bytes) for event in changed] == [
        (FlowUpdated, "web/00000001/c1", 4),
        (FlowUpdated, "web/00000001/c3", 0),
    ]
    assert changed[1].flow.process.name == "wget"
    assert read(core, state(3, *lines)) == [], "nothing was lost before it"


def test_a_state_of_more_flows_than_are_kept_is_said(monkeypatch):
    for module in ("_intake", "_flows"):
        monkeypatch.setattr(f"nstat_async.fleet.{module}.MOST_FLOWS", 3)
    core, events = reader(state(0, *map(added, range(3))))
    assert not losses(events)
    core, events = reader(state(0, *map(added, range(4))))
    assert [cause for cause, *_ in losses(events)] == [LossCause.LIMIT]
    assert len(list(core.flows())) == 3


def test_a_state_is_set_right_in_slices():
    core, _ = reader(state(0))
    core.receive(state(2, *map(added, range(5 * SLICE))), NOW)
    parts = list(core.take_events())
    assert len(parts) == 1 + 5 + 5, "as many for its lines"
    assert max(map(len, parts)) <= SLICE + 1


# --- runs ------------------------------------------------------------------------------------


def test_what_is_wrong_with_messages_is_counted():
    core, events = reader(state(0), message(1), message(1), message(4), Delivery("nstat.web.x", b"", 9, WALL))
    read(core, state(0, run=LATER), message(5))
    assert core.statistics() == {
        "hosts": 1,
        "messages": 7,
        "duplicate_messages": 1,
        "lost_messages": 2,
        "malformed_messages": 1,
        "stale_messages": 1,
    }
    assert losses(events) == [
        (LossCause.TRANSPORT, 2, "2 messages did not arrive"),
        (LossCause.PROTOCOL, 1, "a message cannot be read: subject 'nstat.web.x' is not that of a machine"),
    ]


def test_of_a_later_run_the_messages_that_did_not_arrive_are_counted():
    core, _ = reader(state(0))
    events = read(core, message(3, run=LATER))
    assert losses(events)[-1] == (LossCause.TRANSPORT, 3, "its first messages did not arrive")
    assert core.statistics()["lost_messages"] == 3
    (late,) = losses(read(core, message(1)))
    assert (late[:2], "two publishers" in late[2]) == ((LossCause.TRANSPORT, 1), True)


@pytest.mark.parametrize(("seq", "believed"), [(1, False), (2, True)])
def test_when_the_later_run_has_left_only_new_messages_of_the_earlier_one_are_believed(seq, believed):
    core, _ = reader(state(0), message(1), state(0, run=LATER), message(1, run=LATER, part=0, last=True))
    states = [event.state for event in read(core, message(seq)) if isinstance(event, HostUpdated)]
    assert states == [HostState.PRESENT] * believed


def test_a_machine_that_was_looked_up_is_known_with_its_facts_and_its_next_number():
    core = Incoming()
    core.remember(state(4, facts=Facts(machine_id="m1"), stored=WALL - 500), NOW)
    assert core.next_deadline() == NOW + 1.0
    core.begin(WALL)
    host = taken(core)[0]
    assert (host.state, host.machine_id, host.last_heard) == (HostState.SILENT, "m1", WALL - 500)
    assert not losses(read(core, message(5)))
    assert losses(read(core, message(7))) == []  # its flows are unknown: that is said already
    assert (core.statistics()["lost_messages"], core.statistics()["duplicate_messages"]) == (1, 0)


def test_of_a_machine_that_is_met_in_the_middle_of_its_run_it_is_not_known_how_much_is_missing():
    core, events = reader(message(3))
    assert losses(events) == [(LossCause.TRANSPORT, None, "it is met in the middle of its run")]
    assert core.statistics()["lost_messages"] == 0


# --- which machines --------------------------------------------------------------------------


def test_only_the_wanted_machines_are_shown():
    _, events = reader(state(0, host="db"), state(0, host="web"), hosts=frozenset({"web"}))
    assert [event.host for event in events if isinstance(event, HostUpdated)] == ["web"]


def test_a_machine_that_left_makes_room_for_another_if_there_is_none(monkeypatch):
    core, _ = reader(state(0), message(1, part=0, last=True))
    read(core, state(0, host="db"))
    assert not read(core, message(1)), "it is still known: a copy of an earlier message is no news"
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 1)
    core, _ = reader(state(0), message(1, part=0, last=True))
    events = read(core, state(0, host="db"), state(0, host="other"), state(1, host="other"))
    assert [event.host for event in events if isinstance(event, HostUpdated)] == ["db"]
    assert losses(events) == [(LossCause.LIMIT, 1, "there are 1 machines already: other is left out")]


def test_who_joins_hears_how_many_machines_are_left_out(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 3)
    core = Incoming()
    for host in ("a", "b", "c", "d", "e", "e"):
        core.remember(state(0, host=host), NOW)
    core.begin(WALL)
    assert losses(taken(core))[-1][:2] == (LossCause.LIMIT, 2)


def test_the_ids_of_machines_that_come_and_go_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 2)
    core, _ = reader()
    for number in range(10):
        host = f"h{number}"
        read(core, state(0, host=host, facts=Facts(machine_id=host)), message(1, host=host, part=0, last=True))
        assert len(core._names) <= 2


def test_a_fleet_can_tell_what_each_of_its_machines_can_tell():
    nobody = Incoming().capabilities
    assert (nobody.providers, nobody.tcp_counts, nobody.short_lived) == (frozenset(), False, False)
    one = Capabilities(backend="x", providers=frozenset({Provider.TCP}), tcp_counts=True, final_counts=True)
    other = Capabilities(backend="x", providers=frozenset({Provider.UDP}), tcp_counts=True)
    core, _ = reader(
        state(0, host="a", facts=Facts(capabilities=one)),
        state(0, host="b", facts=Facts(capabilities=other)),
        state(0, host="c"),
    )
    found = core.capabilities
    assert found.providers == {Provider.TCP, Provider.UDP}
    assert (found.backend, found.tcp_counts, found.final_counts, found.udp_counts) == ("fleet", True, False, False)


# --- time ------------------------------------------------------------------------------------


def test_silence_is_looked_for_once_a_second_from_the_first_message_on():
    core, _ = reader()
    assert core.next_deadline() is None
    read(core, state(0))
    assert core.next_deadline() == NOW + 1.0
    core.handle_deadline(NOW + 0.5, WALL)
    assert core.next_deadline() == NOW + 1.0
    core.handle_deadline(NOW + 1.5, WALL)
    assert core.next_deadline() == NOW + 2.5


def test_before_everything_is_read_no_machine_is_silent():
    core = Incoming()
    core.begin(WALL)
    read(core, state(0))
    core.handle_deadline(NOW + 500.0, WALL)
    assert taken(core) == []


def test_many_machines_that_fall_silent_at_once_are_reported_in_slices():
    core, _ = reader(*(state(0, host=f"h{number}") for number in range(3 * SLICE)))
    core.handle_deadline(NOW + 500.0, WALL)
    assert [len(part) for part in core.take_events() if part] == [SLICE] * 3


def test_a_clock_is_reported_when_it_has_changed_and_then_no_more():
    core, _ = reader(state(0))
    told, offsets = [], [0.9, -0.9, 1.5, 1.5, 2.4, 50.0, 50.5, *[5.0] * 10, 5.0]
    for seq, offset in enumerate(offsets, 1):
        told += [round(event.clock_offset, 1) for event in read(core, message(seq, sent=WALL + offset))]
    assert told == [1.5, 50.0, 5.0], "that of the last ten messages with the least delay counts"


def test_an_event_that_waited_for_days_to_be_published_keeps_its_time():
    days = 3 * 86_400
    _, events = reader(state(0), message(1, added(1, time=WALL - days)), message(2, added(2, time=WALL - 9 * 86_400)))
    assert [WALL - event.time for event in events if isinstance(event, FlowAdded)] == [days, 7 * 86_400]


@pytest.mark.parametrize(("promise", "silent_after"), [(0.5, 2.5), (10.0, 30.0)])
def test_a_machine_is_silent_after_three_times_its_promise_and_two_seconds_at_least(promise, silent_after):
    core, _ = reader(state(0, next=promise))
    for now, silent in ((silent_after - 0.1, False), (silent_after + 0.1 + 1.0, True)):
        core.handle_deadline(NOW + now, WALL)
        assert [event.state for event in taken(core)] == [HostState.SILENT] * silent
