"""Loads the eBPF programs: as many of them as the kernel grants, and none without the others that it needs."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import socket
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from .._errors import BackendUnavailableError, ProtocolError, UnavailableReason, UsageError
from ..ebpf import (
    Kernel,
    Listing,
    MapSpec,
    Program,
    Refusal,
    Tier,
    in_cgroup,
    left_out,
    no_hook,
    options_for,
    parse_listing,
    patch,
    program_types,
    refusal_for,
    resolve,
    supported,
    tier_of,
)
from .bpf import NO_TOKEN, VerifierError, create_link, create_map, create_token, load_program, open_tracepoint
from .cgroups import mounted_at
from .linux import leave_descriptors

BTF_PATH = "/sys/kernel/btf/vmlinux"
BPFFS_PATH = "/sys/fs/bpf"
NETLINK_SOCK_DIAG = 4
_SO_NETNS_COOKIE = 71
_TRACING = 26
"""``BPF_PROG_TYPE_TRACING``: programs that are attached to a type of the kernel's BTF."""
_REMOVERS = frozenset({"released", "tcp_state"})
_SMALLEST = MapSpec("permission", 2, max_entries=1, key=4, value=8)
"""A small ``BPF_MAP_TYPE_ARRAY``: a process that may make it may make the other maps, too."""
_UNUSED_PEERS = 16
"""Entries of the map of peers if it is not used; the programs refer to it in any case."""


def namespace_cookie() -> int | None:
    """The cookie of this network namespace; `None` before Linux 5.14.

    A socket tells it that no program looks at: the kernel frees a socket a while after it was closed, when programs may be
    attached already. Its protocol is one that is needed in any case, because others may be forbidden.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as probe:
        return socket_number(probe, _SO_NETNS_COOKIE)
    return None


def socket_number(sock: socket.socket, option: int) -> int:
    """A socket option that is a number of 64 bits.

    Raises:
        OSError: The kernel has no such option.
    """
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, option, 8))[0])


@functools.cache
def listing() -> Listing:
    """The programs that come with the library."""
    return parse_listing(resources.files("nstat_async.ebpf").joinpath("programs.bpf").read_text(encoding="ascii"))


@functools.cache
def _resolved() -> Kernel:
    """The programs' fields in the running kernel, which never change."""
    return resolve(listing(), Path(BTF_PATH).read_bytes())


