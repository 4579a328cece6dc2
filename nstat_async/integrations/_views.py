"""Further tables for the live page: with rows of another kind, or of some flows only.

A view is made at its first request, counts from then on (`View.since`), and is forgotten when no request
comes any more. Only the table of all flows by process exists from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from nstat_async._errors import NstatError
from nstat_async._events import AnyEvent
from nstat_async.aggregate import GroupBy, TrafficTable
from nstat_async.filters import Filter, FlowGate, from_items

MAX_VIEWS = 16
IDLE_SECONDS = 60.0
_Items = tuple[tuple[str, str], ...]


class TooManyViewsError(NstatError):
    """Other clients already look at the greatest allowed number of different tables."""


@attrs.define(eq=False)
class View:
    """One table, and the flows that it counts."""

    table: TrafficTable
    chosen: Filter | None = None
    """Selects the flows; `None`: all."""
    since: float | None = None
    """Time at which it was made, seconds since the epoch; `None`: when the server started."""
    asked: float = 0.0
    """Monotonic seconds of the last request."""
    _gate: FlowGate | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._gate = None if self.chosen is None else FlowGate(self.chosen)

    def feed(self, events: Sequence[AnyEvent], now: float | None) -> None:
        """Take in events, in order."""
        self.table.feed_many(events if self._gate is None else self._gate(events), now=now)


class Views:
    """The main table, and the tables that clients asked for lately.

    Args:
        main: The table of all flows by process, which always exists.
        options: The options of the other tables.
        filter_of: Makes the filter of a request's conditions.
    """

    def __init__(
        self, main: TrafficTable, options: dict[str, Any], filter_of: Callable[[_Items], Filter | None] = from_items
    ) -> None:
        self.main = View(main)
        self._filter_of = filter_of
        self._options = {name: value for name, value in options.items() if name != "effective"}
        self._effective = bool(options.get("effective"))
        self._others: dict[tuple[str, _Items], View] = {}

    def feed(self, events: Sequence[AnyEvent], now: float | None, monotonic: float) -> None:
        """Feed all tables; forget those that no client asked for lately.

        Args:
            events: The events.
            now: See `TrafficTable.feed_many`.
            monotonic: Seconds of a clock that nobody sets.
        """
        self.main.feed(events, now)
        for key, view in tuple(self._others.items()):
            if monotonic - view.asked > IDLE_SECONDS:
                del self._others[key]
            else:
                view.feed(events, now)

    def find(
        self, group: str, items: Iterable[tuple[str, str]], opened: Callable[[], Sequence[AnyEvent]], monotonic: float
    ) -> View:
        """Find or make the view for a request.

        Args:
            group: A name of `GroupBy.named`.
            items: Conditions of the flows, as for `from_items`.
            opened: Returns the open flows, for a new view.
            monotonic: Seconds of a clock that nobody sets.

        Raises:
            UsageError: There is no such group, or a condition is wrong.
            TooManyViewsError: There are too many other views.
        """
        key = (group, tuple(sorted(items)))
        if key == ("process", ()):
            return self.main
        view = self._others.get(key)
        if view is None:
            view = self._new(key, opened, monotonic)
        view.asked = monotonic
        return view

    def _new(self, key: tuple[str, _Items], opened: Callable[[], Sequence[AnyEvent]], monotonic: float) -> View:
        group, items = key
        by = GroupBy.processes(effective=self._effective) if group == "process" else GroupBy.named(group)
        view = View(TrafficTable(by, **self._options), self._filter_of(items), self.main.table.time)
        if len(self._others) >= MAX_VIEWS:
            oldest = min(self._others, key=lambda each: self._others[each].asked)
            if monotonic - self._others[oldest].asked < IDLE_SECONDS / 4:
                raise TooManyViewsError(f"others look at {MAX_VIEWS} different tables already")
            del self._others[oldest]
        view.feed(opened(), None)
        self._others[key] = view
        return view
