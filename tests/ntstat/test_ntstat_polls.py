"""When a session polls, how a poll ends, and what one that does not end as it should is taken for."""

from __future__ import annotations

import errno

import pytest
from ntstat_talk import Talk, subscribed
from virtual import VirtualMonitor

from nstat_async import EventsLost, FlowAdded, FlowRemoved, LossCause, PollCompleted
from nstat_async.ntstat import DarwinErrno, GetUpdate, Session
from nstat_async.ntstat._subscription import REPLY_TIMEOUT
from nstat_async.testing import EmulatedKernel


def test_a_paced_poll_goes_on_while_the_kernel_says_so_also_through_an_empty_piece():
    talk = subscribed()
    context = talk.open_poll[0].context
    again = talk.answer([d for r in range(1, 101) for d in talk.report(r)], talk.wire.success(context, flags=2))
    assert again == talk.open_poll
    assert talk.answer(talk.report(101), talk.wire.success(context, flags=2)) == again
    assert talk.answer(talk.wire.success(context)) == []
    *added, completed = talk.events()
    assert {type(e) for e in added} == {FlowAdded}
    assert len(added) == 101
    assert (completed.flows, completed.complete) == (101, True)


def test_a_displaced_poll_of_another_time_is_ignored_and_an_own_one_is_incomplete():
    talk = subscribed()
    context = talk.open_poll[0].context
    assert talk.answer(talk.wire.error(context + 1000, DarwinErrno.EAGAIN)) == []
    assert talk.answer(talk.report(1), talk.wire.error(context, DarwinErrno.EAGAIN)) == []
    assert talk.events(PollCompleted)[0].complete is False
    assert isinstance(talk.due()[0], GetUpdate)


@pytest.mark.parametrize("immediate", [True, False])
def test_a_full_buffer_ends_a_poll_s_piece_and_the_same_request_goes_on(immediate):
    talk = subscribed(immediate=immediate)
    request = talk.open_poll[0]
    for attempt in range(4):
        requests = talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS))
        if immediate and attempt < 3:
            assert requests == []  # first what fills the buffer is read
            talk.now += 1.0
            requests = talk.drained()
            assert talk.core.next_deadline() == talk.now + REPLY_TIMEOUT
        assert requests == ([request] if attempt < 3 else [])
    assert talk.events(PollCompleted)[0].complete is False


def test_what_was_sent_again_and_then_stays_without_an_answer_is_lost_like_any_other():
    talk = subscribed()
    (request,) = talk.open_poll
    talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS))
    assert talk.drained() == [request]
    (renewed,) = talk.drained()
    assert renewed.context != request.context


def test_after_a_drained_immediate_channel_a_missing_success_is_lost():
    talk = subscribed()
    contexts = [talk.open_poll[0].context]
    talk.answer(talk.report(1))
    for _ in range(3):
        (request,) = talk.drained()
        contexts.append(request.context)
    assert len(set(contexts)) == 4  # a new poll each time, so the kernel begins anew
    assert talk.drained() == []
    assert talk.events(PollCompleted)[0].complete is False
    assert talk.core.statistics()["replies_lost"] == 4
    assert isinstance(talk.due()[0], GetUpdate)  # and polls go on


def test_over_a_bridge_a_missing_success_is_lost_after_a_time():
    talk = subscribed(immediate=False)
    assert talk.drained() == []
    assert talk.core.next_deadline() == pytest.approx(talk.now + REPLY_TIMEOUT)
    assert talk.later(REPLY_TIMEOUT - 0.1) == []
    talk.core.handle_deadline(talk.now)
    assert talk.asked() == [], "it is not over yet"
    (request,) = talk.later(talk.core.next_deadline() - talk.now)
    assert talk.core.next_deadline() == pytest.approx(talk.now + REPLY_TIMEOUT)
    assert request.context != talk.open_poll[0].context
    # The first answer comes after all, and means nothing any more.
    assert talk.answer(talk.wire.success(talk.open_poll[0].context)) == []
    assert talk.answer(talk.wire.success(request.context)) == []
    assert len(talk.events(PollCompleted)) == 1


def test_over_a_bridge_that_answers_nothing_polls_end_and_go_on():
    talk = subscribed(immediate=False, interval=30.0)
    talk.answers_probes = False
    end = talk.now + 70.0
    while talk.now < end:
        talk.due()
    assert [(event.serial, event.complete) for event in talk.events(PollCompleted)] == [
        (1, False),
        (2, False),
        (3, False),
    ]