def _positive(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1:
        raise UsageError(f"{attribute.name}: {value} is not a positive number")


def _power_of_two(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
    if value < mmap.PAGESIZE or value & (value - 1):
        raise UsageError(f"{attribute.name}: {value} is not a power of two of at least {mmap.PAGESIZE}")


def ring_size(memory: int | None = None) -> int:
    """Bytes of a ring for a machine with this much memory (`None`: this one): a thousandth of it, between 4 and 32 MiB.

    It is allocated at once. Records wait in it while the event loop is busy: a storm of new connections is faster than Python.
    """
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 1 << min(25, max(22, (memory >> 10).bit_length() - 1))


@attrs.frozen(kw_only=True)
class EbpfSettings:
    """The settings of the eBPF source."""

    every_namespace: bool = False
    """Watch all network namespaces, not just this one."""
    peers: bool = False
    """Count per remote address of unconnected UDP sockets."""
    ring: int = attrs.field(factory=ring_size, validator=_power_of_two)
    """Bytes of the ring buffer, a power of two; 4 MiB are 20,000 records."""
    flows: int = attrs.field(default=1 << 16, validator=_positive)
    """Sockets that can be counted at once; 184 bytes of kernel memory each, in advance."""
    most_peers: int = attrs.field(default=1 << 14, validator=_positive)
    """Most remote addresses that are kept; the least recently used one is removed for a new one."""
    cgroup: str | None = attrs.field(factory=mounted_at)
    """Where cgroup2 is mounted; sockets of this cgroup and those below are seen. `None`: do not use cgroups."""
    bpffs: str | None = BPFFS_PATH
    """A bpffs that may have been delegated to this user namespace."""
    without: frozenset[str] = frozenset()
    """Programs to leave out."""


class _RefusedError(Exception):
    """A step was refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@attrs.define(eq=False)
class Loaded:
    """The maps and programs that are loaded, and the stack that closes them."""

    close: contextlib.ExitStack
    maps: dict[str, int]
    programs: dict[str, int]
    links: dict[str, int]


def unavailable(refusal: Refusal) -> BackendUnavailableError:
    """The error for a refusal: the source is not available."""
    return BackendUnavailableError("ebpf", refusal.reason, str(refusal))


class Loader:
    """Tries sets of programs, first all of them and then fewer, until one set is granted completely."""

    def __init__(self, settings: EbpfSettings) -> None:
        self._settings = settings
        self._mptcp = True
        self._token = NO_TOKEN
        self.undo = contextlib.ExitStack()
        """Closes the things that only loading needs: a link keeps its cgroup, a program its rights."""
        self.refusals: dict[str, Refusal] = {}
        self.namespace = 0 if settings.every_namespace else namespace_cookie() or 0

    def load(self) -> Loaded:
        """Load the largest set that is granted.

        Raises:
            BackendUnavailableError: No set is granted.
        """
        with self.undo:
            self._ask_for_permission()
            self._listing = listing()
            kernel = self._kernel()
            cgroup = self._cgroup(self.undo)
            wanted = self._possible(kernel, cgroup)
            while tier_of(wanted) is not Tier.NONE:
                try:
                    return self._attempt(kernel, wanted, cgroup)
                except _RefusedError as refused:
                    wanted = self._without(wanted, refused.refusal)
        raise unavailable(self._decisive())

    def _ask_for_permission(self) -> None:
        """Check that we may make maps, before the kernel's types are read, which takes time."""
        try:
            os.close(self._make_map(_SMALLEST))
        except OSError as error:
            raise unavailable(refusal_for("maps", error.errno or 0)) from error

    def _decisive(self) -> Refusal:
        """The refusal to report if nothing is granted: first of all missing privileges, then the kernel's reason."""
        refusals = [*self.refusals.values(), left_out("tcp_state", ())]
        return min(refusals, key=lambda one: (one.reason is not UnavailableReason.PERMISSION, one.errno == 0))

    def _kernel(self) -> Kernel:
        try:
            return _resolved()
        except FileNotFoundError as error:
            detail = f"{BTF_PATH} does not exist: this is not Linux, or a kernel built without CONFIG_DEBUG_INFO_BTF"
            raise BackendUnavailableError("ebpf", UnavailableReason.MISSING, detail) from error
        except OSError as error:
            raise unavailable(refusal_for(BTF_PATH, error.errno or 0)) from error
        except ProtocolError as error:
            raise BackendUnavailableError("ebpf", UnavailableReason.KERNEL, f"{BTF_PATH}: {error}") from error

    def _cgroup(self, undo: contextlib.ExitStack) -> int | None:
        path = self._settings.cgroup
        if path is None:
            self.refusals["cgroup2"] = Refusal("cgroup2", UnavailableReason.MISSING, 0, "it is not mounted here")
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.refusals["cgroup2"] = refusal_for(f"cgroup2 at {path}", error.errno or 0, cgroup=True)
            return None
        undo.callback(os.close, descriptor)
        return descriptor

    def _possible(self, kernel: Kernel, cgroup: int | None) -> frozenset[str]:
        """The programs that this kernel has hooks for."""
        possible = set()
        for name, program in self._listing.programs.items():
            section = program.section
            if name in self._settings.without or (in_cgroup(section) and cgroup is None):
                continue
            if program_types(section)[0] == _TRACING and section not in kernel.hooks:
                self.refusals[name] = no_hook(name, section)
                continue
            possible.add(name)
        return self._supported(frozenset(possible))

    def _supported(self, programs: frozenset[str]) -> frozenset[str]:
        left = supported(programs)
        for name in sorted(programs - left):
            self.refusals.setdefault(name, left_out(name, self.refusals))
        return left

    def _without(self, wanted: frozenset[str], refusal: Refusal) -> frozenset[str]:
        """The programs to try after a refusal."""
        if refusal.what not in wanted:  # a map: every set of programs needs it
            self.refusals[refusal.what] = refusal
            return frozenset()
        if self._mptcp and refusal.what in {"sent", "received"}:
            self._mptcp = False  # lockdown forbids the one helper that only MPTCP needs
            return wanted
        self.refusals[refusal.what] = refusal
        return self._supported(wanted - {refusal.what})

    def _attempt(self, kernel: Kernel, wanted: frozenset[str], cgroup: int | None) -> Loaded:
        """Load and attach a set of programs, all or nothing.

        Raises:
            _RefusedError: One of them was refused.
        """
        settings = self._settings
        options = options_for(wanted, peers=settings.peers, mptcp=self._mptcp, every_namespace=self.namespace == 0)
        constants = {"namespace": self.namespace, "options": int(options)}
        programs = [program for name, program in self._listing.programs.items() if name in wanted]
        with contextlib.ExitStack() as undo:
            loaded = Loaded(undo, {}, {}, {})
            for name in sorted({name for program in programs for name in program.maps}):
                loaded.maps[name] = self._held(undo, name, self._make_map, self._spec(name))
            for program in programs:
                code = patch(program, kernel, loaded.maps, constants)
                loaded.programs[program.name] = self._held(undo, program.name, self._load, program, code, kernel)
            # Programs that remove entries come first, so that each entry is removed.
            for program in sorted(programs, key=lambda program: program.name not in _REMOVERS):
                descriptor = loaded.programs[program.name]
                loaded.links[program.name] = self._held(undo, program.name, _attach, program, descriptor, cgroup)
            try:
                leave_descriptors(max(loaded.links.values()))
            except OSError as error:
                raise _RefusedError(refusal_for("descriptors for the rest of the process", error.errno or 0)) from error
            loaded.close = undo.pop_all()
            return loaded

    def _held(self, undo: contextlib.ExitStack, what: str, make: Callable[..., int], *arguments: Any) -> int:
        """Make a descriptor that is closed at the end.

        Raises:
            _RefusedError: It was refused.
        """
        try:
            descriptor = make(*arguments)
        except OSError as error:
            program = self._listing.programs.get(what)
            log = error.log if isinstance(error, VerifierError) else ""
            cgroup = program is not None and in_cgroup(program.section)
            raise _RefusedError(refusal_for(what, error.errno or 0, log, cgroup=cgroup)) from error
        undo.callback(os.close, descriptor)
        return descriptor

    def _spec(self, name: str) -> MapSpec:
        settings = self._settings
        entries = {
            "ring": settings.ring,
            "flows": settings.flows,
            "peers": settings.most_peers if settings.peers else _UNUSED_PEERS,
        }
        spec = self._listing.maps[name]
        return attrs.evolve(spec, max_entries=entries.get(name, spec.max_entries))

    def _make_map(self, spec: MapSpec) -> int:
        try:
            return create_map(spec, self._token)
        except PermissionError:
            if self._token != NO_TOKEN or not self._take_token():
                raise
            return create_map(spec, self._token)

    def _take_token(self) -> bool:
        """Ask a delegated bpffs for a token, which grants more than the process's own rights."""
        if self._settings.bpffs is None:
            return False
        with contextlib.suppress(OSError):
            root = os.open(self._settings.bpffs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._token = create_token(root)
            finally:
                os.close(root)
            self.undo.callback(os.close, self._token)
            return True
        return False

    def _load(self, program: Program, code: bytes, kernel: Kernel) -> int:
        hook = kernel.hooks.get(program.section, 0)
        types = program_types(program.section)
        return load_program(program.name, code, self._listing.license, types, hook, self._token)


def _attach(program: Program, descriptor: int, cgroup: int | None) -> int:
    attach_type = program_types(program.section)[1]
    if in_cgroup(program.section):
        assert cgroup is not None
        return create_link(descriptor, cgroup, attach_type)
    if program.section.startswith("iter/"):
        return create_link(descriptor, 0, attach_type)
    return open_tracepoint(descriptor)
