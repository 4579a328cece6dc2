"""The backend ``unix:PATH``: a Darwin kernel behind an AF_UNIX socket."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from .._checks import check_path, check_timebase
from .._contract import Feed
from .._errors import UsageError
from .._options import MonitorOptions
from ._kernels import check_kernel


def _path(_instance: object, _attribute: Any, value: Any) -> None:
    check_path("path", value)


def _interfaces(_instance: object, _attribute: Any, value: Any) -> None:
    pairs = isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(index) is int and isinstance(name, str) for index, name in value):
        raise UsageError(f"interfaces: {value!r} is not a tuple of pairs such as ((1, 'lo0'),)")


@attrs.frozen
class UnixSocket:
    """A Darwin kernel behind an AF_UNIX SOCK_SEQPACKET socket: one packet, one datagram."""

    name: ClassVar[str] = "unix"
    path: str = attrs.field(validator=_path)
    """Path of the socket."""
    kernel: str = attrs.field(validator=check_kernel)
    """Its version string, e.g. ``"xnu-11417.121.6"``."""
    timebase: tuple[int, int] = attrs.field(default=(1, 1), validator=check_timebase)
    """Nanoseconds per tick of its clock."""
    interfaces: tuple[tuple[int, str], ...] = attrs.field(default=(), validator=_interfaces)
    """Interface names by index, if they are known."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: Nobody listens there.
        """
        from .._io.kctl import make_session  # noqa: PLC0415  # with the Darwin protocol, which others do without
        from .._io.pump import KernelFeed  # noqa: PLC0415  # as above
        from .._io.unixlink import UnixTransport  # noqa: PLC0415  # as above

        session = make_session(options, self.kernel, self.timebase, dict(self.interfaces), backend=self.name)
        transport = UnixTransport(self.path, options)
        transport.prepare()
        return KernelFeed(session, transport, options=options)
