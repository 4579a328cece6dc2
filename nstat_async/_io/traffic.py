"""Reads the kernel's counters of a whole network namespace: ``/proc/net/dev``, ``snmp`` and ``snmp6`` (``proc(5)``)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .linux import THREAD_NET

_MOST = 4096
"""Most interfaces that are read."""


def read_traffic(net: str = THREAD_NET) -> tuple[tuple[tuple[str, int, int], ...], tuple[int, int]]:
    """Interfaces with the bytes that they received and sent, and the UDP datagrams in and out.

    Args:
        net: The directory that shows the network namespace.

    Raises:
        OSError: ``/proc`` cannot be read.
    """
    return tuple(_interfaces(_read(net, "dev")))[:_MOST], _datagrams(net)


def _read(net: str, name: str) -> list[str]:
    with Path(net, name).open(encoding="utf-8", errors="replace") as lines:
        return lines.read().splitlines()


def _interfaces(lines: list[str]) -> list[tuple[str, int, int]]:
    found = []
    for line in lines[2:]:
        name, _, numbers = line.rpartition(":")
        fields = numbers.split()
        if name and len(fields) >= 9:
            found.append((name.strip(), int(fields[0]), int(fields[8])))
    return found


def _datagrams(net: str) -> tuple[int, int]:
    lines = [line.split() for line in _read(net, "snmp") if line.startswith("Udp:")]
    counts = dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=False)) if len(lines) == 2 else {}
    with contextlib.suppress(OSError):  # a kernel without IPv6
        counts.update(
            (name, int(number)) for name, number in map(str.split, _read(net, "snmp6")) if name.startswith("Udp6")
        )
    return (
        counts.get("InDatagrams", 0) + counts.get("Udp6InDatagrams", 0),
        counts.get("OutDatagrams", 0) + counts.get("Udp6OutDatagrams", 0),
    )
