"""The open flows of all machines of a fleet: changes them by events, and joins both ends of a connection."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from .._events import AnyEvent, FlowAdded, FlowRemoved, FlowUpdated, RemovalReason
from .._model import Flow
from ._host import HostView, Open
from ._peers import Ends, peer_of

MOST_FLOWS = 262_144
"""How many open flows of one machine are kept."""


@attrs.define(eq=False)
class FleetFlows:
    """Keeps the flows of the views, and reports their changes.

    Args:
        views: The machines by name.
        report: Gets the events.
    """

    views: dict[str, HostView]
    report: Callable[[AnyEvent], None]
    _ends: Ends = attrs.field(factory=Ends, init=False)

    def add(self, view: HostView, event: FlowAdded, time: float, *, preexisting: bool) -> bool:
        """Add a flow; False if the machine has too many."""
        if len(view.flows) >= MOST_FLOWS:
            return False
        known = view.flows[event.flow.id] = Open(event.flow, event.flow, event.counts)
        self._join(known, time)
        self.report(attrs.evolve(event, time=time, flow=known.flow, preexisting=preexisting))
        return True

    def update(self, known: Open, event: FlowAdded | FlowUpdated, time: float) -> None:
        """Give a flow its new counters and facts."""
        previous, counts = known.counts, known.counts if event.counts is None else event.counts
        self._change(known, event.flow, time)
        known.counts = counts
        if counts is not None:
            self.report(FlowUpdated(time, known.flow, counts, previous, event.raw_details))

    def remove(self, view: HostView, known: Open, event: FlowRemoved, time: float) -> None:
        """Remove a flow that ended, as its machine says."""
        self._change(known, event.flow, time)
        self._ends.end(known.raw, time)
        self._close(view, known)
        self.report(attrs.evolve(event, time=time, flow=known.flow))

    def give_up(self, view: HostView, known: Open, time: float, reason: RemovalReason) -> None:
        """Remove a flow that is no longer known, with the last counts that are known."""
        self._close(view, known)
        self.report(FlowRemoved(time, known.flow, known.counts, final=False, reason=reason))

    def _close(self, view: HostView, known: Open) -> None:
        del view.flows[known.raw.id]
        self._ends.remove(known.raw.id)

    # --- both ends ------------------------------------------------------------------------

    def _change(self, known: Open, raw: Flow, time: float) -> None:
        """Take over the facts of a flow, which may be new."""
        if raw is known.raw:
            return
        before, known.raw = known.raw, raw
        if before.local == raw.local and before.remote == raw.remote and before.process == raw.process:
            known.flow = raw if known.flow.peer is None else attrs.evolve(raw, peer=known.flow.peer)
        else:
            self._join(known, time)

    def _join(self, known: Open, time: float) -> None:
        """Find the other end of a flow that is new or changed, and give each the other as its peer."""
        raw = known.raw
        self._ends.put(raw)
        other = self._open(self._ends.other(raw.id))
        peer = (known.flow.peer or self._ends.ended(raw.id, time)) if other is None else peer_of(other.raw)
        known.flow = raw if peer is None else attrs.evolve(raw, peer=peer)
        if other is None or other.flow.peer == peer_of(raw):
            return
        other.flow = attrs.evolve(other.raw, peer=peer_of(raw))
        if other.counts is not None:
            self.report(FlowUpdated(time, other.flow, other.counts, other.counts))

    def _open(self, identity: str | None) -> Open | None:
        if identity is None:
            return None
        view = self.views.get(identity.partition("/")[0])
        return None if view is None else view.flows.get(identity)
