"""Publishes the events of this machine to NATS JetStream, for a fleet (`nstat_async.backends.Fleet`).

    async with Monitor() as monitor:
        await publish(monitor, "nats://127.0.0.1:4222")

A message has many events of one machine as JSON Lines, compressed if that saves space. It is published again until the
server confirms it; each message has an id, by which the server drops a copy. Meanwhile events wait in a buffer that
coalesces: a slow or absent server costs resolution, not bytes, and any loss is reported. With a *spool* messages wait in
a file: resolution is kept, too, and the next run publishes what an ended or killed publisher left there.
"""

from __future__ import annotations

try:
    import nats  # noqa: F401
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.nats needs nats-py: pip install 'nstat-async[nats]'"
    raise ImportError(msg) from error

import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import attrs

from nstat_async._checks import check_path, positive
from nstat_async._errors import NstatError, UsageError
from nstat_async._escape import dump
from nstat_async._events import AnyEvent
from nstat_async._io import identity
from nstat_async._io.background import side_by_side
from nstat_async._io.jetstream import StreamSettings
from nstat_async._io.nats import require_nats
from nstat_async._io.nats_access import NatsAccess, server_urls
from nstat_async._io.outbox import Outbox, Spool
from nstat_async._io.sender import Sender
from nstat_async._monitor import Monitor
from nstat_async._subscription import Subscription
from nstat_async.fleet import MOST_BYTES, Facts, Message, Outgoing, host_name

__all__ = ["NatsAccess", "Publisher", "StreamSettings", "publish"]

logger = logging.getLogger("nstat_async")

_FIGURES = ("messages", "events", "bytes", "duplicates", "retries", "connections")
_GOODBYE_SECONDS = 3.0
_MOST_LABELS = 3000
"""Bytes of the labels as JSON; they fit into `_ROOM`."""
_ROOM = 4096
"""Bytes of a message that its lines may not use."""


def _host(value: str | None) -> str:
    return host_name(identity.short_name() if value is None else value)


