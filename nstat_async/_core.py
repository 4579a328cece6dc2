"""What a protocol core and the code around it say to each other.

A *core* (`nstat_async.ntstat.Session`, `nstat_async.sockdiag.Session`) is the
whole logic of one subscription, without sockets and without a clock: bytes and
the time go in, events and commands come out. The pump (``_io/pump.py``) is the
one piece of code that carries out the commands and awaits the kernel; tests and
programs with their own event loop can do the same with a core in their hands.

Rules that both sides keep:

- Time is an argument: ``now`` is a monotonic clock in seconds, never read by a
  core. `Core.epoch_offset` turns it into seconds since the epoch.
- Feeding never raises for what the kernel did. Trouble becomes an event
  (`EventsLost`, `ProviderRefused`) or, when nothing can go on, `Core.failure`.
- Commands are carried out in order. A core never assumes that one succeeded:
  it hears of failure by `Core.channel_failed`, and of silence by its deadline.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, Union

import attrs

from ._errors import NstatError
from ._events import AnyEvent
from ._model import Capabilities, Counts, Flow

__all__ = ["CloseChannel", "Command", "Core", "Lookup", "OpenChannel", "Send"]


@attrs.frozen
class OpenChannel:
    """Open a socket to the kernel and call it by this number from now on."""

    channel: int
    purpose: str = ""
    """What the transport needs to know to open it, in the core's own words."""


@attrs.frozen
class CloseChannel:
    """Close that socket; nothing that still comes from it is fed."""

    channel: int


@attrs.frozen
class Send:
    """Send one datagram."""

    channel: int
    data: bytes


@attrs.frozen
class Lookup:
    """Ask the transport something that may block (run in a worker thread).

    The answer comes back by `Core.lookup_done` with the same token.
    """

    token: int
    request: Any


Command = Union[OpenChannel, CloseChannel, Send, Lookup]


class Core(Protocol):
    """The logic of one subscription: sans-IO, sans-clock."""

    epoch_offset: float
    """Add it to ``now`` for seconds since the epoch."""

    @property
    def failure(self) -> NstatError | None:
        """Why the subscription cannot go on, once it cannot."""

    @property
    def subscribed(self) -> bool:
        """True once no flow that begins from now on can escape the subscription."""

    @property
    def capabilities(self) -> Capabilities:
        """What is known by now about what this subscription can tell."""

    def start(self, now: float) -> None:
        """Begin to subscribe; `commands` has the first ones afterwards."""

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel."""

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """An `OpenChannel` was carried out.

        Args:
            channel: Its number.
            now: The time.
            immediate: True if every answer to a datagram is readable as soon as
                it was sent (a real kernel socket; not a bridge).
            receive_buffer: Granted size in bytes, if known.
        """

    def channel_drained(self, channel: int, now: float) -> None:
        """The channel was read until it would block, after all sends so far."""

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed with this error of the host."""

    def channel_closed(self, channel: int, now: float) -> None:
        """The other side closed the channel (end of file)."""

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """The answer to a `Lookup`."""

    def commands(self) -> list[Command]:
        """What to do now, in this order; each command is handed out once."""

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called; `None`: not at all."""

    def handle_deadline(self, now: float) -> None:
        """The time has come (or passed)."""

    def request_poll(self, now: float) -> None:
        """Ask for one poll of everything as soon as possible."""

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows that were reported as added, with their last counts."""

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription itself, by name."""
