"""Numbers of Linux' netlink interfaces, under their kernel names without the prefix.

Sources: ``include/uapi/linux/netlink.h``, ``sock_diag.h``, ``inet_diag.h``,
``tcp.h``, ``rtnetlink.h``, ``if_link.h``, ``if_arp.h``, ``include/net/tcp_states.h``.
They are the kernel's ABI and equal on every architecture, so a recording made on
one machine can be read on another of the same byte order.
"""

from __future__ import annotations

import enum

from .._model import Provider, TcpState

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10
AF_PACKET = 17
IPPROTO_ICMP = 1
"""Of an entry: ICMP over either version of IP."""
IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_RAW = 255
"""Of an entry: a raw socket of any protocol."""
PACKET = 1 << 8
"""Of an entry, in place of an IP protocol: a packet socket."""
PROVIDERS: dict[int, Provider] = {
    IPPROTO_TCP: Provider.TCP,
    IPPROTO_UDP: Provider.UDP,
    IPPROTO_RAW: Provider.RAW,
    IPPROTO_ICMP: Provider.ICMP,
    PACKET: Provider.PACKET,
}
"""The provider of a socket's flows, by the protocol of its entry."""
DUMPED = frozenset({IPPROTO_TCP, IPPROTO_UDP})
"""Protocols whose sockets sock_diag dumps."""

SOCK_DIAG_BY_FAMILY = 20
"""Type of sock_diag requests, of their replies and of destroy notifications."""

TCPDIAG_GETSOCK = 18
"""Type of the older requests, and of their replies: of TCP only, in a dump of both families at once."""

NO_COOKIE = b"\xff" * 8
"""In a request: match whatever socket has these addresses (``INET_DIAG_NOCOOKIE`` twice)."""


class MessageType(enum.IntEnum):
    """Control messages that every netlink family shares."""

    NOOP = 1
    ERROR = 2
    DONE = 3
    OVERRUN = 4


class MessageFlag(enum.IntFlag):
    """Bits of ``nlmsg_flags``."""

    REQUEST = 0x1
    MULTI = 0x2
    DUMP_INTERRUPTED = 0x10
    DUMP = 0x300


class DiagGroup(enum.IntEnum):
    """Multicast groups of sock_diag that report destroyed sockets (since Linux 4.3)."""

    TCP4_DESTROY = 1
    UDP4_DESTROY = 2
    TCP6_DESTROY = 3
    UDP6_DESTROY = 4


class DiagAttribute(enum.IntEnum):
    """Attributes of an ``inet_diag_msg``; asked for by bit ``number - 1`` where the kernel does not send them anyway."""

    MEMINFO = 1
    INFO = 2
    CONG = 4
    TOS = 5
    TCLASS = 6
    SKMEMINFO = 7
    SHUTDOWN = 8
    PROTOCOL = 10
    SKV6ONLY = 11
    MARK = 15
    CLASS_ID = 17
    ULP_INFO = 19
    CGROUP_ID = 21
    SOCKOPT = 22


class SocketState(enum.IntEnum):
    """``idiag_state``."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


TCP_STATES: dict[int, TcpState] = {
    1: TcpState.ESTABLISHED,
    2: TcpState.SYN_SENT,
    3: TcpState.SYN_RECEIVED,
    4: TcpState.FIN_WAIT_1,
    5: TcpState.FIN_WAIT_2,
    6: TcpState.TIME_WAIT,
    7: TcpState.CLOSED,
    8: TcpState.CLOSE_WAIT,
    9: TcpState.LAST_ACK,
    10: TcpState.LISTEN,
    11: TcpState.CLOSING,
}

TCP_DUMP_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 10, 11))
"""States worth dumping: what owns a socket. Left out are connection requests (SYN_RECV: no
socket yet, no counters, thousands in a flood), TIME_WAIT (the socket is gone and was
reported at its destruction) and sockets that were bound and never used."""

TIMER_TIME_WAIT = 3
"""``idiag_timer`` of the remains of a socket in TIME_WAIT or orphaned FIN_WAIT2
(``inet_twsk_diag_fill``): they have addresses, and neither inode nor counters."""


class TcpInfo(enum.IntEnum):
    """Offsets inside ``struct tcp_info``, which only ever grew at its end: compare with the length."""

    STATE = 0
    RETRANSMITS = 2
    PROBES = 3
    RTO = 8
    SND_MSS = 16
    UNACKED = 24
    LOST = 32
    LAST_DATA_SENT = 44
    LAST_DATA_RECV = 52
    LAST_ACK_RECV = 56
    PMTU = 60
    RTT = 68
    RTTVAR = 72
    SND_CWND = 80
    TOTAL_RETRANS = 100
    PACING_RATE = 104
    BYTES_ACKED = 120
    BYTES_RECEIVED = 128
    SEGS_OUT = 136
    SEGS_IN = 140
    NOTSENT_BYTES = 144
    MIN_RTT = 148
    DATA_SEGS_IN = 152
    DATA_SEGS_OUT = 156
    DELIVERY_RATE = 160
    DELIVERED = 192
    BYTES_SENT = 200
    BYTES_RETRANS = 208
    SND_WND = 228


class RouteMessage(enum.IntEnum):
    """Message types of rtnetlink."""

    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22


class LinkAttribute(enum.IntEnum):
    """Attributes of ``ifinfomsg``."""

    IFNAME = 3
    LINKINFO = 18
    INFO_KIND = 1
    """Inside ``LINKINFO``: the driver's kind, e.g. ``wireguard``."""


class AddressAttribute(enum.IntEnum):
    """Attributes of ``ifaddrmsg``."""

    ADDRESS = 1
    LOCAL = 2


class HardwareType(enum.IntEnum):
    """``ifi_type`` (``ARPHRD_*``)."""

    ETHER = 1
    RAWIP = 519
    TUNNEL = 768
    TUNNEL6 = 769
    LOOPBACK = 772
    SIT = 776
    IPGRE = 778
    IEEE80211 = 801
    IEEE80211_PRISM = 802
    IEEE80211_RADIOTAP = 803
    IP6GRE = 823
