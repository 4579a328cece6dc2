"""The inputs and commands of a core, except datagrams and answers: one class for each.

A recording has them as `RecordKind.STEP` records: the class's name under ``"type"``, and its
fields beside it. `Record.client` is the channel, `Record.time_ns` the time.

Received datagrams (`RecordKind.FROM_KERNEL`) and answers (`RecordKind.ANSWER`) are input as
well; sent datagrams (`RecordKind.TO_KERNEL`) are commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, get_args

import attrs

from nstat_async._checks import positive
from nstat_async._errors import ProtocolError
from nstat_async._values import Vocabulary

__all__ = [
    "ChannelClosed",
    "ChannelDrained",
    "ChannelFailed",
    "ChannelOpened",
    "ClockSet",
    "CloseChannel",
    "DeadlineReached",
    "Lookup",
    "OpenChannel",
    "PollRequested",
    "Run",
    "Started",
    "Step",
    "give",
    "is_input",
    "read_step",
    "write_step",
]


_MOST_SECONDS = 1 << 33
"""More than there are between the epoch and any time that a recording can hold: a sum of both has less than 64 bits of nanoseconds."""
_is_an_offset = positive(least=-_MOST_SECONDS, most=_MOST_SECONDS)


@attrs.frozen(kw_only=True)
class Run:
    """The arguments of a recorded core, and how its clock is written: `RecordingInfo.run`."""

    library: str
    """Version of the library that ran it; another version may react differently to the same input."""
    setup: Any
    """`Core.setup`, by name."""
    options: Any
    """The monitor's options for the kernel's conversation, by name."""
    zero_ns: int
    """The core's clock, in nanoseconds, at the recording's time zero."""
    epoch_offset: float = attrs.field(validator=_is_an_offset)
    """`Core.epoch_offset` at its start, seconds."""
    part: int = 1
    """Number of this file among the parts of one recording, from 1."""


# --- input


@attrs.frozen
class Started:
    """`Core.start`."""


@attrs.frozen
class ChannelOpened:
    """`Core.channel_opened`."""

    immediate: bool = True
    """True if every answer is readable as soon as its request was sent."""
    receive_buffer: int | None = None
    """Granted receive buffer in bytes; `None` if it is not known."""
    repeated: bool = False
    """True at the beginning of a later part: the channel was opened in an earlier one."""


@attrs.frozen
class ChannelDrained:
    """`Core.channel_drained`."""


@attrs.frozen
class ChannelFailed:
    """`Core.channel_failed`."""

    errno: int
    """The host's error number."""


@attrs.frozen
class ChannelClosed:
    """`Core.channel_closed`: end of file."""


@attrs.frozen
class DeadlineReached:
    """`Core.handle_deadline`."""


@attrs.frozen
class PollRequested:
    """`Core.request_poll`."""


@attrs.frozen
class ClockSet:
    """`Core.epoch_offset` changed."""

    epoch_offset: float = attrs.field(validator=_is_an_offset)
    """Its new value, seconds."""


_INPUTS: dict[type, Callable[[Any, Any, int, float], Any]] = {
    Started: lambda core, _step, _channel, now: core.start(now),
    ChannelOpened: lambda core, step, channel, now: core.channel_opened(
        channel, now, immediate=step.immediate, receive_buffer=step.receive_buffer
    ),
    ChannelDrained: lambda core, _step, channel, now: core.channel_drained(channel, now),
    ChannelFailed: lambda core, step, channel, now: core.channel_failed(channel, step.errno, now),
    ChannelClosed: lambda core, _step, channel, now: core.channel_closed(channel, now),
    DeadlineReached: lambda core, _step, _channel, now: core.handle_deadline(now),
    PollRequested: lambda core, _step, _channel, now: core.request_poll(now),
    ClockSet: lambda core, step, _channel, _now: setattr(core, "epoch_offset", step.epoch_offset),
}


def is_input(step: Step) -> bool:
    """True for an input of the core, false for a command."""
    return type(step) in _INPUTS


def give(step: Step, core: Any, channel: int, now: float) -> Any:
    """Give an input to a core; returns the core's result."""
    return _INPUTS[type(step)](core, step, channel, now)


# --- commands


@attrs.frozen
class OpenChannel:
    """The command of that name."""

    purpose: Any = None
    """By name, with its type."""
    repeated: bool = False
    """True at the beginning of a later part: the channel was requested in an earlier one."""


@attrs.frozen
class CloseChannel:
    """The command of that name."""


@attrs.frozen
class Lookup:
    """The command of that name."""

    token: int
    request: Any = None
    """By name, with its type."""


Step = Union[
    Started,
    ChannelOpened,
    ChannelDrained,
    ChannelFailed,
    ChannelClosed,
    DeadlineReached,
    PollRequested,
    ClockSet,
    OpenChannel,
    CloseChannel,
    Lookup,
]

_STEPS = Vocabulary(*get_args(Step))


def write_step(step: Step) -> dict[str, Any]:
    """The value of a `RecordKind.STEP` record."""
    fields: dict[str, Any] = _STEPS.write(step)
    return fields


def read_step(value: Any) -> Step:
    """The step of such a record.

    Raises:
        ProtocolError: It is not a step, or one that this version does not know.
    """
    if not isinstance(value, dict):
        raise ProtocolError("not a step")
    step: Step = _STEPS.read(value)
    return step
