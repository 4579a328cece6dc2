"""Makes the `Flow` that users see of what is known of a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

import attrs

from .._compiled import speedups
from .._events import AnyEvent
from .._making import flow_added
from .._model import Counts, Flow, Interface, Outcome
from ._cgroups import CgroupNames, CgroupSource
from ._constants import AF_INET6
from ._entry import NOBODY, Entry
from ._links import LinkTable, is_link_scoped
from ._rows import address_of, device_of
from ._unread import unread_flow

_UNKNOWN: Any = object()
"""Stands for an interface that is not remembered; `None` says that there is none."""
_SCOPED = 0xFE
"""Addresses that are valid on one link only have a first byte of at least this."""


def build_flow(
    entry: Entry, links: LinkTable, cgroups: CgroupSource, namespace: str | None, *, listed: bool = False
) -> Flow:
    """The flow of a socket, by what is known now; `listed`: with a list of its other holders."""
    _, identity, cookie, _, _ = entry.last
    others, old, names, index = entry.others, entry.flow, cgroups.names_of(entry), None
    if names is None and old is not None:
        names = old.cgroup, old.container, old.pod
    if _may_be_scoped(identity):
        index = _scope_of(identity, links)
    return unread_flow(
        prefix_of(entry.book.number, namespace),
        cookie,
        entry.connection,
        entry.protocol,
        entry.state,
        identity,
        index,
        entry.owner,
        links.interface_by_row(identity),
        entry.direction,
        namespace,
        names,
        others.number or None,
        others.oldest if listed else (),
    )


def prefix_of(number: int, namespace: str | None) -> str:
    """What ids of flows begin with in the network namespace of this number and label."""
    return "" if namespace is None else f"n{number}:"


def _announce(
    entries: list[Entry],
    prefix: str,
    namespace: str | None,
    cgroups: Mapping[int, CgroupNames | None],
    interfaces: Mapping[tuple[int, bytes], Interface | None],
    time: float,
    events: list[AnyEvent],
    python: Callable[[Entry], Any],
) -> int:
    """Make the flows of these sockets and announce them; sockets that are announced already, or gone, are skipped.

    Args:
        entries: The sockets.
        prefix: What the ids of flows begin with.
        namespace: Their network namespace, as a flow has it.
        cgroups: Names of cgroups, by number.
        interfaces: The interfaces that are remembered for rows (`LinkTable.remembered`).
        time: Time of the events.
        events: Where the events go.
        python: Announces a socket whose flow needs more than these tables (`Book.announce`).

    Returns:
        How many were announced.
    """
    done = 0
    for entry in entries:
        if entry.flow is not None or entry.over:
            continue
        done += 1
        _, identity, cookie, _, _ = entry.last
        names, key, report = cgroups.get(entry.cgroup), (identity[0], identity[8:]), entry.report
        interface = interfaces.get(key, _UNKNOWN)
        if _may_be_scoped(identity) or names is None or entry.others is not NOBODY or interface is _UNKNOWN:
            python(entry)
            continue
        entry.flow = flow = unread_flow(
            prefix,
            cookie,
            entry.connection,
            entry.protocol,
            entry.state,
            identity,
            None,
            entry.owner,
            interface,
            entry.direction,
            namespace,
            names,
            None,
            (),
        )
        events.append(flow_added(time, flow, report, entry.preexisting, report))
    return done


def _flows_of(entries: Iterable[Entry]) -> list[tuple[Flow, Counts | None]]:
    """The announced flows of these sockets, with their counts."""
    return [(entry.flow, entry.report) for entry in entries if entry.flow is not None]


announce, flows_of = _announce, _flows_of
if speedups is not None:
    makers: Any = unread_flow, flow_added
    _announcer = speedups.Announcer(Entry, *(make.__self__ for make in makers), NOBODY)
    announce, flows_of = _announcer.announce, _announcer.flows


def _may_be_scoped(identity: bytes) -> bool:
    """False if neither address is scoped, by their first bytes."""
    return identity[0] == AF_INET6 and (identity[8] >= _SCOPED or identity[24] >= _SCOPED)


def _scope_of(identity: bytes, links: LinkTable) -> int | None:
    """Index of the link that a scoped address belongs to; `None` if neither address is scoped."""
    own = address_of(identity, 8)
    if is_link_scoped(own) or is_link_scoped(address_of(identity, 24)):
        return device_of(identity) or links.index_of(own)
    return None


_others_of = attrgetter(*(field.name for field in attrs.fields(Flow) if field.name != "outcome"))
_make: Callable[..., Flow] = Flow


def with_outcome(flow: Flow, outcome: Outcome) -> Flow:
    """The flow with this outcome; `attrs.evolve` would take four times as long."""
    return _make(*_others_of(flow), outcome=outcome)
