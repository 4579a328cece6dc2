"""The table of sources: what it keeps, forgets, counts and hands on."""

from __future__ import annotations

import gc
import weakref

import attrs
import pytest
from ntstat_play import LAYOUTS, Play
from ntstat_wire import Wire, address

from nstat_async import (
    Direction,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    InterfaceUpdated,
    LossCause,
    Outcome,
    RemovalReason,
)
from nstat_async.ntstat import HeaderFlag, Mode, Session, _sources
from nstat_async.ntstat._source import UNCHOSEN, Phase, Terms

TERMS = Terms(counts_references=False, filtered=None)


class Table:
    """The table of a session, its events at hand."""

    def __init__(self, kernel: int | str = 11, **terms: object) -> None:
        self.wire = Wire(kernel)
        session = Session(self.wire.kernel, mode=Mode.FOLLOWING)
        self.table = session._follower.table
        self.events: list = []
        self.table.emit = self.events.append
        self.table.terms = attrs.evolve(TERMS, **terms)
        self.table.begin(1000.0, 1000.0)

    def update(self, ref: int = 1, rx: int = 10, *, flags: int = 0, provider: int = 2, **fields: object) -> None:
        """SRC_UPDATE."""
        data = self.wire.descriptor(provider, **{"state": 4, **fields})
        self.table.update(ref, provider, self.wire.counts(rx), data, 0, len(data), len(data), flags)

    def taken(self) -> list:
        """The events since the last call."""
        events = self.events[:]
        self.events.clear()
        return events


def test_what_was_given_up_is_forgotten_with_its_source():
    """Narrow numbers come back: the next bearer was not given up."""
    play = Table(1)
    for reason in (RemovalReason.MONITOR, RemovalReason.CLOSED):
        if reason is RemovalReason.MONITOR:
            play.table.given_up.add(1)
        play.table.add(1, 2, requested=False)
        play.table.end(1, 0)
        assert next(e.reason for e in play.taken() if isinstance(e, FlowRemoved)) is reason
    play.table.given_up.add(7)
    play.table.end(7, 0)
    assert not play.table.given_up


@pytest.mark.parametrize("reported", [True, False])
def test_a_flow_that_is_open_for_a_proof_is_hidden_and_forgotten_with_its_end(reported):
    play, local = Table(), address("127.0.0.1", 99)
    play.table.own = frozenset({(42, play_local(play, local))})
    play.update(1, local=local)
    play.update(2, local=address("127.0.0.1", 98))
    play.update(3, local=local, pid=43)
    assert (play.table.hidden, [e.flow.local.port for e in play.taken()]) == ({1}, [98, 99])
    assert [flow.local.port for flow, _ in play.table.flows()] == [98, 99]
    if reported:
        play.table.hide(play.table.sources[2])
        assert [flow.local.port for flow, _ in play.table.flows()] == [99]
    play.table.end(1, 0)
    play.table.end(2, 0)
    assert play.table.hidden == set()
    assert [type(e) for e in play.taken()] == ([] if reported else [FlowRemoved, EventsLost])


def play_local(play: Table, raw: bytes):
    """The endpoint of an address slot."""
    play.update(9, local=raw)
    flow = play.taken()[0].flow
    play.table.sources.pop(9)
    return flow.local


def test_a_flow_of_a_proof_that_is_only_found_out_at_its_end_is_not_reported():
    play, local = Table(), address("127.0.0.1", 99)
    play.table.own = frozenset({(42, play_local(play, local))})
    play.table.add(1, 2, requested=False)
    data = play.wire.descriptor(2, local=local)
    source = play.table.sources[1]
    play.table._redescribe(source, play.table._choose(source, 2, data, 0, len(data)), 0, data, 0, len(data))
    play.table.end(1, 0)
    assert (play.taken(), play.table.hidden) == ([], set())


