"""What a poll left out is asked for, one by one: was it lost, has it gone, or had it nothing to report?"""

from __future__ import annotations

import pytest
from ntstat_talk import Talk, subscribed
from virtual import VirtualMonitor

from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    Provider,
    RemovalReason,
)
from nstat_async.ntstat import DarwinErrno, GetDetails, GetUpdate, QuerySource, _subscription, _verification
from nstat_async.ntstat._constants import MAX_BATCH
from nstat_async.testing import EmulatedKernel


def _absent_source(talk: Talk) -> int:
    """Two sources, of which the second poll reports one; the context of the question about the other."""
    talk.subscribe()
    talk.poll(2, 1)
    talk.events()
    (question,) = talk.next_poll(1)
    assert (type(question), question.srcref, question.flags) == (GetUpdate, 2, 0)
    return question.context


def test_a_source_that_a_poll_left_out_and_that_answers_was_in_a_lost_batch():
    talk = Talk()
    context = _absent_source(talk)
    data = talk.wire.updated(2, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=4), context=context)
    assert talk.answer(data) == []
    events = talk.events()
    assert [type(e) for e in events] == [FlowUpdated, EventsLost, PollCompleted]
    assert (events[1].cause, events[1].count, events[2].complete) == (LossCause.BATCH, 1, True)


def test_counters_alone_answer_what_an_old_kernel_is_asked_about_one_source():
    talk = Talk(4)
    (request,) = talk.asked()
    announced = (talk.wire.added(1), talk.wire.added(2))
    talk.open_poll = talk.grant(talk.answer(*announced, talk.wire.success(request.context)))
    descriptors = [talk.report(ref)[1] for ref in (2, 1)]
    (query,) = talk.answer(descriptors, talk.wire.success(talk.open_poll[0].context))
    counts = {ref: talk.wire.counted(ref, talk.wire.counts(5), context=query.context) for ref in (2, 1)}
    assert talk.answer(*counts.values(), talk.wire.success(query.context)) == []
    assert talk.due() == []  # what was announced is described by now
    (query,) = talk.due()
    talk.events()
    (question,) = talk.answer(counts[1], talk.wire.success(query.context))
    assert (type(question), question.srcref) == (QuerySource, 2)
    talk.answer(talk.wire.counted(2, talk.wire.counts(9), context=question.context))
    *_, loss, poll = talk.events()
    assert (loss.cause, loss.count, poll.complete) == (LossCause.BATCH, 1, True)


def test_a_source_that_a_poll_left_out_and_that_is_unknown_has_gone():
    talk = Talk()
    talk.answer(talk.wire.error(_absent_source(talk), DarwinErrno.ENOENT))
    events = talk.events()
    assert [type(e) for e in events] == [FlowRemoved, EventsLost, PollCompleted]
    assert (events[0].reason, events[0].final, events[1].cause) == (
        RemovalReason.GONE, False, LossCause.FINAL_COUNTS,
    )  # fmt: skip


@pytest.mark.parametrize("error", [DarwinErrno.EAGAIN, DarwinErrno.EIO])
def test_a_source_that_has_nothing_to_report_or_cannot_be_read_stays_and_the_poll_is_complete(error):
    talk = Talk()
    talk.answer(talk.wire.error(_absent_source(talk), error))
    asked = []
    for poll_number in range(1, 17):
        (poll,) = talk.events()
        assert isinstance(poll, PollCompleted)
        assert poll.complete
        assert len(list(talk.core.flows())) == 2
        for question in talk.next_poll(1):
            asked.append(poll_number)
            talk.answer(talk.wire.error(question.context, error))
    assert asked == [2, 5, 10], "the pause grows"


def test_numbers_above_are_asked_for_when_a_poll_lacks_more_than_what_cannot_be_read():
    talk = subscribed()
    talk.poll(1, 2, 3)

    def probes_of_a_poll(*refs: int, asks: list[int]) -> int:
        before = talk.probes
        questions = talk.next_poll(*refs)
        assert [question.srcref for question in questions] == asks
        talk.refuse(questions, DarwinErrno.EIO)
        return talk.probes - before

    assert probes_of_a_poll(1, 3, asks=[2]) > 0
    assert probes_of_a_poll(1, 3, asks=[]) == 0
    assert probes_of_a_poll(1, 3, asks=[2]) > 0
    assert probes_of_a_poll(1, asks=[3]) > 0


@pytest.mark.parametrize(("most", "unreadable", "found", "complete"), [(99, 6, 4, True), (2, 6, 0, False)])
def test_behind_sources_that_cannot_be_read_a_first_poll_whose_batch_was_refused_finds_the_others(
    monkeypatch, most, unreadable, found, complete
):
    """Their numbers show only by asking; a kernel that answers so of every number is not asked for ever."""
    monkeypatch.setattr(_subscription, "MAX_VERIFICATIONS", most)
    kernel = EmulatedKernel("xnu-11417.121.6")
    flows = [kernel.open_tcp(remote=("192.0.2.1", port)) for port in range(1, 11)]
    for flow in flows[-unreadable:]:  # the newest have the first numbers
        flow.unreadable = True
    kernel.faults.lose_batches = 1.0
    monitor = VirtualMonitor(kernel, providers="tcp")
    monitor.run(0.5)
    poll = monitor.picture.last_poll
    assert (monitor.picture.polls, poll.flows, poll.complete) == (1, found, complete)


