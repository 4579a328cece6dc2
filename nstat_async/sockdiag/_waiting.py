"""What waits for another source, each for the same time, and what is remembered for one: constant time for each.

Ordered dictionaries: a plain one looks for its first item among all that were removed before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

MOST_BEHIND = 5.0
"""Seconds that something waits beyond its time for a source that has more to read: what it waits for may be there."""
AT_ONCE = 32
"""What is given up in one step, some 2 ms; the rest follows in the next."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Waiting(Generic[Key, Value]):
    """What waits, by key, the oldest first.

    Args:
        patience: Seconds that each waits.
        most: How many may wait: beyond that the oldest are due at once.
        slack: Seconds that they may wait beyond it, so that nobody is woken for what others' turns settle.
    """

    def __init__(self, patience: float, most: int, slack: float = 0.0) -> None:
        self.behind = False
        """True while the source that they wait for has more to read."""
        self._patience = patience
        self._most = most
        self._slack = slack
        self._items: OrderedDict[Key, tuple[float, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def add(self, key: Key, value: Value, now: float) -> None:
        """Have something wait from now on."""
        self._items.pop(key, None)
        self._items[key] = now + self._patience, value

    def get(self, key: Key) -> Value | None:
        """What waits under this key."""
        found = self._items.get(key)
        return None if found is None else found[1]

    def items(self) -> list[tuple[Key, Value]]:
        """What waits, with its keys."""
        return [(key, value) for key, (_, value) in self._items.items()]

    def pop(self, key: Key) -> Value | None:
        """Take out what waits under this key."""
        found = self._items.pop(key, None)
        return None if found is None else found[1]

    def deadline(self) -> float | None:
        """When to take out what is due; `None`: nothing waits."""
        until = self._oldest()
        return None if until is None else until + self._slack

    def _oldest(self) -> float | None:
        """When the oldest is due."""
        if not self._items:
            return None
        if len(self._items) > self._most:
            return -self._slack
        until: float = next(iter(self._items.values()))[0]
        return until + MOST_BEHIND if self.behind else until

    def due(self, now: float) -> Iterator[tuple[Key, Value]]:
        """Take out those that waited long enough, the oldest first, and not too many."""
        for _ in range(AT_ONCE):
            until = self._oldest()
            if until is None or until > now:
                return
            key, (_, value) = self._items.popitem(last=False)
            yield key, value

    def take_all(self) -> Iterator[tuple[Key, Value]]:
        """Take out everything."""
        while self._items:
            key, (_, value) = self._items.popitem(last=False)
            yield key, value


class Memory(Generic[Key, Value]):
    """The last of what was reported, by key: so many of them, the oldest are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def add(self, key: Key, value: Value) -> None:
        """Remember something."""
        self._items.pop(key, None)
        self._items[key] = value
        if len(self._items) > self._most:
            self._items.popitem(last=False)

    def pop(self, key: Key) -> Value | None:
        """Take out what is remembered under this key."""
        return self._items.pop(key, None)