@pytest.mark.parametrize("provider", [2, 4])
def test_a_hidden_flow_stays_hidden_whatever_its_next_descriptor_is(provider):
    """That of TCP and UDP, and one of another length, with every report."""
    play = Table()
    play.table.every_update = True
    play.update(1)
    play.table.hide(play.table.sources[1])
    play.taken()
    for padding in (b"", bytes(8)):
        data = play.wire.descriptor(provider) + padding
        play.table.update(1, provider, play.wire.counts(50), data, 0, len(data), len(data), 0)
        play.table.describe(1, provider, data, 0, len(data), 0)
        play.table.count(1, play.wire.counts(60), solicited=True, flags=0)
    assert (play.taken(), play.table.hidden) == ([], {1})
    play.table.end(1, 0)
    assert (play.taken(), play.table.hidden) == ([], set())


def test_ends_are_remembered_while_they_are_wanted():
    play = Table()
    play.update(1), play.update(2), play.update(3)
    play.table.end(1, 0)
    assert play.table.departed is None
    play.table.remember_ends(wanted=True)
    play.table.end(2, 0)
    assert [(source.ref, reason) for source, reason in play.table.departed] == [(2, RemovalReason.CLOSED)]
    play.table.remember_ends(wanted=False)
    play.table.end(3, 0)
    assert play.table.departed is None


def test_another_control_socket_of_the_client_begins_with_nothing_but_its_counts():
    play = Table()
    play.update(5), play.update(6)
    play.table.given_up |= {6, 99}
    play.table.hide(play.table.sources[6])
    play.table.subscribed = (5, 5)
    play.taken()
    play.table.restart("2.")
    assert [(e.flow.id, e.reason) for e in play.taken() if isinstance(e, FlowRemoved)] == [
        ("1.5", RemovalReason.MONITOR)
    ]
    left = play.table
    assert (left.sources, left.given_up, left.hidden, left.subscribed, left.references.top) == (
        {},
        set(),
        set(),
        None,
        0,
    )
    play.update(5)
    assert play.taken()[0].flow.id == "2.5"


def test_a_table_that_takes_over_reports_and_counts_on_and_the_old_one_reports_through_it():
    old, new = Table(), Table()
    old.update(1), old.update(2)
    new.update(1), new.update(2)
    new.table.begin(2000.0, 2000.0)
    old.taken(), new.taken()
    new.table.continue_from(old.table)
    new.update(3)
    assert [type(e) for e in old.taken()] == [FlowAdded]
    old.table.remove(old.table.sources[1], RemovalReason.GONE)
    assert [e.time for e in old.taken()] == [2000.0, 2000.0]
    found = new.table.statistics
    assert (found["flows_added"], found["flows_removed"], found["sources_seen"]) == (3, 1, 5)


def test_what_a_poll_left_out_is_what_it_neither_reported_nor_saw_born():
    play = Table(counts_references=True)
    play.table.begin_poll()
    play.update(1), play.update(2), play.table.add(4, 2, requested=False)
    play.table.begin_poll()
    play.update(2), play.table.add(5, 2, requested=False)
    assert [source.ref for source in play.table.absent()] == [1, 4]
    assert [play.table.left_out(ref) for ref in range(1, 7)] == [True, False, True, True, False, False]


def test_after_a_proof_every_flow_is_read_anew_but_those_that_are_hidden():
    play = Table()
    play.update(1), play.update(2)
    play.table.hide(play.table.sources[2])
    span = play.table.sources[2].span
    codec = play.wire.layout["nstat_tcp_descriptor"]
    play.table.prove({("nstat_tcp_descriptor", codec.size): codec})
    assert play.table.readers.is_proven(2, codec.size)
    assert [source.span for source in play.table.sources.values()] == [UNCHOSEN, span]


def test_references_that_come_back_have_ids_of_their_own():
    ids = {}
    for number in (1, 11):
        play = Table(number)
        for ref in (1, 3, 2, 3):
            play.table.add(ref, 2, requested=False)
            play.table.end(ref, 0)
        ids[number] = [e.flow.id for e in play.taken() if isinstance(e, FlowAdded)]
        assert len(set(ids[number])) == 4
        assert play.table.statistics["sources_seen"] == 4
    assert ids[11][:2] == ["1.1", "1.3"]  # no other has ever had these


