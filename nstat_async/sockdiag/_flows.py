"""From what is known of a socket to the `Flow` that users see."""

from __future__ import annotations

import struct
from collections.abc import Callable
from operator import attrgetter

import attrs

from .._model import Flow, Outcome
from ._cgroups import CgroupSource
from ._constants import AF_INET6
from ._entry import Entry
from ._links import LinkTable, is_link_scoped
from ._rows import address_of
from ._unread import unread_flow

_DEVICE = struct.Struct("=40xI")
_SCOPED = 0xFE
"""The first byte of addresses that mean something on one link only is this at least."""


def build_flow(
    entry: Entry, links: LinkTable, cgroups: CgroupSource, namespace: str | None, *, listed: bool = False
) -> Flow:
    """The flow of a socket as known now, with a list of its other holders or not."""
    _, identity, cookie, _, _ = entry.last
    others, old, place, index = entry.others, entry.flow, cgroups.place_of(entry), None
    if place is None and old is not None:
        place = old.cgroup, old.container, old.pod
    if identity[0] == AF_INET6 and (identity[8] >= _SCOPED or identity[24] >= _SCOPED):
        index = _scope_of(identity, links)
    return unread_flow(
        "" if namespace is None else f"n{entry.book.number}:",
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
        place,
        others.number or None,
        others.oldest if listed else (),
    )


def _scope_of(identity: bytes, links: LinkTable) -> int | None:
    """Index of the link that an address means something on; `None` if both do everywhere."""
    own = address_of(identity, 8)
    if is_link_scoped(own) or is_link_scoped(address_of(identity, 24)):
        return _DEVICE.unpack(identity)[0] or links.index_of(own)
    return None


_others_of = attrgetter(*(field.name for field in attrs.fields(Flow) if field.name != "outcome"))
_make: Callable[..., Flow] = Flow


def with_outcome(flow: Flow, outcome: Outcome) -> Flow:
    """The same flow, and how it ended: `attrs.evolve` takes four times as long."""
    return _make(*_others_of(flow), outcome=outcome)
