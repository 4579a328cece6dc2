"""Rates: exact for what is steady, honest while there is nothing to tell, falling when it stops."""

from __future__ import annotations

import pytest
from aggregate_events import added, counts, flow, polled, updated
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import Process
from nstat_async.aggregate import ProcessTable


def steady(table, until, interval=1.0, rate=1000, jitter=0.0):
    """One flow that receives `rate` bytes per second, seen by polls."""
    a = flow("a")
    table.feed(added(a, 0, counts(0)))
    time, polls = 0.0, 0
    while time + interval <= until:
        polls += 1
        time += interval
        table.feed(updated(a, time + jitter, counts(round(rate * (time + jitter)))))
        table.feed(polled(time + jitter))
    return time + jitter


@pytest.mark.parametrize("interval", [0.1, 0.3, 1.0, 2.0, 5.0, 12.0])
@pytest.mark.parametrize("window", [1.0, 5.0, 30.0])
def test_a_steady_flow_has_its_exact_rate_for_any_interval(interval, window):
    table = ProcessTable(rate_window=window)
    steady(table, 100, interval)
    assert table.total().rx_rate == pytest.approx(1000, rel=1e-6)
    assert table.rows()[0].tx_rate == 0


def test_the_first_moment_has_no_rate():
    """Before two moments were seen a rate is unknown, not zero."""
    table = ProcessTable()
    assert (table.total().rx_rate, table.time) == (None, None)
    table.feed(added(flow("a"), 5, counts(100)))
    assert (table.total().rx_rate, table.rows()[0].rate) == (None, None)
    table.feed(polled(6))
    assert table.total().rx_rate == 100


def test_a_rate_falls_to_zero_when_the_flow_rests():
    table = ProcessTable(rate_window=5)
    end = steady(table, 20)
    for second in range(1, 12):
        table.feed(polled(end + second))
        assert table.total().rx_rate <= 1000
    assert table.total().rx_rate == 0


def test_time_can_go_on_without_events():
    table = ProcessTable(rate_window=5)
    end = steady(table, 20)
    table.advance(end - 10)
    assert table.total().rx_rate == pytest.approx(1000)
    table.advance(end + 2.5)
    assert 0 < table.total().rx_rate < 1000
    table.advance(end + 100)
    assert table.total().rx_rate == 0
    empty = ProcessTable()
    empty.advance(5)
    assert empty.time is None


def test_a_burst_leaves_the_window_after_its_width():
    table = ProcessTable(rate_window=5)
    steady(table, 50, rate=0)
    table.feed(updated(flow("a"), 51, counts(10_000)))
    rates = []
    for second in range(51, 60):
        table.feed(polled(second))
        rates.append(table.total().rx_rate)
    assert rates[:5] == pytest.approx([2000] * 5)
    assert rates[6:] == [0] * 3


def test_the_largest_by_rate_is_the_quickest_of_the_window_not_of_all_time():
    table = ProcessTable(rate_window=5)
    rested, busy = flow("a", Process(1, "a")), flow("b", Process(2, "b"))
    table.feed(added(rested, 0, counts(0)))
    table.feed(added(busy, 0, counts(0)))
    for second in range(1, 60):
        if second == 20:
            table.feed(updated(rested, second, counts(10_000)))
        if second == 58:
            table.feed(updated(busy, second, counts(100)))
        table.feed(polled(second))
    assert [table.top(1, by, other=False)[0].process.pid for by in ("rate", "rx_rate", "bytes")] == [2, 2, 1]


@pytest.mark.parametrize("step", [-3600.0, -1e9])
def test_a_clock_that_is_set_back_begins_the_rates_anew(step):
    """No rate is negative or absurd, and totals do not notice."""
    table = ProcessTable(rate_window=5)
    end = steady(table, 20)
    a = flow("a")
    for second in range(10):
        table.feed(updated(a, end + step + second, counts(round(1000 * end) + 500 * second)))
        rate = table.total().rx_rate
        assert rate is None or 0 <= rate <= 1000
    assert table.total().rx_rate == pytest.approx(500)
    assert table.total().rx_bytes == 20_000 + 4500