@pytest.mark.parametrize(
    ("number", "terms", "flags", "lost"),
    [
        (11, {}, 0, False),
        (11, {"counts_references": True, "filtered": False}, 0, False),
        (11, {}, HeaderFlag.CLOSED_AFTER_DROP, True),
        (11, {}, HeaderFlag.CLOSED_AFTER_GONE, False),
        (11, {"quiet": True}, HeaderFlag.CLOSED_AFTER_DROP, False),
        (5, {}, 0, False),
        (5, {"counts_references": True}, 0, True),
        (5, {"filtered": False}, 0, True),
        (5, {"filtered": True}, 0, False),
    ],
)
def test_the_end_of_what_nobody_saw_is_a_loss_where_it_must_have_been_a_flow(number, terms, flags, lost):
    play = Table(number, **terms)
    play.table.end(3, int(flags))
    assert [(e.cause, e.count) for e in play.taken()] == [(LossCause.GOODBYE, 1)] * lost
    assert play.table.lost_ends == lost
    assert play.table.references.highest == (3 if terms.get("counts_references") else None)


def test_the_end_of_all_sources_is_no_end_but_nonsense_that_is_said():
    play = Table()
    play.table.end(play.wire.layout.all_sources, 0)
    play.table.count(play.wire.layout.all_sources, play.wire.counts(), 0, solicited=True)
    assert [(e.cause, e.count) for e in play.taken()] == [(LossCause.PROTOCOL, 1)] * 2
    assert not play.table.sources


def test_sources_beyond_the_limit_are_left_out_exactly(monkeypatch):
    monkeypatch.setattr(_sources, "MAX_SOURCES", 2)
    play = Table()
    play.update(1), play.update(2), play.update(3), play.update(4)
    assert [type(e) for e in play.taken()] == [FlowAdded, FlowAdded, EventsLost]
    assert sorted(play.table.sources) == [1, 2]


def test_an_end_without_final_counts_is_a_loss_of_one_unless_the_monitor_left():
    play = Table()
    for ref, flags in ((1, HeaderFlag.CLOSING), (2, 0), (3, 0)):
        play.update(ref, flags=int(flags))
    play.table.given_up.add(3)
    play.taken()
    for ref in (1, 2, 3):
        play.table.end(ref, 0)
    assert [(e.cause, e.count) for e in play.taken() if isinstance(e, EventsLost)] == [(LossCause.FINAL_COUNTS, 1)]
    assert play.table.lost_ends == 1
    assert (play.table.statistics["flows_added"], play.table.statistics["flows_removed"]) == (3, 3)


def test_a_flow_began_before_the_subscription_or_with_it():
    play = Table()
    play.table.subscribed = (997_000_000_000, 997_000_000_000)
    for ref, age in ((1, 4), (2, 3), (3, 2)):
        play.update(ref, start_timestamp=10**10, timestamp=10**10 + age * 10**9)
    play.table.add(4, 2, requested=False)
    play.update(4, start_timestamp=10**10, timestamp=10**10 + 4 * 10**9)  # announced: that decides
    assert [event.preexisting for event in play.taken()] == [True, False, False, False]
    play.table.phase = Phase.LISTING
    play.table.add(5, 2, requested=False)
    play.table.add(6, 2, requested=True)
    play.table.end(5, 0), play.table.end(6, 0)
    assert [(e.preexisting, e.flow.started_ns) for e in play.taken() if isinstance(e, FlowAdded)] == [
        (True, None),
        (False, 1_000_000_000_000),
    ]


@pytest.mark.parametrize(
    ("ahead", "age", "preexisting"),
    [
        (0, 9, False),
        (0, 11, True),
        (-3600, 9, False),
        (-3600, 11, True),
        (3600, 9, False),
        (3600, 11, False),  # a sleep of the machine may explain that, which the monotonic clock does not count
        (3600, 3700, True),
    ],
)
def test_a_flow_is_older_than_the_subscription_if_both_clocks_say_so(ahead, age, preexisting):
    """The wall clock was stepped since then, ten seconds ago, or the machine slept."""
    play = Table()
    play.table.subscribed = play.table.moment
    play.table.begin(1010.0, 1010.0 + ahead)
    play.update(1, start_timestamp=10**13, timestamp=10**13 + age * 10**9)
    assert [event.preexisting for event in play.taken()] == [preexisting]


