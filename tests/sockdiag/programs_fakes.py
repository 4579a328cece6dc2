"""A kernel made of a dictionary that has eBPF programs, too."""

from __future__ import annotations

import io
from typing import Any

from ebpf_records import encode, record
from sockdiag_fakes import FakeKernel, FakeSocket

from nstat_async._contract import Lookup, OpenChannel, Send
from nstat_async._io.record import RecordedCore
from nstat_async._options import Ebpf, MonitorOptions
from nstat_async.ebpf import (
    FLOW,
    FLOW_KEY,
    OWNER,
    PEER,
    PEER_KEY,
    Flag,
    FlowRow,
    Kind,
    MapsPurpose,
    Operation,
    OwnerRow,
    PeerRow,
    Record,
    RingPurpose,
    Statistics,
    Tier,
    decode_request,
    encode_answer,
    encode_statistics,
)
from nstat_async.recording import Recording
from nstat_async.sockdiag import (
    AttachAnswer,
    AttachRequest,
    ProcessesAnswer,
    ProcessesRequest,
    ProcessFacts,
    Session,
    SocketTablesAnswer,
    SocketTablesRequest,
    TableRow,
    TcpInfo,
)

RING, MAPS = RingPurpose.channel, MapsPurpose.channel
NETWORK = 77
TICK = 10_000_000
"""Nanoseconds."""
GRANTED = AttachAnswer(tier=Tier.ALL, processes_trusted=True, births=True, owners=True, namespaces=(NETWORK,))


class Programs(FakeKernel):
    """Its run is recorded."""

    def __init__(
        self,
        granted: Any = GRANTED,
        mode: Ebpf = Ebpf.AUTO,
        target: Recording | None = None,
        *,
        everywhere: bool = False,
        **options: Any,
    ) -> None:
        chosen = MonitorOptions(**{"interval": None, **options})
        session = Session(chosen, kernel="6.18.0", ebpf=mode, all_namespaces=everywhere)
        self.file = io.BytesIO()
        target = target or Recording(self.file)
        self.recorded = RecordedCore(session, target, chosen, now=100.0, epoch_offset=1000.0)
        super().__init__(self.recorded)  # type: ignore[arg-type]
        self.granted = granted
        self.flows: dict[int, FlowRow] = {}
        self.lost = Statistics(0, 0, 0, 0, 0, 0, 1, 0)
        self.asked: list[Operation] = []
        self.requests: list[tuple[Operation, tuple[int, ...], bytes]] = []
        """The same, with what they are about."""
        self.maps_are_silent = False
        self.processes_are_gone = False
        """Nothing is known of them but what records have."""
        self.peers: dict[bytes, PeerRow] = {}
        self.tables: list[TableRow] = []
        self.missing_tables: set[str] = set()
        self.held_sockets: list[OwnerRow] = []
        """What a walk over all descriptors finds."""

    def feed(self, data: bytes, channel: int) -> None:
        self.fed.add(channel)
        self.recorded.receive_datagrams([data], self.now, channel)

    def ring(self, *records: Record) -> list[Any]:
        """Records come; the new events."""
        self.feed(encode(*(attrs_of(each) for each in records)), RING)
        return self.run()

    def _carry_out(self, command: Any) -> None:
        if isinstance(command, Send) and command.channel == MAPS:
            operation, cookies, body = decode_request(command.data)
            self.asked.append(operation)
            self.requests.append((operation, cookies, body))
            if not self.maps_are_silent:
                self._answer_maps(operation, cookies, body)
        elif isinstance(command, OpenChannel) and command.channel in {RING, MAPS}:
            self.session.channel_opened(command.channel, self.now, immediate=True, receive_buffer=None)
        else:
            super()._carry_out(command)

    def peer(self, cookie: int, address: bytes, **counts: int) -> None:
        """A socket has this remote."""
        values = dict.fromkeys(PeerRow._fields, 0) | {"port": 53 << 8, "family": 2 if len(address) == 4 else 10}
        row = PeerRow(**(values | {"cookie": cookie, "address": address.ljust(16, b"\0")} | counts))
        self.peers[PEER_KEY.pack(*row[:4], 0)] = row

    def _answer_maps(self, operation: Operation, cookies: tuple[int, ...], body: bytes) -> None:
        if operation is Operation.STATISTICS:
            self.feed(encode_statistics(self.lost), MAPS)
        elif operation is Operation.OWNERS:
            rows = b"".join(OWNER.pack(*row) for row in self.held_sockets)
            self.feed(encode_answer(operation, b"", rows, last=True), MAPS)
        elif operation is Operation.PEERS:
            values = b"".join(PEER.pack(*row[4:], 0) for row in self.peers.values())
            self.feed(encode_answer(operation, b"".join(self.peers), values, last=True), MAPS)
        elif operation is Operation.DISMISS:
            for at in range(0, len(body), PEER_KEY.size):
                self.peers.pop(body[at : at + PEER_KEY.size], None)
        elif operation in {Operation.FLOWS, Operation.LOOK, Operation.TAKE}:
            rows = [row for row in self.flows.values() if operation is Operation.FLOWS or row.cookie in cookies]
            keys = b"".join(FLOW_KEY.pack(row.cookie) for row in rows)
            self.feed(encode_answer(operation, keys, b"".join(FLOW.pack(*row[1:]) for row in rows), last=True), MAPS)

    def answer(self, command: Lookup) -> None:
        request = command.request
        if isinstance(request, AttachRequest):
            self.session.lookup_done(command.token, self.granted, self.now)
        elif isinstance(request, SocketTablesRequest):
            rows = tuple(row for row in self.tables if row.table in {*request.names} - self.missing_tables)
            missing = tuple(name for name in request.names if name in self.missing_tables)
            self.session.lookup_done(command.token, SocketTablesAnswer(request.namespace, rows, missing), self.now)
        elif isinstance(request, ProcessesRequest):
            there = () if self.processes_are_gone else request.processes
            facts = (ProcessFacts(pid, start, f"p{pid}", f"/bin/p{pid}") for pid, start in there)
            self.session.lookup_done(command.token, ProcessesAnswer(tuple(facts)), self.now)
        else:
            super().answer(command)


