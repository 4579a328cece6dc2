"""The passive session: following a conversation that somebody else had.

A recording holds the requests of another client and the kernel's answers. The
passive session sends nothing. From the requests it learns what the answers mean:
a subscription (which flows existed before, whether announcements were suppressed,
whether filters hide sources), a poll (when all of it is over, and what it left
out), a question about one source (whose ENOENT proves that it is gone).

A recording without requests (the seed's ``.bin``) is followed as well; what only
requests tell is then unknown.

A client may close its control socket and open another within one recording. Nothing in
the bytes says so, but references then begin anew: a provider is granted a second time
(on one socket the kernel answers EALREADY), or a number is announced that is not higher
than all before it (since xnu-3789 none is used twice).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._errors import ProtocolError
from .._events import AnyEvent, EventsLost, LossCause, PollCompleted
from .._model import Capabilities, Counts, Flow, Proof, Provider, Visibility
from .._options import MonitorOptions
from ._constants import HEADER_SIZE, DarwinErrno, Filter, HeaderFlag, MessageType
from ._framer import Frame
from ._kernels import Kernel, Line
from ._messages import AddAllSources, AddSource, Message, QuerySource, RemoveSource, decode_message
from ._receiver import Receiver
from ._sources import Source, SourceTable
from ._translate import Translator

__all__ = ["PassiveSession", "request_frame"]

MAX_CONTEXTS = 4096
"""Requests remembered while their answers are awaited."""

_HEADER = struct.Struct("<QIHH")


def request_frame(kernel: Kernel, data: bytes) -> Frame | None:
    """A request datagram as the kernel takes it: one message, whole; `None` if it is too short for a header.

    The kernel ignores a wrong length and clears the flags then (``nstat_client_send``).
    """
    if len(data) < HEADER_SIZE:
        return None
    context, kind, length, flags = _HEADER.unpack_from(data)
    if not kernel.layout.has_lengths or length != len(data):
        flags = 0
    return kind, context, flags, 0, len(data)


@attrs.define(eq=False)
class _Asked:
    """A request whose answer is awaited."""

    message: Message
    provider: Provider | None = None
    highest: int = 0
    """Highest reference known when it was sent."""


class _FollowedTable(SourceTable):
    """A source table that notices when references begin anew."""

    def __init__(self, *args: Any, on_reuse: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._on_reuse = on_reuse

    def added(self, ref: int, provider_id: int, *, requested: bool) -> Source:
        """SRC_ADDED."""
        if ref <= self.top and self.kernel.references_are_gapless:
            self._on_reuse()
        return super().added(ref, provider_id, requested=requested)


class PassiveSession:
    """Follows one client of a recorded conversation: sans-IO, sans-clock.

    Args:
        kernel: The kernel's version string, or a `Kernel`.
        timebase: Nanoseconds per tick of the recorded kernel's clock.
        interfaces: Interface names by index, where the recording has them.
        options: Only ``every_update`` and ``strict`` matter.
        client: Makes flow ids unlike those of other clients of the recording.

    Raises:
        UsageError: The kernel's version is not understood or too old.
    """

    def __init__(
        self,
        kernel: str | Kernel,
        *,
        timebase: tuple[int, int] = (1, 1),
        interfaces: dict[int, str] | None = None,
        options: MonitorOptions | None = None,
        client: int = 0,
    ) -> None:
        self.kernel = Kernel.parse(kernel) if isinstance(kernel, str) else kernel
        options = options if options is not None else MonitorOptions()
        self.epoch_offset = 0.0
        self._events: deque[AnyEvent] = deque()
        self.translator = Translator(self.kernel, timebase, dict(interfaces or {}))
        emit = self._events.append
        self._client = client
        self._sockets = 1
        self.table = _FollowedTable(
            self.translator,
            emit,
            prefix=f"{client + 1}.",
            every_update=options.every_update,
            on_reuse=self._reopened,
        )
        self.receiver = Receiver(
            self.kernel,
            self.table,
            emit,
            on_success=self._succeeded,
            on_error=self._failed,
            on_answer=self._answered,
            strict=options.strict,
        )
        self.providers: set[Provider] = set()
        self._asked: dict[int, _Asked] = {}
        self._filtered = False
        self._suppressed = False
        self._poll: int | None = None
        self._absent_told: set[int] = set()
        self._granted: set[int] = set()
        """Provider numbers that this control socket watches."""

    # --- in --------------------------------------------------------------------

    def observe_request(self, data: bytes, now: float) -> None:
        """The recorded client sent this."""
        frame = request_frame(self.kernel, data)
        if frame is None:
            return
        try:
            message = decode_message(self.kernel, data, frame)
        except ProtocolError:
            return  # the kernel refuses it too, and its ERROR needs no request
        self.table.begin(now + self.epoch_offset)
        self._note(message)

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:  # noqa: ARG002
        """The kernel sent this.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        self.receiver.receive(data, now + self.epoch_offset)
        if (self.table.missing or self.table.forgotten) and not self._suppressed:
            self._gap()

    def finish(self, now: float) -> None:
        """The recording is over: what was announced and never described is told now."""
        self.table.begin(now + self.epoch_offset)
        self.table.finish()

    # --- out ---------------------------------------------------------------------

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def next_event(self) -> AnyEvent | None:
        """The next event, or `None`."""
        return self._events.popleft() if self._events else None

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows, with their last counts."""
        return self.table.flows()

    def statistics(self) -> dict[str, int]:
        """Counters about the conversation, by name."""
        return {**self.receiver.statistics, **self.table.statistics, "sources": len(self.table.sources)}

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded kernel can tell."""
        kernel = self.kernel
        return Capabilities(
            backend="replay",
            kernel=kernel.text,
            providers=frozenset(self.providers),
            udp_counts=True,
            per_medium_bytes=kernel.version >= (2422,),
            final_counts=kernel.has_counts_at_goodbye,
            short_lived=kernel.has_counts_at_goodbye,
            flows=Visibility.UNKNOWN,
            processes=Visibility.ALL,
            layout=kernel.layout.name,
            layout_proof=Proof.ASSUMED if kernel.known else Proof.UNKNOWN,
        )

    # --- requests --------------------------------------------------------------------

    def _note(self, message: Message) -> None:
        asked = _Asked(message, highest=self.table.highest or 0)
        if isinstance(message, AddAllSources):
            self._subscribing(message, asked)
        elif isinstance(message, AddSource):
            asked.provider = self.kernel.providers.get(message.provider, (Provider.UNKNOWN, None))[0]
            self._start_accounting()
        elif isinstance(message, RemoveSource):
            if message.srcref in self.table.sources:
                self.table.given_up.add(message.srcref)
        elif message.TYPE == MessageType.SET_FILTER:
            self._filtered = self.table.quiet_goodbyes = True
        elif self._is_poll(message) and self._poll != message.context:
            self._poll = message.context
            self.table.poll_begins()
        if message.context:
            if message.context in self._asked and self._asked[message.context].message == message:
                return  # the continuation of a poll
            if len(self._asked) >= MAX_CONTEXTS:
                self._asked.pop(next(iter(self._asked)))
            self._asked[message.context] = asked

    def _is_poll(self, message: Message) -> bool:
        types = {MessageType.QUERY_SRC, MessageType.GET_SRC_DESC, MessageType.GET_UPDATE, MessageType.GET_DETAILS}
        return message.TYPE in types and getattr(message, "srcref", 0) == self.kernel.layout.all_sources

    def _start_accounting(self) -> None:
        """References are counted from 1 only when the recording has the client's beginning."""
        if not self.table.top and self.table.highest is None:
            self.table.accounting = self.kernel.references_are_gapless

    def _subscribing(self, message: AddAllSources, asked: _Asked) -> None:
        asked.provider = self.kernel.providers.get(message.provider, (Provider.UNKNOWN, None))[0]
        self._start_accounting()
        if self.table.subscribed_ns is None:
            self.table.subscribed_ns = self.table.time_ns
            self.table.baseline = True
        self.table.scanning = True
        bits = message.filter
        if bits & Filter.SUPPRESS_SRC_ADDED and self.kernel.can_suppress:
            self._suppressed = True
        hiding = bits & 0xFFFFFFFF & ~int(Filter.SUPPRESS_SRC_ADDED) & ~0x200000
        if self.kernel.version >= Line.CONNECTIONS:
            hiding |= bits & 0xF_0000_0000
        if hiding:
            self._filtered = True
        zero = self.kernel.no_zero_bytes_bit
        if zero is not None and bits & zero:
            self.table.quiet_goodbyes = True

    def _grant(self, message: AddAllSources) -> None:
        if message.provider in self._granted:
            self._reopened()
        self._granted.add(message.provider)

    def _reopened(self) -> None:
        """The recorded client has another control socket."""
        self._sockets += 1
        self.table.restart(f"{self._client + 1}r{self._sockets}.")
        self._granted.clear()
        self._absent_told.clear()
        self._poll = None
        self._filtered = self._suppressed = self.table.quiet_goodbyes = False
        self.table.subscribed_ns = None
        for asked in self._asked.values():
            if isinstance(asked.message, AddAllSources):
                self._subscribing(asked.message, asked)

    # --- replies ------------------------------------------------------------------------

    def _succeeded(self, context: int, flags: int) -> None:
        asked = self._asked.get(context)
        if asked is None:
            return
        if asked.provider is not None:
            if isinstance(asked.message, AddAllSources):
                self._grant(asked.message)
            self.table.scanning = False
            self.providers.add(asked.provider)
            del self._asked[context]
        elif not flags & HeaderFlag.CONTINUATION:
            del self._asked[context]
            if self._is_poll(asked.message):
                self._poll_ended(asked)

    def _answered(self, context: int, ref: int) -> None:  # noqa: ARG002
        asked = self._asked.get(context)
        if asked is None or self._is_poll(asked.message):
            return
        if asked.provider is not None:
            self.providers.add(asked.provider)
        del self._asked[context]

    def _failed(self, context: int, errno: int, request: bytes) -> None:  # noqa: ARG002
        asked = self._asked.pop(context, None)
        if asked is None:
            return
        if asked.provider is not None:
            self.table.scanning = False
        message = asked.message
        if isinstance(message, RemoveSource):
            self.table.given_up.discard(message.srcref)
        elif self._is_poll(message):
            if errno == DarwinErrno.ENOBUFS:
                self._asked[context] = asked  # the same request goes on where it stopped
        elif errno == DarwinErrno.ENOENT and not self._filtered and isinstance(message, QuerySource):
            source = self.table.sources.get(message.srcref)
            if source is not None:
                self.table.gone(source)

    def _poll_ended(self, asked: _Asked) -> None:
        """All that the kernel would say in this poll was said: is anything missing?"""
        table = self.table
        self._poll = None
        complete = True
        if not self._filtered and not table.quiet_goodbyes:
            absent = {source.ref for source in table.absent()}
            if self._suppressed:
                # Before the first poll no reference is known; what is below those it
                # reported existed, since references are given in order.
                limit = (table.highest or 0) if table.baseline else asked.highest
                absent |= {ref for ref in table.missing if ref <= limit}
            complete = not absent
            fresh = absent - self._absent_told
            self._absent_told = absent
            if fresh:
                detail = "known to exist and not in the answer: a batch was lost, or a goodbye"
                self._events.append(EventsLost(table.time, LossCause.BATCH, len(fresh), detail=detail))
        table.baseline = False
        flows = sum(1 for _ in table.flows())
        self._events.append(PollCompleted(table.time, flows, complete))

    def _gap(self) -> None:
        lost = len(self.table.missing) + self.table.forgotten
        self.table.missing.clear()
        self.table.forgotten = 0
        self._events.append(EventsLost(self.table.time, LossCause.ANNOUNCEMENT, lost))