def test_over_a_bridge_that_fell_silent_this_is_said_once_long_before_the_poll_is_given_up():
    talk = subscribed(immediate=False, interval=30.0)
    talk.core.epoch_offset = 1e9
    talk.answers_probes = False
    began = talk.now
    talk.later(REPLY_TIMEOUT)
    (loss,) = talk.events()
    assert (loss.cause, loss.count, loss.time) == (LossCause.SILENCE, None, 1e9 + began + REPLY_TIMEOUT)
    assert "2 s" in loss.detail
    while not (polls := talk.events()):
        talk.due()
    (poll,) = polls
    assert (poll.complete, poll.time) == (False, 1e9 + talk.now)
    talk.answer(talk.report(1))  # it speaks again
    while not (losses := talk.events(EventsLost)):
        talk.due()
    assert [each.cause for each in losses] == [LossCause.SILENCE]


def test_over_a_bridge_a_request_without_an_answer_is_no_silence_while_anything_comes():
    talk = subscribed(immediate=False)
    talk.answer(talk.report(1))
    talk.later(REPLY_TIMEOUT)
    assert talk.events(EventsLost) == []


def test_polls_keep_their_interval_and_missed_turns_are_skipped():
    talk = subscribed(interval=30.0)
    talk.poll()
    assert talk.core.next_deadline() == talk.now + 30.0
    talk.open_poll = talk.due()
    assert talk.core.next_deadline() > talk.now, "it is asked for once"
    start = talk.now
    talk.now += 64.0  # the answer takes two turns and more
    talk.poll()
    assert talk.core.next_deadline() == pytest.approx(start + 90.0)
    assert len(talk.due()) == 1


def test_without_an_interval_a_poll_comes_only_when_wanted():
    """Only a look at a second control socket comes by itself, once a minute."""
    talk = subscribed(interval=None)
    talk.poll(1)
    assert talk.core.next_deadline() == pytest.approx(talk.now + 60.0)
    talk.core.request_poll(talk.now)
    talk.core.request_poll(talk.now)
    (request,) = talk.asked()
    assert isinstance(request, GetUpdate)
    talk.core.request_poll(talk.now)
    assert talk.asked() == []  # one is under way
    (following,) = talk.answer(talk.report(1), talk.wire.success(request.context))
    assert following.context != request.context


@pytest.mark.parametrize("more", [119.0, 120.0])
@pytest.mark.parametrize("what", ["continued", "refused"])
def test_a_poll_without_an_end_is_given_up_after_two_minutes(more, what):
    talk = subscribed(immediate=False)
    (request,) = talk.open_poll
    talk.now += more
    wire = talk.wire
    answer = wire.success(request.context, flags=2) if what == "continued" else wire.error(request.context, 55)
    assert talk.answer(answer) == ([request] if more < 120 else [])
    assert [poll.complete for poll in talk.events(PollCompleted)] == ([] if more < 120 else [False])


def test_a_poll_that_comes_further_between_refusals_is_asked_for_as_often_as_it_takes():
    talk = subscribed(immediate=False)
    (request,) = talk.open_poll
    for ref in range(1, 10):
        assert talk.answer(talk.report(ref), talk.wire.error(request.context, DarwinErrno.ENOBUFS)) == [request]
    for attempt in range(4):
        assert talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS)) == [request] * (attempt < 2)


def test_flows_between_polls_come_whole_with_their_goodbye():
    talk = subscribed()
    talk.poll()
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=10)))
    added, removed = talk.events(FlowAdded, FlowRemoved)
    assert (removed.final, removed.counts.rx_bytes, added.preexisting) == (True, 9, False)
    assert talk.next_poll() == []  # its number is accounted for


def test_flows_that_began_before_the_subscription_are_preexisting():
    talk = Talk()
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    old = talk.report(1, start_timestamp=10**9, timestamp=50 * 10**9)
    (context,) = [m.context for m in talk.open_poll]
    talk.answer(old, talk.wire.success(context))
    assert talk.events(FlowAdded)[0].preexisting is True
    talk.now += 5
    talk.answer(talk.report(2, start_timestamp=60 * 10**9, timestamp=61 * 10**9))
    added = talk.events(FlowAdded)[0]
    assert added.preexisting is False
    assert added.flow.started_ns == pytest.approx((talk.now + 1e9 - 1) * 1e9)
    talk.answer(talk.report(3, start_timestamp=10**9, timestamp=61 * 10**9))
    assert talk.events(FlowAdded)[0].preexisting is True, "whenever it is found"


