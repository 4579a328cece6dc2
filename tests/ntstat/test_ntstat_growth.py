"""Reports of known flows: what may be reported without a second look, and what may not."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace

import pytest
from ntstat_wire import Wire

from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowEvent,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    MonitorOptions,
    RemovalReason,
    RouteUpdated,
    TcpState,
    Unrecognized,
)
from nstat_async._events import four_of
from nstat_async._model import COUNTS_FIELDS
from nstat_async.ntstat import ExtensionItem, HeaderFlag, Mode, Session, SourceDetails, SystemInfoCounts, _sources
from nstat_async.ntstat._source import Source
from nstat_async.ntstat._takeover import _carry_on

CLOSING = int(HeaderFlag.CLOSING)


class Play:
    """A session that follows a kernel, fed by hand."""

    def __init__(self, number: int = 11) -> None:
        self.wire = Wire(number)
        self.session = Session(self.wire.kernel, mode=Mode.FOLLOWING)
        self.described = self.wire.descriptor(2, state=4)

    def __call__(self, *datagrams: bytes) -> list:
        self.session.receive_datagrams(datagrams, 1000.0, 0)
        return self.session.take_events()

    def update(self, rx: int, *, state: int = 4, **options) -> list:
        """An update of flow 1 with these bytes received."""
        return self(self.wire.updated(1, self.wire.counts(rx, 5), self.wire.descriptor(2, state=state), **options))

    def counts(self, rx: int, **options) -> list:
        """Counters alone."""
        return self(self.wire.counted(1, self.wire.counts(rx, 5), **options))

    @property
    def table(self) -> _sources.SourceTable:
        """The table of the session."""
        return self.session._follower.table

    @property
    def source(self) -> Source:
        """Flow 1."""
        return self.table.sources[1]


def received(events: list) -> list[int]:
    return [event.counts.rx_bytes for event in events]


@pytest.mark.parametrize("fall", ["update", "counts"])
@pytest.mark.parametrize("grow", ["update", "counts"])
def test_after_counters_fell_growth_below_the_highest_is_not_reported(fall, grow):
    play = Play()
    play.update(1000), play.counts(1050), play.update(1100)
    getattr(play, fall)(10)
    assert received(getattr(play, grow)(20)) in ([], [1100])
    assert received(getattr(play, grow)(1200)) == [1200]


@pytest.mark.parametrize(("way", "later"), [({"context": 7}, {}), ({"state": 5}, {"state": 5})])
def test_what_an_answer_or_a_new_state_brought_is_what_later_counters_must_not_fall_below(way, later):
    play = Play()
    for rx in (100, 200, 300):
        play.update(rx)
    assert received(play.update(900, **way)) == [900]
    assert received(play.update(500, **later)) in ([], [900])
    assert received(play.update(901, **later)) == [901]


COUNTERS = (
    "rxpackets", "rxbytes", "txpackets", "txbytes", "cell_rxbytes", "cell_txbytes", "wifi_rxbytes", "wifi_txbytes",
    "wired_rxbytes", "wired_txbytes", "rxduplicatebytes", "rxoutoforderbytes", "txretransmit",
)  # fmt: skip
"""The kernel's names of the first `COUNTS_FIELDS`."""


@pytest.mark.parametrize("other", ["rxbytes", "txbytes"])
@pytest.mark.parametrize(
    ("provider", "name"),
    [(2, name) for name in (*COUNTERS[:4], *COUNTERS[10:])] + [(3, name) for name in COUNTERS],
)
def test_a_counter_that_falls_alone_stays_at_its_highest(provider, name, other):
    """Of a flow in user space the media, too: its process writes what it likes."""
    play = Play()
    position, events = COUNTERS.index(name), []
    for value, grown in ((900, 5000), (800, 6000), (800, 7000)):
        values = {**dict.fromkeys(COUNTERS, 1000), other: grown, name: value}
        fields = {f"nstat_{each}": number for each, number in values.items()}
        counts = play.wire.layout["nstat_counts"].encode(fields)
        events += play(play.wire.updated(1, counts, play.wire.descriptor(provider), provider=provider))
    assert {getattr(event.counts, COUNTS_FIELDS[position]) for event in events} == {900}
    if name != other:
        assert [getattr(event.counts, COUNTS_FIELDS[COUNTERS.index(other)]) for event in events] == [5000, 6000, 7000]


