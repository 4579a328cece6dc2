"""From what is known of a socket to the `Flow` that users see."""

from __future__ import annotations

import struct

from .._model import Endpoint, Flow, Provider, TcpState
from ._constants import IPPROTO_TCP, TCP_STATES
from ._entry import Entry
from ._links import LinkTable
from ._rows import address_of

_PORTS = struct.Struct("!HH")
_DEVICE = struct.Struct("=I")
_DEVICE_AT = 40


class FlowBuilder:
    """Makes the flows of one namespace.

    Args:
        namespace: Its label in `Flow.namespace`.
        prefix: What its flows' ids begin with.
        links: Its interfaces.
    """

    def __init__(self, namespace: str | None, prefix: str, links: LinkTable) -> None:
        self.namespace = namespace
        self.prefix = prefix
        self.links = links

    def build(self, entry: Entry) -> Flow:
        """The flow of a socket as known now; endpoints are shared with the one announced before."""
        identity = entry.identity
        device: int = _DEVICE.unpack_from(identity, _DEVICE_AT)[0]
        local, remote = self._endpoints(identity, device)
        old = entry.flow
        if old is not None:
            local = old.local if old.local == local else local
            remote = old.remote if old.remote == remote else remote
        tcp = entry.protocol == IPPROTO_TCP
        connection = "" if entry.connection == 1 else f".{entry.connection}"
        return Flow(
            f"{self.prefix}c{entry.cookie:x}{connection}",
            Provider.TCP if tcp else Provider.UDP,
            False,
            local,
            remote,
            entry.owner,
            self.links.interface_of(local.packed, device),
            TCP_STATES.get(entry.state, TcpState.CLOSED) if tcp else None,
            entry.direction,
            namespace=self.namespace,
        )

    def _endpoints(self, identity: bytes, device: int) -> tuple[Endpoint, Endpoint | None]:
        """Local and remote; no remote where there is neither address nor port."""
        local_port, remote_port = _PORTS.unpack_from(identity, 4)
        local = self._endpoint(address_of(identity, 8), local_port, device)
        if not remote_port and not any(identity[24:40]):
            return local, None
        return local, self._endpoint(address_of(identity, 24), remote_port, device)

    def _endpoint(self, address: bytes, port: int, device: int) -> Endpoint:
        if len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80:
            return Endpoint(address, port, device or self.links.index_of(address))
        return Endpoint(address, port)
