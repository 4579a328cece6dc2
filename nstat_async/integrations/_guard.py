"""Refuses requests of other web sites, of other machines, and without the token.

A page of any web site can make its visitor's browser send requests to
``http://127.0.0.1``, and anybody can send requests to a service that listens beyond loopback.
These rules keep both from learning anything:

- *Host*: a request for a name that is not ours is refused. A site whose name was pointed at 127.0.0.1 after
  it was loaded (DNS rebinding) is of the same origin in the browser's eyes, but its
  requests still carry its own name. ``localhost`` is a name of ours for requests from loopback only.
- *Token*: with one, every request must carry it. Without one, only this machine is answered.
- *Origin and Sec-Fetch-Site*: a request that another site made, as the browser says, is refused,
  unless a person followed a link to the page itself.
- *No answer for others*: no CORS header is ever sent, and the headers below forbid to embed
  the page, to load anything from elsewhere, and to guess types.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nstat_async._errors import UsageError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
HEALTH = "/healthz"
"""The path that a supervisor may ask without a token; the answer is one word."""
COOKIE = "nstat_token"
_SHORTEST_TOKEN = 16

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

logger = logging.getLogger("nstat_async")


class _UnsentError(Exception):
    """The server cannot send this answer: the client broke the rules of HTTP meanwhile, and already got an error."""


def check_token(token: str | None) -> str | None:
    """Return the token if it is valid.

    Raises:
        UsageError: It is short, or has characters that a header or a cookie cannot carry.
    """
    if token is None:
        return None
    if not isinstance(token, str) or len(token) < _SHORTEST_TOKEN:
        raise UsageError(
            f"token: at least {_SHORTEST_TOKEN} characters are needed; --token new makes them (in a program: secrets.token_urlsafe())"
        )
    if not token.isascii() or not all(char.isalnum() or char in "-._~" for char in token):
        raise UsageError("token: letters, digits and -._~ only")
    return token


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


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_on_unix_socket(scope: Scope) -> bool:
    server = scope.get("server")
    return not scope.get("client") and (server is None or server[1] is None)


def _is_local(scope: Scope) -> bool:
    """True for a request from this machine, judged by its address."""
    if _is_on_unix_socket(scope):
        return True
    address = _address(scope["client"][0]) if scope.get("client") else None
    return address is not None and address.is_loopback


class Guard:
    """ASGI middleware with the rules above.

    Args:
        app: The application to guard.
        allowed_hosts: Names and addresses that requests may be for, without ports; ``"*"`` allows any. `None`: those
            of loopback, and the address that the request came to.
        token: The token that every request must carry; `None`: none.
        trust_peers: Answer other machines without a token.
    """

    def __init__(
        self, app: ASGIApp, allowed_hosts: Iterable[str] | None, token: str | None, *, trust_peers: bool
    ) -> None:
        self._app = app
        hosts = LOOPBACK_HOSTS if allowed_hosts is None else allowed_hosts
        self._allowed = {host.strip("[]").lower().rstrip(".") for host in hosts}
        self._own_address = allowed_hosts is None
        self._token = token
        self._trust_peers = trust_peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def send_with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            try:
                await send(message)
            except OSError:
                raise
            except Exception as error:
                raise _UnsentError from error

        try:
            await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)
        except _UnsentError as error:
            logger.debug("server: an answer could not be sent: %s", error.__cause__)
        except Exception:
            logger.exception("server: a request failed")
            if not started:
                await PlainTextResponse("The server failed; its log says why.\n", 500)(
                    scope, receive, send_with_headers
                )

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            return _said(400, "The request names no host.")
        if not self._serves(host, scope):
            return _said(421, "This host name is not served here (see allowed_hosts).")
        origin = headers.get("origin")
        if origin is not None:
            scheme, _, authority = origin.partition("://")
            if scheme not in {"http", "https"} or authority.lower() != hosts[0].lower():
                return _said(403, "Requests from other sites are refused.")
        site = headers.get("sec-fetch-site", "none")
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if site not in {"none", "same-origin"} and not (is_link and _is_front(scope)):
            return _said(403, "Requests from other sites are refused.")
        return None if _path(scope) == HEALTH else self._stranger(scope, headers)

    def _serves(self, host: str, scope: Scope) -> bool:
        if "*" in self._allowed:
            return True
        if host in LOOPBACK_HOSTS:
            return host in self._allowed and _is_local(scope)
        if host in self._allowed:
            return True
        # A browser that came here by another site's name sends that name; no site can claim an address as its name.
        server, address = scope.get("server"), _address(host)
        asked_for_us = server is not None and address is not None and address == _address(server[0])
        return self._own_address and (asked_for_us or _is_on_unix_socket(scope))

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is None:
            if self._trust_peers or _is_local(scope):
                return None
            return _said(403, "Without a token only this machine is answered.")
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else _cookie(headers)
        if given is not None and self._is_token(given):
            return None
        return self._entrance(scope) or _said(401, "A token is needed.", {"WWW-Authenticate": "Bearer"})

    def _entrance(self, scope: Scope) -> Response | None:
        """Answer the front page with the token in its address: set a cookie, and redirect to the address without the token."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == "token"]
        if not _is_front(scope) or len(tokens) != 1 or not self._is_token(tokens[0]):
            return None
        path = quote(scope.get("root_path", "").rstrip("/") + "/")
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
        secure = scope["scheme"] == "https"
        # Lax: a link that somebody sent leads to the page; requests of other sites are refused above.
        answer.set_cookie(COOKIE, tokens[0], path=path, httponly=True, samesite="lax", secure=secure)
        return answer

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _is_front(scope: Scope) -> bool:
    return _path(scope) in {"", "/"}


def _path(scope: Scope) -> str:
    """The path within the application, wherever it is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _cookie(headers: Headers) -> str | None:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def _said(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, headers)