@pytest.mark.parametrize("number", [4, 11])
def test_where_a_kernel_does_not_count_by_medium_there_are_no_media(number):
    play = Play(number)
    events = play(*play.wire.report(1, play.wire.counts(10, 5), play.described))
    assert [event.counts.media for event in events] == [()]


@pytest.mark.parametrize(("rx", "tx", "expected"), [(1000, 1000, 15), (2000, 1000, 15), (900, 2000, 0), (2000, 900, 0)])
def test_a_counter_of_32_bits_wraps_unless_the_bytes_of_a_direction_fell_with_it(rx, tx, expected):
    play, top = Play(), 2**32 - 10
    wire = play.wire
    for counts in (wire.counts(1000, 1000, rxduplicatebytes=top), wire.counts(rx, tx, rxduplicatebytes=5)):
        play(wire.updated(1, counts, play.described))
    assert play.source.counts.rx_duplicate_bytes == top + expected


def test_what_turns_out_to_be_a_route_was_no_flow_and_its_successor_has_an_id_of_its_own():
    play = Play(4)
    route = play.wire.layout["nstat_route_descriptor"].encode({"ifindex": 4})
    events = [*play.counts(1), *play.counts(2)]
    for _ in range(2):
        events += play(play.wire.described(1, route, provider=1))
        events += play(play.wire.described(1, play.described))
    assert [type(event) for event in events] == [FlowAdded, *(FlowRemoved, RouteUpdated, FlowAdded) * 2]
    assert {event.reason for event in events if isinstance(event, FlowRemoved)} == {RemovalReason.MONITOR}
    assert len({event.flow.id for event in events if isinstance(event, FlowAdded)}) == 3


def test_a_flow_that_closes_keeps_the_samples_of_its_last_update_for_its_removal():
    play = Play()
    play.update(10), play.update(20, flags=CLOSING)
    play(play.wire.updated(1, play.wire.counts(30, 5), play.wire.descriptor(2, state=4, txcwindow=77)))
    removed = play(play.wire.removed(1))[-1]
    assert (removed.final, removed.counts.rx_bytes, removed.details.congestion_window) == (True, 30, 77)


def test_samples_that_came_with_no_news_are_not_those_of_later_counters():
    play = Play()
    play.update(10)
    assert play.update(10, context=7) == []  # an answer, which is read without haste
    assert play.counts(20)[0].details is None


def test_samples_of_a_description_alone_come_with_the_next_counters_once():
    play = Play()
    play.update(10)
    assert play(play.wire.described(1, play.described)) == []
    first, second = *play.counts(20), *play.counts(30)
    assert first.details is not None
    assert second.details is None


def test_a_flow_that_is_hidden_says_nothing_more():
    play = Play()
    play.update(10), play.counts(20)
    play.table.hide(play.source)
    assert play.counts(30) + play.update(40) + play(play.wire.removed(1)) == []


def test_growth_on_another_control_socket_goes_on_from_what_was_reported():
    """The new socket's counter wrapped before it was opened: it says less than what the flow has had."""
    old, new = Play(), Play()
    top = 2**32 - 10

    def resent(play, rx, again):
        counts = play.wire.counts(rx, 5, txretransmit=again)
        return play(play.wire.updated(1, counts, play.described))

    resent(old, 10, top), resent(old, 20, 5)
    assert old.source.counts.tx_retransmitted_bytes == top + 15
    resent(new, 20, 4), resent(new, 20, 5)
    _carry_on(old.source, new.source)
    for rx, again, expected in ((30, 5, top + 15), (40, 25, top + 35)):
        (event,) = resent(new, rx, again)
        assert event.counts.tx_retransmitted_bytes == expected


