"""A client that sends requests: it subscribes, polls and verifies.

The states are in `_states.py`, and follow what the kernel does with each request (it
answers inside the ``send``; ``nstat_client_send``):

- SUBSCRIBING: one ADD_ALL_SRCS per provider, one after the other. If one provider is
  refused, that is reported, and the others go on.
- POLLING: requests for all sources. Since xnu-3247 they are *paced*: a request has
  CONTINUATION and a new context, and is sent again while SUCCESS has the flag too.
  For older kernels, one or two unpaced requests are enough.
- VERIFYING: a request for each source that the poll should have reported and did not.

Subscription and poll requests are sent one at a time, requests about single sources
several together. A request ends with its SUCCESS, ERROR or report. Without any of these, it ends
as soon as an *immediate* channel is drained, because all answers exist when ``send`` returns; on
any other channel it ends after `REPLY_TIMEOUT`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import inf

from .._events import AnyEvent, EventsLost, LossCause, PollCompleted, ProviderRefused, RemovalReason
from .._model import Provider
from .._options import Discovery, MonitorOptions
from ._client import Client
from ._constants import MAX_BATCH, NO_FLOWS, DarwinErrno, HeaderFlag, error_text
from ._messages import AddSource, RemoveSource
from ._requests import (
    SINGLE,
    UNSEEN,
    Purpose,
    Request,
    poll_requests,
    single_request,
    subscribe_requests,
)
from ._source import Phase, Source, Terms
from ._states import TRANSITIONS, WHEN_DONE, State, Trigger
from ._translate import Translator
from ._verification import MAX_VERIFICATIONS, Question, Unreadable, Verification

REPLY_TIMEOUT = 2.0
"""Seconds after which a reply over a bridge counts as lost."""
POLL_TIMEOUT = 120.0
"""Seconds after which a poll that continues for ever is given up."""
DESCRIBE_DELAY = 0.1
"""Seconds between an announcement and the request for the description, which the kernel does not know earlier."""
MAX_RETRIES = 3
"""How often a refused or unanswered request is sent again."""
MAX_SINGLES = 32
"""Most requests about single sources that are under way together; fewer if the receive buffer is small."""
AMPLE_BUFFER = 65_536
"""Size of a receive buffer with room for a hundred updates, the most that one round of a poll reports."""
LOSSY = 4
"""If a poll lost one flow in this many, the buffer is small, whatever is known of its size."""
DEFAULT_BUFFER = 8192
"""Receive buffer after ``connect``, which is assumed if the true size is not known (a bridge)."""
SINGLE_REPLY = 1024
"""Bytes of the buffer that are assumed for the answer about a single source."""
SUSPICIOUS_FILL = 0.7
"""Part of the receive buffer above which the kernel may have refused messages (it does so at 0.75)."""
REDESCRIBE_EVERY = 5
"""Old kernels: one poll in this many asks for all descriptions again."""

_NO_ROOM = frozenset({DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM})
_REFUSALS: dict[int, str] = {
    DarwinErrno.EPERM: "needs root (or an entitlement)",
    DarwinErrno.ENOTSUP: "this kernel does not offer it",
    DarwinErrno.ENOENT: "this kernel does not have it",
}


def _discard(event: AnyEvent) -> None:
    """Takes the events of a silent table, which is only being filled."""


class Subscription(Client):
    """One control socket that a session opened.

    Args:
        channel: Its number.
        translator: The session's.
        emit: Where events go.
        options: The monitor's.
        generation: Number that makes flow ids differ from those of other sockets.
        discovery: How new flows are found.
        silent: Fill the table without events (a second socket, until it takes over).
    """

    def __init__(
        self,
        channel: int,
        translator: Translator,
        emit: Callable[[AnyEvent], object],
        options: MonitorOptions,
        *,
        generation: int,
        discovery: Discovery,
        silent: bool,
    ) -> None:
        kernel = translator.kernel
        suppressed = discovery is Discovery.POLL and kernel.can_suppress
        terms = Terms(suppressed, counts_references=True)
        super().__init__(translator, emit, options, prefix=f"{generation}.", terms=terms)
        self.channel = channel
        self.state = State.OPENING
        self.immediate = False
        self.outbox: list[bytes] = []
        self.serial = 0
        """Serial of the present poll, or of the last one."""
        self.wanted = 0
        """Serial of the newest poll that is asked for."""
        self.outcome: bool | None = None
        """Set after a poll, for the session: True if the kernel answered everything."""
        self.announcements_lost = 0.0
        """How many announcements were reported as lost; infinite if the number is unknown."""
        self.has_gap = False
        """Flows may exist that were never announced; a complete list on another control socket would tell."""
        self.needs_audit = False
        """Another control socket should check soon whether this one missed anything."""
        self.needs_resync = False
        """This control socket missed flows that only another one can see."""
        if silent:
            self.table.emit = _discard
        names = ("requests", "polls", "polls_incomplete", "verifications", "replies_lost", "requests_refused")
        self._statistics = dict.fromkeys(names, 0)
        self._context = 0
        self._queue: deque[Request] = deque()
        """Requests that the state still has to send."""
        self._questions: deque[Iterator[Question]] = deque()
        """Single sources that the state still has to ask about."""
        self._in_flight: dict[int, Request] = {}
        """Requests without an answer, by context."""
        self._announced: deque[tuple[float, int]] = deque()
        """Announced sources, with the time of the request for their description."""
        self._vague: deque[int] = deque()
        """Sources whose description is to be requested at the next opportunity."""
        self._verification = Verification()
        self._unreadable = Unreadable()
        self._unheard = -1
        """Number of datagrams so far when silence was last reported."""
        self._poll_began = 0.0
        self._poll_trouble = False
        self._details = False
        """The poll asks for counters by medium."""
        self._singles_at_once = MAX_SINGLES
        self.has_small_buffer = False
        """One round of a poll may not fit; polls then ask for counters, which have a third of the size."""
        self._answered_whole = False
        """True after a poll and its verification that the kernel answered completely."""

    # --- what happens to it --------------------------------------------------

    @property
    def is_subscribed(self) -> bool:
        """True once the kernel has answered every subscription."""
        return self.state not in {State.OPENING, State.SUBSCRIBING, State.CLOSED}

    @property
    def is_polling(self) -> bool:
        """True while a poll or its verification is under way."""
        return self.state in {State.POLLING, State.VERIFYING}

    def statistics(self) -> dict[str, int]:
        """Counters of this control socket, by name."""
        return {**super().statistics(), **self._statistics}

    def opened(self, *, immediate: bool, receive_buffer: int | None) -> None:
        """The channel is open."""
        if self.state is not State.OPENING:
            return
        self.immediate = immediate
        self.receive_buffer = receive_buffer
        room = (receive_buffer or DEFAULT_BUFFER) * 3 // 4
        self._singles_at_once = max(1, min(MAX_SINGLES, room // SINGLE_REPLY))
        self.has_small_buffer = receive_buffer is not None and receive_buffer < AMPLE_BUFFER
        self.table.subscribed = self.table.watching = self.table.moment
        self._enter(TRANSITIONS[self.state][Trigger.OPENED])
        self.proceed()

    def close(self) -> None:
        """The channel is gone, or no longer wanted."""
        if self.is_polling:
            self.wanted = self.serial + 1  # a task that waits for that poll gets another one
        self.state = TRANSITIONS[self.state][Trigger.CLOSED]
        for waiting in (self.outbox, self._queue, self._questions, self._in_flight, self._announced, self._vague):
            waiting.clear()

    def settle(self) -> None:
        """Draw the conclusions of a datagram that said more than how known flows grew."""
        super().settle()
        self.proceed()

    def drained(self) -> None:
        """The channel is empty: on an immediate one, requests without an answer will never get one."""
        waiting = list(self._in_flight.values())
        refused = [request for request in waiting if request.backoff]
        for request in refused:
            self._send(request)
        if self.immediate and not refused and not self.outbox:
            for request in waiting:
                self._reply_lost(request)
        self.proceed()

    def overloaded(self) -> None:
        """The kernel refused a request for lack of buffer: the answer is lost."""
        self.emit(EventsLost(self.table.time, LossCause.KERNEL_BUFFER, None, detail="the kernel could not answer"))
        self._poll_trouble = True

    def deadline(self) -> float | None:
        """When to call `tick`; `None`: never."""
        times = [request.sent_at + REPLY_TIMEOUT for request in self._in_flight.values()]
        if self._announced and self.is_subscribed:
            times.append(self._announced[0][0])
        return min(times, default=None)

    def tick(self) -> None:
        """A deadline passed."""
        now = self.now
        for request in list(self._in_flight.values()):
            if now >= request.sent_at + REPLY_TIMEOUT:
                self._note_silence(request)
                self._reply_lost(request)
        while self._announced and self._announced[0][0] <= now:
            source = self.table.sources.get(self._announced.popleft()[1])
            if source is not None and source.flow is None:
                self._vague.append(source.ref)
        self.proceed()

    def want_poll(self, now: float) -> int:
        """Poll as soon as no request is under way; returns the serial of that poll."""
        self.now = now
        self.wanted = self.serial + 1
        self.proceed()
        return self.wanted

    def count_flows(self) -> int:
        """Number of flows that the user sees: without routes, interfaces, and the flows of a proof."""
        sources = self.table.sources
        if self.options.providers & NO_FLOWS:
            known = sum(1 for source in sources.values() if source.reader.is_flow)
        else:
            known = len(sources) - len(self.table.hidden)
        return known + len(self.table.awaited)

    @property
    def sees_all(self) -> bool:
        """False if the table may lack a flow: it has no flow at all, or a source cannot be read."""
        return bool(self.table.sources) and not self._unreadable.number

    def take_over(self, old: Subscription) -> None:
        """Take over from an older socket."""
        self.table.continue_from(old.table)
        self.decoder.continue_statistics(old.decoder)
        for provider in self.refused:
            if provider not in old.refused:
                self._say_refused(provider)  # it had no events until now
        self.providers |= old.providers & (self.options.providers - self.refused.keys())
        self.serial, self.wanted = old.serial, old.wanted
        self.needs_resync = False

    # --- the machine -----------------------------------------------------------

    def proceed(self) -> None:
        """Send the requests that may be sent; enter the next state if this one is done."""
        while self.outcome is None:
            self._send_queued()
            if self._in_flight or self._queue or self._questions:
                return
            after = WHEN_DONE.get(self.state)
            if after is None:
                trigger = Trigger.DESCRIPTION_DUE if self._vague else Trigger.POLL_WANTED
                if trigger is Trigger.POLL_WANTED and self.wanted <= self.serial:
                    return
                after = TRANSITIONS[self.state].get(trigger)
                if after is None:
                    return
            elif self.state is State.SUBSCRIBING:
                self.wanted = max(self.wanted, self.serial + 1)
            elif self.state is State.VERIFYING:
                self._report_poll()
            self._enter(after)

    def _enter(self, state: State) -> None:
        self.state = state
        if state is State.SUBSCRIBING:
            self._subscribe()
        elif state is State.POLLING:
            self._begin_poll()
        elif state is State.VERIFYING:
            self._begin_verification()

    def _send_queued(self) -> None:
        if self.state in {State.VERIFYING, State.DESCRIBING}:
            while self._vague:
                self._queue.append(single_request(self.kernel, Purpose.DESCRIBE, self._vague.popleft()))
        at_once = 1 if self.state in {State.SUBSCRIBING, State.POLLING} else self._singles_at_once
        while len(self._in_flight) < at_once and (request := self._next_request()) is not None:
            if request.purpose not in SINGLE or self._is_open(request):
                self._statistics["verifications"] += (
                    request.purpose in SINGLE and request.purpose is not Purpose.DESCRIBE
                )
                self._send(request, renew=True)

    def _next_request(self) -> Request | None:
        """The next request; questions become requests one by one, because there may be very many."""
        if self._queue:
            return self._queue.popleft()
        while self._questions:
            for ref, purpose in self._questions[0]:
                details = self._details and purpose is not Purpose.DESCRIBE
                return single_request(self.kernel, purpose, ref, details=details)
            self._questions.popleft()
        return None

    def _is_open(self, request: Request) -> bool:
        """True if a question about a single source is still open."""
        return (request.ref in self.table.sources) != (request.purpose in UNSEEN)

    def _send(self, request: Request, *, renew: bool = False) -> None:
        """Send a request, for the first time or again; with `renew`, under a new context."""
        if renew:
            self._context += 1
            request.context = self._context
        request.backoff = False
        request.sent_at = self.now
        request.bytes_before, request.datagrams_before = self.decoder.bytes, self.decoder.datagrams
        if request.purpose is Purpose.SUBSCRIBE:
            self.table.phase = Phase.LISTING
        self._in_flight[request.context] = request
        self._statistics["requests"] += 1
        self.outbox.append(request.message.encode(self.kernel.layout, context=request.context))

    # --- what each state asks --------------------------------------------------

    def _subscribe(self) -> None:
        translator = self.table.translator
        interfaces = sorted(translator.interfaces.keys() - translator.gone)
        suppress = self.table.terms.suppressed
        self._queue.extend(subscribe_requests(self.kernel, self.options, interfaces, suppress=suppress))
        for provider in Provider:
            if provider in self.options.providers and not self.kernel.provider_numbers(provider):
                self._refuse(provider, DarwinErrno.ENOENT)

    def _begin_poll(self) -> None:
        self.serial += 1
        self._statistics["polls"] += 1
        self._poll_began = self.now
        self._poll_trouble = False
        self.table.begin_poll()
        kernel, sources = self.kernel, self.table.sources.values()
        self._details = kernel.has_details and self.options.extras
        apart = self._asks_apart
        describe = apart and (not sources or any(map(self._is_undescribed, sources)))
        self.table.described = set() if describe and (kernel.resumes_polls or not kernel.has_updates) else None
        self._queue.extend(poll_requests(kernel, details=self._details, apart=apart, describe=describe))

    @property
    def _asks_apart(self) -> bool:
        """True if a poll asks for counters and descriptions separately."""
        return not self.kernel.has_updates or (self.has_small_buffer and not self._details)

    def _is_undescribed(self, source: Source) -> bool:
        """True for a source whose description is wanted, if descriptions come separately from counters."""
        every = self.decoder.observer is not None or self.serial % REDESCRIBE_EVERY == 1
        return every or source.identity is None or _is_vague(source)

    def _undescribed(self) -> Iterable[Source]:
        """Sources that have no description, or no counters, after the requests about all sources.

        They are taken from the present sources, because requests about them take time, and new sources come meanwhile.
        """
        kernel, sources = self.kernel, list(self.table.sources.values())
        if self._details:  # routes and interfaces have none
            return (s for s in sources if not s.reader.is_flow)
        if not self._asks_apart:
            return ()
        if kernel.can_describe_all:  # it was announced since then, or the description did not fit
            serial, came = self.table.poll_serial, self.table.described
            return (s for s in sources if s.identity is None or not (came is None or s.born == serial or s.ref in came))
        return filter(self._is_undescribed, sources)

    def _begin_verification(self) -> None:
        verification = self._verification = Verification()
        # A list, because sources come and go while the requests are sent.
        self._ask([(source.ref, Purpose.DESCRIBE) for source in self._undescribed()])
        self._ask(verification.questions(self.table, self._unreadable))
        if self.table.terms.suppressed and (
            verification.is_needed or not self._answered_whole or not self._newest_fit()
        ):
            self._ask(verification.begin_probing(self.table))

    def _ask(self, questions: Iterable[Question]) -> None:
        self._questions.append(iter(questions))

    def _newest_fit(self) -> bool:
        """True if the first batch of a poll has room: only that batch reports the newest sources."""
        return self.receive_buffer is None or self.receive_buffer * 3 // 4 >= MAX_BATCH

    def _report_poll(self) -> None:
        verification, table = self._verification, self.table
        if verification.recovered:
            table.emit(EventsLost(table.time, LossCause.BATCH, verification.recovered, detail="asked for again"))
        if verification.never_seen:
            table.lost_ends += verification.never_seen
            table.emit(EventsLost(table.time, LossCause.GOODBYE, verification.never_seen))
        answered = not verification.unanswered and not self._poll_trouble
        complete = answered and not self.has_gap
        self._statistics["polls_incomplete"] += not complete
        table.phase = Phase.LIVE
        count = self.count_flows() if answered else sum(1 for _ in table.flows())
        table.emit(PollCompleted(table.time, count, complete, self.serial))
        self.outcome = answered
        self._answered_whole = self._answered_whole or answered
        if self.receive_buffer is None and verification.recovered * LOSSY > count:
            self.has_small_buffer = True

    # --- replies -----------------------------------------------------------------

    def announced(self, ref: int) -> None:
        """SRC_ADDED: request the description after a delay."""
        if not self.table.terms.suppressed and ref not in self.table.sources:
            self._announced.append((self.now + DESCRIBE_DELAY, ref))

    def answered(self, context: int, ref: int) -> None:
        """A report that answers a request."""
        request = self._in_flight.get(context)
        if request is None or request.purpose is Purpose.POLL:
            return
        if request.purpose is Purpose.SUBSCRIBE:
            if isinstance(request.message, AddSource):
                self._granted(request)
            return
        del self._in_flight[context]
        if request.purpose is Purpose.PROBE:
            if ref in self.table.sources:  # the table may be full
                self._ask(self._verification.probe_beyond(ref))
        elif request.purpose is not Purpose.DESCRIBE:
            self._verification.recovered += 1

    def succeeded(self, context: int, flags: int) -> None:
        """SUCCESS."""
        request = self._in_flight.get(context)
        if request is None or request.purpose in SINGLE:
            return
        if request.purpose is Purpose.SUBSCRIBE:
            self._granted(request)
            return
        del self._in_flight[context]
        if flags & HeaderFlag.CONTINUATION:
            request.retries = 0
            self._go_on(request)

    def failed(self, context: int, errno: int) -> None:
        """ERROR."""
        request = self._in_flight.pop(context, None)
        if request is None:
            return  # the end of a poll that a newer one replaced
        if request.purpose in SINGLE:
            self._single_refused(request, errno)
            return
        self._statistics["requests_refused"] += 1
        if request.purpose is Purpose.SUBSCRIBE:
            self._subscription_refused(request, errno)
        elif request.purpose is Purpose.POLL:
            if self.decoder.datagrams - request.datagrams_before > 1:  # more than the refusal: the poll made progress
                request.retries = 0
            if errno in _NO_ROOM and request.retries < MAX_RETRIES:
                request.retries += 1
                self._go_on(request, drain=self.immediate)
            else:
                self._poll_trouble = True

    def _go_on(self, request: Request, *, drain: bool = False) -> None:
        """Request the next part of a poll (with `drain`, when the channel is empty), up to a time limit."""
        if self.now - self._poll_began >= POLL_TIMEOUT:
            self._poll_trouble = True
        elif drain:
            request.backoff = True
            self._in_flight[request.context] = request
        else:
            self._send(request)

    def _granted(self, request: Request) -> None:
        del self._in_flight[request.context]
        self.table.phase = Phase.BASELINE
        assert request.provider is not None
        self.providers.add(request.provider)
        if not self.table.terms.suppressed and self._buffer_was_full(request):
            # The scan stops at the first announcement that does not fit, and still succeeds.
            if self.receive_buffer is None and self.kernel.can_suppress:
                self.needs_audit = True  # the buffer's size over a bridge is unknown: another socket can tell
            else:
                self.report_gap(None)

    def _buffer_was_full(self, request: Request) -> bool:
        size = self.decoder.bytes - request.bytes_before
        records = self.decoder.datagrams - request.datagrams_before
        storage = records * 256 / 8 if self.kernel.charges_mbufs else 0
        return max(size, storage) >= SUSPICIOUS_FILL * (self.receive_buffer or DEFAULT_BUFFER)

    def _subscription_refused(self, request: Request, errno: int) -> None:
        self.table.phase = Phase.BASELINE
        provider = request.provider
        assert provider is not None
        if errno == DarwinErrno.EALREADY:
            self.providers.add(provider)
        elif errno in _NO_ROOM and not self.table.terms.suppressed:
            # The list is incomplete, and cannot be requested again on this socket.
            self.providers.add(provider)
            self.report_gap(None)
        else:
            self._refuse(provider, errno, userland=request.userland)

    def _refuse(self, provider: Provider, errno: int, *, userland: bool | None = None) -> None:
        if userland and errno == DarwinErrno.ENOENT:
            return
        self.refused.setdefault(provider, errno)
        self._say_refused(provider)

    def _say_refused(self, provider: Provider) -> None:
        errno = self.refused[provider]
        if provider is Provider.QUIC and errno == DarwinErrno.ENOENT:
            return  # a default provider that older kernels do not have
        self.table.emit(ProviderRefused(self.table.time, provider, errno, _REFUSALS.get(errno) or error_text(errno)))

    def _single_refused(self, request: Request, errno: int) -> None:
        source = self.table.sources.get(request.ref)
        if errno == DarwinErrno.ENOENT:
            if source is not None:
                self.table.remove(source, RemovalReason.GONE)
            elif request.ref in self.table.references.missing:  # otherwise its removal came before the answer
                self.table.references.missing.discard(request.ref)
                self._verification.never_seen += 1
        elif errno in _NO_ROOM:
            self._single_unanswered()
        elif errno == DarwinErrno.EOPNOTSUPP:  # a route or an interface: it has no details
            self._queue.append(single_request(self.kernel, request.purpose, request.ref))
        elif errno == DarwinErrno.EINVAL and source is not None and self._asks_apart and not source.reader.userland:
            self._let_go(request.ref)
        else:  # the source exists, and has nothing to report, or cannot be read
            self._unreadable.note(request.ref)
            if request.purpose is Purpose.PROBE and self._unreadable.number < MAX_VERIFICATIONS:
                self._ask(self._verification.probe_beyond(request.ref))
            elif request.purpose is Purpose.PROBE:
                self._single_unanswered()

    def _let_go(self, ref: int) -> None:
        """Remove a kernel socket without a description: it is dead, but the kernel does not notice while polls ask for counters."""
        self._context += 1
        self.outbox.append(RemoveSource(context=self._context, srcref=ref).encode(self.kernel.layout))

    def _single_unanswered(self) -> None:
        """The kernel could not answer now, which tells nothing about the source."""
        if self.state is State.VERIFYING:
            self._verification.unanswered += 1

    def _note_silence(self, request: Request) -> None:
        """Report, once for each silence, that nothing came since a request: it may take long until a poll is given up."""
        heard = self.decoder.datagrams
        if heard == request.datagrams_before and heard != self._unheard and request.purpose is not Purpose.SYSTEM_INFO:
            self._unheard = heard
            detail = f"the kernel has not answered for {REPLY_TIMEOUT:g} s"
            self.table.emit(EventsLost(self.table.time, LossCause.SILENCE, None, detail=detail))

    def _reply_lost(self, request: Request) -> None:
        self._statistics["replies_lost"] += 1
        if request.purpose is Purpose.SUBSCRIBE:
            self._granted(request)
            # Whether the kernel watches the provider, and listed everything, is in that answer.
            assert request.provider is not None
            self.report_gap(None, f"the answer to the subscription to {request.provider.value} was lost")
            return
        del self._in_flight[request.context]
        if request.purpose in SINGLE:
            self._single_unanswered()
        elif request.purpose is Purpose.SYSTEM_INFO:
            pass  # a granted request has no answer
        elif not request.message.flags:
            pass  # not paced: sources that it omitted are verified
        elif request.retries < MAX_RETRIES:
            request.retries += 1
            self._send(request, renew=True)
        else:
            self._poll_trouble = True

    def report_gap(self, count: int | None, detail: str | None = None) -> None:
        """Announcements were lost for good: only another control socket can see those sources."""
        super().report_gap(count, detail)
        self.announcements_lost += inf if count is None else count
        self.needs_resync = self.has_gap = True


def _is_vague(source: Source) -> bool:
    """True for a source whose description is from before it had a peer."""
    flow = source.flow
    return flow is not None and flow.provider is Provider.TCP and flow.remote is None and flow.direction is None
