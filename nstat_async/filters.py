"""Filters on flows: values that combine with ``&``, ``|`` and ``~``.

    Monitor(flow_filter=by_pid(42) & ~loopback())

A filter looks at a `Flow`; any callable that takes a flow and returns a bool may
stand for one. What a flow *is* may change while it lives (its address is bound, its
owner changes), so `FlowGate` keeps count: a consumer sees a flow as added when it
begins to match and as removed (``reason=FILTERED``) when it ceases to.

Filtering happens here and not in the kernel: Darwin's kernel filters suppress
reports, not sources, and make losses undetectable (see ``docs/ntstat.md``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Union

import attrs

from ._errors import UsageError
from ._events import AnyEvent, FlowAdded, FlowRemoved, FlowUpdated, RemovalReason
from ._model import Direction, Endpoint, Flow, InterfaceKind, Provider, TcpState

__all__ = [
    "Filter",
    "FlowGate",
    "by_address",
    "by_direction",
    "by_interface",
    "by_interface_kind",
    "by_pid",
    "by_port",
    "by_process_name",
    "by_provider",
    "by_state",
    "by_uid",
    "loopback",
    "matching",
]

Predicate = Callable[[Flow], bool]


@attrs.frozen(repr=False)
class Filter:
    """A condition on flows. Make one with the functions of this module."""

    predicate: Predicate = attrs.field(eq=False)
    text: str
    """What it says, for messages and `repr`."""

    def __call__(self, flow: Flow) -> bool:
        """True if the flow matches."""
        return self.predicate(flow)

    def __and__(self, other: FilterLike) -> Filter:
        left, right = self, as_filter(other)
        return Filter(lambda flow: left(flow) and right(flow), f"({left.text} & {right.text})")

    def __or__(self, other: FilterLike) -> Filter:
        left, right = self, as_filter(other)
        return Filter(lambda flow: left(flow) or right(flow), f"({left.text} | {right.text})")

    def __invert__(self) -> Filter:
        return Filter(lambda flow: not self(flow), f"~{self.text}")

    __rand__ = __and__
    __ror__ = __or__

    def __repr__(self) -> str:
        return f"<Filter {self.text}>"


FilterLike = Union[Filter, Predicate]


def as_filter(value: FilterLike) -> Filter:
    """A filter of a filter or a predicate.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(value, Filter):
        return value
    if callable(value):
        return matching(value)
    raise UsageError(f"flow_filter: {value!r} is neither a Filter nor callable")


def matching(predicate: Predicate) -> Filter:
    """Flows for which the function returns true."""
    return Filter(predicate, getattr(predicate, "__name__", "predicate"))


def by_pid(*pids: int) -> Filter:
    """Flows of these processes, or on their behalf (effective pid)."""
    wanted = frozenset(pids)

    def matches(flow: Flow) -> bool:
        process = flow.process
        return process is not None and (process.pid in wanted or process.effective_pid in wanted)

    return Filter(matches, f"by_pid({', '.join(map(str, pids))})")


def by_process_name(*names: str) -> Filter:
    """Flows of processes with one of these names (exact, as the kernel has them)."""
    wanted = frozenset(names)

    def matches(flow: Flow) -> bool:
        return flow.process is not None and flow.process.name in wanted

    return Filter(matches, f"by_process_name({', '.join(map(repr, names))})")


def by_uid(*uids: int) -> Filter:
    """Flows of these users."""
    wanted = frozenset(uids)
    return Filter(lambda flow: flow.process is not None and flow.process.uid in wanted, f"by_uid({uids})")


def by_provider(*providers: Provider | str) -> Filter:
    """Flows of these kinds."""
    wanted = frozenset(map(Provider, providers))
    return Filter(lambda flow: flow.provider in wanted, f"by_provider({', '.join(p.value for p in wanted)})")


def by_direction(*directions: Direction | str) -> Filter:
    """Flows of these directions."""
    wanted = frozenset(map(Direction, directions))
    return Filter(lambda flow: flow.direction in wanted, f"by_direction({', '.join(d.value for d in wanted)})")


