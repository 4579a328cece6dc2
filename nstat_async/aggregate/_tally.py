"""The mutable state of a table: a `Tally` for each row, an `OpenFlow` for each open flow."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeGuard, cast

import attrs

from nstat_async._model import Counts, Flow, Process, began_anew, growth
from nstat_async._rows import Row, RowKind

from ._media import Four, Media, add_media, grown_media, media_of, row_media
from ._rates import RateWindow
from ._rows import added_up


@attrs.define(eq=False)
class Tally:
    """The counters of one row."""

    serial: int
    kind: RowKind
    key: Hashable
    source: str | None
    first_seen: float
    last_seen: float
    process: Process | None = None
    text: str | None = None
    """Name of the key, for people."""
    home: Flow | None = None
    """A flow of the process with a known cgroup."""
    flows: int = 0
    open_flows: int = 0
    uncounted_flows: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    media: Media = attrs.field(factory=dict)
    """Traffic by medium, if reports have it."""
    mark: int = 0
    """The clock's mark at the last of `samples`."""
    samples: list[tuple[int, int, int]] = attrs.field(factory=list)
    """Totals (mark, rx_bytes, tx_bytes) at marks after which the row grew."""

    def touch(self, time: float, window: RateWindow) -> None:
        """Note the time of an event of this row, which may be about to grow."""
        self.last_seen = time
        if self.mark != window.mark:
            self.save(window)

    def save(self, window: RateWindow) -> None:
        """Save the totals at the latest mark, because the row is about to grow."""
        samples = self.samples
        oldest = window.oldest
        stale = 0
        while stale < len(samples) and samples[stale][0] < oldest:
            stale += 1
        del samples[:stale]
        self.mark = window.mark
        samples.append((window.mark, self.rx_bytes, self.tx_bytes))

    def shift(self, rx_bytes: int, tx_bytes: int, rx_packets: int, tx_packets: int) -> None:
        """Add traffic without a change of rates, as if it had always been there."""
        self.add(rx_bytes, tx_bytes, rx_packets, tx_packets)
        self.samples = [(mark, rx + rx_bytes, tx + tx_bytes) for mark, rx, tx in self.samples]

    def move(self, four: Four, new: Tally) -> None:
        """Move traffic to another row, the latest first, so that the sum of all rates stays the same."""
        rx_bytes, tx_bytes, rx_packets, tx_packets = four
        kept, got = [], []
        for mark in sorted({mark for mark, _, _ in (*self.samples, *new.samples)}):
            (rx, tx), (new_rx, new_tx) = self._totals_at(mark), new._totals_at(mark)
            rest_rx, rest_tx = min(rx, self.rx_bytes - rx_bytes), min(tx, self.tx_bytes - tx_bytes)
            kept.append((mark, rest_rx, rest_tx))
            got.append((mark, new_rx + rx - rest_rx, new_tx + tx - rest_tx))
        self.add(-rx_bytes, -tx_bytes, -rx_packets, -tx_packets)
        new.add(*four)
        self.samples, new.samples = kept, got

    def add(self, rx_bytes: int, tx_bytes: int, rx_packets: int, tx_packets: int) -> None:
        """Add traffic that was just reported."""
        self.rx_bytes += rx_bytes
        self.tx_bytes += tx_bytes
        self.rx_packets += rx_packets
        self.tx_packets += tx_packets

    def take_back(self, rx_bytes: int) -> None:
        """Subtract bytes that were not payload; rates do not fall below zero."""
        self.rx_bytes -= rx_bytes
        self.samples = [(mark, min(rx, self.rx_bytes), tx) for mark, rx, tx in self.samples]

    def count_flow(self, sign: int, entry: OpenFlow) -> None:
        """Count an open flow that joins the row (1), or leaves it for another one (-1)."""
        self.flows += sign * entry.parts
        self.open_flows += sign
        self.uncounted_flows += sign * (not entry.counted)

    def grown(self, start: int) -> tuple[int, int]:
        """Bytes received and sent since the mark `start`."""
        rx_bytes, tx_bytes = self._totals_at(start)
        return self.rx_bytes - rx_bytes, self.tx_bytes - tx_bytes

    def _totals_at(self, start: int) -> tuple[int, int]:
        for mark, rx_bytes, tx_bytes in self.samples:
            if mark >= start:
                return rx_bytes, tx_bytes
        return self.rx_bytes, self.tx_bytes

    def row(self, span: tuple[int, float]) -> Row:
        """The tally as a frozen row; `span` is `RateWindow.span`."""
        row = Row(
            kind=self.kind,
            key=self.key,
            source=self.source,
            process=self.process,
            text=self.text,
            flows=self.flows,
            open_flows=self.open_flows,
            uncounted_flows=self.uncounted_flows,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
            rx_packets=self.rx_packets,
            tx_packets=self.tx_packets,
            first_seen=self.first_seen,
            last_seen=self.last_seen,
            cgroup=None if self.home is None else self.home.cgroup,
            container=None if self.home is None else self.home.container,
            pod=None if self.home is None else self.home.pod,
            media=row_media(self.media),
            serial=self.serial,
        )
        return _with_rates(row, self.grown(span[0]), span[1])

    @property
    def is_empty(self) -> bool:
        """True if nothing was ever counted here."""
        return not (self.flows or self.rx_bytes or self.tx_bytes or self.rx_packets or self.tx_packets)

    def describe_like(self, other: Tally) -> None:
        """Take over what a tally of the same group tells about its process or key, where this one does not know it."""
        self.process = self.process or other.process
        self.text = self.text or other.text
        self.home = self.home or other.home

    def absorb(self, other: Tally) -> None:
        """Add everything of a tally that is dropped, without a change of rates."""
        self.shift(other.rx_bytes, other.tx_bytes, other.rx_packets, other.tx_packets)
        add_media(self.media, other.media)
        self.flows += other.flows
        self.open_flows += other.open_flows
        self.uncounted_flows += other.uncounted_flows
        self.first_seen = min(self.first_seen, other.first_seen)
        self.last_seen = max(self.last_seen, other.last_seen)


