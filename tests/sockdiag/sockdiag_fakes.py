"""A kernel made of a dictionary, and a synchronous driver for the real one."""

from __future__ import annotations

import errno
import select
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import attrs

from nstat_async._contract import CloseChannel, Lookup, OpenChannel, Send
from nstat_async._events import FlowAdded, FlowRemoved, FlowUpdated, PollCompleted
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import (
    ANYWHERE,
    AddressMessage,
    CgroupFacts,
    CgroupsAnswer,
    CgroupsRequest,
    DiagAttribute,
    DiagMessage,
    DiagRequest,
    LinkKindsAnswer,
    LinkMessage,
    NamespacesAnswer,
    NamespacesRequest,
    OwnersAnswer,
    OwnersRequest,
    ProcessFacts,
    PulsePurpose,
    PulseReport,
    RouteMessage,
    Session,
    SocketState,
    TcpInfo,
    TrafficAnswer,
    TrafficRequest,
    iterate_messages,
)
from nstat_async.sockdiag._messages import ATTRIBUTES_AT, encode_done, encode_error, find_attribute, socket_id

_WORD = struct.Struct("=I")
_INFO_FIELDS = {
    **dict.fromkeys((TcpInfo.STATE, TcpInfo.RETRANSMITS, TcpInfo.PROBES), struct.Struct("=B")),
    **dict.fromkeys((TcpInfo.PACING_RATE, TcpInfo.DELIVERY_RATE, TcpInfo.BYTES_ACKED), struct.Struct("=Q")),
    **dict.fromkeys((TcpInfo.BYTES_RECEIVED, TcpInfo.BYTES_SENT, TcpInfo.BYTES_RETRANS), struct.Struct("=Q")),
}
"""Fields of other sizes than a word."""


def tcp_info(fields: Mapping[int, int] = MappingProxyType({}), length: int = 280) -> bytes:
    """A ``struct tcp_info`` with these fields, zero elsewhere; after a handshake, whose SYN was delivered."""
    data = bytearray(280)
    defaults = {TcpInfo.MIN_RTT: 0xFFFFFFFF, TcpInfo.DELIVERED: fields.get(TcpInfo.DATA_SEGS_OUT, 0) + 1}
    for at, value in {**defaults, **fields}.items():
        _INFO_FIELDS.get(at, _WORD).pack_into(data, at, value)
    return bytes(data[:length])


def traffic(rx: int = 0, tx: int = 0, *, fin: int = 0, active: int = 1, fin_sent: int = 0) -> dict[int, int]:
    """``tcp_info`` fields as the kernel counts them: SYN and FIN are bytes acknowledged, a FIN is a byte received."""
    return {
        TcpInfo.BYTES_RECEIVED: rx + fin,
        TcpInfo.BYTES_SENT: tx,
        TcpInfo.BYTES_ACKED: tx + active + fin_sent,
        TcpInfo.SEGS_IN: 1 + rx,
        TcpInfo.SEGS_OUT: 1 + tx,
        TcpInfo.DATA_SEGS_IN: (rx + 999) // 1000,
        TcpInfo.DATA_SEGS_OUT: (tx + 999) // 1000,
        TcpInfo.RTT: 250,
        TcpInfo.RTTVAR: 30,
        TcpInfo.MIN_RTT: 200,
        TcpInfo.LAST_ACK_RECV: 500,
    }


LOOPBACK = b"\x7f\0\0\1"
PEER = bytes([198, 51, 100, 9])
"""An address of another machine."""


