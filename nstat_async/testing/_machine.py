"""The emulated machine without its flows: release, processes, interfaces, faults."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nstat_async._errors import UsageError
from nstat_async._model import Endpoint, InterfaceKind, Provider
from nstat_async.ntstat import Kernel

from ._encoding import ReportEncoder
from ._faults import Faults
from ._interfaces import EmulatedInterface, default_interfaces
from ._receive_buffer import DEFAULT_RECEIVE_SPACE
from ._time import KernelTime
from ._values import executable_uuid

__all__ = ["OWNER_FIELDS", "Machine"]

OWNER_FIELDS = ("pid", "upid", "pname", "uuid", "epid", "eupid", "euuid", "uid", "persona_id")
"""Fields of a descriptor that say who a flow belongs to."""
_FIRST_PORT = 49152
_LONGEST_PROCESS_NAME = 32


class Machine(KernelTime):
    """What flows and control sockets have in common.

    Args:
        release: The kernel release.
        clock: See `KernelTime`, like the next two.
        uptime: …
        timebase: …
        seed: Of everything random.
        insertions: Bytes that a newer kernel has put into its structures, see `EmulatedKernel`.
    """

    def __init__(
        self,
        release: Kernel,
        *,
        clock: Callable[[], float] | None,
        uptime: float,
        timebase: tuple[int, int],
        seed: int,
        insertions: Mapping[str, Iterable[tuple[int, int]]] | None,
    ) -> None:
        super().__init__(clock, uptime, timebase)
        self.release: Kernel = release
        """The release as the library understands it."""
        self.layout = release.layout
        """Its wire layout."""
        self.reports = ReportEncoder(release.layout)
        self.random = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        self.faults = Faults(random=self.random)
        """What goes wrong on purpose."""
        self.interfaces: dict[str, EmulatedInterface] = {made.name: made for made in default_interfaces()}
        """The network interfaces by name."""
        self.receive_space = DEFAULT_RECEIVE_SPACE
        self.header_garbage = False
        self.privileged = False
        self.privilege_check = False
        self.contended = False
        self.absent_providers: set[int] = set()
        """Providers that this build of the release lacks, though its headers have their numbers."""
        self._insertions = {name: sorted(pairs) for name, pairs in (insertions or {}).items()}
        self._numbers = itertools.count()
        self._ports = itertools.cycle(range(_FIRST_PORT, 65536))
        self._upids = itertools.count(100_001)
        self._processes: dict[int, tuple[int, str]] = {}

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
        where = " in user-land" if userland else ""
        raise UsageError(f"provider: {self.name} has no {provider.value}{where}")

    def insert(self, structure: str, data: bytes) -> bytes:
        """A structure with what a newer kernel has put into it."""
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
        made = self.interfaces[name] = EmulatedInterface(name, index, kind, delegate=over, **more)
        return made

    def interface(self, name: str) -> EmulatedInterface:
        """The interface of this name.

        Raises:
            UsageError: There is none.
        """
        try:
            return self.interfaces[name]
        except KeyError:
            known = ", ".join(self.interfaces)
            raise UsageError(f"interface: {name!r} is none of {known}") from None

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
        """Descriptor fields for an owner that acts for itself."""
        unique = self.process(pid, name) if upid is None else upid
        image = executable_uuid(name)
        kept = name.encode("utf-8", "surrogateescape")[:_LONGEST_PROCESS_NAME]
        owner = {"pid": pid, "upid": unique, "pname": kept, "uuid": image, "uid": uid}
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