def test_a_creation_time_is_kept_for_recognising_the_socket():
    play = Table()
    play.update(1, start_timestamp=77), play.update(2)
    assert [source.start_ticks for source in play.table.sources.values()] == [77, None]


def test_a_longer_descriptor_is_counted_and_said_only_where_it_is_not_read():
    play = Table()
    for more in (8, 8, -8, -8, -9, -9):  # with eight bytes less it is an older release's, and read as that
        data = play.wire.descriptor(2, state=4)
        data = data + bytes(more) if more > 0 else data[:more]
        play.table.update(1, 2, play.wire.counts(1), data, 0, len(data), len(data), 0)
    assert [e.cause for e in play.taken() if isinstance(e, EventsLost)] == [LossCause.PROTOCOL]
    assert play.table.statistics["unknown_lengths"] == 3


def test_a_port_is_listened_on_as_long_as_there_is_a_listener():
    """Kernels that do not say who began a connection: the listeners on its port do."""
    play, here, there = Table(7), address("192.0.2.1", 80), address("192.0.2.2", 5000)
    play.update(1, state=1, local=here)
    play.update(2, local=here, remote=there)
    play.update(1, state=1, local=here, uid=5)  # described anew, and no second listener
    play.table.end(1, 0)
    play.update(3, local=here, remote=there)
    added = [e.flow.direction for e in play.taken() if isinstance(e, FlowAdded)]
    assert added == [Direction.LISTENER, Direction.INBOUND, Direction.OUTBOUND]
    play.update(4, state=1, local=here)
    play.update(4, state=0, local=here)
    play.update(5, local=here, remote=there)
    assert play.taken()[-1].flow.direction is Direction.OUTBOUND
    play.update(6, state=1, local=here)
    play.table.hide(play.table.sources[6])
    assert not play.table.listening


def test_samples_of_an_update_that_was_no_news_are_not_those_of_later_counters():
    play = Table()
    play.update(1, 10), play.update(1, 10)
    play.table.count(1, play.wire.counts(20), 0, solicited=True)
    assert [event.details is None for event in play.taken()] == [False, True]


@pytest.mark.parametrize("rx", [20, 10], ids=["it grew", "it did not change"])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if Wire(layout).kernel.has_updates])
def test_the_end_has_no_samples_that_an_update_replaced(layout, rx):
    wire = Wire(layout)
    play = Play(wire)
    play(*[wire.updated(1, wire.counts(10), wire.descriptor(2, state=4, txcwindow=1))] * 3)
    play(wire.described(1, wire.descriptor(2, state=4, txcwindow=2)), wire.counted(1, wire.counts(10)))
    events = play(wire.updated(1, wire.counts(rx), wire.descriptor(2, state=4, txcwindow=3)))
    assert [event.details.congestion_window for event in events] == [3] * (rx > 10)
    assert play(wire.removed(1))[0].details is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_end_has_the_samples_of_a_description_after_which_nothing_was_told(layout):
    wire = Wire(layout)
    play = Play(wire)
    for window in (1, 1, 1, 2):
        play(wire.counted(1, wire.counts(10)), wire.described(1, wire.descriptor(2, state=4, txcwindow=window)))
    assert play(wire.removed(1))[0].details.congestion_window == 2


def test_counters_alone_may_be_the_last():
    play = Table()
    play.update(1, 10)
    play.table.count(1, play.wire.counts(20), int(HeaderFlag.CLOSING), solicited=False)
    play.table.end(1, 0)
    removed = play.taken()[-1]
    assert (removed.final, removed.counts.rx_bytes) == (True, 20)


