"""A line on standard error that shows the progress of long work; only on terminals."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import anyio
import attrs

from ._output import say

_ERASE = "\r\x1b[K"


@attrs.define(eq=False)
class Progress:
    """Shows the progress."""

    describe: Callable[[], str]
    """What is said; where that is nothing, there is no line."""
    every: float = 0.5
    """Seconds between two looks."""
    started: float = attrs.field(factory=monotonic)

    def show(self) -> None:
        """Write the line over the last one."""
        text = self.describe()
        if text:
            say(f"{_ERASE}{monotonic() - self.started:.0f} s  {text}")

    def clear(self) -> None:
        """Take the line away."""
        say(_ERASE)

    async def keep_showing(self) -> None:
        """Write it again and again, until cancelled."""
        while True:
            await anyio.sleep(self.every)
            self.show()
