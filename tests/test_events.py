"""Events: frozen, matched by keyword, with exact deltas."""

from __future__ import annotations

import attrs
import pytest

from nstat_async import (
    Counts,
    Details,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    Provider,
    RemovalReason,
)

FLOW = Flow("1", Provider.TCP)


class Source:
    """Counts how often details are made."""

    made = 0

    def details(self) -> Details:
        self.made += 1
        return Details(congestion_window=5)


def test_an_update_knows_what_was_added_since_the_consumer_s_last_event():
    update = FlowUpdated(1.0, FLOW, Counts(rx_bytes=10, tx_bytes=5), Counts(rx_bytes=4))
    assert (update.delta.rx_bytes, update.delta.tx_bytes, update.delta.rx_packets) == (6, 5, None)
    assert FlowUpdated(1.0, FLOW, Counts(rx_bytes=10), None).delta.rx_bytes == 10
    assert FlowUpdated(1.0, FLOW, Counts(rx_bytes=1), Counts(rx_bytes=4)).delta.rx_bytes == 0


def test_details_are_made_when_somebody_looks_and_do_not_count_in_comparisons():
    source = Source()
    events = [
        FlowAdded(1.0, FLOW, None, False, source),
        FlowUpdated(1.0, FLOW, Counts(), None, source),
        FlowRemoved(1.0, FLOW, None, False, RemovalReason.CLOSED, source),
    ]
    assert source.made == 0
    assert [e.details.congestion_window for e in events] == [5, 5, 5]
    assert source.made == 3
    assert events[0] == FlowAdded(1.0, FLOW, None, False)
    assert FlowAdded(1.0, FLOW, None, False).details is None
    assert "Source" not in repr(events[0])


def test_events_cannot_be_changed():
    for event in (PollCompleted(1.0, 0, True), EventsLost(1.0, LossCause.BATCH, 1), FlowAdded(1.0, FLOW, None, True)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            event.time = 2.0
        assert attrs.evolve(event, time=2.0).time == 2.0


def test_events_are_matched_by_class_and_keyword():
    match EventsLost(1.0, LossCause.OVERFLOW, 3, Counts(rx_bytes=5)):
        case EventsLost(cause=LossCause.OVERFLOW, count=3, counts=Counts(rx_bytes=5)):
            pass
        case _:
            raise AssertionError
