"""Makes a stream of NATS JetStream, and reads it from a given place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import attrs

from .._checks import LONGEST_SECONDS, positive
from .._errors import UsageError
from .nats import Connection, LostError, WrongStreamError, trouble

BATCH = 32
"""How many messages are requested at a time, and so may wait here."""
_EXPIRES, _HEARTBEAT = 20.0, 2.0
_NO_MESSAGES, _BEAT, _EXPIRED, _ENDED = "404", "100", "408", "409"
_STREAM_NOT_FOUND = 10059


def _word(_instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value):
        raise UsageError(f"{attribute.name}: {value!r} is not a word of 1 to 63 letters, digits, '-' and '_'")


@attrs.frozen(kw_only=True)
class StreamSettings:
    """The stream that keeps the messages of a fleet; it is made if it does not exist and the server allows that.

    Raises:
        UsageError: A value cannot work.
    """

    name: str = attrs.field(default="NSTAT", validator=_word)
    """Its name: one word."""
    prefix: str = attrs.field(default="nstat", validator=_word)
    """First word of its subjects: ``nstat.HOST.events``, ``nstat.HOST.state``."""
    max_age: float = attrs.field(default=86_400.0, validator=positive(most=LONGEST_SECONDS))
    """Seconds that messages are kept."""
    max_bytes: int = attrs.field(default=1 << 30, validator=positive(whole=True, most=1 << 62))
    """Most bytes that are kept."""


async def stream_of(connection: Connection, settings: StreamSettings) -> Any:
    """The server's description of the stream, which is made if it does not exist.

    Raises:
        LostError: The stream does not exist and cannot be made, or it is for something else.
    """
    from nats.js import api, errors  # noqa: PLC0415  # an extra

    try:
        return _of_a_fleet(await connection.streams.stream_info(settings.name), settings)
    except errors.ServiceUnavailableError as error:
        raise LostError("the server has no JetStream: it was started without -js, or its disk is full") from error
    except errors.NotFoundError as error:
        if error.err_code not in {None, _STREAM_NOT_FOUND}:
            raise
    config = api.StreamConfig(
        name=settings.name, subjects=[f"{settings.prefix}.*.*"], max_age=settings.max_age, max_bytes=settings.max_bytes,
        storage=api.StorageType.FILE, discard=api.DiscardPolicy.OLD, duplicate_window=min(120.0, settings.max_age),
    )  # fmt: skip
    try:
        return await connection.streams.add_stream(config)
    except errors.APIError as error:
        raise LostError(f"stream {settings.name} cannot be made: {error.description}") from error


def _of_a_fleet(info: Any, settings: StreamSettings) -> Any:
    """Refuse a stream that no machine can write to: it would look like a fleet without machines."""
    subjects = info.config.subjects or ()
    if subjects and not any(subject.partition(".")[0] in {settings.prefix, "*", ">"} for subject in subjects):
        raise WrongStreamError(
            f"stream {settings.name} has the subjects {', '.join(subjects)}, not {settings.prefix}.*.*"
        )
    return info


@contextlib.asynccontextmanager
async def reading(connection: Connection, stream: str, subjects: Sequence[str], **start: Any) -> AsyncIterator[Reading]:
    """Read the messages of a stream from a given place.

    Args:
        connection: The connection to the server.
        stream: The stream's name.
        subjects: The subjects to read.
        start: Where to start: fields of nats-py's ``ConsumerConfig``.
    """
    from nats.js import api  # noqa: PLC0415  # an extra

    filters = {"filter_subject": subjects[0]} if len(subjects) == 1 else {"filter_subjects": list(subjects)}
    config = api.ConsumerConfig(
        ack_policy=api.AckPolicy.NONE, mem_storage=True, num_replicas=1, inactive_threshold=60.0, **filters, **start
    )
    with connection.needed():
        made = await connection.streams.add_consumer(stream, config)
        ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{made.name}"
        found = Reading(connection, ask, made.num_pending or 0, made.created.timestamp())
        subscription = await connection.client.subscribe(found.inbox, cb=found.arrived)
    try:
        yield found
    finally:
        with contextlib.suppress(*trouble()):
            if not connection.lost:
                await subscription.unsubscribe()
                await connection.client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{made.name}")


class Reading:
    """Reads a stream: requests a number of messages, and more when they came.

    Args:
        connection: The connection to the server.
        ask: The subject of the requests.
        pending: How many messages the stream had at the start.
        server_time: The server's clock at the start, seconds since the epoch.
    """

    def __init__(self, connection: Connection, ask: str, pending: int, server_time: float) -> None:
        self.pending, self.server_time = pending, server_time
        self.inbox = connection.client.new_inbox()
        self._connection = connection
        self._ask = ask
        self._wanted = 0
        self._arrived: list[Any] = []
        self._news = asyncio.Event()

    async def arrived(self, message: Any) -> None:  # nats-py awaits it
        self._arrived.append(message)
        self._news.set()

    async def next(self) -> list[Any]:
        """The next messages; an empty list if there was only a sign of life.

        Raises:
            LostError: Reading cannot go on.
        """
        if not self._wanted and not self._arrived:
            await self._request()
        with self._connection.needed(), anyio.move_on_after(3 * _HEARTBEAT) as patience:
            await self._news.wait()
        if patience.cancelled_caught:
            raise LostError("the server stopped answering")
        self._news.clear()
        arrived, self._arrived = self._arrived, []
        return [message for message in arrived if self._is_one(message)]

    async def _request(self) -> None:
        self._wanted = BATCH
        wish = {"batch": BATCH, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
        await self._connection.client.publish(self._ask, json.dumps(wish).encode(), self.inbox)

    def _is_one(self, message: Any) -> bool:
        """True for a message of the stream; others report the state of the request."""
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            self._wanted = max(0, self._wanted - 1)
            return True
        if status in {_NO_MESSAGES, _EXPIRED} or (
            status == _ENDED and "batch completed" in (text := headers.get("Description", "")).lower()
        ):
            self._wanted = 0
        elif status != _BEAT:
            raise LostError(f"the server ended the reading: {status} {text if status == _ENDED else ''}".strip())
        return False