def test_more_sources_than_can_be_kept_are_a_loss_once_before_any_poll_and_in_each(monkeypatch):
    monkeypatch.setattr(_sources, "MAX_SOURCES", 2)
    play = Play()
    events = play(*(play.wire.added(ref) for ref in range(1, 6)))
    assert [event.cause for event in events if isinstance(event, EventsLost)] == [LossCause.LIMIT]
    play.table.begin_poll()
    assert [event.cause for event in play(*(play.wire.added(ref) for ref in (6, 7)))] == [LossCause.LIMIT]


def test_reports_about_references_that_nobody_announced_are_counted():
    play = Play()
    play.counts(10), play.counts(20, context=3), play(play.wire.counted(2, play.wire.counts(1)))
    assert play.session.statistics()["unknown_references"] == 2


@pytest.mark.parametrize("number", [1, 2])
def test_an_old_kernel_says_goodbye_with_counters_and_a_description_both_unasked(number):
    """Counters alone are no goodbye; a description behind them is, and its new state is not reported before the end."""
    for goodbye in (False, True):
        play = Play(number)
        play(play.wire.added(1)), play.counts(5, context=3), play(play.wire.described(1, play.described, context=4))
        events = play.counts(9)
        if goodbye:
            events += play(play.wire.described(1, play.wire.descriptor(2, state=6)))
        assert [type(event) for event in events] == [FlowUpdated]
        removed = next(event for event in play(play.wire.removed(1)) if isinstance(event, FlowRemoved))
        assert (removed.final, removed.counts.rx_bytes, removed.reason) == (goodbye, 9, RemovalReason.CLOSED)
        assert (removed.flow.state is TcpState.ESTABLISHED) is not goodbye


def test_a_flow_that_is_known_twice_is_added_once():
    play = Play()
    events = play(play.wire.added(1)) + play.update(10) + play(play.wire.described(1, play.described)) + play.update(10)
    assert [type(event) for event in events] == [FlowAdded]


def details(
    wire, ref=1, *, rx=0, packets=0, wifi=0, activity=0, resent=0, rtt=0, provider=2, flags=0, context=0, state=4
):
    """SRC_DETAILS of macOS 26."""
    fields = {"total.rxbytes": rx, "total.rxpackets": packets, "wifi_infra.rxbytes": wifi}
    fields["wifi_infra.activity_bitmap.start"] = activity
    values = {f"media_stats.{name}": value for name, value in fields.items()}
    counts = wire.layout["nstat_detailed_counts"].encode({**values, "txretransmit": resent, "avg_rtt": rtt})
    descriptor = wire.descriptor(provider, state=state)
    message = SourceDetails(
        srcref=ref, detailed_counts=counts, provider=provider, descriptor=descriptor, flags=flags, context=context
    )
    return message.encode(wire.layout)


def test_a_route_has_no_details_though_the_kernel_sends_zeros():
    play = Play(12)
    route = play.wire.descriptor(1)
    assert play(details(play.wire, provider=1)) == []
    (event,) = play(play.wire.updated(1, play.wire.counts(1000), route, provider=1))
    assert (type(event), event.counts.rx_bytes) == (RouteUpdated, 1000)


def test_a_flow_of_which_details_came_is_there_whether_they_are_news_or_not():
    play = Play(12)
    play(details(play.wire, rx=10))
    for rx in (10, 20):
        play.table.begin_poll()
        play(details(play.wire, rx=rx))
        assert play.table.absent() == []
    play.table.begin_poll()
    assert play.table.absent() == [play.source]


