"""The feed of a fleet: reads the stream of a NATS server, and lets `Incoming` make events of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import anyio
import anyio.lowlevel

from .._contract import Sink
from .._errors import BackendUnavailableError, ProtocolError, UnavailableReason
from .._events import AnyEvent, EventsLost, HostUpdated, LossCause
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from ..filters import FlowGate, by_provider
from ..fleet import STATE, Delivery, Incoming, subject_of
from .background import set_event, side_by_side
from .jetstream import StreamSettings, reading, stream_of
from .nats import Connection, LostError, WrongStreamError, connect, trouble, unavailable
from .nats_access import NatsAccess

STATE_AGE = 660.0
"""Seconds within which every machine that still publishes has published a complete state."""
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_JOIN_SECONDS = 10.0
"""How long opening waits at most for the first look."""


class FleetFeed:
    """Reads a fleet's stream.

    Args:
        servers: URLs of one cluster.
        access: How to log in.
        settings: The stream.
        hosts: The machines to watch; `None`: all.
        since: Where to start, seconds since the epoch; `None`: now.
        until: Where to end; `None`: never.
        forget: Seconds of silence after which a machine is forgotten.
        options: The monitor's options. Those of a kernel's conversation have no effect: each machine has its own.
    """

    def __init__(
        self,
        servers: tuple[str, ...],
        access: NatsAccess,
        settings: StreamSettings,
        *,
        hosts: frozenset[str] | None,
        since: float | None,
        until: float | None,
        forget: float,
        options: MonitorOptions,
    ) -> None:
        self.can_wait = until is not None
        self._servers, self._access, self._settings = servers, access, settings
        self._core = Incoming(settings.prefix, hosts, forget)
        self._providers, self._strict = options.providers, options.strict
        self._gate = FlowGate(by_provider(*options.providers))
        self._since = None if since is None or since > time.time() else since
        self._until = until
        self._join_at = 0
        """Place in the stream from which messages are new."""
        self._position: int | None = None
        """The last place that was read; `None` before the first connection."""
        self._behind: float | None = None
        """The server's clock when the connection was made, while what the stream had by then is read."""
        self._created: Any = None
        self._scope = anyio.CancelScope()
        self._joined = anyio.Event()
        self._reconnections = 0
        self._over = False

    # --- Feed ---------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """What the monitors of all machines can tell."""
        return self._core.capabilities

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows of this moment."""
        return ((flow, counts) for flow, counts in self._core.flows() if flow.provider in self._providers)

    def hosts(self, time: float) -> Iterable[HostUpdated]:
        """The machines of this moment."""
        return self._core.machines(time)

    async def subscribed(self) -> None:
        """Wait for the first look at all machines, but not for ever."""
        with anyio.move_on_after(_JOIN_SECONDS):
            await self._joined.wait()

    def request_poll(self) -> None:
        """Do nothing and return `None`: a fleet's machines cannot be asked."""

    def close(self) -> None:
        """Stop reading; `run` ends soon."""
        self._over = True
        self._scope.cancel()
        set_event(self._joined)

    def statistics(self) -> dict[str, int]:
        """The core's counters, and the number of reconnections."""
        return {**self._core.statistics(), "reconnections": self._reconnections}

    async def run(self, sink: Sink) -> None:
        """Read until closed, or up to the time `until`.

        Raises:
            BackendUnavailableError: There is no server, or no stream, at the start.
        """
        try:
            with self._scope:
                await side_by_side(lambda: self._follow(sink), lambda: self._keep_looking(sink))
        finally:
            self.close()

    # --- reading ------------------------------------------------------------------------

    async def _follow(self, sink: Sink) -> None:
        """Read over one connection after the other, and continue at the last place."""
        give_up = time.monotonic() + _JOIN_SECONDS
        while not self._over:
            try:
                connection = await connect(self._servers, self._access, name="nstat-async fleet")
            except BackendUnavailableError as error:
                if self._position is None:
                    raise
                self._core.connection = error.detail
            else:
                try:
                    await self._read(connection, sink)
                except trouble() as error:
                    self._core.connection = f"the stream cannot be read: {error or type(error).__name__}"
                    problem = unavailable(self._servers, self._core.connection)
                    refused = problem.reason is UnavailableReason.PERMISSION or isinstance(error, WrongStreamError)
                    if self._position is None and (refused or time.monotonic() > give_up):
                        raise problem from error
                finally:
                    await connection.close()
            self._core.caught_up = False
            if not self._over:
                self._reconnections += 1
                await anyio.sleep(_RETRY_SECONDS)

    async def _read(self, connection: Connection, sink: Sink) -> None:
        with connection.needed():
            info = await stream_of(connection, self._settings)
            start = await self._place(connection, info)
        async with reading(connection, self._settings.name, self._subjects("*"), **start) as messages:
            self._core.connection = None
            self._behind = messages.server_time if self._until is None else None
            if not messages.pending:
                await self._caught_up(sink)
            while True:
                for message in await messages.next():
                    await self._take_in(message, sink)
                    if self._over:
                        return

    def _subjects(self, kind: str) -> list[str]:
        return [subject_of(self._settings.prefix, host, kind) for host in sorted(self._core.hosts or "*")]

    async def _place(self, connection: Connection, info: Any) -> dict[str, Any]:
        """Where to start, as fields of a consumer."""
        from nats.js.api import DeliverPolicy  # noqa: PLC0415  # an extra

        anew = self._created is not None and info.created != self._created
        self._created = info.created
        if self._since is not None and not self._position:
            self._position = 0
            moment = datetime.fromtimestamp(max(0.0, self._since - STATE_AGE), timezone.utc)
            return {"deliver_policy": DeliverPolicy.BY_START_TIME, "opt_start_time": moment}
        if self._position is None:
            self._join_at = info.state.last_seq
            self._position = await self._last_states(connection) - 1
        elif anew or info.state.last_seq < self._position:
            self._position = 0  # another stream: the server lost the old one
        return {"deliver_policy": DeliverPolicy.BY_START_SEQUENCE, "opt_start_seq": self._position + 1}

    async def _last_states(self, connection: Connection) -> int:
        """The place to read from, so that each machine that still publishes has a complete state."""
        from nats.js.api import DeliverPolicy  # noqa: PLC0415  # an extra

        begin, stream = self._join_at + 1, self._settings.name
        last = {"deliver_policy": DeliverPolicy.LAST_PER_SUBJECT}
        async with reading(connection, stream, self._subjects(STATE), **last) as states:
            left = states.pending
            while left:
                for message in await states.next():
                    delivery, left = _delivery(message)
                    if delivery.stored > states.server_time - STATE_AGE:
                        begin = min(begin, delivery.position)
                    else:
                        self._core.remember(delivery, time.monotonic())
        return begin

    async def _take_in(self, message: Any, sink: Sink) -> None:
        core = self._core
        delivery, pending = _delivery(message)
        if self._until is not None and delivery.stored > self._until:
            self._over = True
            await self._caught_up(sink)
            return
        since = -math.inf if self._since is None else self._since
        if delivery.position > self._join_at and delivery.stored >= since:
            core.begin(time.time() if self._since is None else delivery.stored)
        # Whoever joins finds machines that fell silent before.
        age = 0.0 if self._behind is None else max(0.0, self._behind - delivery.stored)
        core.receive(delivery, time.monotonic() - age)
        await self._work(sink)
        self._position = delivery.position
        core.caught_up = not pending
        if not pending:
            await self._caught_up(sink)
            self._over = self._over or (self._until is not None and time.time() > self._until)

    async def _caught_up(self, sink: Sink) -> None:
        """Tell the core that the whole stream was read."""
        self._core.caught_up, self._behind = True, None
        self._core.begin(time.time(), time.monotonic())
        await self._work(sink)

    async def _work(self, sink: Sink) -> None:
        """Let the core work and deliver its events, and let other tasks run in between."""
        for events in self._core.take_events():
            self._deliver(events, sink)
            await anyio.lowlevel.checkpoint()
            if self._joined.is_set():  # before that there is no reader yet that could make room
                await sink.room()
        if self._core.begun:
            self._joined.set()

    def _deliver(self, events: list[AnyEvent], sink: Sink) -> None:
        """Hand over the core's events that pass the monitor's options.

        Raises:
            ProtocolError: A message could not be read, and the option ``strict`` is set.
        """
        wanted = self._gate(events)
        sink.deliver(wanted)
        if self._strict:
            for event in wanted:
                if isinstance(event, EventsLost) and event.cause is LossCause.PROTOCOL:
                    raise ProtocolError(f"{event.host}: {event.detail}")

    async def _keep_looking(self, sink: Sink) -> None:
        """Look for silent machines from time to time."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            self._core.handle_deadline(time.monotonic(), time.time())
            await self._work(sink)


def _delivery(message: Any) -> tuple[Delivery, int]:
    """A message as the core takes it, and the number of messages behind it.

    Raises:
        LostError: It is not a message of a stream.
    """
    try:
        facts = message.metadata
    except Exception as error:
        raise LostError(f"a message that does not come from a stream: {error}") from error
    try:
        sent = float((message.headers or {})["Nstat-Sent"])
    except (KeyError, ValueError):
        sent = None
    sent = sent if sent is not None and math.isfinite(sent) else None
    stored = facts.timestamp.timestamp()
    return Delivery(message.subject, message.data, facts.sequence.stream, stored, sent), facts.num_pending
