"""Both ends of a connection: two flows that name each other's addresses and ports.

Known by addresses, hence inferred: where something between two machines rewrites them (NAT) the ends do not
meet, and where more than one flow could be the other end none is taken. Loopback addresses mean something on one
machine only, and in one network namespace.
"""

from __future__ import annotations

from collections.abc import Hashable

import attrs

from .._model import Endpoint, Flow, Provider

__all__ = ["Ends"]

_TRANSPORTS = {Provider.TCP: 6, Provider.UDP: 17, Provider.QUIC: 17}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_MOST_AT_ONE_END = 64
"""Flows with the same addresses and ports that are kept apart: a hostile machine may report any number."""


def _end(endpoint: Endpoint) -> tuple[bytes, int]:
    packed = endpoint.packed
    return (packed[12:] if packed.startswith(_MAPPED) else packed), endpoint.port


def _keys(flow: Flow) -> tuple[Hashable, Hashable] | None:
    """This end and the other one; `None` for a flow that has no other end."""
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
    _keys: dict[str, tuple[Hashable, Hashable]] = attrs.field(factory=dict, init=False)

    def put(self, flow: Flow) -> None:
        """A flow is there, or has changed."""
        keys = _keys(flow)
        if self._keys.get(flow.id) == keys:
            return
        self.remove(flow.id)
        if keys is not None:
            here = self._by_key.setdefault(keys[0], [])
            if len(here) < _MOST_AT_ONE_END:
                here.append(flow.id)
                self._keys[flow.id] = keys

    def remove(self, identity: str) -> None:
        """A flow is gone."""
        keys = self._keys.pop(identity, None)
        if keys is not None:
            here = self._by_key[keys[0]]
            here.remove(identity)
            if not here:
                del self._by_key[keys[0]]

    def other(self, identity: str) -> str | None:
        """The flow at the other end; `None` where there is none, or no single one."""
        keys = self._keys.get(identity)
        if keys is None or len(self._by_key[keys[0]]) != 1:
            return None
        found = self._by_key.get(keys[1], ())
        return found[0] if len(found) == 1 and found[0] != identity else None
