"""What crosses the border of the Linux core beside datagrams, as values that a recording can hold.

Out go the purposes of channels and questions to the host, in come what the core is made of, and answers.
"""

from __future__ import annotations

import enum
import json
from typing import ClassVar, Union

import attrs

from .._contract import LookupFailed
from .._errors import ProtocolError, UnavailableReason
from .._model import Visibility
from .._options import Ebpf
from .._values import Vocabulary, from_json, to_text
from ..ebpf import MapsPurpose, RingPurpose, Tier


class Role(enum.Enum):
    """What a netlink socket is used for."""

    DUMPS = "dumps"
    """sock_diag: dumps of all sockets."""
    REMOVALS = "removals"
    """sock_diag: notifications of destroyed sockets."""
    ROUTES = "routes"
    """rtnetlink: interfaces and addresses, and their changes."""
    LOOKUPS = "lookups"
    """sock_diag: questions about single sockets."""


@attrs.frozen
class ChannelPurpose:
    """What a channel is for: the purpose of an `OpenChannel`."""

    namespace: int
    """Number of the network namespace in the session."""
    role: Role
    groups: tuple[int, ...] = ()
    """Multicast groups to join (``SKNLGRP_*``)."""

    @property
    def channel(self) -> int:
        """Number of the channel with this role: recordings that do not name a channel's purpose go by it."""
        number = len(_ROLES) * self.namespace + _ROLES.index(self.role)
        return number if number < RingPurpose.channel else number + _FURTHER


@attrs.frozen
class NetworkNamespace:
    """A network namespace: which one it is, and how people call it."""

    label: str | None = None
    """As `Flow.namespace` shows it; `None` for this namespace, the monitor's own."""
    device: int | None = attrs.field(default=None, kw_only=True)
    """Device of its nsfs file; with `inode` it is the namespace's identity. `None` when unknown."""
    inode: int | None = attrs.field(default=None, kw_only=True)
    """Inode of its nsfs file."""


_FURTHER = 1 << 30
"""Added to the numbers of channels where those of other purposes would follow: namespaces come and go for years."""
_ROLES = (Role.DUMPS, Role.REMOVALS, Role.ROUTES, Role.LOOKUPS)


def place_of_channel(channel: int) -> tuple[int, Role]:
    """Namespace and role of a channel by its number."""
    namespace, place = divmod(channel - _FURTHER if channel >= _FURTHER else channel, len(_ROLES))
    return namespace, _ROLES[place]


@attrs.frozen
class PulsePurpose:
    """The channel reports new sockets and who holds them, as soon as the kernel's counters say that there are some."""

    namespace: int
    """Number of the network namespace in the session."""
    pause: float = 0.02
    """Seconds between two looks at the counters."""
    tcp: tuple[bytes, ...] = ()
    """Requests for dumps, to be made when connections were opened or accepted."""
    udp: tuple[bytes, ...] = ()
    """The same, when there are more datagram sockets than before."""

    @property
    def channel(self) -> int:
        """Number of the channel."""
        return _FIRST_PULSE + self.namespace


_FIRST_PULSE = 1 << 17
"""Number of the first namespace's channel; those of other purposes are lower."""

Purpose = Union[ChannelPurpose, RingPurpose, MapsPurpose, PulsePurpose]
"""What a channel is for."""


@attrs.frozen
class ProcessFacts:
    """What the host knows of a process."""

    pid: int
    start_ticks: int | None
    """Start, clock ticks since boot: with the pid it names the process for good. `None`: it ended."""
    name: str | None
    """Base name of the executable, else the title."""
    path: str | None
    """Path of the executable; `None` where it may not be read."""
    title: str | None = None
    """``comm``: the name that the program gave itself, of 15 characters at most; of a script its own."""
    parent_pid: int | None = None
    """The process that started it, or took it over; 0 where that is not of this pid namespace."""
    started_ns: int | None = None
    """Start by the wall clock, nanoseconds since the epoch."""
    command_line: str | None = None
    """As a shell would take it; `None` where it was not asked for."""


def needed_to_look(capabilities: str) -> str:
    """What it takes to look at all processes (``ptrace(2)``, PTRACE_MODE_READ_FSCREDS), for a person."""
    return f"that needs {capabilities}, and for a process with more capabilities those too"


UNNAMED = f"processes cannot be named: {needed_to_look('CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH')}"
"""What is the matter with those that may not be looked at, behind how many there are."""
ANYWHERE = -1
"""In place of a descriptor: whichever it is."""


