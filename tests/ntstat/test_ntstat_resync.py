"""Announcements, those that were lost, the second control socket, and what happens when the control goes away."""

from __future__ import annotations

import errno

import pytest
from ntstat_talk import Talk, subscribed
from ntstat_wire import address
from virtual import VirtualMonitor

from nstat_async import (
    BackendUnavailableError,
    Direction,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    Provider,
    ProviderRefused,
    RemovalReason,
)
from nstat_async._contract import OpenChannel
from nstat_async.ntstat import AddAllSources, DarwinErrno, GetUpdate
from nstat_async.ntstat._subscription import DESCRIBE_DELAY, REPLY_TIMEOUT
from nstat_async.testing import EmulatedKernel


def _announcing() -> Talk:
    talk = Talk(discovery="announce", interval=60.0)
    (request,) = talk.asked()
    talk.open_poll = talk.grant(talk.answer(talk.wire.added(1), talk.wire.added(2), talk.wire.success(request.context)))
    talk.poll(2, 1)
    assert {e.preexisting for e in talk.events(FlowAdded)} == {True}
    return talk


def test_an_announced_source_is_described_after_a_moment():
    talk = _announcing()
    assert talk.answer(talk.wire.added(3)) == []
    assert talk.core.next_deadline() == pytest.approx(talk.now + DESCRIBE_DELAY)
    assert talk.later(DESCRIBE_DELAY / 2) == []
    (question,) = talk.later(talk.core.next_deadline() - talk.now)
    assert (type(question), question.srcref) == (GetUpdate, 3)
    talk.answer(talk.wire.updated(3, talk.wire.counts(1), talk.wire.descriptor(2), context=question.context))
    (added,) = talk.events()
    assert (added.preexisting, added.flow.started_ns) == (False, int(100.0 * 1e9))
    # One that told of itself meanwhile is not asked for.
    talk.answer(talk.wire.added(4), talk.report(4))
    assert talk.later(1.0) == []


def test_an_incomplete_poll_counts_the_flows_that_were_reported():
    talk = _announcing()
    talk.answer(talk.wire.added(3))
    talk.core.request_poll(talk.now)
    (request,) = talk.asked()
    questions = talk.answer(talk.wire.error(request.context, DarwinErrno.EPERM))
    talk.refuse(questions, DarwinErrno.ENOBUFS)
    (poll,) = talk.events(PollCompleted)
    assert (poll.flows, poll.complete) == (2, False)


def test_a_scan_that_filled_the_buffer_was_cut_short():
    talk = Talk(discovery="announce", receive_buffer=8192)
    (request,) = talk.asked()
    talk.answer([talk.wire.added(r) for r in range(1, 194)], talk.wire.success(request.context))
    (loss,) = talk.events()
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, None)
    assert talk.core.next_deadline() is not None


def test_a_scan_that_the_kernel_gave_up_is_a_gap_too():
    talk = Talk(discovery="announce")
    (request,) = talk.asked()
    (following,) = talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS))
    assert isinstance(following, AddAllSources)
    assert [e.cause for e in talk.events()] == [LossCause.ANNOUNCEMENT]
    assert talk.core.capabilities.providers == {Provider.TCP}


@pytest.mark.parametrize("kernel", [11, 4])
@pytest.mark.parametrize(("announced", "full"), [(179, False), (180, True)])
def test_a_list_that_filled_seven_tenths_of_the_buffer_may_have_been_cut_short_and_each_provider_has_its_own(
    kernel, announced, full
):
    talk = Talk(kernel, discovery="announce", receive_buffer=8192)
    (request,) = talk.asked()
    data = [talk.wire.added(ref) for ref in range(1, announced)] + [talk.wire.success(request.context)]
    (request,) = talk.answer(data)
    lost = [event.count for event in talk.events(EventsLost)]
    assert lost == ([None] if full else [])
    talk.answer([talk.wire.added(300 + ref) for ref in range(50)], talk.wire.success(request.context))
    assert len(talk.events(EventsLost)) <= 1, "that of the numbers between"


