"""The recorded conversations of ``tests/vectors/conversations``, by name.

A name is the path without its endings, e.g. ``"stack/xnu-7195.141.2/c_udp"``.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import lzma
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "vectors" / "conversations"
EXAMPLES = Path(__file__).parent.parent / "examples" / "recordings"

_CONVERSATION = ".jsonl.xz"
_TRUTH = ".truth.json.xz"


@functools.lru_cache(maxsize=1)
def _all_names() -> tuple[str, ...]:
    found = (p.relative_to(ROOT).as_posix().removesuffix(_CONVERSATION) for p in ROOT.rglob("*" + _CONVERSATION))
    return tuple(sorted(found))


def names(pattern: str = "*", *, with_truth: bool = False) -> list[str]:
    """The names that match a shell pattern (``*`` also crosses ``/``), sorted.

    Args:
        pattern: E.g. ``"stack/*"``, ``"*/tcp_*"``, ``"*/xnu-3789*/*"``.
        with_truth: Only those whose truth says something (`live_demo` has an empty one).
    """
    chosen = [name for name in _all_names() if fnmatch.fnmatchcase(name, pattern)]
    if with_truth:
        chosen = [name for name in chosen if (ROOT / (name + _TRUTH)).exists() and not name.endswith("/live_demo")]
    return chosen


def kernel(name: str) -> str:
    """The release as the directory says it, e.g. ``"xnu-7195.141.2"``."""
    return name.split("/")[1]


@functools.lru_cache(maxsize=32)
def raw(name: str) -> bytes:
    """The conversation's file, decompressed: JSON Lines."""
    return lzma.decompress((ROOT / (name + _CONVERSATION)).read_bytes())


@functools.cache  # all of them take 15 MB; each is read by twelve tests
def load(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the lines after it, which nobody may change."""
    lines = raw(name).splitlines()
    return json.loads(lines[0]), [json.loads(line) for line in lines[1:]]


def datagrams(name: str, *, client: int | None = None) -> list[bytes]:
    """The datagrams from the kernel, in order; of one client or of all."""
    return [
        bytes.fromhex(line["hex"])
        for line in load(name)[1]
        if line["dir"] == "from_kernel" and (client is None or line.get("c", 0) == client)
    ]


def clients(name: str) -> list[int]:
    """The numbers of the clients that speak in it, sorted."""
    return sorted({line.get("c", 0) for line in load(name)[1] if line["dir"] != "note"})


def truth(name: str) -> dict[str, Any] | None:
    """What the kernel's own structures held; `None` if that file was left out."""
    path = ROOT / (name + _TRUTH)
    return json.loads(lzma.decompress(path.read_bytes())) if path.exists() else None
