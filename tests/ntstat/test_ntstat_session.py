"""The active session against a kernel of bytes: what it asks, when, and what it makes of each answer."""

from __future__ import annotations

import errno

import pytest
from ntstat_wire import NEWER, Wire, address
from virtual import VirtualMonitor

from nstat_async import (
    BackendUnavailableError,
    Endpoint,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    MonitorOptions,
    PollCompleted,
    Proof,
    Provider,
    ProviderRefused,
    RemovalReason,
    RequestError,
    UsageError,
)
from nstat_async._contract import CloseChannel, Lookup, LookupFailed, OpenChannel, Send
from nstat_async.ntstat import (
    AddAllSources,
    AddSource,
    CloseEvidence,
    DarwinErrno,
    Evidence,
    FindPaths,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    InterfacesRead,
    KnownFlow,
    Ledger,
    LedgerRow,
    Mode,
    OpenEvidence,
    PathsFound,
    QuerySource,
    ReadLedger,
    Session,
    SubscribeSystemInfo,
    decode_message,
    request_frame,
)
from nstat_async.ntstat._constants import MAX_BATCH
from nstat_async.ntstat._setup import ProvenStruct
from nstat_async.ntstat._subscription import DESCRIBE_DELAY, REPLY_TIMEOUT
from nstat_async.testing import EmulatedKernel

ALL = {4: (1 << 32) - 1, 8: (1 << 64) - 1}
TCP_UDP = {Provider.TCP, Provider.UDP}


class Talk:
    """A session, its clock and the other side of its sockets."""

    def __init__(
        self, kernel: str | int = 11, *, immediate: bool = True, receive_buffer=1 << 20, facts=None, **options
    ) -> None:
        self.wire = Wire(kernel)
        options = MonitorOptions(**{"providers": TCP_UDP, **options})
        self.core = Session(self.wire.kernel, options=options, **{"interfaces": {4: "en0"}, **(facts or {})})
        self.lookups: list[Lookup] | None = None if facts is None else []
        """Those that wait for an answer; `None`: each is answered by `None` at once."""
        self.now = 100.0
        self.immediate, self.receive_buffer = immediate, receive_buffer
        self.channels: list[int] = []
        self.closed: list[int] = []
        self.contexts: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        self.probes = 0
        """Questions about numbers above all that were told; they are answered at once: there is none."""
        self.answers_probes = True
        self.core.start(self.now)

    def asked(self) -> list:
        """The requests since the last call; channels are opened and closed as wanted."""
        found = []
        while commands := self.core.commands():
            for command in commands:
                if isinstance(command, OpenChannel):
                    assert command.channel not in self.channels + self.closed
                    self.channels.append(command.channel)
                    self.core.channel_opened(
                        command.channel, self.now, immediate=self.immediate, receive_buffer=self.receive_buffer
                    )
                elif isinstance(command, CloseChannel):
                    self.channels.remove(command.channel)
                    self.closed.append(command.channel)
                elif isinstance(command, Lookup) and self.lookups is not None:
                    self.lookups.append(command)
                elif isinstance(command, Lookup):
                    self.core.lookup_done(command.token, None, self.now)  # no evidence to be had here
                else:
                    assert isinstance(command, Send)
                    frame = request_frame(command.data, has_lengths=self.wire.layout.has_lengths)
                    message = decode_message(self.wire.kernel, command.data, frame)
                    assert message.context != 0
                    if self.answers_probes and self._is_probe(command.channel, message):
                        self.probes += 1
                        refusal = self.wire.error(message.context, DarwinErrno.ENOENT)
                        self.core.receive_datagram(refusal, self.now, command.channel)
                        continue
                    self.last[command.channel] = message.context
                    found.append(message)
        return found

    def _is_probe(self, channel: int, message) -> bool:
        known = self.core._sockets.find(channel).table.sources
        return (
            type(message) in {GetUpdate, GetDetails}
            and max(known, default=0) < message.srcref < self.wire.layout.all_sources
        )

    def answer(self, *datagrams, channel: int | None = None) -> list:
        """Deliver, and say what is asked next."""
        for entry in datagrams:
            for datagram in entry if isinstance(entry, list) else [entry]:
                self.core.receive_datagram(datagram, self.now, self.channels[-1] if channel is None else channel)
        return self.asked()

    def found(self, answer) -> list:
        """Answer the oldest look-up, and say what is asked next."""
        self.core.lookup_done(self.lookups.pop(0).token, answer, self.now)
        return self.asked()

    def drained(self, channel: int | None = None) -> list:
        self.core.channel_drained(self.channels[-1] if channel is None else channel, self.now)
        return self.asked()

    def later(self, seconds: float) -> list:
        self.now += seconds
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.core.handle_deadline(self.now)
        return self.asked()

    def due(self) -> list:
        """Let time pass to the next deadline."""
        deadline = self.core.next_deadline()
        assert deadline is not None
        return self.later(max(0.0, deadline - self.now) + 1e-6)

    def events(self, *kinds: type) -> list:
        return [e for e in self.core.take_events() if not kinds or isinstance(e, kinds)]

    def subscribe(self) -> list:
        """Grant everything; the requests of the first poll are left open."""
        requests, found = self.asked(), []
        while requests and isinstance(requests[0], AddAllSources):
            (request,) = requests
            found.append(request)
            requests = self.answer(self.wire.success(request.context))
        self.open_poll = requests
        return found

    def report(self, ref: int, rx: int = 1, **fields):
        fields = {"local": address("192.0.2.1", 1000 + ref), "remote": address("192.0.2.9", 443), "state": 4, **fields}
        return self.wire.report(ref, self.wire.counts(rx, rx), self.wire.descriptor(2, **fields), context=0)

    def poll(self, *refs: int, rx: int = 1) -> list:
        """Answer the open poll with these sources; the result is what is asked next."""
        (request,) = self.open_poll
        data = [datagram for ref in refs for datagram in self.report(ref, rx)]
        return self.answer(data, self.wire.success(request.context))

    def next_poll(self, *refs: int, rx: int = 1) -> list:
        self.open_poll = self.due()
        return self.poll(*refs, rx=rx)


def names(messages: list) -> list[str]:
    return [type(m).__name__ for m in messages]


