"""Remotes of unconnected UDP sockets: each is a flow of its own, next to its socket's flow, as eBPF programs count it.

The programs keep a bounded list of remotes for the whole machine, and drop the least recently used. What the list has
lost is the socket's remainder, a flow without a remote. So the remotes of a socket and its remainder never have more
bytes than the socket's flow, and as many when the socket ended.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping

import attrs

from .._events import FlowAdded, FlowRemoved, RemovalReason, flow_updated
from .._model import Counts, Endpoint, Flow, Provider
from ..ebpf import PEER_KEY, Answer, PeerRow, Totals
from ._book import Book
from ._constants import AF_INET, IPPROTO_UDP
from ._entry import Entry
from ._output import Output
from ._reports import CountedReport, counted_report, report_of

MOST_ROWS = 1 << 17
"""Most remotes that are read of a list; the programs keep an eighth of this."""
_NOTHING = (0, 0, 0, 0)
_OTHERS = "other"
_LINK_LOCAL = b"\xfe\x80"

Numbers = tuple[int, int, int, int]
"""Received and sent bytes, received and sent packets."""


@attrs.define(eq=False)
class _Remote:
    """A remote, or the remainder, of a socket."""

    flow: Flow
    report: CountedReport
    numbers: Numbers


@attrs.define(eq=False)
class _Socket:
    """A socket that has remotes."""

    entry: Entry
    parent: Flow
    """The socket's flow, as its remotes were last made from."""
    remotes: dict[tuple[bytes, int], _Remote] = attrs.field(factory=dict)
    others: _Remote | None = None
    """The remainder."""
    departed: Numbers = _NOTHING
    """Traffic of the remotes that left the list."""
    number: int = 0
    """How many remotes it had so far."""


