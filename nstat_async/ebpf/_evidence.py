"""The evidence about sockets that the programs report: the values that leave this package.

They tell what was seen and how sure it is; the core that collects evidence from several sources weighs it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable
from typing import NamedTuple, Union

from ._records import Counters, Flag, FlowRow, OwnerRow, PeerRow, Record, text_of

Facts = Union[Record, FlowRow, OwnerRow]
"""The kernel's facts about a socket, which have the same names in all three classes."""
_INET, _INET6 = 2, 10
_HAS_PROCESS, _BY_CLOSER, _BY_CREATOR, _FIN_RECEIVED = map(
    int, (Flag.HAS_PROCESS, Flag.BY_CLOSER, Flag.BY_CREATOR, Flag.FIN_RECEIVED)
)  # plain numbers, because the operators of an IntFlag are slow


class HowKnown(enum.Enum):
    """What a process did with a socket when it was seen."""

    CALL = "call"
    """It connected, sent or received."""
    CREATOR = "creator"
    """It made the socket."""
    CLOSER = "closer"
    """It closed the socket, and no process was seen using it."""
    DESCRIPTOR = "descriptor"
    """It has the socket open."""


class Owner(NamedTuple):
    """A process that was seen with a socket, with its facts at that moment."""

    pid: int
    """In the first pid namespace."""
    start: int
    """When it started, in nanoseconds since boot, including time asleep; with `pid` its identity."""
    name: str | None
    """``comm``: 15 bytes at most."""
    how: HowKnown


class Ends(NamedTuple):
    """Where a socket is bound and connected."""

    local: bytes | None
    """Packed address of 4 or 16 bytes; `None`: the protocol has no addresses."""
    local_port: int | None
    """`None`: not known."""
    remote: bytes | None
    """`None`: not connected."""
    remote_port: int | None


class Totals(NamedTuple):
    """The traffic of a socket since its beginning."""

    rx_bytes: int | None
    """Payload received; `None` if nothing counts it."""
    tx_bytes: int | None
    """Payload sent; `None` if nothing counts it."""
    rx_packets: int | None
    """Datagrams or segments; `None` if only calls were counted, which are not packets."""
    tx_packets: int | None
    """As `rx_packets`."""
    retransmitted_bytes: int | None = None
    """TCP only."""
    retransmitted_segments: int | None = None
    """TCP only."""
    smoothed_rtt_us: float | None = None
    """TCP only, microseconds; `None` without a sample."""


class Seen(NamedTuple):
    """A socket is known from now on: a connection began, or a socket was used for the first time."""

    facts: Facts
    outbound: bool | None
    """True: it connects; False: it was accepted; `None`: neither, or not seen."""
    began: bool | None
    """True if this is its beginning; false if it is older; `None`: not known."""


class Established(NamedTuple):
    """An outbound connection is established: its ends are known now."""

    facts: Facts


class OwnerSeen(NamedTuple):
    """A process was seen with a socket that was known before."""

    facts: Facts
    after_end: bool
    """True if the connection was over: it was reset before a process used it."""


class Counted(NamedTuple):
    """The counts of a datagram socket grew, or its ends changed."""

    facts: FlowRow
    totals: Totals
    whole: bool
    """True if its creation was seen, so that all of its traffic was counted."""


class Ended(NamedTuple):
    """A connection is over, or a socket was released."""

    facts: Facts
    """The last facts about it."""
    time: int | None
    """Nanoseconds since boot; `None` if the end was not seen."""
    totals: Totals
    final: bool
    """True if nothing can be missing from the totals."""
    established: bool
    """TCP: false if the connection was never established."""
    state: int | None = None
    """TCP: the kernel's number of the state before the end; `None` if the end was not seen."""
    error: int | None = None
    """TCP: the error that ended it; 0: this end closed it without an error; `None`: not known."""
    shut_for_reading: bool = False
    """TCP: it was shut down for reading."""


Evidence = Union[Seen, Established, OwnerSeen, Counted, Ended]


def owner_of(facts: Facts) -> Owner | None:
    """The process of a socket; `None` if none was seen."""
    flags = facts.flags
    if not flags & _HAS_PROCESS:
        return None
    if flags & _BY_CLOSER:
        how = HowKnown.CLOSER
    elif flags & _BY_CREATOR:
        how = HowKnown.CREATOR
    else:
        how = HowKnown.DESCRIPTOR if isinstance(facts, OwnerRow) else HowKnown.CALL
    return Owner(facts.pid, facts.start, text_of(facts.comm), how)


def ends_of(facts: Facts) -> Ends:
    """The addresses of a socket; a remote address of zeros means that it is not connected."""
    family = facts.family
    if family not in {_INET, _INET6}:
        return Ends(None, None, None, None)
    size = 4 if family == _INET else 16
    remote = facts.remote[:size]
    port = facts.remote_port >> 8 | (facts.remote_port & 0xFF) << 8
    connected = port != 0 or any(remote)
    return Ends(facts.local[:size], facts.local_port or None, remote if connected else None, port or None)


_totals = functools.partial(tuple.__new__, Totals)
"""`Totals._make` without its Python function."""


def tcp_totals(record: Record) -> Totals:
    """The counts of a TCP connection at its end.

    The kernel counts a received FIN as a byte (``tcp_fin`` in ``net/ipv4/tcp_input.c`` after ``tcp_rcv_nxt_update``),
    and retransmitted bytes as sent again. Neither is the application's traffic, so both are subtracted.
    """
    sent, _, received, again, segments, rtt, tx_packets, rx_packets = record[-8:]
    fin = 1 if received and record.flags & _FIN_RECEIVED else 0
    tx_bytes = sent - again if sent > again else 0
    return _totals((received - fin, tx_bytes, rx_packets, tx_packets, again, segments, rtt / 8 or None))


def datagram_totals(counters: Counters, *, packets: bool) -> Totals:
    """The counts of a socket of another protocol than TCP.

    Each direction has the bytes of its packets if these are counted, and otherwise the bytes of calls. So received
    bytes have two meanings: delivered to the socket, or read from it.

    Args:
        counters: The counters of the programs.
        packets: True if packets are counted; then a UDP socket without packets has 0 and not `None`.
    """
    rx = _direction(counters.rx_payload, counters.rx_packets, counters.rx_bytes, counters.rx_calls, packets)
    tx = _direction(counters.tx_payload, counters.tx_packets, counters.tx_bytes, counters.tx_calls, packets)
    return Totals(rx[0], tx[0], rx[1], tx[1])


def remainder_of(counters: Counters, peers: Iterable[PeerRow]) -> Totals:
    """The traffic of an unconnected UDP socket with addresses that are not in the bounded list of peers.

    The socket must be read after its peers: then traffic between the two readings is in the result, too.
    """
    rx_bytes, tx_bytes, rx_packets, tx_packets = (
        counters.rx_payload,
        counters.tx_payload,
        counters.rx_packets,
        counters.tx_packets,
    )
    for peer in peers:
        rx_bytes -= peer.rx_bytes
        tx_bytes -= peer.tx_bytes
        rx_packets -= peer.rx_packets
        tx_packets -= peer.tx_packets
    return Totals(*(max(0, left) for left in (rx_bytes, tx_bytes, rx_packets, tx_packets)))


def _direction(payload: int, number: int, size: int, calls: int, packets: bool) -> tuple[int, int | None]:
    if number:
        return payload, number
    return size, 0 if packets and not calls else None