def _labels(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = tuple(value.items() if isinstance(value, Mapping) else value if isinstance(value, Iterable) else [value])
    if not all(isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in pairs):
        raise UsageError(f"labels: {value!r} is not a mapping of names to texts")
    if len(dump(pairs)) > _MOST_LABELS:
        raise UsageError(f"labels: more than {_MOST_LABELS} bytes of JSON; they go along with each complete state")
    return pairs


@attrs.define(eq=False)
class Publisher:
    """Publishes the events of a monitor until it ends.

    Args:
        servers: URL, or several of one cluster.
        host: Name of this machine in the fleet: 1 to 63 letters, digits, ``-`` and ``_``; `None`: its host name up to
            the first dot. No two machines may have the same.
        labels: Further facts about this machine: names and texts, at most 3000 bytes of JSON.
        access: How to log in; `None`: as the environment says (`NatsAccess.from_environment`).
        stream: The stream that has the messages; it is made if it does not exist and the server allows that.
        linger: Seconds that an event waits for others, to be sent in one message with them.
        heartbeat: Longest time without a message, seconds: after three times that the machine counts as vanished.
        compress: Compress messages if that saves space. False: messages can be read without this library.
        details: Also publish the samples that come with reports.
        max_pending: How many events may wait while the server is slow or absent.
        spool: File in which messages wait for the server, of this publisher alone; `None`: one message waits in memory.
        spool_bytes: Greatest size of the file. When it is full events wait in memory, as without it.
        report: Called with a line for a person when the connection is made or lost, or the spool is full. If it raises,
            that is logged, and publishing goes on.

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
    spool: str | os.PathLike[str] | None = attrs.field(default=None, kw_only=True)
    spool_bytes: int = attrs.field(default=256 << 20, validator=positive(whole=True, most=1 << 40), kw_only=True)
    report: Callable[[str], None] | None = attrs.field(default=None, kw_only=True)
    _counts: Counter[str] = attrs.field(factory=Counter, init=False)
    _sender: Sender = attrs.field(init=False)
    _outbox: Outbox | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.linger < self.heartbeat <= 3600:
            raise UsageError(
                f"linger, heartbeat: {self.linger!r} and {self.heartbeat!r}: 0 <= linger < heartbeat <= 3600"
            )
        if self.spool is not None:
            check_path("spool", self.spool)
        if self.spool_bytes < MOST_BYTES * 4:
            raise UsageError(f"spool_bytes: {self.spool_bytes!r} is less than {MOST_BYTES * 4}, a few messages")
        self._sender = Sender(self.servers, self.access, self.stream, self.host, self._say, self._counts)

    def statistics(self) -> dict[str, int]:
        """Counters of what was published: ``messages``, ``events``, ``bytes``; ``duplicates`` that the server had already,
        ``retries``, ``connections``; ``waiting``, messages that the server does not have yet; ``unsaved``, messages that
        neither the server nor the spool had at the end of the run, whose events are lost.
        """  # noqa: D205  # one sentence of three lines
        figures = {name: self._counts[name] for name in _FIGURES}
        waiting, unsaved = (0, 0) if self._outbox is None else (self._outbox.waiting, self._outbox.unsaved)
        return {**figures, "waiting": waiting, "unsaved": unsaved}

    async def run(self, monitor: Monitor) -> None:
        """Publish, beside the monitor's other consumers, until the monitor ends.

        When this is cancelled, it tells the fleet that this machine stops.

        Raises:
            BackendUnavailableError: The server refused the login at the first connection.
            UsageError: The loop is not asyncio's, the monitor is itself of a fleet, or the spool cannot be used.
        """
        require_nats("publish")
        if monitor.capabilities.backend == "fleet":
            raise UsageError("publish: events of a fleet cannot be published again")
        core = self._new_run(monitor)
        # A kernel does not wait, even if the monitor's policy is to block; a recording does.
        overflow = None if monitor.capabilities.backend == "replay" else "coalesce"
        outbox = self._outbox = self._new_outbox()
        try:
            async with monitor.subscribe(max_pending=self.max_pending, overflow=overflow) as events:
                run = _Run(core, events, outbox, self._sender, self.linger)
                try:
                    await side_by_side(run.send, run.collect)
                finally:
                    await run.send_last()
        finally:
            outbox.close()
            await self._sender.close()

    def _new_run(self, monitor: Monitor) -> Outgoing:
        facts = Facts(
            machine_id=identity.machine_id(),
            boot_id=identity.boot_id(),
            labels=self.labels,
            capabilities=monitor.capabilities,
        )
        return Outgoing(
            self.host,
            secrets.token_hex(4),
            facts,
            prefix=self.stream.prefix,
            heartbeat=self.heartbeat,
            compress=self.compress,
            details=self.details,
        )

    def _new_outbox(self) -> Outbox:
        if self.spool is None:
            return Outbox()
        return Spool(self.spool, self.spool_bytes, f"{self.stream.prefix}.{self.host}.", self._say)

    def _say(self, text: str) -> None:
        try:
            if self.report is not None:
                self.report(text)
        except Exception:
            logger.exception("publisher: `report` failed, on: %s", text)  # it is not worth a single event


@attrs.define(eq=False)
class _Run:
    """One run of a publisher: one task makes messages of events, another sends them."""

    core: Outgoing
    events: Subscription
    outbox: Outbox
    sender: Sender
    linger: float
    _made: Message | None = attrs.field(default=None, init=False)
    """A message that the outbox does not have yet."""

    async def collect(self) -> None:
        """Make messages of events until the events end and the server has all messages."""
        more = True
        while more:
            await self._make_messages()
            deadline = self.core.next_deadline()
            wait = self.core.heartbeat if deadline is None else max(0.0, deadline - time.monotonic())
            with anyio.move_on_after(wait):
                more = await self._take()
        await self._make_messages()
        await self.outbox.emptied()

    async def send(self) -> None:
        """Publish the messages that wait, oldest first, for ever."""
        while True:
            message = await self.outbox.first()
            await self.sender.deliver(message)
            await self.outbox.drop(message)

    async def send_last(self) -> None:
        """Send the rest and a last message that this machine stops: to a connected server, or into the file."""
        with anyio.move_on_after(_GOODBYE_SECONDS, shield=True):
            if self.sender.connected:
                await side_by_side(self.send, self._end)
            elif self.outbox.lasts:
                await self._end()

    async def _end(self) -> None:
        self.core.feed(_waiting(self.events))
        await self._make_messages()
        await self.outbox.put(self.core.last_message(time.monotonic()))
        if self.sender.connected:
            await self.outbox.emptied()

    async def _take(self) -> bool:
        """Wait for events, and a little longer for more of them; False when the events have ended."""
        batch = await self.events.receive_many()
        self.core.feed(batch)
        if not batch:
            return False
        await anyio.sleep(self.linger)
        self.core.feed(_waiting(self.events))
        return True

    async def _make_messages(self) -> None:
        """Put all messages that are due into the outbox."""
        while True:
            if self._made is None:
                await self.outbox.room()
                self._made = self._next_message()
            if self._made is None:
                return
            await self.outbox.put(self._made)
            self._made = None

    def _next_message(self) -> Message | None:
        if self.sender.max_payload is not None:
            self.core.most_bytes = min(MOST_BYTES, self.sender.max_payload - _ROOM)
        return self.core.next_message(time.monotonic())


def _waiting(events: Subscription) -> list[AnyEvent]:
    """The events that wait; none at the end of the stream, which the next wait notices, too."""
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