def test_over_a_bridge_a_second_socket_tells_at_once_whether_a_long_list_was_cut_short():
    talk = Talk(discovery="announce", immediate=False, receive_buffer=None)
    (request,) = talk.asked()
    talk.answer([talk.wire.added(ref) for ref in range(1, 194)], talk.wire.success(request.context))
    assert talk.events(EventsLost) == []
    talk.later(0.0)
    assert talk.channels == [0, 1]


def _polled(talk: Talk, channel: int, *reports, number: int = DarwinErrno.ENOENT) -> list:
    """A poll of this control socket is answered, and each question behind it by this error; the next poll."""
    requests = talk.answer(*reports, talk.wire.success(talk.last[channel]), channel=channel)
    while requests and requests[0].srcref != talk.wire.layout.all_sources:
        requests = talk.refuse(requests, number, channel=channel)
    return requests


def _mirrored(talk: Talk, *refs: int, rx: int = 1) -> list:
    """What the second control socket reports of sources of the first: it has numbers of its own."""
    return [talk.report(10 + ref, rx=rx, local=address("192.0.2.1", 1000 + ref)) for ref in refs]


def test_a_lost_announcement_is_counted_and_a_second_socket_takes_over_without_a_seam():
    talk = _announcing()
    before = {flow.local.port: (flow.id, counts.rx_bytes) for flow, counts in talk.core.flows()}
    talk.answer(talk.wire.added(5))
    (loss,) = talk.events()
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, 2)
    requests = talk.due()
    assert talk.channels == [0, 1]
    # The second socket knows the same sockets by other numbers, and those that were missed.
    while isinstance(requests[0], AddAllSources):
        assert requests[0].filter == 0x100000
        requests = talk.answer(talk.wire.success(requests[0].context), channel=1)
    # Meanwhile the first goes on speaking.
    talk.answer(talk.report(1, rx=50), channel=0)
    assert [e.counts.rx_bytes for e in talk.events(FlowUpdated)] == [50]
    ports = {11: 1001, 12: 1002, 13: 1003, 14: 1004}
    data = [talk.report(ref, rx=60, local=address("192.0.2.1", port)) for ref, port in ports.items()]

    # What the first was told before is read first: it is polled, and then the second once more.
    assert len(_polled(talk, 1, *data)) == 1
    assert talk.channels == [0, 1]
    third = talk.report(5, rx=60, local=address("192.0.2.1", 1003))
    _polled(talk, 0, talk.report(1, rx=50), talk.report(2, rx=1), third)
    assert _polled(talk, 1, *data) == []
    assert talk.channels == [1]
    assert talk.closed == [0]
    events = talk.events()
    updated = {e.flow.id: e.delta.rx_bytes for e in events if isinstance(e, FlowUpdated)}
    assert updated == {before[1001][0]: 10, before[1002][0]: 59}
    added = [e.flow for e in events if isinstance(e, FlowAdded) and not e.preexisting]
    assert sorted(f.local.port for f in added) == [1003, 1004]
    assert len({f.id for f in added} | set(updated)) == 4
    gone = [e for e in events if isinstance(e, FlowRemoved)]
    assert {e.reason for e in gone} <= {RemovalReason.GONE}
    assert [e.cause for e in events if isinstance(e, EventsLost)].count(LossCause.RESYNC) == 1
    # From now on the second speaks for all, under the old ids.
    talk.answer(talk.report(11, rx=99, local=address("192.0.2.1", 1001)), channel=1)
    (event,) = talk.events()
    assert (event.flow.id, event.delta.rx_bytes) == (before[1001][0], 39)
    talk.answer(talk.wire.removed(1), channel=0)  # what is left in the first means nothing
    assert talk.events() == []


