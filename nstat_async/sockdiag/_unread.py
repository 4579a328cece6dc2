"""Flows whose fields are made when one of them is first read: in a dump of all sockets, most are never read."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, Union

import attrs

from .._making import maker_of, unread_maker
from .._model import Attribution, Direction, Endpoint, Flow, Interface, Process, TcpState
from ._constants import IPPROTO_RAW, IPPROTO_TCP, PACKET, PROVIDERS, TCP_STATES
from ._links import is_link_scoped
from ._rows import address_of

_PORTS = struct.Struct("!4xHH36x")
_HAS_PROTOCOL = frozenset({IPPROTO_RAW, PACKET})
"""Entries that have an IP protocol or EtherType where others have a local port."""
_CLOSED = TcpState.CLOSED
KERNEL = Process(0, "kernel")
_KERNEL_OWNS, _INFERRED = Attribution.KERNEL, Attribution.INFERRED
"""Members under short names: looking one up in its class takes as long as three other steps."""
_NOWHERE = (None, None, None)
_SOURCE = "peer"
"""The field whose slot holds the source of an unread flow: no flow of this machine has a value for it."""
_OF_A_SOCKET = (
    "id", "provider", "userland", "local", "remote", "process", "interface", "state", "direction", "namespace",
    "attribution", "cgroup", "container", "pod", "protocol", "other_holders", "holders",
)  # fmt: skip
_fill = maker_of(Flow, _OF_A_SOCKET, _SOURCE).fill
_make_end: Callable[[bytes, int, Union[int, None]], Endpoint] = maker_of(Endpoint, ("packed", "port", "scope_id")).make
_shared = functools.lru_cache(maxsize=16_384)(_make_end)
"""Many flows share an end: those accepted at one address, those to one server, both ends of a local connection."""


def _values_of(
    prefix: str,
    cookie: int,
    connection: int,
    protocol: int,
    state: int,
    identity: bytes,
    index: int | None,
    owner: Process | Attribution | None,
    interface: Interface | None,
    direction: Direction | None,
    namespace: str | None,
    place: tuple[str | None, str | None, str | None] | None,
    others: int | None,
    holders: tuple[tuple[int, str | None], ...],
) -> tuple[Any, ...]:
    """The fields of a flow, made of its source; `index` is that of the link to which scoped addresses belong."""
    (local_port, remote_port), number, local, remote = _PORTS.unpack(identity), None, None, None
    if protocol in _HAS_PROTOCOL:
        number, local_port = local_port or None, 0
    if protocol != PACKET:
        own = address_of(identity, 8)
        local = _shared(own, local_port, index and _scope(own, index))
    if remote_port or any(identity[24:40]):
        far = address_of(identity, 24)
        remote = _shared(far, remote_port, index and _scope(far, index))
    process, attribution = _process_of(owner)
    return (
        f"{prefix}c{cookie:x}" if connection == 1 else f"{prefix}c{cookie:x}.{connection}",
        PROVIDERS[protocol],
        False,
        local,
        remote,
        process,
        interface,
        TCP_STATES.get(state, _CLOSED) if protocol == IPPROTO_TCP else None,
        direction,
        namespace,
        attribution,
        *(place or _NOWHERE),
        number,
        others,
        holders,
    )


def _process_of(owner: Process | Attribution | None) -> tuple[Process | None, Attribution | None]:
    """The process of a flow, and how it is known or why there is none."""
    if isinstance(owner, Process):
        return owner, _INFERRED if owner.attribution is _INFERRED else None
    return KERNEL if owner is _KERNEL_OWNS else None, owner


def _scope(address: bytes, index: int) -> int | None:
    return index if is_link_scoped(address) else None


class _UnreadFlow(Flow):
    """A flow whose fields are not made yet; reading any of them makes it a `Flow`."""

    __slots__ = ()

    __class__ = property(lambda self: read(self).__class__)  # comparisons and copies ask for it

    def __eq__(self, other: object) -> bool:
        return read(self) == other

    def __ne__(self, other: object) -> bool:
        return read(self) != other

    def __hash__(self) -> int:
        return hash(read(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return read(self).__reduce_ex__(protocol)


_get_source = Flow.__dict__[_SOURCE].__get__


def read(flow: Flow) -> Flow:
    """Make the fields of a flow, if they are not made yet."""
    source = _get_source(flow)
    if source.__class__ is tuple:
        _fill(flow, *_values_of(*source))
    return flow


def _read_first(slot: Any) -> Any:
    get = slot.__get__
    return property(lambda flow: get(read(flow)), doc=slot.__doc__)


for _field in attrs.fields(Flow):
    setattr(_UnreadFlow, _field.name, _read_first(Flow.__dict__[_field.name]))
_UnreadFlow.source = Flow.__dict__[_SOURCE]  # type: ignore[attr-defined]  # the slot under another name

unread_flow: Callable[..., Flow] = unread_maker(_UnreadFlow, "source")
"""Makes an unread flow; its arguments are those of `_values_of`, and do not change before the flow is read."""
