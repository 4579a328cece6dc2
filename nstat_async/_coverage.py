"""How much of a machine's or a network namespace's traffic its flows explain."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class Coverage:
    """What interfaces carried since a monitor began to count, beside what its flows moved meanwhile.

    An interface counts *wire bytes*: payload, headers, acknowledgements, what is sent again, and what is forwarded for
    others. Flows count *payload*. So a share of 1 is never reached: a transfer with full segments comes to some 0.95, a
    terminal session to less than 0.5. A share near 0 with much traffic means that something moves bytes which this
    monitor does not see: other network namespaces, forwarding, sockets of protocols without counts.

    Interfaces are added up, loopback apart (Linux: those that have addresses), and flows whose other end is another
    machine. What goes through a tunnel or a bridge is counted by two interfaces, its payload once.

    Whether it can be known is no field of `Capabilities`: it is known once the counters were read twice. `Coverage.of` is
    `None` until then, and for ever where they may not be read, or without polls.
    """

    rx_bytes: int
    """Wire bytes received."""
    tx_bytes: int
    """Wire bytes sent."""
    flow_rx_bytes: int
    """Payload bytes that flows received of it."""
    flow_tx_bytes: int
    """Payload bytes that flows sent; on Linux those of TCP that were acknowledged."""
    rx_datagrams: int | None = None
    """UDP datagrams that the namespace received, loopback included (``InDatagrams`` of ``/proc/net/snmp``, and IPv6's);
    `None` where nobody counts them (macOS)."""
    tx_datagrams: int | None = None
    """UDP datagrams that it sent."""
    flow_rx_datagrams: int | None = None
    """Datagrams that flows received of them; 0 where they are not counted (Linux: with eBPF)."""
    flow_tx_datagrams: int | None = None
    """Datagrams that flows sent."""

    @classmethod
    def of(cls, statistics: Mapping[str, int]) -> Coverage | None:
        """The coverage in the figures of a feed (`MonitorStatistics.feed`); `None` while nothing is known of it."""
        names = [each.name for each in attrs.fields(cls)]
        found = {name: statistics[key] for name in names if (key := f"coverage_{name}") in statistics}
        return cls(**found) if found else None

    @property
    def rx_share(self) -> float | None:
        """Payload of flows by wire bytes received, from 0 to 1; `None` where nothing came."""
        return _share(self.flow_rx_bytes, self.rx_bytes)

    @property
    def tx_share(self) -> float | None:
        """Payload of flows by wire bytes sent, from 0 to 1; `None` where nothing was sent."""
        return _share(self.flow_tx_bytes, self.tx_bytes)

    @property
    def unattributed_rx_bytes(self) -> int:
        """Wire bytes received that are no flow's payload: headers, and what no flow explains."""
        return max(0, self.rx_bytes - self.flow_rx_bytes)

    @property
    def unattributed_tx_bytes(self) -> int:
        """Wire bytes sent that are no flow's payload."""
        return max(0, self.tx_bytes - self.flow_tx_bytes)


def _share(part: int, whole: int) -> float | None:
    return min(1.0, part / whole) if whole else None
