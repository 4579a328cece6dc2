"""One source, and what its client knows of all of them: how far its view has come, and what silence means."""

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
"""The length of no descriptor, not even that of a message which ends before its descriptor begins."""

AWAITED = -1
"""`Source.seen` of a flow that is awaited: see `SourceTable.awaited`."""


class Phase(enum.Enum):
    """How far the view of a control socket's sources has come: what one that is new to us is."""

    LISTING = "listing"
    """The kernel lists what exists: what it announces now was there before."""
    BASELINE = "baseline"
    """Listed, and the first poll is not over: what only a poll reports was there before."""
    LIVE = "live"
    """What is new to us is new."""


@attrs.frozen
class Terms:
    """What a client asked the kernel for, as far as it says what silence means."""

    suppressed: bool = False
    """Announcements are suppressed: sources become known by polls alone."""
    counts_references: bool = False
    """Every reference number from the first on is known to mean a source."""
    filtered: bool | None = None
    """A filter hides sources or holds reports back: absence proves nothing. `None`: not known."""
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
    """Length of the descriptor that `reader` was chosen for; `UNCHOSEN`: it is to be chosen at the next description."""
    flow: Flow | None = None
    identity: int | bytes | None = None
    """Hash of the descriptor's part that makes `flow`; the whole descriptor of routes and interfaces, which have none."""
    raw: Raw | None = None
    """Counters as last sent."""
    totals: Values | None = None
    """What tells whether they have grown, as the Python decoder last read it from `raw`; `None` when others set `raw`."""
    corrected: Values | None = None
    """Counters as last reported, where `raw` would be below earlier ones."""
    is_plain: bool | None = False
    """A report that has grown needs no more than an event: the decoder makes it by itself. `None`: only one that has not."""
    report: tuple[DescriptorReader, bytes, int, int, int, int] | None = None
    """A report whose details no event has had yet."""
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
    """Creation of the socket on the kernel's clock: recognises the same socket on another control socket."""
    measured: Raw | None = None
    """Counters when `CoverageMeter` looked at it last."""

    @property
    def counters(self) -> Raw | None:
        """Counters as last reported: never below earlier ones."""
        return self.raw if self.corrected is None else self.corrected

    @property
    def counts(self) -> Counts | None:
        """The same for users."""
        counters = self.counters
        return None if counters is None else self.reader.counts(counters)

    def judge(self) -> None:
        """Find out whether it is plain: to be called after whatever else changes it."""
        is_plain = self.reported and not self.closing and self.corrected is None and self.reader.is_flow
        self.is_plain = None if is_plain and self.reader.self_reported else is_plain

    def take_report(self, previous: Raw | None) -> Report:
        """What the next event is made of; `previous`: the counters of the event before."""
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
"""Makes a source of its first fields. It holds values and a reader, and a reader knows of no source."""