_set_rx_rate = Row.__dict__["rx_rate"].__set__
_set_tx_rate = Row.__dict__["tx_rate"].__set__


def _with_rates(row: Row, grown: tuple[int, int], seconds: float) -> Row:
    """Set the rates of a new row, unless nothing is counted in it."""
    if seconds > 0 and row.is_counted:
        _set_rx_rate(row, grown[0] / seconds)
        _set_tx_rate(row, grown[1] / seconds)
    return row


def sum_tallies(tallies: Iterable[Tally], kind: RowKind, span: tuple[int, float]) -> Row:
    """The sum of many tallies as one row."""
    listed = list(tallies)
    grown = [tally.grown(span[0]) for tally in listed]
    row = Row(kind=kind, **added_up(listed))
    return _with_rates(row, (sum(rx for rx, _ in grown), sum(tx for _, tx in grown)), span[1])


def is_counted(counts: Counts | None) -> TypeGuard[Counts]:
    """True if these counts have any of the four counters."""
    return counts is not None and any(value is not None for value in _reported(counts))


def _reported(counts: Counts) -> tuple[int | None, int | None, int | None, int | None]:
    return counts.rx_bytes, counts.tx_bytes, counts.rx_packets, counts.tx_packets


def known_or(counts: Counts, default: Four = (0, 0, 0, 0)) -> Four:
    """The four counters, with a default for each that is unknown."""
    rx_bytes, tx_bytes, rx_packets, tx_packets = (
        other if value is None else value for value, other in zip(_reported(counts), default, strict=True)
    )
    return rx_bytes, tx_bytes, rx_packets, tx_packets


