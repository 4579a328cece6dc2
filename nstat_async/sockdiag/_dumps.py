"""Evidence of presence: dumps one namespace's sockets, one dump after another, because a netlink socket serves one at a time.

A request's sequence number tells its poll and its kind of dump, and whether it is the
poll's last, so that a recording can be read without more information.
"""

from __future__ import annotations

import errno as errors
from collections.abc import Iterable, Sequence

import attrs

from .._errors import ProtocolError
from .._events import ProviderRefused
from .._model import Provider
from ._book import Book
from ._constants import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DIAG_BY_FAMILY,
    TCP_DUMP_STATES,
    TCPDIAG_GETSOCK,
    DiagAttribute,
    MessageFlag,
    MessageType,
    SocketState,
)
from ._messages import (
    ATTRIBUTES_AT,
    HEADER,
    DiagRequest,
    Frame,
    align,
    error_number,
    extension_bits,
    iterate_messages,
    numbered,
)
from ._output import Output
from ._purposes import ChannelPurpose, Role
from ._refusals import is_refusal, refusal_text, unavailable
from ._rows import RowFormats
from ._scan import Memory, new_memory, scan
from ._source import Source

PATIENCE = 2.0
"""Seconds without a datagram after which a dump is given up."""
MAX_FAILURES = 5
"""Failures in a row after which the source gives up."""

_LISTENING = 1 << SocketState.LISTEN
_COUNTERS = extension_bits(DiagAttribute.INFO, DiagAttribute.CONG)
_MEMORY = extension_bits(DiagAttribute.SKMEMINFO)
_ROWS = frozenset({SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK})
_POLL_MASK = 0x1FFFFFFF
_INTERRUPTED = int(MessageFlag.DUMP_INTERRUPTED)
_ENDS = frozenset({int(MessageType.DONE), int(MessageType.ERROR)})
_TRANSIENT = frozenset({errors.EBUSY, errors.EINTR, errors.ENOBUFS, errors.ENOMEM, errors.EAGAIN})


@attrs.frozen
class Kind:
    """A kind of dump: the sockets that it asks for."""

    index: int
    family: int
    protocol: int
    states: int
    families: frozenset[tuple[int, int]] = attrs.field(init=False, eq=False)
    """Families and protocols of its sockets."""

    @families.default
    def _families(self) -> frozenset[tuple[int, int]]:
        return frozenset((each, self.protocol) for each in (AF_INET, AF_INET6) if self.family in {each, AF_UNSPEC})

    def extensions(self, *, extras: bool) -> int:
        """The attributes to ask for. Buffer sizes take a sixth of a TCP dump, so they are an extra there; UDP has few others."""
        if self.protocol != IPPROTO_TCP:
            return _MEMORY
        return _COUNTERS | _MEMORY if extras else _COUNTERS

    def of_listeners(self) -> Kind:
        """This kind, but of TCP listeners only."""
        return attrs.evolve(self, states=_LISTENING) if self.protocol == IPPROTO_TCP else self

    @property
    def listeners_only(self) -> bool:
        """True if it leaves out all TCP sockets but listeners."""
        return self.states == _LISTENING


TOGETHER = Kind(0, AF_UNSPEC, IPPROTO_TCP, TCP_DUMP_STATES)
"""Both families of TCP in one walk over the kernel's table; kernels without this get the first two of `KINDS`."""
KINDS = (
    Kind(0, AF_INET, IPPROTO_TCP, TCP_DUMP_STATES),
    Kind(1, AF_INET6, IPPROTO_TCP, TCP_DUMP_STATES),
    Kind(2, AF_INET, IPPROTO_UDP, 0xFFFFFFFF),
    Kind(3, AF_INET6, IPPROTO_UDP, 0xFFFFFFFF),
)
"""The dumps of a poll, in order; v4-mapped sockets are in those of AF_INET6."""


def sequence_of(poll: int, kind: int, *, last: bool) -> int:
    """The sequence number of a dump request; never 0, which the kernel uses itself."""
    return ((poll & _POLL_MASK) or 1) << 3 | kind << 1 | last


def split_sequence(sequence: int) -> tuple[int, int, bool]:
    """Poll and kind of a sequence number, and whether the dump is the poll's last."""
    return sequence >> 3, sequence >> 1 & 3, bool(sequence & 1)


