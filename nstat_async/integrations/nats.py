"""Publishes the events of this machine to NATS JetStream, for a fleet (`nstat_async.backends.Fleet`).

    async with Monitor() as monitor:
        await publish(monitor, "nats://127.0.0.1:4222")

A message has many events of one machine, as JSON Lines, compressed where it pays. It is published again until the server
has said that it has it, under an id by which the server drops what it has already. Meanwhile events wait in a buffer that
coalesces: a server that is slow or absent costs resolution, not bytes, and what is lost all the same is said.
"""

from __future__ import annotations

try:
    import nats.errors
    import nats.js.errors
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.nats needs nats-py: pip install 'nstat-async[nats]'"
    raise ImportError(msg) from error

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import attrs

from nstat_async._errors import BackendUnavailableError, NstatError, UnavailableReason, UsageError
from nstat_async._events import AnyEvent
from nstat_async._io import identity
from nstat_async._io.jetstream import StreamSettings, stream_of
from nstat_async._io.nats import Connection, connect, require_nats, trouble
from nstat_async._io.nats_access import NatsAccess, server_urls
from nstat_async._monitor import Monitor
from nstat_async._subscription import Subscription
from nstat_async.fleet import MOST_BYTES, Facts, Message, Outgoing, host_name

__all__ = ["NatsAccess", "Publisher", "StreamSettings", "publish"]

