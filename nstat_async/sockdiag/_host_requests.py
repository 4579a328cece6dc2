"""What the Linux core asks the host in look-ups, and the answers, as values that a recording can hold."""

from __future__ import annotations

from typing import ClassVar

import attrs

from .._contract import LookupFailed
from .._errors import UnavailableReason
from .._values import Vocabulary
from ..ebpf import MapsPurpose, RingPurpose, Tier
from ._constants import SocketState
from ._purposes import ChannelPurpose, PulsePurpose
from ._setup import NetworkNamespace


@attrs.frozen
class ProcessFacts:
    """What the host knows of a process."""

    pid: int
    """Its pid, as this process's pid namespace has it."""
    start_ticks: int | None
    """Start, clock ticks since boot; with the pid it identifies the process. `None`: the process ended."""
    name: str | None
    """Base name of the executable, else the title."""
    path: str | None
    """Path of the executable; `None` where it may not be read."""
    title: str | None = None
    """``comm``: the name that the program gave itself, of 15 characters at most; of a script its own."""
    parent_pid: int | None = None
    """Pid of its parent; 0 if that is in another pid namespace."""
    started_ns: int | None = None
    """Start by the wall clock, nanoseconds since the epoch."""
    command_line: str | None = None
    """As a shell would take it; `None` if it was not asked for."""


ANYWHERE = -1
"""Stands for any descriptor."""


@attrs.frozen
class OwnersRequest:
    """Search for the owners of sockets, and check known ones."""

    inodes: frozenset[int]
    """Inodes to search for; if a search goes on, further ones."""
    recent: tuple[int, ...] = ()
    """Pids to look at first, after new processes."""
    below: int | None = None
    """`OwnersAnswer.below` of the last answer; `None` begins a search."""
    verify: tuple[tuple[int, int | None], ...] = ()
    """Processes (pid, start) to check: do they still exist, and run the same program?"""
    held: tuple[tuple[int, int, int], ...] = ()
    """Sockets to check: inode, thread and descriptor (or `ANYWHERE`). Is each still held there?"""
    users: tuple[int, ...] = ()
    """Users whose names are not known yet."""
    count: bool = False
    """True if only `OwnersAnswer.shared` is wanted; nothing waits for it."""


@attrs.frozen
class OwnersAnswer:
    """What a search found."""

    owners: tuple[tuple[int, int], ...] = ()
    """Inode and pid."""
    processes: tuple[ProcessFacts, ...] = ()
    """Facts of the pids in `owners`, and of processes in `verify` that run another program."""
    below: int | None = None
    """Where to go on; `None`: the search is complete."""
    gone: tuple[tuple[int, int | None], ...] = ()
    """Processes in `verify` that do not exist any more."""
    places: tuple[tuple[int, int], ...] = ()
    """Thread and descriptor for each of `owners`; empty in older recordings."""
    lost: tuple[int, ...] = ()
    """Inodes in `held` that are not held there any more."""
    met: tuple[tuple[int, int], ...] = ()
    """Inode and descriptor of sockets in `held` whose descriptor was `ANYWHERE`."""
    refused: int | None = None
    """How many processes a complete search was not allowed to look at; `None` if it is not complete."""
    users: tuple[tuple[int, str], ...] = ()
    """Names of users."""
    shared: tuple[tuple[int, int, tuple[int, ...]], ...] | None = None
    """After each look at the descriptors of all processes: inodes that several processes hold, the number of these, and
    the pids of the oldest, whose facts are in `processes`; otherwise `None`."""


@attrs.frozen
class LinkKindsRequest:
    """Ask the host what kind of device these interfaces are."""

    namespace: int
    """Number of their network namespace."""
    names: tuple[str, ...]
    """Names of the interfaces."""


@attrs.frozen
class LinkKindsAnswer:
    """The kinds that the host knows."""

    namespace: int
    """Number of their network namespace."""
    kinds: tuple[tuple[str, str], ...] = ()
    """Interface names with a word of `InterfaceKind`; unknown ones are absent."""


