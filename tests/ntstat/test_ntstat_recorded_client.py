"""What a recorded client asked for says what its kernel's answers, and its silence, mean."""

from __future__ import annotations

import pytest
from ntstat_play import Play, one
from ntstat_wire import Wire

from nstat_async import EventsLost, FlowAdded, FlowRemoved, PollCompleted, Provider, RemovalReason
from nstat_async.ntstat import AddSource, GetUpdate, HeaderFlag, QuerySource, RemoveSource

EVERYTHING = (1 << 64) - 1
SUPPRESSED = 0x100000
WIRE = Wire(11)


def report(ref: int, **options) -> bytes:
    return WIRE.updated(ref, WIRE.counts(ref), WIRE.descriptor(2), **options)


def subscribed(wire: Wire = WIRE, **options: int) -> Play:
    """Its client watches TCP."""
    play = Play(wire)
    play.ask(wire.add_all(1, **options))
    play(wire.success(1))
    return play


def poll(play: Play, *refs: int, context: int = 2, meanwhile: tuple[int, ...] = ()) -> PollCompleted:
    """The client polls, and these are in the answer; meanwhile others are reported."""
    play.ask(GetUpdate(context=context, srcref=EVERYTHING, flags=3).encode(WIRE.layout))
    events = play(*(report(ref, context=context) for ref in refs), *map(report, meanwhile), WIRE.success(context))
    play.losses = [event.count for event in events if isinstance(event, EventsLost)]
    return one(events, PollCompleted)


def test_a_poll_says_how_many_flows_there_are():
    play = subscribed()
    assert [poll(play, *refs).flows for refs in ((), (1,), (1, 2, 3))] == [0, 1, 3]


def test_a_client_may_use_one_number_for_all_of_its_polls():
    play = subscribed()
    assert poll(play, 1, 2).complete
    assert (poll(play, 1).complete, play.losses) == (False, [1])


def test_what_comes_during_a_poll_is_not_missed_by_it_though_none_was_known():
    play = subscribed(filter=SUPPRESSED)
    assert poll(play).complete
    assert poll(play, meanwhile=(3,)).complete


def test_a_recording_that_begins_in_the_middle_counts_no_references():
    play = Play(WIRE)
    play(report(7))
    play.ask(WIRE.add_all(1))
    assert not [e for e in play(WIRE.success(1), WIRE.added(12)) if isinstance(e, EventsLost)]


def test_where_sources_without_traffic_are_hidden_absence_is_no_loss():
    play = subscribed(filter=WIRE.kernel.no_zero_bytes_bit)
    poll(play, 1, 2)
    assert (poll(play, 1).complete, play.losses) == (True, [])
    assert play(WIRE.removed(3, flags=HeaderFlag.CLOSED_AFTER_DROP)) == []


@pytest.mark.parametrize("number", [5, 11])
def test_a_filter_hides_sources(number):
    """Then absence proves nothing. No bit means anything else than what this kernel takes it for."""
    wire = Wire(number)
    play = subscribed(wire, filter=1)
    for refs in ((1, 2), (1,)):
        play.ask(GetUpdate(context=2, srcref=wire.layout.all_sources, flags=3).encode(wire.layout))
        reports = [wire.updated(ref, wire.counts(ref), wire.descriptor(2)) for ref in refs]
        done = one(play(*reports, wire.success(2)), PollCompleted)
    assert done.complete


def test_another_provider_makes_no_flow_older_that_a_later_poll_finds():
    play = subscribed()
    poll(play, 1)
    play.ask(WIRE.add_all(3, provider=WIRE.udp))
    play(WIRE.success(3))
    assert not one(play(report(9)), FlowAdded).preexisting


def test_on_another_control_socket_the_first_poll_finds_what_was_there_before():
    play = subscribed(filter=SUPPRESSED)
    poll(play, 1)
    play.ask(WIRE.add_all(5, filter=SUPPRESSED))
    play(WIRE.success(5))
    assert one(play(report(3)), FlowAdded).preexisting


def test_a_poll_that_a_new_control_socket_cuts_off_is_begun_again_with_it():
    play = subscribed()
    play.ask(GetUpdate(context=2, srcref=EVERYTHING, flags=3).encode(WIRE.layout))
    play.ask(WIRE.add_all(5))
    play(WIRE.success(5), WIRE.added(1), WIRE.added(2), report(1), report(2))
    assert (poll(play, 1).complete, play.losses) == (False, [1])


def test_who_watches_single_sources_learns_of_new_ones():
    play = Play(WIRE)
    play.ask(AddSource(context=5, provider=WIRE.tcp, param=b"").encode(WIRE.layout))
    assert play.session.capabilities.providers == frozenset()
    added = one(play(report(1, context=5)), FlowAdded)
    assert not added.preexisting
    assert play.session.capabilities.providers == {Provider.TCP}
    play.ask(QuerySource(context=6, srcref=1).encode(WIRE.layout))
    play(WIRE.counted(1, WIRE.counts(9), context=6))
    assert play.session.capabilities.providers == {Provider.TCP}


def test_a_source_that_could_not_be_given_up_ends_by_itself():
    play = subscribed()
    play(report(1))
    play.ask(RemoveSource(context=4, srcref=1).encode(WIRE.layout))
    play(WIRE.error(4, 22))
    assert one(play(WIRE.removed(1)), FlowRemoved).reason is not RemovalReason.MONITOR
