"""A connection to NATS, by nats-py, which needs asyncio.

nats-py's own reconnecting is not used: the user of a lost connection makes another one, and continues where it was. So
all trouble is handled in one way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import anyio
import attrs

from .._errors import BackendUnavailableError, UnavailableReason, UsageError
from .nats_access import NatsAccess, without_password

CONNECT_SECONDS = 5.0
ASK_SECONDS = 5.0
PING_SECONDS = 5
"""Seconds between pings; two pings without an answer mean that the connection is lost."""
_CLOSE_SECONDS = 2.0


class LostError(Exception):
    """Reading or writing cannot go on over this connection: another attempt is due."""


class WrongStreamError(LostError):
    """The stream is not one of a fleet: another attempt helps only after somebody changes it."""


def require_nats(what: str) -> None:
    """Check that nats-py is installed and that asyncio runs.

    Raises:
        BackendUnavailableError: nats-py is not installed.
        UsageError: The loop is trio's, or there is none.
    """
    try:
        import nats  # noqa: F401, PLC0415
    except ImportError as error:
        detail = "a fleet needs nats-py: pip install 'nstat-async[nats]'"
        raise BackendUnavailableError("fleet", UnavailableReason.DEPENDENCY, detail) from error
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(f"{what} needs asyncio: nats-py does not run on trio") from None


def trouble() -> tuple[type[BaseException], ...]:
    """The errors that nats-py raises when the server or the network is in trouble."""
    import nats.errors  # noqa: PLC0415  # an extra

    return nats.errors.Error, asyncio.TimeoutError, TimeoutError, OSError, LostError, json.JSONDecodeError


@attrs.define(eq=False)
class Connection:
    """An open connection."""

    client: Any
    """nats-py's client."""
    reason: str = "the connection is lost"
    """Why the connection ended, once it has."""
    _ended: bool = False
    _scopes: set[anyio.CancelScope] = attrs.field(factory=set)

    @property
    def lost(self) -> bool:
        """True once the connection has ended, also if nats-py did not call `ended`."""
        return self._ended or bool(self.client.is_closed)

    def note(self, reason: str) -> None:
        """Keep an error of the server or of nats-py as the reason."""
        self.reason = reason
        if _is_refusal(reason):
            self.end()  # the request is not answered: nobody need wait

    def end(self) -> None:
        """Note the end, and release everyone who waits for an answer."""
        self._ended = True
        for scope in self._scopes:
            scope.cancel()

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """A context for code that waits for the server.

        Raises:
            LostError: The connection was lost meanwhile.
        """
        with anyio.CancelScope() as scope:
            if self.lost:
                raise LostError(self.reason)
            self._scopes.add(scope)
            try:
                yield
            except trouble():
                raise
            except Exception as error:  # nats-py's error when a server speaks another protocol
                raise LostError(f"the server's answer is not understood: {error!r}") from error
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise LostError(self.reason)

    @property
    def where(self) -> str:
        """Host and port of the server."""
        url = self.client.connected_url
        return "the server" if url is None else str(url.netloc.rpartition("@")[2])

    @property
    def streams(self) -> Any:
        """nats-py's JetStream."""
        return self.client.jetstream(timeout=ASK_SECONDS)

    async def close(self) -> None:
        """Close the connection, also while the task is cancelled, and without waiting for a silent server."""
        # Errors of a client that has lost its server, or never had one, do not matter: it is not used any more.
        with contextlib.suppress(Exception), anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self.client.close()
        transport = getattr(self.client, "_transport", None)
        if transport is not None:  # a connection that was cancelled half-way leaves its own open
            transport.close()


async def connect(servers: tuple[str, ...], access: NatsAccess, *, name: str, inbox: str = "_INBOX") -> Connection:
    """A connection.

    Args:
        servers: URLs of one cluster.
        access: How to log in.
        name: The connection's name at the server.
        inbox: First word of the subjects of answers.

    Raises:
        BackendUnavailableError: No connection can be made.
        UsageError: A file of `access` cannot be used.
    """
    from nats.aio.client import Client  # noqa: PLC0415  # an extra

    connection, problems = Connection(Client()), list[str]()

    async def failed(error: Exception) -> None:  # nats-py awaits it, and the next one
        connection.note(_said(error))
        problems[:] = [*problems[-2:], connection.reason]

    async def ended() -> None:
        connection.end()

    options = dict(
        access.arguments(servers), servers=list(servers), name=name, inbox_prefix=inbox, error_cb=failed, closed_cb=ended,
        disconnected_cb=ended, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.1,
        ping_interval=PING_SECONDS, connect_timeout=2, pending_size=0,
    )  # fmt: skip
    try:
        with anyio.fail_after(CONNECT_SECONDS):
            await connection.client.connect(**options)
    except BaseException as error:
        await connection.close()
        if isinstance(error, trouble()):
            said = [text for text in (*problems, _said(error)) if text and text != "TimeoutError"]
            raise unavailable(servers, "; ".join(dict.fromkeys(said)) or "it does not answer") from error
        if isinstance(error, Exception):
            raise unavailable(servers, f"it is not a NATS server: {error!r}") from error
        raise
    return connection


def _said(error: BaseException) -> str:
    """The message of the system or the server, without the calls and addresses that asyncio adds."""
    text = str(error) or type(error).__name__
    reasons = dict.fromkeys(os.strerror(int(number)) for number in re.findall(r"\[Errno (\d+)\]", text))
    return ", ".join(reasons) or re.sub(r"\[Errno -\d+\] ", "", text)


def _is_refusal(text: str) -> bool:
    return any(word in text.lower() for word in ("authoriz", "authentic", "permission"))


def unavailable(servers: tuple[str, ...], text: str) -> BackendUnavailableError:
    """The error that names the servers and the reason."""
    reason = UnavailableReason.PERMISSION if _is_refusal(text) else UnavailableReason.MISSING
    return BackendUnavailableError("fleet", reason, f"{', '.join(map(without_password, servers))}: {text}")
