"""Opens the network namespaces that are named, or finds all of them as they come and go.

A namespace is identified by device and inode of its file (``nsfs``), not by a name. The kernel has no list of all
namespaces: they are found by their processes (``/proc/PID/ns/net``) and by mounts (``ip netns`` and container engines
mount them to keep them). One that only a descriptor, a socket or a single thread holds is not found.

An open descriptor keeps a namespace alive, so its inode is not used again while it is watched: if a name is deleted
and made again, it has another inode.
"""

# ruff: noqa: PTH112, PTH115, PTH116, PTH123
# Paths of /proc are read thousands at a time: as strings.

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import resource
import threading
import time
from collections.abc import Iterator

import attrs

from .._errnos import MORE_FILES, no_thread_text
from .._errors import BackendUnavailableError, UnavailableReason
from ..sockdiag import FoundNamespace, NamespacesAnswer, NamespacesRequest, NetworkNamespace
from ..sockdiag._setup import MAX_NAMESPACES, needed_to_look
from .bpfload import namespace_cookie
from .linux import (
    MOUNTS,
    NAMED,
    OWN_NAMESPACE,
    OwnNetwork,
    in_namespace,
    mounts_of,
    namespace_path,
    namespaces_equal,
    network_of_this_thread,
)
from .outside import Outside
from .tables import all_pids

DESCRIPTORS = 10
"""Descriptors that a watched namespace needs."""
SPARE = 128
"""Descriptors that are left for the rest of the process."""
BUDGET = 0.02
"""Seconds of CPU for one answer; the first one is not limited."""
ROUNDS = 2
"""Rounds in a row without a namespace, after which it is gone: its processes may change while they are listed."""

_LINK = re.compile(r"net:\[(\d+)\]")
_REASONS = {
    errno.ENOENT: UnavailableReason.MISSING,
    errno.ESRCH: UnavailableReason.MISSING,
    errno.EACCES: UnavailableReason.PERMISSION,
    errno.EPERM: UnavailableReason.PERMISSION,
}
_REMEDIES = {
    errno.EMFILE: f"; {MORE_FILES}",
    errno.EPERM: "; entering it needs CAP_SYS_ADMIN, also in the user namespace that owns it",
}
_REFUSED = (errno.EACCES, errno.EPERM)
_FULL = (errno.EMFILE, errno.ENFILE)

Namespace = str | int | None


