"""What is known of one socket, and how sure."""

from __future__ import annotations

import enum
import struct

from .._model import Counts, DetailsSource, Direction, Flow, Process
from ._rows import Pieces

__all__ = ["Entry", "Weight"]

_USER = struct.Struct("=II")


class Weight(enum.IntEnum):
    """How sure evidence about who began a connection is; heavier evidence replaces lighter."""

    NONE = 0
    LISTENER = 1
    """Inferred: somebody listens on its port."""
    SEQUENCE = 2
    """Deduced: a SYN is among its sequence numbers, or none."""
    STATE = 3
    """Seen: its state can only be that."""


class Entry:
    """One socket: a cookie in a network namespace. What the slots say is about its present connection."""

    __slots__ = (
        "absences",
        "connection",
        "counts",
        "details",
        "direction",
        "flow",
        "last",
        "namespace",
        "over",
        "owner",
        "preexisting",
        "protocol",
        "seen",
        "state",
        "weight",
    )

    def __init__(self, namespace: int, protocol: int, last: Pieces, seen: int) -> None:
        self.namespace = namespace
        """Number of its network namespace."""
        self.protocol = protocol
        self.last = last
        """The pieces of the last message."""
        self.seen = seen
        """Serial of the last poll that had it."""
        self.state: int = last[1][1]
        self.connection = 1
        """Which of the socket's connections this is: a socket may disconnect and connect again."""
        self.counts: Counts | None = None
        self.details: DetailsSource | None = None
        self.flow: Flow | None = None
        """As announced; `None` while it was not."""
        self.owner: Process | None = None
        self.direction: Direction | None = None
        self.weight = Weight.NONE
        """How sure the direction is."""
        self.preexisting = False
        self.absences = 0
        """Successive polls without it: closed, and held by a process that did not close its descriptor."""
        self.over = False
        """Removed from the book."""

    @property
    def cookie(self) -> int:
        """The kernel's id of the socket, never reused."""
        cookie: int = self.last[2]
        return cookie

    @property
    def identity(self) -> bytes:
        """Family, state, ports, addresses and device, as in the last message."""
        identity: bytes = self.last[1]
        return identity

    @property
    def uid(self) -> int:
        """The user who made the socket."""
        uid: int = _USER.unpack_from(self.last[3])[0]
        return uid

    @property
    def inode(self) -> int:
        """The inode by which a process holds it; 0 when none does."""
        inode: int = _USER.unpack_from(self.last[3])[1]
        return inode

    def begin_connection(self) -> None:
        """The socket has another connection now: nothing of the one before holds for it but the owner."""
        self.connection += 1
        self.counts = self.details = self.flow = self.direction = None
        self.weight = Weight.NONE
        self.preexisting = False
        self.absences = 0
