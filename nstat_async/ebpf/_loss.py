"""What the programs could not report, counted, and what repairs it."""

from __future__ import annotations

import enum

import attrs

from ._requests import Operation, Statistics


class LossKind(enum.Enum):
    """Where something was lost."""

    RING_FULL = "ring full"
    """Records did not fit: changes of TCP's state, first uses, ends. The number is exact."""
    MAP_FULL = "map full"
    """There was no room to count new sockets. The number is that of attempts; a socket may make several."""
    STATES_SKIPPED = "states skipped"
    """The kernel skipped both copies of the program for changes of state. The number is an upper bound."""
    TRANSFERS_SKIPPED = "transfers skipped"
    """The kernel skipped the programs that count sends and receives. The number is exact."""
    FOREIGN = "foreign"
    """The ring had data that is not a record of these programs; the number is in bytes."""


_REPAIRS = {
    LossKind.RING_FULL: frozenset({Operation.FLOWS, Operation.OWNERS}),
    LossKind.MAP_FULL: frozenset({Operation.OWNERS}),
    LossKind.STATES_SKIPPED: frozenset(),
    LossKind.TRANSFERS_SKIPPED: frozenset(),
    LossKind.FOREIGN: frozenset({Operation.FLOWS, Operation.OWNERS}),
}
_DUMPED = frozenset({LossKind.RING_FULL, LossKind.STATES_SKIPPED, LossKind.FOREIGN})


@attrs.frozen
class Loss:
    """Something was lost since the previous statistics."""

    kind: LossKind
    """Where."""
    number: int
    """How many; what is counted depends on the kind."""

    @property
    def repairs(self) -> frozenset[Operation]:
        """The requests to the maps whose answers replace the lost records."""
        return _REPAIRS[self.kind]

    @property
    def needs_dump(self) -> bool:
        """True if TCP connections may have begun or ended unseen, which a dump of sock_diag tells."""
        return self.kind in _DUMPED


class LossMeter:
    """Compares statistics with the previous ones."""

    def __init__(self) -> None:
        self._before: Statistics | None = None

    def update(self, now: Statistics) -> list[Loss]:
        """What was lost since the last call; at the first call, since the programs were loaded."""
        before = self._before or Statistics(0, 0, 0, 0, 0, 0, 0, 0)
        self._before = now
        numbers = {
            LossKind.RING_FULL: now.ring_full - before.ring_full,
            LossKind.MAP_FULL: now.map_full - before.map_full,
            LossKind.STATES_SKIPPED: now.states_missed - before.states_missed,
            LossKind.TRANSFERS_SKIPPED: now.transfers_missed - before.transfers_missed,
            LossKind.FOREIGN: now.foreign - before.foreign,
        }
        return [Loss(kind, number) for kind, number in numbers.items() if number > 0]
