"""Sockets of random lives in a kernel that has eBPF programs: records and removals are read in pieces, late, or are lost."""

from __future__ import annotations

import errno
import random
from collections import deque
from typing import Any

import attrs
from ebpf_records import encode, record
from programs_fakes import RING, Programs, attrs_of
from sockdiag_fakes import LOOPBACK, PEER, FakeSocket, flow_events, traffic

from nstat_async import EventsLost, FlowAdded, FlowRemoved, LossCause
from nstat_async.ebpf import Flag, Kind, Record
from nstat_async.sockdiag import SocketState, TcpInfo

REMOVALS, LOOKUPS = 1, 3
_ADDRESSES = {"local": LOOPBACK.ljust(16, b"\0"), "remote": PEER.ljust(16, b"\0")}


@attrs.define(eq=False)
class Connection:
    """What is true of one."""

    cookie: int
    port: int
    remote_port: int
    outbound: bool
    fails: bool
    """It is an attempt: it is never established."""
    moved: int = 0

    def is_flow(self, event: Any, *, exactly: bool) -> bool:
        """True if this event may be of it; not `exactly`: its local port is unknown, or taken from another one's removal."""
        flow = event.flow
        of_this = flow.id.partition(".")[0] == f"c{self.cookie:x}" and flow.remote.port == self.remote_port
        return of_this and (flow.local.port == self.port or not exactly)

    def is_exact(self, event: Any) -> bool:
        """True if it goes on, or ended with its counts."""
        counts = {0, None} if self.fails else {self.moved}
        return not isinstance(event, FlowRemoved) or event.counts.rx_bytes in counts


