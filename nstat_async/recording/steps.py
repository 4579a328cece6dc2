"""What a core is given and asks for, beside datagrams and answers: one class for each.

A recording holds them as `RecordKind.STEP` records: the class' name under ``"type"``, its
fields beside it. The channel is the record's `Record.client`, the time its `Record.time_ns`.

Received datagrams (`RecordKind.FROM_KERNEL`) and answers (`RecordKind.ANSWER`) are input as
well; sent datagrams (`RecordKind.TO_KERNEL`) are commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, get_args

import attrs

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


@attrs.frozen(kw_only=True)
class Run:
    """What a recorded core was made of, and how its clock is written: `RecordingInfo.run`."""

    library: str
    """Version of the library that ran it; another one may answer the same input otherwise."""
    setup: Any
    """`Core.setup`, by name."""
    options: Any
    """Those of the monitor's options that steer the conversation, by name."""
    zero_ns: int
    """The core's clock, in nanoseconds, at the recording's time zero."""
    epoch_offset: float
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
    receive_buffer: int | None = None
    repeated: bool = False
    """True at the beginning of a later part: it was opened before."""


@attrs.frozen
class ChannelDrained:
    """`Core.channel_drained`."""


@attrs.frozen
class ChannelFailed:
    """`Core.channel_failed`."""

    errno: int


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
    """`Core.epoch_offset` is another one from here on."""

    epoch_offset: float


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
    """True if the core was given it; False: the core asked for it."""
    return type(step) in _INPUTS


def give(step: Step, core: Any, channel: int, now: float) -> Any:
    """Give an input to a core; returns what that answers."""
    return _INPUTS[type(step)](core, step, channel, now)


# --- commands


@attrs.frozen
class OpenChannel:
    """The command of that name."""

    purpose: Any = None
    """By name, with its type."""
    repeated: bool = False
    """True at the beginning of a later part: it was asked for before."""


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
    """The step that such a record holds.

    Raises:
        ProtocolError: It is none, or one that this version does not know.
    """
    if not isinstance(value, dict):
        raise ProtocolError("not a step")
    step: Step = _STEPS.read(value)
    return step
