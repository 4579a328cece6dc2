"""What the channels of the Linux core are for."""

from __future__ import annotations

import enum

import attrs

__all__ = ["ChannelPurpose", "Role"]


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