def test_a_flow_that_is_described_before_it_is_counted_has_unknown_counters_and_then_some():
    play = Table()
    for state in (4, 5):
        data = play.wire.descriptor(2, state=state, txcwindow=state)
        play.table.describe(1, 2, data, 0, len(data), 0)
    play.table.count(1, play.wire.counts(0), 0, solicited=True)
    added, changed, counted = play.taken()
    assert (added.counts, changed.counts.rx_bytes, changed.previous, changed.details.congestion_window) == (
        None,
        None,
        None,
        5,
    )
    assert (counted.counts.rx_bytes, counted.previous) == (0, None)


def test_an_interface_is_reported_with_its_counters_each_time_and_has_no_end():
    play = Table()
    for rx, flags in ((10, 0), (10, 0), (30, 0)):
        data = play.wire.descriptor(6, name=b"en0", ifindex=4)
        play.table.update(1, 6, play.wire.counts(rx), data, 0, len(data), len(data), flags)
    play.table.update(1, 6, None, data, 0, len(data), len(data), 0)
    play.table.finish()
    play.table.end(1, 0)
    events = play.taken()
    assert [type(event) for event in events] == [InterfaceUpdated] * 3
    assert [event.counts.rx_bytes for event in events] == [10, 10, 30]


def test_at_the_end_of_a_recording_only_what_was_not_reported_yet_is():
    play = Table()
    play.update(1)
    play.table.add(2, 2, requested=False)
    play.table.add(3, 6, requested=False)
    play.table.finish()
    assert [event.flow.id for event in play.taken()] == ["1.1", "1.2"]


def test_a_flow_that_turns_out_to_be_an_interface_leaves_and_takes_its_port_along():
    play, here = Table(7), address("192.0.2.1", 80)
    play.update(1, state=1, local=here)
    data = play.wire.descriptor(6, name=b"en0")
    play.table.describe(1, 6, data, 0, len(data), 0)
    assert not play.table.listening
    play.update(2, state=1, local=here)
    play.table.end(1, 0)
    assert play.table.listening == {80: 1}
    assert [type(event) for event in play.taken()] == [
        FlowAdded,
        FlowRemoved,
        InterfaceUpdated,
        FlowAdded,
    ]
    play.update(3)
    play.table.describe(3, 6, data, 0, len(data), 0)
    play.update(3)
    ids = [event.flow.id for event in play.taken() if isinstance(event, FlowAdded)]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(("flags", "outcome"), [(HeaderFlag.CLOSING, Outcome.CLOSED_THERE), (0, None)])
def test_how_a_connection_ended_is_said_where_its_last_report_came(flags, outcome):
    play = Table()
    play.update(1, state=5)
    play.update(1, 20, state=5, flags=int(flags))
    play.table.end(1, 0)
    assert next(event for event in play.taken() if isinstance(event, FlowRemoved)).outcome is outcome


def test_a_port_has_as_many_listeners_as_there_are_and_none_in_user_space():
    """With the last of them goes what they said of connections; a process may call its own flows what it likes."""
    play, here, there = Table(7), address("192.0.2.1", 80), address("192.0.2.2", 5000)
    play.update(1, state=1, local=here), play.update(2, state=1, local=here)
    play.table.end(1, 0)
    play.update(3, local=here, remote=there)
    play.table.end(2, 0)
    assert play.table.listening == {}
    play.update(4, provider=3, state=1, local=here)
    play.update(5, local=here, remote=there)
    added = [e.flow.direction for e in play.taken() if isinstance(e, FlowAdded)]
    assert added[2:] == [Direction.INBOUND, None, Direction.OUTBOUND]


def test_a_session_that_is_forgotten_with_its_flows_is_freed():
    """The collector does not look at sources that the C code made: nothing that they refer to leads back to the session."""
    play = Table()
    for ref in range(1, 20):
        play.update(ref)
    assert len(play.taken()) == 19
    table, reader = weakref.ref(play.table), weakref.ref(play.table.sources[1].reader)
    play.table.cycle = play
    del play
    gc.collect()
    assert table() is None
    assert reader() is None
