"""Collections of what waits for another source, and of what is remembered for it; every operation takes constant time.

They are ordered dictionaries: a plain one finds its first item by passing all that were removed before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

MOST_BEHIND = 5.0
"""Most seconds of further waiting while the other source has unread input."""
AT_ONCE = 32
"""Most items that are given up in one step, some 2 ms; the others follow in the next."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Timed(Protocol):
    """Something with a deadline."""

    def deadline(self) -> float | None:
        """Its monotonic time; `None`: there is none now."""


def earliest(timed: Iterable[Timed]) -> float | None:
    """The earliest of their deadlines; `None` if there is none."""
    first: float | None = None
    for each in timed:
        due = each.deadline()
        if due is not None and (first is None or due < first):
            first = due
    return first


class Waiting(Generic[Key, Value]):
    """Items that wait, by key, the oldest first.

    Args:
        patience: Seconds for which each waits.
        most: How many may wait: beyond that the oldest are due at once.
        slack: Seconds by which the deadline is later, so that other turns can take what is due without a wake-up.
    """

    def __init__(self, patience: float, most: int, slack: float = 0.0) -> None:
        self.behind = False
        """True while the other source has unread input."""
        self._patience = patience
        self._most = most
        self._slack = slack
        self._items: OrderedDict[Key, tuple[float, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def add(self, key: Key, value: Value, now: float) -> None:
        """Let an item wait from now on; it replaces one with the same key."""
        self._items.pop(key, None)
        self._items[key] = now + self._patience, value

    def get(self, key: Key) -> Value | None:
        """The item with this key; `None` if there is none."""
        found = self._items.get(key)
        return None if found is None else found[1]

    def items(self) -> list[tuple[Key, Value]]:
        """The keys and items."""
        return [(key, value) for key, (_, value) in self._items.items()]

    def pop(self, key: Key) -> Value | None:
        """Take out the item with this key; `None` if there is none."""
        found = self._items.pop(key, None)
        return None if found is None else found[1]

    def deadline(self) -> float | None:
        """When to call `due`; `None` if nothing waits."""
        until = self._oldest()
        return None if until is None else until + self._slack

    def _oldest(self) -> float | None:
        """When the oldest item is due."""
        if not self._items:
            return None
        if len(self._items) > self._most:
            return -self._slack
        until: float = next(iter(self._items.values()))[0]
        return until + MOST_BEHIND if self.behind else until

    def due(self, now: float) -> Iterator[tuple[Key, Value]]:
        """Take out the items that waited long enough, the oldest first, at most `AT_ONCE`."""
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
    """The newest items by key: the oldest are forgotten beyond a number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def add(self, key: Key, value: Value) -> None:
        """Remember an item; it replaces one with the same key."""
        self._items.pop(key, None)
        self._items[key] = value
        if len(self._items) > self._most:
            self._items.popitem(last=False)

    def get(self, key: Key) -> Value | None:
        """The item with this key; `None` if there is none."""
        return self._items.get(key)

    def pop(self, key: Key) -> Value | None:
        """Take out the item with this key; `None` if there is none."""
        return self._items.pop(key, None)

    def oldest(self) -> Value | None:
        """The item that was added first; `None` if there is none."""
        return next(iter(self._items.values()), None)
