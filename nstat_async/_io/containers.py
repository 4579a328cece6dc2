"""Finds the names of containers and pods by the containers' ids, in files that their engines write.

| engine | file | readable for |
|---|---|---|
| containerd, nerdctl, Kubernetes | ``/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json`` | root |
| CRI-O, Podman | ``/run/containers/storage/overlay-containers/ID/userdata/config.json`` | root |
| Docker | ``/var/lib/docker/containers/ID/config.v2.json`` | root |

LXC and systemd-nspawn have the name in the path of the cgroup. If a file cannot be read, the name is not known.
"""

# ruff: noqa: PTH118, PTH123, PTH208
# Few, fixed paths.

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

LARGEST = 1 << 20
"""Most bytes of a file that are read."""

_ID = re.compile(r"[0-9a-f]{64}")
_TASKS = ("run/containerd/io.containerd.runtime.v2.task", "run/docker/containerd/daemon/io.containerd.runtime.v2.task")
_BUNDLES = "run/containers/storage/overlay-containers"
_DOCKER = "var/lib/docker/containers"
_CONTAINER_KEYS = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name")
_POD_KEYS = (
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name"),
)


def names_of(container: str, root: str = "/") -> tuple[str | None, str | None]:
    """Name of a container, and of its pod as ``namespace/name``; `None` if no file has it.

    Args:
        container: Its id.
        root: Where the files are; another directory for tests.
    """
    if not _ID.fullmatch(container):
        return None, None
    for path in _bundles(container, root):
        notes = _read(path).get("annotations")
        if isinstance(notes, dict):
            name, pod = _text(notes, *_CONTAINER_KEYS), _pod(notes)
            if name or pod:
                return name, pod
    name = _text(_read(os.path.join(root, _DOCKER, container, "config.v2.json")), "Name")
    return (name.lstrip("/") or None if name else None), None


def _bundles(container: str, root: str) -> Iterator[str]:
    for tasks in _TASKS:
        directory = os.path.join(root, tasks)
        try:
            namespaces = os.listdir(directory)
        except OSError:
            continue
        for namespace in namespaces:
            yield os.path.join(directory, namespace, container, "config.json")
    yield os.path.join(root, _BUNDLES, container, "userdata", "config.json")


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(notes: dict[str, Any], *keys: str) -> str | None:
    return next((notes[key] for key in keys if isinstance(notes.get(key), str) and notes[key]), None)


def _pod(notes: dict[str, Any]) -> str | None:
    for keys in _POD_KEYS:
        namespace, name = (_text(notes, key) for key in keys)
        if name:
            return f"{namespace}/{name}" if namespace else name
    return None
