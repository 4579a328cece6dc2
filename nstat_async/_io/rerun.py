"""Runs a recorded core once more.

A core is deterministic. So if a recording by the same version of this library has all inputs
from the start, they are given to a core that is made in the same way, and the same
events follow. The core's commands are compared with the recorded ones: the first difference
is reported, and the replay continues.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs

from .. import __version__
from .._contract import CloseChannel, Command, Core, Lookup, OpenChannel, Send
from .._errors import NstatError
from .._options import STEERING, MonitorOptions
from .._values import from_json
from ..recording import Record, RecordingInfo, steps
from .player import Player


@attrs.frozen
class _Steering:
    """The recorded options, as they were written."""

    providers: Any = None
    interval: Any = None
    discovery: Any = None
    pulse: Any = None
    extras: bool = False
    receive_buffer: Any = None


def rerun_of(info: RecordingInfo, protocol: Any, options: MonitorOptions) -> Rerun | None:
    """A player that runs a recording again; `None` if that is not possible, so that it must be followed instead.

    The options of the kernel's conversation come from the recording.
    """
    try:
        run = from_json(steps.Run, info.run)
        if run.library != __version__ or run.part != 1:
            return None
        steering = from_json(_Steering, run.options)
        options = attrs.evolve(options, **{name: getattr(steering, name) for name in STEERING})
        core = protocol.Session.from_setup(from_json(protocol.Setup, run.setup), options)
    except (NstatError, TypeError):  # TypeError: a value of the wrong type met an option's own check
        return None
    return Rerun(core, protocol, run)


class Rerun(Player):
    """Gives the recorded inputs to a core that is not started yet; `run` tells how its clock was written."""

    def __init__(self, core: Core, protocol: Any, run: steps.Run) -> None:
        super().__init__(protocol)
        self.cores[0] = self._core = core
        self._values = protocol.RECORDED
        self._zero = run.zero_ns
        core.epoch_offset = run.epoch_offset
        self.now = run.zero_ns / 1e9
        self._issued: deque[Command] = deque()  # commands of this core that are not yet found in the recording
        self._differs = False

    # --- input ---------------------------------------------------------------------

    def moment(self, record: Record) -> bool:
        """Let time pass; false if the record's time is earlier than that of the one before."""
        if record.time_ns < self.last:
            self.lose(1, f"record {record.index} is earlier than the one before it")
            return False
        self.last = record.time_ns
        self.now = (record.time_ns + self._zero) / 1e9
        return True

    def received(self, datagrams: list[bytes]) -> None:
        self._before_input()
        self._core.receive_datagrams(datagrams, self.now, self.channel)

    def answered(self, token: int, answer: Any, *, repeated: bool) -> None:
        if repeated:
            return
        value = self._values.read(answer)
        self._before_input()
        self._core.lookup_done(token, value, self.now)

    def step(self, step: Any, channel: int) -> None:
        """Give an input to the core, or compare a command."""
        if getattr(step, "repeated", False):
            return
        if steps.is_input(step):
            self._before_input()
            steps.give(step, self._core, channel, self.now)
        elif isinstance(step, steps.OpenChannel):
            self._compare(OpenChannel(channel, self._values.read(step.purpose)))
        elif isinstance(step, steps.CloseChannel):
            self._compare(CloseChannel(channel))
        else:
            self._compare(Lookup(step.token, self._values.read(step.request)))

    def sent(self, data: bytes, channel: int) -> None:
        self._compare(Send(channel, data))

    @property
    def end_of_run(self) -> NstatError | None:
        return self.failure

    # --- commands ------------------------------------------------------------------

    def _before_input(self) -> None:
        if self._issued:
            self._differ(f"{type(self._issued[0]).__name__} is asked for now, and was not in the run")
            self._issued.clear()

    def _compare(self, recorded: Command) -> None:
        if not self._issued:
            self._issued.extend(self._core.commands())
        if not self._issued:
            self._differ(f"{type(recorded).__name__} was asked for in the run, and is not now")
        elif self._issued.popleft() != recorded:
            self._differ(f"another {type(recorded).__name__} was asked for in the run")

    def _differ(self, what: str) -> None:
        if not self._differs:
            self._differs = True
            self.lose(None, f"from here on the replay differs from the recorded run: {what}")
