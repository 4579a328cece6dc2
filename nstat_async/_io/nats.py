"""A connection to NATS, and reading a stream of it from a place on. By nats-py, which is asyncio's alone.

nats-py's own reconnecting is not used: whoever loses a connection makes another one, and goes on where it was. So
there is one way in which trouble ends, whatever it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import anyio
import attrs

from .._checks import LONGEST_SECONDS, positive
from .._errors import BackendUnavailableError, UnavailableReason, UsageError

__all__ = [
    "Connection",
    "LostError",
    "NatsAccess",
    "StreamSettings",
    "connect",
    "reading",
    "require_nats",
    "stream_of",
    "trouble",
    "unavailable",
]

CONNECT_SECONDS = 5.0
ASK_SECONDS = 5.0
PING_SECONDS = 5
"""Two pings without an answer are a connection that is lost."""
BATCH = 32
"""Messages asked for at a time: that many may wait here."""
_EXPIRES, _HEARTBEAT = 20.0, 2.0
_CLOSE_SECONDS = 2.0
_NO_MESSAGES, _BEAT, _EXPIRED, _ENDED = "404", "100", "408", "409"
_STREAM_NOT_FOUND = 10059


class LostError(Exception):
    """What was being read cannot be read on: another attempt is due."""


@attrs.frozen(kw_only=True)
class NatsAccess:
    """How to be let in by a NATS server, as NATS has it. What is in a URL (``nats://user:password@…``) needs nothing here.

    Raises:
        UsageError: A file cannot be read, or is no certificate.
    """

    credentials: str | None = None
    """Path of a ``.creds`` file."""
    user: str | None = None
    """Name of a user."""
    password: str | None = attrs.field(default=None, repr=False)
    """The password."""
    token: str | None = attrs.field(default=None, repr=False)
    """A token."""
    ca: str | None = None
    """Path of the certificates that a server is checked by; `None`: the system's."""
    certificate: str | None = None
    """Path of this side's certificate."""
    key: str | None = None
    """Path of its key."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> NatsAccess:
        """What the variables say that NATS' own tool reads: ``NATS_CREDS``, ``NATS_USER``, ``NATS_PASSWORD``,
        ``NATS_TOKEN``, ``NATS_CA``, ``NATS_CERT``, ``NATS_KEY``.
        """  # noqa: D205  # one sentence of two lines
        names = {"credentials": "CREDS", "certificate": "CERT"}
        found = {
            field.name: environment.get(f"NATS_{names.get(field.name, field.name.upper())}")
            for field in attrs.fields(cls)
        }
        return cls(**{name: value for name, value in found.items() if value})

    def arguments(self) -> dict[str, Any]:
        """Keywords of nats-py's ``connect``."""
        found = {"user": self.user, "password": self.password, "token": self.token}
        if self.credentials is not None:
            _check_file("credentials", self.credentials)
            found["user_credentials"] = self.credentials
        if self.ca or self.certificate:
            found["tls"] = self._tls()
        return {name: value for name, value in found.items() if value is not None}

    def _tls(self) -> Any:
        import ssl  # noqa: PLC0415  # who has no certificate needs none

        for name in ("ca", "certificate", "key"):
            _check_file(name, getattr(self, name))
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise UsageError(f"ca, certificate, key: {error.reason or error}") from error
        return context


def _check_file(name: str, path: str | None) -> None:
    try:
        if path is not None:
            os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise UsageError(f"{name}: {path}: {error.strerror}") from error


def _word(_instance: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", value):
        raise UsageError(f"{attribute.name}: {value!r} is no word of 1 to 63 letters, digits, '-' and '_'")


@attrs.frozen(kw_only=True)
class StreamSettings:
    """The stream that the messages of a fleet are kept in, made where it is not there and may be made.

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
    """Bytes that are kept."""


def require_nats(what: str) -> None:
    """See that nats-py is there and that asyncio runs.

    Raises:
        BackendUnavailableError: nats-py is not installed.
        UsageError: This is trio's loop, or none.
    """
    try:
        import nats  # noqa: F401, PLC0415
    except ImportError as error:
        detail = "a fleet needs nats-py: pip install 'nstat-async[nats]'"
        raise BackendUnavailableError("fleet", UnavailableReason.DEPENDENCY, detail) from error
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(f"{what} needs asyncio's loop: nats-py works with no other (trio)") from None


def trouble() -> tuple[type[BaseException], ...]:
    """What nats-py raises where the server or the way to it is in trouble."""
    import nats.errors  # noqa: PLC0415  # an extra

    return nats.errors.Error, asyncio.TimeoutError, TimeoutError, OSError, LostError, json.JSONDecodeError


@attrs.define(eq=False)
class Connection:
    """An open connection."""

    client: Any
    """nats-py's."""
    reason: str = "the connection is lost"
    """Why, once it is over."""
    _ended: bool = False
    _scopes: set[anyio.CancelScope] = attrs.field(factory=set)

    @property
    def lost(self) -> bool:
        """True once it is over; nats-py does not always call who wants to know."""
        return self._ended or bool(self.client.is_closed)

    def end(self) -> None:
        """It is over: whoever waits for an answer need not."""
        self._ended = True
        for scope in self._scopes:
            scope.cancel()

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """Around what waits for the server.

        Raises:
            LostError: The connection was lost meanwhile.
        """
        with anyio.CancelScope() as scope:
            if self.lost:
                raise LostError(self.reason)
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise LostError(self.reason)

    @property
    def streams(self) -> Any:
        """nats-py's JetStream."""
        return self.client.jetstream(timeout=ASK_SECONDS)

    async def close(self) -> None:
        """Close it, also while everything is cancelled, and without waiting for a server that says nothing."""
        # Whatever a client says that has lost its server, or never had one: it is not used any more.
        with contextlib.suppress(Exception), anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self.client.close()
        transport = getattr(self.client, "_transport", None)
        if transport is not None:  # a connection that was cancelled half-way leaves its own open
            transport.close()


async def connect(servers: str | Sequence[str], access: NatsAccess, *, name: str, inbox: str = "_INBOX") -> Connection:
    """A connection.

    Args:
        servers: URL, or several of one cluster.
        access: How to be let in.
        name: What the server calls it.
        inbox: First word of the subjects that answers come to.

    Raises:
        BackendUnavailableError: There is none.
        UsageError: A file of `access` cannot be used.
    """
    from nats.aio.client import Client  # noqa: PLC0415  # an extra

    connection = Connection(Client())
    problems: list[str] = []

    async def note(error: Exception) -> None:
        connection.reason = str(error) or type(error).__name__
        del problems[:-3]
        problems.append(connection.reason)
        if _is_refusal(connection.reason):
            connection.end()  # what was asked for is not answered: nobody need wait

    async def ended() -> None:  # nats-py awaits it
        connection.end()

    options = dict(
        access.arguments(), servers=servers if isinstance(servers, str) else list(servers), name=name, inbox_prefix=inbox, error_cb=note, closed_cb=ended,
        disconnected_cb=ended, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.1,
        ping_interval=PING_SECONDS, connect_timeout=2, pending_size=0,
    )  # fmt: skip
    try:
        with anyio.fail_after(CONNECT_SECONDS):
            await connection.client.connect(**options)
    except trouble() as error:
        await connection.close()
        text = "; ".join(dict.fromkeys([*problems, str(error)])).strip("; ") or "it does not answer"
        raise unavailable(servers, text) from error
    except BaseException:
        await connection.close()
        raise
    return connection


def _is_refusal(text: str) -> bool:
    return any(word in text.lower() for word in ("authoriz", "authentic", "permission"))


def unavailable(servers: str | Sequence[str], text: str) -> BackendUnavailableError:
    where = servers if isinstance(servers, str) else ", ".join(servers)
    where = "//".join([*where.split("//")[:1], where.rpartition("//")[2].rpartition("@")[2]])  # no password
    reason = UnavailableReason.PERMISSION if _is_refusal(text) else UnavailableReason.MISSING
    return BackendUnavailableError("fleet", reason, f"{where}: {text}")


async def stream_of(connection: Connection, settings: StreamSettings) -> Any:
    """What the server says of the stream; it is made if there is none.

    Raises:
        LostError: There is none, and it cannot be made.
    """
    from nats.js import api, errors  # noqa: PLC0415  # an extra

    try:
        return await connection.streams.stream_info(settings.name)
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


@contextlib.asynccontextmanager
async def reading(connection: Connection, stream: str, subjects: Sequence[str], **start: Any) -> AsyncIterator[Reading]:
    """Read the messages of a stream from a place on.

    Args:
        connection: To the server.
        stream: Its name.
        subjects: Of what subjects.
        start: Where to begin: fields of nats-py's ``ConsumerConfig``.
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
    """A stream that is being read: asks for a number of messages, and for more when they came.

    Args:
        connection: To the server.
        ask: The subject to ask at.
        pending: Messages that were there when it began.
        server_time: The server's clock then, seconds since the epoch.
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
        """Messages that came; an empty list after a sign of life only.

        Raises:
            LostError: It cannot be read on.
        """
        if not self._wanted and not self._arrived:
            await self._request()
        with self._connection.needed(), anyio.move_on_after(3 * _HEARTBEAT) as patience:
            await self._news.wait()
        if patience.cancelled_caught:
            raise LostError("the server fell silent")
        self._news.clear()
        arrived, self._arrived = self._arrived, []
        return [message for message in arrived if self._is_one(message)]

    async def _request(self) -> None:
        self._wanted = BATCH
        wish = {"batch": BATCH, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
        await self._connection.client.publish(self._ask, json.dumps(wish).encode(), self.inbox)

    def _is_one(self, message: Any) -> bool:
        """True for a message of the stream; others say how the request stands."""
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
