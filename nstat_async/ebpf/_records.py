"""What the programs report: the layouts of ``programs.c``, decoded.

All numbers are in the byte order of the machine and naturally aligned. `FACTS` and `COUNTS` are parts
that several records share, as in the C file.
"""

from __future__ import annotations

import collections
import enum
import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from .._errors import ProtocolError

if TYPE_CHECKING:
    from typing_extensions import Self

FACTS = "QQ QII16s IIII HHHH BBBB I 16s16s"
"""net_cookie, cgroup · start, pid, tid, comm · netns, uid, ifindex, flags · family, protocol, local_port,
remote_port · type, kind, old, new · last_pid · local, remote (``struct facts``, 112 bytes)."""
COUNTS = "8Q"
"""``struct counts``, 64 bytes."""
RECORD = struct.Struct(f"=II QQ {FACTS} {COUNTS}".replace(" ", ""))
"""The ring buffer's header (its first word holds the length and two flags), then ``struct record``."""
RING_HEADER = 8
RECORD_SIZE = RECORD.size - RING_HEADER
"""Bytes of a record without the header: the header's first word, unless the record is busy or discarded."""
RING_STEP = RECORD.size
"""Bytes from one record to the next. The kernel rounds up to a multiple of eight, which this is already."""
FLOW_KEY = struct.Struct("=Q")
FLOW = struct.Struct(f"={COUNTS} Q {FACTS}".replace(" ", ""))
"""``struct flow``, the value of the map of flows; its key is the socket's cookie."""
OWNER = struct.Struct(f"=QQ {FACTS} Q".replace(" ", ""))
"""``struct owner``: one descriptor of a process that is a socket."""
PEER_KEY = struct.Struct("=Q16sHHI")
PEER = struct.Struct("=QQQQQII")
CHANGED = struct.Struct("=QQ16s16sIIH2sBBxx")
"""``struct changed``: a TCP socket that had traffic."""
_T = TypeVar("_T")


class Kind(enum.IntEnum):
    """What happened (``enum kind``)."""

    OPENED = 1
    """TCP ``connect()``: SYN_SENT."""
    ESTABLISHED = 2
    """TCP: that connection is established."""
    ACCEPTED = 3
    """TCP: established without SYN_SENT before."""
    CLOSED = 4
    """TCP: the connection is over; the counts are final."""
    FIRST_IO = 5
    """The first send or receive that was seen, with its process; TCP: the process that has an accepted socket."""
    RELEASED = 6
    """The last descriptor of a socket that is not TCP's was closed; the counts are final."""


class Flag(enum.IntFlag):
    """Bits of `Record.flags` (``enum flag``)."""

    HAS_PROCESS = 1
    """The process is known."""
    ANNOUNCED = 2
    """A FIRST_IO record was sent before."""
    BY_CLOSER = 4
    """The process is the one that closed the socket; none was seen using it."""
    FIN_RECEIVED = 8
    """A FIN came from the other side, and TCP counts it as a received byte."""
    BY_CREATOR = 16
    """The process is the one that made the socket; none was seen using it yet."""
    COUNTED_FROM_BIRTH = 32
    """The creation of the socket was seen, so all of its traffic is counted."""
    ERROR_KNOWN = 64
    """TCP, at the end: the third byte of the flags is the error that ended it (``sk_err``)."""
    SHUT_FOR_READING = 128
    """TCP, at the end: the socket was shut down for reading."""


class SocketType(enum.IntEnum):
    """``enum sock_type``."""

    STREAM = 1
    DGRAM = 2
    RAW = 3


class _Facts:
    """Facts about a socket and its process (``struct facts``)."""

    __slots__ = ()
    net_cookie: int
    """The network namespace (``SO_NETNS_COOKIE``)."""
    cgroup: int
    """Number of the socket's cgroup: the inode of its directory in cgroup2; 0 where it has none."""
    start: int
    """When the process started, nanoseconds since boot; with `pid` its identity."""
    pid: int
    """The process, in the first pid namespace; 0: not known."""
    tid: int
    """The thread that made the call."""
    comm: bytes
    """The process's name (``comm``), 16 bytes filled up with zeros."""
    netns: int
    """Inode of the network namespace; 0: not known."""
    uid: int
    """Owner of the socket, in the first user namespace."""
    ifindex: int
    """Interface of the last datagram, or of the route that TCP receives by; 0: not known."""
    flags: int
    """See `Flag`."""
    family: int
    protocol: int
    local_port: int
    """Host order; 0: not known, as at the beginning of an attempt, and in older recordings at the end of each connection."""
    remote_port: int
    """Network order; 0: not known."""
    type: int
    """See `SocketType`."""
    kind: int
    """See `Kind`; in records only."""
    old: int
    """TCP state before; in records only."""
    new: int
    """TCP state after; in an `OwnerRow` the state."""
    last_pid: int
    """Who sent or received last; 0: not known."""
    local: bytes
    """16 bytes, of which IPv4 uses four."""
    remote: bytes


