"""Questions about single sockets, and the memories of what waits: bounded, in order, given up in the end."""

from __future__ import annotations

from sockdiag_fakes import FakeSocket

from nstat_async.sockdiag import iterate_messages
from nstat_async.sockdiag._lookups import MAX_OUTSTANDING, NO_ANSWER, LookupSource, lookup_request
from nstat_async.sockdiag._output import Output
from nstat_async.sockdiag._waiting import AT_ONCE, MOST_BEHIND, Waiting
from nstat_async.sockdiag._waiting import Memory as LastOnes


def test_lookups_are_batched_and_bounded():
    """Never more answers outstanding than the buffer holds; all are asked in the end, and each is answered once."""
    output = Output()
    queue, answers = LookupSource(output, 0), []
    messages = [FakeSocket(n, local_port=n).message() for n in range(1, 400)]
    for message in messages:
        queue.ask(lookup_request(message, 6), lambda found, m=message: answers.append((m, found)))
    rounds = 0
    while queue.deadline() is not None:
        queue.flush()
        frames = [(send.data, frame) for send in output.commands for frame in iterate_messages(send.data)]
        output.commands.clear()
        assert 0 < len(frames) <= MAX_OUTSTANDING
        rounds += 1
        for _, frame in frames:
            queue.receive(FakeSocket(1).message(frame.sequence))
    assert rounds == 4
    assert [message for message, _ in answers] == messages


def test_lookups_that_are_not_answered_are_given_up():
    """After their patience each is told so, once, and counted: silence is no proof of absence."""
    output = Output()
    queue, answers = LookupSource(output, 0), []
    request = lookup_request(FakeSocket(1).message(), 6)
    output.now = 5.0
    queue.ask(request, answers.append)
    queue.ask(request, answers.append)
    queue.flush()
    assert queue.deadline() == 6.0
    queue.expire()
    assert answers == [NO_ANSWER, NO_ANSWER]
    assert queue.deadline() is None
    assert queue.unanswered == 1


def test_what_waits_is_due_after_its_patience_the_oldest_first_and_those_that_are_too_many_at_once():
    waiting = Waiting(2.0, 3, slack=0.5)
    for now, key in enumerate("abca"):  # who waits anew waits from then on
        waiting.add(key, key.upper(), float(now))
    assert waiting.items() == [("b", "B"), ("c", "C"), ("a", "A")]
    assert (len(waiting), "b" in waiting, waiting.get("b"), waiting.get("d")) == (3, True, "B", None)
    assert waiting.deadline() == 3.5
    assert list(waiting.due(2.9)) == []
    assert list(waiting.due(3.0)) == [("b", "B")]
    waiting.behind = True
    assert waiting.deadline() == 4.5 + MOST_BEHIND
    assert list(waiting.due(3.9 + MOST_BEHIND)) == []
    assert waiting.pop("c") == "C"
    for key in "defg":
        waiting.add(key, key.upper(), 9.0)
    assert waiting.deadline() == 0.0
    assert list(waiting.due(0.0)) == [("a", "A"), ("d", "D")]
    assert [key for key, _ in waiting.take_all()] == ["e", "f", "g"]
    assert (waiting.pop("c"), waiting.deadline(), list(waiting.due(99.0))) == (None, None, [])
    for key in range(AT_ONCE + 1):
        waiting.add(key, key, 0.0)
    assert len(list(waiting.due(99.0))) == AT_ONCE


def test_a_memory_has_the_last_ones():
    memory = LastOnes(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        memory.add(key, value)
    assert (len(memory), "b" in memory) == (2, False)
    assert (memory.pop("a"), memory.pop("a"), memory.pop("c")) == (3, None, 4)
