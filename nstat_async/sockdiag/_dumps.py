"""The dumps of one namespace: one after another, because a netlink socket serves one at a time.

A request's sequence number says which poll and which dump it belongs to, and whether
it is the poll's last: a recording explains itself.
"""

from __future__ import annotations

import errno as errors
from collections.abc import Callable, Mapping

from .._contract import Send
from .._errors import ProtocolError
from .._events import ProviderRefused
from .._model import Provider
from ._constants import IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, DiagAttribute, MessageFlag, MessageType
from ._hub import Hub
from ._messages import (
    ATTRIBUTES_AT,
    HEADER,
    DiagRequest,
    Frame,
    align,
    error_number,
    extension_bits,
    iterate_messages,
)
from ._table import KINDS, SocketTable

__all__ = ["DumpReader", "extensions_of", "first_request", "sequence_of", "split_sequence"]

_COUNTERS = extension_bits(DiagAttribute.INFO, DiagAttribute.CONG)
_MEMORY = extension_bits(DiagAttribute.SKMEMINFO)
_POLL_MASK = 0x1FFFFFFF
_TRANSIENT = frozenset({errors.EBUSY, errors.EINTR, errors.ENOBUFS, errors.ENOMEM, errors.EAGAIN})


def sequence_of(poll: int, kind: int, *, last: bool) -> int:
    """The sequence number of a dump request; never 0, which is the kernel's own."""
    return ((poll & _POLL_MASK) or 1) << 3 | kind << 1 | last


def extensions_of(protocol: int, *, extras: bool) -> int:
    """The attributes to ask for. Buffer sizes cost a sixth of a TCP dump, so they are an extra there; UDP has little else."""
    if protocol != IPPROTO_TCP:
        return _MEMORY
    return _COUNTERS | _MEMORY if extras else _COUNTERS


def split_sequence(sequence: int) -> tuple[int, int, bool]:
    """Poll, kind and "last of the poll" of a sequence number."""
    return sequence >> 3, sequence >> 1 & 3, bool(sequence & 1)


class DumpReader:
    """Asks for the dumps of a poll and takes them in."""

    def __init__(
        self, hub: Hub, tables: Mapping[int, SocketTable], channel: int, dumped: Callable[[SocketTable], None]
    ) -> None:
        self.open = hub.passive
        self.done = True
        """The last dump of the poll arrived, or the poll was given up."""
        self.complete = True
        """Nothing of this poll is known to be missing."""
        self.progress = 0.0
        """When the last datagram came."""
        self.answered: set[int] = set()
        """Kinds that the kernel gave."""
        self.refused: dict[int, int] = {}
        """Kinds that it refused, with its error."""
        self._hub = hub
        self._tables = tables
        self._channel = channel
        self._dumped = dumped
        self._queue: list[int] = []
        self._sequence = 0

    def begin(self) -> None:
        """Begin a poll."""
        self.done, self.complete = False, True
        self._queue = [kind for kind in self._tables if kind not in self.refused]
        self.progress = self._hub.now
        self._next()

    def abort(self) -> None:
        """Give up the rest of the poll."""
        self._queue.clear()
        self._sequence = 0
        self.done, self.complete = True, False

    def _next(self) -> None:
        if self._hub.passive:
            return
        if not self._queue:
            self._sequence = 0
            self.done = True
            return
        kind = KINDS[self._queue.pop(0)]
        self._sequence = sequence_of(self._hub.generation, kind.index, last=not self._queue)
        extensions = extensions_of(kind.protocol, extras=self._hub.extras)
        request = DiagRequest(kind.family, kind.protocol, extensions, kind.states, sequence=self._sequence)
        self._hub.commands.append(Send(self._channel, request.encode()))

    def observe(self, sequence: int) -> None:
        """Passive: the recorded client asked for this dump."""
        self._sequence = sequence
        self.progress = self._hub.now

    def receive(self, data: bytes) -> None:
        """Take in a datagram of a dump."""
        hub = self._hub
        self.progress = hub.now
        offset, size = 0, len(data)
        current = split_sequence(self._sequence)[1]
        table = self._tables.get(current)
        while size - offset >= HEADER.size:
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size or length > size - offset:
                self._broken(f"netlink message of impossible length {length}")
                return
            if sequence != self._sequence or table is None:
                hub.count("stale_messages")
            elif kind == SOCK_DIAG_BY_FAMILY:
                if length >= ATTRIBUTES_AT:
                    behind = table.scan(data, offset, length)
                    hub.reports += (behind - offset + 3) // align(length)
                    offset = behind
                    continue
                self._broken("inet_diag message is too short")
            elif kind in {MessageType.DONE, MessageType.ERROR}:
                self._end(Frame(offset, length, kind, flags, sequence), data, table)
                return
            offset += align(length)
        if size > offset:
            self._broken("datagram ends inside a netlink header")

    def _broken(self, reason: str) -> None:
        self.complete = False
        self._hub.reject(reason)

    def _end(self, frame: Frame, data: bytes, table: SocketTable) -> None:
        number = error_number(data, frame)
        last = bool(frame.sequence & 1)
        if number and (frame.type == MessageType.ERROR or number not in _TRANSIENT):
            self._refuse(table, number)
        else:
            self.answered.add(table.kind.index)
            if number or frame.flags & MessageFlag.DUMP_INTERRUPTED:
                self.complete = False
            self._dumped(table)
        if self._hub.passive:
            self._sequence = 0
            self.done = self.done or last
        else:
            self._next()

    def _refuse(self, table: SocketTable, number: int) -> None:
        if number in _TRANSIENT:
            self.complete = False
            return
        kind = table.kind
        self.refused[kind.index] = number
        others = [k.index for k in KINDS if k.protocol == kind.protocol and k.index in self._tables]
        if all(index in self.refused for index in others):
            provider = Provider.TCP if kind.protocol == IPPROTO_TCP else Provider.UDP
            detail = "the kernel has no sock_diag for it" if number == errors.ENOENT else "the kernel refused the dump"
            self._hub.events.append(ProviderRefused(self._hub.time, provider, number, detail))


def first_request(data: bytes) -> DiagRequest | None:
    """The first sock_diag request of a datagram; `None` when there is none."""
    try:
        for frame in iterate_messages(data):
            if frame.type == SOCK_DIAG_BY_FAMILY:
                return DiagRequest.decode(data, frame)
    except ProtocolError:
        pass
    return None