def test_late_events_of_a_slow_consumer_do_not_disturb_the_rates():
    """A coalesced update may be older than its predecessors; time never runs back for it."""
    table = ProcessTable(rate_window=5)
    end = steady(table, 20)
    table.feed(updated(flow("b"), end - 4, counts(0)))
    assert table.time == end
    assert table.rows()[0].rx_rate == pytest.approx(1000)


@given(
    steps=st.lists(st.tuples(st.floats(0.01, 3), st.integers(0, 10_000)), min_size=3, max_size=60),
    window=st.sampled_from([1.0, 5.0, 20.0]),
)
@settings(max_examples=examples(120), deadline=None, derandomize=True)
def test_a_rate_is_the_growth_over_a_span_near_the_window(steps, window):
    """It equals bytes over time for some span of the past that is no shorter than the window, or all there is."""
    table = ProcessTable(rate_window=window)
    a = flow("a")
    history = [(0.0, 0)]
    table.feed(added(a, 0.0, counts(0)))
    for gap, amount in steps:
        history.append((history[-1][0] + gap, history[-1][1] + amount))
        table.feed(updated(a, history[-1][0], counts(history[-1][1])))
    now, total = history[-1]
    spans = [(now - time, total - seen) for time, seen in history[:-1]]
    possible = [grown / span for span, grown in spans if span >= window or span == now]
    if table.total().rx_rate is not None:
        assert any(table.total().rx_rate == pytest.approx(rate) for rate in possible)
        longest = max((gap for gap, _ in steps), default=0)
        start, span = table._window.span()
        assert start
        assert span <= window + longest + window / 8 + 1e-6 or span == now
    assert len(table._window._marks) <= 12


@pytest.mark.parametrize("step", [8 * 3600.0, 3600.0, -3600.0, -1e9])
@pytest.mark.parametrize("straddling", [False, True])
def test_a_clock_that_is_set_does_not_change_the_rates_of_a_running_kernel(step, straddling):
    """Batches come with the monotonic time; the wall clock, which the events carry, may jump as it likes."""
    table = ProcessTable(rate_window=5)
    a = flow("a")
    rates, waiting = [], [added(a, 1e6, counts(0))]
    for second in range(60):
        wall = 1e6 + second + (step if second >= 30 else 0)
        waiting += [updated(a, wall, counts(10_000 * second)), polled(wall)]
        if not straddling or second % 2:  # two polls in one batch: the step may be in its middle
            table.feed_many(waiting, now=second)
            waiting = []
            rates.append(table.total().rx_rate)
    assert rates[3:] == pytest.approx([10_000] * len(rates[3:]), rel=0.02 if not straddling else 0.2)
    assert table.total().rx_bytes == 590_000


@pytest.mark.parametrize("late", [0, 1, 2])
def test_what_comes_late_among_live_events_does_not_disturb_the_rates(late):
    """The machine of a fleet that was cut off sends its backlog, while the others go on."""
    table = ProcessTable(rate_window=5)
    a, b = flow("a", Process(1, "live")), flow("b", Process(2, "late"))
    table.feed_many([added(a, 1e6, counts(0)), added(b, 1e6, counts(0))], now=0)
    for second in range(1, 30):
        batch = [
            updated(a, 1e6 + second - 0.1, counts(1000 * second - 100)),
            updated(a, 1e6 + second, counts(1000 * second)),
        ]
        if second >= 10:
            batch.insert(late, updated(b, 1e6 + second - 600, counts(second)))
        table.feed_many(batch, now=second)
        if second >= 6:
            assert next(row for row in table.rows() if row.pid == 1).rx_rate == pytest.approx(1000)


def test_the_first_batch_and_an_empty_one_set_no_clock_and_nothing_before_a_step_is_left_out():
    table = ProcessTable(rate_window=5)
    a, b = flow("a"), flow("b")
    table.feed_many([], now=0)
    table.feed_many([added(a, 1e6, counts(0))], now=0)
    assert table.time == 1e6
    table.feed_many([added(b, 1e6 + 1, counts(70)), updated(a, 5e6, counts(30))], now=2)
    assert table.total().rx_bytes == 100
    assert table.time == 5e6
    assert table.total().rx_rate == pytest.approx(50, rel=0.6)


