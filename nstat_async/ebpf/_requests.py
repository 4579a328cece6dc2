"""Encodes and decodes the requests to the maps and their answers, as datagrams.

The maps are a channel like any other: a request is sent, and answers are read in pieces. So they are recorded and
replayed like the kernel's own datagrams. The format is the library's own.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple, Union

import attrs

from .._errors import ProtocolError
from ._records import FLOW, Flag, FlowRow, OwnerRow, PeerRow, SocketType, decode_flows, decode_owners, decode_peers


@attrs.frozen
class RingPurpose:
    """The channel gives records of the ring buffer."""

    channel: ClassVar[int] = 1 << 16
    """Its number; those of network namespaces are lower."""


@attrs.frozen
class MapsPurpose:
    """The channel answers requests about the maps."""

    channel: ClassVar[int] = RingPurpose.channel + 1
    """Its number."""


class Operation(enum.IntEnum):
    """What is asked."""

    FLOWS = 1
    """Every socket's counts."""
    TAKE = 2
    """The counts of these sockets, which are over: their entries are removed."""
    PEERS = 3
    """Every remote address of unconnected sockets."""
    STATISTICS = 4
    """What was lost so far."""
    OWNERS = 5
    """Every socket that a process has open."""
    DROP = 6
    """Remove the entries of these sockets; there is no answer."""
    ADOPT = 7
    """Make entries for these sockets, which were there before the programs; there is no answer."""
    LOOK = 8
    """The counts of these sockets."""
    DISMISS = 9
    """Remove these remote addresses; there is no answer."""


_REQUEST = struct.Struct("=II")
_ANSWER = struct.Struct("=IIII")
_STATISTICS = struct.Struct("=8Q")
_UNCOUNTED = (0,) * 8


class Statistics(NamedTuple):
    """Counters of the programs since they were loaded."""

    submitted: int
    """Records that were put into the ring."""
    ring_full: int
    """Records that did not fit into it."""
    map_full: int
    """Attempts to count a socket for which the map of flows had no room."""
    caught: int
    """Changes of state that the second copy of the program reported because the first was skipped."""
    states_missed: int
    """Changes of state, of any protocol, for which the kernel skipped the second copy of the program as well."""
    transfers_missed: int
    """Sends and receives that were skipped because another one was being counted on that CPU."""
    moved: int
    """0 if no count in the map of flows grew since the previous statistics."""
    foreign: int
    """Bytes of the ring that were not records of these programs."""


@attrs.frozen
class Answer:
    """One piece of an answer."""

    operation: Operation
    last: bool
    """True if the answer ends with it."""
    errno: int
    """The error that ended the answer early (``errno``); 0: none did."""
    rows: tuple[Union[FlowRow, PeerRow, OwnerRow], ...] = ()
    statistics: Statistics | None = None


def encode_request(operation: Operation, cookies: Sequence[int] = (), body: bytes = b"") -> bytes:
    """A request.

    Args:
        operation: What is asked.
        cookies: The sockets concerned.
        body: For ADOPT the values of the map, one for each socket; for DISMISS the keys of the map.
    """
    return _REQUEST.pack(operation, len(cookies)) + struct.pack(f"={len(cookies)}Q", *cookies) + body


def encode_adoption(rows: Iterable[OwnerRow], now: int) -> bytes:
    """A request to count datagram sockets that were there before the programs, from now on.

    Of several holders the oldest has it for as long as no call tells who uses it, ``init`` only if it is alone.

    Args:
        rows: Sockets that processes have open; those of TCP are left out.
        now: Nanoseconds since boot.
    """
    adopted: dict[int, OwnerRow] = {}
    for row in rows:
        if row.type in {SocketType.DGRAM, SocketType.RAW}:
            known = adopted.get(row.cookie, row)
            elder = min(known, row, key=lambda each: (each.pid == 1, each.start))
            adopted[row.cookie] = elder._replace(flags=elder.flags | Flag.BY_CREATOR)
    body = b"".join(FLOW.pack(*_UNCOUNTED, now, *row[2:-1]) for row in adopted.values())
    return encode_request(Operation.ADOPT, tuple(adopted), body)


def decode_request(data: bytes) -> tuple[Operation, tuple[int, ...], bytes]:
    """Decode a request: the operation, the cookies and the body of `encode_request`.

    Raises:
        ProtocolError: The bytes are not a request.
    """
    try:
        number, count = _REQUEST.unpack_from(data)
        cookies = struct.unpack_from(f"={count}Q", data, _REQUEST.size)
        return Operation(number), cookies, data[_REQUEST.size + 8 * count :]
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"not a request for eBPF maps: {error}", raw=data) from error


def encode_answer(operation: Operation, keys: bytes, values: bytes, *, last: bool, errno: int = 0) -> bytes:
    """A piece of an answer: keys and values of a map, or rows alone."""
    return _ANSWER.pack(operation, len(keys), last, errno) + keys + values


def encode_statistics(statistics: Statistics) -> bytes:
    """The answer to a request for statistics."""
    return encode_answer(Operation.STATISTICS, b"", _STATISTICS.pack(*statistics), last=True)


def decode_answer(data: bytes) -> Answer:
    """Decode a piece of an answer.

    Raises:
        ProtocolError: The bytes are not a piece of an answer.
    """
    try:
        number, length, last, errno = _ANSWER.unpack_from(data)
        operation = Operation(number)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"not an answer of eBPF maps: {error}", raw=data) from error
    keys, values = data[_ANSWER.size : _ANSWER.size + length], data[_ANSWER.size + length :]
    if operation is Operation.STATISTICS:
        if len(values) != _STATISTICS.size:
            raise ProtocolError("statistics of another size", raw=data)
        return Answer(operation, bool(last), errno, statistics=Statistics._make(_STATISTICS.unpack(values)))
    if operation is Operation.OWNERS:
        return Answer(operation, bool(last), errno, tuple(decode_owners(values)))
    if operation is Operation.PEERS:
        return Answer(operation, bool(last), errno, tuple(decode_peers(keys, values)))
    return Answer(operation, bool(last), errno, tuple(decode_flows(keys, values)))
