"""Makes evidence of records: finds out which belong together, which are repeated, and which are missing.

Each connection gets exactly one `Seen` and one `Ended`, also if records are repeated or lost. Each record takes constant
time. These cases occur, and each has a test:

- A record comes twice, because an interrupt came between the two copies of the program for changes of state. Both
  records say the same but for the time, and follow each other directly.
- The first record is missing: the connection is older than the programs, or the ring was full.
- The last record is missing: the ring was full. A datagram socket has then ended if two lists of counts in a row
  do not have it. Other sources may prove an end, too (`Ledger.forget`).
- One socket has several connections, one after the other (``connect`` to AF_UNSPEC, and another ``connect``).
- Both sides connect at the same time, or a socket connects to itself: after OPENED comes what looks like ACCEPTED.
- An accepted connection is reset before it is used: its owner is seen after its end.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from ._evidence import (
    Counted,
    Ended,
    Established,
    Evidence,
    Facts,
    OwnerSeen,
    Seen,
    Totals,
    datagram_totals,
    tcp_totals,
)
from ._records import Counters, Flag, FlowRow, Kind, OwnerRow, PeerRow, Record, SocketType, decode_records
from ._requests import Answer, Operation
from ._sweep import Sweep

REPEATED_WITHIN = 1_000_000_000
"""Nanoseconds: within this time a second record that says the same, with nothing in between, is a repetition.

