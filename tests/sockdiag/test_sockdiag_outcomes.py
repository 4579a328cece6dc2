"""How a connection ended: each kind of evidence by itself. What a whole life of one says is in test_sockdiag_endings_living.py."""

from __future__ import annotations

import pytest

from nstat_async._model import Outcome
from nstat_async.ebpf import Ended, Totals
from nstat_async.sockdiag import SocketState
from nstat_async.sockdiag._finals import Fin, LastWords, Remains
from nstat_async.sockdiag._outcomes import Traces, is_attempt, outcome_by_record, outcome_of, outcome_of_attempt

CLOSED_HERE, CLOSED_THERE = Outcome.CLOSED_HERE, Outcome.CLOSED_THERE
RESET, RESET_HERE, RESET_THERE = Outcome.RESET, Outcome.RESET_HERE, Outcome.RESET_THERE
REFUSED, TIMED_OUT, FAILED = Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.FAILED
OPEN, GONE, COUNTED = Fin(0, True), Fin(1, True), Fin(1, False)
ESTABLISHED, FIN_WAIT1, FIN_WAIT2 = SocketState.ESTABLISHED, SocketState.FIN_WAIT1, SocketState.FIN_WAIT2
CLOSE_WAIT, LAST_ACK, TIME_WAIT = SocketState.CLOSE_WAIT, SocketState.LAST_ACK, SocketState.TIME_WAIT


def words(**fields) -> LastWords:
    """Those of a quiet connection with segments both ways of which all was read and acknowledged."""
    usual = dict.fromkeys(LastWords._fields, 0) | {"received": 100, "payload_sent": 50, "segments_in": 5}
    return LastWords(**(usual | {"segments_out": 5, "data_segments": 1, "window": 9, "last_segment_ms": 500} | fields))


FORGOTTEN = words(segments_in=0, segments_out=0)


@pytest.mark.parametrize(
    ("last", "repeated", "quick", "outcome"),
    [
        (None, 0, True, REFUSED),
        (None, 0, False, FAILED),
        (None, 1, True, TIMED_OUT),
        (FORGOTTEN, 0, True, REFUSED),
        (words(), 0, False, REFUSED),
        (words(), 3, False, REFUSED),
        (words(segments_in=0), 3, True, TIMED_OUT),
        (words(segments_in=0), 0, True, FAILED),
    ],
)
def test_how_an_attempt_failed(last, repeated, quick, outcome):
    assert outcome_of_attempt(last, repeated, quick=quick) is outcome


def test_an_attempt_is_a_syn_that_nobody_answered_but_by_a_refusal():
    nobody = {"unacknowledged": 1, "received": 0, "window": 0}
    assert is_attempt(words(**nobody)) is True
    for answered in ("acknowledged", "received", "window"):
        assert is_attempt(words(**nobody | {answered: 1})) is False
    assert is_attempt(words(**nobody | {"unacknowledged": 0})) is False
    assert is_attempt(FORGOTTEN._replace(**nobody)) is False


