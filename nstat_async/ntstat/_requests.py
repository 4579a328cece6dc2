"""The requests of a subscription, and their purposes."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import attrs

from .._model import Provider
from .._options import MonitorOptions
from ._constants import FilterFlag, HeaderFlag
from ._kernels import Kernel
from ._messages import (
    AddAllSources,
    AddSource,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    Message,
    QuerySource,
    SubscribeSystemInfo,
)

_RESUMED = int(HeaderFlag.CONTINUATION)
_PACED = int(HeaderFlag.SUPPORTS_AGGREGATE | HeaderFlag.CONTINUATION)
_INTERFACE_THRESHOLD = 1 << 20
_ORDER = (Provider.TCP, Provider.UDP, Provider.QUIC, Provider.CONNECTION, Provider.UDP_SUBFLOW, Provider.ROUTE)


class Purpose(enum.Enum):
    """The purpose of a request."""

    __hash__ = object.__hash__  # members are one object each; `Enum` hashes their names, in Python
    SUBSCRIBE = enum.auto()
    """To watch a provider, or an interface."""
    SYSTEM_INFO = enum.auto()
    """To get system-wide statistics; it has no answer unless it is refused."""
    POLL = enum.auto()
    """To get reports of all sources."""
    DESCRIBE = enum.auto()
    """To get the description of an announced source."""
    VERIFY = enum.auto()
    """To learn whether a source that a poll did not report still exists."""
    DISCOVER = enum.auto()
    """To learn whether a source has a number that was skipped."""
    PROBE = enum.auto()
    """To learn whether there are sources above all those that a poll reported."""


SINGLE = frozenset({Purpose.DESCRIBE, Purpose.VERIFY, Purpose.DISCOVER, Purpose.PROBE})
"""Purposes of requests about a single source."""
UNSEEN = frozenset({Purpose.DISCOVER, Purpose.PROBE})
"""Purposes of requests about a reference without a known source."""


@attrs.define(eq=False)
class Request:
    """A request that waits to be sent, or to be answered."""

    purpose: Purpose
    message: Message
    provider: Provider | None = None
    """The provider that a subscription is for."""
    userland: bool | None = None
    ref: int = 0
    """The reference of a single source."""
    context: int = 0
    """The context of its answers; another one each time that the request is repeated."""
    sent_at: float = 0.0
    retries: int = 0
    backoff: bool = False
    """True if it is to be sent again when the channel is drained."""
    bytes_before: int = 0
    """Bytes received before it was sent."""
    datagrams_before: int = 0


def subscribe_requests(
    kernel: Kernel, options: MonitorOptions, interfaces: Iterable[int], *, suppress: bool
) -> Iterator[Request]:
    """The requests that subscribe to the wanted providers, in order; providers that this kernel lacks are left out."""
    bits = int(FilterFlag.SUPPRESS_SRC_ADDED) if suppress else 0
    if options.extras:
        bits |= sum(kernel.extension_bit(extension) or 0 for extension in kernel.extras)
    for provider in _ORDER:
        for number in kernel.provider_numbers(provider) if provider in options.providers else ():
            userland = kernel.providers[number][1]
            yield Request(Purpose.SUBSCRIBE, AddAllSources(provider=number, filter=bits), provider, userland)
    if Provider.INTERFACE in options.providers:
        codec = kernel.layout.find("nstat_ifnet_add_param")
        if codec is not None:
            (number,) = kernel.provider_numbers(Provider.INTERFACE)
            for index in interfaces:
                param = codec.encode({"ifindex": index, "threshold": _INTERFACE_THRESHOLD})
                yield Request(Purpose.SUBSCRIBE, AddSource(provider=number, param=param), Provider.INTERFACE)
    if options.extras and kernel.has_updates:
        yield Request(Purpose.SYSTEM_INFO, SubscribeSystemInfo())


def poll_requests(kernel: Kernel, *, details: bool, apart: bool, describe: bool) -> Iterator[Request]:
    """The requests for all sources.

    Args:
        kernel: The kernel.
        details: Ask for counters by medium.
        apart: Ask for counters and descriptions separately.
        describe: With `apart`, ask for descriptions too; together with counters if polls cannot be resumed.
    """
    kinds: list[type[QuerySource | GetSourceDescription]]
    if not apart or (describe and kernel.has_updates and not kernel.resumes_polls):
        kinds = [GetDetails if details else GetUpdate]
    else:
        # A description reports a flow: counters that come later would count what it moved before as new.
        kinds = [QuerySource, GetSourceDescription] if describe and kernel.can_describe_all else [QuerySource]
    flags = (_RESUMED if apart and kernel.resumes_polls else _PACED) if kernel.layout.has_lengths else 0
    for kind in kinds:
        yield Request(Purpose.POLL, kind(flags=flags, srcref=kernel.layout.all_sources))


def single_request(kernel: Kernel, purpose: Purpose, ref: int, *, details: bool = False) -> Request:
    """The request for one source, like `poll_requests` for all."""
    kind: type[QuerySource | GetSourceDescription]
    if kernel.has_updates:
        kind = GetDetails if details else GetUpdate
    else:
        kind = GetSourceDescription if purpose is Purpose.DESCRIBE else QuerySource
    return Request(purpose, kind(srcref=ref), ref=ref)
