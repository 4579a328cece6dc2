"""Series for metric systems: few, never falling, nothing missing."""

from __future__ import annotations

import math
import threading

import pytest
from aggregate_events import added, counts, flow, lost, polled, removed, updated
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async._errors import UsageError
from nstat_async._model import Counts, Process
from nstat_async.integrations._series import LOST, OTHER, UNKNOWN, SeriesKeeper


def named(number, name):
    return flow(str(number), None if name is None else Process(100, name))


def values(keeper, field="rx_bytes"):
    return {each.label: getattr(each, field) for each in keeper.observe().series}


def test_names_have_series_and_the_rest_is_other():
    keeper = SeriesKeeper(limit=2)
    keeper.feed_many([added(named(1, "a"), 1, counts(10)), added(named(2, "b"), 1, counts(500))])
    assert values(keeper) == {"a": 10, "b": 500}
    keeper.feed_many([added(named(3, "c"), 2, counts(7)), added(named(4, None), 2, counts(3)), lost(2, 1, counts(2))])
    keeper.feed_many([updated(named(1, "a"), 3, counts(30))])
    assert values(keeper) == {"a": 30, "b": 500, OTHER: 7, UNKNOWN: 3, LOST: 2}
    assert values(keeper, "open_flows") == {"a": 1, "b": 1, OTHER: 1, UNKNOWN: 1, LOST: 0}
    assert keeper.observe() is keeper.observe()
    assert keeper.observe().total.rx_bytes == 542


def test_the_busiest_names_get_the_places_at_a_review():
    """A busy newcomer replaces a quiet name; its series begins at zero, and what it had stays in other."""
    keeper = SeriesKeeper(limit=1, review=60)
    keeper.feed_many([added(named(1, "quiet"), 0, counts(10))])
    keeper.observe()
    keeper.feed_many([added(named(2, "busy"), 30, counts(1000))])
    assert values(keeper) == {"quiet": 10, OTHER: 1000}
    keeper.feed_many([updated(named(2, "busy"), 59, counts(1500))])
    assert values(keeper) == {"quiet": 10, OTHER: 1500}
    keeper.feed_many([updated(named(2, "busy"), 62, counts(1700)), updated(named(1, "quiet"), 62, counts(15))])
    assert values(keeper) == {OTHER: 1505, "busy": 200}
    assert values(keeper, "open_flows") == {OTHER: 1, "busy": 1}


def test_a_clock_that_was_wrong_once_does_not_end_the_reviews():
    keeper = SeriesKeeper(limit=1, review=60)
    keeper.feed_many([added(named(1, "quiet"), 1e9, counts(10))])
    keeper.observe()
    for wrong, right in ((2e9, 1e9 + 30), (5e8, 1e9 + 200)):
        keeper.feed_many([polled(wrong)])
        keeper.observe()
        keeper.feed_many([polled(right)])
        keeper.observe()
    keeper.feed_many([added(named(2, "busy"), 1e9 + 210, counts(1000))])
    assert values(keeper) == {"quiet": 10, OTHER: 1000}
    keeper.feed_many([updated(named(2, "busy"), 1e9 + 270, counts(1500))])
    assert values(keeper) == {OTHER: 1000, "busy": 500}


def test_names_cannot_forge_labels():
    keeper = SeriesKeeper()
    for number, name in enumerate(["(other)", "", "a\nb", "x" * 500, "bad\udcff"]):
        keeper.feed_many([added(named(number, name), 1, counts(1))])
    assert values(keeper) == {OTHER: 2, "a\ufffdb": 1, "x" * 64: 1, "bad\ufffd": 1}


def test_names_without_counts_are_not_counted():
    keeper = SeriesKeeper()
    keeper.feed_many([added(named(1, "dns"), 1, Counts()), added(named(2, "web"), 1, counts(0))])
    assert values(keeper, "is_counted") == {"dns": False, "web": True}


names = st.sampled_from(["a", "b", "c", "d", None])
moves = st.lists(
    st.tuples(st.integers(0, 6), names, st.integers(0, 1000), st.sampled_from("uurfol"), st.floats(0, 60)), max_size=60
)


@given(moves=moves, limit=st.integers(0, 3), review=st.sampled_from([10.0, 1000.0]))
@settings(max_examples=examples(100), deadline=None)
def test_series_are_bounded_never_fall_and_miss_nothing(moves, limit, review):
    """Growth of the series, added up, is the traffic; a series falls only by ending, and the total never.

    Not by the last counts of a flow either, which may take back the byte of a FIN (``f``).
    """
    keeper, time, totals, grown, before, total = SeriesKeeper(limit=limit, review=review), 0.0, {}, 0, {}, 0
    for number, name, amount, what, gap in moves:
        time += gap
        totals[number] = totals.get(number, 0) + amount
        a = named(number, name)
        if what == "u":
            keeper.feed_many([updated(a, time, counts(totals[number]))])
        elif what in "rf":
            keeper.feed_many([removed(a, time, counts(max(0, totals.pop(number) - (what == "f"))))])
        elif what == "l":
            keeper.feed_many([lost(time, 1, counts(amount)), polled(time)])
        else:
            seen = keeper.observe()
            now = {each.label: each.rx_bytes for each in seen.series}
            assert len(now) <= limit + 3
            for label, value in now.items():
                assert value >= before.get(label, 0)
                grown += value - before.get(label, 0)
            assert seen.total.rx_bytes >= total
            before, total = now, seen.total.rx_bytes
            # Late owners may be counted twice until their former row has caught up.
            assert grown >= seen.total.rx_bytes


def test_a_byte_that_last_counts_take_back_is_taken_from_no_counter():
    """Prometheus would take a counter that falls for one that began anew, and add all of it once more."""
    keeper, seen = SeriesKeeper(), []
    for event in (
        added(named(1, "a"), 1, counts(101)),
        removed(named(1, "a"), 2, counts(100)),
        added(named(2, "a"), 3, counts(10)),
    ):
        keeper.feed_many([event])
        observed = keeper.observe()
        seen.append((observed.total.rx_bytes, *(each.rx_bytes for each in observed.series)))
    assert seen == [(101, 101), (101, 101), (110, 110)]


def test_scraping_from_another_thread_is_safe():
    """No exception, and the last observation has everything."""
    keeper, stop, errors = SeriesKeeper(limit=5), threading.Event(), []

    def scrape():
        try:
            while not stop.is_set():
                keeper.observe()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(2000):
        keeper.feed_many([added(named(number, f"p{number % 100}"), number, counts(1))])
    stop.set()
    thread.join()
    assert errors == []
    assert sum(values(keeper).values()) == 2000


@pytest.mark.parametrize("options", [{"limit": -1}, {"limit": math.nan}, {"limit": 1.5}, {"review": 0}])
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        SeriesKeeper(**options)
