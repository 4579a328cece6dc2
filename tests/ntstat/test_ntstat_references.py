"""Numbers of sources that were skipped, and the ranges that they are kept in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ntstat_wire import Wire

from nstat_async import FlowAdded, FlowRemoved
from nstat_async.ntstat import Mode, Session
from nstat_async.ntstat._constants import FilterFlag
from nstat_async.ntstat._references import MAX_MISSING, Gaps, References


@pytest.mark.parametrize("skipped", [3, MAX_MISSING + 3])
def test_what_was_skipped_is_lost_once(skipped):
    references = References()
    references.note(1)
    references.note(skipped + 2)
    assert references.take_lost() == skipped
    assert references.take_lost() == 0


steps = st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60)


@given(steps)
def test_gaps_are_a_set_in_order(steps):
    gaps, truth, top = Gaps(), set(), 0
    for grows, number in steps:
        if grows:
            gaps.add_above(top + number % 3, top + number)
            truth |= set(range(top + number % 3, top + number))
            top += number
        else:
            gaps.discard(number)
            truth.discard(number)
        assert list(gaps) == sorted(truth)
        assert len(gaps) == len(truth)
        assert all((number in gaps) == (number in truth) for number in range(top + 3))


@given(steps, st.integers(0, 5))
def test_gaps_forget_their_lowest_ranges_and_count_them(steps, most):
    gaps = Gaps()
    for place, (_, number) in enumerate(steps):
        gaps.add_above(100 * place, 100 * place + number)
    before = list(gaps)
    assert gaps.shrink(most) == len(before) - len(gaps)
    assert list(gaps) == before[len(before) - len(gaps) :]


def test_skipping_any_number_of_references_costs_the_same_few_steps():
    references = References()
    for number in range(1, 20_000):
        references.note(number * MAX_MISSING)
        assert len(references.missing._begins) <= 4096
    assert references.take_lost() == 19_999 * MAX_MISSING - 19_999


def test_of_every_second_number_the_oldest_are_only_counted():
    references = References()
    for number in range(2, 40_000, 2):
        references.note(number)
    assert len(references.missing) <= 4096
    assert references.take_lost() == 19_999


@pytest.mark.parametrize("skipped", [3, MAX_MISSING + 3])
def test_what_one_control_socket_left_out_is_not_missing_from_the_next_one(skipped):
    wire = Wire(8)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)

    def play(request: bytes, *replies: bytes) -> list:
        session.observe_request(request, 1000.0)
        for reply in replies:
            session.receive_datagram(reply, 1000.0)
        return session.take_events()

    report = wire.report(skipped + 1, wire.counts(), wire.descriptor(wire.tcp))
    quiet = wire.add_all(7, filter=FilterFlag.SUPPRESS_SRC_ADDED)
    assert [type(event) for event in play(quiet, wire.success(7), *report)] == [FlowAdded]
    assert [type(event) for event in play(wire.add_all(8), wire.success(8), wire.added(1))] == [FlowRemoved]