def by_state(*states: TcpState | str) -> Filter:
    """Flows in these TCP states."""
    wanted = frozenset(map(TcpState, states))
    return Filter(lambda flow: flow.state in wanted, f"by_state({', '.join(s.value for s in wanted)})")


def by_interface(*names: str) -> Filter:
    """Flows over these interfaces."""
    wanted = frozenset(names)
    return Filter(lambda flow: flow.interface is not None and flow.interface.name in wanted, f"by_interface({names})")


def by_interface_kind(*kinds: InterfaceKind | str) -> Filter:
    """Flows over interfaces of these kinds."""
    wanted = frozenset(map(InterfaceKind, kinds))
    return Filter(
        lambda flow: flow.interface is not None and flow.interface.kind in wanted, f"by_interface_kind({kinds})"
    )


def by_port(*ports: int, local: bool = True, remote: bool = True) -> Filter:
    """Flows with one of these ports at either end (or at the end chosen)."""
    wanted = frozenset(ports)

    def matches(flow: Flow) -> bool:
        return (local and flow.local is not None and flow.local.port in wanted) or (
            remote and flow.remote is not None and flow.remote.port in wanted
        )

    return Filter(matches, f"by_port({', '.join(map(str, ports))})")


def by_address(*networks: str, local: bool = False, remote: bool = True) -> Filter:
    """Flows whose remote (or local) address lies in one of these networks.

    Args:
        networks: Addresses or networks, e.g. ``"192.0.2.0/24"``.
        local: Look at the local address.
        remote: Look at the remote address.

    Raises:
        UsageError: One of them is no network.
    """
    try:
        wanted = [ipaddress.ip_network(network, strict=False) for network in networks]
    except ValueError as error:
        raise UsageError(f"by_address: {error}") from None

    def inside(endpoint: Endpoint | None) -> bool:
        return endpoint is not None and any(endpoint.ip_address in network for network in wanted)

    return Filter(
        lambda flow: (remote and inside(flow.remote)) or (local and inside(flow.local)), f"by_address({networks})"
    )


def loopback() -> Filter:
    """Flows that stay on this machine."""
    return Filter(lambda flow: flow.is_loopback, "loopback()")


class FlowGate:
    """Applies a filter to a stream of events, consistently per flow.

    What a flow counted while it was hidden is not the consumer's: one that was seen
    before, or is older than the monitor, begins to match as ``preexisting``.

    Memory: one id for each open flow that matches, is older than the monitor, or
    matched before.
    """

    def __init__(self, flow_filter: FilterLike) -> None:
        self._filter = as_filter(flow_filter)
        self._visible: set[str] = set()
        self._historic: set[str] = set()
        """Hidden flows whose counters are not new."""

    def __call__(self, events: Iterable[AnyEvent]) -> Sequence[AnyEvent]:
        """The events that pass."""
        passed: list[AnyEvent] = []
        self.sift(events, passed)
        return passed

    def sift(self, events: Iterable[AnyEvent], passed: list[AnyEvent]) -> None:
        """Append the events that pass; what passed before the filter raises stays appended."""
        for event in events:
            if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
                changed = self._flow_event(event)
                if changed is not None:
                    passed.append(changed)
            else:
                passed.append(event)

    def _flow_event(self, event: FlowAdded | FlowUpdated | FlowRemoved) -> AnyEvent | None:
        flow = event.flow
        known = flow.id in self._visible
        if isinstance(event, FlowRemoved):
            self._visible.discard(flow.id)
            self._historic.discard(flow.id)
            return event if known else None
        matches = self._filter(flow)
        if matches and not known:
            self._visible.add(flow.id)
            if isinstance(event, FlowUpdated):
                old = flow.id in self._historic
                self._historic.discard(flow.id)
                return FlowAdded(event.time, flow, event.counts, preexisting=old, raw_details=event.raw_details)
        elif known and not matches:
            self._visible.discard(flow.id)
            self._historic.add(flow.id)
            return FlowRemoved(event.time, flow, event.counts, final=False, reason=RemovalReason.FILTERED)
        elif not matches and isinstance(event, FlowAdded) and event.preexisting:
            self._historic.add(flow.id)
        return event if matches else None