# --- subscribing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "numbers", "bits"),
    [
        (1, [2, 3], 0),
        (4, [2, 3], 0),
        (5, [2, 3], 0x100000),
        (6, [2, 3, 4, 5], 0x100000),
        (7, [2, 3, 4, 5, 8], 0x100000),
        (11, [2, 3, 4, 5, 8], 0x100000),
        (12, [2, 3, 4, 5, 8], 0x100000),
    ],
)
def test_providers_are_subscribed_one_after_the_other_and_a_poll_follows(kernel, numbers, bits):
    talk = Talk(kernel, providers={Provider.TCP, Provider.UDP, Provider.QUIC})
    requests = talk.subscribe()
    assert [r.provider for r in requests] == numbers
    assert {r.filter for r in requests} == {bits}
    contexts = [r.context for r in requests]
    assert len(set(contexts)) == len(contexts)
    (first,) = talk.open_poll
    reference = talk.wire.layout.all_sources
    if kernel >= 5:
        assert first == GetUpdate(context=first.context, flags=3, srcref=reference)
    else:
        assert isinstance(first, GetSourceDescription if kernel >= 3 else QuerySource)
    assert talk.events() == []
    assert talk.core.capabilities.providers >= TCP_UDP


def test_announced_discovery_suppresses_nothing():
    assert {r.filter for r in Talk(11, discovery="announce").subscribe()} == {0}


@pytest.mark.parametrize(
    ("kernel", "bits"),
    [("xnu-8019.41.5", 1 << 28), ("xnu-8019.61.5", 1 << 41), ("xnu-8796.141.3", 1 << 41 | 1 << 45),
     ("xnu-11417.121.6", 1 << 41 | 1 << 45 | 1 << 46)],
)  # fmt: skip
def test_extras_ask_for_what_the_release_has(kernel, bits):
    talk = Talk(kernel, extras=True, providers={Provider.TCP})
    requests = talk.subscribe()
    assert {r.filter for r in requests} == {0x100000 | bits}
    assert isinstance(talk.open_poll[0], SubscribeSystemInfo)
    (poll,) = talk.drained()  # granted in silence
    assert isinstance(poll, GetUpdate)
    refused = Talk(kernel, extras=True, providers={Provider.TCP})
    refused.subscribe()
    (poll,) = refused.answer(refused.wire.error(refused.open_poll[0].context, DarwinErrno.EPERM))
    assert isinstance(poll, GetUpdate)
    assert refused.events() == []


def test_extras_of_26_poll_for_details():
    talk = Talk(12, extras=True, providers={Provider.TCP})
    talk.subscribe()
    assert isinstance(talk.drained()[0], GetDetails)


def test_interfaces_are_asked_for_by_index():
    talk = Talk(11, providers={Provider.INTERFACE, Provider.TCP})
    talk.subscribe()
    (request,) = talk.open_poll
    assert isinstance(request, AddSource)
    assert talk.wire.layout["nstat_ifnet_add_param"].decode(request.param) == {"threshold": 1 << 20, "ifindex": 4}
    (poll,) = talk.answer(talk.wire.added(1, provider=6, context=request.context))
    assert isinstance(poll, GetUpdate)


def test_what_a_kernel_is_too_old_for_is_left_out_and_what_it_refuses_is_told():
    talk = Talk(11, providers={*TCP_UDP, Provider.QUIC, Provider.CONNECTION, Provider.UDP_SUBFLOW})
    requests = talk.asked()
    while requests and isinstance(requests[0], AddAllSources):
        (request,) = requests
        refusal = {3: 2, 5: 2, 8: 2, 9: 1, 10: 45}.get(request.provider)
        requests = talk.answer(
            talk.wire.error(request.context, refusal) if refusal else talk.wire.success(request.context)
        )
    assert isinstance(requests[0], GetUpdate)
    told = talk.events()
    assert [(type(e), e.provider, e.errno) for e in told] == [
        (ProviderRefused, Provider.CONNECTION, 1),
        (ProviderRefused, Provider.UDP_SUBFLOW, 45),
    ]
    assert "root" in told[0].detail
    assert talk.core.failure is None
    assert any("connection: refused" in note for note in talk.core.capabilities.notes)
    assert not any(note.startswith(("tcp:", "udp:")) for note in talk.core.capabilities.notes)
    old = Talk(4, providers={Provider.TCP, Provider.QUIC, Provider.CONNECTION})
    old.subscribe()
    assert [e.provider for e in old.events()] == [Provider.CONNECTION]


def test_when_every_provider_is_refused_the_subscription_fails():
    talk = Talk(11)
    requests = talk.asked()
    while requests and isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.error(requests[0].context, DarwinErrno.EPERM))
    assert isinstance(talk.core.failure, RequestError)
    assert talk.core.failure.errno == 1
    assert "tcp, udp" in str(talk.core.failure)


def test_a_channel_that_cannot_be_opened_is_a_failure():
    talk = Talk(11)
    (command,) = talk.core.commands()
    talk.core.channel_failed(command.channel, errno.EMFILE, talk.now)
    assert isinstance(talk.core.failure, BackendUnavailableError)
    with pytest.raises(UsageError):
        Session("OS/2")


# --- polls ----------------------------------------------------------------------------------


def test_a_paced_poll_goes_on_while_the_kernel_says_so_also_through_an_empty_piece():
    talk = Talk()
    talk.subscribe()
    context = talk.open_poll[0].context
    again = talk.answer([d for r in range(1, 101) for d in talk.report(r)], talk.wire.success(context, flags=2))
    assert again == talk.open_poll
    assert talk.answer(talk.report(101), talk.wire.success(context, flags=2)) == again
    assert talk.answer(talk.wire.success(context)) == []
    *added, completed = talk.events()
    assert {type(e) for e in added} == {FlowAdded}
    assert len(added) == 101
    assert (completed.flows, completed.complete) == (101, True)


def test_a_displaced_poll_of_another_time_is_ignored_and_an_own_one_is_incomplete():
    talk = Talk()
    talk.subscribe()
    context = talk.open_poll[0].context
    assert talk.answer(talk.wire.error(context + 1000, DarwinErrno.EAGAIN)) == []
    assert talk.answer(talk.report(1), talk.wire.error(context, DarwinErrno.EAGAIN)) == []
    assert talk.events(PollCompleted)[0].complete is False
    assert isinstance(talk.due()[0], GetUpdate)


@pytest.mark.parametrize("immediate", [True, False])
def test_a_full_buffer_ends_a_poll_s_piece_and_the_same_request_goes_on(immediate):
    talk = Talk(immediate=immediate)
    talk.subscribe()
    request = talk.open_poll[0]
    for attempt in range(4):
        requests = talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS))
        if immediate and attempt < 3:
            assert requests == []  # first what fills the buffer is read
            requests = talk.drained()
        assert requests == ([request] if attempt < 3 else [])
    assert talk.events(PollCompleted)[0].complete is False


