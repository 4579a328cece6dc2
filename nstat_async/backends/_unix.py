"""The backend ``unix:PATH``: a Darwin kernel behind an AF_UNIX socket."""

from __future__ import annotations

from typing import ClassVar

import attrs

from .._contract import Feed
from .._io.pump import KernelFeed
from .._options import MonitorOptions

__all__ = ["UnixSocket"]


@attrs.frozen
class UnixSocket:
    """A Darwin kernel behind an AF_UNIX SOCK_SEQPACKET socket: one packet, one datagram."""

    name: ClassVar[str] = "unix"
    path: str
    kernel: str
    """Its version string, e.g. ``"xnu-11417.121.6"``."""
    timebase: tuple[int, int] = (1, 1)
    """Nanoseconds per tick of its clock."""
    interfaces: tuple[tuple[int, str], ...] = ()
    """Interface names by index, if they are known."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: Nobody listens there, or the kernel's version is not understood.
        """
        from .._io.kctl import make_session  # noqa: PLC0415  # with the Darwin protocol, which others do without
        from .._io.unixlink import UnixTransport  # noqa: PLC0415  # as above

        session = make_session(options, self.kernel, self.timebase, dict(self.interfaces), backend=self.name)
        transport = UnixTransport(self.path, options)
        transport.prepare()
        return KernelFeed(session, transport, options=options)