@attrs.frozen
class SocketTablesRequest:
    """Ask for tables of ``/proc/net`` in a network namespace."""

    namespace: int
    """Its number in the session."""
    names: tuple[str, ...]
    """``raw``, ``raw6``, ``icmp``, ``icmp6``, ``packet``; of a namespace that is watched from outside also ``tcp``, ``tcp6``,
    ``udp`` and ``udp6``."""
    rest: bool = False
    """True to get the remaining rows of the last reading."""


@attrs.frozen
class TableRow:
    """A socket in a table of ``/proc/net``."""

    table: str
    """Name of the table, as in the request."""
    inode: int
    """Inode of the socket."""
    uid: int
    """User who made the socket."""
    local: bytes = b""
    """Packed address; empty for a packet socket."""
    remote: bytes = b""
    """Packed address of the peer, all zeros without one; empty for a packet socket."""
    port: int = 0
    """Local port or identifier; the protocol of a raw or packet socket."""
    remote_port: int = 0
    """Port of the peer; 0 without one."""
    device: int = 0
    """Index of the interface that a packet socket is bound to."""
    state: int = int(SocketState.CLOSE)
    """See `SocketState`."""


@attrs.frozen
class SocketTablesAnswer:
    """The sockets in these tables."""

    namespace: int
    """Number of the network namespace."""
    rows: tuple[TableRow, ...] = ()
    """The sockets, in the order of the tables."""
    missing: tuple[str, ...] = ()
    """Tables that do not exist."""
    unread: bool = False
    """True if nothing was read: no process shows the tables any more."""
    more: bool = False
    """True if there are more rows to ask for."""
    cut: bool = False
    """True if a table was too long to be read whole."""
    malformed: int = 0
    """How many lines could not be parsed."""
    pause: float = 0.0
    """Seconds until the tables may be read again, because of what reading them costs."""


@attrs.frozen
class TrafficRequest:
    """Ask for the kernel's counters of a whole namespace."""

    namespace: int
    """Its number in the session."""


@attrs.frozen
class TrafficAnswer:
    """The kernel's counters of a whole namespace."""

    namespace: int
    """Its number in the session."""
    interfaces: tuple[tuple[str, int, int], ...] = ()
    """Name, wire bytes received and sent."""
    datagrams: tuple[int, int] | None = None
    """UDP datagrams received and sent; `None` where nothing could be read."""


@attrs.frozen
class ProcessesRequest:
    """Ask for the facts of these processes, by pid and start."""

    processes: tuple[tuple[int, int | None], ...]
    """Pid and start (clock ticks since boot; `None`: not known) of each."""
    users: tuple[int, ...] = ()
    """Users whose names are not known yet."""


@attrs.frozen
class ProcessesAnswer:
    """The facts of those processes that still exist."""

    processes: tuple[ProcessFacts, ...] = ()
    """Their facts."""
    users: tuple[tuple[int, str], ...] = ()
    """Names of users."""


@attrs.frozen
class NamespacesRequest:
    """Look for network namespaces that came or went."""

    released: tuple[int, ...] = ()
    """Numbers of namespaces that are not watched any more."""
    outside: bool = False
    """Find namespaces that cannot be entered, too: no eBPF programs report their sockets."""


@attrs.frozen
class FoundNamespace:
    """A new network namespace."""

    number: int
    """Its number in the session, which no other namespace gets."""
    identity: NetworkNamespace
    """Which one it is, and what people call it."""
    cookie: int | None = None
    """As records of eBPF programs have it (``SO_NETNS_COOKIE``); `None` before Linux 5.14."""
    entered: bool = True
    """False if it cannot be entered, and is watched by the tables of ``/proc/PID/net``."""


@attrs.frozen
class NamespacesAnswer:
    """The network namespaces that came and went."""

    found: tuple[FoundNamespace, ...] = ()
    """Those that came, and can be watched from now on."""
    gone: tuple[int, ...] = ()
    """Numbers of namespaces that no process and no mount has any more."""
    closed: int = 0
    """How many namespaces may not be entered."""
    beyond: int = 0
    """How many namespaces are not watched because there are too many."""
    hidden: int = 0
    """How many processes do not show their namespace."""
    most: int = 0
    """How many namespaces may be watched at once; 0 in older recordings."""
    by_descriptors: bool = False
    """True if the limit of open files decides how many."""
    names: tuple[tuple[int, str], ...] = ()
    """Inode and label of namespaces that were found and are not watched."""
    whole: bool = False
    """True if this answer completes a round through all processes and mounts."""
    outside: int = 0
    """How many namespaces are watched from outside."""
    cgroups: tuple[tuple[int, int], ...] = ()
    """At the end of a round: the number of each of these namespaces whose visible processes are in one cgroup, and the cgroup's number."""
    veiled: bool = False
    """True if ``/proc`` hides the processes of other users (``hidepid=``)."""


