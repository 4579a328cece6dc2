"""One source, and what its client knows about all sources: how complete its view is, and what silence means."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Union

import attrs

from .._events import Report
from .._making import maker_of
from .._model import Counts, Flow
from ._counters import Raw, Values
from ._descriptors import DescriptorReader

UNCHOSEN = -(1 << 16)
"""A length that no descriptor has, not even the negative one of a message that ends before its descriptor begins."""

AWAITED = -1
"""`Source.seen` of a flow that is awaited: see `SourceTable.awaited`."""


class Phase(enum.Enum):
    """How complete the view of a control socket is: tells whether a newly reported source is new."""

    LISTING = "listing"
    """The kernel lists the existing sources: those that it announces now are older than the subscription."""
    BASELINE = "baseline"
    """The list is over, the first poll is not: sources that only the poll reports are older than the subscription."""
    LIVE = "live"
    """A newly reported source is new."""


@attrs.frozen
class Terms:
    """The terms of a subscription that tell what silence means."""

    suppressed: bool = False
    """Announcements are suppressed: only polls report new sources."""
    counts_references: bool = False
    """Every reference number from the first one on belongs to a source."""
    filtered: bool | None = None
    """A filter hides sources or holds back reports: absence proves nothing. `None`: not known."""
    quiet: bool = False
    """Sources without traffic are hidden: a removal without a report is no loss."""


@attrs.define(eq=False, weakref_slot=False)
class Source:
    """One source of the kernel."""

    ref: int
    id: str
    reader: DescriptorReader
    provider_id: int | None
    preexisting: bool
    span: int = UNCHOSEN
    """Length of the descriptor that `reader` was chosen for; `UNCHOSEN`: choose one at the next description."""
    flow: Flow | None = None
    identity: int | bytes | None = None
    """Hash of the descriptor's part that makes `flow`; for routes and interfaces, which have no flow, the whole descriptor."""
    raw: Raw | None = None
    """Counters as last sent."""
    totals: Values | None = None
    """The growing fields, as the Python decoder last read them from `raw`; `None` if something else set `raw`."""
    corrected: Values | None = None
    """Counters as last reported, if `raw` would be below earlier ones."""
    is_plain: bool | None = False
    """True if a report that grew needs only an event, which the decoder makes itself; `None`: only one that did not grow is plain."""
    report: tuple[DescriptorReader, bytes, int, int, int, int] | None = None
    """A report whose details are in no event yet."""
    reported: bool = False
    """FlowAdded was emitted."""
    closing: bool = False
    """The final counters came."""
    unsolicited: int = 0
    """Old kernels: 1 after unsolicited counts, 2 after the description that follows: a goodbye."""
    seen: int = 0
    """Serial number of the last poll that reported it."""
    born: int = 0
    """Serial number of the last poll that had begun when it was announced."""
    announced_ns: int | None = None
    """When SRC_ADDED came."""
    start_ticks: int | None = None
    """Creation of the socket on the kernel's clock, by which another control socket recognises it."""
    measured: Raw | None = None
    """Counters when `CoverageMeter` last read them."""

    @property
    def counters(self) -> Raw | None:
        """Raw counters as last reported, never below earlier ones."""
        return self.raw if self.corrected is None else self.corrected

    @property
    def counts(self) -> Counts | None:
        """`counters` as users see them."""
        counters = self.counters
        return None if counters is None else self.reader.counts(counters)

    def judge(self) -> None:
        """Update `is_plain`; call this after any other change."""
        is_plain = self.reported and not self.closing and self.corrected is None and self.reader.is_flow
        # An update has to replace a report that waits, and the decoder does not look at that.
        is_plain = is_plain and (self.report is None or not self.reader.translator.kernel.has_updates)
        self.is_plain = None if is_plain and self.reader.self_reported else is_plain

    def take_report(self, previous: Raw | None) -> Report:
        """The report of the next event; `previous`: the counters of the event before."""
        last, self.report = self.report, None
        if last is not None:
            return (*last, self.counters, previous)
        return (self.reader, b"", 0, 0, 0, -1, self.counters, previous)

    @property
    def is_final(self) -> bool:
        """True if its counters are its very last."""
        return self.raw is not None and (self.closing or self.unsolicited == 2)


new_source: Callable[[int, str, DescriptorReader, Union[int, None], bool], Source] = maker_of(
    Source, ("ref", "id", "reader", "provider_id", "preexisting")
).make
"""Makes a source of its first fields. It holds only values and a reader, and a reader refers to no source."""
