"""Runs the web service: opens its sockets, serves, and ends it.

uvicorn waits for open responses before it tells the application to stop, but an event stream
stays open for ever. So the streams are ended first, then uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import anyio
from starlette.applications import Starlette

from nstat_async._errors import NstatError, UsageError

_BACKLOG = 2048
_GRACE_SECONDS = 3
PATIENCE_TICKS = 200
"""Time between two checks for clients that never complete a request, in uvicorn's ticks, ten a second."""
_LAST_PORT = 65_535

logger = logging.getLogger("nstat_async")


class ListenError(NstatError):
    """A server cannot listen at an address or path; ``__cause__`` has the system's error.

    Args:
        where: The address or path.
        detail: What is wrong, for a person.
    """

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(where, detail)
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        return f"cannot listen on {self.where}: {self.detail}"


def sockets_for(
    host: str, port: int, unix_socket: str | os.PathLike[str] | None, *, beyond_loopback: bool
) -> list[socket.socket]:
    """Open listening sockets: one for each address of the host, or one for a path.

    Args:
        host: Name or address.
        port: TCP port; 0: any.
        unix_socket: A path instead; only the user who runs this may connect.
        beyond_loopback: True: other machines may reach it.

    Raises:
        ListenError: The address or path cannot be listened on.
        UsageError: Other machines could reach it, and must not.
    """
    if unix_socket is not None:
        return [_unix_socket(os.fspath(unix_socket))]
    if not 0 <= port <= _LAST_PORT:  # the resolver would take it modulo 65536
        raise UsageError(f"port: {port!r} is not a number from 0 to {_LAST_PORT}")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ListenError(f"{host}:{port}", getattr(error, "strerror", None) or str(error)) from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    if not beyond_loopback and not all(_is_loopback(str(address[0])) for _, address in addresses):
        raise UsageError(f"host: {host!r} can be reached by other machines: give a token, or a Unix socket instead")
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, address in addresses:
            # All have the same port, even if the system chose it.
            number = sockets[0].getsockname()[1] if sockets and not port else address[1]
            sockets.append(stack.enter_context(_tcp_socket(family, (address[0], number, *address[2:]))))
        stack.pop_all()
        return sockets


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _tcp_socket(family: int, address: Any) -> socket.socket:
    try:
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)  # Python's own text repeats the address
        raise ListenError(f"{address[0]}:{address[1]}", os.strerror(number) if number else str(error)) from error


def _unix_socket(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        sock.bind(path)
        os.chmod(path, 0o600)  # before it listens: nobody could connect meanwhile  # noqa: PTH101
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(path, error.strerror or str(error)) from error
    return sock


def _remove_dead_socket(path: str) -> None:
    """Remove a socket that a server left behind; a socket with a server stays, and so does any other file."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            raise OSError(errno.EADDRINUSE, "it exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # noqa: PTH108


def _url(sock: socket.socket) -> str:
    """The address for clients: a URL, or ``unix:PATH``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}/"


def _make_server(app: Starlette, end_streams: Callable[[], object], ready: Callable[[list[str]], object] | None) -> Any:
    """A uvicorn server, as `run_application` needs it."""
    try:
        import uvicorn  # noqa: PLC0415  # an application server of one's own needs none
    except ImportError as error:  # pragma: no cover - depends on what is installed
        text = "serve() needs uvicorn: pip install 'nstat-async[server]'"
        raise ImportError(text) from error

    class Server(uvicorn.Server):
        """uvicorn without its signal handlers: the caller decides when it ends."""

        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            self._waiting: dict[Any, Any] = {}

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def on_tick(self, counter: int) -> bool:
            if counter % PATIENCE_TICKS == 0:
                self._let_go()
            return await super().on_tick(counter)

        def _let_go(self) -> None:
            """Close connections without a complete request since the last check: uvicorn would wait for ever."""
            before, self._waiting = self._waiting, {}
            for connection in list(self.server_state.connections):
                cycle: Any = getattr(connection, "cycle", None)  # the last request
                if cycle is not None and not cycle.response_complete:
                    continue
                if before.get(connection, ...) is cycle:
                    connection.transport.close()
                self._waiting[connection] = cycle

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            try:
                if ready is not None:
                    ready([_url(sock) for sock in sockets or []])
            except Exception:
                logger.exception("server: `ready` failed")  # what it tells somebody is not worth the service

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            paths = [sock.getsockname() for sock in sockets or [] if sock.family == socket.AF_UNIX]
            end_streams()
            await super().shutdown(sockets=sockets)
            for path in paths:
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108

    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="critical",  # the application logs its errors itself
        access_log=False,
        proxy_headers=False,  # the client is who connected: a header can claim anything
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return Server(config)


async def run_application(
    app: Starlette,
    sockets: Sequence[socket.socket],
    end_streams: Callable[[], object],
    ready: Callable[[list[str]], object] | None,
    until: Callable[[], Awaitable[None]],
) -> None:
    """Serve an application until this is cancelled, or something else ends it.

    Args:
        app: The application; its lifespan is entered, and an error of the lifespan is raised here.
        sockets: The sockets to serve; they are closed at the end.
        end_streams: Called before anything is closed.
        ready: Called with the addresses, once they are served.
        until: Returns when the server shall end.
    """
    server = _make_server(app, end_streams, ready)
    try:
        async with app.router.lifespan_context(app):
            task = asyncio.ensure_future(server.serve(sockets=list(sockets)))
            end = asyncio.ensure_future(until())
            try:
                await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                end.cancel()
                server.should_exit = True
                with anyio.CancelScope(shield=True):
                    await asyncio.wait({task})
            task.result()
    finally:
        for sock in sockets:
            sock.close()


async def until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run until SIGINT or SIGTERM; a second signal has its default effect."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        if threading.current_thread() is threading.main_thread() and os.name == "posix":
            tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()
