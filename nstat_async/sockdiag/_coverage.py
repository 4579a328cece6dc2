"""Evidence of what was not seen: the namespace's own counters of traffic, compared with the sum of its flows."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import attrs

from ..ebpf import Totals
from ._entry import Entry
from ._host_requests import TrafficAnswer, TrafficRequest
from ._links import LinkTable
from ._output import Output
from ._rows import address_of

PAUSE = 5.0
"""Seconds between two looks at the counters."""
_COUNTERS = struct.Struct("=QQ24x")
"""``tcpi_bytes_acked`` and ``tcpi_bytes_received``, the first of a row's counters."""
_NOTHING = bytes(_COUNTERS.size)


@attrs.define
class Moved:
    """Traffic with other machines."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_datagrams: int = 0
    tx_datagrams: int = 0

    def plus(self, other: Moved) -> Moved:
        """The sum of both."""
        return Moved(*(a + b for a, b in zip(attrs.astuple(self), attrs.astuple(other), strict=True)))


class CoverageMeter:
    """Adds up the traffic of one namespace's flows, and compares it with the namespace's counters.

    Args:
        output: Where requests go.
        namespace: Number of the namespace.
        links: Its addresses.
    """

    def __init__(self, output: Output, namespace: int, links: LinkTable) -> None:
        self.flows = Moved()
        """Traffic of flows between the first answer and the last."""
        self._moving = Moved()
        """Traffic of flows from the first answer until now."""
        self.counted = Moved()
        """Traffic of interfaces (wire bytes) and of the namespace (datagrams) between the first answer and the last."""
        self.known = False
        """True after the second answer: there is something to compare."""
        self._output = output
        self._number = namespace
        self._links = links
        self._before: dict[str, tuple[int, ...]] = {}
        self._datagrams: tuple[int, int] | None = None
        self._due = 0.0

    # -- the traffic of flows

    def grew(self, entry: Entry, before: bytes, after: bytes) -> None:
        """Add what the counters of a TCP row grew by; `before` is empty for a new connection."""
        if len(after) != _COUNTERS.size or (entry.preexisting and not before) or self._is_here(entry):
            return
        acked, received = _COUNTERS.unpack(before or _NOTHING)
        acked_now, received_now = _COUNTERS.unpack(after)
        self._moving.rx_bytes += max(0, received_now - received)
        self._moving.tx_bytes += max(0, acked_now - acked)

    def counted_datagrams(self, entry: Entry, before: Totals | None, after: Totals) -> None:
        """Add what the counts of a datagram socket grew by."""
        earlier = before or Totals(0, 0, 0, 0)
        flows = self._moving
        if entry.flow is None or not entry.flow.is_loopback:
            flows.rx_bytes += (after.rx_bytes or 0) - (earlier.rx_bytes or 0)
            flows.tx_bytes += (after.tx_bytes or 0) - (earlier.tx_bytes or 0)
        flows.rx_datagrams += (after.rx_packets or 0) - (earlier.rx_packets or 0)
        flows.tx_datagrams += (after.tx_packets or 0) - (earlier.tx_packets or 0)

    def _is_here(self, entry: Entry) -> bool:
        return self._links.index_of(address_of(entry.identity, 24)) is not None

    # -- what the namespace counted

    def end_poll(self) -> None:
        """A poll ended, so the traffic of flows is up to date: ask for the counters, if it is time."""
        if self._output.now >= self._due:
            self._due = self._output.now + PAUSE
            self._output.ask(TrafficRequest(self._number), self.take)

    def take(self, answer: Any) -> None:
        """Take in the namespace's counters."""
        if not isinstance(answer, TrafficAnswer) or answer.datagrams is None:
            return
        rx, tx = answer.datagrams
        if self._datagrams is None:
            self._moving = Moved()
        else:
            self.flows = attrs.evolve(self._moving)
            self.known = True
            self.counted.rx_datagrams += max(0, rx - self._datagrams[0])
            self.counted.tx_datagrams += max(0, tx - self._datagrams[1])
        self._datagrams = answer.datagrams
        carrying = self._links.carrying()
        for name, *numbers in answer.interfaces:
            before = self._before.get(name)
            if before is not None and name in carrying:
                self.counted.rx_bytes += max(0, numbers[0] - before[0])
                self.counted.tx_bytes += max(0, numbers[1] - before[1])
        self._before = {name: tuple(numbers) for name, *numbers in answer.interfaces}


@attrs.define
class CoverageSum:
    """The figures of namespaces that are not watched any more."""

    known: bool = False
    counted: Moved = attrs.field(factory=Moved)
    flows: Moved = attrs.field(factory=Moved)

    def absorb(self, meter: CoverageMeter) -> None:
        """Add the figures of a namespace."""
        if meter.known:
            self.known = True
            self.counted, self.flows = self.counted.plus(meter.counted), self.flows.plus(meter.flows)


def coverage_of(gone: CoverageSum, meters: Iterable[CoverageMeter]) -> dict[str, int]:
    """The sum of all figures, as `Coverage.of` reads them; empty while nothing is known."""
    whole = attrs.evolve(gone)
    for meter in meters:
        whole.absorb(meter)
    if not whole.known:
        return {}
    parts = (("coverage_", whole.counted), ("coverage_flow_", whole.flows))
    return {f"{prefix}{name}": number for prefix, part in parts for name, number in attrs.asdict(part).items()}
