"""What the path of a cgroup tells about its processes: a unit of systemd, a container, a pod.

It knows the paths of systemd (``cg_path_get_unit``), of the two cgroup drivers of container engines (``systemd`` makes
scopes, ``cgroupfs`` plain directories), of LXC, systemd-nspawn and Kubernetes' kubelet. Of nested containers the innermost
counts; of nested units the outermost, as for ``systemctl status PID`` on this machine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

REMEMBERED = 4096
"""Most paths whose meaning is kept."""

_UNIT = r".+\.(?:service|scope|socket|mount|swap)"
_USER_MANAGER = r"user@\d+\.service"
_ENGINE = r"(?:(?P<engine>.*)[-:])?(?P<id>[0-9a-f]{64}|[0-9a-f]{32}-[0-9]{10})(?:\.scope)?"
"""``docker-ID.scope``, ``crio-ID``, ``….slice:cri-containerd:ID``, or the bare id; ECS has shorter ones."""
_MONITORS = ("conmon",)
"""Helpers of an engine: their cgroup has the id of a container, but is not that of the container."""
_MACHINE = r"machine-(?P<scope>.+)\.scope|systemd-nspawn@(?P<service>.+)\.service"
_VIRTUAL_MACHINES = ("qemu-", "xen-")
_LIBVIRT = r"lxc-\d+-"
_LXC = r"lxc\.payload\.(?P<name>.+)"
_LXC_PARENTS = frozenset({"lxc", "lxc.payload"})
_POD = (
    r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice.*)?"
    r"|.*libpod_pod_(?P<id>[0-9a-f]{64})(?:\.slice)?"
)
_ESCAPED = rb"\\x([0-9a-f]{2})"


class Workload(NamedTuple):
    """What runs in a cgroup; `None` where its path does not tell."""

    unit: str | None
    """Unit of systemd, as ``systemctl`` writes it; under a user's own manager, the unit of that."""
    container: str | None
    """Id of the container, as its engine has it; for LXC and systemd-nspawn, its name."""
    pod: str | None
    """Uid of the Kubernetes pod; for Podman, the pod's id."""


@functools.lru_cache(REMEMBERED)
def workload_of(path: str) -> Workload:
    """What runs in the cgroup with this path; a path outside this cgroup namespace begins with ``/..``."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    return Workload(_unit(parts), _container(parts), _pod(parts))


def _unit(parts: list[str]) -> str | None:
    names = [part.removeprefix("_") for part in parts]  # systemd's guard against names of control files (cg_escape)
    unit, rest = _first_unit(names)
    if unit is not None and re.fullmatch(_USER_MANAGER, unit):
        inner, _ = _first_unit(rest)
        return inner if inner not in {None, "init.scope"} else unit
    return unit


def _first_unit(names: list[str]) -> tuple[str | None, list[str]]:
    """The name after the slices, if it is a unit, and the names that follow it."""
    behind = next((at for at, name in enumerate(names) if not name.endswith(".slice")), len(names))
    if behind == len(names) or not re.fullmatch(_UNIT, names[behind]):
        return None, []
    return names[behind], names[behind + 1 :]


def _container(parts: list[str]) -> str | None:
    for parent, part in reversed(list(zip(["", *parts], parts, strict=False))):
        found = _of_engine(part) or _of_machine(part) or _of_lxc(parent, part)
        if found is not None:
            return found
    return None


def _of_engine(part: str) -> str | None:
    match = re.fullmatch(_ENGINE, part)
    if match is None or (match["engine"] or "").endswith(_MONITORS):
        return None
    return match["id"]


def _of_machine(part: str) -> str | None:
    match = re.fullmatch(_MACHINE, part)
    if match is None:
        return None
    name = _unescaped(match["scope"] or match["service"])
    return None if name.startswith(_VIRTUAL_MACHINES) else re.sub(_LIBVIRT, "", name, count=1)


def _of_lxc(parent: str, part: str) -> str | None:
    if parent in _LXC_PARENTS:
        return part
    match = re.fullmatch(_LXC, part)
    return None if match is None else match["name"]


def _unescaped(name: str) -> str:
    """A machine's name as it was before ``systemd-escape``."""
    data = name.encode("utf-8", "surrogateescape")
    return re.sub(_ESCAPED, lambda match: bytes([int(match[1], 16)]), data).decode("utf-8", "replace")


def _pod(parts: Iterable[str]) -> str | None:
    found = None
    for part in parts:
        match = re.fullmatch(_POD, part)
        if match is not None:
            found = match["id"] or match["uid"].replace("_", "-")
    return found
