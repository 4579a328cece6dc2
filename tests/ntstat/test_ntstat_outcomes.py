"""How a connection ended, by Darwin's last report."""

from __future__ import annotations

import pytest
from virtual import VirtualMonitor

from nstat_async import Counts, Direction, Flow, FlowRemoved, Outcome, Provider, TcpState
from nstat_async.ntstat._outcomes import outcome_of
from nstat_async.testing import EmulatedKernel


@pytest.mark.parametrize(
    ("state", "counts", "expected"),
    [
        (TcpState.TIME_WAIT, {}, Outcome.CLOSED_HERE),
        (TcpState.FIN_WAIT_1, {}, Outcome.CLOSED_HERE),
        (TcpState.CLOSING, {}, Outcome.CLOSED_HERE),
        (TcpState.CLOSE_WAIT, {}, Outcome.CLOSED_THERE),
        (TcpState.SYN_RECEIVED, {}, Outcome.FAILED),
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


ENDS = {
    "closed here": Outcome.CLOSED_HERE,
    "closed there": Outcome.CLOSED_THERE,
    "closed here, half-closed before": Outcome.CLOSED_HERE,
    "never established": Outcome.FAILED,
    "reset": None,  # which Darwin does not tell from others
}


@pytest.mark.parametrize("polled", [True, False])
def test_every_connection_of_a_script_says_how_it_ended(polled):
    """Seen by a poll before, or between two."""
    kernel, events = EmulatedKernel(), []
    monitor = VirtualMonitor(kernel, sink=events.extend)
    monitor.run(1.0)
    flows = [kernel.open_tcp(pid=7, name=way, remote=("192.0.2.1", 443)) for way in ENDS]
    states = (None, "last_ack", "fin_wait_2", "syn_sent", None)
    for flow, state in zip(flows, states, strict=True):
        if state is not None:
            flow.set_state(state)
    monitor.run(1.0 if polled else 0.01)
    flows[0].close(first=True)
    for flow in flows[1:4]:
        flow.detach()
    flows[4].close(first=False)
    monitor.run(2.0)
    assert {e.flow.process.name: e.flow.outcome for e in events if isinstance(e, FlowRemoved)} == ENDS
