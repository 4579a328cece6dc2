"""Finds both ends of a connection: two flows that name each other's addresses and ports.

The result is inferred from addresses: if something between two machines rewrites them (NAT) the ends are not found, and
if more than one flow could be the other end, none is taken. Loopback addresses mean something on one machine only, and
in one network namespace. A short connection may be over at one end before the other end is reported, so ends are
remembered for a moment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import attrs

from .._model import Endpoint, Flow, Peer, Provider, unmapped

_TRANSPORTS = {Provider.TCP: 6, Provider.UDP: 17, Provider.QUIC: 17}
_MOST_AT_ONE_END = 64
"""How many flows with the same addresses and ports are kept: a hostile machine may report any number."""

_REMEMBERED = 10_000
"""How many ended flows are remembered, because their other end may still be reported."""
_REMEMBERED_SECONDS = 30.0


def _end(endpoint: Endpoint) -> tuple[bytes, int]:
    return unmapped(endpoint.packed), endpoint.port


def _keys(flow: Flow) -> tuple[Hashable, Hashable] | None:
    """The keys of this end and of the other one; `None` for a flow that has no other end."""
    local, remote, transport = flow.local, flow.remote, _TRANSPORTS.get(flow.provider)
    if local is None or remote is None or transport is None or not remote.port or remote.is_unspecified:
        return None
    where = (flow.host, flow.namespace) if remote.is_loopback or local.is_loopback else None
    one, other = _end(local), _end(remote)
    return (where, transport, one, other), (where, transport, other, one)


@attrs.define(eq=False)
class Ends:
    """All flows of a fleet by their addresses."""

    _by_key: dict[Hashable, list[str]] = attrs.field(factory=dict, init=False)
    _keys: dict[str, tuple[Hashable, Hashable, Flow]] = attrs.field(factory=dict, init=False)
    """Keys of this end and of the other one, with the flow that they were made from."""
    _ended: OrderedDict[Hashable, tuple[float, Peer]] = attrs.field(factory=OrderedDict, init=False)
    """Flows that ended, by this end, the oldest first."""

    def put(self, flow: Flow) -> None:
        """Add a flow, or take over its changes."""
        known = self._keys.get(flow.id)
        if known is not None and known[2] is flow:  # as in most reports: only counts changed
            return
        keys = _keys(flow)
        if keys is not None and known is not None and known[:2] == keys:
            self._keys[flow.id] = *keys, flow
            return
        self.remove(flow.id)
        if keys is not None:
            here = self._by_key.setdefault(keys[0], [])
            if len(here) < _MOST_AT_ONE_END:
                here.append(flow.id)
                self._keys[flow.id] = *keys, flow

    def remove(self, identity: str) -> None:
        """Remove a flow."""
        keys = self._keys.pop(identity, None)
        if keys is not None:
            here = self._by_key[keys[0]]
            here.remove(identity)
            if not here:
                del self._by_key[keys[0]]

    def other(self, identity: str) -> str | None:
        """The flow at the other end; `None` if there is none, or more than one."""
        keys = self._keys.get(identity)
        if keys is None or len(self._by_key[keys[0]]) != 1:
            return None
        found = self._by_key.get(keys[1], ())
        return found[0] if len(found) == 1 and found[0] != identity else None

    def end(self, flow: Flow, time: float) -> None:
        """Remove a flow that ended, but remember it as the other end of a flow that may be reported late."""
        keys = self._keys.get(flow.id)
        self.remove(flow.id)
        if keys is not None:
            self._ended[keys[0]] = time, peer_of(flow)
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def ended(self, identity: str, time: float) -> Peer | None:
        """The other end of a flow, if it ended a moment ago; no further flow gets it."""
        keys = self._keys.get(identity)
        found = None if keys is None else self._ended.get(keys[1])
        if keys is None or found is None:
            return None
        del self._ended[keys[1]]
        return found[1] if abs(time - found[0]) < _REMEMBERED_SECONDS else None


def peer_of(flow: Flow) -> Peer:
    """A flow as the peer of its other end."""
    return Peer(flow.host, flow.process, flow.id)
