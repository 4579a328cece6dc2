"""Lives and goodbyes: what is final, what is a loss, and that each flow is reported once."""

from __future__ import annotations

import pytest
from ntstat_play import LAYOUTS, Play, one
from ntstat_wire import Wire, address

from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    InterfaceUpdated,
    LossCause,
    MonitorOptions,
    Provider,
    RemovalReason,
    TcpState,
)
from nstat_async.ntstat import RemoveSource
from nstat_async.ntstat._references import MAX_MISSING

WITH_UPDATES = [n for n in LAYOUTS if n >= 5]


@pytest.mark.parametrize("number", [n for n in LAYOUTS if n >= 2])
def test_a_full_goodbye_is_final_and_a_bare_one_is_a_loss(number):
    wire, play = Wire(number), Play(Wire(number))
    descriptor = wire.descriptor(2, state=4, remote=address("192.0.2.9", 443))
    closed = wire.descriptor(2, state=0, remote=address("192.0.2.9", 443))
    events = play(
        wire.report(1, wire.counts(5, 5), descriptor),
        wire.report(2, wire.counts(7, 7), descriptor),
        wire.goodbye(1, wire.counts(9, 9), closed),
        wire.removed(2),
    )
    first, second = (e for e in events if isinstance(e, FlowRemoved))
    assert (first.final, first.counts.rx_bytes, first.reason) == (True, 9, RemovalReason.CLOSED)
    assert first.flow.state is TcpState.CLOSED
    assert (second.final, second.counts.rx_bytes) == (False, 7)
    loss = one(events, EventsLost)
    assert (loss.cause, loss.count) == (LossCause.FINAL_COUNTS, 1)
    assert events.index(loss) == events.index(second) + 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, RemovalReason.CLOSED), (8, RemovalReason.DROPPED), (16, RemovalReason.FILTERED), (64, RemovalReason.GONE)],
)
def test_the_flags_of_a_removal_are_its_reason(flags, reason):
    wire, play = Wire(11), Play(Wire(11))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    event = one(play(wire.removed(1, flags)), FlowRemoved)
    assert (event.reason, event.final) == (reason, False)


def test_a_source_that_the_client_gave_up_is_no_loss():
    wire, play = Wire(11), Play(Wire(11))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    play.ask(RemoveSource(context=3, srcref=1).encode(wire.layout))
    events = play(wire.removed(1))
    assert one(events, FlowRemoved).reason is RemovalReason.MONITOR
    assert len(events) == 1


@pytest.mark.parametrize("number", WITH_UPDATES)
def test_a_description_that_closes_without_counters_is_not_final(number):
    """COUNTS may have been refused where the DESC behind it was not."""
    wire, play = Wire(number), Play(Wire(number))
    play(wire.report(1, wire.counts(5, 5), wire.descriptor(2)))
    events = play(wire.described(1, wire.descriptor(2, state=0), flags=4), wire.removed(1))
    removed = one(events, FlowRemoved)
    assert (removed.final, removed.flow.state) == (False, TcpState.CLOSED)
    assert one(events, EventsLost).cause is LossCause.FINAL_COUNTS
    assert not [e for e in events if isinstance(e, FlowUpdated)]


@pytest.mark.parametrize("number", WITH_UPDATES)
def test_a_flow_that_lived_between_two_polls_is_told_whole_by_its_goodbye(number):
    wire, play = Wire(number), Play(Wire(number))
    events = play(wire.goodbye(7, wire.counts(9, 9), wire.descriptor(2, state=10)))
    assert [type(e) for e in events] == [FlowAdded, FlowRemoved]
    assert events[1].final
    assert events[1].details is not None


def test_counters_without_a_description_wait_for_it_but_not_for_ever():
    wire, play = Wire(11), Play(Wire(11))
    assert play(wire.counted(1, wire.counts(5, 5))) == []
    added = one(play(wire.counted(1, wire.counts(6, 6))), FlowAdded)
    assert (added.flow.provider, added.counts.rx_bytes) == (Provider.UNKNOWN, 6)
    event = one(play(wire.described(1, wire.descriptor(4), provider=4)), FlowUpdated)
    assert (event.flow.provider, event.flow.id) == (Provider.UDP, added.flow.id)
    assert event.counts.rx_bytes == 6
    assert play(wire.removed(1))[0].counts.connect_attempts is None


def test_counters_that_turn_out_to_be_an_interface_s_are_a_flow_no_longer():
    """In a recording that begins in the middle counters may come long before a description."""
    wire, play = Wire(11), Play(Wire(11))
    added = one(play(wire.counted(1, wire.counts(5)), wire.counted(1, wire.counts(6))), FlowAdded)
    codec = wire.layout["nstat_ifnet_descriptor"]
    events = play(wire.described(1, codec.encode({"ifindex": 4, "name": b"en0"}), provider=6))
    removed = one(events, FlowRemoved)
    assert (removed.flow.id, removed.reason, removed.final) == (added.flow.id, RemovalReason.MONITOR, False)
    assert one(events, InterfaceUpdated).counts.rx_bytes == 6
    assert list(play.session.flows()) == []
    # No kernel does this; found by fuzzing: what becomes a flow again has another id.
    again = one(play(wire.updated(1, wire.counts(7), wire.descriptor(2))), FlowAdded)
    assert again.flow.id != added.flow.id
    assert one(play(wire.removed(1)), FlowRemoved).flow.id == again.flow.id