@pytest.mark.parametrize(("most", "asked", "complete"), [(3, [4, 2, 3], True), (2, [4, 3], False)])
def test_a_poll_that_leaves_out_more_than_can_be_asked_for_is_incomplete(monkeypatch, most, asked, complete):
    monkeypatch.setattr(_verification, "MAX_VERIFICATIONS", most)
    talk = subscribed()
    talk.poll(1, 2, 3)
    talk.refuse(talk.next_poll(1, 2), DarwinErrno.ENOBUFS)
    talk.events()
    questions = talk.next_poll(1, 5)
    assert [question.srcref for question in questions] == asked, "first what was not heard of for longest"
    talk.refuse(questions)
    assert [poll.complete for poll in talk.events(PollCompleted)] == [complete]


def test_the_largest_number_is_asked_for_and_not_the_one_that_means_all():
    talk = subscribed()
    talk.poll(1)
    talk.answers_probes = False
    (request,) = talk.due()
    largest = talk.wire.layout.all_sources - 1
    report = talk.wire.report(largest - 1, talk.wire.counts(1), talk.wire.descriptor(2))
    questions = talk.answer(report, talk.wire.success(request.context))
    assert [question.srcref for question in questions] == [1, largest]


def test_a_question_that_stays_without_an_answer_leaves_the_poll_incomplete():
    talk = Talk()
    _absent_source(talk)
    assert talk.core.polling
    talk.drained()
    assert talk.events(PollCompleted)[0].complete is False
    assert not talk.core.polling
    assert talk.core.next_deadline() == pytest.approx(talk.now + 1.0, abs=1e-3), "the next poll"


def test_what_has_no_details_is_asked_for_an_update():
    talk = subscribed(12, extras=True, providers={Provider.TCP})
    (poll,) = talk.drained()
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(poll.context))
    (poll,) = talk.due()
    (question,) = talk.answer(talk.report(1), talk.wire.success(poll.context))
    assert (type(question), question.srcref) == (GetDetails, 2)
    (question,) = talk.answer(talk.wire.error(question.context, DarwinErrno.EOPNOTSUPP))
    assert (type(question), question.srcref) == (GetUpdate, 2)


def test_numbers_below_the_highest_that_never_appeared_are_asked_for():
    talk = subscribed()
    questions = talk.poll(5, 2)
    assert [(q.srcref, q.flags) for q in questions] == [(1, 0), (3, 0), (4, 0)]
    by_ref = {q.srcref: q.context for q in questions}
    talk.answer(
        talk.wire.error(by_ref[1], DarwinErrno.ENOENT),
        talk.wire.error(by_ref[3], DarwinErrno.ENOENT),
        talk.wire.updated(4, talk.wire.counts(7, 7), talk.wire.descriptor(2), context=by_ref[4]),
    )
    losses = {e.cause: e.count for e in talk.events(EventsLost)}
    assert losses == {LossCause.GOODBYE: 2, LossCause.BATCH: 1}
    assert talk.next_poll(5, 4, 2) == []  # and only once


def test_after_the_first_poll_a_few_numbers_above_all_are_asked_for_in_case_the_newest_batch_was_lost():
    talk = Talk()
    talk.answers_probes = False
    talk.subscribe()
    questions = talk.poll(2, 1)
    assert [q.srcref for q in questions] == [3, 4, 5, 6]
    answer = talk.wire.updated(3, talk.wire.counts(7, 7), talk.wire.descriptor(2), context=questions[0].context)
    more = talk.answer(answer)
    assert [q.srcref for q in more] == [7]
    for question in [*questions[1:], *more]:
        talk.answer(talk.wire.error(question.context, DarwinErrno.ENOENT))
    events = talk.events()
    assert len([e for e in events if isinstance(e, FlowAdded)]) == 3
    assert next(e for e in events if isinstance(e, PollCompleted)).complete
    assert talk.next_poll(3, 2, 1) == []  # it was answered whole: there is no need any more


@pytest.mark.parametrize(("size", "probes"), [(-(-MAX_BATCH * 4 // 3), 4), (-(-MAX_BATCH * 4 // 3) - 2, 8), (None, 4)])
def test_where_a_batch_need_not_fit_each_poll_asks_for_numbers_above_all(size, probes):
    talk = subscribed(receive_buffer=size)
    talk.poll(1)
    (request,) = talk.due()
    talk.answer(talk.report(1), talk.wire.success(request.context))
    assert talk.probes == probes


@pytest.mark.parametrize(("size", "at_once"), [(1000, 1), (8192, 6), (1 << 20, 32), (None, 6)])
def test_so_many_single_questions_are_open_as_their_answers_have_room(size, at_once):
    talk = subscribed(receive_buffer=size)
    questions = talk.poll(40)
    assert [question.srcref for question in questions] == list(range(1, at_once + 1))
    assert [q.srcref for q in talk.answer(talk.wire.error(questions[0].context, DarwinErrno.ENOENT))] == [at_once + 1]