class DumpSource(Source):
    """Requests the dumps of a poll and takes them in.

    Args:
        output: Takes the requests.
        book: Takes the rows.
        formats: How messages are cut.
        protocols: The protocols to dump.
        extras: Ask for the buffer sizes of TCP sockets, too.
        every: Apply unchanged rows, too.
        vital: A permanent failure ends the session, and not only the watching of this namespace.
    """

    def __init__(
        self,
        output: Output,
        book: Book,
        formats: RowFormats,
        protocols: Iterable[int],
        *,
        extras: bool,
        every: bool,
        vital: bool,
    ) -> None:
        super().__init__(output, ChannelPurpose(book.number, Role.DUMPS))
        self._vital = vital
        self.lost = False
        """True if it failed permanently, and is not vital."""
        self.complete = True
        """False if it is known that something of this poll is missing."""
        self.partial = False
        """True if this poll dumps no TCP sockets but listeners: `Walks` has the others."""
        self.rows = 0
        """How many sockets were reported so far."""
        self.answered: set[int] = set()
        """Kinds that the kernel ever answered."""
        self.judged: set[tuple[int, int]] = set()
        """Families and protocols that were dumped in this poll."""
        self.refused: dict[int, int] = {}
        """Kinds that the kernel refused, with its error."""
        self._book = book
        self._formats = formats
        self._extras = extras
        self._every = every
        self._protocols = frozenset(protocols)
        self._kinds = self._kinds_of(TOGETHER, *KINDS[2:])
        self._queue: list[Kind] = []
        self._kind: Kind
        """The kind of the present dump."""
        self._sequence = 0
        self._progress = 0.0
        self._failures = 0
        self._requests: dict[Kind, bytes] = {}
        """The requests as they are sent, by kind."""
        self._memories: dict[tuple[int, bool], Memory] = {}
        """The memories of the last dumps, by kind."""
        self._memory: Memory
        """The memory of the present dump."""

    def _kinds_of(self, *kinds: Kind) -> list[Kind]:
        return [kind for kind in kinds if kind.protocol in self._protocols]

    def requests_for_new(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The requests that dump sockets which can be new, without listeners: of TCP and of UDP, as this kernel answers them."""
        requests: dict[int, list[bytes]] = {IPPROTO_TCP: [], IPPROTO_UDP: []}
        for kind in self._kinds:
            if kind.index not in self.refused:
                states = kind.states & ~(1 << SocketState.LISTEN)
                requests[kind.protocol].append(self._request(kind, states, kind.index + 1).encode())
        return tuple(requests[IPPROTO_TCP]), tuple(requests[IPPROTO_UDP])

    def _request(self, kind: Kind, states: int, sequence: int) -> DiagRequest:
        extensions = kind.extensions(extras=self._extras)
        return DiagRequest(kind.family, kind.protocol, extensions, states, sequence=sequence)

    @property
    def settled(self) -> bool:
        return self.is_open

    def begin_poll(self, *, partial: bool) -> None:
        self.done, self.complete, self.partial = False, True, partial
        self.judged.clear()
        self._queue = [kind for kind in self._kinds if kind.index not in self.refused]
        if partial:
            self._queue = [kind.of_listeners() for kind in self._queue]
        self._progress = self.output.now
        self._next()

    def dump_all(self) -> None:
        """Dump all TCP sockets in this poll after all."""
        self.partial = False
        self._queue += [kind for kind in self._kinds if kind.protocol == IPPROTO_TCP and kind.index not in self.refused]
        if self.done and not self.output.following:
            self.done = False
            self._next()

    def abort(self) -> None:
        """Give up the rest of the poll."""
        self.complete = False
        self._finish()

    def _finish(self) -> None:
        self._sequence = 0
        self.done = True

    def _next(self) -> None:
        if self.output.following:
            return
        if not self._queue:
            self._failures = 0
            self._finish()
            return
        kind = self._queue.pop(0)
        self._sequence = sequence_of(self.output.poll, kind.index, last=not self._queue)
        self._begin(kind)
        request = self._requests.get(kind) or self._requests.setdefault(
            kind, self._request(kind, kind.states, self._sequence).encode()
        )
        self.send(numbered(request, self._sequence))

    def follow(self, request: DiagRequest) -> None:
        """Following: the recorded client asked for this dump."""
        self._sequence = request.sequence
        _, index, _ = split_sequence(request.sequence)
        kind = TOGETHER if request.family == AF_UNSPEC else KINDS[index]
        self._begin(attrs.evolve(kind, states=request.states))
        self.partial = self._kind.listeners_only or (self.partial and kind.protocol != IPPROTO_TCP)
        self._progress = self.output.now

    def _begin(self, kind: Kind) -> None:
        self._kind = kind
        key = kind.index, kind.listeners_only
        self._memory = self._memories.get(key) or self._memories.setdefault(key, new_memory())
        self._memory.begin()

    def failed(self, errno: int) -> None:
        """Handle a failure: it ends the poll. Several in a row, a refusal, or a channel that cannot be opened end the source."""
        self._failures += 1
        if self.is_open and self._failures <= MAX_FAILURES and not is_refusal(errno):
            self.expire()
        elif self._vital:
            self.output.failure = unavailable(errno)
        else:
            self.lost = True
            self.output.note(f"a network namespace cannot be watched: {refusal_text(errno)}")
            self.abort()

    def deadline(self) -> float | None:
        return None if self.done else self._progress + PATIENCE

    def expire(self) -> None:
        """Give up the poll, and open another channel: the rest of its answers must not mix with the next poll's."""
        self.abort()
        if not self.output.following:
            self.reopen()

    # -- rows

    def receive(self, data: bytes) -> None:
        self.receive_many((data,))

    def receive_many(self, datagrams: Sequence[bytes]) -> None:
        self._progress = self.output.now
        datagrams, index, offset = tuple(datagrams), 0, 0
        while index < len(datagrams):
            index, offset = self._take(datagrams, index, offset)

    def _take(self, datagrams: tuple[bytes, ...], index: int, offset: int) -> tuple[int, int]:
        """Take in the message at `offset`, and those after it that begin alike; returns index and offset after them."""
        data, behind = datagrams[index], (index + 1, 0)
        size = len(data) - offset
        if size < HEADER.size:
            if size > 0:
                self._broken("datagram ends inside a netlink header")
            return behind
        length, type_, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or length > size:
            self._broken(f"netlink message of impossible length {length}")
            return behind
        stride = align(length)
        if sequence != self._sequence or not self._sequence:
            self.output.count("stale_messages")
        elif type_ in _ROWS:
            if length < ATTRIBUTES_AT:
                self._broken("inet_diag message is too short")
            elif stride <= size:
                return self._scan(datagrams, index, offset, length)
            else:  # the last message of a datagram may lack its padding
                self._scan((data[offset:].ljust(stride, b"\0"),), 0, 0, length)
        elif type_ in _ENDS:
            self._end(Frame(offset, length, type_, flags, sequence), data, self._kind)
            return behind
        return index, offset + stride

    def _scan(self, datagrams: tuple[bytes, ...], index: int, offset: int, length: int) -> tuple[int, int]:
        """Take in the row at `offset` and those after it that begin alike; returns index and offset after them."""
        form, book, protocol = self._formats.of(datagrams[index], offset, length), self._book, self._kind.protocol
        take, poll = form.scan or scan, self.output.poll
        index, offset, rows = take(
            datagrams, index, offset, book.entries, poll, self._every, book.row_taker, protocol, form, self._memory
        )
        book.enter_new()
        book.reported += rows
        self.rows += rows
        return (index, offset) if offset < len(datagrams[index]) else (index + 1, 0)

    def _broken(self, reason: str) -> None:
        self.complete = False
        self.output.reject(reason)

    # -- the end of a dump

    def _end(self, frame: Frame, data: bytes, kind: Kind) -> None:
        number = error_number(data, frame)
        if number and (frame.type == MessageType.ERROR or number not in _TRANSIENT):
            self._refuse(kind, number)
        else:
            self.answered.add(kind.index)
            if not kind.listeners_only:
                self.judged |= kind.families
            if number or frame.flags & _INTERRUPTED:
                self.complete = False
        if self.output.following and frame.sequence & 1:
            self._finish()
        else:
            self._next()

    def _refuse(self, kind: Kind, number: int) -> None:
        if number in _TRANSIENT:
            self.complete = False
            return
        if self._kinds[0] is TOGETHER and kind.index == TOGETHER.index:
            self._kinds = self._kinds_of(*KINDS)
            self._queue[:0] = KINDS[:2]
            return
        self.refused[kind.index] = number
        others = [other.index for other in self._kinds if other.protocol == kind.protocol]
        if all(index in self.refused for index in others):
            provider = Provider.TCP if kind.protocol == IPPROTO_TCP else Provider.UDP
            detail = "the kernel has no sock_diag for it"
            if number != errors.ENOENT:
                detail = f"the kernel refused the dump: {refusal_text(number)}"
            self.output.events.append(ProviderRefused(self.output.time, provider, number, detail))

    @property
    def all_refused(self) -> bool:
        """True if the kernel refused all kinds."""
        return bool(self._kinds) and len(self.refused) == len(self._kinds)


def first_request(data: bytes) -> DiagRequest | None:
    """The first sock_diag request of a datagram; `None` if there is none."""
    try:
        for frame in iterate_messages(data):
            if frame.type in _ROWS:
                return DiagRequest.decode(data, frame)
    except ProtocolError:
        pass
    return None
