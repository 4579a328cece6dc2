"""Weighs the evidence of eBPF programs into the books: beginnings, users, counts and ends of sockets.

Two sources see the end of a socket. A record of the programs knows whether a FIN is among the received bytes; the
removal of sock_diag has all of ``tcp_info``. Whichever comes first waits a moment for the other, so that the flow ends
once, with both.

A new flow is announced when its process and both of its ends are known. An outbound connection has no local port until
its SYN is answered, an accepted one has no process until its first call.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._events import LossCause, RemovalReason
from .._model import Direction, Outcome, Process
from ..ebpf import (
    Counted,
    Ended,
    Established,
    Evidence,
    Facts,
    Flag,
    HowKnown,
    OwnerRow,
    OwnerSeen,
    Seen,
    SocketType,
    Totals,
    owner_of,
    tells,
)
from ._book import Book
from ._cgroups import CgroupSource
from ._constants import (
    AF_INET,
    AF_INET6,
    AF_PACKET,
    DUMPED,
    IPPROTO_ICMP,
    IPPROTO_RAW,
    IPPROTO_TCP,
    PACKET,
    SocketState,
)
from ._entry import Entry, Weight
from ._finals import FIN_RECEIVED
from ._host_requests import AttachAnswer, ProcessFacts
from ._outcomes import outcome_by_record
from ._output import Output
from ._processes import Processes
from ._reports import counted_report
from ._rows import RowFormats, encode_row, ends_completed, same_connection
from ._waiting import Memory, Waiting, earliest

REMOVAL_PATIENCE = 0.05
"""Seconds for which the record of an end waits for the removal."""
RECORD_PATIENCE = 0.5
"""Seconds for which a removal waits for the record of the end, or for the last counts."""
PULSE_PATIENCE = 0.05
"""Seconds for which a removal waits for the report of a pulse, if no poll has seen the socket."""
ANNOUNCING_PATIENCE = 0.25
"""Seconds for which a new flow waits for its process and its ends."""
MOST_REMEMBERED = 65_536
"""Most sockets whose end is remembered until the other source reports it too."""
MOST_WAITING = 16_384
"""Most ends that wait for the other source, and most flows that wait to be announced: beyond that the oldest are due."""
MOST_HELD = 4096
"""Most pieces of evidence that are kept about network namespaces which may be watched soon."""
HELD_SECONDS = 1.0
"""Seconds for which such evidence is of use."""

_FAMILIES = frozenset({AF_INET, AF_INET6, AF_PACKET})
_ICMPV6 = 58
_STATES = {int(state): state for state in SocketState}
_ESTABLISHED = frozenset({SocketState.ESTABLISHED, SocketState.FIN_WAIT1, SocketState.FIN_WAIT2, *FIN_RECEIVED})
"""States that no failed attempt was in."""
_NANOSECONDS = 1_000_000_000
_BORN = int(Flag.COUNTED_FROM_BIRTH)


def row_of(facts: Facts, state: int, inode: int) -> bytes:
    """The row that a dump would have of this socket, without ``tcp_info``."""
    size = 4 if facts.family == AF_INET else 16
    local = facts.protocol if facts.type == SocketType.RAW else facts.local_port
    return encode_row(
        facts.family,
        state,
        (local.to_bytes(2, "big"), facts.remote_port.to_bytes(2, sys.byteorder)),
        (facts.local[:size], facts.remote[:size]),
        facts.cookie,
        uid=facts.uid,
        inode=inode,
    )


def protocol_of(facts: Facts) -> int:
    """The protocol of a socket's entry; a raw socket may have any IP protocol, even those of TCP and UDP."""
    if facts.family == AF_PACKET:
        return PACKET
    if facts.type == SocketType.RAW:
        return IPPROTO_RAW
    return IPPROTO_ICMP if facts.protocol == _ICMPV6 else facts.protocol


def _may_be_same(one: bytes, other: bytes) -> bool:
    """True if two identities may be of one connection, whichever was known first: each may lack the local port."""
    return same_connection(one, other) or same_connection(other, one)


