"""The growing rows of a table: found by key, described, and folded together if there are too many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Union

import attrs

from nstat_async._model import Flow
from nstat_async._rows import RowKind

from ._grouping import GroupBy
from ._tally import Tally

_MAX_NAMES = 4096

Place = tuple[Union[str, None], Hashable]
"""Source and key."""


@attrs.define(eq=False)
class Groups:
    """All tallies of a table. Tallies with open flows are never folded; of the others `max_finished` are kept."""

    group_by: GroupBy
    max_finished: int
    tallies: dict[Place, Tally] = attrs.field(factory=dict, init=False)
    """The groups, in the order in which they appeared."""
    _finished: OrderedDict[Place, Tally] = attrs.field(factory=OrderedDict, init=False)
    """Groups without open flows, in the order in which they finished, so that ageing looks at the first only. (A plain dict would look
    for it among all that were removed.)"""
    _sums: dict[RowKind, Tally] = attrs.field(factory=dict, init=False)
    """Sums of folded rows (``OTHER``), and of flows that a buffer gave up (``LOST``)."""
    _names: dict[Place, str] = attrs.field(factory=dict, init=False)
    """The names of processes, which have a pid on each machine."""
    _serial: int = attrs.field(default=0, init=False)

    def __iter__(self) -> Iterator[Tally]:
        """All tallies: the groups, then the sums of what was folded or given up."""
        yield from self.tallies.values()
        yield from self.sums()

    def sums(self) -> Iterator[Tally]:
        """The sums of what was folded, and of what was given up."""
        return (self._sums[kind] for kind in (RowKind.OTHER, RowKind.LOST) if kind in self._sums)

    def _new(self, kind: RowKind, time: float, source: str | None = None, key: Hashable = None) -> Tally:
        self._serial += 1
        return Tally(self._serial, kind, key, source, time, time)

    def of_kind(self, kind: RowKind, time: float) -> Tally:
        """The sum of this kind; it is made if need be."""
        if kind not in self._sums:
            self._sums[kind] = self._new(kind, time)
        return self._sums[kind]

    def of_key(self, source: str | None, key: Hashable, flow: Flow | None, time: float) -> Tally:
        """The tally of a group; a new one if the group is new, or was folded."""
        place = (source, key)
        tally = self.tallies.get(place)
        if tally is None:
            kind = RowKind.UNKNOWN if key is None else RowKind.GROUP
            tally = self.tallies[place] = self._new(kind, time, source, key)
        else:
            self._finished.pop(place, None)
        if flow is not None:
            self.describe(tally, flow)
        return tally

    def describe(self, tally: Tally, flow: Flow) -> None:
        """Learn from a flow about the process of a row, or the name of its key."""
        if tally.text is None and tally.key is not None and self.group_by.text is not None:
            tally.text = self.group_by.text(flow)
        find, owner = self.group_by.process_of, flow.process
        if find is None or owner is None or tally.key is None:
            return
        if tally.home is None and flow.cgroup is not None:
            tally.home = flow
        process = find(flow)
        if process is not None and process is not owner:
            # Only the flows of the effective process itself have its name.
            process = attrs.evolve(process, name=self._names.get((tally.source, process.key)))
        elif owner.name is not None and self._names.get(place := (tally.source, owner.key)) != owner.name:
            while len(self._names) >= _MAX_NAMES:
                del self._names[next(iter(self._names))]
            self._names[place] = owner.name
        if process is not None and (tally.process is None or process.name is not None or tally.process.name is None):
            tally.process = process

    def settle(self, tally: Tally) -> None:
        """A flow of a row ended: see whether it was the last open one."""
        if tally.open_flows:
            return
        place = (tally.source, tally.key)
        if tally.is_empty:
            del self.tallies[place]
            return
        self._finished[place] = tally
        # Folding a quarter at a time makes it cheap on average.
        if len(self._finished) > self.max_finished + self.max_finished // 4:
            surplus = len(self._finished) - self.max_finished
            smallest = sorted(self._finished.values(), key=lambda each: each.rx_bytes + each.tx_bytes)
            for each in smallest[:surplus]:
                self._fold(each)

    def fold_older(self, time: float) -> None:
        """Fold the rows that finished before this time."""
        while self._finished:
            tally = next(iter(self._finished.values()))
            if tally.last_seen >= time:
                return
            self._fold(tally)

    def _fold(self, tally: Tally) -> None:
        place = (tally.source, tally.key)
        del self._finished[place]
        del self.tallies[place]
        self.of_kind(RowKind.OTHER, tally.first_seen).absorb(tally)

    def clear(self) -> None:
        """Forget all rows; names stay."""
        self.tallies.clear()
        self._finished.clear()
        self._sums.clear()

    def merge(self, other: Groups, source: str | None) -> dict[int, Tally]:
        """Add the rows of another table.

        Returns:
            The new tally of each of its tallies, by serial. Call `settle` when their open flows are known.
        """
        targets: dict[int, Tally] = {}
        for tally in other.tallies.values():
            target = self.of_key(source or tally.source, tally.key, None, tally.first_seen)
            target.describe_like(tally)
            target.absorb(tally)
            targets[tally.serial] = target
        for tally in other.sums():
            self.of_kind(tally.kind, tally.first_seen).absorb(tally)
        return targets
