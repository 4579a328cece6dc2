"""Control sockets of an emulated kernel behind AF_UNIX sockets.

One packet is one datagram of the control socket, in both directions. End of file means that the control
went away. A record leaves the emulated receive buffer as soon as the AF_UNIX socket takes it. So a client
that does not read has the room of that socket (a few records) in addition to the receive buffer. As over
any bridge, an answer comes a moment after its request was sent.

macOS has no ``SOCK_SEQPACKET`` for AF_UNIX; there a pair is ``SOCK_DGRAM`` and a path
cannot be served. Python on Windows has no AF_UNIX, and there is no server.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
from pathlib import Path
from types import NoneType

from nstat_async._checks import check_path
from nstat_async._errors import BackendUnavailableError, UnavailableReason

from ._client import EmulatedClient
from ._kernel import SansIoKernel
from ._signal import Signal
from ._values import instance
from ._workload import Workload

_LARGEST_REQUEST = 65536
_SEND_ROOM = 16384
"""Send buffer of the AF_UNIX socket in bytes: room for a record of 4096 bytes, with the host's own overhead."""
_RECORDS_A_TURN = 64
_LONGEST_WAIT = 0.1
_NO_ROOM_WAIT = 0.05
"""Seconds until a client is accepted for which there were no descriptors."""


def _packet_type(*, path: bool) -> int:
    """The type of packet sockets here.

    Raises:
        BackendUnavailableError: There are none, or none that a path could be bound to.
    """
    if not hasattr(socket, "AF_UNIX") or (path and not hasattr(socket, "SOCK_SEQPACKET")):
        what = "AF_UNIX packet sockets (SOCK_SEQPACKET)" if path else "AF_UNIX sockets"
        detail = f"this system has no {what}; in this process EmulatedKernel.backend() and .transport() work without"
        raise BackendUnavailableError("emulate", UnavailableReason.PLATFORM, detail)
    return getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class _Bridge:
    """One control socket and the packet socket that stands for it."""

    def __init__(self, sock: socket.socket, client: EmulatedClient) -> None:
        self.sock = sock
        self.client = client
        self.pending: bytes | None = None
        """A record that the packet socket had no room for."""

    def take_turn(self) -> bool:
        """Carry out a waiting request, and send the records that fit; True if there may be more to do at once.

        Raises:
            EOFError: The control went away, or the client is gone.
            OSError: The same.
        """
        with contextlib.suppress(BlockingIOError):
            request = self.sock.recv(_LARGEST_REQUEST)
            if not request:
                raise EOFError
            # This bridge has no way to report an error of `send` to the client.
            with contextlib.suppress(OSError):
                self.client.send(request)
        try:
            for _ in range(_RECORDS_A_TURN):
                if self.pending is None:
                    self.pending = self.client.receive()
                self.sock.send(self.pending)
                self.pending = None
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """End both sides."""
        self.client.on_readable = None
        self.client.close()
        self.sock.close()


class UnixServer:
    """Serves an emulated kernel from a thread, on a path, by socket pairs, or both.

    Args:
        kernel: The kernel.
        path: Where to listen (``SOCK_SEQPACKET``); `None`: only pairs.

    Raises:
        BackendUnavailableError: This system has no such sockets.
        OSError: The path cannot be listened on.
    """

    def __init__(self, kernel: SansIoKernel, path: str | None = None) -> None:
        self.kernel = instance("kernel", kernel, SansIoKernel)
        self.path = path
        if path is not None:
            check_path("path", path)
        self._type = _packet_type(path=path is not None)
        self._listener = _listen(path, self._type) if path is not None else None
        self._bridges: list[_Bridge] = []
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake = Signal()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ)
        self.served = 0
        """Clients since the beginning."""

    # From other threads

    def wake(self) -> None:
        """Let the thread look again; called by the kernel whenever a record is queued."""
        with self.kernel.lock:
            self._wake.set()

    def open_pair(self) -> socket.socket:
        """A connected client socket, served from now on."""
        near, far = socket.socketpair(socket.AF_UNIX, self._type)
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
        self._stopped.set()
        self.kernel.timer_added.set()
        self.wake()
        thread, self._thread = self._thread, None
        if thread is None:
            self._release()
        elif thread is not threading.current_thread():
            thread.join()

    # The thread

    def run(self, stop: threading.Event | None = None) -> None:
        """Serve in this thread until `close` is called or `stop` is set."""
        busy = False
        try:
            while not self._stopped.is_set() and (stop is None or not stop.is_set()):
                self._wait(0.0 if busy else self._timeout(stop))
                self.kernel.run_due()
                busy = max(map(self._serve, list(self._bridges)), default=False)  # each has its turn
        finally:
            self._release()

    def _timeout(self, stop: threading.Event | None) -> float | None:
        """Seconds to wait at most: other threads may add a timer, or set `stop`, without waking this one."""
        if not self.kernel.runs_by_the_clock:
            return None if stop is None else _LONGEST_WAIT
        due = self.kernel.next_timer()
        return _LONGEST_WAIT if due is None else min(due, _LONGEST_WAIT)

    def _wait(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._wake:
                with self.kernel.lock:
                    self._wake.clear()
            elif key.fileobj is self._listener:
                try:
                    self._add(self._listener.accept()[0])
                except OSError:  # the client is still there, so the next look would fail at once
                    self._stopped.wait(_NO_ROOM_WAIT)

    def _add(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_ROOM)
        self.served += 1
        bridge = _Bridge(sock, self.kernel.connect())
        bridge.client.on_readable = self.wake
        self._selector.register(sock, selectors.EVENT_READ)
        self._bridges.append(bridge)

    def _serve(self, bridge: _Bridge) -> bool:
        """Give a bridge its turn; it ends with its client, or with the control."""
        try:
            busy = bridge.take_turn()
        except (EOFError, OSError):
            self._end(bridge)
            return False
        waits = 0 if bridge.pending is None else selectors.EVENT_WRITE
        self._selector.modify(bridge.sock, selectors.EVENT_READ | waits)
        return busy

    def _end(self, bridge: _Bridge) -> None:
        self._bridges.remove(bridge)
        self._selector.unregister(bridge.sock)
        bridge.close()

    def _release(self) -> None:
        for bridge in list(self._bridges):
            self._end(bridge)
        self._selector.close()
        if self._listener is not None and self.path is not None and self._listener.fileno() >= 0:
            self._listener.close()
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
        self._wake.close()

    def __enter__(self) -> UnixServer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _listen(path: str, kind: int) -> socket.socket:
    if Path(path).is_socket():
        _remove_stale(path, kind)
    elif Path(path).exists():
        raise FileExistsError(errno.EEXIST, "it exists and is not a socket", path)
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(path)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise OSError(error.errno or errno.ENAMETOOLONG, error.strerror or str(error), path) from error
    listener.setblocking(False)
    return listener


def _remove_stale(path: str, kind: int) -> None:
    """Remove a socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
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
    instance("workload", workload, (Workload, NoneType))
    instance("stop", stop, (threading.Event, NoneType))
    check_path("path", path)
    server = UnixServer(kernel, path)
    if workload is not None:
        workload.start()
    try:
        server.run(stop)
    finally:
        if workload is not None:
            workload.stop()
