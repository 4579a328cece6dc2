"""A line on standard error that shows the progress of long work; only on terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from time import monotonic

import anyio
import attrs

from ._output import in_one_line, say
from ._table import fit

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
            line = in_one_line(f"{monotonic() - self.started:.0f} s  {text}")
            room = _columns() - 1  # a longer line would begin another one, and stay
            say(f"{_ERASE}{fit(line, room).rstrip() if room > 0 else line}")

    def clear(self) -> None:
        """Take the line away."""
        say(_ERASE)

    async def keep_showing(self) -> None:
        """Write it again and again, until cancelled."""
        while True:
            await anyio.sleep(self.every)
            self.show()


def _columns() -> int:
    """How wide the terminal is now; 0 if it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0