@attrs.define(eq=False)
class OpenFlow:
    """One open flow, and how much of its traffic is in its tally.

    The tally has ``current - base`` of each counter. A base is above zero for traffic
    before the table saw the flow, and below zero after a counter restarted or wrapped.
    """

    flow: Flow
    tally: Tally
    preexisting: bool
    has_history: bool = False
    """True if what it had carried before it was seen counts, too."""
    counted: bool = False
    """True after the first counts."""
    seen: Flow | None = None
    """The flow of which the key was made; `None` while the key waits for details."""
    parts: int = 1
    """How many flows this entry counts for: one more each time all its counters restarted."""
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    base: Four = (0, 0, 0, 0)
    media: Media | None = None
    """The counters of each medium in the last report; `None` if no report had any."""
    media_base: Media = attrs.field(factory=dict)
    """The base of each medium."""

    @property
    def current(self) -> Four:
        """The counters as last reported; one that fell alone keeps its earlier value."""
        return (self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets)

    @current.setter
    def current(self, values: Four) -> None:
        self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets = values

    def contribution(self) -> Four:
        """This flow's part of the tally."""
        return _minus(self.current, self.base)

    def share(self) -> Share:
        """The contribution as a frozen value."""
        return Share(self.flow, self.counted, self.parts, *self.contribution())

    def rebase(self) -> None:
        """Begin a new contribution at zero; the old one stays in its tally, or was moved."""
        self.base = self.current
        if self.media is not None:
            self.media_base = self.media

    def end_with(self, counts: Counts) -> None:
        """Give back the byte of a FIN that an earlier report counted as payload, and the final counts do not."""
        if self.rx_bytes - self.base[0] > 0 and self.rx_bytes - 1 == counts.rx_bytes:
            self.tally.take_back(1)

    def count_media(self, counts: Counts, *, from_begin: bool) -> None:
        """Take in the media of a report; of the first report everything (`from_begin`) or nothing."""
        now = media_of(counts)
        if not now:
            return
        if self.media is None:
            self.media_base = {} if from_begin else now
        add_media(self.tally.media, grown_media(now, self.media_base if self.media is None else self.media))
        self.media = now

    def move_media(self, new: Tally) -> None:
        """Move this flow's contribution, by medium, to another row."""
        if self.media is not None:
            share = grown_media(self.media, self.media_base)
            add_media(self.tally.media, share, -1)
            add_media(new.media, share)

    def grow(self, counts: Counts) -> Four:
        """Take in a report in which a counter is unknown or lower than before; each counter counts by itself.

        - If all counters that were not zero fell, one by more than half, a new flow has the id. It counts from zero.
        - If a packet counter below 2**32 fell by more than 2**31, it wrapped (Linux counts segments in 32 bits).
        - Any other fall is an odd reading: nothing is added until the counter is higher than before (but see `end_with`).

        Returns:
            The growth of each counter.
        """
        last, reported = self.current, _reported(counts)
        if began_anew(reported, last):
            added = current = known_or(counts)
            self.parts += 1
            self.tally.flows += 1
        else:
            reading = known_or(counts, last)
            added = cast("Four", growth(reading, last)) if any(reported) else (0, 0, 0, 0)
            # A wrapped packet counter goes on from its new value, any other counter that fell from its old one.
            current = (
                max(reading[0], last[0]),
                max(reading[1], last[1]),
                reading[2] if added[2] else last[2],
                reading[3] if added[3] else last[3],
            )
        self.base = _minus(current, _plus(self.contribution(), added))
        self.current = current
        return added


@attrs.frozen
class Share:
    """An open flow's part of its row; zeros if it was never counted."""

    flow: Flow
    """The flow, as last reported."""
    is_counted: bool
    """False if no report of it had bytes: its zeros then mean "unknown"."""
    parts: int
    """How many of the row's flows it counts for: more than one if its counters restarted."""
    rx_bytes: int
    """Bytes received."""
    tx_bytes: int
    """Bytes sent."""
    rx_packets: int
    """Packets received."""
    tx_packets: int
    """Packets sent."""


def _plus(one: Four, other: Four) -> Four:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _minus(one: Four, other: Four) -> Four:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2], one[3] - other[3]
