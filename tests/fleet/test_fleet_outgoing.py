"""What a publisher makes of events: which lines, in which messages, when."""

from __future__ import annotations

import attrs
import pytest
from fleet_world import WALL, Machine, count

from nstat_async import EventsLost, FlowAdded, FlowUpdated, LossCause, PollCompleted, json
from nstat_async.fleet import Outgoing, decode
from nstat_async.fleet._outgoing import STATE_SECONDS


def lines(message):
    return [json.loads(line) for line in decode(message.data)[1]]


def publisher(**options):
    """One that has said that it begins."""
    out = Outgoing("web", "0" * 8, compress=False, **options)
    assert decode(out.next_message(0.0).data)[0].part == 0
    return out


def flow(name="c1"):
    return attrs.evolve(Machine("web").begin().flow, id=name)


def begun(name="c1", **more):
    return FlowAdded(WALL, flow(name), count(0), **{"preexisting": False, **more})


def test_a_complete_poll_comes_behind_the_events_that_it_completed_and_only_the_newest():
    out = publisher()
    polls = [PollCompleted(WALL + number, number, complete=True) for number in range(2)]
    out.feed([polls[0], begun("c1"), polls[1], begun("c2")])
    first = out.next_message(1.0)
    assert [getattr(line, "flow", line) for line in lines(first)] == [flow("c1"), flow("c2"), polls[1]]
    assert out.next_message(1.0) is None
    out.feed([begun("c3")])
    assert len(lines(out.next_message(2.0))) == 1, "the poll was said"


def test_a_poll_waits_for_the_last_of_several_messages():
    out = publisher()
    long = len(json.dumps(begun()))
    out.most_bytes = 2 * long + 3
    poll = PollCompleted(WALL, 3, complete=True)
    out.feed([begun("c1"), begun("c2"), begun("c3"), poll])
    said = [lines(out.next_message(1.0)) for _ in range(2)]
    assert [len(each) for each in said] == [2, 2]
    assert said[1][1] == poll


@pytest.mark.parametrize(("room", "number"), [(2, 1), (3, 2)])
def test_so_many_lines_as_fit_are_in_a_message(room, number):
    """Each line takes its end along; a message is smaller than it may be."""
    out = publisher()
    long = len(json.dumps(begun()))
    out.most_bytes = 2 * long + room - 1
    out.feed([begun("c1"), begun("c2")])
    assert len(lines(out.next_message(1.0))) == number


@pytest.mark.parametrize(("more", "whole"), [(0, True), (-2, False)])
def test_a_line_that_takes_more_than_half_of_a_message_is_a_loss(more, whole):
    out = publisher()
    out.most_bytes = 2 * len(json.dumps(begun())) + more
    out.feed([begun()])
    (line,) = lines(out.next_message(1.0))
    assert isinstance(line, FlowAdded) is whole
    if not whole:
        assert isinstance(line, EventsLost)
        assert (line.cause, line.count) == (LossCause.LIMIT, 1)


@pytest.mark.parametrize(("room", "number"), [(1, 1), (2, 2)])
def test_so_many_lines_as_fit_are_in_a_part_of_a_state(room, number):
    out = publisher()
    out.feed([begun("c1"), begun("c2")])
    states(out, 1.0)
    out.most_bytes = 2 * len(json.dumps(attrs.evolve(begun(), time=0.0))) + room
    assert [len(lines(part)) for part in states(out, STATE_SECONDS)] == ([2] if number == 2 else [1, 1])


def test_a_message_is_compressed_and_has_no_details_unless_one_wants_it_otherwise():
    update = FlowUpdated(WALL, flow(), count(5), count(4))
    sizes = {}
    for options in ({}, {"compress": False}, {"details": True}):
        out = Outgoing("web", "0" * 8, **options)
        states(out, 0.0)
        out.feed([begun(), *[update] * 20])
        data = out.next_message(1.0).data
        sizes[str(options)] = len(data)
        assert (data[:1] == b"{") is ("compress" in options)
        said = decode(data)[1]
        assert (b'"previous"' in said[1]) is ("details" in options)
    assert sizes["{}"] < sizes[str({"compress": False})] / 3


def test_the_last_message_says_that_it_is_the_last():
    header, rest = decode(publisher().last_message(1.0).data)
    assert (header.part, header.last, header.more, rest) == (0, True, False, [])


# --- states ----------------------------------------------------------------------------------


def states(out, now):
    """The parts of the state that is due."""
    found = []
    while (message := out.next_message(now)) is not None:
        found.append(message)
    return found


def test_a_state_has_each_open_flow_once_with_its_last_facts_in_parts_that_fit():
    out = publisher()
    out.most_bytes = 5 * len(json.dumps(begun()))
    out.feed([begun(f"c{number}", preexisting=number == 12) for number in range(10, 30)])
    out.feed([FlowUpdated(WALL, flow("c10"), count(5), count(0)), FlowUpdated(WALL, flow("c9"), count(6), count(0))])
    states(out, 1.0)
    parts = states(out, STATE_SECONDS)
    headers = [decode(part.data)[0] for part in parts]
    assert [header.part for header in headers] == list(range(len(parts)))
    assert [header.more for header in headers] == [True] * (len(parts) - 1) + [False]
    assert [part.subject for part in parts] == ["nstat.web.state"] + ["nstat.web.events"] * (len(parts) - 1)
    assert all(len(part.data) < out.most_bytes + 200 for part in parts)
    said = [line for part in parts for line in lines(part)]
    assert [line.flow.id for line in said] == [f"c{number}" for number in (*range(10, 30), 9)]
    assert [line.counts.rx_bytes for line in said if line.counts.rx_bytes] == [5, 6]
    assert [line.flow.id for line in said if line.preexisting] == ["c12", "c9"], "nobody saw it begin"
    out.feed([begun("c30")])
    states(out, STATE_SECONDS + 1)
    again = [line.flow.id for part in states(out, 100 * STATE_SECONDS) for line in lines(part)]
    assert len(again) == len(set(again)) == 22


def test_a_state_of_no_flow_is_due_only_when_something_was_said():
    out = publisher()
    assert [part.subject for part in states(out, STATE_SECONDS)] == ["nstat.web.events"], "its heartbeat"
    out = publisher()
    out.feed([begun()])
    states(out, STATE_SECONDS - 1)
    assert [part.subject for part in states(out, STATE_SECONDS)] == ["nstat.web.state"]
    assert not [part for part in states(out, 2 * STATE_SECONDS) if part.subject.endswith("state")]
