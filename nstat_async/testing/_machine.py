"""The emulated machine without its flows: release, processes, interfaces, faults."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat import Kernel, layout
from nstat_async.ntstat._tables import NEWEST, OLDEST

from ._encoding import ReportEncoder
from ._faults import Faults
from ._interfaces import EmulatedInterface, default_interfaces
from ._receive_buffer import DEFAULT_RECEIVE_SPACE
from ._time import KernelTime
from ._values import executable_uuid, flag, inserted, one_of, text, whole

OWNER_FIELDS = ("pid", "upid", "pname", "uuid", "epid", "eupid", "euuid", "uid", "persona_id")
"""Fields of a descriptor that say who a flow belongs to."""
_FIRST_PORT = 49152
_LONGEST_PROCESS_NAME = 32


class Machine(KernelTime):
    """The base of the emulated kernel: what both flows and control sockets need.

    Args:
        kernel: The release, in any form that `nstat_async.ntstat.Kernel.parse` takes.
        receive_space: Receive buffer that ``connect`` gives, bytes.
        privileged: True: clients are root, or hold the entitlement.
        privilege_check: ``net.statistics_privcheck``: on macOS it is off.
        clock: A function that returns seconds, such as `time.monotonic`; `None`: time passes only by `advance`.
        timebase: ``mach_timebase_info``: ticks times the first number, divided by the second, are nanoseconds.
            Apple silicon has (125, 3).
        seed: The seed of everything random: faults, garbage, workloads.
        layout_number: Another wire layout than the release's own (1 to 12).
        insertions: Bytes that a newer kernel has put into its structures: name of the structure
            to pairs of (offset, bytes). See `DARWIN_27_INSERTIONS`.
        contended: True: since xnu-11215 a chunk of a paced poll ends after five sources, as if
            another thread waited for the lock.
        uptime: Seconds since the machine was started, at the beginning; only without `clock`.
        minute_timer: False: the work of the minute-timer is done only by `idle_check`.
        header_garbage: Up to xnu-2422 an unused word of the header has random content; False: it is zero.
    """

    # Flows call these; the subclasses `ScriptedMachine` and `SansIoKernel` implement them.
    open_flow: Callable[..., Any]
    flow_closed: Callable[[Any], None]
    userland_time_wait: Callable[[Any], None]
    raise_event: Callable[[Any, int], None]

    def __init__(
        self,
        kernel: str = "xnu-11417.121.6",
        *,
        receive_space: int = DEFAULT_RECEIVE_SPACE,
        privileged: bool = False,
        privilege_check: bool = False,
        clock: Callable[[], float] | None = None,
        timebase: tuple[int, int] = (1, 1),
        seed: int = 0,
        layout_number: int | None = None,
        insertions: Mapping[str, Iterable[tuple[int, int]]] | None = None,
        contended: bool = False,
        uptime: float = 1000.0,
        minute_timer: bool = True,
        header_garbage: bool = True,
    ) -> None:
        super().__init__(clock, uptime, timebase)
        release = Kernel.parse(kernel)
        flag("privileged", privileged)
        flag("privilege_check", privilege_check)
        flag("contended", contended)
        flag("minute_timer", minute_timer)
        flag("header_garbage", header_garbage)
        whole("receive_space", receive_space, bits=31, least=1)
        whole("seed", seed, least=-(1 << 63))
        if layout_number is not None:
            one_of("layout_number", layout_number, range(OLDEST, NEWEST + 1))
            release = attrs.evolve(release, layout=layout(layout_number), known=False)
        self.release: Kernel = release
        """The release as the library understands it."""
        self.layout = release.layout
        """Its wire layout."""
        self.reports = ReportEncoder(release.layout)
        self.receive_space = receive_space
        self.header_garbage = header_garbage and release.version < (2782,)
        self.privileged = privileged
        self.privilege_check = privilege_check
        self.contended = contended
        self.random = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        self.faults = Faults(random=self.random)
        """What goes wrong on purpose."""
        self.interfaces: dict[str, EmulatedInterface] = {made.name: made for made in default_interfaces()}
        """The network interfaces by name."""
        self.responsible: str | None = None
        """The program that started all others, as a terminal does; `None`: each acts for itself. Since
        xnu-10063 their sockets have its UUID (``euuid``), and no effective process (``epid``, ``eupid`` 0)."""
        self.absent_providers: set[int] = set()
        """Providers that this build of the release lacks, though its headers have their numbers."""
        self.refused_announcements = 0
        """Announcements that found no room, of all clients since the beginning (``net.stats.stats``)."""
        self.clients: list[Any] = []
        self.on_close: list[Callable[[], None]] = []
        """Called when the kernel is closed: its servers stop there."""
        self._flows: dict[int, dict[int, Any]] = {number: {} for number in release.providers}
        self._interface_flows: dict[int, Any] = {}
        self._insertions = {} if insertions is None else inserted("insertions", insertions)
        self._numbers = itertools.count()
        self._units = itertools.count(1)
        self._ports = itertools.cycle(range(_FIRST_PORT, 65536))
        self._upids = itertools.count(100_001)
        self._processes: dict[int, tuple[int, str]] = {}
        self._merged_events = 0
        self._minute_timer_runs = not minute_timer

    @property
    def name(self) -> str:
        """``xnu-…``."""
        return self.release.name

    def next_number(self) -> int:
        """A number for a flow."""
        return next(self._numbers)

    def provider_number(self, provider: Provider, *, userland: bool | None = None) -> int:
        """The number of a provider in this release.

        Raises:
            UsageError: This release has no such provider.
        """
        for number, known in self.release.providers.items():
            if known[0] is provider and (userland is None or known[1] in {None, userland}):
                return number
        one_of("provider", provider, tuple(Provider))
        where = " in user-land" if userland else ""
        raise UsageError(f"provider: {self.name} has no {provider.value}{where}")

    def insert(self, structure: str, data: bytes) -> bytes:
        """The bytes of a structure with the `insertions`."""
        for offset, size in reversed(self._insertions.get(structure, [])):
            filling = bytes(0xA5 ^ position & 0xFF for position in range(size))
            data = data[:offset] + filling + data[offset:]
        return data

    def inserted_offset(self, structure: str, offset: int) -> int:
        """Where a field of a structure lies after the insertions."""
        return offset + sum(size for at, size in self._insertions.get(structure, []) if at <= offset)

    # Interfaces

    def add_interface(
        self, name: str, index: int, kind: InterfaceKind, *, delegate: str | None = None, **more: Any
    ) -> EmulatedInterface:
        """Add a network interface, or replace the one of that name; `more` are fields of `EmulatedInterface`."""
        over = self.interface(delegate) if delegate is not None else None
        for field in more:
            one_of("interface", field, [each.name for each in attrs.fields(EmulatedInterface)])
        made = self.interfaces[name] = EmulatedInterface(name, index, kind, delegate=over, **more)
        return made

    def interface(self, name: str) -> EmulatedInterface:
        """The interface of this name.

        Raises:
            UsageError: There is none.
        """
        if not isinstance(name, str) or name not in self.interfaces:
            one_of("interface", name, self.interfaces)
        return self.interfaces[name]

    def interface_list(self) -> dict[int, str]:
        """Interface names by index."""
        return {interface.index: interface.name for interface in self.interfaces.values()}

    # Processes and addresses

    def process(self, pid: int, name: str) -> int:
        """The unique id of a process; made when the pid, or its name, is new."""
        known = self._processes.get(pid)
        if known is None or known[1] != name:
            known = self._processes[pid] = (next(self._upids), name)
        return known[0]

    def owner_fields(self, pid: int, name: str, *, upid: int | None = None, uid: int = 501) -> dict[str, Any]:
        """Descriptor fields for an owner that acts for itself, perhaps started by somebody `responsible`."""
        whole("pid", pid, bits=31)
        text("name", name)
        unique = self.process(pid, name) if upid is None else whole("upid", upid)
        image = executable_uuid(name)
        kept = name.encode("utf-8", "surrogateescape")[:_LONGEST_PROCESS_NAME]
        owner = {"pid": pid, "upid": unique, "pname": kept, "uuid": image, "uid": uid}
        if self.responsible is not None and self.release.version >= (10063,):
            return {**owner, "epid": 0, "eupid": 0, "euuid": executable_uuid(text("responsible", self.responsible))}
        return {**owner, "epid": pid, "eupid": unique, "euuid": image}

    def ephemeral(self, peer: Endpoint | None) -> Endpoint:
        """A local endpoint for a connection to `peer`."""
        port = next(self._ports)
        if peer is not None and peer.is_loopback:
            return Endpoint(peer.packed, port)
        if peer is not None and len(peer.packed) == 16:
            return Endpoint.parse("2001:db8:1::10", port)
        return Endpoint.parse("192.168.1.10", port)

    def loopback_pair(self, address: str) -> tuple[Endpoint, Endpoint]:
        """Two endpoints with fresh ports on a loopback address."""
        return Endpoint.parse(address, next(self._ports)), Endpoint.parse(address, next(self._ports))
