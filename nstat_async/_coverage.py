"""How much of a machine's or a network namespace's traffic its flows explain."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class Coverage:
    """What interfaces carried since a monitor began to count, and what its flows moved in the same time.

    An interface counts *wire bytes*: payload, headers, acknowledgements, retransmissions, and forwarded traffic. Flows
    count *payload*. So a share never reaches 1: a transfer with full segments comes to about 0.95, a terminal session to
    less than 0.5. A share near 0 with much traffic means that something moves bytes which this monitor does not see:
    other network namespaces, forwarding, sockets of protocols without counts.

    The figures are sums over all interfaces but loopback (Linux: those that have addresses), and over the flows whose
    other end is another machine. Two interfaces count what goes through a tunnel or a bridge; its payload counts once.

    `Coverage.of` is `None` until the counters were read twice, and for ever if they may not be read, or without polls.
    So `Capabilities` has no field for it.
    """

    rx_bytes: int
    """Wire bytes received."""
    tx_bytes: int
    """Wire bytes sent."""
    flow_rx_bytes: int
    """Payload bytes that flows received."""
    flow_tx_bytes: int
    """Payload bytes that flows sent; on Linux, of TCP, those that were acknowledged."""
    rx_datagrams: int | None = None
    """UDP datagrams that the namespace received, loopback included (``InDatagrams`` of ``/proc/net/snmp``, and IPv6's);
    `None` where they are not counted (macOS)."""
    tx_datagrams: int | None = None
    """UDP datagrams that the namespace sent."""
    flow_rx_datagrams: int | None = None
    """UDP datagrams that flows received; 0 where they are not counted (on Linux only eBPF programs count them)."""
    flow_tx_datagrams: int | None = None
    """UDP datagrams that flows sent."""

    @classmethod
    def of(cls, statistics: Mapping[str, int]) -> Coverage | None:
        """The coverage in the figures of a feed (`MonitorStatistics.feed`); `None` while nothing is known of it."""
        names = [each.name for each in attrs.fields(cls)]
        found = {name: statistics[key] for name in names if (key := f"coverage_{name}") in statistics}
        return cls(**found) if found else None

    @property
    def rx_share(self) -> float | None:
        """Payload of flows divided by wire bytes received, from 0 to 1; `None` if nothing was received."""
        return _share(self.flow_rx_bytes, self.rx_bytes)

    @property
    def tx_share(self) -> float | None:
        """Payload of flows divided by wire bytes sent, from 0 to 1; `None` if nothing was sent."""
        return _share(self.flow_tx_bytes, self.tx_bytes)

    @property
    def unattributed_rx_bytes(self) -> int:
        """Wire bytes received that are not payload of a flow: headers, and traffic that no flow explains."""
        return max(0, self.rx_bytes - self.flow_rx_bytes)

    @property
    def unattributed_tx_bytes(self) -> int:
        """Wire bytes sent that are not payload of a flow."""
        return max(0, self.tx_bytes - self.flow_tx_bytes)


def _share(part: int, whole: int) -> float | None:
    return min(1.0, part / whole) if whole else None