@attrs.frozen
class OwnersRequest:
    """Search for the owners of sockets, and check known ones."""

    inodes: frozenset[int]
    """What to search for; where a search goes on, in addition."""
    recent: tuple[int, ...] = ()
    """Pids to look at first, behind new ones."""
    below: int | None = None
    """Where the last answer stopped; `None` begins a search."""
    verify: tuple[tuple[int, int | None], ...] = ()
    """Processes (pid, start) that may have ended, or run another program by now."""
    held: tuple[tuple[int, int, int], ...] = ()
    """Inode, thread and descriptor (`ANYWHERE`: any of them): sockets that may be held somewhere else by now."""
    users: tuple[int, ...] = ()
    """Users whose names are not known yet."""
    count: bool = False
    """Nobody waits: this is about `OwnersAnswer.shared` alone."""


@attrs.frozen
class OwnersAnswer:
    """What a search found."""

    owners: tuple[tuple[int, int], ...] = ()
    """Inode and pid."""
    processes: tuple[ProcessFacts, ...] = ()
    """Facts of the pids in `owners`, and of those in `verify` that changed."""
    below: int | None = None
    """The search is not complete: what the next request goes on with."""
    gone: tuple[tuple[int, int | None], ...] = ()
    """Those of the request's `verify` that are no more."""
    places: tuple[tuple[int, int], ...] = ()
    """For each of `owners` the thread and the descriptor; in older recordings there are none."""
    lost: tuple[int, ...] = ()
    """Inodes of the request's `held` that are not there any more."""
    met: tuple[tuple[int, int], ...] = ()
    """Inode and descriptor of those that were looked for `ANYWHERE` in their process."""
    refused: int | None = None
    """Processes that a complete search was not allowed to look at; `None` while it is not complete."""
    users: tuple[tuple[int, str], ...] = ()
    """Names of users."""
    shared: tuple[tuple[int, int, tuple[int, ...]], ...] | None = None
    """When all tables of descriptors have been looked at once more: inodes that several processes hold, how many do,
    and the oldest of them, whose facts are in `processes`."""


@attrs.frozen
class PulseReport:
    """A datagram of a pulse, as JSON: sockets that were not there at the look before, and who holds them."""

    sockets: tuple[tuple[int, bytes], ...] = ()
    """Protocol and message, as dumps have them."""
    owners: OwnersAnswer = OwnersAnswer()
    """Those of their owners that a short search found."""

    def encode(self) -> bytes:
        """The datagram."""
        return to_text(self).encode()

    @classmethod
    def decode(cls, data: bytes) -> PulseReport:
        """The report of a datagram.

        Raises:
            ProtocolError: It is none.
        """
        try:
            return from_json(cls, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"no report of a pulse: {error}", raw=data) from error


@attrs.frozen
class LinkKindsRequest:
    """Ask the host what kind of device these interfaces are."""

    namespace: int
    """Number of the namespace they are in."""
    names: tuple[str, ...]


@attrs.frozen
class LinkKindsAnswer:
    """What the host knows."""

    namespace: int
    kinds: tuple[tuple[str, str], ...] = ()
    """Interface names with a word of `InterfaceKind`; unknown ones are absent."""


@attrs.frozen
class SocketTablesRequest:
    """Ask for tables of ``/proc/net`` in a network namespace."""

    namespace: int
    """Its number in the session."""
    names: tuple[str, ...]
    """``raw``, ``raw6``, ``icmp``, ``icmp6``, ``packet``."""


@attrs.frozen
class TableRow:
    """A socket in a table of ``/proc/net``."""

    table: str
    inode: int
    uid: int
    local: bytes = b""
    """Packed address; empty for a packet socket."""
    remote: bytes = b""
    port: int = 0
    """Local port or identifier; the protocol of a raw or packet socket."""
    remote_port: int = 0
    device: int = 0
    """Index of the interface that a packet socket is bound to."""


@attrs.frozen
class SocketTablesAnswer:
    """The sockets in these tables."""

    namespace: int
    rows: tuple[TableRow, ...] = ()
    missing: tuple[str, ...] = ()
    """Tables that are not there."""


@attrs.frozen
class TrafficRequest:
    """Ask what the kernel counts of a whole namespace."""

    namespace: int


@attrs.frozen
class TrafficAnswer:
    """What it counted so far."""

    namespace: int
    interfaces: tuple[tuple[str, int, int], ...] = ()
    """Name, wire bytes received and sent."""
    datagrams: tuple[int, int] | None = None
    """UDP datagrams received and sent; `None` where nothing could be read."""


@attrs.frozen
class ProcessesRequest:
    """Ask for the facts of these processes, by pid and start."""

    processes: tuple[tuple[int, int | None], ...]
    users: tuple[int, ...] = ()
    """Users whose names are not known yet."""


@attrs.frozen
class ProcessesAnswer:
    """The facts of those that are still there."""

    processes: tuple[ProcessFacts, ...] = ()
    users: tuple[tuple[int, str], ...] = ()
    """Names of users."""


