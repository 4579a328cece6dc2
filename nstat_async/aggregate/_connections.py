"""Who talks to whom in a fleet. Each byte counts once, although both ends of a connection report it.

What one end sends the other receives: of the two readings the larger one is nearer the truth, and counts. In a fleet
`Flow.peer` names the other end; without a fleet the other end may be on this machine, too, and is found by its addresses.
A connection with an end elsewhere has one reading. An end that is over waits for the other one, whose report may come
later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import attrs

from nstat_async._checks import positive
from nstat_async._events import AnyEvent, FlowAdded, FlowEvent, FlowRemoved, FlowUpdated
from nstat_async._model import Counts, Direction, Flow, Process, Provider, began_anew

_CARRYING = {Provider.TCP, Provider.UDP, Provider.QUIC}
DEFAULT_MAX_TALKS = 10_000
WAITING = 10_000
"""Most connections that are over and wait for the report of the other end."""


@attrs.frozen
class Party:
    """One side of a connection: a program on a machine, or an address outside of the fleet."""

    host: str | None
    """The machine; `None` for this machine, and outside of the fleet."""
    name: str | None
    """Name of the process; `None` if it is not known, and outside of the fleet."""
    address: str | None = None
    """The address, if it is outside of the fleet or this machine; otherwise `None`."""


@attrs.frozen
class Talk:
    """All connections of one client with one port of one server."""

    client: Party
    """The side that began them; if that is not known, the side with the higher port."""
    server: Party
    """The other side."""
    port: int
    """The server's port."""
    connections: int
    """Number of connections."""
    open: int
    """How many of them are still open."""
    both_ends: int
    """How many of them both ends reported."""
    to_server: int
    """Bytes from the client to the server."""
    to_client: int
    """Bytes from the server to the client."""

    @property
    def bytes(self) -> int:
        """Bytes in both directions."""
        return self.to_server + self.to_client


_Two = tuple[int, int]


@attrs.define(eq=False)
class _End:
    """What one end of a connection reported."""

    flow: Flow
    link: _Link
    base: _Two | None
    """Bytes received and sent that do not count; `None`: those of the first report with counts."""
    now: _Two = (0, 0)
    open: bool = True

    @property
    def moved(self) -> _Two:
        """Bytes received and sent while the end was watched."""
        base = self.base or (0, 0)
        return max(0, self.now[0] - base[0]), max(0, self.now[1] - base[1])

    def take_in(self, counts: Counts | None) -> None:
        """Take in a report. What it does not count stays as it was; counters that restarted go on from there."""
        new = (None, None) if counts is None else (counts.rx_bytes, counts.tx_bytes)
        if new == (None, None):
            return
        last, self.now = self.now, (_known(new[0], self.now[0]), _known(new[1], self.now[1]))
        if self.base is None:
            self.base = self.now
        elif began_anew(new, last):
            self.base = self.base[0] - last[0], self.base[1] - last[1]

    def begin_again(self, counts: Counts | None) -> None:
        """Take in the first report after the flow was out of sight: what it carried meanwhile does not count."""
        moved, self.open = self.moved, True
        self.take_in(counts)
        if self.base is not None:
            self.base = self.now[0] - moved[0], self.now[1] - moved[1]


@attrs.define(eq=False)
class _Link:
    """A connection with one known end, or two."""

    ends: list[_End] = attrs.field(factory=list)

    @property
    def first_is_client(self) -> bool:
        """True if the first end began the connection, by what the ends say; if they contradict each other, by the ports."""
        said = [end.flow.direction for end in self.ends]
        known = [way is Direction.OUTBOUND if at == 0 else way is not Direction.OUTBOUND
                 for at, way in enumerate(said) if way is not None]  # fmt: skip
        if known and len(set(known)) == 1:
            return known[0]
        local, remote = self.ends[0].flow.local, self.ends[0].flow.remote
        return local is not None and remote is not None and local.port > remote.port

    @property
    def is_open(self) -> bool:
        """True while one of its ends is open."""
        return any(end.open for end in self.ends)

    def moved(self) -> tuple[int, int]:
        """Bytes to the server and to the client."""
        first = self.first_is_client
        ways = [end.moved[::-1] if first is (at == 0) else end.moved for at, end in enumerate(self.ends)]
        return max(way[0] for way in ways), max(way[1] for way in ways)


_Key = tuple[Party, Party, int]
_Sums = list[int]


def _no_ends() -> Any:  # typed so that the annotations of the table can be looked up without the import
    from nstat_async.fleet._peers import Ends  # noqa: PLC0415  # few programs with tables need the modules of a fleet

    return Ends()


