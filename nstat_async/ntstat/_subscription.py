"""One control socket of an active session: subscribe, poll, verify.

The states follow what the kernel does with each request (it answers inside the
``send``; ``nstat_client_send``):

- SUBSCRIBING: one ADD_ALL_SRCS a provider, one after the other. A refusal of one
  provider is told and the others go on.
- RUNNING: a poll asks for all sources. Since xnu-3247 it is *paced*: the request
  carries CONTINUATION and a fresh context; while SUCCESS carries the flag too, the
  same request is sent again. Before, one unpaced request does it.
- After a poll, *verification*: each source that should have been in it and was not
  is asked for by itself. Data means that a batch was lost (the kernel drops a batch
  that does not fit and still says SUCCESS), ENOENT that the goodbye was.

At most one subscription or poll request is outstanding. It ends with its SUCCESS or
ERROR; without one, on an *immediate* channel as soon as it is drained, since all
answers exist when ``send`` returns; on any other after `REPLY_TIMEOUT`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable

import attrs

from .._events import AnyEvent, EventsLost, LossCause, PollCompleted, ProviderRefused
from .._model import Provider
from .._options import Discovery, MonitorOptions
from ._constants import MAX_BATCH, DarwinErrno, Extension, Filter, HeaderFlag
from ._kernels import Kernel, Line
from ._messages import (
    AddAllSources,
    AddSource,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    Message,
    QuerySource,
    SubscribeSystemInfo,
)
from ._receiver import Receiver
from ._sources import Source, SourceTable
from ._translate import Translator

__all__ = ["DESCRIBE_DELAY", "REPLY_TIMEOUT", "State", "Subscription"]

REPLY_TIMEOUT = 2.0
"""Seconds after which a reply over a bridge counts as lost."""
DESCRIBE_DELAY = 0.1
"""Seconds between an announcement and the question who it is: before, nothing is known."""
MAX_RETRIES = 3
"""Times that a refused or unanswered request is sent again."""
MAX_SINGLES = 32
"""Requests about single sources that may be outstanding together; fewer where the receive buffer is small."""
DEFAULT_BUFFER = 8192
"""Receive buffer that ``connect`` gives: reckoned with where the true size is not known (a bridge)."""
SINGLE_REPLY = 1024
"""Bytes of buffer reckoned for the answer to one of them."""
MAX_VERIFICATIONS = 2_000
"""Sources verified after one poll; the rest waits for the next."""
PROBED_AHEAD = 4
"""References above the highest that the first poll told, asked for by themselves."""
SUSPICIOUS_FILL = 0.7
"""Part of the receive buffer after which the kernel may have refused messages (it does at 0.75)."""
REDESCRIBE_EVERY = 5
"""Old kernels: every n-th poll asks for all descriptions again."""

_FLAGS = int(HeaderFlag.SUPPORTS_AGGREGATE | HeaderFlag.CONTINUATION)
_REFUSALS = {
    DarwinErrno.EPERM: "needs root (or an entitlement)",
    DarwinErrno.ENOTSUP: "this kernel does not offer it",
    DarwinErrno.ENOENT: "this kernel does not have it",
}
_INTERFACE_THRESHOLD = 1 << 20
_PROVIDER_ORDER = (Provider.TCP, Provider.UDP, Provider.QUIC, Provider.CONNECTION, Provider.UDP_SUBFLOW, Provider.ROUTE)


class State(enum.Enum):
    """Where a subscription stands."""

    OPENING = enum.auto()
    SUBSCRIBING = enum.auto()
    RUNNING = enum.auto()
    CLOSED = enum.auto()


@attrs.define(eq=False)
class _Request:
    """The request in flight."""

    message: Message
    provider: Provider | None = None
    """Set for a subscription."""
    userland: bool | None = None
    sent_at: float | None = None
    retries: int = 0
    records: int = 0
    """Datagrams received when it was sent."""
    size: int = 0
    """Bytes received when it was sent."""
    backoff: bool = False
    """True when it is to be sent again once the channel is drained."""


class _Purpose(enum.Enum):
    """Why a single source is asked for."""

    DESCRIBE = enum.auto()
    VERIFY = enum.auto()
    DISCOVER = enum.auto()
    PROBE = enum.auto()


_UNKNOWN = frozenset({_Purpose.DISCOVER, _Purpose.PROBE})
"""Purposes of asking for references that are no known source."""


@attrs.define(eq=False)
class _Verification:
    """What came out of asking for what a poll did not report."""

    recovered: int = 0
    gone: int = 0
    unresolved: int = 0
    never_seen: int = 0
    unanswered: int = 0
    """Of the unresolved ones those that the kernel could not answer now: they are worth asking again."""
    probed: int = 0
    """Highest reference that was probed."""


class Subscription:
    """The logic of one control socket.

    Args:
        channel: Its number.
        translator: Shared by the session.
        emit: Where events go.
        options: The monitor's.
        generation: Makes flow ids of this socket unlike those of others.
        discovery: How new flows are found.
        muted: Fill the table without events (a second socket, until it takes over).
        on_ready: Called when a poll ended, with whether the kernel answered all that was asked.
        on_gap: Called when only another control socket can repair the picture.
    """

    def __init__(
        self,
        channel: int,
        translator: Translator,
        emit: Callable[[AnyEvent], None],
        options: MonitorOptions,
        *,
        generation: int,
        discovery: Discovery,
        muted: bool,
        on_ready: Callable[[Subscription, bool], None],
        on_gap: Callable[[Subscription, int | None], None],
    ) -> None:
        self.channel = channel
        self.kernel: Kernel = translator.kernel
        self.options = options
        self.emit = emit
        self.state = State.OPENING
        self.suppress = discovery is Discovery.POLL and self.kernel.can_suppress
        self.on_ready = on_ready
        self.on_gap = on_gap
        self.immediate = False
        self.receive_buffer: int | None = None
        self.providers: set[Provider] = set()
        """Providers that the kernel granted."""
        self.refused: dict[Provider, int] = {}
        self.table = SourceTable(translator, emit, prefix=f"{generation}.", every_update=options.every_update)
        self.table.muted = muted
        self.table.baseline = True
        self.table.accounting = self.kernel.references_are_gapless
        self.table.unfiltered = True
        self.receiver = Receiver(
            self.kernel,
            self.table,
            emit,
            on_success=self._succeeded,
            on_error=self._failed,
            on_answer=self._answered,
            strict=options.strict,
        )
        self.outbox: list[bytes] = []
        self.statistics = dict.fromkeys(
            ("requests", "polls", "polls_incomplete", "verifications", "replies_lost", "requests_refused"), 0
        )
        self.proving = False
        """True while plain updates are wanted, for the proof of the layout."""
        self.poll_wanted = False
        """A poll is to begin when nothing is in flight."""
        self.serial = 0
        """Number of the poll under way, or of the last one."""
        self._now = 0.0
        self._context = 0
        self._request: _Request | None = None
        self._subscriptions: deque[_Request] = deque()
        self._steps: deque[type[Message]] = deque()
        self._singles: dict[int, tuple[int, _Purpose, float]] = {}
        self._queue: deque[tuple[int, _Purpose]] = deque()
        self._describe: deque[tuple[float, int]] = deque()
        self._verification: _Verification | None = None
        self._poll_trouble = False
        self._polling = False
        self._singles_at_once = MAX_SINGLES
        self._answered_whole = False
        """True once the kernel answered all that a poll and its verification asked."""

    # --- in ----------------------------------------------------------------

    def opened(self, now: float, wall: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """The channel is there."""
        self._now = now
        self.immediate = immediate
        self.receive_buffer = receive_buffer
        room = (receive_buffer or DEFAULT_BUFFER) * 3 // 4
        self._singles_at_once = max(1, min(MAX_SINGLES, room // SINGLE_REPLY))
        self.state = State.SUBSCRIBING
        self.table.begin(wall)
        self.table.subscribed_ns = self.table.time_ns
        self._subscriptions.extend(self._subscribe_requests())
        self._proceed()

    def receive(self, data: bytes, now: float, wall: float) -> None:
        """One datagram came."""
        self._now = now
        self.receiver.receive(data, wall)
        if not self.suppress and (self.table.missing or self.table.forgotten):
            self._announcements_lost()
        self._proceed()

    def drained(self, now: float) -> None:
        """The channel is empty: on an immediate one, what is not answered never will be."""
        self._now = now
        request = self._request
        if request is not None and request.backoff and request.sent_at is not None:
            request.backoff = False
            self._send(request)
        elif self.immediate and not self.outbox:
            self._singles_lost()
            if request is not None and request.sent_at is not None:
                self._reply_lost(request)  # which may ask for single sources
        self._proceed()

    def overloaded(self, now: float) -> None:
        """A send was refused for lack of buffer: the answer is lost."""
        self._now = now
        self.emit(EventsLost(self.table.time, LossCause.KERNEL_BUFFER, None, detail="the kernel could not answer"))
        self._poll_trouble = True

    def deadline(self) -> float | None:
        """When time alone makes something due."""
        times = []
        if self._request is not None and self._request.sent_at is not None:
            times.append(self._request.sent_at + REPLY_TIMEOUT)
        if self._singles:
            times.append(min(sent for _, _, sent in self._singles.values()) + REPLY_TIMEOUT)
        if self._describe and self.state is State.RUNNING:
            times.append(self._describe[0][0])
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """A deadline passed."""
        self._now = now
        request = self._request
        if request is not None and request.sent_at is not None and now >= request.sent_at + REPLY_TIMEOUT:
            self._reply_lost(request)
        if self._singles and now >= min(sent for _, _, sent in self._singles.values()) + REPLY_TIMEOUT:
            self._singles_lost()
        while self._describe and self._describe[0][0] <= now:
            _, ref = self._describe.popleft()
            source = self.table.sources.get(ref)
            if source is not None and source.flow is None:
                self._queue.append((ref, _Purpose.DESCRIBE))
        self._proceed()

    def want_poll(self, now: float) -> None:
        """Poll as soon as nothing is in flight."""
        self._now = now
        self.poll_wanted = True
        self._proceed()

    @property
    def busy(self) -> bool:
        """True while a poll or its verification is under way."""
        return self._polling

    def next_context(self) -> int:
        """A context that was not used before; never 0."""
        self._context += 1
        return self._context

    # --- what to do next ----------------------------------------------------

    def _proceed(self) -> None:
        if self._request is not None or self.state in {State.OPENING, State.CLOSED}:
            return
        if self._subscriptions:
            request = self._subscriptions.popleft()
            self.table.scanning = request.provider is not None
            self._send(request)
            return
        if self.state is State.SUBSCRIBING:
            self.state = State.RUNNING
            self.table.scanning = False
            self.poll_wanted = True
        if self._queue and not self._steps:
            self._send_singles()
        if self._steps:
            self._send_step()
        elif self._singles:
            pass  # their answers come first
        elif self._verification is not None:
            self._verified()
        elif self.poll_wanted:
            self._begin_poll()

    def _send(self, request: _Request) -> None:
        statistics = self.receiver.statistics
        request.sent_at = self._now
        request.records, request.size = statistics["datagrams"], statistics["bytes"]
        self._request = request
        self._emit_request(request.message)

    def _emit_request(self, message: Message) -> None:
        self.statistics["requests"] += 1
        self.outbox.append(message.encode(self.kernel.layout))

    # --- subscribing --------------------------------------------------------

    def _subscribe_requests(self) -> Iterable[_Request]:
        wanted = self.options.providers
        for provider in _PROVIDER_ORDER:
            if provider not in wanted:
                continue
            for number in self.kernel.provider_numbers(provider):
                userland = self.kernel.providers[number][1]
                message = AddAllSources(context=self.next_context(), provider=number, filter=self._filter())
                yield _Request(message, provider, userland)
            if not self.kernel.provider_numbers(provider):
                self._refuse(provider, DarwinErrno.ENOENT)
        if Provider.INTERFACE in wanted:
            yield from self._interface_requests()
        if self.options.extras and self.kernel.version >= Line.BATCHING:
            yield _Request(SubscribeSystemInfo(context=self.next_context()))

    def _interface_requests(self) -> Iterable[_Request]:
        numbers = self.kernel.provider_numbers(Provider.INTERFACE)
        codec = self.kernel.layout.find("nstat_ifnet_add_param")
        if not numbers or codec is None:
            self._refuse(Provider.INTERFACE, DarwinErrno.ENOENT)
            return
        for index in sorted(self.table.translator.interfaces):
            param = codec.encode({"ifindex": index, "threshold": _INTERFACE_THRESHOLD})
            message = AddSource(context=self.next_context(), provider=numbers[0], param=param)
            yield _Request(message, Provider.INTERFACE)

    def _filter(self) -> int:
        bits = int(Filter.SUPPRESS_SRC_ADDED) if self.suppress else 0
        if self.options.extras:
            # Two domain items would make an update too long for polls (2048 bytes,
            # ``nstat_client_append_update``); one, and the small items, fit.
            wanted = [Extension.DOMAIN]
            wanted += [Extension.FUUID] if self.kernel.version >= (8792,) else []
            wanted += [Extension.BLUETOOTH_COUNTS] if self.kernel.version >= Line.ALWAYS_BATCHED else []
            for extension in wanted:
                bits |= self.kernel.extension_bit(extension) or 0
        return bits

    def _refuse(self, provider: Provider, errno: int, *, userland: bool | None = None) -> None:
        if userland and errno == DarwinErrno.ENOENT:
            return
        self.refused.setdefault(provider, errno)
        if provider is Provider.QUIC and errno == DarwinErrno.ENOENT:
            return  # part of the default wish, and simply younger than some kernels
        detail = _REFUSALS.get(errno, f"error {errno}")  # type: ignore[call-overload]
        if not self.table.muted:
            self.emit(ProviderRefused(self.table.time, provider, errno, detail))

    # --- polls --------------------------------------------------------------

    def _begin_poll(self) -> None:
        self.poll_wanted = False
        self.serial += 1
        self._polling = True
        self._poll_trouble = False
        self.statistics["polls"] += 1
        self.table.poll_begins()
        self._steps.extend(self._plan())
        if self._steps:
            self._send_step()
        else:
            self._poll_ends()

    def _plan(self) -> list[type[Message]]:
        kernel = self.kernel
        if kernel.has_updates:
            details = self.options.extras and kernel.has_details and not self.proving
            return [GetDetails if details else GetUpdate]
        again = self.proving or self.statistics["polls"] % REDESCRIBE_EVERY == 1
        vague = [s for s in self.table.sources.values() if again or s.flow is None or _is_vague(s)]
        if not kernel.can_describe_all:
            self._queue.extend((source.ref, _Purpose.DESCRIBE) for source in vague)
            return [QuerySource]
        return [GetSourceDescription, QuerySource] if vague or not self.table.sources else [QuerySource]

    def _send_step(self) -> None:
        cls = self._steps.popleft()
        flags = _FLAGS if self.kernel.layout.has_lengths else 0
        message = cls(context=self.next_context(), flags=flags, srcref=self.kernel.layout.all_sources)  # type: ignore[call-arg]
        self._send(_Request(message))

    def _poll_ends(self) -> None:
        """All steps are answered: look for what should have come and did not."""
        table = self.table
        verification = self._verification = _Verification()
        # What was never seen comes first; then, what was not heard of for longest. With a
        # buffer that loses most of every poll, all of it has its turn within a few polls.
        wanted: list[tuple[int, _Purpose]] = []
        if self.suppress and table.missing:
            wanted.extend((ref, _Purpose.DISCOVER) for ref in sorted(table.missing))
        for source in sorted(table.absent(), key=_last_seen):
            source.missed += 1
            # Some sources are never reported (dead sockets, oversized extensions): ask rarely.
            if source.missed & (source.missed - 1):
                verification.unresolved += 1
            elif len(wanted) < MAX_VERIFICATIONS:
                wanted.append((source.ref, _Purpose.VERIFY))
            else:
                source.missed -= 1  # not asked for: it has its turn after the next poll
                verification.unresolved += 1
                verification.unanswered += 1
        postponed = max(0, len(wanted) - MAX_VERIFICATIONS)
        verification.unresolved += postponed
        verification.unanswered += postponed
        self._queue.extend(wanted[:MAX_VERIFICATIONS])
        if self.suppress and (wanted or not self._answered_whole or not self._newest_fit()):
            verification.probed = max(table.sources, default=0)
            self._probe_up_to(verification.probed + PROBED_AHEAD)
        self._proceed()

    def _newest_fit(self) -> bool:
        """True if a poll's first batch finds room: it has the newest sources, and nothing else tells of them."""
        return self.receive_buffer is None or self.receive_buffer * 3 // 4 >= MAX_BATCH

    def _probe_up_to(self, ref: int) -> None:
        """Ask for references above all that the first poll told.

        A poll begins with the newest sources. If that batch was lost, no number above the
        others says so: only asking does.
        """
        verification = self._verification
        if verification is None:
            return
        if verification.probed >= max(self.table.sources, default=0) + MAX_VERIFICATIONS:
            return
        self._queue.extend((probed, _Purpose.PROBE) for probed in range(verification.probed + 1, ref + 1))
        verification.probed = max(verification.probed, ref)

    def _verified(self) -> None:
        verification, self._verification = self._verification, None
        assert verification is not None
        table = self.table
        if verification.recovered and not table.muted:
            self.emit(EventsLost(table.time, LossCause.BATCH, verification.recovered, detail="asked for again"))
        if verification.never_seen and not table.muted:
            self.emit(EventsLost(table.time, LossCause.GOODBYE, verification.never_seen))
        complete = not verification.unresolved and not self._poll_trouble
        if not complete:
            self.statistics["polls_incomplete"] += 1
        table.baseline = False
        self._polling = False
        if not table.muted:
            count = sum(1 for s in table.sources.values() if s.reported) if not complete else len(table.sources)
            self.emit(PollCompleted(table.time, count, complete, self.serial))
        answered = not verification.unanswered and not self._poll_trouble
        self._answered_whole = self._answered_whole or answered
        self.on_ready(self, answered)
        self._proceed()

    # --- single sources -----------------------------------------------------

    def _send_singles(self) -> None:
        cls = GetUpdate if self.kernel.has_updates else GetSourceDescription
        while self._queue and len(self._singles) < self._singles_at_once:
            ref, purpose = self._queue.popleft()
            if (ref in self.table.sources) == (purpose in _UNKNOWN):
                continue
            context = self.next_context()
            self._singles[context] = (ref, purpose, self._now)
            if purpose is not _Purpose.DESCRIBE:
                self.statistics["verifications"] += 1
            self._emit_request(cls(context=context, srcref=ref))

    def _singles_lost(self) -> None:
        for context in list(self._singles):
            ref, purpose, _ = self._singles.pop(context)
            self.statistics["replies_lost"] += 1
            self._unanswered(ref, purpose)

    def _unanswered(self, ref: int, purpose: _Purpose) -> None:
        """The kernel could not answer now: this says nothing about the source."""
        if purpose is _Purpose.DESCRIBE or self._verification is None:
            return
        self._verification.unresolved += 1
        self._verification.unanswered += 1
        source = self.table.sources.get(ref)
        if source is not None:
            source.missed = 0  # the next poll asks again at once

    def _single_refused(self, ref: int, purpose: _Purpose, errno: int) -> None:
        verification = self._verification
        if errno == DarwinErrno.ENOENT:
            source = self.table.sources.get(ref)
            if source is not None:
                self.table.gone(source)
            elif purpose is _Purpose.DISCOVER:
                self.table.missing.discard(ref)
                if verification is not None:
                    verification.never_seen += 1
        elif errno == DarwinErrno.EAGAIN:
            pass  # the source is there and has nothing to report
        elif errno in {DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM}:
            self._unanswered(ref, purpose)
        elif verification is not None and purpose is not _Purpose.DESCRIBE:
            verification.unresolved += 1

    # --- replies -------------------------------------------------------------

    def _answered(self, context: int, ref: int) -> None:
        single = self._singles.pop(context, None)
        if single is not None:
            if single[1] is _Purpose.PROBE:
                self._probe_up_to(ref + PROBED_AHEAD)
            elif single[1] is not _Purpose.DESCRIBE and self._verification is not None:
                self._verification.recovered += 1
                source = self.table.sources.get(ref)
                if source is not None:
                    source.missed = 0
            return
        request = self._request
        if request is not None and request.message.context == context and isinstance(request.message, AddSource):
            self._subscribed(request)

    def _succeeded(self, context: int, flags: int) -> None:
        request = self._request
        if request is None or request.message.context != context:
            return
        if request.provider is not None:
            self._subscribed(request)
        elif flags & HeaderFlag.CONTINUATION:
            request.retries = 0
            self._send(request)
        else:
            self._request_done()

    def _request_done(self) -> None:
        self._request = None
        if self._polling and not self._steps and self._verification is None:
            self._poll_ends()

    def _subscribed(self, request: _Request) -> None:
        self._request = None
        self.table.scanning = False
        assert request.provider is not None
        self.providers.add(request.provider)
        if not self.suppress and self._buffer_was_full(request):
            # The scan stops at the first announcement that does not fit, and still succeeds.
            self._gap(None)

    def _buffer_was_full(self, request: _Request) -> bool:
        statistics = self.receiver.statistics
        size = statistics["bytes"] - request.size
        records = statistics["datagrams"] - request.records
        # Up to xnu-10002 a record also takes an mbuf of 256 bytes, of eight times the limit.
        storage = records * 256 / 8 if self.kernel.version < Line.ROLES else 0
        return max(size, storage) >= SUSPICIOUS_FILL * (self.receive_buffer or DEFAULT_BUFFER)

    def _failed(self, context: int, errno: int, request_copy: bytes) -> None:  # noqa: ARG002
        single = self._singles.pop(context, None)
        if single is not None:
            self._single_refused(single[0], single[1], errno)
            return
        request = self._request
        if request is None or request.message.context != context:
            return  # the end of a poll that a newer one displaced
        self.statistics["requests_refused"] += 1
        if request.provider is not None:
            self._subscription_refused(request, errno)
        elif isinstance(request.message, SubscribeSystemInfo):
            self._request = None
        elif errno in {DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM} and request.retries < MAX_RETRIES:
            request.retries += 1
            request.backoff = True
            if not self.immediate:
                self._send(request)
        else:
            self._poll_trouble = True
            self._request_done()

    def _subscription_refused(self, request: _Request, errno: int) -> None:
        provider = request.provider
        assert provider is not None
        self._request = None
        self.table.scanning = False
        if errno == DarwinErrno.EALREADY:
            self.providers.add(provider)
        elif errno in {DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM} and not self.suppress:
            # The list is partial and cannot be asked for again on this socket.
            self.providers.add(provider)
            self._gap(None)
        else:
            self._refuse(provider, errno, userland=request.userland)

    def _reply_lost(self, request: _Request) -> None:
        self.statistics["replies_lost"] += 1
        if isinstance(request.message, SubscribeSystemInfo):
            self._request = None  # it has no answer when it is granted
        elif request.provider is not None:
            self._subscribed(request)
            if not self.suppress:
                self._gap(None)  # whether the kernel listed everything is in the lost answer
        elif request.retries < MAX_RETRIES:
            request.message = attrs.evolve(request.message, context=self.next_context())
            request.retries += 1
            self._poll_trouble = True
            self._send(request)
        else:
            self._poll_trouble = True
            self._request_done()

    # --- announcements --------------------------------------------------------

    def announced(self, ref: int) -> None:
        """Ask for the description of an announced source after a grace time."""
        self._describe.append((self._now + DESCRIBE_DELAY, ref))

    def _announcements_lost(self) -> None:
        table = self.table
        lost = len(table.missing) + table.forgotten
        table.missing.clear()
        table.forgotten = 0
        self._gap(lost)

    def _gap(self, count: int | None) -> None:
        if not self.table.muted:
            self.emit(EventsLost(self.table.time, LossCause.ANNOUNCEMENT, count))
        self.on_gap(self, count)


def _last_seen(source: Source) -> int:
    return source.seen


def _is_vague(source: Source) -> bool:
    """True for a source whose description was taken before it had a peer."""
    flow = source.flow
    return flow is not None and flow.provider is Provider.TCP and flow.remote is None and flow.direction is None
