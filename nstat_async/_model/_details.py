"""What a report says besides the counters."""

from __future__ import annotations

from typing import Protocol

import attrs

from ._counts import MediumCounts
from ._flow import Endpoint


@attrs.frozen(kw_only=True)
class DomainInfo:
    """The domain behind a flow (Darwin 12 and later; privileged since 13.1)."""

    name: str | None = None
    """Domain name."""
    owner: str | None = None
    """Owner of the domain, if that is a known tracker."""
    tracker_context: str | None = None
    """Purpose of the tracker, by the system's list."""
    attributed_bundle_id: str | None = None
    """Bundle that the flow is attributed to."""
    remote: Endpoint | None = None
    """Address at the time of the look-up."""
    is_tracker: bool = False
    """True for a domain on the system's list of trackers."""
    is_non_app_initiated: bool = False
    """True if content in the app began it, such as a web page, not the app itself."""
    is_silent: bool = False
    """True for a flow that the system does not report to the user."""


@attrs.frozen(kw_only=True)
class Details:
    """Samples that come with a report: windows, buffers, platform facts.

    Unlike `Counts`, nothing here is cumulative, and everything is optional.
    """

    congestion_control: str | None = None
    """Name of the congestion control algorithm."""
    congestion_window: int | None = None
    """Congestion window in bytes."""
    send_window: int | None = None
    """The peer's receive window in bytes."""
    unacked_bytes: int | None = None
    """Bytes that are sent and not acknowledged."""
    send_buffer_size: int | None = None
    """Limit of the send buffer in bytes."""
    send_buffer_used: int | None = None
    """Bytes in the send buffer."""
    receive_buffer_size: int | None = None
    """Limit of the receive buffer in bytes."""
    receive_buffer_used: int | None = None
    """Bytes in the receive buffer, which the program has not read."""

    traffic_mgt_flags: int | None = None
    """Darwin: 1 background socket, 2 background receive."""
    connection_status: int | None = None
    """Darwin: probe bits of ``tcp_conn_status``."""
    rx_transfer_size: int | None = None
    """Darwin user-land flows: announced size of the transfer that is received, in bytes."""
    tx_transfer_size: int | None = None
    """Darwin user-land flows: announced size of the transfer that is sent, in bytes."""
    activity_started_s: int | None = None
    """Darwin: start of `activity`, seconds of uptime; `None` if there was no activity."""
    activity: int | None = None
    """Darwin: 128 bits, bit *i* set when there was traffic in the *i*-th 8 seconds."""
    sampled_at_ns: int | None = None
    """When the kernel filled in this report, wall clock, nanoseconds since the epoch."""
    domain: DomainInfo | None = None
    """Darwin: the domain behind the flow."""
    original_domain: DomainInfo | None = None
    """Darwin: the domain that was asked for, before a proxy or relay."""
    necp_parameters: bytes | None = None
    """Darwin: NECP client parameters, TLV as sent."""
    original_necp_parameters: bytes | None = None
    """Darwin: those of the flow before a proxy or relay."""
    bluetooth: MediumCounts | None = None
    """Traffic over Bluetooth: Darwin 15 and later, privileged."""
    undecoded: bytes = b""
    """Descriptor bytes beyond the known layout (a newer kernel)."""

    cgroup_id: int | None = None
    """Linux: cgroup v2 id of the socket."""
    mark: int | None = None
    """Linux: ``SO_MARK``; needs CAP_NET_ADMIN."""
    delivery_rate: int | None = None
    """Linux: recent delivery rate, bytes per second."""
    pacing_rate: int | None = None
    """Linux: pacing rate, bytes per second; `None` when unlimited."""
    min_rtt_us: int | None = None
    """Linux: smallest round trip seen in the kernel's window, microseconds."""
    retransmits: int | None = None
    """Linux: segments sent again since the flow began."""
    lost: int | None = None
    """Linux: segments presumed lost at this moment."""
    mss: int | None = None
    """Linux: sending segment size, bytes."""
    path_mtu: int | None = None
    """Linux: path MTU, bytes."""
    rto_us: int | None = None
    """Linux: retransmission time-out, microseconds."""
    inode: int | None = None
    """Linux: inode of the socket."""


class DetailsSource(Protocol):
    """Something that can be decoded into `Details` when needed."""

    def details(self) -> Details:
        """Decode."""
