"""One network namespace: its sockets, and everything the kernel says of them.

Four channels, opened in this order so that nothing falls between them: destroyed
sockets first, then interfaces, look-ups and dumps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from .._contract import CloseChannel, OpenChannel, Send
from .._events import FlowAdded, FlowRemoved, FlowUpdated, LossCause, RemovalReason
from .._model import Counts, Flow, Process
from ._constants import IPPROTO_TCP, DiagAttribute, DiagGroup, SocketState
from ._dumps import DumpReader
from ._flows import FlowBuilder, with_owner
from ._goodbyes import direction_by_remains, fin_among_received, fin_by_remains, is_unused, was_disconnected
from ._hub import Hub
from ._links import LinkTable
from ._lookups import LookupQueue, lookup_request
from ._messages import ATTRIBUTES_AT, find_attribute, iterate_messages
from ._purpose import ChannelPurpose, Role
from ._reports import NO_COUNTS, SocketReport, tcp_report
from ._routes import RouteReader
from ._table import KINDS, Entry, Kind, Layout, SocketTable, counters_differ, identity_differs, info_of, is_remains

__all__ = ["CHANNELS", "DUMPS", "GOODBYES", "LOOKUPS", "ROUTES", "Namespace"]

CHANNELS = 4
"""Channels of a namespace: it has numbers ``4 * index`` and on."""
DUMPS, GOODBYES, ROUTES, LOOKUPS = range(CHANNELS)

_ROLES = {DUMPS: Role.DUMPS, GOODBYES: Role.REMOVALS, ROUTES: Role.ROUTES, LOOKUPS: Role.LOOKUPS}
_GROUPS = {
    0: DiagGroup.TCP4_DESTROY,
    1: DiagGroup.TCP6_DESTROY,
    2: DiagGroup.UDP4_DESTROY,
    3: DiagGroup.UDP6_DESTROY,
}
_USER = struct.Struct("=II")
_COOKIE = struct.Struct("=44xQ")
_BEHIND_FIN = frozenset({SocketState.CLOSE_WAIT, SocketState.LAST_ACK, SocketState.CLOSING, SocketState.TIME_WAIT})


class Namespace:
    """The picture of one network namespace."""

    def __init__(self, hub: Hub, index: int, label: str | None, protocols: Iterable[int]) -> None:
        wanted = set(protocols)
        self.hub = hub
        self.index = index
        self.label = label
        self.base = CHANNELS * index
        self.links = LinkTable()
        self.builder = FlowBuilder(label, f"n{index}:" if label is not None else "", self.links)
        self.kinds = [kind for kind in KINDS if kind.protocol in wanted]
        self.tables = {kind.index: SocketTable(kind, self._differs, every=hub.every_update) for kind in self.kinds}
        self.routes = RouteReader(hub, self.links, self.base + ROUTES, index)
        self.lookups = LookupQueue(self.base + LOOKUPS, passive=hub.passive)
        self.dumps = DumpReader(hub, self.tables, self.base + DUMPS, self._dumped)
        self.goodbyes_open = False
        """Destroyed sockets are told."""
        self.goodbye_buffer: int | None = None
        self._congested = False
        self._overruns = 0
        self._repaired = 0
        self._overruns_at_poll = 0
        self._confirming = 0
        self._departed: set[int] = set()

    # -- channels

    def open(self) -> None:
        """Ask for the channels."""
        for role in (GOODBYES, ROUTES, LOOKUPS, DUMPS):
            self.hub.commands.append(OpenChannel(self.base + role, self._purpose(role)))

    def reopen(self, role: int) -> None:
        """Replace a channel that went wrong."""
        self.hub.count("reopened")
        self.hub.commands.append(CloseChannel(self.base + role))
        self.hub.commands.append(OpenChannel(self.base + role, self._purpose(role)))

    def _purpose(self, role: int) -> ChannelPurpose:
        groups = tuple(int(_GROUPS[kind.index]) for kind in self.kinds) if role == GOODBYES else ()
        return ChannelPurpose(self.index, _ROLES[role], groups)

    @property
    def ready(self) -> bool:
        """True when a poll can begin."""
        return self.dumps.open and self.routes.settled

    def commands(self) -> list[Send]:
        """Look-ups that may be sent now."""
        return self.lookups.commands()

    # -- polls

    @property
    def repairing(self) -> bool:
        """True while goodbyes are known to be missing: then absence is no longer explained by them."""
        return self._congested or not self.goodbyes_open or self._repaired != self._overruns

    def begin_poll(self) -> None:
        """Dump everything."""
        self._overruns_at_poll = self._overruns
        self._departed.clear()
        for table in self.tables.values():
            table.begin(self.hub.generation)
        self.dumps.begin()

    @property
    def poll_done(self) -> bool:
        """True when all dumps arrived and each absence was looked into."""
        return self.dumps.done and not self._confirming

    def end_poll(self) -> None:
        """The poll is complete: what was lost before it began has been repaired."""
        if self.dumps.complete:
            self._repaired = self._overruns_at_poll

    def overrun(self) -> None:
        """The kernel could not queue a goodbye for us; it does not say how many.

        Until its queue was read empty it goes on dropping and says nothing more
        (``NETLINK_S_CONGESTED``), so the repair begins at `drained`.
        """
        self._congested = True
        self._overruns += 1
        self.hub.count("overruns")
        detail = "goodbyes of destroyed sockets were lost; the next dump repairs the picture"
        self.hub.lose(LossCause.KERNEL_BUFFER, detail)

    def drained(self) -> bool:
        """The goodbyes were read until there were none; True if a dump can now repair a loss."""
        if not self._congested:
            return False
        self._congested = False
        self._overruns += 1
        return True

    def _dumped(self, table: SocketTable) -> None:
        for entry in table.unseen(certain=self.repairing):
            entry.absences += 1
            # Closed while its descriptor is open, a socket is in no dump, and says goodbye later. Only when goodbyes are
            # missing, or the absence lasts, is it worth a question.
            if entry.absences == 2 or self.repairing:
                self._confirming += 1
                request = lookup_request(_message_of(entry), table.kind.protocol)
                self.lookups.ask(request, lambda found, entry=entry: self._confirmed(entry, found), self.hub.now)  # type: ignore[misc]

    def _confirmed(self, entry: Entry, found: bytes | None) -> None:
        self._confirming -= 1
        if entry.over:
            return
        table = self.tables[entry.kind.index]
        if found is not None and not is_remains(found) and _COOKIE.unpack_from(found, 16)[0] == entry.cookie:
            pieces, layout = table.cut(found)
            self._differs(table, entry, pieces, found, layout)
        elif self.repairing:
            self.hub.count("gone")
            self._drop(table, entry)
            self._announced(entry)
            self._remove(entry, entry.counts, final=False, reason=RemovalReason.GONE)
        elif entry.kind.protocol == IPPROTO_TCP and entry.flow is not None:
            entry.state = SocketState.CLOSE if found is None else SocketState.TIME_WAIT
            self._update(entry, entry.counts, rebuilt=True)

    # -- sockets

    def _differs(
        self, table: SocketTable, entry: Entry | None, pieces: tuple[object, ...], message: bytes, layout: Layout
    ) -> None:
        """A message is not what the last dump had (`Differs`)."""
        hub = self.hub
        if is_remains(message):
            if entry is None:
                table.reported -= 1
            else:
                entry.seen = table.generation
            return
        if entry is None:
            if pieces[2] in self._departed:  # this part of the dump was written before the socket said goodbye
                table.reported -= 1
                return
            entry = self._new(table, pieces, table.generation)
            entry.preexisting = hub.first_poll
            self._fill(entry, message, info_of(message, layout, pieces))
            hub.owners.want(entry)
            hub.fresh.append((self, entry))
            return
        before, entry.last = entry.last, pieces
        entry.seen = table.generation
        returned, entry.absences = entry.absences > 1, 0
        changed = identity_differs(before, pieces) or returned
        if not (changed or hub.every_update or counters_differ(before, pieces)):
            return
        previous, inode = entry.counts, entry.inode
        self._fill(entry, message, info_of(message, layout, pieces))
        if entry.inode and entry.inode != inode:
            hub.owners.want(entry)
        if entry.flow is not None:
            self._update(entry, previous, rebuilt=changed)

    def _new(self, table: SocketTable, pieces: tuple[object, ...], seen: int) -> Entry:
        cookie: int = pieces[2]  # type: ignore[assignment]
        entry = table.entries[cookie] = Entry(cookie, table.kind, pieces, seen)
        return entry

    def _fill(self, entry: Entry, message: bytes, info: tuple[int, int]) -> None:
        """Take over what a message of a living socket says."""
        was_listener = entry.state == SocketState.LISTEN and entry.counts is not None
        entry.state = entry.last[1][1]
        entry.uid, entry.inode = _USER.unpack_from(entry.last[3])
        if entry.kind.protocol != IPPROTO_TCP:
            entry.counts, entry.details = NO_COUNTS, SocketReport(message)
            return
        if entry.state == SocketState.LISTEN:
            self.builder.note_listener(entry)
        elif was_listener:
            self.builder.forget_listener(entry)
            entry.direction = None
        if entry.direction is None:
            entry.direction = self.builder.direction(entry.last[1], message, info)
        if info[1]:
            report = tcp_report(message, *info, 1 if entry.state in _BEHIND_FIN else 0)
            entry.counts, entry.details = report, report
        else:
            entry.counts, entry.details = NO_COUNTS, SocketReport(message)

    # -- goodbyes

    def receive_goodbye(self, data: bytes) -> None:
        """Take in a notification.

        Raises:
            ProtocolError: A length that cannot be.
        """
        for frame in iterate_messages(data):
            if frame.length >= ATTRIBUTES_AT:
                message = data if frame.length == len(data) else data[frame.offset : frame.end]
                self._goodbye(message)
            else:
                self.hub.reject("notification of a destroyed socket is too short")

    def _goodbye(self, message: bytes) -> None:
        self.hub.count("goodbyes")
        kind = _kind_of(message)
        table = None if kind is None else self.tables.get(kind.index)
        if table is None:
            return
        cookie: int = _COOKIE.unpack_from(message, 16)[0]
        entry = table.entries.get(cookie)
        if not self.dumps.done:
            self._departed.add(cookie)
        pieces, layout = table.cut(message)
        info = info_of(message, layout, pieces)
        if entry is None:
            if is_unused(message):
                self.hub.count("unused_sockets")
                return
            self.hub.count("short_lived")
            entry = self._new(table, pieces, table.generation)
            if info[1]:
                entry.direction = self.builder.direction(pieces[1], message, info)
        elif entry.state == SocketState.LISTEN:
            self.builder.forget_listener(entry)
        self._drop(table, entry)
        if info[1] and was_disconnected(message, *info):
            self._farewell_unknown(entry)
            return
        if not info[1]:
            self._farewell(entry, message, info, 0)
            return
        fin = fin_among_received(entry, message, *info)
        if fin is not None:
            if fin and entry.direction is None:
                entry.direction = direction_by_remains(message, info)
            self._farewell(entry, message, info, fin)
        else:
            request = lookup_request(message, IPPROTO_TCP, exact=False)
            self.lookups.ask(request, lambda found: self._remains_found(entry, message, info, found), self.hub.now)

    def _remains_found(self, entry: Entry, message: bytes, info: tuple[int, int], found: bytes | None) -> None:
        """What is left under the addresses of a socket that ended, it seems, in order.

        Anything there, be it a listener, proves who began. With nothing there and nothing
        else known, a peer in this namespace is looked at: it is in TIME_WAIT if this was
        no reset.
        """
        if entry.direction is not None:
            self._farewell(entry, message, info, fin_by_remains(found))
        elif found is not None:
            entry.direction = direction_by_remains(message, info)
            self._farewell(entry, message, info, fin_by_remains(found))
        else:
            request = lookup_request(message, IPPROTO_TCP, exact=False, mirrored=True)
            self.lookups.ask(request, lambda peer: self._peer_found(entry, message, info, peer), self.hub.now)

    def _peer_found(self, entry: Entry, message: bytes, info: tuple[int, int], peer: bytes | None) -> None:
        orderly = peer is not None and is_remains(peer)
        if orderly:
            entry.direction = direction_by_remains(message, info)
        self._farewell(entry, message, info, 1 if orderly else 0)

    def _farewell(self, entry: Entry, message: bytes, info: tuple[int, int], fin: int) -> None:
        """Remove a socket with its final counts."""
        if not info[1]:
            counts: Counts = NO_COUNTS
            entry.details = SocketReport(message)
        else:
            report = tcp_report(message, *info, fin)
            counts, entry.details = report, report
        if entry.flow is None and entry.counts is None:
            entry.counts = counts
        self._announced(entry)
        self._remove(entry, counts, final=True, reason=RemovalReason.CLOSED)

    def _farewell_unknown(self, entry: Entry) -> None:
        """Remove a socket whose counters the kernel cleared before its end: the last known ones stand."""
        self._announced(entry)
        self.hub.lose(LossCause.FINAL_COUNTS, f"{entry.flow}: aborted, which clears the kernel's counters", 1)
        self._remove(entry, entry.counts, final=False, reason=RemovalReason.DROPPED)

    def _drop(self, table: SocketTable, entry: Entry) -> None:
        table.remove(entry)
        self.hub.owners.forget(entry)

    # -- events

    def announce(self, entry: Entry) -> None:
        """Tell of a socket for the first time."""
        flow = entry.flow = self.builder.build(entry)
        hub = self.hub
        hub.events.append(FlowAdded(hub.now + hub.epoch_offset, flow, entry.counts, entry.preexisting, entry.details))

    def _announced(self, entry: Entry) -> None:
        if entry.flow is None:
            self.announce(entry)

    def _update(self, entry: Entry, previous: Counts | None, *, rebuilt: bool) -> None:
        if rebuilt:
            entry.flow = self.builder.build(entry)
        hub = self.hub
        flow, counts = entry.flow, entry.counts
        if flow is not None and counts is not None:
            hub.events.append(FlowUpdated(hub.now + hub.epoch_offset, flow, counts, previous, entry.details))

    def _remove(self, entry: Entry, counts: Counts | None, *, final: bool, reason: RemovalReason) -> None:
        hub = self.hub
        if entry.flow is not None:
            hub.events.append(FlowRemoved(hub.now + hub.epoch_offset, entry.flow, counts, final, reason, entry.details))

    def set_owner(self, entry: Entry, owner: Process) -> None:
        """The process behind a socket was found."""
        if entry.owner is owner:
            return
        entry.owner = owner
        if entry.flow is not None:
            entry.flow = with_owner(entry.flow, owner)
            self._update(entry, entry.counts, rebuilt=False)

    def entries(self) -> Iterator[Entry]:
        """All sockets."""
        for table in self.tables.values():
            yield from list(table.entries.values())

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The announced ones."""
        return ((entry.flow, entry.counts) for entry in self.entries() if entry.flow is not None)

    def __len__(self) -> int:
        return sum(len(table.entries) for table in self.tables.values())


def _message_of(entry: Entry) -> bytes:
    details = entry.details
    message: bytes = details.message  # type: ignore[union-attr]
    return message


def _kind_of(message: bytes) -> Kind | None:
    """Which dump a destroyed socket would have been in."""
    end = len(message)
    if message[ATTRIBUTES_AT : ATTRIBUTES_AT + 4] == _PROTOCOL_HEADER:
        protocol = message[ATTRIBUTES_AT + 4] if end > ATTRIBUTES_AT + 4 else 0
    else:
        found = find_attribute(message, ATTRIBUTES_AT, end, DiagAttribute.PROTOCOL)
        protocol = message[found[0]] if found and found[1] else 0
    return _BY_PROTOCOL.get((message[16], protocol))


_PROTOCOL_HEADER = struct.pack("=HH", 5, DiagAttribute.PROTOCOL)
_BY_PROTOCOL = {(kind.family, kind.protocol): kind for kind in KINDS}