def test_after_a_drained_immediate_channel_a_missing_success_is_lost():
    talk = Talk()
    talk.subscribe()
    contexts = [talk.open_poll[0].context]
    talk.answer(talk.report(1))
    for _ in range(3):
        (request,) = talk.drained()
        contexts.append(request.context)
    assert len(set(contexts)) == 4  # a new poll each time, so the kernel begins anew
    assert talk.drained() == []
    assert talk.events(PollCompleted)[0].complete is False
    assert talk.core.statistics()["replies_lost"] == 4
    assert isinstance(talk.due()[0], GetUpdate)  # and polls go on


def test_over_a_bridge_a_missing_success_is_lost_after_a_time():
    talk = Talk(immediate=False)
    talk.subscribe()
    assert talk.drained() == []
    assert talk.core.next_deadline() == pytest.approx(talk.now + REPLY_TIMEOUT)
    assert talk.later(REPLY_TIMEOUT - 0.1) == []
    (request,) = talk.later(0.2)
    assert request.context != talk.open_poll[0].context
    # The first answer comes after all, and means nothing any more.
    assert talk.answer(talk.wire.success(talk.open_poll[0].context)) == []
    assert talk.answer(talk.wire.success(request.context)) == []
    assert len(talk.events(PollCompleted)) == 1


def test_polls_keep_their_interval_and_missed_turns_are_skipped():
    talk = Talk(interval=30.0)
    talk.subscribe()
    talk.poll()
    assert talk.core.next_deadline() == talk.now + 30.0
    talk.open_poll = talk.due()
    start = talk.now
    talk.now += 64.0  # the answer takes two turns and more
    talk.poll()
    assert talk.core.next_deadline() == pytest.approx(start + 90.0)
    assert len(talk.due()) == 1


def test_without_an_interval_a_poll_comes_only_when_wanted():
    """Only a look at a second control socket comes by itself, once a minute."""
    talk = Talk(interval=None)
    talk.subscribe()
    talk.poll(1)
    assert talk.core.next_deadline() == pytest.approx(talk.now + 60.0)
    talk.core.request_poll(talk.now)
    talk.core.request_poll(talk.now)
    (request,) = talk.asked()
    assert isinstance(request, GetUpdate)
    talk.core.request_poll(talk.now)
    assert talk.asked() == []  # one is under way
    (following,) = talk.answer(talk.report(1), talk.wire.success(request.context))
    assert following.context != request.context


# --- verification -----------------------------------------------------------------------------


def _absent_source(talk: Talk) -> int:
    """Two sources, of which the second poll reports one; the context of the question about the other."""
    talk.subscribe()
    talk.poll(2, 1)
    talk.events()
    (question,) = talk.next_poll(1)
    assert (type(question), question.srcref, question.flags) == (GetUpdate, 2, 0)
    return question.context


def test_a_source_that_a_poll_left_out_and_that_answers_was_in_a_lost_batch():
    talk = Talk()
    context = _absent_source(talk)
    data = talk.wire.updated(2, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=4), context=context)
    assert talk.answer(data) == []
    events = talk.events()
    assert [type(e) for e in events] == [FlowUpdated, EventsLost, PollCompleted]
    assert (events[1].cause, events[1].count, events[2].complete) == (LossCause.BATCH, 1, True)


def test_a_source_that_a_poll_left_out_and_that_is_unknown_has_gone():
    talk = Talk()
    talk.answer(talk.wire.error(_absent_source(talk), DarwinErrno.ENOENT))
    events = talk.events()
    assert [type(e) for e in events] == [FlowRemoved, EventsLost, PollCompleted]
    assert (events[0].reason, events[0].final, events[1].cause) == (
        RemovalReason.GONE, False, LossCause.FINAL_COUNTS,
    )  # fmt: skip


@pytest.mark.parametrize("error", [DarwinErrno.EAGAIN, DarwinErrno.EIO])
def test_a_source_that_has_nothing_to_report_or_cannot_be_read_stays_and_the_poll_is_complete(error):
    talk = Talk()
    talk.answer(talk.wire.error(_absent_source(talk), error))
    asked = 0
    for _ in range(8):
        (poll,) = talk.events()
        assert isinstance(poll, PollCompleted)
        assert poll.complete
        assert len(list(talk.core.flows())) == 2
        for question in talk.next_poll(1):  # at every second poll, then at every fourth …
            asked += 1
            talk.answer(talk.wire.error(question.context, error))
    assert asked == 2


def test_a_question_that_stays_without_an_answer_leaves_the_poll_incomplete():
    talk = Talk()
    _absent_source(talk)
    talk.drained()
    assert talk.events(PollCompleted)[0].complete is False


def test_numbers_below_the_highest_that_never_appeared_are_asked_for():
    talk = Talk()
    talk.subscribe()
    questions = talk.poll(5, 2)
    assert [(q.srcref, q.flags) for q in questions] == [(1, 0), (3, 0), (4, 0)]
    by_ref = {q.srcref: q.context for q in questions}
    talk.answer(
        talk.wire.error(by_ref[1], DarwinErrno.ENOENT),
        talk.wire.error(by_ref[3], DarwinErrno.ENOENT),
        talk.wire.updated(4, talk.wire.counts(7, 7), talk.wire.descriptor(2), context=by_ref[4]),
    )
    losses = {e.cause: e.count for e in talk.events(EventsLost)}
    assert losses == {LossCause.GOODBYE: 2, LossCause.BATCH: 1}
    assert talk.next_poll(5, 4, 2) == []  # and only once


def test_after_the_first_poll_a_few_numbers_above_all_are_asked_for_in_case_the_newest_batch_was_lost():
    talk = Talk()
    talk.answers_probes = False
    talk.subscribe()
    questions = talk.poll(2, 1)
    assert [q.srcref for q in questions] == [3, 4, 5, 6]
    answer = talk.wire.updated(3, talk.wire.counts(7, 7), talk.wire.descriptor(2), context=questions[0].context)
    more = talk.answer(answer)
    assert [q.srcref for q in more] == [7]
    for question in [*questions[1:], *more]:
        talk.answer(talk.wire.error(question.context, DarwinErrno.ENOENT))
    events = talk.events()
    assert len([e for e in events if isinstance(e, FlowAdded)]) == 3
    assert next(e for e in events if isinstance(e, PollCompleted)).complete
    assert talk.next_poll(3, 2, 1) == []  # it was answered whole: there is no need any more