def test_what_the_kernel_refuses_to_the_second_socket_alone_is_said_when_it_takes_over():
    talk = _announcing()
    talk.answer(talk.wire.added(5))
    requests = talk.due()
    while isinstance(requests[0], AddAllSources):
        context, udp = requests[0].context, requests[0].provider in {4, 5}
        answer = talk.wire.error(context, DarwinErrno.EPERM) if udp else talk.wire.success(context)
        requests = talk.answer(answer, channel=1)
    _polled(talk, 1, *_mirrored(talk, 1))
    _polled(talk, 0, talk.report(1))
    assert not talk.events(ProviderRefused), "the first one speaks"
    _polled(talk, 1, *_mirrored(talk, 1))
    assert [(event.provider, event.errno) for event in talk.events(ProviderRefused)] == [(Provider.UDP, 1)]
    assert talk.core.capabilities.providers == {Provider.TCP}
    assert any("udp: refused" in note for note in talk.core.capabilities.notes)


def test_a_flow_of_which_the_first_has_no_news_does_not_hold_up_the_second():
    talk = _announcing()
    talk.answer(talk.wire.added(5))
    talk.grant(talk.due())
    _polled(talk, 1, *_mirrored(talk, 1))
    _polled(talk, 0, talk.report(1), number=DarwinErrno.EAGAIN)
    _polled(talk, 1, *_mirrored(talk, 1))
    assert talk.channels == [1]
    assert not talk.events(FlowAdded), "what both know goes on"


def test_another_gap_while_two_sockets_are_compared_changes_nothing():
    talk = _announcing()
    talk.answer(talk.wire.added(5))
    requests = talk.due()
    talk.answer(talk.wire.added(8), channel=0)
    talk.grant(requests)
    for channel, reports in ((1, _mirrored(talk, 1)), (0, [talk.report(1)]), (1, _mirrored(talk, 1))):
        _polled(talk, channel, *reports)
    assert talk.channels == [1]


def test_an_end_that_only_the_second_heard_of_is_reported_when_it_takes_over():
    talk = _announcing()
    talk.answer(talk.wire.added(3))
    talk.answer(talk.wire.added(5))
    talk.grant(talk.due())
    _polled(talk, 1, *_mirrored(talk, 1, 2))
    final = talk.wire.descriptor(2, local=address("192.0.2.1", 1002), remote=address("192.0.2.9", 443))
    talk.answer(talk.wire.goodbye(12, talk.wire.counts(99, 99), final), channel=1)
    talk.events()
    _polled(talk, 0, talk.report(1), talk.report(2))
    _polled(talk, 1, *_mirrored(talk, 1))
    assert talk.channels == [1]
    assert [(e.flow.local.port, e.final, e.counts.rx_bytes) for e in talk.events(FlowRemoved) if e.final] == [
        (1002, True, 99)
    ]


@pytest.mark.parametrize("missed", [0, 1])
def test_an_audit_counts_what_was_there_when_it_began(missed):
    talk = _announcing()
    while len(talk.channels) == 1:
        requests = talk.due()
        if len(talk.channels) == 1:
            _polled(talk, 0, talk.report(1), talk.report(2))
    talk.grant(requests)
    _polled(talk, 1, *_mirrored(talk, 1, 2, *(3,) * missed))
    talk.answer(*_mirrored(talk, 4), channel=1)
    talk.events()
    _polled(talk, 0, talk.report(1), talk.report(2))
    assert [loss.detail.split(" ")[0] for loss in talk.events(EventsLost)] == ["1"] * missed
    assert talk.channels == [0, 1][: 1 + missed]


@pytest.mark.parametrize(
    ("kernel", "interval", "seconds"),
    [("xnu-10063.141.1", 1.0, 15), ("xnu-10063.141.1", 10.0, 100), ("xnu-11417.121.6", 1.0, 60)],
)
def test_looks_at_a_second_socket_keep_their_distance(kernel, interval, seconds):
    monitor = VirtualMonitor(EmulatedKernel(kernel), interval=interval)
    monitor.run(seconds - 0.5)
    assert monitor.session.statistics()["audits"] == 0
    monitor.run(1.0)
    assert monitor.session.statistics()["audits"] == 1