@attrs.define(eq=False)
class FakeSocket:
    cookie: int
    local: bytes = LOOPBACK
    local_port: int = 40000
    remote: bytes = PEER
    remote_port: int = 80
    family: int = 2
    protocol: int = 6
    state: int = SocketState.ESTABLISHED
    inode: int = 0
    uid: int = 1000
    timer: int = 0
    expires: int = 0
    unread: int = 0
    unacked: int = 0
    info: dict[int, int] = attrs.field(factory=dict)
    info_length: int = 280
    extra: dict[int, bytes] = attrs.field(factory=dict)
    cgroup: int = 0

    @property
    def id(self) -> bytes:
        return socket_id(self.local, self.local_port, self.remote, self.remote_port, cookie=self.cookie)

    def message(self, sequence: int = 0, *, final: bool = False, kind: int = 20) -> bytes:
        attributes: dict[int, bytes] = dict(self.extra)
        if self.cgroup:
            attributes[DiagAttribute.CGROUP_ID] = struct.pack("=Q", self.cgroup)
        if final:
            attributes = {DiagAttribute.PROTOCOL: bytes([self.protocol])}
        if self.protocol == 6 and self.timer != 3:
            state = SocketState.CLOSE if final else self.state
            attributes[DiagAttribute.INFO] = tcp_info({TcpInfo.STATE: state, **self.info}, self.info_length)
            if not final:
                attributes[DiagAttribute.CONG] = b"cubic\0"
        message = DiagMessage(
            self.family,
            SocketState.CLOSE if final else self.state,
            self.id,
            timer=self.timer,
            expires=self.expires,
            receive_queue=self.unread,
            write_queue=self.unacked,
            uid=0 if final else self.uid,
            inode=0 if final else self.inode,
            attributes=attributes,
            sequence=sequence,
            flags=0 if final else 2,
        ).encode()
        return message[:4] + struct.pack("=H", kind) + message[6:]


