"""What crosses the border of the Linux core beside datagrams, as values that a recording can hold.

Out go the purposes of channels and questions to the host, in come what the core is made of, and answers.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from .._contract import LookupFailed
from .._model import Visibility
from .._values import Vocabulary


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


@attrs.frozen
class NetworkNamespace:
    """A network namespace: which one it is, and how people call it."""

    label: str | None = None
    """As `Flow.namespace` shows it; `None` for this namespace, the monitor's own."""
    device: int | None = attrs.field(default=None, kw_only=True)
    """Device of its nsfs file; with `inode` it is the namespace's identity. `None` when unknown."""
    inode: int | None = attrs.field(default=None, kw_only=True)
    """Inode of its nsfs file."""


_ROLES = (Role.DUMPS, Role.REMOVALS, Role.ROUTES, Role.LOOKUPS)


def channel_number(namespace: int, role: Role) -> int:
    """The number of a namespace's channel: recordings that do not name a channel's purpose go by it."""
    return len(_ROLES) * namespace + _ROLES.index(role)


def place_of_channel(channel: int) -> tuple[int, Role]:
    """Namespace and role of a channel by its number."""
    namespace, place = divmod(channel, len(_ROLES))
    return namespace, _ROLES[place]


@attrs.frozen
class ProcessFacts:
    """What the host tells of a process."""

    pid: int
    start_ticks: int | None
    """Start, clock ticks since boot: with the pid it names the process for good. `None`: it ended."""
    name: str | None
    """Base name of the executable, else the title."""
    path: str | None
    """Path of the executable; `None` where it may not be read."""
    title: str | None = None
    """``comm``: the name that the program gave itself, of 15 characters at most; of a script its own."""


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
    """Inode, thread and descriptor: sockets that may be held somewhere else by now."""


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
    refused: int | None = None
    """Processes that a complete search was not allowed to look at; `None` while it is not complete."""


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


RECORDED = Vocabulary(ChannelPurpose, OwnersRequest, OwnersAnswer, LinkKindsRequest, LinkKindsAnswer, LookupFailed)
"""The purposes and look-ups of this protocol, and their answers."""