def test_whoever_wants_a_poll_hears_its_number_whatever_the_session_does_now():
    talk = Talk(interval=None)
    assert Session(talk.wire.kernel).request_poll(1.0) == 1
    assert talk.core.request_poll(talk.now) == 1, "subscribing"
    talk.subscribe()
    talk.poll(1)
    assert talk.events(PollCompleted)[0].serial == 1
    talk.now += 5.0
    talk.core.epoch_offset = 1e9
    assert talk.core.request_poll(talk.now) == 2
    (request,) = talk.asked()
    talk.answer(talk.wire.success(request.context), talk.wire.error(talk.last[0] + 1, DarwinErrno.ENOENT))
    assert {event.time for event in talk.events(PollCompleted)} == {1e9 + 105.0}
    talk.core.channel_closed(0, talk.now)
    assert talk.core.request_poll(talk.now) == 3, "away"


def test_an_overloaded_kernel_is_told_and_spoils_the_poll():
    talk = subscribed()
    talk.core.epoch_offset = 1e9
    talk.core.channel_failed(0, errno.ENOBUFS, talk.now + 3.0)
    assert [(e.cause, e.time) for e in talk.events()] == [(LossCause.KERNEL_BUFFER, 1e9 + 103.0)]
    talk.poll(1)
    assert talk.events(PollCompleted)[0].complete is False


def test_statistics_count_what_was_asked_and_what_became_of_it():
    talk = subscribed()
    names = ("requests", "polls", "verifications", "requests_refused", "polls_incomplete")
    assert [talk.core.statistics()[name] for name in names] == [5, 1, 0, 0, 0]
    talk.poll(2, 1)
    assert [talk.core.statistics()[name] for name in names] == [9, 1, 4, 0, 0]
    (question,) = talk.next_poll(1)
    talk.answer(talk.wire.error(question.context, DarwinErrno.ENOENT))
    assert [talk.core.statistics()[name] for name in names] == [15, 2, 9, 0, 0]
    (request,) = talk.due()
    talk.answer(talk.report(1), talk.wire.error(request.context, DarwinErrno.EPERM))
    assert [talk.core.statistics()[name] for name in names] == [16, 3, 9, 1, 1]


@pytest.mark.parametrize(("size", "small"), [(65_535, True), (65_536, False), (None, False)])
def test_what_is_a_small_receive_buffer_is_noted(size, small):
    talk = subscribed(receive_buffer=size)
    assert any("receive buffer is small" in note for note in talk.core.capabilities.notes) is small


@pytest.mark.parametrize(("lost", "small"), [(1, False), (2, True)])
def test_over_a_bridge_a_poll_that_lost_more_than_a_quarter_tells_of_a_small_buffer(lost, small):
    talk = subscribed(receive_buffer=None, immediate=False)
    talk.poll(4, 3, 2, 1)
    for question in talk.next_poll(*range(1, 5 - lost)):
        talk.answer(
            talk.wire.updated(question.srcref, talk.wire.counts(9), talk.wire.descriptor(2), context=question.context)
        )
    assert any("receive buffer is small" in note for note in talk.core.capabilities.notes) is small


@pytest.mark.parametrize(
    ("name", "receive_buffer", "flows"), [("xnu-7195.141.2", 8192, 150), ("xnu-11417.121.6", 16384, 60)]
)
def test_in_a_small_buffer_a_poll_of_known_flows_finds_room_in_portions_or_as_counters_alone(
    name, receive_buffer, flows
):
    kernel = EmulatedKernel(name, receive_space=receive_buffer)
    made = [kernel.open_tcp(remote=("192.0.2.1", n + 1)) for n in range(flows)]
    monitor = VirtualMonitor(kernel, interval=None, receive_buffer=receive_buffer)
    monitor.run(0.5)
    before = monitor.session.statistics()["verifications"]
    for flow in made:
        flow.transfer(7, 0)
    monitor.poll()
    assert monitor.session.statistics()["verifications"] == before, "no flow is asked for by itself"
    assert [counts.rx_bytes for _, counts in monitor.session.flows()] == [7] * flows
