"""The program under test: which process has moved the most bytes?"""

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted


class Ranking:
    """Bytes per process name, as a monitor tells them."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.incomplete = False
        self._flows: dict[str, int] = {}

    def add(self, event: object) -> None:
        """Take one event into account."""
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)) and event.counts is not None:
            process = event.flow.process
            name = (process.name if process is not None else None) or "unknown"
            total = event.counts.rx_bytes + event.counts.tx_bytes
            self.bytes[name] = self.bytes.get(name, 0) + total - self._flows.get(event.flow.id, 0)
            self._flows[event.flow.id] = total
            if isinstance(event, FlowRemoved):
                del self._flows[event.flow.id]
        elif isinstance(event, EventsLost):
            self.incomplete = True

    def top(self) -> str | None:
        """The name with the most bytes."""
        return max(self.bytes, key=lambda name: self.bytes[name], default=None)


async def busiest(monitor: Monitor, *, polls: int = 3) -> Ranking:
    """Watch for some polls; the monitor must be open."""
    ranking = Ranking()
    async for event in monitor:
        ranking.add(event)
        if isinstance(event, PollCompleted):
            polls -= 1
            if polls == 0:
                break
    return ranking
