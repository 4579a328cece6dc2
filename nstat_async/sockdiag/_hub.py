"""What the parts of one session share: where events and commands go, and the time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs

from .._contract import Command
from .._events import AnyEvent, EventsLost, LossCause
from ._owners import OwnerBook

if TYPE_CHECKING:
    from ._namespace import Namespace
    from ._table import Entry

__all__ = ["Hub"]


@attrs.define(eq=False)
class Hub:
    """The shared state of a session."""

    every_update: bool = False
    extras: bool = False
    """Ask for buffer sizes of TCP sockets, too."""
    passive: bool = False
    """Follow a recording: nothing is sent."""
    epoch_offset: float = 0.0
    now: float = 0.0
    """The monotonic time of the call under way."""
    generation: int = 0
    """Number of the poll under way, or of the last one."""
    events: list[AnyEvent] = attrs.field(factory=list)
    commands: list[Command] = attrs.field(factory=list)
    owners: OwnerBook = attrs.field(factory=OwnerBook)
    fresh: deque[tuple[Namespace, Entry]] = attrs.field(factory=deque)
    """Sockets that were found and not announced yet."""
    counters: dict[str, int] = attrs.field(factory=dict)
    first_poll: bool = True
    """True until the first poll is complete: what it finds was there before."""
    reports: int = 0
    """Sockets reported by dumps."""
    tokens: int = 0
    malformed: list[str] = attrs.field(factory=list)
    """The first undecodable thing, for ``strict``."""

    @property
    def time(self) -> float:
        """The wall-clock time of the call under way."""
        return self.now + self.epoch_offset

    def next_token(self) -> int:
        """A token for a look-up."""
        self.tokens += 1
        return self.tokens

    def count(self, name: str, number: int = 1) -> None:
        """Add to a statistic."""
        self.counters[name] = self.counters.get(name, 0) + number

    def lose(self, cause: LossCause, detail: str, count: int | None = None) -> None:
        """Report a gap."""
        self.events.append(EventsLost(self.time, cause, count, None, detail))

    def reject(self, reason: str) -> None:
        """Report bytes that cannot be decoded."""
        self.count("malformed")
        if not self.malformed:
            self.malformed.append(reason)
        self.lose(LossCause.PROTOCOL, reason, 1)
