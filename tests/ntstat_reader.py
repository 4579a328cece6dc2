"""An independent reader of the protocol, driven by ``tests/vectors/layouts`` alone.

It shares nothing with the library: no table, no codec, no framer. What both of them
say about the same bytes is compared in the tests.
"""

from __future__ import annotations

import functools
import json
import lzma
import re
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors" / "layouts" / "layouts.json.xz"

_CODES = {
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "int32": "i",
    "int64": "q",
    "float64": "d",
    "bool": "B",
}


@functools.cache
def vectors() -> dict[str, Any]:
    """The whole file."""
    return json.loads(lzma.decompress(VECTORS.read_bytes()))


def files() -> list[str]:
    """Names of the distinct headers, oldest first."""
    return sorted(vectors()["files"], key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def choose(version: tuple[int, ...]) -> str | None:
    """The header of a kernel version: the newest one that is not newer."""
    chosen = None
    for entry in vectors()["selection"]["by_major"]:
        if entry["major"] > version[0]:
            break
        steps = [s["file"] for s in entry["steps"] if tuple(s["from"]) <= version or entry["major"] < version[0]]
        chosen = steps[-1] if steps else chosen
    return chosen


@functools.cache
def _steps(file: str, name: str) -> list[tuple[str, int, int, str | None, int, list[int]]]:
    """For each field of a structure its name, begin, end, code of ``struct`` (`None`: bytes), number in an array and bits."""
    steps = []
    for field, kind, offset, size, array, *bits in vectors()["files"][file]["structs"][name]["fields"]:
        if kind.startswith("struct:") or size == 0:
            continue
        if kind == "char" or (kind == "uint8" and array):
            code = None
        else:
            code = f"<{array}{_CODES[kind]}" if array else "<" + _CODES[kind]
        steps.append((field, offset, offset + size, code, array, bits))
    return steps


class Reader:
    """Reads structures of one header."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.facts = vectors()["files"][file]
        self.structs = self.facts["structs"]
        self.by_type = {number: name for name, number in self.facts["types"].items()}
        self.descriptors = dict(self.facts["providers"].values())
        self.wide = self.facts["reference"] == 8
        self.number = int(self.facts["wire"][1:])

    @classmethod
    def of(cls, kernel: str) -> Reader:
        """The reader for ``xnu-…``."""
        match = re.search(r"xnu-([\d.]+)", kernel)
        assert match
        file = choose(tuple(map(int, match.group(1).strip(".").split("."))))
        assert file
        return cls(file)

    def size(self, name: str) -> int:
        """Compiled size of a structure."""
        return self.structs[name]["size"]

    def read(self, name: str, data: bytes, at: int = 0) -> dict[str, Any]:
        """All fields of a structure, by their dotted names; arrays of bytes stay bytes."""
        values: dict[str, Any] = {}
        for field, begin, end, code, array, bits in _steps(self.file, name):
            raw = data[at + begin : at + end]
            if code is None:
                values[field] = raw
            elif array:
                values[field] = struct.unpack(code, raw)
            else:
                value = struct.unpack(code, raw)[0]
                if bits:
                    value = value >> bits[0] & (1 << bits[1]) - 1
                values[field] = value
        return values

    def span(self, name: str, prefix: str) -> tuple[int, int]:
        """(offset, end) of a nested structure, e.g. ``counts`` of a message."""
        found = [f for f in self.structs[name]["fields"] if f[0].startswith(prefix + ".")]
        return min(f[2] for f in found), max(f[2] + f[3] for f in found)

    def messages(self, data: bytes) -> list[tuple[int, int]]:
        """(begin, end) of the messages of a datagram from the kernel."""
        if "hdr.length" not in [f[0] for f in self.structs["nstat_msg_src_counts"]["fields"]]:
            return [(0, len(data))]
        found, at = [], 0
        while len(data) - at >= 16:
            length = struct.unpack_from("<H", data, at + 12)[0]
            if length < 16 or at + length > len(data):
                break
            found.append((at, at + length))
            at += length
        return found
