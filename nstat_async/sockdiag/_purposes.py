"""What the channels of the Linux core are for, as values that a recording can hold."""

from __future__ import annotations

import enum
from typing import Union

import attrs

from ..ebpf import MapsPurpose, RingPurpose


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
    """The purpose of an `OpenChannel` for a netlink socket."""

    namespace: int
    """Number of the network namespace in the session."""
    role: Role
    """What the socket is used for."""
    groups: tuple[int, ...] = ()
    """Multicast groups to join (``SKNLGRP_*``)."""

    @property
    def channel(self) -> int:
        """Number of the channel: recordings that do not name the purpose of a channel have this number alone."""
        number = len(_ROLES) * self.namespace + _ROLES.index(self.role)
        return number if number < RingPurpose.channel else number + _FURTHER


_FURTHER = 1 << 30
"""Added to channel numbers that would collide with those of other purposes, after years of new namespaces."""
_ROLES = (Role.DUMPS, Role.REMOVALS, Role.ROUTES, Role.LOOKUPS)


def place_of_channel(channel: int) -> tuple[int, Role]:
    """Namespace and role of the channel with this number."""
    namespace, place = divmod(channel - _FURTHER if channel >= _FURTHER else channel, len(_ROLES))
    return namespace, _ROLES[place]


@attrs.frozen
class PulsePurpose:
    """The purpose of a channel that reports new sockets and their owners as soon as the kernel has counted them."""

    namespace: int
    """Number of the network namespace in the session."""
    pause: float = 0.02
    """Seconds between two looks at the counters."""
    tcp: tuple[bytes, ...] = ()
    """Requests for dumps, to be sent after connections were opened or accepted."""
    udp: tuple[bytes, ...] = ()
    """Requests for dumps, to be sent when there are more datagram sockets than before."""

    @property
    def channel(self) -> int:
        """Number of the channel."""
        return _FIRST_PULSE + self.namespace


_FIRST_PULSE = 1 << 17
"""Channel number of the first namespace's pulse; all other channels have lower numbers."""

Purpose = Union[ChannelPurpose, RingPurpose, MapsPurpose, PulsePurpose]
"""What a channel is for."""
