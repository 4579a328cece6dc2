"""One network namespace: its book, the sources of evidence about it, and its part of a poll.

It has four channels: removals, addresses, look-ups and dumps. They are opened in this order, so that no
change is missed between them.

Absence is proven, not assumed. A socket in the state CLOSE whose descriptor is still open is in no dump, and its
removal comes later. So the kernel is asked only if removals were lost, or if the absence lasts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import attrs

from .._options import MonitorOptions
from ._addresses import AddressSource
from ._book import Book
from ._cgroups import CgroupSource
from ._constants import IPPROTO_TCP, SocketState
from ._dumps import DumpSource
from ._endings import Endings
from ._entry import Entry
from ._links import LinkTable
from ._lookups import NO_ANSWER, LookupSource, lookup_request
from ._output import Output
from ._outside import OutsideTables
from ._owners import OwnerSource
from ._program_evidence import ProgramEvidence
from ._pulse import PulseSource
from ._removals import RemovalSource
from ._rows import RowFormats, is_remains
from ._setup import NetworkNamespace
from ._source import Source
from ._tables import TableSource
from ._walks import Walks

JUDGED_AT_ONCE = 256
"""Absent sockets that are examined in one step, which takes about 1 ms."""
PATIENCE = 3
"""Polls without a socket after which it is assumed to be gone, if removals were lost and look-ups get no answer."""


class Access(enum.Enum):
    """How a network namespace is watched."""

    ENTERED = enum.auto()
    """From inside, by requests to its netlink sockets."""
    PROGRAMS = enum.auto()
    """From outside, only by what eBPF programs report (`ProgramNamespaces`)."""
    TABLES = enum.auto()
    """From outside, only by the tables in ``/proc/PID/net`` (`OutsideTables`)."""


@attrs.frozen
class SessionParts:
    """The parts of a session that all of its network namespaces use."""

    output: Output
    owners: OwnerSource
    cgroups: CgroupSource
    evidence: ProgramEvidence
    protocols: frozenset[int]
    """The protocols of the wanted sockets."""
    options: MonitorOptions


class Namespace:
    """A network namespace that is watched.

    Args:
        parts: The parts of the session that it uses.
        number: Its number in the session.
        identity: Which namespace of the machine it is.
        access: How it is watched.
        vital: A permanent failure of its dumps ends the session.
    """

    def __init__(
        self, parts: SessionParts, number: int, identity: NetworkNamespace, access: Access, *, vital: bool = False
    ) -> None:
        output, owners, evidence = parts.output, parts.owners, parts.evidence
        options, protocols = parts.options, parts.protocols
        links, self._formats = LinkTable(), RowFormats()
        self.number = number
        self.entered = access is Access.ENTERED
        """False: nothing can be requested in it."""
        self.polled = False
        """True once a poll of it began."""
        self.book = Book(
            output,
            number,
            identity,
            links,
            owners,
            parts.cgroups,
            every_update=options.every_update,
            extras=options.extras,
            dumped=self.entered,
        )
        self.addresses = AddressSource(output, number, links)
        self.lookups = LookupSource(output, number)
        self._endings = Endings(output, self.book, self.lookups, links, self._formats, self._is_located)
        self._evidence = evidence
        self.removals = RemovalSource(output, self.book, self._endings, evidence, self._formats, protocols)
        self.dumps = DumpSource(
            output,
            self.book,
            self._formats,
            protocols,
            extras=options.extras,
            every=options.every_update,
            vital=vital,
        )
        allowed = identity.label is None and IPPROTO_TCP in protocols and not (options.extras or options.every_update)
        self.walks = Walks(
            output,
            self.book,
            self.dumps,
            self.lookups,
            self.removals,
            evidence,
            self._formats,
            allowed=allowed,
        )
        tables = OutsideTables if access is Access.TABLES else TableSource
        read = frozenset[int]() if access is Access.PROGRAMS else protocols
        self.tables = tables(output, self.book, evidence, self._formats, read)
        sources = (self.removals, self.addresses, self.lookups, self.dumps)
        self.sources: tuple[Source, ...] = sources if self.entered else ()
        """The sources, in the order in which their channels are opened."""
        self.pulse = PulseSource(
            output,
            self.book,
            owners,
            evidence,
            self._formats,
            self.dumps,
            options.pulse,
            polled=options.interval is not None,
        )
        """The pulse, which opens its channel itself after the first poll."""
        self._output = output
        self._judged = True
        self._absent: list[Entry] = []
        """Sockets that no dump of this poll had, and that are still to be examined."""
        self._asking = 0
        """Number of look-ups of absent sockets that are not answered yet."""
        self._undecided = False
        """True if one of this poll got no answer, so that a socket may be gone or not."""

    def open(self) -> None:
        """Request the channels."""
        for source in self.sources:
            source.open()

    @property
    def settled(self) -> bool:
        """True when polls can begin."""
        return all(source.settled for source in self.sources)

    def _is_located(self) -> bool:
        return not self.entered or self.addresses.settled

    def begin_poll(self) -> None:
        """Request all dumps."""
        self.polled = True
        if not self.entered:
            self.tables.begin_poll()
            return
        self._judged, self._absent, self._undecided = False, [], False
        self.book.begin_poll()
        self.removals.begin_poll()
        self.dumps.begin_poll(partial=self.walks.begin_poll())
        self.tables.begin_poll()

    def end(self) -> None:
        """End all flows: the namespace is gone."""
        book = self.book
        self._evidence.leave(book)
        self._endings.give_up_all()
        self._output.do(_end_all(book))
        for source in (*self.sources, self.pulse):
            source.close()

    def gather(self) -> bool:
        """Examine absences once all dumps are complete; true when all were examined."""
        if not self._judged and self.dumps.done and self.walks.done:
            self._judged = True
            self.book.end_dumps()
            self._absent = self._find_absences()
        if self._absent:
            self._judge(self._absent)
        tables = self.tables.gather()
        return self._judged and not self._absent and not self._asking and tables

    @property
    def judging(self) -> bool:
        """True while absences are examined: `gather` has more to do at once."""
        return bool(self._absent) or self.tables.busy

    def end_poll(self) -> None:
        """End the poll: the book has all that it found."""
        if not self.entered:
            return
        self.walks.end_poll()
        self.removals.end_poll(proven=self.dumps.complete and not self.dumps.partial and not self._undecided)
        self.tables.settle()
        self.book.coverage.end_poll()
        self.book.locate()

    # -- evidence of absence

    def _find_absences(self) -> list[Entry]:
        """The sockets that none of this poll's dumps had."""
        entries, poll, reliable = self.book.entries, self._output.poll, self.removals.reliable
        # If the dumps had as many rows as there are known sockets, it is assumed that they had exactly these: a socket
        # that was reported twice could hide an absence until the next poll.
        if self.dumps.partial or (reliable and self.book.reported == len(entries)):
            return []
        return [entry for entry in entries.values() if entry.last_seen != poll]

    def _judge(self, absent: list[Entry]) -> None:
        reliable, behind = self.removals.reliable, self.removals.behind
        for _ in range(min(JUDGED_AT_ONCE, len(absent))):
            entry = absent.pop()
            if entry.over or (entry.identity[0], entry.protocol) not in self.dumps.judged:
                continue
            if behind:  # its removal is probably among the unread ones
                entry.absences = max(entry.absences, 1)
                continue
            entry.absences += 1
            if entry.report is not None and (entry.absences == 2 or not reliable):
                self._ask(entry, entry.report.message)

    def _ask(self, entry: Entry, message: bytes) -> None:
        self._asking += 1
        self.lookups.ask(lookup_request(message, entry.protocol), lambda found: self._answered(entry, found))

    def _answered(self, entry: Entry, found: bytes | None) -> None:
        """Judge the result of an exact look-up of a socket that no dump had."""
        self._asking -= 1
        book = self.book
        if entry.over:
            return
        if found and not is_remains(found):
            pieces, form = self._formats.cut(found)
            if pieces[2] == entry.cookie:
                book.apply_row(entry, entry.protocol, pieces, found, form)
                return
        if self.removals.reliable:
            if found != NO_ANSWER:
                book.mark_closed(entry, SocketState.TIME_WAIT if found else SocketState.CLOSE)
        elif found == NO_ANSWER and entry.absences < PATIENCE:
            self._undecided = True
        elif not self._evidence.end_recorded(entry.cookie):
            self._output.count("gone")
            self._evidence.note_given_up(entry)
            book.give_up(entry)


def _end_all(book: Book) -> Iterator[None]:
    for entry in list(book.entries.values()):
        yield
        if not entry.over:
            book.give_up(entry)