class FakeKernel:
    """Carries out the commands of a session at once and keeps the whole conversation."""

    def __init__(self, session: Session | None = None, **options: Any) -> None:
        self.session = session or Session(MonitorOptions(**options), kernel="6.18.0")
        self.session.epoch_offset = 1000.0
        self.now = 100.0
        self.sockets: dict[int, FakeSocket] = {}
        self.remains: list[FakeSocket] = []
        self.owners: dict[int, int] = {}
        self.owner_requests: list[OwnersRequest] = []
        self.descriptors: dict[int, int] = {}
        self.shared: set[tuple[int, int]] = set()
        """Inode and pid: processes that hold a socket beside the one that a search finds first."""
        self.programs: dict[int, ProcessFacts] = {}
        self.refused_processes = 0
        self.traffic: tuple[Any, ...] = ()
        """What the namespace counts: interfaces and datagrams."""
        self.cgroups: dict[int, CgroupFacts] = {}
        self.unwalked: set[int] = set()
        """Numbers of cgroups for which the time does not suffice."""
        self.cgroup_requests: list[CgroupsRequest] = []
        self.came_and_went: list[NamespacesAnswer] = []
        """What the next looks for namespaces find."""
        self.namespace_requests: list[NamespacesRequest] = []
        self.census: tuple[tuple[int, int, tuple[int, ...]], ...] | None = ()
        """What each look at all tables finds; `None`: none is complete."""
        self.users = {1000: "ada"}
        self.links = [LinkMessage(1, 772, "lo"), LinkMessage(2, 1, "eth0"), LinkMessage(3, 65534, "wg0", "wireguard")]
        self.addresses = [AddressMessage(2, 1, LOOPBACK, 8), AddressMessage(2, 2, bytes([192, 0, 2, 2]))]
        self.refused: dict[tuple[int, int], int] = {}
        self.events: list[Any] = []
        self.record: list[tuple[str, float, int, Any]] = []
        self.during_dump: Callable[[], None] | None = None
        self.silent: set[int] = set()
        self.missing_channels: set[int] = set()
        """Numbers of those that this kernel does not have."""
        self.held: list[Lookup] = []
        self.hold_lookups = False
        self.fed: set[int] = set()
        """Channels that something came from."""
        self.per_datagram = 2
        self.pulse: PulsePurpose | None = None
        """What a pulse was opened for."""
        self.has_pulse = False

    def start(self) -> list[Any]:
        self.session.start(self.now)
        return self.run()

    def run(self) -> list[Any]:
        """Carry out commands until there are none; the new events."""
        for _ in range(1000):
            commands = self.session.commands()
            for command in commands:
                self._carry_out(command)
            deadline = self.session.next_deadline()
            if not commands:
                if deadline is None or deadline > self.now:
                    break
                self.session.handle_deadline(self.now)
        else:
            raise AssertionError("the session never rests")
        new = self.session.take_events()
        self.events += new
        return new

    def poll(self) -> list[Any]:
        self.session.request_poll(self.now)
        return self.run()

    def wait(self, seconds: float) -> list[Any]:
        """Time passes, and all channels are read before a deadline is."""
        self.now += seconds
        for channel in sorted(self.fed):
            self.session.channel_drained(channel, self.now)
        self.session.handle_deadline(self.now)
        return self.run()

    def feed(self, data: bytes, channel: int) -> None:
        self.record.append(("from", self.now, channel, data))
        self.fed.add(channel)
        self.session.receive_datagram(data, self.now, channel)

    def open_many(self, count: int) -> None:
        """So many connections, each from a port of the number of its cookie; many rows come in one datagram."""
        self.per_datagram = 100
        for cookie in range(1, count + 1):
            self.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())

    def close(self, cookie: int, *, tell: bool = True) -> None:
        """Destroy a socket."""
        sock = self.sockets.pop(cookie)
        if tell:
            self.feed(sock.message(final=True), 1)

    def lose_removals(self) -> None:
        """The queue of removals ran over, and was read empty."""
        self.session.channel_failed(1, errno.ENOBUFS, self.now)
        self.session.channel_drained(1, self.now)

    def beat(self, *cookies: int, late: tuple[FakeSocket, ...] = ()) -> list[Any]:
        """A pulse reports these sockets with their owners; `late`: some that are there no more."""
        sockets = [*(self.sockets[cookie] for cookie in cookies), *late]
        held = [sock.inode for sock in sockets if sock.inode in self.owners]
        report = PulseReport(
            tuple((sock.protocol, sock.message(1)) for sock in sockets),
            OwnersAnswer(
                tuple((inode, self.owners[inode]) for inode in held),
                tuple(self._facts(self.owners[inode]) for inode in held),
                places=tuple((self.owners[inode], 3) for inode in held),
                users=tuple(self.users.items()),
            ),
        )
        assert self.pulse is not None
        self.feed(report.encode(), self.pulse.channel)
        return self.run()

    def _facts(self, pid: int) -> ProcessFacts:
        return self.programs.get(pid) or ProcessFacts(pid, 7000 + pid, f"p{pid}", f"/bin/p{pid}")

    refusal = errno.ENOENT
    """Why a channel cannot be had."""

    def _carry_out(self, command: Any) -> None:
        if (isinstance(command, OpenChannel) and isinstance(command.purpose, PulsePurpose) and not self.has_pulse) or (
            isinstance(command, OpenChannel) and command.channel in self.missing_channels
        ):
            self.session.channel_failed(command.channel, self.refusal, self.now)
        elif isinstance(command, OpenChannel):
            self.pulse = command.purpose if isinstance(command.purpose, PulsePurpose) else self.pulse
            self.session.channel_opened(command.channel, self.now, immediate=True, receive_buffer=1 << 20)
        elif isinstance(command, Send):
            self.record.append(("to", self.now, command.channel, command.data))
            if command.channel not in self.silent:
                {0: self._dump, 2: self._route, 3: self._lookups}[command.channel % 4](command.data, command.channel)
        elif isinstance(command, Lookup):
            self.record.append(("asked", self.now, 0, command.request))
            if self.hold_lookups:
                self.held.append(command)
            else:
                self.answer(command)
        else:
            assert isinstance(command, CloseChannel)

    def answer(self, command: Lookup) -> None:
        request = command.request
        if isinstance(request, OwnersRequest):
            self.owner_requests.append(request)
            found = tuple((i, self.owners[i]) for i in sorted(request.inodes) if i in self.owners)
            facts = tuple(self._facts(pid) for _, pid in found)
            facts += tuple(self.programs[pid] for pid, _ in request.verify if pid in self.programs)
            gone = tuple(key for key in request.verify if key[0] not in self.owners.values())
            places = tuple((pid, self.descriptors.get(inode, 3)) for inode, pid in found)
            there = {inode: (pid, self.descriptors.get(inode, 3)) for inode, pid in self.owners.items()}
            lost, met = [], []
            for inode, thread, number in request.held:
                pid, place = (thread, 3) if (inode, thread) in self.shared else there.get(inode, (None, None))
                if pid != thread or number not in {place, ANYWHERE}:
                    lost.append(inode)
                elif number == ANYWHERE:
                    met.append((inode, place))
            checked = {"lost": tuple(lost), "met": tuple(met), "refused": self.refused_processes}
            checked["users"] = tuple((uid, self.users[uid]) for uid in request.users if uid in self.users)
            checked["shared"] = self.census
            facts += tuple(self._facts(pid) for _, _, pids in self.census or () for pid in pids)
            answer: Any = OwnersAnswer(found, facts, None, gone, places, **checked)
        elif isinstance(request, NamespacesRequest):
            self.namespace_requests.append(request)
            answer = self.came_and_went.pop(0) if self.came_and_went else NamespacesAnswer()
        elif isinstance(request, CgroupsRequest):
            self.cgroup_requests.append(request)
            known = [self.cgroups[number] for number in request.numbers if number in self.cgroups]
            left = {number for number in request.numbers if number in self.unwalked}
            answer = CgroupsAnswer(tuple(known), tuple({*request.numbers} - self.cgroups.keys() - left), not left)
        elif isinstance(request, TrafficRequest):
            answer = TrafficAnswer(request.namespace, *self.traffic)
        else:
            answer = LinkKindsAnswer(request.namespace, tuple((name, "wifi") for name in request.names))
        self.record.append(("answer", self.now, 0, answer))
        self.session.lookup_done(command.token, answer, self.now)

    def _dump(self, data: bytes, channel: int) -> None:
        (frame,) = iterate_messages(data)
        request = DiagRequest.decode(data, frame)
        families = (2, 10) if request.family == 0 else (request.family,)
        keys = [(family, request.protocol) for family in (request.family, *families)]
        error = next((self.refused[key] for key in keys if key in self.refused), None)
        if error is not None:
            self.feed(encode_error(error, data, sequence=frame.sequence), channel)
            return
        found = [
            s.message(frame.sequence, kind=frame.type)
            for s in [*self.sockets.values(), *self.remains]
            if s.family in families and s.protocol == request.protocol and request.states >> s.state & 1
        ]
        if self.during_dump is not None:
            action, self.during_dump = self.during_dump, None
            action()
        for at in range(0, len(found), self.per_datagram):
            self.feed(b"".join(found[at : at + self.per_datagram]), channel)
        self.feed(encode_done(frame.sequence), channel)

    def _route(self, data: bytes, channel: int) -> None:
        (frame,) = iterate_messages(data)
        links = frame.type == RouteMessage.GETLINK
        kind = RouteMessage.NEWLINK if links else RouteMessage.NEWADDR
        parts = [item.encode(kind, sequence=frame.sequence) for item in (self.links if links else self.addresses)]
        self.feed(b"".join(parts) + encode_done(frame.sequence), channel)

    def _lookups(self, data: bytes, channel: int) -> None:
        for frame in iterate_messages(data):
            request = DiagRequest.decode(data, frame)
            wanted = request.socket_id
            if request.protocol == 17:  # udp_dump_one looks for the packet that would arrive
                wanted = wanted[2:4] + wanted[:2] + wanted[20:36] + wanted[4:20] + wanted[36:]
            for sock in [*self.sockets.values(), *self.remains]:
                if sock.id[:40] == wanted[:40] and wanted[40:] in {sock.id[40:], b"\xff" * 8}:
                    self.feed(sock.message(frame.sequence), channel)
                    break
            else:
                self.feed(encode_error(2, data, sequence=frame.sequence), channel)