def test_flows_between_polls_come_whole_with_their_goodbye():
    talk = Talk()
    talk.subscribe()
    talk.poll()
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=10)))
    added, removed = talk.events(FlowAdded, FlowRemoved)
    assert (removed.final, removed.counts.rx_bytes, added.preexisting) == (True, 9, False)
    assert talk.next_poll() == []  # its number is accounted for


def test_flows_that_began_before_the_subscription_are_preexisting():
    talk = Talk()
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    old = talk.report(1, start_timestamp=10**9, timestamp=50 * 10**9)
    (context,) = [m.context for m in talk.open_poll]
    talk.answer(old, talk.wire.success(context))
    assert talk.events(FlowAdded)[0].preexisting is True
    talk.now += 5
    talk.answer(talk.report(2, start_timestamp=60 * 10**9, timestamp=61 * 10**9))
    added = talk.events(FlowAdded)[0]
    assert added.preexisting is False
    assert added.flow.started_ns == pytest.approx((talk.now + 1e9 - 1) * 1e9)
    talk.answer(talk.report(3, start_timestamp=10**9, timestamp=61 * 10**9))
    assert talk.events(FlowAdded)[0].preexisting is True, "whenever it is found"


def test_following_too_flows_that_began_before_the_subscription_are_preexisting():
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    session.epoch_offset = 1e9
    session.observe_request(AddAllSources(context=5, provider=2).encode(wire.layout), 11.0)
    session.receive_datagram(wire.success(5), 11.0)
    session.observe_request(GetUpdate(context=6, srcref=ALL[8]).encode(wire.layout), 12.0)
    session.receive_datagram(wire.success(6), 12.0)
    session.take_events()
    for ref, age in ((1, 10), (2, 5)):
        descriptor = wire.descriptor(2, start_timestamp=10**9, timestamp=(1 + age) * 10**9)
        session.receive_datagrams(wire.report(ref, wire.counts(5), descriptor), 20.0, 0)
    assert [event.preexisting for event in session.take_events()] == [True, False]


# --- announcements ---------------------------------------------------------------------------


def _announcing() -> Talk:
    talk = Talk(discovery="announce", interval=60.0)
    requests = talk.asked()
    (request,) = requests
    requests = talk.answer(talk.wire.added(1), talk.wire.added(2), talk.wire.success(request.context))
    while isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.success(requests[0].context))
    talk.open_poll = requests
    talk.poll(2, 1)
    assert {e.preexisting for e in talk.events(FlowAdded)} == {True}
    return talk


def test_an_announced_source_is_described_after_a_moment():
    talk = _announcing()
    assert talk.answer(talk.wire.added(3)) == []
    assert talk.core.next_deadline() == pytest.approx(talk.now + DESCRIBE_DELAY)
    assert talk.later(DESCRIBE_DELAY / 2) == []
    (question,) = talk.later(DESCRIBE_DELAY)
    assert (type(question), question.srcref) == (GetUpdate, 3)
    talk.answer(talk.wire.updated(3, talk.wire.counts(1), talk.wire.descriptor(2), context=question.context))
    (added,) = talk.events()
    assert (added.preexisting, added.flow.started_ns) == (False, int(100.0 * 1e9))
    # One that told of itself meanwhile is not asked for.
    talk.answer(talk.wire.added(4), talk.report(4))
    assert talk.later(1.0) == []


def test_a_lost_announcement_is_counted_and_a_second_socket_takes_over_without_a_seam():
    talk = _announcing()
    before = {flow.local.port: (flow.id, counts.rx_bytes) for flow, counts in talk.core.flows()}
    talk.answer(talk.wire.added(5))
    (loss,) = talk.events()
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, 2)
    requests = talk.due()
    assert talk.channels == [0, 1]
    # The second socket knows the same sockets by other numbers, and those that were missed.
    while isinstance(requests[0], AddAllSources):
        assert requests[0].filter == 0x100000
        requests = talk.answer(talk.wire.success(requests[0].context), channel=1)
    # Meanwhile the first goes on speaking.
    talk.answer(talk.report(1, rx=50), channel=0)
    assert [e.counts.rx_bytes for e in talk.events(FlowUpdated)] == [50]
    ports = {11: 1001, 12: 1002, 13: 1003, 14: 1004}
    data = [talk.report(ref, rx=60, local=address("192.0.2.1", port)) for ref, port in ports.items()]

    def poll_second():
        requests = talk.answer(*data, talk.wire.success(talk.last[1]), channel=1)
        while requests and requests[0].srcref != talk.wire.layout.all_sources:
            requests = talk.answer(*(talk.wire.error(q.context, DarwinErrno.ENOENT) for q in requests), channel=1)
        return requests

    # What the first was told before is read first: it is polled, and then the second once more.
    assert len(poll_second()) == 1
    assert talk.channels == [0, 1]
    third = talk.report(5, rx=60, local=address("192.0.2.1", 1003))
    reports = (talk.report(1, rx=50), talk.report(2, rx=1), third)
    requests = talk.answer(*reports, talk.wire.success(talk.last[0]), channel=0)
    while requests and requests[0].srcref != talk.wire.layout.all_sources:
        requests = talk.answer(*(talk.wire.error(q.context, DarwinErrno.ENOENT) for q in requests), channel=0)
    assert poll_second() == []
    assert talk.channels == [1]
    assert talk.closed == [0]
    events = talk.events()
    updated = {e.flow.id: e.delta.rx_bytes for e in events if isinstance(e, FlowUpdated)}
    assert updated == {before[1001][0]: 10, before[1002][0]: 59}
    added = [e.flow for e in events if isinstance(e, FlowAdded)]
    assert sorted(f.local.port for f in added) == [1003, 1004]
    assert len({f.id for f in added} | set(updated)) == 4
    gone = [e for e in events if isinstance(e, FlowRemoved)]
    assert {e.reason for e in gone} <= {RemovalReason.GONE}
    assert [e.cause for e in events if isinstance(e, EventsLost)].count(LossCause.RESYNC) == 1
    # From now on the second speaks for all, under the old ids.
    talk.answer(talk.report(11, rx=99, local=address("192.0.2.1", 1001)), channel=1)
    (event,) = talk.events()
    assert (event.flow.id, event.delta.rx_bytes) == (before[1001][0], 39)
    talk.answer(talk.wire.removed(1), channel=0)  # what is left in the first means nothing
    assert talk.events() == []


