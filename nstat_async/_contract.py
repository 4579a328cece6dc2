"""The contract: what backends, feeds, cores and channels promise each other.

Between the kernel and the user's loop there are five parts. They know each other only by
these protocols:

- A `Backend` is a value that says where events come from. Opening it gives a `Feed`.
- A `Feed` delivers events to a `Sink` (the monitor) until its source ends.
- A `Core` is the whole logic of one subscription, without sockets and without a clock:
  datagrams, answers and the time go in; events and commands come out.
- A `Transport` opens the `Channel`s that a core asks for and answers its look-ups.

All of it is public in `nstat_async.backends`: a backend of your own needs nothing private.

Rules that both sides of a core keep:

- Time is an argument: ``now`` is a monotonic clock in seconds, never read by a core.
  `Core.epoch_offset` turns it into seconds since the epoch.
- Input never raises for what the kernel did. Trouble becomes an event (`EventsLost`,
  `ProviderRefused`) or, when nothing can go on, `Core.failure`.
- Commands are carried out in order. A core never assumes that one succeeded: `Core.channel_failed`
  and `Core.lookup_done` report failures, and a deadline ends the wait for an answer.
- A core is deterministic: the same input gives the same events and the same commands.
  A recording of the input is therefore a recording of the run.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Union, runtime_checkable

import attrs

from ._errors import NstatError
from ._events import AnyEvent, HostUpdated
from ._model import Capabilities, Counts, Flow
from ._options import MonitorOptions

# --- modes --------------------------------------------------------------------------


class Mode(enum.Enum):
    """What a core does with its input."""

    DRIVING = "driving"
    """It sends requests: the input is a kernel's answers, live or from a complete recording."""
    FOLLOWING = "following"
    """It sends nothing and decides nothing: the recorded requests of a client say what the answers mean."""


# --- commands: what a core wants done ------------------------------------------------


@attrs.frozen
class OpenChannel:
    """Open a socket to the kernel and call it by this number from now on."""

    channel: int
    """A number chosen by the core, without a meaning of its own."""
    purpose: Any = None
    """What the channel is for: a small frozen value of the core's protocol, which its transport understands."""


@attrs.frozen
class CloseChannel:
    """Close a channel; anything that it still has is ignored."""

    channel: int
    """Its number."""


@attrs.frozen
class Send:
    """Send one datagram."""

    channel: int
    """Number of the channel."""
    data: bytes
    """The datagram."""


@attrs.frozen
class Lookup:
    """Ask the transport for something that may block; it runs in a worker thread.

    The answer comes back by `Core.lookup_done` with the same token.
    """

    token: int
    """Number of the question; its answer has the same."""
    request: Any
    """What is asked: a frozen value of the core's protocol."""


@attrs.frozen
class LookupFailed:
    """The answer to a `Lookup` that could not be answered."""

    reason: str
    """Why, for a person."""


Command = Union[OpenChannel, CloseChannel, Send, Lookup]


# --- the core ------------------------------------------------------------------------


class Core(Protocol):
    """The logic of one subscription, without I/O and without a clock."""

    epoch_offset: float
    """Added to ``now`` it gives seconds since the epoch."""

    @property
    def setup(self) -> Any:
        """What the core was made of, besides its options: a replay makes the same core from it.

        A frozen attrs value with the attributes `protocol` (the protocol's name) and `kernel`.
        """

    @property
    def failure(self) -> NstatError | None:
        """Why the subscription cannot go on, once it cannot."""

    @property
    def subscribed(self) -> bool:
        """True once the subscription cannot miss a flow that begins from now on."""

    @property
    def capabilities(self) -> Capabilities:
        """What is known by now about what this subscription can tell."""

    def start(self, now: float) -> None:
        """Begin to subscribe; `commands` has the first ones afterwards."""

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in the order in which the channel gave them."""

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
        """The channel was read until it would block, after all sends so far. Not called for a channel that only answers."""

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed with this error of the host."""

    def channel_closed(self, channel: int, now: float) -> None:
        """The other side closed the channel (end of file)."""

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """The answer to a `Lookup`, or `LookupFailed`."""

    def commands(self) -> list[Command]:
        """What to do now, in this order; each command is handed out once."""

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""

    def next_deadline(self) -> float | None:
        """When to call `handle_deadline`; `None`: never."""

    def handle_deadline(self, now: float) -> None:
        """The deadline has come or passed. Channels were read before it; one with more to read was not drained.

        A core does a part of long work at a time, and its next deadline is at once.
        """

    def request_poll(self, now: float) -> int:
        """Ask for a poll of everything as soon as possible.

        Returns:
            The serial of the first poll that begins after this call. A poll that is under way
            does not count: part of its answer is older than the call. `PollCompleted.serial`
            names it when it is complete, or given up.
        """

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows that were reported as added, with their last counts."""

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription itself, by name."""