def flow_events(events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved))]


def polls(events: list[Any]) -> list[PollCompleted]:
    return [event for event in events if isinstance(event, PollCompleted)]


def removals(events: list[Any]) -> list[FlowRemoved]:
    return [event for event in events if isinstance(event, FlowRemoved)]


def kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def follow(record: Iterable[tuple[str, float, int, Any]], passive: Session, end: float) -> list[Any]:
    """What a core reports that follows the client of this record, which is over then; it asks for nothing itself."""
    events = []
    for direction, now, channel, item in record:
        if direction == "to":
            passive.observe_request(item, now, channel)
        elif direction == "asked":
            passive.observe_lookup(item)
        elif direction == "from":
            passive.receive_datagram(item, now, channel)
        else:
            passive.lookup_done(0, item, now)
        assert passive.commands() == []
        events += passive.take_events()
    passive.finish(end)
    return events + passive.take_events()


class LiveDriver:
    """Runs a session against the real kernel in the calling thread."""

    def __init__(self, core: Session, transport: Any) -> None:
        self.core = core
        self.transport = transport
        self.channels: dict[int, Any] = {}
        self.events: list[Any] = []
        self.record: list[tuple[str, float, int, Any]] = []
        self.core.epoch_offset = time.time() - time.monotonic()
        self.core.start(time.monotonic())

    def __enter__(self) -> LiveDriver:
        return self

    def __exit__(self, *exception: object) -> None:
        for channel in self.channels.values():
            channel.close()
        self.transport.close()

    def until(self, condition: Callable[[], Any], timeout: float = 120.0) -> Any:
        """Turn until the condition holds; its value."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, "condition not met in time"
            assert self.core.failure is None, self.core.failure
            if not self.turn():
                readable = [channel for channel in self.channels.values() if channel.fileno() >= 0]
                select.select(readable, [], [], 0.05)
        return value

    def poll(self) -> PollCompleted:
        """One more complete poll."""
        serial = self.core.request_poll(time.monotonic())

        def done() -> PollCompleted | None:
            polls = (event for event in reversed(self.events) if isinstance(event, PollCompleted))
            return next((event for event in polls if event.serial == serial), None)

        completed: PollCompleted = self.until(done)
        return completed

    def turn(self) -> bool:
        """As a turn of the pump: what came before a deadline counts before it."""
        core = self.core
        deadline, commands = core.next_deadline(), core.commands()
        due = deadline is not None and deadline <= time.monotonic()
        for command in commands:
            self._carry_out(command)
        busy = bool(commands)
        for number, channel in list(self.channels.items()):
            busy = self._read(number, channel) or busy
        if due:
            core.handle_deadline(time.monotonic())
        self.events += core.take_events()
        return busy

    def _read(self, number: int, channel: Any) -> bool:
        batch, more, error = [], True, None
        try:
            more = channel.read_into(batch, 16)
        except OSError as failure:
            error = failure
        for data in batch:
            self.record.append(("from", time.monotonic(), number, data))
            self.core.receive_datagram(data, time.monotonic(), number)
        if error is not None:
            self.core.channel_failed(number, error.errno, time.monotonic())
        elif not more:
            self.core.channel_drained(number, time.monotonic())
            return bool(batch)
        return True

    def _carry_out(self, command: Any) -> None:
        core, now = self.core, time.monotonic
        if isinstance(command, OpenChannel):
            channel = self.channels[command.channel] = self.transport.open(command.purpose)
            core.channel_opened(command.channel, now(), immediate=True, receive_buffer=channel.receive_buffer)
        elif isinstance(command, CloseChannel):
            self.channels.pop(command.channel).close()
        elif isinstance(command, Send):
            self.record.append(("to", now(), command.channel, command.data))
            self.channels[command.channel].send(command.data)
        else:
            self.record.append(("asked", now(), 0, command.request))
            answer = self.transport.lookup(command.request)
            self.record.append(("answer", now(), 0, answer))
            core.lookup_done(command.token, answer, now())

    # -- what was seen

    def added(self, port: int) -> list[FlowAdded]:
        """Additions of flows with this local port."""
        return [e for e in self.events if isinstance(e, FlowAdded) and e.flow.local.port == port]

    def removed(self, port: int, peer: int | None = None) -> list[FlowRemoved]:
        """Removals of flows with this local port; others on this machine may use it for another peer."""
        found = [e for e in self.events if isinstance(e, FlowRemoved) and e.flow.local.port == port]
        return [e for e in found if peer is None or (e.flow.remote is not None and e.flow.remote.port == peer)]

    def updated(self, port: int) -> list[FlowUpdated]:
        return [e for e in self.events if isinstance(e, FlowUpdated) and e.flow.local.port == port]


def info_position(message):
    return find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO)