def test_a_scan_that_filled_the_buffer_was_cut_short():
    talk = Talk(discovery="announce", receive_buffer=8192)
    (request,) = talk.asked()
    talk.answer([talk.wire.added(r) for r in range(1, 194)], talk.wire.success(request.context))
    (loss,) = talk.events()
    assert (loss.cause, loss.count) == (LossCause.ANNOUNCEMENT, None)
    assert talk.core.next_deadline() is not None


def test_a_scan_that_the_kernel_gave_up_is_a_gap_too():
    talk = Talk(discovery="announce")
    (request,) = talk.asked()
    (following,) = talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS))
    assert isinstance(following, AddAllSources)
    assert [e.cause for e in talk.events()] == [LossCause.ANNOUNCEMENT]
    assert talk.core.capabilities.providers == {Provider.TCP}


def test_an_incomplete_poll_counts_the_flows_that_were_reported():
    talk = _announcing()
    talk.answer(talk.wire.added(3))
    talk.core.request_poll(talk.now)
    (request,) = talk.asked()
    questions = talk.answer(talk.wire.error(request.context, DarwinErrno.EPERM))
    talk.answer(*(talk.wire.error(question.context, DarwinErrno.ENOBUFS) for question in questions))
    (poll,) = talk.events(PollCompleted)
    assert (poll.flows, poll.complete) == (2, False)


# --- the control goes away ----------------------------------------------------------------------


def test_a_control_that_closes_is_opened_again_after_growing_pauses():
    talk = Talk()
    talk.subscribe()
    talk.poll(1)
    kept = talk.events(FlowAdded)[0].flow.id
    talk.core.channel_closed(0, talk.now)
    assert talk.asked() == []
    assert [e.cause for e in talk.events()] == [LossCause.RESYNC]
    pauses = []
    for _ in range(4):
        pauses.append(talk.core.next_deadline() - talk.now)
        talk.now = talk.core.next_deadline()
        talk.core.handle_deadline(talk.now)
        (command,) = talk.core.commands()
        assert isinstance(command, OpenChannel)
        talk.core.channel_failed(command.channel, errno.ENOENT, talk.now)
        talk.core.commands()
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    requests = talk.due()
    while isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.success(requests[0].context))
    talk.open_poll = requests
    talk.poll(1, rx=7)
    events = talk.events(FlowAdded, FlowRemoved, FlowUpdated)
    assert [(type(e), e.flow.id, e.counts.rx_bytes) for e in events] == [(FlowUpdated, kept, 7)]
    assert talk.core.failure is None
    assert isinstance(talk.due()[0], GetUpdate)  # and polls go on
    assert talk.closed[:1] == [0]


def test_a_control_that_stays_away_is_a_failure():
    talk = Talk()
    talk.subscribe()
    talk.core.channel_closed(0, talk.now)
    for _ in range(10):
        for command in talk.core.commands():
            if isinstance(command, OpenChannel):
                talk.core.channel_failed(command.channel, errno.ENOENT, talk.now)
        if talk.core.failure is not None:
            break
        talk.now = talk.core.next_deadline()
        talk.core.handle_deadline(talk.now)
    assert isinstance(talk.core.failure, BackendUnavailableError)


def test_an_overloaded_kernel_is_told_and_spoils_the_poll():
    talk = Talk()
    talk.subscribe()
    talk.core.epoch_offset = 1e9
    talk.core.channel_failed(0, errno.ENOBUFS, talk.now + 3.0)
    assert [(e.cause, e.time) for e in talk.events()] == [(LossCause.KERNEL_BUFFER, 1e9 + 103.0)]
    talk.poll(1)
    assert talk.events(PollCompleted)[0].complete is False


def _reopened(talk: Talk) -> list:
    """The control went away at once and is open again, on channel 1; its first poll."""
    talk.core.channel_closed(0, talk.now)
    requests = talk.due()
    while isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.success(requests[0].context))
    return requests


def test_a_second_socket_that_the_kernel_cannot_answer_is_polled_again_after_growing_pauses():
    talk = Talk()
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    talk.poll(1)
    talk.events()
    talk.now += 1.0
    (request,) = _reopened(talk)
    (loss,) = talk.events(EventsLost)
    assert loss.time == 1e9 + 101.0
    pauses = []
    for _ in range(7):
        talk.answer(talk.wire.error(request.context, DarwinErrno.EPERM))
        pauses.append(round(talk.core.next_deadline() - talk.now, 3))
        (request,) = talk.due()
    assert pauses == [0.05, 0.2, 0.5, 1.0, 2.0, 2.0, 2.0]
    talk.answer(talk.report(1), talk.wire.success(request.context))
    (completed,) = talk.events(PollCompleted)
    assert (completed.flows, completed.complete) == (1, True)
    assert talk.core.next_deadline() == talk.now + 1.0, "the next poll comes an interval later"


def test_a_first_socket_that_goes_away_while_the_second_waits_for_it_is_replaced_at_the_next_poll():
    talk = _announcing()
    talk.answer(talk.wire.added(5))
    requests = talk.due()
    while isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.success(requests[0].context), channel=1)
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(requests[0].context), channel=1)
    talk.events()
    talk.core.channel_closed(0, talk.now)
    (poll,) = talk.asked()
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(poll.context), channel=1)
    assert [event.cause for event in talk.events(EventsLost)] == [LossCause.RESYNC]
    assert len(list(talk.core.flows())) == 2
    assert talk.core.statistics()["resynchronisations"] == 1
    assert talk.core.failure is None


def test_a_poll_that_was_under_way_when_the_control_went_away_is_made_up_for():
    talk = Talk(interval=None)
    talk.subscribe()
    talk.poll(1)
    assert talk.core.request_poll(talk.now) == 2
    talk.asked()
    (request,) = _reopened(talk)
    talk.events()
    (again,) = talk.answer(talk.report(1), talk.wire.success(request.context))
    talk.answer(talk.report(1), talk.wire.success(again.context))
    assert [event.serial for event in talk.events(PollCompleted)] == [2, 3]


