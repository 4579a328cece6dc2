"""The states of a subscription, as two dicts: they are the machine.

A subscription sends requests and waits for their answers. `TRANSITIONS` says what a
trigger from outside does; `WHEN_DONE` says where a state goes by itself once each of its
requests is answered, refused or given up. What a state asks for is in `_subscription.py`.

``docs/ntstat.md`` shows both as a picture; ``tests/ntstat/test_ntstat_states.py`` compares them.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a subscription stands."""

    __hash__ = object.__hash__  # see `Purpose`
    OPENING = "opening"
    """Its channel is not there yet."""
    SUBSCRIBING = "subscribing"
    """One request per provider, one after the other."""
    IDLE = "idle"
    """Subscribed, and nothing is asked."""
    POLLING = "polling"
    """A request about all sources, in paced rounds since xnu-3247."""
    VERIFYING = "verifying"
    """A request for each source that the poll should have reported and did not."""
    DESCRIBING = "describing"
    """A request for each announced source that is still unknown."""
    CLOSED = "closed"
    """Its channel is gone."""


class Trigger(enum.Enum):
    """What moves a subscription from outside."""

    OPENED = "opened"
    """The channel is there."""
    POLL_WANTED = "poll wanted"
    """Its time has come, or somebody asked."""
    DESCRIPTION_DUE = "description due"
    """A source was announced some time ago, and nothing else was said of it."""
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
"""State to what each trigger does in it; a trigger that is not there waits until it is."""

WHEN_DONE: dict[State, State] = {
    State.SUBSCRIBING: State.IDLE,
    State.POLLING: State.VERIFYING,
    State.VERIFYING: State.IDLE,
    State.DESCRIBING: State.IDLE,
}
"""State to the one that follows when all its requests are over."""


def picture() -> str:
    """The machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.OPENING.value}"]
    for state, triggers in TRANSITIONS.items():
        arrows = [(after, trigger.value) for trigger, after in triggers.items()]
        if state in WHEN_DONE:
            arrows.insert(0, (WHEN_DONE[state], "all answered"))
        lines += [f"    {state.value} --> {after.value}: {label}" for after, label in arrows if after is not state]
    return "\n".join([*lines, f"    {State.CLOSED.value} --> [*]"])
