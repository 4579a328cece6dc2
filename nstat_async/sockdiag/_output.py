"""What the parts of a session share: the time, and the lists that their events and commands go into."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import attrs

from .._contract import Command, Lookup, Mode
from .._errors import NstatError
from .._events import AnyEvent, EventsLost, LossCause

DONE_AT_ONCE = 256
"""Steps of work in one call: about 3 ms if each updates a flow."""


@attrs.define(eq=False)
class Output:
    """The time of the present call, and its results."""

    mode: Mode = Mode.DRIVING
    following: bool = attrs.field(init=False)
    """True when the session follows a recording."""
    epoch_offset: float = 0.0
    now: float = 0.0
    """The monotonic time of the present call."""
    poll: int = 0
    """Serial of the present poll, or of the last one."""
    poll_began: float = 0.0
    """When that poll began."""
    first_poll: bool = True
    """True until the first poll is complete: its flows existed before the monitor."""
    gaps: int = 0
    """Number of losses so far that a dump repairs."""
    repair_wanted: bool = False
    """A poll is to repair a loss."""
    events: list[AnyEvent] = attrs.field(factory=list)
    commands: list[Command] = attrs.field(factory=list)
    counters: dict[str, int] = attrs.field(factory=dict)
    notes: list[str] = attrs.field(factory=list)
    """Remarks for a person about what this subscription cannot tell."""
    failure: NstatError | None = None
    """Why the subscription cannot go on."""
    malformed: str | None = None
    """What was wrong with the first bytes that could not be decoded."""
    _questions: dict[int, Callable[[Any], None]] = attrs.field(factory=dict)
    _tokens: int = 0
    _work: deque[Iterator[None]] = attrs.field(factory=deque)
    """Unfinished work, in order."""

    def __attrs_post_init__(self) -> None:
        self.following = self.mode is Mode.FOLLOWING

    @property
    def time(self) -> float:
        """The wall-clock time of the present call."""
        return self.now + self.epoch_offset

    def count(self, name: str, number: int = 1) -> None:
        """Add to a statistic."""
        self.counters[name] = self.counters.get(name, 0) + number

    def note(self, text: str) -> None:
        """Add a remark, unless it is there already."""
        if text not in self.notes:
            self.notes.append(text)

    def lose(self, cause: LossCause, detail: str, count: int | None = None) -> None:
        """Report a gap."""
        self.gaps += cause is not LossCause.FINAL_COUNTS
        self.events.append(EventsLost(self.time, cause, count, None, detail))

    def reject(self, reason: str) -> None:
        """Report bytes that cannot be decoded."""
        self.count("malformed")
        self.malformed = self.malformed or reason
        self.lose(LossCause.PROTOCOL, reason, 1)

    @property
    def busy(self) -> bool:
        """True while there is unfinished work, which is due at once."""
        return bool(self._work)

    def do(self, work: Iterator[None]) -> None:
        """Do work of many steps: the first steps now, the others in later calls of `work`."""
        self._work.append(work)
        if len(self._work) == 1:
            self.work()

    def work(self) -> None:
        """Do the next steps of unfinished work."""
        left = DONE_AT_ONCE
        while left > 0 and self._work:
            done = sum(1 for _ in islice(self._work[0], left))
            if done < left:
                self._work.popleft()
            left -= done

    def ask(self, request: Any, done: Callable[[Any], None]) -> None:
        """Ask for a look-up; `done` is called with its answer, or with `LookupFailed`."""
        if self.following:  # a recording has its answers, under their own numbers
            return
        self._tokens += 1
        self._questions[self._tokens] = done
        self.commands.append(Lookup(self._tokens, request))

    def take_answer(self, token: int, answer: Any) -> bool:
        """Pass an answer to the part that asked; False if none did."""
        done = self._questions.pop(token, None)
        if done is not None:
            done(answer)
        return done is not None
