"""The login and the URLs of NATS servers."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from .._errors import UsageError

_SCHEMES = frozenset({"nats", "tls", "ws", "wss"})
_ENCODED = "in a password '/', '?' and '#' are %2F, %3F and %23"
_EXAMPLE = "'nats://127.0.0.1:4222'"
_BRACKETS = "'[' and ']' enclose an IPv6 address, as in 'nats://[::1]:4222' (in a password they are %5B and %5D)"


def server_urls(value: Any) -> tuple[str, ...]:
    """URLs of the servers of one cluster: one text, one with commas between several, or several texts.

    Raises:
        UsageError: One is not the URL of a server; the message has it without its password.
    """
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not given:
        raise UsageError(f"servers: {value!r} is not a URL such as {_EXAMPLE}")
    return tuple(map(_server_url, given))


def _server_url(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"servers: {value!r} is not a URL such as {_EXAMPLE}")
    url = value if "://" in value else f"nats://{value}"
    wrong = _what_is_wrong(url)
    if wrong is not None:
        raise UsageError(f"servers: {without_password(value)!r} is not a URL such as {_EXAMPLE}: {wrong}")
    return url


def _what_is_wrong(url: str) -> str | None:
    """Why this is not the URL of a server; `None` if it is one. `urlsplit` alone would silently drop line ends."""
    odd = next((character for character in url if not "!" <= character <= "~"), None)
    if odd is not None:
        return f"a URL may not contain {odd!r}"
    try:
        parts = urlsplit(url)
    except ValueError:  # its message may have a part of a password
        return _BRACKETS
    try:
        port = parts.port
    except ValueError:  # as above
        return f"what follows the host is not a port from 1 to 65535 ({_ENCODED})"
    if parts.scheme not in _SCHEMES:
        return f"it does not begin with one of {', '.join(sorted(_SCHEMES))}"
    if not parts.hostname or port == 0:
        return "it names no host" if port != 0 else "there is no port 0"
    return _what_is_too_much(parts)


def _what_is_too_much(parts: SplitResult) -> str | None:
    """What a URL has beyond host and login: a path only concerns a web server in between; anything else is meaningless."""
    path = "" if parts.scheme in {"ws", "wss"} else parts.path.strip("/")
    if path or parts.query or parts.fragment:
        return f"nothing may follow the port ({_ENCODED})"
    return None


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    scheme, separator, rest = url.rpartition("//")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def login_of(urls: tuple[str, ...]) -> dict[str, str]:
    """The login in the URLs, as keywords of nats-py's ``connect``, which would not decode it."""
    for parts in map(urlsplit, urls):
        if parts.username is not None and parts.password is not None:
            return {"user": unquote(parts.username), "password": unquote(parts.password)}
        if parts.username is not None:
            return {"token": unquote(parts.username)}
    return {}


@attrs.frozen(kw_only=True)
class NatsAccess:
    """How to log in to a NATS server. A login in the URL (``nats://user:password@…``) need not be repeated here.

    Raises:
        UsageError: A file cannot be read, or is not a certificate.
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
    """Path of the certificates that verify a server; `None`: the system's."""
    certificate: str | None = None
    """Path of this side's certificate."""
    key: str | None = None
    """Path of its key."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> NatsAccess:
        """The login in the variables that NATS' own tool reads: ``NATS_CREDS``, ``NATS_USER``, ``NATS_PASSWORD``,
        ``NATS_TOKEN``, ``NATS_CA``, ``NATS_CERT``, ``NATS_KEY``.
        """  # noqa: D205  # one sentence of two lines
        names = {"credentials": "CREDS", "certificate": "CERT"}
        found = {
            field.name: environment.get(f"NATS_{names.get(field.name, field.name.upper())}")
            for field in attrs.fields(cls)
        }
        return cls(**{name: value for name, value in found.items() if value})

    def arguments(self, urls: tuple[str, ...] = ()) -> dict[str, Any]:
        """Keywords of nats-py's ``connect``.

        Raises:
            UsageError: A file cannot be used, or a user has no password.
        """
        found: dict[str, Any] = {"user": self.user, "password": self.password, "token": self.token}
        if (self.user is None) != (self.password is None):
            raise UsageError("user, password: give both or neither")
        if self.credentials is not None:
            _check_file("credentials", self.credentials)
            found["user_credentials"] = self.credentials
        if not any(found.values()):
            found = login_of(urls)
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
    if path is None:
        return
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
        if is_file:
            os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise UsageError(f"{name}: {path}: {error.strerror}") from error
    if not is_file:  # reading a pipe would wait for its writer, with the event loop
        raise UsageError(f"{name}: {path}: not a regular file; it must be one, to be read for each connection")
