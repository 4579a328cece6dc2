"""What is made of the messages of a fleet: events of all machines in one stream. No I/O, no clock.

Each machine numbers its messages. What was there before is dropped, a hole is reported and set right by the next
complete state. So a message may come twice, late, or not at all, publisher, server and this side may begin anew: what is
lost is said, and nothing counts twice.

Until `begin` nothing is reported: what came before somebody subscribed makes only the state in which the stream begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from .._errors import ProtocolError
from .._events import (
    AnyEvent,
    EventsLost,
    FlowAdded,
    HostState,
    LossCause,
    PollCompleted,
)
from .._model import Capabilities, Counts, Flow
from ._account import Account
from ._flows import FleetFlows
from ._host import HostView
from ._messages import Delivery, Facts, Header, decode, parse_subject

__all__ = ["Incoming"]

MOST_HOSTS = 20_000
_LOOK_SECONDS = 1.0


@attrs.define(eq=False)
class Incoming:
    """Makes events of messages.

    Args:
        prefix: First word of the subjects.
        hosts: The machines to look at; `None`: all.
        forget: Seconds of silence after which a machine is forgotten.
    """

    prefix: str = "nstat"
    hosts: frozenset[str] | None = None
    forget: float = 3600.0
    begun: bool = attrs.field(default=False, init=False)
    """True once events are reported."""
    connection: str | None = attrs.field(default=None, init=False)
    """Why nothing can come; `None` while the server is there."""
    caught_up: bool = attrs.field(default=False, init=False)
    """True while everything that the stream has was taken in: only then silence means something."""
    _views: dict[str, HostView] = attrs.field(factory=dict, init=False)
    _account: Account = attrs.field(init=False)
    _events: list[AnyEvent] = attrs.field(factory=list, init=False)
    _refused_hosts: set[str] = attrs.field(factory=set, init=False)
    _next_look: float | None = attrs.field(default=None, init=False)
    _messages: int = attrs.field(default=0, init=False)
    _stale: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._account = Account(FleetFlows(self._views, self._report), self._report)

    # --- in -----------------------------------------------------------------------------

    def receive(self, delivery: Delivery, now: float) -> None:
        """Take in a message.

        Args:
            delivery: The message.
            now: Monotonic seconds.
        """
        for _ in self.slices(delivery, now):
            pass

    def slices(self, delivery: Delivery, now: float) -> Iterator[None]:
        """The same, with a pause after each hundred lines. It has to be finished before the next message.

        Args:
            delivery: See `receive`.
            now: See `receive`.
        """
        self._messages += 1
        found = parse_subject(self.prefix, delivery.subject)
        if found is None:
            self._refuse(None, delivery, f"subject {delivery.subject!r:.80} is none of a machine")
            return
        host = found[0]
        if self.hosts is not None and host not in self.hosts:
            return
        try:
            header, lines = decode(delivery.data)
        except ProtocolError as error:
            self._refuse(host, delivery, error.reason)
            return
        view = self._view(host, header, delivery, now)
        if view is not None:
            yield from self._account.take_in(view, header, lines, delivery, now)

    def remember(self, delivery: Delivery, now: float) -> None:
        """The last state of a machine that was not heard of for long: it is known, its flows are not."""
        found = parse_subject(self.prefix, delivery.subject)
        try:
            header, _ = decode(delivery.data)
        except ProtocolError:
            return
        if found is None or header.last or not self._has_room(found[0], delivery):
            return
        view = self._views[found[0]] = HostView(found[0], header.incarnation, header.seq + 1)
        view.facts = header.facts or view.facts
        view.hear(header, delivery.stored, delivery.sent, now)
        view.state = HostState.SILENT
        self._next_look = now + _LOOK_SECONDS

    def begin(self, time: float) -> None:
        """From now on report: first what is known of each machine, then what happens.

        Args:
            time: Wall clock, seconds since the epoch.
        """
        if self.begun:
            return
        self.begun = True
        known = [view for view in self._views.values() if view.state is not HostState.LEFT]
        for view in known:
            self._events.append(view.event(time))
            for each in view.flows.values():
                self._events.append(FlowAdded(time, each.flow, each.counts, preexisting=True))
            if not view.live:
                detail = "it was not heard of since a complete state: its flows are unknown"
                self._account.lose(view, LossCause.TRANSPORT, time, None, detail)
        complete = all(view.live and view.state is HostState.PRESENT for view in known)
        self._events.append(PollCompleted(time, sum(len(view.flows) for view in known), complete))

    # --- time ---------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called; `None`: not at all."""
        return self._next_look

    def handle_deadline(self, now: float, time: float) -> None:
        """See which machines were not heard of for too long.

        Args:
            now: Monotonic seconds.
            time: Wall clock, seconds since the epoch.
        """
        if self._next_look is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if not self.begun or not (self.caught_up or self.connection):
            return
        for view in list(self._views.values()):
            if view.state is HostState.PRESENT and view.is_silent(now):
                view.state = HostState.SILENT
                detail = f"nothing came for {now - view.heard_at:.0f} s"
                self._events.append(view.event(time, self.connection or detail))
            elif view.state is HostState.SILENT and now > view.heard_at + self.forget:
                self._account.leave(view, time, f"nothing came for {self.forget:.0f} s: it is forgotten")
                del self._views[view.host]

    # --- out ----------------------------------------------------------------------------

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows of all machines."""
        return ((each.flow, each.counts) for view in self._views.values() for each in view.flows.values())

    @property
    def capabilities(self) -> Capabilities:
        """What the monitors of all machines can tell: a fact holds if it holds for each."""
        known = [view.facts.capabilities for view in self._views.values() if view.facts.capabilities is not None]
        flags = ("tcp_counts", "udp_counts", "per_medium_bytes", "final_counts", "short_lived")
        found: dict[str, Any] = {name: bool(known) and all(getattr(each, name) for each in known) for name in flags}
        providers = frozenset().union(*(each.providers for each in known)) if known else frozenset()
        return Capabilities(backend="fleet", providers=providers, **found)

    def statistics(self) -> dict[str, int]:
        """Counters, by name."""
        return {
            "hosts": sum(view.state is not HostState.LEFT for view in self._views.values()),
            "messages": self._messages,
            "duplicate_messages": self._account.duplicates,
            "lost_messages": self._account.lost,
            "malformed_messages": self._account.malformed,
            "stale_messages": self._stale,
        }

    # --- whose message is it ------------------------------------------------------------

    def _view(self, host: str, header: Header, delivery: Delivery, now: float) -> HostView | None:
        """The machine's view, of this run of its publisher; `None` for a message that is not to be taken in."""
        view = self._views.get(host)
        if view is None:
            if not self._has_room(host, delivery):
                return None
            view = self._views[host] = HostView(host, header.incarnation)
            if header.seq:
                view.seq, view.exact = header.seq, False
                if self.begun:
                    self._account.lose(
                        view, LossCause.TRANSPORT, delivery.stored, None, "it is met in the middle of its run"
                    )
            self._introduce(view, header, delivery, now)
        elif header.incarnation in view.retired:
            self._late_run(view, delivery)
            return None
        elif header.incarnation != view.incarnation:
            self._next_run(view, header, delivery, now)
        return view

    def _has_room(self, host: str, delivery: Delivery) -> bool:
        if len(self._views) >= MOST_HOSTS:
            for name in [name for name, view in self._views.items() if view.state is HostState.LEFT]:
                del self._views[name]
        if len(self._views) < MOST_HOSTS or host in self._views:
            return True
        if host not in self._refused_hosts and len(self._refused_hosts) < MOST_HOSTS:
            self._refused_hosts.add(host)
            detail = f"there are {MOST_HOSTS} machines already: {host} is left out"
            self._report(EventsLost(delivery.stored, LossCause.LIMIT, 1, detail=detail, host=host))
        return False

    def _introduce(self, view: HostView, header: Header, delivery: Delivery, now: float) -> None:
        view.hear(header, delivery.stored, delivery.sent, now)
        view.facts = header.facts or Facts()
        view.state = HostState.PRESENT
        self._next_look = self._next_look if self._next_look is not None else now + _LOOK_SECONDS
        self._report(view.event(delivery.stored))

    def _late_run(self, view: HostView, delivery: Delivery) -> None:
        self._stale += 1
        if not view.quarrel:
            view.quarrel = True
            detail = "two publishers say that they are this machine: only the one that began last is believed"
            self._account.lose(view, LossCause.TRANSPORT, delivery.stored, 1, detail)

    def _next_run(self, view: HostView, header: Header, delivery: Delivery, now: float) -> None:
        """The publisher began anew: what the machine did in between is unknown."""
        left = view.state is HostState.LEFT
        self._account.drop_flows(view, delivery.stored)
        view.begin(header.incarnation)
        self._introduce(view, header, delivery, now)
        if not left:
            detail = "its publisher began anew without having stopped: what happened in between is unknown"
            self._account.lose(view, LossCause.RESYNC, delivery.stored, None, detail)
        if header.seq:
            view.seq, view.exact = header.seq, False
            self._account.lose(
                view, LossCause.TRANSPORT, delivery.stored, header.seq, "its first messages did not arrive"
            )

    # --- reporting ------------------------------------------------------------------------

    def _report(self, event: AnyEvent) -> None:
        if self.begun:
            self._events.append(event)

    def _refuse(self, host: str | None, delivery: Delivery, reason: str) -> None:
        self._account.malformed += 1
        self._report(
            EventsLost(delivery.stored, LossCause.PROTOCOL, 1, detail=f"a message is none: {reason}", host=host)
        )