@attrs.define(eq=False)
class _Recorded:
    """The end of a connection by its record."""

    entry: Entry
    connection: int
    """Number of the connection in its socket."""
    book: Book
    ended: Ended


@attrs.define(eq=False)
class _Removed:
    """The end of a socket by its removal."""

    entry: Entry
    book: Book
    settle: Callable[[Ended | None], None]
    """Reports the end, given its record."""
    established: bool
    """True if the removal says that the last connection was established."""


class ProgramEvidence:
    """Takes in the evidence of eBPF programs; without programs nothing waits here.

    Args:
        output: The time.
        processes: The processes that are known.
        cgroups: The cgroups that are known.
        protocols: The protocols of the wanted sockets.
    """

    def __init__(self, output: Output, processes: Processes, cgroups: CgroupSource, protocols: frozenset[int]) -> None:
        self.live = False
        """True while records come."""
        self.attached = AttachAnswer()
        """What was attached, or why nothing was."""
        self.pulsing = False
        """True while a pulse reports new sockets."""
        self.walks = 0
        """Number of complete walks over all descriptors."""
        self.missing = False
        """True if sockets exist that no record and no walk has reported."""
        self.counted: Callable[[Entry], bool] = lambda _entry: False
        """Says whether the last counts of this datagram socket are still to come."""
        self.gone: Callable[[int], None] = lambda _cookie: None
        """Called with the cookie of a socket that ended without a record."""
        self.met_unwatched: Callable[[int, int], bool] = lambda _cookie, _inode: False
        """Called with cookie and inode of a network namespace that is not watched; says whether it may be watched soon."""
        self.books: dict[int, Book] = {}
        """The books, by the cookie of their network namespace."""
        self._own: frozenset[int] = frozenset()
        """Cookies of the library's own sockets, which are not reported."""
        self._output = output
        self._processes = processes
        self._cgroups = cgroups
        self._protocols = protocols
        self._formats = RowFormats()
        self._recorded: Waiting[int, _Recorded] = Waiting(REMOVAL_PATIENCE, MOST_WAITING)
        """Records of ends that wait for the removal, by socket."""
        self._unread: set[Book] = set()
        """Books of namespaces with removals that are not read yet."""
        self.removed: Waiting[int, _Removed] = Waiting(RECORD_PATIENCE, MOST_WAITING)
        """Removals that wait for the record of the end, by socket."""
        self._unseen: Waiting[int, _Removed] = Waiting(PULSE_PATIENCE, MOST_WAITING, PULSE_PATIENCE / 2)
        """Removals that wait for a report of a pulse, by socket."""
        self._unannounced: Waiting[Entry, Book] = Waiting(ANNOUNCING_PATIENCE, MOST_WAITING)
        self._removal_due: Memory[int, bool] = Memory(MOST_REMEMBERED)
        """Sockets whose end is reported already: the removal says nothing new."""
        self._past: Memory[int, bytes] = Memory(MOST_REMEMBERED)
        """Sockets that were removed, while their last record may still come: nothing begins a new flow of them.

        With the identities of their last connections: a socket may have had several, each with a record of its end.
        """
        self._given_up: Memory[int, bytes] = Memory(MOST_REMEMBERED)
        """Sockets that are gone by a look-up, while older records of theirs may be unread, with their identities."""
        self._unbound: Memory[int, Ended] = Memory(MOST_HELD)
        """Records of datagram sockets that ended unused: only the removal knows the address."""
        self._held: deque[tuple[float, Evidence]] = deque(maxlen=MOST_HELD)
        """Evidence about namespaces that are not watched yet, the oldest first, with its time."""
        self._takers: dict[type, Callable[[Book, Any], None]] = {
            Seen: self._seen,
            Established: self._established,
            OwnerSeen: self._owner_seen,
            Counted: self._counted,
            Ended: self._ended,
        }

    def start(self) -> None:
        """Programs are `attached`: their records come from now on."""
        self.live, self._own = True, frozenset(self.attached.own_cookies)

    @property
    def walked(self) -> bool:
        """True if records report raw, ICMP and packet sockets, and walks over all descriptors find the older ones."""
        return self.attached.owners and tells(self.attached.tier).other_bytes

    def take(self, evidence: Iterable[Evidence]) -> None:
        """Take in what the programs saw."""
        for each in evidence:
            facts = each.facts
            if facts.net_cookie not in self.books and self.met_unwatched(facts.net_cookie, facts.netns):
                self._held.append((self._output.now, each))
            book = self.books.get(facts.net_cookie)
            if book is not None and facts.family in _FAMILIES and self._wants(protocol_of(facts)):
                self._takers[type(each)](book, each)

    def know(self, net_cookie: int, book: Book) -> None:
        """Begin to watch a network namespace, with the evidence that was held for it."""
        self.books[net_cookie] = book
        since = self._output.now - HELD_SECONDS
        held, self._held = self._held, deque(maxlen=MOST_HELD)
        fresh = [piece for piece in held if piece[0] >= since]
        self._held.extend(piece for piece in fresh if piece[1].facts.net_cookie != net_cookie)
        self.take(each for _, each in fresh if each.facts.net_cookie == net_cookie)

    def _wants(self, protocol: int) -> bool:
        return protocol in self._protocols and (protocol in DUMPED or self.walked)

    def _entry_of(self, book: Book, facts: Facts) -> Entry | None:
        """The entry of a socket, which is made if need be; `None` for a socket without an address, as in dumps."""
        entry = self.known(book, facts.cookie)
        bound = facts.local_port or facts.remote_port or protocol_of(facts) not in DUMPED
        walked = isinstance(facts, OwnerRow)
        if walked and protocol_of(facts) == IPPROTO_TCP and facts.new == SocketState.CLOSE:
            return entry  # a connection that is over, and whose end was reported, may have a descriptor for long
        if entry is not None or (walked and book.dumped) or not bound or facts.cookie in self._past:
            return entry
        if self._is_outdated(facts):
            return None
        entry = self._begin(book, facts)
        entry.preexisting = walked
        return entry

    def note_given_up(self, entry: Entry) -> None:
        """Note that a socket is gone by a look-up, and that its flow ended: what the ring has of it is older."""
        if self.live:
            self._given_up.add(entry.cookie, entry.identity)

    def records_read(self) -> None:
        """The ring is empty: later records are newer than anything that was given up."""
        if self._given_up:
            self._given_up = Memory(MOST_REMEMBERED)

    def _is_outdated(self, facts: Facts) -> bool:
        """True if a record may be of a connection that was given up before the record was read."""
        given_up = self._given_up.get(facts.cookie)
        if given_up is None:
            return False
        return protocol_of(facts) != IPPROTO_TCP or _may_be_same(self._row(facts)[0][1], given_up)

    def known(self, book: Book, cookie: int) -> Entry | None:
        """The entry of a socket, which may be removed and wait for its record or report; `None` if there is none."""
        waiting = self.removed.get(cookie) or self._unseen.get(cookie)
        return book.entries.get(cookie) if waiting is None else waiting.entry

    # -- beginnings

    def _seen(self, book: Book, seen: Seen) -> None:
        facts = seen.facts
        self.end_recorded(facts.cookie)
        known = self.known(book, facts.cookie)
        entry = known or self._entry_of(book, facts)
        if entry is None:
            return
        if known is None:
            # The first dump has all older connections: of one that comes later the record of its beginning was lost.
            late = entry.protocol == IPPROTO_TCP and not self._output.first_poll
            entry.preexisting = seen.began is False and not late
        if seen.outbound and entry.state == SocketState.LISTEN:  # it was shut down, and connects
            pieces, message = self._row(facts)
            book.begin_other_connection(entry, pieces)
            book.take_over(entry, message, (0, 0))
        if seen.outbound is not None:
            entry.direction = Direction.OUTBOUND if seen.outbound else Direction.INBOUND
            entry.weight = Weight.WITNESSED
        if entry.protocol != IPPROTO_TCP and entry.totals is None and self._is_whole(entry, facts):
            self._count(entry, self._nothing)
        self._used_by(book, entry, facts)
        if entry.flow is None:
            self._announce(book, entry)

    def _begin(self, book: Book, facts: Facts) -> Entry:
        pieces, message = self._row(facts)
        entry = book.new_entry(protocol_of(facts), pieces)
        self._removal_due.pop(facts.cookie)
        book.take_over(entry, message, (0, 0))
        self._cgroups.assign(entry, facts.cgroup)
        return entry

    def _row(self, facts: Facts) -> tuple[Any, bytes]:
        state = SocketState.ESTABLISHED
        if facts.protocol == IPPROTO_TCP:
            state = _STATES.get(facts.new, state)
        elif not facts.remote_port:
            state = SocketState.CLOSE
        message = row_of(facts, state, facts.inode if isinstance(facts, OwnerRow) else 0)
        return self._formats.cut(message)[0], message

    def _established(self, book: Book, established: Established) -> None:
        """Both ends of a connection are known now."""
        entry = self.known(book, established.facts.cookie)
        if entry is None or (entry.over and self._is_earlier(established, entry)):
            return
        if not entry.last[4]:  # no dump had it yet
            pieces, message = self._row(established.facts)
            entry.set_last(pieces)
            book.take_over(entry, message, (0, 0))
        if entry.flow is None:
            self._announce(book, entry)
        else:
            book.update(entry, entry.report, rebuilt=True)

    def _announce(self, book: Book, entry: Entry) -> None:
        """Announce a flow, or wait until all of it is known; the first poll announces older flows."""
        if entry.over:
            return  # its end announces it
        if entry.preexisting and self._output.first_poll:
            book.waiting.append(entry)
        elif entry.process is not None and (entry.protocol != IPPROTO_TCP or any(entry.identity[4:6])):
            self._unannounced.pop(entry)
            book.announce(entry)
        elif entry not in self._unannounced:
            self._unannounced.add(entry, book, self._output.now)

    def announced(self, until: float) -> bool:
        """True if no flow that a record reported by this time waits to be announced."""
        due = self._unannounced.deadline()
        return due is None or due > until + ANNOUNCING_PATIENCE

    # -- processes

    def _owner_seen(self, book: Book, seen: OwnerSeen) -> None:
        cookie, walked = seen.facts.cookie, isinstance(seen.facts, OwnerRow)
        if isinstance(seen.facts, OwnerRow) and (protocol := protocol_of(seen.facts)) not in DUMPED:
            self._walked_over(book, protocol, seen.facts)
        entry = self.known(book, cookie) if seen.after_end else self._entry_of(book, seen.facts)
        if entry is not None:
            self._used_by(book, entry, seen.facts)
            listens = entry.state == SocketState.LISTEN and not walked
            if entry.flow is None and (entry in self._unannounced or entry.used_by is not None or listens):
                self._announce(book, entry)
            elif entry.flow is None and not book.dumped:
                book.waiting.append(entry)

    def _walked_over(self, book: Book, protocol: int, row: OwnerRow) -> None:
        """Take in a socket, with its inode, that only walks find."""
        entry = self.known(book, row.cookie)
        if entry is None or not entry.user[1]:
            message = row_of(row, SocketState.CLOSE, row.inode)
            pieces, form = self._formats.cut(message)
            book.apply_row(entry, protocol, pieces, message, form)

    def _used_by(self, book: Book, entry: Entry, facts: Facts) -> None:
        """Weigh the process of a record: a user outweighs a holder, and a holder the maker of the socket."""
        owner = owner_of(facts)
        if owner is None or (owner.how is HowKnown.CREATOR and entry.process is not None):
            return
        start = owner.start * self.attached.ticks // _NANOSECONDS
        if owner.how is HowKnown.DESCRIPTOR and (entry.used_by or not self._is_elder(entry, owner.pid, start)):
            return
        if owner.how is HowKnown.CALL:
            entry.used_by = (owner.pid, start)
        process = self._processes.seen(entry, ProcessFacts(owner.pid, start, owner.name, None, owner.name), facts.uid)
        self._belongs_to(book, entry, process)

    def _is_elder(self, entry: Entry, pid: int, start: int) -> bool:
        """True if a holder that a walk reports replaces the known one, whose descriptor no search has found.

        That one may be from an earlier walk. Of those of one walk the oldest counts, and ``init`` only if it is alone.
        """
        if entry.place is not None:
            return False
        first, entry.walk = entry.walk != self.walks, self.walks
        known = entry.process
        if known is None or known.pid == 1 or pid == 1:
            return pid != 1 or known is None
        return first or start < (known.unique_pid or 0)

    def _belongs_to(self, book: Book, entry: Entry, process: Process) -> None:
        if entry.process is not None and entry.process.key == process.key:
            return
        entry.owner, entry.place = process, None
        if entry.flow is not None:
            book.update(entry, entry.report, rebuilt=True)

    # -- counts

    def _counted(self, book: Book, counted: Counted) -> None:
        entry = self._entry_of(book, counted.facts)
        if entry is None or entry.report is None:
            return
        if entry.totals is None:
            entry.whole = self._is_whole(entry, counted.facts)
            self._count(entry, self._nothing)
        previous = entry.report
        book.coverage.counted_datagrams(entry, entry.totals, counted.totals)
        self._count(entry, counted.totals)
        if entry.flow is not None:
            book.update(entry, previous, rebuilt=False)

    @property
    def _nothing(self) -> Totals:
        return Totals(0, 0, 0, 0) if tells(self.attached.tier).udp_packets else Totals(0, 0, None, None)

    def _is_whole(self, entry: Entry, facts: Facts) -> bool:
        """True if a datagram socket cannot have had traffic before it was counted."""
        return bool(facts.flags & _BORN) or (not self.attached.births and not entry.preexisting)

    @staticmethod
    def _count(entry: Entry, totals: Totals) -> None:
        entry.totals = totals
        if entry.report is not None:
            entry.report = counted_report(*entry.report.raw, totals)

    # -- ends

    def _ended(self, book: Book, ended: Ended) -> None:
        cookie = ended.facts.cookie
        if ended.final:
            self.end_recorded(cookie)  # that one had its record: this is of the socket's next connection
        known = self.known(book, cookie)
        if known is not None and self._is_earlier(ended, known):
            if ended.final:
                self._end_earlier(book, known, ended)
            return
        past, removed = self._past.pop(cookie), self._take_removed(cookie)
        if past is not None and not (ended.final and self._is_last(ended, past)):
            self._past.add(cookie, past)  # the record of its last connection, or the counts in the map, may still come
        if removed is not None:
            book.remember(removed.entry)  # it may be an earlier one of several that had this port
            self._settle(removed, ended)
            return
        entry = book.entries.get(cookie)
        if past is not None or (entry is None and self._is_outdated(ended.facts)):
            return
        if not ended.final:  # how it ended is not known: sock_diag will tell
            witnessed = entry is not None and entry.protocol == IPPROTO_TCP and entry.weight is Weight.WITNESSED
            if entry is not None and (witnessed or not book.dumped):
                self.end_unseen(book, entry)
            return
        if entry is None:
            entry = self._entry_of(book, ended.facts)
            if entry is None:  # closed unused; if it was bound, its removal has the address
                self._unbound.add(cookie, ended)
                return
            if entry.protocol == IPPROTO_TCP and self._output.first_poll:
                entry.preexisting = True  # the ring would have had the record of its beginning before that of its end
            self._output.count("short_lived")
        self._used_by(book, entry, ended.facts)
        recorded = _Recorded(entry, entry.connection, book, ended)
        if entry.protocol == IPPROTO_TCP:
            entry.ended = ended
            if not any(entry.identity[4:6]):  # an attempt, whose port only its end tells: the next one has another
                book.complete_ends(entry, self._row(ended.facts)[0][1])
            book.begin_end(entry)
            self._recorded.add(cookie, recorded, self._output.now)
        else:
            self._end(recorded)

    def _is_last(self, ended: Ended, identity: bytes) -> bool:
        """True if this is the end of a removed socket's last connection, which has this identity.

        Not the opposite of `_is_earlier`: a record without a local port may be of either, and proves neither.
        """
        return protocol_of(ended.facts) != IPPROTO_TCP or same_connection(identity, self._row(ended.facts)[0][1])

    def _is_earlier(self, seen: Established | Ended, entry: Entry) -> bool:
        """True if this is about an earlier connection of the socket than the known one."""
        if entry.protocol != IPPROTO_TCP:
            return False
        identity = self._row(seen.facts)[0][1]
        if identity[1] == SocketState.SYN_SENT and entry.before and entry.weight is not Weight.WITNESSED:
            return True  # its beginning was recorded, and that of the known one was not
        if isinstance(seen, Ended) and self._is_attempt(seen):
            removed = self.removed.get(entry.cookie)
            if entry.state in _ESTABLISHED or (removed is not None and removed.established):
                return True
        return not _may_be_same(identity, entry.identity)

    @staticmethod
    def _is_attempt(ended: Ended) -> bool:
        return ended.state == SocketState.SYN_SENT

    def _end_earlier(self, book: Book, known: Entry, ended: Ended) -> None:
        """Report an earlier connection of a socket whose next connection became known first."""
        pieces, message = self._row(ended.facts)
        others = _ESTABLISHED if self._is_attempt(ended) else ()
        for at, before in enumerate(known.before):
            if before[1] not in others and _may_be_same(before, pieces[1]):  # its end was reported
                known.before = (*known.before[:at], ends_completed(before, pieces[1]), *known.before[at + 1 :])
                return
        if known.flow is not None or known.ended is not None:  # the next connection has taken its number
            if known.connection - 1 <= len(known.before):  # no earlier one is forgotten that it could be
                self._output.lose(LossCause.GOODBYE, "a socket connected again, and was closed, before any was seen", 1)
            return
        entry = attrs.evolve(known, last=pieces, report=None, over=True)
        known.connection += 1
        known.before = (*known.before, pieces[1])
        past = self._past.get(known.cookie)
        if past is not None:  # ends that the removal lacked were taken from the earlier connection
            known.set_last((known.last[0], past, *known.last[2:]))
        book.take_over(entry, message, (0, 0))
        self._used_by(book, entry, ended.facts)
        self._output.count("short_lived")
        assert entry.report is not None
        self.finish(book, entry, ended, entry.report.raw, outcome_by_record(ended, None))

    def join(
        self, book: Book, entry: Entry, settle: Callable[[Ended | None], None], *, established: bool = False
    ) -> None:
        """A socket was removed: call `settle` with the record of its end, or with `None` if no record will come.

        `established`: its last connection is known to have been, so that the record of a failed attempt is an earlier one's.
        """
        cookie = entry.cookie
        self._give_up_due(self._unseen)  # while the loop is awake, which saves waking it for them
        recorded, unbound = self._recorded.pop(cookie), self._unbound.pop(cookie)
        ended = recorded.ended if recorded is not None and recorded.connection == entry.connection else None
        if ended is not None and established and self._is_attempt(ended):
            entry.ended = None
            self._end_earlier(book, entry, ended)
        elif ended is not None:
            if ended.facts.local_port or self._is_attempt(ended):
                self._past.pop(cookie)  # otherwise it may be an earlier one's, and that of the last one may still come
            settle(ended)
            return
        removed = _Removed(entry, book, settle, established)
        if unbound is not None:
            self._past.pop(cookie)
            self._settle(removed, unbound)
        elif self.live and (entry.protocol == IPPROTO_TCP or self.counted(entry)):
            self.removed.add(cookie, removed, self._output.now)
        elif self.pulsing and not self.live and entry.owner is None:
            self._unseen.add(cookie, removed, self._output.now)
        else:
            settle(None)

    def _settle(self, removed: _Removed, ended: Ended) -> None:
        """The record of a removed socket came: what the kernel cleared in the removal, and who had it, are known from it."""
        removed.book.complete_ends(removed.entry, self._row(ended.facts)[0][1])
        if removed.entry.owner is None:
            self._used_by(removed.book, removed.entry, ended.facts)
        removed.settle(ended)

    def is_past(self, cookie: int) -> bool:
        """True if a socket was removed, so that a report about it is outdated."""
        return cookie in self._past

    def note_removal(self, cookie: int, identity: bytes, *, known: bool) -> bool:
        """Note that a socket was removed; True if its end is reported already, and the book does not have it (`known`)."""
        reported = (self._removal_due.pop(cookie) or cookie in self._own) and not known
        if (self.live or self.pulsing) and not reported:
            self._past.add(cookie, identity)
        return reported

    def removals_left(self, book: Book, *, some: bool) -> None:
        """Note whether a namespace has unread removals, for which the records of ends wait."""
        (self._unread.add if some else self._unread.discard)(book)
        self._recorded.behind = bool(self._unread)

    def end_recorded(self, cookie: int) -> bool:
        """End a connection by its record alone, because its removal will not come; False if there is no record of it."""
        recorded = self._recorded.pop(cookie)
        return recorded is not None and self._end(recorded)

    def _end(self, recorded: _Recorded) -> bool:
        entry, book, ended = recorded.entry, recorded.book, recorded.ended
        if entry.over or entry.connection != recorded.connection:
            return False  # another source ended it meanwhile
        assert entry.report is not None
        self._note_end(entry)
        book.remember(entry)
        book.drop(entry)
        outcome = outcome_by_record(ended, None) if entry.protocol == IPPROTO_TCP else None
        self.finish(book, entry, ended, entry.report.raw, outcome)
        return True

    def finish(
        self, book: Book, entry: Entry, ended: Ended, raw: tuple[bytes, int, int], outcome: Outcome | None = None
    ) -> None:
        """End a flow with the counts of its record; everything else is read from `raw` (`SocketReport.raw`)."""
        if entry.protocol != IPPROTO_TCP:
            entry.whole = entry.whole and self._is_whole(entry, ended.facts)
            book.coverage.counted_datagrams(entry, entry.totals, ended.totals)
        entry.report = counted_report(*raw, ended.totals)
        final = ended.final and entry.whole
        book.end(entry, entry.report, final=final, reason=RemovalReason.CLOSED, outcome=outcome)

    def end_unseen(self, book: Book, entry: Entry) -> None:
        """End a flow that is gone, without knowing how it ended."""
        self._note_end(entry)
        book.give_up(entry)

    def _note_end(self, entry: Entry) -> None:
        """Note that the end of a socket is reported before its removal."""
        self._unannounced.pop(entry)
        self._removal_due.add(entry.cookie, True)

    # -- time

    def deadline(self) -> float | None:
        """When to call `expire`."""
        waiting = (self._recorded, self.removed, self._unseen, self._unannounced)
        return earliest(filter(None, waiting))  # most are empty, and this is asked many times a turn

    def expire(self) -> None:
        """Give up what did not come in time."""
        now = self._output.now
        for entry, book in self._unannounced.due(now):
            if entry.flow is None and not entry.over:
                book.announce(entry)
        for _, recorded in self._recorded.due(now):
            self._end(recorded)
        for waiting in (self.removed, self._unseen):
            self._give_up_due(waiting)

    def _give_up_due(self, waiting: Waiting[int, _Removed]) -> None:
        for cookie, removed in waiting.due(self._output.now):
            self._give_up(cookie, removed)

    def _take_removed(self, cookie: int) -> _Removed | None:
        return self.removed.pop(cookie) or self._unseen.pop(cookie)

    def give_up(self, cookie: int) -> None:
        """No record of this socket's end will come."""
        removed = self._take_removed(cookie)
        if removed is not None:
            self._give_up(cookie, removed)

    def _give_up(self, cookie: int, removed: _Removed) -> None:
        self.gone(cookie)
        removed.settle(None)

    def stop(self) -> None:
        """The programs are gone: no further record will come."""
        self.live = False
        self.give_up_all()

    def leave(self, book: Book) -> None:
        """A network namespace is not watched any more: its ends stop waiting."""
        self.removals_left(book, some=False)
        for cookie, recorded in self._recorded.items():
            if recorded.book is book:
                self.end_recorded(cookie)
        for waiting in (self.removed, self._unseen):
            for cookie, removed in waiting.items():
                if removed.book is book:
                    self.give_up(cookie)

    def give_up_all(self) -> None:
        """All ends stop waiting: nothing more will come."""
        for _, recorded in self._recorded.take_all():
            self._end(recorded)
        for waiting in (self.removed, self._unseen):
            for cookie, removed in waiting.take_all():
                self._give_up(cookie, removed)
