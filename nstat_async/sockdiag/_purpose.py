"""What the channels of the Linux core are for, and in which network namespace."""

from __future__ import annotations

import enum

import attrs


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
