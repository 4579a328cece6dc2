"""The state machine of a subscription, as two dicts.

A subscription sends requests and waits for their answers. `TRANSITIONS` has the effect of
each trigger from outside. `WHEN_DONE` has the next state after all requests of a state are
answered, refused or given up. `_subscription.py` has the requests of each state.

``docs/ntstat.md`` shows a diagram of both; ``tests/ntstat/test_ntstat_states.py`` compares it.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """The state of a subscription."""

    __hash__ = object.__hash__  # see `Purpose`
    OPENING = "opening"
    """Its channel is not open yet."""
    SUBSCRIBING = "subscribing"
    """One request per provider, one after the other."""
    IDLE = "idle"
    """Subscribed, and no request is under way."""
    POLLING = "polling"
    """A request about all sources, in paced rounds since xnu-3247."""
    VERIFYING = "verifying"
    """A request for each source that the poll should have reported and did not."""
    DESCRIBING = "describing"
    """A request for each announced source without a description."""
    CLOSED = "closed"
    """Its channel is closed."""


class Trigger(enum.Enum):
    """An event outside a subscription that may change its state."""

    OPENED = "opened"
    """The channel was opened."""
    POLL_WANTED = "poll wanted"
    """A poll is due, or was asked for."""
    DESCRIPTION_DUE = "description due"
    """A source was announced some time ago, and has no description yet."""
    CLOSED = "closed"
    """The channel went away, or was given up."""


TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.OPENING: {Trigger.OPENED: State.SUBSCRIBING, Trigger.CLOSED: State.CLOSED},
    State.SUBSCRIBING: {Trigger.CLOSED: State.CLOSED},
    State.IDLE: {
        Trigger.DESCRIPTION_DUE: State.DESCRIBING,
        Trigger.POLL_WANTED: State.POLLING,
        Trigger.CLOSED: State.CLOSED,
    },
    State.POLLING: {Trigger.CLOSED: State.CLOSED},
    State.VERIFYING: {Trigger.CLOSED: State.CLOSED},
    State.DESCRIBING: {Trigger.CLOSED: State.CLOSED},
    State.CLOSED: {Trigger.CLOSED: State.CLOSED},
}
"""For each state, the next state for each trigger; a trigger without one waits for another state."""

WHEN_DONE: dict[State, State] = {
    State.SUBSCRIBING: State.IDLE,
    State.POLLING: State.VERIFYING,
    State.VERIFYING: State.IDLE,
    State.DESCRIBING: State.IDLE,
}
"""For each state, the next one when all its requests are over."""


def picture() -> str:
    """The machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.OPENING.value}"]
    for state, triggers in TRANSITIONS.items():
        arrows = [(after, trigger.value) for trigger, after in triggers.items()]
        if state in WHEN_DONE:
            arrows.insert(0, (WHEN_DONE[state], "all answered"))
        lines += [f"    {state.value} --> {after.value}: {label}" for after, label in arrows if after is not state]
    return "\n".join([*lines, f"    {State.CLOSED.value} --> [*]"])
