"""A small web service on one monitor: events, totals, metrics and a live page.

========================  =======================================================================
``GET /``                 the live page
``GET /events``           every event as a server-sent event: its name, and a line of JSON
                          (``?pid=1&process=curl&~loopback``: only flows that pass, as
                          `nstat_async.filters.from_items` says)
``GET /processes``        totals and rates of the processes as JSON (``?n=100&by=rate``), or of another group of
                          `GroupBy.named` (``?group=remote+address``), of flows that pass (``?pid=1``)
``GET /metrics``          for Prometheus (needs the extra ``prometheus``)
``GET /healthz``          200 while the monitor runs, 503 when it ended or failed; needs no token, and says no more
========================  =======================================================================

When the monitor fails, page, streams and ``/healthz`` say so; `serve_forever` then ends with its error.

All clients share one monitor; a client that reads too slowly gets a coalescing buffer of its own, so that
none delays another. The service shows who talks to whom: it listens on loopback unless you choose
another address, and refuses requests of other web sites.
"""

from __future__ import annotations

import functools
import os
from importlib.resources import files
from typing import Any, cast

try:
    from sse_starlette.sse import EventSourceResponse, SendTimeoutError
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:  # pragma: no cover - depends on what is installed
    msg = "nstat_async.integrations.server needs starlette and sse-starlette: pip install 'nstat-async[server]'"
    raise ImportError(msg) from error

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from nstat_async._checks import check_number, number_of
from nstat_async._errors import UsageError
from nstat_async._escape import dump
from nstat_async.filters import Filter

from ._guard import HEALTH, LOOPBACK_HOSTS, Guard, check_token
from ._hub import Hub
from ._serving import ListenError, run_application, sockets_for, until_signalled
from ._views import TooManyViewsError, View

__all__ = ["LOOPBACK_HOSTS", "ListenError", "create_app", "serve", "serve_forever"]