@attrs.frozen
class NamespacesRequest:
    """Look for network namespaces that came or went."""

    released: tuple[int, ...] = ()
    """Numbers of those that are not watched any more."""


@attrs.frozen
class FoundNamespace:
    """A network namespace that came."""

    number: int
    """Its number in the session, never used again."""
    identity: NetworkNamespace
    cookie: int | None = None
    """As records of eBPF programs have it (``SO_NETNS_COOKIE``); `None` before Linux 5.14."""


@attrs.frozen
class NamespacesAnswer:
    """What came and went."""

    found: tuple[FoundNamespace, ...] = ()
    gone: tuple[int, ...] = ()
    """Numbers of those in which there is no process any more, and no mount keeps them."""
    closed: int = 0
    """Namespaces that may not be entered."""
    beyond: int = 0
    """Namespaces that are too many."""
    hidden: int = 0
    """Processes whose namespace may not be looked at."""
    most: int = 0
    """How many are watched at once; 0 in older recordings."""
    by_descriptors: bool = False
    """There would be more if more files could be open."""
    names: tuple[tuple[int, str], ...] = ()
    """Inode and label of those that were met and are not watched."""
    whole: bool = False
    """True if a round ended with it: every namespace that can be found was met."""


@attrs.frozen
class CgroupsRequest:
    """Ask for the paths of these cgroups (v2), by their numbers."""

    numbers: tuple[int, ...]


@attrs.frozen
class CgroupFacts:
    """What the host knows of a cgroup."""

    number: int
    path: str
    """Below the root of the hierarchy, as this process's cgroup namespace shows it."""
    container: str | None = None
    """Name of its container, where there is one and its engine wrote it down."""
    pod: str | None = None
    """The same of its Kubernetes pod, as ``namespace/name``."""


@attrs.frozen
class CgroupsAnswer:
    """What was found; of a request's other numbers nothing is known yet."""

    found: tuple[CgroupFacts, ...] = ()
    gone: tuple[int, ...] = ()
    """Numbers of cgroups that are not there (any more), or cannot be seen from here."""
    complete: bool = True
    """False if the time did not suffice for all."""


@attrs.frozen
class ChangedRequest:
    """Ask eBPF programs in which TCP sockets of this namespace something moved since they were asked last."""

    mark: bool = False
    """Only begin: the next answer tells what moves from now on."""


@attrs.frozen
class ChangedAnswer:
    """What they reported."""

    rows: bytes = b""
    """As ``ebpf.decode_changed`` reads them: a beginning, sockets, and an end."""
    errno: int = 0
    """Why there is nothing; 0: there is."""


@attrs.frozen
class AttachRequest:
    """Load and attach the eBPF programs, as many of them as the kernel grants."""

    remotes: bool = False
    """Count for each remote of unconnected UDP sockets, too."""


@attrs.frozen(kw_only=True)
class AttachAnswer:
    """What came of it."""

    lasts: ClassVar[bool] = True
    """It holds for the rest of the run, so each part of a recording has it."""

    tier: Tier = Tier.NONE
    reason: UnavailableReason | None = None
    """Why nothing, or not all, is attached; `None`: all is."""
    detail: str = ""
    """The same for a person."""
    processes_trusted: bool = False
    """True if the pids of records are those of this process's ``/proc``."""
    births: bool = False
    """True if the making of datagram sockets is seen."""
    owners: bool = False
    """True if the descriptors of all processes can be walked over."""
    changes: bool = False
    """True if `ChangedRequest` has an answer."""
    namespaces: tuple[int | None, ...] = ()
    """Cookies of the session's network namespaces, by number; `None`: its sockets are not seen."""
    own_cookies: tuple[int, ...] = ()
    """Sockets of the source itself."""
    boot_offset: float = 0.0
    """Add it to ``now`` for seconds since boot, time asleep included."""
    ticks: int = 100
    """Clock ticks in a second."""


@attrs.frozen(kw_only=True)
class Setup:
    """The facts beside the options from which a `Session` is made."""

    protocol: ClassVar[str] = "sock_diag"
    kernel: str | None = None
    """The kernel's release."""
    namespaces: tuple[NetworkNamespace, ...] = (NetworkNamespace(),)
    """The network namespaces, in the order of their numbers in `ChannelPurpose`."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""
    limit: str | None = None
    """Why not everybody's, for a person."""
    refused: Visibility = Visibility.SOME
    """Whose, where it was everybody's until a search met a process that may not be looked at."""
    ebpf: Ebpf = Ebpf.OFF
    """Whether eBPF programs are asked for."""
    all_namespaces: bool = False
    """Whether other network namespaces are looked for."""
    closed: bool = False
    """Whether none of them may be entered."""
    cgroups: bool = False
    """Whether cgroups are looked up; recordings that say nothing of it have no answers."""


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
