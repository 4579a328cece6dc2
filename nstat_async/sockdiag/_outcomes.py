"""How a connection ended, by its removal, its last known state and what is left of it."""

from __future__ import annotations

from typing import NamedTuple

from .._model import Outcome
from ..ebpf import Ended
from ._constants import SocketState
from ._finals import Fin, LastWords, Remains

QUICK = 1.0
"""Seconds until a SYN is repeated (``TCP_TIMEOUT_INIT``): no attempt times out earlier."""

_CLOSED_HERE = frozenset(
    {SocketState.FIN_WAIT1, SocketState.FIN_WAIT2, SocketState.CLOSING, SocketState.TIME_WAIT},
)
_CLOSED_THERE = frozenset({SocketState.CLOSE_WAIT, SocketState.LAST_ACK})
_ATTEMPTS = frozenset({SocketState.SYN_SENT, SocketState.SYN_RECV})
_OPEN = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT, SocketState.FIN_WAIT1})
"""In these states a connection ends without an error only if this end aborts it, or closes it with unread data."""
# Errors by Linux' numbers: a recording may be played elsewhere.
_EPIPE, _ECONNABORTED, _ECONNRESET, _ETIMEDOUT, _ECONNREFUSED = 32, 103, 104, 110, 111
_RESETS = frozenset({_ECONNRESET, _EPIPE})
_ATTEMPTS_BY_ERROR = {
    _ECONNREFUSED: Outcome.REFUSED,
    _ECONNRESET: Outcome.REFUSED,
    _ETIMEDOUT: Outcome.TIMED_OUT,
}


class Traces(NamedTuple):
    """What is known of an end besides the counters of the removal."""

    state: int | None
    """The last known state; `None` if the end was not seen."""
    orderly: bool
    """A FIN of this end was acknowledged."""
    closing: bool
    """A FIN of this end was sent."""
    fin: Fin
    remains: Remains = Remains.UNKNOWN
    peer: LastWords | None = None
    """The other end's removal, if it is on this machine and ended too."""
    local: bool = False
    """The other end is on this machine."""

    @property
    def alone(self) -> bool:
        """True if nothing is known of the other end."""
        return self.peer is None and not self.local


def outcome_of_attempt(words: LastWords | None, repeated: int, *, quick: bool) -> Outcome:
    """How an attempt failed that was never established.

    Args:
        words: Its removal; `None`, or without counters, if the kernel cleared them because ``connect`` returned an error.
        repeated: How often the SYN was repeated.
        quick: The attempt was too short to repeat the SYN.
    """
    if words is None or words.cleared:
        if repeated:
            return Outcome.TIMED_OUT
        return Outcome.REFUSED if quick else Outcome.FAILED
    if words.segments_in:
        return Outcome.REFUSED
    return Outcome.TIMED_OUT if repeated else Outcome.FAILED


def is_attempt(words: LastWords) -> bool:
    """True if only SYNs were sent, and nothing but perhaps a refusal came back."""
    sent = words.unacknowledged and not words.acknowledged
    return bool(sent) and not (words.received or words.window or words.cleared)


def outcome_of(words: LastWords, traces: Traces) -> Outcome | None:
    """How an established connection ended, if its counters are known; `None` where no outcome is likelier than the others."""
    if traces.orderly:
        return _closed_by(words, traces)
    if words.unanswered and (words.unacknowledged or not words.unread):
        return Outcome.TIMED_OUT
    return _reset_by(words, traces)


def _closed_by(words: LastWords, traces: Traces) -> Outcome | None:
    remains, fin = traces.remains, traces.fin
    if traces.peer is not None and traces.peer.cleared and not fin.proven:
        return Outcome.RESET_THERE
    if remains is Remains.FIN_WAIT2 or remains is Remains.TIME_WAIT:  # a set calls each one's hash
        return Outcome.CLOSED_HERE
    if traces.state in _CLOSED_THERE:
        return Outcome.CLOSED_THERE
    known = fin.proven or not traces.alone or traces.state in _CLOSED_HERE
    if remains is Remains.NOTHING and not fin.counted:  # closed here and then reset; or closed there, and held for long
        return _reset_by(words, traces) if known or words.unread or not words.quiet else None
    if traces.state in _CLOSED_HERE:
        return Outcome.CLOSED_HERE
    if remains is Remains.UNCLEAR:
        return None
    return Outcome.CLOSED_THERE if known or remains is Remains.NOTHING else None


def _reset_by(words: LastWords, traces: Traces) -> Outcome:
    """Which end reset the connection: one that closes with unread data does, and so does one that gets data after closing."""
    peer, fin = traces.peer, traces.fin
    if traces.closing and peer is not None and not peer.cleared and peer.payload_sent > words.received - fin.counted:
        return Outcome.RESET_HERE
    if words.unread <= (fin.counted if fin.proven else 0):
        # An end that closed answers further data with a reset, even if only its remains are left in the kernel.
        may_have = traces.closing and (traces.orderly or (words.data_segments and not words.quiet))
        return Outcome.RESET if traces.alone and may_have else Outcome.RESET_THERE
    if peer is not None:
        if peer.cleared:
            return Outcome.RESET_THERE
        return Outcome.RESET if peer.unread > 1 else Outcome.RESET_HERE
    # If the other end is on this machine and had reset the connection, its removal would have come.
    return Outcome.RESET_HERE if traces.local else Outcome.RESET


def _outcome_by_error(ended: Ended) -> Outcome:
    """How a connection ended, by the kernel's error for it (``tcp_reset``, ``tcp_write_err``, ``tcp_abort``)."""
    if ended.error in _RESETS:
        # If data comes that cannot be read any more, the connection ends as if the other end had reset it.
        return Outcome.RESET if ended.shut_for_reading and ended.state in _CLOSED_HERE else Outcome.RESET_THERE
    return Outcome.RESET_HERE if ended.error == _ECONNABORTED else Outcome.TIMED_OUT


def outcome_by_record(ended: Ended, words: LastWords | None) -> Outcome | None:
    """How a connection ended, by the eBPF record of its end; `None` where the record does not tell.

    Args:
        ended: The record.
        words: The removal; `None` if none came.
    """
    repeated = ended.totals.retransmitted_segments or 0
    if ended.state in _ATTEMPTS or not ended.established:
        known = _ATTEMPTS_BY_ERROR.get(ended.error or 0)
        return known or outcome_of_attempt(words, repeated, quick=words is not None)
    if ended.error:
        return _outcome_by_error(ended)
    if ended.error is not None and ended.state in _OPEN:
        return Outcome.RESET_HERE
    if ended.state in _CLOSED_THERE - {SocketState.CLOSE_WAIT}:
        return Outcome.CLOSED_THERE
    if ended.state in _CLOSED_HERE - {SocketState.FIN_WAIT1}:
        return Outcome.CLOSED_HERE
    return None