def test_whoever_wants_a_poll_hears_its_number_whatever_the_session_does_now():
    talk = Talk(interval=None)
    assert Session(talk.wire.kernel).request_poll(1.0) == 1
    assert talk.core.request_poll(talk.now) == 1, "subscribing"
    talk.subscribe()
    talk.poll(1)
    assert talk.events(PollCompleted)[0].serial == 1
    talk.now += 5.0
    talk.core.epoch_offset = 1e9
    assert talk.core.request_poll(talk.now) == 2
    (request,) = talk.asked()
    talk.answer(talk.wire.success(request.context), talk.wire.error(talk.last[0] + 1, DarwinErrno.ENOENT))
    assert {event.time for event in talk.events(PollCompleted)} == {1e9 + 105.0}
    talk.core.channel_closed(0, talk.now)
    assert talk.core.request_poll(talk.now) == 3, "away"


@pytest.mark.parametrize(
    ("kernel", "interval", "seconds"),
    [("xnu-10063.141.1", 1.0, 15), ("xnu-10063.141.1", 10.0, 100), ("xnu-11417.121.6", 1.0, 60)],
)
def test_looks_at_a_second_socket_keep_their_distance(kernel, interval, seconds):
    monitor = VirtualMonitor(EmulatedKernel(kernel), interval=interval)
    monitor.run(seconds - 0.5)
    assert monitor.session.statistics()["audits"] == 0
    monitor.run(1.5)
    assert monitor.session.statistics()["audits"] == 1


# --- numbers ---------------------------------------------------------------------------------------


def test_statistics_count_what_was_asked_and_what_became_of_it():
    talk = Talk()
    talk.subscribe()
    names = ("requests", "polls", "verifications", "requests_refused", "polls_incomplete")
    assert [talk.core.statistics()[name] for name in names] == [5, 1, 0, 0, 0]
    talk.poll(2, 1)
    assert [talk.core.statistics()[name] for name in names] == [9, 1, 4, 0, 0]
    (question,) = talk.next_poll(1)
    talk.answer(talk.wire.error(question.context, DarwinErrno.ENOENT))
    assert [talk.core.statistics()[name] for name in names] == [15, 2, 9, 0, 0]
    (request,) = talk.due()
    talk.answer(talk.report(1), talk.wire.error(request.context, DarwinErrno.EPERM))
    assert [talk.core.statistics()[name] for name in names] == [16, 3, 9, 1, 1]


@pytest.mark.parametrize(("size", "at_once"), [(1000, 1), (8192, 6), (1 << 20, 32), (None, 6)])
def test_so_many_single_questions_are_open_as_their_answers_have_room(size, at_once):
    talk = Talk(receive_buffer=size)
    talk.subscribe()
    questions = talk.poll(40)
    assert [question.srcref for question in questions] == list(range(1, at_once + 1))
    assert [q.srcref for q in talk.answer(talk.wire.error(questions[0].context, DarwinErrno.ENOENT))] == [at_once + 1]


@pytest.mark.parametrize(("size", "small"), [(65_535, True), (65_536, False), (None, False)])
def test_what_is_a_small_receive_buffer_is_noted(size, small):
    talk = Talk(receive_buffer=size)
    talk.subscribe()
    assert any("receive buffer is small" in note for note in talk.core.capabilities.notes) is small


@pytest.mark.parametrize(("lost", "small"), [(1, False), (2, True)])
def test_over_a_bridge_a_poll_that_lost_more_than_a_quarter_tells_of_a_small_buffer(lost, small):
    talk = Talk(receive_buffer=None, immediate=False)
    talk.subscribe()
    talk.poll(4, 3, 2, 1)
    for question in talk.next_poll(*range(1, 5 - lost)):
        talk.answer(
            talk.wire.updated(question.srcref, talk.wire.counts(9), talk.wire.descriptor(2), context=question.context)
        )
    assert any("receive buffer is small" in note for note in talk.core.capabilities.notes) is small


@pytest.mark.parametrize(("size", "probes"), [(-(-MAX_BATCH * 4 // 3), 4), (-(-MAX_BATCH * 4 // 3) - 2, 8), (None, 4)])
def test_where_a_batch_need_not_fit_each_poll_asks_for_numbers_above_all(size, probes):
    talk = Talk(receive_buffer=size)
    talk.subscribe()
    talk.poll(1)
    (request,) = talk.due()
    talk.answer(talk.report(1), talk.wire.success(request.context))
    assert talk.probes == probes


@pytest.mark.parametrize("more", [119.0, 120.0])
@pytest.mark.parametrize("what", ["continued", "refused"])
def test_a_poll_without_an_end_is_given_up_after_two_minutes(more, what):
    talk = Talk(immediate=False)
    talk.subscribe()
    (request,) = talk.open_poll
    talk.now += more
    wire = talk.wire
    answer = wire.success(request.context, flags=2) if what == "continued" else wire.error(request.context, 55)
    assert talk.answer(answer) == ([request] if more < 120 else [])
    assert [poll.complete for poll in talk.events(PollCompleted)] == ([] if more < 120 else [False])


def test_a_poll_that_comes_further_between_refusals_is_asked_for_as_often_as_it_takes():
    talk = Talk(immediate=False)
    talk.subscribe()
    (request,) = talk.open_poll
    for ref in range(1, 10):
        assert talk.answer(talk.report(ref), talk.wire.error(request.context, DarwinErrno.ENOBUFS)) == [request]
    for attempt in range(4):
        assert talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS)) == [request] * (attempt < 2)


@pytest.mark.parametrize("kernel", [11, 4])
@pytest.mark.parametrize(("announced", "full"), [(179, False), (180, True)])
def test_a_list_that_filled_seven_tenths_of_the_buffer_may_have_been_cut_short_and_each_provider_has_its_own(
    kernel, announced, full
):
    talk = Talk(kernel, discovery="announce", receive_buffer=8192)
    (request,) = talk.asked()
    data = [talk.wire.added(ref) for ref in range(1, announced)] + [talk.wire.success(request.context)]
    (request,) = talk.answer(data)
    lost = [event.count for event in talk.events(EventsLost)]
    assert lost == ([None] if full else [])
    talk.answer([talk.wire.added(300 + ref) for ref in range(50)], talk.wire.success(request.context))
    assert len(talk.events(EventsLost)) <= 1, "that of the numbers between"


def test_who_subscribed_already_is_granted():
    talk = Talk(providers={Provider.TCP})
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.error(request.context, DarwinErrno.EALREADY))
    assert talk.core.capabilities.providers == {Provider.TCP}
    assert isinstance(requests[0], AddAllSources)
    assert talk.events() == []


def test_what_has_no_details_is_asked_for_an_update():
    talk = Talk(12, extras=True, providers={Provider.TCP})
    talk.subscribe()
    (poll,) = talk.drained()
    talk.answer(talk.report(1), talk.report(2), talk.wire.success(poll.context))
    (poll,) = talk.due()
    (question,) = talk.answer(talk.report(1), talk.wire.success(poll.context))
    assert (type(question), question.srcref) == (GetDetails, 2)
    (question,) = talk.answer(talk.wire.error(question.context, DarwinErrno.EOPNOTSUPP))
    assert (type(question), question.srcref) == (GetUpdate, 2)


# --- old kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 4])
def test_10_9_and_10_10_are_asked_for_all_descriptions_and_all_counters(kernel):
    talk = Talk(kernel)
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.added(1), talk.wire.success(request.context))
    (poll,) = talk.answer(talk.wire.success(requests[0].context))
    assert (type(poll), poll.srcref, poll.flags) == (GetSourceDescription, 2**32 - 1, 0)
    descriptor = talk.wire.descriptor(2, local=address("192.0.2.1", 5), remote=address("192.0.2.9", 443), state=4)
    described = talk.wire.described(1, descriptor, context=poll.context)
    (query,) = talk.answer(described, talk.wire.success(poll.context))
    assert type(query) is QuerySource
    counted = talk.wire.counted(1, talk.wire.counts(5, 5), context=query.context)
    assert talk.answer(counted, talk.wire.success(query.context)) == []
    events = talk.events()
    assert (type(events[0]), type(events[-1])) == (FlowAdded, PollCompleted)
    assert next(iter(talk.core.flows()))[1].rx_bytes == 5
    assert talk.later(DESCRIBE_DELAY + 0.01) == []  # what was announced is described by now
    (query,) = talk.due()
    assert type(query) is QuerySource  # known in full: counters are enough
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), descriptor), talk.wire.success(query.context))
    (removed,) = talk.events(FlowRemoved)
    assert (removed.final, removed.counts.rx_bytes) == (True, 9)