_MAX_ROWS = 1000
_MOST_SAID = 40
"""How many characters of a refused value its error shows."""
_PING_SECONDS = 15
_SEND_SECONDS = 60
_GRACE_SECONDS = 2.0
FAILED_SECONDS = 3.0
"""How long a server goes on after its monitor failed: a page asks once a second, and so gets the reason."""
_PAGES = {
    "/": ("index.html", "text/html"),
    "/live.js": ("live.js", "text/javascript"),
    "/live.css": ("live.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/uPlot.iife.min.js": ("uPlot.iife.min.js", "text/javascript"),
    "/uPlot.min.css": ("uPlot.min.css", "text/css"),
}
_QUESTIONS = {"n", "by", "group", "since", "expanded"}


@functools.cache
def _page(name: str) -> bytes:
    return (files(__package__) / "_live" / name).read_bytes()


class _EventStream:
    """The response of ``/events``: it has a place in the log while the client listens."""

    def __init__(self, hub: Hub, chosen: Filter | None) -> None:
        self._hub = hub
        self._chosen = chosen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hub = self._hub
        if hub.monitor is None:
            await PlainTextResponse("The application's lifespan was not entered.\n", 503)(scope, receive, send)
            return
        if len(hub.log.readers) >= hub.max_clients:
            await PlainTextResponse("Too many clients.\n", 503, {"Retry-After": "5"})(scope, receive, send)
            return
        reader = hub.reader(self._chosen)
        response = EventSourceResponse(
            reader,
            ping=_PING_SECONDS,
            send_timeout=_SEND_SECONDS,
            shutdown_event=cast("anyio.Event", reader),  # a server of one's own stops: set() is called
            shutdown_grace_period=_GRACE_SECONDS,
        )
        try:
            await response(scope, receive, send)
        except SendTimeoutError:
            pass  # the client does not read, and held a socket and a place long enough
        finally:
            reader.close()


def _answered(make: Callable[[], str]) -> Response:
    """The answer as JSON, or an error that says what was wrong with the request."""
    try:
        return Response(make(), media_type="application/json")
    except ValueError as error:  # UsageError is one too
        return PlainTextResponse(f"{error}\n", 400)
    except TooManyViewsError as error:
        return PlainTextResponse(f"{error}\n", 503, {"Retry-After": "15"})


def _number(request: Request, name: str, otherwise: int) -> int:
    text = request.query_params.get(name, str(otherwise))
    try:
        return number_of(text, int)
    except ValueError:
        raise UsageError(f"{name}: {text[:_MOST_SAID]!r} is not a whole number") from None


def _asked_for(hub: Hub, request: Request) -> tuple[View, int, Any]:
    """The table of a request, the number of its rows, and the key that sorts them."""
    query = request.query_params
    items = [item for item in query.multi_items() if item[0] not in _QUESTIONS]
    view = hub.view(query.get("group", "process"), items)
    number = _number(request, "n", 100)
    check_number("n", number, whole=True, least=0)
    return view, min(_MAX_ROWS, number), query.get("by", "bytes")


def create_app(
    open_monitor: Callable[[], AbstractAsyncContextManager[Any]],
    *,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    trust_peers: bool = False,
    metrics: bool = True,
    max_clients: int = 64,
    max_pending: int = 2000,
    **table_options: Any,
) -> Starlette:
    """The service as an ASGI application.

    Its lifespan opens the monitor; a server that cannot open it does not start. An application
    that mounts it enters ``app.router.lifespan_context(app)`` in its own lifespan.

    Args:
        open_monitor: Makes the monitor, e.g. ``Monitor`` or ``lambda: Monitor(interval=2.0)``.
        token: What every request must carry: ``Authorization: Bearer TOKEN``, or, in a browser, ``/?token=TOKEN``
            once. `None`: only this machine is answered. At least 16 letters, digits and ``-._~``.
        allowed_hosts: Host names, without ports, that requests may be for; ``"*"`` allows any
            and so gives up the protection against DNS rebinding. `None`: loopback's names, for requests from
            loopback, and the address that a request came to.
        trust_peers: Answer other machines without a token, because something before this one authenticates.
        metrics: Serve ``/metrics``.
        max_clients: How many event streams may be open at a time; one more is answered 503.
        max_pending: How many events may wait for one of them before they are coalesced further.
        table_options: Those of `nstat_async.aggregate.ProcessTable`.

    Raises:
        UsageError: An argument is out of range.
    """
    check_token(token)
    hosts = None if allowed_hosts is None else tuple(allowed_hosts)
    hub = Hub(open_monitor, max_clients=max_clients, max_pending=max_pending, table_options=table_options)

    async def page(request: Request) -> Response:
        name, kind = _PAGES[request.url.path.removeprefix(request.scope.get("root_path", "")) or "/"]
        return Response(_page(name), media_type=kind)

    async def events(request: Request) -> Any:
        try:
            return _EventStream(hub, hub.filter_of(request.query_params.multi_items()))
        except UsageError as error:
            return PlainTextResponse(f"{error}\n", 400)

    async def processes(request: Request) -> Response:
        return _answered(lambda: dump(hub.processes(*_asked_for(hub, request))))

    async def live(request: Request) -> Response:
        query = request.query_params

        def answer() -> str:
            expanded = _number(request, "expanded", 0) if query.get("expanded") else None
            return hub.live(*_asked_for(hub, request), since=_number(request, "since", 0), expanded=expanded)

        return _answered(answer)

    async def prometheus(_request: Request) -> Response:
        try:
            from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest  # noqa: PLC0415

            from .prometheus import TrafficCollector  # noqa: PLC0415  # another extra
        except ImportError:  # pragma: no cover - depends on what is installed
            return PlainTextResponse("Metrics need prometheus-client.\n", 501)
        registry = CollectorRegistry()
        registry.register(
            TrafficCollector(fed=hub.keepers, is_running=lambda: hub.state == "running", coverage=hub.coverage)
        )
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse(f"{hub.state.partition(':')[0]}\n", 200 if hub.state == "running" else 503)

    app = Starlette(
        routes=[
            Route(HEALTH, healthz),
            *(Route(path, page) for path in _PAGES),
            Route("/events", events),
            Route("/processes", processes),
            Route("/live", live),
            *([Route("/metrics", prometheus)] if metrics else []),
        ],
        middleware=[Middleware(Guard, allowed_hosts=hosts, token=token, trust_peers=trust_peers)],
        lifespan=lambda _app: hub,
    )
    app.state.hub = hub
    return app


async def serve_forever(
    open_monitor: Callable[[], AbstractAsyncContextManager[Any]],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    unix_socket: str | os.PathLike[str] | None = None,
    token: str | None = None,
    ready: Callable[[list[str]], object] | None = None,
    **options: Any,
) -> None:
    """Serve with uvicorn until this is cancelled, on asyncio. Streams end with ``ended`` then.

    Args:
        open_monitor: Makes the monitor.
        host: Name or address to listen on. One that other machines reach needs a token.
        port: TCP port; 0: any.
        unix_socket: A path to listen on instead; only the user who runs this may connect.
        token: What every request must carry; see `create_app`.
        ready: Called with the addresses once they are served: URLs, or ``unix:PATH``. If it raises, that is logged.
        options: Those of `create_app`.

    Raises:
        ListenError: It cannot listen there.
        UsageError: An argument is out of range.
        NstatError: The monitor cannot be opened, or failed.
    """
    app = create_app(open_monitor, token=token, **options)
    beyond_loopback = token is not None or bool(options.get("trust_peers"))
    sockets = sockets_for(host, port, unix_socket, beyond_loopback=beyond_loopback)
    hub: Hub = app.state.hub
    failed = anyio.Event()
    hub.on_failure = failed.set

    async def until() -> None:
        await failed.wait()
        await anyio.sleep(FAILED_SECONDS)

    await run_application(app, sockets, hub.end_streams, ready, until)
    if hub.failure is not None:
        raise hub.failure


def serve(open_monitor: Callable[[], AbstractAsyncContextManager[Any]], **options: Any) -> None:
    """`serve_forever` in an event loop of its own, until SIGINT or SIGTERM.

    Args:
        open_monitor: Makes the monitor.
        options: Those of `serve_forever`.

    Raises:
        ListenError: It cannot listen there.
        UsageError: An argument is out of range.
        NstatError: The monitor cannot be opened, or failed.
    """
    anyio.run(until_signalled, functools.partial(serve_forever, open_monitor, **options))
