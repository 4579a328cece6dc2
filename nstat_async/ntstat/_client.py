"""One client of the kernel: a control socket, its source table and its decoder.

There are two kinds: a `Subscription` asks, a `Follower` watches what somebody else asked.
"""

from __future__ import annotations

from collections.abc import Callable

from .._events import AnyEvent, EventsLost, LossCause
from .._model import Provider
from .._options import MonitorOptions
from ._decoder import Decoder, Listener
from ._source import Terms
from ._sources import SourceTable
from ._translate import Translator


class Client(Listener):
    """What both kinds have.

    Args:
        translator: Shared by the session.
        emit: Where events go.
        options: The monitor's.
        prefix: Makes flow ids of this socket unlike those of others.
        terms: What is asked of the kernel.
    """

    def __init__(
        self,
        translator: Translator,
        emit: Callable[[AnyEvent], object],
        options: MonitorOptions,
        *,
        prefix: str,
        terms: Terms,
    ) -> None:
        self.kernel = translator.kernel
        self.options = options
        self.emit = emit
        self.table = SourceTable(translator, emit, prefix=prefix, terms=terms, every_update=options.every_update)
        self.decoder = Decoder(self.table, emit, self, strict=options.strict)
        self.providers: set[Provider] = set()
        """Providers that the kernel granted."""
        self.refused: dict[Provider, int] = {}
        """Providers that it refused, with its error number."""
        self.now = 0.0
        """When what happens next happens; the table has the wall clock."""
        self.receive_buffer: int | None = None
        """Granted receive buffer of the channel in bytes, if known."""

    def begin(self, now: float, time: float) -> None:
        """What comes next happens now; `time` is the wall clock's."""
        self.now = now
        self.table.begin(time)

    def statistics(self) -> dict[str, int]:
        """Counters for people, by name."""
        return {**self.decoder.statistics, **self.table.statistics, "sources": len(self.table.sources)}

    def settle(self) -> None:
        """A datagram said more than how known flows fare: draw the conclusions."""
        table = self.table
        if not table.terms.suppressed and (table.references.missing or table.references.forgotten):
            self.report_gap(table.references.take_lost())

    def report_gap(self, count: int | None, detail: str | None = None) -> None:
        """Announcements were lost for good."""
        self.table.emit(EventsLost(self.table.time, LossCause.ANNOUNCEMENT, count, detail=detail))
