"""Evidence of cgroups: which one a socket was made in, and so its unit, container and pod.

Every row of a dump and every record has the number of the socket's cgroup, for any user to read. A number never changes
and is never used again, so its path is looked up once. A cgroup that was removed before the look-up has no path;
what was found earlier stays known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Union

from .._workload import workload_of
from ._constants import DiagAttribute
from ._entry import Entry
from ._host_requests import CgroupFacts, CgroupsAnswer, CgroupsRequest
from ._messages import ATTRIBUTES_AT, find_attribute
from ._output import Output
from ._rows import RowFormat

AT_ONCE = 512
"""Most numbers in one request."""
REMEMBERED = 16_384
"""Most cgroups whose names are kept."""
FIRST_PIECES = 50
"""Further requests that the first poll may send without a pause: a second of processor time, 50,000 cgroups."""
PAUSE = 5.0
"""Seconds until a request that failed is repeated."""

_NUMBER = struct.Struct("=Q")
CGROUP_HEADER = struct.pack("=HH", 4 + _NUMBER.size, DiagAttribute.CGROUP_ID)


def cgroup_of(message: bytes, form: RowFormat) -> int:
    """The number of a socket's cgroup, read from its row; 0 where the row has none (before Linux 5.8)."""
    at, length = form.cgroup, _NUMBER.size
    if message[at - 4 : at] != CGROUP_HEADER:  # also where `at` is 0: the format has no such attribute
        at, length = find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.CGROUP_ID) or (0, 0)
    if length != _NUMBER.size:
        return 0
    number: int = _NUMBER.unpack_from(message, at)[0]
    return number


CgroupNames = tuple[Union[str, None], Union[str, None], Union[str, None]]
"""Path of a cgroup, its container and its pod, as a flow has them."""


class CgroupSource:
    """Looks up the names of cgroups, and remembers which flows were announced without them.

    Args:
        output: Where requests go.
        asks: Whether the transport can look cgroups up.
    """

    def __init__(self, output: Output, *, asks: bool) -> None:
        self.searching = False
        """A look-up is under way."""
        self._output = output
        self._asks = asks
        self.known: dict[int, CgroupNames | None] = {}
        """The names of cgroups by number; `None`: the cgroup is gone, and will never have a path."""
        self._wanted: dict[int, None] = {}
        """Numbers to look up."""
        self._without: dict[int, dict[Entry, None]] = {}
        """By number, sockets whose flow was made before the names of their cgroup were known."""
        self._not_before = 0.0
        """Time of the next request, after one that failed."""
        self._from_poll = 0
        """Serial of the first poll that may send the next request."""
        self._more = FIRST_PIECES

    def assign(self, entry: Entry, number: int) -> None:
        """The socket was made in this cgroup."""
        entry.cgroup = number
        self.want(number)

    def want(self, number: int) -> None:
        """Have this number looked up, unless its names are known."""
        if self._asks and number and number not in self.known and len(self._wanted) < REMEMBERED:
            self._wanted[number] = None

    def names_of(self, entry: Entry) -> CgroupNames | None:
        """The names of a socket's cgroup; a flow that is made before they are known is updated later."""
        if entry.cgroup in self._wanted and not entry.over:
            self._without.setdefault(entry.cgroup, {})[entry] = None
        return self.known.get(entry.cgroup)

    def forget(self, entry: Entry) -> None:
        """The socket is gone."""
        self._without.get(entry.cgroup, {}).pop(entry, None)

    def ask(self) -> None:
        """Send a request for numbers that are not known, if it is time."""
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
        """Following: no answer will come to this request."""
        self.searching = False

    def take(self, answer: Any) -> None:
        """Take in what was found; the next poll asks for the rest, or, in the first poll, a further request at once."""
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
        if len(self.known) >= REMEMBERED:
            del self.known[next(iter(self.known))]
        self.known[number] = None if facts is None else _names_of(facts)
        self._wanted.pop(number, None)
        without = self._without.pop(number, {})
        if facts is not None:
            self._output.do(_update_flows(without))


def _update_flows(entries: Iterable[Entry]) -> Iterator[None]:
    for entry in entries:
        yield
        entry.book.learn_cgroup(entry)


def _names_of(facts: CgroupFacts) -> CgroupNames:
    workload = workload_of(facts.path)
    return facts.path, facts.container or workload.container, facts.pod or workload.pod
