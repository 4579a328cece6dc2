"""A connection to NATS. By nats-py, which is asyncio's alone.

nats-py's own reconnecting is not used: whoever loses a connection makes another one, and goes on where it was. So
there is one way in which trouble ends, whatever it was.
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
"""Two pings without an answer are a connection that is lost."""
_CLOSE_SECONDS = 2.0


class LostError(Exception):
    """What was being read cannot be read on: another attempt is due."""


class WrongStreamError(LostError):
    """It is not a stream of a fleet: another attempt helps only if somebody changes it."""


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

    def note(self, reason: str) -> None:
        """The server, or nats-py, says that something is wrong."""
        self.reason = reason
        if _is_refusal(reason):
            self.end()  # what was asked for is not answered: nobody need wait

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
            except trouble():
                raise
            except Exception as error:  # what nats-py says to a server that speaks otherwise
                raise LostError(f"the server is not understood: {error!r}") from error
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
        """Close it, also while everything is cancelled, and without waiting for a server that says nothing."""
        # Whatever a client says that has lost its server, or never had one: it is not used any more.
        with contextlib.suppress(Exception), anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self.client.close()
        transport = getattr(self.client, "_transport", None)
        if transport is not None:  # a connection that was cancelled half-way leaves its own open
            transport.close()


async def connect(servers: tuple[str, ...], access: NatsAccess, *, name: str, inbox: str = "_INBOX") -> Connection:
    """A connection.

    Args:
        servers: URLs of one cluster.
        access: How to be let in.
        name: What the server calls it.
        inbox: First word of the subjects that answers come to.

    Raises:
        BackendUnavailableError: There is none.
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
            raise unavailable(servers, f"it is no NATS server: {error!r}") from error
        raise
    return connection


def _said(error: BaseException) -> str:
    """What the system or the server says, without the calls and addresses of asyncio (which joins several attempts)."""
    text = str(error) or type(error).__name__
    reasons = dict.fromkeys(os.strerror(int(number)) for number in re.findall(r"\[Errno (\d+)\]", text))
    return ", ".join(reasons) or re.sub(r"\[Errno -\d+\] ", "", text)


def _is_refusal(text: str) -> bool:
    return any(word in text.lower() for word in ("authoriz", "authentic", "permission"))


def unavailable(servers: tuple[str, ...], text: str) -> BackendUnavailableError:
    """The error that says which servers, and why."""
    reason = UnavailableReason.PERMISSION if _is_refusal(text) else UnavailableReason.MISSING
    return BackendUnavailableError("fleet", reason, f"{', '.join(map(without_password, servers))}: {text}")
