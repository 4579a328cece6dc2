"""What must hold of the events of any core, whatever it was told."""

from __future__ import annotations

from collections.abc import Iterable

from nstat_async import AnyEvent, EventsLost, FlowAdded, FlowRemoved, FlowUpdated


class Lives:
    """Checks the life of every flow: added once, then updated, then removed once.

    Args:
        look: Make all that is made when somebody looks at an event.
        returning: An id may come back: who makes them is not this library.
    """

    def __init__(self, *, look: bool = True, returning: bool = False) -> None:
        self.look = look
        self.returning = returning
        self.open: set[str] = set()
        self.ended: set[str] = set()

    def check(self, events: Iterable[AnyEvent]) -> None:
        """Look at the next events."""
        for event in events:
            if isinstance(event, FlowAdded):
                assert event.flow.id not in self.open, f"{event.flow.id} is added twice"
                assert self.returning or event.flow.id not in self.ended, f"{event.flow.id} comes back"
                self.open.add(event.flow.id)
            elif isinstance(event, FlowUpdated):
                assert event.flow.id in self.open, f"{event.flow.id} is updated and not there"
                assert event.delta.rx_bytes is None or event.delta.rx_bytes >= 0
            elif isinstance(event, FlowRemoved):
                assert event.flow.id in self.open, f"{event.flow.id} is removed and not there"
                self.open.remove(event.flow.id)
                self.ended.add(event.flow.id)
            elif isinstance(event, EventsLost):
                assert event.count is None or event.count > 0 or self.returning
            if self.look and isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
                str(event.flow)
                _ = event.details, event.counts and event.counts.as_dict(), hash(event.counts)