@attrs.define(eq=False)
class Watched:
    """The namespaces of a session by their numbers, with their descriptors (`None`: our own namespace), which it owns."""

    descriptors: dict[int, int | None] = attrs.field(factory=dict)
    own: OwnNetwork = attrs.field(factory=OwnNetwork)
    _closed: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def add(self, number: int, descriptor: int | None) -> bool:
        """Take over a descriptor; if the session has ended, close it and return false."""
        with self._lock:
            if not self._closed:
                self.descriptors[number] = descriptor
                return True
        if descriptor is not None:
            os.close(descriptor)
        return False

    def release(self, number: int) -> None:
        """Stop watching a namespace, and close its descriptor."""
        with self._lock:
            descriptor = self.descriptors.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Release all. Idempotent."""
        with self._lock:
            self._closed = True
        for number in list(self.descriptors):
            self.release(number)

    @property
    def networks(self) -> frozenset[int | None]:
        """The namespaces, as `network_of_this_thread` numbers them."""
        return frozenset(
            self.own.number if descriptor is None else in_namespace(descriptor, network_of_this_thread)
            for descriptor in self.descriptors.values()
        )


# --- named ones ----------------------------------------------------------------------------


def open_namespaces(namespaces: tuple[Namespace, ...]) -> tuple[list[NetworkNamespace], Watched]:
    """Open network namespaces, each once. Our own namespace has neither label nor descriptor, even if it is named.

    Raises:
        BackendUnavailableError: One of them does not exist, or cannot be entered.
    """
    entered: dict[tuple[int | None, int | None], NetworkNamespace] = {}
    watched = Watched()
    try:
        for namespace in namespaces:
            identity, descriptor = (NetworkNamespace(), None) if namespace is None else _enter(namespace)
            key = identity.device, identity.inode
            if key not in entered:
                watched.add(len(entered), descriptor)
                entered[key] = identity
            elif descriptor is not None:
                os.close(descriptor)
    except BaseException:
        watched.close()
        raise
    return list(entered.values()), watched


def _label(namespace: Namespace) -> str:
    return f"pid:{namespace}" if isinstance(namespace, int) else str(namespace)


def _enter(namespace: str | int) -> tuple[NetworkNamespace, int | None]:
    """A namespace in which sockets can be made, and its descriptor; `None` if it is our own."""
    path = namespace_path(namespace)
    descriptor = -1
    try:
        if namespaces_equal(path):
            return NetworkNamespace(), None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe
        in_namespace(descriptor, lambda: None)
        facts = os.fstat(descriptor)
    except (OSError, RuntimeError) as error:
        if descriptor >= 0:
            os.close(descriptor)
        label = _label(namespace)
        what = label if label == path else f"{label} ({path})"
        if isinstance(error, OSError) and error.errno == errno.EINVAL:  # setns of any other file
            detail = (
                f"{what} is not a network namespace: name one of ip netns, a pid, or a file such as /proc/PID/ns/net"
            )
            raise BackendUnavailableError("sock_diag", UnavailableReason.MISSING, detail) from error
        unseen = getattr(error, "errno", None) == errno.EACCES and path.startswith("/proc/")
        remedy = f"; {needed_to_look('CAP_SYS_PTRACE')}" if unseen else ""
        raise _unavailable(f"network namespace {what}", error, remedy) from error
    return NetworkNamespace(_label(namespace), device=facts.st_dev, inode=facts.st_ino), descriptor


def _unavailable(what: str, error: OSError | RuntimeError, remedy: str = "") -> BackendUnavailableError:
    if isinstance(error, RuntimeError):  # of the thread that enters a namespace
        return BackendUnavailableError("sock_diag", UnavailableReason.RESOURCE, f"{what}: {no_thread_text(error)}")
    reason = _REASONS.get(error.errno or 0, UnavailableReason.RESOURCE)
    remedy = _REMEDIES.get(error.errno or 0, remedy)
    return BackendUnavailableError("sock_diag", reason, f"{what}: {os.strerror(error.errno or 0)}{remedy}")


# --- all of them ---------------------------------------------------------------------------


def room() -> int:
    """How many namespaces may be watched at once."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_NAMESPACES
    return max(1, min(MAX_NAMESPACES, (limit - SPARE) // DESCRIPTORS))


@attrs.define(eq=False)
class _Round:
    """One walk over all mounts and processes, which meets every namespace that can be found."""

    files: dict[int, str] = attrs.field(factory=dict)
    """A file of each namespace that it has met, by inode."""
    pids: dict[int, int] = attrs.field(factory=dict)
    """The first process that it has met in each."""
    showing: set[int] = attrs.field(factory=set)
    """Inodes of namespaces that cannot be entered, but have a process that shows their tables."""
    hidden: int = 0
    """Processes that did not show their namespace."""


class NamespaceFinder:
    """Answers `NamespacesRequest`; only one thread at a time may use it.

    Args:
        watched: Takes the descriptors.
        most: Most namespaces that are watched at once.
    """

    def __init__(self, watched: Watched, most: int | None = None) -> None:
        self.outside = Outside()
        """The namespaces that are watched from outside."""
        self._wants_outside = False
        self._watched = watched
        self._most = room() if most is None else most
        self._numbers: dict[int, int] = {}
        """Numbers of the watched namespaces, by inode."""
        self._next = 0
        self._absences: dict[int, int] = {}
        self._closed: set[int] = set()
        """Inodes of namespaces that cannot be entered."""
        self._beyond: set[int] = set()
        self._full = False
        """True if no more files could be opened although fewer than `most` are watched."""
        self.closed = False
        """True if no other namespace can be entered."""
        self._first = True
        self._round = _Round()
        """The present round, or the last one."""
        self._whole = self._round
        """The last whole round."""
        self._steps: Iterator[None] | None = None
        """What is left of the present round; `None` if none is under way."""

    def begin(self) -> None:
        """Start with our own namespace; the answer to the first request has the others.

        Raises:
            BackendUnavailableError: ``/proc`` is not mounted, or no more files can be opened.
        """
        try:
            own = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._numbers[os.fstat(own).st_ino] = 0
                in_namespace(own, lambda: None)
            finally:
                os.close(own)
        except RuntimeError as error:
            raise _unavailable("netns all", error) from error
        except OSError as error:
            self.closed = error.errno == errno.EPERM
            if not self.closed:
                raise _unavailable("netns all" if error.errno in _FULL else "netns all needs /proc", error) from error
        self._watched.add(0, None)
        self._next = 1

    def answer(self, request: NamespacesRequest) -> NamespacesAnswer:
        """The namespaces that came and went, as far as the budget allows."""
        for inode, number in list(self._numbers.items()):
            if number in request.released:
                if inode not in self._absences:  # it still exists, and could not be watched
                    self._closed.add(inode)
                del self._numbers[inode]
                self._absences.pop(inode, None)
                self._watched.release(number)
        for number in request.released:
            self.outside.release(number)
        if request.outside and not self._wants_outside:
            self._wants_outside, self._first, self._steps = True, True, None
        until, self._first = math.inf if self._first else time.thread_time() + BUDGET, False
        return self._look(until)

    def _look(self, until: float) -> NamespacesAnswer:
        if self._steps is None:
            self._round = _Round()
            self._steps = self._walk(self._round)
            if self._wants_outside:
                self.outside.begin_round()
        done = False
        for number, _ in enumerate(self._steps):
            if not number % 64 and time.thread_time() >= until:
                break
        else:
            done = True
        found, gone = list(self._open_new()), list[int]()
        if done:
            self._steps, self._whole = None, self._round
            gone = list(self._missing())
            if self._wants_outside:
                came, went = self.outside.end_round(self._watched.networks, self._next)
                self._next += len(came)
                found, gone = found + came, gone + went
        files, shown = self._round.files, self._whole.showing
        names = tuple((inode, label_of(files[inode])) for inode in self._closed | self._beyond if inode in files)
        return NamespacesAnswer(
            tuple(found),
            tuple(gone),
            len(self._closed - shown),
            len(self._beyond - shown) + self.outside.beyond,
            self._whole.hidden,
            most=len(self._numbers) if self._full else self._most,
            by_descriptors=self._full or self._most < MAX_NAMESPACES,
            names=names,
            whole=done,
            outside=len(self.outside),
            cgroups=self.outside.cgroups if done else (),
            veiled=not os.path.isdir("/proc/1"),
        )

    def _walk(self, round_: _Round) -> Iterator[None]:
        """Do a round, a process at a time."""
        for inode, path in _mounted():
            round_.files.setdefault(inode, path)
        for pid in reversed(all_pids()):
            path = f"/proc/{pid}/ns/net"
            try:
                match = _LINK.fullmatch(os.readlink(path))
            except PermissionError:
                round_.hidden += not (self._wants_outside and self._is_shown(pid, f"pid:{pid}"))
            except OSError:
                pass
            else:
                if match is not None:
                    self._meet(round_, int(match[1]), pid, path)
            yield

    def _meet(self, round_: _Round, inode: int, pid: int, path: str) -> None:
        """A process is in this namespace."""
        label = label_of(round_.files.setdefault(inode, path))
        round_.pids.setdefault(inode, pid)
        if self._is_closed(inode) and self._is_shown(pid, label):
            round_.showing.add(inode)

    def _is_closed(self, inode: int) -> bool:
        """True if a namespace cannot be entered, and may be watched from outside."""
        known = inode in self._closed or inode in self._beyond or (self.closed and inode not in self._numbers)
        return known and self._wants_outside

    def _is_shown(self, pid: int, label: str) -> bool:
        """False if the tables of a process's namespace may not be read; True if the process is gone."""
        try:
            network = os.stat(f"/proc/{pid}/net/dev").st_ino
        except OSError as error:
            return error.errno not in _REFUSED
        if network != self._watched.own.number:
            self.outside.meet(pid, network, label)
        return True

    def _missing(self) -> Iterator[int]:
        """Numbers of the namespaces that are gone, after a round."""
        files = self._round.files
        self._closed &= files.keys()
        self._beyond &= files.keys()
        for inode, number in self._numbers.items():
            if inode in files or number == 0:
                self._absences.pop(inode, None)
                continue
            self._absences[inode] = self._absences.get(inode, 0) + 1
            if self._absences[inode] >= ROUNDS:
                yield number

    def _open_new(self) -> Iterator[FoundNamespace]:
        self._full = False
        before = self._closed | self._beyond
        for inode, path in self._round.files.items():
            if inode in self._numbers or inode in self._closed:
                continue
            if len(self._numbers) >= self._most:
                self._beyond.add(inode)
                continue
            self._beyond.discard(inode)
            found = self._open(inode, path)
            if found is not None:
                yield found
        if self._wants_outside:
            self._meet_refused((self._closed | self._beyond) - before)

    def _meet_refused(self, inodes: set[int]) -> None:
        """Have namespaces watched from outside that just proved to be closed or too many: the next round is too late for a snapshot."""
        round_ = self._round
        for inode in inodes & round_.pids.keys():
            if self._is_shown(round_.pids[inode], label_of(round_.files[inode])):
                round_.showing.add(inode)

    def _open(self, inode: int, path: str) -> FoundNamespace | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._leave(inode, error)
            return None
        try:
            cookie = in_namespace(descriptor, namespace_cookie)
        except OSError as error:
            self._leave(inode, error)
            os.close(descriptor)
            return None
        facts, number = os.fstat(descriptor), self._next
        if facts.st_ino != inode:  # the process entered another namespace
            os.close(descriptor)
            return None
        if not self._watched.add(number, descriptor):
            return None
        self._next, self._numbers[inode] = number + 1, number
        return FoundNamespace(number, NetworkNamespace(label_of(path), device=facts.st_dev, inode=inode), cookie)

    def _leave(self, inode: int, error: OSError) -> None:
        """Note why a namespace is not watched, unless it is gone."""
        if error.errno == errno.EPERM:
            self._closed.add(inode)
        elif error.errno in _FULL:
            self._full = True
            self._beyond.add(inode)


def label_of(path: str) -> str:
    """The shortest text by which ``netns=`` takes the namespace of this file."""
    parts = path.split("/")
    if parts[1] == "proc":
        return f"pid:{parts[2]}"
    directory, _, name = path.rpartition("/")
    return name if directory in NAMED else path


def _mounted() -> Iterator[tuple[int, str]]:
    """Mounted namespaces with their paths."""
    with contextlib.suppress(OSError), open(MOUNTS, "rb") as file:
        for root, path in mounts_of(b"nsfs", file):
            match = _LINK.fullmatch(root)
            if match is not None:
                yield int(match[1]), path
