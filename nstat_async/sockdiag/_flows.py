"""From what is known of a socket to the `Flow` that users see."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from operator import attrgetter
from typing import Union

import attrs

from .._making import maker_of
from .._model import Attribution, Endpoint, Flow, Outcome, Process, TcpState
from ._cgroups import CgroupSource
from ._constants import IPPROTO_RAW, IPPROTO_TCP, PACKET, PROVIDERS, TCP_STATES
from ._entry import Entry
from ._links import LinkTable, is_link_scoped
from ._rows import address_of

_PORTS = struct.Struct("!4xHH36x")
_DEVICE = struct.Struct("=40xI")
_HAS_PROTOCOL = frozenset({IPPROTO_RAW, PACKET})
"""Whose protocol is in place of a port."""
KERNEL = Process(0, "kernel")
_KERNEL_OWNS, _INFERRED, _CLOSED = Attribution.KERNEL, Attribution.INFERRED, TcpState.CLOSED
"""To look up a member takes as long as three other steps."""
_NOWHERE = (None, None, None)
_IPV6 = 16
"""Bytes of an address."""


_OF_A_SOCKET = (
    "id", "provider", "userland", "local", "remote", "process", "interface", "state", "direction", "namespace",
    "attribution", "cgroup", "container", "pod", "protocol", "other_holders", "holders",
)  # fmt: skip
_make_flow: Callable[..., Flow] = maker_of(Flow, _OF_A_SOCKET)
_make_end: Callable[[bytes, int, Union[int, None]], Endpoint] = maker_of(Endpoint, ("packed", "port", "scope_id"))
_shared = functools.lru_cache(maxsize=16_384)(_make_end)
"""Many flows share an end: all that were accepted at one address, all to one server, both ends of a local connection."""


def build_flow(
    entry: Entry, links: LinkTable, cgroups: CgroupSource, namespace: str | None, *, listed: bool = False
) -> Flow:
    """The flow of a socket as known now, with a list of its other holders or not; endpoints are shared with the one announced before."""
    _, identity, cookie, _, _ = entry.last
    protocol, owner, others, old = entry.protocol, entry.owner, entry.others, entry.flow
    (device,), (local_port, remote_port) = _DEVICE.unpack(identity), _PORTS.unpack(identity)
    number = None
    if protocol in _HAS_PROTOCOL:
        number, local_port = local_port or None, 0
    own, far = address_of(identity, 8), None
    local = remote = None
    if protocol != PACKET:
        local = _endpoint(own, local_port, device, own, links)
    if remote_port or any(identity[24:40]):
        far = address_of(identity, 24)
        remote = _endpoint(far, remote_port, device, own, links)
    place = cgroups.place_of(entry)
    if old is not None:
        local = old.local if old.local is not local and old.local == local else local
        remote = old.remote if old.remote is not remote and old.remote == remote else remote
        place = place or (old.cgroup, old.container, old.pod)
    process, attribution = owner, None
    if owner.__class__ is not Process:
        process, attribution = KERNEL if owner is _KERNEL_OWNS else None, owner
    elif owner.attribution is _INFERRED:
        attribution = _INFERRED
    cgroup, container, pod = place or _NOWHERE
    prefix = "" if namespace is None else f"n{entry.book.number}:"
    return _make_flow(
        f"{prefix}c{cookie:x}" if entry.connection == 1 else f"{prefix}c{cookie:x}.{entry.connection}",
        PROVIDERS[protocol],
        False,
        local,
        remote,
        process,
        links.interface_of(own, device, far),
        TCP_STATES.get(entry.state, _CLOSED) if protocol == IPPROTO_TCP else None,
        entry.direction,
        namespace,
        attribution,
        cgroup,
        container,
        pod,
        number,
        others.number or None,
        others.oldest if listed else (),
    )


_others_of = attrgetter(*(field.name for field in attrs.fields(Flow) if field.name != "outcome"))
_make: Callable[..., Flow] = Flow


def with_outcome(flow: Flow, outcome: Outcome) -> Flow:
    """The same flow, and how it ended: `attrs.evolve` takes four times as long."""
    return _make(*_others_of(flow), outcome=outcome)


def _endpoint(address: bytes, port: int, device: int, own: bytes, links: LinkTable) -> Endpoint:
    if len(address) == _IPV6 and is_link_scoped(address):
        return _shared(address, port, device or links.index_of(own))
    return _shared(address, port, None)
