"""The contract between a monitor and whatever feeds it.

A *backend* is a value that says where events come from (`nstat_async.backends`);
opening it gives a *feed*. There are two kinds of feed: a living kernel (a core,
a transport and the pump between them, ``_io/pump.py``) and a recording
(``_io/replay.py``). The monitor knows only what stands here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._events import AnyEvent
from ._model import Capabilities, Counts, Flow

if TYPE_CHECKING:
    from ._options import MonitorOptions

__all__ = ["Backend", "Channel", "Feed", "Sink", "Transport"]


class Sink(Protocol):
    """Where a feed delivers."""

    def deliver(self, events: Sequence[AnyEvent]) -> None:
        """Take these events; never blocks, never raises."""

    async def room(self) -> None:
        """Return when more events are wanted (at once, unless the policy is to wait)."""


class Feed(Protocol):
    """An opened backend."""

    can_wait: bool
    """True if nothing is lost by not reading: a recording. Decides the default overflow policy."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can tell; may grow while the subscription is set up."""

    async def run(self, sink: Sink) -> None:
        """Deliver events until the source ends, `close` is called or it fails.

        Raises:
            NstatError: The source failed.
        """

    async def subscribed(self) -> None:
        """Return when no flow that begins from now on can be missed, or `run` ended, or waiting no longer pays."""

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows of this moment."""

    def request_poll(self) -> None:
        """Ask the kernel now; a recording ignores it."""

    def close(self) -> None:
        """Release everything; `run` ends soon. Idempotent."""

    def statistics(self) -> dict[str, int]:
        """Counters about the feed, by name."""


class Backend(Protocol):
    """Where events come from: a value of `Monitor`'s one parameter ``backend``."""

    @property
    def name(self) -> str:
        """Short name for messages, e.g. ``"kctl"``."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: It cannot be had here; the error says why.
        """


class Channel(Protocol):
    """One non-blocking datagram socket to a kernel."""

    immediate: bool
    """True if answers are readable as soon as `send` returns."""
    receive_buffer: int | None
    """Granted receive buffer in bytes, if known."""

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def receive(self) -> bytes:
        """One datagram, whole.

        Raises:
            BlockingIOError: There is none now.
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

    def open(self, channel: int, purpose: str) -> Channel:
        """Open a channel.

        Raises:
            OSError: It cannot be opened; its errno goes to the core.
        """

    def lookup(self, request: Any) -> Any:
        """Answer a look-up; runs in a worker thread and may block."""

    def close(self) -> None:
        """Release what the transport holds beside its channels. Idempotent."""
