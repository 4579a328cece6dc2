"""Write a seed corpus made of the recorded conversations: ``python fuzz/seeds.py DIRECTORY``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "fuzz")]

import conversations
import recordings
import targets

LONGEST = 60_000
"""Bytes of a seed: a fuzzer learns more from many small ones."""


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, bytes)."""
    layouts = [kernel.layout.number for kernel in targets.KERNELS]
    for name in conversations.names():
        kernel = targets.Kernel.parse(conversations.kernel(name))
        head = layouts.index(kernel.layout.number)
        lines = [line for line in conversations.load(name)[1] if line["dir"] != "note" and not line.get("c")]
        steps = [(0 if line["dir"] == "to_kernel" else 1, bytes.fromhex(line["hex"])) for line in lines]
        short = name.replace("/", "-")
        yield "passive", short, (bytes([head, 0]) + targets.join(steps))[:LONGEST]
        answers = [(0 if op else 3, data if op else b"") for op, data in steps]
        yield "session", short, (bytes([head, 32]) + targets.join(answers))[:LONGEST]
        yield "recording", short, conversations.raw(name)[:LONGEST]
        for number, (op, data) in enumerate(steps):
            if op and number % 7 == 0:
                yield "framer", f"{short}-{number}", bytes([kernel.layout.has_lengths]) + data
                yield "messages", f"{short}-{number}", bytes([head]) + data
    yield from (("netlink", mode, _netlink(following)) for mode, following in (("driving", False), ("following", True)))


def _netlink(following: bool) -> bytes:
    """A few sockets of Linux that live, as the target takes what was said: by channel, requests with another bit."""
    kernel = recordings.linux_life(recordings.FakeKernel())
    said = [(way == "to", channel, data) for way, _, channel, data in kernel.record if isinstance(data, bytes)]
    steps = [((65 if asked else 5) + channel, data) for asked, channel, data in said if following or not asked]
    return bytes([following]) + targets.join(steps)


def main() -> None:
    """Write them all, one directory a target."""
    if len(sys.argv) != 2:
        sys.exit("usage: python fuzz/seeds.py DIRECTORY")
    for target, name, data in seeds():
        path = Path(sys.argv[1]) / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