def test_details_that_differ_in_bits_of_activity_alone_are_no_news():
    play = Play(12)
    steps = [(10, 5, 0, 0), (10, 5, 7, 0), (10, 5, 9, 0), (20, 15, 9, 0), (20, 15, 11, 3), (20, 15, 12, 3)]
    events = [play(details(play.wire, rx=rx, wifi=w, activity=a, resent=r)) for rx, w, a, r in steps]
    assert [len(found) for found in events] == [1, 0, 0, 1, 1, 0]
    assert [found[0].counts.tx_retransmitted_bytes for found in events if found] == [0, 0, 3]
    assert dict(events[3][0].previous.media)["wifi_infra"].rx_bytes == 5
    for news in ({"packets": 1}, {"packets": 1, "rtt": 32}):
        assert len(play(details(play.wire, rx=20, wifi=15, activity=13, resent=3, **news))) == 1
    every = Play(12)
    every.table.every_update = True
    assert [len(every(details(play.wire, rx=10, activity=a))) for a in (1, 2)] == [1, 1]


def test_an_update_behind_details_takes_back_no_counter():
    """Its counters lie elsewhere, so that it is looked at."""
    play = Play(12)
    play(details(play.wire, rx=10, resent=5))
    (event,) = play.update(20)
    assert (event.counts.rx_bytes, event.counts.tx_retransmitted_bytes) == (20, 5)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", ["added", "counts", "description", "update", "extended update", "details"])
def test_whatever_answers_a_question_is_an_answer(kind, known):
    """And what was asked for by nobody is none."""
    play = Play(12)
    if known:
        play.update(1)
    heard = []
    play.session._follower.decoder.client = SimpleNamespace(
        answered=lambda *what: heard.append(what), announced=lambda _: None
    )
    wire, counts = play.wire, play.wire.counts(10)
    make = {
        "added": lambda context: wire.added(1, context=context),
        "counts": lambda context: wire.counted(1, counts, context=context),
        "description": lambda context: wire.described(1, play.described, context=context),
        "update": lambda context: wire.updated(1, counts, play.described, context=context),
        "extended update": lambda context: wire.updated(
            1, counts, play.described, context=context, items=(ExtensionItem(5, 16, bytes(16)),)
        ),
        "details": lambda context: details(wire, context=context),
    }[kind]
    play(make(0)), play(make(7)), play(wire.removed(99) + make(8))
    assert heard == [(7, 1), (8, 1)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(2**32 + 10, 2**32 + 30, 20), (2**32 + 10, 20, 0), (2**33, 2**32, 0), (2**32, 15, 0), (2**32 - 1, 14, 15)],
)
def test_counters_of_64_bits_that_fell_do_not_wrap(before, after, expected):
    """Details have them; below 2^32 nobody can tell."""
    play = Play(12)
    for resent, wifi in ((before, 9), (after, 5)):  # the medium falls, so that nothing simply grows
        play(details(play.wire, rx=100, wifi=wifi, resent=resent, provider=3))
    assert play.source.counts.tx_retransmitted_bytes == before + expected


@pytest.mark.parametrize(("provider", "counted"), [(2, 18), (4, 10), (9, 0), (10, 4)])
def test_what_a_provider_does_not_count_is_unknown(provider, counted):
    play = Play()
    raw = play.wire.layout["nstat_counts"].encode(dict.fromkeys(play.wire.layout["nstat_counts"].by_name, 64))
    (event,) = play(play.wire.updated(1, raw, play.wire.descriptor(provider), provider=provider))
    assert [getattr(event.counts, name) is not None for name in COUNTS_FIELDS] == [at < counted for at in range(18)]
    assert [value is not None for value in event.counts.as_dict().values()][:18] == [at < counted for at in range(18)]


def seldom(rng, usual, other, times):
    """The other one, once in so many times."""
    return rng.choice((usual,) * (times - 1) + (other,))