@attrs.define(eq=False)
class ConnectionTable:
    """Adds up who talked to whom, over all machines of a fleet (or on this machine alone).

    Feed it every event of a monitor, in order. Flows that are older than the monitor count from their first report with
    counts on.

    Args:
        max_talks: Most pairs without an open connection that are kept; of further ones, those with the fewest bytes
            are counted in `rest`.
    """

    max_talks: int = attrs.field(default=DEFAULT_MAX_TALKS, validator=positive(whole=True))
    rest: tuple[int, int] = attrs.field(default=(0, 0), init=False)
    """Bytes to servers, and to clients, of the pairs that are not kept."""
    _ends: dict[str, _End] = attrs.field(factory=dict, init=False)
    _here: Any = attrs.field(factory=_no_ends, init=False)
    """Flows of this machine by their addresses, where no fleet tells the other end."""
    _over: OrderedDict[int, _Link] = attrs.field(factory=OrderedDict, init=False)
    """Connections that are over and wait for the other end, the oldest first."""
    _done: dict[_Key, _Sums] = attrs.field(factory=dict, init=False)
    """Sums of finished connections: their number, the number with both ends, bytes to the server and to the client."""

    def feed_many(self, events: Iterable[AnyEvent]) -> None:
        """Take in events, in order."""
        for event in events:
            self.feed(event)

    def feed(self, event: AnyEvent) -> None:
        """Take in one event."""
        if not isinstance(event, FlowEvent) or event.flow.provider not in _CARRYING:
            return
        if event.flow.remote is not None:
            self._report(event)
        if isinstance(event, FlowRemoved) and (end := self._ends.get(event.flow.id)) is not None:
            if event.flow.provider is Provider.TCP:  # UDP that was disconnected may have sent to anybody since
                end.take_in(event.counts)
            end.open = False
            if not end.link.is_open:
                self._over[id(end.link)] = end.link
                if len(end.link.ends) > 1:
                    self._leave(end.link)  # its addresses may be used again
            while len(self._over) > WAITING:
                self._finish(self._over.popitem(last=False)[1])

    def _report(self, event: FlowEvent) -> None:
        """Take in the report of a flow that has another end."""
        end = self._end(event)
        end.flow = event.flow
        if isinstance(event, FlowAdded) and not end.open:  # a filter passes it again, or its machine is back
            end.begin_again(event.counts)
            self._over.pop(id(end.link), None)
        else:
            end.take_in(event.counts)
        self._meet(end)

    def _end(self, event: FlowEvent) -> _End:
        end = self._ends.get(event.flow.id)
        if end is None:
            base = (0, 0) if isinstance(event, FlowAdded) and not event.preexisting else None
            end = self._ends[event.flow.id] = _End(event.flow, _Link(), base)
            if isinstance(event, FlowUpdated):
                end.take_in(event.previous)
            end.link.ends.append(end)
        return end

    def _meet(self, end: _End) -> None:
        """Join two ends that name each other into one connection."""
        flow, peer = end.flow, end.flow.peer
        identity = None if peer is None else peer.flow
        if flow.host is None and len(end.link.ends) == 1:
            self._here.put(flow)
            identity = self._here.other(flow.id)
        other = None if identity is None else self._ends.get(identity)
        if other is not None and other.link is not end.link and len(other.link.ends) == len(end.link.ends) == 1:
            other.link.ends.append(end)
            end.link = other.link
            self._over.pop(id(other.link), None)  # it waits for the end of this one now

    def _finish(self, link: _Link) -> None:
        self._leave(link)
        for end in link.ends:
            del self._ends[end.flow.id]
        _add(self._done.setdefault(_key(link), [0, 0, 0, 0]), link)
        if len(self._done) > self.max_talks + self.max_talks // 4:
            self._fold()

    def _leave(self, link: _Link) -> None:
        for end in link.ends:
            self._here.remove(end.flow.id)

    def _fold(self) -> None:
        smallest = sorted(self._done, key=lambda key: sum(self._done[key][2:]))
        for key in smallest[: len(self._done) - self.max_talks]:
            _, _, to_server, to_client = self._done.pop(key)
            self.rest = (self.rest[0] + to_server, self.rest[1] + to_client)

    # --- looking ------------------------------------------------------------------------

    def talks(self) -> list[Talk]:
        """Who talked to whom, most bytes first."""
        sums = {key: [*done, 0] for key, done in self._done.items()}
        for link in {id(end.link): end.link for end in self._ends.values()}.values():
            found = sums.setdefault(_key(link), [0, 0, 0, 0, 0])
            _add(found, link)
            found[4] += link.is_open
        talks = [
            Talk(client, server, port, number, still, both, to_server, to_client)
            for (client, server, port), (number, both, to_server, to_client, still) in sums.items()
        ]
        return sorted(talks, key=lambda talk: talk.bytes, reverse=True)

    def total(self) -> int:
        """All bytes, each once."""
        return sum(talk.bytes for talk in self.talks()) + sum(self.rest)


def _add(sums: _Sums, link: _Link) -> None:
    to_server, to_client = link.moved()
    for at, value in enumerate((1, int(len(link.ends) == 2), to_server, to_client)):
        sums[at] += value


def _known(value: int | None, default: int) -> int:
    return default if value is None else value


def _key(link: _Link) -> _Key:
    flow, first = link.ends[0].flow, link.first_is_client
    here, there = _party(flow.host, flow.process), _other(link)
    client, server = (here, there) if first else (there, here)
    endpoint = flow.remote if first else flow.local
    return client, server, 0 if endpoint is None else endpoint.port


def _party(host: str | None, process: Process | None) -> Party:
    return Party(host, None if process is None else process.name)


def _other(link: _Link) -> Party:
    flow = link.ends[0].flow
    if flow.host is None and len(link.ends) > 1:
        return _party(None, link.ends[1].flow.process)
    if flow.peer is not None:
        return _party(flow.peer.host, flow.peer.process)
    return Party(None, None, None if flow.remote is None else flow.remote.address)
