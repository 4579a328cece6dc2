"""Control sockets of an emulated kernel behind AF_UNIX sockets.

One packet is one datagram of the control socket, both ways; end of file is the control
going away. A record leaves the emulated receive buffer when the socket between takes
it, so a client that does not read has the socket's own room on top (a few records):
over this bridge answers come a moment after the send, as over any.

macOS has no ``SOCK_SEQPACKET`` for AF_UNIX; there a pair is ``SOCK_DGRAM`` and a path
cannot be served. Windows has no AF_UNIX in Python, and nothing of this.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path

from nstat_async._errors import BackendUnavailableError, UnavailableReason

from ._client import EmulatedClient
from ._kernel import SansIoKernel
from ._signal import Signal
from ._workload import Workload

__all__ = ["UnixServer", "serve_unix"]

_LARGEST_REQUEST = 65536
_SEND_ROOM = 16384
"""Room of the socket between, bytes: what a record of 4096 needs, with the host's own overhead."""
_RECORDS_A_TURN = 64
_LONGEST_WAIT = 0.1
_SEQPACKET: int = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class _Bridge:
    """One control socket and the packet socket that stands for it."""

    def __init__(self, server: UnixServer, sock: socket.socket, client: EmulatedClient) -> None:
        self.server = server
        self.sock = sock
        self.client = client
        self.pending: bytes | None = None
        client.on_readable = server.wake

    def request(self) -> None:
        """Take one request from the packet socket; an error of `send` has no way back but silence."""
        try:
            data = self.sock.recv(_LARGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.server.forget(self)
            return
        with contextlib.suppress(OSError):
            self.client.send(data)

    def flush(self) -> bool:
        """Hand over what fits, a few records a turn; True if there may be more at once."""
        for _ in range(_RECORDS_A_TURN):
            if self.pending is None:
                try:
                    self.pending = self.client.receive()
                except BlockingIOError:
                    return False
                except (EOFError, OSError):
                    self.server.forget(self)
                    return False
            try:
                self.sock.send(self.pending)
            except BlockingIOError:
                return False
            except OSError:
                self.server.forget(self)
                return False
            self.pending = None
        return True

    @property
    def waits_for_room(self) -> bool:
        """True if a record could not be handed over."""
        return self.pending is not None


class UnixServer:
    """Serves an emulated kernel from a thread, on a path, by socket pairs, or both.

    Args:
        kernel: The kernel.
        path: Where to listen (``SOCK_SEQPACKET``); `None`: only pairs.
    """

    def __init__(self, kernel: SansIoKernel, path: str | None = None) -> None:
        self.kernel = kernel
        self.path = path
        self._listener = self._listen(path) if path is not None else None
        self._selector = selectors.DefaultSelector()
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._bridges: dict[socket.socket, _Bridge] = {}
        self._stop = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake = Signal()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self.served = 0
        """Clients since the beginning."""

    @staticmethod
    def _listen(path: str) -> socket.socket:
        if not hasattr(socket, "SOCK_SEQPACKET") or not hasattr(socket, "AF_UNIX"):
            raise _unavailable("AF_UNIX packet sockets (SOCK_SEQPACKET)")
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, _SEQPACKET)
        try:
            listener.bind(path)
            listener.listen(16)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    # From other threads

    def wake(self) -> None:
        """Let the thread look again; called by the kernel whenever a record is queued."""
        with self.kernel.lock:
            self._wake.set()

    def open_pair(self) -> socket.socket:
        """A connected client socket, served from now on.

        Raises:
            BackendUnavailableError: This system has no AF_UNIX.
        """
        if not hasattr(socket, "AF_UNIX"):
            raise _unavailable("AF_UNIX sockets")
        near, far = socket.socketpair(socket.AF_UNIX, _SEQPACKET)
        with self.kernel.lock:
            self._add(far)
        if self._thread is None:
            self.start()
        self.wake()
        return near

    def start(self) -> None:
        """Serve from a thread until `close`."""
        self._thread = threading.Thread(target=self.run, name="nstat-emulated-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, close every connection and remove the path. Idempotent."""
        self._stop = True
        self.kernel.timer_added.set()
        self.wake()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        elif thread is None:
            self._clean_up()

    # The thread

    def run(self, stop: threading.Event | None = None) -> None:
        """Serve in this thread until `close` is called or `stop` is set."""
        busy = False
        try:
            while not self._stop and (stop is None or not stop.is_set()):
                self._turn(0.0 if busy else self._timeout(stop))
                self.kernel.run_due()
                busy = self._flush()
        finally:
            self._clean_up()

    def _timeout(self, stop: threading.Event | None) -> float | None:
        """Seconds to wait at most: other threads may add a timer, or set `stop`, without waking this one."""
        by_the_clock = self.kernel.runs_by_the_clock
        if stop is None and not by_the_clock:
            return None
        due = self.kernel.next_timer() if by_the_clock else None
        return _LONGEST_WAIT if due is None else min(due, _LONGEST_WAIT)

    def _turn(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._wake:
                with self.kernel.lock:
                    self._wake.clear()
            elif key.fileobj is self._listener:
                self._accept()
            else:
                bridge = self._bridges.get(key.fileobj)  # type: ignore[call-overload]  # a socket, as registered
                if bridge is not None:
                    bridge.request()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._add(self._listener.accept()[0])

    def _add(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_ROOM)
        self.served += 1
        self._bridges[sock] = _Bridge(self, sock, self.kernel.connect())
        self._selector.register(sock, selectors.EVENT_READ)

    def _flush(self) -> bool:
        busy = False
        for bridge in list(self._bridges.values()):
            waited = bridge.waits_for_room
            busy = bridge.flush() or busy
            if bridge.sock in self._bridges and bridge.waits_for_room != waited:
                write = selectors.EVENT_WRITE if bridge.waits_for_room else 0
                self._selector.modify(bridge.sock, selectors.EVENT_READ | write)
        return busy

    def forget(self, bridge: _Bridge) -> None:
        """The client closed its end, or the control went away."""
        if self._bridges.pop(bridge.sock, None) is not None:
            self._selector.unregister(bridge.sock)
            bridge.client.on_readable = None
            bridge.client.close()
            bridge.sock.close()

    def _clean_up(self) -> None:
        if self._closed:
            return
        self._closed = True
        for bridge in list(self._bridges.values()):
            self.forget(bridge)
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                assert self.path is not None
                Path(self.path).unlink()
        self._wake.close()

    def __enter__(self) -> UnixServer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _unavailable(what: str) -> BackendUnavailableError:
    detail = f"this system has no {what}; EmulatedKernel.backend() and .transport() work without, in this process"
    return BackendUnavailableError("emulate", UnavailableReason.PLATFORM, detail)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more; anything else is left alone."""
    try:
        if not Path(path).is_socket():
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, _SEQPACKET) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            return


def serve_unix(
    kernel: SansIoKernel,
    path: str,
    *,
    workload: Workload | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve control sockets on an AF_UNIX path in this thread until `stop` is set.

    Args:
        kernel: The kernel; one with a wall clock if time shall pass by itself.
        path: Where to listen. A socket left over by a dead server is replaced.
        workload: Flows to come and go meanwhile; started here.
        stop: Set it, from another thread or a signal handler, to end.

    Raises:
        OSError: The path cannot be listened on.
        BackendUnavailableError: This system has no packet sockets for AF_UNIX.
    """
    server = UnixServer(kernel, path)
    if workload is not None:
        workload.start()
    try:
        server.run(stop)
    finally:
        if workload is not None:
            workload.stop()
