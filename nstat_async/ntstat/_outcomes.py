"""How a TCP connection ended, as far as Darwin's last report tells: its state, and whether it was ever established.

The kernel does not report whether an attempt was refused or timed out, nor which end reset a connection.
"""

from __future__ import annotations

import operator

import attrs

from .._model import Counts, Direction, Flow, Outcome, Provider, TcpState

_BY_STATE = {
    TcpState.SYN_SENT: Outcome.FAILED,
    TcpState.SYN_RECEIVED: Outcome.FAILED,
    TcpState.FIN_WAIT_1: Outcome.CLOSED_HERE,
    TcpState.FIN_WAIT_2: Outcome.CLOSED_HERE,
    TcpState.CLOSING: Outcome.CLOSED_HERE,
    TcpState.TIME_WAIT: Outcome.CLOSED_HERE,
    TcpState.CLOSE_WAIT: Outcome.CLOSED_THERE,
    TcpState.LAST_ACK: Outcome.CLOSED_THERE,
}

_FIELDS = [field.name for field in attrs.fields(Flow)]
_values_of = operator.attrgetter(*_FIELDS)
_PLACE = _FIELDS.index("outcome")


def ended(flow: Flow, counts: Counts | None) -> Flow:
    """The flow with its outcome, if that is known; made in a quicker way than by `attrs.evolve`."""
    outcome = outcome_of(flow, counts)
    if outcome is None:
        return flow
    values = list(_values_of(flow))
    values[_PLACE] = outcome
    return Flow(*values)


def outcome_of(flow: Flow, counts: Counts | None) -> Outcome | None:
    """How a flow ended; `None` if the last report does not tell.

    Args:
        flow: The flow as last reported.
        counts: Its last counters: attempts without a success made no connection (``nstat_connectattempts``).
    """
    if flow.provider is not Provider.TCP or flow.state is None or flow.direction is Direction.LISTENER:
        return None
    if counts is not None and counts.connect_attempts and counts.connect_successes == 0:
        return Outcome.FAILED
    return _BY_STATE.get(flow.state)
