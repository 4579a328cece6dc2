"""A client that follows the requests of a recorded client, and sends none of its own.

The requests tell what the answers mean: a subscription (which flows existed before, whether announcements
were suppressed, whether filters hide sources), a poll (when it is over, and what it left out), a
question about one source (ENOENT proves that it is gone).

A recording without requests (the older format ``.bin``) is followed too; what only requests tell is then
unknown.

A client may close its control socket and open another one within a recording. No byte says so,
but references then begin again: a provider is granted a second time (on one socket the kernel
answers EALREADY), or a number is announced that is not higher than all earlier ones (since
xnu-3789 no number is used twice).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from .._errors import ProtocolError
from .._events import AnyEvent, EventsLost, LossCause, PollCompleted, RemovalReason
from .._model import Provider
from .._options import MonitorOptions
from ._client import Client
from ._constants import NO_ROOM, DarwinErrno, FilterFlag, HeaderFlag, MessageType
from ._framer import request_frame
from ._kernels import Kernel
from ._messages import AddAllSources, AddSource, Message, QuerySource, RemoveSource, SetFilter, decode_message
from ._source import Phase, Terms
from ._translate import Translator

MAX_CONTEXTS = 4096
"""Most requests that are remembered while their answers are awaited."""

_POLLS = frozenset({MessageType.QUERY_SRC, MessageType.GET_SRC_DESC, MessageType.GET_UPDATE, MessageType.GET_DETAILS})
_MONITORING_BITS = int(FilterFlag.SUPPRESS_SRC_ADDED) | 0x200000
"""Filter bits that hide no source."""
_SPECIFIC_USERS = 0xF_0000_0000


@attrs.define(eq=False)
class _Asked:
    """A request whose answer is awaited."""

    message: Message
    provider: Provider | None = None
    highest: int = 0
    """The highest known reference when it was sent."""


class Follower(Client):
    """One client of a recorded conversation.

    Args:
        translator: The session's.
        emit: Where events go.
        options: Only ``every_update`` and ``strict`` matter.
        client: Number that makes flow ids differ from those of other clients of the recording.
    """

    def __init__(
        self,
        translator: Translator,
        emit: Callable[[AnyEvent], object],
        options: MonitorOptions,
        *,
        client: int,
    ) -> None:
        super().__init__(translator, emit, options, prefix=f"{client + 1}.", terms=Terms())
        self._client = client
        self._sockets = 1
        self._asked: dict[int, _Asked] = {}
        self._poll: int | None = None
        self._polled = False
        self._absent_reported: set[int] = set()
        self._granted: set[int] = set()
        """Provider numbers that this control socket watches."""

    @property
    def is_subscribed(self) -> bool:
        """True once the kernel has granted a provider."""
        return bool(self.providers)

    @property
    def is_polling(self) -> bool:
        """True while a recorded poll is under way."""
        return self._poll is not None

    def overloaded(self, time: float) -> None:
        """The kernel had no room for an answer to the recorded client."""
        detail = "the kernel could not answer"
        self.emit(EventsLost(time, LossCause.KERNEL_BUFFER, None, detail=detail))

    # --- requests -------------------------------------------------------------------

    def observe(self, data: bytes) -> None:
        """The recorded client sent this."""
        frame = request_frame(data, has_lengths=self.kernel.layout.has_lengths)
        if frame is None:
            return
        try:
            message = decode_message(self.kernel, data, frame)
        except ProtocolError:
            return  # the kernel refuses it too, and its ERROR needs no request
        asked = _Asked(message, highest=self.table.references.highest or 0)
        self._note(message, asked)
        if message.context:
            before = self._asked.get(message.context)
            if before is not None and before.message == message:
                return  # it continues a poll
            if len(self._asked) >= MAX_CONTEXTS:
                self._asked.pop(next(iter(self._asked)))
            self._asked[message.context] = asked

    def _note(self, message: Message, asked: _Asked) -> None:
        table = self.table
        if isinstance(message, (AddAllSources, AddSource)):
            asked.provider = self.kernel.provider(message.provider)[0]
            if not table.references.top and table.references.highest is None:
                # References count from 1 only if the recording has the beginning of the client.
                self._agree(counts_references=True)
            if isinstance(message, AddAllSources):
                self._subscribing(message)
        elif isinstance(message, RemoveSource):
            if message.srcref in table.sources:
                table.given_up.add(message.srcref)
        elif isinstance(message, SetFilter):
            self._agree(filtered=True, quiet=True)
        elif self._is_poll(message) and self._poll != message.context:
            self._poll = message.context
            table.begin_poll()

    def _agree(self, **changes: bool) -> None:
        self.table.terms = attrs.evolve(self.table.terms, **changes)

    def _is_poll(self, message: Message) -> bool:
        return message.TYPE in _POLLS and getattr(message, "srcref", 0) == self.kernel.layout.all_sources

    def _subscribing(self, message: AddAllSources) -> None:
        table = self.table
        if table.subscribed is None:
            table.subscribed = table.moment
            self._polled = False
        table.phase = Phase.LISTING
        terms = _terms_of(self.kernel, message.filter)
        if terms.suppressed:
            self._agree(suppressed=True)
        if terms.filtered:
            self._agree(filtered=True)
        if terms.quiet:
            self._agree(quiet=True)

    def _reopened(self) -> None:
        """Note that the recorded client opened another control socket."""
        self._sockets += 1
        self.table.restart(f"{self._client + 1}r{self._sockets}.")
        self.table.terms = Terms(counts_references=self.table.terms.counts_references)
        self._granted.clear()
        self._absent_reported.clear()
        self._poll = None
        for asked in self._asked.values():
            if isinstance(asked.message, AddAllSources):
                self._subscribing(asked.message)

    # --- replies ------------------------------------------------------------------------

    def announced(self, ref: int) -> None:
        """SRC_ADDED."""
        if ref <= self.table.references.top and self.kernel.references_are_unique:
            self._reopened()

    def succeeded(self, context: int, flags: int) -> None:
        """SUCCESS."""
        asked = self._asked.get(context)
        if asked is None:
            return
        message = asked.message
        if asked.provider is not None:
            if isinstance(message, AddAllSources):
                if message.provider in self._granted:
                    self._reopened()
                self._granted.add(message.provider)
            self._listed()
            self.providers.add(asked.provider)
            del self._asked[context]
        elif not flags & HeaderFlag.CONTINUATION:
            del self._asked[context]
            if self._is_poll(message):
                self._poll_ended(asked)

    def _listed(self) -> None:
        """The list of a provider's sources is over."""
        begun = self.table.subscribed is not None
        self.table.phase = Phase.BASELINE if begun and not self._polled else Phase.LIVE

    def answered(self, context: int, ref: int) -> None:  # noqa: ARG002
        """A report that answers a request."""
        asked = self._asked.get(context)
        if asked is None or self._is_poll(asked.message):
            return
        if asked.provider is not None:
            self.providers.add(asked.provider)
        del self._asked[context]

    def failed(self, context: int, errno: int) -> None:
        """ERROR."""
        asked = self._asked.pop(context, None)
        if asked is None:
            return
        message = asked.message
        if asked.provider is not None:
            self._listed()
            if errno in NO_ROOM and isinstance(message, AddAllSources) and not self.table.terms.suppressed:
                self.report_gap(None)  # the list of flows is cut short, by an unknown number
        elif isinstance(message, RemoveSource):
            self.table.given_up.discard(message.srcref)
        elif self._is_poll(message):
            if errno == DarwinErrno.ENOBUFS:
                self._asked[context] = asked  # the next request continues this one
        elif errno == DarwinErrno.ENOENT and not self.table.terms.filtered and isinstance(message, QuerySource):
            source = self.table.sources.get(message.srcref)
            if source is not None:
                self.table.remove(source, RemovalReason.GONE)

    def _poll_ended(self, asked: _Asked) -> None:
        """A poll is over: see whether anything is missing."""
        table = self.table
        self._poll = None
        complete = True
        if not table.terms.filtered and not table.terms.quiet:
            absent = {source.ref for source in table.absent()}
            if table.terms.suppressed:
                # Before the first poll no reference is known. Those below the ones that it
                # reported exist too, because the kernel gives references in order.
                limit = asked.highest if self._polled else table.references.highest or 0
                absent |= {ref for ref in table.references.missing if ref <= limit}
            complete = not absent
            fresh = absent - self._absent_reported
            self._absent_reported = absent
            if fresh:
                detail = "known to exist and not in the answer: a batch was lost, or a removal"
                self.emit(EventsLost(table.time, LossCause.BATCH, len(fresh), detail=detail))
        self._polled = True
        if table.phase is Phase.BASELINE:
            table.phase = Phase.LIVE
        self.emit(PollCompleted(table.time, sum(1 for _ in table.flows()), complete))


def _terms_of(kernel: Kernel, bits: int) -> Terms:
    """The terms in the filter bits of ADD_ALL_SRCS."""
    hiding = bits & 0xFFFFFFFF & ~_MONITORING_BITS & ~(kernel.extension_bit(1) or 0)
    if kernel.explains_removal:
        hiding |= bits & _SPECIFIC_USERS
    return Terms(
        suppressed=bool(bits & FilterFlag.SUPPRESS_SRC_ADDED) and kernel.can_suppress,
        filtered=bool(hiding),
        quiet=bool(bits & (kernel.no_zero_bytes_bit or 0)),
    )