Between its two copies the interrupt is short, but a hypervisor may take the CPU away meanwhile.
"""
MAX_REMEMBERED = 2048
"""Most ended connections that are remembered, for repetitions and for owners that are seen afterwards."""
_SAYS = 3
"""The fields of a record from here on are what it says, after its place in the ring and its time."""
_NOTHING = Counters(0, 0, 0, 0, 0, 0, 0, 0)
_SYN_SENT = 2
_PACKET = 17
_DUMPED = frozenset({6, 17})
"""Protocols whose sockets sock_diag dumps: TCP and UDP."""
_RAW = int(SocketType.RAW)
_STREAM = int(SocketType.STREAM)
_HAS_PROCESS = int(Flag.HAS_PROCESS)  # plain numbers, because the operators of an IntFlag are slow
_COUNTED_FROM_BIRTH = int(Flag.COUNTED_FROM_BIRTH)
_ERROR_KNOWN = int(Flag.ERROR_KNOWN)
_SHUT_FOR_READING = int(Flag.SHUT_FOR_READING)


_ended = functools.partial(tuple.__new__, Ended)
"""`Ended._make` without its Python function."""
_seen = functools.partial(tuple.__new__, Seen)
"""`Seen._make` without its Python function."""


class _Entry:
    """The state of an open connection."""

    __slots__ = ("established", "facts", "last", "listed", "outbound", "owner")

    def __init__(self, facts: Facts, outbound: bool | None, listed: int) -> None:
        self.facts = facts
        self.last = facts
        self.outbound = outbound
        self.established = outbound is not True
        self.owner = (facts.pid, facts.start) if facts.flags & _HAS_PROCESS else None
        self.listed = listed


class _Socket(_Entry):
    """The state of an open socket of another protocol than TCP."""

    __slots__ = ("counters", "earlier", "first")

    def __init__(self, facts: Facts, listed: int) -> None:
        super().__init__(facts, None, listed)
        self.first = 0
        self.counters = _NOTHING
        self.earlier = _NOTHING

    @property
    def sum(self) -> Counters:
        """The sum of all counts, also of entries of the map that are gone."""
        return _sum(self.earlier, self.counters)


class Ledger:
    """Takes the data of the ring and the maps, and makes evidence of it.

    Args:
        packets: True if packets are counted, see `datagram_totals`.
        births: True if the programs see datagram sockets being created and released. Then a socket whose creation was not
            seen is older than the programs.
        processes: False if the pids of records mean nothing on this machine: then no process is passed on.
        ignore: Cookies of sockets that are not reported: the library's own.
    """

    def __init__(self, *, packets: bool, births: bool, processes: bool = True, ignore: Iterable[int] = ()) -> None:
        self._packets = packets
        self._births = births
        self._processes = processes
        self._sweep = Sweep(ends=births)
        self._drops: list[int] = []
        self._ignore = frozenset(ignore)
        self._live: dict[int, _Entry] = {}
        self._sockets: dict[int, _Socket] = {}
        """The sockets of other protocols than TCP."""
        self._ended: OrderedDict[int, Record] = OrderedDict()
        self._evidence: list[Evidence] = []
        self._list = 0
        self.records = 0
        """How many records were taken in."""
        self.discarded = 0
        """How many records were discarded by the kernel, or are not of these programs."""
        self.repeated = 0
        """How many records repeated an earlier one."""
        self._handlers: dict[int, Callable[[Record], None]] = {
            Kind.OPENED: self._opened,
            Kind.ESTABLISHED: self._established,
            Kind.ACCEPTED: self._accepted,
            Kind.CLOSED: self._closed,
            Kind.FIRST_IO: self._first_io,
            Kind.RELEASED: self._released,
        }

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, cookie: int) -> bool:
        return cookie in self._live

    @property
    def sockets(self) -> Collection[int]:
        """Cookies of the sockets whose counts are in the map of flows, as far as records say."""
        return self._sockets.keys()

    def take_evidence(self) -> list[Evidence]:
        """The evidence since the last call."""
        taken, self._evidence = self._evidence, []
        return taken

    def take_drops(self) -> list[int]:
        """Cookies of entries to be removed by `Operation.DROP`, since the last call: see `Sweep`."""
        taken, self._drops = self._drops, []
        return taken

    def receive(self, data: bytes) -> None:
        """A datagram of the ring's channel.

        Raises:
            ProtocolError: It is no whole number of records.
        """
        records, discarded = decode_records(data)
        self.records += len(records)
        self.discarded += discarded
        handlers, ignore = self._handlers, self._ignore
        if not self._processes:
            records = [record._replace(flags=record.flags & ~_HAS_PROCESS) for record in records]
        for record in records:
            handler = handlers.get(record.kind)
            if handler is None:
                self.discarded += 1
            elif record.cookie not in ignore:
                handler(record)

    # --- TCP ------------------------------------------------------------------------------

    def _repeats(self, record: Record, before: Facts) -> bool:
        if record[_SAYS:] != before[_SAYS:] or not isinstance(before, Record):
            return False
        same = record.time - before.time < REPEATED_WITHIN
        self.repeated += same
        return same

    def _begin(self, record: Record, outbound: bool, *, began: bool) -> _Entry:
        entry = self._live[record.cookie] = _Entry(record, outbound, self._list)
        self._evidence.append(_seen((record, outbound, began)))
        return entry

    def _opened(self, record: Record) -> None:
        entry = self._live.get(record.cookie)
        if entry is not None:
            if self._repeats(record, entry.last):
                return
            self._end_unseen(record.cookie, entry)
        self._begin(record, outbound=True, began=True)

    def _established(self, record: Record) -> None:
        entry = self._live.get(record.cookie)
        if entry is None:
            self._begin(record, outbound=True, began=False).established = True
            return
        if self._repeats(record, entry.last):
            return
        self._establish(entry, record)

    def _establish(self, entry: _Entry, record: Record) -> None:
        entry.established = True
        entry.facts = entry.last = record
        self._evidence.append(Established(record))

    def _accepted(self, record: Record) -> None:
        entry = self._live.get(record.cookie)
        if entry is None:
            self._begin(record, outbound=False, began=True)
        elif self._repeats(record, entry.last):
            return
        elif entry.outbound:  # both sides connected at once
            self._establish(entry, record)
        else:
            self._end_unseen(record.cookie, entry)
            self._begin(record, outbound=False, began=True)

    def _closed(self, record: Record) -> None:
        entry = self._live.pop(record.cookie, None)
        if entry is not None:
            facts, established = entry.facts, entry.established
            if not facts.local_port:  # an attempt: only its end tells from where
                facts = facts._replace(local_port=record.local_port, local=record.local)
        elif self._ends_again(record):
            return
        else:
            facts, established = record, record.old != _SYN_SENT
        self._remember(record)
        flags = record.flags
        error = flags >> 16 & 0xFF if flags & _ERROR_KNOWN else None
        how = record.old, error, bool(flags & _SHUT_FOR_READING)
        self._evidence.append(_ended((facts, record.time, tcp_totals(record), True, established, *how)))

    def _ends_again(self, record: Record) -> bool:
        """True if this repeats the last change of a connection that ended."""
        ended = self._ended.get(record.cookie)
        return ended is not None and self._repeats(record, ended)

    def _remember(self, record: Record) -> None:
        ended = self._ended
        ended[record.cookie] = record
        ended.move_to_end(record.cookie)
        if len(ended) > MAX_REMEMBERED:
            ended.popitem(last=False)  # a plain dict would look for its first entry among all that were removed

    def _end_unseen(self, cookie: int, entry: _Entry) -> None:
        self._pop(cookie)
        self._evidence.append(Ended(entry.facts, None, self._last(entry), final=False, established=entry.established))

    # --- other sockets --------------------------------------------------------------------

    def _first_io(self, record: Record) -> None:
        entry = self._live.get(record.cookie)
        if entry is not None:
            self._owned(entry, record)
        elif record.type == _STREAM:
            ended = record.cookie in self._ended
            if record.flags & _HAS_PROCESS:
                self._evidence.append(OwnerSeen(record, after_end=ended))
        else:
            self._begin_socket(record)

    def _begin_socket(self, facts: Record | FlowRow) -> _Socket:
        entry = self._live[facts.cookie] = self._sockets[facts.cookie] = _Socket(facts, self._list)
        self._evidence.append(Seen(facts, None, self._born(facts)))
        return entry

    def _pop(self, cookie: int) -> _Entry | None:
        self._sockets.pop(cookie, None)
        return self._live.pop(cookie, None)

    def _born(self, facts: Facts) -> bool | None:
        if facts.flags & _COUNTED_FROM_BIRTH:
            return True
        return False if self._births and facts.family != _PACKET else None  # no hook sees packet sockets being made

    def _owned(self, entry: _Entry, facts: Facts) -> None:
        owner = (facts.pid, facts.start)
        if not facts.flags & _HAS_PROCESS or entry.owner == owner:
            self.repeated += 1
            return
        entry.owner = owner
        self._evidence.append(OwnerSeen(facts, after_end=False))

    def _released(self, record: Record) -> None:
        entry = self._pop(record.cookie)
        counters = Counters(*record[-8:])
        if isinstance(entry, _Socket):
            self._restarted(entry, counters)
            counters = _sum(entry.earlier, counters)
        elif self._ends_again(record):
            return
        self._remember(record)
        totals = datagram_totals(counters, packets=self._packets)
        self._evidence.append(Ended(record, record.time, totals, final=True, established=True))

    @staticmethod
    def _restarted(entry: _Socket, now: Counters) -> None:
        """If the entry of the map was removed and made again, it counts from zero: keep the earlier counts."""
        if any(after < before for after, before in zip(now, entry.counters, strict=True)):
            entry.earlier, entry.counters = entry.sum, _NOTHING

    def _last(self, entry: _Entry) -> Totals:
        if isinstance(entry, _Socket):
            return datagram_totals(entry.sum, packets=self._packets)
        return Totals(None, None, None, None)

    # --- the maps -------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """A piece of what the maps answered."""
        if answer.operation is Operation.FLOWS:
            for row in self._rows(answer):
                assert isinstance(row, FlowRow)
                self._sweep.listed(row)
                self._listed(row)
            if answer.last:
                self._end_list(whole=not answer.errno)
        elif answer.operation is Operation.LOOK:
            for row in self._rows(answer):
                assert isinstance(row, FlowRow)
                self._listed(row)
        elif answer.operation is Operation.TAKE:
            for row in self._rows(answer):
                assert isinstance(row, FlowRow)
                self._sweep.ended(row.cookie)
                self._taken(row)
        elif answer.operation is Operation.OWNERS:
            for row in self._rows(answer):
                assert isinstance(row, OwnerRow)
                self._sweep.held(row.cookie)
                self._held(row)
            if answer.last:
                self._end_walk(whole=not answer.errno)

    def _rows(self, answer: Answer) -> Iterable[FlowRow | PeerRow | OwnerRow]:
        if self._processes:
            return answer.rows
        return [
            row if isinstance(row, PeerRow) else row._replace(flags=row.flags & ~_HAS_PROCESS) for row in answer.rows
        ]

    def _end_walk(self, *, whole: bool) -> None:
        for cookie in self._sweep.end_walk(whole=whole):
            self._drops.append(cookie)
            entry = self._live.get(cookie)
            if isinstance(entry, _Socket):  # no process has a TCP connection that waits to be accepted
                self._end_unseen(cookie, entry)

    def _listed(self, row: FlowRow) -> None:
        if row.type == _STREAM or not row.family or row.cookie in self._ignore:
            return
        entry = self._live.get(row.cookie)
        if entry is None:
            if row.cookie in self._ended:  # the row was read before the socket's end, and arrives after it
                return
            entry = self._begin_socket(row)
        elif row.flags & _HAS_PROCESS and entry.owner != (row.pid, row.start):
            self._owned(entry, row)
        entry.listed = self._list
        if isinstance(entry, _Socket):
            self._count(entry, row)

    def _count(self, entry: _Socket, row: FlowRow) -> None:
        if row.first != entry.first:
            entry.earlier, entry.counters, entry.first = entry.sum, _NOTHING, row.first
        counters, moved = row.counters, _moved(entry.facts, row)
        if counters == entry.counters and not moved:
            return
        entry.counters, entry.facts = counters, row
        totals = datagram_totals(entry.sum, packets=self._packets)
        self._evidence.append(Counted(row, totals, whole=bool(row.flags & _COUNTED_FROM_BIRTH)))

    def _end_list(self, *, whole: bool) -> None:
        """End the sockets that two complete lists in a row did not have: their last records are lost."""
        if not whole:
            return
        oldest = self._list - 1
        self._list += 1
        gone = [(cookie, entry) for cookie, entry in self._sockets.items() if entry.listed < oldest]
        for cookie, entry in gone:
            self._end_unseen(cookie, entry)

    def _taken(self, row: FlowRow) -> None:
        """Take in the last counts of a socket whose end another source reported."""
        entry = self._pop(row.cookie)
        counters = row.counters
        if isinstance(entry, _Socket):
            if row.first != entry.first:
                entry.earlier = entry.sum
            counters = _sum(entry.earlier, counters)
        totals = datagram_totals(counters, packets=self._packets)
        self._evidence.append(Ended(row, None, totals, final=True, established=True))

    def _held(self, row: OwnerRow) -> None:
        """Take in a process that has a socket open."""
        if row.cookie in self._ignore:
            return
        entry = self._live.get(row.cookie)
        if entry is not None and entry.owner is None:
            self._owned(entry, row)
        elif row.flags & _HAS_PROCESS and (entry is None or row.protocol not in _DUMPED or row.type == _RAW):
            self._evidence.append(OwnerSeen(row, after_end=False))  # no dump tells the inode, which the row has

    def forget(self, cookie: int) -> None:
        """Forget a socket: another source proved that it is gone, or that its connection is over."""
        entry = self._live.get(cookie)
        if entry is not None:
            self._end_unseen(cookie, entry)


def _sum(one: Counters, other: Counters) -> Counters:
    return other if one is _NOTHING else Counters(*(a + b for a, b in zip(one, other, strict=True)))


def _moved(before: Facts, after: FlowRow) -> bool:
    """True if a socket was bound or connected since then."""
    return (before.local_port, before.remote_port, before.local, before.remote) != (
        after.local_port,
        after.remote_port,
        after.local,
        after.remote,
    )
