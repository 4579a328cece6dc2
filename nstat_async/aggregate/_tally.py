"""The mutable state of a table: one tally per row, one entry per open flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ._rows import Row, RowKind

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from nstat_async._model import Flow, Process

    from ._rates import RateWindow

__all__ = ["OpenFlow", "Tally", "sum_tallies"]


@attrs.define(eq=False)
class Tally:
    """The counters of one row."""

    serial: int
    kind: RowKind
    key: Hashable
    source: str | None
    process: Process | None
    first_seen: float
    last_seen: float
    flows: int = 0
    open_flows: int = 0
    uncounted: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    mark: int = 0
    """The clock's mark when `samples` were last added to."""
    samples: list[tuple[int, int, int]] = attrs.field(factory=list)
    """Totals (mark, rx_bytes, tx_bytes) at marks after which the row grew."""

    def save(self, window: RateWindow) -> None:
        """Keep the totals of the latest mark: the row is about to grow."""
        samples = self.samples
        oldest = window.oldest
        stale = 0
        while stale < len(samples) and samples[stale][0] < oldest:
            stale += 1
        del samples[:stale]
        self.mark = window.mark
        samples.append((window.mark, self.rx_bytes, self.tx_bytes))

    def shift(self, rx_bytes: int, tx_bytes: int, rx_packets: int, tx_packets: int) -> None:
        """Add (or, negative, take away) traffic as if it had always been (not) there: rates do not see it."""
        self.rx_bytes += rx_bytes
        self.tx_bytes += tx_bytes
        self.rx_packets += rx_packets
        self.tx_packets += tx_packets
        # Taken-away traffic may be younger than a sample: a rate is then understated, never negative.
        self.samples = [
            (mark, min(max(0, rx + rx_bytes), self.rx_bytes), min(max(0, tx + tx_bytes), self.tx_bytes))
            for mark, rx, tx in self.samples
        ]

    def add(self, rx_bytes: int, tx_bytes: int, rx_packets: int, tx_packets: int) -> None:
        """Add traffic of now."""
        self.rx_bytes += rx_bytes
        self.tx_bytes += tx_bytes
        self.rx_packets += rx_packets
        self.tx_packets += tx_packets

    def grown(self, start: int) -> tuple[int, int]:
        """Bytes received and sent since the mark `start`."""
        for mark, rx_bytes, tx_bytes in self.samples:
            if mark >= start:
                return self.rx_bytes - rx_bytes, self.tx_bytes - tx_bytes
        return 0, 0

    def row(self, span: tuple[int, float]) -> Row:
        """The tally as a frozen value; `span` is that of the window."""
        start, seconds = span
        rx_rate = tx_rate = None
        if seconds > 0:
            rx_bytes, tx_bytes = self.grown(start)
            rx_rate, tx_rate = rx_bytes / seconds, tx_bytes / seconds
        return Row(
            kind=self.kind,
            key=self.key,
            source=self.source,
            process=self.process,
            flows=self.flows,
            open_flows=self.open_flows,
            uncounted_flows=self.uncounted,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
            rx_packets=self.rx_packets,
            tx_packets=self.tx_packets,
            rx_rate=rx_rate,
            tx_rate=tx_rate,
            first_seen=self.first_seen,
            last_seen=self.last_seen,
            serial=self.serial,
        )

    @property
    def is_empty(self) -> bool:
        """True when nothing is, or ever was, counted here."""
        return not (self.flows or self.open_flows or self.rx_bytes or self.tx_bytes or self.packets)

    @property
    def packets(self) -> int:
        """Both directions."""
        return self.rx_packets + self.tx_packets

    def absorb(self, other: Tally) -> None:
        """Take over everything of a tally that goes away; rates do not see it."""
        self.shift(other.rx_bytes, other.tx_bytes, other.rx_packets, other.tx_packets)
        self.flows += other.flows
        self.open_flows += other.open_flows
        self.uncounted += other.uncounted
        self.first_seen = min(self.first_seen, other.first_seen)
        self.last_seen = max(self.last_seen, other.last_seen)


def sum_tallies(tallies: Iterable[Tally], kind: RowKind, span: tuple[int, float]) -> Row:
    """Many tallies as one row, without making a row of each."""
    start, seconds = span
    listed = list(tallies)
    growth = [tally.grown(start) for tally in listed]
    rated = seconds > 0
    return Row(
        kind=kind,
        flows=sum(tally.flows for tally in listed),
        open_flows=sum(tally.open_flows for tally in listed),
        uncounted_flows=sum(tally.uncounted for tally in listed),
        rx_bytes=sum(tally.rx_bytes for tally in listed),
        tx_bytes=sum(tally.tx_bytes for tally in listed),
        rx_packets=sum(tally.rx_packets for tally in listed),
        tx_packets=sum(tally.tx_packets for tally in listed),
        rx_rate=sum(rx_bytes for rx_bytes, _ in growth) / seconds if rated else None,
        tx_rate=sum(tx_bytes for _, tx_bytes in growth) / seconds if rated else None,
        first_seen=min((tally.first_seen for tally in listed), default=None),
        last_seen=max((tally.last_seen for tally in listed), default=None),
    )


@attrs.define(eq=False)
class OpenFlow:
    """One open flow, and how much of it is in its tally.

    The tally has ``current - base`` of each counter. A base is above zero for what
    was there before the table looked, below zero after a counter began anew.
    """

    flow: Flow
    tally: Tally
    preexisting: bool
    counted: bool = False
    """False until the first counts came."""
    seen: Flow | None = None
    """The flow's value that the key was made of; `None` while the key waits for details."""
    parts: int = 1
    """How many flows this one counts for: one more each time its counters began anew."""
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    base: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def current(self) -> tuple[int, int, int, int]:
        """The counters as last reported."""
        return (self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets)

    @current.setter
    def current(self, values: tuple[int, int, int, int]) -> None:
        self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets = values

    def contribution(self) -> tuple[int, int, int, int]:
        """What the tally has of this flow."""
        rx_bytes, tx_bytes, rx_packets, tx_packets = self.base
        return (
            self.rx_bytes - rx_bytes,
            self.tx_bytes - tx_bytes,
            self.rx_packets - rx_packets,
            self.tx_packets - tx_packets,
        )

    def rebase(self) -> None:
        """Forget the contribution: it stays where it is, or was moved away."""
        self.base = self.current