def attrs_of(record: Record) -> Record:
    """The record, of the network namespace that is watched."""
    return record._replace(net_cookie=NETWORK, start=record.pid * TICK)


def owner_row(record: Record, inode: int) -> OwnerRow:
    """What a walk over all descriptors tells of the socket of a record."""
    values = dict.fromkeys(OwnerRow._fields, 0) | {
        name: value for name, value in attrs_of(record)._asdict().items() if name in OwnerRow._fields
    }
    return OwnerRow(**(values | {"inode": inode, "fd": 3}))


def flow_row(record: Record, **counts: int) -> FlowRow:
    """An entry of the map of flows for the socket of a record."""
    values = dict.fromkeys(FlowRow._fields, 0) | {
        name: value for name, value in attrs_of(record)._asdict().items() if name in FlowRow._fields
    }
    return FlowRow(**(values | dict.fromkeys(("tx_bytes", "rx_bytes"), 0) | counts))


PORTS = {"local_port": 40000, "remote_port": 80 << 8}
REMOTE = b"\x7f\0\0\2"
BORN = Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH
PROVIDERS = ("tcp", "udp", "raw", "icmp", "packet")


def started(**options: Any) -> Programs:
    kernel = Programs(**options)
    kernel.start()
    kernel.events.clear()
    return kernel


def connect(kernel: Programs, cookie: int = 9, pid: int = 5) -> list[Any]:
    opened = record(Kind.OPENED, cookie, pid=pid, remote_port=80 << 8)
    return kernel.ring(opened, record(Kind.ESTABLISHED, cookie, pid=pid, **PORTS))


def closed(cookie: int = 9, *, tx: int = 70, rx: int = 8, fin: bool = True) -> Any:
    flags = Flag.FIN_RECEIVED if fin else 0
    return record(Kind.CLOSED, cookie, tx_bytes=tx, rx_bytes=rx, remote_port=80 << 8, flags=flags)


def removal(cookie: int = 9, rx: int = 8) -> FakeSocket:
    info = {TcpInfo.BYTES_SENT: 70, TcpInfo.BYTES_ACKED: 71, TcpInfo.BYTES_RECEIVED: rx, TcpInfo.DATA_SEGS_IN: 1}
    return FakeSocket(cookie, remote=REMOTE, info={**info, TcpInfo.MIN_RTT: 14, TcpInfo.SEGS_OUT: 3})


def end(kernel: Programs, cookie: int = 9, rx: int = 8) -> list[Any]:
    kernel.feed(removal(cookie, rx).message(final=True), 1)
    return kernel.run()
