"""Evidence of ends: the kernel's notifications of destroyed sockets, with their last counters.

What they leave open (see `_finals`) a look-up of what is left of the socket decides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from .._events import LossCause, RemovalReason
from ..ebpf import Ended
from ._book import Book
from ._constants import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, DiagAttribute, DiagGroup, SocketState
from ._direction import direction_by_remains
from ._entry import Entry, Weight
from ._finals import fin_among_received, fin_by_remains, is_unused, received_bytes, was_disconnected
from ._lookups import LookupSource, lookup_request
from ._messages import ATTRIBUTES_AT, find_attribute, iterate_messages
from ._output import Output
from ._reports import socket_report
from ._rows import RowFormats, info_of, is_remains
from ._setup import ChannelPurpose, Role
from ._sightings import Sightings
from ._source import Source

_GROUPS = {
    (AF_INET, IPPROTO_TCP): DiagGroup.TCP4_DESTROY,
    (AF_INET6, IPPROTO_TCP): DiagGroup.TCP6_DESTROY,
    (AF_INET, IPPROTO_UDP): DiagGroup.UDP4_DESTROY,
    (AF_INET6, IPPROTO_UDP): DiagGroup.UDP6_DESTROY,
}
_PROTOCOL_HEADER = struct.pack("=HH", 5, DiagAttribute.PROTOCOL)


class RemovalSource(Source):
    """Takes in the notifications of one namespace."""

    def __init__(
        self,
        output: Output,
        book: Book,
        lookups: LookupSource,
        sightings: Sightings,
        formats: RowFormats,
        protocols: Iterable[int],
    ) -> None:
        wanted = frozenset(protocols)
        groups = tuple(int(group) for (_, protocol), group in _GROUPS.items() if protocol in wanted)
        super().__init__(output, ChannelPurpose(book.number, Role.REMOVALS, groups))
        self.receive_buffer: int | None = None
        """Granted size in bytes, if known."""
        self._book = book
        self._lookups = lookups
        self._sightings = sightings
        self._formats = formats
        self._protocols = wanted
        self._lossy = False
        """Notifications were lost, and no dump repaired that yet."""
        self._congested = False
        self._repairing = False

    # -- what is missing

    @property
    def reliable(self) -> bool:
        """True unless notifications are known to be missing: then absence is explained by one that will come."""
        return self.is_open and not self._lossy

    def begin_poll(self) -> None:
        """A poll begins: what was lost before can be repaired by it."""
        self._repairing = not self._congested

    def end_poll(self) -> None:
        """A complete poll ended."""
        if self._repairing:
            self._lossy = False

    def opened(self, receive_buffer: int | None) -> None:
        super().opened(receive_buffer)
        self.receive_buffer = receive_buffer

    def failed(self, errno: int) -> None:
        """The kernel could not queue a notification for us; it does not say how many.

        Until its queue was read empty it goes on dropping and says nothing more
        (``NETLINK_S_CONGESTED``), so the repair begins at `drained`.
        """
        if not self.is_open:
            self.output.note(f"destroyed sockets are not reported (error {errno}): flows between two polls are missed")
            return
        self._lossy = self._congested = True
        self._repairing = False
        self.output.count("overruns")
        detail = "notifications of destroyed sockets were lost; the next dump repairs the state"
        self.output.lose(LossCause.KERNEL_BUFFER, detail)

    def drained(self) -> None:
        """Nothing is queued: a dump can repair a loss now."""
        if self._congested:
            self._congested = False
            self.output.repair_wanted = True

    # -- what is there

    def receive(self, data: bytes) -> None:
        for frame in iterate_messages(data):
            if frame.length >= ATTRIBUTES_AT:
                self._take_in(data if frame.length == len(data) else data[frame.offset : frame.end])
            else:
                self.output.reject("notification of a destroyed socket is too short")

    def _take_in(self, message: bytes) -> None:
        output, book = self.output, self._book
        output.count("goodbyes")
        protocol = _protocol_of(message)
        if protocol not in self._protocols:
            return
        pieces, form = self._formats.cut(message)
        info = info_of(message, form, pieces)
        entry = book.entries.get(pieces[2])
        if self._sightings.is_reported(pieces[2]) and entry is None:
            return
        if entry is None:
            if is_unused(message):
                output.count("unused_sockets")
                return
            output.count("short_lived")
            entry = book.new_entry(protocol, pieces)
            unknown = True
        else:
            unknown = book.begin_other_connection(entry, pieces)
        if unknown and info[1]:
            book.learn_direction(entry, message, info)
        book.complete_ends(entry, pieces)
        book.drop(entry)
        if entry.state == SocketState.LISTEN or is_unused(message):
            self._settle(entry, message, info, None)
        else:
            self._sightings.join(book, entry, lambda ended: self._settle(entry, message, info, ended))

    def _settle(self, entry: Entry, message: bytes, info: tuple[int, int], ended: Ended | None) -> None:
        """Remove a flow: with the record of its end, where there is one, nothing is open."""
        book = self._book
        cleared = bool(info[1]) and was_disconnected(message, *info)
        if ended is not None and ended.final and (cleared or not info[1]):
            self._sightings.finish(book, entry, ended, (message, *info))
        elif ended is not None and ended.final:
            self._finish(entry, message, info, int(received_bytes(message, info[0]) > (ended.totals.rx_bytes or 0)))
        elif not info[1]:
            self._finish(entry, message, info, 0)
        elif cleared:
            book.end_unknown(entry, "aborted, which clears the kernel's counters")
        else:
            self._settle_fin(entry, message, info)

    def _settle_fin(self, entry: Entry, message: bytes, info: tuple[int, int]) -> None:
        """Find out whether a FIN is among the received bytes."""
        fin = fin_among_received(entry, message, *info)
        if fin is None:
            request = lookup_request(message, IPPROTO_TCP, exact=False)
            self._lookups.ask(request, lambda found: self._remains_found(entry, message, info, found))
            return
        if fin:
            self._ended_in_order(entry, message, info)
        self._finish(entry, message, info, fin)

    def _remains_found(self, entry: Entry, message: bytes, info: tuple[int, int], found: bytes | None) -> None:
        """What is left under the addresses of a socket that ended, it seems, in order.

        Anything there, be it a listener, proves who began. With nothing there and nothing
        else known, a peer in this namespace is looked at: it is in TIME_WAIT if this was
        no reset.
        """
        if entry.direction is not None or found:
            self._ended_in_order(entry, message, info)
            self._finish(entry, message, info, fin_by_remains(found))
        else:
            request = lookup_request(message, IPPROTO_TCP, exact=False, mirrored=True)
            self._lookups.ask(request, lambda peer: self._peer_found(entry, message, info, peer))

    def _peer_found(self, entry: Entry, message: bytes, info: tuple[int, int], peer: bytes | None) -> None:
        orderly = bool(peer) and is_remains(peer or b"")
        if orderly:
            self._ended_in_order(entry, message, info)
        self._finish(entry, message, info, 1 if orderly else 0)

    def _ended_in_order(self, entry: Entry, message: bytes, info: tuple[int, int]) -> None:
        if entry.weight is Weight.NONE:
            entry.direction = direction_by_remains(message, info)

    def _finish(self, entry: Entry, message: bytes, info: tuple[int, int], fin: int) -> None:
        """Remove a flow with its final counts."""
        report = socket_report(message, *info, fin)
        if entry.report is None:
            entry.report = report
        self._book.end(entry, report, final=True, reason=RemovalReason.CLOSED)


def _protocol_of(message: bytes) -> int:
    """The protocol of a destroyed socket; 0 when the message does not say."""
    if message[ATTRIBUTES_AT : ATTRIBUTES_AT + 4] == _PROTOCOL_HEADER:
        return message[ATTRIBUTES_AT + 4] if len(message) > ATTRIBUTES_AT + 4 else 0
    found = find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.PROTOCOL)
    return message[found[0]] if found and found[1] else 0
