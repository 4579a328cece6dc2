"""How a connection ended, by Darwin's last report."""

from __future__ import annotations

import pytest

from nstat_async import Counts, Direction, Flow, Outcome, Provider, TcpState
from nstat_async.ntstat._outcomes import outcome_of


@pytest.mark.parametrize(
    ("state", "counts", "expected"),
    [
        (TcpState.TIME_WAIT, {}, Outcome.CLOSED_HERE),
        (TcpState.FIN_WAIT_2, {"connect_attempts": 1, "connect_successes": 1}, Outcome.CLOSED_HERE),
        (TcpState.LAST_ACK, {}, Outcome.CLOSED_THERE),
        (TcpState.SYN_SENT, {}, Outcome.FAILED),
        (TcpState.CLOSED, {"connect_attempts": 2, "connect_successes": 0}, Outcome.FAILED),
        (TcpState.CLOSED, {"connect_attempts": 1, "connect_successes": 1}, None),
        (TcpState.CLOSED, {}, None),
        (TcpState.ESTABLISHED, {}, None),
        (None, {"connect_attempts": 1, "connect_successes": 0}, None),
    ],
)
def test_the_last_state_and_the_attempts_say_how_it_ended(state, counts, expected):
    flow = Flow("1", Provider.TCP, state=state)
    assert outcome_of(flow, Counts(**counts)) is expected
    assert outcome_of(flow, None) is (None if expected is Outcome.FAILED and state is TcpState.CLOSED else expected)


def test_listeners_and_datagrams_have_no_outcome():
    assert outcome_of(Flow("1", Provider.UDP), Counts(connect_attempts=1, connect_successes=0)) is None
    assert outcome_of(Flow("1", Provider.TCP, state=TcpState.SYN_SENT, direction=Direction.LISTENER), None) is None
