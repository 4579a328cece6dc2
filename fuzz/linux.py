"""A Linux kernel that speaks well, and then does something odd."""

from __future__ import annotations

from functools import partial
from socket import htons
from typing import Any

import attrs
from choices import NUMBERS, Choices, flows_of, is_thorough, looked_at, without_speedups
from ebpf_records import encode, record
from lives import Lives
from programs_fakes import GRANTED, RING, Programs, attrs_of, flow_row
from sockdiag_fakes import FakeKernel, FakeSocket

from nstat_async import Ebpf
from nstat_async._contract import Lookup, LookupFailed
from nstat_async.ebpf import RECORD_SIZE, Kind, Operation, Record, SocketType, Statistics
from nstat_async.sockdiag import (
    CgroupFacts,
    FoundNamespace,
    NamespacesAnswer,
    NetworkNamespace,
    OwnersAnswer,
    OwnersRequest,
    SocketState,
    TableRow,
    TcpInfo,
    _first_rows,
    _rows,
    _scan,
)


class _Odd(FakeKernel):
    """A kernel that sometimes loses, repeats, cuts or refuses what it was asked for."""

    def __init__(self, choices: Choices, **options: Any) -> None:
        super().__init__(**options)
        self.odd = choices
        self.inputs = 0
        self.cookies: dict[int, int] = {}
        """The socket at each of six places."""
        self.stages: dict[int, Kind] = {}
        """By cookie, the last record of a socket: how that goes on its records say."""

    def feed(self, data: bytes, channel: int) -> None:
        self.inputs += 1
        what = self.odd.byte() % 64
        if what == 63:
            return
        if what == 62 and channel % 4 != 1 and channel != RING:  # no notification and no record comes twice
            super().feed(data, channel)
        elif what == 61:
            data = data[: len(data) // 2]
        elif what == 60 and channel != RING:  # a ring that failed is read no more
            self.session.channel_failed(channel, self.odd.pick((105, 12, 11, 5)), self.now)
        super().feed(data, channel)


def _change(kernel: _Odd, choices: Choices) -> None:
    """Something happens to a socket."""
    place = choices.byte() % 6
    cookie = kernel.cookies.get(place, 0)
    sock = kernel.sockets.get(cookie)
    if sock is None:
        cookie = kernel.cookies[place] = max(kernel.cookies.values(), default=0) + 1  # a kernel gives none twice
        protocol, family = choices.pick((6, 6, 17)), choices.pick((2, 10))
        wide = b"\0" * 10 + b"\xff\xff" if family == 10 else b""
        kernel.sockets[cookie] = FakeSocket(
            cookie,
            local=wide + bytes((127, 0, 0, 1)),
            local_port=choices.pick((0, 80, 40000)),
            remote=wide + bytes((127, 0, 0, choices.byte() % 3)),
            remote_port=choices.pick((0, 443, 80)),
            family=family,
            protocol=protocol,
            state=7 if protocol == 17 else choices.pick((1, 2, 8, 10)),
            inode=choices.byte() % 4,
            info_length=choices.pick((280, 280, 192, 100)),
        )
        return
    what = choices.byte() % 8
    if what <= 2:
        for field in (TcpInfo.BYTES_RECEIVED, TcpInfo.BYTES_ACKED, TcpInfo.DATA_SEGS_IN):
            top = (1 << 32) - 1 if field is TcpInfo.DATA_SEGS_IN else (1 << 64) - 1
            number = choices.pick(NUMBERS) if choices.rarely() else sock.info.get(field, 0) + choices.byte()
            sock.info[field] = number & top
    elif what == 3:
        # No TIME_WAIT, no SYN_RECV: these are other objects, which no socket comes back from.
        state = choices.pick((1, 1, 4, 5, 4, 7, 8, 9, 10, 11))
        sock.state = 7 if sock.protocol != 6 else sock.state if cookie in kernel.stages else state
    elif what == 4:
        sock.inode = choices.byte() % 4
        kernel.owners[sock.inode] = 100 + choices.byte() % 3
    elif what == 5:
        ports = choices.pick((0, 443, 444)), choices.pick((0, 80, 81))
        if cookie not in kernel.stages or sock.protocol != 6:
            sock.remote_port, sock.local_port = ports
    elif what == 6:
        kernel.close(cookie, tell=not choices.rarely())
    else:
        sock.extra = {15: choices.pick((b"", b"\x01", b"\x01\0\0\0"))}


def dumps(data: bytes) -> int:
    """A Linux kernel whose sockets live, and which answers mostly."""
    return _twice(_Odd, _step, data)


def evidence(data: bytes) -> int:
    """The same with eBPF programs, and with look-ups that find odd things."""
    return _twice(_OddPrograms, _step_of_programs, data)


def _twice(kind: Any, step: Any, data: bytes) -> int:
    """Play a kernel's life, a quarter of them to the Python code as well, which does the same."""
    flags = data[0] if data else 0
    played = partial(_play, kind, step, data[1:], every_update=bool(flags & 2), extras=bool(flags & 4))
    if not is_thorough(flags):
        return played(Lives(look=False))[0]
    made = played(Lives())
    with without_speedups(_rows, _scan, _first_rows):
        assert made == played(Lives()), "the C code reports something else"
    return made[0]


def _play(kind: Any, step: Any, data: bytes, lives: Lives, **options: Any) -> tuple[Any, ...]:
    """A kernel's life as the choices say, and what came of it."""
    choices = Choices(data)
    kernel = kind(choices, **options)
    session = kernel.session
    kernel.start()
    checked = 0
    while not choices.over and session.failure is None:
        step(kernel, choices)
        kernel.run()
        lives.check(kernel.events[checked:])
        checked = len(kernel.events)
    for seconds in (1.0, 10.0):  # what waits for an owner, or a proof of its end, waits no longer
        kernel.wait(seconds)
    lives.check(kernel.events[checked:])
    known = flows_of(session)
    assert session.failure is not None or set(known) == lives.open
    return kernel.inputs, kernel.events if not lives.look else looked_at(kernel.events), known, session.statistics()


def _step(kernel: _Odd, choices: Choices) -> None:
    what = choices.byte() % 8
    if what <= 3:
        _change(kernel, choices)
    elif what <= 5:
        kernel.session.request_poll(kernel.now)
    elif what == 6:
        kernel.now += choices.pick((0.01, 1.0, 3.0))
        due = kernel.session.next_deadline()
        if due is not None and due <= kernel.now:
            kernel.session.handle_deadline(kernel.now)
    else:
        kernel.hold_lookups = choices.rarely()
        held, kernel.held = kernel.held, []
        for command in held:
            kernel.answer(command)


class _OddPrograms(_Odd, Programs):
    """A kernel with eBPF programs. What a look-up finds, and what the programs count, is odd now and then."""

    def __init__(self, choices: Choices, **options: Any) -> None:
        mode = choices.pick((Ebpf.AUTO, Ebpf.AUTO, Ebpf.OFF))
        granted = attrs.evolve(GRANTED, births=choices.byte() % 2 == 0, owners=choices.byte() % 2 == 0)
        super().__init__(choices, granted=granted, mode=mode, everywhere=choices.byte() % 4 == 3, **options)
        self.has_pulse = choices.byte() % 2 == 0
        self.namespaces = 0
        self.waiting: list[bytes] = []
        """Records that nobody read yet: they come in order, and late."""

    def _answer_maps(self, operation: Operation, cookies: tuple[int, ...], body: bytes) -> None:
        super()._answer_maps(operation, cookies, body)
        if operation in {Operation.TAKE, Operation.DROP}:
            for cookie in cookies:
                self.flows.pop(cookie, None)

    def answer(self, command: Lookup) -> None:
        what = self.odd.byte() % 32
        if what == 31:
            self.session.lookup_done(command.token, LookupFailed("no"), self.now)
        elif what == 30 and isinstance(command.request, OwnersRequest):
            inodes = tuple((self.odd.byte() % 5, self.odd.byte() % 5) for _ in range(self.odd.byte() % 3))
            facts = tuple(self._facts(self.odd.byte() % 5) for _ in range(self.odd.byte() % 3))
            gone = tuple((each.pid, each.start_ticks) for each in facts[self.odd.byte() % 2 :])
            answer = OwnersAnswer(inodes, facts, None, gone)
            self.session.lookup_done(command.token, answer, self.now)
        else:
            super().answer(command)
            if what == 29:  # twice
                super().answer(command)


def _step_of_programs(kernel: _OddPrograms, choices: Choices) -> None:
    what = choices.byte() % 16
    cookie = kernel.cookies.get(choices.byte() % 6, 0) + choices.rarely()
    if what <= 5:
        _step(kernel, choices)
    elif what <= 7:
        waiting = kernel.waiting
        kernel.waiting = waiting[choices.byte() % 8 + 1 :]
        kernel.feed(b"".join(waiting[: len(waiting) - len(kernel.waiting)]), RING)
    elif what == 8 and cookie in kernel.sockets:
        _happened(kernel, choices, cookie)
    elif what == 9 and cookie in kernel.sockets:
        last = Kind.CLOSED if kernel.sockets[cookie].protocol == 6 else Kind.RELEASED
        if kernel.sockets[cookie].state != SocketState.LISTEN and kernel.stages.get(cookie) is not Kind.CLOSED:
            kernel.waiting += [_record(kernel, choices, cookie, last)][choices.rarely() :]
        if not choices.rarely():  # else the program was skipped
            kernel.flows.pop(cookie, None)
        kernel.close(cookie, tell=not choices.rarely())
    elif what == 10 and cookie in kernel.sockets:
        row = flow_row(_record_of(kernel, choices, cookie, Kind.FIRST_IO))
        kernel.flows[cookie] = row._replace(
            rx_bytes=choices.pick(NUMBERS), tx_bytes=choices.byte(), first=choices.byte()
        )
    elif what == 11:
        kernel.flows.pop(cookie, None)
        kernel.lost = Statistics(*(choices.byte() for _ in range(8)))
    elif what == 12 and kernel.pulse is not None and cookie in kernel.sockets:
        kernel.beat(cookie)
    elif what == 13:
        sock = kernel.sockets.get(cookie)
        number = choices.byte() % 4
        if sock is not None:
            sock.cgroup = number
        kernel.cgroups[number] = CgroupFacts(number, choices.pick(("/", "/system.slice/a.service", "")))
    elif what == 14:
        kernel.namespaces += 1
        entered = kernel.namespaces % 3 > 0
        found = FoundNamespace(
            kernel.namespaces, NetworkNamespace(choices.pick("ab")), 100 + kernel.namespaces, entered=entered
        )
        kernel.tables = [*map(_in_a_table, kernel.sockets.values())]
        gone = choices.byte() % (kernel.namespaces + 1)
        kernel.came_and_went.append(NamespacesAnswer((found,), (gone,) if gone else ()))
    else:
        kernel.census = choices.pick(((), None, ((choices.byte() % 4, 1000, (100, 101)),)))


def _in_a_table(sock: FakeSocket) -> TableRow:
    name = ("udp" if sock.protocol == 17 else "tcp") + ("6" if sock.family == 10 else "")
    ends = sock.local, sock.remote, sock.local_port, sock.remote_port
    return TableRow(name, sock.inode, 1000, *ends, state=sock.state)


def _record(kernel: _OddPrograms, choices: Choices, cookie: int, kind: Kind) -> bytes:
    """A record as the ring has it, or one that the kernel discarded."""
    made = _record_of(kernel, choices, cookie, kind)
    return encode(made._replace(header=choices.pick((RECORD_SIZE | 1 << 30, 8, 0))) if choices.rarely() else made)


def _happened(kernel: _OddPrograms, choices: Choices, cookie: int) -> None:
    """The next of a connection's records is written, or lost: it begins once, is established once, and ends once."""
    before, sock = kernel.stages.get(cookie), kernel.sockets[cookie]
    if sock.protocol != 6:
        kind = Kind.FIRST_IO
    elif before is None:
        if not sock.remote_port:  # it is not connected
            return
        kind = choices.pick((Kind.OPENED, Kind.ACCEPTED))
    elif before is Kind.OPENED:
        kind = Kind.ESTABLISHED
    elif before is Kind.CLOSED:
        kind = Kind.OPENED
        sock.state, sock.local_port, sock.remote_port = SocketState.SYN_SENT, sock.local_port + 1, 1000 + choices.byte()
    else:
        kind = Kind.CLOSED
    kernel.stages[cookie] = kind
    kernel.waiting += [_record(kernel, choices, cookie, kind)][choices.rarely() :]
    if kind is Kind.CLOSED:  # it is dissolved (AF_UNSPEC), and may connect again
        sock.state, sock.remote_port, sock.info = SocketState.CLOSE, 0, {}


def _record_of(kernel: _OddPrograms, choices: Choices, cookie: int, kind: Kind) -> Record:
    """What happened to a socket."""
    sock = kernel.sockets[cookie]
    tcp = sock.protocol == 6
    fields: dict[str, Any] = {
        "local": sock.local.ljust(16, b"\0"),
        "remote": sock.remote.ljust(16, b"\0"),
        "local_port": sock.local_port,
        "remote_port": htons(sock.remote_port),
        "family": sock.family,
        "protocol": sock.protocol,
        "type": SocketType.STREAM if tcp else SocketType.DGRAM,
        "pid": choices.pick((0, 100, 101)),
        "rx_bytes": choices.byte(),
        "tx_bytes": choices.byte(),
    }
    if choices.rarely():
        fields[choices.pick(("tx_bytes", "rx_bytes", "start", "cgroup"))] = choices.pick(NUMBERS)
    time = int(kernel.now * 1e9) + choices.pick((0, -1_000_000, 1_000_000_000))
    return attrs_of(record(kind, cookie, time, **fields))