def story(wire, length, rng):
    """Messages about a few flows as no kernel would send them: they grow, fall, close, change and are answers.

    Others follow soon, for those that fell or close are looked at twice for ever. Each has messages of some kinds.
    """
    kinds = (
        ("update", "update", "counts"),
        ("details",),
        ("details", "details", "details", "update"),
        ("counts", "description"),
        ("update", "counts"),
    )
    totals = dict.fromkeys(range(1, length + 1), 0)
    for number in range(length):
        ref = number // 75 * 5 + rng.randint(1, 5)
        totals[ref] = max(0, totals[ref] + seldom(rng, rng.choice((0, 0, 5, 5, 100)), -20, 100))
        context, state = seldom(rng, 0, 4, 10), seldom(rng, 4, 5, 10)
        flags = seldom(rng, 0, CLOSING, 100)
        resent, provider = seldom(rng, 0, totals[ref], 100), 3 if ref % 5 == 0 else 2
        kind = seldom(rng, rng.choice(kinds[ref % 5]), rng.choice(("removal", "nothing", "nothing")), 8)
        if kind == "details" and wire.kernel.has_details:
            yield details(
                wire, ref, rx=totals[ref], resent=resent, provider=provider, flags=flags, context=context, state=state
            )
        elif kind == "counts":
            yield wire.counted(ref, wire.counts(totals[ref], 5, txretransmit=resent), context=context, flags=flags)
        elif kind == "description":
            yield wire.described(ref, wire.descriptor(provider, state=state), provider=provider, context=context)
        elif kind == "removal":
            yield wire.removed(ref)
        elif kind == "nothing":
            yield rng.choice((wire.success(4), wire.error(4, 2), b"x" * rng.randint(0, 40), wire.removed(99)))
        else:
            counts, size = wire.counts(totals[ref], 5, txretransmit=resent), seldom(rng, 0, 8, 10)
            descriptor = wire.descriptor(provider, state=state, txcwindow=rng.randint(0, 3)) + bytes(size)
            yield wire.updated(ref, counts, descriptor, provider=provider, context=context, flags=flags)


@pytest.mark.parametrize("number", [5, 6, 11, 12])
def test_bytes_and_packets_that_are_read_alone_are_those_of_the_counts(number):
    wire = Wire(number)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    for message in story(wire, 100, random.Random(number)):
        session.receive_datagrams((message,), 1.0, 0)
    events = [event for event in session.take_events() if isinstance(event, FlowEvent)]
    found = [four_of(event) for event in events]
    assert found == [
        (None,) * 4 if c is None else (c.rx_bytes, c.tx_bytes, c.rx_packets, c.tx_packets)
        for c in (event.counts for event in events)
    ]
    assert len({four[0] for four in found}) > 10


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("number", [5, 6, 11, 12])
def test_what_is_reported_without_a_second_look_is_what_a_look_at_each_message_says(number, every):
    """With an observer each message goes to its handler; datagrams of one message are the third way."""
    rng, wire = random.Random(number), Wire(number)
    messages = list(story(wire, 300, rng))
    datagrams = []
    while messages:
        many = rng.randint(1, 6)
        datagrams.append(b"".join(messages[:many]))
        del messages[:many]
    ways, looked_at = [], []
    for observed in (False, True):
        session = Session(wire.kernel, mode=Mode.FOLLOWING, options=MonitorOptions(every_update=every))
        decoder = session._follower.decoder
        decoder.observer = (lambda *_: None) if observed else None
        events, handled, update = [], [], decoder.table.update
        decoder.table.update = lambda *what, update=update, handled=handled: handled.append(what) or update(*what)
        for at in range(0, len(datagrams), 3):
            session.receive_datagrams(datagrams[at : at + 3], float(at), 0)
            found = session.take_events()
            events += [(e, e.details, e.counts and e.counts.media) if isinstance(e, FlowEvent) else e for e in found]
        ways.append((events, session.statistics(), {ref: s.seen for ref, s in session._follower.table.sources.items()}))
        looked_at.append(len(handled))
    assert ways[0] == ways[1]
    assert looked_at[0] < 0.8 * looked_at[1]
    statistics = ways[0][1]
    assert (statistics["datagrams"], statistics["bytes"]) == (len(datagrams), sum(map(len, datagrams)))
    assert min(statistics["messages"], statistics["malformed"], statistics["counters_adjusted"]) > 0


