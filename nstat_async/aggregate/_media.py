"""Traffic of a row by medium, if reports have it (macOS 26 with ``extras``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

from nstat_async._model import Counts, MediumCounts

Four = tuple[int, int, int, int]
"""Bytes received and sent, packets received and sent."""
Media = dict[str, Four]
"""The four counters of each medium, without the total, which a row has."""
RowMedia = tuple[tuple[str, MediumCounts], ...]
"""The form of `Media` in a `Row`."""


def _four(counts: MediumCounts) -> Four:
    return counts.rx_bytes, counts.tx_bytes, counts.rx_packets, counts.tx_packets


def media_of(counts: Counts | None) -> Media:
    """The counters of each medium in a report; empty if it has none."""
    media = () if counts is None else counts.media
    return {name: _four(each) for name, each in media if name != "total"}


def grown_media(now: Media, before: Media) -> Media:
    """The growth of each medium; counters may fall when a flow in user space changes its interface."""
    nothing = (0, 0, 0, 0)
    found = {}
    for name, four in now.items():
        pairs = zip(four, before.get(name, nothing), strict=True)
        rx_bytes, tx_bytes, rx_packets, tx_packets = (max(0, new - old) for new, old in pairs)
        found[name] = (rx_bytes, tx_bytes, rx_packets, tx_packets)
    return found


def add_media(total: Media, more: Media, sign: int = 1) -> None:
    """Add to a total, or (with the sign -1) subtract from it."""
    for name, (a, b, c, d) in more.items():
        e, f, g, h = total.get(name, (0, 0, 0, 0))
        total[name] = (e + sign * a, f + sign * b, g + sign * c, h + sign * d)


def row_media(total: Media) -> RowMedia:
    """A total in the form of a row; media without traffic are left out."""
    return tuple((name, MediumCounts(*four)) for name, four in total.items() if any(four))


def sum_media(rows: Iterable[Union[Media, RowMedia]]) -> Media:
    """The sum of the media of several rows, or tallies."""
    total: Media = {}
    for media in rows:
        if media:
            add_media(total, media if isinstance(media, dict) else {name: _four(each) for name, each in media})
    return total
