"""What a core is given and asks for, beside datagrams and answers: one class for each.

A recording holds them as `RecordKind.STEP` records: the class' name under ``"type"``, its
fields beside it. The channel is the record's `Record.client`, the time its `Record.time_ns`.

Received datagrams (`RecordKind.FROM_KERNEL`) and answers (`RecordKind.ANSWER`) are input as
well; sent datagrams (`RecordKind.TO_KERNEL`) are commands.
"""

from __future__ import annotations

from typing import Any, Union, get_args

import attrs

from nstat_async._errors import ProtocolError
from nstat_async._values import Vocabulary, to_json

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

    def to_json(self) -> dict[str, Any]:
        """By name."""
        fields: dict[str, Any] = to_json(self)
        return fields


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
        raise ProtocolError("no step")
    step: Step = _STEPS.read(value)
    return step
