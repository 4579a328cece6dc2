"""The emulated kernel for tests: with transports, servers, and as a monitor's backend."""

from __future__ import annotations

import socket

from ._kernel import SansIoKernel
from ._server import UnixServer
from ._transport import EmulatedBackend, EmulatedTransport


class EmulatedKernel(SansIoKernel):
    """An emulated Darwin kernel: flows on one side, control sockets on the other.

    Its arguments are those of `Machine`. ``docs/emulated-kernel.md`` tells how it was compared with the
    real kernel code.
    """

    def transport(self, receive_buffer: int | None = None) -> EmulatedTransport:
        """Channels to this kernel within the process, behind real descriptors.

        Args:
            receive_buffer: Receive buffer of each channel, bytes; `None` leaves what ``connect`` gives.
        """
        return EmulatedTransport(self, receive_buffer)

    def backend(self, *, verify: bool | None = None) -> EmulatedBackend:
        """This kernel as the ``backend`` of a `nstat_async.Monitor`.

        Args:
            verify: Prove the layout with flows of known values; `None`: when the kernel is newer than known.
        """
        return EmulatedBackend(self, verify)

    def serve_socketpair(self) -> socket.socket:
        """A client socket that a thread of this kernel serves; closing it ends the control socket.

        Raises:
            BackendUnavailableError: This system has no AF_UNIX.
        """
        server = UnixServer(self)
        self.on_close.append(server.close)
        return server.open_pair()

    def serve_unix(self, path: str) -> UnixServer:
        """Serve control sockets on an AF_UNIX path from a thread; see `nstat_async.testing.serve_unix`.

        Raises:
            BackendUnavailableError: This system has no packet sockets for AF_UNIX.
            OSError: The path cannot be listened on.
        """
        server = UnixServer(self, path)
        self.on_close.append(server.close)
        server.start()
        return server