def test_both_ways_have_their_own_rate_in_rows_and_in_the_total():
    table = ProcessTable(rate_window=5)
    for second in range(20):
        table.feed(updated(flow("a"), second, counts(1_000 * second, 300 * second), counts()))
        table.feed(polled(second))
    for row in (table.rows()[0], table.total()):
        assert (row.rx_rate, row.tx_rate, row.rate) == (1_000, 300, 1_300)
    assert [row.tx_rate for row in table.top(1, by="tx_rate")] == [300]


def test_what_a_row_remembers_for_its_rate_is_bounded_by_the_window():
    table = ProcessTable(rate_window=4)
    for tenth in range(5_000):
        table.feed(updated(flow("a"), tenth / 10, counts(tenth), counts()))
    (tally,) = table._groups
    assert len(tally.samples) <= 10
    assert [mark for mark, _, _ in tally.samples] == sorted({mark for mark, _, _ in tally.samples})


@pytest.mark.parametrize("together", [False, True])
def test_what_a_late_owner_gets_of_the_past_is_no_burst_and_the_sum_of_all_rates_stays_what_it_was(together):
    """What was added to the row of the unknown lately goes along first, all else as if it had always been there."""
    table = ProcessTable(rate_window=5)

    def feed(second, owner):
        flows = [(flow("a", process=owner), 1_000), (flow("b"), 100)]
        flows += [(flow("c", process=None), 10)] if together else []
        for each, rate in flows:
            table.feed(updated(each, second, counts(rate * second, rate // 2 * second), counts()))
        rows = {row.name: row for row in table.rows()}
        assert all(row.rx_rate >= 0 and row.tx_rate >= 0 for row in rows.values() if row.rate is not None)
        return rows, table.total()

    for second in range(20):
        _, before = feed(second, None)
    rows, total = feed(20, flow("b").process)
    assert rows["curl"].rx_bytes == 22_000
    assert rows["curl"].rx_rate == pytest.approx(1_100, abs=10 * together)
    assert rows["curl"].tx_rate == pytest.approx(550, abs=5 * together)
    assert (total.rx_rate, total.tx_rate) == (before.rx_rate, before.tx_rate)
    for second in range(21, 40):
        rows, total = feed(second, flow("b").process)
    assert (rows["curl"].rx_rate, rows["curl"].tx_rate) == (1_100, 550)


def test_a_row_that_loses_a_flow_to_a_late_owner_never_has_a_negative_rate():
    table = ProcessTable(rate_window=5)
    for second in range(10):
        for name in "ab":
            table.feed(updated(flow(name, process=None), second, counts(100 * second, 50 * second), counts()))
    table.feed(updated(flow("a"), 10, counts(1_000, 500), None))
    rest = next(row for row in table.rows() if row.process is None)
    assert rest.rx_rate >= 0
    assert rest.tx_rate >= 0


def test_a_row_that_loses_a_young_flow_to_a_late_owner_keeps_the_rate_of_all_others():
    table = ProcessTable(rate_window=5)
    for second in range(21):
        table.feed(updated(flow("old", process=None), second, counts(1_000 * second, 200 * second), counts()))
        if second == 19:
            table.feed(added(flow("young", process=None), second, counts(50, 25)))
    table.feed(updated(flow("young"), 20, counts(50, 25), None))
    rows = {row.name: row for row in table.rows()}
    assert rows[None].rx_rate == pytest.approx(1_000)
    assert rows[None].tx_rate == pytest.approx(200)
    assert (rows["curl"].rx_rate, rows["curl"].tx_rate) == (10, 5)


def test_history_is_no_rate_either_way():
    table = ProcessTable(include_history=True)
    table.feed(added(flow("b"), 0, counts(1, 1)))
    table.feed(polled(1))
    table.feed(added(flow("a"), 2, counts(10_000, 20_000), preexisting=True))
    table.feed(updated(flow("a"), 3, counts(10_300, 20_600)))
    total = table.total()
    assert (total.rx_bytes, total.tx_bytes) == (10_301, 20_601)
    assert (total.rx_rate, total.tx_rate) == (pytest.approx(301 / 3, abs=1), pytest.approx(601 / 3, abs=1))
