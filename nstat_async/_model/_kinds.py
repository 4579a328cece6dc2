"""Kinds of flows, their states, directions, interfaces, attributions and outcomes."""

from __future__ import annotations

import enum


class Provider(enum.Enum):
    """The kind of a flow.

    Kernel and user-land variants share a member; `Flow.userland` tells them apart.
    """

    TCP = "tcp"
    UDP = "udp"
    QUIC = "quic"
    CONNECTION = "connection"
    """A connection attempt of the network framework (Darwin); it groups flows and has no bytes of its own."""
    UDP_SUBFLOW = "udp_subflow"
    """One remote of an unconnected UDP socket; its bytes are also in the socket's own flow."""
    RAW = "raw"
    """A raw IP socket (Linux); `Flow.protocol` has its protocol."""
    ICMP = "icmp"
    """A socket that sends echo requests without privilege (Linux, ``icmp(7)``); its port is the identifier."""
    PACKET = "packet"
    """A socket that sends and receives frames of a device (Linux, ``packet(7)``); it has no address."""
    ROUTE = "route"
    INTERFACE = "interface"
    UNKNOWN = "unknown"
    """A provider that a newer kernel invented."""


UNCOUNTED_PROVIDERS = frozenset({Provider.UDP_SUBFLOW, Provider.CONNECTION, Provider.ROUTE, Provider.INTERFACE})
"""Providers that no sum counts, because their bytes are also those of other flows."""


class TcpState(enum.Enum):
    """The states of RFC 9293, in the words of both kernels."""

    CLOSED = "closed"
    LISTEN = "listen"
    SYN_SENT = "syn_sent"
    SYN_RECEIVED = "syn_received"
    ESTABLISHED = "established"
    CLOSE_WAIT = "close_wait"
    FIN_WAIT_1 = "fin_wait_1"
    CLOSING = "closing"
    LAST_ACK = "last_ack"
    FIN_WAIT_2 = "fin_wait_2"
    TIME_WAIT = "time_wait"


class Direction(enum.Enum):
    """Which end began a flow."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    LISTENER = "listener"


class InterfaceKind(enum.Enum):
    """The kind of the interface that carried the last packet."""

    WIFI = "wifi"
    WIRED = "wired"
    CELLULAR = "cellular"
    LOOPBACK = "loopback"
    AWDL = "awdl"
    """Peer-to-peer Wi-Fi: Apple wireless direct link, or low-latency WLAN."""
    COMPANION = "companion"
    """The link between a watch or headset and its host."""
    BLUETOOTH = "bluetooth"
    VPN = "vpn"
    """A tunnel. On Darwin it may also have a physical medium: see `Interface.properties`."""
    BRIDGE = "bridge"
    """A bridge or virtual Ethernet (Linux; Darwin counts these as wired)."""
    OTHER = "other"
    """A known interface of another kind."""


class Attribution(enum.Enum):
    """How a flow's process is known, or why there is none (Linux)."""

    OBSERVED = "observed"
    """The process was seen to hold the flow, or to use it."""
    INFERRED = "inferred"
    """The flow was accepted and ended before the look-up; the process is the only one that listened there. Linux,
    without a process: cgroup, container and pod are those of all visible processes of the network namespace."""
    KERNEL = "kernel"
    """Linux: the kernel made the socket for itself (VXLAN, NFS, WireGuard), because no process has it. A descriptor that waits
    in a Unix socket, sent and not yet received, looks alike. `Flow.process` is the one with pid 0."""
    HIDDEN = "hidden"
    """Linux: none of the processes that may be looked at has it."""
    GONE = "gone"
    """Linux: the flow ended before the look-up."""


class Outcome(enum.Enum):
    """How a connection ended, as far as the kernel's last report tells."""

    CLOSED_HERE = "closed_here"
    """In order; this end closed first."""
    CLOSED_THERE = "closed_there"
    """In order; the other end closed first."""
    RESET_HERE = "reset_here"
    """This end reset it: it aborted the connection, or closed it with unread data."""
    RESET_THERE = "reset_there"
    """The other end reset it, or a device on the way did so in its name."""
    RESET = "reset"
    """It was reset; which end did so is not known."""
    TIMED_OUT = "timed_out"
    """The other end did not answer (any more): the kernel repeated segments until it gave up."""
    REFUSED = "refused"
    """The other end refused the attempt; the connection was never established."""
    FAILED = "failed"
    """It was never established, for an unknown reason, or because the program gave up."""