@pytest.mark.parametrize("kernel", [1, 2])
def test_10_7_and_10_8_are_asked_for_descriptions_one_by_one(kernel):
    talk = Talk(kernel)
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.added(1), talk.wire.added(2), talk.wire.success(request.context))
    (query,) = talk.answer(talk.wire.success(requests[0].context))
    assert type(query) is QuerySource
    counted = [talk.wire.counted(r, talk.wire.counts(5, 5), context=query.context) for r in (2, 1)]
    questions = talk.answer(*counted, talk.wire.success(query.context))
    assert [(type(q), q.srcref) for q in questions] == [(GetSourceDescription, 1), (GetSourceDescription, 2)]
    descriptor = talk.wire.descriptor(2, local=address("192.0.2.1", 5), remote=address("192.0.2.9", 443), state=4)
    talk.answer(
        talk.wire.described(1, descriptor, context=questions[0].context),
        talk.wire.error(questions[1].context, DarwinErrno.ENOENT),
    )
    events = talk.events()
    assert len([e for e in events if isinstance(e, FlowAdded)]) == 2
    assert [e.reason for e in events if isinstance(e, FlowRemoved)] == [RemovalReason.GONE]
    assert isinstance(events[-1], PollCompleted)


@pytest.mark.parametrize("kernel", [5, 6, 7, 10, 11, 12])
def test_every_batching_release_polls_by_updates_from_the_start(kernel):
    """Up to 10.12 only the first GET_UPDATE makes goodbyes come as updates: it is asked at once."""
    talk = Talk(kernel)
    talk.subscribe()
    talk.poll(1)
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=0)))
    events = talk.events()
    assert [type(e) for e in events] == [FlowAdded, PollCompleted, FlowUpdated, FlowRemoved]
    assert events[-1].final


# --- look-ups, and the clock ----------------------------------------------------------------------


def _two_processes(**facts) -> Talk:
    """A session on a wall clock, a poll each hour; its first poll reported flows of pids 1 and 2."""
    talk = Talk(12, facts=facts, interval=3600.0)
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    data = talk.report(2, pid=2, upid=2) + talk.report(1, pid=1, upid=1)
    talk.answer(data, talk.wire.success(talk.open_poll[0].context))
    talk.events()
    talk.now += 7.0
    return talk


def test_executables_are_asked_for_one_question_at_a_time_and_reported_when_they_are_found():
    talk = _two_processes(paths=True)
    assert [lookup.request for lookup in talk.lookups] == [FindPaths((2,))]
    talk.found(PathsFound((2,), ("/bin/curl",)))
    (event,) = talk.events()
    assert (event.flow.process.path, event.time) == ("/bin/curl", talk.now + 1e9)
    assert [lookup.request for lookup in talk.lookups] == [FindPaths((1,))], "what came meanwhile"
    talk.found(LookupFailed("no"))
    talk.answer(talk.report(5, pid=5, upid=5))
    assert talk.lookups[0].request == FindPaths((5,)), "one that failed holds nobody up"


def test_both_control_sockets_hear_of_executables():
    talk = _two_processes(paths=True)
    talk.lookups.clear()
    talk.core.channel_closed(0, talk.now)
    requests = talk.due()
    while isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.success(requests[0].context))
    talk.answer(talk.report(11, local=address("192.0.2.1", 1001), pid=1, upid=1))
    talk.core.lookup_done(3, PathsFound((1,), ("/bin/curl",)), talk.now)
    talk.answer(talk.wire.success(requests[0].context))
    paths = {flow.process.path for flow, _ in talk.core.flows() if flow.process.pid == 1}
    assert paths == {"/bin/curl"}


def test_what_the_kernel_counts_as_lost_is_said_at_the_moment_of_its_answer_and_repaired():
    talk = _two_processes(ledger=True)
    assert talk.lookups[0].request == ReadLedger()
    talk.found(Ledger((LedgerRow(3, 2, 1),)))
    losses = talk.events()
    assert [(loss.cause, loss.count) for loss in losses] == [(LossCause.ANNOUNCEMENT, 2), (LossCause.GOODBYE, 1)]
    assert {loss.time for loss in losses} == {talk.now + 1e9}
    assert "net.stats.metrics" in losses[0].detail
    assert talk.core.next_deadline() == talk.now, "another control socket is opened at once"
    known = Talk(12, facts={"ledger": True})
    known.subscribe()
    known.answer(*(known.wire.error(question.context, DarwinErrno.ENOENT) for question in known.poll(3)))
    assert [(loss.cause, loss.count) for loss in known.events(EventsLost)] == [(LossCause.GOODBYE, 2)]
    known.found(Ledger((LedgerRow(3, 0, 2),)))
    assert known.events() == [], "which was said already"
    lost = _two_processes(ledger=True)
    lost.found(Ledger((LedgerRow(3, 0, 1),)))
    assert lost.core.next_deadline() > lost.now + 50, "no other one hears of what has ended"


