"""Opens the kernel control socket of Darwin, and makes sessions for it.

Python's own `socket` has ``PF_SYSTEM``/``SYSPROTO_CONTROL``. The id of the control
is looked up by name each time (it differs between boots). ``SO_RCVBUF`` is set *after*
connect, which would reset it (``ctl_setup_kctl``), and read back, because the kernel
silently limits it to ``kern.ipc.maxsockbuf``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import Any

from .._contract import Channel
from .._errors import BackendUnavailableError, UnavailableReason, UsageError
from .._options import MonitorOptions, refuse_ebpf
from ..ntstat import (
    CONTROL_NAME,
    FindPaths,
    InterfacesRead,
    Kernel,
    Ledger,
    LedgerRow,
    OpenEvidence,
    PathsFound,
    ReadInterfaces,
    ReadLedger,
    Session,
)
from ..ntstat._interfaces import parse_interfaces
from .channel import PreparedTransport, SocketChannel, set_receive_buffer
from .darwin import (
    client_metrics,
    interface_messages,
    interface_names,
    newest_client,
    process_path,
    refused_announcements,
)
from .selftest import LoopbackEvidence
from .system import DARWIN, require

BACKEND = "kctl"
ABSENT = "the kernel control exists on macOS only"

_PF_SYSTEM = 32
_SYSPROTO_CONTROL = 2
_CTLIOCGINFO = 0xC0644E03
_CTL_INFO_SIZE = 100
_OPENING = threading.Lock()
"""Held while a control socket is opened: so the newest one of this process is the one that was just opened."""


def make_session(
    options: MonitorOptions,
    kernel: Kernel | str,
    timebase: tuple[int, int],
    interfaces: dict[int, str],
    *,
    backend: str = BACKEND,
    verify: bool | None = False,
    paths: bool = False,
    ledger: bool = False,
    coverage: bool = False,
) -> Session:
    """Make the core for a Darwin kernel behind any channel; BackendUnavailableError if its version is not understood."""
    refuse_ebpf(options, backend)
    try:
        kernel = Kernel.parse(kernel) if isinstance(kernel, str) else kernel
    except UsageError as error:
        raise BackendUnavailableError(backend, UnavailableReason.KERNEL, str(error)) from error
    return Session(
        kernel,
        timebase=timebase,
        interfaces=interfaces,
        options=options,
        backend=backend,
        verify=verify,
        own_uid=os.getuid() if hasattr(os, "getuid") else None,
        paths=paths,
        ledger=ledger,
        coverage=coverage,
    )


class KctlTransport(PreparedTransport):
    """Opens control sockets on this machine."""

    def __init__(self, options: MonitorOptions) -> None:
        self._options = options
        self._evidence = LoopbackEvidence()
        self._own: set[int] = set()
        """The kernel's numbers of the control sockets that were opened here, if it tells them."""

    def connect(self) -> Channel:
        with _OPENING:
            channel = open_control(self._options.receive_buffer)
            number = newest_client(os.getpid())
        if number is not None:
            self._own.add(number)
        return channel

    def lookup(self, request: Any) -> Any:
        """Find executables; open or close the flows that prove a layout."""
        if isinstance(request, FindPaths):
            return PathsFound(request.pids, tuple(map(process_path, request.pids)))
        if isinstance(request, OpenEvidence):
            return self._evidence.open()
        if isinstance(request, ReadLedger):
            return self._read_ledger()
        if isinstance(request, ReadInterfaces):
            messages = interface_messages()
            if messages is None:
                return None
            return InterfacesRead(parse_interfaces(messages), tuple(interface_names().items()))
        self._evidence.close()
        return None

    def _read_ledger(self) -> Ledger | None:
        """The kernel's counters of the control sockets that were opened here, without others of this process."""
        found = {number: client_metrics(number) for number in self._own}
        rows = tuple(LedgerRow(row[0], *row[2:]) for number, row in sorted(found.items()) if row and row[0] == number)
        self._own = {row.client for row in rows}
        announcements = refused_announcements()
        return Ledger(rows, announcements) if rows or announcements is not None else None

    def close(self) -> None:
        """Close the prepared channel if it was not used, and the evidence's flows if they are still open."""
        self._evidence.close()
        super().close()


def open_control(receive_buffer: int | None) -> SocketChannel:
    """Connect to ``com.apple.network.statistics``.

    Raises:
        BackendUnavailableError: This is no Darwin system, the control is absent, or
            the sandbox denies it.
    """
    require(DARWIN, BACKEND, ABSENT)
    sock = _system_socket()
    try:
        sock.connect((_control_id(sock), 0))
        granted = set_receive_buffer(sock, receive_buffer)
    except OSError as error:
        sock.close()
        raise _explain(error, "connect to the control") from error
    except BaseException:
        sock.close()
        raise
    return SocketChannel(sock, immediate=True, receive_buffer=granted)


def _system_socket() -> socket.socket:
    family = getattr(socket, "PF_SYSTEM", _PF_SYSTEM)
    protocol = getattr(socket, "SYSPROTO_CONTROL", _SYSPROTO_CONTROL)
    try:
        return socket.socket(family, socket.SOCK_DGRAM, protocol)
    except OSError as error:
        raise _explain(error, "create a system socket") from error


def _control_id(sock: socket.socket) -> int:
    import fcntl  # noqa: PLC0415  # not on every platform

    info = bytearray(_CTL_INFO_SIZE)
    name = CONTROL_NAME.encode()
    info[4 : 4 + len(name)] = name
    try:
        fcntl.ioctl(sock.fileno(), _CTLIOCGINFO, info)
    except OSError as error:
        raise _explain(error, f"look up {CONTROL_NAME}") from error
    (control_id,) = struct.unpack_from("=I", info)
    return int(control_id)


def _explain(error: OSError, what: str) -> BackendUnavailableError:
    """Explain what a failed call means and what to do."""
    number = error.errno or 0
    text = os.strerror(number)
    if number in {errno.EPERM, errno.EACCES}:
        reason, hint = UnavailableReason.PERMISSION, "a sandbox denies it; run outside the App Sandbox"
    elif number == errno.ENOENT:
        reason, hint = UnavailableReason.MISSING, "this kernel has no such control (it came with OS X 10.7)"
    elif number in {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}:
        reason, hint = UnavailableReason.RESOURCE, "out of descriptors or memory"
    else:
        reason, hint = UnavailableReason.MISSING, "unexpected"
    return BackendUnavailableError(BACKEND, reason, f"cannot {what}: {text} ({hint})")