class HoldsBack(Protocol):
    """An additional method of a `Core` that reports some flows, or their ends, later than it reads of them."""

    def settled(self, until: float) -> bool:
        """True if all that it read of by this time (of the monotonic clock) is an event."""


# --- the transport -------------------------------------------------------------------


class Channel(Protocol):
    """One non-blocking datagram socket to a kernel."""

    immediate: bool
    """True if answers are readable as soon as `send` returns."""
    receive_buffer: int | None
    """Granted receive buffer in bytes, if known."""

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append the datagrams that are there, whole, at most this many.

        What was appended before an error stays in `batch`: the caller takes it in first.

        Returns:
            True if there may be more; False if the channel is empty.

        Raises:
            EOFError: The other side closed the channel.
            OSError: Anything else; its errno goes to the core.
        """

    def send(self, data: bytes) -> None:
        """Send one datagram.

        Raises:
            OSError: It was refused; its errno goes to the core.
        """

    def close(self) -> None:
        """Release the socket. Idempotent."""


class Transport(Protocol):
    """Opens channels and answers look-ups for one core."""

    def open(self, purpose: Any) -> Channel:
        """Open a channel for a purpose.

        Raises:
            OSError: It cannot be opened; its errno goes to the core.
            BackendUnavailableError: It cannot be opened, and the text says why; its cause is the `OSError`.
        """

    def lookup(self, request: Any) -> Any:
        """Answer a look-up; runs in a worker thread and may block."""

    def close(self) -> None:
        """Release what the transport holds besides its channels. Idempotent."""


# --- the feed ------------------------------------------------------------------------


class Sink(Protocol):
    """Where a feed delivers: the monitor."""

    def deliver(self, events: Sequence[AnyEvent]) -> None:
        """Take these events; never blocks, never raises."""

    async def room(self) -> None:
        """Return when more events are wanted: at once, unless a consumer's policy blocks the feed."""


class Feed(Protocol):
    """An opened backend."""

    can_wait: bool
    """True for a recording, which loses nothing while it is not read. Decides the default overflow policy."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can tell; may grow while the subscription is set up."""

    async def run(self, sink: Sink) -> None:
        """Deliver events until the source ends, `close` is called or it fails.

        Raises:
            NstatError: The source failed.
        """

    async def subscribed(self) -> None:
        """Return when no flow that begins from now on can be missed, when `run` ended, or after a bounded time."""

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows of this moment."""

    def request_poll(self) -> int | None:
        """Ask for a poll now.

        Returns:
            The serial of the first poll that begins after this call, as `Core.request_poll`;
            `None` where nothing can be asked (a recording).
        """

    def close(self) -> None:
        """Release everything; `run` ends soon. Idempotent."""

    def statistics(self) -> dict[str, int]:
        """Counters about the feed, by name."""


@runtime_checkable
class Finishes(Protocol):
    """An additional method of a `Feed` that has something left to do after `close`."""

    async def finish(self) -> None:
        """Wait for a limited time, after `close` and the end of `run`; a cancellation ends the wait early."""


@runtime_checkable
class Settles(Protocol):
    """An additional method of a `Feed` that reads of ends beside its polls, or reports them later than it reads of them."""

    async def settled(self, *, ends: bool) -> None:
        """Wait for a limited time until everything that the source had reported when this was called was read and delivered.

        Args:
            ends: Also wait until what was read of ends and beginnings of flows is an event.
        """


@runtime_checkable
class KnowsHosts(Protocol):
    """An additional method of the `Feed` of many machines: a late consumer gets the machines first."""

    def hosts(self, time: float) -> Iterable[HostUpdated]:
        """The machines of this moment.

        Args:
            time: The time of the stream, seconds since the epoch.
        """


class Backend(Protocol):
    """Where events come from: a value of `Monitor`'s one parameter ``backend``."""

    @property
    def name(self) -> str:
        """Short name for messages, e.g. ``"kctl"``."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: It cannot be opened here; the error says why.
        """


@runtime_checkable
class OpensOutside(Protocol):
    """An additional method of a `Backend` whose opening may have to wait, e.g. for the writer of a pipe."""

    async def open_outside(self, options: MonitorOptions) -> Feed:
        """`Backend.open`, without blocking the event loop."""
