"""The mutable state of a table: one tally for each row, one entry for each open flow."""

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
    """What a person calls the key."""
    home: Flow | None = None
    """A flow of the process of which the cgroup is known."""
    flows: int = 0
    open_flows: int = 0
    uncounted_flows: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    media: Media = attrs.field(factory=dict)
    """The same by medium, where reports say it."""
    mark: int = 0
    """The clock's mark when `samples` were last added to."""
    samples: list[tuple[int, int, int]] = attrs.field(factory=list)
    """Totals (mark, rx_bytes, tx_bytes) at marks after which the row grew."""

    def touch(self, time: float, window: RateWindow) -> None:
        """An event concerns the row: it may be about to grow."""
        self.last_seen = time
        if self.mark != window.mark:
            self.save(window)

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
        """Add traffic as if it had always been there: rates do not see it."""
        self.add(rx_bytes, tx_bytes, rx_packets, tx_packets)
        self.samples = [(mark, rx + rx_bytes, tx + tx_bytes) for mark, rx, tx in self.samples]

    def move(self, four: Four, new: Tally) -> None:
        """This traffic was another row's. What was added here lately goes along first: the sum of all rates stays what it was."""
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
        """Add traffic of now."""
        self.rx_bytes += rx_bytes
        self.tx_bytes += tx_bytes
        self.rx_packets += rx_packets
        self.tx_packets += tx_packets

    def take_back(self, rx_bytes: int) -> None:
        """What was counted here was no payload: no rate falls below zero by it."""
        self.rx_bytes -= rx_bytes
        self.samples = [(mark, min(rx, self.rx_bytes), tx) for mark, rx, tx in self.samples]

    def count_flow(self, sign: int, entry: OpenFlow) -> None:
        """An open flow comes to the row (1) or leaves it for another one (-1)."""
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
        """The tally as a frozen value; `span` is that of the window."""
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
        """True when nothing is, or ever was, counted here."""
        return not (self.flows or self.rx_bytes or self.tx_bytes or self.rx_packets or self.tx_packets)

    def absorb(self, other: Tally) -> None:
        """Take over everything of a tally that goes away; rates do not see it."""
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
    """Fill in the rates of a row that nobody has seen yet; where nothing is counted there are none."""
    if seconds > 0 and row.is_counted:
        _set_rx_rate(row, grown[0] / seconds)
        _set_tx_rate(row, grown[1] / seconds)
    return row


def sum_tallies(tallies: Iterable[Tally], kind: RowKind, span: tuple[int, float]) -> Row:
    """Many tallies as one row, without making a row of each."""
    listed = list(tallies)
    grown = [tally.grown(span[0]) for tally in listed]
    row = Row(kind=kind, **added_up(listed))
    return _with_rates(row, (sum(rx for rx, _ in grown), sum(tx for _, tx in grown)), span[1])


def is_counted(counts: Counts | None) -> TypeGuard[Counts]:
    """True when these counts have any of the four counters."""
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
    """One open flow, and how much of it is in its tally.

    The tally has ``current - base`` of each counter. A base is above zero for what
    was there before the table looked, below zero after a counter began anew or wrapped.
    """

    flow: Flow
    tally: Tally
    preexisting: bool
    counted: bool = False
    """False until the first counts came."""
    seen: Flow | None = None
    """The flow's value that the key was made of; `None` while the key waits for details."""
    parts: int = 1
    """How many flows this one counts for: one more each time all its counters began anew."""
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    base: Four = (0, 0, 0, 0)
    media: Media | None = None
    """What the last report said of each medium; `None`: none said anything."""
    media_base: Media = attrs.field(factory=dict)
    """As `base`, by medium."""

    @property
    def current(self) -> Four:
        """The counters as last reported; where one fell by itself, what it was before."""
        return (self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets)

    @current.setter
    def current(self, values: Four) -> None:
        self.rx_bytes, self.tx_bytes, self.rx_packets, self.tx_packets = values

    def contribution(self) -> Four:
        """What the tally has of this flow."""
        return _minus(self.current, self.base)

    def share(self) -> Share:
        """The contribution as a value of its own."""
        return Share(self.flow, self.counted, self.parts, *self.contribution())

    def rebase(self) -> None:
        """Forget the contribution: it stays where it is, or was moved away."""
        self.base = self.current
        if self.media is not None:
            self.media_base = self.media

    def end_with(self, counts: Counts) -> None:
        """Give back the byte of a FIN that a report had as payload: the final counts, already taken in, have one less."""
        if self.rx_bytes - self.base[0] > 0 and self.rx_bytes - 1 == counts.rx_bytes:
            self.tally.take_back(1)

    def count_media(self, counts: Counts, *, from_begin: bool) -> None:
        """Take in what a report says of each medium; of the first one all, or what comes after it."""
        now = media_of(counts)
        if not now:
            return
        if self.media is None:
            self.media_base = {} if from_begin else now
        add_media(self.tally.media, grown_media(now, self.media_base if self.media is None else self.media))
        self.media = now

    def move_media(self, new: Tally) -> None:
        """What this flow contributed was another row's."""
        if self.media is not None:
            share = grown_media(self.media, self.media_base)
            add_media(self.tally.media, share, -1)
            add_media(new.media, share)

    def grow(self, counts: Counts) -> Four:
        """Take in a report in which a counter is unknown or lower than before; each is judged by itself.

        - All that had counted are lower, one of them by more than half: a new flow behind an old id. It counts from zero.
        - A packet counter below 2**32 falls by more than 2**31: it wrapped (Linux counts segments in 32 bits).
        - Any other fall is an odd reading: nothing was added until the counter is above what it was. (`end_with` has the one at an end.)

        Returns:
            What was added.
        """
        last, reported = self.current, _reported(counts)
        if began_anew(reported, last):
            added = current = known_or(counts)
            self.parts += 1
            self.tally.flows += 1
        else:
            reading = known_or(counts, last)
            added = cast("Four", growth(reading, last)) if any(reported) else (0, 0, 0, 0)
            # A packet counter that wrapped goes on from where it is; any other that fell, from where it was.
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
    """What an open flow has of its row: zero where it was never counted."""

    flow: Flow
    is_counted: bool
    """False when no report of it had bytes: its zeros then mean "unknown"."""
    parts: int
    """How many of the row's flows it counts for: more than one where its counters began anew."""
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
