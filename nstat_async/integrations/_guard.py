"""Keeps other web sites away from a service on loopback.

A page of any web site can make its visitor's browser send requests to
``http://127.0.0.1``. Three rules keep it from learning anything:

- *Host*: a name that is not ours is refused. A site whose name was pointed at 127.0.0.1 after
  it was loaded (DNS rebinding) is of the same origin in the browser's eyes, but its
  requests still carry its own name.
- *Origin and Sec-Fetch-Site*: what the browser says another site asked for is refused, but
  for a link that a person followed to the page itself.
- *No answer for others*: no CORS header is ever sent, and the headers below forbid to embed
  the page, to load anything from elsewhere, and to guess types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard"]

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _host_name(authority: str) -> str | None:
    """The host of ``host:port`` in lower case, without brackets; `None` when it is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises when it is no number
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


class Guard:
    """ASGI middleware with the rules above.

    Args:
        app: What to guard.
        allowed_hosts: Names and addresses that requests may be for, without ports; ``"*"`` allows any.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._allowed = {host.strip("[]").lower().rstrip(".") for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            status, text = refusal
            await PlainTextResponse(f"{text}\n", status)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return 400, "The request names no host."
        if "*" not in self._allowed and host not in self._allowed:
            return 421, "This host name is not served here (see allowed_hosts)."
        origin = headers.get("origin")
        if origin is not None:
            scheme, _, authority = origin.partition("://")
            if scheme not in {"http", "https"} or authority.lower() != hosts[0].lower():
                return 403, "Requests of other sites are refused."
        site = headers.get("sec-fetch-site", "none")
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if site not in {"none", "same-origin"} and not (is_link and scope["path"] == "/"):
            return 403, "Requests of other sites are refused."
        return None
