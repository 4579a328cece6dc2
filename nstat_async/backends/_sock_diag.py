"""The backend ``sock_diag``: netlink of this Linux machine."""

from __future__ import annotations

import platform
from typing import Any, ClassVar, Union

import attrs

from .._contract import Core, Feed, Transport
from .._errors import UsageError
from .._io.system import LINUX, require
from .._options import MonitorOptions
from ._loading import load

Namespace = Union[str, int, None]
ALL = "all"
"""In place of names: every namespace."""


def _namespaces(value: Any) -> tuple[Namespace, ...]:
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for item in items:
        number = type(item) is int and 0 < item < 1 << 31
        text = isinstance(item, str) and item and "\0" not in item
        if item is not None and not number and not text:
            raise UsageError(f"netns: {item!r} is neither a name, a path nor a pid")
    if ALL in items and len(items) > 1:
        raise UsageError("netns: 'all' cannot be combined with others; a namespace named all is /run/netns/all")
    if not items:
        raise UsageError("netns: at least one is needed")
    return items


@attrs.frozen
class SockDiag:
    """The sockets of this Linux machine, by netlink sock_diag. Needs no privilege."""

    name: ClassVar[str] = "sock_diag"
    netns: tuple[Namespace, ...] = attrs.field(default=(None,), converter=_namespaces)
    """Network namespaces to watch: a pid, a path, a name given by ``ip netns``, or `None` for this
    one; several as a tuple. ``"all"``: all that exist, also those of containers and those with names, as they come and
    go. Any but this one needs CAP_SYS_ADMIN. Without it, ``"all"`` shows what eBPF programs see of the others, or, without
    the programs, what ``/proc/PID/net`` shows to everybody: the sockets, without their bytes."""

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: This is not Linux, or a namespace cannot be entered.
            UsageError: The options ask for nothing that sock_diag has.
        """
        from .._io.pump import KernelFeed  # noqa: PLC0415  # with asyncio, of which an import alone has no need

        core, transport = self.parts(options)
        return KernelFeed(core, transport, options=options)

    async def open_outside(self, options: MonitorOptions) -> Feed:
        """As `open`, but the modules are imported outside the event loop."""
        require(LINUX, self.name, "netlink exists on Linux only")
        await load("_io.pump", "_io.netlink")
        return self.open(options)

    def parts(self, options: MonitorOptions) -> tuple[Core, Transport]:
        """The core and the transport, for an event loop of one's own.

        Raises:
            BackendUnavailableError: As `open`.
            UsageError: As `open`.
        """
        require(LINUX, self.name, "netlink exists on Linux only")
        from .._io.linux import process_visibility  # noqa: PLC0415  # for Linux
        from .._io.namespaces import NamespaceFinder, Watched, open_namespaces  # noqa: PLC0415  # as above
        from .._io.netlink import NetlinkTransport  # noqa: PLC0415  # as above
        from ..sockdiag import NetworkNamespace, Session, Setup  # noqa: PLC0415  # as above

        finder = None
        if self.netns == (ALL,):
            watched = Watched()
            finder = NamespaceFinder(watched)
            finder.begin()
            namespaces = [NetworkNamespace()]
        else:
            namespaces, watched = open_namespaces(self.netns)
        transport = NetlinkTransport(watched, options.receive_buffer, command_lines=options.extras, finder=finder)
        processes, limit, refused = process_visibility(transport.networks)
        setup = Setup(
            kernel=platform.release(),
            namespaces=tuple(namespaces),
            processes=processes,
            limit=limit,
            refused=refused,
            ebpf=options.ebpf,
            all_namespaces=finder is not None,
            closed=finder is not None and finder.closed,
            cgroups=True,
        )
        try:
            core = Session.from_setup(setup, options)
        except BaseException:
            transport.close()
            raise
        return core, transport


def receive_limit() -> tuple[str, int | None]:
    """Name and value of the largest receive buffer that the system grants, bytes; `None` if it cannot be read."""
    try:
        with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:  # noqa: PTH123  # a fixed path
            return "net.core.rmem_max", int(file.read())
    except (OSError, ValueError):
        return "net.core.rmem_max", None