EVIDENCE = Evidence(
    pid=9, uid=0, interface_index=4,
    flows=(KnownFlow(
        provider=Provider.TCP, local=Endpoint.parse("192.0.2.1", 1003), remote=Endpoint.parse("192.0.2.9", 443),
        state=None, rx_bytes=1, tx_bytes=1,
    ),),
)  # fmt: skip


def test_a_proof_goes_on_at_once_and_its_flows_are_nobodys_until_they_are_closed():
    talk = _two_processes(verify=True)
    assert talk.lookups[0].request == OpenEvidence()
    (poll,) = talk.found(EVIDENCE)
    assert poll.srcref == talk.wire.layout.all_sources
    known = talk.report(3, pid=9, upid=9)
    for _ in range(3):
        (poll,) = talk.answer(known, talk.report(2, pid=2, upid=2), talk.report(1, pid=1, upid=1),
                              talk.wire.success(poll.context)) or [None]  # fmt: skip
        if talk.lookups:
            break
    assert talk.lookups[0].request == CloseEvidence()
    assert not talk.events(FlowAdded)
    talk.found(None)
    talk.answer(talk.wire.removed(3), talk.report(4, pid=9, upid=9, local=address("192.0.2.1", 1003)))
    assert [event.flow.process.pid for event in talk.events(FlowAdded)] == [9]


def test_known_flows_that_cannot_be_opened_cost_no_poll():
    talk = _two_processes(verify=True)
    assert talk.found(None) == []
    assert any("cannot be proven" in note for note in talk.core.capabilities.notes)


@pytest.mark.parametrize(("kernel", "proves"), [(12, False), (NEWER, True)])
def test_who_does_not_say_whether_to_prove_proves_what_is_newer_than_known(kernel, proves):
    talk = Talk(kernel, facts={})
    talk.subscribe()
    talk.answer(talk.wire.success(talk.open_poll[0].context))
    assert [lookup.request for lookup in talk.lookups] == [OpenEvidence()] * proves


def test_a_session_that_follows_asks_for_nothing_and_keeps_what_was_proven():
    wire = Wire(12)
    structs = (ProvenStruct("nstat_tcp_descriptor", 344, (("pid", 116),)),)
    facts = {"verify": True, "paths": True, "ledger": True, "coverage": True, "proven": structs}
    session = Session(wire.kernel, mode=Mode.FOLLOWING, **facts)
    session.epoch_offset = 1e9
    session.start(5.0)
    session.receive_datagrams(wire.report(1, wire.counts(5), wire.descriptor(2)), 5.0, 0)
    session.lookup_done(5, InterfacesRead(((4, 1, 1),)), 6.0)
    session.lookup_done(5, InterfacesRead(((4, 9, 9),)), 7.0)
    assert session.commands() == []
    assert "coverage_rx_bytes" not in session.statistics()
    assert (session.setup.proven, session.proof) == (structs, Proof.PROBED)
    assert Session(wire.kernel, **facts).setup.proven == ()
    session.take_events()
    session.channel_failed(0, errno.ENOENT, 7.0)
    session.channel_failed(0, errno.ENOBUFS, 8.0)
    assert [(event.cause, event.time) for event in session.take_events()] == [(LossCause.KERNEL_BUFFER, 1e9 + 8.0)]
    session.receive_datagram(wire.added(2), 9.0)
    session.finish(9.5)
    assert session.next_event().time == 1e9 + 9.5
    session.receive_datagram(wire.added(4), 10.0)
    session.observe_request(AddAllSources(context=5, provider=2).encode(wire.layout), 11.0)
    session.receive_datagram(wire.success(5), 11.0)
    session.observe_request(AddAllSources(context=6, provider=2).encode(wire.layout), 12.0)
    session.receive_datagram(wire.success(6), 12.5)
    assert {event.time for event in session.take_events()} == {1e9 + 12.5}


def test_one_who_has_one_socket_forgoes_the_second_and_is_told_what_is_lost():
    wire = Wire(11)
    session = Session(wire.kernel, options=MonitorOptions(providers={Provider.TCP}, discovery="announce"))
    session.start(50.0)
    losses = []
    for turn in range(50, 80):
        for data in session.data_to_send():
            message = decode_message(wire.kernel, data, request_frame(data, has_lengths=wire.layout.has_lengths))
            one = getattr(message, "srcref", wire.layout.all_sources) != wire.layout.all_sources
            answer = wire.error(message.context, DarwinErrno.ENOENT) if one else wire.success(message.context)
            session.receive_datagram(answer, turn)
        if turn == 60:
            session.receive_datagram(wire.added(1), turn)
            session.receive_datagram(wire.added(3), turn)
        if (due := session.next_deadline()) is not None and due <= turn:
            session.handle_deadline(turn)
        losses += [event.cause for event in session.take_events() if isinstance(event, EventsLost)]
    assert losses == [LossCause.ANNOUNCEMENT, LossCause.FINAL_COUNTS, LossCause.FINAL_COUNTS]
    assert session.failure is None
    assert session.capabilities.receive_buffer is None
    assert session.statistics()["polls"] > 12, "they go on"


def test_one_socket_without_commands_is_enough_to_bring_one_s_own_io():
    wire = Wire(11)
    session = Session(wire.kernel, options=MonitorOptions(providers={Provider.TCP}))
    session.start(0.0)
    requests = [session.data_to_send()]
    for turn in range(10):
        for data in requests[-1]:
            message = decode_message(wire.kernel, data, request_frame(data, has_lengths=wire.layout.has_lengths))
            if isinstance(message, AddAllSources):
                answer = wire.success(message.context)
            elif message.srcref == wire.layout.all_sources:
                answer = wire.updated(1, wire.counts(5), wire.descriptor(2)) + wire.success(message.context)
            else:
                answer = wire.error(message.context, DarwinErrno.ENOENT)
            session.receive_datagram(answer, turn / 10)
        requests.append(session.data_to_send())
    assert isinstance(session.next_event(), FlowAdded)
    assert isinstance(session.next_event(), PollCompleted)
    assert session.next_event() is None
    assert requests[-1] == []
