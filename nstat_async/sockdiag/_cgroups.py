"""Evidence of cgroups: which one a socket was made in, and from that the unit, the container and the pod.

The kernel says the number of every socket's cgroup to every user, with each row of a dump and each record. The number
never changes and is never used again, so its path is looked up once. A cgroup that was removed before anybody
looked has no path any more; what was found before stays known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Union

from .._workload import workload_of
from ._constants import DiagAttribute
from ._entry import Entry
from ._messages import ATTRIBUTES_AT, find_attribute
from ._output import Output
from ._rows import RowFormat
from ._setup import CgroupFacts, CgroupsAnswer, CgroupsRequest

AT_ONCE = 512
"""Numbers in one question."""
REMEMBERED = 16_384
"""Cgroups that are known at once."""
FIRST_PIECES = 50
"""Questions that the first poll may ask again at once: a second of processor time, 50,000 cgroups."""
PAUSE = 5.0
"""Seconds until a question that failed is asked again."""

_NUMBER = struct.Struct("=Q")
_HEADER = struct.pack("=HH", 4 + _NUMBER.size, DiagAttribute.CGROUP_ID)


def cgroup_of(message: bytes, form: RowFormat) -> int:
    """Number of a socket's cgroup by its row; 0 where the kernel (before Linux 5.8) or the row does not have it."""
    at, length = form.cgroup, _NUMBER.size
    if not at or message[at - 4 : at] != _HEADER:
        at, length = find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.CGROUP_ID) or (0, 0)
    if length != _NUMBER.size:
        return 0
    number: int = _NUMBER.unpack_from(message, at)[0]
    return number


Place = tuple[Union[str, None], Union[str, None], Union[str, None]]
"""Cgroup, container and pod, as a flow has them."""


class CgroupSource:
    """Evidence of cgroups: what is known of them by number, and which flows were announced without it.

    Args:
        output: Where questions go.
        asks: Whether there is somebody to ask.
    """

    def __init__(self, output: Output, *, asks: bool = True) -> None:
        self.searching = False
        """A question is under way."""
        self._output = output
        self._asks = asks
        self.known: dict[int, Place | None] = {}
        """Where sockets were made, by number; `None`: there is no path, and will be none."""
        self._wanted: dict[int, None] = {}
        """Numbers to ask for."""
        self._without: dict[int, dict[Entry, None]] = {}
        """Sockets whose flow was made before their cgroup was known."""
        self._not_before = 0.0
        self._from_poll = 0
        """The next question is this poll's."""
        self._more = FIRST_PIECES

    def place(self, entry: Entry, number: int) -> None:
        """The socket was made in this cgroup."""
        entry.cgroup = number
        self.want(number)

    def want(self, number: int) -> None:
        """Find out which cgroup has this number."""
        if self._asks and number and number not in self.known and len(self._wanted) < REMEMBERED:
            self._wanted[number] = None

    def place_of(self, entry: Entry) -> Place | None:
        """What is known of a socket's cgroup, for its flow; one that is made before the answer gets it later."""
        place = self.known.get(entry.cgroup)
        if place is None and entry.cgroup in self._wanted:
            self._without.setdefault(entry.cgroup, {})[entry] = None
        return place

    def forget(self, entry: Entry) -> None:
        """The socket is gone."""
        self._without.get(entry.cgroup, {}).pop(entry, None)

    def ask(self) -> None:
        """Ask for what is not known."""
        if (
            self.searching
            or not self._wanted
            or self._output.now < self._not_before
            or self._output.poll < self._from_poll
        ):
            return
        self.searching = True
        self._output.ask(CgroupsRequest(tuple(islice(self._wanted, AT_ONCE))), self.take)

    def give_up(self) -> None:
        """Following: no answer will come to this question."""
        self.searching = False

    def take(self, answer: Any) -> None:
        """Take in what was found; the rest is asked for again: by the next poll, or at once where everything is new."""
        self.searching = False
        if not isinstance(answer, CgroupsAnswer):
            self._not_before = self._output.now + PAUSE
            return
        for facts in answer.found:
            self._learn(facts.number, facts)
        for number in answer.gone:
            self._learn(number, None)
        if answer.complete:
            return
        if self._output.first_poll and self._more:
            self._more -= 1
            self.ask()
        else:
            self._from_poll = self._output.poll + 1

    def _learn(self, number: int, facts: CgroupFacts | None) -> None:
        self.known.pop(number, None)
        if len(self.known) >= REMEMBERED:
            del self.known[next(iter(self.known))]
        self.known[number] = None if facts is None else _place(facts)
        self._wanted.pop(number, None)
        without = self._without.pop(number, {})
        if facts is not None:
            self._output.do(_tell(without))


def _tell(entries: Iterable[Entry]) -> Iterator[None]:
    for entry in entries:
        yield
        entry.book.learn_cgroup(entry)


def _place(facts: CgroupFacts) -> Place:
    workload = workload_of(facts.path)
    return facts.path, facts.container or workload.container, facts.pod or workload.pod
