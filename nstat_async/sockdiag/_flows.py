"""From what is known of a socket to the `Flow` that users see."""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter

import attrs

from .._model import Attribution, Flow, Outcome, Process
from ._cgroups import CgroupSource
from ._entry import Entry
from ._links import LinkTable, is_link_scoped
from ._rows import address_of
from ._unread import unread_flow

_DEVICE = struct.Struct("=40xI")
KERNEL = Process(0, "kernel")
_KERNEL_OWNS, _INFERRED = Attribution.KERNEL, Attribution.INFERRED
"""To look up a member takes as long as three other steps."""
_IPV6 = 16
"""Bytes of an address."""


def build_flow(
    entry: Entry, links: LinkTable, cgroups: CgroupSource, namespace: str | None, *, listed: bool = False
) -> Flow:
    """The flow of a socket as known now, with a list of its other holders or not."""
    _, identity, cookie, _, _ = entry.last
    owner, others, old = entry.owner, entry.others, entry.flow
    (device,), own, far, index = _DEVICE.unpack(identity), address_of(identity, 8), None, None
    if identity[6] or identity[7] or any(identity[24:40]):
        far = address_of(identity, 24)
    if len(own) == _IPV6 and (is_link_scoped(own) or (far is not None and is_link_scoped(far))):
        index = device or links.index_of(own)
    place = cgroups.place_of(entry)
    if place is None and old is not None:
        place = old.cgroup, old.container, old.pod
    process, attribution = owner, None
    if owner.__class__ is not Process:
        process, attribution = KERNEL if owner is _KERNEL_OWNS else None, owner
    elif owner.attribution is _INFERRED:
        attribution = _INFERRED
    return unread_flow(
        "" if namespace is None else f"n{entry.book.number}:",
        cookie,
        entry.connection,
        entry.protocol,
        entry.state,
        identity,
        own,
        far,
        index,
        process,
        links.interface_of(own, device, far),
        entry.direction,
        namespace,
        attribution,
        place,
        others.number or None,
        others.oldest if listed else (),
    )


_others_of = attrgetter(*(field.name for field in attrs.fields(Flow) if field.name != "outcome"))
_make: Callable[..., Flow] = Flow


def with_outcome(flow: Flow, outcome: Outcome) -> Flow:
    """The same flow, and how it ended: `attrs.evolve` takes four times as long."""
    return _make(*_others_of(flow), outcome=outcome)
