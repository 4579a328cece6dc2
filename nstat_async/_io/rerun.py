"""Running a recorded core once more.

A core is deterministic. So a recording of everything that it was given, by the same version of
this library and from its start, is played to a core that is made in the same way, and the same
events follow. What it asks for is compared with what was asked for then: the first difference
is said, and the recording goes on to be played.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._contract import CloseChannel, Command, Core, Lookup, OpenChannel, Send
from .._errors import NstatError
from .._model import Capabilities, Counts, Flow
from .._options import STEERING, MonitorOptions
from .._values import from_json
from ..recording import IN_BATCH, Record, RecordingInfo, RecordKind, steps
from .player import Player
from .protocols import Protocol

__all__ = ["Rerun", "rerun_of"]

MOST_IN_BATCH = 256
"""Datagrams handed over at once; no channel reads so many."""


@attrs.frozen
class _Steering:
    """The recorded options, each as it was written."""

    providers: Any = None
    interval: Any = None
    discovery: Any = None
    extras: bool = False
    receive_buffer: Any = None


def rerun_of(info: RecordingInfo, protocol: Protocol, options: MonitorOptions, version: str) -> Rerun | None:
    """The run of a recording, to be run again; `None` if it cannot be: it must be followed instead.

    Args:
        info: What the recording says.
        protocol: Its protocol.
        options: What the one who replays wants; those that steer the conversation come from the recording.
        version: The version of this library.
    """
    try:
        run = from_json(steps.Run, info.run)
        if run.library != version or run.part != 1:
            return None
        steering = from_json(_Steering, run.options)
        options = attrs.evolve(options, **{name: getattr(steering, name) for name in STEERING})
        core = protocol.make(from_json(protocol.setup, run.setup), options)
    except (NstatError, TypeError):  # TypeError: a value of the wrong type met an option's own check
        return None
    return Rerun(core, protocol, run)


class Rerun(Player):
    """A core that gets what was recorded.

    Args:
        core: The core, not started.
        protocol: What its values are.
        run: How its clock is written.
    """

    def __init__(self, core: Core, protocol: Protocol, run: steps.Run) -> None:
        super().__init__(protocol)
        self._core = core
        self.drain = core.take_events
        self._zero = run.zero_ns
        self._last = -(1 << 64)  # the time of the last record
        core.epoch_offset = run.epoch_offset
        self.now = run.zero_ns / 1e9
        self._batch: list[bytes] = []
        self._channel = 0
        self._issued: deque[Command] = deque()  # commands of this core that the recording was not yet seen to have
        self._differs = False
        self._inputs: dict[type, Callable[[Any, int], Any]] = {
            steps.Started: lambda _step, _channel: core.start(self.now),
            steps.ChannelOpened: self._opened,
            steps.ChannelDrained: lambda _step, channel: core.channel_drained(channel, self.now),
            steps.ChannelFailed: lambda step, channel: core.channel_failed(channel, step.errno, self.now),
            steps.ChannelClosed: lambda _step, channel: core.channel_closed(channel, self.now),
            steps.DeadlineReached: lambda _step, _channel: core.handle_deadline(self.now),
            steps.PollRequested: lambda _step, _channel: core.request_poll(self.now),
            steps.ClockSet: self._set_clock,
        }

    # --- records -------------------------------------------------------------------

    def play(self, records: Iterable[Record]) -> None:
        """Take in records.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        for record in records:
            kind = record.kind
            if kind is RecordKind.FROM_KERNEL:
                if record.extra is not IN_BATCH or len(self._batch) >= MOST_IN_BATCH:
                    self._hand_over()
                    if not self._moment(record):
                        continue
                    self._channel = record.client
                self._batch.append(record.data)
                continue
            self._hand_over()
            if kind is RecordKind.DAMAGE:
                self.lose(1, record.text)
            elif kind is RecordKind.TO_KERNEL:
                self._compare(Send(record.client, record.data))
            elif kind in {RecordKind.STEP, RecordKind.ANSWER} and self._moment(record):
                self.read(record)

    def finish(self) -> None:
        """The recording ends here."""
        self._hand_over()

    def _moment(self, record: Record) -> bool:
        """Let time pass until this record; False: it claims to be earlier than the one before."""
        if record.time_ns < self._last:
            self.lose(1, f"record {record.index} is earlier than the one before it")
            return False
        self._last = record.time_ns
        self.now = (record.time_ns + self._zero) / 1e9
        return True

    def _hand_over(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._before_input()
            self._core.receive_datagrams(batch, self.now, self._channel)

    def step(self, step: Any, channel: int) -> None:
        """Give an input to the core, or compare a command."""
        take = self._inputs.get(type(step))
        if take is not None:
            self._before_input()
            take(step, channel)
        elif isinstance(step, steps.OpenChannel) and not step.repeated:
            self._compare(OpenChannel(channel, self.values.read(step.purpose)))
        elif isinstance(step, steps.CloseChannel):
            self._compare(CloseChannel(channel))
        elif isinstance(step, steps.Lookup):
            self._compare(Lookup(step.token, self.values.read(step.request)))

    # --- input ---------------------------------------------------------------------

    def _opened(self, step: steps.ChannelOpened, channel: int) -> None:
        if not step.repeated:
            self._core.channel_opened(channel, self.now, immediate=step.immediate, receive_buffer=step.receive_buffer)

    def _set_clock(self, step: steps.ClockSet, _channel: int) -> None:
        self._core.epoch_offset = step.epoch_offset

    def answered(self, token: int, answer: Any) -> None:
        """Give an answer to the core."""
        self._before_input()
        self._core.lookup_done(token, answer, self.now)

    # --- commands ------------------------------------------------------------------

    def _before_input(self) -> None:
        if self._issued:
            self._differ(f"{type(self._issued[0]).__name__} is asked for, and was not")
            self._issued.clear()

    def _compare(self, recorded: Command) -> None:
        if not self._issued:
            self._issued.extend(self._core.commands())
        if not self._issued:
            self._differ(f"{type(recorded).__name__} was asked for, and is not")
        elif self._issued.popleft() != recorded:
            self._differ(f"another {type(recorded).__name__} was asked for")

    def _differ(self, what: str) -> None:
        if not self._differs:
            self._differs = True
            self.lose(None, f"from here on the replay is not the run that was recorded: {what}")

    # --- out -----------------------------------------------------------------------

    @property
    def epoch_offset(self) -> float:  # type: ignore[override]
        """The core's."""
        return self._core.epoch_offset

    @property
    def failure(self) -> NstatError | None:  # type: ignore[override]
        """What ended the run."""
        return self._core.failure

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded subscription could tell."""
        return attrs.evolve(self._core.capabilities, backend="replay")

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows."""
        return self._core.flows()

    def statistics(self) -> dict[str, int]:
        """Counters of the core."""
        return {"clients": 1, **self._core.statistics()}