def test_a_report_behind_its_goodbye_does_not_bring_the_flow_back():
    wire, play = Wire(11), Play(Wire(11))
    report, goodbye = wire.report(1, wire.counts(5), wire.descriptor(2)), wire.removed(1)
    events = play(report, goodbye, report, goodbye)
    assert len({e.flow.id for e in events if isinstance(e, FlowAdded)}) == 2


def test_announced_flows_that_nobody_described_are_told_at_the_end():
    wire, play = Wire(11), Play(Wire(11))
    assert play(wire.added(1), wire.added(2, provider=4)) == []
    play.session.finish(1001.0)
    events = play.session.take_events()
    assert [(type(e), e.flow.provider, e.counts) for e in events] == [
        (FlowAdded, Provider.TCP, None),
        (FlowAdded, Provider.UDP, None),
    ]


def test_identical_reports_are_silent_unless_each_is_wanted():
    wire = Wire(11)
    report = wire.updated(1, wire.counts(5, 5), wire.descriptor(2, txwindow=1))
    other_window = wire.updated(1, wire.counts(5, 5), wire.descriptor(2, txwindow=2))
    play = Play(wire)
    assert len(play(report)) == 1
    assert play(report, other_window) == []
    every = Play(wire, options=MonitorOptions(every_update=True))
    first, *rest = every(report, report, other_window)
    assert [type(e) for e in rest] == [FlowUpdated, FlowUpdated]
    assert rest[1].details.send_window == 2
    assert rest[0].flow is first.flow  # the very same object while nothing changed


@pytest.mark.parametrize("number", [5, 11])
def test_narrow_references_come_back_as_new_flows_and_wide_ones_as_a_new_socket(number):
    wire, play = Wire(number), Play(Wire(number))
    first = one(play(wire.added(1), wire.report(1, wire.counts(5, 5), wire.descriptor(2))), FlowAdded)
    events = play(wire.added(1), wire.report(1, wire.counts(1, 1), wire.descriptor(2)))
    removed, added = one(events, FlowRemoved), one(events, FlowAdded)
    assert removed.flow.id == first.flow.id != added.flow.id
    assert removed.reason is (RemovalReason.GONE if number == 5 else RemovalReason.MONITOR)
    assert added.counts.rx_bytes == 1


def test_a_provider_that_is_granted_twice_means_a_new_control_socket():
    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1, filter=0x100000))
    play(wire.success(1), wire.report(3, wire.counts(5, 5), wire.descriptor(2)))
    play.ask(wire.add_all(2, filter=0x100000))
    assert play(wire.error(2, 37)) == []  # the same socket: already watching
    play.ask(wire.add_all(2, filter=0x100000))
    assert one(play(wire.success(2)), FlowRemoved).reason is RemovalReason.MONITOR
    added = one(play(wire.report(3, wire.counts(5, 5), wire.descriptor(2))), FlowAdded)
    assert added.flow.id != "1.3"


def test_a_gap_between_announcements_is_counted_exactly():
    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1))
    assert play(wire.added(1), wire.added(2), wire.success(1)) == []
    loss = one(play(wire.added(7)), EventsLost)
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, 4)
    loss = one(play(wire.added(8 + 3 * MAX_MISSING)), EventsLost)
    assert loss.count == 3 * MAX_MISSING


def test_a_poll_that_leaves_out_known_sources_is_incomplete_once_told():
    from nstat_async import PollCompleted
    from nstat_async.ntstat import GetUpdate

    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1, filter=0x100000))
    play(wire.success(1))
    reports = {ref: wire.updated(ref, wire.counts(ref), wire.descriptor(2)) for ref in (1, 2, 3)}
    everything = (1 << 64) - 1
    outcomes = []
    for context, refs in ((2, (3, 2, 1)), (3, (3, 1)), (4, (3, 1)), (5, (3, 2, 1))):
        play.ask(GetUpdate(context=context, srcref=everything, flags=3).encode(wire.layout))
        events = play(*[reports[r] for r in refs], wire.success(context))
        losses = [e.count for e in events if isinstance(e, EventsLost)]
        outcomes.append((one(events, PollCompleted).complete, losses))
    assert outcomes == [(True, []), (False, [1]), (False, []), (True, [])]


def test_a_source_that_is_announced_during_a_poll_is_not_missed_by_it():
    from nstat_async import PollCompleted
    from nstat_async.ntstat import GetUpdate

    wire, play = Wire(11), Play(Wire(11))
    play.ask(wire.add_all(1))
    play(wire.added(1), wire.success(1))
    play.ask(GetUpdate(context=2, srcref=(1 << 64) - 1, flags=3).encode(wire.layout))
    events = play(wire.updated(1, wire.counts(1), wire.descriptor(2)), wire.added(2), wire.success(2))
    assert one(events, PollCompleted).complete
    assert not [e for e in events if isinstance(e, EventsLost)]
