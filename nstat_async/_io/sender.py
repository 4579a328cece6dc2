"""Publishes one message after the other to a NATS server, each until the server has said that it has it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import anyio
import attrs

from .._errors import BackendUnavailableError, UnavailableReason
from ..fleet import Message
from .jetstream import StreamSettings, stream_of
from .nats import Connection, connect, trouble
from .nats_access import NatsAccess

ACK_SECONDS = 5.0
"""Most seconds for which `deliver` waits for an acknowledgement."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0


@attrs.define(eq=False)
class Sender:
    """Keeps a connection, makes another one when it is lost, and publishes unacknowledged messages again.

    Args:
        servers: URLs of one cluster.
        access: How to log in; `None`: as the environment says at each connection.
        stream: The stream that has the messages; the first machine makes it.
        host: Name of this machine.
        report: Called with a line for a person when something changed.
        counts: Counts what was published.
    """

    servers: tuple[str, ...]
    access: NatsAccess | None
    stream: StreamSettings
    host: str
    report: Callable[[str], None]
    counts: Counter[str]
    _connection: Connection | None = attrs.field(default=None, init=False)
    _was_connected: bool = attrs.field(default=False, init=False)
    _said: str = attrs.field(default="", init=False)

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._connection is not None and not self._connection.lost

    @property
    def max_payload(self) -> int | None:
        """Most bytes of a message that the server takes; `None` before the first connection."""
        return None if self._connection is None else self._connection.client.max_payload

    async def deliver(self, message: Message) -> None:
        """Publish a message, again and again until the server has it.

        Raises:
            BackendUnavailableError: The first connection is refused permanently: the login is wrong.
        """
        pause = FIRST_PAUSE
        while not await self._attempt(message):
            self.counts["retries"] += 1
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._said = ""

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _attempt(self, message: Message) -> bool:
        """Publish a message once; false if the server does not have it."""
        try:
            await self._publish(await self._connected(), message)
        except trouble() as error:
            self._say(f"not published: {error or type(error).__name__}")
            return False
        except BackendUnavailableError as error:
            if not self._was_connected and error.reason is UnavailableReason.PERMISSION:
                raise
            self._say(error.detail)
            return False
        return True

    async def _publish(self, connection: Connection, message: Message) -> None:
        from nats.errors import MaxPayloadError  # noqa: PLC0415  # an extra
        from nats.js.errors import NoStreamResponseError  # noqa: PLC0415

        try:
            await self._publish_once(connection, message)
        except NoStreamResponseError:
            with connection.needed():
                await stream_of(connection, self.stream)  # the first machine makes it
            await self._publish_once(connection, message)
        except MaxPayloadError:
            # The message was made for a server that took more. Later ones are smaller; readers see that this one is missing.
            self._say(f"a message of {len(message.data)} bytes is larger than the server takes: it is lost")

    async def _publish_once(self, connection: Connection, message: Message) -> None:
        headers = {"Nats-Msg-Id": message.id, "Nstat-Sent": f"{time.time():.6f}"}
        with connection.needed():
            ack = await connection.streams.publish(message.subject, message.data, timeout=ACK_SECONDS, headers=headers)
        done = {"messages": 1, "events": message.events, "bytes": len(message.data), "duplicates": bool(ack.duplicate)}
        self.counts.update(done)

    async def _connected(self) -> Connection:
        if self._connection is not None and self.connected:
            return self._connection
        await self.close()
        access = self.access or NatsAccess.from_environment()
        name, inbox = f"nstat-async {self.host}", f"_INBOX_{self.host}"
        self._connection = connection = await connect(self.servers, access, name=name, inbox=inbox)
        self._was_connected, self._said = True, ""
        self.counts["connections"] += 1
        self._say(f"connected to {connection.where} as {self.host}")
        return connection

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.report(text)
