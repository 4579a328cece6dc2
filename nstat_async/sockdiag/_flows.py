"""From what is known of a socket to the `Flow` that users see."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from operator import attrgetter

import attrs

from .._model import Attribution, Endpoint, Flow, Outcome, Process, TcpState
from ._cgroups import CgroupSource
from ._constants import IPPROTO_RAW, IPPROTO_TCP, PACKET, PROVIDERS, TCP_STATES
from ._entry import Entry
from ._links import LinkTable, is_link_scoped
from ._rows import address_of

_PORTS = struct.Struct("!HH")
_DEVICE = struct.Struct("=I")
_DEVICE_AT = 40
_HAS_PROTOCOL = frozenset({IPPROTO_RAW, PACKET})
"""Whose protocol is in place of a port."""
KERNEL = Process(0, "kernel")
_KERNEL_OWNS, _INFERRED, _CLOSED = Attribution.KERNEL, Attribution.INFERRED, TcpState.CLOSED
"""To look up a member takes as long as three other steps."""
_shared = functools.lru_cache(maxsize=16_384)(Endpoint)
"""Many flows share an end: all that were accepted at one address, all to one server, both ends of a local connection."""
_IPV6 = 16
"""Bytes of an address."""


def build_flow(
    entry: Entry, links: LinkTable, cgroups: CgroupSource, namespace: str | None, *, listed: bool = False
) -> Flow:
    """The flow of a socket as known now, with a list of its other holders or not; endpoints are shared with the one announced before."""
    _, identity, cookie, _, _ = entry.last
    device: int = _DEVICE.unpack_from(identity, _DEVICE_AT)[0]
    local_port, remote_port = _PORTS.unpack_from(identity, 4)
    protocol = local_port if entry.protocol in _HAS_PROTOCOL else None
    own = address_of(identity, 8)
    local = remote = None
    if entry.protocol != PACKET:
        local = _endpoint(own, local_port if protocol is None else 0, device, own, links)
    if remote_port or any(identity[24:40]):
        remote = _endpoint(address_of(identity, 24), remote_port, device, own, links)
    old = entry.flow
    if old is not None:
        local = old.local if old.local is not local and old.local == local else local
        remote = old.remote if old.remote is not remote and old.remote == remote else remote
    tcp = entry.protocol == IPPROTO_TCP
    prefix = "" if namespace is None else f"n{entry.book.number}:"
    owner, process, attribution = entry.owner, None, None
    if isinstance(owner, Process):
        process = owner
        if owner.attribution is _INFERRED:
            attribution = _INFERRED
    elif owner is not None:
        attribution = owner
        if owner is _KERNEL_OWNS:
            process = KERNEL
    place = cgroups.place_of(entry)
    if place is None:
        place = (None, None, None) if old is None else (old.cgroup, old.container, old.pod)
    cgroup, container, pod = place
    connection = "" if entry.connection == 1 else f".{entry.connection}"
    return Flow(
        f"{prefix}c{cookie:x}{connection}",
        PROVIDERS[entry.protocol],
        False,
        local,
        remote,
        process,
        links.interface_of(own, device, None if remote is None else remote.packed),
        TCP_STATES.get(entry.state, _CLOSED) if tcp else None,
        entry.direction,
        namespace=namespace,
        attribution=attribution,
        cgroup=cgroup,
        container=container,
        pod=pod,
        protocol=protocol or None,
        other_holders=entry.others.number or None,
        holders=entry.others.oldest if listed else (),
    )


_others_of = attrgetter(*(field.name for field in attrs.fields(Flow) if field.name != "outcome"))
_make: Callable[..., Flow] = Flow


def with_outcome(flow: Flow, outcome: Outcome) -> Flow:
    """The same flow, and how it ended: `attrs.evolve` takes four times as long."""
    return _make(*_others_of(flow), outcome=outcome)


def _endpoint(address: bytes, port: int, device: int, own: bytes, links: LinkTable) -> Endpoint:
    if len(address) == _IPV6 and is_link_scoped(address):
        return _shared(address, port, device or links.index_of(own))
    return _shared(address, port)
