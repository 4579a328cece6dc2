"""The states of a subscription are two dicts, and the picture in the documentation is made from them."""

from __future__ import annotations

from pathlib import Path

from nstat_async.ntstat._states import TRANSITIONS, WHEN_DONE, State, Trigger, picture

DOCS = Path(__file__).parent.parent.parent / "docs"


def after(state):
    return {*TRANSITIONS[state].values(), *([WHEN_DONE[state]] if state in WHEN_DONE else [])}


def test_the_picture_in_the_documentation_is_the_machine():
    assert f"```mermaid\n{picture()}\n```" in (DOCS / "ntstat.md").read_text(encoding="utf-8")


def test_every_state_can_be_reached_and_every_one_comes_to_rest():
    reached, left = {State.OPENING}, {State.OPENING}
    while left:
        left = {state for found in left for state in after(found)} - reached
        reached |= left
    assert reached == set(State)
    assert set(TRANSITIONS) == set(State)
    for state in set(WHEN_DONE):
        steps = 0
        while state in WHEN_DONE:
            state, steps = WHEN_DONE[state], steps + 1  # noqa: PLW2901
            assert steps < len(State)
        assert state is State.IDLE


def test_a_channel_may_go_away_in_any_state():
    assert all(triggers[Trigger.CLOSED] is State.CLOSED for triggers in TRANSITIONS.values())
