"""What is known of one socket, and how sure it is."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Protocol, Union

import attrs

from .._model import Attribution, Direction, Flow, Process
from ..ebpf import Ended, Totals
from ._constants import SocketState
from ._reports import SocketReport
from ._rows import Pieces

BY_INODE = 1 << 63
"""Added to the inode it stands for an unknown cookie: the kernel counts cookies upward from 1."""
Owner = Union[Process, Attribution]


@attrs.frozen
class Others:
    """The processes that hold a socket beside its owner."""

    number: int = 0
    oldest: tuple[tuple[int, Union[str, None]], ...] = ()
    """Process id and name."""


NOBODY = Others()
_USER = struct.Struct("=II")
_MOST_BEFORE = 7
_NO_HEAD = -1
"""A head that no row has."""


class Weight(enum.IntEnum):
    """How sure the direction of a connection is; heavier evidence replaces lighter."""

    NONE = 0
    LISTENER = 1
    """A socket listens on the local port, so the connection was probably accepted."""
    DOUBTED = 2
    """As `SEQUENCE`, but a socket listens on the local port: a FIN that is acknowledged during the dump looks like a SYN."""
    SEQUENCE = 3
    """The sequence numbers tell whether the connection sent a SYN of its own."""
    STATE = 4
    """The state allows one direction only."""
    WITNESSED = 5
    """An eBPF record saw the connection begin."""


class Keeper(Protocol):
    """The book that a socket is in, as the sources of owners and cgroups know it."""

    number: int
    """Number of its network namespace."""

    def learn_owner(self, entry: Entry, owner: Owner, place: int | None) -> None:
        """Take over the owner of a socket, or the reason why none is known."""

    def learn_cgroup(self, entry: Entry) -> None:
        """The names of the socket's cgroup became known."""

    def learn_others(self, entry: Entry, owner: Process, others: Others) -> None:
        """Several processes hold the socket, or no longer several."""


class _NoBook:
    """Stands for a book that no longer exists, and ignores everything."""

    number = 0

    def learn_owner(self, entry: Entry, owner: Owner, place: int | None) -> None:
        pass

    def learn_cgroup(self, entry: Entry) -> None:
        pass

    def learn_others(self, entry: Entry, owner: Process, others: Others) -> None:
        pass


_NO_BOOK = _NoBook()


@attrs.define(eq=False)
class Shared:
    """The common mark of sockets whose rows follow each other in one datagram: the scan (`_scan.Memory`) marks all of them at once."""

    poll: int
    """Serial of the last poll that had all these rows, unchanged."""
    holds: bool = True
    """False once one of the sockets changed otherwise: then each of them has to be compared by itself."""


@attrs.define(eq=False, weakref_slot=False)
class Entry:
    """One socket: a cookie in a network namespace. The fields describe its present connection."""

    keeper: Callable[[], Union[Keeper, None]]
    """A weak reference to its book: without a cycle, entries that the C code makes need no garbage collector."""
    protocol: int
    last: Pieces
    """The pieces of the last message; only `set_last` changes them."""
    seen: int
    """Serial of the last poll that marked this socket alone; `last_seen` includes the common mark."""
    changed: int
    """Serial of the poll that last saw it change."""
    state: int = SocketState.CLOSE
    reading: float = 0.0
    """Seconds from the start of that poll until the row was read: an upper bound of the row's age."""
    report: SocketReport | None = None
    """Its counts and details; `None` while they are unknown."""
    direction: Direction | None = None
    weight: Weight = Weight.NONE
    """How sure the direction is."""
    cgroup: int = 0
    """Number of the cgroup that it was made in; 0: not known."""
    preexisting: bool = False
    over: bool = True
    """True while it is not in the book."""
    connection: int = 1
    """Number of the connection: a socket may disconnect and connect again."""
    flow: Flow | None = None
    """The flow as last reported; `None` before it is announced."""
    owner: Owner | None = None
    """Which process holds it, or why that is not known; `None` while the search goes on."""
    place: int | None = None
    """Where its owner holds it: number of the descriptor, and shifted by 32 bits the thread, if that has a table of its own."""
    totals: Totals | None = None
    """What eBPF programs counted; `None`: only the kernel counts."""
    whole: bool = True
    """False if there was traffic before the programs counted."""
    used_by: tuple[int, int | None] | None = None
    """The process that was seen using it, which counts for more than any other holder."""
    others: Others = NOBODY
    """The other processes that are known to hold it."""
    round: int = 0
    """`OwnerSource.rounds` when it became known."""
    before: tuple[bytes, ...] = ()
    """Identities of its latest earlier connections."""
    begun: int = 0
    """Serial of the poll in which the connection was first seen: rows of that poll may be of the one before."""
    ended: Ended | None = None
    """The record of its end, which is not reported yet: the removal is awaited."""
    absences: int = 0
    """Polls in a row that did not have it: it is closed, and a process still holds its descriptor."""
    walk: int = -1
    """`ProgramEvidence.walks` when a walk reported a holder."""
    shared: Shared | None = None
    """What the scan says of it together with others; `None` where the C code scans."""

    @property
    def last_seen(self) -> int:
        """Serial of the last poll that had the socket."""
        return self.seen if self.shared is None else max(self.seen, self.shared.poll)

    @property
    def book(self) -> Keeper:
        """Its book."""
        return self.keeper() or _NO_BOOK

    @property
    def process(self) -> Process | None:
        """The process that holds it, if one is known."""
        return self.owner if isinstance(self.owner, Process) else None

    @property
    def cookie(self) -> int:
        """The kernel's id of the socket, never reused."""
        cookie: int = self.last[2]
        return cookie

    @property
    def is_inferred(self) -> bool:
        """True if its cgroup is inferred: the socket is known by a table of ``/proc/net``, which has no cgroups."""
        return self.cgroup != 0 and self.cookie >= BY_INODE

    @property
    def identity(self) -> bytes:
        """Family, state, ports, addresses and device, as in the last message."""
        identity: bytes = self.last[1]
        return identity

    @property
    def user(self) -> tuple[int, int]:
        """The user who made the socket, and the inode by which a process holds it (0 when none does)."""
        return _USER.unpack_from(self.last[3])

    @staticmethod
    def user_of(pieces: Pieces) -> tuple[int, int]:
        """`user` of a row."""
        return _USER.unpack_from(pieces[3])

    def set_last(self, pieces: Pieces) -> None:
        """Keep what a message says: a row with the same pieces has nothing new."""
        self.last = pieces
        if self.shared is not None:
            self.shared.holds = False

    def share(self, shared: Shared) -> None:
        """Have the scan mark it together with these sockets from now on."""
        if self.shared is not None and self.shared is not shared:
            self.shared.holds = False
        self.shared = shared

    def forget_last(self) -> None:
        """Make sure that its next row is looked at, even if nothing in it changed."""
        self.set_last((_NO_HEAD, *self.last[1:]))

    def begin_connection(self) -> None:
        """Begin another connection of the socket, which keeps nothing of the previous one but the owner."""
        self.connection += 1
        self.before = (*self.before[-_MOST_BEFORE:], self.identity)
        self.state = SocketState.CLOSE
        self.report = self.flow = self.direction = self.totals = self.ended = None
        self.weight = Weight.NONE
        self.preexisting = False
