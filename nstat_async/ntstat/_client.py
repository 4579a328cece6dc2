"""One client of the kernel: a control socket, its source table and its decoder.

There are two kinds: a `Subscription` sends requests, a `Follower` watches the requests of a recorded client.
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
    """The base of both kinds.

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
        """Providers that the kernel refused, with its error number."""
        self.now = 0.0
        """Monotonic time of the present input; the table has the wall clock's."""
        self.receive_buffer: int | None = None
        """Granted receive buffer of the channel in bytes, if known."""

    def begin(self, now: float, time: float) -> None:
        """Set the time of the next input; `time` is the wall clock's."""
        self.now = now
        self.table.begin(now, time)

    def statistics(self) -> dict[str, int]:
        """Counters for people, by name."""
        return {**self.decoder.statistics, **self.table.statistics, "sources": len(self.table.sources)}

    def settle(self) -> None:
        """Draw the conclusions of a datagram that said more than how known flows grew."""
        table = self.table
        if not table.terms.suppressed and (table.references.missing or table.references.forgotten):
            self.report_gap(table.references.take_lost())

    def report_gap(self, count: int | None, detail: str | None = None) -> None:
        """Announcements were lost for good."""
        self.table.emit(EventsLost(self.table.time, LossCause.ANNOUNCEMENT, count, detail=detail))
