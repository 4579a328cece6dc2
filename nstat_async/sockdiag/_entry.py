"""What is known of one socket, and how sure."""

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
"""The head of a row that is none."""


class Weight(enum.IntEnum):
    """How sure evidence about who began a connection is; heavier evidence replaces lighter."""

    NONE = 0
    LISTENER = 1
    """Inferred: somebody listens on its port."""
    DOUBTED = 2
    """Deduced like `SEQUENCE`, where somebody listens: a FIN that is acknowledged meanwhile looks like a SYN."""
    SEQUENCE = 3
    """Deduced: a SYN is among its sequence numbers, or none."""
    STATE = 4
    """Seen: its state can only be that."""
    WITNESSED = 5
    """Seen as it began."""


class Keeper(Protocol):
    """The book that a socket is in, as far as others than the book need it."""

    number: int
    """Of its network namespace."""

    def learn_owner(self, entry: Entry, owner: Owner, place: int | None) -> None:
        """Somebody holds the socket, or it is known why nobody is known to."""

    def learn_cgroup(self, entry: Entry) -> None:
        """More is known of the cgroup that the socket was made in."""

    def learn_others(self, entry: Entry, owner: Process, others: Others) -> None:
        """Several processes hold the socket, or no longer several."""


class _NoBook:
    """In place of a book that is no more: nobody hears of its sockets."""

    number = 0

    def learn_owner(self, entry: Entry, owner: Owner, place: int | None) -> None:
        pass

    def learn_cgroup(self, entry: Entry) -> None:
        pass

    def learn_others(self, entry: Entry, owner: Process, others: Others) -> None:
        pass


_NO_BOOK = _NoBook()


@attrs.define(eq=False, weakref_slot=False)
class Entry:
    """One socket: a cookie in a network namespace. What the fields say is about its present connection."""

    keeper: Callable[[], Union[Keeper, None]]
    """Weakly the book that it is of: so it is in no circle, and what the C code makes need not be looked at by the garbage collector."""
    protocol: int
    last: Pieces
    """The pieces of the last message."""
    seen: int
    """Serial of the last poll that had it."""
    changed: int
    """Serial of the poll in which it was last seen to change."""
    state: int = SocketState.CLOSE
    reading: float = 0.0
    """Seconds from the begin of the poll until its last change was read: the row is no older."""
    connection: int = 1
    """Which of the socket's connections this is: a socket may disconnect and connect again."""
    report: SocketReport | None = None
    """Its counts and details; `None` while nothing is known of them."""
    flow: Flow | None = None
    """As announced; `None` while it was not."""
    owner: Owner | None = None
    """Who holds it, or why that is not known; `None` while it is looked for."""
    place: int | None = None
    """Where its owner holds it: the number of the descriptor, and 32 bits higher the thread if that has its own."""
    direction: Direction | None = None
    weight: Weight = Weight.NONE
    """How sure the direction is."""
    totals: Totals | None = None
    """What eBPF programs counted; `None`: the kernel's own counts are all there is."""
    whole: bool = True
    """False if something went through it before it was counted."""
    used_by: tuple[int, int | None] | None = None
    """The process that was seen using it: no other holder of the socket outweighs it."""
    cgroup: int = 0
    """Number of the cgroup that it was made in; 0: not known."""
    others: Others = NOBODY
    """Who else holds it, as far as it is known."""
    round: int = 0
    """The number of looks at all tables of descriptors before it was known (`OwnerSource.rounds`)."""
    preexisting: bool = False
    over: bool = True
    """True when it is not in the book, or no more."""
    before: tuple[bytes, ...] = ()
    """Identities of the last connections that it had before."""
    begun: int = 0
    """Serial of the poll in which its connection was first seen: a row of that poll may be older."""
    ended: Ended | None = None
    """The record of its end, which is not reported yet: the removal is awaited."""
    absences: int = 0
    """Successive polls without it: closed, and held by a process that did not close its descriptor."""

    @property
    def book(self) -> Keeper:
        """The book that it is of."""
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
        """The same of a row."""
        return _USER.unpack_from(pieces[3])

    def be_like_no_row(self) -> None:
        """Whatever row comes of it is looked at, if it should be as before."""
        self.last = (_NO_HEAD, *self.last[1:])

    def begin_connection(self) -> None:
        """The socket has another connection now: nothing of the one before holds for it but the owner."""
        self.connection += 1
        self.before = (*self.before[-_MOST_BEFORE:], self.identity)
        self.state = SocketState.CLOSE
        self.report = self.flow = self.direction = self.totals = self.ended = None
        self.weight = Weight.NONE
        self.preexisting = False
