"""Settles what the removal of a TCP connection leaves open, before the end is reported.

Is a FIN among the bytes, and who closed? A look-up asks what is left of the socket. Where the other end is on this
machine, its removal is waited for a moment, because each end tells what the other one cannot. An end with nothing open
is reported at once. The waiting time is not over while notifications are unread: the other end's may be among them.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from .._events import RemovalReason
from .._model import Outcome, is_loopback
from ..ebpf import Ended
from ._book import Book
from ._constants import IPPROTO_TCP, SocketState
from ._direction import direction_by_remains
from ._entry import Entry, Weight
from ._finals import (
    FIN_RECEIVED,
    Fin,
    LastWords,
    Remains,
    fin_by_dump,
    fin_by_peer,
    fin_by_remains,
    is_orderly,
    is_pair,
    last_words,
    remains_of,
    sent_fin,
)
from ._links import LinkTable
from ._lookups import NO_ANSWER, LookupSource, lookup_request
from ._messages import HEADER
from ._outcomes import Traces, is_attempt, outcome_by_record, outcome_of, outcome_of_attempt
from ._output import Output
from ._reports import socket_report
from ._rows import RowFormats, address_of, info_of, is_remains
from ._waiting import Memory, Waiting

PEER_PATIENCE = 0.25
"""Seconds for which an end waits for the other end of its connection."""
MEMORY = 5.0
"""Seconds for which an end is remembered for the other one, which may come late: a process may hold a reset socket."""
MOST_REMEMBERED = 16_384
"""Most ends that are remembered, and most that wait: beyond that the oldest are reported as they are."""

FORGETFUL = 60.0
"""Seconds for which a full table of TIME_WAIT is assumed to stay full: what is in it stays for as long."""
REUSED_AFTER = 1.0
"""Seconds after which another connection may have the addresses of one in TIME_WAIT (``tcp_twsk_unique``)."""

_FIN_NOT_SENT = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT, SocketState.SYN_SENT, SocketState.SYN_RECV})
_FIN_SENT = frozenset({SocketState.FIN_WAIT1, SocketState.FIN_WAIT2})
_NO_FIN = Fin(0, proven=False)

End = tuple[bytes, bytes]
"""The local and the remote end of a connection: port and address of each."""
_ANY = b""
"""Stands for an end that the kernel forgot."""


@attrs.define(eq=False)
class Ending:
    """How one connection ended, as far as that is known."""

    entry: Entry
    message: bytes
    info: tuple[int, int]
    words: LastWords
    record: Ended | None
    fin: Fin | None
    orderly: bool | None
    """True if a FIN of this end was acknowledged; `None`: a FIN or a SYN was."""
    local: bool
    """True if the other end is on this machine."""
    came: float
    """When the removal was read."""
    remains: Remains = Remains.UNKNOWN
    peer: LastWords | None = None

    @property
    def proven(self) -> bool:
        """True if it is proven whether a FIN is among the bytes."""
        return self.fin is not None and self.fin.proven

    @property
    def open(self) -> bool:
        """True if the other end could tell more."""
        if not self.proven or self.orderly is None:
            return True
        return not self.orderly and self.words.unread > 0

    def remains_in(self, found: bytes | None) -> Remains:
        """What is left of the socket, by the look-up of its addresses."""
        return remains_of(self.message, found, known=self.entry.report is not None)


class Endings:
    """The ends of one namespace's connections."""

    def __init__(
        self,
        output: Output,
        book: Book,
        lookups: LookupSource,
        links: LinkTable,
        formats: RowFormats,
        located: Callable[[], bool],
    ) -> None:
        self._located = located
        """Says whether the addresses of this machine are known, or given up."""
        self._early: list[Ending] = []
        """Ends that came before that: it is not known whether the other end is on this machine."""
        self._output = output
        self._book = book
        self._lookups = lookups
        self._links = links
        self._formats = formats
        self.waiting: Waiting[End, Ending] = Waiting(PEER_PATIENCE, MOST_REMEMBERED)
        """Ends that wait for the other end."""
        self._ended: Memory[End, tuple[float, LastWords]] = Memory(MOST_REMEMBERED)
        """Ends that are remembered for the other end on this machine, with the time until which they are."""
        self._aborted: Memory[bytes, float] = Memory(MOST_REMEMBERED)
        """Local ports of connections that were aborted, if their other ends are not known, with the time until which that counts."""
        self._doubted = 0.0
        """Until when the other end of any connection may be missing, because notifications were lost."""
        self._forgetful = 0.0
        """Until when a connection may leave nothing in TIME_WAIT."""
        self.read_at = 0.0
        """When all notifications had been read: any that come now are younger."""
        self._fresh: dict[End, Ending] = {}
        """Ends that came since `flush`, which asks what is left of their sockets."""

    def settle(
        self,
        entry: Entry,
        message: bytes,
        info: tuple[int, int],
        words: LastWords,
        came: float,
        record: Ended | None,
    ) -> None:
        """Settle the end of a connection.

        Args:
            entry: Its socket.
            message: The removal.
            info: Offset and length of ``tcp_info`` in the message.
            words: What the message says.
            came: When it was read.
            record: The eBPF record of the end, if there is one.
        """
        self.other_came(entry)
        local, orderly = self._is_here(entry), is_orderly(entry, words)
        ending = Ending(entry, message, info, words, record, _fin_of(entry, words, record), orderly, local, came)
        if local or self._located() or len(self._early) >= MOST_REMEMBERED:
            self._settle(ending)
        else:
            self._early.append(ending)

    def _settle(self, ending: Ending) -> None:
        entry = ending.entry
        if is_attempt(ending.words):
            self._finish(ending)
        elif ending.orderly is False or ending.record is not None or entry.state in FIN_RECEIVED:
            self._meet(ending)
        elif not ending.local:
            self._ask_for_remains(ending)
        elif not self._pair(_end_of(entry), ending):
            self._keep(_end_of(entry), ending)

    def _keep(self, here: End, ending: Ending) -> None:
        """Keep an end until all notifications are read: the next one may be the other end's."""
        earlier = self._fresh.pop(here, None)
        if earlier is not None:
            self._ask_for_remains(earlier)
        self._fresh[here] = ending

    def flush(self) -> None:
        """All notifications are read: ask what is left of the sockets whose end is open."""
        if self._early and self._located():
            self._settle_early()
        if not self._lookups.is_full:  # a replay knows only what was sent, and keeps them as long
            self._ask_fresh()

    def _ask_fresh(self) -> None:
        fresh, self._fresh = self._fresh, {}
        for ending in fresh.values():
            self._ask_for_remains(ending)

    def _settle_early(self) -> None:
        early, self._early = self._early, []
        for ending in early:
            ending.local = self._is_here(ending.entry)
            self._settle(ending)

    def _ask_for_remains(self, ending: Ending) -> None:
        self._look_up(ending, lambda found: self._remains_found(ending, found))

    def _look_up(self, ending: Ending, take: Callable[[bytes | None], None], *, mirrored: bool = False) -> None:
        """Look up what has the addresses of a connection now; `mirrored`: those of its other end."""
        self._lookups.ask(lookup_request(ending.message, IPPROTO_TCP, exact=False, mirrored=mirrored), take)

    def _pair(self, here: End, ending: Ending) -> bool:
        """Settle an end together with the other one, if that came too; False if it did not.

        If each end received the other's FIN, a single look-up says which closed first.
        """
        other = self._fresh.get(here[::-1])
        if other is None or not self._may_be_pair(here, ending.words, other.words):
            return False
        del self._fresh[here[::-1]]
        for end, peer in ((other, ending.words), (ending, other.words)):
            end.peer, end.fin = peer, self._fin_by(end, peer)
        if all(end.fin == (1, True) for end in (other, ending)):
            self._look_up(other, lambda found: self._closed_in_order(other, ending, found))
        else:
            self._ask_for_remains(other)
            self._ask_for_remains(ending)
        return True

    def _closed_in_order(self, one: Ending, other: Ending, found: bytes | None) -> None:
        """One of two ends must have left something. If the first has not, the other is asked for: maybe nothing is kept."""
        one.remains = other.remains = Remains.UNCLEAR
        if found != NO_ANSWER:
            one.remains = one.remains_in(found)
            other.remains = Remains.NOTHING
            if one.remains is Remains.NOTHING:
                self._look_up(other, lambda found: self._closed_there(one, other, found))
                return
        self._finish(one)
        self._finish(other)

    def _closed_there(self, one: Ending, other: Ending, found: bytes | None) -> None:
        other.remains = Remains.TIME_WAIT
        if found != NO_ANSWER and other.remains_in(found) is Remains.NOTHING:
            one.remains = other.remains = Remains.UNCLEAR
            self._forgetful = self._output.now + FORGETFUL
        self._finish(one)
        self._finish(other)

    def _is_here(self, entry: Entry) -> bool:
        """True if the other end is on this machine; without rtnetlink only its address can tell."""
        local, remote = address_of(entry.identity, 8), address_of(entry.identity, 24)
        return remote == local or is_loopback(remote) or self._links.index_of(remote) is not None

    def _remains_found(self, ending: Ending, found: bytes | None) -> None:
        """Take in what is left of the socket.

        If anything is there, even a listener, a connection whose direction is not known ended in order.
        """
        if found == NO_ANSWER or (found and ending.entry.report is None and self._may_be_reused()):
            remains = Remains.UNCLEAR
        else:
            remains = ending.remains_in(found)
            if remains is Remains.NOTHING and self._output.now < self._forgetful:
                remains = Remains.UNCLEAR
        ending.remains = remains
        if ending.orderly is None and found:
            ending.orderly = True
        if ending.fin is None and ending.orderly:
            since, here = 1000 * (self._output.now - ending.came), ending.entry.state in _FIN_SENT
            ending.fin = fin_by_remains(ending.words, remains, found, since_ms=since, here=here)
        self._meet(ending)

    def _may_be_reused(self) -> bool:
        """True if so much time has passed that another connection may have these addresses."""
        return not self._output.following and self._output.now - self.read_at >= REUSED_AFTER

    # -- the other end

    def _meet(self, ending: Ending) -> None:
        """Settle an end together with the other one, or wait for that, or report it if nothing is open."""
        if not ending.local:
            self._finish(ending)
            return
        here = _end_of(ending.entry)
        waiting = self.waiting.get(here[::-1])
        known = self._recall(here[::-1])
        if waiting is not None and self._may_be_pair(here, ending.words, waiting.words):
            self.waiting.pop(here[::-1])
            self._settle_by(waiting, ending.words)
            self._settle_by(ending, waiting.words)
        elif known is not None and self._may_be_pair(here, ending.words, known):
            self._settle_by(ending, known)
        elif ending.open:
            self._wait(here, ending)
        else:
            self._remember(here, ending.words)
            self._finish(ending)

    def _may_be_pair(self, here: End, words: LastWords, other: LastWords) -> bool:
        """False if the other end may be another connection's: an abort, whose removal names no peer, leaves both ends free.

        Then, and after a loss of removals, only equal counts show that they are of one connection.
        """
        now, ports = self._output.now, (here[0][:2], here[1][:2])
        doubted = self._doubted > now or any((self._aborted.get(port) or 0.0) > now for port in ports)
        return not doubted or other.cleared or is_pair(words, other)

    def doubt(self) -> None:
        """Removals were lost: those of other ends may be among them, and will not come."""
        self._doubted = self._output.now + MEMORY

    def _wait(self, here: End, ending: Ending) -> None:
        """Wait for the removal of the other end, and look up whether that is still open.

        An earlier connection between the same ends may be waiting; it waits no longer.
        """
        before = self.waiting.pop(here)
        if before is not None:
            self._give_up(here, before)
        self.waiting.add(here, ending, self._output.now)
        self._look_up(ending, lambda found: self._peer_found(ending, here, found), mirrored=True)

    def cleared(self, entry: Entry, words: LastWords) -> None:
        """Note that a connection was aborted, which cleared its counters; a connection that no dump had keeps its local port only."""
        here = _end_of(entry)
        if not any(here[1][:2]):
            self._remember((here[0][:2], _ANY), words)
            if here[0][:2] not in self._book.listeners.by_port:
                self._aborted.add(here[0][:2], self._output.now + MEMORY)
            return
        waiting = self.waiting.pop(here[::-1])
        known = self._recall(here[::-1])
        if waiting is not None:
            self._settle_by(waiting, words)
        elif known is None and self._is_here(entry):
            self._remember(here, words)

    def _remember(self, end: End, words: LastWords) -> None:
        self._ended.add(end, (self._output.now + MEMORY, words))

    def _recall(self, end: End) -> LastWords | None:
        known = self._ended.pop(end)
        return None if known is None or known[0] < self._output.now else known[1]

    def _peer_found(self, ending: Ending, here: End, found: bytes | None) -> None:
        """If the look-up found the other end open, settle by it; if it found remains, that end's removal will come."""
        waits = self.waiting.get(here) is ending
        if waits and found and not is_remains(found) and not self._may_be_reused():
            self._settle_by_living(ending, here, found)

    def _settle_by_living(self, ending: Ending, here: End, found: bytes) -> None:
        """Settle by the socket with the addresses of the other end, unless its counts say that it is another connection.

        A listener has no counts.
        """
        pieces, form = self._formats.cut(found)
        state, peer = found[HEADER.size + 1], last_words(found, *info_of(found, form, pieces))
        fin = fin_by_peer(ending.words, peer) if self._may_be_pair(here, ending.words, peer) else None
        if fin is None or (fin.counted and state in _FIN_NOT_SENT):
            return
        self.waiting.pop(here)
        self._remember(here, ending.words)
        if ending.orderly is None:
            ending.orderly = state in FIN_RECEIVED
        if not ending.proven:
            ending.fin = fin
        self._finish(ending)

    def _settle_by(self, ending: Ending, peer: LastWords) -> None:
        ending.peer = peer
        ending.fin = self._fin_by(ending, peer)
        if ending.orderly is None:
            ending.orderly = not peer.cleared and peer.received > ending.words.payload_sent
        self._finish(ending)

    @staticmethod
    def _fin_by(ending: Ending, peer: LastWords) -> Fin:
        fin = ending.fin or _NO_FIN
        if fin.proven:
            return fin
        return _NO_FIN if peer.cleared else fin_by_peer(ending.words, peer) or fin  # an abort sends no FIN

    def other_came(self, entry: Entry) -> None:
        """The removal of this end came, and is not settled yet: an end that waits for it gets more time."""
        if self.waiting:
            other = _end_of(entry)[::-1]
            ending = self.waiting.get(other)
            if ending is not None:
                self.waiting.add(other, ending, self._output.now)

    # -- the end

    def _finish(self, ending: Ending) -> None:
        """Report the end, never with less than was reported before."""
        entry, words = ending.entry, ending.words
        if ending.orderly and entry.weight is Weight.NONE:
            entry.direction = direction_by_remains(ending.message, ending.info)
        fin = ending.fin or Fin(int(words.unread == 1), proven=False)  # a single byte that nobody read
        outcome = self._outcome(ending, fin)
        reported = None if entry.report is None else entry.report.rx_bytes
        if fin.counted and reported is not None and words.received - fin.counted < reported:
            fin = _NO_FIN  # the FIN was among the bytes of an earlier row, whose state did not show it
        report = socket_report(ending.message, *ending.info, fin.counted)
        if entry.report is None:
            entry.report = report
        self._book.end(
            entry,
            report,
            final=fin.proven,
            reason=RemovalReason.CLOSED,
            uncertainty=None if fin.proven else 1,
            outcome=outcome,
        )

    def _outcome(self, ending: Ending, fin: Fin) -> Outcome | None:
        entry, words, record = ending.entry, ending.words, ending.record
        if is_attempt(words):
            return outcome_of_attempt(words, words.repeated, quick=False)
        if ending.orderly is None:
            return None
        state: int | None = entry.state
        if record is not None:
            by_record = outcome_by_record(record, words)
            if by_record is not None:
                return by_record
            state = record.state
        closing = bool(sent_fin(entry, words))
        traces = Traces(state, ending.orderly, closing, fin, ending.remains, ending.peer, ending.local)
        return outcome_of(words, traces)

    # -- time

    def expire(self) -> None:
        """The other end did not come in time."""
        for end, ending in self.waiting.due(self._output.now):
            self._give_up(end, ending)

    def give_up_all(self) -> None:
        """Report all ends as they are: no more evidence will come."""
        self._settle_early()
        self._ask_fresh()
        self._lookups.give_up_all()
        for end, ending in self.waiting.take_all():
            self._give_up(end, ending)

    def _give_up(self, end: End, ending: Ending) -> None:
        ending.peer = self._recall((end[1][:2], _ANY))
        if ending.peer is None:
            self._remember(end, ending.words)
        if len(self._ended) < MOST_REMEMBERED:  # otherwise the other end may have come, and be forgotten
            if not ending.proven:
                ending.fin = _NO_FIN  # if the other end had closed in order, its removal would have come
            ending.orderly = bool(ending.orderly)
        self._finish(ending)


def _fin_of(entry: Entry, words: LastWords, record: Ended | None) -> Fin | None:
    if record is None:
        return fin_by_dump(entry, words)
    return Fin(int(words.received > (record.totals.rx_bytes or 0)), proven=True)


def _end_of(entry: Entry) -> End:
    identity = entry.identity
    return identity[4:6] + address_of(identity, 8), identity[6:8] + address_of(identity, 24)
