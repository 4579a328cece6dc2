"""The base of every source of evidence that has a channel of its own.

A new source is a module with a subclass, and a line in `Namespace`, or in `Session` if it tells about the whole machine.
The session then opens its channel, hands it what comes and keeps its deadlines.
"""

from __future__ import annotations

from collections.abc import Sequence

from .._contract import CloseChannel, OpenChannel, Send
from .._errors import ProtocolError
from ._output import Output
from ._purposes import Purpose


class Source:
    """A source of evidence with a channel of its own."""

    def __init__(self, output: Output, purpose: Purpose) -> None:
        self.output = output
        self.purpose = purpose
        self.channel = purpose.channel
        self.is_open = output.following
        self.done = True
        """False while more is to come of an answer that every poll waits for: until then none goes on."""

    @property
    def settled(self) -> bool:
        """True when polls need not wait for this source (any more)."""
        return True

    def open(self) -> None:
        """Ask for the channel."""
        self.output.commands.append(OpenChannel(self.channel, self.purpose))

    def close(self) -> None:
        """Ask for the channel to be closed, if it is open."""
        if self.is_open:
            self.is_open = False
            self.output.commands.append(CloseChannel(self.channel))

    def reopen(self) -> None:
        """Replace a channel that failed."""
        self.output.count("reopened")
        self.output.commands.append(CloseChannel(self.channel))
        self.open()

    def send(self, data: bytes) -> None:
        """Send a datagram."""
        self.output.commands.append(Send(self.channel, data))

    def opened(self, receive_buffer: int | None) -> None:
        """The channel is open."""
        del receive_buffer
        self.is_open = True

    def receive_many(self, datagrams: Sequence[bytes]) -> None:
        """Take in datagrams; those that cannot be decoded are reported."""
        for data in datagrams:
            try:
                self.receive(data)
            except ProtocolError as error:
                self.output.reject(error.reason)

    def receive(self, data: bytes) -> None:
        """Take in a datagram.

        Raises:
            ProtocolError: It cannot be decoded.
        """
        raise NotImplementedError

    def observe(self, data: bytes) -> None:
        """Following: the recorded client sent this datagram.

        Raises:
            ProtocolError: It cannot be decoded.
        """

    def drained(self) -> None:
        """Nothing is readable now."""

    def failed(self, errno: int) -> None:
        """Opening, sending or receiving failed; a channel that stays open is read again at once."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send what is due."""

    def deadline(self) -> float | None:
        """When to call `expire`; `None`: never."""
        return None

    def expire(self) -> None:
        """Give up what did not come in time."""