class Lives:
    """Carries out a script. What the kernel has written of it waits until it is read.

    Args:
        dice: Whether polls come by themselves, who opens a connection, and whether records of ends have the local port,
            as those of older programs, which recordings may have, do not. Without it attempts cannot be told apart.
    """

    def __init__(self, dice: random.Random) -> None:
        self.kernel = Programs(interval=dice.choice((1.0, 1.0, None)), providers="tcp")
        self.connections: list[Connection] = []
        self.lossy = False
        """Something was lost on the way."""
        self._dice = dice
        self._complete = dice.random() < 0.7
        """Records of ends have the local port."""
        self._open: dict[int, tuple[FakeSocket, Connection]] = {}
        self._unread: dict[int, deque[Any]] = {RING: deque(), REMOVALS: deque()}
        self._ticks = 0
        self.kernel.start()

    def do(self, name: str, *arguments: Any) -> None:
        getattr(self, name)(*arguments)
        self.kernel.run()

    # -- what sockets do

    def open(self, number: int, fails: bool) -> None:
        if number in self._open:
            return
        cookie = len(self.kernel.owners) + 1
        sock = self.kernel.sockets[cookie] = FakeSocket(cookie, inode=cookie)
        self.kernel.owners[cookie] = 5
        self._connect(number, sock, fails)

    def _connect(self, number: int, sock: FakeSocket, fails: bool) -> None:
        fails = fails and self._complete
        outbound = fails or self._dice.random() < 0.5
        port, remote_port = 10_000 + len(self.connections), self._dice.choice((80, 80, 81))
        connection = Connection(sock.cookie, port, remote_port, outbound, fails)
        self.connections.append(connection)
        self._open[number] = sock, connection
        sock.local_port, sock.remote_port = port, remote_port
        sock.state, sock.unacked = (SocketState.SYN_SENT, 1) if fails else (SocketState.ESTABLISHED, 0)
        self.grow(number, 0)
        if outbound:
            self._write(Kind.OPENED, connection, pid=5, local_port=0)
        if fails:
            sock.info = {TcpInfo.SEGS_OUT: 1}
        elif outbound:
            self._write(Kind.ESTABLISHED, connection, pid=5)
        else:
            self._write(Kind.ACCEPTED, connection)
            self._write(Kind.FIRST_IO, connection, pid=5)

    def _write(self, kind: Kind, connection: Connection, **fields: Any) -> None:
        self._ticks = max(self._ticks + 1000, round(self.kernel.now * 1e9))
        fields = {**_ADDRESSES, "local_port": connection.port, "remote_port": connection.remote_port << 8, **fields}
        self._unread[RING].append(record(kind, connection.cookie, self._ticks, **fields))

    def grow(self, number: int, amount: int) -> None:
        if number in self._open and not self._open[number][1].fails:
            sock, connection = self._open[number]
            connection.moved += amount
            sock.info = traffic(connection.moved, connection.moved, active=int(connection.outbound))

    def _end(self, number: int, *, fin: int) -> tuple[FakeSocket, Connection]:
        """Write the record of an end."""
        sock, connection = self._open.pop(number)
        fin = 0 if connection.fails else fin
        flags = Flag.ERROR_KNOWN | (Flag.FIN_RECEIVED if fin else 0)
        counts = {"tx_bytes": connection.moved, "rx_bytes": connection.moved + fin}
        port = connection.port if self._complete else 0
        self._write(Kind.CLOSED, connection, local_port=port, old=sock.state, flags=flags, **counts)
        return sock, connection

    def close(self, number: int, abort: bool) -> None:
        if number not in self._open:
            return
        sock, connection = self._end(number, fin=not abort)
        if abort:
            unacked = 3 if connection.fails else 65_000
            sock = FakeSocket(sock.cookie, bytes(4), connection.port, PEER, 0, unacked=unacked)
        self._remove(sock, connection)

    def _remove(self, sock: FakeSocket, connection: Connection) -> None:
        del self.kernel.sockets[sock.cookie]
        if sock.remote_port and not connection.fails:
            moved, active = connection.moved, int(connection.outbound)
            sock.info = traffic(moved, moved, fin=1, fin_sent=1, active=active)
        self._unread[REMOVALS].append(sock.message(final=True))

    def caught(self, number: int, read: bool) -> None:
        """A dump has the row of a connection that is just being closed; `read`: the record of its end is read before."""
        if number not in self._open:
            return
        sock, connection = self._end(number, fin=1)
        sock.local_port = 0
        sock.state = self._dice.choice((SocketState.ESTABLISHED, SocketState.LAST_ACK, SocketState.CLOSE))
        self.kernel.during_dump = lambda: self.read(RING, 1000) if read else None
        self.poll()
        self.kernel.run()
        self.kernel.during_dump = None
        sock.local_port = connection.port
        self._remove(sock, connection)

    def reconnect(self, number: int, fails: bool) -> None:
        if number in self._open:
            sock, _ = self._end(number, fin=0)
            self._connect(number, sock, fails)

    # -- what is read, and when

    def read(self, channel: int, most: int) -> None:
        """Read a channel; the ring comes first, at least in part, as in the pump."""
        unread = self._unread[channel]
        if channel == REMOVALS and self._unread[RING]:
            self.read(RING, 1)
        some = [unread.popleft() for _ in range(min(most, len(unread)))]
        for each in some:
            self.kernel.feed(encode(attrs_of(each)) if isinstance(each, Record) else each, channel)
        self._drained()

    def _drained(self) -> None:
        for channel, unread in self._unread.items():
            if not unread:
                self.kernel.session.channel_drained(channel, self.kernel.now)

    def lose(self, channel: int) -> None:
        """What is unread in a channel found no room."""
        unread = self._unread[channel]
        if not unread:
            return
        self.lossy = True
        if channel == RING:
            lost = self.kernel.lost
            self.kernel.lost = lost._replace(ring_full=lost.ring_full + len(unread))
        unread.clear()
        self.kernel.session.channel_failed(channel, errno.ENOBUFS, self.kernel.now)
        self._drained()

    def wait(self, seconds: float) -> None:
        self.kernel.now += seconds
        self.read(RING, 1)
        self.kernel.session.handle_deadline(self.kernel.now)

    def poll(self) -> None:
        self.kernel.session.request_poll(self.kernel.now)

    def silence(self, silent: bool) -> None:
        """Look-ups get no answers from now on, or get them again."""
        (self.kernel.silent.add if silent else self.kernel.silent.discard)(LOOKUPS)

    def during(self, number: int) -> None:
        """A socket ends, and that is read, while the next dump is under way."""

        def end() -> None:
            self.close(number, False)
            self.read(RING, 1000)
            self.read(REMOVALS, 1000)

        self.kernel.during_dump = end

    def cut(self) -> None:
        """The next dump fails."""
        self.kernel.during_dump = lambda: self.kernel.session.channel_failed(0, errno.ENOBUFS, self.kernel.now)

    # -- what must be true

    def check(self) -> None:
        """Nothing is in the way any more: each flow began once and ended once, none is left of what is gone."""
        self.kernel.during_dump = None
        for step in (("silence", False), ("read", RING, 1 << 20), ("read", REMOVALS, 1 << 20)):
            self.do(*step)
        for _ in range(2):
            for _ in range(5):
                self.do("wait", 1.1)
            self.do("poll")
        assert self.kernel.session.settled(self.kernel.now)
        flows: dict[str, Any] = {}
        for event in flow_events(self.kernel.events):
            before = flows.get(event.flow.id)
            assert (before is None) is isinstance(event, FlowAdded), (before, event)
            assert not isinstance(before, FlowRemoved), (before, event)
            flows[event.flow.id] = event
        known = {flow.id for flow, _ in self.kernel.session.flows()}
        assert known == {name for name, event in flows.items() if not isinstance(event, FlowRemoved)}
        assert {name.partition(".")[0] for name in known} == {f"c{cookie:x}" for cookie in self.kernel.sockets}
        if not self.lossy:
            self._check_each(flows)

    def _check_each(self, flows: dict[str, Any]) -> None:
        """Each connection was a flow with its ends and counts, or was said to be lost."""
        lost = [event for event in self.kernel.events if isinstance(event, EventsLost)]
        left, missing, vague = list(flows.values()), self.connections, 0
        for exactly in (True, False):  # the beginning alone does not tell the port
            unknown, missing = missing, []
            for connection in unknown:
                event = next((each for each in left if connection.is_flow(each, exactly=exactly)), None)
                if event is None:
                    missing.append(connection)
                else:
                    left.remove(event)
                    vague += not connection.is_exact(event)
        assert not left, (left, missing)
        said = sum(loss.count or 0 for loss in lost if loss.cause in {LossCause.GOODBYE, LossCause.FINAL_COUNTS})
        assert vague + len(missing) <= said, (missing, lost)


def step(dice: random.Random, badly: float) -> tuple[Any, ...]:
    """What a socket does, what is read, or what goes wrong."""
    which, fails = dice.randint(1, 6), dice.random() < 0.3
    if dice.random() < badly:
        return dice.choice((
            ("lose", RING),
            ("lose", REMOVALS),
            ("silence", dice.random() < 0.5),
            ("during", which),
            ("cut",),
        ))  # fmt: skip
    return dice.choice((
        ("open", which, False),
        ("open", which, fails),
        ("grow", which, dice.choice((1, 1000))),
        ("close", which, False),
        ("close", which, True),
        ("reconnect", which, fails),
        ("caught", which, dice.random() < 0.5),
        ("read", RING, dice.choice((1, 2, 99))),
        ("read", REMOVALS, dice.choice((1, 99))),
        ("wait", dice.choice((0.01, 0.06, 0.3, 0.6, 1.0))),
        ("poll",),
    ))  # fmt: skip


def play(dice: random.Random) -> int:
    """One world; how many events it had."""
    lives, badly = Lives(dice), dice.choice((0.0, 0.05, 0.15))
    for _ in range(dice.randint(5, 100)):
        lives.do(*step(dice, badly))
    lives.check()
    return len(lives.kernel.events)
