"""The log of events that all event streams of the server read."""

from __future__ import annotations

import pytest
from aggregate_events import added, counts, flow, polled, removed, updated
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import HostState, HostUpdated, filters
from nstat_async.aggregate import ProcessTable
from nstat_async.integrations import _log
from nstat_async.integrations._log import EventLog, Reader
from nstat_async.json import loads

CURL_ONLY = filters.by_process_name("curl")


def lines_of(text):
    return [loads(part.partition("data: ")[2]) for part in text.decode().split("\r\n\r\n") if "data: " in part]


def read(reader, most=10_000):
    """What it is given without waiting: at most so many pieces."""
    events = []
    for _ in range(most):
        coroutine = reader.__anext__()
        try:
            while True:
                coroutine.send(None)
                if reader._news is not None:
                    coroutine.close()
                    reader._news = None
                    return events
        except StopIteration as done:
            if b"event: hello" not in done.value and b"event: ended" not in done.value:
                events += lines_of(done.value)
            if b"event: ended" in done.value or b"event: failed" in done.value:
                return events
        except StopAsyncIteration:
            return events
    return events


@pytest.fixture(autouse=True)
def no_loop(monkeypatch):
    """The log needs no event loop but to wait."""

    class Event:
        def set(self):
            pass

        def wait(self):
            return self

        def __await__(self):
            yield

    async def checkpoint():
        pass

    monkeypatch.setattr(_log.anyio, "Event", Event)
    monkeypatch.setattr(_log.anyio.lowlevel, "checkpoint", checkpoint)


def new_reader(log, chosen=None, max_pending=100):
    return Reader(log, b"event: hello\r\n\r\n", chosen, max_pending)


def test_an_event_is_formatted_once_for_all_readers():
    log = EventLog(1000)
    formatted = []
    one_line = log._format
    log._format = lambda event: formatted.append(event) or one_line(event)
    readers = [new_reader(log) for _ in range(50)]
    events = [added(flow(str(number)), 1, counts(number)) for number in range(10)]
    log.feed(events)
    assert [len(read(reader)) for reader in readers] == [10] * 50
    assert formatted == events
    assert len({id(log.text_of(log.batch(0)))}) == 1
    late = [new_reader(log) for _ in range(50)]
    assert [len(read(reader)) for reader in late] == [10] * 50
    assert len(formatted) == 20, "one listing serves all who come at that time"


def test_a_new_reader_hears_first_of_the_machines_of_a_fleet_that_did_not_leave():
    log = EventLog(100)
    for name, states in {"a": "present silent", "b": "present left", "c": "present"}.items():
        log.feed([HostUpdated(1.0, HostState(state), host=name) for state in states.split()])
    log.feed([added(flow("x", host="a"), 2, counts(1))])
    (*machines, event) = read(Reader(log, b"", None, 100))
    known = [(each.time, each.host, each.state.value) for each in machines]
    assert known == [(2, "a", "silent"), (2, "c", "present")]
    assert event.preexisting


def test_a_reader_that_does_not_read_costs_nothing_until_the_log_is_full():
    log = EventLog(100)
    reader = new_reader(log, max_pending=10)
    for number in range(100):
        log.feed([updated(flow("a"), number, counts(number))])
    assert not reader.coalesces
    log.feed([updated(flow("a"), 100, counts(100))])
    assert reader.coalesces


def test_one_that_was_far_behind_gets_the_last_counts_and_all_that_was_lost():
    log = EventLog(100)
    reader = new_reader(log, max_pending=10)
    assert read(reader) == []
    for number in range(500):
        brief = flow(f"b{number}")
        log.feed(
            [
                added(brief, number, counts(0)),
                removed(brief, number, counts(7)),
                updated(flow("a"), number, counts(number)),
            ]
        )
    table = ProcessTable()
    table.feed_many(read(reader))
    assert table.total().rx_bytes == 500 * 7 + 499
    assert read(reader) == []
    log.feed([updated(flow("a"), 501, counts(600))])
    assert [event.counts.rx_bytes for event in read(reader)] == [600]
    assert not reader.coalesces


def test_only_so_many_may_coalesce_and_the_others_are_told():
    log = EventLog(10)
    readers = [new_reader(log, max_pending=5) for _ in range(_log.MAX_BEHIND + 3)]
    for number in range(30):
        log.feed([updated(flow("a"), number, counts(number))])
    assert sum(reader.coalesces for reader in readers) == _log.MAX_BEHIND
    assert len(log.readers) == _log.MAX_BEHIND


def test_the_end_comes_after_everything_that_was_there():
    log = EventLog(100)
    reader = new_reader(log)
    log.feed([added(flow("a"), 1, counts(1))])
    log.end()
    assert len(read(reader)) == 1
    assert log.readers == set()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 7), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("read"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("new"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@pytest.mark.parametrize("chosen", [None, CURL_ONLY], ids=["all", "some"])
@settings(max_examples=examples(150), deadline=None)
@given(steps=steps, capacity=st.integers(1, 40), pending=st.integers(1, 20))
def test_whoever_reads_whenever_the_totals_are_those_of_the_stream(chosen, steps, capacity, pending):
    """Each reader's own table has what its flows carried while it was there, however late it reads."""
    log = EventLog(capacity)
    totals: dict[int, int] = {}
    serial = dict.fromkeys(range(8), 0)
    readers = []
    time = 0

    def carried(reader):
        return sum(amount for number, amount in grown[id(reader)].items())

    grown: dict[int, dict[int, int]] = {}
    for step, number, amount in steps:
        time += 1
        if step == "new":
            reader = new_reader(log, chosen, pending)
            readers.append((reader, ProcessTable()))
            grown[id(reader)] = {}
            continue
        if step == "read":
            for reader, table in readers:
                table.feed_many(read(reader, number))
            continue
        from nstat_async._model import Process

        name = f"{number}.{serial[number]}"
        known = name in totals
        process = Process(number, "curl" if number % 2 else "ssh")
        totals[name] = totals.get(name, 0) + amount
        total = counts(totals[name], 0, 0, 0)
        if chosen is None or number % 2:
            for each in grown.values():
                each[name] = each.get(name, 0) + amount
        if step == "end":
            serial[number] += 1
            start = [] if known else [added(flow(name, process), time, counts(0, 0, 0, 0))]
            log.feed([*start, removed(flow(name, process), time, total)])
        elif known:
            log.feed([updated(flow(name, process), time, total), polled(time)])
        else:
            log.feed([added(flow(name, process), time, total)])
    log.end()
    for reader, table in readers:
        table.feed_many(read(reader))
        assert table.total().rx_bytes == carried(reader)
        assert table.open_flows == sum(1 for event in log.open_flows.values() if chosen is None or chosen(event.flow))
