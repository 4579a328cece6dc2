"""Sockets at their end: the last words of one, what remains of it, and two of one connection."""

from __future__ import annotations

import attrs
from sockdiag_fakes import LOOPBACK, FakeSocket

from nstat_async._model import Outcome
from nstat_async.sockdiag import SocketState, TcpInfo

HERE, THERE = Outcome.CLOSED_HERE, Outcome.CLOSED_THERE


def two_ends(sent=100):
    """Both ends of a connection of this machine, which its client closed first; the server got so many bytes."""
    server = FakeSocket(
        7,
        local_port=80,
        remote=b"\x7f\0\0\2",
        remote_port=40000,
        info={TcpInfo.BYTES_RECEIVED: sent + 1, TcpInfo.BYTES_ACKED: 1, TcpInfo.DATA_SEGS_IN: 1, TcpInfo.SEGS_IN: 4},
    )
    client = FakeSocket(
        8,
        local=b"\x7f\0\0\2",
        remote=LOOPBACK,
        info={TcpInfo.BYTES_SENT: sent, TcpInfo.BYTES_ACKED: sent + 2, TcpInfo.BYTES_RECEIVED: 1, TcpInfo.SEGS_IN: 3},
    )
    return server, client


def last_words(port=20_000, *, unread=0, unacked=0, sent=10, extra=2, quiet=0, received=778, **info):
    """The end of a connection with another machine: 10 bytes sent with a SYN and a FIN, 777 and perhaps a FIN received."""
    fields = {
        TcpInfo.BYTES_SENT: sent,
        TcpInfo.BYTES_ACKED: sent + extra - unacked,
        TcpInfo.DATA_SEGS_OUT: 1,
        TcpInfo.BYTES_RECEIVED: received,
        TcpInfo.DATA_SEGS_IN: 1,
        TcpInfo.SEGS_IN: 4,
        TcpInfo.LAST_ACK_RECV: quiet,
        **{TcpInfo[name]: value for name, value in info.items()},
    }
    return FakeSocket(port, local_port=port, unread=unread, unacked=unacked, info=fields)


def time_wait(of, age):
    """What is left of a socket that was closed first, for so many milliseconds."""
    return attrs.evolve(of, state=SocketState.TIME_WAIT, timer=3, expires=60_000 - age, info={})
