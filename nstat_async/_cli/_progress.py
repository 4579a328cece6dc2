"""A line on standard error that says how far long work is; only for terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic

import anyio
import attrs

_ERASE = "\r\x1b[K"


@attrs.define(eq=False)
class Progress:
    """What to say, and since when."""

    describe: Callable[[], str]
    every: float = 0.5
    """Seconds between two looks."""
    started: float = attrs.field(factory=monotonic)

    def show(self) -> None:
        """Write the line over the last one."""
        self._write(f"{_ERASE}{monotonic() - self.started:.0f} s  {self.describe()}")

    def clear(self) -> None:
        """Take the line away."""
        self._write(_ERASE)

    @staticmethod
    def _write(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # the terminal is gone; the work goes on
            return

    async def keep_showing(self) -> None:
        """Write it again and again, until cancelled."""
        while True:
            await anyio.sleep(self.every)
            self.show()