class Remotes:
    """The remotes of the sockets of all books.

    Args:
        output: Where events go.
        books: The books, by the cookie of their network namespace; they come and go.
    """

    def __init__(self, output: Output, books: Mapping[int, Book]) -> None:
        self._output = output
        self._books = books
        self._sockets: dict[int, _Socket] = {}
        self._ending: set[int] = set()
        """Sockets that had ended when the list was asked for, so that it has their last counts."""
        self._rows: list[PeerRow] = []
        self._complete = False

    def watch(self) -> bool:
        """Make the books keep UDP sockets that end; True if one ended since the list was last read."""
        for book in self._books.values():
            if book.ended is None:
                book.ended = {}
        return any(book.ended for book in self._books.values())

    def begin(self) -> None:
        """The list is asked for now."""
        self._ending = self._ended()

    def _ended(self) -> set[int]:
        return {cookie for book in self._books.values() for cookie in book.ended or ()}

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows of remotes, with their counts."""
        for sock in self._sockets.values():
            for remote in self._all(sock):
                yield remote.flow, remote.report

    def take(self, answer: Answer) -> None:
        """Take in a part of the list."""
        self._rows += [row for row in answer.rows if isinstance(row, PeerRow)]
        self._complete = answer.last and not answer.errno
        if len(self._rows) > MOST_ROWS:  # no kernel has so many
            self._rows.clear()
            self._complete = False

    def settle(self) -> list[bytes]:
        """Compare the list, if it is complete, with the flows; the counts of the sockets were read before it.

        Returns:
            Keys of remotes whose socket ended: the programs may drop them.
        """
        rows, self._rows = self._rows, []
        if not self._complete:
            return []
        self._complete = False
        by_socket: dict[int, list[PeerRow]] = {cookie: [] for cookie in self._sockets}
        for row in rows:
            by_socket.setdefault(row.cookie, []).append(row)
        keys: list[bytes] = []
        waiting = self._ended() - self._ending
        for cookie, listed in by_socket.items():
            sock = self._socket(cookie)
            if sock is None or cookie in waiting:  # it ended after the list was read
                continue
            self._compare(sock, listed)
            if sock.entry.over:
                self._end(cookie, sock)
                keys += [PEER_KEY.pack(*row[:4], 0) for row in listed]
        for book in self._books.values():
            ended = book.ended or {}
            for cookie in self._ending & ended.keys():
                del ended[cookie]
        return keys

    def _socket(self, cookie: int) -> _Socket | None:
        """The socket with this cookie; `None` if its flow is not known."""
        sock = self._sockets.get(cookie)
        if sock is not None:
            return sock
        for book in self._books.values():
            entry = book.entries.get(cookie) or (book.ended or {}).get(cookie)
            if entry is None or entry.protocol != IPPROTO_UDP:
                continue
            if entry.flow is not None and entry.report is not None:
                sock = self._sockets[cookie] = _Socket(entry, entry.flow)
                return sock
        return None

    # -- what is new

    def _compare(self, sock: _Socket, rows: Iterable[PeerRow]) -> None:
        flow = sock.entry.flow
        if flow is not None and flow is not sock.parent:
            sock.parent = flow
            for remote in self._all(sock):
                self._rebuild(sock, remote)
        there = set()
        for row in rows:
            key = row.address, row.port
            there.add(key)
            self._listed(sock, key, row)
        for key in sock.remotes.keys() - there:
            self._depart(sock, key)
        self._count_others(sock)

    def _listed(self, sock: _Socket, key: tuple[bytes, int], row: PeerRow) -> None:
        numbers = row.rx_bytes, row.tx_bytes, row.rx_packets, row.tx_packets
        known = sock.remotes.get(key)
        if known is not None and any(map(operator.lt, numbers, known.numbers)):  # it was dropped, and came again
            self._depart(sock, key)
            known = None
        if known is None:
            sock.number += 1
            sock.remotes[key] = self._add(sock, str(sock.number), _endpoint(row), numbers)
        elif numbers != known.numbers:
            self._update(sock, known, numbers)

    def _depart(self, sock: _Socket, key: tuple[bytes, int]) -> None:
        """End the flow of a remote that left the list."""
        remote = sock.remotes.pop(key)
        sock.departed = _sum((sock.departed, remote.numbers))
        self._remove(remote, final=False, reason=RemovalReason.DROPPED)

    def _count_others(self, sock: _Socket) -> None:
        """Count the remainder. It may be too small for a moment, never too large: the socket was read before the list."""
        report = sock.entry.report
        if report is None:
            return
        total = [number or 0 for number in (report.rx_bytes, report.tx_bytes, report.rx_packets, report.tx_packets)]
        listed = _sum((sock.departed, *(remote.numbers for remote in sock.remotes.values())))
        known = _NOTHING if sock.others is None else sock.others.numbers
        rx_bytes, tx_bytes, rx_packets, tx_packets = (
            max(before, now - part) for before, now, part in zip(known, total, listed, strict=True)
        )
        numbers = rx_bytes, tx_bytes, rx_packets, tx_packets
        if sock.others is None and any(numbers):
            sock.others = self._add(sock, _OTHERS, None, numbers)
        elif sock.others is not None and numbers != known:
            self._update(sock, sock.others, numbers)

    def _end(self, cookie: int, sock: _Socket) -> None:
        del self._sockets[cookie]
        for remote in self._all(sock):
            self._remove(remote, final=sock.entry.whole, reason=RemovalReason.CLOSED)

    # -- events

    @staticmethod
    def _all(sock: _Socket) -> list[_Remote]:
        return [*sock.remotes.values(), *(() if sock.others is None else (sock.others,))]

    def _add(self, sock: _Socket, name: str, remote: Endpoint | None, numbers: Numbers) -> _Remote:
        parent = sock.parent
        flow = attrs.evolve(
            parent, id=f"{parent.id}/{name}", provider=Provider.UDP_SUBFLOW, remote=remote, parent=parent.id
        )
        added = _Remote(flow, _report(sock.entry, numbers), numbers)
        preexisting = sock.entry.preexisting and self._output.first_poll
        self._output.events.append(FlowAdded(self._output.time, flow, added.report, preexisting, added.report))
        return added

    def _update(self, sock: _Socket, remote: _Remote, numbers: Numbers) -> None:
        previous, remote.numbers, remote.report = remote.report, numbers, _report(sock.entry, numbers)
        self._output.events.append(flow_updated(self._output.time, remote.flow, report_of(remote.report, previous)))

    def _rebuild(self, sock: _Socket, remote: _Remote) -> None:
        """Update the flow of a remote, because the socket's flow changed, e.g. its process."""
        known = remote.flow
        remote.flow = attrs.evolve(
            sock.parent, id=known.id, provider=known.provider, remote=known.remote, parent=known.parent
        )
        report = report_of(remote.report, remote.report)
        self._output.events.append(flow_updated(self._output.time, remote.flow, report))

    def _remove(self, remote: _Remote, *, final: bool, reason: RemovalReason) -> None:
        report = remote.report
        self._output.events.append(FlowRemoved(self._output.time, remote.flow, report, final, reason, report))


def _sum(parts: Iterable[Numbers]) -> Numbers:
    rx_bytes, tx_bytes, rx_packets, tx_packets = map(sum, zip(*parts, strict=True))
    return rx_bytes, tx_bytes, rx_packets, tx_packets


def _report(entry: Entry, numbers: Numbers) -> CountedReport:
    assert entry.report is not None
    return counted_report(*entry.report.raw, Totals(*numbers))


def _endpoint(row: PeerRow) -> Endpoint:
    """The address and port of a row; its port is in network order."""
    address = row.address[:4] if row.family == AF_INET else row.address
    port = row.port >> 8 | (row.port & 0xFF) << 8
    scope = row.ifindex if row.family != AF_INET and address.startswith(_LINK_LOCAL) else 0
    return Endpoint(address, port, scope)
