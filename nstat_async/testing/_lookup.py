"""``ADD_SRC``: sources that a client names, one by one.

Routes and interfaces; sockets by their addresses up to xnu-8796.121.
"""

from __future__ import annotations

from collections.abc import Iterator

from nstat_async._model import Provider
from nstat_async.ntstat import DarwinErrno
from nstat_async.ntstat._constants import DARWIN_AF_INET, DARWIN_AF_INET6

from ._flows import EmulatedFlow
from ._machine import Machine
from ._scripting import ScriptedMachine
from ._watcher import ClientSource, Watcher

_SMALLEST_THRESHOLD = 1 << 20

Found = tuple[int, "EmulatedFlow | None"]
"""Darwin's error number, or 0 and the flow."""


def find_flow(machine: ScriptedMachine, provider_id: int, param: bytes) -> Found:
    """The flow that an ``ADD_SRC`` names."""
    known = machine.release.providers.get(provider_id)
    if known is None or provider_id in machine.absent_providers:
        return DarwinErrno.ENOENT, None
    provider, userland = known
    if provider is Provider.ROUTE:
        return _find_route(machine, param)
    if provider is Provider.INTERFACE:
        return _find_interface(machine, param)
    if provider in {Provider.TCP, Provider.UDP} and not userland and machine.release.version < (8796, 141, 3):
        return _find_socket(machine, provider_id, param)
    return DarwinErrno.ENOTSUP, None


def _find_route(machine: ScriptedMachine, param: bytes) -> Found:
    codec = machine.layout["nstat_route_add_param"]
    if len(param) < codec.size:
        return DarwinErrno.EINVAL, None
    destination, mask = codec.read("dst", param), codec.read("mask", param)
    ifindex = codec.read("ifindex", param)
    # The length of a mask is compared with the size of the length byte itself: only none passes.
    if not destination[1] or destination[0] > len(destination) or mask[0] > 1:
        return DarwinErrno.EINVAL, None
    if destination[1] not in {DARWIN_AF_INET, DARWIN_AF_INET6}:
        return DarwinErrno.EAFNOSUPPORT, None
    for flow in machine.existing_routes():
        if flow.fields.get("dst") == destination and ifindex in {0, flow.fields.get("ifindex", 0)}:
            return 0, flow
    return DarwinErrno.ENOENT, None


def _find_socket(machine: ScriptedMachine, provider_id: int, param: bytes) -> Found:
    codec = machine.layout["nstat_tcp_add_param"]
    if len(param) < codec.size:
        return DarwinErrno.EINVAL, None
    local, remote = codec.read("local", param), codec.read("remote", param)
    if (remote[1] and local[1] != remote[1]) or local[1] not in {DARWIN_AF_INET, DARWIN_AF_INET6}:
        return DarwinErrno.EINVAL, None
    for flow in machine.existing(provider_id):
        mine, peer = flow.fields.get("local", bytes(28)), flow.fields.get("remote", bytes(28))
        if _same(mine, local) and _same(peer, remote):
            return 0, flow
    return DarwinErrno.ENOENT, None


def _same(have: bytes, asked: bytes) -> bool:
    """Compare family, port and address; lengths, flow labels and scopes do not count."""
    if asked[1] == DARWIN_AF_INET6:
        return have[1:4] == asked[1:4] and have[8:24] == asked[8:24]
    return (have[1:8] == asked[1:8]) if asked[1] else not any(have[2:24])


# Interfaces and their thresholds


def _find_interface(machine: ScriptedMachine, param: bytes) -> Found:
    codec = machine.layout["nstat_ifnet_add_param"]
    if machine.privilege_check and not machine.privileged:
        return DarwinErrno.EPERM, None
    if len(param) < codec.size:
        return DarwinErrno.EINVAL, None
    flow = machine.interface_flow(codec.read("ifindex", param))
    if flow is None or codec.read("threshold", param) < _SMALLEST_THRESHOLD:
        return DarwinErrno.EINVAL, None
    return 0, flow


def interface_sources(machine: Machine) -> Iterator[tuple[Watcher, ClientSource]]:
    """All interface sources of all clients, newest first."""
    for watcher in list(machine.clients):
        for source in reversed(list(watcher.sources.values())):
            if source.flow.provider is Provider.INTERFACE:
                yield watcher, source


def set_threshold(machine: Machine, flow: EmulatedFlow, param: bytes) -> int:
    """Lower an interface's threshold to what a client asked for, and report it to every watcher; returns what was asked."""
    asked = int(machine.layout["nstat_ifnet_add_param"].read("threshold", param))
    interface = flow.interface
    assert interface is not None
    if not interface.threshold or interface.threshold > asked:
        interface.threshold = asked
        flow.set(threshold=asked)
        for watcher, source in interface_sources(machine):
            watcher.report_description(source, 0)
    return asked


def reset_threshold(machine: Machine, removed: ClientSource) -> None:
    """Set the interface's threshold again when a source of it is gone.

    The kernel takes the least threshold of all interface sources, of whatever interface.
    """
    interface = removed.flow.interface
    assert interface is not None
    others = [source.threshold for _, source in interface_sources(machine) if source is not removed]
    interface.threshold = min(others, default=0)
    removed.flow.set(threshold=interface.threshold)


def report_traffic(machine: Machine, flow: EmulatedFlow) -> None:
    """Report an interface to its watchers: its threshold was passed."""
    for watcher, source in interface_sources(machine):
        if source.flow is flow:
            watcher.report_counts(source, 0)
