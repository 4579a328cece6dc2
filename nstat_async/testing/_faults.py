"""The faults that a test can switch on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import attrs

from ._values import checked, flag, number, whole

DARWIN_27_INSERTIONS: tuple[Mapping[str, tuple[tuple[int, int], ...]], ...] = tuple(
    {"nstat_tcp_descriptor": ((place, 16),)} for place in (292, 308, 324)
)
"""How the TCP descriptor of Darwin 27 may differ: a live one has 16 more bytes, between the UUIDs of the executable and the
effective process and the persona. All bytes in between are zero, so there are three places where the new bytes may be. A reader
must work with each of them.

Values for the argument ``insertions`` of `EmulatedKernel`, with a kernel from xnu-10002 on."""


def _probability() -> Any:
    return attrs.field(default=0.0, validator=checked(number, most=1.0))


@attrs.define(eq=False, kw_only=True)
class Faults:
    """Switches of an `EmulatedKernel`; set them at any time.

    Probabilities are drawn from the kernel's own seeded generator, so that a run with
    the same seed and the same calls has the same losses.
    """

    lose_announcements: float = _probability()
    """Probability that an SRC_ADDED is refused; its source is never made."""
    fail_allocations: float = _probability()
    """Probability that there is no memory for a new source: it is never made, and uses up no reference."""
    lose_batches: float = _probability()
    """Probability that a full batch of a poll is refused; the poll still ends in SUCCESS."""
    lose_final_reports: float = _probability()
    """Probability that the last report of a closing source is refused (REMOVED says so since xnu-8019.61)."""
    lose_goodbyes: float = _probability()
    """Probability that a source ends without any message."""
    delay_goodbyes: float = attrs.field(default=0.0, validator=checked(number))
    """Seconds between the end of a flow and its goodbye."""
    full: bool = attrs.field(default=False, validator=checked(flag))
    """True: every ordinary record is refused, as with a full buffer; critical ones pass."""
    mbufs: int | None = attrs.field(default=None, validator=checked(whole, optional=True))
    """How many more messages the kernel has memory for; `None`: any number.
    A reply or a batch takes one. An ERROR uses the memory of its request, and takes none."""
    reply_delay: float = attrs.field(default=0.0, validator=checked(number))
    """Seconds until a record can be received, as over a slow bridge."""
    random: random.Random = attrs.field(factory=random.Random, repr=False)
    """The random generator, which is the kernel's own."""

    def happens(self, probability: float) -> bool:
        """Draw whether something with this probability happens."""
        return probability > 0 and self.random.random() < probability

    def allocates(self) -> bool:
        """Take memory for one record; False if there is none."""
        if self.mbufs is None:
            return True
        if not self.mbufs:
            return False
        self.mbufs -= 1
        return True
