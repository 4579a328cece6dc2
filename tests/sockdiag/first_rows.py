"""Hypothesis strategies of sockets whose first row says more or less."""

from __future__ import annotations

from hypothesis import strategies as st
from sockdiag_fakes import FakeSocket

from nstat_async.sockdiag import DiagAttribute, TcpInfo

SMALL = st.integers(0, 3)
NUMBERS = {
    TcpInfo.UNACKED: SMALL, TcpInfo.TOTAL_RETRANS: st.integers(0, 1), TcpInfo.NOTSENT_BYTES: SMALL,
    TcpInfo.DATA_SEGS_IN: st.integers(0, 1), TcpInfo.DATA_SEGS_OUT: SMALL, TcpInfo.DELIVERED: SMALL,
    TcpInfo.BYTES_RECEIVED: st.integers(0, 2), TcpInfo.BYTES_ACKED: SMALL | st.sampled_from([1 << 63, (1 << 64) - 1]),
    TcpInfo.BYTES_SENT: SMALL | st.just(1 << 63), TcpInfo.BYTES_RETRANS: SMALL,
}  # fmt: skip
COOKIES = st.integers(1, 2**64 - 1)
CONNECTIONS = st.builds(
    FakeSocket,
    COOKIES,
    local_port=st.sampled_from([80, 40000]),
    remote_port=st.sampled_from([80, 256]),
    state=st.sampled_from([1, 8, 4, 5, 9, 11, 3]),
    unacked=SMALL,
    info=st.fixed_dictionaries({}, optional=NUMBERS),
    cgroup=st.sampled_from([77, 2**63]),
)
"""Of most of these the row says who opened them."""
FIRST_ROWS = CONNECTIONS | st.builds(
    FakeSocket,
    COOKIES,
    local_port=st.sampled_from([80, 40000]),
    remote_port=st.sampled_from([0, 443]),
    protocol=st.sampled_from([6, 6, 6, 17]),
    state=st.integers(1, 12),
    unacked=SMALL,
    info=st.fixed_dictionaries({}, optional={**NUMBERS, TcpInfo.STATE: st.integers(1, 12)}),
    info_length=st.sampled_from([280, 280, 232, 208, 192, 160, 100]),
    cgroup=st.sampled_from([0, 77, 2**63]),
    extra=st.sampled_from([{}, {DiagAttribute.MARK: b"\1\0\0\0"}]),
)