@pytest.mark.parametrize(
    ("last", "traces", "outcome"),
    [
        # In order: a FIN of this end was acknowledged.
        ({}, {"remains": Remains.TIME_WAIT}, CLOSED_HERE),
        ({}, {"remains": Remains.FIN_WAIT2}, CLOSED_HERE),
        ({}, {"remains": Remains.TIME_WAIT, "peer": FORGOTTEN, "fin": Fin(0, False)}, RESET_THERE),
        ({}, {"remains": Remains.TIME_WAIT, "peer": FORGOTTEN}, CLOSED_HERE),
        ({}, {"remains": Remains.TIME_WAIT, "peer": words(), "fin": Fin(0, False)}, CLOSED_HERE),
        ({}, {"state": CLOSE_WAIT}, CLOSED_THERE),
        ({}, {"state": LAST_ACK, "remains": Remains.NOTHING}, CLOSED_THERE),
        ({}, {"state": FIN_WAIT1}, CLOSED_HERE),
        ({}, {"state": FIN_WAIT2, "remains": Remains.NOTHING, "fin": GONE}, CLOSED_HERE),
        ({}, {"remains": Remains.NOTHING, "fin": COUNTED}, CLOSED_THERE),
        ({}, {"remains": Remains.NOTHING, "fin": Fin(0, False)}, RESET),
        ({"last_segment_ms": 500}, {"remains": Remains.NOTHING, "fin": Fin(0, False), "quietly": True}, None),
        ({"unread": 1}, {"remains": Remains.NOTHING, "fin": Fin(0, False)}, RESET),
        ({}, {"remains": Remains.NOTHING, "fin": Fin(0, False), "state": FIN_WAIT1, "peer": words()}, RESET_THERE),
        ({}, {"remains": Remains.NOTHING, "local": True}, RESET_THERE),
        ({}, {"remains": Remains.UNCLEAR, "fin": COUNTED, "local": True}, None),
        ({}, {"remains": Remains.UNCLEAR, "state": LAST_ACK}, CLOSED_THERE),
        ({}, {"remains": Remains.UNCLEAR, "state": FIN_WAIT2}, CLOSED_HERE),
        ({}, {"fin": GONE}, CLOSED_THERE),
        ({}, {"fin": COUNTED}, None),
        ({}, {"fin": COUNTED, "local": True}, CLOSED_THERE),
        ({}, {"fin": COUNTED, "peer": words()}, CLOSED_THERE),
        # Not in order.
        ({"unanswered": 3, "unacknowledged": 5}, {"orderly": False}, TIMED_OUT),
        ({"unanswered": 3, "unacknowledged": 5, "unread": 2}, {"orderly": False}, TIMED_OUT),
        ({"unanswered": 3}, {"orderly": False}, TIMED_OUT),
        ({"unanswered": 3, "unread": 2}, {"orderly": False}, RESET),
        ({"unacknowledged": 5}, {"orderly": False}, RESET_THERE),
        ({}, {"orderly": False}, RESET_THERE),
        # What the other end sent, and this one has not: it closed before that came.
        ({}, {"orderly": False, "closing": True, "peer": words(payload_sent=101)}, RESET_HERE),
        ({}, {"orderly": False, "closing": True, "peer": words(payload_sent=100)}, RESET_THERE),
        ({}, {"orderly": False, "closing": True, "fin": GONE, "peer": words(payload_sent=100)}, RESET_HERE),
        ({}, {"orderly": False, "closing": False, "peer": words(payload_sent=101)}, RESET_THERE),
        ({}, {"orderly": False, "closing": True, "peer": FORGOTTEN._replace(payload_sent=101)}, RESET_THERE),
        # Alone, and closing: with the last segment it may have been either.
        ({"last_segment_ms": 0}, {"orderly": False, "closing": True}, RESET),
        ({"last_segment_ms": 0, "data_segments": 0}, {"orderly": False, "closing": True}, RESET_THERE),
        ({"last_segment_ms": 500}, {"orderly": False, "closing": True}, RESET_THERE),
        ({"last_segment_ms": 0}, {"orderly": False, "closing": True, "local": True}, RESET_THERE),
        ({"last_segment_ms": 0}, {"orderly": False}, RESET_THERE),
        # With something unread.
        ({"unread": 1}, {"orderly": False}, RESET),
        ({"unread": 1}, {"orderly": False, "fin": GONE}, RESET_THERE),
        ({"unread": 1}, {"orderly": False, "fin": COUNTED}, RESET),
        ({"unread": 2}, {"orderly": False, "fin": GONE}, RESET),
        ({"unread": 2}, {"orderly": False, "local": True}, RESET_HERE),
        ({"unread": 2}, {"orderly": False, "peer": FORGOTTEN}, RESET_THERE),
        ({"unread": 2}, {"orderly": False, "peer": words(unread=1)}, RESET_HERE),
        ({"unread": 2}, {"orderly": False, "peer": words(unread=2)}, RESET),
    ],
)  # fmt: skip
def test_how_a_connection_ended_whose_last_words_are_there(last, traces, outcome):
    known = {"state": ESTABLISHED, "orderly": True, "closing": False, "fin": OPEN} | traces
    quietly = known.pop("quietly", False)
    known["closing"] |= known["orderly"]
    if known.get("remains") is Remains.NOTHING and known["fin"] == Fin(0, False) and not quietly and not last:
        last = {"last_segment_ms": 0}
    assert outcome_of(words(**last), Traces(**known)) is outcome


TOTALS = Totals(0, 0, None, None)


@pytest.mark.parametrize(
    ("state", "error", "more", "outcome"),
    [
        (SocketState.SYN_SENT, 111, {}, REFUSED),
        (SocketState.SYN_RECV, 104, {}, REFUSED),
        (SocketState.SYN_SENT, 110, {}, TIMED_OUT),
        (SocketState.SYN_SENT, 0, {}, FAILED),
        (SocketState.SYN_SENT, None, {"again": 2}, TIMED_OUT),
        (SocketState.CLOSE, 113, {"established": False}, FAILED),
        (SocketState.SYN_SENT, 0, {"words": FORGOTTEN}, REFUSED),
        (ESTABLISHED, 104, {}, RESET_THERE),
        (ESTABLISHED, 32, {}, RESET_THERE),
        (FIN_WAIT2, 104, {"shut_for_reading": True}, RESET),
        (FIN_WAIT2, 104, {"shut_for_reading": False}, RESET_THERE),
        (CLOSE_WAIT, 104, {"shut_for_reading": True}, RESET_THERE),
        (ESTABLISHED, 103, {}, RESET_HERE),
        (ESTABLISHED, 110, {}, TIMED_OUT),
        (ESTABLISHED, 113, {}, TIMED_OUT),
        *((state, 0, {}, RESET_HERE) for state in (ESTABLISHED, CLOSE_WAIT, FIN_WAIT1)),
        *((state, None, {}, None) for state in (ESTABLISHED, CLOSE_WAIT, FIN_WAIT1)),
        (LAST_ACK, 0, {}, CLOSED_THERE),
        (LAST_ACK, None, {}, CLOSED_THERE),
        *((state, 0, {}, CLOSED_HERE) for state in (FIN_WAIT2, SocketState.CLOSING, TIME_WAIT)),
        (None, None, {}, None),
    ],
)  # fmt: skip
def test_how_a_connection_ended_whose_end_is_recorded(state, error, more, outcome):
    """By the state before it, and the kernel's error."""
    totals = TOTALS._replace(retransmitted_segments=more.get("again"))
    ended = Ended(
        None, 1, totals, True, more.get("established", True), state, error, more.get("shut_for_reading", False)
    )
    assert outcome_by_record(ended, more.get("words")) is outcome
