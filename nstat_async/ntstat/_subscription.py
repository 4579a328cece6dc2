"""A client that asks: subscribe, poll, verify.

The states are in `_states.py`, and follow what the kernel does with each request (it
answers inside the ``send``; ``nstat_client_send``):

- SUBSCRIBING: one ADD_ALL_SRCS per provider, one after the other. A refusal of one
  provider is reported and the others go on.
- POLLING: all sources are asked for. Since xnu-3247 this is *paced*: the request
  carries CONTINUATION and a fresh context; while SUCCESS carries the flag too, the
  same request is sent again. Before, one or two unpaced requests do it.
- VERIFYING: what the poll did not report and should have is asked for by itself.

Subscription and poll requests are sent one at a time, requests about single sources
several. A request ends with its SUCCESS, ERROR or report; without one, on an *immediate*
channel as soon as it is drained, since all answers exist when ``send`` returns; on any
other after `REPLY_TIMEOUT`.
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
"""Seconds after which a poll whose every round is continued is given up."""
DESCRIBE_DELAY = 0.1
"""Seconds between an announcement and the question who it is: before, nothing is known."""
MAX_RETRIES = 3
"""Times that a refused or unanswered request is sent again."""
MAX_SINGLES = 32
"""Requests about single sources that may be outstanding together; fewer where the receive buffer is small."""
AMPLE_BUFFER = 65_536
"""Receive buffer in which a hundred updates, all that one round of a poll reports, find room."""
LOSSY = 4
"""A poll that lost one flow of so many tells that the buffer is small, whatever is known of it."""
DEFAULT_BUFFER = 8192
"""Receive buffer that ``connect`` gives: reckoned with where the true size is not known (a bridge)."""
SINGLE_REPLY = 1024
"""Bytes of buffer reckoned for the answer to one of them."""
SUSPICIOUS_FILL = 0.7
"""Part of the receive buffer after which the kernel may have refused messages (it does at 0.75)."""
REDESCRIBE_EVERY = 5
"""Old kernels: every n-th poll asks for all descriptions again."""

_NO_ROOM = frozenset({DarwinErrno.ENOBUFS, DarwinErrno.ENOMEM})
_REFUSALS: dict[int, str] = {
    DarwinErrno.EPERM: "needs root (or an entitlement)",
    DarwinErrno.ENOTSUP: "this kernel does not offer it",
    DarwinErrno.ENOENT: "this kernel does not have it",
}


def _discard(event: AnyEvent) -> None:
    """Where the events of a table go that is only being filled."""


class Subscription(Client):
    """One control socket that a session opened.

    Args:
        channel: Its number.
        translator: Shared by the session.
        emit: Where events go.
        options: The monitor's.
        generation: Makes flow ids of this socket unlike those of others.
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
        """Number of the poll under way, or of the last one."""
        self.wanted = 0
        """Number of the newest poll that somebody wants."""
        self.outcome: bool | None = None
        """A poll is over and the session should look at it: whether the kernel answered all that was asked."""
        self.announcements_lost = 0.0
        """How many were reported as lost; infinite where nobody can tell."""
        self.has_gap = False
        """Flows may be there that were never announced; a whole list on another control socket tells."""
        self.needs_audit = False
        """Whether this one missed anything, another control socket should tell soon."""
        self.needs_resync = False
        """Only another control socket can see what this one missed."""
        if silent:
            self.table.emit = _discard
        names = ("requests", "polls", "polls_incomplete", "verifications", "replies_lost", "requests_refused")
        self._people = dict.fromkeys(names, 0)
        self._context = 0
        self._queue: deque[Request] = deque()
        """What the state is still to ask."""
        self._questions: deque[Iterator[Question]] = deque()
        """About which single sources."""
        self._in_flight: dict[int, Request] = {}
        """What it asked, by context."""
        self._announced: deque[tuple[float, int]] = deque()
        """When to ask who an announced source is."""
        self._vague: deque[int] = deque()
        """Sources whose description is to be asked for at the next occasion."""
        self._verification = Verification()
        self._unreadable = Unreadable()
        self._unheard = -1
        """Datagrams that had come when it was said that no more do."""
        self._poll_began = 0.0
        self._poll_trouble = False
        self._details = False
        """The poll asks for counters by medium."""
        self._singles_at_once = MAX_SINGLES
        self.has_small_buffer = False
        """What the kernel reports in one round of a poll need not fit; polls then ask for counters, a third of the size."""
        self._answered_whole = False
        """True once the kernel answered all that a poll and its verification asked."""

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
        """Counters for people, by name."""
        return {**super().statistics(), **self._people}

    def opened(self, *, immediate: bool, receive_buffer: int | None) -> None:
        """The channel is there."""
        if self.state is not State.OPENING:
            return
        self.immediate = immediate
        self.receive_buffer = receive_buffer
        room = (receive_buffer or DEFAULT_BUFFER) * 3 // 4
        self._singles_at_once = max(1, min(MAX_SINGLES, room // SINGLE_REPLY))
        self.has_small_buffer = receive_buffer is not None and receive_buffer < AMPLE_BUFFER
        self.table.subscribed_ns = self.table.time_ns
        self._enter(TRANSITIONS[self.state][Trigger.OPENED])
        self.proceed()

    def close(self) -> None:
        """The channel is gone, or no longer wanted."""
        if self.is_polling:
            self.wanted = self.serial + 1  # whoever waits for that poll gets another one
        self.state = TRANSITIONS[self.state][Trigger.CLOSED]
        for waiting in (self.outbox, self._queue, self._questions, self._in_flight, self._announced, self._vague):
            waiting.clear()

    def settle(self) -> None:
        """A datagram said more than how known flows fare: draw the conclusions."""
        super().settle()
        self.proceed()

    def drained(self) -> None:
        """The channel is empty: on an immediate one, what is not answered never will be."""
        waiting = list(self._in_flight.values())
        refused = [request for request in waiting if request.backoff]
        for request in refused:
            self._send(request)
        if self.immediate and not refused and not self.outbox:
            for request in waiting:
                self._reply_lost(request)
        self.proceed()

    def overloaded(self) -> None:
        """A send was refused for lack of buffer: the answer is lost."""
        self.emit(EventsLost(self.table.time, LossCause.KERNEL_BUFFER, None, detail="the kernel could not answer"))
        self._poll_trouble = True

    def deadline(self) -> float | None:
        """When time alone makes something due."""
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
        """Poll as soon as nothing is in flight; the number of that poll."""
        self.now = now
        self.wanted = self.serial + 1
        self.proceed()
        return self.wanted

    def count_flows(self) -> int:
        """How many flows there are for the user: routes and interfaces are none, nor are those of a proof."""
        sources = self.table.sources
        if self.options.providers & NO_FLOWS:
            known = sum(1 for source in sources.values() if source.reader.is_flow)
        else:
            known = len(sources) - len(self.table.hidden)
        return known + len(self.table.awaited)

    @property
    def sees_all(self) -> bool:
        """False if a flow may be there that is not in the table: there is none at all, or something cannot be read."""
        return bool(self.table.sources) and not self._unreadable.number

    def take_over(self, old: Subscription) -> None:
        """Speak for what an older socket spoke for."""
        self.table.continue_from(old.table)
        self.decoder.continue_statistics(old.decoder)
        for provider in self.refused:
            if provider not in old.refused:
                self._say_refused(provider)  # until now it spoke to nobody
        self.providers |= old.providers & (self.options.providers - self.refused.keys())
        self.serial, self.wanted = old.serial, old.wanted
        self.needs_resync = False

    # --- the machine -----------------------------------------------------------

    def proceed(self) -> None:
        """Send what may be sent; enter the next state when this one is done."""
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
                self._people["verifications"] += request.purpose in SINGLE and request.purpose is not Purpose.DESCRIBE
                self._send(request, renew=True)

    def _next_request(self) -> Request | None:
        """What is to be asked now; questions become requests one by one, for there may be very many."""
        if self._queue:
            return self._queue.popleft()
        while self._questions:
            for ref, purpose in self._questions[0]:
                details = self._details and purpose is not Purpose.DESCRIBE
                return single_request(self.kernel, purpose, ref, details=details)
            self._questions.popleft()
        return None

    def _is_open(self, request: Request) -> bool:
        """True if a question about one source still is one."""
        return (request.ref in self.table.sources) != (request.purpose in UNSEEN)

    def _send(self, request: Request, *, renew: bool = False) -> None:
        """Send a request, for the first time or again; with `renew`, under a context of its own."""
        if renew:
            self._context += 1
            request.context = self._context
        request.backoff = False
        request.sent_at = self.now
        request.bytes_before, request.datagrams_before = self.decoder.bytes, self.decoder.datagrams
        if request.purpose is Purpose.SUBSCRIBE:
            self.table.phase = Phase.LISTING
        self._in_flight[request.context] = request
        self._people["requests"] += 1
        self.outbox.append(request.message.encode(self.kernel.layout, context=request.context))

    # --- what each state asks --------------------------------------------------

    def _subscribe(self) -> None:
        interfaces = sorted(self.table.translator.interfaces)
        suppress = self.table.terms.suppressed
        self._queue.extend(subscribe_requests(self.kernel, self.options, interfaces, suppress=suppress))
        for provider in Provider:
            if provider in self.options.providers and not self.kernel.provider_numbers(provider):
                self._refuse(provider, DarwinErrno.ENOENT)

    def _begin_poll(self) -> None:
        self.serial += 1
        self._people["polls"] += 1
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
        """True if a poll asks for counters and descriptions apart."""
        return not self.kernel.has_updates or (self.has_small_buffer and not self._details)

    def _is_undescribed(self, source: Source) -> bool:
        """Where descriptions come apart from counters: True for a source whose description is wanted."""
        every = self.decoder.observer is not None or self.serial % REDESCRIBE_EVERY == 1
        return every or source.identity is None or _is_vague(source)

    def _undescribed(self) -> Iterable[Source]:
        """What the requests about all sources leave without a description, or without counters.

        Of those that are there now: they are asked one by one, and others come meanwhile.
        """
        kernel, sources = self.kernel, list(self.table.sources.values())
        if self._details:  # which routes and interfaces do not have
            return (s for s in sources if not s.reader.is_flow)
        if not self._asks_apart:
            return ()
        if kernel.can_describe_all:  # announced since then, or the description did not fit
            serial, came = self.table.poll_serial, self.table.described
            return (s for s in sources if s.identity is None or not (came is None or s.born == serial or s.ref in came))
        return filter(self._is_undescribed, sources)

    def _begin_verification(self) -> None:
        verification = self._verification = Verification()
        # A list: sources come and go while they are asked about.
        self._ask([(source.ref, Purpose.DESCRIBE) for source in self._undescribed()])
        self._ask(verification.questions(self.table, self._unreadable))
        if self.table.terms.suppressed and (
            verification.is_needed or not self._answered_whole or not self._newest_fit()
        ):
            self._ask(verification.begin_probing(self.table))

    def _ask(self, questions: Iterable[Question]) -> None:
        self._questions.append(iter(questions))

    def _newest_fit(self) -> bool:
        """True if a poll's first batch finds room: it has the newest sources, and nothing else reports them."""
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
        self._people["polls_incomplete"] += not complete
        table.phase = Phase.LIVE
        count = self.count_flows() if answered else sum(1 for _ in table.flows())
        table.emit(PollCompleted(table.time, count, complete, self.serial))
        self.outcome = answered
        self._answered_whole = self._answered_whole or answered
        if self.receive_buffer is None and verification.recovered * LOSSY > count:
            self.has_small_buffer = True

    # --- replies -----------------------------------------------------------------

    def announced(self, ref: int) -> None:
        """SRC_ADDED: ask for the description after a grace time."""
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
            if ref in self.table.sources:  # not beyond what the table can hold
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
            return  # the end of a poll that a newer one displaced
        if request.purpose in SINGLE:
            self._single_refused(request, errno)
            return
        self._people["requests_refused"] += 1
        if request.purpose is Purpose.SUBSCRIBE:
            self._subscription_refused(request, errno)
        elif request.purpose is Purpose.POLL:
            if self.decoder.datagrams - request.datagrams_before > 1:  # more than the refusal: it has come further
                request.retries = 0
            if errno in _NO_ROOM and request.retries < MAX_RETRIES:
                request.retries += 1
                self._go_on(request, drain=self.immediate)
            else:
                self._poll_trouble = True

    def _go_on(self, request: Request, *, drain: bool = False) -> None:
        """Ask for a poll's next part, with `drain` when the channel is empty; not for ever, whatever the kernel says."""
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
                self.needs_audit = True  # over a bridge nobody knows the size: another socket can tell
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
            # The list is partial and cannot be asked for again on this socket.
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
            return  # part of the default wish, and simply younger than some kernels
        self.table.emit(ProviderRefused(self.table.time, provider, errno, _REFUSALS.get(errno) or error_text(errno)))

    def _single_refused(self, request: Request, errno: int) -> None:
        source = self.table.sources.get(request.ref)
        if errno == DarwinErrno.ENOENT:
            if source is not None:
                self.table.remove(source, RemovalReason.GONE)
            elif request.ref in self.table.references.missing:  # it may have said goodbye before the question came
                self.table.references.missing.discard(request.ref)
                self._verification.never_seen += 1
        elif errno in _NO_ROOM:
            self._single_unanswered()
        elif errno == DarwinErrno.EOPNOTSUPP:  # a route or an interface: it has no details
            self._queue.append(single_request(self.kernel, request.purpose, request.ref))
        elif errno == DarwinErrno.EINVAL and source is not None and self._asks_apart and not source.reader.userland:
            self._let_go(request.ref)
        else:  # the source is there, and has nothing to report or cannot be read
            self._unreadable.note(request.ref)
            if request.purpose is Purpose.PROBE and self._unreadable.number < MAX_VERIFICATIONS:
                self._ask(self._verification.probe_beyond(request.ref))
            elif request.purpose is Purpose.PROBE:
                self._single_unanswered()

    def _let_go(self, ref: int) -> None:
        """A kernel socket without a description is dead; as long as all counters are asked for, the kernel does not look itself."""
        self._context += 1
        self.outbox.append(RemoveSource(context=self._context, srcref=ref).encode(self.kernel.layout))

    def _single_unanswered(self) -> None:
        """The kernel could not answer now: this says nothing about the source."""
        if self.state is State.VERIFYING:
            self._verification.unanswered += 1

    def _note_silence(self, request: Request) -> None:
        """Say, once for each time, that nothing at all came since a request: it may take long until a poll is given up."""
        heard = self.decoder.datagrams
        if heard == request.datagrams_before and heard != self._unheard and request.purpose is not Purpose.SYSTEM_INFO:
            self._unheard = heard
            detail = f"the kernel has not answered for {REPLY_TIMEOUT:g} s"
            self.table.emit(EventsLost(self.table.time, LossCause.SILENCE, None, detail=detail))

    def _reply_lost(self, request: Request) -> None:
        self._people["replies_lost"] += 1
        if request.purpose is Purpose.SUBSCRIBE:
            self._granted(request)
            if not self.table.terms.suppressed:
                self.report_gap(None)  # whether the kernel listed everything is in the lost answer
            return
        del self._in_flight[request.context]
        if request.purpose in SINGLE:
            self._single_unanswered()
        elif request.purpose is Purpose.SYSTEM_INFO:
            pass  # it has no answer when it is granted
        elif not request.message.flags:
            pass  # unpaced: whatever it left out is asked for by itself
        elif request.retries < MAX_RETRIES:
            request.retries += 1
            self._send(request, renew=True)
        else:
            self._poll_trouble = True

    def report_gap(self, count: int | None, detail: str | None = None) -> None:
        """Announcements were lost for good: only another control socket sees the rest."""
        super().report_gap(count, detail)
        self.announcements_lost += inf if count is None else count
        self.needs_resync = self.has_gap = True


def _is_vague(source: Source) -> bool:
    """True for a source whose description was taken before it had a peer."""
    flow = source.flow
    return flow is not None and flow.provider is Provider.TCP and flow.remote is None and flow.direction is None