class _Counts:
    """The traffic of a socket (``struct counts``). A TCP record has counts of the kernel in the same places."""

    __slots__ = ()
    tx_bytes: int
    """Bytes that send calls accepted; TCP: bytes sent, retransmitted ones included."""
    tx_calls: int
    """Number of send calls; TCP: bytes acknowledged by the other side."""
    rx_bytes: int
    """Bytes that receive calls returned; TCP: bytes received, a FIN included."""
    rx_calls: int
    """Number of receive calls; TCP: bytes retransmitted."""
    tx_payload: int
    """UDP payload of packets that left; TCP: segments retransmitted."""
    rx_payload: int
    """UDP payload of packets that arrived; TCP: eight times the smoothed round trip in microseconds."""
    tx_packets: int
    """Datagrams that left; TCP: segments with data."""
    rx_packets: int
    """Datagrams that arrived; TCP: segments with data."""


if TYPE_CHECKING:

    class _Tuple(tuple[Any, ...]):
        """What `_row` adds to a class."""

        __slots__ = ()

        def __new__(cls, *values: Any, **named: Any) -> Self: ...

        _fields: ClassVar[tuple[str, ...]]

        def _replace(self, **changes: Any) -> Self: ...
        def _asdict(self) -> dict[str, Any]: ...
        @classmethod
        def _make(cls, values: Iterable[Any]) -> Self: ...

else:
    _Tuple = object


def _row(*parts: str | type) -> Callable[[type[_T]], type[_T]]:
    """Make a named tuple of a class. Its fields, in the order of the bytes, are given by name, or as a class that has them."""
    fields = [name for part in parts for name in (part.split() if isinstance(part, str) else part.__annotations__)]

    def named(cls: type[_T]) -> type[_T]:
        inner = {"__slots__": (), "__doc__": cls.__doc__, "__module__": cls.__module__}
        return type(cls.__name__, (cls, collections.namedtuple(cls.__name__, fields)), inner)  # noqa: PYI024

    return named


@_row(_Counts)
class Counters(_Counts, _Tuple):
    """The traffic of a socket of another protocol than TCP."""

    __slots__ = ()


@_row("header page time cookie", _Facts, _Counts)
class Record(_Facts, _Counts, _Tuple):
    """One record of the ring buffer, as the kernel wrote it.

    The counts of a TCP record have another meaning than those of a datagram socket; `nstat_async.ebpf.Ledger`
    translates both.
    """

    __slots__ = ()
    header: int
    """Length of the record; bit 31: busy, bit 30: discarded."""
    page: int
    """The kernel's own."""
    time: int
    """Nanoseconds since boot, time asleep included (``CLOCK_BOOTTIME``)."""
    cookie: int
    """The socket: unique until the machine is restarted (``SO_COOKIE``)."""


@_row("cookie", _Counts, "first", _Facts)
class FlowRow(_Facts, _Counts, _Tuple):
    """One entry of the map of flows."""

    __slots__ = ()
    cookie: int
    first: int
    """Nanoseconds since boot when the entry was made."""

    @property
    def counters(self) -> Counters:
        """The counts alone."""
        return Counters(*self[1:9])


@_row("cookie inode", _Facts, "fd")
class OwnerRow(_Facts, _Tuple):
    """One descriptor of one process that is a socket."""

    __slots__ = ()
    cookie: int
    inode: int
    """The socket's inode, as in ``/proc/PID/fd`` and in a dump of sock_diag."""
    fd: int
    """The descriptor's number."""


