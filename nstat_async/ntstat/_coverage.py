"""Evidence of what was not seen: the interfaces' own counters, compared with the sum of the flows.

Now and then, after a poll, the counters of all flows are read, a thousand at a time, and then those of the interfaces.
So the growth of flows is added up here, and not where their reports are decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from .._model import UNCOUNTED_PROVIDERS
from ._counters import DETAILS_SIZE, Raw, growing_details, growing_reader
from ._evidence import InterfacesRead
from ._kernels import Kernel
from ._source import Source

PAUSE = 2.0
"""Least seconds between two looks: a 32-bit counter gets half way round in less time only above 8 Gbit/s."""
SLICE = 1000
"""Flows that are read in one step: some 2 ms."""
_NARROW = 1 << 32


class CoverageMeter:
    """Adds up the traffic of flows, and compares it with that of the interfaces.

    Args:
        kernel: The kernel.
        is_readable: The transport can read the interfaces' counters.
    """

    def __init__(self, kernel: Kernel, *, is_readable: bool) -> None:
        self.is_readable = is_readable
        self.deadline: float | None = None
        """When to call `go_on`; `None` if no flows are left to read."""
        self.statistics: dict[str, int] = {}
        """The figures, as `Coverage.of` reads them; empty while nothing is known."""
        self._totals, self._details = growing_reader(kernel.layout), growing_details()
        self._left: Iterator[Source] = iter(())
        self._due = 0.0
        self._waits = False
        """The counters of the interfaces are asked for."""
        self._moved = (0, 0)
        """Bytes that flows received and sent until now."""
        self._measured = (0, 0)
        """Bytes that flows had received and sent when all were last read."""
        self._first: tuple[int, int] | None = None
        """Bytes that flows had received and sent when the interfaces were first read."""
        self._carried = (0, 0)
        """Bytes that interfaces received and sent since they were first read."""
        self._before: dict[int, tuple[int, int]] = {}

    # -- the traffic of flows

    def begin(self, sources: Iterable[Source], now: float) -> None:
        """A poll ended: begin to read all flows, if it is time."""
        if self.is_readable and self.deadline is None and not self._waits and now >= self._due:
            self._due = now + PAUSE
            self._left, self.deadline = iter(list(sources)), now

    def begin_again(self) -> None:
        """Another control socket took over: its sources are to be read from now on."""
        self._left, self.deadline, self._due = iter(()), None, 0.0

    def go_on(self) -> bool:
        """Read some flows; True if these were the last."""
        if self.deadline is None:
            return False
        some = list(islice(self._left, SLICE))
        for source in some:
            self.measure(source)
        if len(some) == SLICE:
            return False
        self.deadline, self._measured, self._waits = None, self._moved, True
        return True

    def measure(self, source: Source) -> None:
        """Add the traffic of a flow since it was last read; traffic before the flow was seen does not count."""
        flow, now, before = source.flow, source.counters, source.measured
        if now is before or now is None or flow is None:
            return
        source.measured = now
        is_old = before is None and source.preexisting
        if is_old or flow.is_loopback or flow.provider in UNCOUNTED_PROVIDERS:
            return
        rx, tx = self._bytes_of(now)
        rx_before, tx_before = (0, 0) if before is None else self._bytes_of(before)
        self._moved = (self._moved[0] + max(0, rx - rx_before), self._moved[1] + max(0, tx - tx_before))

    def _bytes_of(self, raw: Raw) -> tuple[int, int]:
        if not isinstance(raw, bytes):
            return raw[1] or 0, raw[3] or 0
        read: Any = self._details if len(raw) == DETAILS_SIZE else self._totals
        _, rx, _, tx, _ = read(raw)
        return rx, tx

    # -- the traffic of interfaces

    def take(self, answer: Any) -> None:
        """Take in the interfaces' counters; `None` if they cannot be read."""
        self.is_readable, self._waits = answer is not None, False
        if not isinstance(answer, InterfacesRead):
            return
        now = {index: (rx, tx) for index, rx, tx in answer.interfaces}
        for index, numbers in now.items():
            before = self._before.get(index, numbers)
            self._carried = tuple(map(_sum_with_growth, self._carried, before, numbers))  # type: ignore[assignment]  # two
        self._before = now
        if self._first is None:
            self._first = self._measured
        else:
            self._publish(self._first)

    def _publish(self, first: tuple[int, int]) -> None:
        names = ("coverage_rx_bytes", "coverage_tx_bytes", "coverage_flow_rx_bytes", "coverage_flow_tx_bytes")
        flows = (self._measured[0] - first[0], self._measured[1] - first[1])
        self.statistics = dict(zip(names, (*self._carried, *flows), strict=True))


def _sum_with_growth(total: int, before: int, now: int) -> int:
    """A total with the growth of a counter, which may wrap: since macOS 13, only Apple's programs get more than the lower 32 bits."""
    growth = now - before
    if growth < 0 and before < _NARROW:
        growth %= _NARROW
        growth = growth if growth < _NARROW // 2 else 0  # it fell by too much: the counter restarted
    return total + max(0, growth)