@pytest.mark.parametrize("fails", [True, False])
def test_a_control_that_closes_or_fails_is_opened_again_after_growing_pauses(fails):
    talk = subscribed()
    talk.poll(1)
    kept = talk.events(FlowAdded)[0].flow.id
    if fails:
        talk.core.channel_failed(0, errno.EPIPE, talk.now)
    else:
        talk.core.channel_closed(0, talk.now)
    assert talk.asked() == []
    assert [e.cause for e in talk.events()] == [LossCause.RESYNC]
    pauses = []
    for _ in range(4):
        pauses.append(talk.core.next_deadline() - talk.now)
        talk.now = talk.core.next_deadline()
        talk.core.handle_deadline(talk.now)
        (command,) = talk.core.commands()
        assert isinstance(command, OpenChannel)
        talk.core.channel_failed(command.channel, errno.ENOENT, talk.now)
        talk.core.commands()
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    talk.open_poll = talk.grant(talk.due())
    talk.poll(1, rx=7)
    events = talk.events(FlowAdded, FlowRemoved, FlowUpdated)
    assert [(type(e), e.flow.id, e.counts.rx_bytes) for e in events] == [(FlowUpdated, kept, 7)]
    assert talk.core.failure is None
    assert isinstance(talk.due()[0], GetUpdate)  # and polls go on
    assert talk.closed[:1] == [0]


def test_a_control_that_stays_away_is_a_failure():
    talk = subscribed()
    talk.core.channel_closed(0, talk.now)
    for _ in range(10):
        for command in talk.core.commands():
            if isinstance(command, OpenChannel):
                talk.core.channel_failed(command.channel, errno.ENOENT, talk.now)
        if talk.core.failure is not None:
            break
        talk.now = talk.core.next_deadline()
        talk.core.handle_deadline(talk.now)
    assert isinstance(talk.core.failure, BackendUnavailableError)


def test_a_second_socket_that_the_kernel_cannot_answer_is_polled_again_after_growing_pauses():
    talk = Talk()
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    talk.poll(1)
    talk.events()
    talk.now += 1.0
    (request,) = talk.reopen()
    (loss,) = talk.events(EventsLost)
    assert loss.time == 1e9 + 101.0
    pauses = []
    for _ in range(7):
        talk.answer(talk.wire.error(request.context, DarwinErrno.EPERM))
        pauses.append(round(talk.core.next_deadline() - talk.now, 3))
        (request,) = talk.due()
        assert talk.core.next_deadline() > talk.now, "it is asked for once"
    assert pauses == [0.05, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0]
    talk.answer(talk.report(1), talk.wire.success(request.context))
    (completed,) = talk.events(PollCompleted)
    assert (completed.flows, completed.complete) == (1, True)
    assert talk.core.next_deadline() == talk.now + 1.0, "the next poll comes an interval later"


def test_a_first_socket_that_goes_away_while_the_second_waits_for_it_is_replaced_at_the_next_poll():
    talk = _announcing()
    talk.answer(talk.wire.added(5))
    (poll,) = talk.grant(talk.due())
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(poll.context), channel=1)
    talk.events()
    talk.now += 1.0
    talk.core.channel_closed(0, talk.now)
    (poll,) = talk.asked()
    assert talk.core.next_deadline() == talk.now + REPLY_TIMEOUT
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(poll.context), channel=1)
    assert [event.cause for event in talk.events(EventsLost)] == [LossCause.RESYNC]
    assert len(list(talk.core.flows())) == 2
    assert talk.core.statistics()["resynchronisations"] == 1
    assert talk.core.failure is None


def test_a_poll_that_was_under_way_when_the_control_went_away_is_made_up_for():
    talk = subscribed(interval=None)
    talk.poll(1)
    assert talk.core.request_poll(talk.now) == 2
    talk.asked()
    (request,) = talk.reopen()
    talk.events()
    (again,) = talk.answer(talk.report(1), talk.wire.success(request.context))
    assert talk.answer(talk.report(1), talk.wire.success(again.context)) == []
    assert [event.serial for event in talk.events(PollCompleted)] == [2, 3]


