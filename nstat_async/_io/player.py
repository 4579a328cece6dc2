"""What both ways to play a recording have in common: values by name, and damage in its place among the events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import NstatError, ProtocolError
from .._events import AnyEvent, EventsLost, LossCause
from ..recording import Record, RecordKind, steps
from .protocols import Protocol

__all__ = ["Player"]


class Player:
    """Plays records.

    Args:
        protocol: What the values in them are.
    """

    failure: NstatError | None = None
    epoch_offset = 0.0
    """Add it to `now` for seconds since the epoch."""
    drain: Callable[[], list[AnyEvent]] = staticmethod(list)
    """The events of the core since the last call."""

    def __init__(self, protocol: Protocol) -> None:
        self.values = protocol.values
        self.now = 0.0
        self.events: list[AnyEvent] = []

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events = self.events
        if not events:
            return self.drain()
        self.events = []
        events += self.drain()
        return events

    def lose(self, count: int | None, detail: str | None) -> None:
        """Report damage, in its place among the events."""
        self.events += self.drain()
        self.events.append(EventsLost(self.now + self.epoch_offset, LossCause.RECORDING, count, detail=detail))

    def read(self, record: Record) -> None:
        """Play the step or the answer that a record holds; what cannot be is damage."""
        try:
            if record.kind is RecordKind.STEP:
                self.step(steps.read_step(record.value), record.client)
                return
            token = record.value.get("token") if isinstance(record.value, dict) else None
            if type(token) is not int:
                raise ProtocolError("an answer to nothing")  # noqa: TRY301  # it is the file's mistake
            self.answered(token, self.values.read(_named(record.value.get("answer"))))
        except ProtocolError as error:
            self.lose(1, f"record {record.index}: {error.reason}")

    def step(self, step: steps.Step, channel: int) -> None:
        """Take in a step."""
        raise NotImplementedError

    def answered(self, token: int, answer: Any) -> None:
        """Take in an answer."""
        raise NotImplementedError


# --- look-ups as they were written before values had names ---------------------------

_OLD_ANSWERS = {"owners": "OwnersAnswer", "link_kinds": "LinkKindsAnswer"}
_OLD_PROCESS = ("pid", "start_ticks", "name", "path")


def _named(answer: Any) -> Any:
    """An answer by name."""
    if not isinstance(answer, dict) or "lookup" not in answer:
        return answer
    old, named = answer["lookup"], dict(answer)
    named["type"] = _OLD_ANSWERS.get(old) if isinstance(old, str) else None
    processes = answer.get("processes")
    if isinstance(processes, list):
        named["processes"] = [dict(zip(_OLD_PROCESS, p, strict=False)) for p in processes if isinstance(p, list)]
    return named