@pytest.mark.parametrize(("missing", "known"), [(0, ((6, 7), (9, 8))), (1, ((6, 7),))])
def test_statistics_of_the_system_are_reported_as_far_as_they_are_whole(missing, known):
    play = Play()
    codec = play.wire.layout["nstat_sysinfo_keyval"]
    names = ("nstat_sysinfo_key", "nstat_sysinfo_flags", "u.nstat_sysinfo_scalar")
    entries = b"".join(codec.encode(dict(zip(names, values, strict=True))) for values in ((6, 1, 7), (9, 1, 8)))
    message = SystemInfoCounts(srcref=0, size=2, entries=entries[: len(entries) - missing])
    (event,) = play(message.encode(play.wire.layout))
    assert event.values == known


def test_counters_alone_make_a_flow_known_when_they_come_again():
    play = Play()
    assert play.counts(10) == []
    assert [type(event) for event in play.counts(10)] == [FlowAdded]


def test_what_cannot_be_understood_is_reported_once_and_what_surrounds_it_is_understood():
    play, newer = Play(), Play(12)
    strange = details(newer.wire, rx=5)  # a message that this kernel does not have
    short = play.wire.counted(1, play.wire.counts(3))[:-8]
    short = short[:12] + struct.pack("<H", len(short)) + short[14:]
    play.update(1)
    for datagram, kind in ((strange, Unrecognized), (short, EventsLost)):
        events = play(play.wire.counted(1, play.wire.counts(play.source.counts.rx_bytes + 1)) + datagram)
        assert [type(event) for event in events] == [FlowUpdated, kind]
    assert (events[1].cause, events[1].count) == (LossCause.PROTOCOL, 1)
    statistics = play.session.statistics()
    assert [statistics[name] for name in ("unrecognized", "malformed", "messages")] == [1, 1, 5]


def test_datagrams_are_taken_until_one_leaves_something_to_settle():
    play = Play()
    wire, decoder = play.wire, play.session._follower.decoder
    play.update(1)
    grown = [wire.updated(1, wire.counts(rx), play.described) for rx in (2, 3)]
    asked, changed = wire.counted(1, wire.counts(9), context=5), wire.updated(1, wire.counts(9), play.described[:-8])
    for batch, after, settled in (
        (grown, 2, False),
        ([wire.counted(1, wire.counts(rx)) for rx in (4, 5)], 2, False),
        ([*grown, changed, grown[0]], 4, False),
        ([grown[0], asked, grown[1]], 2, True),
        ([wire.success(3), grown[0]], 1, True),
        ([grown[0], wire.added(8), grown[0]], 2, True),
        ([b"", grown[0]], 1, True),
        ([grown[0] + b"x" * 15, grown[0]], 1, True),
        ([grown[0][:-1], grown[0]], 1, True),
    ):
        assert (decoder.decode(batch), decoder.to_settle) == (after, settled)
    assert decoder.decode([*grown, *grown], 2) == 4


@pytest.mark.parametrize("number", [1, 11])
def test_every_message_is_counted_once(number):
    play = Play(number)
    play(play.wire.added(1)), play.counts(1), play.counts(2), play(play.wire.described(1, play.described))
    if number > 1:
        play(play.wire.counted(1, play.wire.counts(3)) * 3 + play.wire.removed(1))
    assert play.session.statistics()["messages"] == (8 if number > 1 else 4)


def test_a_control_socket_that_takes_over_counts_on():
    old, new = Play(), Play()
    for play in (old, new):
        play.update(1), play(b"?" * 20), play(play.wire.added(2)[:-4])
    before, decoder = old.session.statistics(), new.session._follower.decoder
    decoder.continue_statistics(old.session._follower.decoder)
    names = ("datagrams", "bytes", "messages", "malformed", "unrecognized")
    assert {name: decoder.statistics[name] for name in names} == {name: 2 * before[name] for name in names}
    assert (before["datagrams"], before["malformed"]) == (3, 2)