def test_a_flow_that_shows_up_behind_a_new_control_socket_s_list_is_new_if_it_is_younger_than_that_socket():
    """An older one may have been counted already: one that was awaited too long has another id now."""
    talk = subscribed(interval=3600.0)
    talk.poll(1)
    talk.now += 50.0
    (poll,) = talk.reopen()
    talk.answer(talk.report(1), talk.wire.success(poll.context))
    talk.events()
    talk.now += 10.0
    for ref, age in ((2, 5), (3, 30), (4, 100)):
        talk.answer(talk.report(ref, start_timestamp=10**13, timestamp=10**13 + age * 10**9))
    assert [event.preexisting for event in talk.events(FlowAdded)] == [False, True, True]


def _polled_whole(talk: Talk, requests: list) -> None:
    """Answer a poll that is open, and whatever is asked behind it: nothing more is there."""
    while requests:
        (request, *_) = requests
        whole = request.srcref == talk.wire.layout.all_sources
        requests = talk.answer(talk.wire.success(request.context)) if whole else talk.refuse(requests)


def _counted(talk: Talk, ref: int, rx: int) -> None:
    """Counters come twice and no description: the flow is reported as it is."""
    for _ in range(2):
        talk.answer(talk.wire.counted(ref, talk.wire.counts(rx, rx)))


@pytest.mark.parametrize("kernel", [4, 11])
def test_a_flow_is_one_that_was_awaited_only_where_its_description_says_so(kernel):
    talk = subscribed(kernel, interval=None)
    _polled_whole(talk, talk.poll(1, 2))
    _counted(talk, 5, 1)
    known = [event.flow.id for event in talk.events(FlowAdded)]
    assert len(known) == 3
    requests = talk.reopen()
    talk.answer(talk.report(1))
    _polled_whole(talk, requests)
    assert [flow.id for flow, _ in talk.core.flows()] == known
    assert len(talk.events()) == 2, "a loss and a poll"
    _counted(talk, 4, 3)
    talk.answer(talk.report(2, pid=9, upid=9), talk.report(3))
    kinds = [(type(event), event.flow.id in known) for event in talk.events(FlowAdded, FlowUpdated)]
    assert kinds == [(FlowAdded, False), (FlowUpdated, True), (FlowAdded, False)]


def test_counters_or_a_description_that_came_over_one_control_socket_alone_are_kept():
    talk = subscribed(4, interval=None)

    def described(ref, remote="192.0.2.9"):
        ends = {"local": address("192.0.2.1", 1000 + ref), "remote": address(remote, 443)}
        return talk.wire.described(ref, talk.wire.descriptor(2, **ends), context=9)

    (request,) = talk.open_poll
    reports = [talk.report(ref, rx=5, state=0) for ref in (1, 2)]
    _polled_whole(talk, talk.answer(*reports, described(3), talk.wire.success(request.context)))
    first, second, third = (event.flow.id for event in talk.events(FlowAdded))
    requests = talk.reopen()
    talk.answer(described(1), described(2, remote=None), talk.report(3, rx=7, state=0))
    _polled_whole(talk, requests)
    updates = {event.flow.id: event for event in talk.events(FlowUpdated)}
    assert {name: event.counts.rx_bytes for name, event in updates.items()} == {second: 5, third: 7}
    flow = updates[second].flow
    assert (flow.remote, flow.direction) == (None, Direction.OUTBOUND), "it was connected, and is no more"
    assert {flow.id: counts.rx_bytes for flow, counts in talk.core.flows()} == {first: 5, second: 5, third: 7}


def test_on_older_kernels_an_accepted_connection_stays_one_on_a_new_control_socket_that_never_saw_its_listener():
    talk = subscribed(8, interval=None)
    (request,) = talk.open_poll
    accepted = talk.report(1, state=3)
    _polled_whole(talk, talk.answer(accepted, talk.report(2), talk.wire.success(request.context)))
    directions = [event.flow.direction for event in talk.events(FlowAdded)]
    assert directions == [Direction.INBOUND, Direction.OUTBOUND]
    requests = talk.reopen()
    talk.answer(talk.report(1), talk.report(2))
    _polled_whole(talk, requests)
    assert [flow.direction for flow, _ in talk.core.flows()] == directions
