"""What a flow may be: its kind, state, direction, medium, owner and end."""

from __future__ import annotations

import enum


class Provider(enum.Enum):
    """What kind of thing a flow is.

    Kernel and user-land variants share a member; `Flow.userland` distinguishes them.
    """

    TCP = "tcp"
    UDP = "udp"
    QUIC = "quic"
    CONNECTION = "connection"
    """A connection attempt of the network framework (Darwin); it groups flows and carries no bytes."""
    UDP_SUBFLOW = "udp_subflow"
    """One remote of an unconnected UDP socket; its bytes are also in the socket's own flow."""
    RAW = "raw"
    """A raw IP socket (Linux); `Flow.protocol` says of which protocol."""
    ICMP = "icmp"
    """A socket that sends echo requests without privilege (Linux, ``icmp(7)``); its port is the identifier."""
    PACKET = "packet"
    """A socket that sends and receives frames of a device (Linux, ``packet(7)``); it has no address."""
    ROUTE = "route"
    INTERFACE = "interface"
    UNKNOWN = "unknown"
    """A provider that a newer kernel invented."""


UNCOUNTED_PROVIDERS = frozenset({Provider.UDP_SUBFLOW, Provider.CONNECTION, Provider.ROUTE, Provider.INTERFACE})
"""What is in no sum: its bytes are those of other flows, too."""


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
    """Who began a flow."""

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
    """The kernel knows the interface and none of the words above fits."""


class Attribution(enum.Enum):
    """How a flow's process is known, or why there is none (Linux)."""

    OBSERVED = "observed"
    """The process was seen to hold the flow, or to use it."""
    INFERRED = "inferred"
    """It is the only process that listened where the flow was accepted, which ended before anyone could look."""
    KERNEL = "kernel"
    """Linux: the kernel made the socket for itself (VXLAN, NFS, WireGuard): all processes were looked at, and none
    has it. `Flow.process` is the one with pid 0."""
    HIDDEN = "hidden"
    """Linux: none of the processes that may be looked at has it."""
    GONE = "gone"
    """Linux: it ended before anyone could look."""


class Outcome(enum.Enum):
    """How a connection ended, as far as the kernel's last words tell."""

    CLOSED_HERE = "closed_here"
    """In order; this end closed first."""
    CLOSED_THERE = "closed_there"
    """In order; the other end closed first."""
    RESET_HERE = "reset_here"
    """This end reset it: it was aborted, or closed with something unread."""
    RESET_THERE = "reset_there"
    """The other end reset it, or something on the way in its name."""
    RESET = "reset"
    """It was reset; by whom is not known."""
    TIMED_OUT = "timed_out"
    """Nobody answered any more, or ever: what was sent was repeated in vain until it was given up."""
    REFUSED = "refused"
    """The attempt was answered with a refusal, and never established."""
    FAILED = "failed"
    """It was never established; why is not known, or the program gave it up."""
