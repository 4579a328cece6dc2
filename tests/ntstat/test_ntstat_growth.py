"""Reports of known flows: what may be reported without a second look, and what may not."""

from __future__ import annotations

import pytest
from ntstat_wire import Wire

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, RemovalReason, TcpState
from nstat_async.ntstat import HeaderFlag, Mode, Session, _sources
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


def test_of_a_flow_in_user_space_no_medium_falls_though_the_total_grows():
    play = Play()
    wire = play.wire
    said = [(100, 80), (200, 90), (300, 10), (400, 20)]
    reports = [wire.updated(1, wire.counts(rx, 5, wifi_rxbytes=w), wire.descriptor(3), provider=3) for rx, w in said]
    events = [event for report in reports for event in play(report)]
    assert [(e.counts.rx_bytes, e.counts.wifi_rx_bytes) for e in events] == [(100, 80), (200, 90), (300, 90), (400, 90)]


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
