"""``ADD_SRC``: sources that a client names, one by one.

Routes and interfaces; sockets by their addresses up to xnu-8796.121.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nstat_async._model import Provider
from nstat_async.ntstat._constants import DARWIN_AF_INET, DARWIN_AF_INET6, DarwinErrno

if TYPE_CHECKING:
    from ._client import EmulatedClient
    from ._flows import EmulatedFlow
    from ._kernel import EmulatedKernel
    from ._sources import Source

__all__ = ["find_named", "interface_removed", "interface_traffic"]

_EPERM = int(DarwinErrno.EPERM)
_ENOENT = int(DarwinErrno.ENOENT)
_EINVAL = int(DarwinErrno.EINVAL)
_ENOTSUP = int(DarwinErrno.ENOTSUP)
_EAFNOSUPPORT = int(DarwinErrno.EAFNOSUPPORT)
_ONCE = (8796, 141, 3)
_SMALLEST_THRESHOLD = 1 << 20


def find_named(client: EmulatedClient, provider_id: int, param: bytes, context: int) -> int:
    """Carry out ``ADD_SRC``; returns Darwin's error number."""
    kernel = client.kernel
    known = kernel.release.providers.get(provider_id)
    if known is None or provider_id in kernel.absent_providers:
        return _ENOENT
    provider, userland = known
    if provider is Provider.ROUTE:
        error, flow = _find_route(kernel, param)
    elif provider is Provider.INTERFACE:
        if kernel.privilege_check and not kernel.privileged:
            return _EPERM
        error, flow = _find_interface(kernel, param)
    elif provider in {Provider.TCP, Provider.UDP} and not userland and kernel.release.version < _ONCE:
        error, flow = _find_socket(kernel, provider_id, param)
    else:
        return _ENOTSUP
    if flow is None:
        return error
    if kernel.release.version >= _ONCE:
        _close_earlier(client, flow)
    error = client.add_source(flow, provider_id, context, named=True)
    if not error:
        client.added_by_name.add(provider_id)
        if provider is Provider.INTERFACE:
            newest = next(reversed(client.sources.values()))
            newest.threshold = _threshold(kernel, param)
    return error


def _close_earlier(client: EmulatedClient, flow: EmulatedFlow) -> None:
    """Since xnu-8796.141 one client has one source of a route or interface at most."""
    for source in list(flow.sources.values()):
        if source.client is client:
            client.say_goodbye(source)
            if flow.provider is Provider.INTERFACE:
                interface_removed(client.kernel, source)


def _find_route(kernel: EmulatedKernel, param: bytes) -> tuple[int, EmulatedFlow | None]:
    codec = kernel.release.layout["nstat_route_add_param"]
    if len(param) < codec.size:
        return _EINVAL, None
    destination, mask = codec.read("dst", param), codec.read("mask", param)
    ifindex = codec.read("ifindex", param)
    # The length of a mask is compared with the size of the length byte itself: only none passes.
    if not destination[1] or destination[0] > len(destination) or mask[0] > 1:
        return _EINVAL, None
    if destination[1] not in {DARWIN_AF_INET, DARWIN_AF_INET6}:
        return _EAFNOSUPPORT, None
    for flow in kernel.existing_routes():
        if flow.fields.get("dst") == destination and ifindex in {0, flow.fields.get("ifindex", 0)}:
            return 0, flow
    return _ENOENT, None


def _find_socket(kernel: EmulatedKernel, provider_id: int, param: bytes) -> tuple[int, EmulatedFlow | None]:
    codec = kernel.release.layout["nstat_tcp_add_param"]
    if len(param) < codec.size:
        return _EINVAL, None
    local, remote = codec.read("local", param), codec.read("remote", param)
    if remote[1] and local[1] != remote[1]:
        return _EINVAL, None
    if local[1] not in {DARWIN_AF_INET, DARWIN_AF_INET6}:
        return _EINVAL, None
    for flow in kernel.existing(provider_id):
        mine, peer = flow.fields.get("local", bytes(28)), flow.fields.get("remote", bytes(28))
        if _same(mine, local) and _same(peer, remote):
            return 0, flow
    return _ENOENT, None


def _same(have: bytes, asked: bytes) -> bool:
    """Compare family, port and address; lengths, flow labels and scopes do not count."""
    if asked[1] == DARWIN_AF_INET6:
        return have[1:4] == asked[1:4] and have[8:24] == asked[8:24]
    return (have[1:8] == asked[1:8]) if asked[1] else not any(have[2:24])


def _threshold(kernel: EmulatedKernel, param: bytes) -> int:
    return int(kernel.release.layout["nstat_ifnet_add_param"].read("threshold", param))


def _find_interface(kernel: EmulatedKernel, param: bytes) -> tuple[int, EmulatedFlow | None]:
    codec = kernel.release.layout["nstat_ifnet_add_param"]
    if len(param) < codec.size:
        return _EINVAL, None
    threshold = _threshold(kernel, param)
    flow = kernel.interface_flow(codec.read("ifindex", param))
    if flow is None or threshold < _SMALLEST_THRESHOLD:
        return _EINVAL, None
    interface = flow.interface
    assert interface is not None
    if not interface.threshold or interface.threshold > threshold:
        interface.threshold = threshold
        flow.set(threshold=threshold)
        for source in _interface_sources(kernel):
            source.client.reporter.description(source, 0)
    return 0, flow


def _interface_sources(kernel: EmulatedKernel) -> list[Source]:
    return [
        source
        for client in kernel.clients
        for source in reversed(list(client.sources.values()))
        if source.flow.provider is Provider.INTERFACE
    ]


def interface_removed(kernel: EmulatedKernel, removed: Source) -> None:
    """Set the interface's threshold anew when a source of it is gone.

    The kernel takes the least threshold of all interface sources, of whatever interface.
    """
    interface = removed.flow.interface
    assert interface is not None
    others = [source.threshold for source in _interface_sources(kernel) if source is not removed]
    interface.threshold = min(others, default=0)
    removed.flow.set(threshold=interface.threshold)


def interface_traffic(kernel: EmulatedKernel, flow: EmulatedFlow) -> None:
    """Tell the watchers of an interface that its threshold was passed."""
    for source in _interface_sources(kernel):
        if source.flow is flow:
            source.client.reporter.counts(source, 0)