ACK_SECONDS = 5.0
"""Longest that an acknowledgement is waited for."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
_GOODBYE_SECONDS = 3.0
_MOST_LABELS = 2000
_ROOM = 4096
"""Bytes of a message that are not its lines."""


def _host(value: str | None) -> str:
    return host_name(identity.short_name() if value is None else value)


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else tuple(value)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in pairs):
        raise UsageError(f"labels: {value!r} is no mapping of names to texts")
    if sum(len(name) + len(text) for name, text in pairs) > _MOST_LABELS:
        raise UsageError(f"labels: more than {_MOST_LABELS} characters; they go along with each complete state")
    return pairs


@attrs.define(eq=False)
class Publisher:
    """Publishes the events of a monitor until it ends.

    Args:
        servers: URL, or several of one cluster.
        host: Name of this machine in the fleet: 1 to 63 letters, digits, ``-`` and ``_``; `None`: its host name up to
            the first dot. No two machines may have the same.
        labels: What else is to be said of it: names and texts.
        access: How to be let in; `None`: by the environment (`NatsAccess.from_environment`).
        stream: The stream that has the messages; it is made if it is not there, and may be made.
        linger: Seconds that events wait for others, to go with them.
        heartbeat: Longest time without a message, seconds: after three times that the machine is taken for vanished.
        compress: Compress where it pays. False: messages can be read without this library.
        details: Also the samples that come with reports.
        max_pending: Events that may wait while the server is slow or absent.
        report: Gets a line for a person when the connection is made or lost.

    Raises:
        UsageError: An argument cannot work.
    """

    servers: tuple[str, ...] = attrs.field(converter=server_urls)
    host: str = attrs.field(default=None, converter=_host, kw_only=True)
    labels: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_labels, kw_only=True)
    access: NatsAccess | None = attrs.field(default=None, kw_only=True)
    stream: StreamSettings = attrs.field(factory=StreamSettings, kw_only=True)
    linger: float = attrs.field(default=0.2, kw_only=True)
    heartbeat: float = attrs.field(default=10.0, kw_only=True)
    compress: bool = attrs.field(default=True, kw_only=True)
    details: bool = attrs.field(default=False, kw_only=True)
    max_pending: int | None = attrs.field(default=None, kw_only=True)
    report: Callable[[str], None] | None = attrs.field(default=None, kw_only=True)
    _connection: Connection | None = attrs.field(default=None, init=False)
    _was_connected: bool = attrs.field(default=False, init=False)
    _said: str = attrs.field(default="", init=False)
    _undelivered: Message | None = attrs.field(default=None, init=False)
    _counts: dict[str, int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.linger < self.heartbeat <= 3600:
            raise UsageError(
                f"linger, heartbeat: {self.linger!r} and {self.heartbeat!r}: 0 <= linger < heartbeat <= 3600"
            )
        self._counts = dict.fromkeys(("messages", "events", "bytes", "duplicates", "retries", "connections"), 0)

    def statistics(self) -> dict[str, int]:
        """What was published so far: ``messages``, ``events``, ``bytes``; ``duplicates`` that the server had already,
        ``retries``, ``connections``.
        """  # noqa: D205  # one sentence of two lines
        return dict(self._counts)

    async def run(self, monitor: Monitor) -> None:
        """Publish, beside the monitor's other consumers, until it ends.

        Cancelled, it takes its leave: the fleet is told that this machine stops.

        Raises:
            BackendUnavailableError: The first connection is refused for good: the server does not let us in.
            UsageError: The loop is not asyncio's, or the monitor is itself of a fleet.
        """
        require_nats("publish")
        if monitor.capabilities.backend == "fleet":
            raise UsageError("publish: these are events of a fleet already")
        core = Outgoing(
            self.host,
            secrets.token_hex(4),
            Facts(
                machine_id=identity.machine_id(),
                boot_id=identity.boot_id(),
                labels=self.labels,
                capabilities=monitor.capabilities,
            ),
            prefix=self.stream.prefix,
            heartbeat=self.heartbeat,
            compress=self.compress,
            details=self.details,
        )
        # A kernel does not wait, whatever its monitor's own policy is; a recording does.
        overflow = None if monitor.capabilities.backend == "replay" else "coalesce"
        try:
            async with monitor.subscribe(max_pending=self.max_pending, overflow=overflow) as events:
                try:
                    await self._publish_all(core, events)
                finally:
                    await self._take_leave(core, events)
        finally:
            await self._disconnect()

    async def _publish_all(self, core: Outgoing, events: Subscription) -> None:
        more = True
        while more:
            await self._drain(core)
            deadline = core.next_deadline()
            with anyio.move_on_after(self.heartbeat if deadline is None else max(0.0, deadline - time.monotonic())):
                more = await self._take(core, events)
        await self._drain(core)

    async def _take(self, core: Outgoing, events: Subscription) -> bool:
        """Wait for events, and a little longer for more of them; False when none will ever come."""
        batch = await events.receive_many()
        core.feed(batch)
        if not batch:
            return False
        await anyio.sleep(self.linger)
        core.feed(_waiting(events))
        return True

    async def _drain(self, core: Outgoing) -> None:
        if self._connection is not None:
            core.most_bytes = min(MOST_BYTES, self._connection.client.max_payload - _ROOM)
        while (message := core.next_message(time.monotonic())) is not None:
            await self._deliver(message)

    async def _take_leave(self, core: Outgoing, events: Subscription) -> None:
        """Publish what waits, and say that this machine stops, if somebody is there to hear it."""
        if self._connection is None or self._connection.lost:
            return
        with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
            if self._undelivered is not None:
                await self._deliver(self._undelivered)
            core.feed(_waiting(events))
            await self._drain(core)
            await self._deliver(core.last_message(time.monotonic()))

    # --- one message --------------------------------------------------------------------

    async def _deliver(self, message: Message) -> None:
        """Publish a message until the server has it."""
        self._undelivered, pause = message, FIRST_PAUSE
        while not await self._attempt(message):
            self._counts["retries"] += 1
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._undelivered, self._said = None, ""

    async def _attempt(self, message: Message) -> bool:
        """Publish a message; False if the server does not have it."""
        try:
            connection = await self._connected()
            try:
                await self._publish(connection, message)
            except nats.js.errors.NoStreamResponseError:
                with connection.needed():
                    await stream_of(connection, self.stream)  # the first machine makes it
                await self._publish(connection, message)
            except nats.errors.MaxPayloadError:
                # Made for a server that took more. The next ones are smaller; readers see that this one is missing.
                self._say(f"a message of {len(message.data)} bytes is larger than the server takes: it is lost")
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
        headers = {"Nats-Msg-Id": message.id, "Nstat-Sent": f"{time.time():.6f}"}
        with connection.needed():
            ack = await connection.streams.publish(message.subject, message.data, timeout=ACK_SECONDS, headers=headers)
        self._counts["messages"] += 1
        self._counts["events"] += message.events
        self._counts["bytes"] += len(message.data)
        self._counts["duplicates"] += bool(ack.duplicate)

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.lost:
            return self._connection
        await self._disconnect()
        access = self.access or NatsAccess.from_environment()
        name = f"nstat-async {self.host}"
        connection = await connect(self.servers, access, name=name, inbox=f"_INBOX_{self.host}")
        self._connection, self._was_connected, self._said = connection, True, ""
        self._counts["connections"] += 1
        self._say(f"connected to {connection.client.connected_url.netloc.rpartition('@')[2]} as {self.host}")
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _say(self, text: str) -> None:
        if self.report is not None and text != self._said:
            self._said = text
            self.report(text)


def _waiting(events: Subscription) -> list[AnyEvent]:
    """What waits; at the end of the stream nothing: the next wait sees it, too."""
    try:
        return events.receive_nowait()
    except NstatError:
        return []


async def publish(monitor: Monitor, servers: str | Sequence[str], **options: Any) -> None:
    """Publish the events of a monitor until it ends.

    Args:
        monitor: An open monitor.
        servers: URL, or several of one cluster.
        options: Those of `Publisher`.

    Raises:
        BackendUnavailableError: See `Publisher.run`.
        UsageError: An argument cannot work.
    """
    await Publisher(servers, **options).run(monitor)