class PeerRow(NamedTuple):
    """What an unconnected UDP socket exchanged with one address."""

    cookie: int
    """The socket (``SO_COOKIE``)."""
    address: bytes
    """The remote address, 16 bytes, of which IPv4 uses four."""
    port: int
    """Network order."""
    family: int
    """``AF_INET`` or ``AF_INET6``, by the numbers of Linux."""
    tx_bytes: int
    """Payload sent to it."""
    tx_packets: int
    """Datagrams sent to it."""
    rx_bytes: int
    """Payload received from it."""
    rx_packets: int
    """Datagrams received from it."""
    last: int
    """Nanoseconds since boot of the last datagram."""
    ifindex: int
    """Interface of the last datagram."""


class ChangedRow(NamedTuple):
    """A TCP socket that had traffic since the last walk. A row without a cookie marks the beginning or the end of a walk."""

    cookie: int
    net_cookie: int
    """Of the network namespace; 0 at the end of a walk."""
    local: bytes
    """16 bytes, of which IPv4 uses four."""
    remote: bytes
    ifindex: int
    """The interface that it is bound to; 0: none."""
    number: int
    """At the end of a walk: how many sockets it found."""
    local_port: int
    """Host order."""
    remote_port: bytes
    """Network order."""
    family: int
    state: int


_record_of = functools.partial(tuple.__new__, Record)
"""`Record._make` without its Python function: it is the most frequent call of all."""


def decode_records(data: bytes) -> tuple[list[Record], int]:
    """Records of the ring buffer, headers included, one after the other.

    Returns:
        The records, and how many others were discarded by the kernel or are not of these programs.

    Raises:
        ProtocolError: The bytes are no whole number of records.
    """
    if len(data) % RING_STEP:
        raise ProtocolError("ring records of another size", offset=len(data) // RING_STEP * RING_STEP, raw=data)
    records: list[Record] = list(map(_record_of, RECORD.iter_unpack(data)))
    headers = memoryview(data).cast("I")[:: RING_STEP // 4].tolist()
    if headers.count(RECORD_SIZE) == len(records):
        return records, 0
    good = [record for record in records if record[0] == RECORD_SIZE]
    return good, len(records) - len(good)


def decode_flows(keys: bytes, values: bytes) -> Iterator[FlowRow]:
    """A batch of the map of flows.

    Raises:
        ProtocolError: Keys and values do not belong together.
    """
    _same(keys, FLOW_KEY, values, FLOW)
    return (
        FlowRow(*key, *value) for key, value in zip(FLOW_KEY.iter_unpack(keys), FLOW.iter_unpack(values), strict=True)
    )


def decode_peers(keys: bytes, values: bytes) -> Iterator[PeerRow]:
    """A batch of the map of peers.

    Raises:
        ProtocolError: Keys and values do not belong together.
    """
    _same(keys, PEER_KEY, values, PEER)
    return (
        PeerRow(*key[:4], *value[:6])
        for key, value in zip(PEER_KEY.iter_unpack(keys), PEER.iter_unpack(values), strict=True)
    )


def decode_owners(data: bytes) -> Iterator[OwnerRow]:
    """What the iterator over the descriptors of all processes gave.

    Raises:
        ProtocolError: The bytes are no whole number of rows.
    """
    if len(data) % OWNER.size:
        raise ProtocolError("owner rows of another size", offset=len(data) // OWNER.size * OWNER.size, raw=data)
    return map(OwnerRow._make, OWNER.iter_unpack(data))


def decode_changed(data: bytes) -> list[ChangedRow]:
    """What a walk over the TCP sockets gave.

    Raises:
        ProtocolError: The bytes are no whole number of rows.
    """
    if len(data) % CHANGED.size:
        raise ProtocolError("rows of a walk of another size", offset=len(data) // CHANGED.size * CHANGED.size, raw=data)
    return list(map(ChangedRow._make, CHANGED.iter_unpack(data)))


def _same(keys: bytes, key: struct.Struct, values: bytes, value: struct.Struct) -> None:
    if len(keys) % key.size or len(values) % value.size or len(keys) // key.size != len(values) // value.size:
        raise ProtocolError("a batch whose keys and values do not belong together", raw=keys)


def text_of(comm: bytes) -> str | None:
    """A process's name as text; `None` where it has none."""
    return comm.split(b"\0", 1)[0].decode("utf-8", "replace") or None