@attrs.frozen
class CgroupsRequest:
    """Ask for the paths of these cgroups (v2), by their numbers."""

    numbers: tuple[int, ...]
    """The inodes of their directories."""


@attrs.frozen
class CgroupFacts:
    """What the host knows of a cgroup."""

    number: int
    """The inode of its directory."""
    path: str
    """Below the root of the hierarchy, as this process's cgroup namespace shows it."""
    container: str | None = None
    """Name of its container, if the engine wrote it down."""
    pod: str | None = None
    """Name of its Kubernetes pod, as ``namespace/name``, if the engine wrote it down."""


@attrs.frozen
class CgroupsAnswer:
    """What was found; the other numbers of the request are still unknown."""

    found: tuple[CgroupFacts, ...] = ()
    """The cgroups of the request whose paths are known now."""
    gone: tuple[int, ...] = ()
    """Numbers of cgroups that do not exist (any more), or cannot be seen from here."""
    complete: bool = True
    """False if there was no time for all numbers."""


@attrs.frozen
class ChangedRequest:
    """Ask eBPF programs which TCP sockets of this namespace had traffic since the last request."""

    mark: bool = False
    """Ask for nothing yet: the next answer tells what changes from now on."""


@attrs.frozen
class ChangedAnswer:
    """The sockets with traffic."""

    rows: bytes = b""
    """For ``ebpf.decode_changed``: a first row, the sockets, and a last row."""
    errno: int = 0
    """Why there are no rows; 0 if there are."""


@attrs.frozen
class AttachRequest:
    """Load and attach as many eBPF programs as the kernel grants."""

    remotes: bool = False
    """Also count the remotes of unconnected UDP sockets."""


@attrs.frozen(kw_only=True)
class AttachAnswer:
    """Which eBPF programs were attached."""

    lasts: ClassVar[bool] = True
    """The answer holds for the rest of the run, so each part of a recording has it."""

    tier: Tier = Tier.NONE
    """How much they can report."""
    reason: UnavailableReason | None = None
    """Why nothing, or not all, is attached; `None`: all is."""
    detail: str = ""
    """The reason in words, for a person."""
    processes_trusted: bool = False
    """True if records have the pids that this process sees in ``/proc``."""
    births: bool = False
    """True if the programs see datagram sockets being made."""
    owners: bool = False
    """True if the programs can walk over the descriptors of all processes."""
    changes: bool = False
    """True if `ChangedRequest` has an answer."""
    namespaces: tuple[int | None, ...] = ()
    """Cookies of the session's network namespaces, by number; `None`: its sockets are not seen."""
    own_cookies: tuple[int, ...] = ()
    """Cookies of the library's own sockets."""
    boot_offset: float = 0.0
    """Added to ``now`` it gives seconds since boot, suspended time included."""
    ticks: int = 100
    """Clock ticks in a second."""


RECORDED = Vocabulary(
    ChannelPurpose,
    RingPurpose,
    MapsPurpose,
    PulsePurpose,
    OwnersRequest,
    OwnersAnswer,
    ProcessesRequest,
    ProcessesAnswer,
    LinkKindsRequest,
    LinkKindsAnswer,
    TrafficRequest,
    TrafficAnswer,
    CgroupsRequest,
    CgroupsAnswer,
    NamespacesRequest,
    NamespacesAnswer,
    SocketTablesRequest,
    SocketTablesAnswer,
    AttachRequest,
    AttachAnswer,
    ChangedRequest,
    ChangedAnswer,
    LookupFailed,
)
"""The purposes and look-ups of this protocol, and their answers."""
