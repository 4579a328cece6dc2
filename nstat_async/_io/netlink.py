"""Opens netlink sockets for the sock_diag core in the watched network namespaces, and answers its look-ups.

Each socket always receives with the same large buffer: the kernel makes the
pieces of a dump as large as the largest receive so far, and silently cuts them
for a smaller one (``netlink_recvmsg``).
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .._contract import Channel
from .._errors import BackendUnavailableError, UnavailableReason
from ..sockdiag import (
    AttachAnswer,
    AttachRequest,
    CgroupsRequest,
    ChangedAnswer,
    ChangedRequest,
    ChannelPurpose,
    LinkKindsAnswer,
    LinkKindsRequest,
    NamespacesAnswer,
    NamespacesRequest,
    OwnersRequest,
    ProcessesAnswer,
    ProcessesRequest,
    PulsePurpose,
    Role,
    SocketTablesAnswer,
    SocketTablesRequest,
    TrafficAnswer,
    TrafficRequest,
)
from .bpfload import NETLINK_SOCK_DIAG, EbpfSettings, namespace_cookie
from .cgroups import CgroupFinder
from .channel import SocketChannel
from .ebpf import EbpfSource
from .linux import THREAD_NET, device_kind, in_namespace
from .namespaces import NamespaceFinder, Watched
from .processes import ProcessReader, user_names
from .procfs import ProcessScanner
from .proctables import read_tables
from .pulse import Pulse, PulseChannel
from .ring import REST
from .traffic import read_traffic

GOODBYE_BUFFER = 64 << 20
"""Receive buffer that is requested for destroy notifications: 50,000 of 1,280 bytes each."""
OTHER_BUFFER = 1 << 20
"""Receive buffer that is requested for the other sockets, which get only answers to requests."""

_NETLINK_ROUTE = 0
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
_ROUTE_GROUPS = 0x1 | 0x10 | 0x100
"""Groups for changes of links, IPv4 and IPv6 addresses (``RTMGRP_*``)."""
_AF_NETLINK = 16


def set_receive_buffer(channel: socket.socket, size: int) -> int:
    """Give a socket the largest receive buffer up to `size` that our privileges allow.

    ``SO_RCVBUFFORCE`` needs CAP_NET_ADMIN; ``SO_RCVBUF`` is capped by
    ``net.core.rmem_max`` without an error. The kernel doubles both for its
    bookkeeping, and the result is the doubled size.

    Returns:
        Bytes granted, as the kernel counts them.
    """
    half = max(1, size // 2)
    try:
        channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, half)
    except OSError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, half)
    return channel.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class NetlinkTransport:
    """Opens the channels of a sock_diag session and answers its look-ups.

    Args:
        watched: The network namespaces by their number in the session. The transport owns them.
        receive_buffer: Bytes to ask for, for destroy notifications; `None`: `GOODBYE_BUFFER`.
        command_lines: Read the command lines of processes, too.
        finder: Searches for other namespaces; `None`: they are not searched for.
    """

    def __init__(
        self,
        watched: Watched | None = None,
        receive_buffer: int | None = None,
        *,
        command_lines: bool = False,
        finder: NamespaceFinder | None = None,
    ) -> None:
        self._watched = watched or Watched({0: None})
        self._finder = finder
        self._receive_buffer = receive_buffer or GOODBYE_BUFFER
        self.networks = self._watched.networks
        """The namespaces, as `network_of_this_thread` numbers them."""
        self._processes = ProcessReader(command_lines=command_lines)
        self._scanner = ProcessScanner(self._processes, networks=self.networks)
        self._pulse = Pulse(self._scanner.recent, self._processes)
        self._cgroups = CgroupFinder()
        self._closed = False
        self._programs: EbpfSource | None = None
        self._attaching = threading.Lock()
        self._answers: dict[type, Callable[[Any], Any]] = {
            OwnersRequest: self._scanner.answer,
            ProcessesRequest: self._name,
            SocketTablesRequest: self._tables,
            LinkKindsRequest: self._link_kinds,
            TrafficRequest: self._traffic,
            CgroupsRequest: self._cgroups.answer,
            ChangedRequest: self._changed,
            NamespacesRequest: self._find,
            AttachRequest: self._attach,
        }

    def open(self, purpose: Any) -> Channel:
        """Open a channel.

        Raises:
            OSError: It cannot be opened.
            BackendUnavailableError: It would be of another namespace than the monitor, because the thread went there.
        """
        if not isinstance(purpose, (ChannelPurpose, PulsePurpose)):
            if self._programs is None:
                raise OSError(errno.ENOENT, "no eBPF programs are attached")
            return self._programs.open(purpose)
        if purpose.namespace not in self._watched.descriptors:
            raise OSError(errno.ENOENT, "the network namespace went")
        namespace = self._watched.descriptors[purpose.namespace]

        def make() -> SocketChannel | PulseChannel:
            return self._pulse.open(purpose) if isinstance(purpose, PulsePurpose) else self._make(purpose)

        if namespace is not None:
            return in_namespace(namespace, make)
        self._watched.own.check_thread()
        return make()

    def _make(self, purpose: ChannelPurpose) -> SocketChannel:
        routes, removals = purpose.role is Role.ROUTES, purpose.role is Role.REMOVALS
        family = _NETLINK_ROUTE if routes else NETLINK_SOCK_DIAG
        sock = socket.socket(_AF_NETLINK, socket.SOCK_RAW | _SOCK_CLOEXEC, family)
        try:
            granted = set_receive_buffer(sock, self._receive_buffer if removals else OTHER_BUFFER)
            sock.bind((0, _ROUTE_GROUPS if routes else 0))
            for group in purpose.groups:
                sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except BaseException:
            sock.close()
            raise
        # eBPF records tell first that a socket ended: waking for each notification, too, would cost as much as all the rest.
        rest = REST if removals and self._programs is not None else 0.0
        asked = purpose.role in {Role.DUMPS, Role.LOOKUPS}
        return SocketChannel(sock, immediate=True, receive_buffer=granted, rest=rest, answers_only=asked)

    def lookup(self, request: Any) -> Any:
        """Answer a look-up of the session; blocks for some 20 ms at most.

        Raises:
            OSError: ``/proc`` cannot be read.
        """
        answer = self._answers.get(type(request))
        return None if answer is None else answer(request)

    def _name(self, request: ProcessesRequest) -> ProcessesAnswer:
        facts = (self._processes.facts(pid) for pid, _ in request.processes)
        found = tuple(each for each in facts if each.start_ticks is not None)
        return ProcessesAnswer(found, user_names(request.users))

    def _changed(self, request: ChangedRequest) -> ChangedAnswer:
        programs = self._programs
        try:
            return ChangedAnswer(b"" if programs is None else programs.changed(mark=request.mark))
        except OSError as error:
            return ChangedAnswer(errno=error.errno or errno.EIO)

    def _find(self, request: NamespacesRequest) -> NamespacesAnswer:
        if self._finder is None:
            return NamespacesAnswer()
        answer = self._finder.answer(request)
        if answer.found or answer.gone or request.released:
            self.networks = self._scanner.networks = self._watched.networks | self._finder.outside.networks
        return answer

    def _tables(self, request: SocketTablesRequest) -> SocketTablesAnswer:
        if request.namespace not in self._watched.descriptors:
            # Without a descriptor it is watched from outside, or is gone.
            return (
                SocketTablesAnswer(request.namespace, unread=True)
                if self._finder is None
                else self._finder.outside.tables(request)
            )
        namespace = self._watched.descriptors[request.namespace]
        if namespace is None:
            return read_tables(self._watched.own.files(), request)
        return in_namespace(namespace, lambda: read_tables(THREAD_NET, request))

    def _traffic(self, request: TrafficRequest) -> TrafficAnswer:
        if request.namespace not in self._watched.descriptors:  # it is gone
            return TrafficAnswer(request.namespace)
        descriptor = self._watched.descriptors[request.namespace]
        own = self._watched.own
        read = read_traffic(own.files()) if descriptor is None else in_namespace(descriptor, read_traffic)
        return TrafficAnswer(request.namespace, *read)

    def _attach(self, request: AttachRequest) -> AttachAnswer:
        """Attach the eBPF programs."""
        descriptors = self._watched.descriptors
        cookies = tuple(map(self._cookie_of, descriptors.values()))
        if not any(cookies):
            detail = "this kernel does not number network namespaces (Linux 5.14)"
            return AttachAnswer(reason=UnavailableReason.KERNEL, detail=detail)
        everywhere = self._finder is not None or descriptors != {0: None}
        settings = EbpfSettings(every_namespace=everywhere, peers=request.remotes)
        try:
            if None in descriptors.values():
                self._watched.own.check_thread()
            programs = EbpfSource.attach(settings)
        except BackendUnavailableError as error:
            return AttachAnswer(reason=error.reason, detail=error.detail)
        with self._attaching:
            if self._closed:
                programs.close()
                return AttachAnswer(reason=UnavailableReason.RESOURCE, detail="the monitor was closed meanwhile")
            self._programs = programs
        refused = next(iter(programs.refusals), None)
        return AttachAnswer(
            tier=programs.tier,
            reason=None if refused is None else refused.reason,
            detail="" if refused is None else str(refused),
            processes_trusted=programs.processes_trusted,
            births="created" in programs.programs,
            owners="owners" in programs.programs,
            changes="changed" in programs.programs,
            namespaces=cookies,
            own_cookies=tuple(sorted(programs.own_cookies)),
            boot_offset=time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic(),
            ticks=os.sysconf("SC_CLK_TCK"),
        )

    @staticmethod
    def _cookie_of(namespace: int | None) -> int | None:
        return namespace_cookie() if namespace is None else in_namespace(namespace, namespace_cookie)

    def _link_kinds(self, request: LinkKindsRequest) -> LinkKindsAnswer:
        if self._watched.descriptors.get(request.namespace, -1) is not None:
            return LinkKindsAnswer(request.namespace)  # /sys shows only the devices of our own namespace
        kinds = ((name, device_kind(name)) for name in request.names)
        return LinkKindsAnswer(request.namespace, tuple((name, kind.value) for name, kind in kinds if kind is not None))

    def close(self) -> None:
        """Release the namespaces. Idempotent."""
        if self._closed:
            return
        with self._attaching:
            self._closed = True
            programs, self._programs = self._programs, None
        self._pulse.close()
        if programs is not None:
            programs.close()
        self._watched.close()


_SOCK_CLOEXEC: int = getattr(socket, "SOCK_CLOEXEC", 0)
